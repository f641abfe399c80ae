"""The example's HTTP server: reads, writes, a look at the cluster, and a page that shows it live.

It binds where it is told, has no authentication, and `GET /put` changes data: for one's own machine, not for the open
network.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from cluster_file import WrongUse
from store import HashStore, SetCommand

from raftify_ffi import ApplyError, InvalidConfig, Raft, RaftError, RaftServiceClient, RaftTimeout

PAGE = Path(__file__).resolve().parent / "page.html"
#: Seconds between two looks at the other nodes while somebody watches.
REFRESH = 0.5


class ClusterView:
    """What every member says of itself. Asked at most once per REFRESH however many pages are open, and never if none
    is."""

    def __init__(self, raft: Raft[HashStore], clients: AsyncExitStack) -> None:
        self._raft = raft
        self._clients = clients
        self._by_addr: dict[str, RaftServiceClient] = {}
        self._lock = asyncio.Lock()
        self._taken_at = 0.0
        self._nodes: list[dict[str, Any]] = []

    async def nodes(self) -> list[dict[str, Any]]:
        async with self._lock:
            if time.monotonic() - self._taken_at >= REFRESH * 0.8:
                own = self._raft.status
                others = [(id_, peer.addr) for id_, peer in own.peers.items() if id_ != own.node_id]
                answers = await asyncio.gather(*(self._ask(id_, addr) for id_, addr in others))
                self._nodes = sorted([status_dict(self._raft), *answers], key=lambda node: int(node["node_id"]))
                self._taken_at = time.monotonic()
            return self._nodes

    async def _ask(self, node_id: int, addr: str) -> dict[str, Any]:
        try:
            client = self._by_addr.get(addr)
            if client is None:
                client = self._by_addr[addr] = await self._clients.enter_async_context(RaftServiceClient.connect(addr))
            status: dict[str, Any] = json.loads(await client.debug_node(timeout=1.0))
            return status
        except RaftError as error:
            return {"node_id": node_id, "addr": addr, "role": "unreachable", "error": str(error)}


def status_dict(raft: Raft[HashStore]) -> dict[str, Any]:
    return raft.status.to_dict()


@web.middleware
async def errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A RaftError becomes a status that says whether to try again: 503 certainly not done, 504 outcome unknown."""
    try:
        return await handler(request)
    except RaftError as error:
        if isinstance(error, (ApplyError, InvalidConfig)):
            status = 400
        elif error.retryable:
            status = 503
        else:
            status = 504 if isinstance(error, RaftTimeout) else 500
        body = {
            "error": type(error).__name__,
            "message": str(error),
            "committed": error.committed,
            "retryable": error.retryable,
        }
        return web.json_response(body, status=status)


class Handlers:
    def __init__(self, raft: Raft[HashStore], store: HashStore, view: ClusterView, stop: asyncio.Event) -> None:
        self.raft = raft
        self.store = store
        self.view = view
        self.stop = stop

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get("/events", self.events),
            web.get("/get/{key}", self.get),
            web.get("/put/{key}/{value}", self.put),
            web.get("/store/{key}", self.get),
            web.put("/store/{key}", self.put),
            web.put("/store/{key}/{value}", self.put),
            web.get("/leader", self.leader),
            web.get("/size", self.size),
            web.get("/peers", self.peers),
            web.get("/debug", self.debug),
            web.post("/snapshot", self.snapshot),
            web.post("/leave", self.leave),
            web.post("/transfer_leader/{id:[0-9]+}", self.transfer_leader),
        ]

    async def get(self, request: web.Request) -> web.Response:
        """The value as it is now, on whichever node this is: a read waits until all that was acknowledged before it is
        applied here."""
        key = request.match_info["key"]
        value = await self.raft.read(lambda store: store.get(key))
        if value is None:
            raise web.HTTPNotFound(text=f"{key} is not set\n")
        return web.Response(text=value)

    async def put(self, request: web.Request) -> web.Response:
        value = request.match_info.get("value")
        if value is None:
            try:
                value = await request.text()
            except (UnicodeDecodeError, LookupError) as error:
                raise web.HTTPBadRequest(text=f"the value is no text: {error}\n") from error
        await self.raft.propose(SetCommand(request.match_info["key"], value).encode())
        return web.Response(text="OK")

    async def leader(self, _: web.Request) -> web.Response:
        return web.Response(text=str(self.raft.status.leader_id or 0))

    async def size(self, _: web.Request) -> web.Response:
        status = self.raft.status
        return web.Response(text=str(len(status.voters) + len(status.learners)))

    async def peers(self, _: web.Request) -> web.Response:
        status = self.raft.status
        addrs = {status.node_id: status.addr, **{id_: peer.addr for id_, peer in status.peers.items()}}
        return web.json_response({str(id_): addrs[id_] for id_ in sorted(addrs)})

    async def debug(self, _: web.Request) -> web.Response:
        return web.json_response({**status_dict(self.raft), "keys": len(self.store)})

    async def snapshot(self, _: web.Request) -> web.Response:
        info = await self.raft.snapshot()
        return web.json_response({"index": info.index, "term": info.term, "size": info.size})

    async def leave(self, _: web.Request) -> web.Response:
        """This node leaves the cluster for good, and the program ends."""
        await self.raft.leave()
        # After the answer is on its way, not before.
        asyncio.get_running_loop().call_later(0.2, self.stop.set)
        return web.Response(text="OK")

    async def transfer_leader(self, request: web.Request) -> web.Response:
        await self.raft.transfer_leader(int(request.match_info["id"]))
        return web.Response(text="OK")

    async def page(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE, headers={"Cache-Control": "no-store"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the whole view, twice a second, as long as the page is open."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        while not self.stop.is_set():
            body = {"served_by": self.raft.status.node_id, "keys": len(self.store), "nodes": await self.view.nodes()}
            try:
                await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
            except ConnectionError:
                break
            await asyncio.sleep(REFRESH)
        return response


@asynccontextmanager
async def serve_web(
    raft: Raft[HashStore], store: HashStore, address: str | None, stop: asyncio.Event
) -> AsyncIterator[None]:
    """The server runs in the program's own loop, for as long as the context is open."""
    if address is None:
        yield
        return
    host, _, port = address.rpartition(":")
    async with AsyncExitStack() as clients:
        app = web.Application(middlewares=[errors_as_json])
        app.add_routes(Handlers(raft, store, ClusterView(raft, clients), stop).routes())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, host or "127.0.0.1", int(port)).start()
            except (OSError, OverflowError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise WrongUse(
                    f"the web server cannot listen on {address}: {reason}; give --web-server another HOST:PORT"
                ) from error
            yield
        finally:
            await runner.cleanup()

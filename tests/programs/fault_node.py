"""One member, driven by a test through lines of JSON: `members.py` is the other end.

    fault_node.py '{"node_id":…, "addr":…, "peers":…, "log_dir":…, "settings":{…}, "store":{…}, "join":PEER_ADDR}'

A line in is `{"id":…, "do":…, …}`; its answer is `{"id":…, "ok":…}` or `{"id":…, "error":…}` (a pickle, in base64). What
happens unasked is `{"event":…}`, what a writer or reader reports `{"report":…}`. Calls run side by side.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import stores
from cluster import quick_config
from history import look_on, write_on

from raftify_ffi import Raft, RaftConfig, RaftError

SPEC: dict[str, Any] = json.loads(sys.argv[1])


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def pickled(error: BaseException) -> str:
    return base64.b64encode(pickle.dumps(error)).decode()


class Program:
    def __init__(self, raft: Raft[Any]) -> None:
        self.raft = raft
        self.load: list[asyncio.Task[None]] = []
        self.events: list[str] = []

    async def watch(self) -> None:
        """Keeps the names of events, and says why the node ended."""
        try:
            async for event in self.raft.events():
                self.events.append(type(event).__name__)
        except RaftError as error:
            say(event="ended", error=pickled(error))
        else:
            say(event="ended", error=None)

    async def do_propose(self, data: str, repeat: int = 1, **timeout: Any) -> str:
        return (await self.raft.propose(data.encode() * repeat, **timeout)).decode()

    async def do_flood(self, prefix: str, count: int, size: int = 0) -> int:
        """So many commands at once; how many came through."""
        pad = "." * size
        outcomes = await asyncio.gather(
            *(self.raft.propose(f"{prefix}/{number}{pad}".encode(), timeout=60) for number in range(count)),
            return_exceptions=True,
        )
        return sum(isinstance(outcome, bytes) for outcome in outcomes)

    async def do_length(self, **timeout: Any) -> int:
        return await self.raft.read(len, **timeout)

    async def do_stale_length(self) -> int:
        return self.raft.stale_read(len)

    async def do_status(self) -> Any:
        return self.raft.status.to_dict()

    async def do_events(self) -> list[str]:
        return self.events

    async def do_wait_for(self, **what: Any) -> Any:
        return (await self.raft.wait_for(**what)).to_dict()

    async def do_snapshot(self, **timeout: Any) -> int:
        return (await self.raft.snapshot(**timeout)).index

    async def do_transfer_leader(self, to: int, **timeout: Any) -> None:
        await self.raft.transfer_leader(to, **timeout)

    async def do_remove(self, member: int) -> None:
        await self.raft.members.remove(member)

    async def do_leave(self) -> None:
        await self.raft.leave()

    async def do_load(self, writers: int = 4, readers: int = 1, run: str = "", timeout: float = 10.0) -> None:
        def report(fields: list[Any]) -> None:
            say(report=fields)

        async def propose(data: bytes) -> bytes:
            return await self.raft.propose(data, timeout=timeout)

        async def read() -> int:
            return await self.raft.read(len, timeout=timeout)

        for number in range(writers):
            self.load.append(asyncio.create_task(write_on(propose, f"{self.raft.node_id}{run}.{number}", report)))
        for _ in range(readers):
            self.load.append(asyncio.create_task(look_on(read, report)))

    async def do_stop_load(self) -> None:
        for task in self.load:
            task.cancel()
        await asyncio.gather(*self.load, return_exceptions=True)
        self.load.clear()

    async def do_dump(self, path: str) -> None:
        """The whole state, in a file."""
        data = await self.raft.read(lambda store: store.snapshot(), timeout=60)
        Path(path).write_bytes(data if isinstance(data, bytes) else b"".join(data))

    async def do_peak_memory(self) -> int:
        """Bytes. Not getrusage's, which counts what the parent had when it forked."""
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    async def do_close(self) -> None:
        await self.raft.close()

    async def answer(self, line: dict[str, Any]) -> None:
        number, what = line.pop("id"), line.pop("do")
        try:
            say(id=number, ok=await getattr(self, f"do_{what}")(**line))
        except Exception as error:
            say(id=number, error=pickled(error))


async def main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    store = getattr(stores, SPEC["store"].pop("kind"))(**SPEC["store"])
    settings = dict(SPEC["settings"])
    if "raft_config" in settings:
        settings["raft_config"] = RaftConfig(**settings["raft_config"])
    node_id, peers = SPEC["node_id"], SPEC["peers"]
    ticket = None
    try:
        if SPEC["join"] is not None:
            ticket = await Raft.request_id(*SPEC["join"], timeout=30)
            node_id = ticket.get_reserved_id()
            say(event="ticket", node_id=node_id)
        if peers is not None:
            peers = {int(peer): addr for peer, addr in peers.items()}
        raft = Raft.build(node_id, SPEC["addr"], store, quick_config(Path(SPEC["log_dir"]), **settings), peers)
        await raft.run()
    except RaftError as error:
        say(event="failed", error=pickled(error))
        return
    program = Program(raft)
    watching = asyncio.create_task(program.watch())
    say(event="running")
    if ticket is not None:
        raft.prepare_join(ticket)
        await raft.join(timeout=60)
        say(event="joined", node_id=node_id)
    answers: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(program.answer(json.loads(line)))
        answers.add(task)
        task.add_done_callback(answers.discard)
    await raft.close()
    await watching


asyncio.run(main())

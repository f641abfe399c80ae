"""`RaftServiceClient`: the cluster from outside. Finds and follows the leader; sends again what is certainly not done, and within a session
also what may be."""

from __future__ import annotations

import asyncio
import json
import time
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

from . import _bridge
from ._address import checked_address, checked_node_id
from ._bridge import Bridge, Record, bridge_of_running_loop
from ._context import refuse_inside_store
from ._eraftpb import checked_message, encode_message
from ._errors import Closed, InvalidArgument, RaftError
from ._latch import Latch
from ._library import call, ffi, lib
from ._members import Change, MemberChanges, changes_of, native_changes
from ._peers import checked_peers
from ._pointer import Pointer
from ._settings import NativeConfig, checked
from ._status import SnapshotInfo, Status
from ._store import Buffer, command_bytes
from ._ticket import ClusterJoinTicket
from ._timeouts import DEFAULT, Timeout, milliseconds, seconds
from ._tls import TlsConfig, checked_tls
from ._types import ConfChangeRequest, ConfChangeV2, Message

_CLOSED: Final[int] = lib.RAFTIFY_EVENT_CLOSED


class RaftServiceClient:
    """`async with RaftServiceClient.connect("a:1", "b:2") as client:` or `client = await RaftServiceClient.build("a:1")`.

    Opened on first use, on that loop; connections are made when they are needed. Calls are those of `Raft`, with the same deadlines and
    errors. `tls`: this client's certificates, where the cluster's nodes have some.

    `session=True`: exactly once. A proposal whose outcome is not known is sent again, to any node, until its deadline, and is applied once
    however often it was sent; it returns what that one `apply` returned. The first proposal opens the session, `close()` ends it. The cluster
    knows the 4096 sessions that were used last: a proposal of one that it has forgotten, and that may have been done before, ends with
    `SessionExpired`; one that was certainly not done goes into a new session by itself. Up to 1024 proposals are under way at a time; more
    wait for the oldest.
    """

    def __init__(self, *addrs: str, tls: TlsConfig | None = None, session: bool = False) -> None:
        if not addrs:
            raise InvalidArgument("no address: give at least one node's host:port")
        self._addrs = [checked_address(addr, "addr") for addr in addrs]
        self._tls = checked_tls(tls)
        self._session: bool = checked("session", "flag", session)
        self._bridge: Bridge | None = None
        self._pointer: Pointer | None = None
        self._ended: Latch[None] = Latch()
        self._closed = False
        #: By task: what one prepared, another never sends.
        self._prepared: weakref.WeakKeyDictionary[asyncio.Task[Any], dict[str, Any]] = weakref.WeakKeyDictionary()

    @classmethod
    async def build(cls, addr: str, *, tls: TlsConfig | None = None, session: bool = False) -> RaftServiceClient:
        """A client that knows one address; the others it learns."""
        client = cls(addr, tls=tls, session=session)
        client._open()
        return client

    @classmethod
    def connect(cls, *addrs: str, tls: TlsConfig | None = None, session: bool = False) -> RaftServiceClient:
        """A client of the cluster with these addresses, for `async with`."""
        return cls(*addrs, tls=tls, session=session)

    def _open(self) -> tuple[Bridge, Pointer]:
        if self._closed:
            raise Closed("the client is closed")
        if self._pointer is None or self._bridge is None:
            text = ",".join(self._addrs).encode()
            slot = ffi.new("raftify_client **")
            tls = {} if self._tls is None else self._tls.settings()
            config = NativeConfig({**tls, "session": self._session})
            bridge = bridge_of_running_loop()
            bridge.enter(self)
            try:
                call(lib.raftify_client_new_with, bridge.runtime, bridge.queue, config.raw, text, len(text), slot)
            except BaseException:
                bridge.keep(bridge.loop.create_task(bridge.leave(self, lambda: None)))
                raise
            self._bridge = bridge
            self._pointer = Pointer(slot[0], lib.raftify_client_number(slot[0]), "the client")
            bridge.attach(self._pointer.number, self)
        return self._bridge, self._pointer

    async def _request(self, what: str, function: Any, *arguments: Any) -> bytes:
        refuse_inside_store(what)
        if self._bridge is not None:
            self._bridge.check()
        bridge, pointer = self._open()

        def submit(token: int) -> None:
            pointer.call(function, token, *arguments)

        return await bridge.request(submit)

    # ---- a source of the bridge --------------------------------------------------------------------------------------------------------

    def on_record(self, record: Record) -> None:
        if record[5] == _CLOSED and self._bridge is not None:
            self._bridge.keep(self._bridge.loop.create_task(self._finish()))

    async def _finish(self) -> None:
        bridge, pointer = self._bridge, self._pointer
        if bridge is None or pointer is None or self._ended.is_set():
            return
        bridge.detach(pointer.number)
        try:
            await bridge.leave(self, lambda: self._ended.set(None))
        finally:
            self._ended.set(None)

    def completed_with(self, error: RaftError) -> RaftError:
        return error

    def close_hard(self) -> bool:
        self._closed = True
        freed = self._pointer is None or self._pointer.retire(lib.raftify_client_free, _bridge.EXIT_TIMEOUT)
        self._ended.set(None)
        return freed

    def forked(self) -> None:
        if self._pointer is not None:
            self._pointer.abandon_in_child()

    # ---- end ---------------------------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Pending calls end with `Closed`. May be called any number of times."""
        self._closed = True
        pointer = self._pointer
        if pointer is None:
            return
        bridge = self._bridge
        if bridge is None or bridge.home_is_gone():
            return
        bridge.check()
        pointer.retire(lib.raftify_client_free)
        bridge.watch(asyncio.get_running_loop())
        await self._ended.wait()

    async def __aenter__(self) -> RaftServiceClient:
        self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- calls -------------------------------------------------------------------------------------------------------------------------

    async def propose(self, data: Buffer | None = None, *, timeout: Timeout = DEFAULT) -> bytes:
        """What `apply` returned on the leader. Sent again by itself only where it certainly was not done, or within a session."""
        command = command_bytes(self._take("propose", "prepare_propose", data))
        return await self._request(
            "propose()", lib.raftify_client_propose, command, len(command), milliseconds(timeout)
        )

    @property
    def members(self) -> MemberChanges:
        """As `raft.members`."""
        return MemberChanges(self._change_members)

    async def _change_members(self, changes: list[Change], timeout: Timeout) -> None:
        table, count, _kept = native_changes(changes)
        await self._request("members", lib.raftify_client_change_members, table, count, milliseconds(timeout))

    async def change_config(
        self, change: ConfChangeV2 | ConfChangeRequest | None = None, *, timeout: Timeout = DEFAULT
    ) -> None:
        """The messages of earlier releases; `client.members` says the same. One deadline for the look at the members and the change."""
        request = self._take("change_config", "prepare_change_config", change)
        begun = time.monotonic()
        status = await self.status(timeout=timeout)
        changes = changes_of(request, set(status.voters), set(status.learners))
        limit = seconds(timeout, None)
        left = timeout if limit is None else max(0.0, begun + limit - time.monotonic())
        await self._change_members(changes, left)

    async def transfer_leader(self, node_id: int | None = None, *, timeout: Timeout = DEFAULT) -> None:
        to = 0 if node_id is None else checked_node_id(node_id)
        await self._request("transfer_leader()", lib.raftify_client_transfer_leader, to, milliseconds(timeout))

    async def snapshot(self, *, timeout: Timeout = DEFAULT) -> SnapshotInfo:
        """The leader takes a snapshot. Default deadline: 600 s."""
        limit = 600_000 if timeout is DEFAULT else milliseconds(timeout)
        return SnapshotInfo.from_json(await self._request("snapshot()", lib.raftify_client_snapshot, limit))

    async def reserve_id(self, raft_addr: str = "", *, timeout: Timeout = DEFAULT) -> ClusterJoinTicket:
        """A ticket for a new node; see `Raft.request_id`."""
        addr = (checked_address(raft_addr, "raft_addr") if raft_addr else "").encode()
        return ClusterJoinTicket.from_json(
            await self._request("reserve_id()", lib.raftify_client_reserve_id, addr, len(addr), milliseconds(timeout))
        )

    async def debug_node(self, *, timeout: Timeout = DEFAULT) -> str:
        """The status, as JSON text, of the first node that answers."""
        data = await self._request("debug_node()", lib.raftify_client_status, milliseconds(timeout))
        return data.decode()

    async def status(self, *, timeout: Timeout = DEFAULT) -> Status:
        """The status of the first node that answers."""
        return Status.from_json(await self.debug_node(timeout=timeout))

    async def get_peers(self, *, timeout: Timeout = DEFAULT) -> str:
        """JSON text: every member's address, the term, and the leader."""
        status = await self.status(timeout=timeout)
        peers = {node_id: peer.addr for node_id, peer in status.peers.items()}
        peers.setdefault(status.node_id, status.addr)
        facts: Mapping[str, Any] = {
            "term": status.term,
            "leader_id": status.leader_id,
            "leader_addr": peers.get(status.leader_id or 0),
            "peers": dict(sorted(peers.items())),
        }
        return json.dumps(facts)

    # ---- names of earlier releases -----------------------------------------------------------------------------------------------------

    def _slot(self) -> dict[str, Any]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("prepare_… keeps its argument for the running task, and there is none")
        return self._prepared.setdefault(task, {})

    def _take(self, what: str, prepare: str, given: Any) -> Any:
        prepared = self._slot().pop(what, None)
        if given is not None:
            return given
        if prepared is None:
            raise InvalidArgument(
                f"{what}() has no argument: give it one, {what}(…), or call {prepare}(…) in the same task before"
            )
        return prepared

    def prepare_propose(self, data: Buffer) -> None:
        self._slot()["propose"] = data

    def prepare_message(self, message: Message) -> None:
        self._slot()["send_message"] = message

    async def send_message(self, message: Message | None = None, *, timeout: Timeout = DEFAULT) -> None:
        """As `RaftNode.send_message`, on the first node that answers. Kept; not recommended."""
        message = checked_message(self._take("send_message", "prepare_message", message))
        encoded = encode_message(message)
        await self._request(
            "send_message()", lib.raftify_client_send_message, encoded, len(encoded), milliseconds(timeout)
        )

    def prepare_change_config(self, change: ConfChangeV2 | ConfChangeRequest) -> None:
        self._slot()["change_config"] = change

    async def leave_joint(self) -> None:
        """Not needed; see `RaftNode.leave_joint`."""

    async def set_peers(self, peers: Mapping[int, str]) -> None:
        """Not needed: members know each other, and a client learns of them. Kept so that programs that call it run; what are no peers is
        refused."""
        checked_peers(peers)

    def __repr__(self) -> str:
        return f"<RaftServiceClient of {', '.join(self._addrs)}{', closed' if self._closed else ''}>"

"""`Raft`: one node of a cluster, as a program holds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

from ._address import checked_address, checked_node_id
from ._config import Config
from ._context import inside_store, refuse_inside_store
from ._eraftpb import checked_message, encode_message
from ._errors import (
    Closed,
    InvalidArgument,
    InvalidConfig,
    NoLeader,
    RaftError,
    RaftTimeout,
    plain_copy,
)
from ._events import EventStream
from ._leadership import Leadership
from ._library import lib
from ._members import Change, MemberChanges, native_changes
from ._peers import Peers, checked_peers, learners_of
from ._read import Read, run_reader
from ._running import RunningNode
from ._status import Role, SnapshotInfo, Status
from ._store import Buffer, command_bytes, inspect_store
from ._ticket import ClusterJoinTicket, checked_tickets
from ._timeouts import DEFAULT, DEFAULT_MS, Timeout, milliseconds, seconds
from ._tls import TlsConfig
from ._types import Message

if TYPE_CHECKING:
    from ._handle import RaftNode

S = TypeVar("S")
T = TypeVar("T")


class Raft(Generic[S]):
    """One node. Built anywhere, also before a loop runs; started with `run()` or `async with`, on the loop that is then its home: the
    store's methods run there. Other loops may make calls; a thread without a running loop gets `RuntimeError`.

    Every call takes `timeout=` (seconds; None for none; left out: the default) and may be cancelled at any time: the outcome is then
    unknown, and the node is unhurt. Failures are `RaftError`s; `.committed` and `.retryable` say what is known.
    """

    def __init__(
        self,
        node_id: int,
        raft_addr: str,
        store: S,
        config: Config | None = None,
        peers: Mapping[int, str] | None = None,
    ) -> None:
        self._node_id = checked_node_id(node_id)
        self._raft_addr = checked_address(raft_addr, "raft_addr")
        if config is not None and not isinstance(config, Config):
            raise InvalidConfig(f"cfg: {config!r} is not a Config", field="cfg", value=config)
        self._config = config or Config()
        self._config.validate()
        self._store = store
        self._methods = inspect_store(store)
        self._peers = checked_peers(peers if peers is not None else self._config.initial_peers)
        if self._peers and node_id in self._peers and len(learners_of(self._peers)) == len(self._peers):
            raise InvalidConfig(
                f"peers: {self._peers!r} has only learners, and nobody could ever lead them; one at least must be a voter",
                field="peers",
                value=peers,
            )
        self._running: RunningNode | None = None
        self._closed = False
        self._join_ticket: ClusterJoinTicket | None = None

    @classmethod
    def build(
        cls,
        node_id: int,
        raft_addr: str,
        store: S,
        cfg: Config | None = None,
        peers: Mapping[int, str] | None = None,
    ) -> Raft[S]:
        """A node that is not running yet.

        With an empty directory, `peers` decides what it becomes: ids and addresses that include its own: one of these initial members;
        only its own: a cluster of one; None: id 1 founds a cluster of one, any other waits to be joined; without its own: waits to be
        joined, the peers are contacts. A directory with data resumes what it was, whatever `peers` says.

        Initial members are voters; one that is named as `Peer(addr, InitialRole.LEARNER)` begins as a learner, which gets the log and has
        no vote (`members.promote` gives it one). All initial members have to be told the same.
        """
        return cls(node_id, raft_addr, store, cfg, peers)

    @classmethod
    def bootstrap(
        cls, node_id: int, raft_addr: str, fsm: S, config: Config | None = None, logger: object = None
    ) -> Raft[S]:
        """`build` under the name of later releases; members come from `Config.initial_peers`. Logging goes to `logging`, so `logger`
        is not used."""
        return cls(node_id, raft_addr, fsm, config)

    # ---- start and end ---------------------------------------------------------------------------------------------------------------

    async def run(self, *, timeout: float | None = None) -> None:
        """Starts the node; returns once its own snapshot is restored and it listens. It does not wait for a leader. The log is
        replayed after that. A failing `restore` raises here."""
        await self._start(timeout)

    async def _start(self, timeout: float | None = None) -> None:
        refuse_inside_store("run()")
        if self._closed:
            raise Closed(f"node {self._node_id} was closed; build a new one")
        if self._running is not None and not (self._running.given_up and self._running.ended.is_set()):
            what = "has ended; build a new one" if self.is_finished() else "is running already"
            raise InvalidArgument(f"node {self._node_id} {what}")
        limit = seconds(timeout, None)
        node = RunningNode(self._node_id, self._raft_addr, self._methods, self._config, self._peers)
        self._running = node
        try:
            await asyncio.wait_for(node.start(), limit)
        except GeneratorExit:
            raise  # its loop is gone, and nothing can be waited for
        except BaseException as error:
            await node.give_up()
            if node.ended.is_set():
                # What is not over yet can be waited for, with wait() and close().
                self._running = None
            if not isinstance(error, asyncio.TimeoutError) or error is node.failure or isinstance(error, RaftError):
                raise
            raise RaftTimeout(f"node {self._node_id} did not start within {timeout} s; it was closed") from None

    async def wait(self, *, timeout: float | None = None) -> None:
        """Until the node has ended: returns after `close()`, otherwise raises what ended it."""
        refuse_inside_store("wait()")
        if self._running is None:
            if self._closed:
                return
            raise InvalidArgument(f"node {self._node_id} does not run; call run() first")
        self._running.bridge.watch(asyncio.get_running_loop())
        try:
            error = await asyncio.wait_for(self._running.ended.wait(), seconds(timeout, None))
        except asyncio.TimeoutError:
            raise RaftTimeout(f"node {self._node_id} still runs after {timeout} s") from None
        if error is not None:
            raise plain_copy(error)

    async def serve_forever(self, *, timeout: float | None = None) -> None:
        """Runs, if it does not yet, until the node has ended. Cancelled, it closes the node; at the end of a timeout it still runs."""
        refuse_inside_store("serve_forever()")
        if self._running is None:
            await self._start()
        try:
            await self.wait(timeout=timeout)
        except asyncio.CancelledError:
            await self.close()
            raise

    def is_finished(self) -> bool:
        """Whether the node has ended, for whatever reason."""
        return self._running.ended.is_set() if self._running is not None else self._closed

    async def close(self, *, timeout: Timeout = DEFAULT) -> None:
        """Ends the node and releases its directory; pending calls end with `Closed`. May be called any number of times. Inside the
        store's methods it schedules the close and returns."""
        limit = seconds(timeout, self._config.request_timeout)
        self._closed = True
        node = self._running
        if node is None or node.ended.is_set() or node.bridge.home_is_gone():
            return
        node.bridge.check()
        node.begin_close(milliseconds(limit))
        if not inside_store():
            node.bridge.watch(asyncio.get_running_loop())
            await node.ended.wait()

    async def __aenter__(self) -> Raft[S]:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- what it is ------------------------------------------------------------------------------------------------------------------

    @property
    def store(self) -> S:
        """The object that was given."""
        return self._store

    @property
    def node_id(self) -> int:
        return self._node_id

    @property
    def addr(self) -> str:
        """What others dial; with port 0, the real port once it runs."""
        return self._running.addr if self._running is not None else self._raft_addr

    @property
    def config(self) -> Config:
        return self._config

    @property
    def status(self) -> Status:
        """This moment, as this node sees it. Any thread, also inside the store's methods, also after the end."""
        if self._running is None:
            return Status(self._node_id, self._raft_addr, Role.STOPPED)
        return self._running.status()

    def __repr__(self) -> str:
        return f"<Raft node {self._node_id} at {self.addr}, {self.status.role}>"

    def _node(self) -> RunningNode:
        if self._running is None:
            if self._closed:
                raise Closed(f"node {self._node_id} is closed")
            raise InvalidArgument(f"node {self._node_id} does not run; call run() first, or use async with")
        self._running.bridge.check()
        return self._running

    # ---- commands and reads ------------------------------------------------------------------------------------------------------------

    async def propose(self, data: Buffer, *, timeout: Timeout = DEFAULT) -> bytes:
        """Replicates a command; returns what `apply` returned here, once this node has applied it. Any node may be asked."""
        if inside_store():
            refuse_inside_store("propose()")
        node = self._running or self._node()
        # What follows is `node.outbox()` and so on, unrolled where every proposal passes.
        outbox = node.outboxes.get(asyncio._get_running_loop()) or node.outbox()
        return await outbox.put(
            data if type(data) is bytes else command_bytes(data),
            DEFAULT_MS if timeout is DEFAULT else milliseconds(timeout),
        )

    @overload
    async def propose_many(
        self, commands: Iterable[Buffer], *, timeout: Timeout = DEFAULT, return_exceptions: Literal[False] = False
    ) -> list[bytes]: ...
    @overload
    async def propose_many(
        self, commands: Iterable[Buffer], *, timeout: Timeout = DEFAULT, return_exceptions: bool
    ) -> list[bytes | BaseException]: ...
    async def propose_many(
        self, commands: Iterable[Buffer], *, timeout: Timeout = DEFAULT, return_exceptions: bool = False
    ) -> list[Any]:
        """Several commands, in this order, accepted as a whole or not at all (`Overloaded`). Waits for all of them; then raises the
        first failure, or with `return_exceptions` gives it in its place."""
        refuse_inside_store("propose_many()")
        outbox = self._node().outbox()
        taken = list(commands)
        if not set(map(type, taken)) <= {bytes}:
            taken = [command_bytes(data) for data in taken]
        ms = milliseconds(timeout)
        if not taken:
            return []
        batch = outbox.put_all(cast("list[bytes]", taken), ms)
        outcomes = await batch.future
        if batch.failed and not return_exceptions:
            raise next(outcome for outcome in outcomes if isinstance(outcome, BaseException))
        return outcomes

    @overload
    def read(self, fn: None = None, *, timeout: Timeout = DEFAULT) -> Read[S, None]: ...
    @overload
    def read(self, fn: Callable[[S], T], *, timeout: Timeout = DEFAULT) -> Read[S, T]: ...
    def read(self, fn: Callable[[S], Any] | None = None, *, timeout: Timeout = DEFAULT) -> Read[S, Any]:
        """Linearizable, on any node: `await raft.read(fn)` gives `fn(store)` with everything in it that was acknowledged anywhere
        before the call. `await raft.read()` and `async with raft.read() as store:` give the same until the next await."""
        return Read(self._node, self._store, fn, timeout)

    def stale_read(self, fn: Callable[[S], T]) -> T:
        """`fn(store)` as the store is now: maybe old, and maybe between two awaits of an async `apply`. On the home loop."""
        node = self._node()
        if asyncio.get_running_loop() is not node.home:
            raise RuntimeError("stale_read() on another loop than the node's: the store lives there; use read(fn)")
        return run_reader(fn, self._store)

    # ---- events, waiting, leadership -----------------------------------------------------------------------------------------------------

    def events(self, *, timeout: float | None = None) -> EventStream:
        """An async iterator of what happens to this node; the first item is the `PresentState`. `timeout`: how long each item is waited
        for; after a `RaftTimeout` one may go on with the same iterator."""
        refuse_inside_store("events()")
        return self._node().event_stream(timeout=seconds(timeout, None))

    async def wait_for(self, *, leader: bool = False, applied: int | None = None, timeout: Timeout = DEFAULT) -> Status:
        """Until a leader is known and has a log to serve from, or this node has applied up to an index, or both."""
        refuse_inside_store("wait_for()")
        if applied is not None and (isinstance(applied, bool) or not isinstance(applied, int)):
            raise InvalidArgument(f"wait_for(applied={applied!r}): that is no index, a whole number, as in raft.status")
        node = self._node()
        if asyncio.get_running_loop() is not node.home:
            return await node.bridge.at_home(self.wait_for(leader=leader, applied=applied, timeout=timeout))
        limit = seconds(timeout, self._config.request_timeout)
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            status = node.status()
            if (not leader or status.leader_id is not None) and (applied is None or status.applied_index >= applied):
                return status
            if node.ended.is_set() or status.role is Role.STOPPED:
                raise Closed(f"{node.name} has ended{': ' + status.error if status.error else ''}")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                if leader and status.leader_id is None:
                    raise NoLeader(f"no leader within {limit:g} s, as {node.name} sees it: {status}", retryable=True)
                raise RaftTimeout(f"index {applied} is not applied within {limit:g} s: {status}", retryable=True)
            # Entries of the library's own are applied without a word: looked for once a tick.
            await node.progressed(min(self._config.tick_interval, left if left is not None else 1.0))

    def leadership(self, *, timeout: float | None = None) -> Leadership:
        """`async with raft.leadership() as term:` waits to lead, for so long at most; see `Leadership`."""
        return Leadership(self._node, seconds(timeout, None))

    async def transfer_leader(self, node_id: int | None = None, *, timeout: Timeout = DEFAULT) -> None:
        """To that node, or to the one that is most up to date."""
        refuse_inside_store("transfer_leader()")
        to = 0 if node_id is None else checked_node_id(node_id)
        await self._node().request(lib.raftify_transfer_leader, to, milliseconds(timeout))

    async def step_down(self, *, timeout: Timeout = DEFAULT) -> None:
        """Gives up leadership, without naming a successor."""
        refuse_inside_store("step_down()")
        await self._node().request(lib.raftify_step_down, milliseconds(timeout))

    # ---- membership ------------------------------------------------------------------------------------------------------------------

    @property
    def members(self) -> MemberChanges:
        """`await raft.members.add(id, addr)`, `.promote(id)`, `.remove(id)`, `.replace(old, id, addr)`, `.update_address(id, addr)`:
        one, or several chained in one step."""
        return MemberChanges(self._change_members)

    async def _change_members(self, changes: list[Change], timeout: Timeout) -> None:
        table, count, _kept = native_changes(changes)
        await self._node().request(lib.raftify_change_members, table, count, milliseconds(timeout))

    async def leave(self, *, timeout: Timeout = DEFAULT) -> None:
        """Leaves the cluster for good: this id is spent. The node goes on as `removed` until it is closed."""
        refuse_inside_store("leave()")
        await self._node().request(lib.raftify_leave, milliseconds(timeout))

    @staticmethod
    async def request_id(*addrs: str, timeout: Timeout = DEFAULT, tls: TlsConfig | None = None) -> ClusterJoinTicket:
        """Reserves an id in a cluster: `request_id(peer_addr)`, or `request_id(raft_addr, peer_addr)` with the address the new node
        will have; a present member's address gives that member's id. Tries a peer that is not up yet until the deadline. `tls`: the
        certificates that the node is going to have, in a cluster that has some."""
        from ._client import RaftServiceClient

        refuse_inside_store("request_id()")
        if len(addrs) not in (1, 2):
            raise InvalidArgument("request_id takes (peer_addr) or (raft_addr, peer_addr)")
        raft_addr = checked_address(addrs[0], "raft_addr") if len(addrs) == 2 else ""
        async with RaftServiceClient.connect(addrs[-1], tls=tls) as client:
            return await client.reserve_id(raft_addr, timeout=timeout)

    def prepare_join(self, ticket: ClusterJoinTicket) -> None:
        """Keeps the ticket for the next `join()`."""
        self._join_ticket = ticket

    async def join(
        self, ticket: ClusterJoinTicket | Sequence[ClusterJoinTicket] | None = None, *, timeout: Timeout = DEFAULT
    ) -> None:
        """Becomes a member: as a learner first, promoted once it has caught up. Returns at once for one who is a member already."""
        refuse_inside_store("join()")
        prepared, self._join_ticket = self._join_ticket, None
        chosen = self._own_ticket(ticket if ticket is not None else prepared)
        if chosen.reserved_id != self._node_id:
            raise InvalidArgument(
                f"the ticket is for id {chosen.reserved_id}, this is node {self._node_id}: build the node with the ticket's id"
            )
        text = chosen.to_json().encode()
        await self._node().request(lib.raftify_join, text, len(text), milliseconds(timeout))

    async def _send_message(self, message: Message, timeout: Timeout) -> None:
        refuse_inside_store("send_message()")
        encoded = encode_message(checked_message(message))
        await self._node().request(lib.raftify_send_message, encoded, len(encoded), milliseconds(timeout))

    def _own_ticket(self, ticket: ClusterJoinTicket | Sequence[ClusterJoinTicket] | None) -> ClusterJoinTicket:
        tickets = checked_tickets(ticket)
        if not tickets:
            raise InvalidArgument(
                "join() has no ticket: give it one, join(ticket), or call prepare_join(ticket) before"
            )
        return next((one for one in tickets if one.reserved_id == self._node_id), tickets[0])

    @classmethod
    async def join_cluster(
        cls,
        raft_addr: str,
        store: S,
        cfg: Config | None = None,
        *,
        seeds: Sequence[str],
        timeout: Timeout = DEFAULT,
    ) -> Raft[S]:
        """Ticket, build, run and join in one call; gives the running member. The seeds are addresses of the cluster, in any order.
        Killed and called again it becomes the same member again."""
        from ._client import RaftServiceClient

        refuse_inside_store("join_cluster()")
        if isinstance(seeds, str):
            raise InvalidArgument(f"seeds={seeds!r}: give a list of addresses: seeds=[{seeds!r}]")
        # What is wrong with these is said before an id is spent.
        config = cls(1, raft_addr, store, cfg, Peers()).config
        limit = seconds(timeout, config.conf_change_request_timeout)
        deadline = None if limit is None else time.monotonic() + limit

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        async with RaftServiceClient.connect(*seeds, tls=config.tls) as client:
            ticket = await client.reserve_id(raft_addr, timeout=left())
        # Contacts only: with its own address among them an empty directory would count as an initial member's.
        contacts = {node_id: addr for node_id, addr in ticket.peers.items() if node_id != ticket.reserved_id}
        raft = cls(ticket.reserved_id, raft_addr, store, config, Peers(contacts))
        try:
            await raft._start(left())
            await raft.join(ticket, timeout=left())
        except BaseException:
            await raft.close()
            raise
        return raft

    # ---- snapshots ---------------------------------------------------------------------------------------------------------------------

    async def snapshot(self, *, timeout: Timeout = DEFAULT) -> SnapshotInfo:
        """Takes a snapshot now; with nothing new it gives the present one. Default deadline: 600 s."""
        refuse_inside_store("snapshot()")
        limit = 600_000 if timeout is DEFAULT else milliseconds(timeout)
        return SnapshotInfo.from_json(await self._node().request(lib.raftify_snapshot, limit))

    # ---- names of earlier releases -------------------------------------------------------------------------------------------------------

    def get_raft_node(self) -> RaftNode:
        """A fresh `RaftNode` handle: its prepared arguments are its own."""
        from ._handle import RaftNode

        return RaftNode(self)

    def prepare_member_bootstrap_ready(self, leader_addr: str, node_id: int) -> None:
        """Not needed: initial members find each other. Kept so that programs that call it run."""

    async def member_bootstrap_ready(self) -> None:
        """Not needed; see `prepare_member_bootstrap_ready`."""


async def wait_for_termination(raft: Raft[Any], *, timeout: float | None = None) -> None:
    """Until the node has ended: returns after `close()`, otherwise raises what ended it."""
    await raft.wait(timeout=timeout)

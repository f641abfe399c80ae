"""A node while it runs: its pointer in the library, its applier, its events, and how it ends.

Lives on its home loop, that of `run()`, and is held by that loop's bridge until it has ended. Everything about starting and ending is
here; what users call is in `_node.py`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from . import _bridge
from ._applier import Applier, ApplyRequest, RestoreRequest, SnapshotRequest, text_of
from ._bridge import Bridge, Record, bridge_of_running_loop
from ._config import Config
from ._context import as_store
from ._errors import ApplyError, Closed, MachineFailed, RaftError, Removed, error_from_json
from ._events import Event, EventHub, EventStream, event_from_json
from ._latch import Latch
from ._library import call, ffi, lib
from ._log import level_name
from ._outbox import Outbox
from ._peers import learners_of
from ._pointer import Pointer
from ._readers import Readers
from ._settings import NativeConfig, checked
from ._status import Role, Status
from ._store import StoreMethods
from ._threads import in_thread

_COMPLETION: Final[int] = lib.RAFTIFY_EVENT_COMPLETION
_APPLY: Final[int] = lib.RAFTIFY_EVENT_APPLY
_SNAPSHOT: Final[int] = lib.RAFTIFY_EVENT_SNAPSHOT
_RESTORE: Final[int] = lib.RAFTIFY_EVENT_RESTORE
_NOTICE: Final[int] = lib.RAFTIFY_EVENT_NOTICE
_CLOSED: Final[int] = lib.RAFTIFY_EVENT_CLOSED

#: Seconds past a close's own deadline after which the library is no longer waited for.
_CLOSE_SLACK: Final = 2.0


class _Opening:
    """The blocking start call, on a thread. If nobody waits for it any more, what it opened is freed at once."""

    def __init__(
        self,
        bridge: Bridge,
        config: Config,
        node_id: int,
        addr: str,
        peers: Mapping[int, str] | None,
        applied_index: int | None,
    ) -> None:
        self._bridge = bridge
        self._config = config
        self._node_id = node_id
        self._addr = addr
        self._peers = peers
        self._applied_index = applied_index
        self._lock = threading.Lock()
        self._abandoned = False
        self._raw: Any = None
        self._back = threading.Event()

    def open(self) -> Any:
        try:
            return self._open()
        finally:
            self._back.set()

    def _open(self) -> Any:
        settings = {**self._config.settings(), "log_level": level_name()}
        if self._applied_index is not None:
            settings["applied_index"] = self._applied_index
        if learners := learners_of(self._peers or {}):
            settings["initial_learners"] = ",".join(map(str, learners))
        config = NativeConfig(settings)
        addr = self._addr.encode()
        pairs = [(node_id, str(peer).encode()) for node_id, peer in (self._peers or {}).items()]
        kept = [ffi.from_buffer("char[]", text) for _, text in pairs]
        peers = ffi.new("raftify_peer[]", max(1, len(pairs)))
        for slot, (node_id, text), data in zip(peers, pairs, kept):
            slot.id, slot.addr, slot.addr_len = node_id, data, len(text)
        out = ffi.new("raftify_node **")
        bridge = self._bridge
        given = int(self._peers is not None)
        call(
            lib.raftify_node_start, bridge.runtime, bridge.queue, config.raw, self._node_id, addr, len(addr),
            peers if pairs else ffi.NULL, len(pairs), given, ffi.NULL, out,
        )  # fmt: skip
        with self._lock:
            if self._abandoned:
                lib.raftify_node_free(out[0])
            else:
                self._raw = out[0]
        return out[0]

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            raw, self._raw = self._raw, None
        if raw is not None:
            lib.raftify_node_free(raw)

    def wait(self, timeout: float | None) -> bool:
        return self._back.wait(timeout)

    def is_over(self) -> bool:
        return self._abandoned and self._back.is_set()


class RunningNode:
    """One start of a node."""

    def __init__(
        self, node_id: int, addr: str, methods: StoreMethods, config: Config, peers: Mapping[int, str] | None
    ) -> None:
        self.node_id = node_id
        #: What others dial; the real port once it listens.
        self.addr = addr
        self._methods = methods
        self._config = config
        self._peers = peers
        self.bridge = bridge_of_running_loop()
        self.home = self.bridge.loop
        self.events = EventHub(self.home)
        #: Set when nothing of the node is left: None after a close, otherwise what ended it.
        self.ended: Latch[RaftError | None] = Latch()
        #: In a forked child there are none.
        self.outboxes: dict[asyncio.AbstractEventLoop | None, Outbox] = {}
        #: The home loop's, from its first read on.
        self.readers: Readers | None = None
        self._ready: asyncio.Future[None] = self.home.create_future()
        self._applier_done = asyncio.Event()
        self._progress = asyncio.Event()
        #: The start has.
        self._begun = False
        self._finishing = False
        self._closing = False
        self._grace = config.request_timeout
        self._pointer: Pointer | None = None
        self.applier: Applier | None = None
        self._applier_task: asyncio.Task[None] | None = None
        self._finisher: asyncio.Task[None] | None = None
        self._last_status: Status | None = None
        #: What `start` failed with.
        self.failure: BaseException | None = None
        #: Nobody waits for the start any more.
        self.given_up = False
        self.bridge.enter(self)
        self._starting = self.home.create_task(self._start())
        self._starting.add_done_callback(self._started)
        self.bridge.keep(self._starting)

    @property
    def request_timeout(self) -> float:
        return self._config.request_timeout

    @property
    def name(self) -> str:
        return f"node {self.node_id}"

    # ---- start ---------------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns once the node's snapshot is restored and it listens. Cancelled, it leaves the start to itself: `give_up` ends it."""
        await asyncio.shield(self._starting)

    async def give_up(self) -> None:
        """Closes what was started so far, and waits for that as long as a call may take: whoever tries again finds the directory free."""
        self.given_up = True
        if not self.ended.is_set():
            self._closing = True
            self.begin_close(0)
            try:
                await asyncio.wait_for(self.ended.wait(), self.request_timeout)
            except asyncio.TimeoutError:
                pass  # the disk, perhaps: it goes on closing

    def _started(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # whoever waits for it is told
        elif not self._begun:
            # The loop ends before it has begun: its bridge is found with it.
            self.events.end(None)
            self.ended.set(None)

    async def _applied_index(self) -> int | None:
        """How far a store that is durable by itself has got; None for one that starts empty."""
        method = self._methods.applied_index
        if method is None:
            return None
        return int(checked("store.applied_index()", "count", await as_store(method)))

    async def _start(self) -> None:
        bridge = self.bridge
        self._begun = True
        bridge.starting += 1
        opening: _Opening | None = None
        try:
            applied_index = await self._applied_index()
            if self._closing:
                raise self._closed_while_it_started()
            opening = _Opening(bridge, self._config, self.node_id, self.addr, self._peers, applied_index)
            bridge.opens(opening)
            raw = await in_thread(opening.open)
        except BaseException as error:
            self.failure = error
            bridge.starting -= 1
            if opening is not None and isinstance(error, asyncio.CancelledError):
                # It stays the bridge's: nothing is freed before the call is back.
                opening.abandon()
            elif opening is not None:
                bridge.opened(opening)
            # After a close there is nothing to tell those who wait for the end.
            await self._end(error if isinstance(error, RaftError) and not self._closing else None)
            raise
        bridge.opened(opening)
        pointer = Pointer(raw, lib.raftify_node_number(raw), self.name)
        self._pointer = pointer
        stop_on_error = self._config.on_apply_error == "stop"
        self.applier = Applier(pointer, self.node_id, self._methods, stop_on_error, bridge.waiters)
        self.applier.on_progress = self._progress.set
        self._applier_task = self.applier.start(self._serve_machine(self.applier))
        bridge.keep(self._applier_task)
        bridge.attach(pointer.number, self)
        bridge.starting -= 1
        if self._closing:
            self.begin_close(0)
        await self._ready
        if self._closing:
            raise self._closed_while_it_started()

    def _closed_while_it_started(self) -> Closed:
        return Closed(f"{self.name} was closed while it started")

    async def _serve_machine(self, applier: Applier) -> None:
        """Ends with the node, or ends it: nobody would apply any more."""
        try:
            await applier.run()
        except asyncio.CancelledError:
            self._applier_done.set()
            if not self._finishing:
                # Somebody cancels every task of the loop: it is ending.
                self.begin_close(1000)
                warnings.warn(
                    f"{self.name}: its event loop ended under it; it was closed; call close() first",
                    ResourceWarning,
                    stacklevel=1,
                )
                await self.ended.wait()
                if self._finisher is not None:
                    # Else the loop would be closed over it.
                    await asyncio.wait([self._finisher])
            raise
        except BaseException as error:
            applier.failed(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._applier_done.set()
            if applier.fault is not None and not applier.fault_told:
                self.begin_close(1000)

    # ---- records of the queue ----------------------------------------------------------------------------------------------------------

    def on_record(self, record: Record) -> None:
        token, index, _, data, _, kind, status, count = record
        applier = self.applier
        if applier is None:
            return
        if kind == _APPLY:
            applier.put(ApplyRequest(token, count, data), self.bridge.turn)
        elif kind == _NOTICE:
            self._publish(event_from_json(data))
        elif kind == _SNAPSHOT:
            applier.put(SnapshotRequest(token, index), self.bridge.turn)
        elif kind == _RESTORE:
            applier.put(RestoreRequest(token, index), self.bridge.turn)
        elif kind == _CLOSED:
            self._on_closed(error_from_json(data or {"code": status}) if status != 0 else None)
        elif kind == _COMPLETION and status == 0:
            self.addr = json.loads(data)["addr"]
            if not self._ready.done():
                self._ready.set_result(None)

    def completed_with(self, error: RaftError) -> RaftError:
        if isinstance(error, ApplyError) and error.index is not None and self.applier is not None:
            error.__cause__ = self.applier.raised.pop(error.index, None)
        return error

    def _publish(self, event: Event) -> None:
        self.events.publish(event)
        self._progress.set()

    # ---- end -----------------------------------------------------------------------------------------------------------------------

    def begin_close(self, timeout_ms: int) -> None:
        """Asks the library to end the node; its CLOSED record does the rest. Any thread."""
        self._closing = True
        pointer = self._pointer
        if pointer is None:
            return
        if timeout_ms >= 0:
            self._grace = timeout_ms / 1000
        try:
            with pointer as node:
                lib.raftify_node_close(node, timeout_ms)
        except RaftError:
            return  # it has ended already
        if timeout_ms != -1:
            wait = (timeout_ms / 1000 if timeout_ms >= 0 else self._grace) + _CLOSE_SLACK
            self._on_home(lambda: self.home.call_later(wait, self._on_closed, None))

    def _on_home(self, work: Any) -> None:
        try:
            self.home.call_soon_threadsafe(work)
        except RuntimeError:
            pass  # the loop has closed

    def _on_closed(self, error: RaftError | None) -> None:
        if self._finishing:
            return
        self._finishing = True
        self._finisher = self.home.create_task(self._finish(error))
        self.bridge.keep(self._finisher)

    async def _finish(self, error: RaftError | None) -> None:
        """Nothing more comes from the library: lets the store's method end, frees, and tells who waits."""
        applier, pointer, task = self.applier, self._pointer, self._applier_task
        assert applier is not None and pointer is not None and task is not None
        try:
            if error is None and applier.fault is not None:
                error = MachineFailed(
                    f"{self.name} was stopped: its store was not served any more: {text_of(applier.fault)}"
                )
            if error is not None:
                error.__cause__ = applier.fault
            self._last_status = self._final_status(error)
            if error is None and not self._closing and self._last_status.role is Role.REMOVED:
                # `terminate_on_remove`: nobody closed it, so this is what ended it.
                error = Removed(
                    f"{self.name} was removed from its cluster, and terminate_on_remove is set", committed=None
                )
            applier.stop()
            if not self._applier_done.is_set():
                await asyncio.wait([asyncio.ensure_future(self._applier_done.wait())], timeout=self._grace)
                if not self._applier_done.is_set():
                    task.cancel()
                    await asyncio.wait([task], timeout=self._grace)
            await applier.captured(self._grace)
            await in_thread(lambda: pointer.retire(lib.raftify_node_free))
        except asyncio.CancelledError:
            # The loop ends in the middle of it: the rest without waiting.
            self.close_hard()
            raise
        finally:
            self.bridge.detach(pointer.number)
            await self._end(error)

    async def _end(self, error: RaftError | None) -> None:
        self._finishing = True
        self.events.end(error)
        if not self._ready.done():
            if self._pointer is None:
                self._ready.cancel()  # `_start` raises by itself
            else:
                self._ready.set_exception(error or self._closed_while_it_started())
        try:
            await self.bridge.leave(self, lambda: self.ended.set(error))
        finally:
            self.ended.set(error)
            self._progress.set()

    def close_hard(self) -> bool:
        self._closing = self._finishing = True
        pointer = self._pointer
        freed = True
        if pointer is not None:
            try:
                with pointer as node:
                    lib.raftify_node_close(node, 0)
            except RaftError:
                pass
            freed = pointer.retire(lib.raftify_node_free, _bridge.EXIT_TIMEOUT)
        self.events.end_from_anywhere()
        self.ended.set(None)
        return freed

    def forked(self) -> None:
        self.outboxes = {}
        self.readers = None
        if self._pointer is not None:
            self._pointer.abandon_in_child()

    # ---- what others ask ---------------------------------------------------------------------------------------------------------------

    @property
    def pointer(self) -> Pointer:
        """For a call into the library; raises `Closed` before the node is open and after it has ended."""
        self.bridge.check()
        if self._pointer is None:
            raise Closed(f"{self.name} is not open")
        return self._pointer

    def outbox(self) -> Outbox:
        """The calling loop's."""
        self.bridge.check()
        loop = asyncio.get_running_loop()
        outbox = self.outboxes.get(loop)
        if outbox is None:
            for other in [other for other in self.outboxes if other is not None and other.is_closed()]:
                del self.outboxes[other]
            self.bridge.watch(loop)
            outbox = self.outboxes[loop] = Outbox(loop, self.bridge.waiters, self.pointer)
        return outbox

    def open_readers(self) -> Readers:
        self.readers = Readers(self.home, self.bridge.waiters, self.pointer)
        return self.readers

    async def request(self, function: Any, *arguments: Any) -> bytes:
        """`function(node, token, *arguments, error)`: what its completion brings."""
        pointer = self.pointer

        def submit(token: int) -> None:
            pointer.call(function, token, *arguments)

        return await self.bridge.request(submit)

    def status(self) -> Status:
        """Any thread. After the end: the last one, with role `stopped`."""
        if self._last_status is None:
            try:
                return self._read_status()
            except Closed:
                pass
        return self._last_status or Status(self.node_id, self.addr, Role.STOPPED)

    def _read_status(self) -> Status:
        text, size = ffi.new("char **"), ffi.new("size_t *")
        self.pointer.call(lib.raftify_node_status, text, size)
        try:
            status = Status.from_json(ffi.unpack(text[0], size[0]))
        finally:
            lib.raftify_string_free(text[0])
        # What a proposer was told is applied, also where the library has not heard of it yet.
        told = self.applier.told_index if self.applier is not None else 0
        if told <= status.applied_index:
            return status
        commit, last = max(told, status.commit_index), max(told, status.last_index)
        return replace(status, applied_index=told, commit_index=commit, last_index=last)

    def _final_status(self, error: RaftError | None) -> Status:
        try:
            last = self._read_status()
        except RaftError:
            last = Status(self.node_id, self.addr, Role.STOPPED)
        role = Role.REMOVED if last.role is Role.REMOVED else Role.STOPPED
        return replace(last, role=role, error=str(error) if error is not None else last.error)

    def event_stream(self, on_event: Any = None, timeout: float | None = None) -> EventStream:
        stream = EventStream(self.status, on_event, timeout)
        self.bridge.watch(stream.loop)
        self.events.add(stream)
        return stream

    async def progressed(self, seconds: float | None) -> None:
        """Until something was applied or happened, on the home loop; or for so long."""
        self._progress.clear()
        try:
            await asyncio.wait_for(self._progress.wait(), seconds)
        except asyncio.TimeoutError:
            pass

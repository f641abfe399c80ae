"""The state machine's side of a node: one long-lived task that awaits the store's methods, one request after another, in log order.

A batch that comes while the task waits is begun where it came, ahead of the task's turn (`_ahead.py`), and is over there if nothing
of it suspends. What suspends goes on in the task. Wherever it runs, a store's method sees the same context variables and
the same `asyncio.current_task()`: commands must come to the same on every node, whatever their batches met.

Invariants:
- never two methods at a time; while a snapshot is being *captured* nothing is applied (rule 12); its bytes are written afterwards;
- between two entries, when readers wait, they are let in before the next (rule 13);
- an `Exception` of `apply` is the command's outcome; a fault of this node stops the node (rule 10), and the entry counts as not applied;
- awaiting a method that does not suspend costs no loop turn; after 5 ms or 1,000 entries the loop gets one.
"""

from __future__ import annotations

import asyncio
import inspect
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import CoroutineType
from typing import Any, Final, NoReturn

from . import _snapshots
from ._ahead import Ahead
from ._context import enter_store
from ._errors import RaftError
from ._library import call, lib
from ._log import raft_log
from ._pointer import Pointer
from ._store import Applied, StoreMethods, contiguous_bytes
from ._waiters import Batch, Run, Waiters

#: raftify_entry without what only an `Applied` needs: index, offset, len, wanted, token.
_ENTRY: Final = struct.Struct("=Q16xQIIQ")
#: The rest: index, term, time_us.
_PLACE: Final = struct.Struct("=QQQ24x")
#: An outcome of raftify_apply_told_packed: index, failed, len; the bytes follow.
_OUTCOME: Final = struct.Struct("<QII")
_TURN_SECONDS: Final = 0.005
#: No token.
_NONE: Final = -1
_TURN_ENTRIES: Final = 1000
#: Longest text of an exception that travels.
_TEXT_LIMIT: Final = 4096
#: Exceptions kept for proposers that may come for them.
_KEPT_EXCEPTIONS: Final = 1024

#: Not the command's outcome but a fault of this node. asyncio.TimeoutError is an OSError from 3.11 on; the same everywhere.
LOCAL_FAULTS: Final = (OSError, MemoryError, RecursionError, asyncio.CancelledError, asyncio.TimeoutError)


@dataclass(frozen=True)
class ApplyRequest:
    request: int
    count: int
    #: The entry table and, after it, the payloads.
    data: bytes
    last_index: int


@dataclass(frozen=True)
class SnapshotRequest:
    request: int
    index: int


@dataclass(frozen=True)
class RestoreRequest:
    request: int
    index: int


class MachineStopped(Exception):
    """The machine has failed and the library was told: the applier ends."""


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    return f"{type(error).__qualname__}: {text}"[:_TEXT_LIMIT]


def _is_awaitable(value: object) -> bool:
    return type(value) is CoroutineType or inspect.isawaitable(value)


class Applier:
    """Serves the machine requests of one node."""

    def __init__(self, node: Pointer, name: str, methods: StoreMethods, stop_on_error: bool, waiters: Waiters) -> None:
        self._node = node
        #: Proposers on this node get their results from here.
        self._waiters = waiters
        self._name = name
        self._methods = methods
        self._stop_on_error = stop_on_error
        self._requests: deque[ApplyRequest | SnapshotRequest | RestoreRequest] = deque()
        #: While the task waits for something to do.
        self._wake: asyncio.Future[None] | None = None
        self._ahead = Ahead()
        #: In which turn of the loop a batch was last begun ahead.
        self._turn = 0
        #: `apply` has not suspended yet, so that it is worth beginning a batch ahead of the task's turn.
        self._plain = not inspect.iscoroutinefunction(methods.apply)
        self._readers: deque[asyncio.Future[None]] = deque()
        self._stopping = False
        self._turn_started = 0.0
        self._turn_entries = 0
        self._captures: set[asyncio.Task[None]] = set()
        #: A method of the store is suspended half way.
        self.busy = False
        #: The newest command whose proposer was told; the library hears of it with its batch.
        self.told_index = 0
        #: What `apply` raised, by index, for proposers on this node.
        self.raised: OrderedDict[int, BaseException] = OrderedDict()
        #: What the machine itself failed with.
        self.fault: BaseException | None = None
        self.on_progress: Callable[[], None] = lambda: None

    def start(self, body: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """The task, which awaits `run`; on the home loop."""
        task, possible = self._ahead.start(body)
        self._plain = self._plain and possible
        return task

    # ---- from the bridge and the readers, on the home loop --------------------------------------------------------------------------

    def put(self, request: ApplyRequest | SnapshotRequest | RestoreRequest, turn: int) -> None:
        """`turn` differs from one turn of the loop to the next. What must end the program comes out of here as it would out of the
        task."""
        idle = self._wake is not None and not self._wake.done() and not self._ahead.going_on
        if idle and self._plain and type(request) is ApplyRequest and asyncio.current_task() is None:
            self._begin(request, turn)
        else:
            self._requests.append(request)
            self._wake_up()

    def _begin(self, request: ApplyRequest, turn: int) -> None:
        """The task waits and nothing is queued: as far as it goes without suspending, the request is served here and now."""
        if turn != self._turn:
            self._turn = turn
            self._turn_started, self._turn_entries = time.monotonic(), 0
        try:
            if not self._ahead.run(self._serve(request)):
                self._wake_up()
        except BaseException as error:
            self.stop()
            if not isinstance(error, MachineStopped):
                raise

    def stop(self) -> None:
        """Ends after the entry that is being applied; what is queued is dropped: the log still has it."""
        self._stopping = True
        self._requests.clear()
        self._wake_up()
        for capture in self._captures:
            capture.cancel()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def quiet(self) -> None:
        """Returns where no method of the store is half way; that holds until the caller awaits something else."""
        if self.busy:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._readers.append(turn)
            await turn

    # ---- the task -------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until stopped. Raises only what must not be swallowed: `CancelledError`, `KeyboardInterrupt`, `SystemExit`."""
        enter_store()
        try:
            while not self._stopping:
                if self._requests:
                    await self._serve(self._requests.popleft())
                else:
                    await self._wait()
                    self._turn_started, self._turn_entries = time.monotonic(), 0
                    await self._ahead.rest()
        except MachineStopped:
            pass
        finally:
            self._stopping = True
            self._let_in()

    async def _wait(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        except asyncio.CancelledError as error:
            self._ahead.cancel(error)
            raise
        finally:
            self._wake = None

    async def _serve(self, request: ApplyRequest | SnapshotRequest | RestoreRequest) -> None:
        if isinstance(request, ApplyRequest):
            await self._apply_batch(request)
        elif isinstance(request, SnapshotRequest):
            await self._snapshot(request)
        else:
            await self._restore(request)
        self.on_progress()
        await self._between()

    def _let_in(self) -> bool:
        readers, self._readers = self._readers, deque()
        for turn in readers:
            if not turn.done():
                turn.set_result(None)
        return bool(readers)

    async def _between(self) -> None:
        """Between two methods: readers, and now and then the rest of the loop."""
        spent = self._turn_entries >= _TURN_ENTRIES or time.monotonic() - self._turn_started > _TURN_SECONDS
        if self._readers:
            # Their tasks were woken before this one sleeps, so they run, to their next await, before it goes on.
            self._let_in()
            spent = True
        if spent:
            await asyncio.sleep(0)
            self._turn_started, self._turn_entries = time.monotonic(), 0

    async def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """A store's method, plain or async; `busy` while it is suspended."""
        result = method(*arguments)
        if not _is_awaitable(result):
            return result
        self.busy = True
        try:
            return await result
        finally:
            self.busy = False

    async def _apply_batch(self, batch: ApplyRequest) -> None:
        data = batch.data
        apply, wants_applied = self._methods.apply, self._methods.wants_applied
        table = memoryview(data)[: batch.count * _ENTRY.size]
        if wants_applied:
            places = (Applied(index, term, time_us / 1e6) for index, term, time_us in _PLACE.iter_unpack(table))
        monotonic = time.monotonic
        waiters, run = self._waiters, Run(self._waiters)
        #: The token that the run goes on with, and where it ends.
        expected = end = _NONE
        add: Callable[[bytes], None]
        waiter_of = waiters.pending.pop
        outcomes: list[bytes] = []
        entries, limit, turn_ends = self._turn_entries, _TURN_ENTRIES, self._turn_started + _TURN_SECONDS
        try:
            for index, offset, size, wanted, token in _ENTRY.iter_unpack(table):
                command = data[offset : offset + size]
                try:
                    result = apply(command, next(places)) if wants_applied else apply(command)
                    if result is None:
                        result = b""
                    elif type(result) is not bytes:
                        if _is_awaitable(result):
                            self.busy = True
                            try:
                                if self._ahead.going_on:
                                    self._plain = False
                                    await self._ahead.hand_over(result)
                                result = await result
                            finally:
                                self.busy = False
                                if self._readers or self._stopping:
                                    limit = 0
                        if type(result) is not bytes:
                            result = _checked_result(result)
                except LOCAL_FAULTS as error:
                    self._machine_failed(batch.request, index, "apply", error)
                except Exception as error:
                    text = self._command_failed(batch.request, index, error, bool(wanted))
                    outcomes += (_OUTCOME.pack(index, 1, len(text)), text)
                except BaseException as error:
                    self._machine_failed(batch.request, index, "apply", error)
                else:
                    if token:
                        # It waits here: no need to go through the library.
                        if token == expected or type(waiter := waiter_of(token, None)) is Batch:
                            if token != expected:
                                add, expected, end = run.begin(waiter, token), token, waiter.end
                            add(result)
                            expected += 1
                            if expected == end:
                                run.tell()
                                expected = _NONE
                        elif waiter is None:
                            waiters.tell(token, result)
                        elif not waiter.done():
                            waiter.set_result(result)
                        self.told_index = index
                    elif wanted:
                        outcomes += (_OUTCOME.pack(index, 0, len(result)), result)
                entries += 1
                # Stopped or waited for by readers it can only be once something was awaited: then the limit is 0.
                if entries >= limit or monotonic() > turn_ends:
                    self._turn_entries = entries
                    await self._between()
                    if self._stopping:
                        return
                    entries, limit, turn_ends = self._turn_entries, _TURN_ENTRIES, self._turn_started + _TURN_SECONDS
        finally:
            self._turn_entries = entries
            run.tell()
        packed = b"".join(outcomes)
        self._answer(lib.raftify_apply_told_packed, batch.request, packed, len(packed))

    def _command_failed(self, request: int, index: int, error: Exception, wanted: bool) -> bytes:
        if self._stop_on_error:
            self._machine_failed(request, index, "apply", error)
        text = _text_of(error)
        raft_log.error(
            "%s: apply raised at index %d: %s", self._name, index, text, exc_info=error, extra={"index": index}
        )
        if wanted:
            self.raised[index] = error
            if len(self.raised) > _KEPT_EXCEPTIONS:
                self.raised.popitem(last=False)
        return text.encode("utf-8", "replace")

    def _machine_failed(self, request: int, index: int, method: str, error: BaseException) -> NoReturn:
        """Stops the node. Always raises."""
        self.fault = error
        reason = f"{method} failed at index {index}: {_text_of(error)}".encode("utf-8", "replace")
        raft_log.critical(
            "%s: stopped, the store's %s", self._name, reason.decode(), exc_info=error, extra={"index": index}
        )
        self._answer(lib.raftify_machine_failed, request, index, reason, len(reason))
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
        raise MachineStopped from error

    def _answer(self, function: Any, request: int, *arguments: Any) -> None:
        try:
            with self._node as node:
                call(function, node, request, *arguments)
        except RaftError as error:
            # The node is ending: its CLOSED record says why.
            raft_log.debug("%s: an answer of the store came too late: %s", self._name, error)

    async def _snapshot(self, request: SnapshotRequest) -> None:
        """Captures here, where nothing is applied; a task of its own writes what was captured."""
        try:
            chunks = _snapshots.captured(await self._call(self._methods.snapshot))
        except (KeyboardInterrupt, SystemExit, asyncio.CancelledError) as error:
            self._machine_failed(request.request, request.index, "snapshot", error)
        except BaseException as error:
            self._snapshot_done(request, error)
            return
        capture = asyncio.get_running_loop().create_task(self._write_snapshot(request, chunks))
        self._captures.add(capture)
        capture.add_done_callback(self._captures.discard)

    async def _write_snapshot(self, request: SnapshotRequest, chunks: _snapshots.Chunks) -> None:
        error: BaseException | None = None
        try:
            await _snapshots.write(self._node, request.request, chunks)
        except BaseException as raised:
            error = raised
        self._snapshot_done(request, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit, asyncio.CancelledError)):
            raise error

    def _snapshot_done(self, request: SnapshotRequest, error: BaseException | None) -> None:
        reason = b""
        if error is not None:
            reason = _text_of(error).encode("utf-8", "replace")
            if not isinstance(error, (asyncio.CancelledError, RaftError)):
                raft_log.error(
                    "%s: no snapshot at index %d: %s", self._name, request.index, reason.decode(), exc_info=error
                )
        self._answer(lib.raftify_snapshot_done, request.request, int(error is not None), reason, len(reason))

    async def _restore(self, request: RestoreRequest) -> None:
        methods = self._methods
        try:
            if methods.restore_chunks is not None:
                await self._call(methods.restore_chunks, _snapshots.Reader(self._node, request.request))
            else:
                await self._call(methods.restore, await _snapshots.read_all(self._node, request.request))
        except BaseException as error:
            self._machine_failed(request.request, request.index, "restore", error)
        self._answer(lib.raftify_restore_done, request.request)


def _checked_result(result: object) -> bytes:
    if result is None:
        return b""
    data = contiguous_bytes(result)
    if data is None:
        raise TypeError(f"apply returned {type(result).__name__}; it may return bytes, a contiguous buffer, or None")
    return data

"""The state machine's side of a node: one long-lived task that awaits the store's methods, one request after another, in log order.

A batch that comes while the task waits is begun where it came, ahead of the task's turn (`_ahead.py`), and is over there if nothing
of it suspends. What suspends goes on in the task. Wherever it runs, a store's method sees the same context variables and
the same `asyncio.current_task()`: commands must come to the same on every node, whatever their batches met.

Invariants:
- never two methods at a time; while a snapshot is being *captured* nothing is applied (rule 12); its bytes are written afterwards;
- between two entries, when readers wait, they are let in before the next (rule 13);
- an `Exception` of `apply` is the command's outcome; a fault of this node stops the node (rule 10), and the entry counts as not applied;
- awaiting a method that does not suspend costs no loop turn; after 5 ms or 1,000 entries the loop gets one;
- whoever is told a result may at once ask for a status, or read: what was told counts as applied before anything else runs;
- what the library is owed is answered in the order of its requests, and at the latest in the next turn of the loop.
"""

from __future__ import annotations

import asyncio
import inspect
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Final, NamedTuple, NoReturn

from . import _snapshots
from ._ahead import Ahead
from ._context import enter_store
from ._errors import RaftError
from ._library import lib
from ._log import raft_log
from ._pointer import Pointer
from ._store import Applied, StoreMethods, contiguous_bytes
from ._waiters import Run, Waiters

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


class ApplyRequest(NamedTuple):
    request: int
    #: Entries.
    entries: int
    #: The entry table and, after it, the payloads.
    data: bytes


class SnapshotRequest(NamedTuple):
    request: int
    #: Of the newest applied entry.
    at: int


class RestoreRequest(NamedTuple):
    request: int
    #: Of the newest entry that is in the snapshot.
    at: int


class MachineStopped(Exception):
    """The machine has failed and the library was told: the applier ends."""


def text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    return f"{type(error).__qualname__}: {text}"[:_TEXT_LIMIT]


class Applier:
    """Serves the machine requests of one node."""

    def __init__(
        self, node: Pointer, node_id: int, methods: StoreMethods, stop_on_error: bool, waiters: Waiters
    ) -> None:
        self._node = node
        #: Proposers on this node get their results from here.
        self._waiters = waiters
        self._node_id = node_id
        self._name = f"node {node_id}"
        self._methods = methods
        self._stop_on_error = stop_on_error
        self._requests: deque[ApplyRequest | SnapshotRequest | RestoreRequest] = deque()
        #: While the task waits for something to do.
        self._wake: asyncio.Future[None] | None = None
        self._ahead = Ahead()
        #: In which turn of the loop a batch was last begun ahead.
        self._turn = 0
        #: A batch that is served, and of which the library does not know yet.
        self._owed = 0
        self._call_soon: Callable[..., object] = asyncio.get_running_loop().call_soon
        #: `apply` has not suspended yet, so that it is worth beginning a batch ahead of the task's turn.
        self._plain = True
        self._run = Run(waiters)
        self._readers: deque[asyncio.Future[bool]] = deque()
        self._stopping = False
        self._turn_started = 0.0
        self._turn_entries = 0
        self._captures: set[asyncio.Task[None]] = set()
        #: Whoever sees this set sees a method of the store suspended half way.
        self.busy = False
        #: Everything up to here is applied; the library hears of it with its batch.
        self.told_index = 0
        #: What `apply` raised, by index, for proposers on this node.
        self.raised: OrderedDict[int, BaseException] = OrderedDict()
        #: What the machine itself, or serving it, failed with; and whether the library knows of it.
        self.fault: BaseException | None = None
        self.fault_told = False
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
        wake = self._wake
        idle = wake is not None and not wake.done() and not self._ahead.going_on
        if not (idle and self._plain and type(request) is ApplyRequest and self._begin(request, turn)):
            self._requests.append(request)
            self._wake_up()

    def _begin(self, request: ApplyRequest, turn: int) -> bool:
        """The task waits and nothing is queued: as far as it goes without suspending, the request is served here and now. False: it was
        not begun."""
        if turn != self._turn:
            self._turn = turn
            self._turn_started, self._turn_entries = time.monotonic(), 0
        try:
            if self._ahead.run(self._apply_batch, request):
                self.on_progress()
            elif self._ahead.half_way:
                self._plain = not self.busy
                self._wake_up()
            else:
                return False
        except BaseException as error:
            self.failed(error)
            self.stop()
            if not isinstance(error, MachineStopped):
                raise
        return True

    def failed(self, error: BaseException) -> None:
        """Serving the store ends with this; what was said before counts."""
        if self.fault is None and not isinstance(error, MachineStopped):
            self.fault = error

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

    async def quiet(self, seconds: float | None) -> bool:
        """Returns where no method of the store is half way; that holds until the caller awaits something else. False: one still was
        after so many seconds."""
        if not self.busy:
            return True
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._readers.append(turn)
        # No task of its own and no `wait_for`: whoever is let in runs in the very next turn, before the next apply.
        timer = None if seconds is None else loop.call_later(max(seconds, 0), _tell, turn, False)
        try:
            return await turn
        finally:
            if timer is not None:
                timer.cancel()

    # ---- the task -------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until stopped. Raises only what must not be swallowed: `CancelledError`, `KeyboardInterrupt`, `SystemExit`."""
        enter_store()
        try:
            while not self._stopping:
                if self._requests:
                    await self._serve(self._requests.popleft())
                else:
                    cancelled = await self._wait()
                    self._turn_started, self._turn_entries = time.monotonic(), 0
                    if self._ahead.half_way:
                        await self._ahead.rest(cancelled)
                        await self._served()
        except MachineStopped:
            pass
        finally:
            self._stopping = True
            self._let_in()

    async def _wait(self) -> asyncio.CancelledError | None:
        """For something to do. What cancels the task meanwhile is for the method that is half way, if one is."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        except asyncio.CancelledError as error:
            if not self._ahead.half_way:
                raise
            return error
        finally:
            self._wake = None
        return None

    async def _serve(self, request: ApplyRequest | SnapshotRequest | RestoreRequest) -> None:
        if isinstance(request, ApplyRequest):
            await self._apply_batch(request)
        elif isinstance(request, SnapshotRequest):
            await self._snapshot(request)
        else:
            await self._restore(request)
        await self._served()

    async def _served(self) -> None:
        self.on_progress()
        await self._between()

    def _let_in(self) -> bool:
        readers, self._readers = self._readers, deque()
        for turn in readers:
            _tell(turn, True)
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
        if not inspect.isawaitable(result):
            return result
        self.busy = True
        try:
            return await result
        finally:
            self.busy = False

    async def _apply_batch(self, batch: ApplyRequest) -> None:
        request, count, data = batch
        methods, waiters, run = self._methods, self._waiters, self._run
        table = data[: count * _ENTRY.size]
        apply = _placed(methods.apply, table) if methods.wants_applied else methods.apply
        waiting, monotonic = waiters.pending.pop, time.monotonic
        outcomes: list[bytes] = []
        token = 0
        #: The token that the run goes on with, where it ends, and what takes its results.
        expected = end = _NONE
        add = outcomes.append
        entries, limit, turn_ends = self._turn_entries, _TURN_ENTRIES, self._turn_started + _TURN_SECONDS
        try:
            for index, offset, size, wanted, token in _ENTRY.iter_unpack(table):
                try:
                    result = apply(data[offset : offset + size])
                    if result is None:
                        result = b""
                    elif type(result) is not bytes:
                        if type(result) is CoroutineType or inspect.isawaitable(result):
                            # For those who run if it suspends.
                            self.busy, self.told_index = True, index - 1
                            result = await result
                            if self._readers or self._stopping:
                                limit = 0
                        if result is None:
                            result = b""
                        elif type(result) is not bytes:
                            result = _checked_result(result)
                except LOCAL_FAULTS as error:
                    self._apply_failed(request, index, error)
                except Exception as error:
                    limit = 0
                    term = next((term for its, term, _ in _PLACE.iter_unpack(table) if its == index), None)
                    text = self._command_failed(request, index, term, error, bool(wanted))
                    outcomes += (_OUTCOME.pack(index, 1, len(text)), text)
                except BaseException as error:
                    self._apply_failed(request, index, error)
                else:
                    if token:
                        # It waits here: no need to go through the library.
                        if token == expected:
                            add(result)
                            expected += 1
                            if expected == end:
                                self.told_index = index
                                run.tell()
                                expected = _NONE
                        else:
                            try:
                                waiting(token).set_result(result)
                            except KeyError:
                                self.told_index = index
                                if (whole := waiters.batch_of(token)) is None:
                                    waiters.tell_foreign(token, result)
                                else:
                                    add, expected, end = run.begin(whole, token, result), token + 1, whole.end
                                    if expected == end:
                                        run.tell()
                                        expected = _NONE
                            except asyncio.InvalidStateError:
                                pass  # it was cancelled
                    elif wanted:
                        outcomes += (_OUTCOME.pack(index, 0, len(result)), result)
                entries += 1
                # Stopped or waited for by readers it can only be once something was awaited, or raised: then the limit is 0.
                if entries >= limit or monotonic() > turn_ends:
                    self._turn_entries = entries
                    self.busy, self.told_index = False, index
                    await self._between()
                    if self._stopping:
                        return
                    entries, limit, turn_ends = self._turn_entries, _TURN_ENTRIES, self._turn_started + _TURN_SECONDS
            self.told_index = index
        finally:
            self.busy = False
            self._turn_entries = entries
            run.tell()
        packed = b"".join(outcomes)
        if count == 1 and token and not packed and self._ahead.going_on:
            # One who proposes one after the other goes on with the next before the library hears of this one: it is woken once for both.
            self._pay()
            self._owed = request
            self._call_soon(self._pay)
        else:
            self._answer(lib.raftify_apply_told_packed, request, packed, len(packed))

    def _pay(self) -> None:
        request, self._owed = self._owed, 0
        if request:
            self._call_library(lib.raftify_apply_told_packed, request, b"", 0)

    def _apply_failed(self, request: int, index: int, error: BaseException) -> NoReturn:
        self.told_index = index - 1
        self._machine_failed(request, index, "apply", error)

    def _extra(self, index: int, term: int | None = None) -> dict[str, object]:
        """Of a log record."""
        return {"node_id": self._node_id, "term": term, "index": index}

    def _command_failed(self, request: int, index: int, term: int | None, error: Exception, wanted: bool) -> bytes:
        if self._stop_on_error:
            self._apply_failed(request, index, error)
        text = text_of(error)
        raft_log.error(
            "%s: apply raised at index %d: %s",
            self._name,
            index,
            text,
            exc_info=error,
            extra=self._extra(index, term),
        )
        if wanted:
            self.raised[index] = error
            if len(self.raised) > _KEPT_EXCEPTIONS:
                self.raised.popitem(last=False)
        return text.encode("utf-8", "replace")

    def _machine_failed(self, request: int, index: int, method: str, error: BaseException) -> NoReturn:
        """Stops the node. Always raises."""
        self.fault = error
        reason = f"{method} failed at index {index}: {text_of(error)}".encode("utf-8", "replace")
        self._answer(lib.raftify_machine_failed, request, index, reason, len(reason))
        self.fault_told = True
        raft_log.critical(
            "%s: stopped, the store's %s", self._name, reason.decode(), exc_info=error, extra=self._extra(index)
        )
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
        raise MachineStopped from error

    def _answer(self, function: Any, request: int, *arguments: Any) -> None:
        self._pay()
        self._call_library(function, request, *arguments)

    def _call_library(self, function: Any, request: int, *arguments: Any) -> None:
        try:
            self._node.call(function, request, *arguments)
        except RaftError as error:
            # The node is ending: its CLOSED record says why.
            late = {"node_id": self._node_id, "term": None}
            raft_log.debug("%s: an answer of the store came too late: %s", self._name, error, extra=late)

    async def _snapshot(self, request: SnapshotRequest) -> None:
        """Captures here, where nothing is applied; a task of its own writes what was captured."""
        try:
            chunks = _snapshots.captured(await self._call(self._methods.snapshot))
        except BaseException as error:
            self._snapshot_done(request, error)
            if isinstance(error, Exception) or _of_the_store(error):
                return
            if not hasattr(asyncio.Task, "cancelling"):
                # Whoever was meant: the node ends, and that is why.
                self.failed(error)
            raise
        capture = asyncio.get_running_loop().create_task(self._write_snapshot(request, chunks))
        self._captures.add(capture)
        capture.add_done_callback(self._captures.discard)

    async def _write_snapshot(self, request: SnapshotRequest, chunks: _snapshots.Chunks) -> None:
        error: BaseException | None = None
        try:
            try:
                await _snapshots.write(self._node, request.request, chunks)
            finally:
                await _snapshots.close(chunks)
        except BaseException as raised:
            error = raised
        try:
            self._snapshot_done(request, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit, asyncio.CancelledError)):
                raise error
        finally:
            error = None  # its traceback has this frame

    async def captured(self, seconds: float) -> None:
        """After `stop`: until the store's iterators have ended, or for so long."""
        if self._captures:
            await asyncio.wait(list(self._captures), timeout=seconds)

    def _snapshot_done(self, request: SnapshotRequest, error: BaseException | None) -> None:
        reason = b""
        if error is not None:
            reason = text_of(error).encode("utf-8", "replace")
            if not isinstance(error, (asyncio.CancelledError, RaftError)):
                raft_log.error(
                    "%s: no snapshot at index %d: %s",
                    self._name,
                    request.at,
                    reason.decode(),
                    exc_info=error,
                    extra=self._extra(request.at),
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
            self._machine_failed(request.request, request.at, "restore", error)
        self._answer(lib.raftify_restore_done, request.request)


def _tell(turn: asyncio.Future[bool], quiet: bool) -> None:
    if not turn.done():
        turn.set_result(quiet)


def _of_the_store(error: BaseException) -> bool:
    """A `CancelledError` that nobody meant for this task: something that the store awaited was cancelled. Where that cannot be told (before
    Python 3.11) it counts as meant."""
    task = asyncio.current_task()
    cancelling = getattr(task, "cancelling", lambda: 1)
    return isinstance(error, asyncio.CancelledError) and cancelling() == 0


def _placed(apply: Callable[..., Any], table: bytes) -> Callable[[bytes], Any]:
    """`apply` for the entries of this table, in order, with what it is to be given besides."""
    places = (Applied(index, term, time_us / 1e6) for index, term, time_us in _PLACE.iter_unpack(table))
    return lambda command: apply(command, next(places))


def _checked_result(result: object) -> bytes:
    data = contiguous_bytes(result)
    if data is None:
        raise TypeError(f"apply returned {type(result).__name__}; it may return bytes, a contiguous buffer, or None")
    return data

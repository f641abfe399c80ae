"""The one place that knows the event loop: completions, events and machine requests come in here, in batches.

One `Bridge` per loop, made with its first node or client and taken down with the last: one queue of the library, one runtime, one
descriptor in the loop. Invariants:
- one wake-up per batch, never one per completion; what was popped sits in `_records` before anything is done with it, so an exception
  loses none; payloads are `bytes` by then, for the library reuses its memory at the next drain;
- who waits for what is in `waiters`;
- the descriptor leaves the loop, on the loop's own thread, before the queue is freed; the queue after everything that uses it;
- whoever is going to use it has entered before anything else runs; it is ended by one thread, once, whoever comes first: the last user
  to leave, or who finds its loop closed, or exit.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import inspect
import json
import os
import struct
import threading
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar

from . import _log
from ._errors import Closed, Forked, RaftError, error_from_json
from ._library import call, ffi, lib
from ._threads import forget_all, in_thread, join_all, start_daemon
from ._waiters import TOKENS, Resolved, Waiters, in_loop

T = TypeVar("T")

#: token, index, term, data, source, kind, status, count
Record = tuple[int, int, int, bytes, int, int, int, int]

_BATCH: Final = 512
#: raftify_event; `_library` has checked the layout: token, index, term, data, len, source, kind, status, count, reserved.
_EVENT: Final = struct.Struct("=QQQQQQiiII")
assert _EVENT.size == ffi.sizeof("raftify_event")

_BYTES: Final = ffi.typeof("char *")
_COMPLETION: Final[int] = lib.RAFTIFY_EVENT_COMPLETION
_LOG: Final[int] = lib.RAFTIFY_EVENT_LOG

#: Seconds that exit waits for threads inside the library.
EXIT_TIMEOUT: Final = 2.0


class Source(Protocol):
    """What a bridge serves: a node or a client. Called on the home loop."""

    def on_record(self, record: Record) -> None:
        """Anything but the completion of a token and a log record."""

    def completed_with(self, error: RaftError) -> RaftError:
        """May add what is known locally to the failure of one of its requests."""

    def close_hard(self) -> bool:
        """Ends it without a loop, from any thread; waits a few seconds at most. False: it could not be freed."""

    def forked(self) -> None:
        """In a forked child: nothing of it can be used."""


class Opening(Protocol):
    """A start call that is inside the library, on a thread of its own."""

    def abandon(self) -> None:
        """Nobody takes what it opens any more: it is freed. May be called any number of times."""

    def wait(self, timeout: float | None) -> bool:
        """Until the call is back. False: it was not, in that time."""

    def is_over(self) -> bool:
        """It was abandoned, and is back."""


#: Seconds between two looks whether the home loop of a call from another loop is still there.
_LOOK: Final = 0.5


class Bridge:
    """One event loop's connection to the library."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = False
        self._forked = False
        self._pid = os.getpid()
        self._events = ffi.new("raftify_event[]", _BATCH)
        self._view = ffi.buffer(self._events)
        self._records: deque[Record] = deque()
        self.waiters = Waiters(loop)
        #: Rises with each dispatch, of which a turn of the loop has one (two after an exception).
        self.turn = 0
        self._sources: dict[int, Source] = {}
        #: Records of nodes whose start call has not returned yet, so that nobody knows their number.
        self._unclaimed: dict[int, list[Record]] = {}
        #: All that have entered, also those that have no number yet.
        self._users: set[Source] = set()
        #: Its thread may take it again: a signal's handler may find another closed loop.
        self._ending = threading.RLock()
        #: Nodes that are being started; only then can records of an unknown number be somebody's.
        self.starting = 0
        #: Their calls: nothing that they use is freed before they are back.
        self._openings: set[Opening] = set()
        #: What other loops wait for here.
        self._calls: dict[concurrent.futures.Future[Any], Coroutine[Any, Any, Any]] = {}
        #: Those loops.
        self._watching: set[asyncio.AbstractEventLoop] = set()
        self._waiter: threading.Thread | None = None
        self._waiter_may_wait: threading.Event | None = None
        #: Tasks of the package's own, kept from the garbage collector.
        self._tasks: set[asyncio.Task[Any]] = set()
        slot = ffi.new("raftify_runtime **")
        call(lib.raftify_runtime_new, slot)
        self.runtime = slot[0]
        self.queue = self._open_queue()

    # ---- the wake-up ---------------------------------------------------------------------------------------------------------------

    def _open_queue(self) -> Any:
        slot = ffi.new("raftify_queue **")
        call(lib.raftify_queue_new, lib.RAFTIFY_WAKE_FD, ffi.NULL, ffi.NULL, ffi.NULL, slot)
        queue = slot[0]
        self._descriptor = lib.raftify_queue_fd(queue)
        try:
            self.loop.add_reader(self._descriptor, self._on_readable)
        except NotImplementedError:
            # A loop without readiness (Windows' proactor): a thread waits, with one call into the loop per batch.
            lib.raftify_queue_free(queue)
            call(lib.raftify_queue_new, lib.RAFTIFY_WAKE_NONE, ffi.NULL, ffi.NULL, ffi.NULL, slot)
            queue = slot[0]
            self._descriptor = -1
            self._waiter_may_wait = threading.Event()
            self._waiter_may_wait.set()
            self._waiter = start_daemon(lambda: self._wait_for_records(queue), "raftify-queue")
        return queue

    def _wait_for_records(self, queue: Any) -> None:
        turn = self._waiter_may_wait
        assert turn is not None
        while not self.closed:
            # The loop drains before this thread looks again: one wake-up a batch. Neither wait is long, so that closing is noticed.
            if not turn.wait(0.2) or lib.raftify_queue_wait(queue, 200) != 0:
                continue
            turn.clear()
            try:
                self.loop.call_soon_threadsafe(self._on_readable)
            except RuntimeError:
                return  # the loop has closed

    def _on_readable(self) -> None:
        if self.closed or self._pid != os.getpid():
            return
        unpack, cast, append = ffi.unpack, ffi.cast, self._records.append
        count = lib.raftify_queue_drain(self.queue, self._events, _BATCH)
        for token, index, term, data, size, source, kind, status, number, _ in _EVENT.iter_unpack(
            self._view[: count * _EVENT.size]
        ):
            payload = unpack(cast(_BYTES, data), size) if size else b""
            append((token, index, term, payload, source, kind, status, number))
        if self._waiter_may_wait is not None:
            self._waiter_may_wait.set()
        self._dispatch()

    def _dispatch(self) -> None:
        """Hands out what was popped. Of the user's code, a plain `apply` may run here (`Applier.put`): what it raises is the applier's,
        and what ends the program leaves the other records for the next turn."""
        self.turn += 1
        records, waiters = self._records, self.waiters
        elsewhere: dict[asyncio.AbstractEventLoop, list[Resolved]] = {}
        try:
            while records:
                record = records.popleft()
                token, _, _, data, source, kind, status, _ = record
                if kind != _COMPLETION or token == 0:
                    self._deliver(record)
                    continue
                error = None if status == 0 else self._failure(source, status, data)
                waiter = waiters.pending.pop(token, None)
                if waiter is not None:
                    if waiter.done():
                        continue
                    if error is None:
                        waiter.set_result(data)
                    else:
                        waiter.set_exception(error)
                elif (batch := waiters.batch_of(token)) is not None:
                    if error is None:
                        waiters.settle(batch, token, (data,))
                    else:
                        waiters.fail(batch, token, error)
                elif (future := waiters.foreign.pop(token, None)) is not None:
                    elsewhere.setdefault(future.get_loop(), []).append((future, data, error))
        finally:
            for other, resolved in elsewhere.items():
                in_loop(other, resolved)
            if records:
                self.loop.call_soon(self._dispatch)

    def _failure(self, source: int, status: int, data: bytes) -> RaftError:
        error = error_from_json(data or {"code": status})
        owner = self._sources.get(source)
        return error if owner is None else owner.completed_with(error)

    def _deliver(self, record: Record) -> None:
        source, kind = record[4], record[5]
        try:
            if kind == _LOG:
                _log.hand_over(record[3])
                return
            owner = self._sources.get(source)
            if owner is not None:
                owner.on_record(record)
            elif self.starting:
                self._unclaimed.setdefault(source, []).append(record)
        except Exception as error:
            # One record that cannot be handled must not keep the others from their readers.
            self.loop.call_exception_handler({"message": "raftify: a record could not be handled", "exception": error})

    # ---- requests ------------------------------------------------------------------------------------------------------------------

    async def request(self, submit: Callable[[int], None]) -> bytes:
        """One request: `submit(token)` hands it down and raises if it is not accepted; returns the completion's data."""
        self.check()
        loop = asyncio.get_running_loop()
        self.watch(loop)
        future: asyncio.Future[bytes] = loop.create_future()
        token, waiting = TOKENS.one(), self.waiters.of(loop)
        waiting[token] = future
        try:
            submit(token)
        except BaseException:
            waiting.pop(token, None)
            raise
        return await future

    def check(self) -> None:
        """Before every call, and before anything asks for the loop, which does not run in a forked child."""
        if self._forked:
            raise Forked("this handle belongs to the parent process; build a new node or client in the child")
        if self.home_is_gone():
            raise _gone(False)

    def home_is_gone(self) -> bool:
        """Then nothing comes back from the library any more, and what waits for it has been ended."""
        if not self.loop.is_closed():
            return False
        reap_closed_loops()
        return True

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Calls of that running loop wait for this one from now on, which may be closed under them: looked for now and then."""
        if loop is self.loop or loop in self._watching:
            return
        for other in list(self._watching):
            if other.is_closed():
                self._watching.discard(other)
        self._watching.add(loop)
        loop.call_later(_LOOK, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.closed:
            self._watching.discard(loop)
            return
        if self.loop.is_closed():
            # It may take some seconds, which are not that loop's.
            start_daemon(reap_closed_loops, "raftify-call")
        loop.call_later(_LOOK, self._look, loop)

    async def at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """From another loop: what `work` gives or raises on this one."""
        try:
            self.check()
            self.watch(asyncio.get_running_loop())
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        except BaseException as error:
            work.close()
            if isinstance(error, RuntimeError) and self.loop.is_closed():
                raise _gone(False) from None
            raise
        self._calls[future] = work
        if self.closed and self.loop.is_closed():
            self._end_calls()
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._calls.pop(future, None)

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Holds a background task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- who uses it -----------------------------------------------------------------------------------------------------------------

    def enter(self, user: Source) -> None:
        """It is going to use this bridge, which was just asked for, until it leaves. Home loop."""
        self._users.add(user)

    def opens(self, opening: Opening) -> None:
        self._openings = {other for other in self._openings if not other.is_over()} | {opening}

    def opened(self, opening: Opening) -> None:
        """It is back, and what it opened has an owner."""
        self._openings.discard(opening)

    def attach(self, number: int, source: Source) -> None:
        """From now on the records of that number are the source's; what came before it was known follows at once."""
        self._sources[number] = source
        for record in self._unclaimed.pop(number, ()):
            source.on_record(record)

    def detach(self, number: int) -> None:
        self._sources.pop(number, None)
        self._unclaimed.pop(number, None)

    async def leave(self, user: Source, left: Callable[[], None]) -> None:
        """On the home loop, after what was started has been freed. The last one takes the bridge down; `left` is called then, on a
        thread, also when the loop has ended meanwhile and nobody returns from here."""
        self._users.discard(user)
        if self._users or not self._end_once():
            return
        if self._descriptor >= 0 and not self.loop.is_closed():
            self.loop.remove_reader(self._descriptor)
        self._end_waiters()

        def free() -> None:
            try:
                self._free(None)
            finally:
                left()

        await in_thread(free)

    def _end_once(self) -> bool:
        """True: the caller ends it."""
        with self._ending:
            if self.closed:
                return False
            self.closed = True
        _bridges.pop(self.loop, None)
        return True

    def _end_waiters(self) -> None:
        self.waiters.end(lambda: Closed("the node or client was closed", committed=None))

    def _end_calls(self) -> None:
        """Of other loops, which this one will answer no more."""
        for future, work in list(self._calls.items()):
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()
            try:
                future.set_exception(_gone(None))
            except concurrent.futures.InvalidStateError:
                pass  # it was cancelled, or is over

    def abandon(self) -> int | None:
        """Without its loop: everything is ended hard, from this thread. For exit (when no thread can be started any more), and for a
        loop that was closed under its nodes. How many nodes and clients there were; None: somebody else ends it."""
        if not self._end_once():
            return None
        users = list(self._users)
        self._sources.clear()
        freed = [user.close_hard() for user in users]  # every one, also after one that could not be freed
        if self.loop.is_closed():
            self._end_waiters()
            self._end_calls()
        if all(freed):
            self._free(EXIT_TIMEOUT)
        return len(users)

    def _free(self, timeout: float | None) -> None:
        """After everything that used them. Blocks for a moment, or until a start call is back. What somebody is still inside of after the
        timeout is leaked rather than freed under them."""
        openings = list(self._openings)
        for opening in openings:
            opening.abandon()
        if not all(opening.wait(timeout) for opening in openings):
            return
        if self._waiter is not None:
            self._waiter.join(EXIT_TIMEOUT)
            if self._waiter.is_alive():
                return
        lib.raftify_runtime_free(self.runtime)
        lib.raftify_queue_free(self.queue)

    def forked(self) -> None:
        """In the child: neither loop nor queue is touched."""
        self.closed = self._forked = True
        for user in list(self._users):
            user.forked()


def _gone(committed: bool | None) -> Closed:
    return Closed(
        "its event loop was closed under it; build a new node or client on a loop that goes on", committed=committed
    )


def json_of(data: bytes) -> Any:
    """The reply of a request that answers in JSON."""
    return json.loads(data) if data else None


# ---- one bridge per loop, for the whole process ------------------------------------------------------------------------------------

_bridges: dict[asyncio.AbstractEventLoop, Bridge] = {}
_used = False


def bridge_of_running_loop() -> Bridge:
    """The running loop's bridge, made if there is none. Raises `RuntimeError` on a thread without a running loop."""
    global _used
    loop = asyncio.get_running_loop()
    reap_closed_loops()
    bridge = _bridges.get(loop)
    if bridge is None:
        bridge = Bridge(loop)
        _bridges[loop] = bridge
        _used = True
    return bridge


def reap_closed_loops() -> None:
    """Nodes whose loop was closed under them have nobody who applies: they are closed."""
    for loop, bridge in list(_bridges.items()):
        if loop.is_closed():
            # First: where warnings are errors this one is told once, and not again to everybody who comes after.
            number = bridge.abandon()
            if not number:
                continue
            warnings.warn(
                f"the event loop of {number} raftify node(s) or client(s) was closed under them; call close() first",
                ResourceWarning,
                stacklevel=3,
            )


def _at_exit() -> None:
    """Closes hard: nothing is applied any more; no thread may come back from the library into a finalizing interpreter."""
    for bridge in list(_bridges.values()):
        bridge.abandon()
    join_all(EXIT_TIMEOUT)


def _after_fork_in_child() -> None:
    if not _used:
        return
    lib.raftify_after_fork_in_child()
    TOKENS.after_fork_in_child()
    for bridge in list(_bridges.values()):
        bridge.forked()
    # Also disarms `_at_exit`: what it would close is the parent's.
    _bridges.clear()
    forget_all()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""Blocking calls of the library, off the event loop: each on a daemon thread of its own, joined for a while at exit.

Not the loop's default executor: that belongs to the program, may be busy or shut down, and its threads keep a process alive.

Signals are the program's business: none is taken here, and none ends the program for what is done here. Whoever wakes a loop writes to
its pipe, whose other end that loop may be closing: where SIGPIPE has its default, that would be the end of the program.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

_running: set[threading.Thread] = set()

#: What a fault of the thread itself raises, and what profilers look at threads with.
_NOT_BLOCKED: Final = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGPROF", "SIGSEGV", "SIGSYS", "SIGTRAP"}
_BLOCKED: Final = {number for number in signal.valid_signals() if getattr(number, "name", "") not in _NOT_BLOCKED}


def _take_no_signals() -> None:
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)


def _resolve(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


async def in_thread(work: Callable[[], T]) -> T:
    """What `work()` returns or raises. A cancelled caller leaves the thread to finish alone."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = work()
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(_resolve, future, value, error)
        except RuntimeError:
            pass  # the loop has closed: nobody waits any more
        finally:
            error = None  # its traceback has this frame

    start_daemon(body, "raftify-call")
    return await future


def start_daemon(body: Callable[[], None], name: str) -> threading.Thread:
    def run() -> None:
        _take_no_signals()
        try:
            body()
        finally:
            _running.discard(threading.current_thread())

    thread = threading.Thread(target=run, name=name, daemon=True)
    _running.add(thread)
    thread.start()
    return thread


def join_all(timeout: float) -> None:
    """At exit: what is still inside the library gets this long to come back."""
    deadline = time.monotonic() + timeout
    for thread in list(_running):
        thread.join(max(0.0, deadline - time.monotonic()))


def forget_all() -> None:
    """In a forked child, where none of these threads exists."""
    _running.clear()

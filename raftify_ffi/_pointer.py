"""A pointer of the library that may be used from several threads and is freed once, when nobody is inside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from ._errors import Closed, Forked, RaftError
from ._library import ffi, take_error

_ERROR_SLOT: Final = ffi.typeof("raftify_error **")


class Pointer:
    """`call` for what returns at once; `with pointer as raw:` for what may take its time, or takes no error slot; `retire(free)` waits for
    those inside, then frees.

    The lock is one that its thread may take again: a signal's handler may ask for a status in the middle of a call.
    """

    __slots__ = ("_free_error", "_inside", "_lock", "_raw", "_state", "number")

    def __init__(self, raw: Any, number: int, name: str) -> None:
        self._raw = raw
        self._inside = 0
        #: The condition's own, taken directly where every call passes.
        self._lock = threading.RLock()
        self._state = threading.Condition(self._lock)
        self._free_error: RaftError = Closed(f"{name} is closed")
        #: By which the queue's records name this object.
        self.number = number

    def _gone(self) -> RaftError:
        return type(self._free_error)(self._free_error.message, committed=False)

    def call(self, function: Any, *arguments: Any) -> None:
        """`function(raw, *arguments, error)`, which must not block: nobody else gets in meanwhile. Raises what it reports."""
        slot = ffi.new(_ERROR_SLOT)
        with self._lock:
            raw = self._raw
            if raw is None:
                raise self._gone()
            status = function(raw, *arguments, slot)
        if status != 0:
            raise take_error(status, slot[0])

    def __enter__(self) -> Any:
        with self._lock:
            if self._raw is None:
                raise self._gone()
            self._inside += 1
            return self._raw

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._raw is None:
                self._state.notify_all()

    @property
    def usable(self) -> bool:
        return self._raw is not None

    def retire(self, free: Callable[[Any], None], timeout: float | None = None) -> bool:
        """May block for as long as a call is inside; later calls raise `Closed`. The second time it does nothing.
        False: somebody was still inside at the end of the timeout, and it was leaked rather than freed under them."""
        with self._state:
            raw, self._raw = self._raw, None
            if raw is None:
                return True
            if not self._state.wait_for(lambda: self._inside == 0, timeout):
                return False
        free(raw)
        return True

    def abandon_in_child(self) -> None:
        """After fork: locks may be held by threads that do not exist here, so none is taken and nothing is freed."""
        self._lock = threading.RLock()
        self._state = threading.Condition(self._lock)
        self._raw = None
        self._free_error = Forked("this handle belongs to the parent process; build a new node or client in the child")

"""Rule 11: a store's methods, and the tasks they start, may not wait for the library that waits for them.

A context variable is set in the applier's task; every awaiting call asks `refuse_inside_store` first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from ._errors import RaftError

_inside_store: ContextVar[bool] = ContextVar("raftify_ffi_inside_store", default=False)


def enter_store() -> None:
    """From here on, this context (of the applier's own task) counts as the store's."""
    _inside_store.set(True)


async def as_store(method: Callable[[], Any]) -> Any:
    """What the method gives, plain or async, as one of the store's."""
    entered = _inside_store.set(True)
    try:
        answer = method()
        return await answer if hasattr(answer, "__await__") else answer
    finally:
        try:
            _inside_store.reset(entered)
        except ValueError:
            pass  # collected with a loop that is gone, elsewhere


#: Whether this is one of the store's methods, or a task that one started.
inside_store: Final = _inside_store.get


def refuse_inside_store(what: str) -> None:
    """Raises at once where waiting would be a deadlock."""
    if _inside_store.get():
        raise RaftError(
            f"{what} was called inside the store's own apply, snapshot, restore or applied_index (or a task they started): it would wait for "
            "the very method that calls it; do it from outside, for instance from a task started before run()"
        )

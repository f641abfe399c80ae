"""Work of a task that is done ahead of the task's turn: begun while the task waits, ended there if nothing of it suspends, and
otherwise ended by the task. Whatever runs sees the task's context variables, and the task as the current one.

             run()                          it suspends            rest()
    nothing ───────▶ going on, not in the task ────────▶ half way ───────▶ in the task
       ▲                        │ ended
       └────────────────────────┘
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, Final

# Of asyncio's documented means for those who make tasks of their own ("Extending").
_enter_task: Final[Callable[[asyncio.AbstractEventLoop, asyncio.Task[Any]], None]] = asyncio.tasks._enter_task
_leave_task: Final[Callable[[asyncio.AbstractEventLoop, asyncio.Task[Any]], None]] = asyncio.tasks._leave_task


class _Rest:
    """What is left of a coroutine that suspended outside of its task: what it waits for is waited for by the task, as if the coroutine
    had been awaited there from the start."""

    __slots__ = ("_coroutine", "_error", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any, error: BaseException | None) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for
        #: What came to the task before it knew of any of this.
        self._error = error

    def __await__(self) -> Generator[Any, Any, None]:
        coroutine, waits_for, error = self._coroutine, self._waits_for, self._error
        if isinstance(error, asyncio.CancelledError) and asyncio.isfuture(waits_for) and waits_for.cancel(*error.args):
            # As a task does: what it waits for is cancelled, and brings that back.
            error = None
        # A bare yield (None) asks for a turn of the loop, and that has passed.
        while error is not None or waits_for is not None:
            if error is not None:
                thrown, error = error, None
                try:
                    waits_for = coroutine.throw(thrown)
                except StopIteration:
                    return
                finally:
                    del thrown
            try:
                yield waits_for
                break
            except BaseException as raised:
                error = raised
        yield from coroutine.__await__()


class Ahead:
    """Of one task, one piece of work at a time."""

    __slots__ = ("_context", "_half_way", "_task", "_waits_for", "going_on")

    def __init__(self) -> None:
        #: The task's.
        self._context: Context = copy_context()
        self._task: asyncio.Task[None] | None = None
        self._half_way: Coroutine[Any, Any, None] | None = None
        #: What that gave when it suspended: a future, or None for a turn of the loop.
        self._waits_for: Any = None
        #: What runs was begun here: the task does not run.
        self.going_on = False

    def start(self, body: Coroutine[Any, Any, None]) -> tuple[asyncio.Task[None], bool]:
        """The task, and whether its work can be done ahead: not where it cannot share its context, which is with Python 3.10, and where
        tasks are made by a factory of the program's, which need not know of contexts."""
        loop = asyncio.get_running_loop()
        if sys.version_info < (3, 11) or loop.get_task_factory() is not None:
            return loop.create_task(body), False
        self._task = loop.create_task(body, context=self._context)
        return self._task, True

    def run(self, work: Callable[[Any], Coroutine[Any, Any, None]], argument: Any) -> bool:
        """Begins `work(argument)`. False: the task is needed; either it is half way, see `rest`, or it was not begun, because another task
        runs. Raises what the work raises. The task must wait, for nothing of this work."""
        task = self._task
        assert task is not None
        loop = task.get_loop()
        try:
            _enter_task(loop, task)
        except RuntimeError:
            return False
        self.going_on = True
        coroutine = work(argument)
        try:
            self._waits_for = self._context.run(coroutine.send, None)
        except StopIteration:
            return True
        finally:
            _leave_task(loop, task)
            self.going_on = False
        self._half_way = coroutine
        return False

    @property
    def half_way(self) -> bool:
        return self._half_way is not None

    async def rest(self, error: BaseException | None = None) -> None:
        """In the task: ends what is half way. `error`, which came to the task while it waited, comes to the work where that waits."""
        work, self._half_way = self._half_way, None
        waits_for, self._waits_for = self._waits_for, None
        if work is not None:
            await _Rest(work, waits_for, error)

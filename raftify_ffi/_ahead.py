"""Work of a task that is done ahead of the task's turn: begun while the task waits, ended there if nothing of it suspends, and
otherwise ended by the task. Whatever runs sees the task's context variables, and the task as the current one.

             run()                          hand_over()                     rest()
    nothing ───────▶ going on, not in the task ─────────▶ half way ─────────▶ in the task
       ▲                        │ ended                      │ cancel()
       └────────────────────────┴────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any, Final

# Of asyncio's documented means for those who make tasks of their own ("Extending").
_enter_task: Final[Callable[[asyncio.AbstractEventLoop, asyncio.Task[Any]], None]] = asyncio.tasks._enter_task
_leave_task: Final[Callable[[asyncio.AbstractEventLoop, asyncio.Task[Any]], None]] = asyncio.tasks._leave_task


class _BareYield:
    """Where a coroutine that runs ahead stops, so that the rest of it can be awaited in the task."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class _Rest:
    """What is left of a coroutine that stopped at a bare `yield`; it cannot be awaited as it is."""

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, None]:
        return self._coroutine.__await__()


class Ahead:
    """Of one task, one piece of work at a time."""

    __slots__ = ("_context", "_half_way", "_task", "going_on")

    def __init__(self) -> None:
        #: The task's.
        self._context: Context = copy_context()
        self._task: asyncio.Task[None] | None = None
        self._half_way: Coroutine[Any, Any, None] | None = None
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

    def run(self, work: Coroutine[Any, Any, None]) -> bool:
        """False: half way, the task is needed, see `rest`. Raises what the work raises. The task must wait, for nothing of this work."""
        task = self._task
        assert task is not None
        loop = task.get_loop()
        self.going_on = True
        _enter_task(loop, task)
        try:
            self._context.run(work.send, None)
        except StopIteration:
            return True
        finally:
            _leave_task(loop, task)
            self.going_on = False
        self._half_way = work
        return False

    async def hand_over(self, result: object) -> None:
        """Within the work: returns in the task. `result`, which waits to be awaited there, is closed if that never comes."""
        try:
            await _BareYield()
        except BaseException:
            if type(result) is CoroutineType:
                result.close()
            raise

    async def rest(self) -> None:
        """In the task: ends what is half way."""
        work, self._half_way = self._half_way, None
        if work is not None:
            await _Rest(work)

    def cancel(self, error: asyncio.CancelledError) -> None:
        """The task is cancelled while it waits: what is half way hears of it where it stopped, as it would inside the task."""
        work, self._half_way = self._half_way, None
        if work is not None:
            work.throw(error)

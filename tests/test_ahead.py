"""Work begun ahead of its task ends as if the task had awaited it from the start (`_ahead.py`)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import pytest

from raftify_ffi._ahead import Ahead

if sys.version_info < (3, 11):
    pytest.skip("tasks cannot share a context before Python 3.11", allow_module_level=True)


class Worker:
    """A task that waits for work, as the applier's does, and what it came to."""

    def __init__(self) -> None:
        self.ahead = Ahead()
        self.outcomes: list[object] = []
        self._wake: asyncio.Future[None] | None = None
        self.task, possible = self.ahead.start(self._serve())
        assert possible

    async def _serve(self) -> None:
        while True:
            self._wake = asyncio.get_running_loop().create_future()
            cancelled: asyncio.CancelledError | None = None
            try:
                await self._wake
            except asyncio.CancelledError as error:
                if not self.ahead.half_way:
                    raise
                cancelled = error
            await self.ahead.rest(cancelled)

    def begin(self, work: Callable[[], Awaitable[object]]) -> bool:
        """True: it ended there and then."""
        assert self._wake is not None

        async def kept(_: None) -> None:
            assert asyncio.current_task() is self.task
            try:
                self.outcomes.append(await work())
            except BaseException as error:
                self.outcomes.append(type(error))
                raise
            finally:
                assert asyncio.current_task() is self.task

        ended = self.ahead.run(kept, None)
        if not ended:
            self._wake.set_result(None)
        return ended


async def worker() -> Worker:
    made = Worker()
    await asyncio.sleep(0)
    return made


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def from_callback(body: Callable[[], object]) -> asyncio.Future[None]:
    """Where no task runs, as in a reader's callback."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def call() -> None:
        try:
            body()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    asyncio.get_running_loop().call_soon(call)
    return done


async def test_what_does_not_suspend_ends_where_it_was_begun() -> None:
    made = await worker()

    async def work() -> str:
        return "done"

    def begin() -> None:
        assert made.begin(work)

    await from_callback(begin)
    assert made.outcomes == ["done"]
    assert not made.ahead.half_way
    made.task.cancel()


async def test_a_turn_of_the_loop_is_one_turn() -> None:
    made = await worker()

    async def work() -> str:
        await asyncio.sleep(0)
        return "after a turn"

    def begin() -> None:
        assert not made.begin(work)
        assert made.outcomes == []

    await from_callback(begin)
    await turns(3)
    assert made.outcomes == ["after a turn"]
    made.task.cancel()


@pytest.mark.parametrize("early", [True, False], ids=["done before the task runs", "done later"])
async def test_a_future_is_awaited_by_the_task(early: bool) -> None:
    made = await worker()
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> list[str]:
        return [await future, await asyncio.sleep(0.001, "and a second wait")]

    await from_callback(lambda: (made.begin(work), early and future.set_result("a")))
    await turns()
    if not early:
        assert made.ahead.half_way is False
        assert made.outcomes == []
        future.set_result("a")
    while not made.outcomes:
        await asyncio.sleep(0.001)
    assert made.outcomes == [["a", "and a second wait"]]
    made.task.cancel()


@pytest.mark.parametrize("wait", [0, 5], ids=["before the task runs", "in the task"])
async def test_cancelled_it_cancels_what_it_waits_for(wait: int) -> None:
    made = await worker()
    inner = asyncio.create_task(asyncio.sleep(60))

    async def work() -> object:
        return await inner

    def begin() -> None:
        made.begin(work)
        if wait == 0:
            made.task.cancel()

    await from_callback(begin)
    if wait:
        await turns(wait)
        made.task.cancel()
    await asyncio.wait([made.task])
    assert made.outcomes == [asyncio.CancelledError]
    assert made.task.cancelled()
    assert inner.cancelled()


@pytest.mark.parametrize("wait", [0, 5], ids=["before the task runs", "in the task"])
async def test_what_swallows_its_cancellation_goes_on(wait: int) -> None:
    made = await worker()

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            return "went on"
        return "was not cancelled"

    def begin() -> None:
        made.begin(work)
        if wait == 0:
            made.task.cancel()

    await from_callback(begin)
    if wait:
        await turns(wait)
        made.task.cancel()
    while not made.outcomes:
        await asyncio.sleep(0.001)
    assert made.outcomes == ["went on"]
    assert not made.task.done()
    made.task.cancel()


async def test_cancelled_at_a_bare_turn_before_the_task_runs() -> None:
    made = await worker()

    async def work() -> str:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "heard of it"
        return "heard of nothing"

    await from_callback(lambda: (made.begin(work), made.task.cancel()))
    await turns()
    assert made.outcomes == ["heard of it"]
    made.task.cancel()


@pytest.mark.parametrize("seconds", [0, 0.001], ids=["over before the task runs", "later"])
async def test_a_timeout_inside_it_ends_its_own_wait_only(seconds: float) -> None:
    made = await worker()

    async def work() -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(60)
        except TimeoutError:
            return "timed out"
        return "was not"

    await from_callback(lambda: made.begin(work))
    while not made.outcomes:
        await asyncio.sleep(0.001)
    assert made.outcomes == ["timed out"]
    assert not made.task.done()
    made.task.cancel()


async def test_a_task_group_inside_it() -> None:
    made = await worker()

    async def work() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0.001, n)) for n in range(3)]
        return [task.result() for task in tasks]

    await from_callback(lambda: made.begin(work))
    while not made.outcomes:
        await asyncio.sleep(0.001)
    assert made.outcomes == [[0, 1, 2]]
    made.task.cancel()


async def test_where_another_task_runs_nothing_is_begun() -> None:
    made = await worker()
    begun = []

    async def work(_: None) -> None:
        begun.append(True)

    assert not made.ahead.run(work, None)
    assert not made.ahead.half_way
    assert not begun
    made.task.cancel()

"""The store's side: what apply may return and raise, snapshots, restore, and what its methods may not do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar, Token
from pathlib import Path
from typing import Any

import pytest
from cluster import free_addrs, one_node, quick_config
from stores import KeyValue, Scripted

from raftify_ffi import (
    ApplyError,
    Closed,
    ConfChangeV2,
    InvalidConfig,
    MachineFailed,
    Raft,
    RaftError,
    SnapshotFailed,
    WrongDirectory,
)
from raftify_ffi._bridge import Bridge, reap_closed_loops
from raftify_ffi._library import lib
from raftify_ffi._pointer import Pointer


async def test_apply_may_return_any_buffer_or_none(tmp_path: Path) -> None:
    async with one_node(tmp_path, Scripted()) as raft:
        for word, expected in (("none", b""), ("bytearray", b"array"), ("view", b"view")):
            assert await raft.propose(f"return:{word}".encode()) == expected
        for word in ("str", "int"):
            with pytest.raises(ApplyError) as caught:
                await raft.propose(f"return:{word}".encode())
            assert caught.value.type_name == "TypeError"
        assert await raft.propose(b"a=1") == b""


async def test_an_exception_is_the_commands_outcome(tmp_path: Path) -> None:
    async with one_node(tmp_path, Scripted()) as raft:
        with pytest.raises(ApplyError) as caught:
            await raft.propose(b"raise:ValueError:bad")
        error = caught.value
        assert (error.type_name, error.text, error.committed, error.retryable) == ("ValueError", "bad", True, False)
        assert isinstance(error.__cause__, ValueError)
        assert await raft.propose(b"a=1") == b""
        assert not raft._running.applier.raised  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["OSError", "MemoryError", "TimeoutError"])
async def test_a_fault_of_this_node_stops_it_and_says_why(tmp_path: Path, kind: str) -> None:
    raft = Raft.build(1, free_addrs(1)[0], Scripted(), quick_config(tmp_path))
    await raft.run()
    with pytest.raises(RaftError):
        await raft.propose(f"raise:{kind}:disk".encode())
    with pytest.raises(MachineFailed) as caught:
        await raft.wait()
    assert type(caught.value.__cause__).__name__ == kind
    assert raft.status.error is not None
    await raft.close()


async def test_stop_on_apply_error_stops_on_any(tmp_path: Path) -> None:
    raft = Raft.build(1, free_addrs(1)[0], Scripted(), quick_config(tmp_path, on_apply_error="stop"))
    await raft.run()
    with pytest.raises(RaftError):
        await raft.propose(b"raise:ValueError:bad")
    with pytest.raises(MachineFailed):
        await raft.wait()


async def test_apply_is_told_index_term_and_a_time_that_never_goes_back(tmp_path: Path) -> None:
    store = Scripted()
    async with one_node(tmp_path, store) as raft:
        await raft.propose_many([b"a=1", b"a=2", b"a=3"])
    assert [one.index for one in store.seen] == sorted(one.index for one in store.seen)
    assert [one.time for one in store.seen] == sorted(one.time for one in store.seen)
    assert all(one.term > 0 and one.time > 1.6e9 for one in store.seen)


async def test_timeouts_and_task_groups_work_inside_apply(tmp_path: Path) -> None:
    class Inside(KeyValue):
        async def apply(self, command: bytes) -> bytes:  # type: ignore[override]
            assert asyncio.current_task() is not None
            answer = await asyncio.wait_for(asyncio.gather(asyncio.sleep(0, b"one"), asyncio.sleep(0, b"two")), 5)
            return b"".join(answer)

    async with one_node(tmp_path, Inside()) as raft:
        assert await raft.propose(b"x") == b"onetwo"


class Mixed(KeyValue):
    """Plain and async by turns, as only a plain function can be; `order` is what was applied, `tasks` where the async ones ran."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[bytes] = []
        self.tasks: list[object] = []

    def apply(self, command: bytes) -> Any:
        if command.startswith(b"later"):
            return self._later(command)
        self.order.append(command)
        return command

    async def _later(self, command: bytes) -> bytes:
        self.tasks.append(asyncio.current_task())
        await asyncio.wait_for(asyncio.sleep(0), 5)
        self.order.append(command)
        return command


async def test_plain_and_async_outcomes_may_alternate_and_keep_the_order(tmp_path: Path) -> None:
    store = Mixed()
    commands = [b"%s %d" % (b"later" if number % 3 == 2 else b"now", number) for number in range(60)]
    async with one_node(tmp_path, store) as raft:
        assert [await raft.propose(command) for command in commands[:6]] == commands[:6]
        assert await asyncio.gather(*map(raft.propose, commands[6:30])) == commands[6:30]
        assert await raft.propose_many(commands[30:]) == commands[30:]
    assert store.order == commands
    assert len(store.tasks) == 20 and None not in store.tasks


SEEN: ContextVar[int] = ContextVar("seen", default=0)


async def test_wherever_a_command_is_applied_its_context_and_task_are_the_same(tmp_path: Path) -> None:
    class Watching(KeyValue):
        def __init__(self) -> None:
            super().__init__()
            self.contexts: list[int] = []
            self.tasks: set[object] = set()

        def apply(self, command: bytes) -> Any:
            self.tasks.add(asyncio.current_task())
            self.contexts.append(SEEN.get())
            token = SEEN.set(len(self.contexts))
            return self._later(token) if command == b"later" else b""

        async def _later(self, token: Token[int]) -> bytes:
            # Only where it was set may it be taken back.
            SEEN.reset(token)
            SEEN.set(len(self.contexts))
            return b"later"

        def snapshot(self) -> bytes:
            self.tasks.add(asyncio.current_task())
            self.contexts.append(SEEN.get())
            SEEN.set(len(self.contexts))
            return super().snapshot()

    store = Watching()
    async with one_node(tmp_path, store) as raft:
        await raft.propose(b"a=1")
        await raft.propose(b"a=2")
        await raft.propose_many([b"a=3"] * 3000)
        await raft.snapshot()
        await raft.propose(b"a=4")
        assert [await raft.propose(b"later") for _ in range(2)] == [b"later"] * 2
        await raft.propose(b"a=5")
    assert store.contexts == list(range(3007))
    assert len(store.tasks) == 1 and None not in store.tasks


async def test_a_command_that_is_half_done_is_seen_by_no_reader(tmp_path: Path) -> None:
    """Also where the task has yet to take the batch over that was begun outside of it."""

    class Halves(KeyValue):
        raft: Raft[Any]

        def __init__(self) -> None:
            super().__init__()
            self.halves = [0, 0]
            self.looks: list[bool] = []

        def apply(self, command: bytes) -> Any:
            self.halves[0] += 1
            asyncio.get_running_loop().call_soon(self._look)
            return self._rest()

        async def _rest(self) -> bytes:
            self.halves[1] += 1
            return b""

        def _look(self) -> None:
            applier = self.raft._running.applier  # type: ignore[union-attr]
            self.looks.append(applier is not None and (applier.busy or self.halves[0] == self.halves[1]))

    store = Halves()
    raft = store.raft = Raft.build(1, free_addrs(1)[0], store, quick_config(tmp_path))
    async with raft:
        for _ in range(5):
            await raft.propose(b"x")
    assert store.looks == [True] * 5


async def test_a_program_with_a_task_factory_of_its_own_is_served_by_its_tasks(tmp_path: Path) -> None:
    def factory(loop: asyncio.AbstractEventLoop, coro: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=loop)

    asyncio.get_running_loop().set_task_factory(factory)
    async with one_node(tmp_path, KeyValue()) as raft:
        assert [await raft.propose(b"a=%d" % number) for number in range(3)] == [b"", b"0", b"1"]


class NeverWaiting(KeyValue):
    async def apply(self, command: bytes) -> bytes:  # type: ignore[override]
        return super().apply(command)


@pytest.mark.parametrize("kind", [KeyValue, NeverWaiting])
async def test_an_apply_that_does_not_suspend_takes_no_turn_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[KeyValue]
) -> None:
    store = kind()
    dispatch, here = Bridge._dispatch, 0

    def dispatched(bridge: Bridge) -> None:
        nonlocal here
        before = store.applied
        dispatch(bridge)
        here += store.applied - before

    async with one_node(tmp_path, store) as raft:
        await raft.propose(b"a=0")
        if sys.version_info < (3, 11):
            pytest.skip("a task's context cannot be shared before Python 3.11")
        monkeypatch.setattr(Bridge, "_dispatch", dispatched)
        for number in range(20):
            await raft.propose(b"a=%d" % number)
    assert here == 20


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("later", [False, True])
def test_what_ends_the_program_passes_through_apply(tmp_path: Path, kind: type[BaseException], later: bool) -> None:
    class Ending(KeyValue):
        def apply(self, command: bytes) -> Any:
            if later:
                return self._later()
            raise kind

        async def _later(self) -> bytes:
            await asyncio.sleep(0)
            raise kind

    async def body() -> None:
        raft = Raft.build(1, free_addrs(1)[0], Ending(), quick_config(tmp_path))
        rafts.append(raft)
        await raft.run()
        await raft.propose(b"x")

    rafts: list[Raft[Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(kind):
            asyncio.run(body())
        reap_closed_loops()
    # The loop may have ended while the last of the node was freed on a thread: whoever waits hears of its end all the same.
    asyncio.run(until_ended(rafts[0]))
    assert rafts[0].is_finished()


async def until_ended(raft: Raft[Any]) -> None:
    with contextlib.suppress(RaftError):
        await raft.wait(timeout=20)


async def test_a_batch_that_is_cancelled_before_the_task_takes_it_over_stops_the_node(tmp_path: Path) -> None:
    """`apply` is cancelled there, as it would be anywhere else: its outcome is nobody's."""

    class Cancelled(KeyValue):
        raft: Raft[Any]

        def apply(self, command: bytes) -> Any:
            # Runs before the task does.
            asyncio.get_running_loop().call_soon(self.raft._running._applier_task.cancel)  # type: ignore[union-attr]
            return asyncio.sleep(0, b"")

    store = Cancelled()
    raft = store.raft = Raft.build(1, free_addrs(1)[0], store, quick_config(tmp_path))
    await raft.run()
    with pytest.raises(RaftError):
        await raft.propose(b"x")
    with pytest.raises(MachineFailed) as caught:
        await raft.wait()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_inside_the_store_the_library_is_not_waited_for(tmp_path: Path) -> None:
    class Recursive(KeyValue):
        raft: Raft[Any]
        errors: list[BaseException]

        async def apply(self, command: bytes) -> bytes:  # type: ignore[override]
            self.errors = []
            calls = [
                self.raft.propose(b"x"),
                self.raft.read(lambda s: 0)._run(),
                self.raft.snapshot(),
                self.raft.wait(),
                self.raft.leave(),
                self.raft.get_raft_node().change_config(ConfChangeV2()),
                self.raft.wait_for(leader=True),
                asyncio.create_task(self.raft.propose(b"in a task")),
            ]
            for call in calls:
                try:
                    await call
                except RaftError as error:
                    self.errors.append(error)
            assert self.raft.status.node_id == 1
            if command == b"close":
                await self.raft.close()
            return b"done"

    store = Recursive()
    async with one_node(tmp_path, store) as raft:
        store.raft = raft
        assert await raft.propose(b"x") == b"done"
        assert len(store.errors) == 8
        assert all("inside the store" in str(error) for error in store.errors)
        outcome = (await asyncio.gather(raft.propose(b"close"), return_exceptions=True))[0]
        assert outcome == b"done" or isinstance(outcome, Closed)
        await raft.wait()


class Chunked(KeyValue):
    """Its snapshot is an iterator over a copy, read while commands are applied; restored in chunks."""

    asynchronous = False

    def __init__(self) -> None:
        super().__init__()
        self.may_read = asyncio.Event()
        self.chunks = 0

    def snapshot(self) -> Any:
        copy = dict(self.data)

        def plain() -> Iterator[bytes]:
            for key, value in copy.items():
                yield json.dumps([key, value]).encode() + b"\n"

        async def slow() -> AsyncIterator[bytes]:
            await self.may_read.wait()
            for line in plain():
                yield line

        return slow() if self.asynchronous else plain()

    async def restore_chunks(self, chunks: Any) -> None:
        data = b""
        for chunk in chunks:
            self.chunks += 1
            data += chunk
        self.data = dict(json.loads(line) for line in data.splitlines())


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_snapshot_may_be_an_iterator_read_while_commands_are_applied(
    tmp_path: Path, asynchronous: bool
) -> None:
    store = Chunked()
    store.asynchronous = asynchronous
    addr = free_addrs(1)[0]
    async with Raft.build(1, addr, store, quick_config(tmp_path)) as raft:
        await raft.propose_many([f"k{i}={'v' * 1000}".encode() for i in range(3000)])
        taking = asyncio.create_task(raft.snapshot())
        if asynchronous:
            await raft.propose(b"later=1")
            assert not taking.done()
            store.may_read.set()
        info = await taking
        assert info.size > 3_000_000
        await raft.propose(b"last=1")
    again = Chunked()
    async with Raft.build(1, addr, again, quick_config(tmp_path)) as raft:
        assert again.chunks > 1
        assert await raft.read(lambda s: len(s.data)) == 3001 + asynchronous


async def test_a_snapshot_that_fails_is_said_and_the_node_goes_on(tmp_path: Path) -> None:
    class Failing(KeyValue):
        answer: Any = ValueError("not now")

        def snapshot(self) -> Any:
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

    store = Failing()
    async with one_node(tmp_path, store) as raft:
        await raft.propose(b"a=1")
        for answer in (ValueError("not now"), OSError("disk"), "text", 5, iter([b"a", "b"])):
            store.answer = answer
            with pytest.raises(SnapshotFailed):
                await raft.snapshot()
        store.answer = bytearray(b'{"a":"1"}')
        assert (await raft.snapshot()).size == 9


@pytest.mark.parametrize("plain", [True, False])
async def test_a_restore_that_fails_at_start_raises_from_run(tmp_path: Path, plain: bool) -> None:
    addr = free_addrs(1)[0]
    async with Raft.build(1, addr, KeyValue(), quick_config(tmp_path)) as raft:
        await raft.propose(b"a=1")
        await raft.snapshot()

    class Broken(KeyValue):
        def restore(self, snapshot: bytes) -> Any:
            if plain:
                raise ValueError("cannot read it")
            return self.later()

        async def later(self) -> None:
            await asyncio.sleep(0)
            raise ValueError("cannot read it")

    raft2 = Raft.build(1, addr, Broken(), quick_config(tmp_path))
    with pytest.raises(MachineFailed) as caught:
        await raft2.run()
    assert isinstance(caught.value.__cause__, ValueError)
    await raft2.close()
    # The directory is unhurt.
    async with Raft.build(1, addr, KeyValue(), quick_config(tmp_path)) as raft:
        assert await raft.read(lambda s: s.data) == {"a": "1"}


class Durable(KeyValue):
    """Says that it has applied up to there, and holds nothing."""

    def __init__(self, at: Any) -> None:
        super().__init__()
        self.at = at

    async def applied_index(self) -> Any:
        await asyncio.sleep(0)
        return self.at


async def test_a_durable_store_gets_only_what_it_has_not(tmp_path: Path) -> None:
    addr = free_addrs(1)[0]
    async with Raft.build(1, addr, KeyValue(), quick_config(tmp_path)) as raft:
        await raft.propose_many([b"a=1", b"b=1"])
        index = raft.status.applied_index
        await raft.propose_many([b"c=1", b"d=1"])
    store = Durable(index)
    async with Raft.build(1, addr, store, quick_config(tmp_path)) as second:
        assert await second.read(lambda s: set(s.data)) == {"c", "d"}


async def test_a_durable_store_is_restored_only_when_the_log_begins_after_its_index(tmp_path: Path) -> None:
    addr = free_addrs(1)[0]
    config = quick_config(tmp_path, trailing_entries=1)
    async with Raft.build(1, addr, KeyValue(), config) as raft:
        await raft.propose_many([b"a=1", b"b=1"])
        behind = raft.status.applied_index
        await raft.propose_many([b"c=1", b"d=1"])
        # The log begins with the entry of d now.
        newest = await raft.snapshot()
        await raft.propose(b"e=1")
    assert newest.index == behind + 2
    for at, heard in ((newest.index, {"e"}), (newest.index - 1, {"d", "e"}), (behind, set("abcde")), (0, set("abcde"))):
        async with Raft.build(1, addr, Durable(at), config) as raft:
            assert await raft.read(lambda s: set(s.data)) == heard, at


async def test_a_durable_store_ahead_of_the_log_is_refused_with_both_indexes(tmp_path: Path) -> None:
    addr = free_addrs(1)[0]
    async with Raft.build(1, addr, KeyValue(), quick_config(tmp_path)) as raft:
        await raft.propose(b"a=1")
    raft = Raft.build(1, addr, Durable(1000), quick_config(tmp_path))
    with pytest.raises(WrongDirectory, match=r"index 1000.* index \d+") as caught:
        await raft.run()
    assert caught.value.path == str(tmp_path / "node-1")
    # The directory is unhurt.
    async with Raft.build(1, addr, KeyValue(), quick_config(tmp_path)) as raft:
        assert await raft.read(lambda s: s.data) == {"a": "1"}


@pytest.mark.parametrize("answer", [-1, None, "7", True])
async def test_an_applied_index_that_is_no_index_is_refused(tmp_path: Path, answer: Any) -> None:
    raft = Raft.build(1, free_addrs(1)[0], Durable(answer), quick_config(tmp_path))
    with pytest.raises(InvalidConfig, match="applied_index"):
        await raft.run()


@pytest.mark.parametrize("what", ["wait", "close"])
async def test_an_applied_index_is_asked_for_inside_the_store(tmp_path: Path, what: str) -> None:
    class Asking(KeyValue):
        async def applied_index(self) -> int:
            await getattr(raft, what)()
            return 0

    raft = Raft.build(1, free_addrs(1)[0], Asking(), quick_config(tmp_path))
    with pytest.raises(RaftError, match="inside the store" if what == "wait" else "closed"):
        await raft.run()
    await raft.close()


async def test_proposals_one_after_the_other_go_down_at_once(tmp_path: Path) -> None:
    """What is proposed together goes down together, when the turn ends."""
    async with one_node(tmp_path, KeyValue()) as raft:
        waiters = raft._running.bridge.waiters  # type: ignore[union-attr]

        def begun(command: bytes) -> asyncio.Future[bytes]:
            proposing = raft.propose(command)
            future: asyncio.Future[bytes] = proposing.send(None)
            proposing.close()
            return future

        for number in range(3):
            await raft.propose(b"a=%d" % number)
        first = begun(b"b=1")
        assert len(waiters) == 1
        second = begun(b"b=2")
        assert len(waiters) == 1
        await asyncio.wait([first, second])
        # There were two: the next turn is waited for again.
        third = begun(b"b=3")
        assert len(waiters) == 0
        await asyncio.wait([third])
        last = begun(b"b=4")
        assert len(waiters) == 1
        await asyncio.wait([last])
        assert [future.result() for future in (first, second, third, last)] == [b"", b"1", b"2", b"3"]


class AtOnce(KeyValue):
    async def apply(self, command: bytes) -> bytes:  # type: ignore[override]
        return super().apply(command)


@pytest.mark.parametrize("kind", [KeyValue, AtOnce])
async def test_the_next_of_one_who_proposes_one_after_the_other_goes_down_before_the_answer_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[KeyValue]
) -> None:
    """The library's thread is woken once for both, and begins with what somebody waits for."""
    if sys.version_info < (3, 11):
        pytest.skip("a task's context cannot be shared before Python 3.11")
    names = {lib.raftify_propose: "propose", lib.raftify_apply_told_packed: "answer"}
    said: list[str] = []
    call = Pointer.call

    def listening(self: Pointer, function: Any, *arguments: Any) -> None:
        if function in names:
            said.append(names[function])
        call(self, function, *arguments)

    async with one_node(tmp_path, kind()) as raft:
        for number in range(3):
            await raft.propose(b"a=%d" % number)
        await asyncio.sleep(0)
        monkeypatch.setattr(Pointer, "call", listening)
        for number in range(3, 6):
            assert await raft.propose(b"a=%d" % number) == b"%d" % (number - 1)
        # It counts as applied already, and nothing comes after the last one: it is answered all the same.
        status = raft.status
        assert status.applied_index == status.commit_index
        await asyncio.sleep(0)
        assert said == ["propose", *["propose", "answer"] * 2, "answer"]
        assert await raft.read(lambda store: store.data["a"]) == "5"


async def test_a_busy_store_leaves_turns_to_the_loop(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        turns = 0
        running = True

        async def count() -> None:
            nonlocal turns
            while running:
                turns += 1
                await asyncio.sleep(0)

        counter = asyncio.create_task(count())
        await raft.propose_many([b"a=1"] * 20_000)
        running = False
        await counter
        assert turns >= 10

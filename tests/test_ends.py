"""Starts that are given up, ends in the middle of something, loops that are closed under their nodes: nobody waits for ever, nothing is
freed under those who use it, and what is over can be begun again."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import free_addrs, one_node, quick_config
from stores import KeyValue, Scripted
from test_loops import run_program

from raftify_ffi import (
    Closed,
    InvalidArgument,
    LeadershipLost,
    MachineFailed,
    PresentState,
    Raft,
    RaftServiceClient,
    RaftTimeout,
    Role,
    SnapshotFailed,
    Status,
    _bridge,
    _running,
)
from raftify_ffi._events import EventStream
from raftify_ffi._library import lib

#: Longer than anything here takes.
SOON = 20.0


def node(directory: Path, store: Any = None, **settings: Any) -> Raft[Any]:
    return Raft.build(1, free_addrs(1)[0], store or KeyValue(), quick_config(directory, **settings))


@pytest.fixture(autouse=True)
def threads_end_with_their_test() -> Iterator[None]:
    """Whoever frees what a closed loop left waits for the starts on it, and warns then: not in the middle of another test."""
    yield
    for thread in threading.enumerate():
        if thread.name == "raftify-call":
            thread.join(SOON)
            assert not thread.is_alive(), "it waits for ever"


def elsewhere(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On another thread's loop; from one where none runs."""
    found: list[BaseException | None] = []

    def run() -> None:
        try:
            asyncio.run(body())
            found.append(None)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive(), "it waits for ever"
    if found[0] is not None:
        raise found[0]


# ---- loops that are closed under those who use them ------------------------------------------------------------------------------------


def test_threads_that_leave_their_clients_behind_do_not_free_them_twice(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
import warnings
warnings.simplefilter("ignore")
async def forget():
    await RaftServiceClient.build("127.0.0.1:1")
def work():
    for _ in range(40):
        asyncio.run(forget())
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("end")
""",
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr[-2000:]


@pytest.fixture
def orphan(tmp_path: Path) -> Raft[Any]:
    """Its loop was closed under it, and nobody has found that yet."""
    loop = asyncio.new_event_loop()
    raft = node(tmp_path)
    loop.run_until_complete(raft.run())
    loop.run_until_complete(raft.wait_for(leader=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.close()
    return raft


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "call",
    [
        lambda raft: raft.propose(b"a=1", timeout=1),
        lambda raft: raft.propose_many([b"a=1"], timeout=1),
        lambda raft: raft.read(lambda store: store.data, timeout=1),
        lambda raft: raft.wait_for(applied=10**9, timeout=1),
        lambda raft: raft.snapshot(timeout=1),
        lambda raft: raft.step_down(timeout=1),
        lambda raft: raft.members.remove(7, timeout=1),
    ],
    ids=["propose", "propose_many", "read", "wait_for", "snapshot", "step_down", "members"],
)
def test_a_node_whose_loop_is_closed_answers_that_it_is(orphan: Raft[Any], call: Callable[[Raft[Any]], Any]) -> None:
    async def body() -> None:
        with pytest.raises(Closed):
            await call(orphan)

    elsewhere(body)
    assert orphan.is_finished()
    assert orphan.status.role is Role.STOPPED


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_node_whose_loop_is_closed_can_be_closed_and_begun_again(orphan: Raft[Any], tmp_path: Path) -> None:
    async def body() -> None:
        await orphan.close()
        await orphan.wait(timeout=SOON)
        async with one_node(tmp_path, KeyValue()) as raft:
            await raft.propose(b"a=1")

    elsewhere(body)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_waits_from_another_loop_ends_when_the_nodes_loop_is_closed(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    store = Scripted.__new__(Scripted)
    raft = node(tmp_path)

    async def begin() -> None:
        await raft.run()
        await raft.wait_for(leader=True)
        store.gate = asyncio.Event()

    loop.run_until_complete(begin())
    waiting = threading.Event()

    async def body() -> list[Any]:
        # The loop does not run any more: nothing of this is answered.
        calls = [
            asyncio.ensure_future(call)
            for call in (
                raft.propose(b"a=1"),
                raft.propose_many([b"b=1", b"c=1"]),
                raft.snapshot(),
                raft.wait_for(applied=10**9, timeout=None),
                raft.wait(),
                ended(),
            )
        ]
        await asyncio.sleep(0.1)
        waiting.set()
        outcomes: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        return outcomes

    async def ended() -> str:
        async for _ in raft.events():
            pass
        return "ended"

    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.extend(asyncio.run(body())), daemon=True)
    thread.start()
    assert waiting.wait(SOON)
    loop.close()
    thread.join(SOON)
    assert not thread.is_alive(), "it waits for ever"
    assert [type(one) for one in outcome] == [Closed] * 4 + [type(None), str]
    assert outcome[0].committed is None


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_client_of_a_loop_that_is_closed_says_so_and_can_be_closed() -> None:
    client = RaftServiceClient.connect("127.0.0.1:1")

    async def first() -> None:
        with pytest.raises(Exception, match=r"127\.0\.0\.1:1"):
            await client.status(timeout=0.2)

    async def second() -> None:
        with pytest.raises(Closed, match="event loop was closed"):
            await client.status(timeout=0.2)
        await client.close()
        await client.close()

    elsewhere(first)
    elsewhere(second)


# ---- starts beside ends --------------------------------------------------------------------------------------------------------------------


async def test_a_node_may_start_while_the_last_one_of_the_loop_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, coming = node(tmp_path / "last"), node(tmp_path / "coming")
    leave = _bridge.Bridge.leave
    starts: list[asyncio.Task[None]] = []

    async def while_one_starts(self: _bridge.Bridge, user: Any, left: Callable[[], None]) -> None:
        if not starts:
            starts.append(asyncio.ensure_future(coming.run()))
            # It has asked for the bridge, and not gone on.
            await asyncio.sleep(0)
        await leave(self, user, left)

    monkeypatch.setattr(_bridge.Bridge, "leave", while_one_starts)
    await last.run()
    await last.close()
    await starts[0]
    await coming.wait_for(leader=True)
    await coming.close()
    assert not _bridge._bridges


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_nothing_is_freed_before_a_start_call_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = threading.Event(), threading.Event()
    opening = _running._Opening._open

    def slow(self: Any) -> Any:
        inside.set()
        assert go.wait(SOON)
        return opening(self)

    monkeypatch.setattr(_running._Opening, "_open", slow)
    free, freed = lib.raftify_runtime_free, threading.Event()

    class Library:
        def __getattr__(self, name: str) -> Any:
            return getattr(lib, name)

        def raftify_runtime_free(self, runtime: Any) -> Any:
            assert go.is_set()
            freed.set()
            return free(runtime)

    monkeypatch.setattr(_bridge, "lib", Library())

    async def body() -> None:
        task = asyncio.ensure_future(node(tmp_path).run())
        while not inside.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        asyncio.get_running_loop().call_later(0.2, go.set)

    asyncio.run(body())
    assert freed.wait(SOON)
    monkeypatch.undo()

    async def again() -> None:
        async with one_node(tmp_path, KeyValue()) as raft:
            await raft.propose(b"a=1")

    asyncio.run(again())


@pytest.mark.parametrize("seconds", [0, 0.001, 0.003, 0.01, 0.03])
async def test_after_a_start_that_was_given_up_the_directory_is_free(tmp_path: Path, seconds: float) -> None:
    for way in ("timeout", "cancel"):
        raft = node(tmp_path)
        if way == "timeout":
            try:
                await raft.run(timeout=seconds)
            except RaftTimeout:
                pass
        else:
            task = asyncio.ensure_future(raft.run())
            await asyncio.sleep(seconds)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
        if raft._running is not None:
            await raft.close()  # it was quicker
        async with one_node(tmp_path, KeyValue()):
            pass


class SlowToBegin(KeyValue):
    """A durable store whose index takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def applied_index(self) -> int:
        self.asked.set()
        await self.go.wait()
        return 0


async def test_a_start_that_takes_longer_to_be_given_up_can_be_tried_again(tmp_path: Path) -> None:
    store = SlowToBegin()
    raft = node(tmp_path, store, request_timeout=0.1)
    with pytest.raises(RaftTimeout, match="did not start"):
        await raft.run(timeout=0.05)
    listening = asyncio.ensure_future(anext_of(raft))
    store.go.set()
    await raft.wait(timeout=SOON)
    assert await asyncio.wait_for(listening, SOON) == "ended"
    await raft.run()
    await raft.wait_for(leader=True, timeout=SOON)
    await raft.close()


async def anext_of(raft: Raft[Any]) -> str:
    async for _ in raft.events():
        pass
    return "ended"


async def test_a_close_while_the_node_starts_is_no_error_to_those_who_wait(tmp_path: Path) -> None:
    store = SlowToBegin()
    raft = node(tmp_path, store)
    starting = asyncio.ensure_future(raft.run())
    await store.asked.wait()
    waiting, closing = asyncio.ensure_future(raft.wait()), asyncio.ensure_future(raft.close())
    await asyncio.sleep(0)
    store.go.set()
    with pytest.raises(Closed):
        await starting
    await closing
    await waiting


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_that_is_closed_in_the_middle_of_a_start_is_found_too(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> Raft[Any]:
        store = SlowToBegin()
        raft = node(tmp_path, store)
        started.append(asyncio.ensure_future(raft.run()))
        await store.asked.wait()
        return raft

    started: list[asyncio.Future[None]] = []
    raft = loop.run_until_complete(begin())
    loop.close()

    async def body() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await raft.wait(timeout=SOON)

    elsewhere(body)
    assert raft.is_finished()


async def test_a_stores_own_timeout_is_not_taken_for_that_of_the_start(tmp_path: Path) -> None:
    class Slow(KeyValue):
        def applied_index(self) -> int:
            raise TimeoutError("the database does not answer")

    with pytest.raises(TimeoutError, match="database"):
        await node(tmp_path, Slow()).run()


# ---- ends in the middle of something -------------------------------------------------------------------------------------------------------


async def test_events_and_leadership_that_are_asked_for_while_the_node_closes_end(tmp_path: Path) -> None:
    raft = node(tmp_path)
    await raft.run()
    await raft.wait_for(leader=True)

    async def lead() -> str:
        while True:
            try:
                async with raft.leadership():
                    await asyncio.sleep(3600)
            except LeadershipLost:
                continue
            except Closed:
                return "closed"

    async def listen() -> str:
        while not raft.is_finished():
            async for _ in raft.events():
                pass
        return "closed"

    tasks = [asyncio.ensure_future(lead()), asyncio.ensure_future(listen())]
    await asyncio.sleep(0.1)
    await raft.close()
    assert await asyncio.wait_for(asyncio.gather(*tasks), SOON) == ["closed", "closed"]


async def test_leadership_and_events_are_waited_for_as_long_as_asked(tmp_path: Path) -> None:
    peers = dict(enumerate(free_addrs(3), start=1))
    alone = Raft.build(1, peers[1], KeyValue(), quick_config(tmp_path), peers)
    async with alone:
        with pytest.raises(RaftTimeout, match="did not become the leader"):
            async with alone.leadership(timeout=0.1):
                pass
        events = alone.events(timeout=0.01)
        with pytest.raises(RaftTimeout, match="no event"):
            while True:
                await events.__anext__()
        with pytest.raises(RaftTimeout):
            await alone.serve_forever(timeout=0.01)
        assert not alone.is_finished()


async def test_leadership_that_is_there_needs_no_time(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft, raft.leadership(timeout=0) as term:
        assert term == raft.status.term


async def test_a_cancel_is_not_lost_beside_an_event(tmp_path: Path) -> None:
    # Of no node: one that is there has events of its own, now or in a moment.
    stream = EventStream(lambda: Status(1, "a:1", Role.LEADER), timeout=SOON)
    present = await stream.__anext__()
    task = asyncio.ensure_future(stream.__anext__())
    await asyncio.sleep(0)
    stream.put(present)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stream.__anext__() is present


async def test_two_tasks_that_wait_for_the_same_event_are_told_so() -> None:
    stream = EventStream(lambda: Status(1, "a:1", Role.LEADER), timeout=SOON)
    present = await stream.__anext__()
    first = asyncio.ensure_future(stream.__anext__())
    await asyncio.sleep(0)
    with pytest.raises(InvalidArgument, match="another task"):
        await stream.__anext__()
    stream.put(present)
    assert await first is present


async def test_what_ended_a_node_is_told_to_those_who_come_later(tmp_path: Path) -> None:
    async with one_node(tmp_path, Scripted()) as raft:
        with pytest.raises(MachineFailed):
            await raft.propose(b"raise:OSError:broken")
        with pytest.raises(MachineFailed):
            await raft.wait()
        events = raft.events()
        assert isinstance(await events.__anext__(), PresentState)
        with pytest.raises(MachineFailed, match="broken"):
            await events.__anext__()
        with pytest.raises(MachineFailed, match="broken"):
            async with raft.leadership(timeout=SOON):
                pass
        with pytest.raises(InvalidArgument, match="node 1 has ended; build a new one"):
            await raft.run()


async def test_leadership_may_be_waited_for_again_with_the_same_object(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        leadership, terms = raft.leadership(timeout=SOON), []

        async def lead() -> None:
            async with leadership as term:
                terms.append(term)
                await raft.step_down()
                await asyncio.Event().wait()

        for _ in range(2):
            with pytest.raises(LeadershipLost, match="no longer the leader"):
                await asyncio.wait_for(lead(), SOON)
        async with leadership as term:
            assert terms[0] < terms[1] < term
            with pytest.raises(InvalidArgument, match="held, already"):
                async with leadership:
                    pass


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_snapshot_whose_own_work_was_cancelled_is_a_snapshot_that_failed(tmp_path: Path) -> None:
    class Cancelled(KeyValue):
        async def snapshot(self) -> bytes:  # type: ignore[override]
            work = asyncio.get_running_loop().create_future()
            work.cancel()
            await work
            raise AssertionError

    raft = node(tmp_path, Cancelled())
    async with raft:
        await raft.wait_for(leader=True)
        await raft.propose(b"a=1")
        with pytest.raises((SnapshotFailed, Closed)):
            await raft.snapshot()
        if sys.version_info >= (3, 11):
            assert await raft.propose(b"a=2") == b"1"
            return
        # There it cannot be told from the end of the applier's own task.
        with pytest.raises(MachineFailed) as caught:
            await raft.wait(timeout=SOON)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_whatever_keeps_the_store_from_being_served_ends_the_node(tmp_path: Path) -> None:
    """A log record's filter that fails, here: nothing of the store's or the library's."""

    class Failing(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("of the filter")

    logger, failing = logging.getLogger("raftify.raft"), Failing()
    raft = node(tmp_path, Scripted())
    await raft.run()
    await raft.wait_for(leader=True)
    logger.addFilter(failing)
    try:
        with pytest.raises((Closed, MachineFailed)):
            await raft.propose(b"raise:ValueError:x", timeout=SOON)
        with pytest.raises(MachineFailed, match="of the filter"):
            await raft.wait(timeout=SOON)
    finally:
        logger.removeFilter(failing)
    # The entry counts as not applied: it is applied again now.
    async with one_node(tmp_path, Scripted()) as again:
        assert await again.propose(b"a=1") == b""


async def test_log_records_of_the_store_name_node_and_term(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with one_node(tmp_path, Scripted()) as raft:
        with pytest.raises(Exception, match="ValueError"):
            await raft.propose(b"raise:ValueError:x")
        term = raft.status.term
    (record,) = [record for record in caplog.records if "apply raised" in record.getMessage()]
    assert (record.node_id, record.term) == (1, term)  # type: ignore[attr-defined]


@pytest.mark.parametrize("left", [0.3, 0.0], ids=["some is left", "none is left"])
async def test_a_read_does_not_wait_longer_for_an_apply_than_it_was_given(tmp_path: Path, left: float) -> None:
    store = Scripted()
    async with one_node(tmp_path, store) as raft:
        read = asyncio.ensure_future(raft.read(lambda s: s.data, timeout=left))
        applied = asyncio.ensure_future(raft.propose(b"wait"))
        await store.entered.wait()
        # As if its answer had come with the command's.
        late = asyncio.ensure_future(quiet(raft, left))
        assert await late is False
        store.gate.set()
        await applied
        await asyncio.gather(read, return_exceptions=True)
        assert await quiet(raft, None)


async def quiet(raft: Raft[Any], seconds: float | None) -> bool:
    running = raft._running
    assert running is not None and running.applier is not None
    return await running.applier.quiet(seconds)

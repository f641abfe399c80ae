"""Reads: fresh, on any node, and never in the middle of an apply (rule 13)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cluster import free_addrs, nodes_in_one_loop, one_node
from stores import AsyncKeyValue, KeyValue, Scripted

from raftify_ffi import RaftTimeout


async def test_a_read_sees_what_was_acknowledged_anywhere_before(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, AsyncKeyValue) as rafts:
        for number in range(60):
            await rafts[number % 3].propose(f"n={number}".encode())
            assert await rafts[(number + 1) % 3].read(lambda s: s.data["n"]) == str(number)


async def test_no_apply_is_half_done_where_a_read_looks(tmp_path: Path) -> None:
    store = AsyncKeyValue()
    async with one_node(tmp_path, store) as raft:
        looks: list[bool] = []

        async def write(number: int) -> None:
            for i in range(20):
                await raft.propose(f"{number}={i}".encode())

        async def read() -> None:
            for _ in range(20):
                looks.append(await raft.read(lambda s: s.half_done))
                await raft.read()
                looks.append(store.half_done)
                async with raft.read() as same:
                    assert same is store
                    looks.append(store.half_done)

        await asyncio.gather(*(write(number) for number in range(20)), *(read() for _ in range(10)))
        assert len(looks) == 600
        assert not any(looks)


async def test_a_read_waits_for_the_apply_in_progress_and_a_stale_one_does_not(tmp_path: Path) -> None:
    store = Scripted()
    async with one_node(tmp_path, store) as raft:
        await raft.propose(b"a=1")
        waiting = asyncio.create_task(raft.propose(b"wait"))
        await store.entered.wait()
        reading = asyncio.create_task(raft.read(lambda s: dict(s.data)))
        assert raft.stale_read(lambda s: dict(s.data)) == {"a": "1"}
        assert not reading.done()
        store.gate.set()
        assert await reading == {"a": "1"}
        assert await waiting == b"waited"


async def test_reads_and_changes_of_members_may_be_given_to_tasks(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        await raft.propose(b"a=1")
        reading = asyncio.create_task(raft.read(lambda s: s.data["a"]))
        adding = asyncio.create_task(raft.members.add(2, free_addrs(1)[0], learner=True))
        assert await reading == "1"
        await adding
        assert raft.status.learners == (2,)
        for call in (raft.read(), raft.members.remove(2)):
            cancelled = asyncio.create_task(call)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            call.close()
        same = raft.read(lambda s: s.data["a"])
        assert [await same, await same] == ["1", "1"]


async def test_what_the_function_raises_is_the_callers(tmp_path: Path) -> None:
    async def later(store: KeyValue) -> None: ...

    async with one_node(tmp_path, KeyValue()) as raft:
        with pytest.raises(KeyError):
            await raft.read(lambda s: s.data["absent"])
        with pytest.raises(TypeError, match="async"):
            await raft.read(later)  # type: ignore[unused-coroutine]
        assert await raft.read() is None  # type: ignore[func-returns-value]


async def test_reads_of_one_turn_share_a_request_and_nothing_else(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        await raft.propose(b"a=1")
        waiters = raft._running.bridge.waiters  # type: ignore[union-attr]
        reads = [asyncio.create_task(raft.read(lambda s: s.data["a"])) for _ in range(50)]
        slow = asyncio.create_task(raft.read(lambda s: s.data["absent"], timeout=30))
        await asyncio.sleep(0)
        assert len(waiters) == 0
        reads[7].cancel()
        await asyncio.sleep(0)
        assert len(waiters) == 2, "one for each timeout"
        reads[8].cancel()
        outcomes = await asyncio.gather(*reads, slow, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[7:9]] == [asyncio.CancelledError] * 2
        assert outcomes[:7] + outcomes[9:-1] == ["1"] * 48
        assert isinstance(outcomes[-1], KeyError)


async def test_reads_that_fail_together_fail_with_an_exception_each(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        await raft.propose(b"a=1")
        reads: list[asyncio.Task[None]] = [asyncio.create_task(raft.read(timeout=0)) for _ in range(3)]
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [RaftTimeout] * 3
        assert len(set(map(id, outcomes))) == 3


async def test_a_read_alone_goes_at_once(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        await raft.propose(b"a=1")
        waiters = raft._running.bridge.waiters  # type: ignore[union-attr]
        for _ in range(3):
            await raft.read()
        reading = asyncio.create_task(raft.read(lambda s: s.data["a"]))
        await asyncio.sleep(0)
        assert len(waiters) == 1
        assert await reading == "1"

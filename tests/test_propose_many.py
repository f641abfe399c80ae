"""`propose_many`: one wait for several commands, whatever becomes of each."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cluster import nodes_in_one_loop, one_node
from stores import AsyncKeyValue, KeyValue, Scripted

from raftify_ffi import ApplyError, Closed, ProposalTooLarge, RaftTimeout
from raftify_ffi._waiters import TOKENS, Batch, Waiters


async def test_a_command_that_fails_is_told_in_its_place_or_raised_when_all_are_done(tmp_path: Path) -> None:
    store = Scripted()
    async with one_node(tmp_path, store) as raft:
        commands = [b"a=1", b"raise:ValueError:first", b"a=2", b"raise:KeyError:second", b"a=3"]
        outcomes = await raft.propose_many(commands, return_exceptions=True)
        assert outcomes[0::2] == [b"", b"1", b"2"]
        assert [type(outcome) for outcome in outcomes[1::2]] == [ApplyError, ApplyError]
        assert isinstance(outcomes[1], ApplyError) and isinstance(outcomes[1].__cause__, ValueError)
        with pytest.raises(ApplyError, match="first"):
            await raft.propose_many([*commands, b"b=1"])
        assert store.data == {"a": "3", "b": "1"}
        assert not raft._running.bridge.waiters  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [KeyValue, AsyncKeyValue])
async def test_each_of_many_calls_at_once_gets_its_own_results_in_order(tmp_path: Path, kind: type[KeyValue]) -> None:
    async with nodes_in_one_loop(tmp_path, 3, kind) as rafts:

        async def many(who: int) -> list[bytes]:
            return await rafts[who % 3].propose_many([f"m{who}={i}".encode() for i in range(who * 7 + 1)])

        async def single(who: int) -> bytes:
            return await rafts[who % 3].propose(f"s{who}=x".encode())

        answers = await asyncio.gather(*(call(who) for who in range(12) for call in (many, single)))
        for who in range(12):
            assert answers[2 * who] == [b"", *(str(i).encode() for i in range(who * 7))]
            assert answers[2 * who + 1] == b""


class Listing(KeyValue):
    """Keeps the commands in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        self.commands.append(command)
        return command


async def test_the_calls_of_one_turn_keep_their_order_and_none_takes_another_with_it(tmp_path: Path) -> None:
    store = Listing()
    async with one_node(tmp_path, store, max_proposal_size=1000) as raft:
        never_sent = asyncio.create_task(raft.propose_many([b"never", b"sent"]))
        calls = (
            raft.propose(b"1"),
            raft.propose_many([b"2", b"3"]),
            raft.propose_many([b"-", b"x" * 1001]),
            raft.propose_many([b"4"]),
            raft.propose(b"5"),
            raft.propose(b"x" * 1001),
            raft.propose(b"6"),
            raft.propose_many([b"7", b"8", b"9"], timeout=60),
        )
        tasks = [asyncio.create_task(call) for call in calls]
        asyncio.get_running_loop().call_soon(never_sent.cancel)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [outcomes.pop(5), outcomes.pop(2)]
        assert outcomes == [b"1", [b"2", b"3"], [b"4"], b"5", b"6", [b"7", b"8", b"9"]]
        assert [(type(error), getattr(error, "committed", None)) for error in refused] == [
            (ProposalTooLarge, False)
        ] * 2
        with pytest.raises(asyncio.CancelledError):
            await never_sent
        assert store.commands == [str(number).encode() for number in range(1, 10)]
        assert not raft._running.bridge.waiters  # type: ignore[union-attr]


async def test_commands_of_adjacent_calls_end_with_their_own_call(tmp_path: Path) -> None:
    store = Listing()
    async with one_node(tmp_path, store) as raft:
        for count in (1, 2, 300):
            # In one batch of `apply`, one call's tokens follow on the other's.
            calls = [raft.propose_many([f"{who}/{i}".encode() for i in range(count)]) for who in range(5)]
            for who, results in enumerate(await asyncio.gather(*calls)):
                assert results == [f"{who}/{i}".encode() for i in range(count)]


async def test_another_loop_may_propose_many(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:

        async def elsewhere() -> list[bytes]:
            calls = (raft.propose_many([b"a=1"] * 50) for _ in range(10))
            return [result for results in await asyncio.gather(*calls) for result in results]

        assert await asyncio.to_thread(lambda: asyncio.run(elsewhere())) == [b""] + [b"1"] * 499


async def test_cancelled_or_past_its_deadline_or_closed_it_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Scripted()
    async with one_node(tmp_path, store) as raft:
        cancelled = asyncio.create_task(raft.propose_many([b"a=1", b"wait", b"a=2"]))
        await store.entered.wait()
        late = asyncio.create_task(raft.propose_many([b"a=3", b"a=4"], timeout=0.2, return_exceptions=True))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert [type(outcome) for outcome in await late] == [RaftTimeout, RaftTimeout]
        store.gate.set()
        assert await raft.propose_many([b"a=5"]) == [b"4"]
        assert not raft._running.bridge.waiters  # type: ignore[union-attr]
        store.gate.clear()
        store.entered.clear()
        closed = asyncio.create_task(raft.propose_many([b"wait", b"a=6"]))
        await store.entered.wait()
        await raft.close(timeout=0.2)
        with pytest.raises(Closed):
            await closed


async def test_an_outcome_that_is_known_stays_and_the_last_one_ends_the_wait() -> None:
    loop = asyncio.get_running_loop()
    waiters = Waiters(loop)
    batch = Batch(4, loop.create_future())
    waiters.expect(batch, TOKENS.take(4), loop)
    first = batch.first
    assert waiters
    error = Closed("gone")
    waiters.fail(batch, first + 1, error)
    waiters.settle(batch, first, [b"a", b"too late", b"c"])
    assert not batch.future.done()
    assert waiters.batch_of(first + 3) is batch
    waiters.settle(batch, first + 3, [b"d"])
    assert waiters.batch_of(first + 3) is None
    waiters.settle(batch, first + 3, [b"again"])
    assert await batch.future == [b"a", error, b"c", b"d"]
    assert batch.failed
    assert not waiters


async def test_what_ends_with_its_bridge_fails_every_command_that_is_open() -> None:
    loop = asyncio.get_running_loop()
    waiters = Waiters(loop)
    single, batch = loop.create_future(), Batch(2, loop.create_future())
    waiters.expect(batch, TOKENS.take(2), loop)
    waiters.expect((single,), TOKENS.take(1), loop)
    waiters.settle(batch, batch.first, [b"done"])
    waiters.end(lambda: Closed("ended"))
    result, failure = await batch.future
    assert result == b"done"
    assert isinstance(failure, Closed)
    with pytest.raises(Closed):
        await single
    assert not waiters

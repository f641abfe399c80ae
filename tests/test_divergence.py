"""Stores that do not do what the others do are found out, and the minority is what stops."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest
from cluster import leader_of, nodes_in_one_loop
from stores import KeyValue

from raftify_ffi import ApplyError, NodeDiverged, Raft, RaftError, StateDiverged

#: Proposals after which a node must have been found out.
PATIENCE = 500


class Drifting(KeyValue):
    """A key-value store that can be made to go wrong, as one that depends on its machine would."""

    raises = False
    lies = False

    def apply(self, data: bytes) -> bytes:
        result = super().apply(data)
        if self.raises:
            raise ValueError("only here")
        return random.randbytes(8) if self.lies else result


async def found_out(raft: Raft[Drifting], others: list[Raft[Drifting]]) -> StateDiverged:
    """What ended this node, while others go on proposing."""
    ended = asyncio.ensure_future(raft.wait())
    for _ in range(PATIENCE):
        if ended.done():
            break
        for other in others:
            with contextlib.suppress(RaftError):
                await other.propose(b"a=1", timeout=5)
        await asyncio.sleep(0.02)
    with pytest.raises(StateDiverged) as caught:
        await asyncio.wait_for(ended, 30)
    return caught.value


async def test_a_follower_on_which_a_command_raises_stops_and_names_it(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, Drifting) as rafts:
        leader = await leader_of(rafts)
        await leader.propose(b"a=0")
        wrong, right = [raft for raft in rafts if raft is not leader]
        events = leader.events()
        await wrong.read()  # it has applied that too
        wrong.store.raises = True
        first = leader.status.last_index + 1
        error = await found_out(wrong, [leader])
        assert error.index == first
        assert str(first) in str(error) and "apply" in str(error)
        assert (error.committed, error.retryable) == (None, False)
        assert await right.propose(b"b=1", timeout=10) == b""
        async for event in events:
            if isinstance(event, NodeDiverged):
                assert (event.node_id, event.index) == (wrong.node_id, first)
                break


async def test_a_leader_that_is_alone_with_its_outcomes_is_the_one_that_stops(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, Drifting) as rafts:
        leader = await leader_of(rafts)
        others = [raft for raft in rafts if raft is not leader]
        leader.store.raises = True
        with pytest.raises(ApplyError):
            await leader.propose(b"a=1")
        await found_out(leader, others)
        next_leader = await leader_of(others)
        assert await next_leader.propose(b"c=1", timeout=10) == b""
        assert not any(raft.is_finished() for raft in others)


@pytest.mark.parametrize("verify_results", [True, False])
async def test_results_are_compared_where_the_cluster_says_so(tmp_path: Path, verify_results: bool) -> None:
    async with nodes_in_one_loop(tmp_path, 3, Drifting, verify_results=verify_results) as rafts:
        leader = await leader_of(rafts)
        wrong = next(raft for raft in rafts if raft is not leader)
        wrong.store.lies = True
        if verify_results:
            error = await found_out(wrong, [leader])
            assert error.index is not None
        else:
            for _ in range(50):
                await leader.propose(b"a=1")
            await wrong.read()
            assert not wrong.is_finished()

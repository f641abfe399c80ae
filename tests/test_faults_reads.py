"""Reads stay fresh while leaders are stopped, deposed and woken up again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from history import DONE
from members import Died, cluster_of

from raftify_ffi import RaftError


async def test_a_deposed_leader_never_answers_with_the_old_value(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        written = 0
        for round_ in range(5):
            leader = await cluster.leader()
            rest = [member for member in cluster.members if member is not leader]
            written = 1 + await cluster.write_through(rest[0], f"{round_}/before")
            leader.pause()
            # The two others elect one of them; it takes writes.
            for number in range(10):
                written = 1 + await cluster.write_through(rest[number % 2], f"{round_}/{number}")
            assert (await cluster.leader(among=rest)) is not leader
            # These wait for it when it wakes up, before it can have heard of the new term.
            reads = [leader.submit("length", timeout=20) for _ in range(50)]
            late = [
                asyncio.create_task(cluster.write(leader, f"{round_}/late/{number}", timeout=20))
                for number in range(20)
            ]
            await asyncio.sleep(0)
            leader.resume()
            for length in await asyncio.gather(*reads, return_exceptions=True):
                assert isinstance(length, RaftError) or int(str(length)) >= written, length
            # What was proposed there ends too, and as it says; the state shows it.
            await asyncio.gather(*late, return_exceptions=True)
            assert await leader.call("length", timeout=30) >= written
        assert cluster.history.count(DONE) >= 5 * 11
        await cluster.same_state()


async def test_every_node_reads_what_was_acknowledged_while_leaders_change(tmp_path: Path) -> None:
    """Reads on all nodes, beside writes, transfers of leadership, stops and kills; the checker holds each against all writes."""
    async with cluster_of(tmp_path, snapshot_entries=300, trailing_entries=50) as cluster:
        await asyncio.gather(*(member.load(writers=2, readers=4) for member in cluster.members))
        for round_ in range(9):
            await cluster.acknowledged(60)
            leader = await cluster.leader()
            rest = [member for member in cluster.members if member is not leader]
            if round_ % 3 == 0:
                try:
                    await leader.call("transfer_leader", to=rest[0].node_id, timeout=10)
                except RaftError as error:
                    print(error)
            elif round_ % 3 == 1:
                leader.pause()
                await cluster.acknowledged(60)
                leader.resume()
            else:
                await leader.kill()
                await cluster.acknowledged(60)
                await leader.start()
                await leader.load(writers=2, readers=4)
        await cluster.acknowledged(60)
        await asyncio.gather(*(member.call("stop_load") for member in cluster.members))
        assert len(cluster.history.looks) > 500
        await cluster.same_state()


async def test_without_a_majority_no_read_is_answered(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        rest = [member for member in cluster.members if member is not leader]
        await cluster.write(leader, "a")
        for member in rest:
            member.pause()
        reads = await asyncio.gather(*(leader.call("length", timeout=2) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(read, RaftError) and read.committed is not True for read in reads), reads
        for member in rest:
            member.resume()
        for member in cluster.members:
            try:
                assert await member.call("length", timeout=30) == 1
            except Died as error:
                raise AssertionError(error) from None

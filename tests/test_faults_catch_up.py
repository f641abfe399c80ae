"""A member that was away catches up, by log or by snapshot, also when that is large; meanwhile the others serve. Logs stay short."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from cluster import free_addrs, leader_of, quick_config
from history import DONE
from members import Member, cluster_of
from stores import Bulky

from raftify_ffi import Raft

MIB = 1 << 20


def disk_use(directory: Path) -> int:
    """Bytes that files really take: sparse ones count for what they hold."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                pass  # an old snapshot, removed just now
    return total


@pytest.mark.parametrize("by_snapshot", [False, True], ids=["by log", "by snapshot"])
async def test_a_restarted_member_catches_up(tmp_path: Path, by_snapshot: bool, log_engine: str) -> None:
    settings: dict[str, Any] = {"snapshot_entries": 200, "trailing_entries": 20} if by_snapshot else {}
    async with cluster_of(tmp_path, log_engine=log_engine, **settings) as cluster:
        away = (await cluster.followers())[0]
        rest = [member for member in cluster.members if member is not away]
        await rest[0].load(writers=8)
        await cluster.acknowledged(20)
        await away.kill()
        index = (await rest[0].call("status"))["applied_index"]
        await cluster.acknowledged(1500)
        if by_snapshot:
            for member in rest:
                assert (await member.call("status"))["snapshot_index"] > index
        await away.start()
        target = (await rest[0].call("status"))["commit_index"]
        await away.call("wait_for", applied=target, timeout=60)
        assert ("SnapshotInstalled" in await away.call("events")) == by_snapshot
        await rest[0].call("stop_load")
        assert len(await cluster.same_state()) > 1500
        # And it has it on its own disk now.
        await away.kill()
        await away.start()
        await cluster.same_state()


async def test_a_snapshot_of_200_mib_reaches_a_member_that_was_away(tmp_path: Path) -> None:
    mib = 200
    # Elections are not in a hurry: a leader is kept because it goes on ticking, not because the machine is fast.
    async with cluster_of(
        tmp_path,
        store={"kind": "Bulky", "mib": mib},
        tick_interval=0.1,
        raft_config={"election_tick": 20, "heartbeat_tick": 2},
        trailing_entries=5,
    ) as cluster:
        leader = await cluster.leader()
        away, other = await cluster.followers()
        await away.kill()
        for number in range(50):
            await cluster.write(other, f"before/{number}")
        term = (await leader.call("status"))["term"]
        await leader.load(writers=2)
        await other.load(writers=2)
        # Writes go on while it is taken, and while it is sent.
        taking = leader.submit("snapshot")
        await cluster.acknowledged(50)
        await taking
        await away.start()
        target = (await leader.call("status"))["commit_index"]
        catching_up = away.submit("wait_for", applied=target, timeout=100)
        await cluster.acknowledged(50)
        await catching_up
        assert "SnapshotInstalled" in await away.call("events")
        await asyncio.gather(leader.call("stop_load"), other.call("stop_load"))
        state = await leader.call("status")
        assert (state["role"], state["term"]) == ("leader", term)
        # A few chunks at a time: nowhere is the whole of it in memory. Generous: the interpreter and library take some 60 MiB.
        peaks = [await member.call("peak_memory") // MIB for member in (leader, away)]
        print(f"peak memory in MiB: leader {peaks[0]}, the one that caught up {peaks[1]}")
        assert max(peaks) < mib
        await cluster.write(away, "after")
        assert cluster.history.count(DONE) > 150


@pytest.mark.parametrize("by", ["entries", "bytes"])
async def test_the_log_stays_short_under_a_steady_load(tmp_path: Path, by: str, log_engine: str) -> None:
    """Nobody asks for a snapshot, and the disk does not fill."""
    settings: dict[str, Any] = (
        {"snapshot_entries": 100, "trailing_entries": 20, "snapshot_bytes": 0}
        if by == "entries"
        else {"snapshot_entries": 0, "trailing_entries": 20, "snapshot_bytes": MIB}
    )
    size = 20_000
    async with cluster_of(tmp_path, log_engine=log_engine, **settings) as cluster:
        # What the configuration lets a directory hold: the entries between two snapshots and the trailing ones, as often again for what
        # is written while a snapshot is made and for pages or segments that are kept to use again, and a few MiB of its own.
        entries = (100 if by == "entries" else MIB // size) + 20
        bound = 8 * entries * size + 8 * MIB
        most = 0
        for round_ in range(12):
            done = await cluster.members[round_ % 3].call("flood", prefix=f"{round_}", count=200, size=size)
            assert done == 200
            most = max(most, *(disk_use(member.directory) for member in cluster.members))
        written = 12 * 200 * size
        print(
            f"written {written / MIB:.0f} MiB, a directory had at most {most / MIB:.1f} MiB, bound {bound / MIB:.0f} MiB"
        )
        assert bound < written
        assert most < bound
        for member in cluster.members:
            assert (await member.call("events")).count("SnapshotTaken") >= 3
        await asyncio.gather(*(member.kill() for member in cluster.members))
        await asyncio.gather(*(member.start() for member in cluster.members))
        assert await cluster.members[0].call("length", timeout=30) == 12 * 200


async def test_a_new_member_is_brought_up_by_snapshot(tmp_path: Path) -> None:
    """What it needs is in no log any more."""
    async with cluster_of(tmp_path, snapshot_entries=100, trailing_entries=10) as cluster:
        assert await cluster.members[0].call("flood", prefix="x", count=500, size=100) == 500
        addr = free_addrs(1)[0]
        joiner = Member(4, addr, None, tmp_path, join=[addr, cluster.addrs[1]])
        try:
            await joiner.start()
            await joiner.event("joined")
            assert await joiner.call("length") == 500
            assert "SnapshotInstalled" in await joiner.call("events")
            assert (await joiner.call("status"))["voters"] == [1, 2, 3, 4]
        finally:
            await joiner.close()


async def test_a_snapshot_may_come_while_the_last_one_is_still_being_restored(tmp_path: Path) -> None:
    """The store reads on in the old one, whatever has arrived meanwhile."""

    class Slow(Bulky):
        raft: Raft[Any]
        overtaken = False

        async def restore_chunks(self, chunks: Any) -> None:  # type: ignore[override]
            read = [next(chunks)]
            if not self.overtaken:
                own = self.raft.status.snapshot_index
                while self.raft.status.snapshot_index <= own:  # inside a store nothing of the library is awaited
                    await asyncio.sleep(0.01)
                self.overtaken = True
            super().restore_chunks([*read, *chunks])

    peers = dict(enumerate(free_addrs(3), 1))

    def build(node_id: int, store: Bulky) -> Raft[Bulky]:
        return Raft.build(node_id, peers[node_id], store, quick_config(tmp_path, trailing_entries=2), peers)

    one, two, three = (build(node_id, Bulky(mib=5)) for node_id in peers)
    async with one, two:
        async with three:
            await one.propose_many([f"a{number}".encode() for number in range(20)], timeout=30)
            await three.wait_for(applied=one.status.applied_index)
            await three.snapshot()
        await one.propose_many([f"b{number}".encode() for number in range(20)], timeout=30)
        leader = await leader_of([one, two])
        await leader.snapshot()
        store = Slow(mib=5)
        store.raft = again = build(3, store)
        async with again:
            assert await again.read(len, timeout=30) == 40
            assert store.overtaken
            assert store.lines == leader.store.lines

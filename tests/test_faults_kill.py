"""kill -9 of a follower, of the leader, of all, again and again at random moments under load: nothing acknowledged is lost, doubled or
moved, on any node, and no answer was wrong."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from history import DONE, write_on
from members import Cluster, Member, cluster_of

from raftify_ffi import RaftServiceClient

#: Each is one blow; `twice` kills a node again while it starts.
BLOWS = ["follower"] * 7 + ["leader"] * 7 + ["two"] * 2 + ["all"] * 4 + ["twice"] * 4


async def strike(cluster: Cluster, blow: str, rng: random.Random) -> None:
    """Kills, and starts again."""
    leader = await cluster.leader()
    followers = [member for member in cluster.members if member is not leader]
    victims = {
        "follower": rng.sample(followers, 1),
        "leader": [leader],
        "two": [leader, rng.choice(followers)],
        "all": list(cluster.members),
        "twice": rng.sample(cluster.members, 1),
    }[blow]
    await asyncio.gather(*(victim.kill() for victim in victims))
    if len(victims) == 1:
        # The others go on, at least now and then, while it is away.
        await cluster.acknowledged(rng.choice([0, 1, 100]))
    if blow == "twice":
        await victims[0].spawn()
        if rng.random() < 0.5:
            await victims[0].event("running")
        await victims[0].kill()
    await asyncio.gather(*(victim.start() for victim in victims))
    await asyncio.gather(*(victim.load(writers=3) for victim in victims))


async def test_kills_at_random_moments_lose_nothing(tmp_path: Path, log_engine: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    blows = rng.sample(BLOWS, len(BLOWS))
    # Small numbers: snapshots, compaction and catching up by either happen within the test.
    async with cluster_of(tmp_path, snapshot_entries=400, trailing_entries=100, log_engine=log_engine) as cluster:
        async with RaftServiceClient.connect(*cluster.addrs) as client:

            async def propose(data: bytes) -> bytes:
                return await client.propose(data, timeout=10)

            outside = [asyncio.create_task(write_on(propose, f"client.{number}", cluster.take)) for number in range(3)]
            await asyncio.gather(*(member.load(writers=3) for member in cluster.members))
            for blow in blows:
                await cluster.acknowledged(rng.randrange(200))
                await strike(cluster, blow, rng)
            await cluster.acknowledged(100)
            await asyncio.gather(*(member.call("stop_load") for member in cluster.members))
            for task in outside:
                task.cancel()
            await asyncio.gather(*outside, return_exceptions=True)
        journal = await cluster.same_state()
        assert len(journal) >= cluster.history.count(DONE) > len(BLOWS) * 50
        for writers in ("client.", "1.", "2.", "3."):
            assert any(value.startswith(writers) for value in journal)
        # Once more, from what is on the disks alone.
        await asyncio.gather(*(member.kill() for member in cluster.members))
        await asyncio.gather(*(member.start() for member in cluster.members))
        assert await cluster.same_state() == journal


async def test_every_member_can_be_the_one_that_is_killed_with_proposals_under_way(
    tmp_path: Path, log_engine: str
) -> None:
    """Proposals on followers while the leader is killed: each ends, and what its error says of the outcome is so."""
    async with cluster_of(tmp_path, log_engine=log_engine) as cluster:
        for round_ in range(4):
            leader = await cluster.leader()
            followers: list[Member] = [member for member in cluster.members if member is not leader]
            under_way = [
                asyncio.create_task(cluster.write(follower, f"{round_}/{follower.node_id}/{number}", timeout=20))
                for number in range(100)
                for follower in followers
            ]
            await cluster.acknowledged(20)
            await leader.kill()
            outcomes = await asyncio.gather(*under_way, return_exceptions=True)
            assert len(outcomes) == 200
            await leader.start()
        await cluster.same_state()

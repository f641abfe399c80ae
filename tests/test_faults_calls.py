"""Every call ends, as an error that says what is known: no leader, minority, stopped leader, removed, closed, full, too large."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import free_addrs, leader_of, nodes_in_one_loop, one_node, quick_config
from members import Cluster, Member, cluster_of
from stores import Journal, KeyValue, Scripted

from raftify_ffi import (
    ApplyError,
    Closed,
    LeadershipLost,
    MachineFailed,
    NoLeader,
    Overloaded,
    ProposalTooLarge,
    Raft,
    RaftError,
    RaftServiceClient,
    RaftTimeout,
    Removed,
    Role,
    SnapshotFailed,
)

MIB = 1 << 20
SHORT = 0.5

#: What may be asked of any node.
CALLS: list[tuple[str, Callable[[Raft[Any]], Awaitable[Any]]]] = [
    ("propose", lambda raft: raft.propose(b"a=1", timeout=SHORT)),
    ("propose_many", lambda raft: raft.propose_many([b"a=1", b"b=1"], timeout=SHORT)),
    ("read", lambda raft: raft.read(timeout=SHORT)._run()),
    ("transfer_leader", lambda raft: raft.transfer_leader(timeout=SHORT)),
    ("members.add", lambda raft: raft.members.add(9, "127.0.0.1:9", timeout=SHORT)),
    ("members.remove", lambda raft: raft.members.remove(2, timeout=SHORT)),
    ("leave", lambda raft: raft.leave(timeout=SHORT)),
    ("wait_for", lambda raft: raft.wait_for(leader=True, timeout=SHORT)),
    ("request_id", lambda raft: Raft.request_id(raft.addr, timeout=SHORT)),
]


async def test_without_a_leader_every_call_ends_as_not_done(tmp_path: Path) -> None:
    addrs = free_addrs(3)
    async with Raft.build(1, addrs[0], KeyValue(), quick_config(tmp_path), dict(enumerate(addrs, 1))) as raft:
        for name, call in CALLS:
            with pytest.raises(RaftError) as caught:
                await call(raft)
            error = caught.value
            assert isinstance(error, NoLeader), f"{name}: {error!r}"
            assert (error.committed, error.retryable) == (False, True), f"{name}: {error!r}"
        async with RaftServiceClient.connect(*addrs) as client:
            with pytest.raises(NoLeader) as told:
                await client.propose(b"a=1", timeout=SHORT)
            assert (told.value.committed, told.value.retryable) == (False, True)
        # Without a deadline it waits, until there is one.
        waiting = asyncio.create_task(raft.propose(b"a=1", timeout=None))
        second = Raft.build(2, addrs[1], KeyValue(), quick_config(tmp_path), dict(enumerate(addrs, 1)))
        async with second:
            assert await asyncio.wait_for(waiting, 60) == b""


async def test_a_client_that_reaches_nobody_says_so_in_time() -> None:
    async with RaftServiceClient.connect(*free_addrs(2)) as client:
        with pytest.raises(RaftError) as caught:
            await client.propose(b"a=1", timeout=SHORT)
        assert (caught.value.committed, caught.value.retryable) == (False, True)
        waiting = asyncio.create_task(client.propose(b"a=1", timeout=None))
        await asyncio.sleep(0)
    with pytest.raises(Closed) as closed:
        await waiting
    assert closed.value.committed is False


async def taken_by_one_alone(cluster: Cluster) -> tuple[Member, list[asyncio.Task[int]]]:
    """A leader, paused, with proposals in its log that nobody else has seen: the others are dead.

    A leader that hears nobody steps down after an election timeout, and holds what comes later until there is a leader. On a
    machine that stood still for so long the proposals may be of that kind; it is gone about again then.
    """
    for attempt in itertools.count():
        leader = await cluster.leader()
        rest = [member for member in cluster.members if member is not leader]
        await cluster.write_through(leader, f"before/{attempt}")
        last_index = (await leader.call("status"))["last_index"]
        for member in rest:
            member.pause()
        taken = [
            asyncio.create_task(cluster.write(leader, f"lost/{attempt}/{number}", timeout=60)) for number in range(5)
        ]
        while True:
            status = await leader.call("status")
            if status["last_index"] >= last_index + len(taken):
                leader.pause()
                await asyncio.gather(*(member.kill() for member in rest))
                return leader, taken
            if status["role"] != "leader":
                break
        for member in rest:
            member.resume()
        await asyncio.gather(*taken, return_exceptions=True)
    raise AssertionError


async def test_in_a_minority_what_was_sent_is_unknown_and_what_comes_later_is_not_done(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader, sent = await taken_by_one_alone(cluster)
        rest = [member for member in cluster.members if member is not leader]
        leader.resume()
        for error in await asyncio.gather(*sent, return_exceptions=True):
            # In its log, and nobody else's; it has stepped down.
            assert isinstance(error, (LeadershipLost, RaftTimeout)), error
            assert error.committed is not True
        late = await asyncio.gather(
            *(cluster.write(leader, f"late/{number}", timeout=SHORT) for number in range(5)), return_exceptions=True
        )
        for error in late:
            assert isinstance(error, NoLeader) and error.committed is False and error.retryable, error
        await asyncio.gather(*(member.start() for member in rest))
        await cluster.write(leader, "after", timeout=30)
        journal = await cluster.same_state()
        assert not any(value.startswith("late/") for value in journal)


async def test_proposals_of_a_leader_that_is_overwritten_end_as_not_done(tmp_path: Path) -> None:
    """Alone it takes some; the others, who never saw them, elect one of themselves: certainly not done, once that is known."""
    async with cluster_of(tmp_path) as cluster:
        leader, lost = await taken_by_one_alone(cluster)
        rest = [member for member in cluster.members if member is not leader]
        await asyncio.gather(*(member.start() for member in rest))
        for number in range(10):
            await cluster.write_through(rest[number % 2], f"kept/{number}")
        leader.resume()
        outcomes = await asyncio.gather(*lost, return_exceptions=True)
        for error in outcomes:
            assert isinstance(error, RaftError) and error.committed is not True, error
        await cluster.same_state()


async def test_a_stopped_leader_keeps_no_call_waiting(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        for round_ in range(3):
            leader = await cluster.leader()
            rest = [member for member in cluster.members if member is not leader]
            under_way = [
                asyncio.create_task(cluster.write(member, f"{round_}/{member.node_id}/{number}", timeout=15))
                for number in range(50)
                for member in rest
            ]
            await cluster.acknowledged(10)
            leader.pause()
            async with RaftServiceClient.connect(leader.addr, *(member.addr for member in rest)) as client:
                outside = asyncio.create_task(client.propose(f"outside/{round_}".encode(), timeout=5))
                cluster.history.take(["sent", f"outside/{round_}", 0.0])
                outcomes = await asyncio.gather(*under_way, return_exceptions=True)
                assert all(isinstance(outcome, (int, RaftError)) for outcome in outcomes)
                # Somebody serves again while it is still stopped.
                await cluster.write_through(rest[0], f"{round_}/again")
                await asyncio.gather(outside, return_exceptions=True)
            leader.resume()
        await cluster.same_state()


async def test_a_removed_node_is_told_so_and_the_others_go_on(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, KeyValue) as rafts:
        leader = await leader_of(rafts)
        gone = next(raft for raft in rafts if raft is not leader)
        other = next(raft for raft in rafts if raft not in (leader, gone))
        await leader.members.remove(gone.node_id)
        async for _ in gone.events():
            if gone.status.role is Role.REMOVED:
                break
        for name, call in CALLS:
            if name in ("wait_for", "request_id"):
                continue
            with pytest.raises(RaftError) as caught:
                await call(gone)
            assert isinstance(caught.value, Removed), f"{name}: {caught.value!r}"
            assert (caught.value.committed, caught.value.retryable) == (False, False)
        assert not gone.is_finished()
        assert await other.propose(b"a=1") == b""
        assert other.status.voters == tuple(sorted(raft.node_id for raft in (leader, other)))
        # Its id is spent.
        with pytest.raises(RaftError):
            await leader.members.add(gone.node_id, gone.addr)
        # Two of three nodes are left: that is two of two now.
        await gone.close()
        assert await other.propose(b"a=2") == b"1"


async def test_a_removed_node_may_be_told_to_end(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, KeyValue, terminate_on_remove=True) as rafts:
        leader = await leader_of(rafts)
        gone = next(raft for raft in rafts if raft is not leader)
        await leader.members.remove(gone.node_id)
        with pytest.raises(Removed):
            await asyncio.wait_for(gone.wait(), 60)
        assert gone.is_finished()
        assert gone.status.role is Role.REMOVED
        with pytest.raises((Removed, Closed)):
            await gone.propose(b"a=1")
        assert await leader.propose(b"a=1") == b""


async def test_a_node_that_leaves_while_it_was_away_is_told_on_its_return(tmp_path: Path) -> None:
    # Elections of its members' own accord, on a machine that stands still for a moment, are none of what is looked for.
    async with cluster_of(
        tmp_path, tick_interval=0.1, raft_config={"election_tick": 25, "heartbeat_tick": 2}
    ) as cluster:
        leader = await cluster.leader()
        away, other = [member for member in cluster.members if member is not leader]
        await away.kill()
        await other.call("remove", member=away.node_id)
        await away.start()
        with pytest.raises(RaftError) as caught:
            await away.call("propose", data="x", timeout=10)
        assert isinstance(caught.value, Removed), repr(caught.value)
        assert caught.value.committed is False
        # It disturbs nobody.
        term = (await other.call("status"))["term"]
        await cluster.write(other, "a")
        assert (await other.call("status"))["term"] == term


async def test_full_queues_refuse_at_once_and_what_was_accepted_is_done(tmp_path: Path) -> None:
    store = Scripted()
    async with one_node(tmp_path, store, max_pending_proposals=20) as raft:
        stuck = asyncio.create_task(raft.propose(b"wait"))
        await store.entered.wait()
        tasks = [asyncio.create_task(raft.propose(f"k{number}=1".encode())) for number in range(100)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        assert done
        with pytest.raises(Overloaded):
            await raft.propose_many([b"x=1"] * 30)
        store.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        assert len(refused) == 81  # 20, of which one waits in apply
        assert all(error.committed is False and error.retryable for error in refused)
        accepted = [number for number, outcome in enumerate(outcomes) if outcome == b""]
        assert set(store.data) == {f"k{number}" for number in accepted}
        assert await stuck == b"waited"
        # And again, now that there is room.
        assert await raft.propose(b"x=1") == b""


async def test_a_state_machine_that_falls_behind_refuses_more(tmp_path: Path) -> None:
    store = Scripted()
    async with one_node(tmp_path, store, max_unapplied_entries=10) as raft:
        stuck = asyncio.create_task(raft.propose(b"wait"))
        await store.entered.wait()
        outcomes: list[Any] = []
        tasks: list[asyncio.Task[bytes]] = []
        while not any(isinstance(outcome, Overloaded) for outcome in outcomes):
            tasks.append(asyncio.create_task(raft.propose(f"k{len(tasks)}=1".encode())))
            await asyncio.wait([tasks[-1]], timeout=0.02)
            outcomes = [task.exception() for task in tasks if task.done()]
        assert len(tasks) <= 200
        store.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(outcome == b"" or (isinstance(outcome, Overloaded) and outcome.retryable) for outcome in outcomes)
        assert await stuck == b"waited"
        assert len(store.data) == outcomes.count(b"")


async def test_cancelled_calls_hurt_neither_leader_nor_follower_nor_client(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, Journal) as rafts:
        leader = await leader_of(rafts)
        follower = next(raft for raft in rafts if raft is not leader)
        async with RaftServiceClient.connect(follower.addr) as client:
            callers: list[Any] = [leader, follower, client]
            tasks = []
            for number in range(300):
                task = asyncio.create_task(callers[number % 3].propose(f"c{number}".encode()))
                tasks.append(task)
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            for caller in callers:
                assert int(await caller.propose(b"after")) >= 0
        index = max(raft.status.commit_index for raft in rafts)
        for raft in rafts:
            await raft.wait_for(applied=index)
            values = [line.partition(" ")[2] for line in raft.store.lines]
            assert values.count("after") == 3
            assert len(set(values)) == len(values) - 2
            assert raft.store.snapshot() == leader.store.snapshot()


async def test_what_apply_raises_stops_no_node_now_or_after_a_restart(tmp_path: Path) -> None:
    addrs = dict(enumerate(free_addrs(3), 1))
    for round_ in range(2):
        rafts = [Raft.build(i, addr, Scripted(), quick_config(tmp_path), addrs) for i, addr in addrs.items()]
        async with rafts[0], rafts[1], rafts[2]:
            for raft in rafts:
                with pytest.raises(ApplyError) as caught:
                    await raft.propose(b"raise:ValueError:no")
                assert (caught.value.type_name, caught.value.committed) == ("ValueError", True)
            async with RaftServiceClient.connect(rafts[1].addr) as client:
                with pytest.raises(ApplyError) as told:
                    await client.propose(b"raise:KeyError:no")
                assert told.value.committed is True
                assert told.value.type_name == "KeyError"
            for raft in rafts:
                await raft.propose(f"{round_}/{raft.node_id}=1".encode())
                assert await raft.read(lambda s: len(s.data)) == round_ * 3 + raft.node_id
                assert not raft.is_finished()


@pytest.mark.parametrize("policy", ["reply", "stop"])
async def test_a_fault_of_one_nodes_own_stops_that_node_and_no_other(tmp_path: Path, policy: str) -> None:
    """Its entry counts as not applied: once the fault is gone, a restart applies it."""
    peers = dict(enumerate(free_addrs(3), 1))
    kind = "OSError" if policy == "reply" else "ValueError"

    def build(node_id: int, faulty: bool) -> Raft[Journal]:
        config = quick_config(tmp_path, on_apply_error=policy)
        return Raft.build(node_id, peers[node_id], Journal(node_id if faulty else 0), config, peers)

    one, two, three = build(1, False), build(2, False), build(3, True)
    async with one, two, three:
        await one.propose(b"before")
        assert int(await one.propose(f"raise:3:{kind}:x".encode())) == 1
        with pytest.raises(MachineFailed) as caught:
            await asyncio.wait_for(three.wait(), 60)
        assert kind in str(caught.value)
        assert "index" in str(caught.value)
        assert three.status.error is not None
        with pytest.raises(RaftError):
            await three.propose(b"x")
        assert int(await two.propose(b"after", timeout=30)) == 2
        again = build(3, False)
        async with again:
            assert await again.read(len, timeout=30) == 3
            assert again.store.lines == one.store.lines


async def test_a_snapshot_that_cannot_be_taken_keeps_nobody_from_working(tmp_path: Path) -> None:
    class NoSnapshot(Journal):
        ready = False

        def snapshot(self) -> bytes:
            if not self.ready:
                raise RuntimeError("not now")
            return super().snapshot()

    async with nodes_in_one_loop(tmp_path, 3, NoSnapshot, snapshot_entries=20, trailing_entries=5) as rafts:
        for raft in rafts:
            await raft.propose_many([f"{raft.node_id}/{number}".encode() for number in range(50)])
            with pytest.raises(SnapshotFailed) as caught:
                await raft.snapshot()
            assert "not now" in str(caught.value)
            assert not raft.is_finished()
        for raft in rafts:
            raft.store.ready = True
            assert (await raft.snapshot()).index > 100


async def test_a_proposal_waits_for_the_next_leader_when_the_leaders_process_was_replaced(tmp_path: Path) -> None:
    """The new process leads nothing, and what was meant for it was certainly not taken: not an unknown outcome, for whatever was sent."""
    async with cluster_of(
        tmp_path, 3, tick_interval=0.1, raft_config={"election_tick": 25, "heartbeat_tick": 2}
    ) as cluster:
        leader = await cluster.leader()
        follower = next(member for member in cluster.members if member is not leader)
        await cluster.write(follower, "before")
        await leader.kill()
        await leader.start()
        # No election can have come to an end yet, on a machine that is not very slow: the follower sends it there first.
        for number in range(5):
            await cluster.write(follower, f"after/{number}", timeout=30)
        await cluster.same_state()


async def test_a_slow_apply_stops_neither_elections_nor_the_others(tmp_path: Path) -> None:
    """Ten seconds, suspended on the leader, blocking its whole loop on a follower: longer than any election timeout here."""
    peers = 3
    async with cluster_of(
        tmp_path, peers, tick_interval=0.1, raft_config={"election_tick": 25, "heartbeat_tick": 2}
    ) as cluster:
        leader = await cluster.leader()
        blocked, free = [member for member in cluster.members if member is not leader]
        # Which is which is known only now: the stores learn it by a restart.
        for member in (blocked, leader):
            member.store = {"kind": "Journal", "node_id": member.node_id}
            await member.kill()
            await member.start()
            await cluster.write(free, f"restarted/{member.node_id}", timeout=30)
        leader = await cluster.leader()
        if leader is free:
            await free.call("transfer_leader", to=blocked.node_id, timeout=30)
            leader = await cluster.leader()
        assert leader is not free
        blocked = next(member for member in cluster.members if member not in (leader, free))
        term = (await free.call("status"))["term"]
        slow = [
            asyncio.create_task(cluster.write(free, f"sleep:{leader.node_id}:10:x", timeout=40)),
            asyncio.create_task(cluster.write(free, f"block:{blocked.node_id}:10:x", timeout=40)),
        ]
        await asyncio.gather(*slow)
        # The third has both and serves; a majority has its entries, whatever their state machines do.
        for number in range(20):
            await cluster.write(free, f"meanwhile/{number}", timeout=5)
        assert await free.call("length", timeout=5) >= 24
        # On the leader itself it is known to be committed, and not yet applied.
        with pytest.raises(RaftTimeout) as caught:
            await cluster.write(leader, "there", timeout=2)
        assert caught.value.committed is True
        assert caught.value.retryable is False
        await cluster.same_state()
        for member in cluster.members:
            state = await member.call("status")
            assert (state["term"], state["leader_id"]) == (term, leader.node_id)


async def test_a_proposal_of_16_mib_works_everywhere_and_one_over_the_limit_nowhere(tmp_path: Path) -> None:
    command = b"x" * (16 * MIB)
    async with nodes_in_one_loop(tmp_path, 3, Journal, request_timeout=60) as rafts:
        leader = await leader_of(rafts)
        follower = next(raft for raft in rafts if raft is not leader)
        async with RaftServiceClient.connect(follower.addr) as client:
            callers: list[Any] = [leader, follower, client]
            for place, caller in enumerate(callers):
                assert int(await caller.propose(command, timeout=60)) == place
            for caller in callers:
                with pytest.raises(ProposalTooLarge) as caught:
                    await caller.propose(command + b"x", timeout=60)
                assert (caught.value.committed, caught.value.retryable) == (False, False)
            # It stands in nobody's way.
            for place, caller in enumerate(callers, start=3):
                assert int(await caller.propose(b"small", timeout=60)) == place
        for raft in rafts:
            assert await raft.read(len, timeout=60) == 6
            assert [line.partition(" ")[2] for line in raft.store.lines] == ["16777216:" + _sum(command)] * 3 + [
                "small"
            ] * 3


def _sum(command: bytes) -> str:
    import zlib

    return str(zlib.crc32(command))


async def test_a_closed_node_ends_what_it_was_asked(tmp_path: Path) -> None:
    """Also in a minority, where nothing else would end it soon."""
    addrs = dict(enumerate(free_addrs(3), 1))
    rafts = [
        Raft.build(i, addr, Journal(), quick_config(tmp_path, request_timeout=3.0), addrs) for i, addr in addrs.items()
    ]
    for raft in rafts:
        await raft.run()
    await rafts[0].propose(b"a", timeout=30)
    leader = await leader_of(rafts)
    rest = [raft for raft in rafts if raft is not leader]
    await asyncio.gather(*(raft.close() for raft in rest))
    calls = [asyncio.create_task(leader.propose(f"b{number}".encode(), timeout=None)) for number in range(10)]
    reads: list[asyncio.Task[None]] = [asyncio.create_task(leader.read(timeout=None)) for _ in range(3)]
    await asyncio.sleep(0)
    await leader.close()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, (Closed, LeadershipLost)), outcome
        assert outcome.committed is not True
    for read in await asyncio.gather(*reads, return_exceptions=True):
        assert isinstance(read, RaftError), read
    for raft in rafts:
        with pytest.raises(Closed) as caught:
            await raft.propose(b"c")
        assert (caught.value.committed, caught.value.retryable) == (False, False)


async def test_what_makes_no_sense_from_outside_hurts_nobody(tmp_path: Path) -> None:
    """Addresses that are none, ids that are nobody's, bytes that are no request; asked of the leader and of a follower."""
    async with nodes_in_one_loop(tmp_path, 3, Journal) as rafts:
        leader = await leader_of(rafts)
        follower = next(raft for raft in rafts if raft is not leader)
        term = leader.status.term
        for raft in (leader, follower):
            async with RaftServiceClient.connect(raft.addr) as client:
                for call in (
                    lambda: client.reserve_id("nonsense", timeout=10),
                    lambda: client.members.add(9, "nonsense", timeout=10),
                    lambda: client.members.promote(77, timeout=10),
                    lambda: client.transfer_leader(77, timeout=10),
                    lambda: client.members.add(2**64 - 1, "127.0.0.1:9", timeout=10),
                    lambda: client.members.add(1, "127.0.0.1:9").remove(1),
                ):
                    with pytest.raises(RaftError) as caught:
                        await call()
                    assert caught.value.committed is False, repr(caught.value)
            host, _, port = raft.addr.rpartition(":")
            for noise in (
                b"GET / HTTP/1.1\r\n\r\n",
                bytes(range(256)) * 100,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
            ):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(noise)
                # It hangs up by itself.
                try:
                    while await asyncio.wait_for(reader.read(4096), 60):
                        pass
                except ConnectionError:
                    pass
                writer.close()
        assert int(await follower.propose(b"a")) == 0
        assert leader.status.term == term
        assert leader.status.voters == (1, 2, 3)
        assert not any(raft.is_finished() for raft in rafts)

"""One node, and several in one loop: proposals, status, events, closing, cancelling."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cluster import free_addrs, leader_of, nodes_in_one_loop, one_node, quick_config
from stores import AsyncKeyValue, KeyValue, Scripted

from raftify_ffi import (
    Closed,
    DirectoryInUse,
    InitialRole,
    InvalidArgument,
    InvalidConfig,
    NoLeader,
    Peer,
    PeerRefused,
    Peers,
    PresentState,
    ProposalTooLarge,
    Raft,
    RaftServiceClient,
    RaftTimeout,
    Removed,
    Role,
    SnapshotTaken,
    wait_for_termination,
)


async def test_propose_gives_what_apply_returned_and_one_reads_ones_own_writes(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        assert await raft.propose(b"a=1") == b""
        assert await raft.propose(bytearray(b"a=2")) == b"1"
        assert raft.store.data == {"a": "2"}
        assert await raft.propose_many([b"a=3", b"a=4", b"b=1"]) == [b"2", b"3", b""]
        assert await raft.propose_many([]) == []
        answers = await asyncio.gather(*(raft.propose(f"n{i}={i}".encode()) for i in range(2000)))
        assert answers == [b""] * 2000


async def test_what_a_restart_finds_is_what_was_acknowledged(tmp_path: Path) -> None:
    addr = free_addrs(1)[0]
    for round_ in range(3):
        store = KeyValue()
        async with Raft.build(1, addr, store, quick_config(tmp_path)) as raft:
            assert await raft.read(lambda s: dict(s.data)) == {str(i): "x" for i in range(round_)}
            await raft.propose(f"{round_}=x".encode())
            if round_ == 1:
                info = await raft.snapshot()
                assert info.index > 0
                assert info.size == len(store.snapshot())
                assert await raft.snapshot() == info


async def test_three_nodes_in_one_loop_agree(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, AsyncKeyValue) as rafts:
        for number, raft in enumerate(rafts):
            assert await raft.propose(f"k{number}=v".encode()) == b""
            assert raft.store.data[f"k{number}"] == "v"
        for raft in rafts:
            assert await raft.read(lambda s: dict(s.data)) == {"k0": "v", "k1": "v", "k2": "v"}
            assert raft.status.voters == (1, 2, 3)
        leader = await leader_of(rafts)
        assert leader.status.leader_id == leader.node_id


async def test_the_cluster_goes_on_without_its_leader(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, KeyValue) as rafts:
        await rafts[0].propose(b"a=1")
        leader = await leader_of(rafts)
        await leader.close()
        rest = [raft for raft in rafts if raft is not leader]
        assert await rest[0].propose(b"a=2", timeout=30) == b"1"
        assert await rest[1].read(lambda s: s.data["a"], timeout=30) == "2"


@pytest.mark.parametrize("leads", [False, True], ids=["a follower", "the leader"])
async def test_who_leaves_is_told_that_it_has_left(tmp_path: Path, leads: bool) -> None:
    async with nodes_in_one_loop(tmp_path, 3, KeyValue) as rafts:
        leader = await leader_of(rafts)
        leaving = leader if leads else next(raft for raft in rafts if raft is not leader)
        await leaving.leave(timeout=30)
        async for _ in leaving.events():
            if leaving.status.role is Role.REMOVED:
                break
        rest = [raft for raft in rafts if raft is not leaving]
        await rest[0].propose(b"a=1", timeout=30)
        assert set(rest[0].status.voters) == {raft.node_id for raft in rest}


async def test_who_leaves_while_it_joins_has_left_in_the_end(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 1, KeyValue) as rafts:
        addr = free_addrs(1)[0]
        ticket = await Raft.request_id(addr, rafts[0].addr)
        async with Raft.build(ticket.reserved_id, addr, KeyValue(), quick_config(tmp_path)) as joiner:
            join = asyncio.create_task(joiner.join(ticket))
            await asyncio.sleep(0)
            await joiner.leave(timeout=30)
            # It may have become a voter before it left.
            (outcome,) = await asyncio.gather(join, return_exceptions=True)
            assert outcome is None or (isinstance(outcome, Removed) and "leave() was called" in str(outcome))
            assert rafts[0].status.voters == (1,)
            assert rafts[0].status.learners == ()
            await rafts[0].propose(b"a=1", timeout=30)


async def test_leadership_moves_on_request(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, KeyValue) as rafts:
        leader = await leader_of(rafts)
        other = next(raft for raft in rafts if raft is not leader)
        await leader.transfer_leader(other.node_id)
        async for _ in other.events():
            if other.status.role is Role.LEADER:
                break
        await other.propose(b"a=1")


async def test_without_a_majority_nothing_was_sent_and_it_is_safe_to_try_again(tmp_path: Path) -> None:
    addrs = free_addrs(3)
    async with Raft.build(1, addrs[0], KeyValue(), quick_config(tmp_path), dict(enumerate(addrs, 1))) as raft:
        with pytest.raises(NoLeader) as caught:
            await raft.propose(b"a=1", timeout=0.3)
        assert (caught.value.committed, caught.value.retryable) == (False, True)
        with pytest.raises(NoLeader):
            await raft.wait_for(leader=True, timeout=0.1)
        with pytest.raises(RaftTimeout):
            await raft.wait(timeout=0.05)
        assert raft.status.leader_id is None


async def test_a_command_that_is_too_large_takes_no_other_with_it(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue(), max_proposal_size=1000) as raft:
        outcomes = await asyncio.gather(
            raft.propose(b"a=1"), raft.propose(b"x" * 1001), raft.propose(b"b=1"), return_exceptions=True
        )
        assert outcomes[0] == b""
        assert isinstance(outcomes[1], ProposalTooLarge)
        assert outcomes[1].committed is False
        assert outcomes[2] == b""
        with pytest.raises(ProposalTooLarge):
            await raft.propose_many([b"c=1", b"x" * 1001])
        assert await raft.read(lambda s: set(s.data)) == {"a", "b"}


async def test_what_is_no_command_is_refused(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        for bad in ("text", 5, None, memoryview(b"abcd")[::2]):
            with pytest.raises(InvalidArgument):
                await raft.propose(bad)  # type: ignore[arg-type]
        for timeout in (-1, "5", float("nan")):
            with pytest.raises(InvalidArgument):
                await raft.propose(b"a=1", timeout=timeout)  # type: ignore[arg-type]


async def test_cancelling_a_call_hurts_nobody(tmp_path: Path) -> None:
    store = Scripted()
    async with one_node(tmp_path, store) as raft:
        waiting = asyncio.create_task(raft.propose(b"wait"))
        await store.entered.wait()
        waiting.cancel()
        unsent = asyncio.create_task(raft.propose(b"never=1"))
        unsent.cancel()
        behind = asyncio.create_task(raft.propose(b"a=1"))
        with pytest.raises(asyncio.CancelledError):
            await waiting
        store.gate.set()
        assert await behind == b""
        assert not raft.is_finished()
        assert await raft.read(lambda s: s.data) == {"a": "1"}
        assert not raft._running.bridge.waiters  # type: ignore[union-attr]


async def test_close_ends_what_is_pending_and_may_be_called_again(tmp_path: Path) -> None:
    store = Scripted()
    raft = Raft.build(1, free_addrs(1)[0], store, quick_config(tmp_path))
    await raft.close()
    with pytest.raises(Closed):
        await raft.run()
    raft = Raft.build(1, free_addrs(1)[0], store, quick_config(tmp_path))
    await raft.run()
    await raft.wait_for(leader=True)
    stuck = asyncio.create_task(raft.propose(b"wait"))
    await store.entered.wait()
    ended = asyncio.create_task(wait_for_termination(raft))
    store.gate.set()
    await asyncio.gather(raft.close(), raft.close())
    await raft.close()
    await ended
    assert raft.is_finished()
    assert raft.status.role is Role.STOPPED
    outcome = (await asyncio.gather(stuck, return_exceptions=True))[0]
    assert outcome == b"waited" or isinstance(outcome, Closed)
    with pytest.raises(Closed) as caught:
        await raft.propose(b"a=1")
    assert caught.value.committed is False


async def test_events_start_with_the_present_and_end_with_the_node(tmp_path: Path) -> None:
    raft = Raft.build(1, free_addrs(1)[0], KeyValue(), quick_config(tmp_path))
    await raft.run()
    seen = []
    events = raft.events()
    await raft.wait_for(leader=True)
    await raft.propose(b"a=1")
    await raft.snapshot()
    closing = asyncio.create_task(raft.close())
    async for event in events:
        seen.append(event)
    await closing
    assert isinstance(seen[0], PresentState)
    assert any(isinstance(event, SnapshotTaken) for event in seen)


async def test_wait_for_sees_what_is_applied(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, KeyValue) as rafts:
        await rafts[0].propose_many([b"a=1"] * 10)
        index = rafts[0].status.applied_index
        for raft in rafts:
            assert (await raft.wait_for(applied=index)).applied_index >= index
            assert raft.store.data == {"a": "1"}


async def test_two_nodes_never_share_a_directory(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()):
        second = Raft.build(1, free_addrs(1)[0], KeyValue(), quick_config(tmp_path))
        with pytest.raises(DirectoryInUse) as caught:
            await second.run()
        assert "node-1" in str(caught.value.path)
    # Released by the close: the same object may try again.
    await second.run()
    await second.close()


@pytest.mark.parametrize(
    ("addr", "peers"),
    [
        ("0.0.0.0:60061", None),
        ("127.0.0.1:60061", {2: "127.0.0.1:60061"}),
        ("127.0.0.1:0", {1: "127.0.0.1:0", 2: "127.0.0.1:60062"}),
    ],
)
async def test_an_address_that_cannot_work_is_an_invalid_config(
    tmp_path: Path, addr: str, peers: dict[int, str] | None
) -> None:
    with pytest.raises(InvalidConfig):
        await Raft.build(1, addr, KeyValue(), quick_config(tmp_path), peers).run()


async def test_port_0_becomes_the_real_one(tmp_path: Path) -> None:
    async with Raft.build(1, "127.0.0.1:0", KeyValue(), quick_config(tmp_path)) as raft:
        assert int(raft.addr.rpartition(":")[2]) > 0


async def test_handles_keep_their_prepared_argument_apart(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        one, two = raft.get_raft_node(), raft.get_raft_node()
        assert one is not two
        one.prepare_proposal(b"a=1")
        two.prepare_proposal(b"b=2")
        await asyncio.gather(one.propose(), two.propose())
        assert raft.store.data == {"a": "1", "b": "2"}
        with pytest.raises(InvalidArgument, match="prepare_proposal"):
            await one.propose()
        assert await one.propose(b"a=3") == b"1"
        assert await one.is_leader()
        assert await one.get_id() == await one.get_leader_id() == await one.get_cluster_size() == 1
        assert await one.get_peers() == {1: raft.addr}
        assert json.loads(await one.inspect())["role"] == "leader"
        assert await one.store() is raft.store


async def test_an_initial_member_named_as_a_learner_begins_as_one(tmp_path: Path) -> None:
    addrs = free_addrs(3)
    peers = Peers({1: addrs[0], 2: addrs[1], 3: Peer(addrs[2], InitialRole.LEARNER)})

    def build(node_id: int, peers: Peers = peers) -> Raft[KeyValue]:
        return Raft.build(node_id, addrs[node_id - 1], KeyValue(), quick_config(tmp_path), peers)

    async with build(1) as one, build(2), build(3) as learner:
        await one.wait_for(leader=True)
        assert await learner.propose(b"a=1") == b""
        assert await learner.read(lambda store: store.data["a"]) == "1"
        assert (learner.status.voters, learner.status.learners) == ((1, 2), (3,))
        assert learner.status.role is Role.LEARNER
        await learner.members.promote(3)
        assert (learner.status.voters, learner.status.learners) == ((1, 2, 3), ())
    # A directory with data is what it was, whatever the roles say now.
    async with build(1) as one, build(3):
        await one.wait_for(leader=True)
        assert one.status.voters == (1, 2, 3)


async def test_initial_members_have_to_agree_about_who_learns(tmp_path: Path) -> None:
    addrs = free_addrs(2)
    for role, refused in [(InitialRole.LEARNER, True), (InitialRole.LEADER, False), (InitialRole.VOTER, False)]:
        config = quick_config(tmp_path / role.name)
        peers = {1: addrs[0], 2: Peer(addrs[1], role)}
        async with Raft.build(1, addrs[0], KeyValue(), config, {1: addrs[0], 2: addrs[1]}) as one:
            events = one.events(timeout=30)
            async with Raft.build(2, addrs[1], KeyValue(), config, peers) as two:
                if not refused:
                    await two.wait_for(leader=True)
                    continue
                async for event in events:
                    if isinstance(event, PeerRefused):
                        assert "roles" in event.reason
                        break


def test_only_learners_are_an_invalid_config() -> None:
    peers = {1: Peer("127.0.0.1:1", InitialRole.LEARNER)}
    with pytest.raises(InvalidConfig, match="one at least must be a voter") as caught:
        Raft.build(1, "127.0.0.1:1", KeyValue(), None, peers)
    assert caught.value.field == "peers"
    # Contacts are not asked.
    Raft.build(2, "127.0.0.1:2", KeyValue(), None, peers)


async def test_what_earlier_releases_needed_may_be_called(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        await raft.get_raft_node().leave_joint()
        await raft.member_bootstrap_ready()
        async with RaftServiceClient.connect(raft.addr) as client:
            await client.leave_joint()
            await client.set_peers(Peers({1: raft.addr}))
            with pytest.raises(InvalidConfig, match="peers"):
                await client.set_peers(7)  # type: ignore[arg-type]


async def test_what_is_no_ticket_and_no_id_is_refused(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        for ticket in ("text", ["text"], 7):
            with pytest.raises(InvalidArgument, match="ticket"):
                await raft.join(ticket)  # type: ignore[arg-type]
        async with RaftServiceClient.connect(raft.addr) as client:
            for node_id in (-1, "x", 1.5):
                with pytest.raises((InvalidArgument, InvalidConfig)):
                    await client.transfer_leader(node_id)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "call"),
    [
        ("bytes or a contiguous buffer, not str", lambda raft, node, client: node.propose("text")),
        ("bytes or a contiguous buffer, not one with gaps", lambda raft, *_: raft.propose(memoryview(b"abcd")[::2])),
        ("bytes or a contiguous buffer, not str", lambda raft, node, client: client.propose()),
        ("index", lambda raft, *_: raft.wait_for(applied="5")),
        ("ConfChangeV2", lambda raft, node, client: node.change_config(5)),
        ("ConfChangeV2", lambda raft, node, client: client.change_config(5)),
        ("no Message", lambda raft, node, client: node.send_message(5)),
        ("no Message", lambda raft, node, client: client.send_message(5)),
        ("no role", lambda raft, node, client: node.add_peer(2, "127.0.0.1:1", "learner")),
        ("no ticket", lambda raft, node, client: node.join_cluster([5])),
        ("list of addresses", lambda raft, *_: Raft.join_cluster("127.0.0.1:1", KeyValue(), seeds=raft.addr)),
        ("not a Config", lambda raft, *_: Raft.join_cluster("127.0.0.1:1", KeyValue(), {}, seeds=[raft.addr])),  # type: ignore[arg-type]
        ("has no method apply", lambda raft, *_: Raft.join_cluster("127.0.0.1:1", None, seeds=[raft.addr])),
    ],
)
async def test_an_argument_that_makes_no_sense_is_refused_and_nothing_done(
    tmp_path: Path, part: str, call: Any
) -> None:
    async with one_node(tmp_path, KeyValue()) as raft, RaftServiceClient.connect(raft.addr) as client:
        client.prepare_propose("text")  # type: ignore[arg-type]
        with pytest.raises((InvalidArgument, InvalidConfig), match=part):
            await call(raft, raft.get_raft_node(), client)
        assert (await client.reserve_id()).reserved_id == 2
        assert raft.store.applied == 0


async def test_a_role_may_be_given_as_its_number(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 1, KeyValue) as [raft]:
        await raft.get_raft_node().add_peer(2, free_addrs(1)[0], int(InitialRole.LEARNER))  # type: ignore[arg-type]
        assert raft.status.learners == (2,)


async def test_calls_before_run_say_so() -> None:
    raft = Raft.build(1, "127.0.0.1:60061", KeyValue())
    with pytest.raises(InvalidArgument, match="run"):
        await raft.propose(b"a=1")
    with pytest.raises(InvalidArgument, match="run"):
        await raft.wait()


async def test_leadership_is_told_when_it_is_lost(tmp_path: Path) -> None:
    from raftify_ffi import LeadershipLost

    async with nodes_in_one_loop(tmp_path, 3, KeyValue) as rafts:
        leader = await leader_of(rafts)

        async def lead() -> None:
            async with leader.leadership() as term:
                assert term == leader.status.term
                await leader.step_down()
                await asyncio.Event().wait()

        with pytest.raises(LeadershipLost):
            await lead()


async def test_an_exception_of_a_leaders_body_wins(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        with pytest.raises(KeyError):
            async with raft.leadership():
                raise KeyError("mine")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_lead_for_ever(raft), 0.05)


async def _lead_for_ever(raft: Raft[KeyValue]) -> None:
    async with raft.leadership():
        await asyncio.Event().wait()

"""What is wrong around a node is said: the setting, the value and the remedy, or the path. And nobody else is disturbed by it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import free_addrs, nodes_in_one_loop, one_node, quick_config
from members import PATIENCE, Died, Member, cluster_of
from stores import Journal, KeyValue

from raftify_ffi import (
    ClusterMismatch,
    Config,
    DiskFull,
    InvalidConfig,
    NoLeader,
    PeerRefused,
    Raft,
    RaftConfig,
    RaftError,
    StorageError,
    WrongDirectory,
)


class Generator(KeyValue):
    def snapshot(self) -> Any:
        yield b""


class AsyncGenerator(KeyValue):
    async def snapshot(self) -> Any:
        yield b""


def build(tmp_path: Path, **changes: Any) -> Raft[Any]:
    given: dict[str, Any] = {"node_id": 1, "raft_addr": free_addrs(1)[0], "store": KeyValue(), "peers": None, **changes}
    config = given.pop("config", None) or quick_config(tmp_path, **given.pop("settings", {}))
    return Raft.build(given["node_id"], given["raft_addr"], given["store"], config, given["peers"])


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"node_id": 0}, "node_id", ["0", "from 1"]),
        ({"node_id": -1}, "node_id", ["-1"]),
        ({"node_id": 2**64}, "node_id", [str(2**64)]),
        ({"raft_addr": "nonsense"}, "raft_addr", ["'nonsense'", "host:port"]),
        ({"raft_addr": "127.0.0.1:99999"}, "raft_addr", ["99999"]),
        ({"raft_addr": "host with space:1"}, "raft_addr", ["host with space"]),
        ({"raft_addr": "0.0.0.0:60061"}, "raft_addr", ["0.0.0.0:60061", "listen_addr"]),
        ({"raft_addr": "[::]:60061"}, "raft_addr", ["[::]:60061", "listen_addr"]),
        ({"raft_addr": "127.0.0.1:60061", "peers": {2: "127.0.0.1:60061"}}, "peers", ["127.0.0.1:60061", "2"]),
        ({"raft_addr": "127.0.0.1:60061", "peers": {1: "127.0.0.1:60062"}}, "peers", ["127.0.0.1:60062", "1"]),
        ({"raft_addr": "127.0.0.1:1", "peers": {1: "127.0.0.1:1", 2: "127.0.0.1:1"}}, "peers", ["127.0.0.1:1"]),
        ({"raft_addr": "127.0.0.1:1", "peers": {1: "127.0.0.1:1", 2: "127.0.0.1:2", 3: "127.0.0.1:2"}}, "peers", ["127.0.0.1:2"]),
        ({"peers": {0: "127.0.0.1:60061"}}, "peers", ["0"]),
        ({"peers": {2: "bad"}}, "peers", ["2", "'bad'", "host:port"]),
        ({"peers": ["127.0.0.1:60061"]}, "peers", ["dict"]),
        ({"raft_addr": "127.0.0.1:0", "peers": {1: "127.0.0.1:0", 2: "127.0.0.1:60062"}}, "peers", ["port 0"]),
        ({"store": Generator()}, "store", ["Generator.snapshot", "generator function", "copy"]),
        ({"store": AsyncGenerator()}, "store", ["AsyncGenerator.snapshot", "generator function", "copy"]),
        ({"store": KeyValue}, "store", ["KeyValue()"]),
        ({"store": object()}, "store", ["apply(bytes)"]),
        ({"settings": {"listen_addr": "nonsense"}}, "listen_addr", ["nonsense"]),
    ],
)  # fmt: skip
async def test_what_cannot_work_is_an_invalid_config_that_names_it(
    tmp_path: Path, changes: dict[str, Any], field: str, says: list[str]
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        await build(tmp_path, **changes).run()
    error = caught.value
    assert error.field == field, str(error)
    for part in says:
        assert part in str(error), str(error)
    assert isinstance(error, ValueError)
    assert not list(tmp_path.iterdir()), "a directory was made for nothing"


@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        ({"raft_config": {"election_tick": 3, "heartbeat_tick": 3}}, "election_tick", ["3", "heartbeat_tick", "at least 4"]),
        ({"raft_config": {"election_tick": 2, "heartbeat_tick": 5}}, "election_tick", ["2", "at least 6"]),
        ({"raft_config": {"heartbeat_tick": 0}}, "heartbeat_tick", ["0", "1 or more"]),
        ({"raft_config": {"election_timeout": 0.1, "heartbeat_interval": 0.1}}, "election_tick", ["heartbeat_tick"]),
        ({"tick_interval": 0}, "tick_interval", ["0", "1 ms"]),
        ({"tick_interval": "fast"}, "tick_interval", ["'fast'", "seconds"]),
        ({"max_proposal_size": 0}, "max_proposal_size", ["0", "1 byte"]),
        ({"log_engine": "paper"}, "log_engine", ["paper", "lmdb", "segment"]),
        ({"on_apply_error": "ignore"}, "on_apply_error", ["'ignore'", "reply, stop"]),
        ({"log_dir": 5}, "log_dir", ["5", "path"]),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_when_it_is_made(
    settings: dict[str, Any], field: str, says: list[str]
) -> None:
    def make() -> Config:
        raft = settings.pop("raft_config", None)
        return Config(RaftConfig(**raft) if raft else None, **settings)

    with pytest.raises(InvalidConfig) as caught:
        make()
    assert caught.value.field == field, str(caught.value)
    for part in says:
        assert part in str(caught.value), str(caught.value)


# ---- addresses -------------------------------------------------------------------------------------------------------------------------


async def test_an_address_in_use_is_named_and_the_others_keep_their_leader(tmp_path: Path) -> None:
    """The one that cannot listen does not campaign either."""
    addrs = dict(enumerate(free_addrs(3), 1))
    host, _, port = addrs[3].rpartition(":")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, int(port)))
        taken.listen()
        one, two, three = (Raft.build(i, addr, Journal(), quick_config(tmp_path), addrs) for i, addr in addrs.items())
        async with one, two:
            await one.propose(b"a", timeout=30)
            term = one.status.term
            with pytest.raises(InvalidConfig) as caught:
                await three.run()
            assert caught.value.field in ("raft_addr", "listen_addr")
            assert addrs[3] in str(caught.value)
            assert "in use" in str(caught.value)
            with pytest.raises(RaftError):
                await three.propose(b"x")
            await two.propose(b"b", timeout=30)
            assert one.status.term == term
            # The same object may try again once the port is free.
            taken.close()
            async with three:
                assert await three.propose(b"c", timeout=30) == b"2"


async def test_an_address_of_another_machine_is_an_invalid_config(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        await build(tmp_path, raft_addr="192.0.2.1:60061").run()
    assert "192.0.2.1:60061" in str(caught.value)
    # But it may be what others dial.
    raft = build(tmp_path, raft_addr="192.0.2.1:60061", settings={"listen_addr": free_addrs(1)[0]})
    async with raft:
        assert await raft.propose(b"a=1", timeout=30) == b""


async def test_an_id_that_is_used_twice_is_refused_by_name(tmp_path: Path) -> None:
    """A second node 3, at an address of its own, cannot speak for the first."""
    async with nodes_in_one_loop(tmp_path, 3, Journal) as rafts:
        await rafts[0].propose(b"a")
        for raft in rafts:
            await raft.wait_for(applied=rafts[0].status.applied_index)
        peers = {raft.node_id: raft.addr for raft in rafts}
        addr = free_addrs(1)[0]
        double = Raft.build(3, addr, Journal(), quick_config(tmp_path / "double"), {**peers, 3: addr})
        await double.run()
        with pytest.raises(RaftError) as caught:
            await asyncio.wait_for(double.wait(), PATIENCE)
        assert isinstance(caught.value, (WrongDirectory, ClusterMismatch)), repr(caught.value)
        assert "node 3" in str(caught.value)
        assert await rafts[2].propose(b"b") == b"1"
        await double.close()


# ---- directories -----------------------------------------------------------------------------------------------------------------------


async def test_a_file_where_the_directory_should_be_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "logs", tmp_path / "other" / "node-1"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("not a directory")
        log_dir = path if path.name == "logs" else path.parent
        with pytest.raises(StorageError) as caught:
            await build(log_dir).run()
        assert str(path) in str(caught.value)
        assert caught.value.path is not None and str(path) in caught.value.path
        assert path.read_text() == "not a directory"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB; skipped where mounting is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


async def test_a_directory_that_cannot_be_written_is_named(small_disk: Path) -> None:
    async with one_node(small_disk, KeyValue()) as raft:
        await raft.propose(b"a=1")
        addr = raft.addr
    remount(small_disk, "ro")
    try:
        for log_dir in (small_disk, small_disk / "new"):
            with pytest.raises(StorageError) as caught:
                await build(log_dir, raft_addr=addr).run()
            assert str(small_disk) in str(caught.value)
            assert "ead-only" in str(caught.value)
    finally:
        remount(small_disk, "rw")
    raft = build(small_disk, raft_addr=addr)
    async with raft:
        assert await raft.read(lambda s: s.data, timeout=30) == {"a": "1"}


async def test_the_directory_of_another_node_or_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        await raft.propose(b"a=1")
        addr = raft.addr
    shutil.copytree(tmp_path / "node-1", tmp_path / "node-2")
    with pytest.raises(WrongDirectory) as caught:
        await build(tmp_path, node_id=2).run()
    assert "node-2" in str(caught.value.path)
    assert "node 1" in str(caught.value)

    other = tmp_path / "elsewhere" / "node-1"
    other.mkdir(parents=True)
    (other / "photo.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(WrongDirectory) as foreign:
        await build(tmp_path / "elsewhere").run()
    assert str(other) in str(foreign.value)
    assert [path.name for path in other.iterdir()] == ["photo.jpg"]
    # Neither hurt the one that was copied.
    raft = build(tmp_path, raft_addr=addr)
    async with raft:
        assert await raft.read(lambda s: s.data, timeout=30) == {"a": "1"}


async def test_a_directory_of_another_cluster_is_refused_by_name(tmp_path: Path) -> None:
    """Resumed under another `cluster_id`, and members of two clusters that are given each other's addresses."""
    async with one_node(tmp_path, KeyValue(), cluster_id="blue") as raft:
        await raft.propose(b"a=1")
        addr = raft.addr
    with pytest.raises(RaftError) as caught:
        await build(tmp_path, raft_addr=addr, settings={"cluster_id": "green"}).run()
    assert isinstance(caught.value, WrongDirectory), repr(caught.value)
    assert "green" in str(caught.value) and "node-1" in str(caught.value)

    addrs = dict(enumerate(free_addrs(3), 1))
    ids = {1: "blue", 2: "blue", 3: "green"}
    rafts = [
        Raft.build(i, a, Journal(), quick_config(tmp_path / "three", cluster_id=ids[i]), addrs)
        for i, a in addrs.items()
    ]
    async with rafts[0], rafts[1], rafts[2]:
        assert await rafts[0].propose(b"a", timeout=30) == b"0"
        async for event in rafts[2].events():
            if isinstance(event, PeerRefused):
                assert "cluster_id" in event.reason
                break
        with pytest.raises(NoLeader):
            await rafts[2].propose(b"x", timeout=0.5)
        assert await rafts[1].propose(b"b", timeout=30) == b"1"


async def test_a_wiped_node_is_refused_and_the_cluster_goes_on(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        leader = await cluster.leader()
        wiped, other = [member for member in cluster.members if member is not leader]
        for number in range(20):
            await cluster.write(other, f"before/{number}")
        await cluster.same_state()
        await wiped.kill()
        shutil.rmtree(wiped.directory)
        await wiped.start()
        error = await wiped.end_of_node()
        assert isinstance(error, WrongDirectory), repr(error)
        assert f"node {wiped.node_id}" in str(error)
        assert "remove" in str(error)
        with pytest.raises(RaftError):
            await wiped.call("propose", data="x")
        for number in range(20):
            await cluster.write(other, f"after/{number}")
        # What the error says is what helps: removed, it joins anew under another id.
        await wiped.kill()
        await other.call("remove", member=wiped.node_id)
        again = Member(4, wiped.addr, None, tmp_path, cluster.history, join=[wiped.addr, other.addr])
        cluster.members.remove(wiped)
        cluster.members.append(again)
        try:
            await again.start()
            await again.event("joined")
            assert len(await cluster.same_state()) == 40
        finally:
            await again.close()


async def test_a_lone_founder_that_was_wiped_stops_once_its_old_cluster_greets_it(tmp_path: Path) -> None:
    """It is a majority of itself and founds again, where all the others still know the directory that it had."""
    async with cluster_of(tmp_path, 1) as cluster:
        founder = cluster.members[0]
        addr = free_addrs(1)[0]
        second = Member(2, addr, None, tmp_path, cluster.history, join=[founder.addr])
        cluster.members.append(second)
        await second.start()
        await second.event("joined")
        await cluster.write(founder, "before")
        await cluster.same_state()
        before = await second.call("stale_length")
        await founder.kill()
        shutil.rmtree(founder.directory)
        await founder.start()
        error = await founder.end_of_node()
        assert isinstance(error, WrongDirectory), repr(error)
        assert "node 2" in str(error) and "wiped" in str(error)
        assert await second.call("stale_length") == before > 0
        cluster.members.remove(founder)


# ---- joining, killed -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["request_id(own, peer)", "request_id(peer)"])
@pytest.mark.parametrize("until", ["ticket", "running", "joined"])
async def test_a_join_program_that_is_killed_three_times_leaves_three_voters(
    tmp_path: Path, named: bool, until: str
) -> None:
    async with cluster_of(tmp_path, 1) as cluster:
        first = cluster.members[0]
        addrs = free_addrs(2)
        joins = [[addr, first.addr] if named else [first.addr] for addr in addrs]
        second = Member(2, addrs[0], None, tmp_path, cluster.history, join=joins[0])
        third = Member(3, addrs[1], None, tmp_path, cluster.history, join=joins[1])
        try:
            await second.start()
            await second.event("joined")
            for _ in range(3):
                await third.spawn()
                await third.event(until)
                await third.kill()
            await third.start()
            third.node_id = (await third.event("joined"))["node_id"]
            await first.call("propose", data="a")
            status = await first.call("status")
            assert len(status["voters"]) == 3
            assert status["learners"] == []
            members = {1: first.addr, 2: addrs[0], third.node_id: addrs[1]}
            assert {1: first.addr, **{int(peer): facts["addr"] for peer, facts in status["peers"].items()}} == members
            # All three live: any one may die.
            for member in (first, second, third):
                assert await member.call("length", timeout=30) == 1
            await second.kill()
            assert await third.call("propose", data="b", timeout=30) == "1"
        finally:
            await asyncio.gather(second.close(), third.close())


# ---- a full disk -----------------------------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_named_the_others_go_on_and_space_helps(tmp_path: Path, small_disk: Path) -> None:
    async with cluster_of(tmp_path, start=False) as cluster:
        full = cluster.members[2]
        full.log_dir = small_disk
        await asyncio.gather(*(member.start() for member in cluster.members))
        others = cluster.members[:2]
        await cluster.write(others[0], "before", timeout=30)
        await full.call("wait_for", applied=1)
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            except OSError:
                pass
        written = 0
        ended = asyncio.ensure_future(full.end_of_node())
        while not ended.done():
            written += await others[0].call("flood", prefix=f"full/{written}", count=50, size=20_000)
            assert written < 5000, "its disk never was full"
        error = await ended
        assert isinstance(error, DiskFull), repr(error)
        assert error.path is not None and str(small_disk) in error.path
        assert "free space" in str(error)
        with pytest.raises((RaftError, Died)):
            await full.call("propose", data="x")
        await full.kill()
        # Started again without space it says so again, and nothing is lost by that.
        length = 1 + written
        assert int(await others[1].call("propose", data="meanwhile", timeout=30)) == length
        ballast.unlink()
        await full.start()
        assert await full.call("length", timeout=30) == length + 1
        assert int(await full.call("propose", data="after", timeout=30)) == length + 1


async def test_a_quota_is_a_full_disk_of_its_own(tmp_path: Path) -> None:
    """Below the disk's end: the node stops before the machine's other programs are hurt."""
    config = {"disk_quota": 8 << 20, "snapshot_entries": 0, "snapshot_bytes": 0}
    raft = build(tmp_path, settings=config)
    await raft.run()

    async def fill() -> None:
        for number in range(2000):
            await raft.propose(f"k{number}={'x' * 20_000}".encode(), timeout=30)

    with pytest.raises(RaftError):
        await fill()
    with pytest.raises(DiskFull) as caught:
        await asyncio.wait_for(raft.wait(), PATIENCE)
    assert "node-1" in str(caught.value.path)
    assert "disk_quota" in str(caught.value)

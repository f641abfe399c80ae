"""`RaftServiceClient.connect(…, session=True)`: a proposal is applied once however often it has to be sent, and answered with what that
came to."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import free_addrs, nodes_in_one_loop, one_node, quick_config
from history import DONE, write_on
from members import cluster_of

from raftify_ffi import ApplyError, ConnectionFailed, InvalidConfig, Raft, RaftServiceClient, RaftTimeout


class Counter:
    """Every command adds one, and is answered with the sum; `raise` raises."""

    def __init__(self) -> None:
        self.sum = 0
        self.added = asyncio.Event()

    def apply(self, command: bytes) -> bytes:
        self.sum += 1
        self.added.set()
        if command == b"raise":
            raise ValueError(f"at {self.sum}")
        return str(self.sum).encode()

    def snapshot(self) -> bytes:
        return str(self.sum).encode()

    def restore(self, snapshot: bytes) -> None:
        self.sum = int(snapshot)


class LossyWay:
    """The way to a node, on which answers are lost: `lose(n)` lets n commands through, and breaks where their answers would come.

    With `shut` nobody gets through after that, until `open` is called.
    """

    def __init__(self, addr: str, store: Counter) -> None:
        self._addr = addr
        self._store = store
        self._losses = 0
        self._shuts = False
        self._is_shut = False
        self.addr = ""

    def lose(self, times: int, *, shut: bool = False) -> None:
        self._losses, self._shuts = times, shut
        self._store.added.clear()

    def open(self) -> None:
        self._is_shut = False

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_shut:
            return writer.close()
        host, port = self._addr.rsplit(":", 1)
        there_reader, there_writer = await asyncio.open_connection(host, int(port))

        async def to_node() -> None:
            while data := await reader.read(1 << 16):
                there_writer.write(data)
                await there_writer.drain()

        async def to_client() -> None:
            while data := await there_reader.read(1 << 16):
                if not self._losses or not self._store.added.is_set():
                    writer.write(data)
                    await writer.drain()
                    continue
                # What it says now answers the command: the connection breaks instead.
                self._losses -= 1
                self._is_shut = self._shuts
                self._store.added.clear()
                return

        ways = [asyncio.create_task(to_node()), asyncio.create_task(to_client())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, there_writer):
            end.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[LossyWay]:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.addr = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()


@asynccontextmanager
async def behind_a_lossy_way(
    directory: Path, *, session: bool = True, **settings: Any
) -> AsyncIterator[tuple[RaftServiceClient, Counter, LossyWay]]:
    """A client of a cluster of one."""
    store = Counter()
    async with (
        one_node(directory, store, **settings) as raft,
        LossyWay(raft.addr, store).listening() as way,
        RaftServiceClient.connect(way.addr, session=session) as client,
    ):
        yield client, store, way


async def test_a_command_whose_answer_is_lost_counts_once_and_is_answered(tmp_path: Path, log_engine: str) -> None:
    async with behind_a_lossy_way(tmp_path, log_engine=log_engine) as (client, store, way):
        assert await client.propose(b"add") == b"1"
        for number in range(2, 12):
            way.lose(1)
            assert int(await client.propose(b"add")) == number == store.sum
        way.lose(1)
        with pytest.raises(ApplyError, match="at 12") as raised:
            await client.propose(b"raise")
        assert (raised.value.committed, store.sum) == (True, 12)


async def test_without_a_session_it_is_not_sent_again(tmp_path: Path) -> None:
    async with behind_a_lossy_way(tmp_path, session=False) as (client, store, way):
        assert await client.propose(b"add") == b"1"
        way.lose(1)
        with pytest.raises(ConnectionFailed) as failed:
            await client.propose(b"add")
        assert (failed.value.committed, store.sum) == (None, 2)
        assert await client.propose(b"add") == b"3"


async def test_a_repeated_command_is_known_after_a_snapshot_and_a_restart(tmp_path: Path, log_engine: str) -> None:
    """Whoever restores the snapshot knows what was done, and what it came to, though no log says so any more."""
    config = quick_config(tmp_path, log_engine=log_engine, trailing_entries=0)
    store = Counter()
    async with contextlib.AsyncExitStack() as stack:
        raft = await stack.enter_async_context(Raft.build(1, free_addrs(1)[0], store, config))
        way = await stack.enter_async_context(LossyWay(raft.addr, store).listening())
        client = await stack.enter_async_context(RaftServiceClient.connect(way.addr, session=True))
        assert await client.propose(b"add", timeout=30) == b"1"
        way.lose(1, shut=True)
        asked = asyncio.create_task(client.propose(b"add", timeout=60))
        await store.added.wait()
        info = await raft.snapshot()
        assert (store.sum, info.size) == (2, 1), "the table of sessions is no part of the state"
        await raft.close()
        async with Raft.build(1, raft.addr, Counter(), config) as again:
            way.open()
            assert await asked == b"2"
            assert again.store.sum == 2
            assert await client.propose(b"add") == b"3"


async def test_many_at_a_time_with_answers_lost_come_to_as_many_different_sums(tmp_path: Path) -> None:
    async with behind_a_lossy_way(tmp_path, snapshot_entries=100) as (client, store, way):
        await client.propose(b"add")
        for _ in range(5):
            way.lose(3)
            sums = await asyncio.gather(*(client.propose(b"add", timeout=60) for _ in range(1500)))
            assert len(set(sums)) == len(sums)
        assert store.sum == 1 + 5 * 1500


async def test_leaders_change_and_every_command_counts_once(tmp_path: Path) -> None:
    async with nodes_in_one_loop(tmp_path, 3, Counter) as rafts:
        addrs = [raft.addr for raft in rafts]
        async with RaftServiceClient.connect(*addrs, session=True) as client:
            sums: list[bytes] = []

            async def add() -> None:
                for _ in range(100):
                    sums.append(await client.propose(b"add", timeout=60))

            adding = asyncio.gather(*(add() for _ in range(4)))
            while not adding.done():
                await asyncio.sleep(0.05)
                leader = next((raft for raft in rafts if raft.status.role == "leader"), None)
                if leader is not None:
                    await leader.step_down()
            await adding
        assert sorted(map(int, sums)) == list(range(1, 401))


async def test_a_session_says_what_is_known_at_its_deadline(tmp_path: Path) -> None:
    async with behind_a_lossy_way(tmp_path) as (client, store, way):
        await client.propose(b"add")
        way.lose(1, shut=True)
        with pytest.raises(RaftTimeout) as late:
            await client.propose(b"add", timeout=0.5)
        assert (late.value.committed, late.value.retryable) == (None, False)
        way.open()
        # It was done, and is not done again.
        assert (await client.propose(b"add"), store.sum) == (b"3", 3)


async def test_members_killed_at_random_moments_and_no_call_fails(tmp_path: Path, log_engine: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with cluster_of(tmp_path, snapshot_entries=200, trailing_entries=50, log_engine=log_engine) as cluster:
        async with RaftServiceClient.connect(*cluster.addrs, session=True) as client:

            async def propose(data: bytes) -> bytes:
                return await client.propose(data, timeout=120)

            writers = [asyncio.create_task(write_on(propose, f"client.{n}", cluster.take)) for n in range(8)]
            for blow in rng.sample(["leader"] * 4 + ["pause"] * 2 + ["all"], 7):
                await cluster.acknowledged(rng.randrange(300))
                leader = await cluster.leader()
                victims = cluster.members if blow == "all" else [leader]
                if blow == "pause":
                    leader.pause()
                    await cluster.acknowledged(50)
                    leader.resume()
                    continue
                await asyncio.gather(*(victim.kill() for victim in victims))
                await asyncio.gather(*(victim.start() for victim in victims))
            await cluster.acknowledged(100)
            failed = [write for write in cluster.history.writes.values() if write.ended and write.outcome != DONE]
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
        assert not failed, failed
        assert len(await cluster.same_state()) >= cluster.history.count(DONE) > 500


async def test_what_is_no_flag_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="session"):
        RaftServiceClient.connect("127.0.0.1:1", session=1)  # type: ignore[arg-type]

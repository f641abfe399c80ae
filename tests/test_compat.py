"""Programs of 0.1.67 and 0.1.78: `run()` ends with the node, members come from the configuration, handles do the rest."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from cluster import free_addrs, quick_config

from raftify_ffi import InitialRole, MachineFailed, Peer, Peers, RaftServiceClient
from raftify_ffi.compat import AbstractLogEntry, AbstractStateMachine, Raft, Slogger


class SetCommand(AbstractLogEntry):
    def __init__(self, key: str, value: str) -> None:
        self.key, self.value = key, value

    def encode(self) -> bytes:
        return f"{self.key}={self.value}".encode()

    @classmethod
    def decode(cls, packed: bytes) -> SetCommand:
        return cls(*packed.decode().split("=", 1))


class HashStore(AbstractStateMachine):
    def __init__(self) -> None:
        self.data: dict[str, str] = {}

    async def apply(self, message: bytes) -> bytes:
        command = SetCommand.decode(message)
        if command.key == "broken":
            raise OSError(command.value)
        self.data[command.key] = command.value
        return message

    async def snapshot(self) -> bytes:
        return b"\n".join(SetCommand(*pair).encode() for pair in self.data.items())

    async def restore(self, snapshot: bytes) -> None:
        self.data = dict(line.decode().split("=", 1) for line in snapshot.splitlines())


async def test_a_program_of_0_1_78_runs(tmp_path: Path) -> None:
    peers = Peers({node_id: Peer(addr, InitialRole.VOTER) for node_id, addr in enumerate(free_addrs(3), start=1)})
    rafts = [
        Raft.bootstrap(
            node_id, str(peers[node_id]), HashStore(), quick_config(tmp_path, initial_peers=peers), Slogger.default()
        )
        for node_id in peers
    ]
    runs = asyncio.gather(*(raft.run() for raft in rafts))
    client = await RaftServiceClient.build(str(peers[2]))
    await client.propose(SetCommand("a", "1").encode())
    nodes = [raft.get_raft_node() for raft in rafts]
    await nodes[2].propose(SetCommand("b", "2").encode())
    assert (await nodes[2].state_machine()).data == {"a": "1", "b": "2"}
    assert [await node.get_id() for node in nodes] == [1, 2, 3]
    assert await nodes[0].get_cluster_size() == 3
    assert await nodes[0].get_peers() == peers

    assert not runs.done()
    for node in nodes:
        await node.quit(timeout=5)
    assert await runs == [None, None, None]
    await client.close()


async def test_who_joins_does_so_between_the_call_of_run_and_its_end(tmp_path: Path) -> None:
    """As the README of those releases has it: their `run()` begins when it is called."""
    addr, peer_addr = free_addrs(2)
    first = Raft.bootstrap(1, peer_addr, HashStore(), quick_config(tmp_path))
    tasks = [first.run()]
    join_ticket = await Raft.request_id(addr, peer_addr)
    raft = Raft.bootstrap(join_ticket.get_reserved_id(), addr, HashStore(), quick_config(tmp_path), Slogger.default())
    tasks.append(raft.run())
    await raft.join([join_ticket])
    await raft.propose(SetCommand("a", "1").encode())
    assert first.store.data == {"a": "1"}
    for one in (raft, first):
        await one.get_raft_node().quit()
    assert await asyncio.gather(*tasks) == [None, None]


async def test_a_run_that_is_cancelled_at_once_leaves_no_node_behind(tmp_path: Path) -> None:
    raft = Raft.bootstrap(1, free_addrs(1)[0], HashStore(), quick_config(tmp_path))
    running = asyncio.create_task(raft.run())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    again = raft.run()
    async with RaftServiceClient.connect(raft.addr) as client:
        await client.propose(SetCommand("a", "1").encode())
    await raft.close()
    await again


async def test_run_raises_what_ended_the_node_and_closes_it_when_cancelled(tmp_path: Path) -> None:
    failing, cancelled = (Raft.bootstrap(1, free_addrs(1)[0], HashStore(), quick_config(tmp_path / n)) for n in "ab")
    async with RaftServiceClient.connect(failing.addr) as client:
        running = asyncio.create_task(failing.run())
        with pytest.raises(MachineFailed):
            await client.propose(SetCommand("broken", "disk").encode())
    with pytest.raises(MachineFailed, match="disk"):
        await running
    running = asyncio.create_task(cancelled.run())
    async with RaftServiceClient.connect(cancelled.addr) as client:
        await client.propose(SetCommand("a", "1").encode())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cancelled.is_finished()


def test_a_slogger_speaks_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    logger = Slogger.default()
    with caplog.at_level(1, "raftify"):
        for say in (logger.trace, logger.debug, logger.info, logger.warn, logger.error, logger.fatal):
            say("text")
    said = [(record.name, record.levelno) for record in caplog.records]
    assert said == [("raftify", level) for level in (5, logging.DEBUG, 20, 30, 40, 50)]

"""Clusters for tests: nodes in this loop. Processes are in `processes.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from processes import free_ports

from raftify_ffi import Config, Raft, RaftConfig


def free_addrs(count: int) -> list[str]:
    """Addresses nobody listens on."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def quick_config(log_dir: Path, **settings: Any) -> Config:
    """Short ticks, so that elections take tenths of a second."""
    settings.setdefault("tick_interval", 0.03)
    settings.setdefault("request_timeout", 20.0)
    settings.setdefault("raft_config", RaftConfig(election_tick=10, heartbeat_tick=2))
    return Config(log_dir=str(log_dir), **settings)


@asynccontextmanager
async def one_node(log_dir: Path, store: Any, **settings: Any) -> AsyncIterator[Raft[Any]]:
    """A cluster of one, with its leader."""
    async with Raft.build(1, free_addrs(1)[0], store, quick_config(log_dir, **settings)) as raft:
        await raft.wait_for(leader=True, timeout=30)
        yield raft


@asynccontextmanager
async def nodes_in_one_loop(
    log_dir: Path, count: int, store: Callable[[], Any], **settings: Any
) -> AsyncIterator[list[Raft[Any]]]:
    """Initial members of one cluster, all in this loop, with a leader."""
    peers = dict(enumerate(free_addrs(count), start=1))
    async with AsyncExitStack() as stack:
        rafts = [
            Raft.build(node_id, addr, store(), quick_config(log_dir, **settings), peers)
            for node_id, addr in peers.items()
        ]
        for raft in rafts:
            await stack.enter_async_context(raft)
        for raft in rafts:
            await raft.wait_for(leader=True, timeout=30)
        yield rafts


async def leader_of(rafts: Sequence[Raft[Any]]) -> Raft[Any]:
    """The node that leads, by what the nodes say of themselves."""
    while True:
        for raft in rafts:
            if not raft.is_finished() and raft.status.role == "leader":
                return raft
        first = next(raft for raft in rafts if not raft.is_finished())
        async for _ in first.events():
            if any(not raft.is_finished() and raft.status.role == "leader" for raft in rafts):
                break

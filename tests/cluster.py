"""Clusters for tests: nodes in this loop, or one process each."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from raftify_ffi import Config, Raft, RaftConfig

TESTS = Path(__file__).resolve().parent


def free_addrs(count: int) -> list[str]:
    """Addresses nobody listens on. Held open together, so that all differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()


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


class Process:
    """A Python program that says what it does on stdout, a line at a time."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.process = process
        self.name = name
        self.lines: list[str] = []

    @classmethod
    async def start(cls, name: str, *arguments: str, cwd: Path | None = None) -> Process:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
        }
        environment["PYTHONUNBUFFERED"] = "1"
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=cwd, env=environment
        )
        return cls(process, name)

    async def says(self, beginning: str) -> str:
        """The next line that begins so. The program ending first is a failure that shows what it said."""
        assert self.process.stdout is not None
        while True:
            line = (await self.process.stdout.readline()).decode()
            if not line:
                code = await self.process.wait()
                raise AssertionError(
                    f"{self.name} ended with {code} before it said {beginning!r}; it said {self.lines[-20:]}"
                )
            self.lines.append(line.rstrip("\n"))
            if line.startswith(beginning):
                return line.rstrip("\n")

    async def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()

    async def kill(self) -> None:
        """kill -9; nothing of it runs any more when this returns."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def ended(self) -> int:
        return await self.process.wait()


@asynccontextmanager
async def processes() -> AsyncIterator[list[Process]]:
    """A list to put processes in; what still runs at the end is killed."""
    running: list[Process] = []
    try:
        yield running
    finally:
        for process in running:
            await process.kill()


__all__ = [
    "Process",
    "free_addrs",
    "leader_of",
    "nodes_in_one_loop",
    "one_node",
    "processes",
    "quick_config",
]

"""What is left of a snapshot that fails, or that a close overtakes: nothing of the store's runs on, and the process lives."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cluster import quick_config
from stores import KeyValue

from raftify_ffi import Raft, SnapshotFailed

TOO_LARGE = """
import asyncio, gc, resource, sys
from raftify_ffi import Config, Raft, SnapshotFailed

class Large:
    def apply(self, command): return b""
    def snapshot(self): return bytes(8 << 20)
    def restore(self, snapshot): pass

async def main():
    async with Raft.build(1, "127.0.0.1:0", Large(), Config(log_dir=sys.argv[1], tick_interval=0.03)) as raft:
        await raft.propose(b"")
        resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, -1))
        try:
            await raft.snapshot()
        except SnapshotFailed:
            gc.collect()
            print(await raft.propose(b""))

asyncio.run(main())
"""

FORGETS = """
import asyncio, sys
from raftify_ffi import Config, Raft

class Nothing:
    def apply(self, command): return b""
    def snapshot(self): return b""
    def restore(self, snapshot): pass

async def main():
    raft = Raft.build(1, "127.0.0.1:0", Nothing(), Config(log_dir=sys.argv[1], tick_interval=0.03))
    await raft.run()
    await raft.propose(b"")

for _ in range(12):
    asyncio.run(main())
"""


def output_of(program: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)], cwd=directory, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sets a limit of POSIX")
def test_a_snapshot_that_cannot_be_written_does_not_end_the_process_when_garbage_is_collected(tmp_path: Path) -> None:
    assert "b''" in output_of(TOO_LARGE, tmp_path)


def test_a_loop_that_ends_under_its_node_is_not_closed_over_one_of_its_tasks(tmp_path: Path) -> None:
    assert "was destroyed" not in output_of(FORGETS, tmp_path)


class Streamed(KeyValue):
    """Its iterators say when they have ended."""

    def __init__(self, part: object) -> None:
        super().__init__()
        self.part = part
        self.begun = asyncio.Event()
        self.ended = 0

    async def parts(self) -> AsyncIterator[object]:
        try:
            while True:
                self.begun.set()
                await asyncio.sleep(0.01)
                yield self.part
        finally:
            await asyncio.sleep(0.1)
            self.ended += 1

    def snapshot(self) -> object:  # type: ignore[override]
        return self.parts()


class StreamedPlain(Streamed):
    def plain_parts(self) -> Iterator[object]:
        try:
            while True:
                yield self.part
        finally:
            self.ended += 1

    def snapshot(self) -> object:  # type: ignore[override]
        return self.plain_parts()


@pytest.mark.parametrize("kind", [Streamed, StreamedPlain])
async def test_the_iterator_of_a_snapshot_that_fails_has_ended_when_it_is_told(
    tmp_path: Path, kind: type[Streamed]
) -> None:
    store = kind("no bytes")
    async with Raft.build(1, "127.0.0.1:0", store, quick_config(tmp_path)) as raft:
        await raft.propose(b"a=1")
        with pytest.raises(SnapshotFailed, match="gave str"):
            await raft.snapshot()
        assert store.ended == 1


async def test_close_returns_after_the_iterator_of_a_snapshot_has_ended(tmp_path: Path) -> None:
    store = Streamed(bytes(1000))
    async with Raft.build(1, "127.0.0.1:0", store, quick_config(tmp_path)) as raft:
        await raft.propose(b"a=1")
        taken = asyncio.ensure_future(raft.snapshot())
        await store.begun.wait()
    assert store.ended == 1
    await asyncio.gather(taken, return_exceptions=True)

"""Loops, threads, forks and exits: a node's home ends, others call in, nothing hangs or aborts."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from cluster import free_addrs, one_node, quick_config
from stores import KeyValue

import raftify_ffi
from raftify_ffi import Raft, Role, _bridge

TESTS = Path(__file__).resolve().parent
PACKAGE = Path(raftify_ffi.__file__).resolve().parent


async def test_another_loop_may_call(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        found: list[Any] = []

        async def elsewhere() -> None:
            found.append(await asyncio.gather(*(raft.propose(f"{i}=x".encode()) for i in range(100))))
            found.append(
                await raft.read(lambda s: (len(s.data), threading.current_thread() is threading.main_thread()))
            )
            with pytest.raises(RuntimeError):
                await raft.read()
            with pytest.raises(RuntimeError):
                raft.stale_read(lambda s: s)
            found.append((await raft.wait_for(leader=True)).leader_id)
            async for event in raft.events():
                found.append(event)
                break

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        assert found[0] == [b""] * 100
        assert found[1] == (100, True)
        assert found[2] == 1
        assert len(found) == 4


async def test_another_loop_may_close_and_wait(tmp_path: Path) -> None:
    raft = Raft.build(1, free_addrs(1)[0], KeyValue(), quick_config(tmp_path))
    await raft.run()
    await asyncio.to_thread(lambda: asyncio.run(raft.close()))
    assert raft.is_finished()
    await raft.wait()


async def test_a_thread_without_a_loop_gets_a_runtime_error(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:

        def drive() -> None:
            with pytest.raises(RuntimeError):
                raft.propose(b"a=1").send(None)
            assert raft.status.role is Role.LEADER

        await asyncio.to_thread(drive)


def test_nothing_is_left_after_the_last_close(tmp_path: Path) -> None:
    async def body() -> None:
        for _ in range(3):
            async with one_node(tmp_path, KeyValue()) as raft:
                await raft.propose(b"a=1")
        assert not _bridge._bridges

    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    asyncio.run(body())
    if before:
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


def test_a_loop_that_ends_under_its_node_closes_it(tmp_path: Path) -> None:
    rafts: list[Raft[Any]] = []

    async def body() -> None:
        raft = Raft.build(1, free_addrs(1)[0], KeyValue(), quick_config(tmp_path))
        await raft.run()
        await raft.wait_for(leader=True)
        await raft.propose(b"a=1")
        rafts.append(raft)

    with pytest.warns(ResourceWarning, match="loop ended"):
        asyncio.run(body())
    assert rafts[0].is_finished()
    assert not _bridge._bridges

    async def again() -> None:
        async with one_node(tmp_path, KeyValue()) as raft:
            assert await raft.read(lambda s: s.data) == {"a": "1"}

    asyncio.run(again())


def test_a_loop_that_was_closed_under_its_node_is_found(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    raft = Raft.build(1, free_addrs(1)[0], KeyValue(), quick_config(tmp_path))
    loop.run_until_complete(raft.run())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.close()
        gc.collect()

    async def later() -> None:
        async with one_node(tmp_path / "other", KeyValue()):
            pass

    with pytest.warns(ResourceWarning, match="was closed under them"):
        asyncio.run(later())
    assert raft.is_finished()


def test_a_loop_that_ends_while_the_last_thing_is_freed_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    free = _bridge.Bridge._free

    def freed_when_the_loop_has_ended(bridge: _bridge.Bridge, timeout: float | None) -> None:
        assert ended.wait(20)
        free(bridge, timeout)

    monkeypatch.setattr(_bridge.Bridge, "_free", freed_when_the_loop_has_ended)
    loop = asyncio.new_event_loop()
    raft = Raft.build(1, free_addrs(1)[0], KeyValue(), quick_config(tmp_path))
    loop.run_until_complete(raft.run())
    closing = loop.create_task(raft.close())

    async def taken_down() -> None:
        while _bridge._bridges:
            await asyncio.sleep(0.01)

    loop.run_until_complete(taken_down())
    assert not closing.done()
    loop.close()
    ended.set()

    async def elsewhere() -> None:
        await raft.wait(timeout=20)

    asyncio.run(elsewhere())
    assert raft.is_finished()


class NoReaders(asyncio.SelectorEventLoop):
    """A loop without readiness, as Windows' proactor is."""

    def add_reader(self, *_: object) -> None:
        raise NotImplementedError


def test_a_loop_without_readers_is_served_by_a_thread(tmp_path: Path) -> None:
    async def body() -> None:
        async with one_node(tmp_path, KeyValue()) as raft:
            assert await asyncio.gather(*(raft.propose(f"{i}=1".encode()) for i in range(100))) == [b""] * 100

    loop = NoReaders()
    try:
        loop.run_until_complete(body())
    finally:
        loop.close()


def run_program(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A program of its own: its exit is what is tested."""
    program = f"""
import asyncio, os, sys, threading
sys.path[:0] = [{str(TESTS)!r}, {str(PACKAGE.parent)!r}]
from pathlib import Path
from cluster import free_addrs, quick_config
from raftify_ffi import *
from stores import KeyValue
tmp = Path({str(tmp_path)!r})
def build():
    return Raft.build(1, free_addrs(1)[0], KeyValue(), quick_config(tmp))
{body}
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "body",
    [
        # The interpreter ends while the node runs, on a loop that nobody closes.
        "loop = asyncio.new_event_loop()\nraft = build()\nloop.run_until_complete(raft.run())\nprint('end')",
        # In the middle of traffic.
        "async def main():\n    raft = build()\n    await raft.run()\n"
        "    tasks = [asyncio.ensure_future(raft.propose(b'a=%d' % i)) for i in range(5000)]\n    await tasks[0]\n    print('end')\n"
        "asyncio.run(main())",
        # On a daemon thread's loop.
        "ready = threading.Event()\nasync def main():\n    raft = build()\n    await raft.run()\n    ready.set()\n"
        "    while True: await raft.propose(b'a=1')\n"
        "threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()\nready.wait()\nprint('end')",
    ],
)
def test_a_program_may_end_without_closing(tmp_path: Path, body: str) -> None:
    done = run_program(tmp_path, body)
    assert done.stdout == "end\n", done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_an_error_and_the_parent_goes_on(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
async def main():
    raft = build()
    await raft.run()
    await raft.wait_for(leader=True)
    await raft.propose(b'a=1')
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            raft.propose(b'a=2').send(None)
        except Forked:
            code = 7
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(await raft.propose(b'a=3'))
    await raft.close()
asyncio.run(main())
""",
    )
    assert done.stdout == "7\nb'1'\n", done.stderr
    assert done.returncode == 0, done.stderr

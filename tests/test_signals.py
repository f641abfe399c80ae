"""Signals are the program's business: none of them reaches a thread of the library, and none ends the program for what the library does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import one_node
from stores import KeyValue
from test_seed_program import environment

PROGRAM = Path(__file__).resolve().parent / "programs" / "default_sigpipe.py"
TASKS = Path("/proc/self/task")

pytestmark = pytest.mark.skipif(not TASKS.is_dir(), reason="no /proc here")


def blocked(task: Path) -> set[int]:
    (line,) = (line for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk:"))
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


async def test_no_thread_of_the_library_takes_a_signal_of_the_program(tmp_path: Path) -> None:
    before = {task.name for task in TASKS.iterdir()}
    async with one_node(tmp_path, KeyValue()) as raft:
        await raft.propose(b"a=1")
        threads = {
            (task / "comm").read_text().strip(): blocked(task) for task in TASKS.iterdir() if task.name not in before
        }
        ours = {name: mask for name, mask in threads.items() if name.startswith("raft")}
        assert {"raftify-net", "raftify-watch"} <= set(ours), threads
        for name, mask in ours.items():
            assert {signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM} <= mask, name
            # What a fault of the thread itself raises ends the program as ever.
            assert not {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT} & mask, name
        assert not {signal.SIGINT, signal.SIGTERM} & blocked(TASKS / str(os.getpid())), (
            "the program's own thread is as it was"
        )


async def test_a_handler_that_comes_in_the_middle_of_a_call_may_ask_for_the_status(tmp_path: Path) -> None:
    async with one_node(tmp_path, KeyValue()) as raft:
        running = raft._running
        assert running is not None
        # As the thread is when a signal comes while it proposes.
        with running.pointer._lock:
            assert raft.status.node_id == 1


def test_a_peer_that_goes_away_does_not_end_a_program_that_leaves_sigpipe_alone(tmp_path: Path) -> None:
    for attempt in range(3):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        command = [sys.executable, str(PROGRAM), str(directory)]
        ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
        assert (ran.returncode, ran.stdout) == (0, "alive\n"), ran.stderr


def test_a_loop_that_is_closed_while_a_thread_of_the_package_wakes_it_does_not_end_the_program(tmp_path: Path) -> None:
    """Between the two ends of its pipe, that is: asyncio closes the one that is read first. No signal at all comes to such a thread."""
    program = """
import asyncio, signal, socket
from raftify_ffi._threads import in_thread
signal.signal(signal.SIGPIPE, signal.SIG_DFL)

async def main():
    loop = asyncio.get_running_loop()

    def work():
        loop._ssock.shutdown(socket.SHUT_RD)
        return signal.pthread_sigmask(signal.SIG_BLOCK, [])

    working = asyncio.ensure_future(in_thread(work))
    while not working.done():
        await asyncio.sleep(0.01)
    blocked = working.result()
    assert {signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD} <= blocked, blocked
    assert not {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT} & blocked, blocked
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []), "the program's own thread is as it was"
    print("alive", flush=True)

asyncio.run(main())
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "alive\n"), ran.stderr

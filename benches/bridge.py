"""The bridge alone: what the program's own thread spends on each proposal, with a node that is a cluster of its own.

Raft, log and disk have other threads, whose time is not counted. `asyncio alone` is the same program with a library that does nothing: what it
takes is no library's to save. A line of JSON for each row, the least of its windows: thread_us is CPU time of that thread a proposal, waits how
often it slept, both with the program's own work and that of its state machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from cluster import DATA, build, free_ports
from load import Run
from store import AsyncStore, Store

from raftify_ffi import Config, Raft

PAYLOAD = 128
WARM = 0.2
IN_FLIGHT = (1, 64, 256, 1024)
MANY = 64
#: Entries of the log that a node replays, as a follower applies what others propose.
REPLAYED = 200_000


@dataclass(frozen=True)
class Effort:
    """What else the machine does only adds to the time of a window: the least is nearest to what the bridge takes."""

    seconds: float
    windows: int


class Nothing:
    """A library that answers in the next turn of the loop whatever was proposed in this one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[bytes, asyncio.Future[bytes]]] = []

    async def propose(self, command: bytes) -> bytes:
        if not self._waiting:
            self._loop.call_soon(self._loop.call_soon, self._answer)
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append((command, future))
        return await future

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for command, future in waiting:
            self._store.apply(command)
            future.set_result(b"")


class Spent:
    """What this thread has spent since then."""

    def __init__(self) -> None:
        self._cpu, self._waits, self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, int, float]:
        return time.thread_time(), resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw, time.perf_counter()

    def each(self, proposals: int) -> dict[str, float]:
        cpu, waits, now = self._now()
        return {
            "thread_us": round((cpu - self._cpu) / proposals * 1e6, 3),
            "waits": round((waits - self._waits) / proposals, 4),
            "a_second": round(proposals / (now - self._began)),
        }


class Counted(Run):
    """A load that counts what its thread spends in the window."""

    spent: Spent
    each: dict[str, float]

    def _tell(self, word: str) -> None:
        if word == "MEASURE":
            self.spent = Spent()
        else:
            self.each = self.spent.each(max(1, len(self._latencies)))


def report(side: str, in_flight: int, each: dict[str, float]) -> None:
    row = {"part": "bridge", "side": side, "in_flight": in_flight, **each}
    print(json.dumps(row, separators=(",", ":")), flush=True)


async def measure(side: str, load: Callable[[], Counted], in_flight: int, effort: Effort) -> None:
    windows = []
    for _ in range(effort.windows):
        run = load()
        result = await run.run(in_flight, effort.seconds, WARM)
        if result["errors"] or not result["drained"]:
            raise SystemExit(f"bench: {side}: proposals failed: {result['err_sample'] or 'not all came back'}")
        windows.append(run.each)
    report(side, in_flight, least(windows))


def least(windows: list[dict[str, float]]) -> dict[str, float]:
    return min(windows, key=itemgetter("thread_us"))


@contextmanager
def directory() -> Iterator[Path]:
    path = DATA / "bridge"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def node(store: Store, path: Path) -> Raft[Store]:
    own = {1: f"127.0.0.1:{free_ports(1)[0]}"}
    # No snapshots: they are another scenario's (stress/half_load.py).
    return Raft.build(1, own[1], store, Config(log_dir=str(path), snapshot_entries=0, snapshot_bytes=0), own)


async def alone(effort: Effort) -> None:
    for in_flight in IN_FLIGHT:
        await measure("asyncio alone", lambda: Counted(PAYLOAD, Nothing(Store()).propose), in_flight, effort)


async def proposing(side: str, store: Store, many: int, effort: Effort) -> None:
    with directory() as path:
        async with node(store, path) as raft:
            await raft.wait_for(leader=True)
            for in_flight in IN_FLIGHT:
                if in_flight >= many:
                    await measure(
                        side, lambda: Counted(PAYLOAD, raft.propose, raft.propose_many, many), in_flight, effort
                    )


async def applying(side: str, kind: type[Store], effort: Effort) -> None:
    """A node that starts again applies its log as a follower does: nobody in its process waits for a result."""
    with directory() as path:
        async with node(Store(), path) as raft:
            await raft.wait_for(leader=True)
            for _ in range(REPLAYED // 1000):
                await raft.propose_many([number.to_bytes(8, "big") + bytes(PAYLOAD - 8) for number in range(1000)])
        windows = []
        for _ in range(effort.windows):
            store = kind()
            raft = node(store, path)
            spent = Spent()
            async with raft:
                await raft.wait_for(leader=True)
                windows.append(spent.each(store.applied))
        report(side, 0, least(windows))


def in_c(effort: Effort) -> None:
    program = build("c") / "bridge"
    with directory() as path:
        command = [str(program), f"127.0.0.1:{free_ports(1)[0]}", str(path), str(effort.seconds), str(effort.windows)]
        if subprocess.run(command).returncode != 0:
            raise SystemExit("bench: the bridge in C failed, see above")


def in_python(effort: Effort) -> None:
    asyncio.run(alone(effort))
    asyncio.run(proposing("Python", Store(), 0, effort))
    asyncio.run(proposing("Python, async apply", AsyncStore(), 0, effort))
    asyncio.run(proposing(f"Python, propose_many of {MANY}", Store(), MANY, effort))
    asyncio.run(applying("Python, a follower", Store, effort))
    asyncio.run(applying("Python, a follower, async apply", AsyncStore, effort))


SIDES = {"c": in_c, "python": in_python}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="*", metavar="side", help="c, python; both unless one is named")
    parser.add_argument("--secs", type=float, default=1.0, help="of each window")
    parser.add_argument("--windows", type=int, default=3, help="of each row")
    args = parser.parse_args()
    if not 0 < args.secs < 3600:
        parser.error(f"{args.secs}: seconds of a window are more than 0 and less than 3600")
    if args.windows < 1:
        parser.error(f"{args.windows}: a row takes one window or more")
    unknown = set(args.sides) - set(SIDES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: a side is c or python")
    for side in dict.fromkeys(args.sides or SIDES):
        SIDES[side](Effort(args.secs, args.windows))


if __name__ == "__main__":
    main()

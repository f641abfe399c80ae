"""While a long batch is applied the rest of the loop gets its turns: after 5 ms or 1,000 entries. The clock is the test's own."""

from __future__ import annotations

import asyncio
import struct

import pytest

from raftify_ffi import _applier
from raftify_ffi._applier import Applier, ApplyRequest
from raftify_ffi._store import inspect_store
from raftify_ffi._waiters import Waiters

ENTRY = struct.Struct("=QQQQIIQ")


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Node:
    """Of the library, only that it is told."""

    def call(self, *_: object) -> None:
        pass


class Store:
    """The command says how many microseconds it takes to apply."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.applied = 0
        self.seconds = 0.0

    def apply(self, command: bytes) -> None:
        (micros,) = struct.unpack("<I", command)
        self.applied += 1
        self.seconds += micros / 1e6
        self.clock.now += micros / 1e6

    def snapshot(self) -> bytes:
        return b""

    def restore(self, snapshot: bytes) -> None:
        raise NotImplementedError


class AsyncStore(Store):
    async def apply(self, command: bytes) -> None:  # type: ignore[override]
        super().apply(command)


def batch(micros: list[int]) -> ApplyRequest:
    places = range(1, len(micros) + 1)
    start = len(micros) * ENTRY.size
    table = b"".join(ENTRY.pack(at, 1, 0, start + 4 * (at - 1), 4, 0, 0) for at in places)
    return ApplyRequest(1, len(micros), table + struct.pack(f"<{len(micros)}I", *micros))


@pytest.mark.parametrize("kind", [Store, AsyncStore])
@pytest.mark.parametrize(
    ("what", "micros", "most_entries", "most_seconds"),
    [
        ("quick ones", [1] * 5000, 1000, 0.005),
        ("some that take a while", [300] * 200, 1000, 0.0053),
        ("slow ones", [2000] * 50, 1000, 0.0065),
        ("each longer than a turn", [20_000] * 20, 1, 0.02),
        ("slow ones after quick ones", [1] * 501 + [20_000] * 20, 1000, 0.0206),
    ],
)
async def test_the_loop_gets_its_turns(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Store],
    what: str,
    micros: list[int],
    most_entries: int,
    most_seconds: float,
) -> None:
    clock = Clock()
    monkeypatch.setattr(_applier, "time", clock)
    store = kind(clock)
    applier = Applier(Node(), 1, inspect_store(store), False, Waiters(asyncio.get_running_loop()))  # type: ignore[arg-type]
    task = applier.start(applier.run())
    await asyncio.sleep(0)
    applier.put(batch(micros), 1)
    entries = seconds = 0.0
    turns = 0
    while store.applied < len(micros):
        assert store.applied - entries <= most_entries, what
        assert store.seconds - seconds <= most_seconds + 1e-9, what
        entries, seconds = store.applied, store.seconds
        turns += 1
        await asyncio.sleep(0)
    assert turns >= max(len(micros) // 1000, int(sum(micros) / 1e6 / most_seconds)), what
    applier.stop()
    await task

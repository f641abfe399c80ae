"""The driver's side of the bench protocol (README.md): reads commands on stdin, keeps proposals in flight, reports what
it measured."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Awaitable, Callable

Propose = Callable[[bytes], Awaitable[object]]
ProposeMany = Callable[[list[bytes]], Awaitable[object]]

#: Time for the last proposals of a run to come back, seconds.
DRAIN = 20.0


def say(line: str) -> None:
    # One write a line: the reader takes the time of its arrival.
    os.write(1, line.encode() + b"\n")


class Map:
    """The replicated state: 8-byte key to value. Equal on all nodes when a run is over."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.applied = 0

    def put(self, command: bytes) -> None:
        self.values[command[:8]] = command[8:]
        self.applied += 1

    def dump(self) -> bytes:
        parts = [struct.pack(">Q", self.applied)]
        for key, value in self.values.items():
            parts += (key, struct.pack(">I", len(value)), value)
        return b"".join(parts)

    def load(self, dumped: bytes) -> None:
        self.values = {}
        (self.applied,) = struct.unpack_from(">Q", dumped)
        at = 8
        while at < len(dumped):
            key = dumped[at : at + 8]
            (size,) = struct.unpack_from(">I", dumped, at + 8)
            self.values[key] = dumped[at + 12 : at + 12 + size]
            at += 12 + size

    def state(self) -> dict[str, int]:
        digest = 0
        for key in sorted(self.values):
            digest = zlib.crc32(self.values[key], zlib.crc32(key, digest))
        return {"applied": self.applied, "keys": len(self.values), "digest": digest}


class Window:
    """What every workload has, however it proposes. Only what completes inside the window counts."""

    def __init__(self, payload: int) -> None:
        value = os.urandom(payload - 8)
        # The state stays at 16 MiB or below, whatever the payload.
        keys = 10_000 if payload <= 4096 else max(1, min(1024, (16 << 20) // payload))
        commands = [struct.pack(">Q", key) + value for key in range(keys)]
        #: Made beforehand, one after the other in memory: what is measured is the library.
        self._commands = itertools.cycle(commands)
        self._latencies: list[float] = []
        self._errors = 0
        self._sample = ""
        self._measuring = False
        self._over = False
        self._begun = self._took = 0.0

    def _tell(self, word: str) -> None:
        """To whom asked: the window begins or ends."""
        say(word)

    def _begin(self) -> None:
        self._measuring = True
        self._tell("MEASURE")
        self._begun = time.perf_counter()

    def _end(self) -> None:
        self._measuring, self._over = False, True
        self._took = time.perf_counter() - self._begun
        self._tell("END")

    def _result(self, drained: bool) -> dict[str, object]:
        """The answer to BENCH."""
        ordered = sorted(self._latencies)

        def quantile(q: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1e3, 3) if ordered else 0.0

        return {
            "n": len(ordered),
            "errors": self._errors,
            "secs": self._took,
            "p50_ms": quantile(0.5),
            "p99_ms": quantile(0.99),
            "max_ms": quantile(1.0),
            "err_sample": self._sample,
            "drained": drained,
        }


class Run(Window):
    """One workload of an asyncio program: warm-up, window, drain."""

    def __init__(self, payload: int, propose: Propose, propose_many: ProposeMany | None = None, many: int = 0) -> None:
        """`many`: so many commands a call of `propose_many`; 0: a call of `propose` for each."""
        super().__init__(payload)
        self._propose = propose
        self._propose_many = propose_many
        self._many = many

    async def _worker(self) -> None:
        commands, propose, now = self._commands, self._propose, time.perf_counter
        while not self._over:
            command = next(commands)
            start = now()
            try:
                await propose(command)
            except Exception as error:  # every failure is counted, whatever its kind
                await self._failed(error, 1)
            else:
                if self._measuring:
                    self._latencies.append(now() - start)

    async def _worker_of_many(self, propose_many: ProposeMany, many: int) -> None:
        while not self._over:
            commands = list(itertools.islice(self._commands, many))
            start = time.perf_counter()
            try:
                await propose_many(commands)
            except Exception as error:
                await self._failed(error, many)
            else:
                if self._measuring:
                    self._latencies += [time.perf_counter() - start] * many

    async def _failed(self, error: Exception, commands: int) -> None:
        if self._measuring:
            self._errors += commands
        self._sample = f"{type(error).__name__}: {error}"[:200]
        # A refusal returns at once: without a pause this would spin.
        await asyncio.sleep(0.002)

    def _start(self, inflight: int) -> list[asyncio.Task[None]]:
        if self._many and self._propose_many is not None:
            many = min(self._many, inflight)
            return [
                asyncio.create_task(self._worker_of_many(self._propose_many, many)) for _ in range(inflight // many)
            ]
        return [asyncio.create_task(self._worker()) for _ in range(inflight)]

    async def run(self, inflight: int, seconds: float, warmup: float) -> dict[str, object]:
        workers = self._start(inflight)
        await asyncio.sleep(warmup)
        self._begin()
        await asyncio.sleep(seconds)
        self._end()
        _, pending = await asyncio.wait(workers, timeout=DRAIN)
        for worker in pending:
            worker.cancel()
        return self._result(drained=not pending)


async def serve(
    node_id: int,
    leader: Callable[[], int | None],
    propose: Propose,
    state: Map,
    propose_many: ProposeMany | None = None,
    many: int = 0,
) -> None:
    """Answers commands until QUIT or the end of input. `many`: see `Run`."""
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(commands.put_nowait, line)
        loop.call_soon_threadsafe(commands.put_nowait, "QUIT")

    threading.Thread(target=read, daemon=True).start()
    say(f"READY {leader() or 0}")
    while True:
        word, *arguments = (await commands.get()).split() or [""]
        if word == "QUIT":
            return
        if word == "STATE":
            say(json.dumps(state.state()))
        elif word == "BENCH":
            if leader() != node_id:
                say(json.dumps({"error": "not leader", "leader": leader() or 0}))
                continue
            payload, inflight, seconds, warmup = map(int, arguments[:4])
            say(json.dumps(await Run(payload, propose, propose_many, many).run(inflight, seconds, warmup)))

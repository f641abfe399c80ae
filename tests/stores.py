"""State machines for tests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from raftify_ffi import Applied


class KeyValue:
    """`key=value` sets and answers the old value; the state is JSON."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.applied = 0

    def apply(self, command: bytes) -> bytes:
        key, _, value = command.decode().partition("=")
        old = self.data.get(key, "")
        self.data[key] = value
        self.applied += 1
        return old.encode()

    def snapshot(self) -> bytes:
        return json.dumps(self.data).encode()

    def restore(self, snapshot: bytes) -> None:
        self.data = json.loads(snapshot)


class AsyncKeyValue(KeyValue):
    """The same, suspending in the middle of every method; `half_done` is true meanwhile."""

    half_done = False

    async def apply(self, command: bytes) -> bytes:  # type: ignore[override]
        self.half_done = True
        await asyncio.sleep(0)
        answer = super().apply(command)
        await asyncio.sleep(0)
        self.half_done = False
        return answer

    async def snapshot(self) -> bytes:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().snapshot()

    async def restore(self, snapshot: bytes) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().restore(snapshot)


class Scripted(KeyValue):
    """Commands name what happens: `raise:ValueError:text`, `return:str`, `wait`, or `key=value`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.seen: list[Applied] = []

    async def apply(self, command: bytes, applied: Applied | None = None) -> Any:  # type: ignore[override]
        if applied is not None:
            self.seen.append(applied)
        word, _, rest = command.decode().partition(":")
        if word == "raise":
            name, _, text = rest.partition(":")
            kinds = {kind.__name__: kind for kind in (ValueError, OSError, MemoryError, KeyError, TimeoutError)}
            raise kinds[name](text)
        if word == "return":
            return {
                "str": "text",
                "none": None,
                "bytearray": bytearray(b"array"),
                "view": memoryview(b"view"),
                "int": 5,
            }[rest]
        if word == "wait":
            self.entered.set()
            await self.gate.wait()
            return b"waited"
        return super().apply(command)

"""State machines for tests."""

from __future__ import annotations

import asyncio
import builtins
import json
import time
import zlib
from collections.abc import Iterable, Iterator
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


class Journal:
    """Appends every command and answers its place. The state is one line a command: index, value.

    Commands that begin with a word do more, on the nodes they name (`node_id` of the store): `sleep:NODE:SECONDS:…` suspends,
    `block:NODE:SECONDS:…` blocks the loop, `raise:NODE:KIND:…` raises.
    """

    def __init__(self, node_id: int = 0) -> None:
        self.node_id = node_id
        self.lines: list[str] = []
        self.last_index = 0

    def __len__(self) -> int:
        return len(self.lines)

    async def apply(self, command: bytes, applied: Applied) -> bytes:
        # A long command is kept by its length and sum. Padding makes the log grow faster than the state.
        value = command.decode().rstrip() if len(command) <= 1000 else f"{len(command)}:{zlib.crc32(command)}"
        word, _, rest = value.partition(":")
        if word in ("sleep", "block", "raise"):
            node, what, _ = rest.split(":", 2)
            if int(node) == self.node_id:
                if word == "sleep":
                    await asyncio.sleep(float(what))
                elif word == "block":
                    time.sleep(float(what))
                else:
                    raise getattr(builtins, what)(value)
        assert applied.index > self.last_index, f"index {applied.index} after {self.last_index}"
        self.last_index = applied.index
        self.lines.append(f"{applied.index} {value}")
        return str(len(self.lines) - 1).encode()

    def snapshot(self) -> bytes:
        return "".join(f"{line}\n" for line in self.lines).encode()

    def restore(self, snapshot: bytes) -> None:
        self.lines = snapshot.decode().splitlines()
        self.last_index = int(self.lines[-1].partition(" ")[0]) if self.lines else 0


class Bulky(Journal):
    """A journal whose state also has so many MiB that cost nothing to make: each is its number and the last index, repeated."""

    def __init__(self, node_id: int = 0, mib: int = 0) -> None:
        super().__init__(node_id)
        self.mib = mib

    @staticmethod
    def _block(number: int, index: int) -> bytes:
        return f"{number:07d},{index:07d};".encode() * (1 << 16)

    def snapshot(self) -> Any:
        head = super().snapshot()
        index = self.last_index

        def chunks() -> Iterator[bytes]:
            yield len(head).to_bytes(8, "big") + head
            for number in range(self.mib):
                yield self._block(number, index)

        return chunks()

    def restore_chunks(self, chunks: Iterable[bytes]) -> None:
        """Checks every block; holds one."""
        data = bytearray()
        head_done = False
        number = 0
        for chunk in chunks:
            data += chunk
            if not head_done and len(data) >= 8 and len(data) >= 8 + int.from_bytes(data[:8], "big"):
                size = int.from_bytes(data[:8], "big")
                super().restore(bytes(data[8 : 8 + size]))
                del data[: 8 + size]
                head_done = True
            while head_done and len(data) >= 1 << 20:
                assert data[: 1 << 20] == self._block(number, self.last_index), f"block {number}"
                del data[: 1 << 20]
                number += 1
        assert number == self.mib and not data, f"{number} blocks and {len(data)} bytes"

    def restore(self, snapshot: bytes) -> None:
        raise AssertionError("not called where there is restore_chunks")

"""The replicated map as state machines of ours."""

from __future__ import annotations

from load import Map


class Store(Map):
    def apply(self, command: bytes) -> None:
        self.put(command)

    def snapshot(self) -> bytes:
        return self.dump()

    def restore(self, snapshot: bytes) -> None:
        self.load(snapshot)


class AsyncStore(Store):
    async def apply(self, command: bytes) -> None:  # type: ignore[override]
        self.put(command)

"""The replicated state of the example: a dictionary of strings, and the one command that changes it."""

from __future__ import annotations

import json


class SetCommand:
    """Set `key` to `value`. Travels as JSON: readable in `raftify_cli debug persisted`, and never a risk to load."""

    def __init__(self, key: str, value: str) -> None:
        self.key = key
        self.value = value

    def encode(self) -> bytes:
        return json.dumps({"key": self.key, "value": self.value}).encode()

    @classmethod
    def decode(cls, packed: bytes) -> SetCommand:
        unpacked = json.loads(packed)
        return cls(str(unpacked["key"]), str(unpacked["value"]))


class HashStore:
    """Every node applies the same commands in the same order, so every node holds the same dictionary."""

    def __init__(self) -> None:
        self._store: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        return self._store.get(key)

    def __len__(self) -> int:
        return len(self._store)

    async def apply(self, message: bytes) -> bytes:
        # A command that cannot be decoded raises here, on every node alike: its proposer gets ApplyError, the cluster
        # goes on.
        command = SetCommand.decode(message)
        self._store[command.key] = command.value
        return message

    async def snapshot(self) -> bytes:
        return json.dumps(self._store).encode()

    async def restore(self, snapshot: bytes) -> None:
        self._store = json.loads(snapshot)

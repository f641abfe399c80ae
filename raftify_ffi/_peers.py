"""`Peers`: node ids and their addresses, as a mapping; `Peer`: an address that also knows its role."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from ._address import checked_address, checked_node_id
from ._errors import InvalidConfig


class InitialRole(enum.IntEnum):
    """What a member starts as."""

    LEADER = 0
    VOTER = 1
    LEARNER = 2

    @classmethod
    def from_str(cls, name: str) -> InitialRole:
        try:
            return cls[name.upper()]
        except (KeyError, AttributeError):
            raise ValueError(f"{name!r} is no role; use leader, voter or learner") from None


def checked_role(value: object) -> InitialRole:
    """A role, or its number."""
    try:
        return InitialRole(value)  # type: ignore[arg-type]
    except ValueError:
        raise InvalidConfig(
            f"role: {value!r} is no role; use InitialRole.LEADER, .VOTER or .LEARNER", field="role", value=value
        ) from None


class Peer(str):
    """The address of a member, with its role: a `str`, so it can be used wherever an address is wanted."""

    __slots__ = ("role",)
    role: InitialRole

    def __new__(cls, addr: str, role: InitialRole = InitialRole.VOTER) -> Peer:
        peer = super().__new__(cls, checked_address(addr, "addr"))
        peer.role = checked_role(role)
        return peer

    def get_addr(self) -> str:
        return str(self)

    def get_role(self) -> InitialRole:
        return self.role

    async def connect(self) -> None:
        """Raises `OSError` if nobody listens there."""
        host, _, port = self.rpartition(":")
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()

    def __str__(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return f"Peer({str.__repr__(self)}, {self.role.name})"

    def __getnewargs__(self) -> tuple[str, InitialRole]:  # type: ignore[override]
        return str(self), self.role


class Peers(MutableMapping[int, Peer]):
    """Members by id. Accepts any mapping of id to address; values come back as `Peer`."""

    __slots__ = ("_peers",)

    def __init__(self, peers: Mapping[int, str] | None = None) -> None:
        self._peers: dict[int, Peer] = {}
        for node_id, peer in dict(peers or {}).items():
            self[node_id] = peer

    def __getitem__(self, node_id: int) -> Peer:
        return self._peers[node_id]

    def __setitem__(self, node_id: int, peer: str) -> None:
        checked_node_id(node_id, "peers")
        if not isinstance(peer, Peer):
            peer = Peer(checked_address(peer, "peers", f"node {node_id}"))
        self._peers[node_id] = peer

    def __delitem__(self, node_id: int) -> None:
        del self._peers[node_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._peers)

    def __len__(self) -> int:
        return len(self._peers)

    def __repr__(self) -> str:
        return f"Peers({ {node_id: str(peer) for node_id, peer in self._peers.items()} })"

    # The names of earlier releases.

    def is_empty(self) -> bool:
        return not self._peers

    def to_dict(self) -> dict[int, str]:
        return {node_id: str(peer) for node_id, peer in self._peers.items()}

    def add_peer(self, node_id: int, addr: str, role: InitialRole = InitialRole.VOTER) -> None:
        self[node_id] = Peer(addr, role)

    def remove(self, node_id: int) -> None:
        """Removes the member; one that is not there is no error."""
        self._peers.pop(node_id, None)

    def get_node_id_by_addr(self, addr: str) -> int | None:
        return next((node_id for node_id, peer in self._peers.items() if peer == addr), None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Peers, (dict(self._peers),)


def learners_of(peers: Mapping[int, str]) -> list[int]:
    """Of initial members, those that begin as learners."""
    return [node_id for node_id, peer in peers.items() if isinstance(peer, Peer) and peer.role is InitialRole.LEARNER]


def checked_peers(value: object) -> Peers | None:
    """What `Raft.build` takes: None, a `Peers`, or a mapping of id to address."""
    if value is None or isinstance(value, Peers):
        return value
    if not isinstance(value, Mapping):
        raise InvalidConfig(
            f'peers: {value!r} is neither None, a Peers nor a dict {{id: "host:port"}}', field="peers", value=value
        )
    return Peers(value)

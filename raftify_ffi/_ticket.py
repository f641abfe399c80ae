"""`ClusterJoinTicket`: an id reserved in a cluster, and where that cluster is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._errors import InvalidArgument
from ._peers import Peers, checked_peers


@dataclass(frozen=True)
class ClusterJoinTicket:
    """What `Raft.request_id` returns and `join` takes. Plain data: it may be sent to another process as a dict or JSON."""

    reserved_id: int
    #: The address it was reserved for; empty if none was named.
    raft_addr: str
    leader_addr: str
    #: The members at the time.
    peers: Peers = field(default_factory=Peers)
    leader_id: int = 0
    #: The random number of the cluster, hexadecimal: another cluster at the same address is refused.
    incarnation: str = ""

    def get_reserved_id(self) -> int:
        return self.reserved_id

    def to_dict(self) -> dict[str, Any]:
        return {
            "reserved_id": self.reserved_id,
            "raft_addr": self.raft_addr,
            "leader_id": self.leader_id,
            "leader_addr": self.leader_addr,
            "peers": {str(node_id): addr for node_id, addr in self.peers.to_dict().items()},
            "incarnation": self.incarnation,
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> ClusterJoinTicket:
        try:
            return cls(
                reserved_id=int(facts["reserved_id"]),
                raft_addr=str(facts.get("raft_addr", "")),
                leader_addr=str(facts["leader_addr"]),
                peers=checked_peers({int(node_id): addr for node_id, addr in dict(facts.get("peers", {})).items()})
                or Peers(),
                leader_id=int(facts.get("leader_id", 0)),
                incarnation=str(facts.get("incarnation", "")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"not a ticket: {error!r} in {facts!r}; use what Raft.request_id returned") from error

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> ClusterJoinTicket:
        try:
            facts = json.loads(text)
        except ValueError as error:
            raise InvalidArgument(f"not a ticket: {error}") from error
        if not isinstance(facts, Mapping):
            raise InvalidArgument(f"not a ticket: {facts!r} is not an object")
        return cls.from_dict(facts)

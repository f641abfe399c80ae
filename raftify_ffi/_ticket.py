"""`ClusterJoinTicket`: an id reserved in a cluster, and where that cluster is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._address import checked_address, checked_node_id
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

    def __post_init__(self) -> None:
        checked_node_id(self.reserved_id, "reserved_id")
        checked_address(self.leader_addr, "leader_addr")
        if self.raft_addr != "":
            checked_address(self.raft_addr, "raft_addr")
        object.__setattr__(self, "peers", checked_peers(self.peers) or Peers())

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
                reserved_id=int(number) if isinstance(number := facts["reserved_id"], str) else number,
                raft_addr=facts.get("raft_addr", ""),
                leader_addr=facts["leader_addr"],
                peers=Peers({int(node_id): addr for node_id, addr in dict(facts.get("peers", {})).items()}),
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
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"not a ticket: {error}") from error
        if not isinstance(facts, Mapping):
            raise InvalidArgument(f"not a ticket: {facts!r} is not an object")
        return cls.from_dict(facts)


def checked_tickets(given: object) -> list[ClusterJoinTicket]:
    """One or several, as `join` takes them; None: none."""
    tickets = [given] if isinstance(given, ClusterJoinTicket) else given
    if tickets is None:
        return []
    if not isinstance(tickets, Sequence) or not all(isinstance(one, ClusterJoinTicket) for one in tickets):
        raise InvalidArgument(
            f"join({given!r}): that is no ticket; Raft.request_id() gives one, and ClusterJoinTicket.from_json() reads one"
        )
    return list(tickets)

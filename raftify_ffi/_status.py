"""What a node says of itself (`raft.status`), and of a snapshot (`raft.snapshot()`)."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Role(str, enum.Enum):
    """What a node is."""

    LEADER = "leader"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEARNER = "learner"
    #: Not a member yet: waits for the other initial members, or to be joined.
    WAITING = "waiting"
    REMOVED = "removed"
    #: Not started, or ended.
    STOPPED = "stopped"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class PeerStatus:
    """Another member, as this node sees it."""

    addr: str
    #: What the leader knows to be in that peer's log; None on a node that does not lead.
    match_index: int | None = None
    #: Entries it is behind; None on a node that does not lead.
    lag: int | None = None
    connected: bool = False
    #: Seconds since something was heard of it; None if nothing was.
    last_seen: float | None = None


@dataclass(frozen=True)
class Status:
    """One moment of a node. The keys are those of `raftify_cli debug node`."""

    node_id: int
    addr: str
    role: Role
    term: int = 0
    #: None if unknown.
    leader_id: int | None = None
    last_index: int = 0
    commit_index: int = 0
    applied_index: int = 0
    snapshot_index: int = 0
    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    peers: Mapping[int, PeerStatus] = dataclasses.field(default_factory=dict)
    #: What ended the node.
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        facts = dataclasses.asdict(self)
        facts["role"] = self.role.value
        facts["voters"], facts["learners"] = list(self.voters), list(self.learners)
        return facts

    @classmethod
    def from_json(cls, text: str | bytes) -> Status:
        facts = json.loads(text)
        return cls(
            node_id=facts["node_id"],
            addr=facts["addr"],
            role=Role(facts["role"]),
            term=facts["term"],
            leader_id=facts["leader_id"],
            last_index=facts["last_index"],
            commit_index=facts["commit_index"],
            applied_index=facts["applied_index"],
            snapshot_index=facts["snapshot_index"],
            voters=tuple(facts["voters"]),
            learners=tuple(facts["learners"]),
            # A newer node may say more of its peers than is known here.
            peers={
                int(node_id): PeerStatus(**{key: peer[key] for key in _PEER_KEYS if key in peer})
                for node_id, peer in facts["peers"].items()
            },
            error=facts.get("error"),
        )


_PEER_KEYS = tuple(field.name for field in dataclasses.fields(PeerStatus))


@dataclass(frozen=True)
class SnapshotInfo:
    """The newest snapshot."""

    index: int
    term: int
    #: Bytes.
    size: int
    path: str

    @classmethod
    def from_json(cls, text: str | bytes) -> SnapshotInfo:
        facts = json.loads(text)
        return cls(index=facts["index"], term=facts["term"], size=facts["size"], path=facts["path"])

"""The messages of earlier releases, as plain objects with attributes. `get_x`/`set_x` are aliases of the attributes."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")


def _accessors(cls: type[T]) -> type[T]:
    """Adds `get_x()` and `set_x(value)` for every field."""

    def pair(name: str) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
        def get(self: Any) -> Any:
            return getattr(self, name)

        def set_(self: Any, value: Any) -> None:
            setattr(self, name, value)

        return get, set_

    for item in fields(cls):  # type: ignore[arg-type]
        getter, setter = pair(item.name)
        setattr(cls, f"get_{item.name}", getter)
        setattr(cls, f"set_{item.name}", setter)
    return cls


class _Message:
    """For type checkers: the accessors are made from the fields."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class _FromInt(enum.IntEnum):
    @classmethod
    def from_int(cls: type[T], value: int) -> T:
        return cls(value)  # type: ignore[call-arg]


class ConfChangeType(_FromInt):
    AddNode = 0
    RemoveNode = 1
    AddLearnerNode = 2


class ConfChangeTransition(_FromInt):
    Auto = 0
    Implicit = 1
    Explicit = 2


class EntryType(_FromInt):
    EntryNormal = 0
    EntryConfChange = 1
    EntryConfChangeV2 = 2


class MessageType(_FromInt):
    MsgHup = 0
    MsgBeat = 1
    MsgPropose = 2
    MsgAppend = 3
    MsgAppendResponse = 4
    MsgRequestVote = 5
    MsgRequestVoteResponse = 6
    MsgSnapshot = 7
    MsgHeartbeat = 8
    MsgHeartbeatResponse = 9
    MsgUnreachable = 10
    MsgSnapStatus = 11
    MsgCheckQuorum = 12
    MsgTransferLeader = 13
    MsgTimeoutNow = 14
    MsgReadIndex = 15
    MsgReadIndexResp = 16
    MsgRequestPreVote = 17
    MsgRequestPreVoteResponse = 18


@_accessors
@dataclass
class ConfChangeSingle(_Message):
    """One change of membership."""

    node_id: int = 0
    change_type: ConfChangeType = ConfChangeType.AddNode


@_accessors
@dataclass
class ConfChangeV2(_Message):
    """Several changes in one step. Addresses of added nodes, in order and separated by commas, are the `context`."""

    changes: list[ConfChangeSingle] = field(default_factory=list)
    transition: ConfChangeTransition = ConfChangeTransition.Auto
    context: bytes = b""

    def enter_joint(self) -> bool | None:
        """Whether a step through joint consensus is left by itself; None: there is no such step. (Here each is left by itself.)"""
        if self.transition == ConfChangeTransition.Auto and len(self.changes) <= 1:
            return None
        return self.transition != ConfChangeTransition.Explicit

    def leave_joint(self) -> bool:
        return self.transition == ConfChangeTransition.Auto and not self.changes


@dataclass
class ConfChangeRequest:
    """Changes and, beside them, the address of each."""

    changes: list[ConfChangeSingle] = field(default_factory=list)
    addrs: list[str] = field(default_factory=list)


@_accessors
@dataclass
class Entry(_Message):
    """One entry of the log."""

    entry_type: EntryType = EntryType.EntryNormal
    term: int = 0
    index: int = 0
    data: bytes = b""
    context: bytes = b""
    sync_log: bool = False


@_accessors
@dataclass
class ConfState(_Message):
    """Who votes, who learns."""

    voters: list[int] = field(default_factory=list)
    learners: list[int] = field(default_factory=list)
    voters_outgoing: list[int] = field(default_factory=list)
    learners_next: list[int] = field(default_factory=list)
    auto_leave: bool = False

    @classmethod
    def default(cls) -> ConfState:
        return cls()


@_accessors
@dataclass
class SnapshotMetadata(_Message):
    conf_state: ConfState | None = None
    index: int = 0
    term: int = 0

    def has_conf_state(self) -> bool:
        return self.conf_state is not None


@_accessors
@dataclass
class Snapshot(_Message):
    data: bytes = b""
    metadata: SnapshotMetadata | None = None

    def has_metadata(self) -> bool:
        return self.metadata is not None


@_accessors
@dataclass
class Message(_Message):
    """A message between nodes."""

    msg_type: MessageType = MessageType.MsgHup
    to: int = 0
    from_: int = 0
    term: int = 0
    log_term: int = 0
    index: int = 0
    entries: list[Entry] = field(default_factory=list)
    commit: int = 0
    commit_term: int = 0
    snapshot: Snapshot | None = None
    request_snapshot: int = 0
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""
    priority: int = 0

    def has_snapshot(self) -> bool:
        return self.snapshot is not None

    def get_from(self) -> int:
        return self.from_

    def set_from(self, value: int) -> None:
        self.from_ = value

    def get_deprecated_priority(self) -> int:
        """It has been `priority` since."""
        return self.priority

    def set_deprecated_priority(self, value: int) -> None:
        self.priority = value

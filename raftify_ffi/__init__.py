"""An embeddable Raft cluster for asyncio programs.

    async with Raft.build(1, "127.0.0.1:60061", store, config, peers) as raft:
        value = await raft.propose(b"command", timeout=2.0)
        value = await raft.read(lambda store: store.get("key"))

Everything public is named here; modules with a leading underscore are the package's own. Importing starts nothing: no thread, no loop, no
file. `compat` has the later releases' classes whose names mean something else.
"""

from __future__ import annotations

from ._client import RaftServiceClient
from ._config import Config
from ._deserializers import (
    set_confchange_context_deserializer,
    set_confchangev2_context_deserializer,
    set_entry_context_deserializer,
    set_entry_data_deserializer,
    set_fsm_deserializer,
    set_log_entry_deserializer,
    set_message_context_deserializer,
    set_snapshot_data_deserializer,
)
from ._errors import (
    ApplyError,
    Closed,
    ClusterMismatch,
    ConnectionFailed,
    CorruptData,
    DirectoryInUse,
    DiskFull,
    Forked,
    FormatTooNew,
    InternalError,
    InvalidArgument,
    InvalidConfig,
    LeadershipLost,
    MachineFailed,
    MembershipError,
    NoLeader,
    NotLeader,
    Overloaded,
    ProposalTooLarge,
    RaftError,
    RaftTimeout,
    Removed,
    ResultLost,
    SessionExpired,
    SnapshotFailed,
    StateDiverged,
    StorageError,
    TlsError,
    WrongDirectory,
)
from ._events import (
    DiskHung,
    DiskRecovered,
    Event,
    LeaderChanged,
    MembersChanged,
    NodeDiverged,
    PeerRefused,
    PresentState,
    RoleChanged,
    SnapshotDamaged,
    SnapshotInstalled,
    SnapshotNotSent,
    SnapshotNotTaken,
    SnapshotTaken,
    UnknownEvent,
)
from ._handle import RaftNode
from ._library import version as _version
from ._node import Raft, wait_for_termination
from ._peers import InitialRole, Peer, Peers
from ._raft_config import RaftConfig, ReadOnlyOption
from ._status import PeerStatus, Role, SnapshotInfo, Status
from ._store import Applied, StateMachine
from ._ticket import ClusterJoinTicket
from ._tls import TlsConfig
from ._types import (
    ConfChangeRequest,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryType,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
)
from .cli import cli_main
from .compat import AbstractLogEntry, AbstractLogger, AbstractStateMachine, Severity, Slogger

__version__ = _version()

__all__ = [
    "AbstractLogEntry",
    "AbstractLogger",
    "AbstractStateMachine",
    "Applied",
    "ApplyError",
    "Closed",
    "ClusterJoinTicket",
    "ClusterMismatch",
    "ConfChangeRequest",
    "ConfChangeSingle",
    "ConfChangeTransition",
    "ConfChangeType",
    "ConfChangeV2",
    "ConfState",
    "Config",
    "ConnectionFailed",
    "CorruptData",
    "DirectoryInUse",
    "DiskFull",
    "DiskHung",
    "DiskRecovered",
    "Entry",
    "EntryType",
    "Event",
    "Forked",
    "FormatTooNew",
    "InitialRole",
    "InternalError",
    "InvalidArgument",
    "InvalidConfig",
    "LeaderChanged",
    "LeadershipLost",
    "MachineFailed",
    "MembersChanged",
    "MembershipError",
    "Message",
    "MessageType",
    "NoLeader",
    "NodeDiverged",
    "NotLeader",
    "Overloaded",
    "Peer",
    "PeerRefused",
    "PeerStatus",
    "Peers",
    "PresentState",
    "ProposalTooLarge",
    "Raft",
    "RaftConfig",
    "RaftError",
    "RaftNode",
    "RaftServiceClient",
    "RaftTimeout",
    "ReadOnlyOption",
    "Removed",
    "ResultLost",
    "Role",
    "RoleChanged",
    "SessionExpired",
    "Severity",
    "Slogger",
    "Snapshot",
    "SnapshotDamaged",
    "SnapshotFailed",
    "SnapshotInfo",
    "SnapshotInstalled",
    "SnapshotMetadata",
    "SnapshotNotSent",
    "SnapshotNotTaken",
    "SnapshotTaken",
    "StateDiverged",
    "StateMachine",
    "Status",
    "StorageError",
    "TlsConfig",
    "TlsError",
    "UnknownEvent",
    "WrongDirectory",
    "cli_main",
    "set_confchange_context_deserializer",
    "set_confchangev2_context_deserializer",
    "set_entry_context_deserializer",
    "set_entry_data_deserializer",
    "set_fsm_deserializer",
    "set_log_entry_deserializer",
    "set_message_context_deserializer",
    "set_snapshot_data_deserializer",
    "wait_for_termination",
]

"""What can go wrong, as one tree.

    RaftError                      .retryable, .committed (True, False, None)
      InvalidConfig (ValueError)   names field, value, remedy
      InvalidArgument (ValueError)
      NotLeader                    .leader_id, .leader_addr
      Overloaded, ProposalTooLarge
      LeadershipLost               outcome unknown
      RaftTimeout (TimeoutError; on 3.10 also asyncio.TimeoutError)
        NoLeader                   nothing was ever sent
      ApplyError, ResultLost, SnapshotFailed, StateDiverged, MachineFailed
      SessionExpired
      MembershipError
        Removed
      StorageError                 names the path
        DiskFull, CorruptData, WrongDirectory, DirectoryInUse, FormatTooNew
      ConnectionFailed
        TlsError, ClusterMismatch
      Closed, Forked
      InternalError                a caught panic: the node is stopped

Every error pickles (without `__cause__`, as all exceptions do). The numbers are those of the C header (`RAFTIFY_ERR_*`).
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
from collections.abc import Mapping
from typing import Any

__all__ = [
    "ApplyError",
    "Closed",
    "ClusterMismatch",
    "ConnectionFailed",
    "CorruptData",
    "DirectoryInUse",
    "DiskFull",
    "Forked",
    "FormatTooNew",
    "InternalError",
    "InvalidArgument",
    "InvalidConfig",
    "LeadershipLost",
    "MachineFailed",
    "MembershipError",
    "NoLeader",
    "NotLeader",
    "Overloaded",
    "ProposalTooLarge",
    "RaftError",
    "RaftTimeout",
    "Removed",
    "ResultLost",
    "SessionExpired",
    "SnapshotFailed",
    "StateDiverged",
    "StorageError",
    "TlsError",
    "WrongDirectory",
]


class RaftError(Exception):
    """The base of all failures of this library."""

    def __init__(
        self,
        message: str = "",
        *,
        committed: bool | None = False,
        retryable: bool = False,
        leader_id: int | None = None,
        leader_addr: str | None = None,
        path: str | None = None,
        index: int | None = None,
        field: str | None = None,
        value: object = None,
    ) -> None:
        super().__init__(message)
        #: What is known of the command: True: it is in the log for good; False: it is not and never will be; None: nobody can say.
        self.committed = committed
        #: Safe to send again, and worth it: only where `committed` is False.
        self.retryable = retryable and committed is False
        #: The leader, where the failure names it.
        self.leader_id = leader_id
        self.leader_addr = leader_addr
        #: The file or directory concerned.
        self.path = path
        #: The log index concerned.
        self.index = index
        #: The setting concerned, and the value it was given.
        self.field = field
        self.value = value

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self.message, {**self.__dict__, "value": _picklable(self.value)})


def _picklable(value: object) -> object:
    """The value; of one that does not pickle, what it looks like."""
    try:
        pickle.dumps(value)
    except Exception:
        return repr(value)
    return value


def _unpickle(kind: type[RaftError], message: str, state: dict[str, Any]) -> RaftError:
    error = kind(message)
    error.__dict__.update(state)
    return error


class InvalidConfig(RaftError, ValueError):
    """A setting that cannot work: `field`, `value`, and in the text what would."""


class InvalidArgument(RaftError, ValueError):
    """A call that makes no sense as it was made."""


class NotLeader(RaftError):
    """Asked of a node that does not lead; `leader_id` and `leader_addr` say who does, if known."""


class Overloaded(RaftError):
    """A bounded queue is full; nothing was proposed. Slow down and try again."""


class ProposalTooLarge(RaftError):
    """Above `max_proposal_size`."""


class LeadershipLost(RaftError):
    """The leader was lost before it answered: the outcome is unknown."""

    def __init__(self, message: str = "", *, committed: bool | None = None, **facts: Any) -> None:
        super().__init__(message, committed=committed, **facts)


if sys.version_info >= (3, 11):

    class RaftTimeout(RaftError, TimeoutError):
        """The deadline came. `committed` says what is known then."""

else:  # 3.10, where asyncio's is a class of its own

    class RaftTimeout(RaftError, TimeoutError, asyncio.TimeoutError):
        """The deadline came. `committed` says what is known then."""


class NoLeader(RaftTimeout):
    """The deadline came, there was no leader, and nothing was ever sent."""


class ApplyError(RaftError):
    """The command is in the log, and `apply` raised on it: its outcome on every node."""

    #: The type that was raised, and its text, as they travelled.
    type_name: str
    text: str

    def __init__(self, message: str = "", *, committed: bool | None = True, **facts: Any) -> None:
        super().__init__(message, committed=committed, **facts)
        name, colon, text = message.partition(": ")
        known = bool(colon) and all(part.isidentifier() or part == "<locals>" for part in name.split("."))
        self.type_name, self.text = (name, text) if known else ("", message)


class ResultLost(RaftError):
    """Committed, but a snapshot overtook the result."""

    def __init__(self, message: str = "", *, committed: bool | None = True, **facts: Any) -> None:
        super().__init__(message, committed=committed, **facts)


class SnapshotFailed(RaftError):
    """No snapshot was taken; the node goes on."""


class StateDiverged(RaftError):
    """A command came to something else here than on the majority: this node has stopped. `index` is the first such command.

    Compared is whether `apply` raised, and with `Config(verify_results=True)` also what it returned. The state is not the others' any
    more: find the cause, remove the member, let it join again with an empty directory.
    """


class MachineFailed(RaftError):
    """The state machine itself failed here (not the command): it stopped its node. `__cause__` is what it raised."""


class SessionExpired(RaftError):
    """The cluster knows the client's session no longer (`RaftServiceClient.connect(…, session=True)`): whether the proposal was done cannot be
    found out any more. The next one opens a new session."""

    def __init__(self, message: str = "", *, committed: bool | None = None, **facts: Any) -> None:
        super().__init__(message, committed=committed, **facts)


class MembershipError(RaftError):
    """A membership change that cannot be made now, or at all."""


class Removed(MembershipError):
    """This node was removed from its cluster."""


class StorageError(RaftError):
    """The disk, or what is on it; `path` names it."""


class DiskFull(StorageError):
    """No space, or above the quota."""


class CorruptData(StorageError):
    """What was read is not what was written. Nothing is deleted or repaired unasked."""


class WrongDirectory(StorageError):
    """The directory of another node, cluster or program."""


class DirectoryInUse(StorageError):
    """Another node, in this process or another, has the directory open."""


class FormatTooNew(StorageError):
    """Written by a newer version."""


class ConnectionFailed(RaftError):
    """No connection to a node."""


class TlsError(ConnectionFailed):
    """A file of certificates cannot be used, or one side does not take the other's: the text says which, and why. Nothing was done."""


class ClusterMismatch(ConnectionFailed):
    """The other side belongs to another cluster."""


class Closed(RaftError):
    """The node or client is closed."""


class Forked(RaftError):
    """A handle of the parent process, used after fork: build a new one in the child."""


class InternalError(RaftError):
    """A caught panic: the node is stopped. Please report it."""


_BY_CODE: dict[int, type[RaftError]] = {
    -1: InvalidConfig,
    -2: InvalidArgument,
    -3: NotLeader,
    -4: NoLeader,
    -5: Overloaded,
    -6: ProposalTooLarge,
    -7: LeadershipLost,
    -8: RaftTimeout,
    -9: ApplyError,
    -10: ResultLost,
    -11: SnapshotFailed,
    -12: StateDiverged,
    -13: MembershipError,
    -14: Removed,
    -15: StorageError,
    -16: DiskFull,
    -17: CorruptData,
    -18: WrongDirectory,
    -19: DirectoryInUse,
    -20: FormatTooNew,
    -21: ConnectionFailed,
    -22: TlsError,
    -23: ClusterMismatch,
    -24: Closed,
    -25: Forked,
    -26: InternalError,
    -28: MachineFailed,
    -29: SessionExpired,
}


def error_from_json(source: str | bytes | Mapping[str, Any]) -> RaftError:
    """The exception for an error object of the library. What cannot be read is still an error, never another exception."""
    if isinstance(source, Mapping):
        facts = source
    else:
        try:
            read: Any = json.loads(source)
        except ValueError:
            read = None
        facts = read if isinstance(read, dict) else {"message": repr(source)}
    kind = _BY_CODE.get(facts.get("code", 0), RaftError)
    return kind(
        str(facts.get("message") or facts.get("name") or kind.__name__),
        committed=facts.get("committed"),
        retryable=bool(facts.get("retryable")),
        leader_id=facts.get("leader_id"),
        leader_addr=facts.get("leader_addr"),
        path=facts.get("path"),
        index=facts.get("index"),
        field=facts.get("field"),
    )


def plain_copy(error: RaftError) -> RaftError:
    """The same failure for another caller: an exception object must not be raised in two tasks at once."""
    copy = _unpickle(type(error), error.message, error.__dict__)
    copy.__cause__ = error.__cause__
    return copy

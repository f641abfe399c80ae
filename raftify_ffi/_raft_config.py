"""`RaftConfig`: the options of the consensus itself."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, Final

from ._settings import NativeConfig, checked, invalid


class ReadOnlyOption(enum.IntEnum):
    """How reads are made linearizable. Only `SAFE` is offered: a lease without a clock bound returns stale data."""

    SAFE = 0
    LEASE_BASED = 1

    Safe = SAFE
    LeaseBased = LEASE_BASED


#: Options that go down as they are, and their kinds. The library's default stands where one is not given.
_OPTIONS: Final = {
    "election_tick": "count",
    "heartbeat_tick": "count",
    "max_size_per_msg": "count",
    "max_inflight_msgs": "count",
    "check_quorum": "flag",
    "pre_vote": "flag",
    "min_election_tick": "count",
    "max_election_tick": "count",
    "priority": "integer",
    "max_uncommitted_size": "count",
    "max_committed_size_per_ready": "count",
}


@dataclass(frozen=True)
class RaftConfig:
    """Times are in ticks of `Config.tick_interval`, or in seconds with `election_timeout` and `heartbeat_interval`. None: the default.

    `id`, `applied`, `skip_bcast_commit`, `batch_append` and `omit_heartbeat_log` are options of earlier releases; what they tuned is
    decided by the library, so they are accepted and change nothing.
    """

    id: int | None = None
    #: Ticks without a leader before an election.
    election_tick: int | None = None
    #: Ticks between heartbeats.
    heartbeat_tick: int | None = None
    applied: int | None = None
    #: Bytes of entries in one append message.
    max_size_per_msg: int | None = None
    #: Append messages on their way to one peer.
    max_inflight_msgs: int | None = None
    check_quorum: bool | None = None
    pre_vote: bool | None = None
    #: The election timeout is drawn from this range of ticks; 0 or None: `election_tick` to twice that.
    min_election_tick: int | None = None
    max_election_tick: int | None = None
    read_only_option: ReadOnlyOption | None = ReadOnlyOption.SAFE
    skip_bcast_commit: bool = False
    batch_append: bool = False
    #: A node of higher priority is preferred as leader.
    priority: int | None = None
    #: Bytes proposed and not yet committed; past it proposals are `Overloaded`.
    max_uncommitted_size: int | None = None
    max_committed_size_per_ready: int | None = None
    omit_heartbeat_log: bool = True
    #: Seconds, in place of `election_tick`.
    election_timeout: float | None = None
    #: Seconds, in place of `heartbeat_tick`.
    heartbeat_interval: float | None = None

    def __post_init__(self) -> None:
        for name, kind in _OPTIONS.items():
            if getattr(self, name) is not None:
                checked(name, kind, getattr(self, name))
        for ticks, in_seconds in (("election_tick", "election_timeout"), ("heartbeat_tick", "heartbeat_interval")):
            value = getattr(self, in_seconds)
            if value is None:
                continue
            checked(in_seconds, "seconds", value)
            if getattr(self, ticks) is not None:
                raise invalid(
                    in_seconds, value, f"is given beside {ticks} ({getattr(self, ticks)}); give one of the two"
                )
        if self.read_only_option not in (ReadOnlyOption.SAFE, None):
            raise invalid("read_only_option", self.read_only_option, "can return stale data; use ReadOnlyOption.SAFE")
        if self.election_timeout is None and self.heartbeat_interval is None:
            # In seconds they are only known together with a tick: then `Config` checks them.
            NativeConfig(self.settings(tick_interval=0.1))

    def settings(self, tick_interval: float) -> dict[str, Any]:
        """Name and value of every option that was given, as the library knows them."""
        given = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name) is not None}
        for name, in_seconds in (("election_tick", self.election_timeout), ("heartbeat_tick", self.heartbeat_interval)):
            if in_seconds is not None:
                given[name] = max(1, math.ceil(round(in_seconds / tick_interval, 6)))
        return given

    def validate(self) -> None:
        """Checked on construction; kept for programs that call it."""

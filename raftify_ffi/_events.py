"""`raft.events()`: what happens to a node, as dataclasses. Each iterator has its own bounded queue and starts with the present state."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ._context import refuse_inside_store
from ._errors import InvalidArgument, RaftError, RaftTimeout, plain_copy
from ._status import Role, Status


@dataclass(frozen=True)
class Event:
    """The base of all events."""


@dataclass(frozen=True)
class PresentState(Event):
    """The first item of every iterator, and again after a reader was too slow: everything before it is contained in it."""

    status: Status


@dataclass(frozen=True)
class LeaderChanged(Event):
    term: int
    leader_id: int | None


@dataclass(frozen=True)
class RoleChanged(Event):
    term: int
    role: Role


@dataclass(frozen=True)
class MembersChanged(Event):
    index: int
    voters: tuple[int, ...]
    learners: tuple[int, ...]
    addresses: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SnapshotTaken(Event):
    index: int
    #: Bytes.
    size: int


@dataclass(frozen=True)
class SnapshotInstalled(Event):
    """A snapshot of the leader replaced the state."""

    index: int
    size: int


@dataclass(frozen=True)
class SnapshotNotTaken(Event):
    """A snapshot failed; the node goes on and tries again later."""

    index: int
    reason: str


@dataclass(frozen=True)
class SnapshotDamaged(Event):
    """At start the newest snapshot's file was damaged or missing, and an older one took its place; with the log behind it nothing is
    lost. Every iterator of this run begins with it, right after the `PresentState`."""

    #: Of the damaged one.
    index: int
    #: Index of the one that was restored.
    stands_in: int
    #: Names the file.
    reason: str


@dataclass(frozen=True)
class SnapshotNotSent(Event):
    """A snapshot on its way to a peer was given up; a newer one follows."""

    peer: int
    index: int
    reason: str


@dataclass(frozen=True)
class PeerRefused(Event):
    """A peer was refused, or refuses us, for good."""

    peer: int
    reason: str


@dataclass(frozen=True)
class DiskHung(Event):
    """The disk does not answer; the node does not lead until it does."""

    millis: int


@dataclass(frozen=True)
class DiskRecovered(Event):
    pass


@dataclass(frozen=True)
class NodeDiverged(Event):
    """A command came to something else on this member than on the majority, first at this index: it stops with `StateDiverged`."""

    node_id: int
    index: int


@dataclass(frozen=True)
class UnknownEvent(Event):
    """An event that this version of the package does not know."""

    facts: Mapping[str, Any]


def _members(facts: dict[str, Any]) -> Event:
    addresses = {int(node_id): addr for node_id, addr in facts["addresses"].items()}
    return MembersChanged(facts["index"], tuple(facts["voters"]), tuple(facts["learners"]), addresses)


_MAKERS: Final[Mapping[str, Callable[[dict[str, Any]], Event]]] = {
    "leader_changed": lambda facts: LeaderChanged(facts["term"], facts["leader_id"]),
    "role_changed": lambda facts: RoleChanged(facts["term"], Role(facts["role"])),
    "members_changed": _members,
    "snapshot_taken": lambda facts: SnapshotTaken(facts["index"], facts["size"]),
    "snapshot_installed": lambda facts: SnapshotInstalled(facts["index"], facts["size"]),
    "snapshot_failed": lambda facts: SnapshotNotTaken(facts["index"], facts["reason"]),
    "snapshot_damaged": lambda facts: SnapshotDamaged(facts["index"], facts["stands_in"], facts["reason"]),
    "snapshot_not_sent": lambda facts: SnapshotNotSent(facts["peer"], facts["index"], facts["reason"]),
    "peer_refused": lambda facts: PeerRefused(facts["peer"], facts["reason"]),
    "disk_hung": lambda facts: DiskHung(facts["millis"]),
    "disk_recovered": lambda facts: DiskRecovered(),
    "state_diverged": lambda facts: NodeDiverged(facts["node_id"], facts["index"]),
}


def event_from_json(text: bytes) -> Event:
    facts = json.loads(text)
    try:
        return _MAKERS[facts["event"]](facts)
    except (KeyError, TypeError, ValueError):
        return UnknownEvent(facts)


class EventStream:
    """An async iterator of events, of one loop. Ends when the node has ended; raises what ended it, if anything did."""

    CAPACITY: Final = 1024

    def __init__(
        self,
        status: Callable[[], Status],
        on_event: Callable[[Event | None], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._status = status
        self._items: deque[Event] = deque([PresentState(status())])
        self._stale = False
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: RaftError | None = None
        self._on_event = on_event
        self._timeout = timeout

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def put(self, event: Event) -> None:
        """On the stream's own loop."""
        if self._on_event is not None:
            self._on_event(event)
        elif len(self._items) >= self.CAPACITY or self._stale:
            # A reader this slow gets the present, as it is when it comes to read, instead of the past.
            self._items.clear()
            self._stale = True
        else:
            self._items.append(event)
        self._wake()

    def end(self, error: RaftError | None) -> None:
        self._ended, self._error = True, error
        if self._on_event is not None:
            self._on_event(None)
        self._wake()

    def limit(self, seconds: float | None) -> None:
        """How long the next items are waited for."""
        self._timeout = seconds

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        refuse_inside_store("events()")
        if self._waiter is not None:
            raise InvalidArgument("another task waits for this iterator's next event; take one for each: raft.events()")
        while True:
            if self._stale:
                self._stale = False
                self._items.clear()
                return PresentState(self._status())
            if self._items:
                return self._items.popleft()
            if self._ended:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise plain_copy(error)
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            try:
                # Not wait_for, which before Python 3.12 may swallow a cancel.
                done, _ = await asyncio.wait([self._waiter], timeout=self._timeout)
            finally:
                self._waiter = None
            if not done:
                raise RaftTimeout(f"no event for {self._timeout:g} s", retryable=True)


class EventHub:
    """A node's streams. Held weakly: a stream that nobody reads any more is gone."""

    def __init__(self, home: asyncio.AbstractEventLoop) -> None:
        self._home = home
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        #: What was found at start, before anybody could listen, and no status tells.
        self._found: list[SnapshotDamaged] = []
        self._over = False
        #: What ended the node, for those who come later.
        self._error: RaftError | None = None
        self._lock = threading.Lock()

    def add(self, stream: EventStream) -> None:
        """On the stream's own loop."""
        with self._lock:
            self._streams.add(stream)
            found, over = list(self._found), self._over
        for event in found:
            stream.put(event)
        if over:
            stream.end(self._error)

    def _each(self, streams: list[EventStream], method: str, argument: object) -> None:
        for stream in streams:
            if stream.loop is self._home:
                getattr(stream, method)(argument)
                continue
            try:
                stream.loop.call_soon_threadsafe(getattr(stream, method), argument)
            except RuntimeError:
                pass  # that loop has closed

    def publish(self, event: Event) -> None:
        with self._lock:
            streams = list(self._streams)
            if isinstance(event, SnapshotDamaged):
                self._found.append(event)
        self._each(streams, "put", event)

    def end(self, error: RaftError | None) -> None:
        self._each(self._last_streams(error), "end", error)

    def end_from_anywhere(self) -> None:
        """From a thread that is not the home loop's, which may be closed."""
        for stream in self._last_streams():
            try:
                stream.loop.call_soon_threadsafe(stream.end, None)
            except RuntimeError:
                pass  # that loop has closed

    def _last_streams(self, error: RaftError | None = None) -> list[EventStream]:
        """Who comes later finds that it is over."""
        with self._lock:
            self._over, self._error = True, error
            return list(self._streams)

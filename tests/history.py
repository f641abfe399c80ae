"""What clients asked and were told, and whether the states in the end agree with it.

The commands are values that are sent once each; the state machine is a journal that appends them and answers with their place. So the
final journal is the one order in which everything happened, and every answer can be held against it. Times are `time.monotonic()`,
which is one clock for all processes of a machine.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raftify_ffi import RaftError

#: What a writer or a reader reports: kind, then the fields of a `Write` or a `Look`.
Report = Callable[[list[Any]], None]

DONE, ABSENT, PRESENT, UNKNOWN = "done", "absent", "present", "unknown"


@dataclass
class Write:
    """One proposal. Without an end, its program died before it was answered."""

    value: str
    sent: float
    ended: float | None = None
    #: DONE; or a failure with `.committed` False (ABSENT), True (PRESENT) or None (UNKNOWN).
    outcome: str = UNKNOWN
    #: What `apply` answered.
    place: int | None = None
    #: What was raised.
    failure: str = ""


@dataclass
class Look:
    """One linearizable read: how long the journal was."""

    started: float
    ended: float
    length: int


class History:
    """Of all programs of one test."""

    def __init__(self) -> None:
        self.writes: dict[str, Write] = {}
        self.looks: list[Look] = []

    def take(self, report: list[Any]) -> bool:
        """Whether it was an acknowledgement."""
        kind, *fields = report
        if kind == "sent":
            value, sent = fields
            self.writes[value] = Write(value, sent)
        elif kind == "ended":
            value, ended, outcome, place, failure = fields
            write = self.writes[value]
            write.ended, write.outcome, write.place, write.failure = ended, outcome, place, failure
            return bool(outcome == DONE)
        else:
            self.looks.append(Look(*fields))
        return False

    def count(self, outcome: str) -> int:
        return sum(write.outcome == outcome for write in self.writes.values())

    def violations(self, journals: Mapping[str, Sequence[str]]) -> list[str]:
        return violations(self.writes.values(), self.looks, journals)


def violations(writes: Iterable[Write], looks: Iterable[Look], journals: Mapping[str, Sequence[str]]) -> list[str]:
    """Every way in which the journals of the nodes, as they are in the end, contradict each other or what clients were told."""
    asked = {write.value: write for write in writes}
    return [
        *_between_nodes(journals),
        *(found for name, journal in journals.items() for found in _of_one(name, journal, asked)),
        *(found for name, journal in journals.items() for found in _of_reads(name, journal, asked, list(looks))),
    ]


def _between_nodes(journals: Mapping[str, Sequence[str]]) -> Iterable[str]:
    names = list(journals)
    for name in names[1:]:
        one, other = journals[names[0]], journals[name]
        if list(one) == list(other):
            continue
        shorter = min(len(one), len(other))
        at = next((place for place in range(shorter) if one[place] != other[place]), shorter)
        yield f"{names[0]} and {name} differ at place {at}: {one[at : at + 1]} and {other[at : at + 1]} ({len(one)} and {len(other)} long)"


def _of_one(name: str, journal: Sequence[str], asked: Mapping[str, Write]) -> Iterable[str]:
    places: dict[str, int] = {}
    latest_sent, latest = float("-inf"), ""
    for place, value in enumerate(journal):
        if value in places:
            yield f"{name}: {value} was applied twice, at {places[value]} and {place}"
        places.setdefault(value, place)
        write = asked.get(value)
        if write is None:
            yield f"{name}: {value} at {place} was never proposed"
            continue
        if write.ended is not None and write.outcome == DONE and write.ended < latest_sent:
            yield f"{name}: {value} at {place} was acknowledged before {latest}, which stands before it, was sent"
        if write.sent > latest_sent:
            latest_sent, latest = write.sent, value
    for value, write in asked.items():
        if write.outcome in (DONE, PRESENT) and value not in places:
            yield f"{name}: {value} was told to be committed ({write.outcome} {write.failure}) and is not there"
        if write.outcome == ABSENT and value in places:
            yield f"{name}: {value} was told not to be committed ({write.failure}) and is there, at {places[value]}"
        if write.outcome == DONE and write.place != places.get(value, write.place):
            yield f"{name}: {value} was answered with place {write.place} and is at {places[value]}"


def _of_reads(name: str, journal: Sequence[str], asked: Mapping[str, Write], looks: list[Look]) -> Iterable[str]:
    done = sorted(
        (w.ended, w.place + 1) for w in asked.values() if w.outcome == DONE and w.ended and w.place is not None
    )
    seen = sorted((look.ended, look.length) for look in looks)
    for what, events in (("a write that was acknowledged", done), ("what an earlier read saw", seen)):
        least, at = 0, 0
        for look in sorted(looks, key=lambda look: look.started):
            while at < len(events) and events[at][0] < look.started:
                least = max(least, events[at][1])
                at += 1
            if look.length < least:
                yield f"{name}: a read saw {look.length}, without {what} before it began (length {least})"
    for look in looks:
        if look.length > len(journal):
            yield f"{name}: a read saw {look.length}, and there are only {len(journal)}"
        elif look.length:
            last = asked.get(journal[look.length - 1])
            if last is not None and last.sent > look.ended:
                yield f"{name}: a read saw {last.value} before it was sent"


# ---- load ----------------------------------------------------------------------------------------------------------------------------


async def write_on(propose: Callable[[bytes], Awaitable[bytes]], prefix: str, report: Report) -> None:
    """One writer: a value after the other, until cancelled."""
    count = 0
    while True:
        count += 1
        value = f"{prefix}/{count}"
        report(["sent", value, time.monotonic()])
        outcome, place, failure = DONE, None, ""
        try:
            # Padded: a snapshot waits until the log has grown by the size of the last one.
            place = int(await propose(value.encode().ljust(200)))
        except RaftError as error:
            outcome = {True: PRESENT, False: ABSENT, None: UNKNOWN}[error.committed]
            failure = f"{type(error).__name__}: {error}"
        report(["ended", value, time.monotonic(), outcome, place, failure])


async def look_on(read: Callable[[], Awaitable[int]], report: Report) -> None:
    """One reader, until cancelled."""
    while True:
        started = time.monotonic()
        try:
            length = await read()
        except RaftError:
            continue
        report(["look", started, time.monotonic(), length])

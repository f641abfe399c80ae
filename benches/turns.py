"""Clusters that stand at once and take turns in short windows, so that what the machine does meanwhile comes to all of them alike."""

from __future__ import annotations

import argparse
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import DATA, START_TIMEOUT, Node, device_flushes, free_ports

#: Of a window between MEASURE and END: a driver that begins later than it says has been idle for the rest.
SHORTEST_SPAN = 0.95
FIGURES = {
    "a second": "{:.0f}",
    "p50 us": "{:.0f}",
    "p99 us": "{:.0f}",
    "CPU us": "{:.2f}",
    "flushes": "{:.3f}",
    "switches": "{:.2f}",
}


@dataclass(frozen=True)
class Cell:
    payload: int
    inflight: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        """`128x256`."""
        payload, _, inflight = text.partition("x")
        if not (payload.isdecimal() and inflight.isdecimal() and int(payload) >= 8 and int(inflight) >= 1):
            raise argparse.ArgumentTypeError(
                f"{text!r}: bytes of a command (8 or more) x proposals in flight, as in 128x256"
            )
        return cls(int(payload), int(inflight))

    @classmethod
    def parse_all(cls, text: str) -> list[Cell]:
        return [cls.parse(cell) for cell in text.split(",")]


def positive(text: str) -> int:
    """For the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 on")
    return int(text)


def free_pairs(count: int) -> list[int]:
    """Ports whose next one is free as well: some drivers take it."""
    found: list[int] = []
    while len(found) < count:
        (port,) = free_ports(1)
        with socket.socket() as following:
            try:
                following.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
        if all(abs(port - other) > 1 for other in found):
            found.append(port)
    return found


@dataclass(frozen=True)
class Mark:
    """What all nodes, and the disk, had done at an end of a window, and when that was by our clock."""

    at: float
    cpu: float
    flushes: int
    switches: dict[str, int]

    @classmethod
    def now(cls, nodes: list[Node]) -> Mark:
        at = time.perf_counter()
        cpu = sum(node.cpu_seconds() for node in nodes)
        switches = {thread: count for node in nodes for thread, count in node.switches().items()}
        return cls(at, cpu, device_flushes(DATA), switches)

    def since(self, before: Mark) -> dict[str, float]:
        return {
            "heard": self.at - before.at,
            "cpu": self.cpu - before.cpu,
            "flushes": self.flushes - before.flushes,
            # Those of threads that have ended are not known.
            "switches": sum(count - before.switches.get(thread, 0) for thread, count in self.switches.items()),
        }


@dataclass
class Side:
    """A cluster that waits for its turn."""

    name: str
    nodes: list[Node]
    leader: int

    @classmethod
    def start(cls, name: str, folder: Path, size: int, directory: Path) -> Side:
        ports = free_pairs(size)
        peers = ",".join(f"{i}=127.0.0.1:{port}" for i, port in enumerate(ports, 1))
        nodes = [Node(folder, i, peers, directory / str(i), label=name) for i in range(1, size + 1)]
        try:
            leader = max(int(node.hear_word("READY", START_TIMEOUT)) for node in nodes) or 1
        except BaseException:
            for node in nodes:
                node.stop()
            raise
        return cls(name, nodes, leader)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def ask(self, command: str, seconds: float, at: int | None = None) -> dict[str, Any]:
        """One workload on the leader, whoever that is by then, or at one node. Adds what all nodes, and the disk, did in the window: `cpu`
        in seconds, `switches`, `flushes`; and `heard`, how many seconds it was by our clock. No second node is asked meanwhile."""
        marks: dict[str, Mark] = {}

        def heard(line: str) -> None:
            if line in ("MEASURE", "END"):
                marks[line] = Mark.now(self.nodes)

        for _ in range(10):
            asked = self.leader if at is None else at
            self.nodes[asked - 1].say(command)
            answer = self.nodes[asked - 1].hear_json(seconds + 90, heard)
            if "error" not in answer:
                return {**answer, **marks["END"].since(marks["MEASURE"])}
            self.leader = answer.get("leader") or self.leader
            time.sleep(0.2)
        raise SystemExit(f"bench: no leader of {self.name} stays one")

    def converged(self) -> bool:
        """Followers may still apply when the last answer has left the leader: asked until equal, at most for 20 seconds."""
        deadline = time.monotonic() + 20
        while True:
            for node in self.nodes:
                node.say("STATE")
            states = [node.hear_json(20) for node in self.nodes]
            equal = all(state == states[0] for state in states)
            if equal or time.monotonic() > deadline:
                return equal
            time.sleep(0.2)


@dataclass
class Row:
    """One workload of one cluster, and its windows so far."""

    name: str
    side: Side
    #: Of a window and a warm-up in seconds.
    command: Callable[[int, int], str]
    on_follower: bool = False
    windows: list[dict[str, float]] = field(default_factory=list)
    #: Of each window, what it was by our clock for each second that the node says.
    spans: list[float] = field(default_factory=list)

    def window(self, seconds: int, warmup: int) -> None:
        at = self.side.leader % len(self.side.nodes) + 1 if self.on_follower else None
        seen = self.side.ask(self.command(seconds, warmup), seconds + warmup, at)
        if seen["errors"] or not seen["n"] or not seen["drained"]:
            raise SystemExit(f"bench: {self.name}: proposals failed, or did not come back: {seen}")
        done = seen["n"]
        self.spans.append(seen["heard"] / seen["secs"])
        self.windows.append(
            {
                "a second": done / seen["secs"],
                "p50 us": seen["p50_ms"] * 1e3,
                "p99 us": seen["p99_ms"] * 1e3,
                "CPU us": seen["cpu"] / done * 1e6,
                "flushes": seen["flushes"] / done,
                "switches": seen["switches"] / done,
            }
        )

    def clear(self) -> None:
        self.windows.clear()
        self.spans.clear()

    def doubt(self) -> str:
        """Why its figures do not count; nothing if they do. END may come late, with the answer after the last that counts; MEASURE may not."""
        span = statistics.median(self.spans)
        if span > SHORTEST_SPAN:
            return ""
        return f"{self.name}: a second of its windows is {span:.2f} s between MEASURE and END, so what it says of a second is not so"

    def line(self, first: Row) -> str:
        """Medians; in parentheses the ratios to the first row's windows of the same rounds: their median and the middle half of them."""
        cells = []
        for figure, form in FIGURES.items():
            text = form.format(statistics.median(window[figure] for window in self.windows))
            if self is not first:
                pairs = zip(self.windows, first.windows)
                ratios = [ours[figure] / max(theirs[figure], 1e-9) for ours, theirs in pairs]
                text += f" ({statistics.median(ratios):.2f} x"
                if len(ratios) > 3:
                    low, _, high = statistics.quantiles(ratios, n=4)
                    text += f"; {low:.2f}-{high:.2f}"
                text += ")"
            cells.append(text)
        return f"| {self.name} | " + " | ".join(cells) + " |"


def take_turns(rows: list[Row], rounds: int, seconds: int, warmup: int) -> None:
    for turn in range(rounds):
        # Who comes first changes, so that nobody always follows the same one.
        for row in rows[turn % len(rows) :] + rows[: turn % len(rows)]:
            row.window(seconds, warmup)


def table(rows: list[Row]) -> str:
    head = ["| | " + " | ".join(FIGURES) + " |", "|---|" + "---|" * len(FIGURES)]
    return "\n".join(head + [row.line(rows[0]) for row in rows])

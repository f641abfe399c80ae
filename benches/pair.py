"""Two builds, or a build and a peer, in turn: all clusters stand at once, and short windows go round them, so that what the machine does meanwhile
comes to all of them alike.

    python benches/pair.py [--cell 128x256] [--windows 20] [--secs 1] FOLDER FOLDER...

Each folder holds a driver (`node`, see README.md). Figures are medians over the windows; the ratios are those of each window to the first
folder's in the same round: their median, and the middle half of them.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
from dataclasses import dataclass
from pathlib import Path

from cluster import DATA, START_TIMEOUT, Node, free_ports
from run import converged

FIGURES = {"a second": "{:.0f}", "p50 us": "{:.0f}", "p99 us": "{:.0f}", "CPU us": "{:.2f}", "switches": "{:.3f}"}


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


@dataclass
class Side:
    """A cluster that waits for its turn."""

    name: str
    nodes: list[Node]
    leader: int
    windows: list[dict[str, float]]

    @classmethod
    def start(cls, folder: Path, size: int) -> Side:
        ports = free_pairs(size)
        peers = ",".join(f"{i}=127.0.0.1:{port}" for i, port in enumerate(ports, 1))
        nodes = [Node(folder, i, peers, DATA / folder.name / str(i)) for i in range(1, size + 1)]
        leader = max(int(node.hear_word("READY", START_TIMEOUT)) for node in nodes) or 1
        return cls(folder.name, nodes, leader, [])

    def window(self, payload: int, inflight: int, seconds: int, warmup: int) -> None:
        spent: dict[str, tuple[float, int]] = {}

        def heard(line: str) -> None:
            if line in ("MEASURE", "END"):
                cpu = sum(node.cpu_seconds_exact() for node in self.nodes)
                spent[line] = cpu, sum(node.switches() for node in self.nodes)

        for _ in range(10):
            node = self.nodes[self.leader - 1]
            node.say(f"BENCH {payload} {inflight} {seconds} {warmup}")
            answer = node.hear_json(seconds + 90, heard)
            if "error" not in answer:
                break
            self.leader = answer["leader"] or self.leader
        else:
            raise SystemExit(f"bench: no leader of {self.name} stays one")
        if answer["errors"] or not answer["n"]:
            raise SystemExit(f"bench: {self.name}: proposals failed: {answer}")
        cpu, switches = (after - before for before, after in zip(spent["MEASURE"], spent["END"]))
        self.windows.append(
            {
                "a second": answer["n"] / answer["secs"],
                "p50 us": answer["p50_ms"] * 1e3,
                "p99 us": answer["p99_ms"] * 1e3,
                "CPU us": cpu / answer["n"] * 1e6,
                "switches": switches / answer["n"],
            }
        )


def report(sides: list[Side]) -> None:
    print("| | " + " | ".join(FIGURES) + " |")
    print("|---|" + "---|" * len(FIGURES))
    for side in sides:
        row = []
        for figure, form in FIGURES.items():
            text = form.format(statistics.median(window[figure] for window in side.windows))
            if side is not sides[0]:
                pairs = zip(side.windows, sides[0].windows)
                low, middle, high = statistics.quantiles(
                    [ours[figure] / max(first[figure], 1e-9) for ours, first in pairs], n=4
                )
                text += f" ({middle:.2f} x; {low:.2f}-{high:.2f})"
            row.append(text)
        print(f"| {side.name} | " + " | ".join(row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", default="128x256", help="bytes of a command x proposals in flight")
    parser.add_argument("--windows", type=int, default=20, help="of each cluster")
    parser.add_argument("--secs", type=int, default=1, help="of a window")
    parser.add_argument("--warm", type=int, default=0, help="before each window")
    parser.add_argument("--nodes", type=int, default=3, help="of each cluster")
    parser.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args()
    payload, inflight = map(int, args.cell.split("x"))
    sides: list[Side] = []
    shutil.rmtree(DATA, ignore_errors=True)
    try:
        for folder in args.folders:
            sides.append(Side.start(folder.resolve(), args.nodes))
        for turn in range(args.windows):
            # Who comes first changes, so that nobody always follows the same one.
            for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                side.window(payload, inflight, args.secs, args.warm)
        report(sides)
        for side in sides:
            # A cluster that left a node behind looks fast.
            if not converged(side.nodes):
                raise SystemExit(
                    f"bench: the nodes of {side.name} do not hold the same state: its figures do not count"
                )
    finally:
        for side in sides:
            for node in side.nodes:
                node.stop()
        shutil.rmtree(DATA, ignore_errors=True)


if __name__ == "__main__":
    main()

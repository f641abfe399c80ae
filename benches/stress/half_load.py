"""Latency at half of what the cluster can do: alone, while a large snapshot is written or sent, while old log is freed.

Proposals are due at fixed times, whatever came back: one that waits because the cluster stands still counts from when it was due.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from cluster import DATA, Cluster, Node, build, settings, wait_until

from .report import Report

PAYLOAD = 128
BALLAST = 200_000_000
#: Outstanding at most; far above what a cluster that keeps up needs, below what a node takes (`max_pending_proposals`).
OUTSTANDING = 20_000
#: p99 in units of p50.
GOAL = 5.0


class Paced:
    """A cluster without snapshots of its own accord, and half of its measured maximum as the rate."""

    def __init__(self, report: Report, scenario: str, cluster: Cluster) -> None:
        self._report = report
        self._scenario = scenario
        self._alone = 0.0
        cluster.start(1, 2, 3)
        cluster.ready()
        self.leader = cluster.leader()
        self.leader.say(f"BENCH {PAYLOAD} 256 3 1")
        most = self.leader.hear_json(60)
        self.rate = most["n"] / most["secs"] / 2
        report.figure(scenario, "maximum", most["n"] / most["secs"], "/s")

    def window(self, name: str, meanwhile: Callable[[], object]) -> None:
        """Latencies from the first moment of what happens meanwhile to its last."""
        self.leader.say(f"PACE {self.rate:.0f} {PAYLOAD} {OUTSTANDING} 60 1")
        self.leader.hear_word("MEASURE", 30)
        meanwhile()
        self.leader.say("STOP")
        seen = self.leader.hear_json(60)
        if seen["errors"] or not seen["drained"]:
            raise SystemExit(f"bench: proposals failed: {seen}")
        for figure in ("p50", "p99", "max"):
            self._report.figure(self._scenario, f"{name}: {figure}", seen[f"{figure}_ms"], "ms")
        self._report.series(self._scenario, name, {"rate": self.rate, **seen})
        self._alone = self._alone or seen["p50_ms"]
        self._report.figure(self._scenario, f"{name}: p99 / p50", seen["p99_ms"] / seen["p50_ms"], below=GOAL)
        # Where everything is slow, p99 is near p50: what it is beside an undisturbed p50 says more.
        self._report.figure(self._scenario, f"{name}: p99 / p50 of the first window", seen["p99_ms"] / self._alone)


def snapshots(*nodes: Node) -> int:
    """Takes one on each, all at once; where the last one stands."""
    index = 0
    for node in nodes:
        node.say("SNAPSHOT")
    for node in nodes:
        answer = json.loads(node.hear_word("SNAPSHOT", 120))
        if not answer["ok"]:
            raise SystemExit(f"bench: no snapshot: {answer}")
        index = answer["answer"]["index"]
    return index


def plain(report: Report, quick: bool) -> None:
    """All defaults: small snapshots are taken and segments used again, as in a cluster that has run for a while."""
    with Cluster(build("c"), 3) as cluster:
        Paced(report, "half load", cluster).window("plain", lambda: time.sleep(3 if quick else 10))


def with_snapshots(report: Report, quick: bool) -> None:
    options = settings(snapshot_entries=0, snapshot_bytes=0)
    with Cluster(build("c"), 3, [*options, "--ballast", str(BALLAST)]) as cluster:
        paced = Paced(report, "half load, 200 MB of state", cluster)
        paced.window("its log only grows", lambda: time.sleep(3 if quick else 10))
        paced.window("leader writes a snapshot of 200 MB", lambda: snapshots(paced.leader))
        paced.window("all three write one, on one disk", lambda: snapshots(*cluster.nodes.values()))
        lagging = next(node_id for node_id in cluster.nodes if node_id != paced.leader.id)
        cluster.kill(lagging)
        cluster.fill(PAYLOAD, 50_000)
        stands = snapshots(paced.leader)

        def send() -> None:
            cluster.start(lagging)
            back = cluster.nodes[lagging]
            wait_until(lambda: bool(back.status()["applied_index"] >= stands), 120, every=0.05)
            if back.status()["snapshot_index"] < stands:
                raise SystemExit("bench: it got the log, not the snapshot")

        paced.window("200 MB are sent to a member that lags", send)


def with_freeing(report: Report, quick: bool, engine: str) -> None:
    entries = 500_000 if quick else 2_000_000
    options = settings(snapshot_entries=0, snapshot_bytes=0, log_engine=engine)
    with Cluster(build("c"), 3, options) as cluster:
        paced = Paced(report, f"half load, {engine}", cluster)
        cluster.fill(PAYLOAD, entries)
        directory = DATA / str(paced.leader.id)
        before = size_of(directory)

        def free() -> None:
            snapshots(paced.leader)
            time.sleep(2)

        paced.window("nothing else", lambda: time.sleep(2))
        paced.window(f"{entries:,} old entries are freed", free)
        report.figure(f"half load, {engine}", "log before", before / 1e6, "MB")
        report.figure(f"half load, {engine}", "log after", size_of(directory) / 1e6, "MB")


def size_of(directory: Path) -> int:
    """Bytes that its files take on the disk."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:  # freed meanwhile
            continue
    return total


def run(report: Report, quick: bool) -> None:
    plain(report, quick)
    with_snapshots(report, quick)
    for engine in ("segment", "lmdb"):
        with_freeing(report, quick, engine)

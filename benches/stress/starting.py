"""Nodes that start with a long log that no snapshot shortens: until they listen, until they vote, until everything is applied again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cluster import DATA, Cluster, Node, build, settings

from .half_load import size_of
from .report import Report

PAYLOAD = 128
GOAL_STARTED = 2.0
GOAL_REPLAY = 300_000.0
#: An election timeout of .1 to .2 s, so that its length does not hide when a node can vote.
OPTIONS = [*settings(snapshot_entries=0, snapshot_bytes=0, tick_interval=0.01), "--tell"]


def forget(directory: Path) -> None:
    """The system holds nothing of these files in memory any more."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def listens(node: Node) -> float:
    node.hear_word("LISTENS", 120)
    return time.perf_counter() - node.begun


def replay(node: Node, target: int, leads: bool) -> tuple[float, float]:
    """Seconds since its start until it knows a leader (if it is to) and until it has applied up to there."""
    led = 0.0
    while True:
        status = node.status()
        now = time.perf_counter() - node.begun
        if status["leader_id"] and not led:
            led = now
        if status["applied_index"] >= target and (led or not leads):
            return led, now
        if now > 300:
            raise SystemExit("bench: it does not come to the end of its log")
        time.sleep(0.01)


def run(report: Report, quick: bool) -> None:
    megabytes = 200 if quick else 1000
    name = f"start with a log of {megabytes} MB"
    with Cluster(build("c"), 2, OPTIONS) as cluster:
        cluster.start(1, 2)
        cluster.ready()
        own = DATA / "1"
        filled = 0
        while size_of(own) < megabytes * 1_000_000:
            cluster.fill(PAYLOAD, 100_000)
            filled += 100_000
        entries = cluster.leader().status()["last_index"]
        time.sleep(0.5)  # the last commit index becomes durable everywhere
        for node_id in (1, 2):
            cluster.kill(node_id)
        report.figure(name, "entries in it", entries)
        forget(own)
        cluster.start(1)
        report.figure(name, "listens after, from the disk", listens(cluster.nodes[1]), "s", below=GOAL_STARTED)
        time.sleep(1.0 + filled / GOAL_REPLAY)
        alone = cluster.nodes[1].status()["applied_index"]
        report.figure(name, "applied before anybody else is there", alone)
        cluster.start(2)
        second = cluster.nodes[2]
        heard = listens(second)
        voted, done = replay(second, entries, leads=True)
    report.figure(name, "listens after, files in memory", heard, "s", below=GOAL_STARTED)
    report.figure(name, "has voted after (a leader of two is known)", voted, "s", below=GOAL_STARTED)
    report.figure(name, "all applied after", done, "s")
    report.figure(name, "replay, since it was started", entries / done, "/s", above=GOAL_REPLAY)
    report.figure(name, "replay, since it listens", entries / (done - heard), "/s", above=GOAL_REPLAY)

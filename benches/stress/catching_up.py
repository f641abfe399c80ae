"""A member that was away comes back, and gets from the leader's log what it lacks. (The log that is kept is bounded by `snapshot_bytes` too.)"""

from __future__ import annotations

import time

from cluster import Cluster, build, settings

from .report import Report

PAYLOAD = 128
GOAL = 300_000.0


def run(report: Report, quick: bool) -> None:
    missed = 200_000 if quick else 1_000_000
    name = f"{missed:,} entries behind"
    with Cluster(build("c"), 3, [*settings(trailing_entries=2_000_000, snapshot_bytes=4 << 30), "--tell"]) as cluster:
        cluster.start(1, 2, 3)
        cluster.ready()
        leader = cluster.leader()
        cluster.fill(PAYLOAD, 10_000)
        away = next(node_id for node_id in cluster.nodes if node_id != leader.id)
        cluster.kill(away)
        filled = cluster.fill(PAYLOAD, missed)
        report.figure(name, "proposed on the other two", filled["n"] / filled["secs"], "/s")
        before = leader.status()
        target = before["last_index"]
        cluster.start(away)
        back = cluster.nodes[away]
        back.hear_word("LISTENS", 60)
        listens = time.perf_counter() - back.begun
        points = []
        while True:
            status = back.status()
            points.append((time.perf_counter() - back.begun, status["last_index"], status["applied_index"]))
            if status["applied_index"] >= target:
                break
            if points[-1][0] > 120:
                raise SystemExit("bench: it does not catch up")
            time.sleep(0.02)
        if "INSTALLED" in back.heard:
            raise SystemExit("bench: it got a snapshot, not the log")
        elections = leader.status()["term"] - before["term"]
        first = next(at for at, last, _ in points if last > points[0][1])
        whole = next(at for at, last, _ in points if last >= target)
    report.figure(name, "terms that began meanwhile", elections, below=0)
    report.figure(name, "listens after", listens, "s")
    report.figure(name, "first entries after", first, "s")
    report.figure(name, "log complete after", whole, "s")
    report.figure(name, "applied after", points[-1][0], "s")
    report.figure(name, "caught up by log, from its start", missed / points[-1][0], "/s")
    report.figure(name, "caught up by log, since it listens", missed / (points[-1][0] - listens), "/s", above=GOAL)
    report.series("catching up", name, points)

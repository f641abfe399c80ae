"""The leader is killed, again and again: how long until another one leads and a proposal made on it has succeeded."""

from __future__ import annotations

import json
import time

from cluster import Cluster, Node, build, quantile, settings, wait_until

from .report import Report

TICK = 0.05
ELECTION_TICKS = 10


def next_leader(cluster: Cluster, timeout: float) -> Node:
    """Who says first that it is the leader itself."""
    until = time.perf_counter() + timeout
    while time.perf_counter() < until:
        for node in cluster.nodes.values():
            while (line := node.hear_now()) is not None:
                if line == f"LEADER {node.id}":
                    return node
        time.sleep(0.001)
    raise SystemExit("bench: nobody leads after a kill")


def serves_again(cluster: Cluster) -> tuple[float, float]:
    """Kills the leader; seconds until the next one leads, and until a proposal on it has succeeded."""
    leader = cluster.leader().id
    for node in cluster.nodes.values():
        while node.hear_now() is not None:
            pass
    begun = time.perf_counter()
    cluster.kill(leader)
    while True:
        node = next_leader(cluster, 60)
        elected = time.perf_counter() - begun
        node.say("PROPOSE")
        if json.loads(node.hear_word("PROPOSED", 60))["ok"]:
            served = time.perf_counter() - begun
            break
    cluster.start(leader)
    back = cluster.nodes[leader]
    back.hear_word("READY", 60)
    wait_until(lambda: back.status()["applied_index"] >= node.status()["commit_index"], 60)
    return elected, served


def run(report: Report, quick: bool) -> None:
    timeout = TICK * ELECTION_TICKS
    elected, served = [], []
    options = [*settings(tick_interval=TICK, election_tick=ELECTION_TICKS), "--tell"]
    with Cluster(build("c"), 3, options) as cluster:
        cluster.start(1, 2, 3)
        cluster.ready()
        for _ in range(20 if quick else 100):
            one, other = serves_again(cluster)
            elected.append(one)
            served.append(other)
    name = f"kill -9 of the leader, {len(served)} times"
    report.figure(name, "election timeout that is set (drawn from 1 to 2 of it)", timeout, "s")
    for part in (0.5, 0.9):
        report.figure(name, f"elected, of {part:.0%}", quantile(elected, part) / timeout, "timeouts")
        report.figure(name, f"served, of {part:.0%}", quantile(served, part) / timeout, "timeouts")
    report.figure(
        name, "served, of 95%", sorted(served)[-(-len(served) * 95 // 100) - 1] / timeout, "timeouts", below=2
    )
    report.figure(name, "served, of all", max(served) / timeout, "timeouts", below=4)
    report.series("failover", "elected", elected)
    report.series("failover", "served", served)
    report.series("failover", "election timeout", timeout)

"""Three nodes that nobody asks anything: processor time and memory of each."""

from __future__ import annotations

import time

from cluster import Cluster, build

from .report import Report

#: Resident megabytes of a node, by driver.
MEMORY = {"c": 15.0, "python": 40.0}


def run(report: Report, quick: bool) -> None:
    seconds = 20
    for driver, memory in MEMORY.items():
        name = f"idle, three nodes, driver {driver}"
        with Cluster(build(driver), 3) as cluster:
            cluster.start(1, 2, 3)
            cluster.ready()
            time.sleep(2)
            nodes = list(cluster.nodes.values())
            before = [node.cpu_seconds() for node in nodes]
            time.sleep(seconds)
            spent = [node.cpu_seconds() - had for node, had in zip(nodes, before)]
            report.figure(name, "CPU of a core, the busiest node", 100 * max(spent) / seconds, "%", below=1)
            report.figure(name, "CPU of a core, mean", 100 * sum(spent) / len(spent) / seconds, "%")
            report.figure(name, "resident, largest", max(node.resident_mb() for node in nodes), "MB", below=memory)
            report.figure(name, "threads", max(node.threads() for node in nodes))

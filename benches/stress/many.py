"""A hundred nodes in one process on one runtime: do they start and stop, and what do they cost?"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from cluster import DATA, build

from .report import Report

UNITS = {
    "nodes": "",
    "started_s": "s",
    "led_s": "s",
    "threads": "",
    "resident_mb": "MB",
    "disk_mb": "MB",
    "idle_cpu": "%",
    "proposals": "/s",
    "errors": "",
    "busy_cpu": "%",
    "closed_s": "s",
}


def measure(report: Report, name: str, program: Path, clusters: int, members: int, seconds: int) -> None:
    data = DATA
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    try:
        command = [program, "--clusters", clusters, "--members", members, "--dir", data, "--seconds", seconds]
        done = subprocess.run(
            [str(part) for part in command], stdout=subprocess.PIPE, text=True, timeout=300, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"bench: {program} ended with {done.returncode}")
        result: dict[str, Any] = json.loads(done.stdout)
    finally:
        shutil.rmtree(data, ignore_errors=True)
    scenario = f"{clusters} clusters of {members} in one process, {name}"
    for figure, value in result.items():
        report.figure(scenario, figure, value, UNITS.get(figure, ""))


def run(report: Report, quick: bool) -> None:
    seconds = 3 if quick else 10
    for driver in ("c", "python"):
        program = build(driver) / "many"
        for clusters, members in ((100, 1), (33, 3)):
            measure(report, f"driver {driver}", program, clusters, members, seconds)

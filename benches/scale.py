"""`make bench-scale`: how speed changes with the size of a cluster, the size of a command, and how many are in flight.

    make bench-scale BENCH="[--sweep nodes|payload|inflight]... [--secs 3] [DRIVER...]"

Drivers are those of run.py. One dimension is swept at a time, around three nodes, 128 B and 256 in flight. Every point is a cluster of
its own in a fresh directory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import DATA, OUT, drivers
from turns import Side, positive

NODES = [1, 3, 5, 7]
PAYLOADS = [128, 1 << 10, 16 << 10, 128 << 10, 1 << 20]
IN_FLIGHT = [1, 4, 16, 64, 256, 1024, 4096, 10_000]
#: Commands on their way together are kept below this: a node refuses more than 256 MiB.
BYTES_IN_FLIGHT = 64 << 20
DEFAULT = ["hraft-wal", "c", "python"]


@dataclass(frozen=True)
class Point:
    nodes: int = 3
    payload: int = 128
    inflight: int = 256


def points(sweep: str) -> Iterator[Point]:
    if sweep == "nodes":
        yield from (Point(nodes=nodes) for nodes in NODES)
    elif sweep == "payload":
        yield from (Point(payload=size, inflight=min(256, BYTES_IN_FLIGHT // size)) for size in PAYLOADS)
    else:
        yield from (Point(inflight=inflight) for inflight in IN_FLIGHT)


def run(name: str, driver: Path, point: Point, args: argparse.Namespace) -> dict[str, float]:
    shutil.rmtree(DATA, ignore_errors=True)
    try:
        side = Side.start(name, driver, point.nodes, DATA)
        try:
            command = f"BENCH {point.payload} {point.inflight} {args.secs} {args.warm}"
            seen = side.ask(command, args.secs + args.warm)
        finally:
            side.stop()
    finally:
        shutil.rmtree(DATA, ignore_errors=True)
    done = max(seen["n"], 1)
    return {
        "rate": seen["n"] / seen["secs"],
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "cpu_us": 1e6 * seen["cpu"] / done,
        "errors": seen["errors"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="append", choices=["nodes", "payload", "inflight"])
    parser.add_argument("--secs", type=positive, default=3)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("drivers", nargs="*", metavar="DRIVER", help=f"by default: {' '.join(DEFAULT)}")
    args = parser.parse_args()
    measured = drivers(args.drivers, DEFAULT)
    print("| | nodes | payload B | in flight | a second | p50 ms | p99 ms | CPU us, all nodes | errors |")
    print("|---|---|---|---|---|---|---|---|---|")
    with (OUT / "scale.jsonl").open("a") as file:
        for sweep in args.sweep or ["nodes", "payload", "inflight"]:
            for point in points(sweep):
                for name, driver in measured:
                    seen = run(name, driver, point, args)
                    line = {"at": round(time.time()), "sweep": sweep, "driver": name, **vars(point), **seen}
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    numbers = [f"{seen['rate']:.0f}", f"{seen['p50_ms']:.3f}", f"{seen['p99_ms']:.3f}"]
                    cpu = [f"{seen['cpu_us']:.1f}", f"{seen['errors']:.0f}"]
                    print("| " + " | ".join([name, *map(str, vars(point).values()), *numbers, *cpu]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")

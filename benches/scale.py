"""`make bench-scale`: how speed changes with the size of a cluster, the size of a command, and how many are in flight.

    make bench-scale BENCH="[--sweep nodes|payload|inflight]... [--driver c|python|rust]... [--secs 3]"
    BENCH_HOME=DIR make bench-scale BENCH="... PEER"     beside another library, with the bench kit in DIR

One dimension is swept at a time, around three nodes, 128 B and 256 in flight. Every cell is a cluster of its own in a fresh directory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import DRIVERS, OUT, START_TIMEOUT, Cluster, build
from run import measure

NODES = [1, 3, 5, 7]
PAYLOADS = [128, 1 << 10, 16 << 10, 128 << 10, 1 << 20]
IN_FLIGHT = [1, 4, 16, 64, 256, 1024, 4096, 10_000]
#: Commands on their way together are kept below this: a node refuses more than 256 MiB.
BYTES_IN_FLIGHT = 64 << 20
#: Drivers of other libraries keep a state of 1024 values whatever their size: above this that, not the library, would be measured.
PEER_PAYLOAD = 16 << 10


@dataclass(frozen=True)
class Cell:
    nodes: int = 3
    payload: int = 128
    inflight: int = 256


def cells(sweep: str) -> Iterator[Cell]:
    if sweep == "nodes":
        yield from (Cell(nodes=nodes) for nodes in NODES)
    elif sweep == "payload":
        yield from (Cell(payload=size, inflight=min(256, BYTES_IN_FLIGHT // size)) for size in PAYLOADS)
    else:
        yield from (Cell(inflight=inflight) for inflight in IN_FLIGHT)


def run(driver: Path, cell: Cell, args: argparse.Namespace) -> dict[str, float]:
    with Cluster(driver, cell.nodes) as cluster:
        cluster.start(*range(1, cell.nodes + 1))
        nodes = list(cluster.nodes.values())
        leader = max(int(node.hear_word("READY", START_TIMEOUT)) for node in nodes) or 1
        _, seen = measure(nodes, leader, f"BENCH {cell.payload} {cell.inflight} {args.secs} {args.warm}", True, args)
    done = max(seen["n"], 1)
    return {
        "rate": seen["n"] / seen["secs"],
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "cpu_us": 1e6 * seen["cpu_s"] / done,
        "errors": seen["errors"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="append", choices=["nodes", "payload", "inflight"])
    parser.add_argument("--driver", action="append", choices=list(DRIVERS))
    parser.add_argument("--secs", type=int, default=3)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("peers", nargs="*", help="other drivers of the bench kit in BENCH_HOME")
    args = parser.parse_args()
    kit = os.environ.get("BENCH_HOME")
    if args.peers and not kit:
        parser.error("other libraries are measured with the bench kit: set BENCH_HOME to its folder")
    drivers = {name: build(name) for name in args.driver or ([] if args.peers else ["c", "python"])}
    peers = {name: Path(kit or "") / "drivers" / name for name in args.peers}
    print("| | nodes | payload B | in flight | a second | p50 ms | p99 ms | CPU us, all nodes | errors |")
    print("|---|---|---|---|---|---|---|---|---|")
    with (OUT / "scale.jsonl").open("a") as file:
        for sweep in args.sweep or ["nodes", "payload", "inflight"]:
            for cell in cells(sweep):
                for name, driver in {**peers, **drivers}.items():
                    if name in peers and cell.payload > PEER_PAYLOAD:
                        continue
                    seen = run(driver, cell, args)
                    line = {"at": round(time.time()), "sweep": sweep, "driver": name, **vars(cell), **seen}
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    numbers = [f"{seen['rate']:.0f}", f"{seen['p50_ms']:.3f}", f"{seen['p99_ms']:.3f}"]
                    cpu = [f"{seen['cpu_us']:.1f}", f"{seen['errors']:.0f}"]
                    print("| " + " | ".join([name, *map(str, vars(cell).values()), *numbers, *cpu]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    sys.exit(main())

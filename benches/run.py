"""`make bench`: three nodes on this machine, measured in the same run as what this disk and this loop can do at all.

    python benches/run.py [--secs 5] [--warm 2] [--only 128x1,128x64] [--driver python|rust|c] [--nodes 3] [--reads]
    BENCH_HOME=DIR python benches/run.py PEER...     beside other libraries, with the bench kit in DIR

A figure alone says little (another disk, another day): read the ratios.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cluster import DATA, DRIVERS, OUT, START_TIMEOUT, Node, build, free_ports, syncs_per_second

#: payload bytes, proposals in flight
WORK = [(128, 1), (128, 16), (128, 64), (128, 256), (128, 1024), (16384, 64)]


def measure(
    nodes: list[Node], asked: int, command: str, follow_leader: bool, args: argparse.Namespace
) -> tuple[int, dict[str, Any]]:
    """Runs one workload on a node: the leader, whoever that is by then, or just this one. Adds the CPU time of all nodes in the window."""
    spent: dict[str, float] = {}

    def heard(line: str) -> None:
        if line in ("MEASURE", "END"):
            spent[line] = sum(node.cpu_seconds() for node in nodes)

    for _ in range(10):
        nodes[asked - 1].say(command)
        answer = nodes[asked - 1].hear_json(args.warm + args.secs + 90, heard)
        if "error" not in answer:
            answer["cpu_s"] = spent.get("END", 0.0) - spent.get("MEASURE", 0.0)
            return asked, answer
        if follow_leader:
            asked = answer["leader"] or asked
        time.sleep(0.5)
    raise SystemExit("bench: no leader stays one")


def row(name: str, inflight: int, result: dict[str, Any], disk: float) -> str:
    rate = result["n"] / result["secs"]
    cpu = 1e6 * result["cpu_s"] / max(result["n"], 1)
    numbers = [f"{rate:.0f}", f"{rate / disk:.2f}", f"{result['p50_ms']:.3f}", f"{result['p99_ms']:.3f}", f"{cpu:.1f}"]
    return "| " + " | ".join([name, str(inflight), *numbers, str(result["errors"])]) + " |"


def run_alone(driver: Path, args: argparse.Namespace) -> None:
    data = DATA
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    nodes: list[Node] = []
    try:
        disk = syncs_per_second(data, 2.0)
        print(f"this disk: {disk:.0f} appends of 4 KiB made durable a second\n")
        ports = free_ports(args.nodes)
        peers = ",".join(f"{i}=127.0.0.1:{port}" for i, port in enumerate(ports, 1))
        nodes = [Node(driver, i, peers, data / str(i)) for i in range(1, args.nodes + 1)]
        leader = max(int(node.hear(START_TIMEOUT).split()[1]) for node in nodes) or 1
        print("| | in flight | a second | x syncs/s | p50 ms | p99 ms | CPU us, all nodes | errors |")
        print("|---|---|---|---|---|---|---|---|")
        for payload, inflight in WORK:
            if args.only and f"{payload}x{inflight}" not in args.only.split(","):
                continue
            command = f"BENCH {payload} {inflight} {args.secs} {args.warm}"
            leader, result = measure(nodes, leader, command, True, args)
            print(row(f"proposals of {payload} B", inflight, result, disk), flush=True)
            if args.reads and payload == WORK[0][0]:
                follower = leader % args.nodes + 1
                for where, node in (("leader", leader), ("follower", follower)):
                    command = f"READS {inflight} {args.secs} {args.warm}"
                    _, result = measure(nodes, node, command, False, args)
                    print(row(f"reads, {where}", inflight, result, disk), flush=True)
        print("\nall nodes hold the same state:", "yes" if converged(nodes) else "NO")
    finally:
        for node in nodes:
            node.stop()
        shutil.rmtree(data, ignore_errors=True)


def converged(nodes: list[Node]) -> bool:
    """Followers may still apply when the last answer has left the leader: asked until equal, at most for 20 seconds."""
    deadline = time.monotonic() + 20
    while True:
        for node in nodes:
            node.say("STATE")
        states = [node.hear_json(20) for node in nodes]
        if all(state == states[0] for state in states) or time.monotonic() > deadline:
            return all(state == states[0] for state in states)
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secs", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--only", help="for instance 128x1,128x64")
    parser.add_argument("--driver", choices=list(DRIVERS), default="python", help="whose state machine is measured")
    parser.add_argument("--nodes", type=int, default=3, help="of the cluster: 1, 3, 5 or 7")
    parser.add_argument(
        "--reads", action="store_true", help="linearizable reads as well, on leader and follower (driver c)"
    )
    parser.add_argument("peers", nargs="*", help="other drivers of the bench kit in BENCH_HOME")
    args = parser.parse_args()
    if args.reads and args.driver != "c":
        parser.error("reads are measured with --driver c")
    OUT.mkdir(exist_ok=True)
    driver = build(args.driver)
    kit = os.environ.get("BENCH_HOME")
    if args.peers and not kit:
        parser.error("other libraries are measured with the bench kit: set BENCH_HOME to its folder")
    if not kit:
        run_alone(driver, args)
        return 0
    command = [str(Path(kit) / "run.sh"), "--secs", str(args.secs), "--warm", str(args.warm)]
    if args.only:
        command += ["--only", args.only]
    done = subprocess.run([*command, str(driver), *args.peers], env={**os.environ, "BENCH_OUT": str(OUT)}, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

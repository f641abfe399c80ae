"""Many nodes of many clusters in one process and one event loop. Prints what they took, one line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster import free_ports

from raftify_ffi import Config, Raft

PAYLOAD = 128
INFLIGHT = 16


class Counter:
    """A state machine that only counts: what is measured is what a node costs."""

    def __init__(self) -> None:
        self.applied = 0

    def apply(self, command: bytes) -> bytes:
        self.applied += 1
        return b""

    def snapshot(self) -> bytes:
        return str(self.applied).encode()

    def restore(self, snapshot: bytes) -> None:
        self.applied = int(snapshot)


class Load:
    """Keeps proposals outstanding on every leader, until it is over."""

    def __init__(self) -> None:
        self.done = 0
        self.errors = 0
        self.over = False

    async def worker(self, raft: Raft[Counter]) -> None:
        command = bytes(PAYLOAD)
        while not self.over:
            try:
                await raft.propose(command)
                self.done += 1
            except Exception:  # every failure is counted, whatever its kind
                self.errors += 1
                await asyncio.sleep(0.01)


def of_process(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def built(clusters: int, members: int, directory: str) -> list[Raft[Counter]]:
    ports = iter(free_ports(clusters * members))
    nodes = []
    for cluster in range(clusters):
        peers = {member: f"127.0.0.1:{next(ports)}" for member in range(1, members + 1)}
        for member, addr in peers.items():
            config = Config(log_dir=f"{directory}/{cluster}", cluster_id=f"cluster {cluster}")
            nodes.append(Raft.build(member, addr, Counter(), config, peers))
    return nodes


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--seconds", type=float, default=5)
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    nodes = built(args.clusters, args.members, args.dir)
    begun = time.perf_counter()
    await asyncio.gather(*(node.run() for node in nodes))
    started = time.perf_counter() - begun
    await asyncio.gather(*(node.wait_for(leader=True, timeout=60) for node in nodes))
    led = time.perf_counter() - begun
    await asyncio.sleep(2)
    threads, resident = of_process("Threads:"), of_process("VmRSS:") * 1.024 / 1e3
    cpu = time.process_time()
    await asyncio.sleep(args.seconds)
    idle_cpu = 100 * (time.process_time() - cpu) / args.seconds
    load = Load()
    leaders = [node for node in nodes if node.status.leader_id == node.node_id]
    workers = [asyncio.create_task(load.worker(node)) for node in leaders for _ in range(INFLIGHT)]
    await asyncio.sleep(1)
    before, cpu, since = load.done, time.process_time(), time.perf_counter()
    await asyncio.sleep(args.seconds)
    took = time.perf_counter() - since
    proposals, busy_cpu = (load.done - before) / took, 100 * (time.process_time() - cpu) / took
    load.over = True
    await asyncio.gather(*workers)
    begun = time.perf_counter()
    await asyncio.gather(*(node.close() for node in nodes))
    result = {
        "nodes": len(nodes),
        "started_s": started,
        "led_s": led,
        "threads": threads,
        "resident_mb": resident,
        "idle_cpu": idle_cpu,
        "proposals": proposals,
        "errors": load.errors,
        "busy_cpu": busy_cpu,
        "closed_s": time.perf_counter() - begun,
    }
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


asyncio.run(main())

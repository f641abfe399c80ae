"""Clusters of three in one process, under load, in a program that leaves SIGPIPE as a program in C has it: whoever writes to a connection
that the other side has closed is ended by it. All nodes are closed at once; says `alive` after that.

default_sigpipe.py LOG_DIR
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from cluster import free_addrs, quick_config
from stores import KeyValue

from raftify_ffi import Raft, RaftError

CLUSTERS = 10


async def propose(raft: Raft[KeyValue]) -> None:
    with contextlib.suppress(RaftError):
        while True:
            await raft.propose(b"key=" + bytes(2000))


async def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    addrs = iter(free_addrs(3 * CLUSTERS))
    rafts = []
    for cluster in range(CLUSTERS):
        peers = {node_id: next(addrs) for node_id in (1, 2, 3)}
        config = quick_config(Path(sys.argv[1]) / str(cluster), cluster_id=str(cluster))
        rafts += [Raft.build(node_id, addr, KeyValue(), config, peers) for node_id, addr in peers.items()]
    await asyncio.gather(*(raft.run() for raft in rafts))
    await asyncio.gather(*(raft.wait_for(leader=True, timeout=60) for raft in rafts))
    load = [asyncio.create_task(propose(raft)) for raft in rafts for _ in range(8)]
    await asyncio.sleep(0.5)
    await asyncio.gather(*(raft.close() for raft in rafts))
    await asyncio.gather(*load)
    print("alive", flush=True)


asyncio.run(main())

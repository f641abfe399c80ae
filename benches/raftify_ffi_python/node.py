"""One of three bench nodes: raftify_ffi with its default settings, driven from the program's own event loop."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from load import Map, serve

from raftify_ffi import Config, Raft


class Store:
    def __init__(self) -> None:
        self.map = Map()

    def apply(self, command: bytes) -> bytes:
        self.map.put(command)
        return b""

    def snapshot(self) -> bytes:
        return self.map.dump()

    def restore(self, snapshot: bytes) -> None:
        self.map.load(snapshot)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", type=int, required=True)
    parser.add_argument("--peers", required=True, help="1=host:port,2=host:port,…")
    parser.add_argument("--dir", required=True)
    args = parser.parse_args()
    peers = {int(id_): addr for id_, _, addr in (peer.partition("=") for peer in args.peers.split(","))}
    store = Store()
    config = Config(log_dir=args.dir, log_engine=os.environ.get("BENCH_LOG_ENGINE", "segment"))
    async with Raft.build(args.id, peers[args.id], store, config, peers) as raft:
        await raft.wait_for(leader=True, timeout=40)
        await serve(args.id, lambda: raft.status.leader_id, raft.propose, store.map)


asyncio.run(main())

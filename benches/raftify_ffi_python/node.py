"""One of three bench nodes: raftify_ffi with its default settings, driven from the program's own event loop."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from load import serve
from store import AsyncStore, Store

from raftify_ffi import Config, Raft


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", type=int, required=True)
    parser.add_argument("--peers", required=True, help="1=host:port,2=host:port,…")
    parser.add_argument("--dir", required=True)
    args = parser.parse_args()
    peers = {int(id_): addr for id_, _, addr in (peer.partition("=") for peer in args.peers.split(","))}
    store = AsyncStore() if os.environ.get("BENCH_APPLY") == "async" else Store()
    config = Config(log_dir=args.dir, log_engine=os.environ.get("BENCH_LOG_ENGINE", "segment"))
    async with Raft.build(args.id, peers[args.id], store, config, peers) as raft:
        await raft.wait_for(leader=True, timeout=40)
        many = int(os.environ.get("BENCH_MANY", "0"))
        await serve(args.id, lambda: raft.status.leader_id, raft.propose, store, raft.propose_many, many)


if os.environ.get("BENCH_LOOP") == "uvloop":
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())

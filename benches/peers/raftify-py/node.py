"""A bench node of raftify-py, the library that this one continues, set as in its own examples."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from load import Map, serve
from raftify import Config, InitialRole, Peer, Peers, Raft, RaftConfig


class Logger:
    """What it wants of one: only what goes wrong is told."""

    def _quiet(self, message: str) -> None:
        pass

    def _told(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    trace = debug = info = warn = _quiet
    error = fatal = _told


class Store(Map):
    def __init__(self) -> None:
        super().__init__()
        # It asks for this by name.
        self._loop = asyncio.get_running_loop()

    async def apply(self, command: bytes) -> bytes:
        self.put(command)
        return b""

    async def snapshot(self) -> bytes:
        return self.dump()

    async def restore(self, snapshot: bytes) -> None:
        self.load(snapshot)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", type=int, required=True)
    parser.add_argument("--peers", required=True, help="1=host:port,2=host:port,…")
    parser.add_argument("--dir", required=True)
    args = parser.parse_args()
    addresses = {int(number): addr for number, _, addr in (peer.partition("=") for peer in args.peers.split(","))}
    config = Config(
        raft_config=RaftConfig(election_tick=10, heartbeat_tick=3),
        log_dir=args.dir,
        compacted_log_dir=args.dir,
        initial_peers=Peers({number: Peer(addr=addr, role=InitialRole.VOTER) for number, addr in addresses.items()}),
        lmdb_map_size=8 << 30,
    )
    store = Store()
    raft = Raft.bootstrap(args.id, addresses[args.id], store, config, Logger())
    running = asyncio.ensure_future(raft.run())
    await asyncio.sleep(0.5)
    node = raft.get_raft_node()
    leader, known = 0, asyncio.Event()

    async def look() -> None:
        """Who leads is asked there by a call that waits."""
        nonlocal leader
        while not running.done():
            leader = await node.get_leader_id()
            if leader:
                known.set()
            await asyncio.sleep(0.05)
        print("raftify has ended:", running.exception() or running.result(), file=sys.stderr, flush=True)
        known.set()

    looking = asyncio.ensure_future(look())
    await known.wait()
    await serve(args.id, lambda: leader, node.propose, store)
    looking.cancel()
    # Its threads do not end by themselves.
    os._exit(0)


asyncio.run(main())

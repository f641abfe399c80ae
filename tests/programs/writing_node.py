"""A member that writes all the time and says what was acknowledged: `ack KEY`. On stdin, `stop` ends the
writing (`stopped`), `dump` prints `all [KEYS]`.

writing_node.py NODE_ID LOG_DIR PEERS_JSON LOG_ENGINE
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from cluster import quick_config
from stores import KeyValue

from raftify_ffi import Raft, RaftError


async def write(raft: Raft[KeyValue], writer: int) -> None:
    count = 0
    while True:
        count += 1
        key = f"{raft.node_id}/{os.getpid()}/{writer}/{count}"
        try:
            await raft.propose(f"{key}=x".encode())
        except RaftError as error:
            print(f"not acknowledged: {error!r}", flush=True)
        else:
            print(f"ack {key}", flush=True)


async def main() -> None:
    node_id, log_dir, peers_json, log_engine = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    peers = {int(peer): addr for peer, addr in json.loads(peers_json).items()}
    # Small numbers: snapshots and compaction happen within the test.
    config = quick_config(Path(log_dir), snapshot_entries=300, trailing_entries=50, log_engine=log_engine)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Raft.build(node_id, peers[node_id], KeyValue(), config, peers) as raft:
        print("running", flush=True)
        writers = [asyncio.create_task(write(raft, number)) for number in range(4)]
        while line := await reader.readline():
            if line.strip() == b"stop":
                for writer in writers:
                    writer.cancel()
                await asyncio.gather(*writers, return_exceptions=True)
                print("stopped", flush=True)
            elif line.strip() == b"dump":
                keys = await raft.read(lambda store: sorted(store.data), timeout=60)
                print("all " + json.dumps(keys), flush=True)


asyncio.run(main())

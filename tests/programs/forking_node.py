"""An initial member of two that forks a child, without an exec, on the first line of its input (`forked PID`), then closes (`closed`).

forking_node.py DIRECTORY ADDRESS PEER
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from cluster import quick_config
from stores import KeyValue

from raftify_ffi import Raft


async def main() -> None:
    directory, addr, peer = sys.argv[1:]
    raft = Raft.build(1, addr, KeyValue(), quick_config(Path(directory)), {1: addr, 2: peer})
    await raft.run()
    print("running", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    child = os.fork()
    if child == 0:
        try:
            time.sleep(600)
        finally:
            os._exit(0)
    print(f"forked {child}", flush=True)
    await raft.close()
    print("closed", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


asyncio.run(main())

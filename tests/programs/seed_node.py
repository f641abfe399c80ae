"""One process of the seed's README: runs one of its blocks as written, and does on stdin what a test asks for.

    seed_node.py README bootstrap|join LOG_DIR RAFT_ADDR PEER_ADDR PEERS_JSON

Lines on stdin: `set KEY VALUE` runs the README's local block; `get KEY` prints `got VALUE`; `close` closes the node.
"""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, Optional

import raftify_ffi
from raftify_ffi import Config, RaftServiceClient, wait_for_termination

started = asyncio.Event()


class Raft(raftify_ffi.Raft[Any]):
    """The README's `Raft`, saying on stdout how far its program has come."""

    async def run(self, *, timeout: float | None = None) -> None:
        await super().run(timeout=timeout)
        started.set()
        print(f"running {self.node_id}", flush=True)

    async def join(self, *arguments: Any, **named: Any) -> None:
        await super().join(*arguments, **named)
        print(f"joined {self.node_id}", flush=True)


def python_blocks(readme: str) -> list[str]:
    return re.findall(r"^```py\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)


def as_program(block: str, names: dict[str, Any]) -> Any:
    """The block as the body of a coroutine function; `raft` is shared with the other blocks."""
    exec("async def program():\n    global raft\n" + textwrap.indent(block, "    "), names)
    return names["program"]


async def obey(local: str, names: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await started.wait()
    while line := (await reader.readline()).decode().split():
        raft = names["raft"]
        if line[0] == "set":
            names["message"] = names["SetCommand"](line[1], line[2])
            await as_program(local, names)()
            print(f"set {line[1]}", flush=True)
        elif line[0] == "get":
            print(f"got {await raft.read(lambda store, key=line[1]: store.get(key))}", flush=True)
        elif line[0] == "close":
            await raft.close()


async def main(blocks: list[str]) -> None:
    _, what, log_dir, raft_addr, peer_addr, peers = sys.argv[1:]
    command, store, bootstrap, join, _, local = blocks
    names: dict[str, Any] = {
        "pickle": pickle, "logging": logging, "logger": logging.getLogger("program"), "Optional": Optional, "Raft": Raft,
        "RaftServiceClient": RaftServiceClient, "wait_for_termination": wait_for_termination, "raft_addr": raft_addr,
        "peer_addr": peer_addr, "cfg": Config(log_dir=log_dir, tick_interval=0.03),
        "peers": {int(node_id): addr for node_id, addr in json.loads(peers).items()} if peers != "null" else None,
    }  # fmt: skip
    exec(command, names)
    exec(store, names)
    names["store"] = names["HashStore"]()
    obeying = asyncio.create_task(obey(local, names))
    await as_program(bootstrap if what == "bootstrap" else join, names)()
    obeying.cancel()
    print("ended", flush=True)


asyncio.run(main(python_blocks(Path(sys.argv[1]).read_text())))

"""The first user's program: the seed's README, its blocks as they are written, in three processes."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import Process, free_ports

import raftify_ffi
from raftify_ffi import RaftServiceClient

TESTS = Path(__file__).resolve().parent
README = TESTS / "data" / "seed_readme.md"
BLOCKS = re.findall(r"^```py\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
PACKAGE = Path(raftify_ffi.__file__).resolve().parent
PROGRAM = TESTS / "programs" / "seed_node.py"
PATIENCE = 60.0


def environment() -> dict[str, str]:
    # A program of a test runs on the package that the tests themselves have: the installed one, or the source tree's.
    path = os.pathsep.join([str(TESTS), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


class Node(Process):
    def __init__(self, directory: Path, what: str, addr: str, peer: str, peers: dict[int, str] | None) -> None:
        command = [sys.executable, str(PROGRAM), str(README), what, str(directory), addr, peer, json.dumps(peers)]
        super().__init__(command, directory, environment())

    def __enter__(self) -> Node:
        return self

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def get(self, key: str) -> str:
        self.tell(f"get {key}")
        return self.wait_for_line("got ", PATIENCE).removeprefix("got ")


@pytest.mark.parametrize("named", [False, True], ids=["peers=None", "peers={first}"])
async def test_the_readme_of_the_seed_runs_as_written(tmp_path: Path, named: bool) -> None:
    addrs = [f"127.0.0.1:{port}" for port in free_ports(3)]
    first = {1: addrs[0]} if named else None
    with ExitStack() as running:
        nodes: list[Node] = [running.enter_context(Node(tmp_path, "bootstrap", addrs[0], "", first))]
        nodes[0].wait_for_line("running 1", PATIENCE)
        for addr in addrs[1:]:
            nodes.append(running.enter_context(Node(tmp_path, "join", addr, addrs[0], first)))
            nodes[-1].wait_for_line("joined", PATIENCE)
        await run_client_block(addrs[0])
        assert [node.get("1") for node in nodes] == ["A", "A", "A"]
        for number, node in enumerate(nodes):
            node.tell(f"set key{number} value{number}")
            node.wait_for_line(f"set key{number}", PATIENCE)
        for node in nodes:
            assert [node.get(f"key{number}") for number in range(3)] == ["value0", "value1", "value2"]
        for node in nodes:
            node.tell("close")
            node.wait_for_line("ended", PATIENCE)
            assert node.wait(PATIENCE) == 0
    assert sorted(path.name for path in tmp_path.glob("node-*")) == ["node-1", "node-2", "node-3"]


async def run_client_block(addr: str) -> None:
    """The README's client, as written but for its address."""
    names: dict[str, Any] = {"pickle": pickle, "RaftServiceClient": RaftServiceClient}
    exec(BLOCKS[0], names)
    body = BLOCKS[4].replace("127.0.0.1:60061", addr)
    assert body != BLOCKS[4]
    exec("async def program():\n    global client\n" + textwrap.indent(body, "    "), names)
    await names["program"]()
    await names["client"].close()

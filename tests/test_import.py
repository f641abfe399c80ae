"""A directory of the crate raftify 0.1.x: shown, imported, and gone on from by a node of ours."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import free_addrs, quick_config
from processes import run_command

from raftify_ffi import Raft
from raftify_ffi.cli._exit import ExitCode

UPSTREAM = Path(__file__).resolve().parent / "data" / "upstream"


class Pairs:
    def __init__(self) -> None:
        self.data: dict[str, str] = {}

    def apply(self, command: bytes) -> bytes:
        key, value = json.loads(command)
        self.data[key] = value
        return command

    def snapshot(self) -> bytes:
        return json.dumps(self.data).encode()

    def restore(self, snapshot: bytes) -> None:
        self.data = json.loads(snapshot)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(UPSTREAM, tmp_path / "old"))


def content(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def raftify_cli(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return run_command([sys.executable, "-m", "raftify_ffi.cli", *args], directory)


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_directory_of_upstreams_is_shown_like_ours(old: Path, tmp_path: Path) -> None:
    before = content(old)
    found = answer(raftify_cli(tmp_path, "debug", "persisted", str(old)))
    assert found["hard_state"] == {"term": 1, "vote": 1, "commit": 3}
    assert [entry["data"] for entry in found["entries"]] == ["", *(f'["k{n}", "{n}"]' for n in range(2, 6))]
    done = raftify_cli(tmp_path, "debug", "persisted", str(old), "-o", "table")
    assert (done.returncode, done.stderr) == (0, "") and "k5" in done.stdout
    assert content(old) == before


async def test_an_imported_node_goes_on_with_all_that_was_in_the_old_log(old: Path, tmp_path: Path) -> None:
    before = content(old)
    (addr,) = free_addrs(1)
    report = answer(raftify_cli(tmp_path, "import", str(old), "new", "--id", "3", "--peers", f"3={addr}"))
    assert (report["commands"], report["newly_committed"], report["joining"]) == (4, 2, [])
    assert Path(report["directory"]).name == "node-3"
    assert content(old) == before
    entries = answer(raftify_cli(tmp_path, "describe", "logs", "new/node-3"))["entries"]
    assert [e["data"] for e in entries if e["kind"] == "command"] == [f'["k{n}", "{n}"]' for n in range(2, 6)]

    async with Raft.build(3, addr, Pairs(), quick_config(tmp_path / "new"), {3: addr}) as raft:
        await raft.wait_for(leader=True, timeout=30)
        await raft.propose(b'["of", "ours"]')
        data = await raft.read(lambda store: dict(store.data))
    assert data == {**{f"k{n}": str(n) for n in range(2, 6)}, "of": "ours"}


def test_an_import_says_in_words_what_it_did(old: Path, tmp_path: Path) -> None:
    peers = "1=127.0.0.1:60061,2=127.0.0.1:60062"
    done = raftify_cli(tmp_path, "import", str(old), "new", "--id", "1", "--peers", peers, "-o", "table")
    assert (done.returncode, done.stderr) == (0, "")
    assert "they are committed now" in done.stdout and "then node 2 with empty directories" in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (("nowhere", "new", "--id", "1", "--peers", "1=a:1"), ExitCode.USAGE, "no such directory"),
        (("empty", "new", "--id", "1", "--peers", "1=a:1"), ExitCode.FAILURE, "data.mdb"),
        (("old", "new", "--id", "0", "--peers", "1=a:1"), ExitCode.USAGE, "--id"),
        (("old", "new", "--id", "1"), ExitCode.USAGE, "where is node 1"),
        (("old", "new", "--id", "1", "--peers", "2=a:1"), ExitCode.USAGE, "where is node 1"),
        (("old", "new", "--id", "1", "--peers", "a:1"), ExitCode.USAGE, "expected id=host:port"),
        (("old", "new", "--id", "1", "--peers", "1=a:1", "--peers", "1=b:1"), ExitCode.USAGE, "two addresses"),
        (("old", "new", "--id", "1", "--peers", "1=a:1,2=a:1"), ExitCode.USAGE, "same address"),
        (("old", "new", "--id", "1", "--addr", "0.0.0.0:1"), ExitCode.USAGE, "0.0.0.0"),
        (("old", "taken", "--id", "1", "--addr", "a:1"), ExitCode.FAILURE, "node-1"),
    ],
)
def test_an_import_that_cannot_be_is_explained_and_leaves_nothing(
    old: Path, tmp_path: Path, args: tuple[str, ...], code: ExitCode, part: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken" / "node-1").mkdir(parents=True)
    (tmp_path / "taken" / "node-1" / "file").touch()
    done = raftify_cli(tmp_path, "import", *args)
    assert (done.returncode, done.stdout) == (code, ""), done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and part in done.stderr
    assert not (tmp_path / "new").exists() or list((tmp_path / "new").iterdir()) == []
    assert [path.name for path in (tmp_path / "taken" / "node-1").iterdir()] == ["file"]

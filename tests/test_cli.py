"""raftify_cli: what it says, on which stream, with which exit code; against nothing, against a directory, against a
running node."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import Process, free_ports, run_command

import raftify_ffi
from raftify_ffi import cli
from raftify_ffi.cli import _decode
from raftify_ffi.cli._cluster import View, parse_addr, split_addrs
from raftify_ffi.cli._exit import CliError, ExitCode, code_of

START_TIMEOUT = 60.0

NODE = """
import asyncio, json, sys
from raftify_ffi import Config, Raft

class Store:
    def __init__(self):
        self.data = {}
    def apply(self, command):
        key, value = json.loads(command)
        self.data[key] = value
        return b"stored " + key.encode()
    def snapshot(self):
        return json.dumps(self.data).encode()
    def restore(self, snapshot):
        self.data = json.loads(snapshot)

async def main(addr):
    async with Raft.build(1, addr, Store(), Config(log_dir="./logs", log_engine=(sys.argv + ["lmdb"])[2]), None) as raft:
        await raft.wait_for(leader=True, timeout=60)
        await raft.propose(b'["a", "1"]')
        print("up", flush=True)
        # Ends in order when standard input does.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main(sys.argv[1]))
"""

DECODER = """
import json
import os

class Pair:
    def __init__(self, key, value):
        self.key, self.value = key, value

    @classmethod
    def decode(cls, packed):
        return cls(*json.loads(packed))

def raises(packed):
    raise ValueError("not mine")

not_callable = 3
"""


def raftify_cli(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return run_command([sys.executable, "-m", "raftify_ffi.cli", *args], directory)


def failure(done: subprocess.CompletedProcess[str], code: ExitCode) -> str:
    """The one line on stderr of a command that failed so; nothing on stdout."""
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("raftify_cli: ")
    return done.stderr


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON of a command that succeeded (its stdout is a pipe here)."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


# ---- nothing there


@pytest.mark.parametrize("command", [("debug", "persisted"), ("describe", "logs"), ("describe", "metadata")])
def test_a_wrong_path_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    said = failure(raftify_cli(tmp_path, *command, "nowhere"), ExitCode.USAGE)
    assert "nowhere" in said and "no such directory" in said


def test_a_file_in_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "this is a file" in failure(raftify_cli(tmp_path, "debug", "persisted", "file"), ExitCode.USAGE)


def test_an_empty_directory_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    assert "empty" in failure(raftify_cli(tmp_path, "debug", "persisted", "dir"), ExitCode.FAILURE)
    assert list((tmp_path / "dir").iterdir()) == []


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "holiday.jpg").write_bytes(b"\xff\xd8")
    said = failure(raftify_cli(tmp_path, "debug", "persisted", "dir"), ExitCode.FAILURE)
    assert "dir" in said
    assert [path.name for path in (tmp_path / "dir").iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    "command",
    [
        ("debug", "node", "{addr}"),
        ("describe", "node", "{addr}"),
        ("status", "{addr}"),
        ("health", "{addr}"),
        ("member", "list", "{addr}"),
        ("member", "add", "{addr}", "4", "127.0.0.1:60064"),
        ("member", "promote", "{addr}", "4"),
        ("member", "remove", "{addr}", "4"),
        ("leader", "show", "{addr}"),
        ("leader", "transfer", "{addr}"),
        ("propose", "{addr}", "--data", "x"),
        ("snapshot", "create", "{addr}"),
    ],
    ids=" ".join,
)
def test_a_dead_address_is_said_at_once(tmp_path: Path, command: tuple[str, ...]) -> None:
    addr = f"127.0.0.1:{free_ports(1)[0]}"
    done = raftify_cli(tmp_path, *(part.format(addr=addr) for part in command))
    said = failure(done, ExitCode.NO_CONNECTION)
    assert addr in said and "refused" in said


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (("status",), "Missing argument"),
        (("staus", "a:1"), "No such command"),
        (("debug", "node", "no-port"), "not an address"),
        (("debug", "node", "host:0"), "not an address"),
        (("debug", "node", "host:99999"), "not an address"),
        (("status", ","), "no address"),
        (("member", "add", "a:1", "0", "b:2"), "NODE_ID"),
        (("member", "add", "a:1", "4", "b"), "not an address"),
        (("propose", "a:1"), "--data or --file"),
        (("propose", "a:1", "--data", "x", "--file", "y"), "--data or --file"),
        (("propose", "a:1", "--file", "nowhere"), "nowhere"),
        (("debug", "node", "a:1", "--timeout", "0"), "--timeout"),
        (("debug", "node", "a:1", "--timeout", "nan"), "--timeout"),
        (("debug", "node", "a:1,b:2"), "several"),
        (("debug", "node", "a:²"), "not an address"),
        (("import", ".", "new", "--id", "1", "--peers", "²=a:1"), "expected id=host:port"),
        (("debug", "node", "a:1", "-o", "xml"), "xml"),
        (("debug", "persisted", ".", "--limit", "0"), "--limit"),
        (("status", "http://a:1"), "not an address"),
        (("leader", "transfer", "a:1", str(2**64)), "NODE_ID"),
    ],
)
def test_a_wrong_command_line_is_explained(tmp_path: Path, command: tuple[str, ...], part: str) -> None:
    assert part in failure(raftify_cli(tmp_path, *command), ExitCode.USAGE)


def test_help_and_version_succeed(tmp_path: Path) -> None:
    for command in (["--help"], ["debug", "persisted", "--help"], ["member", "--help"], ["version"], ["--version"]):
        done = raftify_cli(tmp_path, *command)
        assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(raftify_cli(tmp_path, "version", "-o", "json").stdout)["version"]


def test_the_console_scripts_are_installed() -> None:
    for name in ("raftify_cli", "raftify-cli"):
        done = run_command([str(Path(sys.executable).parent / name), "version"], Path.cwd())
        assert (done.returncode, done.stderr) == (0, "")


def test_cli_main_runs_in_a_program_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert raftify_ffi.cli_main is cli.cli_main
    assert asyncio.run(cli.cli_main(["program", "version"])) == 0
    with pytest.raises(SystemExit) as exit_:
        asyncio.run(cli.cli_main(["program", "debug", "persisted", "/nowhere/at/all"]))
    assert exit_.value.code == ExitCode.USAGE
    assert "/nowhere/at/all" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['click'] = None; from raftify_ffi.cli import run; sys.exit(run(['version']))"
    done = run_command([sys.executable, "-c", program], tmp_path)
    assert "raftify_ffi[cli]" in failure(done, ExitCode.FAILURE)


# ---- its parts


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NoLeader", ExitCode.UNHEALTHY),
        ("RaftTimeout", ExitCode.TIMEOUT),
        ("LeadershipLost", ExitCode.TIMEOUT),
        ("ConnectionFailed", ExitCode.NO_CONNECTION),
        ("TlsError", ExitCode.NO_CONNECTION),
        ("ClusterMismatch", ExitCode.NO_CONNECTION),
        ("CorruptData", ExitCode.CORRUPT),
        ("WrongDirectory", ExitCode.FAILURE),
        ("DiskFull", ExitCode.FAILURE),
        ("NotLeader", ExitCode.REJECTED),
        ("Overloaded", ExitCode.REJECTED),
        ("ApplyError", ExitCode.REJECTED),
        ("Removed", ExitCode.REJECTED),
        ("InvalidConfig", ExitCode.USAGE),
        ("InternalError", ExitCode.FAILURE),
    ],
)
def test_every_error_has_its_exit_code(name: str, code: ExitCode) -> None:
    assert code_of(getattr(raftify_ffi, name)("x")) is code


def test_addresses_are_split_and_checked() -> None:
    assert split_addrs(["a:1,b:2", "b:2", " c:3 "]) == ["a:1", "b:2", "c:3"]
    assert parse_addr("[::1]:60061") == ("::1", 60061)


@pytest.mark.parametrize(
    ("data", "shown"),
    [(b"text", "text"), (b"", ""), (b"\xff\x00", {"base64": "/wA="}), (b"bell\x07", {"base64": "YmVsbAc="})],
)
def test_payloads_are_shown_without_loss(data: bytes, shown: object) -> None:
    assert _decode.plain(data) == shown


def status_of(node_id: int, **changes: Any) -> dict[str, Any]:
    peers = {str(i): {"addr": f"n:{i}", "connected": True} for i in (1, 2, 3) if i != node_id}
    return {
        "node_id": node_id,
        "addr": f"n:{node_id}",
        "role": "leader" if node_id == 1 else "follower",
        "term": 2,
        "leader_id": 1,
        "last_index": 9,
        "commit_index": 9,
        "applied_index": 9,
        "snapshot_index": 0,
        "voters": [1, 2, 3],
        "learners": [],
        "peers": peers,
        "error": None,
        **changes,
    }


def unreachable(addr: str) -> CliError:
    return CliError(f"{addr}: connection refused", ExitCode.NO_CONNECTION)


ALONE = {"2": {"addr": "n:2", "connected": False}, "3": {"addr": "n:3", "connected": False}}


@pytest.mark.parametrize(
    ("answers", "healthy", "part"),
    [
        ([status_of(1), status_of(2), status_of(3)], True, "tolerates 1 failure"),
        ([status_of(1), status_of(2), unreachable("n:3")], False, "n:3: connection refused"),
        ([status_of(1, peers=ALONE), unreachable("n:2"), unreachable("n:3")], False, "no majority"),
        ([status_of(1, role="candidate", leader_id=None), status_of(2, leader_id=None)], False, "no leader"),
        ([status_of(1), status_of(2), status_of(3, role="stopped", error="disk full")], False, "disk full"),
        ([status_of(1, voters=[1], peers={})], True, "1/1 voters up, tolerates 0"),
        ([unreachable("n:1")], False, "nobody answers"),
    ],
)
def test_the_health_of_a_cluster_is_judged(answers: list[Any], healthy: bool, part: str) -> None:
    judged, why = View({f"n:{i}": answer for i, answer in enumerate(answers, 1)}).judge()
    assert (judged, part in why) == (healthy, True), why


# ---- a node


@dataclass(frozen=True)
class Node:
    root: Path
    addr: str
    process: Process

    @property
    def directory(self) -> Path:
        return self.root / "logs" / "node-1"

    def cli(self, *args: str) -> subprocess.CompletedProcess[str]:
        return raftify_cli(self.root, *args)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    root = tmp_path_factory.mktemp("node")
    (root / "program.py").write_text(NODE)
    (root / "decoder.py").write_text(textwrap.dedent(DECODER))
    addr = f"127.0.0.1:{free_ports(1)[0]}"
    with Process([sys.executable, "program.py", addr], root) as process:
        process.wait_for_line("up", START_TIMEOUT)
        yield Node(root, addr, process)


@pytest.fixture
def stopped(tmp_path: Path, log_engine: str) -> Path:
    """The directory of a node that has ended in order."""
    (tmp_path / "program.py").write_text(NODE)
    addr = f"127.0.0.1:{free_ports(1)[0]}"
    with Process([sys.executable, "program.py", addr, log_engine], tmp_path) as process:
        process.wait_for_line("up", START_TIMEOUT)
        process.close_input()
        assert process.wait(30) == 0
    return tmp_path / "logs" / "node-1"


STATUS_KEYS = {
    "node_id", "addr", "role", "term", "leader_id", "last_index", "commit_index", "applied_index", "snapshot_index",
    "voters", "learners", "peers", "error",
}  # fmt: skip


@pytest.mark.parametrize("words", [("debug", "node"), ("describe", "node")])
def test_a_node_says_what_it_is(node: Node, words: tuple[str, ...]) -> None:
    status = answer(node.cli(*words, node.addr))
    assert set(status) >= STATUS_KEYS
    assert (status["node_id"], status["addr"], status["role"], status["leader_id"]) == (1, node.addr, "leader", 1)


def test_the_cluster_is_described_and_judged(node: Node) -> None:
    status = answer(node.cli("status", node.addr))
    assert status["healthy"] is True and [n["node_id"] for n in status["nodes"]] == [1]
    assert answer(node.cli("health", node.addr))["healthy"] is True
    members = answer(node.cli("member", "list", node.addr))["members"]
    assert members == [{"id": 1, "addr": node.addr, "kind": "voter", "leader": True}]
    assert answer(node.cli("leader", "show", node.addr))["leader_addr"] == node.addr


def test_one_dead_address_among_several_is_no_hindrance(node: Node) -> None:
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    assert answer(node.cli("member", "list", f"{dead},{node.addr}"))["leader_id"] == 1
    assert list(answer(node.cli("status", dead, node.addr))["unreachable"]) == [dead]


def test_a_proposal_is_answered_with_what_apply_returned(node: Node) -> None:
    assert answer(node.cli("propose", node.addr, "--data", '["b", "2"]')) == {"result": "stored b"}
    (node.root / "command").write_text('["c", "3"]')
    assert answer(node.cli("propose", node.addr, "--file", "command")) == {"result": "stored c"}


def test_a_command_that_apply_refuses_is_a_rejection(node: Node) -> None:
    said = failure(node.cli("propose", node.addr, "--data", "no json"), ExitCode.REJECTED)
    assert "JSONDecodeError" in said
    said = failure(node.cli("propose", node.addr, "--data", "no UTF-8: \udcff"), ExitCode.REJECTED)
    assert "UnicodeDecodeError" in said


def test_an_impossible_membership_change_is_a_rejection(node: Node) -> None:
    failure(node.cli("member", "promote", node.addr, "99"), ExitCode.REJECTED)


def test_a_member_is_added_before_it_runs_moved_and_removed(node: Node) -> None:
    here, there = (f"127.0.0.1:{port}" for port in free_ports(2))

    def members() -> dict[int, str]:
        return {m["id"]: m["addr"] for m in answer(node.cli("member", "list", node.addr))["members"]}

    said = failure(node.cli("member", "add", node.addr, "9", here, "--timeout", "1"), ExitCode.TIMEOUT)
    assert "learner so far" in said and "by itself" in said and said.count("committed") <= 1
    assert members() == {1: node.addr, 9: here}
    # By hand, a number that is taken is a slip: it must not turn the others away from the node that has it.
    for taken in ("1", "9"):
        said = failure(node.cli("member", "add", node.addr, taken, there), ExitCode.REJECTED)
        assert f"node {taken} is a member at" in said and "update its address" in said
    for command, told, left in [
        (("update-address", node.addr, "9", there), f"node 9 is reached at {there}", {1: node.addr, 9: there}),
        (("remove", node.addr, "9"), "node 9 is removed", {1: node.addr}),
        (("remove", node.addr, "9"), "node 9 is no member: there is nothing to remove", {1: node.addr}),
    ]:
        done = node.cli("member", *command)
        assert (done.returncode, done.stdout.strip(), members()) == (0, told, left)


def test_without_a_standard_output_the_exit_code_is_the_answer(node: Node) -> None:
    for command in (["health", node.addr], ["version"]):
        run = 'exec "$@" >&-'
        done = run_command(["sh", "-c", run, "sh", sys.executable, "-m", "raftify_ffi.cli", *command], node.root)
        assert (done.returncode, done.stderr) == (0, ""), command


def test_a_large_command_takes_one_line_of_a_table_and_all_of_the_json(node: Node) -> None:
    (node.root / "large").write_text(json.dumps(["large", "v" * 9000]))
    answer(node.cli("propose", node.addr, "--file", "large"))
    table = node.cli("describe", "logs", str(node.directory), "-o", "table").stdout.splitlines()
    found = answer(node.cli("describe", "logs", str(node.directory)))["entries"]
    assert sum("vvv" in line for line in table) == 1
    assert found[-1]["data"] == (node.root / "large").read_text()


def test_a_snapshot_is_taken_on_demand(node: Node) -> None:
    info = answer(node.cli("snapshot", "create", node.addr))
    assert info["index"] > 0 and info["size"] > 0
    assert answer(node.cli("debug", "persisted", str(node.directory)))["snapshot"]["index"] >= info["index"]


def test_the_directory_of_a_running_node_can_be_read(node: Node) -> None:
    found = answer(node.cli("debug", "persisted", str(node.directory)))
    assert set(found) >= {"identity", "hard_state", "snapshot", "membership", "entries"}
    assert set(found["hard_state"]) >= {"term", "vote", "commit"}


@pytest.mark.parametrize("output", ["json", "table"])
def test_a_reader_that_has_enough_is_no_failure(node: Node, output: str) -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "raftify_ffi.cli", "debug", "node", node.addr, "-o", output]
    done = subprocess.run(command, cwd=node.root, stdout=pipe, stderr=subprocess.PIPE, check=False)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, b"")


def test_tables_are_made_on_demand(node: Node) -> None:
    for command in (
        ("status", node.addr),
        ("health", node.addr),
        ("debug", "node", node.addr),
        ("debug", "persisted", str(node.directory)),
        ("describe", "logs", str(node.directory)),
        ("describe", "metadata", str(node.directory)),
        ("member", "list", node.addr),
        ("leader", "show", node.addr),
    ):
        done = node.cli(*command, "-o", "table")
        assert (done.returncode, done.stderr) == (0, ""), command
        with pytest.raises(json.JSONDecodeError):
            json.loads(done.stdout)


# ---- a directory


def content(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def payloads(found: dict[str, Any]) -> list[Any]:
    return [entry["data"] for entry in found["entries"]]


def test_a_parent_of_several_nodes_leads_to_them(stopped: Path) -> None:
    shutil.copytree(stopped, stopped.parent / "node-7")
    said = failure(raftify_cli(stopped.parent, "debug", "persisted", str(stopped.parent)), ExitCode.FAILURE)
    assert "node-1" in said and "node-7" in said


def test_looking_changes_nothing(stopped: Path) -> None:
    before = content(stopped)
    assert answer(raftify_cli(stopped.parent, "debug", "persisted", str(stopped)))["entries"]
    assert content(stopped) == before


def test_the_parts_together_are_the_whole(stopped: Path) -> None:
    whole = answer(raftify_cli(stopped.parent, "debug", "persisted", str(stopped)))
    logs = answer(raftify_cli(stopped.parent, "describe", "logs", str(stopped)))
    metadata = answer(raftify_cli(stopped.parent, "describe", "metadata", str(stopped)))
    assert {**metadata, **logs} == whole
    assert '["a", "1"]' in payloads(whole)
    raw = answer(raftify_cli(stopped.parent, "debug", "persisted", str(stopped), "--raw"))
    assert b'["a", "1"]'.hex() in payloads(raw)


def test_a_range_of_entries_can_be_chosen(stopped: Path) -> None:
    indexes = [e["index"] for e in answer(raftify_cli(stopped.parent, "describe", "logs", str(stopped)))["entries"]]
    assert indexes == sorted(indexes) and len(indexes) > 1
    second = answer(
        raftify_cli(stopped.parent, "describe", "logs", str(stopped), "--from", str(indexes[1]), "--limit", "1")
    )
    assert [e["index"] for e in second["entries"]] == [indexes[1]]
    assert second["next_index"] == (indexes[2] if len(indexes) > 2 else None)


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("decoder:Pair", {"key": "a", "value": "1"}),
        ("decoder:raises", {"undecodable": "ValueError: not mine", "raw": '["a", "1"]'}),
    ],
)
def test_commands_are_shown_as_the_given_class_sees_them(
    stopped: Path, tmp_path: Path, spec: str, shown: object
) -> None:
    (tmp_path / "decoder.py").write_text(DECODER)
    found = answer(raftify_cli(tmp_path, "debug", "persisted", str(stopped), "--decode", spec))
    assert shown in payloads(found)


def test_commands_are_shown_as_the_program_itself_has_set(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raftify_ffi.set_log_entry_deserializer(lambda data: f"pair {json.loads(data)}")
    try:
        asyncio.run(cli.cli_main(["program", "debug", "persisted", str(stopped)]))
        assert "pair ['a', '1']" in payloads(json.loads(capsys.readouterr().out))
        asyncio.run(cli.cli_main(["program", "debug", "persisted", str(stopped), "--decode", "json:loads"]))
        assert ["a", "1"] in payloads(json.loads(capsys.readouterr().out))
    finally:
        raftify_ffi.set_log_entry_deserializer(None)


def test_a_decoder_meets_no_entry_but_commands(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "decoder.py").write_text(DECODER)
    entries = answer(raftify_cli(tmp_path, "describe", "logs", str(stopped), "--decode", "decoder:raises"))["entries"]
    assert {"command", "founding"} <= {entry["kind"] for entry in entries}
    for entry in entries:
        met = isinstance(entry["data"], dict) and "undecodable" in entry["data"]
        assert met == (entry["kind"] == "command"), entry
        assert (entry["proposer"] is None) == (entry["kind"] in ("empty", "membership"))


@pytest.mark.parametrize(
    "spec", ["decoder", "decoder:", ":Pair", "decoder:Nothing", "decoder:not_callable", "nowhere:Pair"]
)
def test_a_decoder_that_cannot_be_used_is_named(tmp_path: Path, spec: str) -> None:
    (tmp_path / "decoder.py").write_text(DECODER)
    assert spec in failure(raftify_cli(tmp_path, "debug", "persisted", ".", "--decode", spec), ExitCode.USAGE)


@pytest.mark.parametrize("damage", ["emptied", "a flipped bit", "cut off", "deleted"])
def test_damaged_data_has_an_exit_code_of_its_own(stopped: Path, damage: str) -> None:
    command = b'["a", "1"]'
    for path in stopped.rglob("*"):
        if path.suffix not in (".mdb", ".seg"):
            continue
        content = path.read_bytes()
        if damage == "emptied":
            path.write_bytes(b"\x00" * 8192 + content[8192:])
        elif command in content:
            # A segment log has older segments, which are whole.
            if damage == "a flipped bit":
                path.write_bytes(content.replace(command, b'["a", "3"]'))
            elif damage == "cut off":
                path.write_bytes(content[: content.index(command)])
            else:
                path.unlink()
    for words in (("debug", "persisted"), ("describe", "logs")):
        assert str(stopped) in failure(raftify_cli(stopped.parent, *words, str(stopped)), ExitCode.CORRUPT)

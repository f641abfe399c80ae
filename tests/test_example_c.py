"""examples/c: built as its README says, run as three processes, hurt with kill -9."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import free_ports

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "c"
# Long enough for a loaded machine; reached only when something is wrong.
PATIENCE = 120.0


@pytest.fixture(scope="session", params=["kv", "kv-shared"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, with the library inside and beside it."""
    for tool in ("make", "cc", "cargo"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    out = tmp_path_factory.mktemp("example-c")
    # Of a release the shared library is there already; the static one would take a minute of optimising the whole once more.
    profile = os.environ.get("RAFTIFY_TEST_PROFILE", "debug") if request.param == "kv-shared" else "debug"
    built = subprocess.run(
        ["make", "-C", str(EXAMPLE), f"PROFILE={profile}", f"OUT={out}", str(request.param)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return out / str(request.param)


class Cluster:
    def __init__(self, program: Path, directory: Path) -> None:
        self.program = program
        self.directory = directory
        ports = free_ports(6)
        self.raft_ports = dict(zip((1, 2, 3), ports[:3], strict=True))
        self.ports = dict(zip((1, 2, 3), ports[3:], strict=True))
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, node: int) -> None:
        peers = [f"{i}=127.0.0.1:{port}" for i, port in self.raft_ports.items()]
        self.processes[node] = subprocess.Popen(
            [str(self.program), str(node), str(self.directory), str(self.ports[node]), *peers],
            stdout=subprocess.PIPE,
        )

    def wait_ready(self, node: int) -> None:
        out = self.processes[node].stdout
        assert out is not None
        readable, _, _ = select.select([out], [], [], PATIENCE)
        assert readable, f"node {node} does not become ready"
        line = out.readline().decode()
        assert line.startswith("ready {"), (line, self.processes[node].poll())

    def ask(self, node: int, request: str) -> str:
        with socket.create_connection(("127.0.0.1", self.ports[node]), timeout=PATIENCE) as s:
            s.sendall(request.encode() + b"\n")
            with s.makefile("r", encoding="utf-8") as answers:
                return answers.readline().rstrip("\n")

    def ask_until(self, node: int, request: str, good: Callable[[str], bool]) -> str:
        """Asks again while the cluster has no leader."""
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self.ask(node, request)
            if good(answer):
                return answer
            assert time.monotonic() < deadline, f"{request!r} is still answered by {answer!r}"
            time.sleep(0.05)

    def leader(self, of: int) -> int:
        def known(answer: str) -> bool:
            return json.loads(answer)["leader_id"] in self.processes

        return int(json.loads(self.ask_until(of, "status", known))["leader_id"])

    def kill(self, node: int) -> None:
        # Leaving the block closes its output and waits for it.
        with self.processes.pop(node) as process:
            process.kill()

    def close(self) -> None:
        for node in list(self.processes):
            self.kill(node)


@pytest.fixture
def cluster(program: Path, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(program, tmp_path)
    for node in (1, 2, 3):
        cluster.start(node)
    try:
        for node in (1, 2, 3):
            cluster.wait_ready(node)
        yield cluster
    finally:
        cluster.close()


def is_ok(answer: str) -> bool:
    return answer.startswith("ok ")


def test_data_survives_kill_9_of_the_leader_and_the_killed_node_catches_up(cluster: Cluster) -> None:
    cluster.ask_until(1, "put first one value with blanks", is_ok)
    for i in range(30):
        cluster.ask_until(1 + i % 3, f"put key{i} {i}", is_ok)
    assert is_ok(cluster.ask(2, "del key7"))
    for node in (1, 2, 3):
        assert cluster.ask(node, "get key29") == "value 29"
        assert cluster.ask(node, "get key7") == "none"

    leader = cluster.leader(1)
    cluster.kill(leader)
    left = sorted(cluster.processes)
    cluster.ask_until(left[0], "get key0", lambda answer: answer == "value 0")
    assert cluster.leader(left[0]) != leader
    for i in (i for i in range(30) if i != 7):
        assert (
            cluster.ask_until(left[i % 2], f"get key{i}", lambda answer: not answer.startswith("error")) == f"value {i}"
        )
    cluster.ask_until(left[1], "put after kill", is_ok)

    cluster.start(leader)
    cluster.wait_ready(leader)
    assert cluster.ask_until(leader, "get after", lambda answer: not answer.startswith("error")) == "value kill"
    assert cluster.ask(leader, "get first") == "value one value with blanks"

    # All at once, and all of it is still there.
    for node in (1, 2, 3):
        cluster.kill(node)
    for node in (1, 2, 3):
        cluster.start(node)
    for node in (1, 2, 3):
        cluster.wait_ready(node)
    assert cluster.ask_until(3, "get after", lambda answer: not answer.startswith("error")) == "value kill"
    assert cluster.ask(3, "get key7") == "none"


def peak_memory(process: subprocess.Popen[bytes]) -> int:
    """Bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_a_client_that_takes_no_answers_fills_no_memory_and_gets_all_of_them_later(cluster: Cluster) -> None:
    value, asked = "v" * 60_000, 3000
    cluster.ask_until(1, f"put large {value}", is_ok)
    before = peak_memory(cluster.processes[1])
    with (
        socket.create_connection(("127.0.0.1", cluster.ports[1]), timeout=PATIENCE) as lazy,
        socket.create_connection(("127.0.0.1", cluster.ports[1]), timeout=PATIENCE) as other,
    ):
        lazy.sendall(b"get large\n" * asked)
        lazy.shutdown(socket.SHUT_WR)
        # Each of these takes the program through its loop, where it could serve the lazy one as often.
        with other.makefile("r", encoding="utf-8") as answers:
            for _ in range(asked):
                other.sendall(b"get nothing\n")
                assert answers.readline() == "none\n"
        assert peak_memory(cluster.processes[1]) - before < asked * len(value) // 4
        with lazy.makefile("r", encoding="utf-8") as answers:
            assert [len(line) for line in answers] == [len(f"value {value}\n")] * asked


def test_wrong_requests_are_answered_and_a_signal_closes_a_node_in_order(cluster: Cluster) -> None:
    for request in ("", "put", "put x", "get", "get a b", "frob x", "status now", "put a b\0c", "\0"):
        assert cluster.ask(1, request).startswith("error use:"), request
    cluster.ask_until(1, "put a 1", is_ok)
    # Many requests in one packet, answered in order.
    with socket.create_connection(("127.0.0.1", cluster.ports[2]), timeout=PATIENCE) as s:
        s.sendall(b"put a 2\nget a\nput a 3\nget a\nget b\n")
        with s.makefile("r", encoding="utf-8") as answers:
            said = [answers.readline().split()[0:2] for _ in range(5)]
    assert [words[0] for words in said] == ["ok", "value", "ok", "value", "none"]
    assert (said[1], said[3]) == (["value", "2"], ["value", "3"])
    for node in (1, 2, 3):
        cluster.processes[node].send_signal(signal.SIGTERM)
    for node in (1, 2, 3):
        assert cluster.processes[node].wait(PATIENCE) == 0

"""The example cluster and its one-command demo, as a user runs them: real processes, HTTP, Ctrl-C, kill -9."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from processes import Process, free_ports

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "python"
TIMEOUT = 60.0


@dataclass(frozen=True)
class Member:
    raft: str
    web: str
    process: Process


def fetch(method: str, url: str, body: bytes | None = None, charset: str = "utf-8") -> tuple[int, str]:
    """Status and body; status 0 when nobody answers."""

    async def work() -> tuple[int, str]:
        headers = {"Content-Type": f"text/plain; charset={charset}"}
        timeout = aiohttp.ClientTimeout(total=10)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, url, data=body, headers=headers) as reply,
            ):
                return reply.status, await reply.text()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            return 0, repr(error)

    return asyncio.run(work())


def eventually(what: str, ask: Callable[[], Any], timeout: float = TIMEOUT) -> Any:
    """The first true answer. The time is a bound for a broken program, not an expectation."""
    deadline = time.monotonic() + timeout
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.05)


def knows_leader(member: Member) -> bool:
    status, body = fetch("GET", f"http://{member.web}/leader")
    return status == 200 and body != "0"


def follows(member: Member, leader: int) -> bool:
    return fetch("GET", f"http://{member.web}/leader") == (200, str(leader))


def votes(member: Member) -> bool:
    code, body = fetch("GET", f"http://{member.web}/debug")
    if code != 200:
        return False
    status = json.loads(body)
    return status["node_id"] in status["voters"]


def start(directory: Path, raft: str, *options: str) -> Member:
    (port,) = free_ports(1)
    web = f"127.0.0.1:{port}"
    command = [sys.executable, str(EXAMPLE / "main.py"), "--raft-addr", raft, "--web-server", web, *options]
    return Member(raft, web, Process(command, directory))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Member]]:
    """Three nodes from one cluster.toml; each knows a leader."""
    ports = free_ports(3)
    (tmp_path / "cluster.toml").write_text(
        "".join(
            f'[[raft.peers]]\nip = "127.0.0.1"\nport = {port}\nnode_id = {node_id}\nrole = "voter"\n'
            for node_id, port in enumerate(ports, 1)
        )
    )
    members = [start(tmp_path, f"127.0.0.1:{port}", "--config", "cluster.toml") for port in ports]
    try:
        for member in members:
            eventually(f"{member.raft} knows a leader", functools.partial(knows_leader, member))
        yield members
    finally:
        for member in members:
            member.process.close()


def test_what_is_put_on_one_node_is_read_on_all(cluster: list[Member]) -> None:
    first, *_ = cluster
    assert fetch("PUT", f"http://{first.web}/store/a/1") == (200, "OK")
    assert fetch("GET", f"http://{first.web}/put/b/2") == (200, "OK")
    for member in cluster:
        assert fetch("GET", f"http://{member.web}/store/a") == (200, "1")
        assert fetch("GET", f"http://{member.web}/get/b") == (200, "2")
        assert fetch("GET", f"http://{member.web}/store/nothing")[0] == 404
        assert fetch("GET", f"http://{member.web}/size") == (200, "3")


def test_the_routes_that_describe_the_cluster_agree(cluster: list[Member]) -> None:
    addresses = {str(node_id): member.raft for node_id, member in enumerate(cluster, 1)}
    for node_id, member in enumerate(cluster, 1):
        assert json.loads(fetch("GET", f"http://{member.web}/peers")[1]) == addresses
        status = json.loads(fetch("GET", f"http://{member.web}/debug")[1])
        assert (status["node_id"], status["addr"], status["voters"]) == (node_id, member.raft, [1, 2, 3])


def test_a_request_that_makes_no_sense_is_the_callers_fault_and_says_why(cluster: list[Member]) -> None:
    store, hand_on = f"http://{cluster[0].web}/store/k", f"http://{cluster[0].web}/transfer_leader/"
    wrong: list[tuple[int, str, str, str, bytes, str]] = [
        (400, "the value is no text", "PUT", store, b"\xff\xfe", "utf-8"),
        (400, "unknown encoding", "PUT", store, b"x", "nope"),
        (400, "InvalidConfig", "POST", f"{hand_on}0", b"", "utf-8"),
        (400, "InvalidConfig", "POST", f"{hand_on}{2**64}", b"", "utf-8"),
        (405, "Not Allowed", "DELETE", store, b"", "utf-8"),
        (404, "Not Found", "PUT", f"http://{cluster[0].web}/store/", b"x", "utf-8"),
    ]
    for status, part, method, url, body, charset in wrong:
        got, said = fetch(method, url, body, charset)
        assert (got, part in said) == (status, True), (method, url, got, said)
    assert fetch("GET", store)[0] == 404, "none of them has set the key"
    assert fetch("PUT", store, "schön".encode("latin-1"), "latin-1") == (200, "OK")
    assert fetch("GET", store) == (200, "schön")


def test_leadership_is_handed_on_and_a_snapshot_taken(cluster: list[Member]) -> None:
    leader = int(fetch("GET", f"http://{cluster[0].web}/leader")[1])
    successor = leader % 3 + 1
    assert fetch("POST", f"http://{cluster[leader - 1].web}/transfer_leader/{successor}") == (200, "OK")
    for member in cluster:
        eventually(
            "everybody follows the successor",
            functools.partial(follows, member, successor),
        )
    assert fetch("PUT", f"http://{cluster[0].web}/store/k/v")[0] == 200
    status, body = fetch("POST", f"http://{cluster[0].web}/snapshot")
    assert status == 200 and json.loads(body)["index"] > 0


def test_the_page_needs_nothing_from_elsewhere_and_is_fed_live(cluster: list[Member]) -> None:
    status, page = fetch("GET", f"http://{cluster[0].web}/")
    assert status == 200 and "<title>" in page
    assert re.findall(r"(?:src|href)=[\"'](?!data:)", page) == []
    assert "http:" not in page and "https:" not in page

    async def first_event() -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"http://{cluster[0].web}/events") as reply:
            line = (await reply.content.readline()).decode()
            assert line.startswith("data: ")
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            return event

    event = asyncio.run(asyncio.wait_for(first_event(), TIMEOUT))
    assert event["served_by"] == 1
    assert [node["node_id"] for node in event["nodes"]] == [1, 2, 3]


def test_a_fourth_node_joins_serves_and_leaves(cluster: list[Member], tmp_path: Path) -> None:
    assert fetch("PUT", f"http://{cluster[0].web}/store/before/joining")[0] == 200
    fourth = start(tmp_path, f"127.0.0.1:{free_ports(1)[0]}", "--peer-addr", cluster[0].raft)
    with fourth.process:
        # First a learner; a voter when it has caught up. Only then its join has ended.
        eventually("the fourth is a voter", functools.partial(votes, fourth))
        assert fetch("GET", f"http://{fourth.web}/size") == (200, "4")
        assert fetch("GET", f"http://{fourth.web}/store/before") == (200, "joining")
        assert fetch("POST", f"http://{fourth.web}/leave") == (200, "OK")
        assert fourth.process.wait(TIMEOUT) == 0
    eventually("three are left", lambda: fetch("GET", f"http://{cluster[0].web}/size") == (200, "3"))


def test_a_node_that_is_killed_comes_back_with_its_data(cluster: list[Member], tmp_path: Path) -> None:
    assert fetch("PUT", f"http://{cluster[0].web}/store/kept/yes")[0] == 200
    cluster[2].process.kill()
    assert fetch("PUT", f"http://{cluster[0].web}/store/meanwhile/too")[0] == 200
    again = start(tmp_path, cluster[2].raft, "--config", "cluster.toml")
    with again.process:
        eventually("it knows a leader again", lambda: knows_leader(again))
        assert fetch("GET", f"http://{again.web}/store/kept") == (200, "yes")
        assert fetch("GET", f"http://{again.web}/store/meanwhile") == (200, "too")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_ends_in_order_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    alone = start(tmp_path, f"127.0.0.1:{free_ports(1)[0]}", "--ignore-static-bootstrap")
    with alone.process:
        eventually("it leads alone", lambda: knows_leader(alone))
        alone.process.interrupt(number)
        assert alone.process.wait(TIMEOUT) == 0


def said_all(process: Process) -> None:
    with pytest.raises(AssertionError, match="ended"):
        process.wait_for_line("a line that nobody says", TIMEOUT)


@pytest.mark.parametrize(
    ("content", "explained"),
    [
        ('[[raft.peers]]\nip = "127.0.0.1"\nport = 60061\nnode_id = 1\n', "127.0.0.1:1 is not in cluster.toml"),
        ('[[raft.peers]]\nip = "127.0.0.1"\nnode_id = 1\n', "cluster.toml: 'port' is missing"),
        ("[[raft", "cluster.toml: "),
        (None, "cluster.toml: No such file or directory; name the file"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(tmp_path: Path, content: str | None, explained: str) -> None:
    if content is not None:
        (tmp_path / "cluster.toml").write_text(content)
    with start(tmp_path, "127.0.0.1:1", "--config", "cluster.toml").process as process:
        process.wait_for_line(explained, TIMEOUT)
        assert process.wait(TIMEOUT) != 0
        said_all(process)
        assert "Traceback" not in process.text()


@pytest.mark.parametrize("web", [None, "127.0.0.1:http", "127.0.0.1:99999"])
def test_an_address_that_the_web_server_cannot_have_is_explained(tmp_path: Path, web: str | None) -> None:
    """`None`: the one that the node itself listens on."""
    raft = f"127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, str(EXAMPLE / "main.py"), "--raft-addr", raft, "--ignore-static-bootstrap"]
    with Process([*command, "--web-server", web or raft], tmp_path) as process:
        process.wait_for_line(f"the web server cannot listen on {web or raft}", TIMEOUT)
        assert process.wait(TIMEOUT) != 0
        said_all(process)
        assert "Traceback" not in process.text()


# ---- the demo


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def alive(pid: int) -> bool:
    """Runs, and is no zombie that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts child processes through /proc")


@linux_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_the_demo_leaves_no_process_behind_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with Process([sys.executable, str(EXAMPLE / "demo.py")], tmp_path, environment) as demo:
        demo.wait_for_line("ready", TIMEOUT)
        page = demo.wait_for_line("open ", TIMEOUT).split()[-1]
        assert fetch("PUT", f"{page}store/greeting/hello") == (200, "OK")
        nodes = children(demo.pid)
        assert len(nodes) == 3
        demo.interrupt(number)
        code = demo.wait(TIMEOUT)
        eventually("every node has ended", lambda: not any(map(alive, nodes)))
        if number is not signal.SIGKILL:
            assert code == 0
            assert list(tmp_path.iterdir()) == [], "the temporary directory is removed"


@linux_only
def test_the_demo_shows_that_a_killed_node_is_gone_and_the_others_go_on(tmp_path: Path) -> None:
    with Process([sys.executable, str(EXAMPLE / "demo.py"), "--dir", str(tmp_path / "demo")], tmp_path) as demo:
        demo.wait_for_line("ready", TIMEOUT)
        victim = int(demo.wait_for_line("kill -9", TIMEOUT).split()[-1])
        os.kill(victim, signal.SIGKILL)
        demo.wait_for_line("leads in term", TIMEOUT)
        demo.interrupt(signal.SIGINT)
        assert demo.wait(TIMEOUT) == 0
        assert (tmp_path / "demo" / "logs").is_dir()

"""`make demo`: a cluster of real processes in a temporary directory, shown live. Ctrl-C ends all of it and removes the
directory.

Each node's standard input is a pipe from here, and each ends when its pipe does: none is left behind, however this
program dies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
FIRST_RAFT_PORT, FIRST_WEB_PORT = 60061, 8001
#: Seconds a node may take to end by itself before it is killed.
GRACE = 5.0


def free_ports(first: int, count: int) -> list[int]:
    """The ports the documentation names, where they are free; others in their place."""
    ports: list[int] = []
    held: list[socket.socket] = []
    try:
        for wanted in range(first, first + count):
            listener = socket.socket()
            held.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, wanted))
            except OSError:
                listener.bind((HOST, 0))
            ports.append(listener.getsockname()[1])
    finally:
        for listener in held:
            listener.close()
    return ports


@dataclass
class Node:
    """One process and what it last said of itself."""

    id: int
    raft_addr: str
    web_addr: str
    log: Path
    process: subprocess.Popen[bytes]
    status: dict[str, Any] | None = None

    @classmethod
    def start(cls, id_: int, raft_addr: str, web_addr: str, directory: Path) -> Node:
        log = directory / f"node-{id_}.log"
        command = [
            sys.executable, str(HERE / "main.py"), "--raft-addr", raft_addr, "--web-server", web_addr,
            "--config", str(directory / "cluster.toml"), "--log-dir", str(directory / "logs"), "--until-stdin-closes",
        ]  # fmt: skip
        with log.open("ab") as sink:
            # Its own session: Ctrl-C reaches this program only, which then ends the nodes in order.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sink, stderr=sink, start_new_session=True)
        return cls(id_, raft_addr, web_addr, log, process)

    def role(self) -> str:
        code = self.process.poll()
        if code is not None:
            return f"ended ({code})"
        return "starting" if self.status is None else str(self.status["role"])

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close_input(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()

    def end(self, deadline: float) -> None:
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Cluster:
    directory: Path
    nodes: list[Node] = field(default_factory=list)
    #: What changed, newest last.
    history: deque[str] = field(default_factory=lambda: deque(maxlen=6))
    _said: str = ""

    def start(self, count: int) -> None:
        raft_ports, web_ports = free_ports(FIRST_RAFT_PORT, count), free_ports(FIRST_WEB_PORT, count)
        peers = "\n".join(
            f'[[raft.peers]]\nip = "{HOST}"\nport = {port}\nnode_id = {id_}\nrole = "voter"\n'
            for id_, port in enumerate(raft_ports, 1)
        )
        (self.directory / "cluster.toml").write_text(peers)
        for id_, (raft_port, web_port) in enumerate(zip(raft_ports, web_ports, strict=True), 1):
            self.nodes.append(Node.start(id_, f"{HOST}:{raft_port}", f"{HOST}:{web_port}", self.directory))

    def stop(self) -> None:
        for node in self.nodes:
            node.close_input()
        deadline = time.monotonic() + GRACE
        for node in self.nodes:
            node.end(deadline)

    async def look(self, session: aiohttp.ClientSession) -> None:
        await asyncio.gather(*(self._ask(session, node) for node in self.nodes))
        now = self.sentence()
        if now != self._said:
            self._said = now
            self.history.append(f"{time.strftime('%H:%M:%S')}  {now}")

    async def _ask(self, session: aiohttp.ClientSession, node: Node) -> None:
        try:
            async with session.get(f"http://{node.web_addr}/debug") as reply:
                node.status = await reply.json()
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
            node.status = None

    def leader(self) -> tuple[int, int] | None:
        """(id, term) of the leader of the highest term."""
        leads = [(node.status["term"], node.id) for node in self.nodes if node.status and node.role() == "leader"]
        return (max(leads)[1], max(leads)[0]) if leads else None

    def ready(self) -> bool:
        """Every node knows the same leader."""
        known = {node.status["leader_id"] if node.status else None for node in self.nodes}
        return len(known) == 1 and None not in known

    def sentence(self) -> str:
        up = sum(node.status is not None for node in self.nodes)
        leader = self.leader()
        lead = f"node {leader[0]} leads in term {leader[1]}" if leader else "no leader"
        return f"{lead}; {up}/{len(self.nodes)} nodes up"

    def things_to_try(self) -> list[str]:
        alive = [node for node in self.nodes if node.process.poll() is None] or self.nodes
        first, second = alive[0], alive[1 % len(alive)]
        leader = self.leader()
        leading = self.nodes[leader[0] - 1] if leader else first
        successor = next((node for node in alive if node is not leading), first)
        raftify_cli = command_line()
        return [
            f"open     http://{first.web_addr}/",
            f"write    curl -X PUT http://{first.web_addr}/store/greeting/hello",
            f"read     curl http://{second.web_addr}/store/greeting",
            f"look     {raftify_cli} status {first.raft_addr}",
            f"ask      {raftify_cli} debug node {second.raft_addr}",
            f"inspect  {raftify_cli} debug persisted {self.directory}/logs/node-{first.id}",
            f"hand on  curl -X POST http://{successor.web_addr}/transfer_leader/{successor.id}",
            f"kill     kill -9 {leading.process.pid}",
        ]


def command_line() -> str:
    """How to call raftify_cli from where this was started: a terminal without this environment does not find it by name."""
    beside = Path(sys.executable).parent / "raftify_cli"
    found = shutil.which("raftify_cli")
    if not beside.exists() or (found is not None and Path(found).resolve() == beside.resolve()):
        return "raftify_cli"
    with contextlib.suppress(ValueError):
        return str(beside.relative_to(Path.cwd()))
    return str(beside)


def port_of(addr: str) -> str:
    return addr[addr.rindex(":") :]


def picture(cluster: Cluster, console: Console) -> Group:
    """Fits a terminal of 24 lines: of the history, as much as there is room for."""
    table = Table(title="raftify_ffi demo", title_justify="left")
    # All on this host: the ports alone tell them apart, and the table fits 80 columns.
    for column in ("node", "raft", "web", "role", "term", "last", "commit", "applied", "keys"):
        table.add_column(column, justify="left" if column == "role" else "right", no_wrap=True)
    problems = []
    for node in cluster.nodes:
        role, status = node.role(), node.status or {}
        style = "bold green" if role == "leader" else "red" if role.startswith("ended") else ""
        numbers = (str(status.get(key, "-")) for key in ("term", "last_index", "commit_index", "applied_index", "keys"))
        table.add_row(str(node.id), port_of(node.raft_addr), port_of(node.web_addr), Text(role, style), *numbers)
        if node.process.poll() not in (None, -signal.SIGKILL, 0):
            problems.append(Text(f"node {node.id}: {node.last_words()}", style="red"))
    tries = [Text("Try, in another terminal:", style="bold"), *(Text("  " + line) for line in cluster.things_to_try())]
    # The table has a title and four lines around its rows; two blank lines and the last one follow.
    taken = sum(len(text.wrap(console, console.width)) for text in (*problems, *tries))
    room = console.height - len(cluster.nodes) - taken - 8
    history = [Text(line, style="dim") for line in list(cluster.history)[-max(1, room) :]]
    return Group(table, *problems, *history, Text(), *tries, Text(), Text("Ctrl-C ends it all.", style="dim"))


async def watch(cluster: Cluster, stop: asyncio.Event, plain: bool) -> int:
    """Shows the cluster until asked to stop, or until every node has ended."""
    shown_ready = False
    live = None if plain else Live(auto_refresh=False)
    # A node that is busy for a moment is not down yet.
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3.0)) as session:
        try:
            if live is not None:
                live.start()
            said = ""
            while not stop.is_set():
                await cluster.look(session)
                if live is not None:
                    live.update(picture(cluster, live.console), refresh=True)
                else:
                    if cluster.history and cluster.history[-1] != said:
                        said = cluster.history[-1]
                        print(said, flush=True)
                    if cluster.ready() and not shown_ready:
                        shown_ready = True
                        print("\n".join(["ready", *cluster.things_to_try()]), flush=True)
                if all(node.process.poll() is not None for node in cluster.nodes):
                    break
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.25)
        finally:
            if live is not None:
                live.stop()
    if stop.is_set():
        return 0
    print("demo: every node has ended; the last words of each:", file=sys.stderr)
    for node in cluster.nodes:
        print(f"  node {node.id} ({node.process.poll()}): {node.last_words()}", file=sys.stderr)
    return 1


async def run(args: argparse.Namespace, directory: Path) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    cluster = Cluster(directory)
    try:
        cluster.start(args.nodes)
        return await watch(cluster, stop, args.plain or not sys.stdout.isatty())
    finally:
        cluster.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="A raftify_ffi cluster of real processes, shown live.")
    parser.add_argument(
        "--nodes", type=int, default=3, choices=range(1, 8), metavar="1..7", help="how many (default: 3)"
    )
    parser.add_argument("--plain", action="store_true", help="plain lines, as when the output is not a terminal")
    parser.add_argument("--dir", type=Path, help="keep everything here instead of in a temporary directory")
    args = parser.parse_args()
    if args.dir is not None:
        args.dir.mkdir(parents=True, exist_ok=True)
        return asyncio.run(run(args, args.dir))
    directory = Path(tempfile.mkdtemp(prefix="raft-"))
    try:
        return asyncio.run(run(args, directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

"""Bench nodes as processes of this machine: start, ask, watch, kill. Knows the protocol of README.md and nothing of what is measured."""

from __future__ import annotations

import functools
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"


def make(folder: str, *targets: str) -> list[str]:
    return ["make", "--silent", "-C", str(HERE / folder), *targets]


RUST = ["cargo", "build", "--release", "--locked", "-p", "raftify-engine", "--example", "bench_node"]
C = make("raftify_c")
UVLOOP = ["pip", "install", "--quiet", "--disable-pip-version-check", "uvloop>=0.21"]
#: The folder whose program `node` is the node, and what builds it. Ours, in several ways, then the other libraries.
DRIVERS: dict[str, tuple[str, list[str]]] = {
    "python": ("raftify_ffi_python", []),
    "python-async": ("variants/python-async", []),
    "python-many": ("variants/python-many", []),
    "python-uvloop": ("variants/python-uvloop", [os.environ.get("BENCH_PYTHON", sys.executable), "-m", *UVLOOP]),
    "rust": ("raftify_engine_rust", RUST),
    "rust-futures": ("variants/rust-futures", RUST),
    "c": ("raftify_c", C),
    "c-lmdb": ("variants/c-lmdb", C),
    "c-tls": ("variants/c-tls", make("raftify_c", "all", "certificates")),
    "hraft-wal": ("peers/hraft-wal", make("peers", "hashicorp")),
    "hraft-boltdb": ("peers/hraft-boltdb", make("peers", "hashicorp")),
    "etcd": ("peers/etcd", make("peers", "etcd")),
    "pysyncobj": ("peers/pysyncobj", make("peers", "pysyncobj")),
    "raftify-py": ("peers/raftify-py", make("peers", "raftify-py")),
}
PEERS = [name for name, (folder, _) in DRIVERS.items() if folder.startswith("peers/")]
#: Where nodes have their directories; goes when a run ends.
DATA = Path(os.environ.get("BENCH_DATA") or OUT) / "data"
START_TIMEOUT = 60.0


@functools.cache
def build(driver: str) -> Path:
    """The folder of a driver, whose program is built now, once (`BENCH_BUILT=1`: it is already). A folder's path stands for itself."""
    if driver not in DRIVERS:
        if not os.access(Path(driver) / "node", os.X_OK):
            raise SystemExit(
                f"bench: {driver} is no driver: name one of {', '.join(DRIVERS)}, or a folder with a program `node`"
            )
        return Path(driver).resolve()
    folder, command = DRIVERS[driver]
    if command and not os.environ.get("BENCH_BUILT") and subprocess.run(command, cwd=HERE.parent).returncode != 0:
        raise SystemExit(f"bench: {driver} could not be built, see above")
    return HERE / folder


def drivers(named: list[str], default: list[str]) -> list[tuple[str, Path]]:
    """Name and folder of each driver that was named, or else of the default ones: then another library that cannot be built is left out."""
    found = []
    for name in dict.fromkeys(named or default):
        try:
            folder = build(name)
        except SystemExit as error:
            if named or name not in PEERS:
                raise
            print(f"{error}: left out\n", file=sys.stderr)
        else:
            found.append((name if name in DRIVERS else folder.name, folder))
    return found


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for listener in held:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in held]
    finally:
        for listener in held:
            listener.close()


def device_flushes(path: Path) -> int:
    """Flushes that the disk under this path has completed, whoever asked for them; 0 where the system does not say."""
    device = path.stat().st_dev
    about = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (about / "partition").exists():
        about = about.parent
    try:
        fields = (about / "stat").read_text().split()
    except OSError:
        return 0
    return int(fields[15]) if len(fields) > 15 else 0


def syncs_per_second(directory: Path, seconds: float) -> float:
    """How often this disk makes an appended 4 KiB durable, one after the other."""
    path = directory / "syncs"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        block, count, start = os.urandom(4096), 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            count += 1
        return count / (time.perf_counter() - start)
    finally:
        os.close(descriptor)
        path.unlink()


class Node:
    """One process. Its directory may be there already: then it starts again in it."""

    def __init__(
        self,
        driver: Path,
        node_id: int,
        peers: str,
        directory: Path,
        options: Iterable[str] = (),
        label: str = "node",
    ) -> None:
        """What it says on stderr goes to `OUT/LABEL-ID.err`."""
        self.id = node_id
        directory.mkdir(parents=True, exist_ok=True)
        OUT.mkdir(exist_ok=True)
        self._log = (OUT / f"{label}-{node_id}.err").open("w")
        command = [str(driver / "node"), "--id", str(node_id), "--peers", peers, "--dir", str(directory), *options]
        self.begun = time.perf_counter()
        self._process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        #: Every line it said that is one word.
        self.heard: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if line.strip().isalpha():
                self.heard.append(line.strip())
            self._lines.put(line.strip())
        self._lines.put(None)

    def say(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def hear(self, timeout: float) -> str:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise SystemExit(f"bench: node {self.id} says nothing; see {self._log.name}") from None
        if line is None:
            raise SystemExit(f"bench: node {self.id} ended; see {self._log.name}")
        return line

    def hear_now(self) -> str | None:
        """A line that has come already, if there is one."""
        return None if self._lines.empty() else self.hear(1)

    def hear_json(self, timeout: float, heard: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        while not (line := self.hear(timeout)).startswith("{"):
            heard(line)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def hear_word(self, word: str, timeout: float) -> str:
        """What stands behind this word, on the first line that begins with it; lines before it are left out."""
        while True:
            first, _, rest = self.hear(timeout).partition(" ")
            if first == word:
                return rest

    def status(self) -> dict[str, Any]:
        """Lines that come before it are left out: not to be asked while one is waited for."""
        self.say("STATUS")
        answer: dict[str, Any] = json.loads(self.hear_word("STATUS", 30))
        return answer

    def cpu_seconds(self) -> float:
        """User and system time so far, to the nanosecond; 0 where the system does not say."""
        try:
            # The clock that clock_getcpuclockid(3) names: of all its threads, also those that have ended.
            return time.clock_gettime((~self._process.pid << 3) | 2)
        except OSError:
            return 0.0

    def resident_mb(self) -> float:
        """Resident memory now, in megabytes; 0 where there is no /proc."""
        return self._proc_status("VmRSS") / 1e3 * 1.024

    def threads(self) -> int:
        return self._proc_status("Threads")

    def switches(self) -> dict[str, int]:
        """By thread, how often the scheduler took a core from it, or it gave it back."""
        try:
            return {
                task.name: sum(
                    int(line.split()[1])
                    for line in (task / "status").read_text().splitlines()
                    if "ctxt_switches" in line
                )
                for task in Path(f"/proc/{self._process.pid}/task").iterdir()
            }
        except OSError:
            return {}

    def _proc_status(self, field: str) -> int:
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)

    def kill(self) -> None:
        """At once and without a word (SIGKILL)."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def stop(self) -> None:
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Cluster:
    """Nodes 1 to `size` of one cluster, with their directories under `DATA`, which goes when this ends."""

    def __init__(self, driver: Path, size: int, options: Iterable[str] = ()) -> None:
        self._driver = driver
        self._options = list(options)
        shutil.rmtree(DATA, ignore_errors=True)
        ports = free_ports(size)
        self._peers = ",".join(f"{i}=127.0.0.1:{port}" for i, port in enumerate(ports, 1))
        self.nodes: dict[int, Node] = {}

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self.nodes.values()):
            node.stop()
        shutil.rmtree(DATA, ignore_errors=True)

    def start(self, *ids: int) -> None:
        for node_id in ids:
            directory = DATA / str(node_id)
            self.nodes[node_id] = Node(self._driver, node_id, self._peers, directory, self._options)

    def ready(self) -> None:
        """Every node that runs knows a leader. For nodes that were started and not yet asked."""
        for node in self.nodes.values():
            node.hear_word("READY", START_TIMEOUT)

    def kill(self, node_id: int) -> None:
        self.nodes.pop(node_id).kill()

    def leader(self, timeout: float = START_TIMEOUT) -> Node:
        """The node that says that it leads, once one does. No answer of any node may be waited for."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            for node in self.nodes.values():
                status = node.status()
                if status["leader_id"] == node.id:
                    return node
            time.sleep(0.05)
        raise SystemExit("bench: no node leads")

    def fill(self, payload: int, count: int, inflight: int = 2048) -> dict[str, Any]:
        """So many entries, proposed on the leader."""
        leader = self.leader()
        leader.say(f"FILL {payload} {inflight} {count}")
        answer = leader.hear_json(60 + count / 1000)
        if answer.get("errors") or "error" in answer:
            raise SystemExit(f"bench: the cluster could not be filled: {answer}")
        return answer


def settings(**values: object) -> list[str]:
    """As options of the drivers."""
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def wait_until(holds: Callable[[], bool], timeout: float, every: float = 0.01) -> float:
    """Seconds until it held."""
    begun = time.perf_counter()
    while not holds():
        if time.perf_counter() - begun > timeout:
            raise SystemExit(f"bench: waited {timeout:.0f} s in vain")
        time.sleep(every)
    return time.perf_counter() - begun


def quantile(values: Iterable[float], part: float) -> float:
    """The value that this part of all lies below; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0

"""Members in processes of their own, each driven through its standard streams: `programs/fault_node.py` is the other end."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from cluster import free_addrs
from history import ABSENT, DONE, PRESENT, UNKNOWN, History
from test_seed_program import environment

from raftify_ffi import RaftError

PROGRAM = Path(__file__).resolve().parent / "programs" / "fault_node.py"
#: Seconds after which a wait for something that must happen is given up.
PATIENCE = 60.0


class Died(Exception):
    """The process ended before it answered."""


class Member:
    """One member's program, started again and again in the same directory."""

    def __init__(
        self,
        node_id: int,
        addr: str,
        peers: dict[int, str] | None,
        log_dir: Path,
        history: History | None = None,
        *,
        store: dict[str, Any] | None = None,
        join: list[str] | None = None,
        **settings: Any,
    ) -> None:
        self.node_id = node_id
        self.addr = addr
        self.log_dir = log_dir
        self.history = history if history is not None else History()
        self.settings = settings
        self.store = store or {"kind": "Journal"}
        self._peers = peers
        self._join = join
        #: How often it was started; part of what its writers write.
        self.run = 0
        self.output: list[str] = []
        self.seen: list[dict[str, Any]] = []
        self.on_acknowledged: Callable[[], None] = lambda: None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._news = asyncio.Condition()

    @property
    def directory(self) -> Path:
        return self.log_dir / f"node-{self.node_id}"

    # ---- start and end ---------------------------------------------------------------------------------------------------------------

    async def spawn(self) -> None:
        """Starts the program; waits for nothing."""
        await self.ended()
        self.run += 1
        self.seen = []
        spec = {
            "node_id": self.node_id,
            "addr": self.addr,
            "peers": self._peers,
            "log_dir": str(self.log_dir),
            "settings": self.settings,
            "store": self.store,
            "join": self._join,
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROGRAM),
            json.dumps(spec),
            env=environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=1 << 22,
        )
        self._reader = asyncio.create_task(self._read(self._process.stdout))

    async def start(self) -> None:
        await self.spawn()
        await self.event("running")

    async def _read(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while line := await stream.readline():
            try:
                said = json.loads(line)
            except ValueError:
                self.output.append(line.decode(errors="replace").rstrip())
                continue
            if "report" in said:
                if self.history.take(said["report"]):
                    self.on_acknowledged()
            elif "event" in said:
                self.seen.append(said)
                async with self._news:
                    self._news.notify_all()
            else:
                answer = self._answers.pop(said["id"])
                if answer.done():
                    continue
                if "error" in said:
                    answer.set_exception(unpickled(said["error"]))
                else:
                    answer.set_result(said["ok"])
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(Died(f"node {self.node_id}"))
        self.seen.append({"event": "gone"})
        async with self._news:
            self._news.notify_all()

    async def event(self, name: str) -> dict[str, Any]:
        """Until the program has said this; `gone`: until it has ended."""

        def found() -> dict[str, Any] | None:
            for said in self.seen:
                if said["event"] == name:
                    return said
                if said["event"] in ("failed", "gone"):
                    raise unpickled(said["error"]) if "error" in said else Died(self.text())
            return None

        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(found), PATIENCE)
            except asyncio.TimeoutError:
                raise AssertionError(f"no {name!r} within {PATIENCE:g} s; so far: {self.text()}") from None
        said = found()
        assert said is not None
        return said

    async def end_of_node(self) -> RaftError | None:
        """Until the node, not its program, has ended; what ended it."""
        error = (await self.event("ended"))["error"]
        return unpickled(error) if error is not None else None

    def text(self) -> str:
        return f"node {self.node_id}: {self.seen}\n" + "\n".join(self.output[-40:])

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            os.kill(self._process.pid, number)

    def pause(self) -> None:
        """Returns once every thread of it has stopped."""
        assert self._process is not None
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    async def kill(self) -> None:
        """-9. What it said before it died still counts."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> int | None:
        """Until the process is gone and all it said was read."""
        if self._process is None or self._reader is None:
            return None
        await asyncio.wait_for(self._reader, PATIENCE)
        return await asyncio.wait_for(self._process.wait(), PATIENCE)

    async def stop(self) -> None:
        """Closes the node and ends the program, as it should end."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        code = await self.ended()
        assert code == 0, f"ended with {code}: {self.text()}"

    async def close(self) -> None:
        if self._process is not None:
            self.resume()
            await self.kill()

    # ---- calls -----------------------------------------------------------------------------------------------------------------------

    def submit(self, what: str, **arguments: Any) -> asyncio.Future[Any]:
        """The call is on its way when this returns."""
        assert self._process is not None and self._process.stdin is not None
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.seen and self.seen[-1]["event"] == "gone":
            answer.set_exception(Died(self.text()))
            return answer
        self._answers[number] = answer
        self._process.stdin.write((json.dumps({"id": number, "do": what, **arguments}) + "\n").encode())
        return answer

    async def call(self, what: str, **arguments: Any) -> Any:
        """What the call returned; raises what it raised."""
        return await asyncio.wait_for(self.submit(what, **arguments), 2 * PATIENCE)

    async def load(self, **arguments: Any) -> None:
        await self.call("load", run=f".{self.run}", **arguments)

    async def journal(self, path: Path) -> list[str]:
        """The values in their order; the bytes of the state stay in the file."""
        await self.call("dump", path=str(path))
        return [line.partition(" ")[2] for line in path.read_text().splitlines()]


def unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))


class Cluster:
    """Members with each other as initial members, and their common history."""

    def __init__(self, members: list[Member], history: History, log_dir: Path) -> None:
        self.members = members
        self.history = history
        self._log_dir = log_dir
        self._acknowledged = 0
        self._looks = 0
        self._more = asyncio.Event()
        for member in members:
            member.on_acknowledged = self.on_acknowledged

    @property
    def addrs(self) -> list[str]:
        return [member.addr for member in self.members]

    def take(self, report: list[Any]) -> None:
        """From writers that are not in a member."""
        if self.history.take(report):
            self.on_acknowledged()

    def on_acknowledged(self) -> None:
        self._acknowledged += 1
        self._more.set()

    async def acknowledged(self, count: int) -> None:
        """Until so many more writes were acknowledged to anybody."""
        goal = self._acknowledged + count

        async def reached() -> None:
            while self._acknowledged < goal:
                self._more.clear()
                await self._more.wait()

        try:
            await asyncio.wait_for(reached(), PATIENCE)
        except asyncio.TimeoutError:
            raise AssertionError(f"the cluster does not go on: {await self.describe()}") from None

    async def describe(self) -> str:
        found = []
        for member in self.members:
            try:
                found.append(str(await asyncio.wait_for(member.submit("status"), 5)))
            except Exception as error:
                found.append(f"node {member.node_id}: {error!r}")
            found.append(member.text())
        failures = [write.failure for write in self.history.writes.values() if write.failure]
        return "\n".join([*found, f"last failures: {failures[-6:]}"])

    async def leader(self, *, among: list[Member] | None = None) -> Member:
        """The one that leads, by what it says itself; the newest term, if two do."""
        members = [member for member in among or self.members if member.is_running]
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while asyncio.get_running_loop().time() < deadline:
            states = await asyncio.gather(*(member.call("status") for member in members), return_exceptions=True)
            leading = [
                (state["term"], number)
                for number, state in enumerate(states)
                if isinstance(state, dict) and state["role"] == "leader"
            ]
            if leading:
                return members[max(leading)[1]]
            await asyncio.gather(
                *(member.call("wait_for", leader=True, timeout=1) for member in members), return_exceptions=True
            )
        raise AssertionError(f"no leader: {await self.describe()}")

    async def followers(self) -> list[Member]:
        leader = await self.leader()
        return [member for member in self.members if member is not leader]

    async def write(self, member: Member, value: str, **timeout: Any) -> int:
        """One proposal that counts: its place."""
        self.history.take(["sent", value, time.monotonic()])
        outcome, place, failure = DONE, None, ""
        try:
            place = int(await member.call("propose", data=value, **timeout))
            return place
        except BaseException as error:
            committed = error.committed if isinstance(error, RaftError) else None
            outcome = {True: PRESENT, False: ABSENT, None: UNKNOWN}[committed]
            failure = repr(error)
            raise
        finally:
            self.take(["ended", value, time.monotonic(), outcome, place, failure])

    async def write_through(self, member: Member, value: str) -> int:
        """Proposes until it is acknowledged, each time under another name: an outcome may be unknown while leaders change."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        for attempt in itertools.count():
            try:
                return await self.write(member, f"{value}~{attempt}", timeout=20)
            except RaftError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
        raise AssertionError

    async def same_state(self) -> list[str]:
        """All nodes in the same state, byte for byte; its values in their order. No load may run."""
        leader = await self.leader()
        self._looks += 1
        await self.write(leader, f"last/{self._looks}", timeout=30)
        index = (await leader.call("status"))["applied_index"]
        journals: dict[str, list[str]] = {}
        states: dict[str, bytes] = {}
        for member in self.members:
            await member.call("wait_for", applied=index, timeout=30)
            path = self._log_dir / f"state-{member.node_id}"
            name = f"node {member.node_id}"
            journals[name] = await member.journal(path)
            states[name] = path.read_bytes()
        found = self.history.violations(journals)
        assert found == [], "\n".join(found[:20])
        assert len(set(states.values())) == 1
        return [value for value in next(iter(journals.values())) if not value.startswith("last/")]


@asynccontextmanager
async def cluster_of(
    log_dir: Path, count: int = 3, *, start: bool = True, store: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Cluster]:
    """Initial members of one cluster, each in its process, with a leader; killed in the end, whatever their state."""
    history = History()
    peers = dict(enumerate(free_addrs(count), start=1))
    members = [
        Member(node_id, addr, peers, log_dir, history, store=store, **settings) for node_id, addr in peers.items()
    ]
    cluster = Cluster(members, history, log_dir)
    async with AsyncExitStack() as stack:
        for member in members:
            stack.push_async_callback(member.close)
        if start:
            await asyncio.gather(*(member.start() for member in members))
            await cluster.leader()
        yield cluster

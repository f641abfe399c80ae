"""Commands for running nodes, over `RaftServiceClient`: what one node says, what the cluster looks like, and changes to
it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.text import Text

from . import _render
from ._exit import CliError, ExitCode, one_line

if TYPE_CHECKING:
    from raftify_ffi import RaftServiceClient, TlsConfig

T = TypeVar("T")
Status = Mapping[str, Any]


def parse_addr(text: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`."""
    host, colon, port = text.rpartition(":")
    # What else is written before a port (a URL, several nodes) would only be "not known" to the resolver.
    wrong = not host or not port.isascii() or not port.isdigit() or any(c in "/,@" or c.isspace() for c in host)
    if not colon or wrong or not 0 < int(port) < 65536:
        raise CliError(f"{text!r}: not an address; write host:port, for instance 127.0.0.1:60061", ExitCode.USAGE)
    return host.strip("[]"), int(port)


def split_addrs(values: Sequence[str]) -> list[str]:
    """Repeated and comma-separated addresses, each once, in order."""
    addrs = list(dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip()))
    if not addrs:
        raise CliError("no address; give at least one node's host:port", ExitCode.USAGE)
    for addr in addrs:
        parse_addr(addr)
    return addrs


#: The options of the program that name certificates, and what they are called in `TlsConfig`.
TLS_OPTIONS = {"--tls-cert": "cert", "--tls-key": "key", "--tls-ca": "ca", "--tls-server-name": "server_name"}


def chosen_tls() -> TlsConfig | None:
    """The certificates that the command line or the environment names."""
    context = click.get_current_context(silent=True)
    named: dict[str, str | None] = (context.find_root().obj or {}).get("tls", {}) if context else {}
    given = {name: named[name] for name in TLS_OPTIONS.values() if named.get(name)}
    if not given:
        return None
    for option, name in TLS_OPTIONS.items():
        if name not in given and name != "server_name":
            raise CliError(f"{option} is missing: --tls-cert, --tls-key and --tls-ca go together", ExitCode.USAGE)
    from raftify_ffi import TlsConfig

    return TlsConfig.from_dict(given)


async def probe(addr: str, timeout: float) -> None:
    """Fails at once where nobody listens. The client itself goes on trying until its deadline, which is right for a
    program and wrong for a person who mistyped a port."""
    host, port = parse_addr(addr)
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout)
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise CliError(
            f"{addr}: no answer within {timeout:g} s; check the address and the network, or raise --timeout",
            ExitCode.NO_CONNECTION,
        ) from error
    except OSError as error:
        reason = error.strerror or one_line(error)
        if error.errno and reason.startswith("Connect call failed"):
            reason = os.strerror(error.errno)  # asyncio's text names the address a second time, in place of the reason
        if isinstance(error, ConnectionRefusedError) or "refused" in reason.lower():
            reason = "connection refused"
        raise CliError(
            f"{addr}: {reason}; is the node running, and is this its raft address?", ExitCode.NO_CONNECTION
        ) from error
    writer.close()


async def first_alive(addrs: Sequence[str], timeout: float) -> list[str]:
    """The addresses at which somebody listens, in the given order; the failure of the first if there is none."""
    outcomes = await asyncio.gather(*(probe(addr, timeout) for addr in addrs), return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if len(failures) == len(addrs):
        raise failures[0]
    return [addr for addr, outcome in zip(addrs, outcomes, strict=True) if outcome is None]


@asynccontextmanager
async def connected(addrs: Sequence[str], timeout: float) -> AsyncIterator[RaftServiceClient]:
    alive = await first_alive(addrs, timeout)
    from raftify_ffi import RaftServiceClient

    async with RaftServiceClient.connect(*alive, tls=chosen_tls()) as client:
        yield client


def run(work: Awaitable[T]) -> T:
    async def body() -> T:
        return await work

    return asyncio.run(body())


async def members_of(client: RaftServiceClient, timeout: float) -> dict[int, str]:
    status: Status = json.loads(await client.debug_node(timeout=timeout))
    addresses = {int(key): str(peer["addr"]) for key, peer in (status.get("peers") or {}).items()}
    addresses[status["node_id"]] = status["addr"]
    return {id_: addresses[id_] for id_ in (*status["voters"], *status["learners"]) if id_ in addresses}


async def add_member(client: RaftServiceClient, node_id: int, addr: str, learner: bool, timeout: float) -> None:
    """Says of a node that does not run yet what becomes of it."""
    from raftify_ffi import RaftTimeout

    try:
        await client.members.add(node_id, addr, learner=learner, timeout=timeout)
    except RaftTimeout as error:
        if learner or not error.committed:
            raise
        raise CliError(
            f"node {node_id} at {addr} is a learner so far: it has not caught up within {timeout:g} s; it becomes a voter by "
            "itself as soon as it runs there and has",
            ExitCode.TIMEOUT,
        ) from error


async def remove_member(client: RaftServiceClient, node_id: int, timeout: float) -> bool:
    """Whether it was one."""
    was_member = node_id in await members_of(client, timeout)
    await client.members.remove(node_id, timeout=timeout)
    return was_member


async def node_status(addr: str, timeout: float) -> dict[str, Any]:
    async with connected([addr], timeout) as client:
        status: dict[str, Any] = json.loads(await client.debug_node(timeout=timeout))
        return status


# ---- one node --------------------------------------------------------------------------------------------------------


def peer_rows(status: Status) -> list[list[object]]:
    """Members as this node knows them; match and lag only where it leads."""
    peers: Mapping[str, Mapping[str, Any]] = status.get("peers") or {}
    rows: list[list[object]] = []
    for key in sorted(peers, key=int):
        peer = peers[key]
        kind = "learner" if int(key) in (status.get("learners") or []) else "voter"
        connected_ = "yes" if peer.get("connected") else "no"
        seen = peer.get("last_seen")
        since = None if seen is None else f"{seen:.1f} s"
        rows.append([int(key), peer.get("addr"), kind, connected_, peer.get("match_index"), peer.get("lag"), since])
    return rows


def show_node(addr: str, timeout: float, output: str | None) -> None:
    status = run(node_status(addr, timeout))
    if _render.wants_json(output):
        _render.print_json(status)
        return
    console = _render.console()
    plain = {key: value for key, value in status.items() if key != "peers"}
    console.print(_render.fields(f"node {status.get('node_id')} at {addr}", plain))
    console.print(
        _render.table("peers", ("id", "addr", "kind", "connected", "match", "lag", "seen"), peer_rows(status))
    )


# ---- the cluster -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What each address said: its status, or why there is none."""

    answers: dict[str, dict[str, Any] | CliError]

    @property
    def statuses(self) -> list[dict[str, Any]]:
        return [answer for answer in self.answers.values() if not isinstance(answer, CliError)]

    def failures(self) -> dict[str, str]:
        return {addr: answer.message for addr, answer in self.answers.items() if isinstance(answer, CliError)}

    def first_failure(self) -> CliError:
        failures = (answer for answer in self.answers.values() if isinstance(answer, CliError))
        return next(failures, CliError("nobody answers", ExitCode.NO_CONNECTION))

    def newest(self) -> dict[str, Any] | None:
        """The answer of the highest term, the leader's if there is one: the best single account of the cluster."""
        return max(self.statuses, key=lambda s: (s["term"], s["role"] == "leader", s["commit_index"]), default=None)

    def judge(self) -> tuple[bool, str]:
        """Healthy or not, and the sentence that says why."""
        newest = self.newest()
        if newest is None:
            return False, "nobody answers"
        voters = set(newest["voters"])
        up = {s["node_id"] for s in self.statuses if s["role"] in ("leader", "follower")} & voters
        peers = newest.get("peers") or {}
        if newest["role"] == "leader":
            up |= {int(key) for key, peer in peers.items() if peer.get("connected") and int(key) in voters}
        spare = len(up) - (len(voters) // 2 + 1)
        counted = f"{len(up)}/{len(voters)} voters up"
        if newest["leader_id"] is None:
            return False, f"no leader in term {newest['term']}; {counted}"
        if spare < 0:
            return False, f"{counted}: no majority, nothing can be committed"
        stopped = [s for s in self.statuses if s.get("error")]
        if stopped:
            return False, f"node {stopped[0]['node_id']}: {stopped[0]['error']}"
        missing = self.failures()
        if missing:
            return False, f"{counted}, tolerates {spare} more failure(s); {next(iter(missing.values()))}"
        if len(up) < len(voters):
            return False, f"{counted}, tolerates {spare} more failure(s)"
        return True, f"{counted}, tolerates {spare} failure(s); leader {newest['leader_id']}, term {newest['term']}"


async def look(addrs: Sequence[str], timeout: float) -> View:
    """Asks the given nodes and every member that they name."""

    async def ask(addr: str) -> dict[str, Any] | CliError:
        try:
            return await node_status(addr, timeout)
        except CliError as error:
            return error
        except Exception as error:  # one node's failure is a row, not the end
            from ._exit import code_of

            return CliError(f"{addr}: {one_line(error)}", code_of(error))

    answers: dict[str, dict[str, Any] | CliError] = {}
    todo = list(addrs)
    while todo:
        answers.update(zip(todo, await asyncio.gather(*map(ask, todo)), strict=True))
        known = {answer["addr"] for answer in answers.values() if not isinstance(answer, CliError)} | answers.keys()
        named = {
            peer["addr"]
            for answer in answers.values()
            if not isinstance(answer, CliError)
            for peer in (answer.get("peers") or {}).values()
            if peer.get("addr")
        }
        todo = sorted(named - known)
    return View(answers)


def status_table(view: View) -> tuple[tuple[str, ...], list[list[object]]]:
    """Fits 80 columns as long as no node has an error to tell."""
    newest = view.newest()
    commit = newest["commit_index"] if newest else 0
    rows: list[list[object]] = []
    for addr, answer in view.answers.items():
        if isinstance(answer, CliError):
            rows.append([None, addr, Text("unreachable", style="red"), *[None] * 5, answer.message])
            continue
        role = Text("leader *", style="green bold") if answer["role"] == "leader" else answer["role"]
        indexes = [answer[key] for key in ("term", "last_index", "commit_index", "applied_index")]
        lag = max(0, commit - answer["applied_index"])
        rows.append([answer["node_id"], addr, role, *indexes, lag, answer.get("error")])
    rows.sort(key=lambda row: (row[0] is None, row[0] or 0))
    columns = ("id", "addr", "role", "term", "last", "commit", "applied", "lag", "error")
    if all(row[-1] is None for row in rows):
        return columns[:-1], [row[:-1] for row in rows]
    return columns, rows


def show_status(addrs: Sequence[str], timeout: float, output: str | None) -> None:
    view = run(look(addrs, timeout))
    if not view.statuses:
        raise view.first_failure()
    healthy, why = view.judge()
    if _render.wants_json(output):
        _render.print_json({"healthy": healthy, "reason": why, "nodes": view.statuses, "unreachable": view.failures()})
        return
    console = _render.console()
    columns, rows = status_table(view)
    console.print(_render.table(None, columns, rows))
    console.print(Text(why, style="green" if healthy else "yellow"))


def show_health(addrs: Sequence[str], timeout: float, output: str | None) -> None:
    view = run(look(addrs, timeout))
    if not view.statuses:
        raise view.first_failure()
    healthy, why = view.judge()
    if _render.wants_json(output):
        _render.print_json({"healthy": healthy, "reason": why})
    elif healthy:
        _render.console().print(Text(f"healthy: {why}", style="green"))
    if not healthy:
        raise CliError(f"unhealthy: {why}", ExitCode.UNHEALTHY)


def show_members(addrs: Sequence[str], timeout: float, output: str | None) -> None:
    async def work() -> dict[str, Any]:
        async with connected(addrs, timeout) as client:
            status: dict[str, Any] = json.loads(await client.debug_node(timeout=timeout))
            return status

    status = run(work())
    addresses = {int(key): peer.get("addr") for key, peer in (status.get("peers") or {}).items()}
    addresses[status["node_id"]] = status["addr"]
    members: list[dict[str, Any]] = [
        {"id": id_, "addr": addresses.get(id_), "kind": kind, "leader": id_ == status["leader_id"]}
        for kind in ("voter", "learner")
        for id_ in sorted(status[kind + "s"])
    ]
    if _render.wants_json(output):
        _render.print_json({"term": status["term"], "leader_id": status["leader_id"], "members": members})
        return
    rows = [[m["id"], m["addr"], m["kind"], "*" if m["leader"] else ""] for m in members]
    _render.console().print(_render.table(None, ("id", "addr", "kind", "leader"), rows))


def show_leader(addrs: Sequence[str], timeout: float, output: str | None) -> None:
    view = run(look(addrs, timeout))
    newest = view.newest()
    if newest is None:
        raise view.first_failure()
    leader = newest["leader_id"]
    if leader is None:
        raise CliError(
            f"no leader is known in term {newest['term']}; look with: raftify_cli status {addrs[0]}", ExitCode.UNHEALTHY
        )
    addr = (
        newest["addr"] if leader == newest["node_id"] else (newest.get("peers") or {}).get(str(leader), {}).get("addr")
    )
    if _render.wants_json(output):
        _render.print_json({"leader_id": leader, "leader_addr": addr, "term": newest["term"]})
    else:
        _render.console().print(f"node {leader} at {addr} leads in term {newest['term']}")


def change(addrs: Sequence[str], timeout: float, call: Callable[[RaftServiceClient], Awaitable[T]]) -> T:
    """One call on a client of these nodes, which finds the leader by itself."""

    async def work() -> T:
        async with connected(addrs, timeout) as client:
            return await call(client)

    return run(work())

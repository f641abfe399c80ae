"""`import`: a directory of the crate raftify 0.1.x becomes one of ours. The only command that writes to a disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from . import _render
from ._cluster import parse_addr
from ._exit import CliError, ExitCode


def parse_peers(values: Sequence[str]) -> dict[int, str]:
    """`1=host:port,2=host:port`, also given several times."""
    peers: dict[int, str] = {}
    for part in (part.strip() for value in values for part in value.split(",")):
        if not part:
            continue
        node_id, equals, addr = part.partition("=")
        if not equals or not (node_id.isascii() and node_id.isdigit()) or int(node_id) == 0:
            raise CliError(
                f"--peers {part}: expected id=host:port, for instance 1=127.0.0.1:60061,2=127.0.0.1:60062",
                ExitCode.USAGE,
            )
        parse_addr(addr)
        if peers.setdefault(int(node_id), addr) != addr:
            raise CliError(
                f"--peers: node {node_id} has two addresses, {peers[int(node_id)]} and {addr}", ExitCode.USAGE
            )
    return peers


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """What was done, in words: above all that everything in the log is committed now."""
    snapshot = report["snapshot"]
    taken = f"the snapshot at index {snapshot['index']} ({snapshot['size']} bytes)" if snapshot else "no snapshot"
    entries = max(0, report["last_index"] + 1 - report["first_index"])
    yield (
        f"imported into {report['directory']}: {taken}, {entries} entries up to index {report['last_index']} "
        f"with {report['commands']} commands"
    )
    yield f"{report['newly_committed']} of them lay above the commit index that was stored; they are committed now"
    if report["shift"]:
        yield f"every index is {report['shift']} higher than before"
    if report["left_out"]:
        left_out = report["left_out"]
        yield (
            f"{left_out['count']} entries from the old index {left_out['from']} on were left out: a later leader had "
            "replaced them"
        )
    if report["terms_raised"]:
        yield f"{report['terms_raised']} entries of an older term stood between newer ones; they were kept"
    joining = ", ".join(map(str, report["joining"]))
    if joining:
        yield (
            f"start this node first, then node {joining} with empty directories: they become voters once they have "
            "caught up"
        )
    else:
        yield "start this node; others join it with tickets"


def import_(
    old: str, log_dir: str, *, node_id: int, addr: str | None, peers: Sequence[str], cluster_id: str, output: str | None
) -> None:
    if not Path(old).is_dir():
        raise CliError(
            f"{old}: there is no such directory; give the one in which raftify kept its data.mdb", ExitCode.USAGE
        )
    members = parse_peers(peers)
    raft_addr = addr or members.get(node_id)
    if raft_addr is None:
        raise CliError(
            f"where is node {node_id} reached? Name it in --peers ({node_id}=host:port), or with --addr", ExitCode.USAGE
        )
    parse_addr(raft_addr)
    from raftify_ffi._import import import_directory

    report = import_directory(old, log_dir, node_id=node_id, raft_addr=raft_addr, peers=members, cluster_id=cluster_id)
    if _render.wants_json(output):
        _render.print_json(report)
    else:
        for sentence in sentences(report):
            click.echo(sentence)

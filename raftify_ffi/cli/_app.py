"""The tree of commands: names, arguments, help. What they do is in `_persisted`,
`_import` and `_cluster`."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from . import _cluster, _decode, _import, _persisted, _render
from ._exit import CliError, ExitCode, code_of, one_line, outcome_hint

PROGRAM = "raftify_cli"

F = TypeVar("F", bound=Callable[..., Any])


def _combined(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default=None,
    help="Default: a table on a terminal, JSON otherwise.",
)


class Seconds(click.FloatRange):
    """More than 0. (To a range NaN is neither too small nor too large.)"""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


timeout_option = click.option(
    "--timeout",
    type=Seconds(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Deadline of the call.",
)
node_id_type = click.IntRange(min=1, max=2**64 - 1)
online = _combined(timeout_option, output_option)
node_argument = click.argument("addr")
#: Any member will do; the leader is found from there. Several may be given, separated by commas, in case one is down.
any_node = click.argument("addr", metavar="ADDR[,ADDR...]")
offline = _combined(
    click.argument("directory", metavar="DIR"),
    click.option(
        "--from",
        "start",
        type=click.IntRange(min=0, max=2**64 - 1),
        default=0,
        metavar="INDEX",
        help="First entry to show.",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1, max=2**32),
        default=1000,
        show_default=True,
        help="Entries to show at most.",
    ),
    click.option(
        "--decode", metavar="MODULE:CLASS", help="Show commands as this class (its decode, or the callable) gives them."
    ),
    click.option("--raw", is_flag=True, help="Show payloads in hex."),
    output_option,
)


class ReaderHasEnough(Exception):
    """Nobody reads what is written, as after `| head`."""


class Tree(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Of that click itself would make a failure.
            raise ReaderHasEnough from None


def _show_version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        context.invoke(version)
        context.exit()


@click.group(cls=Tree, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="On failure, show the Python traceback too.")
@click.option("--tls-cert", metavar="FILE", envvar="RAFTIFY_TLS_CERT", help="Certificate to show to nodes, PEM.")
@click.option("--tls-key", metavar="FILE", envvar="RAFTIFY_TLS_KEY", help="Its private key, PEM.")
@click.option("--tls-ca", metavar="FILE", envvar="RAFTIFY_TLS_CA", help="CA of the nodes' certificates, PEM.")
@click.option(
    "--tls-server-name",
    metavar="NAME",
    envvar="RAFTIFY_TLS_SERVER_NAME",
    help="What the nodes' certificates name, if not their hosts.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def app(
    context: click.Context,
    debug: bool,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    tls_server_name: str | None,
) -> None:
    """Looks into raftify_ffi clusters and changes them.

    Where the nodes have certificates, give it one too, by options before the command or by RAFTIFY_TLS_CERT,
    RAFTIFY_TLS_KEY, RAFTIFY_TLS_CA and RAFTIFY_TLS_SERVER_NAME.

    Exit codes: 0 ok, 1 failure, 2 usage, 3 no connection, 4 rejected, 5 unhealthy, 6 storage corrupt, 7 timeout or
    outcome unknown, 130 interrupted.
    """
    state = context.ensure_object(dict)
    state["debug"] = debug
    state["tls"] = {"cert": tls_cert, "key": tls_key, "ca": tls_ca, "server_name": tls_server_name}


@app.group()
def debug() -> None:
    """What a directory holds, or a node says."""


@debug.command("persisted", short_help="What the log in DIR holds.")
@offline
def debug_persisted(directory: str, start: int, limit: int, decode: str | None, raw: bool, output: str | None) -> None:
    """Hard state, snapshot, membership and log entries in DIR (read-only, also beside the running node)."""
    _persisted.show(directory, start=start, limit=limit, what="all", decode=decode, raw=raw, output=output)


@debug.command("node")
@node_argument
@online
def debug_node(addr: str, timeout: float, output: str | None) -> None:
    """The status of the node at ADDR."""
    _cluster.show_node(_one(addr), timeout, output)


@app.group()
def describe() -> None:
    """The same as debug, by part."""


@describe.command("logs")
@offline
def describe_logs(directory: str, start: int, limit: int, decode: str | None, raw: bool, output: str | None) -> None:
    """Log entries in DIR."""
    _persisted.show(directory, start=start, limit=limit, what="logs", decode=decode, raw=raw, output=output)


@describe.command("metadata")
@click.argument("directory", metavar="DIR")
@output_option
def describe_metadata(directory: str, output: str | None) -> None:
    """Identity, hard state, snapshot and membership in DIR."""
    _persisted.show(directory, start=0, limit=0, what="metadata", decode=None, raw=False, output=output)


@describe.command("node")
@node_argument
@online
def describe_node(addr: str, timeout: float, output: str | None) -> None:
    """The status of the node at ADDR."""
    _cluster.show_node(_one(addr), timeout, output)


@app.command(short_help="Every member as it sees itself.")
@click.argument("addrs", metavar="ADDR...", nargs=-1, required=True)
@online
def status(addrs: tuple[str, ...], timeout: float, output: str | None) -> None:
    """Every member, seen from the nodes at ADDR and all that they name."""
    _cluster.show_status(_cluster.split_addrs(addrs), timeout, output)


@app.command(short_help="Exit code 0 if the cluster is complete, 5 if not.")
@click.argument("addrs", metavar="ADDR...", nargs=-1, required=True)
@online
def health(addrs: tuple[str, ...], timeout: float, output: str | None) -> None:
    """Exit code 0 if the cluster has a leader and all its members, 5 if not, 3 if nobody answers."""
    _cluster.show_health(_cluster.split_addrs(addrs), timeout, output)


@app.group()
def member() -> None:
    """Who belongs to the cluster, and changing it."""


@member.command("list")
@any_node
@online
def member_list(addr: str, timeout: float, output: str | None) -> None:
    """Voters and learners with their addresses."""
    _cluster.show_members(_cluster.split_addrs([addr]), timeout, output)


@member.command("add")
@any_node
@click.argument("node_id", type=node_id_type)
@click.argument("node_addr")
@click.option("--learner", is_flag=True, help="Receives the log, does not vote.")
@timeout_option
def member_add(addr: str, node_id: int, node_addr: str, learner: bool, timeout: float) -> None:
    """Make the node NODE_ID at NODE_ADDR a member. It is promoted to voter once it has caught up.

    The id is one that no member ever had. The node itself is started with an empty directory and without initial
    members, before or after.
    """
    addrs = _cluster.split_addrs([addr])
    _cluster.parse_addr(node_addr)
    _cluster.change(addrs, timeout, lambda client: _cluster.add_member(client, node_id, node_addr, learner, timeout))
    click.echo(f"node {node_id} at {node_addr} is a member")


@member.command("update-address", short_help="Change where a member is reached.")
@any_node
@click.argument("node_id", type=node_id_type)
@click.argument("node_addr")
@timeout_option
def member_update_address(addr: str, node_id: int, node_addr: str, timeout: float) -> None:
    """Tell the others that the member NODE_ID is reached at NODE_ADDR from now on."""
    addrs = _cluster.split_addrs([addr])
    _cluster.parse_addr(node_addr)
    _cluster.change(addrs, timeout, lambda client: client.members.update_address(node_id, node_addr, timeout=timeout))
    click.echo(f"node {node_id} is reached at {node_addr}")


@member.command("promote")
@any_node
@click.argument("node_id", type=node_id_type)
@timeout_option
def member_promote(addr: str, node_id: int, timeout: float) -> None:
    """Make the learner NODE_ID a voter."""
    addrs = _cluster.split_addrs([addr])
    _cluster.change(addrs, timeout, lambda client: client.members.promote(node_id, timeout=timeout))
    click.echo(f"node {node_id} is a voter")


@member.command("remove")
@any_node
@click.argument("node_id", type=node_id_type)
@timeout_option
def member_remove(addr: str, node_id: int, timeout: float) -> None:
    """Remove NODE_ID for good. Its id is spent: to come back it joins as a new one."""
    addrs = _cluster.split_addrs([addr])
    was_member = _cluster.change(addrs, timeout, lambda client: _cluster.remove_member(client, node_id, timeout))
    # Not a failure: what was asked for is so. But nobody who mistyped an id should read that it was removed.
    click.echo(
        f"node {node_id} is removed" if was_member else f"node {node_id} is no member: there is nothing to remove"
    )


@app.group()
def leader() -> None:
    """Who leads, and handing it over."""


@leader.command("show")
@any_node
@online
def leader_show(addr: str, timeout: float, output: str | None) -> None:
    """The leader's id, address and term."""
    _cluster.show_leader(_cluster.split_addrs([addr]), timeout, output)


@leader.command("transfer", short_help="Hand leadership to another voter.")
@any_node
@click.argument("node_id", type=node_id_type, required=False)
@timeout_option
def leader_transfer(addr: str, node_id: int | None, timeout: float) -> None:
    """Hand leadership to NODE_ID, or to the voter that is most up to date."""
    addrs = _cluster.split_addrs([addr])
    _cluster.change(addrs, timeout, lambda client: client.transfer_leader(node_id, timeout=timeout))
    click.echo(f"leadership went to node {node_id}" if node_id else "leadership was handed over")


@app.command(short_help="Propose one command; show what apply returned.")
@any_node
@click.option("--data", help="The command, as text.")
@click.option(
    "--file", "path", type=click.Path(allow_dash=True), help="The command, as the bytes of this file (- is stdin)."
)
@online
def propose(addr: str, data: str | None, path: str | None, timeout: float, output: str | None) -> None:
    """Propose one command and show what the state machine's apply returned."""
    addrs = _cluster.split_addrs([addr])
    if (data is None) == (path is None):
        raise CliError("propose: give the command with either --data or --file", ExitCode.USAGE)
    # What was typed, byte for byte, also where it is no UTF-8.
    command = data.encode(errors="surrogateescape") if data is not None else _read(path or "-")
    result = _cluster.change(addrs, timeout, lambda client: client.propose(command, timeout=timeout))
    shown = _decode.plain(result or b"")
    if _render.wants_json(output):
        _render.print_json({"result": shown})
    else:
        click.echo(_render.short(shown))


@app.group()
def snapshot() -> None:
    """Snapshots of the state machine."""


@snapshot.command("create")
@any_node
@online
def snapshot_create(addr: str, timeout: float, output: str | None) -> None:
    """The leader takes a snapshot now, and its log is compacted."""
    from dataclasses import asdict

    info = asdict(
        _cluster.change(_cluster.split_addrs([addr]), timeout, lambda client: client.snapshot(timeout=timeout))
    )
    if _render.wants_json(output):
        _render.print_json(_decode.jsonable(info))
    else:
        click.echo(f"snapshot at index {info['index']}, term {info['term']}: {info['size']} bytes in {info['path']}")


@app.command("import", short_help="Make a directory from one of raftify 0.1.x.")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--id", "node_id", type=node_id_type, required=True, help="The node that goes on.")
@click.option(
    "--peers",
    multiple=True,
    metavar="ID=HOST:PORT,...",
    help="The members to be, this node among them; the others join with empty directories.",
)
@click.option("--addr", metavar="HOST:PORT", help="Where this node is reached, when --peers does not name it.")
@click.option("--cluster-id", default="", metavar="TEXT", help="As in the configuration of the node, if it names one.")
@output_option
def import_command(
    old: str, new: str, node_id: int, peers: tuple[str, ...], addr: str | None, cluster_id: str, output: str | None
) -> None:
    """Make NEW/node-ID from OLD, a data directory of the crate raftify 0.1.x.

    OLD is only read; its node must be stopped. Its snapshot and all its entries are taken over and count as committed,
    also those above the commit index that was stored, which lags. Import one directory of a cluster: the one whose log
    goes furthest.
    """
    _import.import_(old, new, node_id=node_id, addr=addr, peers=peers, cluster_id=cluster_id, output=output)


@app.command()
@output_option
def version(output: str | None) -> None:
    """The version of the package."""
    from importlib import metadata

    try:
        number = metadata.version("raftify_ffi")
    except metadata.PackageNotFoundError as error:
        raise CliError("raftify_ffi is not installed, only found as a folder; install it with: make setup") from error
    # Unlike the others this one is plain text for a pipe too: one word is all there is.
    click.echo(json.dumps({"version": number}) if output == "json" else number)


def _one(addr: str) -> str:
    if "," in addr:
        raise CliError(
            f"{addr}: these are several; give one node's address, or ask: raftify_cli status", ExitCode.USAGE
        )
    _cluster.parse_addr(addr)
    return addr


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}; give a file that can be read", ExitCode.USAGE) from error


def execute(args: Sequence[str]) -> int:
    """Runs the command line; every way out is an exit code, every failure one line on stderr."""
    state: dict[str, Any] = {}
    if sys.stdout is None:  # closed by whoever started this: the exit code is all that is wanted
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        code = app.main(args=list(args), prog_name=PROGRAM, standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code if isinstance(code, int) else ExitCode.OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else PROGRAM
        return _fail(f"{error.format_message()} (see: {where} --help)", ExitCode.USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), ExitCode.FAILURE)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", ExitCode.INTERRUPTED)
    except (ReaderHasEnough, BrokenPipeError):
        # Python's own flush at exit must not complain about it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:
        if state.get("debug"):
            traceback.print_exc()
        if isinstance(error, CliError):
            return _fail(error.message, error.code)
        text = one_line(error)
        if not hasattr(error, "committed"):  # not the library's: the class says more than the text alone
            text = f"{type(error).__name__}: {text}"
        return _fail(text + outcome_hint(error), code_of(error))


def _fail(message: str, code: ExitCode) -> int:
    click.echo(f"{PROGRAM}: {message}", err=True)
    return code

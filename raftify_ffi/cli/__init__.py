"""`raftify_cli`: looks into a node's directory, asks running nodes, and changes a cluster.

Lives here: arguments, tables, JSON, exit codes. Does not live here: anything that knows the disk format or the wire;
that is the library's, reached through `raftify_ffi._inspect` and `_import` (offline) and `RaftServiceClient` (online).

Invariants: data goes to stdout, everything else to stderr; a failure is one line (thing, reason, next step) and one of
the exit codes of `_exit.ExitCode`; nothing on disk is written but by `import`; `click` and `rich` (the extra `cli`) are not
imported before a command runs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

__all__ = ["cli_main", "main"]


def run(args: Sequence[str]) -> int:
    """Runs one command line (without the program's name) and returns its exit code. Needs a thread without a running
    loop."""
    try:
        from ._app import execute
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print(
            f"raftify_cli: the package {error.name} is missing; install it with: pip install 'raftify_ffi[cli]'",
            file=sys.stderr,
        )
        return 1
    return execute(args)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


async def cli_main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line from a program of one's own, so that `--decode` finds its classes:
    `asyncio.run(cli_main(sys.argv))`.

    `argv` starts with the program's name, as `sys.argv` does, which is also the default. Returns 0; any other outcome
    raises `SystemExit` with the exit code, so that the program ends as `raftify_cli` would.
    """
    args = list(sys.argv if argv is None else argv)[1:]
    # A thread of its own: the commands run a loop of their own.
    code = await asyncio.to_thread(run, args)
    if code != 0:
        raise SystemExit(code)
    return 0

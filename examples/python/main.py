"""One node of the example cluster, with a web server. Three of them make the cluster:

    python main.py --raft-addr 127.0.0.1:60061 --web-server 127.0.0.1:8001
    python main.py --raft-addr 127.0.0.1:60062 --web-server 127.0.0.1:8002
    python main.py --raft-addr 127.0.0.1:60063 --web-server 127.0.0.1:8003

A fourth joins it:

    python main.py --raft-addr 127.0.0.1:60064 --peer-addr 127.0.0.1:60061 --web-server 127.0.0.1:8004
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from cluster_file import WrongUse, load_peers
from store import HashStore
from web import serve_web

from raftify_ffi import Config, Raft, RaftError

HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raft-addr", required=True, metavar="HOST:PORT", help="where the other nodes reach this one")
    parser.add_argument("--peer-addr", metavar="HOST:PORT", help="join the cluster that this member belongs to")
    parser.add_argument("--web-server", metavar="HOST:PORT", help="serve HTTP here")
    parser.add_argument(
        "--ignore-static-bootstrap",
        action="store_true",
        help="without --peer-addr: found a cluster of one instead of reading --config",
    )
    parser.add_argument(
        "--config", type=Path, default=HERE / "cluster.toml", help="initial members (default: %(default)s)"
    )
    parser.add_argument("--log-dir", default="./logs", help="parent of the node's directory (default: %(default)s)")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end when standard input does: for a parent that may die"
    )
    return parser.parse_args()


def stop_requested(watch_stdin: bool) -> asyncio.Event:
    """Set by Ctrl-C, by SIGTERM, and by the end of standard input if that is watched. Signals are ours: the library
    installs none."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if watch_stdin:
        stdin = sys.stdin.fileno()

        def on_input() -> None:
            if not os.read(stdin, 4096):
                loop.remove_reader(stdin)
                stop.set()

        loop.add_reader(stdin, on_input)
    return stop


async def run_node(args: argparse.Namespace, stop: asyncio.Event) -> None:
    """Starts the node and serves until cancelled, or until the node ends; raises what ended it."""
    store = HashStore()
    config = Config(log_dir=args.log_dir)
    node_id, peers, ticket = 1, None, None
    if args.peer_addr:
        # A ticket for the address of a member is that member's id: a joined node is restarted with the same command.
        ticket = await Raft.request_id(args.raft_addr, args.peer_addr)
        node_id = ticket.get_reserved_id()
    elif not args.ignore_static_bootstrap:
        peers = load_peers(args.config)
        found = peers.get_node_id_by_addr(args.raft_addr)
        if found is None:
            raise WrongUse(
                f"{args.raft_addr} is not in {args.config}; add it there, or join a cluster with --peer-addr"
            )
        node_id = found

    async with (
        Raft.build(node_id, args.raft_addr, store, config, peers) as raft,
        serve_web(raft, store, args.web_server, stop),
    ):
        if ticket is not None:
            await raft.join(ticket)
        await raft.wait()


async def main(args: argparse.Namespace) -> None:
    stop = stop_requested(args.until_stdin_closes)
    node = asyncio.create_task(run_node(args, stop))
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait({node, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not node.done():
        # Cancelling leaves the contexts in order: the web server stops, then the node closes.
        node.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await node


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(main(parse_arguments()))
    except WrongUse as error:
        raise SystemExit(f"main.py: {error}") from error
    except RaftError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error

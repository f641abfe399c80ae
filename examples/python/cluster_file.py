"""Reads `cluster.toml`: the initial members."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from raftify_ffi import InitialRole, Peer, Peers

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class WrongUse(Exception):
    """What was asked for cannot be; its text says what to do instead."""


def load_peers(path: Path) -> Peers:
    """The `[[raft.peers]]` tables; `WrongUse` when the file cannot be used."""
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text())
        return Peers(
            {
                int(peer["node_id"]): Peer(
                    f"{peer['ip']}:{peer['port']}", InitialRole.from_str(peer.get("role", "voter"))
                )
                for peer in document["raft"]["peers"]
            }
        )
    except OSError as error:
        raise WrongUse(f"{path}: {error.strerror}; name the file that lists the members with --config") from error
    except KeyError as error:
        raise WrongUse(f"{path}: {error} is missing; each [[raft.peers]] needs ip, port and node_id") from error
    except ValueError as error:
        raise WrongUse(f"{path}: {error}") from error

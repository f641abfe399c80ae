"""Turns a data directory of the crate raftify 0.1.x into one of ours: the Python side of `raftify_import`. Blocking."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ._library import call, ffi, lib


def import_directory(
    old: str | os.PathLike[str],
    log_dir: str | os.PathLike[str],
    *,
    node_id: int,
    raft_addr: str,
    peers: Mapping[int, str] | None = None,
    cluster_id: str = "",
) -> dict[str, Any]:
    """Makes `<log_dir>/node-<node_id>` from `old`, which is only read and must not be in use. Its snapshot and all its entries
    are taken over and count as committed. The other `peers` join with empty directories, after this node has been started.

    Returns what was imported: `directory`, `snapshot`, `first_index`, `last_index`, `commands`, `newly_committed`, …
    Raises a `StorageError` or `InvalidConfig`; nothing is left behind then.
    """
    texts = [os.fsencode(old), os.fsencode(log_dir), raft_addr.encode(), cluster_id.encode()]
    members = dict(peers or {})
    addrs = [ffi.from_buffer("char[]", addr.encode()) for addr in members.values()]
    table = ffi.new("raftify_peer[]", len(members))
    for slot, member, addr in zip(table, members, addrs, strict=True):
        slot.id, slot.addr, slot.addr_len = member, addr, len(addr)
    out = ffi.new("char **")
    size = ffi.new("size_t *")
    (old_text, dir_text, addr_text, cluster_text) = texts
    call(
        lib.raftify_import,
        *(old_text, len(old_text), dir_text, len(dir_text), node_id, addr_text, len(addr_text)),
        *(cluster_text, len(cluster_text), table, len(members), out, size),
    )
    try:
        report: dict[str, Any] = json.loads(bytes(ffi.buffer(out[0], size[0])))
    finally:
        lib.raftify_string_free(out[0])
    return report

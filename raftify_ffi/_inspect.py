"""A read-only look into a node's directory: the Python side of `raftify_inspect`. No node is started and nothing is
written, so it may be used beside the running node. Blocking: call it from a thread if a loop must go on meanwhile."""

from __future__ import annotations

import json
import os
from typing import Any

from ._library import call, ffi, lib


def inspect(directory: str | os.PathLike[str], start: int = 0, limit: int = 1000) -> dict[str, Any]:
    """What the directory holds, with up to `limit` entries from index `start` on (0: the first there is).

    Keys: `identity`, `hard_state {term, vote, commit}`, `snapshot` (None if there is none), `membership`, `first_index`,
    `last_index`, `entries` (payloads in hex) and `next_index` (where to go on; None at the end). `directory` is a node's, or a
    `log_dir` that holds exactly one.

    Raises a `StorageError`: `WrongDirectory` for one that is no node's, `CorruptData` for damage, `FormatTooNew`.
    """
    path = os.fsencode(directory)
    out = ffi.new("char **")
    size = ffi.new("size_t *")
    call(lib.raftify_inspect, path, len(path), start, limit, out, size)
    try:
        report: dict[str, Any] = json.loads(bytes(ffi.buffer(out[0], size[0])))
    finally:
        lib.raftify_string_free(out[0])
    return report

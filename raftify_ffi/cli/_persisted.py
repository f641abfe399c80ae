"""What a directory holds: `debug persisted`, `describe logs`, `describe metadata`. Read-only, also beside the running
node."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _decode, _render
from ._exit import CliError, ExitCode

#: Keys of a report in the order in which they are shown; others follow.
_METADATA = ("identity", "hard_state", "snapshot", "membership")


def report(directory: str, start: int, limit: int) -> dict[str, Any]:
    """Reads the directory. The obvious mistakes are named here, in terms of what was typed; the rest by the library."""
    path = Path(directory)
    if not path.exists():
        raise CliError(
            f"{directory}: there is no such directory; give a node's own, for instance ./logs/node-1", ExitCode.USAGE
        )
    if not path.is_dir():
        raise CliError(
            f"{directory}: this is a file; give a node's directory, for instance ./logs/node-1", ExitCode.USAGE
        )
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise CliError(
            f"{directory}: cannot be read: {error.strerror}; run this as the user the node runs as"
        ) from error
    if not names:
        raise CliError(f"{directory}: the directory is empty: no node has been started there; check the path")
    nodes = [name for name in names if name.startswith("node-") and (path / name).is_dir()]
    if nodes:
        raise CliError(
            f"{directory}: holds the directories of {len(nodes)} node(s), and is none itself; "
            f"name one: {path / nodes[0]}",
            ExitCode.USAGE,
        )
    from raftify_ffi._inspect import inspect

    return inspect(path, start, limit)


def entry_view(entry: Mapping[str, Any], decoder: _decode.Decoder | None, raw: bool) -> dict[str, Any]:
    """An entry with its payload made readable. Only commands are given to the decoder: the other kinds are the
    library's own."""
    shown = dict(entry)
    data = shown.get("data")
    if not isinstance(data, str) or raw:
        return shown
    try:
        payload = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return shown
    is_command = shown.get("kind", "command") == "command"
    shown["data"] = _decode.decoded(payload, decoder if is_command else None)
    return shown


def show(
    directory: str, *, start: int, limit: int, what: str, decode: str | None, raw: bool, output: str | None
) -> None:
    """`what`: "all", "logs" (entries only) or "metadata" (all but the entries)."""
    decoder = _decode.load(decode) if decode else None
    found = report(directory, start, 0 if what == "metadata" else limit)
    entries = [entry_view(entry, decoder, raw) for entry in found.get("entries") or []]
    metadata = {key: found[key] for key in _METADATA if key in found}
    metadata.update({key: value for key, value in found.items() if key not in metadata and key != "entries"})

    if _render.wants_json(output):
        _render.print_json(
            {**({} if what == "logs" else metadata), **({} if what == "metadata" else {"entries": entries})}
        )
        return
    console = _render.console()
    if what != "logs":
        for key, value in metadata.items():
            if isinstance(value, Mapping):
                console.print(_render.fields(key.replace("_", " "), value))
            else:
                console.print(_render.fields(key.replace("_", " "), {key: value}))
    if what != "metadata":
        # The payload last: it is the only column of unbounded width.
        columns = [
            key for key in (entries[0] if entries else {"index": 0, "term": 0, "kind": "", "data": ""}) if key != "data"
        ] + ["data"]
        rows = [[entry.get(column) for column in columns] for entry in entries]
        console.print(_render.table("entries", columns, rows))
        if not entries:
            console.print("No entries in this range: a snapshot may cover them (describe metadata shows its index).")
        elif len(entries) == limit:
            last = entries[-1].get("index")
            console.print(
                f"Stopped after {limit} entries; go on with --from {int(last) + 1 if isinstance(last, int) else '…'}."
            )

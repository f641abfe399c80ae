"""What a directory holds: `debug persisted`, `describe logs`, `describe metadata`. Read-only, also beside the running
node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._deserializers import get_deserializer
from . import _decode, _render
from ._exit import CliError, ExitCode

#: Keys of a report that tell of its entries; the others are its metadata.
_ENTRY_KEYS = ("entries", "next_index")
#: What people look at, in the order they read it; the payload last, because its width has no bound.
_COLUMNS = ("index", "term", "kind", "type", "size", "data")
_PARTS = ("identity", "hard_state", "snapshot", "membership")


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
        empty = not os.listdir(path)
    except OSError as error:
        raise CliError(
            f"{directory}: cannot be read: {error.strerror}; run this as the user the node runs as"
        ) from error
    if empty:
        raise CliError(f"{directory}: the directory is empty: no node has been started there; check the path")
    from raftify_ffi._inspect import inspect

    return inspect(path, start, limit)


def is_command(entry: Mapping[str, Any]) -> bool:
    """The program's own; the other kinds are the library's, and no decoder's business."""
    if "kind" in entry:
        return bool(entry["kind"] == "command")
    return bool(entry.get("type") == "EntryNormal")


def entry_view(entry: Mapping[str, Any], decoder: _decode.Decoder | None, raw: bool) -> dict[str, Any]:
    """An entry with its payload made readable; `raw` leaves it in hex, as the library gives it."""
    shown = dict(entry)
    if not raw:
        payload = bytes.fromhex(shown["data"])
        shown["data"] = _decode.decoded(payload, decoder if payload and is_command(entry) else None)
    return shown


def show(
    directory: str, *, start: int, limit: int, what: str, decode: str | None, raw: bool, output: str | None
) -> None:
    """`what`: "all", "logs" (entries only) or "metadata" (all but the entries)."""
    # Without --decode: what the program whose command line this is has set (`cli_main`).
    decoder = _decode.load(decode) if decode else get_deserializer("log_entry", "entry_data")
    found = report(directory, start, 0 if what == "metadata" else limit)
    metadata = {key: value for key, value in found.items() if key not in _ENTRY_KEYS}
    entries = [entry_view(entry, decoder, raw) for entry in found["entries"]]

    if _render.wants_json(output):
        logs = {"entries": entries, "next_index": found.get("next_index")}
        _render.print_json(metadata if what == "metadata" else logs if what == "logs" else {**metadata, **logs})
        return
    console = _render.console()
    if what != "logs":
        plain = {key: value for key, value in metadata.items() if not isinstance(value, Mapping)}
        for key in sorted(metadata, key=lambda key: _PARTS.index(key) if key in _PARTS else len(_PARTS)):
            if isinstance(metadata[key], Mapping):
                console.print(_render.fields(key.replace("_", " "), metadata[key]))
        if plain:
            console.print(_render.fields("log", plain))
    if what != "metadata":
        if not entries:
            console.print("No entries in this range: a snapshot may cover them (describe metadata shows its index).")
            return
        columns = [column for column in _COLUMNS if column in entries[0]]
        # The payload is cut, whatever it is: one large value would push all else off the screen.
        rows = [[_render.short(v) if c == "data" else v for c in columns for v in [entry.get(c)]] for entry in entries]
        console.print(_render.table("entries", columns, rows))
        if found.get("next_index") is not None:
            console.print(f"There are more: --from {found['next_index']}")

"""How commands, contexts and snapshots are shown: eight functions, kept for the process.

They format; they decide nothing. Commands stay opaque bytes to the library, and a function that raises costs its text, no more. Those of
commands, `log_entry` or else `entry_data`, are used by `cli_main` where no `--decode` says otherwise; of contexts and
snapshots nothing is shown here, so the others are kept and never called.
"""

from __future__ import annotations

from collections.abc import Callable

Deserializer = Callable[[bytes], object]

KINDS = (
    "entry_data",
    "entry_context",
    "confchange_context",
    "confchangev2_context",
    "message_context",
    "snapshot_data",
    "log_entry",
    "fsm",
)

_functions: dict[str, Deserializer] = {}


def set_deserializer(kind: str, function: Deserializer | None) -> None:
    """Keeps the function for a kind (one of `KINDS`); None takes it away."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r}: there is no such kind; use one of {', '.join(KINDS)}")
    if function is None:
        _functions.pop(kind, None)
    else:
        _functions[kind] = function


def get_deserializer(*kinds: str) -> Deserializer | None:
    """The first function that is set, in the order of the kinds asked for."""
    return next((_functions[kind] for kind in kinds if kind in _functions), None)


def describe(data: bytes, *kinds: str) -> str:
    """Text for people: what the function makes of it, or the bytes themselves."""
    function = get_deserializer(*kinds)
    if function is None:
        return repr(data)
    try:
        return str(function(data))
    except Exception as error:
        return f"{data!r} (not decoded: {type(error).__name__}: {error})"


def set_entry_data_deserializer(function: Deserializer | None) -> None:
    set_deserializer("entry_data", function)


def set_entry_context_deserializer(function: Deserializer | None) -> None:
    set_deserializer("entry_context", function)


def set_confchange_context_deserializer(function: Deserializer | None) -> None:
    set_deserializer("confchange_context", function)


def set_confchangev2_context_deserializer(function: Deserializer | None) -> None:
    set_deserializer("confchangev2_context", function)


def set_message_context_deserializer(function: Deserializer | None) -> None:
    set_deserializer("message_context", function)


def set_snapshot_data_deserializer(function: Deserializer | None) -> None:
    set_deserializer("snapshot_data", function)


def set_log_entry_deserializer(function: Deserializer | None) -> None:
    set_deserializer("log_entry", function)


def set_fsm_deserializer(function: Deserializer | None) -> None:
    set_deserializer("fsm", function)

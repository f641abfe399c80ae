"""`--decode module:Class`: how the bytes of a command become something readable."""

from __future__ import annotations

import base64
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ._exit import CliError, ExitCode, one_line

#: Longest text of one command in a table; JSON is never cut.
TABLE_WIDTH = 96

Decoder = Callable[[bytes], object]


def load(spec: str) -> Decoder:
    """Imports `module:Class` (looking in the present directory too). The class' `decode` is used if it has one,
    otherwise it is called.

    The library itself never unpickles and never imports anything from data: only what is named here runs.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise CliError(
            f"--decode {spec}: expected module:Class, for instance myapp.commands:SetCommand", ExitCode.USAGE
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(module_name)
    except Exception as error:
        raise CliError(
            f"--decode {spec}: cannot import {module_name}: {one_line(error)}; "
            "start raftify_cli where it can be imported",
            ExitCode.USAGE,
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise CliError(f"--decode {spec}: {module_name} has no {attribute}; check its spelling", ExitCode.USAGE)
        target = getattr(target, part)
    target = getattr(target, "decode", target)
    if not callable(target):
        raise CliError(f"--decode {spec}: {attribute} is neither callable nor has a decode method", ExitCode.USAGE)
    decoder: Decoder = target
    return decoder


def plain(data: bytes) -> object:
    """A value JSON can hold: the text if it is readable text, otherwise base64 under its own key, so that nothing is
    lost."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}
    if all(c.isprintable() or c in "\t\n\r" for c in text):
        return text
    return {"base64": base64.b64encode(data).decode("ascii")}


def decoded(data: bytes, decoder: Decoder | None) -> object:
    """What to show for one command. A decoder that raises is shown as such beside the raw value: one bad entry hides no
    other."""
    if decoder is None:
        return plain(data)
    try:
        return jsonable(decoder(data))
    except Exception as error:  # whatever the user's class raises
        return {"undecodable": f"{type(error).__name__}: {one_line(error)}", "raw": plain(data)}


def jsonable(value: object, depth: int = 0) -> object:
    """Reduces an object to what JSON can hold: public attributes of objects, `str` for what is left."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return plain(bytes(value))
    if depth > 8:
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v, depth + 1) for v in value]
    attributes = getattr(value, "__dict__", None)
    if attributes:
        return {k: jsonable(v, depth + 1) for k, v in attributes.items() if not k.startswith("_")}
    return str(value)

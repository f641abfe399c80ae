"""One setting: its name, the type it takes, and how it goes down to the library, which alone knows names, ranges and remedies."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Final

from ._errors import InvalidConfig
from ._library import call, ffi, lib

#: How Python values of a kind are named in an error, and which they are.
_KINDS: Final[Mapping[str, tuple[str, tuple[type, ...]]]] = {
    "count": ("a whole number of 0 or more", (int,)),
    "integer": ("a whole number", (int,)),
    "seconds": ("a number of seconds of 0 or more", (int, float)),
    "flag": ("True or False", (bool,)),
    "text": ("text", (str,)),
    "path": ("a path", (str, os.PathLike)),
}


def invalid(field: str, value: object, reason: str) -> InvalidConfig:
    return InvalidConfig(f"{field}: {value!r} {reason}", field=field, value=value)


def checked(field: str, kind: str, value: object) -> Any:
    """The value, if it is of its kind. `True` is not a number here, and 1 is not `True`."""
    says, types = _KINDS[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "flag"):
        raise invalid(field, value, f"is not {says}")
    if kind in ("count", "seconds") and not 0 <= value < math.inf:  # type: ignore[operator]
        raise invalid(field, value, f"is not {says}")
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(plain, str):
        try:
            plain.encode()
        except UnicodeEncodeError:
            raise invalid(field, value, "cannot be written as UTF-8; use another name") from None
    return plain


def as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


class NativeConfig:
    """The library's configuration object, made from settings by name. Frees itself."""

    __slots__ = ("raw",)

    def __init__(self, settings: Mapping[str, object]) -> None:
        """Settings by name; raises `InvalidConfig` if one, or the whole, cannot work."""
        self.raw = ffi.gc(lib.raftify_config_new(), lib.raftify_config_free)
        for name, value in settings.items():
            key, text = name.encode(), as_text(value).encode()
            self._checked(settings, lib.raftify_config_set, self.raw, key, len(key), text, len(text))
        self._checked(settings, lib.raftify_config_validate, self.raw)

    @staticmethod
    def _checked(settings: Mapping[str, object], function: Any, *arguments: Any) -> None:
        try:
            call(function, *arguments)
        except InvalidConfig as error:
            # The library speaks of names and texts; the value as it was given is known here.
            if error.field is not None:
                error.value = settings.get(error.field)
            raise

"""`timeout=` of every call: seconds, None for none, or left out for the default of its kind. The engine keeps the deadlines."""

from __future__ import annotations

import enum
import math
from typing import Final

from ._errors import InvalidArgument


class Default(enum.Enum):
    """The type of `DEFAULT`."""

    DEFAULT = "default"

    def __repr__(self) -> str:
        return "DEFAULT"


#: The deadline that the configuration names for this kind of call.
DEFAULT: Final = Default.DEFAULT

Timeout = float | None | Default

_NONE_MS: Final = -1
#: `DEFAULT`, as the C ABI takes it.
DEFAULT_MS: Final = -2


def milliseconds(timeout: Timeout) -> int:
    """As the C ABI takes it. Rounded up: a deadline is never earlier than asked for."""
    if timeout is DEFAULT:
        return DEFAULT_MS
    if timeout is None:
        return _NONE_MS
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise InvalidArgument(f"timeout={timeout!r}: use a number of seconds of 0 or more, or None for no deadline")
    return min(math.ceil(timeout * 1000), 2**62) if timeout < math.inf else _NONE_MS


def seconds(timeout: Timeout, default: float | None) -> float | None:
    """For the few waits that are kept on this side of the border."""
    if timeout is DEFAULT:
        return default
    ms = milliseconds(timeout)
    return None if ms == _NONE_MS else ms / 1000

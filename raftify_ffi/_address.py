"""Addresses as Python sees them: `host:port` text, nothing resolved here (names are kept, and resolved at each connect)."""

from __future__ import annotations

from ._errors import InvalidConfig


def checked_address(value: object, field: str, whose: str = "") -> str:
    """The address as text, or `InvalidConfig` naming the field, and `whose` it is where there are several."""
    shown = f"{whose} has {value!r}, which" if whose else repr(value)
    if not isinstance(value, str):
        raise InvalidConfig(f'{field}: {shown} is not text; use "host:port"', field=field, value=value)
    host, colon, port = value.rpartition(":")
    if not colon or not host or not (value.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidConfig(f'{field}: {shown} is not "host:port" with a port of 0 to 65535', field=field, value=value)
    return str(value)


def checked_node_id(value: object, field: str = "node_id") -> int:
    """An id: above 0, below 2**64."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**64:
        raise InvalidConfig(f"{field}: {value!r} is not a whole number from 1 to 2**64 - 1", field=field, value=value)
    return int(value)

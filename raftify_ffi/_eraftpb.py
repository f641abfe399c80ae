"""Encodes a `Message` as raft's own protocol buffer (eraftpb.Message), for `send_message()`. Only this direction is needed."""

from __future__ import annotations

from collections.abc import Iterable

from ._errors import InvalidArgument
from ._types import ConfState, Entry, Message, Snapshot


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= 0xFFFF_FFFF_FFFF_FFFF
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(tag: int, value: int) -> bytes:
    """A field of wire type 0; what is 0 is left out, as in every proto3 message."""
    return _varint(tag << 3) + _varint(int(value)) if value else b""


def _bytes(tag: int, value: bytes, *, always: bool = False) -> bytes:
    """A field of wire type 2."""
    return _varint(tag << 3 | 2) + _varint(len(value)) + value if value or always else b""


def _packed(tag: int, values: Iterable[int]) -> bytes:
    return _bytes(tag, b"".join(_varint(value) for value in values))


def _entry(entry: Entry) -> bytes:
    return (
        _number(1, entry.entry_type)
        + _number(2, entry.term)
        + _number(3, entry.index)
        + _bytes(4, bytes(entry.data))
        + _number(5, entry.sync_log)
        + _bytes(6, bytes(entry.context))
    )


def _conf_state(state: ConfState) -> bytes:
    return (
        _packed(1, state.voters)
        + _packed(2, state.learners)
        + _packed(3, state.voters_outgoing)
        + _packed(4, state.learners_next)
        + _number(5, state.auto_leave)
    )


def _snapshot(snapshot: Snapshot) -> bytes:
    out = _bytes(1, bytes(snapshot.data))
    if snapshot.metadata is not None:
        metadata = snapshot.metadata
        conf = _bytes(1, _conf_state(metadata.conf_state), always=True) if metadata.conf_state is not None else b""
        out += _bytes(2, conf + _number(2, metadata.index) + _number(3, metadata.term), always=True)
    return out


def checked_message(message: object) -> Message:
    if not isinstance(message, Message):
        raise InvalidArgument(f"send_message({message!r}): that is no Message")
    return message


def encode_message(message: Message) -> bytes:
    """The message as it goes over raft's wire."""
    parts = [
        _number(1, message.msg_type),
        _number(2, message.to),
        _number(3, message.from_),
        _number(4, message.term),
        _number(5, message.log_term),
        _number(6, message.index),
        *(_bytes(7, _entry(entry), always=True) for entry in message.entries),
        _number(8, message.commit),
    ]
    if message.snapshot is not None:
        parts.append(_bytes(9, _snapshot(message.snapshot), always=True))
    parts += [
        _number(10, message.reject),
        _number(11, message.reject_hint),
        _bytes(12, bytes(message.context)),
        _number(13, message.request_snapshot),
        _number(15, message.commit_term),
        _number(16, message.priority),
    ]
    return b"".join(parts)

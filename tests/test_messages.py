"""`send_message()`: kept for programs of earlier releases. A message is encoded as raft encodes it, and checked like one from the wire."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import raftify_ffi as r
from raftify_ffi._eraftpb import encode_message

# Field numbers and wire types of eraftpb.Message, written out by hand.
ENCODED = [
    (r.Message(), b""),
    (r.Message(msg_type=r.MessageType.MsgHeartbeat, to=1, from_=2, term=300), b"\x08\x08\x10\x01\x18\x02\x20\xac\x02"),
    (r.Message(entries=[r.Entry(term=1, index=2, data=b"x")]), b"\x3a\x07\x10\x01\x18\x02\x22\x01x"),
    (r.Message(reject=True, context=b"c", priority=-1), b"\x50\x01\x62\x01c\x80\x01" + b"\xff" * 9 + b"\x01"),
]


@pytest.mark.parametrize(("message", "expected"), ENCODED)
def test_a_message_is_encoded_as_raft_reads_it(message: r.Message, expected: bytes) -> None:
    assert encode_message(message) == expected


class Store:
    def apply(self, command: bytes) -> bytes:
        return command

    def snapshot(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def test_messages_that_cannot_be_are_dropped_and_the_node_serves_on(tmp_path: Path) -> None:
    async def main() -> None:
        config = r.Config(log_dir=str(tmp_path))
        async with r.Raft.build(1, "127.0.0.1:0", Store(), config) as raft:
            await raft.propose(b"before")
            term = raft.status.term
            node = raft.get_raft_node()
            for message in (
                r.Message(msg_type=r.MessageType.MsgHeartbeat, to=1, from_=9, term=2**64 - 1, commit=10**12),
                r.Message(msg_type=r.MessageType.MsgPropose, to=1, from_=1, term=term),
                r.Message(msg_type=r.MessageType.MsgAppendResponse, to=1, from_=9, term=term, index=10**12),
            ):
                node.prepare_message(message)
                await node.send_message()
                async with r.RaftServiceClient.connect(raft.addr) as client:
                    client.prepare_message(message)
                    await client.send_message()
            assert await raft.propose(b"after") == b"after"
            assert raft.status.term == term

    asyncio.run(main())

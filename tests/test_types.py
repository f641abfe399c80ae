"""Peers, tickets, messages, stores, deserializers: plain Python, no node."""

from __future__ import annotations

import copy
import functools
import logging
import pickle
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from stores import AsyncKeyValue, Bulky, Journal, KeyValue

import raftify_ffi
from raftify_ffi import (
    ClusterJoinTicket,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    InitialRole,
    InvalidArgument,
    InvalidConfig,
    Message,
    MessageType,
    Peer,
    Peers,
    Raft,
    Role,
    Severity,
    Slogger,
    StateMachine,
    Status,
)
from raftify_ffi._deserializers import describe, set_entry_data_deserializer
from raftify_ffi._members import ChangeKind, changes_of
from raftify_ffi._store import contiguous_bytes, inspect_store
from raftify_ffi._timeouts import DEFAULT, milliseconds


def test_every_public_name_is_there_and_sorted() -> None:
    assert all(hasattr(raftify_ffi, name) for name in raftify_ffi.__all__)
    assert list(raftify_ffi.__all__) == sorted(raftify_ffi.__all__)


def test_peers_is_a_mapping_with_the_old_names() -> None:
    peers = Peers({1: "a:1", 2: Peer("b:2", InitialRole.LEARNER)})
    assert isinstance(peers, MutableMapping)
    assert peers[1] == "a:1"
    assert peers[2].get_role() is InitialRole.LEARNER
    assert peers.get(9) is None
    assert dict(peers.items()) == {1: "a:1", 2: "b:2"}
    peers.add_peer(3, "c:3")
    assert peers.get_node_id_by_addr("c:3") == 3
    peers.remove(3)
    peers.remove(3)
    assert peers.to_dict() == {1: "a:1", 2: "b:2"}
    assert not peers.is_empty()
    assert peers == {1: "a:1", 2: "b:2"}
    twin = pickle.loads(pickle.dumps(peers))
    assert twin == peers
    assert twin[2].role is InitialRole.LEARNER
    assert copy.deepcopy(peers) == peers


@pytest.mark.parametrize(
    "entry", [(0, "a:1"), (1, "\udcff:1"), (2**64, "a:1"), (1, "a"), (1, "a:99999"), (1, ":1"), (True, "a:1"), (1, 5)]
)
def test_a_peer_that_cannot_be_is_refused(entry: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidConfig):
        Peers(dict([entry]))


@pytest.mark.parametrize("addr", ["bad", "b:99999", 5])
def test_an_address_among_peers_that_cannot_be_is_told_with_its_node(addr: Any) -> None:
    with pytest.raises(InvalidConfig, match=f"^peers: node 2 has {addr!r}, which is not") as caught:
        Peers({1: "a:1", 2: addr})
    assert (caught.value.field, caught.value.value) == ("peers", addr)


def test_a_ticket_travels_as_json() -> None:
    ticket = ClusterJoinTicket(4, "d:4", "a:1", Peers({1: "a:1"}), leader_id=1, incarnation="ab")
    assert ClusterJoinTicket.from_json(ticket.to_json()) == ticket
    assert ticket.get_reserved_id() == 4
    assert ClusterJoinTicket(4, "d:4", "a:1", {1: "a:1"}).to_dict()["peers"] == {"1": "a:1"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "[]",
        "{}",
        None,
        '{"reserved_id": "x", "leader_addr": "a:1"}',
        '{"reserved_id": 0, "leader_addr": "a:1"}',
        '{"reserved_id": 3.7, "leader_addr": "a:1"}',
        '{"reserved_id": 4, "leader_addr": null}',
        '{"reserved_id": 4, "leader_addr": "a:1", "raft_addr": null}',
        '{"reserved_id": 4, "leader_addr": "a:1", "peers": {"one": "a:1"}}',
    ],
)
def test_what_is_no_ticket_is_not_read_as_one(bad: Any) -> None:
    with pytest.raises(InvalidArgument, match="not a ticket"):
        ClusterJoinTicket.from_json(bad)


def test_messages_have_accessors_and_real_enums() -> None:
    change = ConfChangeSingle()
    change.set_node_id(4)
    change.set_change_type(ConfChangeType.AddNode)
    both = ConfChangeV2()
    both.set_changes([change])
    both.set_context(b"d:4")
    assert both.get_changes()[0].get_node_id() == 4
    assert MessageType.from_int(3) is MessageType.MsgAppend < MessageType.MsgSnapshot
    message = Message()
    message.set_from(2)
    message.set_deprecated_priority(3)
    assert (message.get_from(), message.get_priority(), message.get_deprecated_priority()) == (2, 3, 3)
    assert ConfState.default() == ConfState([], [])
    explicit = ConfChangeV2([change], ConfChangeTransition.Explicit)
    assert [it.enter_joint() for it in (both, ConfChangeV2([change, change]), explicit)] == [None, True, False]


@pytest.mark.parametrize(
    "arguments",
    [(), (Severity.INFO, 1024, 1 << 20, 3), (1024, 1 << 20, 3), {"chan_size": 1, "rotate_size": 2, "rotate_keep": 3}],
)
def test_a_file_logger_writes_what_it_is_told_to(tmp_path: Path, arguments: Any) -> None:
    logger = logging.getLogger("raftify")
    level, handlers = logger.level, list(logger.handlers)
    path = str(tmp_path / "log")
    try:
        positional, named = ((), arguments) if isinstance(arguments, dict) else (arguments, {})
        Slogger.new_file_logger(path, *positional, **named).debug("not this")
        logging.getLogger("raftify.raft").info("elected")
        assert Path(path).read_text() == "elected\n"
    finally:
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)


def test_old_membership_messages_become_changes() -> None:
    def add(node_id: int, kind: ConfChangeType = ConfChangeType.AddNode) -> ConfChangeSingle:
        return ConfChangeSingle(node_id, kind)

    request = ConfChangeV2(
        [add(4), add(3), add(5, ConfChangeType.AddLearnerNode), add(2, ConfChangeType.RemoveNode)], context=b"d:4, e:5"
    )
    kinds = [(c.kind, c.node_id, c.addr) for c in changes_of(request, {1, 2}, {3})]
    assert kinds == [
        (ChangeKind.ADD, 4, "d:4"),
        (ChangeKind.PROMOTE, 3, ""),
        (ChangeKind.ADD_LEARNER, 5, "e:5"),
        (ChangeKind.REMOVE, 2, ""),
    ]
    text: Any = "f:6"
    assert changes_of(ConfChangeV2([add(6)], context=text), set(), set())[0].addr == "f:6"
    with pytest.raises(InvalidArgument, match="no address for node 9"):
        changes_of(ConfChangeV2([add(9)]), set(), set())


NINE: Any = 9


@pytest.mark.parametrize(
    "request_", [NINE, ConfChangeSingle(4), ConfChangeV2([NINE]), ConfChangeV2([ConfChangeSingle(4, NINE)])]
)
def test_what_is_no_change_of_members_is_refused(request_: Any) -> None:
    with pytest.raises(InvalidArgument, match="ConfChange"):
        changes_of(request_, set(), set())


def test_a_status_reads_what_a_newer_node_says() -> None:
    text = (
        '{"node_id":1,"addr":"a:1","role":"leader","term":3,"leader_id":1,"last_index":9,"commit_index":8,"applied_index":7,'
        '"snapshot_index":0,"voters":[1,2],"learners":[],"peers":{"2":{"addr":"b:2","match_index":8,"lag":1,"connected":true,'
        '"last_seen":0.1,"new":1}},"error":null,"newer":true}'
    )
    status = Status.from_json(text)
    assert status.role is Role.LEADER
    assert str(status.role) == "leader"
    assert status.peers[2].lag == 1


class GeneratorStore(KeyValue):
    def snapshot(self) -> Iterator[bytes]:  # type: ignore[override]
        yield b""


class AsyncGeneratorStore(KeyValue):
    async def snapshot(self):  # type: ignore[no-untyped-def]
        yield b""


class WrappedGeneratorStore(KeyValue):
    @functools.wraps(GeneratorStore.snapshot)
    def snapshot(self) -> Any:  # type: ignore[override]
        return GeneratorStore.snapshot(self)  # type: ignore[arg-type]


class NoRestore:
    def apply(self, command: bytes) -> bytes:
        return b""

    def snapshot(self) -> bytes:
        return b""


class AppliesNothing(KeyValue):
    def apply(self) -> bytes:  # type: ignore[override]
        return b""


class AppliesMore(KeyValue):
    def apply(self, command: bytes, applied: object, more: object) -> bytes:  # type: ignore[override]
        return b""


class AppliesByName(KeyValue):
    def apply(self, *, command: bytes) -> bytes:  # type: ignore[override]
        return b""


class SnapshotsAt(KeyValue):
    def snapshot(self, index: int) -> bytes:  # type: ignore[override]
        return b""


class RestoresNothing(KeyValue):
    def restore(self) -> None:  # type: ignore[override]
        pass


@pytest.mark.parametrize(
    "store",
    [
        *(GeneratorStore(), AsyncGeneratorStore(), WrappedGeneratorStore(), NoRestore(), KeyValue, None),
        *(AppliesNothing(), AppliesMore(), AppliesByName(), SnapshotsAt(), RestoresNothing()),
    ],
)
def test_a_store_that_cannot_work_is_refused_at_build(store: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Raft.build(1, "127.0.0.1:1", store)
    assert caught.value.field == "store"


def test_a_type_checker_takes_plain_async_and_placed_stores() -> None:
    stores: list[StateMachine] = [KeyValue(), AsyncKeyValue(), Journal(), Bulky()]
    assert all(isinstance(store, StateMachine) for store in stores)
    assert not isinstance(NoRestore(), StateMachine)


def test_a_second_positional_parameter_asks_for_applied() -> None:
    class Base:
        def snapshot(self) -> bytes:
            return b""

        def restore(self, data: bytes) -> None: ...

    class One(Base):
        def apply(self, a): ...  # type: ignore[no-untyped-def]

    class Two(Base):
        def apply(self, a, b): ...  # type: ignore[no-untyped-def]

    class Optional_(Base):
        def apply(self, a, b=None): ...  # type: ignore[no-untyped-def]

    class Keyword(Base):
        def apply(self, a, *, b=None): ...  # type: ignore[no-untyped-def]

    class Rest(Base):
        def apply(self, *a): ...  # type: ignore[no-untyped-def]

    assert [inspect_store(kind()).wants_applied for kind in (One, Two, Optional_, Keyword, Rest)] == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_buffers_become_bytes_and_other_things_do_not() -> None:
    assert contiguous_bytes(b"a") == b"a"
    assert contiguous_bytes(bytearray(b"a")) == b"a"
    assert contiguous_bytes(memoryview(b"abcd")[1:3]) == b"bc"
    assert contiguous_bytes(memoryview(b"abcd")[::2]) is None
    assert contiguous_bytes("a") is None
    assert contiguous_bytes(5) is None


def test_timeouts_are_never_shortened() -> None:
    assert milliseconds(DEFAULT) == -2
    assert milliseconds(None) == -1
    assert milliseconds(0.0001) == 1
    assert milliseconds(0) == 0
    assert milliseconds(float("inf")) == -1
    assert milliseconds(10**400) == 2**62
    for bad in (-1, float("nan"), True, "5"):
        with pytest.raises(InvalidArgument):
            milliseconds(bad)  # type: ignore[arg-type]


def test_a_deserializer_that_raises_costs_its_text_only() -> None:
    set_entry_data_deserializer(lambda data: data.decode("ascii"))
    try:
        assert describe(b"abc", "entry_data") == "abc"
        assert "UnicodeDecodeError" in describe(b"\xff", "entry_data")
    finally:
        set_entry_data_deserializer(None)
    assert describe(b"abc", "entry_data") == "b'abc'"


def test_building_needs_no_loop_and_says_what_is_wrong() -> None:
    raft = Raft.build(1, "127.0.0.1:60061", KeyValue(), None, None)
    assert raft.status.role is Role.STOPPED
    for node_id, addr, peers in ((0, "a:1", None), (1, "a", None), (1, "a:1", 5), (True, "a:1", None)):
        with pytest.raises(InvalidConfig):
            Raft.build(node_id, addr, KeyValue(), None, peers)  # type: ignore[arg-type]

"""`raft.members`: changes of membership, one or several in one step."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple

from ._address import checked_address, checked_node_id
from ._call import Call
from ._context import refuse_inside_store
from ._errors import InvalidArgument
from ._library import ffi
from ._timeouts import DEFAULT, Timeout
from ._types import ConfChangeRequest, ConfChangeSingle, ConfChangeType, ConfChangeV2


class ChangeKind(enum.IntEnum):
    """`kind` of a raftify_member_change."""

    ADD = 1
    ADD_LEARNER = 2
    PROMOTE = 3
    DEMOTE = 4
    REMOVE = 5
    UPDATE_ADDRESS = 6


class Change(NamedTuple):
    kind: ChangeKind
    node_id: int
    addr: str = ""


#: Hands changes down and waits for their completion.
Submit = Callable[[list[Change], Timeout], Awaitable[object]]


class MemberChanges(Call[None]):
    """Changes that are made when this is awaited, all in one step:

        await raft.members.add(4, "host:60064")
        await raft.members.add(5, "host:60065").remove(2)

    Each method gives a new object; the last `timeout=` given counts (default: `conf_change_request_timeout`). An added voter is a learner
    first and is promoted by itself once it has caught up: so its node has to run for this to return, which it does once that is
    applied here.
    """

    __slots__ = ("_changes", "_submit", "_timeout")

    def __init__(self, submit: Submit, changes: tuple[Change, ...] = (), timeout: Timeout = DEFAULT) -> None:
        self._submit = submit
        self._changes = changes
        self._timeout = timeout

    def _and(self, change: Change, timeout: Timeout) -> MemberChanges:
        last = self._timeout if timeout is DEFAULT else timeout
        return MemberChanges(self._submit, (*self._changes, change), last)

    def add(self, node_id: int, addr: str, *, learner: bool = False, timeout: Timeout = DEFAULT) -> MemberChanges:
        """A new member at this address: a voter, or a learner, which gets the log and has no vote."""
        kind = ChangeKind.ADD_LEARNER if learner else ChangeKind.ADD
        return self._and(Change(kind, checked_node_id(node_id), checked_address(addr, "addr")), timeout)

    def promote(self, node_id: int, *, timeout: Timeout = DEFAULT) -> MemberChanges:
        """A learner gets a vote."""
        return self._and(Change(ChangeKind.PROMOTE, checked_node_id(node_id)), timeout)

    def demote(self, node_id: int, *, timeout: Timeout = DEFAULT) -> MemberChanges:
        """A voter becomes a learner."""
        return self._and(Change(ChangeKind.DEMOTE, checked_node_id(node_id)), timeout)

    def remove(self, node_id: int, *, timeout: Timeout = DEFAULT) -> MemberChanges:
        """For good: its id is spent."""
        return self._and(Change(ChangeKind.REMOVE, checked_node_id(node_id)), timeout)

    def replace(self, old_id: int, node_id: int, addr: str, *, timeout: Timeout = DEFAULT) -> MemberChanges:
        """One goes and another comes, in the same step."""
        return self.remove(old_id).add(node_id, addr, timeout=timeout)

    def update_address(self, node_id: int, addr: str, *, timeout: Timeout = DEFAULT) -> MemberChanges:
        """Where a member is dialled from now on."""
        change = Change(ChangeKind.UPDATE_ADDRESS, checked_node_id(node_id), checked_address(addr, "addr"))
        return self._and(change, timeout)

    def __await__(self) -> Generator[Any, Any, None]:
        return self._run().__await__()

    async def _run(self) -> None:
        refuse_inside_store("members")
        if not self._changes:
            raise InvalidArgument("members: no change was named; use members.add(id, addr), .remove(id) …")
        await self._submit(list(self._changes), self._timeout)

    def __repr__(self) -> str:
        return (
            f"MemberChanges({', '.join(f'{c.kind.name.lower()} {c.node_id} {c.addr}'.rstrip() for c in self._changes)})"
        )


def native_changes(changes: list[Change]) -> tuple[Any, int, list[Any]]:
    """As the C ABI takes them; the third keeps the texts alive until the call has copied them."""
    table = ffi.new("raftify_member_change[]", len(changes))
    kept: list[Any] = []
    for slot, change in zip(table, changes):
        text = change.addr.encode()
        data = ffi.from_buffer("char[]", text)
        kept.append(data)
        slot.kind, slot.id, slot.addr, slot.addr_len = int(change.kind), change.node_id, data, len(text)
    return table, len(changes), kept


def changes_of(request: ConfChangeV2 | ConfChangeRequest, voters: set[int], learners: set[int]) -> list[Change]:
    """The messages of earlier releases as changes. Adding who is there already changes what it is."""
    if isinstance(request, ConfChangeRequest):
        addrs: list[str] = list(request.addrs or ())
        aligned = len(addrs) == len(request.changes)
    elif not isinstance(request, ConfChangeV2):
        raise InvalidArgument(f"{request!r} is neither a ConfChangeV2 nor a ConfChangeRequest; or use raft.members")
    else:
        context: object = request.context
        text = context if isinstance(context, str) else bytes(request.context).decode("utf-8", "replace")
        addrs = [addr for addr in (part.strip() for part in text.replace("\n", ",").split(",")) if addr]
        aligned = False
    changes: list[Change] = []
    for position, single in enumerate(request.changes):
        addr = ""
        kind = _kind_of(single, voters, learners)
        if aligned:
            addr = addrs[position]
        elif kind in (ChangeKind.ADD, ChangeKind.ADD_LEARNER) and addrs:
            addr = addrs.pop(0)
        if kind in (ChangeKind.ADD, ChangeKind.ADD_LEARNER):
            if not addr:
                raise InvalidArgument(
                    f"no address for node {single.node_id}: put it in the context of ConfChangeV2 (b'host:port'), in the addrs "
                    "of ConfChangeRequest, or use raft.members.add(id, addr)"
                )
            checked_address(addr, "addr")
        else:
            addr = ""
        changes.append(Change(kind, checked_node_id(single.node_id), addr))
    return changes


def _kind_of(single: ConfChangeSingle, voters: set[int], learners: set[int]) -> ChangeKind:
    if not isinstance(single, ConfChangeSingle) or single.change_type not in list(ConfChangeType):
        raise InvalidArgument(f"{single!r} is no change: ConfChangeSingle(node_id, ConfChangeType.AddNode)")
    match ConfChangeType(single.change_type):
        case ConfChangeType.RemoveNode:
            return ChangeKind.REMOVE
        case ConfChangeType.AddLearnerNode:
            return ChangeKind.DEMOTE if single.node_id in voters else ChangeKind.ADD_LEARNER
        case _:
            return ChangeKind.PROMOTE if single.node_id in learners else ChangeKind.ADD

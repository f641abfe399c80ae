"""`RaftNode`: the handle of earlier releases, over the same node. What `prepare_x` keeps, the next `x()` of the same handle consumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._context import refuse_inside_store
from ._errors import InvalidArgument
from ._members import changes_of
from ._node import Raft
from ._peers import InitialRole, Peers, checked_role
from ._status import Role, SnapshotInfo
from ._store import Buffer
from ._ticket import ClusterJoinTicket, checked_tickets
from ._timeouts import DEFAULT, Timeout
from ._types import ConfChangeRequest, ConfChangeV2, Message


class RaftNode:
    """A fresh one comes from each `raft.get_raft_node()`, so prepared arguments of different callers never mix."""

    def __init__(self, raft: Raft[Any]) -> None:
        self._raft = raft
        self._prepared: dict[str, Any] = {}

    def _take(self, call: str, prepare: str, given: Any) -> Any:
        prepared = self._prepared.pop(call, None)
        if given is not None:
            return given
        if prepared is None:
            raise InvalidArgument(
                f"{call}() has no argument: give it one, {call}(…), or call {prepare}(…) on the same handle before"
            )
        return prepared

    # ---- commands ----------------------------------------------------------------------------------------------------------------------

    def prepare_proposal(self, data: Buffer) -> None:
        self._prepared["propose"] = data

    async def propose(self, data: Buffer | None = None, *, timeout: Timeout = DEFAULT) -> bytes:
        """What `apply` returned here."""
        return await self._raft.propose(self._take("propose", "prepare_proposal", data), timeout=timeout)

    def prepare_message(self, message: Message) -> None:
        self._prepared["send_message"] = message

    #: The stubs of the first release said `prepare_message`, its library `prepare_send_message`.
    prepare_send_message = prepare_message

    async def send_message(self, message: Message | None = None, *, timeout: Timeout = DEFAULT) -> None:
        """Hands this node's raft a message as if it had come over the wire; it is checked like one, and dropped if it cannot be.
        Kept for programs written for earlier releases; nothing new should need it."""
        await self._raft._send_message(self._take("send_message", "prepare_message", message), timeout)

    # ---- membership --------------------------------------------------------------------------------------------------------------------

    def prepare_change_config(self, change: ConfChangeV2) -> None:
        self._prepared["change_config"] = change

    async def change_config(
        self, change: ConfChangeV2 | ConfChangeRequest | None = None, *, timeout: Timeout = DEFAULT
    ) -> None:
        refuse_inside_store("change_config()")
        request = self._take("change_config", "prepare_change_config", change)
        status = self._raft.status
        changes = changes_of(request, set(status.voters), set(status.learners))
        await self._raft._change_members(changes, timeout)

    def prepare_add_peer(self, node_id: int, addr: str, role: InitialRole = InitialRole.VOTER) -> None:
        self._prepared["add_peer"] = (node_id, addr, role)

    async def add_peer(
        self,
        node_id: int | None = None,
        addr: str | None = None,
        role: InitialRole = InitialRole.VOTER,
        *,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Adds a member to the cluster, as `raft.members.add` does."""
        if (node_id is None) != (addr is None):
            raise InvalidArgument("add_peer takes an id and an address")
        given = None if node_id is None else (node_id, addr, role)
        node_id, addr, role = self._take("add_peer", "prepare_add_peer", given)
        assert node_id is not None and addr is not None
        learner = checked_role(role) is InitialRole.LEARNER
        await self._raft.members.add(node_id, addr, learner=learner, timeout=timeout)

    async def join_cluster(self, tickets: Sequence[ClusterJoinTicket], *, timeout: Timeout = DEFAULT) -> None:
        """Joins this node with its ticket; adds the nodes of the others."""
        tickets = checked_tickets(tickets)
        own = [ticket for ticket in tickets if ticket.reserved_id == self._raft.node_id]
        changes = self._raft.members
        others = [ticket for ticket in tickets if ticket.reserved_id != self._raft.node_id]
        for ticket in others:
            changes = changes.add(ticket.reserved_id, ticket.raft_addr, timeout=timeout)
        if own or not others:
            await self._raft.join(own, timeout=timeout)
        if others:
            await changes

    async def leave(self, *, timeout: Timeout = DEFAULT) -> None:
        await self._raft.leave(timeout=timeout)

    async def quit(self, *, timeout: Timeout = DEFAULT) -> None:
        """Ends this node; it stays a member."""
        await self._raft.close(timeout=timeout)

    async def transfer_leader(self, node_id: int | None = None, *, timeout: Timeout = DEFAULT) -> None:
        await self._raft.transfer_leader(node_id, timeout=timeout)

    async def demote(self, term: int = 0, leader_id: int = 0, *, timeout: Timeout = DEFAULT) -> None:
        """Gives up leadership. The arguments are not needed: the node knows its term."""
        await self._raft.step_down(timeout=timeout)

    async def leave_joint(self) -> None:
        """Not needed: a change of several members leaves its joint configuration by itself. Kept so that programs that call it run."""

    # ---- what it is --------------------------------------------------------------------------------------------------------------------

    async def is_leader(self) -> bool:
        return self._raft.status.role is Role.LEADER

    async def get_id(self) -> int:
        return self._raft.node_id

    async def get_leader_id(self) -> int:
        """0 if there is none, as it was; `raft.status.leader_id` says None."""
        return self._raft.status.leader_id or 0

    async def get_peers(self) -> Peers:
        """All members, this one included."""
        status = self._raft.status
        peers = {node_id: peer.addr for node_id, peer in status.peers.items()}
        if status.node_id in (*status.voters, *status.learners):
            peers[status.node_id] = status.addr
        return Peers(dict(sorted(peers.items())))

    async def get_cluster_size(self) -> int:
        status = self._raft.status
        return len({*status.voters, *status.learners})

    async def inspect(self) -> str:
        """The status as JSON text."""
        import json

        return json.dumps(self._raft.status.to_dict())

    async def store(self) -> Any:
        return self._raft.store

    async def state_machine(self) -> Any:
        return self._raft.store

    async def snapshot(self, *, timeout: Timeout = DEFAULT) -> SnapshotInfo:
        return await self._raft.snapshot(timeout=timeout)

"""`async with raft.leadership() as term:` – a body that runs while this node leads (rule 16)."""

from __future__ import annotations

import asyncio
import sys
import time
from types import TracebackType
from typing import Any

from ._context import refuse_inside_store
from ._errors import Closed, InvalidArgument, LeadershipLost, RaftTimeout
from ._events import Event, EventStream, LeaderChanged, RoleChanged
from ._running import RunningNode
from ._status import Role


class Leadership:
    """Waits to lead and yields the term, a fencing token: whoever is told of work done must refuse a lower one. On loss the body is
    cancelled and `LeadershipLost` raised; an exception of the body wins, and one's own cancel passes through. Loss is seen late: two
    nodes may believe for a moment that they lead, so it is no lock without the token."""

    def __init__(self, node: Any, timeout: float | None = None) -> None:
        self._node_of = node
        self._timeout = timeout
        self._stream: EventStream | None = None
        self._task: asyncio.Task[Any] | None = None
        self._term = 0
        self._lost = False
        self._cancelling = 0

    async def __aenter__(self) -> int:
        refuse_inside_store("leadership()")
        if self._task is not None:
            raise InvalidArgument(
                "this leadership() is waited for, or held, already; ask for one of your own: raft.leadership()"
            )
        node: RunningNode = self._node_of()
        self._task, self._lost = asyncio.current_task(), False
        try:
            return await self._lead(node)
        except BaseException:
            self._task = None
            raise

    async def _lead(self, node: RunningNode) -> int:
        events = node.event_stream()
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            events.limit(None if deadline is None else max(0, deadline - time.monotonic()))
            try:
                await anext(events)
            except StopAsyncIteration:
                break
            except RaftTimeout:
                raise RaftTimeout(
                    f"{node.name} did not become the leader within {self._timeout:g} s", retryable=True
                ) from None
            status = node.status()
            if status.role is Role.LEADER:
                self._term = status.term
                # No await between this look and the watch: no loss falls between them.
                self._stream = node.event_stream(self._on_event)
                if sys.version_info >= (3, 11) and self._task is not None:
                    self._cancelling = self._task.cancelling()
                again = node.status()
                if again.role is Role.LEADER and again.term == self._term:
                    return self._term
                self._stream = None
        raise Closed(f"{node.name} was closed")

    def _on_event(self, event: Event | None) -> None:
        match event:
            case None:
                pass
            case RoleChanged(term=term, role=role) if role is Role.LEADER and term == self._term:
                return
            case LeaderChanged(term=term) if term <= self._term:
                # Our own election is announced after we have seen it; another leader has a higher term.
                return
            case RoleChanged(term=term) if term < self._term:
                return
            case RoleChanged() | LeaderChanged():
                pass
            case _:
                return
        if not self._lost and self._stream is not None and self._task is not None:
            self._lost = True
            self._task.cancel("leadership lost")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream = None
        task, self._task = self._task, None
        if not self._lost:
            return
        if sys.version_info >= (3, 11) and task is not None:
            # As asyncio.timeout does: another cancel beside ours goes on.
            if task.uncancel() > self._cancelling:
                return
        if kind is None or issubclass(kind, asyncio.CancelledError):
            raise LeadershipLost(
                f"no longer the leader of term {self._term}; what the body did last may or may not count"
            ) from error

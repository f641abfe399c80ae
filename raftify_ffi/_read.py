"""Linearizable reads: `await raft.read(fn)`, `await raft.read()`, `async with raft.read():`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from time import monotonic
from types import CoroutineType, TracebackType
from typing import Any, Generic, TypeVar

from ._applier import Applier
from ._call import Call
from ._context import inside_store, refuse_inside_store
from ._errors import RaftTimeout
from ._running import RunningNode
from ._timeouts import DEFAULT, DEFAULT_MS, Timeout, milliseconds, seconds

S = TypeVar("S")
T = TypeVar("T")


def run_reader(read: Callable[[Any], T], store: object) -> T:
    """`read(store)`, which must be done when it returns: what it awaited would see a later state."""
    value: Any = read(store)
    if isinstance(value, CoroutineType):
        value.close()
        raise TypeError("the function given to read() is async; it must take what it needs from the store in one go")
    return value  # type: ignore[no-any-return]


class Read(Call[T], Generic[S, T]):
    """One read, not yet started. Awaiting it, or entering it, waits until everything that was acknowledged anywhere before is applied
    here, at a moment when no method of the store is half way. It holds nothing after that: it promises freshness, not isolation."""

    __slots__ = ("_node", "_read", "_store", "_timeout")

    def __init__(
        self, node: Callable[[], RunningNode], store: S, read: Callable[[S], T] | None, timeout: Timeout
    ) -> None:
        self._node = node
        self._store = store
        self._read = read
        self._timeout = timeout

    def __await__(self) -> Generator[Any, Any, T]:
        if inside_store():
            refuse_inside_store("read()")
        node = self._node()
        timeout_ms = DEFAULT_MS if self._timeout is DEFAULT else milliseconds(self._timeout)
        if asyncio._get_running_loop() is not node.home:
            return (yield from self._elsewhere(node).__await__())
        begun = monotonic()
        yield from (node.readers or node.open_readers()).put(timeout_ms).__await__()
        applier = node.applier
        assert applier is not None
        if applier.busy:
            yield from self._quiet(node, applier, begun).__await__()
        return run_reader(self._read, self._store) if self._read is not None else None  # type: ignore[return-value]

    async def _quiet(self, node: RunningNode, applier: Applier, begun: float) -> None:
        """An `apply` is half way: what is left of the deadline is for that."""
        limit = seconds(self._timeout, node.request_timeout)
        if not await applier.quiet(None if limit is None else begun + limit - monotonic()):
            raise RaftTimeout(
                f"{node.name}: everything acknowledged is applied here, but an apply after that has not ended within {limit:g} s",
                retryable=True,
            )

    async def _run(self) -> T:
        return await self

    async def _elsewhere(self, node: RunningNode) -> T:
        """On another loop than the node's, where the store lives."""
        asyncio.get_running_loop()  # a thread without one is told so before anything is asked
        if self._read is None:
            raise RuntimeError(
                "raft.read() without a function, on another loop than the node's: the store lives there; use read(fn)"
            )
        at_home = Read(lambda: node, self._store, self._read, self._timeout)
        return await node.bridge.at_home(at_home._run())

    async def __aenter__(self) -> S:
        """Gives the store."""
        await self._run()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

"""Reads on their way down: those of one loop turn share one request; one that follows alone upon another goes at once.

What a request confirms is true for every read that was begun before it was handed down. Home loop only.
"""

from __future__ import annotations

import asyncio

from ._errors import RaftError, plain_copy
from ._library import lib
from ._pointer import Pointer
from ._waiters import TOKENS, Waiters


class _Shared:
    """The reads of one request, in the place of its future."""

    __slots__ = ("_futures",)

    def __init__(self, futures: list[asyncio.Future[None]]) -> None:
        self._futures = futures

    def done(self) -> bool:
        return False

    def set_result(self, _: bytes) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def set_exception(self, error: BaseException) -> None:
        for future in self._futures:
            if not future.done():
                future.set_exception(plain_copy(error) if isinstance(error, RaftError) else error)


class Readers:
    """Collects, and asks once per turn of the loop and timeout; at once for one that follows alone upon another."""

    __slots__ = ("_loop", "_node", "_one_by_one", "_waiters", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, waiters: Waiters, node: Pointer) -> None:
        self._loop = loop
        self._waiters = waiters
        self._node = node
        #: By timeout. If there are any, a flush is scheduled.
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        #: The last turn had one read and nothing else was pending: somebody reads one after the other.
        self._one_by_one = False

    def put(self, timeout_ms: int) -> asyncio.Future[None]:
        """Done when everything acknowledged before this call is applied here."""
        future: asyncio.Future[None] = self._loop.create_future()
        if self._waiting:
            self._waiting.setdefault(timeout_ms, []).append(future)
        elif self._one_by_one and not len(self._waiters):
            self._ask([future], timeout_ms)
        else:
            self._loop.call_soon(self._flush)
            self._waiting[timeout_ms] = [future]
        return future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._one_by_one = [len(futures) for futures in waiting.values()] == [1] and not len(self._waiters)
        for timeout_ms, futures in waiting.items():
            # What was cancelled needs no answer.
            left = [future for future in futures if not future.done()]
            if left:
                self._ask(left, timeout_ms)

    def _ask(self, futures: list[asyncio.Future[None]], timeout_ms: int) -> None:
        asked = _Shared(futures)
        pending = self._waiters.pending
        token = TOKENS.one()
        pending[token] = asked
        try:
            self._node.call(lib.raftify_read, token, timeout_ms)
        except BaseException as error:
            pending.pop(token, None)
            asked.set_exception(error)
            if not isinstance(error, Exception):
                raise

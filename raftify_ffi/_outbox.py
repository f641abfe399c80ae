"""Proposals on their way down: those of one loop turn go in one call; one that follows alone upon another, at once.

One outbox per node and calling loop. A proposal that is cancelled before it goes down was never sent; one that went at once may be committed.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, islice
from operator import itemgetter, methodcaller
from typing import Final

from ._errors import RaftError
from ._library import call, ffi, lib
from ._pointer import Pointer
from ._waiters import Batch, Waiters

#: Above this many bytes in one call, joining them would cost more than it saves.
_JOINED_BYTES: Final = 4 << 20
_CANCELLED: Final = methodcaller("cancelled")

assert ffi.sizeof("raftify_proposal") == 24  # three u64: token, data, len (`_library` has checked the layout)

#: (deadline in ms, future, command)
Item = tuple[int, asyncio.Future[bytes], bytes]


class Outbox:
    """Collects, and hands down once per turn of its loop; at once what follows alone upon another."""

    __slots__ = ("_create_future", "_loop", "_node", "_one_by_one", "_waiters", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, waiters: Waiters, node: Pointer) -> None:
        self._loop = loop
        self._create_future: Callable[[], asyncio.Future[bytes]] = loop.create_future
        self._waiters = waiters
        self._node = node
        #: In the order of the calls. If there are any, a flush is scheduled.
        self._waiting: list[Item] = []
        #: The last turn had one proposal and nothing else was pending: somebody proposes one after the other.
        self._one_by_one = False

    def put(self, command: bytes, timeout_ms: int) -> asyncio.Future[bytes]:
        future = self._create_future()
        if not self._waiting:
            if self._one_by_one and not len(self._waiters):
                self._submit_independent((future,), (command,), timeout_ms)
                return future
            self._loop.call_soon(self.flush)
        self._waiting.append((timeout_ms, future, command))
        return future

    def put_all(self, commands: Sequence[bytes], timeout_ms: int) -> Batch:
        """All are accepted or none; those that were put before go first. Raises if they are not accepted."""
        self.flush()
        batch = self._waiters.expect_batch(len(commands), self._loop.create_future())
        tokens = range(batch.first, batch.end)
        try:
            self._submit(tokens, commands, timeout_ms)
        except BaseException:
            self._waiters.forget(tokens)
            raise
        return batch

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        self._one_by_one = len(waiting) == 1 and not len(self._waiters)
        timeouts, futures, commands = zip(*waiting)
        if timeouts.count(timeouts[0]) == len(timeouts) and not any(map(_CANCELLED, futures)):
            self._submit_independent(futures, commands, timeouts[0])
            return
        # What was cancelled was never sent.
        sent = [item for item in waiting if not item[1].cancelled()]
        for timeout_ms, run in groupby(sent, itemgetter(0)):
            _, futures, commands = zip(*run)
            self._submit_independent(futures, commands, timeout_ms)

    def _submit_independent(
        self, futures: Sequence[asyncio.Future[bytes]], commands: Sequence[bytes], timeout_ms: int
    ) -> None:
        """Proposals of different callers: one that is refused does not take the others with it."""
        tokens = self._waiters.expect(futures, self._loop)
        try:
            self._submit(tokens, commands, timeout_ms)
        except RaftError as error:
            self._waiters.forget(tokens)
            if len(futures) > 1:
                # A batch is accepted as a whole: one that is too large, or the first that no longer fits, refuses all of it.
                for future, command in zip(futures, commands):
                    self._submit_independent((future,), (command,), timeout_ms)
            elif not futures[0].done():
                futures[0].set_exception(error)
        except BaseException as error:
            self._waiters.forget(tokens)
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def _submit(self, tokens: range, commands: Sequence[bytes], timeout_ms: int) -> None:
        count = len(commands)
        with self._node as node:
            if count == 1:
                call(lib.raftify_propose, node, tokens[0], commands[0], len(commands[0]), timeout_ms)
                return
            sizes = array("Q", map(len, commands))
            table = array("Q", bytes(24 * count))
            table[0::3] = array("Q", tokens)
            table[2::3] = sizes
            if sum(sizes) <= _JOINED_BYTES:
                data = ffi.from_buffer(b"".join(commands))
                start = int(ffi.cast("uintptr_t", data))
                table[1::3] = array("Q", islice(accumulate(sizes, initial=start), count))
            else:
                data = [ffi.from_buffer(command) for command in commands]
                table[1::3] = array("Q", [int(ffi.cast("uintptr_t", buffer)) for buffer in data])
            # `data` and `table` stay alive until the call has copied them.
            proposals = ffi.cast("raftify_proposal *", ffi.from_buffer(table))
            call(lib.raftify_propose_many, node, proposals, count, timeout_ms)

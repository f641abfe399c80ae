"""Proposals on their way down: those of one loop turn go in one call; one that follows alone upon another, at once.

One outbox per node and calling loop. What is cancelled before it goes down was never sent; what went at once may be committed.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, groupby
from operator import itemgetter, methodcaller
from typing import Final, cast

from ._errors import RaftError
from ._library import ffi, lib
from ._pointer import Pointer
from ._waiters import TOKENS, Batch, Waiters

#: Above this many bytes in one call, joining them would cost more than it saves.
_JOINED_BYTES: Final = 4 << 20
_CANCELLED: Final = methodcaller("cancelled")

assert ffi.sizeof("raftify_proposal") == 24  # three u64: token, data, len (`_library` has checked the layout)

#: (deadline in ms, future, command), or for a `propose_many` (deadline in ms, batch, its commands)
Item = tuple[int, "asyncio.Future[bytes] | Batch", "bytes | Sequence[bytes]"]
#: What is accepted as a whole: a batch, or proposals of different callers; with the commands.
Part = tuple["Batch | Sequence[asyncio.Future[bytes]]", "Sequence[bytes]"]


class Outbox:
    """Collects, and hands down once per turn of its loop; at once what follows alone upon another."""

    __slots__ = ("_batches", "_create_future", "_futures", "_loop", "_node", "_one_by_one", "_waiters", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, waiters: Waiters, node: Pointer) -> None:
        self._loop = loop
        self._create_future: Callable[[], asyncio.Future[bytes]] = loop.create_future
        self._waiters = waiters
        #: This loop's, by token.
        self._futures = waiters.of(loop)
        self._node = node
        #: In the order of the calls. If there are any, a flush is scheduled.
        self._waiting: list[Item] = []
        #: There are batches among them.
        self._batches = False
        #: The last turn had one call and nothing else was pending: somebody proposes one after the other.
        self._one_by_one = False

    def put(self, command: bytes, timeout_ms: int) -> asyncio.Future[bytes]:
        future = self._create_future()
        if not self._waiting:
            waiters = self._waiters
            if self._one_by_one and not (waiters.pending or waiters.batches or waiters.foreign):
                self._submit_one(future, command, timeout_ms)
                return future
            self._loop.call_soon(self.flush)
        self._waiting.append((timeout_ms, future, command))
        return future

    def put_all(self, commands: Sequence[bytes], timeout_ms: int) -> Batch:
        """All are accepted or none; if they are not, the batch's future says why."""
        batch = Batch(len(commands), self._loop.create_future())
        if not self._waiting:
            if self._one_by_one and not len(self._waiters):
                self._submit_part((batch, commands), timeout_ms)
                return batch
            self._loop.call_soon(self.flush)
        self._waiting.append((timeout_ms, batch, commands))
        self._batches = True
        return batch

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        batches, self._batches = self._batches, False
        if not waiting:
            return
        self._one_by_one = len(waiting) == 1 and not len(self._waiters)
        if not batches:
            timeouts, futures, commands = zip(*waiting)
            if timeouts.count(timeouts[0]) == len(timeouts) and not any(map(_CANCELLED, futures)):
                self._submit_part((futures, commands), timeouts[0])
                return
        # What was cancelled was never sent.
        sent = [item for item in waiting if not item[1].cancelled()]
        for timeout_ms, run in groupby(sent, itemgetter(0)):
            self._submit_parts(_parts(run), timeout_ms)

    def _submit_parts(self, parts: list[Part], timeout_ms: int) -> None:
        """One part that is refused does not take the others with it."""
        if len(parts) > 1:
            commands = list(chain.from_iterable(commands for _, commands in parts))
            tokens = TOKENS.take(len(commands))
            at = tokens.start
            for waiter, its in parts:
                self._waiters.expect(waiter, range(at, at + len(its)), self._loop)
                at += len(its)
            try:
                self._submit(tokens, commands, timeout_ms)
                return
            except RaftError:
                # Together they are accepted as a whole; now each by itself.
                self._waiters.forget(tokens)
            except BaseException as error:
                self._waiters.forget(tokens)
                for waiter, _ in parts:
                    _fail(waiter, error)
                if isinstance(error, Exception):
                    return
                raise
        for part in parts:
            self._submit_part(part, timeout_ms)

    def _submit_part(self, part: Part, timeout_ms: int) -> None:
        waiter, commands = part
        if not isinstance(waiter, Batch) and len(commands) == 1:
            self._submit_one(waiter[0], commands[0], timeout_ms)
            return
        tokens = TOKENS.take(len(commands))
        self._waiters.expect(waiter, tokens, self._loop)
        try:
            self._submit(tokens, commands, timeout_ms)
        except RaftError as error:
            self._waiters.forget(tokens)
            if isinstance(waiter, Batch):
                _fail(waiter, error)
            else:
                # Of different callers: one that is too large, or the first that no longer fits, refuses all of them.
                for future, command in zip(waiter, commands):
                    self._submit_one(future, command, timeout_ms)
        except BaseException as error:
            self._waiters.forget(tokens)
            _fail(waiter, error)
            if not isinstance(error, Exception):
                raise

    def _submit_one(self, future: asyncio.Future[bytes], command: bytes, timeout_ms: int) -> None:
        token = TOKENS.one()
        self._futures[token] = future
        try:
            self._node.call(lib.raftify_propose, token, command, len(command), timeout_ms)
        except BaseException as error:
            self._futures.pop(token, None)
            _fail((future,), error)
            if not isinstance(error, Exception):
                raise

    def _submit(self, tokens: range, commands: Sequence[bytes], timeout_ms: int) -> None:
        count = len(commands)
        sizes = array("Q", map(len, commands))
        total = sum(sizes)
        # What is handed over stays alive until the call has copied it.
        if total <= _JOINED_BYTES:
            lens = ffi.cast("uint64_t *", ffi.from_buffer(sizes))
            self._node.call(lib.raftify_propose_row, tokens[0], b"".join(commands), total, lens, count, timeout_ms)
            return
        table = array("Q", bytes(24 * count))
        table[0::3] = array("Q", tokens)
        table[2::3] = sizes
        data = [ffi.from_buffer(command) for command in commands]
        table[1::3] = array("Q", [int(ffi.cast("uintptr_t", buffer)) for buffer in data])
        proposals = ffi.cast("raftify_proposal *", ffi.from_buffer(table))
        self._node.call(lib.raftify_propose_many, proposals, count, timeout_ms)


def _parts(items: Iterable[Item]) -> list[Part]:
    """In the same order; proposals that follow on each other are one part."""
    parts: list[Part] = []
    for one, run in groupby(items, lambda item: type(item[1]) is Batch):
        if one:
            parts += [(cast("Batch", batch), cast("Sequence[bytes]", commands)) for _, batch, commands in run]
        else:
            _, futures, commands = zip(*run)
            parts.append((futures, commands))
    return parts


def _fail(waiter: Batch | Sequence[asyncio.Future[bytes]], error: BaseException) -> None:
    for future in (waiter.future,) if isinstance(waiter, Batch) else waiter:
        if not future.done():
            future.set_exception(error)

"""Who waits for which token: the futures of one bridge's requests, and the batches of `propose_many`.

Invariants:
- a token stays here until its completion has come, or its result from the applier on the home loop, also when its future was
  cancelled: every accepted request completes once; a batch stays until its last token has;
- outcomes are given on the home loop's thread only; a future of another loop hears of it there (`call_soon_threadsafe`);
- single operations on the dictionaries are atomic: other loops' threads add to them and take back what was refused; the batches have
  a lock, taken once a batch and not for each of its commands.
"""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from typing import Any

Future = asyncio.Future[Any]
#: For a future of another loop: its result, or its failure.
Resolved = tuple[Future, Any, BaseException | None]


class Tokens:
    """Numbers for what is pending, for the whole process, in rows of any length. 0 is the library's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 1

    def take(self, count: int) -> range:
        with self._lock:
            first = self._next
            self._next = end = first + count
        return range(first, end)

    def one(self) -> int:
        with self._lock:
            token = self._next
            self._next = token + 1
        return token

    def after_fork_in_child(self) -> None:
        """A thread that does not exist here may hold the lock."""
        self._lock = threading.Lock()


TOKENS = Tokens()


class Batch:
    """The commands of one `propose_many`: tokens in a row, once they are on their way down; one future for all of them."""

    __slots__ = ("cancelled", "end", "failed", "first", "future", "left", "outcomes")

    def __init__(self, count: int, future: asyncio.Future[list[Any]]) -> None:
        self.first = 0
        #: After the last token.
        self.end = 0
        self.future = future
        #: As a future has it.
        self.cancelled = future.cancelled
        #: What each came to: the result, or the exception; None: not known yet.
        self.outcomes: list[Any] = [None] * count
        self.left = count
        self.failed = False

    def settle(self, token: int, outcomes: Sequence[Any]) -> bool:
        """The outcomes from that token on. True: it was the last that was waited for. What had an outcome keeps it."""
        at = token - self.first
        end = at + len(outcomes)
        known = self.outcomes
        open_ones = known[at:end].count(None)
        if open_ones == len(outcomes):
            known[at:end] = outcomes
        else:
            for position, outcome in enumerate(outcomes, at):
                if known[position] is None:
                    known[position] = outcome
        self.left -= open_ones
        return self.left == 0 and open_ones > 0


class Waiters:
    """Those of one bridge."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        #: Futures of the home loop, or what stands for several.
        self.pending: dict[int, Any] = {}
        #: Futures of other loops.
        self.foreign: dict[int, Future] = {}
        #: Those of any loop that wait for something still, by their first token.
        self.batches: dict[int, Batch] = {}
        #: Their first tokens in order, to find the batch of any token; with `batches` under the lock.
        self._firsts: list[int] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.pending) + len(self.foreign) + len(self.batches)

    # ---- before a request is handed down, and if it is not accepted ------------------------------------------------------------------

    def of(self, loop: asyncio.AbstractEventLoop) -> dict[int, Any]:
        """Where the futures of that loop are kept by token, as long as this object lives."""
        return self.pending if loop is self._loop else self.foreign

    def expect(self, waiter: Batch | Sequence[Future], tokens: range, loop: asyncio.AbstractEventLoop) -> None:
        """These tokens are a batch's, or one each of futures of that loop."""
        if isinstance(waiter, Batch):
            waiter.first, waiter.end = tokens.start, tokens.stop
            with self._lock:
                self.batches[waiter.first] = waiter
                insort(self._firsts, waiter.first)
            return
        self.of(loop).update(zip(tokens, waiter))

    def forget(self, tokens: range) -> None:
        """They were not handed down: nothing will come for them."""
        for token in tokens:
            self.pending.pop(token, None)
            self.foreign.pop(token, None)
        with self._lock:
            low, high = bisect_left(self._firsts, tokens.start), bisect_left(self._firsts, tokens.stop)
            for first in self._firsts[low:high]:
                del self.batches[first]
            del self._firsts[low:high]

    # ---- outcomes, on the home loop --------------------------------------------------------------------------------------------------

    def batch_of(self, token: int) -> Batch | None:
        """The batch that waits for this token, if one does."""
        batch = self.batches.get(token)
        if batch is None:
            with self._lock:
                at = bisect_right(self._firsts, token)
                batch = self.batches[self._firsts[at - 1]] if at else None
        return batch if batch is not None and token < batch.end else None

    def tell_foreign(self, token: int, result: Any) -> None:
        """The result of a token that is no batch's and not pending; one that had failed before has no future any more."""
        future = self.foreign.pop(token, None)
        if future is not None:
            in_loop(future.get_loop(), [(future, result, None)])

    def settle(self, batch: Batch, token: int, outcomes: Sequence[Any]) -> None:
        if not batch.settle(token, outcomes):
            return
        with self._lock:
            if self.batches.pop(batch.first, None) is not None:
                del self._firsts[bisect_left(self._firsts, batch.first)]
        future = batch.future
        home = future.get_loop()
        if home is not self._loop:
            in_loop(home, [(future, batch.outcomes, None)])
        elif not self._loop.is_closed() and not future.done():
            future.set_result(batch.outcomes)

    def fail(self, batch: Batch, token: int, error: BaseException) -> None:
        batch.failed = True
        self.settle(batch, token, (error,))

    def end(self, error: Callable[[], BaseException]) -> None:
        """Nothing more will come."""
        for token in list(self.foreign):
            # Another thread may take back what was refused.
            if (future := self.foreign.pop(token, None)) is not None:
                in_loop(future.get_loop(), [(future, None, error())])
        while self.pending:
            _, waiter = self.pending.popitem()
            if not self._loop.is_closed() and not waiter.done():
                waiter.set_exception(error())
        for batch in list(self.batches.values()):
            batch.failed = True
            self.settle(batch, batch.first, [error() for _ in batch.outcomes])


class Run:
    """Results of commands of one `propose_many` that follow one another, told in one go: at the latest with the last of them."""

    __slots__ = ("_batch", "_first", "_results", "_waiters")

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._batch: Batch | None = None
        self._first = 0
        self._results: list[bytes] = []

    def begin(self, batch: Batch, token: int, result: bytes) -> Callable[[bytes], None]:
        """Tells the run before. What it returns takes the results of the tokens behind that one, in order."""
        self.tell()
        self._batch, self._first, self._results = batch, token, [result]
        return self._results.append

    def tell(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            self._waiters.settle(batch, self._first, self._results)


def in_loop(loop: asyncio.AbstractEventLoop, resolved: list[Resolved]) -> None:
    try:
        loop.call_soon_threadsafe(_resolve, resolved)
    except RuntimeError:
        pass  # that loop has closed: nobody waits any more


def _resolve(resolved: list[Resolved]) -> None:
    for future, data, error in resolved:
        if future.done():
            continue
        if error is None:
            future.set_result(data)
        else:
            future.set_exception(error)

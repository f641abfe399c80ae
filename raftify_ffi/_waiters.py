"""Who waits for which token: the futures of one bridge's requests, and the batches of `propose_many`.

Invariants:
- a token stays here until its completion has come, or its result from the applier on the home loop, also when its future was
  cancelled: every accepted request completes once;
- outcomes are given on the home loop's thread only; a future of another loop hears of it there (`call_soon_threadsafe`);
- single operations on the dictionaries are atomic: other loops' threads add to them and take back what was refused.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
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
        #: Futures of the home loop (or what stands for several), and each `Batch`, of any loop.
        self.pending: dict[int, Any] = {}
        #: Futures of other loops.
        self.foreign: dict[int, Future] = {}

    def __len__(self) -> int:
        return len(self.pending) + len(self.foreign)

    # ---- before a request is handed down, and if it is not accepted ------------------------------------------------------------------

    def expect(self, waiter: Batch | Sequence[Any], tokens: range, loop: asyncio.AbstractEventLoop) -> None:
        """These tokens are a batch's, or one each of futures of that loop; on the home loop, of whatever takes an outcome as a
        future does."""
        if isinstance(waiter, Batch):
            waiter.first, waiter.end = tokens.start, tokens.stop
            self.pending.update(dict.fromkeys(tokens, waiter))
            return
        into = self.pending if loop is self._loop else self.foreign
        into.update(zip(tokens, waiter))

    def forget(self, tokens: range) -> None:
        """They were not handed down: nothing will come for them."""
        for token in tokens:
            self.pending.pop(token, None)
            self.foreign.pop(token, None)

    # ---- outcomes, on the home loop --------------------------------------------------------------------------------------------------

    def tell(self, token: int, result: Any) -> None:
        """The result of a token whose waiter may be of any kind; one that had failed before has none any more."""
        waiter = self.pending.pop(token, None)
        if waiter is None:
            waiter = self.foreign.pop(token, None)
            if waiter is not None:
                in_loop(waiter.get_loop(), [(waiter, result, None)])
        elif type(waiter) is Batch:
            self.settle(waiter, token, (result,))
        elif not waiter.done():
            waiter.set_result(result)

    def tell_run(self, batch: Batch, token: int, results: Sequence[Any]) -> None:
        """Results of a batch's tokens in a row, which may still be pending here."""
        deque(map(self.pending.pop, range(token, token + len(results)), itertools.repeat(None)), 0)
        self.settle(batch, token, results)

    def settle(self, batch: Batch, token: int, outcomes: Sequence[Any]) -> None:
        if not batch.settle(token, outcomes):
            return
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
        pending, self.pending = self.pending, {}
        foreign, self.foreign = self.foreign, {}
        for future in foreign.values():
            in_loop(future.get_loop(), [(future, None, error())])
        for token, waiter in pending.items():
            if type(waiter) is Batch:
                self.fail(waiter, token, error())
            elif not self._loop.is_closed() and not waiter.done():
                waiter.set_exception(error())


class Run:
    """Results of commands of one `propose_many` that follow one another, told in one go: at the latest with the last of them."""

    __slots__ = ("_batch", "_first", "_results", "_waiters")

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._batch: Batch | None = None
        self._first = 0
        self._results: list[bytes] = []

    def begin(self, batch: Batch, token: int) -> Callable[[bytes], None]:
        """Tells the run before. What it returns takes the result of that token, and then those of the tokens behind it, in order."""
        self.tell()
        self._batch, self._first, self._results = batch, token, []
        return self._results.append

    def tell(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            self._waiters.tell_run(batch, self._first, self._results)


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

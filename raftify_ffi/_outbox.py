"""Proposals on their way down: those of one loop turn go in one call.

One outbox per node and calling loop. A proposal that is cancelled before the turn ends was never sent.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from ._bridge import Bridge
from ._errors import RaftError
from ._library import call, ffi, lib
from ._pointer import Pointer

#: Above this many bytes in one call, joining them would cost more than it saves.
_JOINED_BYTES: Final = 4 << 20

Item = tuple[int, bytes]
assert ffi.sizeof("raftify_proposal") == 24  # three u64: token, data, len (`_library` has checked the layout)


class Outbox:
    """Collects, and hands down once per turn of its loop."""

    __slots__ = ("_bridge", "_loop", "_node", "_scheduled", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, bridge: Bridge, node: Pointer) -> None:
        self._loop = loop
        self._bridge = bridge
        self._node = node
        #: (timeout in ms, token, future, command), in the order of the calls.
        self._waiting: list[tuple[int, int, asyncio.Future[bytes], bytes]] = []
        self._scheduled = False

    def put(self, command: bytes, timeout_ms: int) -> asyncio.Future[bytes]:
        token, future = self._bridge.expect()
        self._waiting.append((timeout_ms, token, future, command))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)
        return future

    def put_all(self, commands: Sequence[bytes], timeout_ms: int) -> list[asyncio.Future[bytes]]:
        """All are accepted or none; those that were put before go first. Raises if they are not accepted."""
        self.flush()
        if not commands:
            return []
        pairs = [self._bridge.expect() for _ in commands]
        try:
            self._submit([(token, command) for (token, _), command in zip(pairs, commands)], timeout_ms)
        except BaseException:
            for token, _ in pairs:
                self._bridge.forget(token)
            raise
        return [future for _, future in pairs]

    def flush(self) -> None:
        self._scheduled = False
        waiting, self._waiting = self._waiting, []
        run: list[Item] = []
        run_timeout = 0
        for timeout_ms, token, future, command in waiting:
            if future.cancelled():
                self._bridge.forget(token)  # never sent: no completion will come
                continue
            if run and timeout_ms != run_timeout:
                self._submit_independent(run, run_timeout)
                run = []
            run_timeout = timeout_ms
            run.append((token, command))
        if run:
            self._submit_independent(run, run_timeout)

    def _submit_independent(self, items: list[Item], timeout_ms: int) -> None:
        """Proposals of different callers: one that is refused does not take the others with it."""
        try:
            self._submit(items, timeout_ms)
        except RaftError as error:
            if len(items) == 1:
                self._bridge.refuse(items[0][0], error)
                return
            # A batch is accepted as a whole: one that is too large, or the first that no longer fits, refuses all of it.
            for item in items:
                self._submit_independent([item], timeout_ms)

    def _submit(self, items: list[Item], timeout_ms: int) -> None:
        with self._node as node:
            if len(items) == 1:
                token, command = items[0]
                call(lib.raftify_propose, node, token, command, len(command), timeout_ms)
                return
            sizes = array("Q", [len(command) for _, command in items])
            table = array("Q", bytes(24 * len(items)))
            table[0::3] = array("Q", [token for token, _ in items])
            table[2::3] = sizes
            if sum(sizes) <= _JOINED_BYTES:
                data = ffi.from_buffer(b"".join([command for _, command in items]))
                start = int(ffi.cast("uintptr_t", data))
                table[1::3] = array("Q", list(accumulate(sizes[:-1], initial=start)))
            else:
                data = [ffi.from_buffer(command) for _, command in items]
                table[1::3] = array("Q", [int(ffi.cast("uintptr_t", buffer)) for buffer in data])
            # `data` and `table` stay alive until the call has copied them.
            proposals = ffi.cast("raftify_proposal *", ffi.from_buffer(table))
            call(lib.raftify_propose_many, node, proposals, len(items), timeout_ms)

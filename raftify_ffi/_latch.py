"""A value that is set once and waited for by tasks of any loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Latch(Generic[T]):
    """`set` may be called from any thread; the first call counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: list[T] = []
        self._waiters: list[asyncio.Future[None]] = []

    def is_set(self) -> bool:
        return bool(self._value)

    def set(self, value: T) -> None:
        with self._lock:
            if self._value:
                return
            self._value.append(value)
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            try:
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)
            except RuntimeError:
                pass  # that loop has closed

    async def wait(self) -> T:
        with self._lock:
            if self._value:
                return self._value[0]
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
        try:
            await waiter
        finally:
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self._value[0]


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)

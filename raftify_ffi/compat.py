"""The classes of later releases (0.1.67, 0.1.78) where their names mean something else than here:

    from raftify_ffi.compat import Raft, AbstractStateMachine, AbstractLogEntry, AbstractLogger, Slogger, Severity

`run()` is over when the node has ended. Everything else is as in `raftify_ffi`.
"""

from __future__ import annotations

import abc
import asyncio
import enum
import logging
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from ._call import Call
from ._context import refuse_inside_store
from ._node import Raft as _Raft
from ._ticket import ClusterJoinTicket
from ._timeouts import DEFAULT, Timeout, seconds

__all__ = ["AbstractLogEntry", "AbstractLogger", "AbstractStateMachine", "Raft", "Severity", "Slogger"]

S = TypeVar("S")


class Raft(_Raft[S]):
    """`run()` starts the node when it is called, also where it is awaited later:

        tasks.append(raft.run())
        await raft.join([ticket])
        await asyncio.gather(*tasks)

    It is over when the node has ended, raising what ended it. Cancelled, it closes the node."""

    _starting: asyncio.Task[None] | None = None

    def run(self, *, timeout: float | None = None) -> Call[None]:
        """`timeout` is for the start."""
        if self._running is None and (self._starting is None or self._starting.done()):
            self._starting = asyncio.get_running_loop().create_task(self._start(timeout))
        return _Run(asyncio.ensure_future(self._through(self._starting)))

    async def _through(self, starting: asyncio.Task[None] | None) -> None:
        if starting is not None:
            await starting
        await self.serve_forever()

    async def join(
        self, ticket: ClusterJoinTicket | Sequence[ClusterJoinTicket] | None = None, *, timeout: Timeout = DEFAULT
    ) -> None:
        if self._starting is not None and not self._starting.done():
            refuse_inside_store("join()")
            # If it fails, `run()` says so; a start that takes too long is not waited for.
            limit = seconds(timeout, self.config.conf_change_request_timeout)
            await asyncio.wait([self._starting], timeout=limit)
        await super().join(ticket, timeout=timeout)


class _Run(Call[None]):
    """A task that has begun, where a coroutine is wanted."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, Any, None]:
        return self._task.__await__()

    def throw(self, *raised: Any) -> Any:
        if self._task.cancel():
            # Also as the first thing that happens to it: over it is when the node is.
            return self.send(None)
        return super().throw(*raised)


class AbstractLogEntry(abc.ABC):
    """A command that encodes itself."""

    @abc.abstractmethod
    def encode(self) -> bytes: ...

    @classmethod
    @abc.abstractmethod
    def decode(cls, packed: bytes) -> AbstractLogEntry: ...


class AbstractStateMachine(abc.ABC):
    """A store; the base class is not needed here, and neither are `encode` and `decode`."""

    @abc.abstractmethod
    async def apply(self, message: bytes) -> bytes: ...

    @abc.abstractmethod
    async def snapshot(self) -> bytes: ...

    @abc.abstractmethod
    async def restore(self, snapshot: bytes) -> None: ...

    def encode(self) -> bytes:
        raise NotImplementedError

    @classmethod
    def decode(cls, packed: bytes) -> AbstractStateMachine:
        raise NotImplementedError


class Severity(enum.IntEnum):
    """Levels, as `logging` numbers them."""

    TRACE = 5
    DEBUG = logging.DEBUG
    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR
    CRITICAL = logging.CRITICAL


class AbstractLogger(abc.ABC):
    """The logger interface of later releases. Here, log records go to `logging` (`raftify.raft`, `.storage`, `.transport`)."""

    @abc.abstractmethod
    def info(self, message: str) -> None: ...

    @abc.abstractmethod
    def debug(self, message: str) -> None: ...

    @abc.abstractmethod
    def trace(self, message: str) -> None: ...

    @abc.abstractmethod
    def error(self, message: str) -> None: ...

    @abc.abstractmethod
    def warn(self, message: str) -> None: ...

    @abc.abstractmethod
    def fatal(self, message: str) -> None: ...


class Slogger(AbstractLogger):
    """Writes to a `logging` logger."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger or logging.getLogger("raftify")

    @classmethod
    def default(cls) -> Slogger:
        return cls()

    @classmethod
    def new_file_logger(
        cls,
        log_path: str,
        level: Severity | int = Severity.INFO,
        chan_size: int | None = None,
        rotate_size: int | None = None,
        rotate_keep: int | None = None,
    ) -> Slogger:
        """Adds a file to the `raftify` loggers, which hand on that level from now on. Nothing is rotated: for that give `logging` a handler.
        0.1.67 had no level: what is no `Severity` there is its `chan_size`."""
        lowest = level if isinstance(level, Severity) else Severity.INFO
        handler = logging.FileHandler(log_path)
        handler.setLevel(lowest)
        logger = logging.getLogger("raftify")
        logger.setLevel(min(lowest, logger.getEffectiveLevel()))
        logger.addHandler(handler)
        return cls(logger)

    def info(self, message: str) -> None:
        self.logger.info(message)

    def debug(self, message: str) -> None:
        self.logger.debug(message)

    def trace(self, message: str) -> None:
        self.logger.log(Severity.TRACE, message)

    def error(self, message: str) -> None:
        self.logger.error(message)

    def warn(self, message: str) -> None:
        self.logger.warning(message)

    def fatal(self, message: str) -> None:
        self.logger.critical(message)

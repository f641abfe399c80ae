"""The classes of later releases (0.1.67, 0.1.78) where their names mean something else than here:

    from raftify_ffi.compat import Raft, AbstractStateMachine, AbstractLogEntry, AbstractLogger, Slogger, Severity

`run()` blocks until the node has ended. Everything else is as in `raftify_ffi`.
"""

from __future__ import annotations

import abc
import enum
import logging
from typing import TypeVar

from ._node import Raft as _Raft

__all__ = ["AbstractLogEntry", "AbstractLogger", "AbstractStateMachine", "Raft", "Severity", "Slogger"]

S = TypeVar("S")


class Raft(_Raft[S]):
    """`run()` starts the node and returns when it has ended, raising what ended it. Cancelled, it closes the node."""

    async def run(self, *, timeout: float | None = None) -> None:
        """`timeout` is for the start."""
        if self._running is None:
            await self._start(timeout)
        await self.serve_forever()


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

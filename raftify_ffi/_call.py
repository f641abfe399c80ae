"""What begins when it is awaited and is taken wherever a coroutine is, as by `create_task`: `raft.read(…)`, `raft.members.add(…)`."""

from __future__ import annotations

import abc
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Call(Coroutine[Any, Any, T]):
    """Each `await` begins it anew; a task runs it once."""

    __slots__ = ("_steps",)
    #: Of the task; there is none before its first step.
    _steps: Generator[Any, Any, T]

    @abc.abstractmethod
    def __await__(self) -> Generator[Any, Any, T]: ...

    def _begun(self) -> Generator[Any, Any, T]:
        if not hasattr(self, "_steps"):
            self._steps = self.__await__()
        return self._steps

    def send(self, value: Any) -> Any:
        return self._begun().send(value)

    def throw(self, *raised: Any) -> Any:
        return self._begun().throw(*raised)

    def close(self) -> None:
        self._begun().close()

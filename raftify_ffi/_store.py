"""The user's state machine: what it must offer, and what is found out about it before a node starts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ._errors import InvalidArgument, InvalidConfig

Buffer = bytes | bytearray | memoryview
#: What `apply` returns.
Answer = Buffer | Awaitable[Buffer | None] | None
#: What `snapshot` returns. An iterable runs over a copy of the state and is read after `snapshot` has returned.
SnapshotData = Buffer | Iterable[Buffer] | AsyncIterable[Buffer]


class Applied(NamedTuple):
    """Where a command stands in the log. Given to an `apply` with a second positional parameter."""

    index: int  # type: ignore[assignment]  # tuple.index is not needed here
    term: int
    #: The leader's clock when it took the command, seconds since 1970; never goes back in the log.
    time: float


@runtime_checkable
class StateMachine(Protocol):
    """For type checkers; no base class is needed. Each method may be plain or `async`.

    `apply` is called in log order, never two at a time, and must come to the same on every node. It may take a second positional
    parameter, an `Applied`. What it returns (bytes, a buffer, or None for `b""`) is what `propose` returns.
    `snapshot` may return an iterator, plain or async, over a copy of the state; what has a `close` or `aclose`, as a generator, is closed
    when the snapshot is whole or has failed, and before `close()` of the node returns.
    Optional: `restore_chunks(iterator)` in place of `restore`; `applied_index()` for a store that is durable by itself: the index
    of the newest command whose effect is on its disk (0: none), asked once at each start. It then gets what comes after that, and a
    `restore` only if the log begins later. It keeps that index, `Applied.index`, in the same transaction as what the command did,
    and within its snapshots.
    """

    @property
    def apply(self) -> Callable[[bytes], Answer] | Callable[[bytes, Applied], Answer]: ...
    def snapshot(self) -> SnapshotData | Awaitable[SnapshotData]: ...
    def restore(self, snapshot: bytes, /) -> Awaitable[None] | None: ...


class StoreMethods(NamedTuple):
    """A store's methods, bound once."""

    apply: Callable[..., Any]
    #: `apply` also takes an `Applied`.
    wants_applied: bool
    snapshot: Callable[[], Any]
    restore: Callable[[bytes], Any]
    restore_chunks: Callable[[Any], Any] | None
    applied_index: Callable[[], Any] | None


def _method(store: object, name: str, needed: bool = True) -> Callable[..., Any] | None:
    method = getattr(store, name, None)
    if method is None and not needed:
        return None
    if not callable(method):
        raise InvalidConfig(
            f"store: {type(store).__name__} has no method {name}(); a store needs apply(bytes), snapshot() and restore(bytes)",
            field="store",
            value=store,
        )
    return method  # type: ignore[no-any-return]


def _function(method: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind bound methods, partials, wrappers and callable objects."""
    while True:
        if isinstance(method, functools.partial):
            method = method.func
        elif hasattr(method, "__wrapped__"):
            method = method.__wrapped__
        elif inspect.ismethod(method):
            method = method.__func__
        elif not inspect.isroutine(method) and not inspect.isclass(method):
            return type(method).__call__
        else:
            return method


def takes_applied(apply: Callable[..., Any]) -> bool:
    """Whether `apply` has a second positional parameter. `*args` is not one: a wrapper would get what it does not know."""
    try:
        parameters = inspect.signature(apply).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 2


def _check_call(store: object, name: str, method: Callable[..., Any] | None, arguments: tuple[str, ...]) -> None:
    """Before the first command: one that nobody can apply would be in the log for good."""
    if method is None:
        return
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return  # of C, which does not say
    try:
        signature.bind(*arguments)
    except TypeError as error:
        kind = type(store).__name__
        raise InvalidConfig(
            f"store: {kind}.{name}{signature} is called as {name}({', '.join(arguments)}): {error}; change its parameters",
            field="store",
            value=store,
        ) from None


def inspect_store(store: object) -> StoreMethods:
    """The store's methods, or `InvalidConfig` saying what is missing or cannot work."""
    if inspect.isclass(store):
        raise InvalidConfig(
            f"store: {store.__name__} is a class; give an object: {store.__name__}()", field="store", value=store
        )
    apply = _method(store, "apply")
    snapshot = _method(store, "snapshot")
    restore = _method(store, "restore")
    assert apply is not None and snapshot is not None and restore is not None
    wants_applied = takes_applied(apply)
    restore_chunks = _method(store, "restore_chunks", needed=False)
    applied_index = _method(store, "applied_index", needed=False)
    for name, method, arguments in (
        ("apply", apply, ("command", "applied") if wants_applied else ("command",)),
        ("snapshot", snapshot, ()),
        ("restore", restore, ("snapshot",)),
        ("restore_chunks", restore_chunks, ("chunks",)),
        ("applied_index", applied_index, ()),
    ):
        _check_call(store, name, method, arguments)
    body = _function(snapshot)
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        raise InvalidConfig(
            f"store: {type(store).__name__}.snapshot is a generator function: its body would read the state later, while it "
            "changes; take a copy first and return an iterator over the copy",
            field="store",
            value=store,
        )
    return StoreMethods(
        apply=apply,
        wants_applied=wants_applied,
        snapshot=snapshot,
        restore=restore,
        restore_chunks=restore_chunks,
        applied_index=applied_index,
    )


def contiguous_bytes(value: object) -> bytes | None:
    """The bytes of any contiguous buffer, copied unless they are `bytes` already; None for what is no buffer."""
    if isinstance(value, bytes):
        return value
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    with view:
        return view.tobytes() if view.contiguous else None


def command_bytes(value: object) -> bytes:
    """A command as it goes into the log, or `InvalidArgument`."""
    command = contiguous_bytes(value)
    if command is None:
        what = "one with gaps" if isinstance(value, memoryview) else type(value).__name__
        raise InvalidArgument(f"a command is bytes or a contiguous buffer, not {what}; encode it first")
    return command

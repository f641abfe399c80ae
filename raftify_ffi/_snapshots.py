"""The bytes of snapshots on their way between a store and the library's files.

Disk work happens on threads; the store's iterators run on the home loop, where the store lives.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Final

from ._library import call, ffi, lib
from ._pointer import Pointer
from ._store import contiguous_bytes
from ._threads import in_thread

CHUNK: Final = 1 << 20

Chunks = bytes | Iterator[Any] | AsyncIterator[Any]


def captured(data: object) -> Chunks:
    """What `snapshot` returned, fixed: a buffer that may change is copied now, an iterator is left for later."""
    buffer = contiguous_bytes(data)
    if buffer is not None:
        return buffer
    if isinstance(data, AsyncIterable):
        return data.__aiter__()
    if isinstance(data, Iterable) and not isinstance(data, (str, dict)):
        return iter(data)
    raise TypeError(
        f"snapshot returned {type(data).__name__}; it may return bytes, a contiguous buffer, or an iterator of those"
    )


def _chunk(part: object) -> bytes:
    data = contiguous_bytes(part)
    if data is None:
        raise TypeError(f"the iterator of snapshot gave {type(part).__name__}; it may give bytes or contiguous buffers")
    return data


def _write_now(node: Pointer, request: int, data: bytes) -> None:
    # No views of `data`: the traceback of a chunk that cannot be written would hold one that is exported, and a collector that finds such a
    # traceback in a cycle ends the process (seen with CPython 3.10.13, 3.11.7 and 3.12.1; not with 3.13.0).
    start_of = ffi.from_buffer("uint8_t[]", data)
    for start in range(0, len(data), CHUNK):
        with node as raw:
            call(lib.raftify_snapshot_chunk, raw, request, start_of + start, min(CHUNK, len(data) - start))


async def close(chunks: Chunks) -> None:
    """What an iterator of the store holds is let go of now, and not when the garbage collector comes by."""
    if isinstance(chunks, AsyncIterator):
        aclose = getattr(chunks, "aclose", None)
        if aclose is not None:
            await aclose()
    elif not isinstance(chunks, bytes):
        end = getattr(chunks, "close", None)
        if end is not None:
            end()


async def write(node: Pointer, request: int, chunks: Chunks) -> None:
    """Hands everything down, in order. Small pieces are gathered: a store may yield one record at a time."""
    if isinstance(chunks, bytes):
        whole = chunks
        await in_thread(lambda: _write_now(node, request, whole))
        return
    gathered = bytearray()

    async def pass_on(least: int) -> None:
        nonlocal gathered
        if len(gathered) >= least and gathered:
            data, gathered = bytes(gathered), bytearray()
            await in_thread(lambda: _write_now(node, request, data))

    if isinstance(chunks, AsyncIterator):
        async for part in chunks:
            gathered += _chunk(part)
            await pass_on(CHUNK)
    else:
        for part in chunks:
            gathered += _chunk(part)
            await pass_on(CHUNK)
    await pass_on(1)


def _read_at(node: Pointer, request: int, offset: int, buffer: Any) -> int:
    count = ffi.new("size_t *")
    with node as raw:
        call(lib.raftify_restore_read, raw, request, offset, buffer, CHUNK, count)
    return int(count[0])


async def read_all(node: Pointer, request: int) -> bytes:
    """The whole state, for `restore`."""

    def body() -> bytes:
        return b"".join(Reader(node, request))

    return await in_thread(body)


class Reader:
    """For `restore_chunks`: the state in checked chunks, plain or async. Valid during that call only."""

    def __init__(self, node: Pointer, request: int) -> None:
        self._node = node
        self._request = request
        self._offset = 0
        self._buffer = ffi.new("uint8_t[]", CHUNK)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        count = _read_at(self._node, self._request, self._offset, self._buffer)
        if count == 0:
            raise StopIteration
        self._offset += count
        return bytes(ffi.buffer(self._buffer, count))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._read_async()

    async def _read_async(self) -> AsyncIterator[bytes]:
        while True:
            chunk = await in_thread(lambda: next(self, b""))
            if not chunk:
                return
            yield chunk

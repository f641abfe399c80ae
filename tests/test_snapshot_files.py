"""A damaged or missing snapshot file at start: an older one stands in where the log goes on from it, otherwise the node says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from cluster import free_addrs, quick_config
from stores import KeyValue

from raftify_ffi import Config, CorruptData, PresentState, Raft, SnapshotDamaged, SnapshotInfo, SnapshotTaken


def spoil(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def two_snapshots(addr: str, config: Config) -> tuple[SnapshotInfo, SnapshotInfo]:
    """A node with entries before, between and after two snapshots."""
    async with Raft.build(1, addr, KeyValue(), config) as raft:
        await raft.propose_many([b"a=1", b"b=1"])
        older = await raft.snapshot()
        await raft.propose_many([b"c=1", b"a=2"])
        newest = await raft.snapshot()
        await raft.propose(b"d=1")
    return older, newest


@pytest.mark.parametrize("how", ["damaged", "missing"])
async def test_an_older_snapshot_stands_in_where_the_log_goes_on_from_it(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    addr, config = free_addrs(1)[0], quick_config(tmp_path)
    older, damaged = await two_snapshots(addr, config)
    named = Path(damaged.path)
    spoil(named, how)
    caplog.set_level(logging.WARNING, "raftify")
    async with Raft.build(1, addr, KeyValue(), config) as raft:
        assert await raft.read(lambda s: s.data) == {"a": "2", "b": "1", "c": "1", "d": "1"}
        assert any(str(named) in record.message and "stands in" in record.message for record in caplog.records)
        # However late a program listens: nothing else tells it.
        for _ in range(2):
            events = raft.events()
            assert isinstance(await anext(events), PresentState)
            told = await anext(events)
            assert isinstance(told, SnapshotDamaged)
            assert (told.index, told.stands_in) == (damaged.index, older.index)
            assert str(named) in told.reason
        assert named.exists() == (how == "damaged")
        # The next one is whole, and the node does without either from there on.
        await raft.propose(b"e=1")
        newest = await raft.snapshot()
    caplog.clear()
    async with Raft.build(1, addr, KeyValue(), config) as raft:
        assert await raft.read(lambda s: len(s.data)) == 5
        assert raft.status.snapshot_index == newest.index
        events = raft.events()
        assert isinstance(await anext(events), PresentState)
        await raft.propose(b"f=1")
        await raft.snapshot()
        async for event in events:
            assert not isinstance(event, SnapshotDamaged)
            if isinstance(event, SnapshotTaken):
                break
    assert not caplog.records


@pytest.mark.parametrize("how", ["damaged", "missing"])
async def test_without_one_that_the_log_goes_on_from_the_node_does_not_start(tmp_path: Path, how: str) -> None:
    addr, config = free_addrs(1)[0], quick_config(tmp_path, trailing_entries=1)
    named = Path((await two_snapshots(addr, config))[1].path)
    assert list(named.parent.iterdir()) == [named], "one that could never be of use is not kept"
    spoil(named, how)
    with pytest.raises(CorruptData, match=r"no older one.*log goes on") as caught:
        await Raft.build(1, addr, KeyValue(), config).run()
    assert caught.value.path == str(named)
    assert named.exists() == (how == "damaged")

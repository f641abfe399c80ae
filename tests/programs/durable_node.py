"""A node of one whose store is an SQLite file. It proposes running numbers all the time and says what was acknowledged: `ack N`.

The store commits every few entries, in one transaction with the index: kill -9 takes the rest of them from it. What it heard, and
from which run, is in its table.

durable_node.py DIRECTORY ADDRESS
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from pathlib import Path

from cluster import quick_config

from raftify_ffi import Applied, Raft

COMMIT_EVERY = 7


class SqliteStore:
    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("CREATE TABLE IF NOT EXISTS heard (position INTEGER PRIMARY KEY, number INTEGER, run INTEGER)")
        self.db.execute("BEGIN")
        self.open = 0

    def applied_index(self) -> int:
        (newest,) = self.db.execute("SELECT max(position) FROM heard").fetchone()
        print(f"index {newest or 0}", flush=True)
        return newest or 0

    def apply(self, command: bytes, applied: Applied) -> None:
        # A second time for the same position fails, and that stops the node.
        self.db.execute("INSERT INTO heard VALUES (?, ?, ?)", (applied.index, int(command), os.getpid()))
        self.open += 1
        if self.open == COMMIT_EVERY:
            self.db.execute("COMMIT")
            self.db.execute("BEGIN")
            self.open = 0

    def snapshot(self) -> bytes:
        return json.dumps(self.db.execute("SELECT * FROM heard").fetchall()).encode()

    def restore(self, snapshot: bytes) -> None:
        print("restore", flush=True)
        self.db.execute("DELETE FROM heard")
        self.db.executemany("INSERT INTO heard VALUES (?, ?, ?)", json.loads(snapshot))


async def main() -> None:
    directory, addr = Path(sys.argv[1]), sys.argv[2]
    store = SqliteStore(directory / "store.sqlite")
    config = quick_config(directory, snapshot_entries=50, trailing_entries=30, on_apply_error="stop")
    async with Raft.build(1, addr, store, config) as raft:
        (newest,) = await raft.read(lambda s: s.db.execute("SELECT max(number) FROM heard").fetchone())
        print(f"complete {newest or 0}", flush=True)
        number = newest or 0
        while True:
            number += 1
            await raft.propose(str(number).encode())
            print(f"ack {number}", flush=True)


asyncio.run(main())

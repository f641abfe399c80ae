"""A store that is durable by itself, killed with its node again and again, hears each entry once from its own index on."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from processes import Process, free_ports
from test_seed_program import environment

PROGRAM = Path(__file__).resolve().parent / "programs" / "durable_node.py"
PATIENCE = 60.0
ROUNDS = 5


def asked(directory: Path, question: str) -> list[Any]:
    with closing(sqlite3.connect(directory / "store.sqlite")) as db:
        return db.execute(question).fetchall()


def test_a_durable_store_killed_with_its_node_hears_each_entry_once_from_its_index_on(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path), f"127.0.0.1:{free_ports(1)[0]}"]
    acknowledged = 0
    behind = []
    for round_ in range(ROUNDS):
        with Process(command, tmp_path, environment()) as process:
            index = int(process.wait_for_line("index ", PATIENCE).removeprefix("index "))
            ((kept,),) = asked(tmp_path, "SELECT count(*) FROM heard")
            complete = int(process.wait_for_line("complete ", PATIENCE).removeprefix("complete "))
            assert complete >= acknowledged
            behind.append(complete - kept)
            # Another count each time: it dies at another place of its transaction.
            for _ in range(60 + 3 * round_):
                process.wait_for_line("ack ", PATIENCE)
            process.kill()
            process._reader.join(PATIENCE)
            while (line := process._lines.get()) is not None:
                process.output.append(line)
            assert "restore" not in process.output, "the log reaches back to its index"
            acknowledged = max(int(line.removeprefix("ack ")) for line in process.output if line.startswith("ack "))
            if round_ > 0:
                assert index > 0
    heard = asked(tmp_path, "SELECT number, run FROM heard ORDER BY position")
    numbers = [number for number, _ in heard]
    assert numbers == list(range(1, len(numbers) + 1)), "each command once, in order, none left out"
    assert len({run for _, run in heard}) == ROUNDS
    assert any(behind), "it never came back behind the log: nothing was replayed to it"

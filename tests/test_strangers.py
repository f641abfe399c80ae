"""Connections of strangers cost a node neither its log nor its snapshots, however many they are."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import Process, free_ports
from test_kill import PATIENCE, PROGRAM
from test_seed_program import environment

#: Descriptors of the node's process: more than it needs itself, and less than the strangers would take.
DESCRIPTORS = 120
STRANGERS = 300


@pytest.mark.parametrize("says", [b"", b"GET / HTTP/1.1\r\n"])
def test_idle_connections_do_not_use_up_the_descriptors(tmp_path: Path, log_engine: str, says: bytes) -> None:
    port = free_ports(1)[0]
    node = [sys.executable, str(PROGRAM), "1", str(tmp_path), json.dumps({1: f"127.0.0.1:{port}"}), log_engine]
    limited = ["/bin/sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "sh", *node]
    with ExitStack() as stack:
        process = Process(limited, tmp_path, environment())
        stack.callback(process.close)
        process.wait_for_line("ack ", PATIENCE)
        for _ in range(STRANGERS):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
            stranger.settimeout(PATIENCE)
            if says:
                try:
                    stranger.sendall(says)
                except OSError:  # closed at once: there are too many
                    pass
        # The strangers are there before the log makes its next files, and stay while it makes snapshots of 300 entries each.
        for _ in range(2000):
            process.wait_for_line("ack ", PATIENCE)
        assert not any("not acknowledged" in line for line in process.output), process.text()
        stdin = process._process.stdin
        assert stdin is not None
        stdin.write("stop\ndump\n")
        stdin.flush()
        process.wait_for_line("stopped", PATIENCE)
        kept = set(json.loads(process.wait_for_line("all ", PATIENCE).removeprefix("all ")))
        assert {line.removeprefix("ack ") for line in process.output if line.startswith("ack ")} <= kept
        stdin.close()
        assert process.wait(PATIENCE) == 0, process.text()
    assert list(tmp_path.glob("node-1/**/*snap*")), "snapshots were taken meanwhile"

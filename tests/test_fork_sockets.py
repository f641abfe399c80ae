"""A forked child keeps no socket of its parent alive: the port is free, and peers see the end, as soon as the parent has closed."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from processes import Process, free_ports
from test_seed_program import environment

PROGRAM = Path(__file__).resolve().parent / "programs" / "forking_node.py"
PATIENCE = 60.0


def ends(connection: socket.socket) -> bool:
    """Whether the other side closes it; what it says before is read."""
    connection.settimeout(20.0)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_keeps_no_socket_of_its_parent_alive(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as peer:
        peer.settimeout(PATIENCE)
        command = [sys.executable, str(PROGRAM), str(tmp_path), f"127.0.0.1:{port}"]
        command.append(f"127.0.0.1:{peer.getsockname()[1]}")
        with Process(command, tmp_path, environment()) as process:
            process.wait_for_line("running", PATIENCE)
            dialled_by_it, _ = peer.accept()
            with dialled_by_it, socket.create_connection(("127.0.0.1", port)) as dialled_by_us:
                # It has taken the connection: it speaks first, with HTTP/2's settings, once it has heard the preface.
                dialled_by_us.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                dialled_by_us.settimeout(PATIENCE)
                assert dialled_by_us.recv(1)
                stdin = process._process.stdin
                assert stdin is not None
                stdin.write("fork\n")
                stdin.flush()
                child = int(process.wait_for_line("forked ", PATIENCE).removeprefix("forked "))
                try:
                    process.wait_for_line("closed", PATIENCE)
                    socket.create_server(("127.0.0.1", port)).close()
                    assert ends(dialled_by_us)
                    assert ends(dialled_by_it)
                finally:
                    os.kill(child, signal.SIGKILL)

"""Helpers for tests that run real programs: ports, and processes whose output is read line by line."""

from __future__ import annotations

import queue
import random
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

#: Below the range from which the system takes the ports of outgoing connections: nobody takes one in between by chance.
_PORTS = range(20000, 32000)
#: Whoever was given one may not listen on it yet.
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens, and that were not given out before."""
    found: list[int] = []
    left = [port for port in _PORTS if port not in _given]
    # One draw of the system's randomness, not one a port, which would take longer than most tests.
    for port in random.Random(random.SystemRandom().getrandbits(64)).sample(left, len(left)):
        if len(found) == count:
            break
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    assert len(found) == count, "no free ports"
    _given.update(found)
    return found


def run_command(
    command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Process:
    """A program in the background. Killed when the context is left; what it wrote is shown when a wait fails."""

    def __init__(self, command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for_line(self, part: str, timeout: float) -> str:
        """The next line that holds `part`."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {part!r} within {timeout:g} s; so far:\n{self.text()}") from None
            if line is None:
                raise AssertionError(f"ended ({self._process.wait(10)}) without a line with {part!r}:\n{self.text()}")
            self.output.append(line)
            if part in line:
                return line

    def text(self) -> str:
        return "\n".join(self.output)

    def interrupt(self, signal_number: int) -> None:
        self._process.send_signal(signal_number)

    def wait(self, timeout: float) -> int:
        return self._process.wait(timeout)

    def close_input(self) -> None:
        """Ends the program's standard input."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        """Kills it if it still runs, and gives back what it held."""
        self.kill()
        self.close_input()
        # A child of it may hold the other end a moment longer: not worth waiting for.
        self._reader.join(10)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

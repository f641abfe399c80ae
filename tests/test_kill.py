"""kill -9, again and again, under writes: every value that was acknowledged is there in the end, on every node."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from processes import Process, free_ports
from test_seed_program import environment

PROGRAM = Path(__file__).resolve().parent / "programs" / "writing_node.py"
PATIENCE = 90.0
ROUNDS = 6


class Member:
    """One member's process, started again and again in the same directory; what was ever acknowledged to it."""

    def __init__(self, directory: Path, node_id: int, peers: dict[int, str], log_engine: str) -> None:
        self._command = [sys.executable, str(PROGRAM), str(node_id), str(directory), json.dumps(peers), log_engine]
        self._directory = directory
        self.outputs: list[list[str]] = []

    def start(self) -> None:
        self.process = Process(self._command, self._directory, environment())
        self.outputs.append(self.process.output)

    def writes(self, count: int) -> None:
        """Until so many more were acknowledged."""
        for _ in range(count):
            self.process.wait_for_line("ack ", PATIENCE)

    def kill(self) -> None:
        """What it said before it died still counts."""
        self.process.kill()
        self.process.close_input()
        self.process._reader.join(PATIENCE)
        while (line := self.process._lines.get()) is not None:
            self.process.output.append(line)

    def acknowledged(self) -> set[str]:
        return {line.removeprefix("ack ") for output in self.outputs for line in output if line.startswith("ack ")}

    def ask(self, question: str, answer: str) -> str:
        stdin = self.process._process.stdin
        assert stdin is not None
        stdin.write(question + "\n")
        stdin.flush()
        return self.process.wait_for_line(answer, PATIENCE).removeprefix(answer)


def test_no_acknowledged_write_is_lost_by_kill_9(tmp_path: Path, log_engine: str) -> None:
    peers = {node_id: f"127.0.0.1:{port}" for node_id, port in enumerate(free_ports(3), start=1)}
    members = [Member(tmp_path, node_id, peers, log_engine) for node_id in peers]
    try:
        for member in members:
            member.start()
        for round_ in range(ROUNDS):
            for member in members:
                member.writes(100)
            # One at a time; the last round all at once.
            victims = members if round_ == ROUNDS - 1 else [members[round_ % 3]]
            for member in victims:
                member.kill()
            if len(victims) == 1:
                next(member for member in members if member not in victims).writes(50)
            for member in victims:
                member.start()
        for member in members:
            member.writes(20)
        # All stop before any is looked at: what one acknowledges later, another cannot have had.
        for member in members:
            member.ask("stop", "stopped")
        found = [set(json.loads(member.ask("dump", "all "))) for member in members]
        acknowledged = set().union(*(member.acknowledged() for member in members))
        assert len(acknowledged) > ROUNDS * 300
        for keys in found:
            assert acknowledged - keys == set()
    finally:
        for member in members:
            member.process.close()

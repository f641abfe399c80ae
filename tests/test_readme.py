"""The README is executed: every fenced block, as written but for its ports, which are replaced by free ones, and its deadlines, which
a loaded machine may miss.

A comment before a block says how (`<!-- test: ... -->`); a block that nothing here knows how to run fails the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import Process, free_ports, run_command

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]
START_TIMEOUT = 60.0


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the directive before it, its text and where it stands."""

    language: str
    directive: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    found: list[Block] = []
    directive = ""
    lines = path.read_text().splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        comment = re.fullmatch(r"<!-- test: (.+) -->", line)
        fence = re.fullmatch(r"```(\w*)", line)
        if comment:
            directive = comment[1]
        elif fence:
            end = lines.index("```", at + 1)
            found.append(Block(fence[1], directive, "\n".join(lines[at + 1 : end]) + "\n", at + 1))
            directive, at = "", end
        at += 1
    return found


def directed(directive: str) -> list[Block]:
    found = [block for block in blocks(README) if block.directive == directive]
    assert found, f"README.md has no block for: {directive}"
    return found


KNOWN = {
    "save kv.py",
    "three processes",
    "run while the three processes run",
    "in a node",
    "in a client",
    "in a joiner",
}


def test_every_block_is_one_that_these_tests_run() -> None:
    for block in blocks(README):
        if block.directive:
            assert block.directive in KNOWN, f"README.md:{block.line}: nothing runs {block.directive!r}"
        else:
            # The others are the set-up commands; the next test checks them.
            assert block.language == "sh", f"README.md:{block.line}: say in a comment before it how to run this block"


def make_targets(document: Path) -> set[str]:
    """Of the Makefile beside the document, or of the one at the top."""
    makefile = next(folder / "Makefile" for folder in document.parents if (folder / "Makefile").exists())
    return set(re.findall(r"^(?:\$\(OUT\)/)?([a-z-]+):", makefile.read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_command_in_the_documents_exists(document: Path) -> None:
    for block in blocks(document):
        if block.language != "sh":
            continue
        for command in block.text.splitlines():
            for target in re.findall(r"(?:^|&& )make ([a-z-]+)", command):
                assert target in make_targets(document), f"{document.name}:{block.line}: make {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_the_documents_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_setup_demo_and_test_are_the_commands_shown_first() -> None:
    shown = [line for block in blocks(README) if not block.directive for line in block.text.splitlines()]
    assert shown[0].startswith("git clone ")
    assert shown[1:] == ["make setup", "make demo", "make test"]


@dataclass(frozen=True)
class Place:
    """A directory with kv.py in it, and the ports that stand for those of the README."""

    directory: Path
    ports: dict[str, str]

    def adapt(self, text: str) -> str:
        text = re.sub(r"\b6006\d\b", lambda match: self.ports[match[0]], text)
        return re.sub(r"\btimeout=2\.0\b", "timeout=60.0", text)

    def environment(self) -> dict[str, str]:
        # The `python` and `raftify_cli` of the README are those of this environment.
        return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    names = ["60061", "60062", "60063", "60064"]
    made = Place(tmp_path, dict(zip(names, map(str, free_ports(len(names))), strict=True)))
    (program,) = directed("save kv.py")
    (tmp_path / "kv.py").write_text(made.adapt(program.text))
    return made


@pytest.fixture
def three(place: Place) -> Iterator[list[Process]]:
    """The three processes, each of which has made its write and read it back."""
    (block,) = directed("three processes")
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(Process(shlex.split(place.adapt(line)), place.directory, place.environment()))
            for line in block.text.splitlines()
        ]
        for node_id, node in enumerate(nodes, 1):
            line = node.wait_for_line(f"set node-{node_id} -> ", START_TIMEOUT)
            assert f"'node-{node_id}': 'was here'" in line
        yield nodes


def test_the_first_program_runs_in_three_processes_and_outlives_one(place: Place, three: list[Process]) -> None:
    three[0].kill()
    (block,) = directed("three processes")
    again = shlex.split(place.adapt(block.text.splitlines()[0]))
    with Process(again, place.directory, place.environment()) as node:
        line = node.wait_for_line("set node-1 -> ", START_TIMEOUT)
    for node_id in (1, 2, 3):
        assert f"'node-{node_id}': 'was here'" in line


def test_the_shell_commands_succeed_while_it_runs(place: Place, three: list[Process]) -> None:
    (block,) = directed("run while the three processes run")
    for line in block.text.splitlines():
        done = run_command(shlex.split(place.adapt(line)), place.directory, place.environment())
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def wrapped(body: str, indent: int) -> str:
    return textwrap.indent(body, " " * indent)


def run_python(place: Place, text: str) -> None:
    path = place.directory / f"block-{time.monotonic_ns()}.py"
    path.write_text(place.adapt(text))
    done = run_command([sys.executable, str(path)], place.directory, place.environment())
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"


STORE = "from kv_store import Config, Raft, Store\n"


def save_store(place: Place) -> None:
    """kv.py without its last line, which runs it: for the blocks that go on from it."""
    (program,) = directed("save kv.py")
    text, _, run = program.text.rpartition("\n\n\n")
    assert run.startswith("asyncio.run(")
    (place.directory / "kv_store.py").write_text(text + "\n")


@pytest.mark.parametrize("number", range(len([b for b in blocks(README) if b.directive == "in a node"])))
def test_what_is_shown_inside_a_node_runs_inside_a_node(place: Place, number: int) -> None:
    save_store(place)
    body = directed("in a node")[number].text
    run_python(
        place,
        "import asyncio\n"
        + STORE
        + "async def main():\n"
        + "    async with Raft.build(1, '127.0.0.1:60061', Store(), Config(log_dir='./one'), None) as raft:\n"
        + "        await raft.wait_for(leader=True, timeout=60)\n"
        + wrapped(body, 8)
        + "asyncio.run(main())\n",
    )


@pytest.mark.parametrize("directive", ["in a client", "in a joiner"])
def test_what_is_shown_beside_the_cluster_runs_beside_it(place: Place, three: list[Process], directive: str) -> None:
    save_store(place)
    for block in directed(directive):
        run_python(
            place,
            "import asyncio\n" + STORE + "async def main():\n" + wrapped(block.text, 4) + "asyncio.run(main())\n",
        )


def local(text: str) -> str:
    """For the hosts of the guide to certificates, which are not this one."""
    return re.sub(r"\b10\.0\.0\.\d\b", "127.0.0.1", text)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the guide makes its certificates with OpenSSL")
def test_the_guide_to_certificates_works_as_written(place: Place) -> None:
    made, program, shell = blocks(ROOT / "docs" / "tls.md")
    directives = ["make certificates", "in a node with certificates", "while it runs"]
    assert [block.directive for block in (made, program, shell)] == directives

    def run_shell(block: Block) -> None:
        command = ["bash", "-euo", "pipefail", "-c", place.adapt(local(block.text))]
        done = run_command(command, place.directory, place.environment())
        assert done.returncode == 0, f"{block.text}\n{done.stdout}{done.stderr}"

    run_shell(made)
    save_store(place)
    (place.directory / "node.py").write_text(
        "import asyncio\nfrom kv_store import Store\nstore, nodes = Store(), None\n"
        + "async def main():\n"
        + wrapped(place.adapt(local(program.text)), 4)
        + "    async with raft:\n"
        + "        await raft.wait_for(leader=True, timeout=60)\n"
        + "        print('up', flush=True)\n"
        + "        await raft.serve_forever()\n"
        + "asyncio.run(main())\n"
    )
    with Process([sys.executable, "node.py"], place.directory, place.environment()) as node:
        node.wait_for_line("up", START_TIMEOUT)
        run_shell(shell)


def test_the_repository_has_the_files_the_readme_speaks_of() -> None:
    for name in ("LICENSE-MIT", "LICENSE-APACHE", "include/raftify.h", "examples/python/demo.py"):
        assert (ROOT / name).exists(), name
    assert subprocess.run(["make", "-n", "help"], cwd=ROOT, capture_output=True, check=False).returncode == 0

"""`make bench`: ours beside other libraries, from what package registries offer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).resolve().parent.parent / "benches"
#: Compiling it takes minutes: it is measured where somebody has had it built.
RAFTIFY_PY = ["raftify-py"] if (BENCHES / "out/peers/raftify/.installed").exists() else []
#: Their packages have to be fetched and compiled first.
PATIENCE = 600.0


def run(arguments: list[str], data: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=BENCHES,
        env={**os.environ, "BENCH_PYTHON": sys.executable, "BENCH_DATA": str(data), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    "others",
    [
        ["python-async", "python-many", "pysyncobj", *RAFTIFY_PY],
        pytest.param(
            ["hraft-wal", "hraft-boltdb", "etcd"],
            marks=pytest.mark.skipif(shutil.which("go") is None, reason="they are built with Go"),
        ),
    ],
)
def test_each_library_is_measured_and_ends_with_the_same_state_on_all_nodes(others: list[str], tmp_path: Path) -> None:
    done = run(["run.py", "--only", "128x16,16384x4", "--windows", "1", "python", *others], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for cell in done.stdout.split(" B, ")[1:]:
        rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in cell.splitlines() if line.startswith("| ")}
        for name in ["python", *others]:
            assert float(rows[name][0].split()[0]) > 0, cell
    assert "the nodes of each hold the same state" in done.stdout
    assert not (tmp_path / "data").exists()


def test_the_bridge_alone_is_measured(tmp_path: Path) -> None:
    done = run(["bridge.py", "--secs", ".2", "--windows", "1", "python"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({(row["side"], row["in_flight"]) for row in rows}) == len(rows) == 4 + 4 + 4 + 3 + 2
    assert all(row["thread_us"] > 0 and row["a_second"] > 0 for row in rows), rows
    assert not (tmp_path / "data" / "bridge").exists()


#: Speaks the protocol, does nothing, and says of a window that takes .2 s that it took so many.
PRETENDER = """#!{python}
import json, sys, time
print("READY 1", flush=True)
for line in sys.stdin:
    if line.startswith("BENCH"):
        print("MEASURE", flush=True)
        time.sleep(.2)
        print("END", flush=True)
        latencies = dict(p50_ms=1, p99_ms=1, max_ms=1)
        print(json.dumps(dict(n=10, errors=0, secs={says}, drained=True, **latencies)), flush=True)
    elif line.startswith("STATE"):
        print("{{}}", flush=True)
"""


def test_windows_that_are_shorter_than_their_driver_says_are_told(tmp_path: Path) -> None:
    for name, says in [("honest", 0.1), ("late", 2.0)]:
        program = tmp_path / name / "node"
        program.parent.mkdir()
        program.write_text(PRETENDER.format(python=sys.executable, says=says))
        program.chmod(0o755)
    done = run(
        ["run.py", "--only", "128x1", "--windows", "3", str(tmp_path / "honest"), str(tmp_path / "late")], tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    doubts = [line for line in done.stdout.splitlines() if "between MEASURE and END" in line]
    assert [line.partition(":")[0] for line in doubts] == ["late"], done.stdout


def test_what_cannot_be_built_is_left_out_unless_it_was_named(tmp_path: Path) -> None:
    for tool in ("make", "sh", "mkdir"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    done = run(["-c", "import cluster; print(cluster.drivers([], ['hraft-wal']))"], tmp_path, PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert "need Go" in done.stderr and "hraft-wal could not be built, see above: left out" in done.stderr
    done = run(["-c", "import cluster; print(cluster.drivers(['hraft-wal'], []))"], tmp_path, PATH=str(tmp_path))
    assert done.returncode != 0
    assert "need Go" in done.stderr and "hraft-wal could not be built, see above" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run.py", "nosuch"], "nosuch is no driver: name one of python, python-async"),
        (
            ["run.py", "--only", "128", "python"],
            "'128': bytes of a command (8 or more) x proposals in flight, as in 128x256",
        ),
        (["run.py", "--only", "128x1,7x1", "python"], "'7x1'"),
        (["run.py", "--windows", "0", "python"], "'0': a whole number from 1 on"),
        (["run.py", "--reads", "python"], "reads are measured with the driver c: name it"),
        (["bridge.py", "nosuch"], "nosuch: a side is c or python"),
        (["bridge.py", "--windows", "0"], "0: a row takes one window or more"),
        (["bridge.py", "--secs", "0"], "0.0: seconds of a window are more than 0"),
    ],
)
def test_a_wrong_word_is_named(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run(arguments, tmp_path)
    assert done.returncode != 0
    assert said in done.stderr

"""What a user installs: the wheel on every Python there is, outside the source tree, and `pip install .` from the sdist.

The wheel is the one that `make setup` left in `dist/`; without it these tests are skipped, because building one takes minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest
from processes import free_ports, run_command

import raftify_ffi

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = 10, 14
#: Seconds for a build or a download. A bound for what hangs, not an expectation.
PATIENCE = 1200.0

SMOKE = """
import asyncio, sys
import raftify_ffi
from raftify_ffi import Config, Raft

class Counter:
    count = 0
    def apply(self, command):
        self.count += 1
        return b"%d" % self.count
    def snapshot(self):
        return b"%d" % self.count
    def restore(self, snapshot):
        self.count = int(snapshot)

async def main():
    for count in (1, 2):
        async with Raft.build(1, sys.argv[1], Counter(), Config(log_dir="logs"), None) as raft:
            await raft.wait_for(leader=True, timeout=60)
            assert await raft.propose(b"one more", timeout=60) == b"%d" % count
            assert await raft.read(lambda counter: counter.count, timeout=60) == count
            await raft.snapshot(timeout=60)

asyncio.run(main())
print("served from", raftify_ffi.__file__)
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    wheels = sorted((ROOT / "dist").glob("raftify_ffi-*.whl"))
    if not wheels:
        pytest.skip("there is no wheel in dist/; make setup builds one")
    return wheels[-1]


@cache
def interpreter(minor: int) -> str | None:
    """A Python 3.`minor` of this machine that can make environments: this one, pyenv's, or one on the PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable, *map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/python"))), f"python3.{minor}"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found is None:
            continue
        asked = run_command([found, "-c", "import sys, ensurepip; print(*sys.version_info[:2])"], ROOT)
        if asked.returncode == 0 and asked.stdout.split() == ["3", str(minor)]:
            return found
    return None


def run(command: list[str], directory: Path, environment: dict[str, str] | None = None) -> str:
    done = run_command(command, directory, environment, PATIENCE)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def new_environment(python: str, directory: Path) -> Path:
    """A fresh virtual environment; returns its Python."""
    run([python, "-m", "venv", str(directory)], directory.parent)
    return directory / "bin" / "python"


def smoke(python: Path, directory: Path) -> None:
    """A node that founds a cluster, serves, and starts again, in a program that sees nothing of this source tree."""
    (directory / "smoke.py").write_text(SMOKE)
    said = run([str(python), "-I", "smoke.py", f"127.0.0.1:{free_ports(1)[0]}"], directory)
    assert said.startswith(f"served from {python.parent.parent}"), said


def installed(python: Path) -> set[str]:
    listed = run([str(python), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"], python.parent)
    return {line.partition("==")[0].lower().replace("-", "_") for line in listed.splitlines()}


# ---- what is in the wheel


def test_the_wheel_is_one_for_every_python_of_its_platform(wheel: Path) -> None:
    assert re.fullmatch(r"raftify_ffi-[0-9.]+-py3-none-(linux|manylinux|macosx)\w+\.whl", wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (described,) = [name for name in names if name.endswith(".dist-info/WHEEL")]
        facts = HeaderParser().parsestr(archive.read(described).decode())
    assert facts["Root-Is-Purelib"] == "false"
    assert (facts["Tag"] or "").startswith("py3-none-")
    package = {name for name in names if name.startswith("raftify_ffi/")}
    assert {name for name in names if ".dist-info/" not in name} == package, "nothing but the package"
    assert {"raftify_ffi/py.typed", "raftify_ffi/_native.py"} <= package
    kinds = {PurePosixPath(name).suffix for name in package}
    assert kinds <= {".py", ".typed", ".so", ".dylib"}, kinds
    assert len([name for name in package if name.endswith((".so", ".dylib"))]) == 1


def test_the_wheel_needs_cffi_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (described,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        facts = HeaderParser().parsestr(archive.read(described).decode())
    needed = [line for line in facts.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert needed == ["cffi>=1.15"]
    assert facts["Requires-Python"] == f">=3.{OLDEST}"
    assert facts["Version"] == version("raftify_ffi") == raftify_ffi.__version__


@pytest.fixture(scope="module")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("library")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith((".so", ".dylib"))]
        return Path(archive.extract(name, directory))


@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="reads ELF symbols with nm")
def test_the_library_exports_the_functions_of_the_header_and_no_others(library: Path) -> None:
    listed = run(["nm", "-D", "--defined-only", "--format=posix", str(library)], ROOT)
    exported = {line.split()[0] for line in listed.splitlines()}
    header = re.sub(r"/\*.*?\*/", "", (ROOT / "include" / "raftify.h").read_text(), flags=re.DOTALL)
    assert exported == set(re.findall(r"\b(raftify_\w+)\(", header))


def test_nothing_of_upstreams_is_in_the_library(library: Path) -> None:
    assert "nothing of upstream's" in run([str(ROOT / "interop" / "check_symbols.sh"), str(library)], ROOT)


# ---- where it runs


@pytest.mark.parametrize("minor", range(OLDEST, NEWEST + 1), ids=lambda minor: f"3.{minor}")
def test_the_wheel_serves_on_every_python_that_is_installed(wheel: Path, tmp_path: Path, minor: int) -> None:
    found = interpreter(minor)
    if found is None:
        pytest.skip(f"no Python 3.{minor} on this machine")
    python = new_environment(found, tmp_path / "venv")
    run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)], tmp_path)
    assert installed(python) <= {"cffi", "pycparser", "raftify_ffi", "pip", "setuptools"}
    smoke(python, tmp_path)


def test_the_oldest_cffi_that_is_allowed_will_do(wheel: Path, tmp_path: Path) -> None:
    # The oldest Python has wheels of the oldest cffi; the next one has those of 1.15.1.
    for minor, cffi in ((10, "1.15.0"), (11, "1.15.1")):
        found = interpreter(minor)
        if found is None:
            continue
        python = new_environment(found, tmp_path / "venv")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*install, "--only-binary=:all:", f"cffi=={cffi}", str(wheel)], tmp_path)
        asked = run([str(python), "-I", "-c", "import cffi; print(cffi.__version__)"], tmp_path)
        assert asked.strip() == cffi
        smoke(python, tmp_path)
        return
    pytest.skip("no Python on this machine for which cffi 1.15 was published")


# ---- from source


def without_protoc() -> dict[str, str]:
    """This environment as a user's who has no protoc: neither named nor on the PATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PROTOC"}
    directories = environment.get("PATH", os.defpath).split(os.pathsep)
    kept = [directory for directory in directories if not (Path(directory) / "protoc").exists()]
    environment["PATH"] = os.pathsep.join(kept)
    for tool in ("cargo", "cc"):
        if shutil.which(tool, path=environment["PATH"]) is None:
            pytest.skip(f"{tool} lies beside a protoc here")
    return environment


@pytest.fixture(scope="module")
def sdist(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "build", "--sdist", "--outdir", str(directory), str(ROOT)], directory, without_protoc())
    (made,) = directory.glob("raftify_ffi-*.tar.gz")
    return made


def test_the_sdist_holds_all_that_a_build_needs_and_nothing_that_was_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "Cargo.toml", "Cargo.lock", "LICENSE-MIT", "LICENSE-APACHE", "README.md", "include/raftify.h", "setup.py",
        "engine/Cargo.toml", "capi/Cargo.toml", "interop/Cargo.toml", "raftify_ffi/py.typed",
    } <= names  # fmt: skip
    built = {name for name in names if name.endswith((".so", ".pyc", "_native.py")) or "target" in name.split("/")}
    assert built == set()


@pytest.fixture(scope="module")
def from_source(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of an environment where `pip install .` ran in the unpacked sdist, with Rust, a C compiler and Python alone.

    Unpacked where cargo finds it again: what has not changed since the last run is not compiled again.
    """
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    place = target / "sdist"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        if sys.version_info >= (3, 12):
            archive.extractall(place, filter="data")
        else:
            archive.extractall(place)
    (source,) = place.iterdir()
    python = new_environment(sys.executable, tmp_path_factory.mktemp("from-source") / "venv")
    environment = {**without_protoc(), "CARGO_TARGET_DIR": str(target)}
    run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "."], source, environment)
    yield python
    shutil.rmtree(place, ignore_errors=True)


def test_pip_install_builds_from_source_with_rust_cc_and_python_alone(from_source: Path, tmp_path: Path) -> None:
    assert installed(from_source) <= {"cffi", "pycparser", "raftify_ffi", "pip", "setuptools"}
    smoke(from_source, tmp_path)

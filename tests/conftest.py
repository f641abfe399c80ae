"""Makes the declarations current in a source tree, and runs `async def` tests."""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path.insert(0, str(TESTS))

# In a source tree the package is imported from there; installed, from where it is installed.
_header = ROOT / "include" / "raftify.h"
_native = ROOT / "raftify_ffi" / "_native.py"
if _header.exists() and (not _native.exists() or _native.stat().st_mtime < _header.stat().st_mtime):
    runpy.run_path(str(ROOT / "raftify_ffi" / "_build_ffi.py"), run_name="__main__")

#: Seconds after which a test that hangs is ended, with a stack of every thread. No assertion depends on it.
HANGS_AFTER = 120.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def body() -> Any:
        return await asyncio.wait_for(pyfuncitem.obj(**arguments), HANGS_AFTER)

    asyncio.run(body())
    return True


@pytest.fixture(params=["lmdb", "segment"])
def log_engine(request: pytest.FixtureRequest) -> str:
    """For tests of what reaches the disk: each engine that a new directory may be given."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _stacks_of_a_hanging_test() -> Iterator[None]:
    faulthandler.dump_traceback_later(HANGS_AFTER + 10, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()

"""The shared library: found, loaded, and checked against the declarations this package was built with.

ABI mode checks nothing by itself, so the import compares the ABI number and the layout of every struct with what the library says of
itself, and touches every symbol. Nothing else in the package loads the library; whatever comes back from it as a failure becomes an
exception here (`call`).
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, Final

from ._errors import RaftError, error_from_json

ABI_VERSION: Final = 1
#: Structs that cross the border, by their number in `raftify_struct_layout`.
STRUCTS: Final = (
    "raftify_event",
    "raftify_entry",
    "raftify_proposal",
    "raftify_peer",
    "raftify_member_change",
    "raftify_machine",
    "raftify_outcome",
)
#: For development: the library to load in place of the bundled one.
PATH_VARIABLE: Final = "RAFTIFY_FFI_LIBRARY"


def library_path() -> Path:
    """The library that belongs to this package, or the one named in the environment."""
    named = os.environ.get(PATH_VARIABLE)
    if named:
        return Path(named)
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    prefix = "" if sys.platform == "win32" else "lib"
    return Path(__file__).resolve().parent / f"{prefix}raftify_capi{suffix}"


def _load() -> tuple[Any, Any]:
    try:
        native = importlib.import_module("raftify_ffi._native")
    except ModuleNotFoundError as error:
        raise ImportError(
            "raftify_ffi/_native.py is missing: install the package (pip install .), or in the source tree run: "
            "python raftify_ffi/_build_ffi.py"
        ) from error
    path = library_path()
    try:
        library = native.ffi.dlopen(str(path))
    except OSError as error:
        raise ImportError(
            f"{path}: cannot load the library ({error}); install the package (pip install .), or in the source tree run "
            f"cargo build -p raftify-capi and set {PATH_VARIABLE} to the library it makes"
        ) from error
    check_library(native.ffi, library, path)
    return native.ffi, library


def check_library(ffi: Any, library: Any, path: Path) -> None:
    """Refuses a library that is not the one these declarations were cut from."""
    try:
        version = library.raftify_abi_version()
        for name in dir(library):
            getattr(library, name)
    except AttributeError as error:
        raise ImportError(
            f"{path}: {error}; the library and raftify_ffi are of different versions, reinstall"
        ) from error
    if version != ABI_VERSION:
        raise ImportError(f"{path}: has ABI version {version}, this raftify_ffi needs {ABI_VERSION}; reinstall")
    for number, name in enumerate(STRUCTS):
        kind = ffi.typeof(name)
        expected = [ffi.sizeof(kind), *(field.offset for _, field in kind.fields)]
        count = library.raftify_struct_layout(number, ffi.NULL, 0)
        numbers = ffi.new("size_t[]", max(count, 1))
        library.raftify_struct_layout(number, numbers, count)
        actual = [numbers[i] for i in range(count)]
        if actual != expected:
            raise ImportError(f"{path}: {name} is laid out {actual}, this raftify_ffi expects {expected}; reinstall")
    if ffi.sizeof("size_t") != 8 or ffi.sizeof("void *") != 8:
        raise ImportError("raftify_ffi needs a 64-bit Python")


ffi, lib = _load()


def take_error(status: int, slot: Any) -> RaftError:
    """The exception for a failed call; frees the library's error object."""
    if slot == ffi.NULL:
        name = ffi.string(lib.raftify_status_name(status)).decode()
        return error_from_json({"code": status, "name": name, "message": name})
    try:
        text = ffi.string(lib.raftify_error_json(slot))
    finally:
        lib.raftify_error_free(slot)
    return error_from_json(text)


def call(function: Any, *arguments: Any) -> None:
    """Calls a function whose last parameter is the error slot; raises what it reports."""
    slot = ffi.new("raftify_error **")
    status = function(*arguments, slot)
    if status != 0:
        raise take_error(status, slot[0])


def version() -> str:
    """The library's own version."""
    text: bytes = ffi.string(lib.raftify_version())
    return text.decode()

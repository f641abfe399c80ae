"""Makes `_native.py`: the declarations of `include/raftify.h` in the form that cffi loads without a C compiler (out-of-line ABI mode).

Run by setup.py (`cffi_modules`) and, for work in the source tree, as a script: `python raftify_ffi/_build_ffi.py`. It must not import
anything of the package, which cannot be imported before `_native.py` exists.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

MODULE = "raftify_ffi._native"
HERE = Path(__file__).resolve().parent
HEADER = HERE.parent / "include" / "raftify.h"

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_CONTINUED = re.compile(r"\\\n")
_INTEGER = re.compile(r"\(?\s*(-?(?:0[xX][0-9a-fA-F]+|\d+))[uUlL]*\s*\)?")
_ATTRIBUTE = re.compile(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)|\[\[[^\]]*\]\]|\b_Noreturn\b")


class HeaderError(ValueError):
    """The header holds something this small reader does not understand."""


def _taken(directive: str, condition: str, macros: dict[str, str]) -> bool:
    """Whether a conditional part is read. The header is read as plain C99: everything about C++ and C23 is false."""
    if directive == "ifdef":
        return condition in macros
    if directive == "ifndef":
        return condition not in macros
    if "__cplusplus" in condition or "__STDC_VERSION__" in condition:
        return "!defined(__cplusplus)" in condition.replace(" ", "") or condition.lstrip().startswith("!")
    if condition.strip() in ("0", "1"):
        return condition.strip() == "1"
    raise HeaderError(f"#{directive} {condition}: only tests for C++ or C23, 0 and 1 are understood")


def declarations(header: str) -> str:
    """The header's declarations for `FFI.cdef`: no comments, no preprocessor but `#define NAME integer`."""
    text = _CONTINUED.sub(" ", _COMMENT.sub(" ", header))
    lines: list[str] = []
    macros: dict[str, str] = {}
    reading: list[bool] = []
    for line in text.splitlines():
        directive = re.match(r"\s*#\s*(\w+)\s*(.*?)\s*$", line)
        if directive is None:
            if all(reading):
                lines.append(line)
            continue
        word, rest = directive.groups()
        if word in ("if", "ifdef", "ifndef"):
            # Inside a part that is skipped, a condition is not looked at: it may speak of anything.
            reading.append(_taken(word, rest, macros) if all(reading) else False)
        elif word == "else":
            reading[-1] = not reading[-1]
        elif word == "endif":
            reading.pop()
        elif word == "define" and all(reading):
            name, _, value = rest.partition(" ")
            if "(" in name:
                continue
            integer = _INTEGER.fullmatch(value.strip())
            if integer:
                lines.append(f"#define {name} {integer.group(1)}")
            macros[name] = value.strip()
        elif word in ("include", "pragma", "define", "undef", "error"):
            continue
        else:
            raise HeaderError(f"#{word} {rest}: not understood")
    if reading:
        raise HeaderError("an #if is not closed")
    body = _ATTRIBUTE.sub("", "\n".join(lines))
    for name, value in macros.items():
        # A macro in front of a declaration (must-use, export) is an attribute or empty once it is resolved.
        if not _INTEGER.fullmatch(value) and not value.startswith('"') and _ATTRIBUTE.sub("", value).strip() == "":
            body = re.sub(rf"\b{name}\b", "", body)
    return "\n".join(line.rstrip() for line in body.splitlines() if line.strip()) + "\n"


def ffibuilder() -> Any:
    """The FFI that cffi's setuptools hook asks for."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(declarations(HEADER.read_text(encoding="utf-8")))
    ffi.set_source(MODULE, None)
    return ffi


if __name__ == "__main__":
    ffibuilder().emit_python_code(str(HERE / "_native.py"))

"""Cutting declarations out of a header."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raftify_ffi import _library
from raftify_ffi._build_ffi import HEADER, HeaderError, declarations
from raftify_ffi._library import check_library, ffi, lib

SAMPLE = """
/* text with #define INSIDE 1 */
#ifndef GUARD_H
#define GUARD_H
#include <stdint.h>
#define ONE 1   // a comment
#define MINUS -2
#define HEX 0x10u
#define TEXT "0.1.0"
#define MUST __attribute__((warn_unused_result))
#define CALL(x) x
#ifdef __cplusplus
extern "C" {
#endif
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
typedef enum wrong : int32_t { A } wrong;
#else
typedef int32_t right;
#endif
MUST right f(int \\
  x);
#if 0
#if defined(ANYTHING)
void dead(void);
#endif
#endif
#ifdef __cplusplus
}
#endif
#endif
"""


def test_what_c99_would_see_is_kept_and_nothing_else() -> None:
    assert declarations(SAMPLE).split("\n") == [
        "#define ONE 1",
        "#define MINUS -2",
        "#define HEX 0x10",
        "typedef int32_t right;",
        " right f(int    x);",
        "",
    ]


@pytest.mark.parametrize("header", ["#if LINUX\n#endif", "#ifdef X\nint a;", "#elif X"])
def test_a_header_that_is_not_understood_is_refused(header: str) -> None:
    with pytest.raises(HeaderError):
        declarations(header)


@pytest.mark.skipif(not HEADER.exists(), reason="installed, without the source tree")
def test_our_own_header_has_every_function_the_package_calls() -> None:
    text = declarations(HEADER.read_text())
    package = Path(_library.__file__).parent
    called = {name for file in package.glob("*.py") for name in re.findall(r"\blib\.(raftify_\w+)", file.read_text())}
    assert len(called) > 20
    assert {name for name in called if name not in text} == set()


def test_a_library_of_another_version_is_refused() -> None:
    class Other:
        def __getattr__(self, name: str) -> object:
            if name == "raftify_abi_version":
                return lambda: 99
            return getattr(lib, name)

    with pytest.raises(ImportError, match="ABI version 99"):
        check_library(ffi, Other(), _library.library_path())

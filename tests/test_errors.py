"""The error tree: attributes, pickling, and what comes over the border."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading

import pytest

import raftify_ffi
from raftify_ffi import _errors
from raftify_ffi._errors import InvalidConfig, RaftError, error_from_json

KINDS = [getattr(_errors, name) for name in _errors.__all__]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_pickling(kind: type[RaftError]) -> None:
    error = kind(
        "what happened", committed=None, leader_id=3, leader_addr="a:1", path="/p", index=7, field="f", value=1
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == "what happened"
    assert copy.__dict__ == error.__dict__


@pytest.mark.parametrize("code", [*range(-29, 0), 0, 12345])
def test_every_code_becomes_an_error_that_says_what_is_known(code: int) -> None:
    for committed in (True, False, None):
        text = json.dumps({"code": code, "name": "X", "message": "m", "committed": committed, "retryable": True})
        error = error_from_json(text)
        assert error.committed is committed
        assert error.retryable is (committed is False)
        assert str(error) == "m"


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[]", "{}"])
def test_what_cannot_be_read_is_still_an_error_of_ours(text: str | bytes) -> None:
    assert isinstance(error_from_json(text), RaftError)


def test_a_value_that_does_not_pickle_travels_as_what_it_looks_like() -> None:
    error = InvalidConfig("store: cannot work", field="store", value=threading.Lock())
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.field, copy.message) == ("store", "store: cannot work")
    assert copy.value == repr(error.value)


def test_the_tree_has_the_bases_that_programs_catch() -> None:
    assert issubclass(raftify_ffi.InvalidConfig, ValueError)
    assert issubclass(raftify_ffi.RaftTimeout, TimeoutError)
    assert issubclass(raftify_ffi.RaftTimeout, asyncio.TimeoutError)
    assert issubclass(raftify_ffi.NoLeader, raftify_ffi.RaftTimeout)
    assert issubclass(raftify_ffi.Removed, raftify_ffi.MembershipError)
    assert all(issubclass(kind, RaftError) for kind in KINDS)


def test_an_apply_error_knows_the_type_that_was_raised() -> None:
    table = [
        ("ValueError: bad: very", "ValueError", "bad: very"),
        ("app.errors.Full: ", "app.errors.Full", ""),
        ("run.<locals>.Full: text", "run.<locals>.Full", "text"),
        ("no type here", "", "no type here"),
        ("two words: text", "", "two words: text"),
    ]
    for message, type_name, text in table:
        error = raftify_ffi.ApplyError(message)
        assert (error.type_name, error.text, error.committed, error.retryable) == (type_name, text, True, False)

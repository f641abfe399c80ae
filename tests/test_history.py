"""The checker of the fault tests finds what it is there to find."""

from __future__ import annotations

import pytest
from history import ABSENT, DONE, PRESENT, UNKNOWN, Look, Write, violations

#: a and b one after the other, c beside b; d failed for certain, e is known to be in, f died unanswered, g's outcome nobody knew.
WRITES = [
    Write("a", 1.0, 2.0, DONE, 0),
    Write("b", 3.0, 6.0, DONE, 2),
    Write("c", 4.0, 5.0, DONE, 1),
    Write("d", 5.0, 6.0, ABSENT, failure="NoLeader"),
    Write("e", 6.0, 7.0, PRESENT, failure="RaftTimeout"),
    Write("f", 6.5),
    Write("g", 6.5, 8.0, UNKNOWN, failure="LeadershipLost"),
]
LOOKS = [Look(2.5, 2.6, 1), Look(5.5, 5.8, 2), Look(8.0, 9.0, 5)]
TRUE = ["a", "c", "b", "e", "g"]


def on_all(journal: list[str]) -> dict[str, list[str]]:
    return {"one": journal, "two": list(journal)}


def test_a_true_history_passes() -> None:
    assert violations(WRITES, LOOKS, on_all(TRUE)) == []
    # What nobody knew the outcome of may be there or not.
    assert violations(WRITES, LOOKS, on_all(["a", "c", "b", "f", "e", "g"])) == []
    assert violations(WRITES, LOOKS[:2], on_all(["a", "c", "b", "e"])) == []


@pytest.mark.parametrize(
    ("journals", "says"),
    [
        (on_all(["a", "b", "e", "g"]), "c was told to be committed"),
        (on_all(["a", "c", "b", "g"]), "e was told to be committed (present RaftTimeout) and is not there"),
        (on_all(["a", "c", "b", "b", "e", "g"]), "b was applied twice, at 2 and 3"),
        (on_all(["a", "b", "c", "e", "g"]), "b was answered with place 2 and is at 1"),
        (on_all(["e", "a", "c", "b", "g"]), "a at 1 was acknowledged before e, which stands before it, was sent"),
        (on_all([*TRUE, "d"]), "d was told not to be committed (NoLeader) and is there"),
        (on_all([*TRUE, "x"]), "x at 5 was never proposed"),
        ({"one": TRUE, "two": TRUE[:-1]}, "one and two differ at place 4"),
        ({"one": TRUE, "two": ["a", "b", "c", "e", "g"]}, "one and two differ at place 1: ['c'] and ['b']"),
        ({"one": [], "two": []}, "a was told to be committed"),
    ],
)
def test_a_forged_state_is_found(journals: dict[str, list[str]], says: str) -> None:
    found = violations(WRITES, LOOKS, journals)
    assert any(says in line for line in found), found


@pytest.mark.parametrize(
    ("looks", "says"),
    [
        ([Look(2.5, 2.6, 0)], "a read saw 0, without a write that was acknowledged before it began (length 1)"),
        ([Look(6.1, 6.2, 4), Look(6.3, 6.4, 3)], "a read saw 3, without what an earlier read saw"),
        ([Look(8.0, 9.0, 9)], "a read saw 9, and there are only 5"),
        ([Look(1.0, 2.0, 4)], "a read saw e before it was sent"),
    ],
)
def test_a_stale_or_early_read_is_found(looks: list[Look], says: str) -> None:
    found = violations(WRITES, looks, on_all(TRUE))
    assert any(says in line for line in found), found

"""Exit codes, and how a failure becomes one line on stderr and one of them."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What a script may rely on. The numbers never change."""

    OK = 0
    #: Anything that has no code of its own.
    FAILURE = 1
    #: The command line, or a value on it, makes no sense.
    USAGE = 2
    #: Nobody answered at the address.
    NO_CONNECTION = 3
    #: The cluster answered and refused: not the leader, overloaded, a membership change that may not be.
    REJECTED = 4
    #: The cluster has no leader, or lacks members.
    UNHEALTHY = 5
    #: Data on disk is damaged.
    CORRUPT = 6
    #: The deadline passed, or leadership was lost on the way; whether it was done is unknown.
    TIMEOUT = 7
    INTERRUPTED = 130


class CliError(Exception):
    """A failure with its exit code. The text says what is concerned, why, and what to do next."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


#: The most special class first: names, because the library may be imported later than this table.
_CODES: tuple[tuple[str, ExitCode], ...] = (
    ("NoLeader", ExitCode.UNHEALTHY),
    ("RaftTimeout", ExitCode.TIMEOUT),
    ("LeadershipLost", ExitCode.TIMEOUT),
    ("ConnectionFailed", ExitCode.NO_CONNECTION),
    ("CorruptData", ExitCode.CORRUPT),
    ("InvalidConfig", ExitCode.USAGE),
    ("InvalidArgument", ExitCode.USAGE),
    ("NotLeader", ExitCode.REJECTED),
    ("Overloaded", ExitCode.REJECTED),
    ("ProposalTooLarge", ExitCode.REJECTED),
    ("ApplyError", ExitCode.REJECTED),
    ("SnapshotFailed", ExitCode.REJECTED),
    ("MembershipError", ExitCode.REJECTED),
)


def code_of(error: BaseException) -> ExitCode:
    """The exit code for an error of the library."""
    names = {base.__name__ for base in type(error).__mro__}
    return next((code for name, code in _CODES if name in names), ExitCode.FAILURE)


def one_line(error: BaseException) -> str:
    """The error's text on one line; its class name when it has none."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def outcome_hint(error: BaseException) -> str:
    """What is known of the command's fate, where that is not plain from the text."""
    if not hasattr(error, "committed") or code_of(error) is not ExitCode.TIMEOUT:
        return ""
    committed: object = error.committed
    if committed is None:
        return " (outcome unknown: it may still take effect; look before you repeat it)"
    # That it is committed says the text itself.
    return "" if committed else " (certainly not done: safe to repeat)"

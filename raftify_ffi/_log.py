"""Log records of the library, handed to `logging` under `raftify.raft`, `raftify.storage` and `raftify.transport`."""

from __future__ import annotations

import json
import logging
from typing import Final

TRACE: Final = 5

_LEVELS: Final = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "erro": logging.ERROR,
    "critical": logging.CRITICAL,
    "crit": logging.CRITICAL,
}
_TARGETS: Final = {name: logging.getLogger(f"raftify.{name}") for name in ("raft", "storage", "transport")}
raft_log: Final = _TARGETS["raft"]


def level_name() -> str:
    """The lowest level that any of the loggers takes, as the library calls it: what lies below never crosses the border."""
    level = min(logger.getEffectiveLevel() for logger in _TARGETS.values())
    for name in ("trace", "debug", "info", "warning", "error", "critical"):
        if level <= _LEVELS[name]:
            return name
    return "off"


def hand_over(record: bytes) -> None:
    """One record of the queue (JSON) to its logger, with `node_id` and `term` in `extra`."""
    facts = json.loads(record)
    logger = _TARGETS.get(facts.get("target"), raft_log)
    level = _LEVELS.get(str(facts.get("level")).lower(), logging.INFO)
    if logger.isEnabledFor(level):
        logger.log(
            level, "%s", facts.get("message", ""), extra={"node_id": facts.get("node_id"), "term": facts.get("term")}
        )

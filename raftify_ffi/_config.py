"""`Config`: everything a node can be told. Checked as a whole when it is made."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from ._errors import InvalidConfig
from ._peers import InitialRole, Peer, Peers, checked_peers
from ._raft_config import RaftConfig
from ._settings import NativeConfig, checked, invalid
from ._tls import TlsConfig, checked_tls

_log = logging.getLogger("raftify")

#: Settings that go down as they are, and their kinds; the library's default stands where None is given.
_SETTINGS: Final = {
    "log_dir": "path",
    "cluster_id": "text",
    "listen_addr": "text",
    "tick_interval": "seconds",
    "request_timeout": "seconds",
    "conf_change_request_timeout": "seconds",
    "max_proposal_size": "count",
    "max_pending_proposals": "count",
    "max_pending_bytes": "count",
    "max_inflight_bytes": "count",
    "max_unapplied_entries": "count",
    "snapshot_entries": "count",
    "snapshot_bytes": "count",
    "snapshot_interval": "seconds",
    "trailing_entries": "count",
    "log_engine": "text",
    "disk_quota": "count",
    "hung_write": "seconds",
    "terminate_on_remove": "flag",
    "verify_results": "flag",
}

APPLY_ERROR_POLICIES: Final = ("reply", "stop")


class Config:
    """A node's settings. Unknown names, wrong types and values that cannot work raise `InvalidConfig` naming field, value and remedy.

    Times are seconds, sizes bytes. `None` stands for the default. `log_engine` ("segment" or "lmdb") keeps the log of a directory that is
    made now; one that exists is opened as what it is. A snapshot is taken after `snapshot_entries`, `snapshot_bytes` or
    `snapshot_interval`, whichever comes first (0: not by that; by time only where an interval is given): by each member at indexes of its own, up to half an interval
    sooner or once up to an interval later, so that they do not all take one at the same time. Without `tls` connections are plain:
    whoever reaches the node's port can do everything.

    Accepted from earlier releases and without effect, because the library decides what they tuned: `save_compacted_logs`,
    `compacted_log_dir`, `compacted_log_size_threshold` (use `trailing_entries`), `lmdb_map_size` (the map is sparse and large; a limit
    is `disk_quota`), `restore_wal_from` and `restore_wal_snapshot_from` (a directory with data always resumes what it was).
    """

    def __init__(
        self,
        raft_config: RaftConfig | None = None,
        log_dir: str | os.PathLike[str] = "./logs",
        save_compacted_logs: bool = False,
        compacted_log_dir: str | os.PathLike[str] | None = None,
        compacted_log_size_threshold: int | None = None,
        snapshot_interval: float | None = None,
        tick_interval: float = 0.1,
        lmdb_map_size: int | None = None,
        cluster_id: str | int = "default",
        terminate_on_remove: bool = False,
        conf_change_request_timeout: float = 30.0,
        *,
        initial_peers: Peers | Mapping[int, str] | None = None,
        restore_wal_from: object = None,
        restore_wal_snapshot_from: object = None,
        bootstrap_from_snapshot: object = None,
        listen_addr: str | None = None,
        request_timeout: float = 5.0,
        max_proposal_size: int = 16 << 20,
        max_pending_proposals: int | None = None,
        max_pending_bytes: int | None = None,
        max_inflight_bytes: int | None = None,
        max_unapplied_entries: int | None = None,
        snapshot_entries: int = 100_000,
        snapshot_bytes: int = 64 << 20,
        trailing_entries: int = 10_000,
        log_engine: str = "segment",
        disk_quota: int | None = None,
        hung_write: float | None = None,
        on_apply_error: str = "reply",
        verify_results: bool = False,
        tls: TlsConfig | None = None,
    ) -> None:
        if raft_config is not None and not isinstance(raft_config, RaftConfig):
            raise invalid("raft_config", raft_config, "is not a RaftConfig")
        self.tls = checked_tls(tls)
        self.raft_config = raft_config or RaftConfig()
        self.log_dir = os.fspath(checked("log_dir", "path", _or_default("log_dir", log_dir)))
        self.save_compacted_logs = save_compacted_logs
        self.compacted_log_dir = compacted_log_dir
        self.compacted_log_size_threshold = compacted_log_size_threshold
        self.snapshot_interval = snapshot_interval
        self.tick_interval: float = _or_default("tick_interval", tick_interval)
        self.lmdb_map_size = lmdb_map_size
        self.cluster_id = str(_or_default("cluster_id", cluster_id))
        self.terminate_on_remove = terminate_on_remove
        self.conf_change_request_timeout: float = _or_default(
            "conf_change_request_timeout", conf_change_request_timeout
        )
        self.initial_peers = checked_peers(initial_peers)
        self.listen_addr = listen_addr
        self.request_timeout: float = _or_default("request_timeout", request_timeout)
        self.max_proposal_size = max_proposal_size
        self.max_pending_proposals = max_pending_proposals
        self.max_pending_bytes = max_pending_bytes
        self.max_inflight_bytes = max_inflight_bytes
        self.max_unapplied_entries = max_unapplied_entries
        self.snapshot_entries = snapshot_entries
        self.snapshot_bytes = snapshot_bytes
        self.trailing_entries = trailing_entries
        self.log_engine = log_engine
        self.disk_quota = disk_quota
        self.hung_write = hung_write
        self.on_apply_error: str = _or_default("on_apply_error", on_apply_error)
        self.verify_results = verify_results
        if bootstrap_from_snapshot is not None:
            raise invalid(
                "bootstrap_from_snapshot",
                bootstrap_from_snapshot,
                "is not supported; put the data in through proposals, or join",
            )
        if save_compacted_logs:
            _log.warning(
                "Config: save_compacted_logs has no effect here: use trailing_entries to keep entries before a snapshot"
            )
        self.validate()

    def validate(self) -> None:
        """Raises `InvalidConfig` if the settings, as they are now, cannot work."""
        if self.on_apply_error not in APPLY_ERROR_POLICIES:
            raise invalid("on_apply_error", self.on_apply_error, f"is not one of {', '.join(APPLY_ERROR_POLICIES)}")
        self.to_native()

    def settings(self) -> dict[str, Any]:
        """Name and value of every setting that was given, as the library knows them."""
        given = {
            name: checked(name, kind, getattr(self, name))
            for name, kind in _SETTINGS.items()
            if getattr(self, name) is not None
        }
        certificates = self.tls.settings() if self.tls is not None else {}
        return {**given, **certificates, **self.raft_config.settings(given.get("tick_interval") or 0.1)}

    def to_native(self) -> NativeConfig:
        return NativeConfig(self.settings())

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if isinstance(other, Config) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        """From plain data: keyword names as above; the table `raft` (or `raft_config`) holds `RaftConfig`'s, `tls` `TlsConfig`'s."""
        values = _known("", settings, Config)
        if (raft := values.pop("raft", None)) is not None:
            if not isinstance(raft, Mapping):
                raise invalid("raft", raft, "is not a table of RaftConfig's settings")
            values["raft_config"] = raft
        if isinstance(raft := values.get("raft_config"), Mapping):
            values["raft_config"] = RaftConfig(**_known("raft.", raft, RaftConfig))
        if isinstance(values.get("tls"), Mapping):
            values["tls"] = TlsConfig.from_dict(values["tls"])
        if isinstance(peers := values.get("initial_peers"), Mapping):
            values["initial_peers"] = {_node_id(key): _peer(key, peer) for key, peer in peers.items()}
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Config:
        """From a TOML file: the settings at top level, `RaftConfig`'s in the table `[raft]`, `TlsConfig`'s in `[tls]`, addresses in
        `[initial_peers]`: `1 = "host:port"`, or `1 = {addr = "host:port", role = "learner"}`."""
        toml = _toml_reader(path)
        try:
            with open(path, "rb") as file:
                settings = toml.load(file)
        except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"{os.fspath(path)}: not TOML: {error}") from error
        return cls.from_dict(settings)


def _or_default(name: str, value: Any) -> Any:
    """The value; for None what the parameter has if it is left out. Of the others the library knows the default."""
    return inspect.signature(Config.__init__).parameters[name].default if value is None else value


def _known(table: str, settings: Mapping[str, Any], taken_by: type) -> dict[str, Any]:
    """The settings, if these are names that the class takes."""
    if not isinstance(settings, Mapping):
        raise InvalidConfig(f"{settings!r} is not a mapping of settings", value=settings)
    names = [*inspect.signature(taken_by).parameters, *([] if table else ["raft"])]
    for name in settings:
        if name not in names:
            alike = [f"{table}{other}" for other in difflib.get_close_matches(str(name), names, 1)]
            raise InvalidConfig(
                f"{table}{name}: there is no setting of this name{'; is it ' + alike[0] + '?' if alike else '; leave it out'}",
                field=f"{table}{name}",
                value=settings[name],
            )
    return dict(settings)


def _node_id(key: object) -> int:
    """Of a member; keys of plain data are text."""
    try:
        return int(key)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        raise invalid("initial_peers", key, "is not a node's id: a whole number from 1 on") from None


def _peer(key: object, given: object) -> Any:
    """A member of plain data: its address, or a table of that and its role."""
    if not isinstance(given, Mapping):
        return given
    try:
        return Peer(given["addr"], InitialRole.from_str(given.get("role", "voter")))
    except (KeyError, ValueError) as error:
        reason = "has no addr" if isinstance(error, KeyError) else str(error)
        raise invalid(f"initial_peers.{key}", dict(given), f"is no member: {reason}") from None


def _toml_reader(path: str | os.PathLike[str]) -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InvalidConfig(
            f"{os.fspath(path)}: reading TOML on Python 3.10 needs the package tomli: pip install tomli"
        ) from error

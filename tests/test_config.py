"""Settings: what is refused names field, value and remedy; what is accepted goes down as it was given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from raftify_ffi import Config, InitialRole, InvalidConfig, Peer, Peers, RaftConfig, ReadOnlyOption

BAD: list[tuple[str, dict[str, Any]]] = [
    ("tick_interval", {"tick_interval": 0.0}),
    ("tick_interval", {"tick_interval": "fast"}),
    ("tick_interval", {"tick_interval": float("nan")}),
    ("request_timeout", {"request_timeout": -1.0}),
    ("request_timeout", {"request_timeout": True}),
    ("request_timeout", {"request_timeout": 0}),
    ("conf_change_request_timeout", {"conf_change_request_timeout": 0}),
    ("max_proposal_size", {"max_proposal_size": 0}),
    ("max_proposal_size", {"max_proposal_size": 1.5}),
    ("max_pending_bytes", {"max_pending_bytes": 5}),
    ("max_unapplied_entries", {"max_unapplied_entries": 0}),
    ("log_engine", {"log_engine": "paper"}),
    ("log_dir", {"log_dir": 7}),
    ("log_dir", {"log_dir": ""}),
    ("log_dir", {"log_dir": "not UTF-8: \udcff"}),
    ("cluster_id", {"cluster_id": "\udcff"}),
    ("terminate_on_remove", {"terminate_on_remove": 1}),
    ("on_apply_error", {"on_apply_error": "ignore"}),
    ("raft_config", {"raft_config": {}}),
    ("peers", {"initial_peers": 5}),
    ("peers", {"initial_peers": {1: "nonsense"}}),
    ("election_tick", {"raft_config": RaftConfig(election_timeout=0.1, heartbeat_interval=0.1), "tick_interval": 0.1}),
    ("bootstrap_from_snapshot", {"bootstrap_from_snapshot": "x"}),
]


@pytest.mark.parametrize(("field", "settings"), BAD)
def test_a_setting_that_cannot_work_is_named(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Config(**settings)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    if field in settings:
        given = settings[field]
        assert caught.value.value is given


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("election_tick", {"election_tick": 2, "heartbeat_tick": 2}),
        ("heartbeat_tick", {"heartbeat_tick": 0}),
        ("max_inflight_msgs", {"max_inflight_msgs": 0}),
        ("election_tick", {"election_tick": -1}),
        ("election_timeout", {"election_timeout": 1.0, "election_tick": 10}),
        ("read_only_option", {"read_only_option": ReadOnlyOption.LeaseBased}),
        ("pre_vote", {"pre_vote": 1}),
    ],
)
def test_a_raft_option_that_cannot_work_is_named(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        RaftConfig(**settings)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("initial_peers", {"initial_peers": {"first": "127.0.0.1:1"}}),
        ("initial_peers.2", {"initial_peers": {2: {"role": "learner"}}}),
        ("initial_peers.2", {"initial_peers": {2: {"addr": "127.0.0.1:2", "role": "watcher"}}}),
        ("initial_peers.2", {"initial_peers": {2: {"addr": "nowhere"}}}),
        ("raft", {"raft": 3}),
        ("read_only_option", {"raft": {"read_only_option": "safe"}}),
        ("nothing", {"nothing": 1}),
        ("raft.nothing", {"raft": {"nothing": 1}}),
        ("tls.nothing", {"tls": {"nothing": 1}}),
        ("7", {7: 1}),
    ],
)
def test_plain_data_that_cannot_work_is_named(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Config.from_dict(settings)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("meant", "settings"),
    [("request_timeout", {"request_timout": 3}), ("raft.election_tick", {"raft": {"election_ticks": 3}})],
)
def test_a_name_with_a_slip_is_told_with_the_one_that_was_meant(meant: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=f"is it {meant}\\?"):
        Config.from_dict(settings)


def test_what_is_no_mapping_is_no_plain_data() -> None:
    nothing: Any = None
    with pytest.raises(InvalidConfig, match="None is not a mapping"):
        Config.from_dict(nothing)


@pytest.mark.parametrize(
    "name",
    ["log_dir", "tick_interval", "cluster_id", "conf_change_request_timeout", "request_timeout", "on_apply_error"],
)
def test_none_stands_for_the_default(name: str) -> None:
    settings: dict[str, Any] = {name: None}
    assert getattr(Config(**settings), name) == getattr(Config(), name)


def test_none_stands_for_the_default_of_every_raft_option() -> None:
    nothing: dict[str, Any] = dict.fromkeys(RaftConfig.__dataclass_fields__)
    assert RaftConfig(**nothing).settings(0.1) == RaftConfig().settings(0.1)


def test_the_names_of_earlier_releases_are_taken() -> None:
    config = Config(
        RaftConfig(id=1, election_tick=10, heartbeat_tick=3, omit_heartbeat_log=True),
        "./logs",
        False,
        "./logs",
        1 << 30,
        120.0,
        0.1,
        1 << 30,
        "default",
        False,
        2.0,
        initial_peers=Peers({1: "127.0.0.1:60061"}),
        restore_wal_from=1,
        restore_wal_snapshot_from=1,
    )
    assert config.settings()["election_tick"] == 10
    assert config.settings()["snapshot_interval"] == 120.0
    assert dict(config.initial_peers or {}) == {1: "127.0.0.1:60061"}


def test_seconds_become_ticks_and_never_fewer_than_asked_for() -> None:
    raft = RaftConfig(election_timeout=1.0, heartbeat_interval=0.25)
    settings = Config(raft, tick_interval=0.1).settings()
    assert (settings["election_tick"], settings["heartbeat_tick"]) == (10, 3)


def test_a_file_says_the_same_as_keywords(tmp_path: Path) -> None:
    pytest.importorskip("tomllib")
    path = tmp_path / "node.toml"
    path.write_text(
        'log_dir = "data"\nrequest_timeout = 3\n[raft]\nelection_tick = 20\n[initial_peers]\n1 = "127.0.0.1:60061"\n'
        '2 = {addr = "127.0.0.1:60062", role = "learner"}\n'
    )
    expected = Config(
        RaftConfig(election_tick=20),
        log_dir="data",
        request_timeout=3,
        initial_peers={1: "127.0.0.1:60061", 2: Peer("127.0.0.1:60062", InitialRole.LEARNER)},
    )
    config = Config.from_toml(path)
    assert config == expected
    assert {node_id: peer.role.name for node_id, peer in (config.initial_peers or {}).items()} == {
        1: "VOTER",
        2: "LEARNER",
    }


@pytest.mark.parametrize(
    "text", ["nonsense = 1", "[raft]\nnonsense = 1", "not toml", "log_dir = 5", "log_dir = '\xff'"]
)
def test_a_file_that_cannot_work_is_an_invalid_config(tmp_path: Path, text: str) -> None:
    pytest.importorskip("tomllib")
    path = tmp_path / "node.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidConfig):
        Config.from_toml(path)


def test_the_settings_are_documented_with_their_defaults() -> None:
    root = Path(__file__).resolve().parent.parent
    rows = re.findall(r"^\| (`.+?) \| (.+?) \| .+ \|$", (root / "docs" / "settings.md").read_text(), re.M)
    documented: dict[str, str] = {}
    for names, defaults in rows:
        listed, values = re.findall(r"`(\w+)`", names), defaults.replace("`", "").split(", ")
        documented |= dict(zip(listed, values if len(values) == len(listed) else values * len(listed), strict=True))
    known = re.findall(r'^ {12}"(\w+)" =>', (root / "engine" / "src" / "config.rs").read_text(), re.M)
    assert set(known) == documented.keys()
    here = Config()
    for name, text in documented.items():
        default = getattr(here, name, None)
        if default is not None:
            assert text == (
                str(default).lower()
                if isinstance(default, bool)
                else f"{default:g}"
                if isinstance(default, float)
                else str(default)
            ), name

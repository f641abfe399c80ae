//! A node's settings: names, defaults, ranges. Checked as a whole before a node starts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::NodeId;
use crate::error::{Error, Result};
use crate::transport::TlsFiles;

/// Payloads up to this size always work unless `max_proposal_size` says less: 16 MiB.
pub const DEFAULT_MAX_PROPOSAL_SIZE: u64 = 16 << 20;

/// Which engine keeps the log of a new directory. A directory that exists is opened as what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogEngine {
    /// A B+tree in one file; one flush a commit, for some pages in several places.
    Lmdb,
    /// Recycled segments of checksummed frames; one flush a commit.
    #[default]
    Segment,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Parent of the node's directory `node-<id>`.
    pub log_dir: PathBuf,
    /// Part of the founding digest: initial members with another one are refused by name.
    pub cluster_id: String,
    /// Of the initial members, those that begin as learners: they get the log and have no vote. Part of the founding digest as well; of no
    /// account where nothing is founded.
    pub initial_learners: BTreeSet<NodeId>,
    /// Where to listen; empty: `raft_addr`, which is what others dial.
    pub listen_addr: String,
    /// Certificates of all connections, of members and clients; empty: connections are plain.
    pub tls: TlsFiles,
    /// Seconds as `Duration`; one tick.
    pub tick_interval: Duration,
    /// Ticks without a leader before an election; at least 2, above `heartbeat_tick`. The timeout is drawn from
    /// `min_election_tick..max_election_tick`, which are `election_tick..2 * election_tick` when 0.
    pub election_tick: u64,
    pub min_election_tick: u64,
    pub max_election_tick: u64,
    pub heartbeat_tick: u64,
    /// Bytes of entries in one append message.
    pub max_size_per_msg: u64,
    pub max_inflight_msgs: u64,
    /// Bytes of appends on their way to one peer (S18).
    pub max_inflight_bytes: u64,
    /// Bytes proposed here and not yet committed; past it proposals are `Overloaded`.
    pub max_uncommitted_size: u64,
    pub max_committed_size_per_ready: u64,
    pub check_quorum: bool,
    pub pre_vote: bool,
    pub priority: i64,
    /// Default deadline of a call.
    pub request_timeout: Duration,
    /// Default deadline of a membership change.
    pub conf_change_request_timeout: Duration,
    pub max_proposal_size: u64,
    /// Proposals and reads waiting anywhere in this node; past it they are `Overloaded`.
    pub max_pending_proposals: u64,
    /// Their bytes.
    pub max_pending_bytes: u64,
    /// Committed entries not yet applied here; past it proposals are `Overloaded` (S14).
    pub max_unapplied_entries: u64,
    /// A snapshot is taken after at most this many entries, by each member at indexes of its own, so that they do not all take one at
    /// the same time; 0: never by count.
    pub snapshot_entries: u64,
    /// A snapshot is taken after this many bytes of entries; 0: never by size. Up to twice as many, once, for a member that comes to its
    /// own place between those of the others.
    pub snapshot_bytes: u64,
    /// A snapshot is taken after at most this time, if anything was applied: by each member at moments of its own.
    pub snapshot_interval: Option<Duration>,
    /// Entries kept before the newest snapshot, for followers that lag; no more of them than make up `snapshot_bytes`, or 64 MiB if that
    /// is more. Where they reach back to the snapshot before it, that one's file is kept too, and stands in for the newest one should it
    /// be damaged (S6).
    pub trailing_entries: u64,
    pub log_engine: LogEngine,
    /// Bytes the log may take on disk; `None`: what the disk has.
    pub disk_quota: Option<u64>,
    /// A write older than this counts as hung; 0: two election timeouts (S4).
    pub hung_write: Duration,
    /// Stop the node when an entry of the log removes it.
    pub terminate_on_remove: bool,
    /// Batches on their way to the state machine at the same time, and how large each may be. No setting of the product: the
    /// simulator makes them small.
    #[doc(hidden)]
    pub machine_batches: u64,
    #[doc(hidden)]
    pub machine_batch_entries: u64,
    #[doc(hidden)]
    pub machine_batch_bytes: u64,
    /// Bytes of the log that memory holds, and the disk keeps before a snapshot, for followers that lag. No setting of the product
    /// either.
    #[doc(hidden)]
    pub tail_bytes: u64,
    /// Nodes also compare the bytes that `apply` returned, not only whether it raised (S17). Counts on the node that founds the
    /// cluster, whose first entry fixes it.
    pub verify_results: bool,
    /// Indexes after which the comparison starts anew; the same on all nodes. For tests.
    #[doc(hidden)]
    pub outcomes_window: u64,
    /// Client sessions that are known at the same time; the same on all nodes. For tests.
    #[doc(hidden)]
    pub max_sessions: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            log_dir: PathBuf::from("./logs"),
            cluster_id: "default".into(),
            initial_learners: BTreeSet::new(),
            listen_addr: String::new(),
            tls: TlsFiles::default(),
            tick_interval: Duration::from_millis(100),
            election_tick: 10,
            min_election_tick: 0,
            max_election_tick: 0,
            heartbeat_tick: 2,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            max_inflight_bytes: 64 << 20,
            max_uncommitted_size: 256 << 20,
            max_committed_size_per_ready: 16 << 20,
            check_quorum: true,
            pre_vote: true,
            priority: 0,
            request_timeout: Duration::from_secs(5),
            conf_change_request_timeout: Duration::from_secs(30),
            max_proposal_size: DEFAULT_MAX_PROPOSAL_SIZE,
            max_pending_proposals: 100_000,
            max_pending_bytes: 256 << 20,
            max_unapplied_entries: 1_000_000,
            snapshot_entries: 100_000,
            snapshot_bytes: 64 << 20,
            snapshot_interval: None,
            trailing_entries: 10_000,
            log_engine: LogEngine::default(),
            disk_quota: None,
            hung_write: Duration::ZERO,
            terminate_on_remove: false,
            machine_batches: 3,
            machine_batch_entries: 4096,
            machine_batch_bytes: 1 << 20,
            tail_bytes: 64 << 20,
            verify_results: false,
            outcomes_window: 8192,
            max_sessions: 4096,
        }
    }
}

fn number(name: &str, value: &str) -> Result<u64> {
    value.parse().map_err(|_| Error::config(name, format!("{value:?} is not a whole number of 0 or more")))
}

fn boolean(name: &str, value: &str) -> Result<bool> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Error::config(name, format!("{value:?} is neither true nor false"))),
    }
}

/// Node ids with commas between them, or none.
fn ids(name: &str, value: &str) -> Result<BTreeSet<NodeId>> {
    let id = |text: &str| {
        let id = text.trim().parse().ok().filter(|id| *id > 0);
        id.ok_or_else(|| {
            Error::config(name, format!("{text:?} is no node id; use ids above 0, with commas between them"))
        })
    };
    if value.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    value.split(',').map(id).collect()
}

fn seconds(name: &str, value: &str) -> Result<Duration> {
    value
        .parse::<f64>()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| Error::config(name, format!("{value:?} is not a number of seconds of 0 or more")))
}

impl Config {
    /// Sets one field by its name; times are in seconds. The C ABI's only way in, so it grows without a new function.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "log_dir" => self.log_dir = PathBuf::from(value),
            "cluster_id" => self.cluster_id = value.into(),
            "initial_learners" => self.initial_learners = ids(name, value)?,
            "listen_addr" => self.listen_addr = value.into(),
            "tls_cert" => self.tls.cert = value.into(),
            "tls_key" => self.tls.key = value.into(),
            "tls_ca" => self.tls.ca = value.into(),
            "tls_server_name" => self.tls.server_name = value.into(),
            "tick_interval" => self.tick_interval = seconds(name, value)?,
            "election_tick" => self.election_tick = number(name, value)?,
            "min_election_tick" => self.min_election_tick = number(name, value)?,
            "max_election_tick" => self.max_election_tick = number(name, value)?,
            "heartbeat_tick" => self.heartbeat_tick = number(name, value)?,
            "max_size_per_msg" => self.max_size_per_msg = number(name, value)?,
            "max_inflight_msgs" => self.max_inflight_msgs = number(name, value)?,
            "max_inflight_bytes" => self.max_inflight_bytes = number(name, value)?,
            "max_uncommitted_size" => self.max_uncommitted_size = number(name, value)?,
            "max_committed_size_per_ready" => self.max_committed_size_per_ready = number(name, value)?,
            "check_quorum" => self.check_quorum = boolean(name, value)?,
            "pre_vote" => self.pre_vote = boolean(name, value)?,
            "priority" => {
                self.priority =
                    value.parse().map_err(|_| Error::config(name, format!("{value:?} is not a whole number")))?;
            }
            "request_timeout" => self.request_timeout = seconds(name, value)?,
            "conf_change_request_timeout" => self.conf_change_request_timeout = seconds(name, value)?,
            "max_proposal_size" => self.max_proposal_size = number(name, value)?,
            "max_pending_proposals" => self.max_pending_proposals = number(name, value)?,
            "max_pending_bytes" => self.max_pending_bytes = number(name, value)?,
            "max_unapplied_entries" => self.max_unapplied_entries = number(name, value)?,
            "snapshot_entries" => self.snapshot_entries = number(name, value)?,
            "snapshot_bytes" => self.snapshot_bytes = number(name, value)?,
            "snapshot_interval" => {
                let every = seconds(name, value)?;
                self.snapshot_interval = (!every.is_zero()).then_some(every);
            }
            "trailing_entries" => self.trailing_entries = number(name, value)?,
            "log_engine" => match value {
                "lmdb" => self.log_engine = LogEngine::Lmdb,
                "segment" => self.log_engine = LogEngine::Segment,
                _ => {
                    return Err(Error::config(
                        name,
                        format!("{value:?} is not a log engine; use \"lmdb\" or \"segment\""),
                    ));
                }
            },
            "disk_quota" => {
                let bytes = number(name, value)?;
                self.disk_quota = (bytes > 0).then_some(bytes);
            }
            "hung_write" => self.hung_write = seconds(name, value)?,
            "verify_results" => self.verify_results = boolean(name, value)?,
            "terminate_on_remove" => self.terminate_on_remove = boolean(name, value)?,
            _ => return Err(Error::config(name, "there is no setting of this name")),
        }
        Ok(())
    }

    /// The whole makes sense; the error names field, value and remedy.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field: &str, message: String| Err(Error::config(field, message));
        if self.log_dir.as_os_str().is_empty() {
            return refuse(
                "log_dir",
                "it is empty; name a directory, or . for the one that the program runs in".into(),
            );
        }
        if self.tick_interval < Duration::from_millis(1) || self.tick_interval > Duration::from_secs(60) {
            return refuse("tick_interval", format!("{:?} is outside 1 ms to 60 s", self.tick_interval));
        }
        if self.heartbeat_tick == 0 {
            return refuse("heartbeat_tick", "0 means never; use 1 or more".into());
        }
        if self.election_tick <= self.heartbeat_tick {
            return refuse(
                "election_tick",
                format!(
                    "{} is not above heartbeat_tick ({}); use at least {}, better ten times heartbeat_tick",
                    self.election_tick,
                    self.heartbeat_tick,
                    self.heartbeat_tick.saturating_add(1)
                ),
            );
        }
        if self.election_tick > 1_000_000 || self.max_election_tick > 2_000_000 {
            return refuse("election_tick", format!("{} is above 1000000", self.election_tick));
        }
        let (low, high) = self.election_range();
        if low < self.election_tick {
            return refuse("min_election_tick", format!("{low} is below election_tick ({})", self.election_tick));
        }
        if low >= high {
            return refuse("max_election_tick", format!("{high} is not above min_election_tick ({low})"));
        }
        if self.max_size_per_msg == 0 {
            return refuse("max_size_per_msg", "0 means one entry a message; use 64 KiB or more".into());
        }
        if self.max_inflight_msgs == 0 || self.max_inflight_msgs > 1 << 20 {
            return refuse("max_inflight_msgs", format!("{} is outside 1 to 1048576", self.max_inflight_msgs));
        }
        if self.max_proposal_size == 0 || self.max_proposal_size > 1 << 30 {
            return refuse("max_proposal_size", format!("{} is outside 1 byte to 1 GiB", self.max_proposal_size));
        }
        for (name, value) in [
            ("max_uncommitted_size", self.max_uncommitted_size),
            ("max_pending_bytes", self.max_pending_bytes),
            ("max_inflight_bytes", self.max_inflight_bytes),
        ] {
            if value < self.max_proposal_size {
                return refuse(
                    name,
                    format!(
                        "{value} is below max_proposal_size ({}); the largest proposal must fit",
                        self.max_proposal_size
                    ),
                );
            }
        }
        for (name, value) in [
            ("max_pending_proposals", self.max_pending_proposals),
            ("max_unapplied_entries", self.max_unapplied_entries),
            ("max_committed_size_per_ready", self.max_committed_size_per_ready),
        ] {
            if value == 0 {
                return refuse(name, "0 would refuse everything; use 1 or more".into());
            }
        }
        self.timeouts()?;
        self.tls.check()
    }

    /// The deadlines of calls that name none leave them time.
    pub fn timeouts(&self) -> Result<()> {
        for (name, value) in [
            ("request_timeout", self.request_timeout),
            ("conf_change_request_timeout", self.conf_change_request_timeout),
        ] {
            if value.is_zero() {
                return Err(Error::config(
                    name,
                    "0 ends every call before it has begun; use the seconds that one may take",
                ));
            }
        }
        Ok(())
    }

    /// Ticks from which an election timeout is drawn: at least the first, below the second.
    pub fn election_range(&self) -> (u64, u64) {
        let low = if self.min_election_tick == 0 { self.election_tick } else { self.min_election_tick };
        let high = if self.max_election_tick == 0 {
            low.max(self.election_tick).saturating_mul(2)
        } else {
            self.max_election_tick
        };
        (low, high)
    }

    pub fn election_timeout(&self) -> Duration {
        self.tick_interval.saturating_mul(u32::try_from(self.election_tick).unwrap_or(u32::MAX))
    }

    /// Age at which a write counts as hung (S4).
    pub fn hung_write_after(&self) -> Duration {
        if self.hung_write.is_zero() {
            self.election_timeout().saturating_mul(2)
        } else {
            self.hung_write
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn a_bad_value_names_field_value_and_remedy() {
        let table: &[(&str, &str, &str)] = &[
            ("election_tick", "2", "election_tick: 2 is not above heartbeat_tick (2)"),
            ("heartbeat_tick", "0", "heartbeat_tick: 0 means never"),
            ("tick_interval", "0", "tick_interval: 0ns is outside"),
            ("max_inflight_msgs", "0", "max_inflight_msgs: 0 is outside"),
            ("max_uncommitted_size", "1", "max_uncommitted_size: 1 is below max_proposal_size"),
            ("max_size_per_msg", "0", "max_size_per_msg: 0 means one entry"),
            ("request_timeout", "0", "request_timeout: 0 ends every call before it has begun"),
            ("conf_change_request_timeout", "0.0", "conf_change_request_timeout: 0 ends"),
            ("log_dir", "", "log_dir: it is empty; name a directory"),
        ];
        for (name, value, says) in table {
            let mut config = Config::default();
            config.set(name, value).map_err(|e| e.to_string()).unwrap_or_default();
            let error = config.validate().err().map(|e| (e.field.clone(), e.message)).unwrap_or_default();
            assert_eq!(error.0.as_deref(), Some(*name));
            assert!(error.1.starts_with(says), "{}", error.1);
        }
    }

    #[test]
    fn initial_learners_are_ids_with_commas_between_them() {
        for (value, ids) in [("", &[][..]), (" ", &[]), ("3", &[3]), ("3,2, 18446744073709551615", &[2, 3, u64::MAX])] {
            let mut config = Config::default();
            config.set("initial_learners", value).unwrap();
            assert!(config.initial_learners.iter().eq(ids), "{value:?}: {:?}", config.initial_learners);
        }
    }

    #[test]
    fn what_is_no_setting_or_no_value_is_refused() {
        let mut config = Config::default();
        for (name, value) in [
            ("nonsense", "1"),
            ("election_tick", "-1"),
            ("pre_vote", "maybe"),
            ("log_engine", "paper"),
            ("request_timeout", "nan"),
            ("initial_learners", "0"),
            ("initial_learners", "2,,3"),
            ("initial_learners", "two"),
        ] {
            assert!(config.set(name, value).is_err(), "{name}");
        }
    }
}

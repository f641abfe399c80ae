//! How a node begins: what its log has to say for that, and what raft is told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use raft::eraftpb::HardState;
use raft::RawNode;

use super::acquaintances::Greetings;
use super::bodies::Bodies;
use super::bugs::{self, Bug};
use super::divergence::Divergence;
use super::election_timer::ElectionTimer;
use super::fetches::Fetches;
use super::lone_commits::LoneCommits;
use super::machine_stream::MachineStream;
use super::outcomes::Outcomes;
use super::reads::Reads;
use super::requests::Requests;
use super::sessions::Sessions;
use super::snapshotting::Snapshots;
use super::tail::Tail;
use super::unawaited::Unawaited;
use super::writes::Writes;
use super::{founding, Actions, Context, Core, Kind, Micros, Rng, FOUNDING_INDEX, FOUNDING_TERM};
use crate::cluster::{ClusterState, NodeId};
use crate::config::Config;
use crate::entry::Entry;
use crate::error::{Error, ErrorCode, Result};
use crate::log::{ClusterRecord, LogState, SnapshotMeta};
use crate::status::Role;

/// What a new directory's log says: for an initial member the founding snapshot, for one that waits to be joined nothing.
pub fn new_log(founding: &ClusterState) -> (HardState, ClusterRecord, Option<SnapshotMeta>) {
    if founding.members().is_empty() {
        return (HardState::default(), ClusterRecord { index: 0, cluster: ClusterState::default() }, None);
    }
    let cluster = founding.clone();
    let hard_state = HardState { term: FOUNDING_TERM, vote: 0, commit: FOUNDING_INDEX };
    let without_file = SnapshotMeta::without_file(FOUNDING_INDEX, FOUNDING_TERM, cluster.clone());
    let snapshot = SnapshotMeta { outcomes: Some(0), ..without_file };
    (hard_state, ClusterRecord { index: FOUNDING_INDEX, cluster }, Some(snapshot))
}

/// What a core is made of.
pub struct CoreOptions {
    pub config: Config,
    pub node_id: NodeId,
    /// What others dial.
    pub addr: String,
    /// The initial members; empty for a node that waits to be joined.
    pub initial: BTreeMap<NodeId, String>,
    /// Drawn anew at each start; makes proposals and reads of different starts differ.
    pub start: u64,
    /// Of the core's own randomness: election timeouts, incarnation.
    pub seed: u64,
    pub log: LogState,
    /// The log's entries above `log.cluster.index`.
    pub entries: Vec<Entry>,
    /// What the file of `log.snapshot` ends with: the table of client sessions.
    pub sessions: Vec<u8>,
    /// Up to where a state machine that is durable by itself has applied, and has it on its disk; `None`: it starts empty (S7).
    pub machine_applied: Option<u64>,
    pub now: Micros,
}

fn corrupt(what: String) -> Error {
    Error::not_done(ErrorCode::CorruptData, what)
}

/// What the log says at start, with all that is known to be committed. An error where the log is not whole.
fn committed(log: &LogState, entries: &[Entry], machine_applied: Option<u64>) -> Result<HardState> {
    let mut hard_state = log.hard_state.clone();
    // S7: what is named by the snapshot or the stored configuration was committed.
    let snapshot_index = log.snapshot.as_ref().map_or(0, |s| s.index);
    hard_state.commit = hard_state.commit.max(snapshot_index).max(log.cluster.index);
    if hard_state.commit > log.last_index {
        return Err(corrupt(format!(
            "the log ends at index {} but says that index {} is committed: entries were lost",
            log.last_index, hard_state.commit
        )));
    }
    if let Some(ahead) = machine_applied.filter(|index| *index > log.last_index) {
        return Err(Error::not_done(
            ErrorCode::WrongDirectory,
            format!(
                "the state machine has applied index {ahead}, but the log ends at index {}: it is not the log of this state \
                 machine, or has lost entries; name the directory that belongs to it, or give an empty state machine, which \
                 takes its state from the log",
                log.last_index
            ),
        ));
    }
    // S7: it applies only what is committed, and may know of it before the hard state says so.
    hard_state.commit = hard_state.commit.max(machine_applied.unwrap_or(0));
    if log.cluster.index.saturating_add(1) < log.first_index || snapshot_index.saturating_add(1) < log.first_index {
        return Err(corrupt(format!(
            "the log starts at index {} but its snapshot ends at {snapshot_index} and its members are known at {}: entries are missing",
            log.first_index, log.cluster.index
        )));
    }
    let expected = log.last_index.saturating_sub(log.cluster.index);
    if entries.len() as u64 != expected {
        return Err(corrupt(format!(
            "{} of {expected} entries after index {} could be read",
            entries.len(),
            log.cluster.index
        )));
    }
    Ok(hard_state)
}

fn raft_config(node_id: NodeId, config: &Config, applied: u64) -> raft::Config {
    let (low, high) = config.election_range();
    raft::Config {
        id: node_id,
        election_tick: config.election_tick as usize,
        heartbeat_tick: config.heartbeat_tick as usize,
        applied,
        max_size_per_msg: config.max_size_per_msg,
        max_inflight_msgs: config.max_inflight_msgs as usize,
        check_quorum: config.check_quorum,
        pre_vote: config.pre_vote,
        min_election_tick: low as usize,
        max_election_tick: high as usize,
        // Done by ourselves, without its fault: see `appends`.
        batch_append: bugs::on(Bug::MergesAppendsBlindly),
        priority: config.priority,
        // Bounded by us before raft sees a proposal: raft would drop the whole batch.
        max_uncommitted_size: raft::NO_LIMIT,
        max_committed_size_per_ready: config.max_committed_size_per_ready,
        ..raft::Config::default()
    }
}

impl Core {
    /// Builds the node from what its log says. The first [`Core::poll`] may already ask for a restore.
    pub fn new(options: CoreOptions) -> Result<Self> {
        let CoreOptions { config, node_id, addr, initial, start, seed, log, entries, sessions, machine_applied, now } =
            options;
        let hard_state = committed(&log, &entries, machine_applied)?;
        let newest_time_us = entries
            .iter()
            .filter_map(Context::of)
            .map(|c| c.time_us)
            .max()
            .unwrap_or(0)
            .max(log.cluster.cluster.time_us);
        let cluster = Arc::new(log.cluster.cluster.clone());
        let opens = |entry: &Entry| Context::of(entry).is_some_and(|context| context.kind == Kind::OpenSession);
        let looks = cluster.sessions || entries.iter().any(opens);
        let founding_heard = entries.iter().rev().find_map(founding::founding_of);
        let term = hard_state.term;
        let mut tail = Tail::new(&log, hard_state.clone(), cluster.conf_state(), entries);
        tail.turn_mut().limit(config.max_size_per_msg);
        // slog's records of raft are dropped: what matters comes as events.
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config(node_id, &config, log.cluster.index), tail, &logger)
            .map_err(|e| Error::not_done(ErrorCode::InvalidConfig, format!("raft refuses this configuration: {e}")))?;
        let snapshot_index = log.snapshot.as_ref().map_or(0, |s| s.index);
        let sessions = Sessions::decode(&sessions, config.max_sessions, snapshot_index)
            .map_err(|reason| corrupt(format!("the snapshot at index {snapshot_index} is damaged: {reason}")))?;
        let snapshot = log.snapshot.as_ref();
        let machine = MachineStream::new(snapshot, log.first_index, machine_applied, &sessions, looks);
        let outcomes_window = config.outcomes_window.max(1);
        // A machine that kept its state is compared from the next window on; one that stands where a snapshot ends knows its sum (S17).
        let sum = match &log.snapshot {
            Some(snapshot) if snapshot.index == machine.applied() => snapshot.outcomes,
            Some(_) => None,
            None => (machine.applied() == 0).then_some(0),
        };
        let outcomes = Outcomes::new(outcomes_window, machine.applied(), sum);
        let replayed =
            log.snapshot.clone().filter(|s| bugs::on(Bug::SnapshotWithOldMembers) && s.index < log.cluster.index);
        let mut core = Core {
            id: node_id,
            addr,
            start,
            raw,
            initial,
            rng: Rng::new(seed),
            now,
            wall_us: 0,
            versions: VecDeque::from([(log.cluster.index, Arc::clone(&cluster))]),
            time_us: log.cluster.cluster.time_us,
            newest_time_us,
            handed: log.cluster.index,
            timer: ElectionTimer::default(),
            bodies: Bodies::default(),
            writes: Writes::new(term, hard_state, log.cluster.index),
            requests: Requests::default(),
            reads: Reads::default(),
            machine,
            sessions,
            outcomes,
            outcomes_window,
            divergence: Divergence::default(),
            snapshots: Snapshots::new(now, log.bytes),
            fetches: Fetches::default(),
            greetings: Greetings::new(founding_heard),
            lone_commits: LoneCommits::default(),
            unawaited: Unawaited::default(),
            last_role: Role::Waiting,
            last_leader: (0, 0),
            removed: cluster.is_removed(node_id),
            failed: None,
            prune: None,
            identity: log.identity,
            cluster,
            config,
            out: Actions::default(),
        };
        if let Some(snapshot) = replayed {
            core.versions.push_front((snapshot.index, Arc::new(snapshot.cluster)));
        }
        core.announce_peers();
        Ok(core)
    }
}

//! The node as a deterministic state machine: inputs in, [`Actions`] out. No I/O, no clock, no thread, no randomness of its own.
//!
//! ```text
//!   messages ─┐                         ┌─► messages that promise nothing: now
//!   requests ─┤                         ├─► one atomic log write ──► written(n) ──► messages that promise it
//!   ticks ────┼─► step … step ─► poll ──┼─► commands for the state machine ──► answer(…) ──► replies, reads
//!   written ──┤    (drain all)  (once)  ├─► entries to fetch, snapshots to send
//!   answers ──┘                         └─► completions, events
//! ```
//!
//! A shell (`node.rs`, or the simulator) drains its whole inbox into the core and then calls [`Core::poll`] once. Time and
//! randomness come in as inputs, so a cluster replays from one seed.
//!
//! Invariants: `machine applied <= handed over <= commit <= last`, and `snapshot <= handed over`; what promises durability leaves only after its
//! write (S1–S3); every accepted request completes exactly once.

mod acquaintances;
mod actions;
mod appends;
mod batch_maker;
mod bodies;
#[cfg(feature = "known-bugs")]
pub mod bugs;
#[cfg(not(feature = "known-bugs"))]
mod bugs;
mod check;
mod deadlines;
mod divergence;
#[cfg(test)]
mod durable_machine_tests;
mod election_timer;
mod entry;
mod fetches;
#[cfg(test)]
mod forward_tests;
mod forwards;
mod founding;
mod greeting;
#[cfg(test)]
mod greeting_tests;
mod handover;
#[cfg(test)]
mod leave_tests;
#[cfg(test)]
mod lone_commit_tests;
mod lone_commits;
mod machine_stream;
mod membership;
mod outcomes;
mod phase;
mod proposals;
mod reads;
mod ready;
mod received;
mod requests;
mod rng;
mod run;
#[cfg(test)]
mod session_tests;
mod sessions;
mod snapshotting;
mod status;
mod strangers;
mod sweep;
mod tail;
#[cfg(test)]
mod test_cores;
mod transfer;
mod turn;
mod unawaited;
mod what;
mod writes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use prost_raft::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeV2, ConfState, EntryType, HardState, Message, MessageType,
};
use raft::{RawNode, StateRole};

pub use actions::{Actions, Body, Fetch, Outbound, SnapshotSend};
pub use deadlines::Micros;
pub(crate) use entry::in_session;
#[cfg(test)]
pub(crate) use entry::note_session;
pub use entry::{Context, Kind, Origin};
pub use founding::founding_digest;
pub use received::Received;
pub use rng::Rng;
pub use run::{Append, Run};
pub use snapshotting::SnapshotFile;
pub use status::Positions;

use crate::cluster::{ClusterState, NodeId};
use crate::config::Config;
use crate::entry::Entry;
use crate::error::{Error, ErrorCode, Result};
use crate::log::{ClusterRecord, Identity, LogState, SnapshotMeta};
use crate::request::Reply;
use crate::status::{Event, Role};
use acquaintances::Greetings;
use bodies::Bodies;
use bugs::Bug;
use divergence::Divergence;
use election_timer::ElectionTimer;
use fetches::Fetches;
use lone_commits::LoneCommits;
use machine_stream::MachineStream;
use outcomes::Outcomes;
use reads::Reads;
use requests::Requests;
use sessions::Sessions;
use snapshotting::Snapshots;
use tail::Tail;
use unawaited::Unawaited;
use writes::Writes;

/// A founded log starts after this index, so that whoever joins later gets the members by snapshot, never by replay.
pub const FOUNDING_INDEX: u64 = 1;
pub const FOUNDING_TERM: u64 = 1;

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

pub struct Core {
    id: NodeId,
    addr: String,
    start: u64,
    config: Config,
    raw: RawNode<Tail>,
    identity: Identity,
    initial: BTreeMap<NodeId, String>,
    rng: Rng,
    now: Micros,
    wall_us: u64,
    /// The cluster as of `handed`.
    cluster: Arc<ClusterState>,
    /// Clusters from the state machine's index on, or from the stored configuration's while older entries are replayed:
    /// (since index, cluster), ascending; never empty.
    versions: VecDeque<(u64, Arc<ClusterState>)>,
    /// The leader's clock at the newest entry handed over.
    time_us: u64,
    /// Newest clock in the log, committed or not: what this node as a leader never goes below.
    newest_time_us: u64,
    /// Raft's applied cursor (S14).
    handed: u64,
    timer: ElectionTimer,
    bodies: Bodies,
    writes: Writes,
    requests: Requests,
    reads: Reads,
    machine: MachineStream,
    /// As of the last entry in the machine's batches.
    sessions: Sessions,
    outcomes: Outcomes,
    outcomes_window: u64,
    divergence: Divergence,
    snapshots: Snapshots,
    fetches: Fetches,
    greetings: Greetings,
    lone_commits: LoneCommits,
    unawaited: Unawaited,
    last_role: Role,
    last_leader: (u64, NodeId),
    removed: bool,
    failed: Option<Error>,
    /// Older snapshots' files go when no restore needs one of them any more.
    prune: Option<Arc<SnapshotMeta>>,
    out: Actions,
}

/// The change an entry makes to the membership, in raft's newer form. `None` if it cannot be read.
pub(crate) fn conf_change_of(entry: &Entry) -> Option<ConfChangeV2> {
    if entry.entry_type == EntryType::EntryConfChange as i32 {
        let one = ConfChange::decode(entry.data.as_ref()).ok()?;
        let single = ConfChangeSingle { change_type: one.change_type, node_id: one.node_id };
        Some(ConfChangeV2 { changes: vec![single], context: one.context, ..ConfChangeV2::default() })
    } else {
        ConfChangeV2::decode(entry.data.as_ref()).ok()
    }
}

impl Core {
    /// Builds the node from what its log says. The first [`Core::poll`] may already ask for a restore.
    pub fn new(options: CoreOptions) -> Result<Self> {
        let CoreOptions { config, node_id, addr, initial, start, seed, log, entries, sessions, machine_applied, now } =
            options;
        let (low, high) = config.election_range();
        let mut hard_state = log.hard_state.clone();
        // S7: what is named by the snapshot or the stored configuration was committed.
        let snapshot_index = log.snapshot.as_ref().map_or(0, |s| s.index);
        hard_state.commit = hard_state.commit.max(snapshot_index).max(log.cluster.index);
        let corrupt = |what: String| Error::not_done(ErrorCode::CorruptData, what);
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
        let newest_time_us = entries
            .iter()
            .filter_map(Context::of)
            .map(|c| c.time_us)
            .max()
            .unwrap_or(0)
            .max(log.cluster.cluster.time_us);
        let cluster = Arc::new(log.cluster.cluster.clone());
        let raft_config = raft::Config {
            id: node_id,
            election_tick: config.election_tick as usize,
            heartbeat_tick: config.heartbeat_tick as usize,
            applied: log.cluster.index,
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
        };
        let opens = |entry: &Entry| Context::of(entry).is_some_and(|context| context.kind == Kind::OpenSession);
        let looks = cluster.sessions || entries.iter().any(opens);
        let founding_heard = entries.iter().rev().find_map(founding::founding_of);
        let term = hard_state.term;
        let mut tail = Tail::new(&log, hard_state.clone(), cluster.conf_state(), entries);
        tail.turn_mut().limit(config.max_size_per_msg);
        // slog's records of raft are dropped: what matters comes as events.
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config, tail, &logger)
            .map_err(|e| Error::not_done(ErrorCode::InvalidConfig, format!("raft refuses this configuration: {e}")))?;
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

    /// A turn begins at the present moment: monotonic microseconds, and the wall clock (microseconds since 1970) for entries' times.
    pub fn begin_turn(&mut self, now: Micros, wall_us: u64) {
        self.now = self.now.max(now);
        self.wall_us = wall_us;
        self.go_on_sending();
    }

    /// When something is to be done although nothing came: [`Core::expire`], then [`Core::poll`]. A core that
    /// [owes entries](Core::owes_entries) wants that at once, whatever this says.
    pub fn next_deadline(&self) -> Option<Micros> {
        let lone = self.lone_commits.next_due().filter(|_| self.failed.is_none());
        let rest = self.raw.store().turn().rests_until().filter(|_| self.failed.is_none());
        let unawaited = self.unawaited.next_due().filter(|_| self.failed.is_none());
        self.requests.next_deadline().into_iter().chain(lone).chain(rest).chain(unawaited).min()
    }

    pub fn id(&self) -> NodeId {
        self.id
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn cluster(&self) -> &ClusterState {
        &self.cluster
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub(crate) fn leader_id(&self) -> NodeId {
        self.raw.raft.leader_id
    }

    fn leader_hint(&self) -> Option<(NodeId, String)> {
        let id = self.leader_id();
        (id != 0).then(|| (id, self.cluster.member(id).map(|m| m.addr.clone()).unwrap_or_default()))
    }

    /// First index that the log holds.
    pub fn first_index(&self) -> u64 {
        self.raw.store().first()
    }

    /// Where the state machine stands. A durable one may know more than the core has acted on since the start: that does not count yet.
    pub fn applied(&self) -> u64 {
        self.machine.stands_at().min(self.handed)
    }

    /// One tick of the configured interval: elections, heartbeats, and the node's own housekeeping.
    pub fn tick(&mut self) {
        self.watch_disk();
        if self.removed && self.leader_id() != 0 {
            // It does not tick, so its word to a leader would never run out; one that has lost the removal in a crash needs its vote.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
        if self.may_tick() {
            self.draw_election_timeout();
            if self.raw.tick() && !self.is_leader() {
                // A campaign that comes to nothing waits anew.
                self.timer.restart();
            }
        }
        self.tick_requests();
        self.tick_reads();
        self.record_acquaintances();
        self.forget_idle_strangers();
        self.promote_learners();
        self.tick_outcomes();
    }

    /// A message of a peer's stream. What cannot be is dropped and told (S16).
    pub fn receive(&mut self, from: NodeId, received: impl Into<Received>) {
        self.heard(from);
        if self.failed.is_some() {
            return;
        }
        if !self.admits(from) {
            return self.greet_anew(from);
        }
        let received: Received = received.into();
        let kind = received.head.msg_type;
        let log = &self.raw.raft.raft_log;
        let persisted = log.last_index() == log.persisted;
        if kind == MessageType::MsgReadIndex as i32 && !self.is_leader() {
            // Raft would send it on in the asker's name; the asker asks the right one soon (S16).
            return;
        }
        if kind == MessageType::MsgTimeoutNow as i32 && (!persisted || self.writes.hung()) {
            return;
        }
        if let Err(reason) = self.standing(|at| check::check(&received, from, at)) {
            self.refuse_peer(from, format!("a message of kind {kind} was dropped: {reason}"));
            return;
        }
        if !self.may_take_part()
            && !matches!(MessageType::from_i32(kind), Some(MessageType::MsgAppend | MessageType::MsgHeartbeat))
        {
            return;
        }
        if kind == MessageType::MsgAppend as i32 && !received.entries.is_empty() {
            return self.step_append(received);
        }
        let message = Message::from(received);
        if kind == MessageType::MsgRequestVote as i32 && message.term < self.raw.raft.term {
            return self.refuse_old_candidate(from);
        }
        if kind == MessageType::MsgReadIndex as i32 && self.answer_reader(&message) {
            return;
        }
        // An unknown sender's answer is of no use; nothing else can fail here.
        let _ = self.raw.step(message);
    }

    /// Shows what this node's raft stands at.
    fn standing<T>(&self, show: impl FnOnce(&check::Standing<'_>) -> T) -> T {
        let log = &self.raw.raft.raft_log;
        show(&check::Standing {
            id: self.id,
            term: self.raw.raft.term,
            commit: log.committed,
            last_index: log.last_index(),
            leads: self.is_leader(),
            tail: log.store(),
            term_at: &|index| log.term(index).ok().filter(|t| *t != 0),
        })
    }

    /// Raft decides about the places of its entries; what they say waits beside it, if it takes them.
    fn step_append(&mut self, Received { head, entries }: Received) {
        let last = entries.last().map(|e| (e.index, e.term));
        let _ = self.raw.step(Message { entries: bodies::strip(&entries), ..head });
        if last.is_some_and(|(index, term)| self.raw.raft.raft_log.term(index).is_ok_and(|t| t == term)) {
            self.bodies.wait(entries);
        }
    }

    /// Tells a candidate of an earlier term where the others are (Raft paper, figure 2; raft says nothing). Two that need each other's
    /// vote and do not campaign in step would otherwise go on for long, each a term behind the other (found by seed 330254).
    fn refuse_old_candidate(&mut self, candidate: NodeId) {
        let term = self.raw.raft.term;
        // S1: what carries a term waits for it; the candidate asks again.
        if self.writes.durable_term() == term {
            self.post(Message {
                msg_type: MessageType::MsgRequestVoteResponse as i32,
                from: self.id,
                to: candidate,
                term,
                reject: true,
                ..Message::default()
            });
        }
    }

    /// A peer could not be reached: raft probes it again instead of streaming on.
    pub fn unreachable(&mut self, peer: NodeId) {
        self.raw.report_unreachable(peer);
    }

    /// Everything that follows from the inputs since the last call.
    pub fn poll(&mut self) -> Actions {
        if self.failed.is_none() {
            if bugs::on(Bug::CommitsEntriesOfOldTerms) && self.is_leader() {
                self.commit_too_much();
            }
            self.note_role();
            self.found_cluster();
            self.flush_proposals();
            self.pump_reads();
            // Bounded: a Ready cut by size, or one that changed the membership, is followed by another.
            for _ in 0..64 {
                if !self.raw.has_ready() {
                    break;
                }
                self.take_ready();
                self.note_role();
            }
            if !self.raw.has_ready() {
                self.bodies.forget();
            }
            self.found_cluster();
            self.pump_reads();
            self.pump_machine();
            self.consider_snapshot();
            self.write_extra();
            self.fetch_wanted();
            self.tell_lone_commits();
            self.forget_ended();
            self.raw.mut_store().sweep();
        }
        std::mem::take(&mut self.out)
    }

    /// More to do although no input came.
    pub fn has_more(&self) -> bool {
        self.failed.is_none() && self.raw.has_ready()
    }

    fn note_role(&mut self) {
        let role = self.role();
        let raft = &self.raw.raft;
        let leader = (raft.term, raft.leader_id);
        if leader != self.last_leader {
            let lost = self.last_leader;
            self.last_leader = leader;
            self.leader_changed(lost);
            self.reads_restart();
            if lost.1 != leader.1 || leader.1 != 0 {
                self.out
                    .events
                    .push(Event::LeaderChanged { term: leader.0, leader_id: (leader.1 != 0).then_some(leader.1) });
            }
        }
        if role != self.last_role {
            self.last_role = role;
            self.out.events.push(Event::RoleChanged { term: leader.0, role });
        }
    }

    /// Gives up leadership within its term: the others elect, this node waits (S4, and on demand).
    fn abdicate(&mut self) {
        if self.is_leader() {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
            self.timer.restart();
        }
    }

    /// This node has found that it cannot go on: it answers everything, and then nothing any more (rules, P7).
    pub fn fail(&mut self, error: Error) {
        if self.failed.is_none() {
            self.end_requests(&error);
            self.failed = Some(error.clone());
            self.out.stop = Some(Err(error));
        }
    }

    /// Ends what is pending; the core is to be dropped after one more [`Core::poll`].
    pub fn close(&mut self) {
        if self.failed.is_none() {
            let error = Error::unknown(ErrorCode::Closed, "the node was closed");
            self.end_requests(&error);
            self.failed = Some(error);
        }
    }

    fn set_cluster(&mut self, index: u64, cluster: ClusterState) {
        let before = std::mem::replace(&mut self.cluster, Arc::new(cluster));
        self.versions.push_back((index, Arc::clone(&self.cluster)));
        self.writes.cluster_changed();
        let members_changed = before.members() != self.cluster.members();
        if members_changed || before.voters != self.cluster.voters || before.learners != self.cluster.learners {
            self.out.events.push(Event::MembersChanged {
                index,
                voters: self.cluster.voters.clone(),
                learners: self.cluster.learners.clone(),
                addresses: self.cluster.members().iter().map(|m| (m.id, m.addr.clone())).collect(),
            });
        }
        let gone: Vec<NodeId> =
            before.members().iter().map(|m| m.id).filter(|id| self.cluster.is_removed(*id)).collect();
        for gone in gone {
            if gone == self.id {
                self.note_removed("an entry of the log removed this node");
            } else {
                self.out.disconnect.push(gone);
            }
        }
        if before.incarnation.is_empty() && !self.cluster.incarnation.is_empty() {
            // Streams greeted before the founding, of members whom its entry does not name: they greet anew, to be recorded (S11).
            self.out.disconnect.extend(self.unrecorded_acquaintances());
        }
        if members_changed {
            self.forget_learned(&before);
        }
        if members_changed || before.incarnation != self.cluster.incarnation {
            self.announce_peers();
        }
    }

    fn note_removed(&mut self, reason: &str) {
        if self.removed {
            return;
        }
        self.removed = true;
        self.out.hello_changed = true;
        self.abdicate();
        self.let_go_of_peers();
        // Who asked to leave hears that it has.
        self.requests_to_leave().into_iter().for_each(|request| self.complete(request, Ok(Reply::Done)));
        if self.requests.leaving {
            let error = self.left_while_joining();
            for request in std::mem::take(&mut self.requests.joining) {
                self.complete(request, Err(error.clone()));
            }
        }
        let error = Error::unknown(ErrorCode::Removed, format!("node {}: {reason}", self.id));
        self.end_requests(&error);
        if self.config.terminate_on_remove {
            self.out.stop = Some(Ok(()));
        }
    }

    fn conf_state_applied(&mut self, conf: &ConfState) {
        self.raw.mut_store().set_conf_state(conf.clone());
    }

    pub fn hard_state(&self) -> HardState {
        self.raw.raft.hard_state()
    }
}

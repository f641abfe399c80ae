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
mod change_plan;
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
mod start;
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
use raft::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeV2, ConfState, EntryType, HardState};
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
pub use start::{new_log, CoreOptions};
pub use status::Positions;

use crate::cluster::{ClusterState, NodeId};
use crate::config::Config;
use crate::entry::Entry;
use crate::error::{Error, ErrorCode};
use crate::log::{Identity, SnapshotMeta};
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

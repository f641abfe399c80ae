//! When a snapshot is taken, what it carries, how it gets to a peer, and how far the log may go after it (S6, S13, S19).

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::eraftpb::{Message, MessageType, Snapshot, SnapshotMetadata};
use raft::SnapshotStatus;

use super::bugs::{self, Bug};
use super::deadlines::Micros;
use super::phase::{Phase, Place};
use super::received::Received;
use super::requests::State;
use super::sessions::{Name, Sessions};
use super::{check, Core, SnapshotSend};
use crate::cluster::{ClusterState, NodeId};
use crate::error::{Error, ErrorCode};
use crate::log::SnapshotMeta;
use crate::machine::{MachineRequest, Outcome};
use crate::request::{Reply, SnapshotInfo};
use crate::status::Event;

/// What a complete snapshot file holds: bytes, how many of them are the table of sessions, and their checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    pub size: u64,
    pub sessions: u64,
    pub crc: u32,
}

struct Making {
    id: u64,
    index: u64,
    term: u64,
    cluster: ClusterState,
    asked: Vec<u64>,
    /// The sum of outcomes at `index`, once the machine has got there (S17).
    outcomes: Option<u64>,
    /// The table at `index`; what commands on their way to the machine came to is put there as they are answered.
    sessions: Sessions,
}

pub(super) struct Snapshots {
    making: Option<Making>,
    /// Named in a write that is not durable yet: those who asked for it.
    naming: Vec<u64>,
    naming_index: u64,
    asked: Vec<u64>,
    /// A member needs one that names it (S13).
    wanted: bool,
    /// Entries handed over since the newest one, in bytes.
    bytes_since: u64,
    bytes_at_making: u64,
    place: Place,
    /// One was due, and its size alone put it off (S19).
    put_off: bool,
    taken_at: Micros,
    not_before: Micros,
    /// Being sent: peer → index.
    sending: BTreeMap<NodeId, u64>,
    /// Received whole, and on its way into raft; with the table of sessions.
    received: Option<(Arc<SnapshotMeta>, Sessions)>,
    /// The table of the received snapshot that the log is about to name.
    installing: Option<(u64, Sessions)>,
}

impl Snapshots {
    pub fn new(now: Micros, log_bytes: u64) -> Self {
        Snapshots {
            making: None,
            naming: Vec::new(),
            naming_index: 0,
            asked: Vec::new(),
            wanted: false,
            bytes_since: log_bytes,
            bytes_at_making: 0,
            place: Place::started(),
            put_off: false,
            taken_at: now,
            not_before: 0,
            sending: BTreeMap::new(),
            received: None,
            installing: None,
        }
    }

    pub fn ask(&mut self, request: u64) {
        self.asked.push(request);
    }

    /// Lets go of requests that have ended, where more than `limit` wait.
    pub fn forget(&mut self, limit: usize, pending: impl Fn(&u64) -> bool) {
        if self.asked.len() > limit {
            self.asked.retain(pending);
        }
    }

    /// Of a command that the snapshot being made contains.
    pub fn came_to(&mut self, index: u64, name: Name, outcome: &Outcome) {
        if let Some(making) = self.making.as_mut().filter(|making| index <= making.index) {
            making.sessions.came_to(index, name, Some(outcome));
        }
    }

    pub fn grew(&mut self, bytes: u64) {
        self.bytes_since = self.bytes_since.saturating_add(bytes);
    }
}

impl Core {
    fn present_snapshot(&self) -> Option<Arc<SnapshotMeta>> {
        self.raw.store().snapshot_meta().cloned()
    }

    /// The snapshot that the log names, if any.
    pub fn snapshot(&self) -> Option<Arc<SnapshotMeta>> {
        self.present_snapshot()
    }

    pub(super) fn snapshot_index(&self) -> u64 {
        self.raw.store().snapshot_meta().map_or(0, |s| s.index)
    }

    /// A snapshot is due: by entries, by bytes, by time, because a member needs one, or because somebody asked.
    pub(super) fn consider_snapshot(&mut self) {
        if self.raw.mut_store().take_wanted_snapshot().is_some() {
            self.snapshots.wanted = true;
        }
        let idle = self.snapshots.making.is_none() && self.snapshots.naming_index == 0;
        if !idle || self.removed {
            return;
        }
        let present = self.present_snapshot();
        let present_index = present.as_ref().map_or(0, |s| s.index);
        let at = self.machine.queued();
        let grown = at.saturating_sub(present_index);
        let asked = !self.snapshots.asked.is_empty();
        if at > self.handed || at < self.machine.applied() {
            // A durable machine that is ahead of what was handed over, or looked at: members and sessions at its index are not known yet (S13).
            return;
        }
        if grown == 0 {
            if asked {
                self.answer_present(present);
            }
            return;
        }
        if !asked && self.now < self.snapshots.not_before {
            return;
        }
        let config = &self.config;
        // S19: not before the log has grown by the last one's size; otherwise a follower needs the next before it has the last.
        let size = present.as_ref().map_or(0, |s| s.size);
        let bytes = self.snapshots.bytes_since;
        let phase = self.phase();
        let by_entries = phase.is_due(config.snapshot_entries, present_index, at);
        let by_bytes = config.snapshot_bytes > 0 && bytes >= config.snapshot_bytes;
        let by_time = config.snapshot_interval.is_some_and(|every| {
            let every = u64::try_from(every.as_micros()).unwrap_or(u64::MAX);
            phase.is_due(every, self.snapshots.taken_at, self.now)
        });
        let due = by_entries || by_bytes || by_time;
        self.snapshots.put_off |= due && bytes < size;
        let bytes_decide = self.snapshots.put_off || !(by_entries || by_time);
        let time = due && bytes >= size && (!bytes_decide || self.snapshots.place.is_time(phase, bytes));
        if asked || self.snapshots.wanted || time {
            self.snapshots.place.taken(!(time && bytes_decide));
            self.begin_snapshot(at);
        }
    }

    fn phase(&self) -> Phase {
        Phase { position: self.position(self.id), members: self.cluster().members().len() as u64 }
    }

    fn position(&self, id: NodeId) -> u64 {
        self.cluster().members().iter().filter(|m| m.id < id).count() as u64
    }

    fn answer_present(&mut self, present: Option<Arc<SnapshotMeta>>) {
        for request in std::mem::take(&mut self.snapshots.asked) {
            let result = match &present {
                Some(meta) => Ok(Reply::Snapshot(info(meta))),
                None => Err(Error::not_done(
                    ErrorCode::SnapshotFailed,
                    "nothing has been applied yet: there is nothing to take a snapshot of",
                )),
            };
            self.complete(request, result);
        }
    }

    fn begin_snapshot(&mut self, index: u64) {
        let Some(term) = self.raw.store().known_term(index) else { return };
        // None in a replay, until it has reached the index whose members are stored: a snapshot carries those of exactly its own (S13).
        let Some(cluster) = self.versions.iter().rev().find(|(since, _)| *since <= index).map(|(_, c)| (**c).clone())
        else {
            return;
        };
        let mut cluster = cluster;
        cluster.time_us = self.time_us;
        if bugs::on(Bug::SnapshotForgetsIds) {
            cluster.next_id = cluster.members().iter().map(|m| m.id).max().unwrap_or(0).saturating_add(1);
            cluster.removed.clear();
        }
        let id = self.machine.next_id();
        let asked = std::mem::take(&mut self.snapshots.asked);
        self.snapshots.wanted = false;
        self.snapshots.bytes_at_making = self.snapshots.bytes_since;
        self.snapshots.put_off = false;
        self.snapshots.making =
            Some(Making { id, index, term, cluster, asked, outcomes: None, sessions: self.sessions.clone() });
        self.note_outcomes();
        self.out.machine.push(MachineRequest::Snapshot { id, index, term });
    }

    /// The machine has got to where a snapshot is being taken: its sum of outcomes is known now, and may be forgotten later.
    pub(super) fn note_outcomes(&mut self) {
        let Some(making) = self.snapshots.making.as_mut().filter(|m| m.outcomes.is_none()) else { return };
        making.outcomes = self.outcomes.sum_at(making.index);
    }

    /// What the file of the snapshot being made has to say beside the state: index, term, cluster.
    pub fn snapshot_header(&self, id: u64) -> Option<(u64, u64, ClusterState)> {
        self.snapshots.making.as_ref().filter(|m| m.id == id).map(|m| (m.index, m.term, m.cluster.clone()))
    }

    /// What the file ends with, behind the state: the table of client sessions. Asked for once the machine has answered all that came before.
    pub fn snapshot_sessions(&self, id: u64) -> Option<Vec<u8>> {
        self.snapshots.making.as_ref().filter(|m| m.id == id).map(|m| m.sessions.encode())
    }

    /// The file is complete and synced.
    pub fn snapshot_made(&mut self, id: u64, file: SnapshotFile) {
        let Some(making) = self.snapshots.making.take_if(|m| m.id == id) else { return };
        self.snapshots.taken_at = self.now;
        if making.index <= self.snapshot_index() {
            // One was received meanwhile that goes further.
            self.snapshots.asked.extend(making.asked);
            let present = self.present_snapshot();
            self.answer_present(present);
            return;
        }
        self.snapshots.bytes_since = self.snapshots.bytes_since.saturating_sub(self.snapshots.bytes_at_making);
        let meta = Arc::new(SnapshotMeta {
            index: making.index,
            term: making.term,
            cluster: making.cluster,
            size: file.size,
            sessions: file.sessions,
            crc: file.crc,
            has_file: true,
            outcomes: making.outcomes,
        });
        let trailing = self.config.trailing_entries;
        let by_bytes = self.raw.store().index_before_bytes(self.config.snapshot_bytes.max(self.config.tail_bytes));
        let mut compact_to = meta.index.saturating_sub(trailing).max(by_bytes).min(meta.index);
        if let Some(oldest) = self.snapshots.sending.values().min() {
            // While one is being sent, the log after its index is kept, up to a limit (S19).
            compact_to = compact_to.min((*oldest).max(by_bytes));
        }
        let compact_to = compact_to.max(self.raw.store().first().saturating_sub(1));
        self.snapshots.naming = making.asked;
        self.snapshots.naming_index = meta.index;
        if bugs::on(Bug::PrunesBeforeTheLogNamesIt) {
            self.prune = Some(Arc::clone(&meta));
        }
        self.writes.name_snapshot(meta, compact_to);
    }

    pub fn snapshot_failed(&mut self, id: u64, reason: String) {
        let Some(making) = self.snapshots.making.take_if(|m| m.id == id) else { return };
        self.snapshots.not_before = self.now.saturating_add(10_000_000);
        for request in making.asked {
            let error = Error::not_done(ErrorCode::SnapshotFailed, reason.clone());
            self.complete(request, Err(error.with_index(making.index)));
        }
        self.out.events.push(Event::SnapshotFailed { index: making.index, reason });
    }

    /// The write that names it is durable: now the old log and files may go (S6).
    pub(super) fn snapshot_named(&mut self, meta: Arc<SnapshotMeta>, compact_to: u64) {
        self.snapshots.naming_index = 0;
        let asked = std::mem::take(&mut self.snapshots.naming);
        if meta.index > self.snapshot_index() {
            let store = self.raw.mut_store();
            store.set_snapshot_meta(Arc::clone(&meta));
            store.compact(compact_to);
            self.prune = Some(Arc::clone(&meta));
            self.end_useless_sends(compact_to);
            self.out.events.push(Event::SnapshotTaken { index: meta.index, size: meta.state_size() });
        }
        for request in asked {
            self.complete(request, Ok(Reply::Snapshot(info(&meta))));
        }
    }

    /// S19: the log was kept for them up to its limit, and now begins after what they are being sent: they need a newer one.
    fn end_useless_sends(&mut self, compact_to: u64) {
        for (peer, index) in self.snapshots.sending.iter().filter(|(_, index)| **index < compact_to) {
            self.out.cancel_sends.push(*peer);
            self.out.events.push(Event::SnapshotNotSent {
                peer: *peer,
                index: *index,
                reason: format!(
                    "it took so long that the log after it reached its limit and now begins after index {compact_to}; a newer one follows"
                ),
            });
        }
    }

    /// Raft wants a peer to have our snapshot instead of entries.
    pub(super) fn send_snapshot(&mut self, message: Message) {
        let to = message.to;
        let index = message.snapshot.as_ref().and_then(|s| s.metadata.as_ref()).map_or(0, |m| m.index);
        match self.present_snapshot().filter(|meta| meta.index == index && self.admits(to)) {
            Some(meta) => {
                self.snapshots.sending.insert(to, index);
                self.out.snapshot_sends.push(SnapshotSend { to, meta, message });
            }
            None => self.raw.report_snapshot(to, SnapshotStatus::Failure),
        }
    }

    /// How the sending of a snapshot ended.
    pub fn snapshot_sent(&mut self, to: NodeId, delivered: bool) {
        self.snapshots.sending.remove(&to);
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        if self.is_leader() {
            self.raw.report_snapshot(to, status);
        }
    }

    /// Whether a snapshot that a peer wants to send may come: refused before its bytes are.
    /// A leader that does not know how far this node has got is told (as raft tells who sends an old snapshot): its log may begin
    /// behind what it believes this node to have, and it would send the same snapshot for ever.
    pub fn accepts_snapshot(&mut self, from: NodeId, index: u64) -> Result<(), String> {
        if !self.admits(from) {
            return Err(format!("node {from} is not listened to here"));
        }
        let commit = self.raw.raft.raft_log.committed;
        if index < commit {
            if from == self.leader_id() && self.failed.is_none() {
                let metadata = SnapshotMetadata { index, ..SnapshotMetadata::default() };
                let old = Snapshot { metadata: Some(metadata), ..Snapshot::default() };
                let message = Message {
                    msg_type: MessageType::MsgSnapshot as i32,
                    from,
                    to: self.id,
                    term: self.raw.raft.term,
                    snapshot: Some(old),
                    ..Message::default()
                };
                // Raft takes nothing from a snapshot below its commit index, and answers with where it stands.
                let _ = self.raw.step(message);
            }
            return Err(format!("the log here goes on from index {commit} already"));
        }
        Ok(())
    }

    /// A snapshot has come whole: checked, synced, in its place (S6). Now raft may hear of it.
    /// `sessions`: what its file ends with.
    pub fn receive_snapshot(&mut self, from: NodeId, message: Message, meta: SnapshotMeta, sessions: &[u8]) {
        self.heard(from);
        if self.failed.is_some() || !self.admits(from) {
            return;
        }
        let received = Received::from(message);
        if let Err(reason) = self.standing(|at| check::check_snapshot(&received, from, at)) {
            self.refuse_peer(from, format!("a snapshot was dropped: {reason}"));
            return;
        }
        let named = received.head.snapshot.as_ref().and_then(|s| s.metadata.as_ref());
        let agrees = named.is_some_and(|m| {
            (m.index, m.term) == (meta.index, meta.term) && m.conf_state.as_ref() == Some(&meta.cluster.conf_state())
        });
        if !agrees {
            self.refuse_peer(from, "its snapshot is not the one its message names".into());
            return;
        }
        let sessions = match Sessions::decode(sessions, self.config.max_sessions, meta.index) {
            Ok(sessions) => sessions,
            Err(reason) => return self.refuse_peer(from, format!("a snapshot was dropped: {reason}")),
        };
        let _ = self.raw.step(received.into());
        // Raft may have refused it, and may hold another one that came just before.
        let taken = self.raw.raft.raft_log.unstable.snapshot.as_ref().and_then(|s| s.metadata.as_ref());
        if taken.is_some_and(|m| m.index == meta.index) {
            self.snapshots.received = Some((Arc::new(meta), sessions));
        }
    }

    /// Raft has taken a received snapshot: the log starts anew behind it.
    pub(super) fn install_snapshot(&mut self, snapshot: &Snapshot) -> Option<Arc<SnapshotMeta>> {
        let index = snapshot.metadata.as_ref().map_or(0, |m| m.index);
        let Some((meta, sessions)) = self.snapshots.received.take().filter(|(m, _)| m.index == index) else {
            self.fail(Error::unknown(
                ErrorCode::Internal,
                format!("raft took a snapshot at {index} that was never received"),
            ));
            return None;
        };
        self.snapshots.installing = Some((index, sessions));
        self.raw.mut_store().reset(&meta);
        self.handed = meta.index;
        self.time_us = self.time_us.max(meta.cluster.time_us);
        self.newest_time_us = self.newest_time_us.max(meta.cluster.time_us);
        self.versions.clear();
        self.machine.overtake();
        self.snapshots.bytes_since = 0;
        self.snapshots.naming_index = 0;
        let asked = std::mem::take(&mut self.snapshots.naming);
        self.snapshots.asked.extend(asked);
        self.set_cluster(meta.index, meta.cluster.clone());
        self.snapshots.put_off = false;
        self.snapshots.place = Place::received(self.position(self.leader_id()));
        if let Some(incarnation) = meta.cluster.incarnation() {
            self.adopt(incarnation);
        }
        Some(meta)
    }

    /// The write that names a received snapshot is durable: the state machine takes it.
    pub(super) fn snapshot_installed(&mut self, meta: Arc<SnapshotMeta>) {
        if meta.index > self.raw.raft.raft_log.applied {
            self.raw.advance_apply_to(meta.index);
        }
        // One that came later is durable already, or on its way there: the machine waits, and takes that one.
        if meta.index == self.snapshot_index() {
            if let Some((_, sessions)) = self.snapshots.installing.take_if(|(index, _)| *index == meta.index) {
                self.sessions = sessions;
            }
            if meta.has_file {
                self.restore_machine(Arc::clone(&meta));
            }
            self.machine.resume_after(meta.index);
        }
        // Those that no machine will ever answer: not handed over yet, or handed over and in no batch.
        let answering = self.machine.answering();
        let mut overtaken: Vec<(u64, u64)> = self
            .requests
            .pending
            .iter()
            .filter_map(|(request, p)| match p.state {
                State::Placed { index, .. } if index <= meta.index => Some((index, *request)),
                _ => None,
            })
            .filter(|(_, request)| !answering.contains(request))
            .collect();
        overtaken.sort_unstable();
        for (index, request) in overtaken {
            self.result_lost(request, index);
        }
        self.prune = Some(Arc::clone(&meta));
        self.out.events.push(Event::SnapshotInstalled { index: meta.index, size: meta.state_size() });
    }
}

fn info(meta: &SnapshotMeta) -> SnapshotInfo {
    SnapshotInfo { index: meta.index, term: meta.term, size: meta.state_size(), path: String::new() }
}

#[cfg(test)]
#[path = "snapshotting_tests.rs"]
mod tests;

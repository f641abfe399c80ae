//! Committed entries, in order: membership and the library's own entries take effect here; commands go on to the state machine.
//! Raft's applied cursor follows at once (S14): a slow state machine must not hold up elections.

use prost::Message as _;

use super::bugs::{self, Bug};
use super::entry::{is_conf_change, Context, Founding, Kind};
use super::membership::{self, Awaited};
use super::requests::State;
use super::what::What;
use super::{conf_change_of, Core};
use crate::cluster::{ClusterState, Member, Uid};
use crate::entry::Entry;
use crate::error::{Committed, Error, ErrorCode};
use crate::request::Reply;

impl Core {
    pub(super) fn hand_over(&mut self, upto: u64) {
        let from = self.handed.saturating_add(1);
        let mut ours: Vec<Entry> = Vec::new();
        let mut bytes = 0u64;
        let mut newest_time = self.time_us;
        self.raw.store().for_each(from, upto, |entry| {
            bytes = bytes.saturating_add(entry.data.len() as u64);
            if is_conf_change(entry) {
                if !bugs::on(Bug::MembersAtAppend) {
                    ours.push(entry.clone());
                }
            } else if let Some(context) = Context::of(entry) {
                newest_time = newest_time.max(context.time_us);
                if !context.kind.is_of_machine() || (context.kind == Kind::OpenSession && !self.cluster.sessions) {
                    ours.push(entry.clone());
                }
            }
            true
        });
        self.time_us = newest_time;
        self.requests.uncommitted_bytes = self.requests.uncommitted_bytes.saturating_sub(bytes);
        self.snapshots.grew(bytes);
        self.settle_placed(upto);
        for entry in ours {
            self.handed = entry.index;
            self.apply_own(&entry);
        }
        self.handed = upto;
        self.raw.advance_apply_to(upto);
        self.check_goals();
    }

    /// Whoever was told an index now knows: its own entry is committed there, or another leader's is.
    fn settle_placed(&mut self, upto: u64) {
        while let Some((index, request)) = self.requests.placed.first_key_value().map(|(i, r)| (*i, *r)) {
            if index > upto {
                return;
            }
            self.requests.placed.remove(&index);
            let here = self.raw.store().known_term(index);
            let Some(pending) = self.requests.pending.get_mut(&request) else { continue };
            if let State::Placed { term, committed, .. } = &mut pending.state {
                if here == Some(*term) {
                    // A command of a session may be there and not be applied: what it comes to is known when its turn has come.
                    *committed = !matches!(pending.what, What::InSession(..));
                    continue;
                }
                if here.is_none() {
                    // A received snapshot covers it: nobody here can say what stood there.
                    self.result_lost(request, index);
                    continue;
                }
                let error = Error::not_done(
                    ErrorCode::LeadershipLost,
                    "leadership was lost and another leader's entry took its place: it was not done, send it again",
                );
                self.complete(request, Err(error.with_index(index).with_leader(self.leader_hint())));
            }
        }
    }

    pub(super) fn apply_own(&mut self, entry: &Entry) {
        let context = Context::of(entry);
        let request = context
            .filter(|c| c.origin.node == self.id && c.origin.start == self.start && c.origin.sequence != u64::MAX)
            .map(|c| c.origin.sequence);
        if is_conf_change(entry) {
            self.apply_membership(entry, request);
            return;
        }
        match context.map(|c| c.kind) {
            Some(Kind::Founding) => self.apply_founding(entry),
            Some(Kind::RecordDirectory) => {
                if let Ok(record) = Member::decode(entry.data.as_ref()) {
                    let mut cluster = (*self.cluster).clone();
                    if let Some(member) = cluster.member_mut(record.id).filter(|m| m.directory.is_empty()) {
                        member.directory = record.directory;
                        self.set_cluster(entry.index, cluster);
                    }
                }
            }
            Some(Kind::OpenSession) if !self.cluster.sessions => {
                let mut cluster = (*self.cluster).clone();
                cluster.sessions = true;
                self.set_cluster(entry.index, cluster);
            }
            Some(Kind::ReserveId) => {
                let addr = String::from_utf8_lossy(&entry.data).into_owned();
                let mut cluster = (*self.cluster).clone();
                let id = match cluster.member_at(&addr) {
                    Some(member) => member.id,
                    None => {
                        let mut id = cluster.next_id;
                        if bugs::on(Bug::ReusesIds) {
                            id = cluster.members().iter().map(|m| m.id).max().unwrap_or(0).saturating_add(1);
                        }
                        cluster.next_id = cluster.next_id.max(id.saturating_add(1));
                        id
                    }
                };
                self.set_cluster(entry.index, cluster);
                if let Some(request) = request {
                    let ticket = self.ticket(id, addr);
                    self.complete(request, Ok(Reply::Ticket(ticket)));
                }
            }
            _ => {}
        }
    }

    fn apply_membership(&mut self, entry: &Entry, request: Option<u64>) {
        // Entries are checked before they enter the log; one that cannot be read changes nothing, on every node alike.
        let Some(change) = conf_change_of(entry) else { return };
        match self.raw.apply_conf_change(&change) {
            Ok(conf) => {
                self.conf_state_applied(&conf);
                let mut cluster: ClusterState = (*self.cluster).clone();
                membership::apply(&mut cluster, &change, &conf);
                self.set_cluster(entry.index, cluster);
                if let Some(request) = request {
                    if let Some(pending) = self.requests.pending.get_mut(&request) {
                        pending.state = State::Following;
                        if let What::Change(change) = &pending.what {
                            let goals = change.goals().collect();
                            self.requests.goals.insert(request, Awaited { since: entry.index, goals });
                        }
                    }
                }
                if self.is_leader()
                    && !self.cluster.is_voter(self.id)
                    && !self.cluster.voters_outgoing.contains(&self.id)
                {
                    self.abdicate();
                }
            }
            Err(refused) => {
                if let Some(request) = request {
                    let error = Error::new(
                        ErrorCode::Membership,
                        Committed::Yes,
                        format!("raft refused the change: {refused}; the members are as before"),
                    );
                    self.complete(request, Err(error));
                }
            }
        }
    }

    fn apply_founding(&mut self, entry: &Entry) {
        let Ok(founding) = Founding::decode(entry.data.as_ref()) else { return };
        let Some(incarnation) = Uid::from_bytes(&founding.incarnation) else { return };
        if !self.cluster.incarnation.is_empty() {
            return;
        }
        let mut cluster = (*self.cluster).clone();
        cluster.incarnation = founding.incarnation;
        cluster.founding_digest = founding.digest;
        if founding.verify_results {
            cluster.verify_results_after = entry.index;
        }
        for heard in founding.heard {
            if let Some(member) = cluster.member_mut(heard.id) {
                member.directory = heard.directory;
            }
        }
        self.set_cluster(entry.index, cluster);
        self.adopt(incarnation);
    }
}

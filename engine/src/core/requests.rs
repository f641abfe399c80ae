//! Pending requests: each accepted one completes exactly once, by its deadline at the latest, saying what is known of its fate (S15).
//!
//! ```text
//!             leader here            committed            machine answers
//!  Unsent ───────────────► Placed ───────────► (committed) ───────────► done
//!    │ ▲                      ▲  └─ another term at its index ► certainly not done
//!    │ └─ refused ──┐         │ taken
//!    └─ leader ────► Forwarded ┘
//!       elsewhere       └─ leader lost, grace over ► unknown
//! ```

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::deadlines::{Deadlines, Micros};
use super::membership::{Awaited, Change};
use super::transfer::Transfer;
use super::what::What;
use super::Core;
use crate::address;
use crate::cluster::NodeId;
use crate::error::{Committed, Error, ErrorCode, Result};
use crate::request::{Completion, Reply, Request, Ticket, Token};
use crate::transport::decode_message;

/// Keys are our own running numbers: spreading them is all a hash has to do. (The same order of the map in every run.)
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
}

pub(super) type NumberMap<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Never handed to a leader.
    Unsent,
    /// On its way to the leader of this term.
    Forwarded { term: u64 },
    /// In the log of the leader of this term, at this index.
    Placed { index: u64, term: u64, committed: bool },
    /// Its entry is applied; waits for what follows from it.
    Following,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub token: Token,
    pub what: What,
    pub state: State,
    pub bytes: u64,
}

#[derive(Default)]
pub(super) struct Requests {
    pub next: u64,
    pub pending: NumberMap<Pending>,
    pub deadlines: Deadlines,
    pub unsent: VecDeque<u64>,
    /// Refused for now: tried again with the next tick.
    pub later: Vec<u64>,
    /// Own entries in the log, by index.
    pub placed: BTreeMap<u64, u64>,
    /// Forwards without an answer: number → when it went, and the requests in it.
    pub forwards: BTreeMap<u64, (Micros, Vec<u64>)>,
    pub next_forward: u64,
    /// Numbers taken of other nodes' forwards: (node, start, newest number), oldest first.
    pub taken: VecDeque<(NodeId, u64, u64)>,
    /// Bytes of commands pending here.
    pub bytes: u64,
    /// Appended here as a leader and not yet handed over.
    pub uncommitted_bytes: u64,
    /// When those that were handed to a lost leader of a term up to this one are given up.
    pub graces: VecDeque<(Micros, u64)>,
    /// Membership changes and reservations that wait for the cluster to look like this.
    pub goals: BTreeMap<u64, Awaited>,
    /// Those that wait to become members.
    pub joining: Vec<u64>,
    /// This node was told to leave since the newest of them came.
    pub leaving: bool,
    pub transfers: Vec<Transfer>,
    /// Hand-overs of leadership that raft has begun here.
    pub handed_over: u64,
}

impl Requests {
    pub fn next_deadline(&self) -> Option<Micros> {
        self.deadlines.next()
    }

    /// From so many on, most requests in a queue have ended.
    fn mostly_ended(&self) -> usize {
        self.pending.len().saturating_mul(2).saturating_add(64)
    }
}

impl Core {
    /// Takes a request; its completion comes with a later [`Core::poll`]. `timeout` in microseconds; `None`: no deadline.
    pub fn submit(&mut self, token: Token, request: Request, timeout: Option<Micros>) {
        if let Some(error) = self.not_serving() {
            self.out.completions.push(Completion { token, result: Err(error) });
            return;
        }
        match request {
            Request::Propose(data) => self.propose(vec![(token, data)], timeout),
            Request::ProposeInSession(place, data) => {
                self.accept_if(self.room_for(data.len() as u64), token, What::InSession(place, data), timeout);
            }
            Request::OpenSession => self.accept_if(self.room(), token, What::OpenSession, timeout),
            Request::CloseSession(session) => self.accept_if(self.room(), token, What::CloseSession(session), timeout),
            Request::Read => self.accept_if(self.room(), token, What::Read, timeout),
            Request::ReserveId { addr } => match (!addr.is_empty()).then(|| address::dialable("addr", &addr, false)) {
                Some(Err(error)) => self.answer(token, Err(error)),
                // Whoever does not know its address yet says so when it joins.
                _ => self.reserve_id(token, addr, timeout),
            },
            Request::Join { id, addr, directory, learner } => {
                self.accept(token, What::Change(Change::join(id, &addr, &directory, learner)), timeout);
            }
            Request::ChangeMembers(changes) => self.accept(token, What::Change(Change::of(&changes)), timeout),
            Request::Leave => {
                // A join that is under way goes on until this node is a member: then it can leave.
                self.requests.leaving = true;
                let change = Change::of(&[crate::request::MemberChange::Remove { id: self.id }]);
                self.accept(token, What::Change(change), timeout);
            }
            Request::TransferLeader(to) => self.accept(token, What::Transfer(to.unwrap_or(0)), timeout),
            Request::StepDown => {
                let result = if self.is_leader() {
                    self.abdicate();
                    Ok(Reply::Done)
                } else {
                    Err(self.not_leader("only the leader can step down"))
                };
                self.answer(token, result);
            }
            Request::Snapshot => self.accept(token, What::Snapshot, timeout),
            Request::Message(bytes) => {
                // A stranger's as much as a peer's: bounded by what it becomes.
                let len = bytes.len();
                let result = match decode_message(&bytes.into(), len) {
                    Ok(received) => {
                        self.receive(received.head.from, received);
                        Ok(Reply::Done)
                    }
                    Err(e) => {
                        let text = format!("this is no raft message: {}", e.message());
                        Err(Error::not_done(ErrorCode::InvalidArgument, text))
                    }
                };
                self.answer(token, result);
            }
            Request::Status => {
                let text = serde_json::to_string(&self.status())
                    .map_err(|e| Error::unknown(ErrorCode::Internal, format!("cannot write the status: {e}")));
                self.answer(token, text.map(Reply::Text));
            }
        }
    }

    /// From the address of a member it is that member's id: no new one is spent. A follower may lag behind the entry that has removed it, and
    /// asks the log.
    fn reserve_id(&mut self, token: Token, addr: String, timeout: Option<Micros>) {
        match self.ticket_of_member(&addr).filter(|_| self.takes_own()) {
            Some(ticket) => self.answer(token, Ok(Reply::Ticket(ticket))),
            None => self.accept(token, What::ReserveId(addr), timeout),
        }
    }

    fn ticket_of_member(&self, addr: &str) -> Option<Ticket> {
        self.cluster.member_at(addr).map(|member| self.ticket(member.id, addr.to_owned()))
    }

    /// Without a leader there is no log to ask, and the member that wants its ticket before it starts again may be the one whose vote is
    /// missing: it gets what is known here.
    fn tell_members_their_ids(&mut self) {
        if self.leader_id() != 0 {
            return;
        }
        let ticket = |what: &What| match what {
            What::ReserveId(addr) => self.ticket_of_member(addr),
            _ => None,
        };
        let pending = self.requests.pending.iter();
        let mut known: Vec<_> = pending.filter_map(|(request, p)| Some((*request, ticket(&p.what)?))).collect();
        known.sort_unstable_by_key(|(request, _)| *request);
        for (request, ticket) in known {
            self.complete(request, Ok(Reply::Ticket(ticket)));
        }
    }

    /// Waits until this node is a voter (or a learner); the shell asks the cluster for it meanwhile.
    pub fn become_member(&mut self, token: Token, ticket: &Ticket, timeout: Option<Micros>) {
        if let Err(error) = self.not_serving().map_or(Ok(()), Err).and_then(|()| self.use_ticket(ticket)) {
            self.answer(token, Err(error));
            return;
        }
        self.accept(token, What::BecomeMember, timeout);
    }

    /// The shell has learnt that a pending request cannot come to anything.
    pub fn abandon(&mut self, token: Token, error: Error) {
        let found =
            self.requests.pending.iter().find(|(_, p)| p.token == token && matches!(p.what, What::BecomeMember));
        if let Some(request) = found.map(|(request, _)| *request) {
            let refused = matches!(error.code, ErrorCode::Removed | ErrorCode::Membership);
            let error = if refused && self.requests.leaving { self.left_while_joining() } else { error };
            self.complete(request, Err(error));
        }
    }

    /// Nobody waits for these any more. What has reached a leader goes its way; what has not is not sent.
    pub fn forget_calls(&mut self, gone: &HashSet<Token>) {
        let of = self.requests.pending.iter().filter(|(_, pending)| gone.contains(&pending.token));
        let mut requests: Vec<u64> = of.map(|(request, _)| *request).collect();
        requests.sort_unstable();
        for request in requests {
            self.forget(request);
        }
    }

    /// The end of a join that this node's own leave has overtaken.
    pub(super) fn left_while_joining(&self) -> Error {
        Error::unknown(
            ErrorCode::Removed,
            format!("node {} has left: leave() was called while its join() was under way", self.id),
        )
    }

    /// Why this node takes no requests.
    pub(super) fn not_serving(&self) -> Option<Error> {
        if let Some(error) = &self.failed {
            return Some(Error { committed: Committed::No, ..error.clone() });
        }
        self.removed.then(|| {
            Error::not_done(
                ErrorCode::Removed,
                format!("node {} was removed from its cluster; join again under a new id", self.id),
            )
        })
    }

    pub(super) fn not_leader(&self, message: &str) -> Error {
        Error::not_done(ErrorCode::NotLeader, format!("node {}: {message}", self.id)).with_leader(self.leader_hint())
    }

    pub(super) fn accept_if(&mut self, room: Result<()>, token: Token, what: What, timeout: Option<Micros>) {
        match room {
            Ok(()) => self.accept(token, what, timeout),
            Err(error) => self.answer(token, Err(error)),
        }
    }

    pub(super) fn accept(&mut self, token: Token, what: What, timeout: Option<Micros>) {
        let bytes = what.command_len();
        let request = self.requests.next;
        self.requests.next = request.saturating_add(1);
        self.requests.bytes = self.requests.bytes.saturating_add(bytes);
        if let Some(timeout) = timeout {
            self.requests.deadlines.add(self.now, timeout, request);
        }
        match &what {
            What::Read => self.reads.add(request),
            What::Snapshot => self.snapshots.ask(request),
            What::BecomeMember => {
                self.requests.joining.push(request);
                self.requests.leaving = false;
            }
            _ => self.requests.unsent.push_back(request),
        }
        self.requests.pending.insert(request, Pending { token, what, state: State::Unsent, bytes });
        self.check_goals();
    }

    pub(super) fn answer(&mut self, token: Token, result: Result<Reply>) {
        self.out.completions.push(Completion { token, result });
    }

    /// The one place where a pending request ends.
    pub(super) fn complete(&mut self, request: u64, result: Result<Reply>) {
        if let Some(token) = self.forget(request) {
            self.answer(token, result);
        }
    }

    /// Ends a request without a completion: it has been told.
    pub(super) fn forget(&mut self, request: u64) -> Option<Token> {
        let pending = self.requests.pending.remove(&request)?;
        self.requests.bytes = self.requests.bytes.saturating_sub(pending.bytes);
        if let State::Placed { index, .. } = pending.state {
            self.requests.placed.remove(&index);
        }
        self.requests.goals.remove(&request);
        Some(pending.token)
    }

    /// Memory follows what is pending: what waits for a leader, or for the state machine, may wait for long, and its deadline comes first.
    /// A queue is gone through when at least half of it has ended, so that it costs each request little.
    pub(super) fn forget_ended(&mut self) {
        let limit = self.requests.mostly_ended();
        let Requests { pending, deadlines, unsent, joining, .. } = &mut self.requests;
        deadlines.forget(|request| pending.contains_key(&request));
        if unsent.len() > limit {
            unsent.retain(|request| pending.contains_key(request));
        }
        if joining.len() > limit {
            joining.retain(|request| pending.contains_key(request));
        }
        self.reads.forget(limit, |request| pending.contains_key(request));
        self.snapshots.forget(limit, |request| pending.contains_key(request));
    }

    /// Those that ask for nothing but that this node be removed.
    pub(super) fn requests_to_leave(&self) -> Vec<u64> {
        let leave = Change::of(&[crate::request::MemberChange::Remove { id: self.id }]);
        let mut found: Vec<u64> = self
            .requests
            .pending
            .iter()
            .filter(|(_, pending)| matches!(&pending.what, What::Change(change) if *change == leave))
            .map(|(request, _)| *request)
            .collect();
        found.sort_unstable();
        found
    }

    pub(super) fn end_requests(&mut self, error: &Error) {
        let mut all: Vec<u64> = self.requests.pending.keys().copied().collect();
        all.sort_unstable();
        for request in all {
            let committed = self.requests.pending.get(&request).map_or(Committed::No, fate);
            self.complete(request, Err(Error { committed, ..error.clone() }));
        }
        self.requests =
            Requests { next: self.requests.next, next_forward: self.requests.next_forward, ..Default::default() };
    }

    /// Deadlines that have come.
    pub fn expire(&mut self) {
        while let Some(request) = self.requests.deadlines.pop_expired(self.now) {
            let Some(pending) = self.requests.pending.get(&request) else { continue };
            let committed = fate(pending);
            let leader = self.leader_id();
            let never_sent = pending.state == State::Unsent;
            let what = match pending.what {
                What::Read => "the read",
                What::Command(_) | What::InSession(..) => "the proposal",
                What::OpenSession | What::CloseSession(_) => "the session",
                What::Snapshot => "the snapshot",
                _ => "the change",
            };
            let local = matches!(pending.what, What::Snapshot | What::BecomeMember);
            let error = if never_sent && leader == 0 && !local {
                Error::new(
                    ErrorCode::NoLeader,
                    Committed::No,
                    if self.cluster.members().is_empty() {
                        format!("no leader was found in time for {what}: this node belongs to no cluster yet; let it join one first")
                    } else {
                        format!("no leader was found in time for {what}; a majority of the voters must be running and reach each other")
                    },
                )
            } else {
                let known = why_late(&pending.what, committed);
                Error::new(ErrorCode::Timeout, committed, format!("{what} was not done in time: {known}"))
            };
            self.complete(request, Err(error.with_leader(self.leader_hint())));
        }
    }

    /// Whoever was handed to a leader that is lost gets one grace to turn up in the log (S15).
    pub(super) fn leader_changed(&mut self, lost: (u64, NodeId)) {
        if lost.1 != 0 && !self.requests.pending.is_empty() {
            let ticks = self.config.election_tick.saturating_mul(2);
            let grace = u64::try_from(self.config.tick_interval.as_micros()).unwrap_or(u64::MAX).saturating_mul(ticks);
            self.requests.graces.push_back((self.now.saturating_add(grace), lost.0));
        }
        self.requests.uncommitted_bytes = 0;
        self.settle_transfers();
    }

    pub(super) fn tick_requests(&mut self) {
        let later = std::mem::take(&mut self.requests.later);
        self.requests.unsent.extend(later);
        while self.requests.graces.front().is_some_and(|(at, _)| *at <= self.now) {
            let Some((_, term)) = self.requests.graces.pop_front() else { break };
            // A membership change that is in the log already still waits for what follows from it.
            let mut given_up: Vec<u64> = self
                .requests
                .pending
                .iter()
                .filter(|(_, p)| match p.state {
                    State::Forwarded { term: sent } => sent <= term,
                    State::Placed { term: at, committed: false, .. } => at <= term,
                    _ => false,
                })
                .map(|(request, _)| *request)
                .collect();
            given_up.sort_unstable();
            for request in given_up {
                let error = Error::unknown(
                    ErrorCode::LeadershipLost,
                    format!("the leader of term {term} was lost before it answered: the outcome is unknown"),
                );
                self.complete(request, Err(error.with_leader(self.leader_hint())));
            }
        }
        self.give_up_forwards();
        self.settle_transfers();
        self.tell_members_their_ids();
        self.check_goals();
    }

    /// Membership changes are complete when the cluster looks as asked.
    pub(super) fn check_goals(&mut self) {
        if self.requests.goals.is_empty() && self.requests.joining.is_empty() {
            return;
        }
        let cluster = &self.cluster;
        let mut reached: Vec<u64> = self
            .requests
            .goals
            .iter()
            .filter(|(_, awaited)| awaited.goals.iter().all(|(id, goal)| goal.reached(*id, cluster)))
            .map(|(request, _)| *request)
            .collect();
        let overtaken: Vec<u64> = self
            .requests
            .goals
            .iter()
            .filter(|(_, awaited)| awaited.since <= self.handed)
            .filter(|(_, awaited)| awaited.goals.iter().any(|(id, goal)| goal.overtaken(*id, cluster)))
            .map(|(request, _)| *request)
            .collect();
        let promised = cluster.member(self.id).is_some_and(|m| m.promote);
        if cluster.is_voter(self.id) || (cluster.is_learner(self.id) && !promised) {
            reached.append(&mut self.requests.joining);
        }
        reached.sort_unstable();
        for request in overtaken {
            let error = Error::new(
                ErrorCode::Membership,
                Committed::Yes,
                "it was done, and another membership change has overtaken it; look at the members and ask again if need be",
            );
            self.complete(request, Err(error));
        }
        for request in reached {
            let cluster = Box::new((*self.cluster).clone());
            self.complete(request, Ok(Reply::Cluster(cluster)));
        }
    }

    pub(super) fn ticket(&self, id: NodeId, addr: String) -> Ticket {
        let (leader_id, leader_addr) = self.leader_hint().unwrap_or((self.id, self.addr.clone()));
        Ticket {
            reserved_id: id,
            raft_addr: addr,
            leader_id,
            leader_addr,
            peers: self.cluster.members().iter().map(|m| (m.id, m.addr.clone())).collect(),
            incarnation: self.cluster.incarnation().map(|i| i.to_string()).unwrap_or_default(),
        }
    }
}

/// What is known of a pending request if it ended now.
fn fate(pending: &Pending) -> Committed {
    match (&pending.what, pending.state) {
        (What::Read | What::Snapshot | What::BecomeMember, _) | (_, State::Unsent) => Committed::No,
        (What::Transfer(_), State::Following) => Committed::Unknown,
        (_, State::Placed { committed: true, .. } | State::Following) => Committed::Yes,
        _ => Committed::Unknown,
    }
}

/// What is known of a request whose deadline has come, for whoever waits for it.
fn why_late(what: &What, committed: Committed) -> &'static str {
    match (what, committed) {
        (What::Read, _) => "the leader has not confirmed it, or this node not applied what it confirmed",
        (What::Snapshot, _) => "the state machine has not given it, or it is being written",
        (What::BecomeMember, _) => "this node is no voter yet (or learner, if it asked for that)",
        (What::Change(_), Committed::Yes) => {
            "it is committed, and goes on by itself: a new voter learns until it has caught up"
        }
        (_, Committed::Yes) => "it is committed, and not yet applied here",
        (_, Committed::No) => "it was not sent to a leader",
        (_, Committed::Unknown) => "it may or may not be committed",
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_cores::{follow, founders, leader, log, options, sent};
    use super::super::CoreOptions;
    use super::*;
    use crate::cluster::ClusterState;
    use crate::Config;

    /// One of three, which has heard of no leader.
    fn alone(config: Config) -> Core {
        let log = log(None, (9, ClusterState::founding(&founders())), 9);
        Core::new(CoreOptions { config, ..options(log) }).unwrap()
    }

    #[test]
    fn what_ended_while_there_was_no_leader_is_kept_nowhere() {
        let mut core = alone(Config::default());
        core.submit(1, Request::Read, None);
        core.submit(2, Request::Propose("x".into()), None);
        let mut told = 0;
        for round in 1..=100u64 {
            for token in 10..1010 {
                core.submit(token, Request::Read, Some(1000));
                core.submit(token + 1000, Request::Propose("x".into()), Some(1000));
            }
            core.begin_turn(round * 1000, 1);
            core.expire();
            told += core.poll().completions.len();
        }
        assert_eq!(told, 200_000);
        let kept = [core.requests.unsent.len(), core.reads.waits()];
        assert!(kept.iter().all(|kept| *kept < 100), "{kept:?}");
        follow(&mut core, 9);
        let asked = core.reads.rounds();
        assert!(asked.contains(&0) && core.requests.unsent.contains(&1), "what is still pending goes on: {asked:?}");
    }

    #[test]
    fn reads_of_a_state_machine_that_never_answers_are_kept_no_longer_than_their_deadlines() {
        let mut core = leader(1, true);
        core.submit(0, Request::Propose("x".into()), None);
        sent(&mut core);
        core.submit(0, Request::Read, None);
        for round in 1..=100u64 {
            for token in 1..=100 {
                core.submit(token, Request::Read, Some(1000));
            }
            sent(&mut core);
            core.begin_turn(round * 1000 + 1, 1);
            core.expire();
            sent(&mut core);
        }
        assert!((1..=164).contains(&core.reads.unapplied()), "{}", core.reads.unapplied());
    }

    #[test]
    fn reads_that_wait_count_like_proposals() {
        let mut core = alone(Config { max_pending_proposals: 2, ..Config::default() });
        for (token, request) in (1..).zip([Request::Read, Request::Read, Request::Read, Request::Propose("x".into())]) {
            core.submit(token, request, None);
        }
        let refused: Vec<_> = core.poll().completions.into_iter().map(|c| (c.token, c.result.unwrap_err())).collect();
        assert!(
            refused.iter().all(|(_, error)| error.code == ErrorCode::Overloaded && error.retryable()),
            "{refused:?}"
        );
        assert_eq!(refused.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn a_message_by_call_that_would_become_large_is_refused() {
        let mut core = alone(Config::default());
        let empty_entries = |count| [0x3a, 0x00].repeat(count);
        for (token, bytes) in [(1, empty_entries(2_000_000)), (2, vec![0x3a]), (3, empty_entries(10))] {
            core.submit(token, Request::Message(bytes), None);
        }
        let ends = core.poll().completions;
        let codes: Vec<_> = ends.iter().map(|end| end.result.as_ref().err().map(|error| error.code)).collect();
        assert_eq!(codes, [Some(ErrorCode::InvalidArgument), Some(ErrorCode::InvalidArgument), None]);
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_forgotten_without_a_word() {
        let mut core = alone(Config::default());
        core.begin_turn(1, 1);
        let requests = [Request::Propose("x".into()), Request::Read, Request::TransferLeader(None), Request::Snapshot];
        for (token, request) in (1..).zip(requests.into_iter().chain([Request::Propose("stays".into())])) {
            core.submit(token, request, None);
        }
        core.forget_calls(&HashSet::from([1, 2, 3, 4]));
        let pending: Vec<Token> = core.requests.pending.values().map(|pending| pending.token).collect();
        assert_eq!((pending, core.requests.bytes), (vec![5], 5));
        for turn in 2..100 {
            core.begin_turn(turn * 100_000, 1);
            core.tick();
            assert!(core.poll().completions.is_empty());
        }
    }
}

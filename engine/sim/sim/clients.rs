//! Clients: they ask any node for anything, remember what they were told, and hold the cluster to it.

use std::collections::BTreeMap;

use raftify_engine::cluster::ClusterState;
use raftify_engine::request::{Completion, MemberChange, Reply, Request, Token};
use raftify_engine::{Committed, Error, ErrorCode};

use super::act::{Act, Alter};
use super::draws::pick;
use super::host::Life;
use super::machine;
use super::sessions::SENDINGS;
use super::world::{Event, Place, Retry, World, MILLI, SECOND};

/// Commands of scenarios, and of the end of a run, are numbered from here on.
const SCRIPTED: u64 = 1 << 32;

#[derive(Clone, Debug)]
pub enum Op {
    Propose(Retry),
    /// A session for this command's customer.
    Open(Retry),
    /// Everything up to this index was acknowledged before the read was asked.
    Read(u64),
    Reserve(String),
    Become,
    Change,
    Transfer,
    /// This node gets another address.
    Move(u64, String),
    Other,
}

#[derive(Clone, Debug)]
struct Pending {
    op: Op,
    at: Place,
    deadline: Option<u64>,
    /// Nobody looks at the answer.
    gone: bool,
}

#[derive(Default)]
pub struct Clients {
    pending: BTreeMap<Token, Pending>,
    /// Whose results the machine's side gave out, as long as the core may not have heard of it.
    told: BTreeMap<Token, Place>,
    next_token: Token,
    next_command: u64,
    next_scripted: u64,
    next_addr: u64,
    /// Addresses that were asked for, and by whom.
    pub moves: Vec<(String, u64)>,
    /// Changes that take somebody out of the voting, and until when they may still come to be; as long as nobody was answered, always.
    pub removals: BTreeMap<Token, Option<u64>>,
    /// Kept for those who look: scripts.
    pub results: BTreeMap<Token, Result<Reply, Error>>,
    pub keep: bool,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Clients {
    /// Its result was given out by the machine's side.
    pub fn told(&mut self, token: Token, at: Place) {
        self.told.insert(token, at);
    }

    /// The core has heard of it: from now on it says nothing of them.
    pub fn told_ended(&mut self, tokens: &[Token]) {
        for token in tokens {
            self.told.remove(token);
        }
    }

    /// Somebody waits for an id for this address.
    pub fn reserves(&self, addr: &str) -> bool {
        self.pending.values().any(|p| matches!(&p.op, Op::Reserve(of) if of == addr))
    }

    /// Somebody waits at this process.
    pub fn wait_at(&self, at: Place) -> bool {
        self.pending.values().any(|p| p.at == at)
    }

    pub fn is_pending(&self, token: u64) -> bool {
        self.pending.contains_key(&token)
    }
}

impl World {
    pub fn count(&mut self, what: &'static str) {
        *self.clients.counts.entry(what).or_default() += 1;
    }

    /// Asks a node; `None` when it is not running.
    pub fn ask(&mut self, id: u64, op: Op, request: Request, timeout: Option<u64>) -> Option<Token> {
        let at = self.place(id)?;
        self.clients.next_token += 1;
        let token = self.clients.next_token;
        let deadline = timeout.map(|t| self.now + t);
        self.tell(|| format!("client asks node {id} ({token}): {op:?} within {timeout:?}"));
        self.clients.pending.insert(token, Pending { op, at, deadline, gone: false });
        let life = self.life(at)?;
        life.core.submit(token, request, timeout);
        self.wake(at);
        Some(token)
    }

    /// A command of its own number at this node, for those who look.
    pub fn propose(&mut self, id: u64, timeout: Option<u64>) -> Option<(Token, u64)> {
        self.clients.next_scripted += 1;
        let command = SCRIPTED + self.clients.next_scripted;
        let most = self.profile.padding;
        let padding = self.draws.node(id).range(0, most + 1);
        let token = self.propose_command(Retry::of(id, command, padding, timeout, 0))?;
        Some((token, command))
    }

    fn propose_command(&mut self, retry: Retry) -> Option<Token> {
        let Retry { node, command, padding, timeout, .. } = retry;
        let request = Request::Propose(machine::encode(command, padding as usize).into());
        let token = self.ask(node, Op::Propose(retry), request, timeout)?;
        self.oracle.history.write(command);
        Some(token)
    }

    pub fn retry(&mut self, retry: Retry) {
        if retry.customer != 0 {
            return if self.turmoil { self.propose_in_session(retry) } else { self.give_up_late(retry) };
        }
        if self.turmoil {
            self.oracle.again(retry.command);
            self.propose_command(retry);
        }
    }

    pub fn read(&mut self, id: u64, timeout: Option<u64>) -> Option<Token> {
        let floor = self.oracle.floor;
        let token = self.ask(id, Op::Read(floor), Request::Read, timeout)?;
        self.oracle.history.read(token);
        Some(token)
    }

    /// A node that joins by its ticket and is no member yet waits to become one.
    pub fn after_start(&mut self, at: Place) {
        let Some(ticket) = self.hosts.get(&at.0).and_then(|h| h.ticket.clone()) else { return };
        let Some(life) = self.life(at) else { return };
        if life.core.cluster().is_voter(at.0) {
            return;
        }
        self.clients.next_token += 1;
        let token = self.clients.next_token;
        let timeout = 3 * SECOND;
        self.clients
            .pending
            .insert(token, Pending { op: Op::Become, at, deadline: Some(self.now + timeout), gone: false });
        if let Some(life) = self.life(at) {
            life.core.become_member(token, &ticket, Some(timeout));
        }
        self.wake(at);
    }

    pub fn alive(&self) -> Vec<u64> {
        self.hosts.iter().filter(|(_, h)| h.life.is_some()).map(|(id, _)| *id).collect()
    }

    fn anybody(&mut self) -> Option<u64> {
        let alive = self.alive();
        (!alive.is_empty()).then(|| pick(&mut self.draws.clients, &alive))
    }

    /// Draws what a client does next, and has it done.
    pub fn client_acts(&mut self) {
        if !self.turmoil {
            return;
        }
        let every = self.profile.client_every;
        let wait = self.draws.clients.range(1, 2 * every);
        self.after(wait, Event::Client);
        if let Some(act) = self.draw_request() {
            self.perform(act);
        }
    }

    fn draw_request(&mut self) -> Option<Act> {
        let node = self.anybody()?;
        let [reads, leaders, members, snapshots] = self.profile.shares;
        let most = self.profile.padding;
        let retries = self.profile.retries;
        let rng = &mut self.draws.clients;
        let timeout = if rng.chance(0.1) { None } else { Some(rng.range(20, 2500) * MILLI) };
        let mut share = rng.range(0, 100);
        let mut falls_in = |of: u64| {
            let yes = share < of;
            share = if yes { u64::MAX } else { share - of };
            yes
        };
        if falls_in(reads) {
            return Some(Act::Read { node, timeout });
        }
        if falls_in(leaders) {
            return Some(match rng.range(0, 4) {
                0 => Act::StepDown { node, timeout },
                1 => Act::Transfer { node, to: None, timeout },
                _ => Act::Transfer { node, to: self.anybody(), timeout },
            });
        }
        if falls_in(members) {
            return self.draw_change(node, timeout);
        }
        if falls_in(snapshots) {
            return Some(Act::Snapshot { node, timeout });
        }
        if rng.chance(0.005) {
            return Some(Act::Cancel { node });
        }
        // Now and then a burst.
        let count = if rng.chance(0.05) { rng.range(2, 40) } else { 1 };
        let padding = rng.range(0, most + 1);
        let first = self.clients.next_command + 1;
        self.clients.next_command += count;
        // Not drawn: other runs stay as they were.
        let customer = if first % 10 < self.profile.sessions { 1 + first % 3 } else { 0 };
        Some(Act::Propose { node, first, count, padding, timeout, retries, customer })
    }

    fn draw_change(&mut self, node: u64, timeout: Option<u64>) -> Option<Act> {
        let life = self.hosts.get(&node).and_then(|h| h.life.as_ref())?;
        let cluster = life.core.cluster();
        let members: Vec<u64> = cluster.members().iter().map(|m| m.id).collect();
        let (voters, learners) = (cluster.voters.clone(), cluster.learners.clone());
        if members.is_empty() {
            return None;
        }
        let lost: Vec<u64> = self.hosts.keys().copied().filter(|id| self.is_to_be_replaced(*id)).collect();
        if !lost.is_empty() && self.hosts.len() < 14 && self.draws.clients.chance(0.5) {
            let lost = pick(&mut self.draws.clients, &lost);
            let removes = members.contains(&lost) && self.draws.clients.chance(0.5);
            return Some(match removes {
                true => Act::Change { node, changes: vec![Alter::Remove(lost)], timeout },
                false => Act::Rejoin { node, lost, timeout },
            });
        }
        let waits = |h: &super::host::Host| h.ticket.is_some() && !h.retired && !h.lost;
        let waiting: Vec<u64> =
            self.hosts.iter().filter(|(id, h)| waits(h) && !voters.contains(id)).map(|(id, _)| *id).collect();
        let rng = &mut self.draws.clients;
        let change = |changes: Vec<Alter>| Some(Act::Change { node, changes, timeout });
        match rng.range(0, 10) {
            0..3 if self.hosts.len() < 10 => {
                self.clients.next_addr += 1;
                let addr = format!("joiner:{}", self.clients.next_addr);
                Some(Act::Reserve { node, addr, timeout })
            }
            3..6 if !waiting.is_empty() => {
                let joiner = pick(rng, &waiting);
                let learner = rng.chance(0.2);
                if rng.chance(0.25) {
                    // By hand: its directory is recorded when it greets.
                    let addr = self.hosts[&joiner].addr.clone();
                    return change(vec![Alter::Add { id: joiner, addr, learner }]);
                }
                Some(Act::Join { node, joiner, learner, timeout })
            }
            3..7 if rng.chance(0.3) => {
                let moves = pick(rng, &members);
                self.clients.next_addr += 1;
                let addr = format!("moved:{}", self.clients.next_addr);
                self.hosts.get(&moves).is_some_and(|h| !h.lost).then_some(Act::Move { node, moves, addr, timeout })
            }
            7 if !learners.is_empty() => change(vec![Alter::Promote(pick(rng, &learners))]),
            8 if voters.len() > 2 => change(vec![Alter::Demote(pick(rng, &voters))]),
            9 if voters.len() > 2 => {
                if rng.chance(0.3) {
                    return Some(Act::Leave { node, timeout });
                }
                let mut changes = vec![Alter::Remove(pick(rng, &members))];
                if rng.chance(0.3) {
                    // Several at once: joint consensus.
                    let other = pick(rng, &members);
                    if changes[0] != Alter::Remove(other) {
                        changes.push(Alter::Demote(other));
                    }
                }
                change(changes)
            }
            _ => None,
        }
    }

    /// Carries out what a client asks for.
    pub fn client(&mut self, act: &Act) {
        match act.clone() {
            Act::Propose { node, first, count, padding, timeout, retries, customer } => {
                self.clients.next_command = self.clients.next_command.max(first + count - 1);
                for command in first..first + count {
                    let retry = Retry::of(node, command, padding, timeout, retries);
                    if customer == 0 {
                        self.propose_command(retry);
                        continue;
                    }
                    let retry = Retry { left: SENDINGS, customer, ..retry };
                    if command.is_multiple_of(13) {
                        self.close_session(&retry);
                    }
                    self.propose_in_session(retry);
                }
            }
            Act::Read { node, timeout } => {
                self.read(node, timeout);
            }
            Act::Cancel { node } => {
                for (token, pending) in self.clients.pending.iter_mut().filter(|(_, p)| p.at.0 == node) {
                    let in_session = matches!(pending.op, Op::Propose(asked) if asked.customer != 0);
                    if !pending.gone && !in_session && matches!(pending.op, Op::Propose(_) | Op::Read(_)) {
                        pending.gone = true;
                        self.oracle.history.forget(*token);
                    }
                }
            }
            Act::Snapshot { node, timeout } => {
                self.ask(node, Op::Other, Request::Snapshot, timeout);
            }
            Act::Transfer { node, to, timeout } => {
                self.ask(node, Op::Transfer, Request::TransferLeader(to), timeout);
            }
            Act::StepDown { node, timeout } => {
                self.ask(node, Op::Other, Request::StepDown, timeout);
            }
            Act::Reserve { node, addr, timeout } => {
                self.ask(node, Op::Reserve(addr.clone()), Request::ReserveId { addr }, timeout);
            }
            Act::Join { node, joiner, learner, timeout } => {
                self.join(node, joiner, learner, timeout);
            }
            Act::Change { node, changes, timeout } if self.is_sane(&changes) => {
                let removes = changes.iter().any(|c| matches!(c, Alter::Remove(_) | Alter::Demote(_)));
                let changes = changes.iter().map(Alter::change).collect();
                let token = self.ask(node, Op::Change, Request::ChangeMembers(changes), timeout);
                self.clients.removals.extend(token.filter(|_| removes).map(|token| (token, None)));
            }
            Act::Leave { node, timeout } if !self.has_lost_voters() => {
                let token = self.ask(node, Op::Change, Request::Leave, timeout);
                self.clients.removals.extend(token.map(|token| (token, None)));
            }
            Act::Change { .. } | Act::Leave { .. } => {}
            Act::Rejoin { node, lost, timeout } => self.rejoin(node, lost, timeout),
            Act::Move { node, moves, addr, timeout } => {
                self.clients.moves.push((addr.clone(), moves));
                let changes = vec![MemberChange::UpdateAddress { id: moves, addr: addr.clone() }];
                self.ask(node, Op::Move(moves, addr), Request::ChangeMembers(changes), timeout);
            }
            fault => panic!("{fault:?} is nothing that a client does"),
        }
    }

    pub fn join(&mut self, via: u64, joiner: u64, learner: bool, timeout: Option<u64>) -> Option<Token> {
        let host = self.hosts.get(&joiner)?;
        let addr = host.addr.clone();
        let directory = host.disk.synced.identity.directory.to_bytes();
        self.ask(via, Op::Change, Request::Join { id: joiner, addr, directory, learner }, timeout)
    }

    pub fn completed(&mut self, at: Place, completion: Completion) {
        let Completion { token, result } = completion;
        self.tell(|| format!("node {} answers ({token}): {result:?}", at.0));
        if self.clients.told.contains_key(&token) {
            self.count("results told that came again");
            // It ended before the core heard of that: what it says may be anything but a second result, or that it was not done.
            assert!(
                result.as_ref().is_err_and(|e| e.committed != Committed::No),
                "VIOLATION: node {} says of what it has applied, and told the caller: {result:?}",
                at.0
            );
            return;
        }
        let Some(pending) = self.clients.pending.remove(&token) else {
            panic!("VIOLATION: node {} answers request {token}, which is not pending: {result:?}", at.0);
        };
        assert_eq!(pending.at, at, "VIOLATION: request {token} is answered by somebody else");
        if let Some(deadline) = pending.deadline {
            let excused = self.hosts[&at.0].late_until.max(deadline) + deadline / 4;
            assert!(self.now <= excused, "VIOLATION: request {token} ended {} µs late", self.now - deadline);
        }
        match &result {
            Err(error) if error.committed != Committed::No => self.may_have_removed(token),
            _ => drop(self.clients.removals.remove(&token)),
        }
        if pending.gone {
            self.count("cancelled");
            return;
        }
        match pending.op {
            Op::Propose(asked) if asked.customer != 0 => self.ended_in_session(asked, Some(&result)),
            Op::Propose(asked) => self.proposal_ended(asked, &result),
            Op::Open(asked) => match &result {
                Ok(Reply::Session(session)) => self.session_opened(asked, Some(*session)),
                Ok(other) => panic!("VIOLATION: a session is answered with {other:?}"),
                Err(_) => self.session_opened(asked, None),
            },
            Op::Read(floor) => match &result {
                Ok(Reply::ReadIndex(index)) => {
                    let seen = self.hosts[&at.0].life.as_ref().map(|l| l.machine.last);
                    self.oracle.history.read_done(token, &seen.unwrap_or_default());
                    assert!(
                        *index >= floor,
                        "VIOLATION: stale read at node {}: it saw {index}, and {floor} was acknowledged before",
                        at.0
                    );
                    let machine = self.hosts[&at.0].life.as_ref().map_or(0, |l| l.machine.applied);
                    self.oracle.floor = self.oracle.floor.max(*index).max(machine);
                    self.count("reads");
                }
                Ok(other) => panic!("VIOLATION: a read is answered with {other:?}"),
                Err(error) => {
                    assert_eq!(error.committed, Committed::No, "VIOLATION: a read whose outcome is {error:?}");
                    self.oracle.history.forget(token);
                    self.count("reads refused");
                }
            },
            Op::Reserve(addr) => {
                if let Ok(Reply::Ticket(ticket)) = &result {
                    let id = ticket.reserved_id;
                    if let Some(member) = self.hosts.get(&id) {
                        // The address is a member's, as far as the node that was asked knows: any may say so, or a member could not start
                        // while the others wait for it. One that lags may name a member that is gone (seed 7002045), whom nobody takes;
                        // one may be removed by a later entry of the same batch (seed 12503244).
                        let known = |life: &Life| life.core.cluster().member_at(&addr).is_some_and(|m| m.id == id);
                        let is_told = self.hosts[&at.0].life.as_ref().is_some_and(known);
                        let is_lost_there = member.addr == addr && member.lost;
                        assert!(is_told || is_lost_there, "VIOLATION: id {id} is reserved twice (S12)");
                        return self.count("ids that members at the address have");
                    }
                    // Who was lost at this address is not there any more, and is not replaced a second time.
                    let before = self.hosts.values_mut().filter(|h| h.lost && h.addr == addr);
                    before.for_each(|h| h.addr.clear());
                    self.add_host(id, addr, ClusterState::default());
                    self.hosts.get_mut(&id).expect("just added").ticket = Some(ticket.clone());
                    let wait = self.draws.node(id).range(0, 50 * MILLI);
                    self.after(wait, Event::Restart(id));
                    self.count("ids reserved");
                }
            }
            // Done, not done or unknown: it moves, and what it says of itself is believed until the log agrees.
            Op::Move(id, addr) => {
                self.count("moves");
                self.after(0, Event::Move(id, addr));
            }
            Op::Become if result.is_ok() => self.count("members joined"),
            Op::Change if result.is_ok() => self.count("membership changes"),
            Op::Transfer if result.is_ok() => self.count("transfers"),
            _ => {}
        }
        if self.clients.keep {
            self.clients.results.insert(token, result);
        }
    }

    /// The machine comes up again under another address.
    pub fn relocate(&mut self, id: u64, addr: String) {
        if !self.turmoil {
            return;
        }
        if self.hosts.get(&id).is_none_or(|h| h.lost || h.retired) {
            return;
        }
        self.kill(id, false);
        if let Some(host) = self.hosts.get_mut(&id) {
            let old = std::mem::replace(&mut host.addr, addr.clone());
            self.addrs.remove(&old);
            self.clients.moves.push((old, id));
            self.addrs.insert(addr, id);
        }
        self.after(10 * MILLI, Event::Restart(id));
    }

    fn proposal_ended(&mut self, asked: Retry, result: &Result<Reply, Error>) {
        let command = asked.command;
        match result {
            Ok(Reply::Applied { index, data, .. }) => {
                assert!(!machine::raises(command), "VIOLATION: command {command} raised and its caller was not told");
                self.oracle.done(command, *index, machine::decode(data));
                self.count("proposals done");
            }
            Err(error) if error.code == ErrorCode::ApplyFailed => {
                let position = error.message.parse().expect("the position it raised at");
                self.oracle.done(command, error.index.expect("an index"), position);
                self.count("proposals done");
            }
            Err(error) => match error.committed {
                Committed::Yes => {
                    self.oracle.promise(command);
                    self.count("proposals committed, result lost");
                }
                Committed::No => {
                    self.oracle.never(command);
                    self.count("proposals not done");
                    if asked.left > 0 {
                        // Somewhere else.
                        let alive = self.alive();
                        let node = alive.iter().copied().find(|id| *id > asked.node).or(alive.first().copied());
                        let node = node.unwrap_or(asked.node);
                        self.after(5 * MILLI, Event::Retry(Retry { node, left: asked.left - 1, ..asked }));
                    }
                }
                Committed::Unknown => self.count("proposals unknown"),
            },
            Ok(other) => panic!("VIOLATION: a proposal is answered with {other:?}"),
        }
    }

    /// The process died: its callers never hear.
    pub fn clients_lost(&mut self, id: u64, life: u64) {
        self.clients.told.retain(|_, at| *at != (id, life));
        let of_this = self.clients.pending.iter().filter(|(_, p)| p.at == (id, life));
        let tokens: Vec<Token> = of_this.map(|(token, _)| *token).collect();
        for token in tokens {
            self.may_have_removed(token);
            // Whoever has a session knows that nobody will answer, and asks elsewhere.
            match self.clients.pending.remove(&token) {
                Some(Pending { op: Op::Propose(asked), gone: false, .. }) if asked.customer != 0 => {
                    self.ended_in_session(asked, None);
                }
                Some(Pending { op: Op::Open(asked), .. }) => self.session_opened(asked, None),
                _ => {}
            }
        }
    }

    /// Requests without an answer at these nodes.
    pub fn pending_at(&self, ids: &[u64]) -> Vec<String> {
        self.pending_that(ids, |_| true)
    }

    /// The same, without those that may wait for ever: no deadline, and a member is lost whom they may wait for (to be promoted, say).
    pub fn unended_at(&self, ids: &[u64]) -> Vec<String> {
        let lost = self.has_lost_members();
        self.pending_that(ids, |p| !lost || p.deadline.is_some() || !matches!(p.op, Op::Change))
    }

    fn pending_that(&self, ids: &[u64], counts: impl Fn(&Pending) -> bool) -> Vec<String> {
        let pending = self.clients.pending.iter().filter(|(_, p)| ids.contains(&p.at.0) && counts(p));
        let told = self.clients.told.iter().filter(|(_, at)| ids.contains(&at.0));
        let pending = pending.map(|(token, p)| format!("{token}: {p:?}"));
        pending.chain(told.map(|(token, at)| format!("{token}: told {at:?}"))).collect()
    }

    pub fn result(&self, token: Token) -> Option<&Result<Reply, Error>> {
        self.clients.results.get(&token)
    }
}

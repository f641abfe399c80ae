//! Clients: they ask any node for anything, remember what they were told, and hold the cluster to it.

use std::collections::BTreeMap;

use raftify_engine::request::{Completion, MemberChange, Reply, Request, Token};
use raftify_engine::{Committed, Error, ErrorCode};

use super::draws::pick;
use super::machine;
use super::world::{Event, Place, World, MILLI, SECOND};

#[derive(Clone, Debug)]
pub enum Op {
    Propose(u64),
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
}

#[derive(Default)]
pub struct Clients {
    pending: BTreeMap<Token, Pending>,
    next_token: Token,
    next_command: u64,
    next_addr: u64,
    /// Addresses that were asked for, and by whom.
    pub moves: Vec<(String, u64)>,
    /// Kept for those who look: scripts.
    pub results: BTreeMap<Token, Result<Reply, Error>>,
    pub keep: bool,
    pub counts: BTreeMap<&'static str, u64>,
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
        self.clients.pending.insert(token, Pending { op, at, deadline });
        let life = self.life(at)?;
        life.core.submit(token, request, timeout);
        self.wake(at);
        Some(token)
    }

    pub fn propose(&mut self, id: u64, timeout: Option<u64>) -> Option<(Token, u64)> {
        self.clients.next_command += 1;
        let command = self.clients.next_command;
        let padding = self.draws.clients.range(0, self.profile.padding + 1) as usize;
        let token = self.ask(id, Op::Propose(command), Request::Propose(machine::encode(command, padding)), timeout)?;
        Some((token, command))
    }

    pub fn read(&mut self, id: u64, timeout: Option<u64>) -> Option<Token> {
        let floor = self.oracle.floor;
        self.ask(id, Op::Read(floor), Request::Read, timeout)
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
        self.clients.pending.insert(token, Pending { op: Op::Become, at, deadline: Some(self.now + timeout) });
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

    pub fn client_acts(&mut self) {
        if !self.turmoil {
            return;
        }
        let every = self.profile.client_every;
        let wait = self.draws.clients.range(1, 2 * every);
        self.after(wait, Event::Client);
        let Some(id) = self.anybody() else { return };
        let rng = &mut self.draws.clients;
        let timeout = if rng.chance(0.1) { None } else { Some(rng.range(20, 2500) * MILLI) };
        match rng.range(0, 100) {
            0..60 => {
                // Now and then a burst.
                let burst = if rng.chance(0.05) { rng.range(2, 40) } else { 1 };
                for _ in 0..burst {
                    self.propose(id, timeout);
                }
            }
            60..92 => {
                self.read(id, timeout);
            }
            92..94 if self.profile.snapshot_requests => {
                self.ask(id, Op::Other, Request::Snapshot, timeout);
            }
            94 => {
                let to = if self.draws.clients.chance(0.5) { None } else { self.anybody() };
                self.ask(id, Op::Transfer, Request::TransferLeader(to), timeout);
            }
            95 if self.draws.clients.chance(0.5) => {
                self.ask(id, Op::Other, Request::StepDown, timeout);
            }
            96..100 if self.profile.membership => self.change_members(id, timeout),
            _ => {}
        }
    }

    fn change_members(&mut self, id: u64, timeout: Option<u64>) {
        if self.draws.clients.chance(0.7) {
            return;
        }
        let Some(life) = self.hosts.get(&id).and_then(|h| h.life.as_ref()) else { return };
        let (members, voters, learners): (Vec<u64>, Vec<u64>, Vec<u64>) = {
            let cluster = life.core.cluster();
            (cluster.members().iter().map(|m| m.id).collect(), cluster.voters.clone(), cluster.learners.clone())
        };
        if members.is_empty() {
            return;
        }
        let rng = &mut self.draws.clients;
        match rng.range(0, 10) {
            0..3 if self.hosts.len() < 10 => {
                self.clients.next_addr += 1;
                let addr = format!("joiner:{}", self.clients.next_addr);
                self.ask(id, Op::Reserve(addr.clone()), Request::ReserveId { addr }, timeout);
            }
            3..7 => {
                let waiting: Vec<u64> = self
                    .hosts
                    .iter()
                    .filter(|(id, h)| h.ticket.is_some() && !h.retired && !voters.contains(id))
                    .map(|(id, _)| *id)
                    .collect();
                if !waiting.is_empty() {
                    let joiner = pick(&mut self.draws.clients, &waiting);
                    let learner = self.draws.clients.chance(0.2);
                    if self.draws.clients.chance(0.25) {
                        // By hand: its directory is recorded when it greets.
                        let addr = self.hosts[&joiner].addr.clone();
                        let changes = vec![MemberChange::Add { id: joiner, addr, learner }];
                        self.ask(id, Op::Change, Request::ChangeMembers(changes), timeout);
                    } else {
                        self.join(id, joiner, learner, timeout);
                    }
                } else if self.draws.clients.chance(0.3) {
                    let moves = pick(&mut self.draws.clients, &members);
                    self.clients.next_addr += 1;
                    let addr = format!("moved:{}", self.clients.next_addr);
                    if self.hosts.contains_key(&moves) {
                        self.clients.moves.push((addr.clone(), moves));
                        let changes = vec![MemberChange::UpdateAddress { id: moves, addr: addr.clone() }];
                        self.ask(id, Op::Move(moves, addr), Request::ChangeMembers(changes), timeout);
                    }
                }
            }
            7 if !learners.is_empty() => {
                let changes = vec![MemberChange::Promote { id: pick(rng, &learners) }];
                self.ask(id, Op::Change, Request::ChangeMembers(changes), timeout);
            }
            8 if voters.len() > 2 => {
                let changes = vec![MemberChange::Demote { id: pick(rng, &voters) }];
                self.ask(id, Op::Change, Request::ChangeMembers(changes), timeout);
            }
            9 if voters.len() > 2 => {
                if rng.chance(0.3) {
                    self.ask(id, Op::Change, Request::Leave, timeout);
                } else {
                    let mut changes = vec![MemberChange::Remove { id: pick(rng, &members) }];
                    if rng.chance(0.3) {
                        // Several at once: joint consensus.
                        let other = pick(rng, &members);
                        if changes[0] != (MemberChange::Remove { id: other }) {
                            changes.push(MemberChange::Demote { id: other });
                        }
                    }
                    self.ask(id, Op::Change, Request::ChangeMembers(changes), timeout);
                }
            }
            _ => {}
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
        let Some(pending) = self.clients.pending.remove(&token) else {
            panic!("VIOLATION: node {} answers request {token}, which is not pending: {result:?}", at.0);
        };
        assert_eq!(pending.at, at, "VIOLATION: request {token} is answered by somebody else");
        if let Some(deadline) = pending.deadline {
            let excused = self.hosts[&at.0].late_until.max(deadline) + deadline / 4;
            assert!(self.now <= excused, "VIOLATION: request {token} ended {} µs late", self.now - deadline);
        }
        match pending.op {
            Op::Propose(command) => self.proposal_ended(command, &result),
            Op::Read(floor) => match &result {
                Ok(Reply::ReadIndex(index)) => {
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
                    self.count("reads refused");
                }
            },
            Op::Reserve(addr) => {
                if let Ok(Reply::Ticket(ticket)) = &result {
                    let id = ticket.reserved_id;
                    assert!(!self.hosts.contains_key(&id), "VIOLATION: id {id} is reserved twice (S12)");
                    self.add_host(id, addr, BTreeMap::new());
                    self.hosts.get_mut(&id).expect("just added").ticket = Some(ticket.clone());
                    let wait = self.draws.clients.range(0, 50 * MILLI);
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
        self.kill(id, false);
        if let Some(host) = self.hosts.get_mut(&id) {
            let old = std::mem::replace(&mut host.addr, addr.clone());
            self.addrs.remove(&old);
            self.clients.moves.push((old, id));
            self.addrs.insert(addr, id);
        }
        self.after(10 * MILLI, Event::Restart(id));
    }

    fn proposal_ended(&mut self, command: u64, result: &Result<Reply, Error>) {
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
                }
                Committed::Unknown => self.count("proposals unknown"),
            },
            Ok(other) => panic!("VIOLATION: a proposal is answered with {other:?}"),
        }
    }

    /// The process died: its callers never hear.
    pub fn clients_lost(&mut self, id: u64, life: u64) {
        self.clients.pending.retain(|_, p| p.at != (id, life));
    }

    /// Requests without an answer at these nodes.
    pub fn pending_at(&self, ids: &[u64]) -> Vec<String> {
        let of = |(token, p): (&u64, &Pending)| ids.contains(&p.at.0).then(|| format!("{token}: {p:?}"));
        self.clients.pending.iter().filter_map(of).collect()
    }

    pub fn result(&self, token: Token) -> Option<&Result<Reply, Error>> {
        self.clients.results.get(&token)
    }
}

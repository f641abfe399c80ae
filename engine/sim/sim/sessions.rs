//! Clients that keep a session: they send a command again, anywhere, until they know what it came to. The oracle holds the cluster to each
//! command being applied once, and to the answer being what that came to.

use std::collections::{BTreeMap, BTreeSet};

use raftify_engine::request::{InSession, Reply, Request};
use raftify_engine::{Committed, Error, ErrorCode};

use super::clients::Op;
use super::machine;
use super::world::{Event, Retry, World, MILLI};

/// So often a command is sent before its client gives it up.
pub const SENDINGS: u64 = 8;

/// A command's place in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat {
    pub session: u64,
    pub sequence: u64,
}

#[derive(Default)]
struct Customer {
    session: Option<u64>,
    opening: bool,
    next: u64,
    /// Sent, and not ended.
    open: BTreeSet<Seat>,
    /// One sending of it may have been taken: nobody can say that it was not.
    doubtful: BTreeSet<Seat>,
    /// Until there is a session.
    waiting: Vec<Retry>,
}

#[derive(Default)]
pub struct Sessions {
    customers: BTreeMap<u64, Customer>,
}

impl World {
    fn customer(&mut self, retry: &Retry) -> &mut Customer {
        self.sessions.customers.entry(retry.customer).or_default()
    }

    /// Sends a command of a customer with a session, or sends it again.
    pub fn propose_in_session(&mut self, retry: Retry) {
        let customer = self.customer(&retry);
        let Some(seat) = retry.seat else {
            let Some(session) = customer.session else {
                customer.waiting.push(retry);
                return self.open_session(retry);
            };
            customer.next += 1;
            let seat = Seat { session, sequence: customer.next };
            customer.open.insert(seat);
            // Now and then two nodes have it at once.
            let twice = retry.command.is_multiple_of(5);
            if twice {
                customer.doubtful.insert(seat);
            }
            let first = Retry { seat: Some(seat), ..retry };
            self.propose_in_session(first);
            if twice {
                let node = self.another(retry.node);
                self.send_in_session(Retry { node, left: 0, spare: true, ..first });
            }
            return;
        };
        if customer.open.contains(&seat) {
            self.send_in_session(retry);
        }
    }

    fn send_in_session(&mut self, retry: Retry) {
        let Retry { node, command, padding, timeout, seat, .. } = retry;
        let Some(seat) = seat else { return };
        let of_it = self.customer(&retry).open.iter().filter(|open| open.session == seat.session);
        let first_open = of_it.map(|open| open.sequence).min().unwrap_or(seat.sequence);
        let place = InSession { session: seat.session, sequence: seat.sequence, first_open };
        let request = Request::ProposeInSession(place, machine::encode(command, padding as usize).into());
        self.oracle.history.write(command);
        if self.ask(node, Op::Propose(retry), request, timeout).is_none() {
            self.send_again(retry, false);
        }
    }

    /// Somewhere else, or not any more.
    fn send_again(&mut self, retry: Retry, doubt: bool) {
        let Some(seat) = retry.seat.filter(|_| !retry.spare) else { return };
        let customer = self.customer(&retry);
        if doubt {
            customer.doubtful.insert(seat);
        }
        if retry.left > 0 && self.turmoil {
            let node = self.another(retry.node);
            self.count("commands of sessions sent again");
            return self.after(5 * MILLI, Event::Retry(Retry { node, left: retry.left - 1, ..retry }));
        }
        self.give_up(retry, seat);
    }

    /// Its client waits for it no longer.
    pub fn give_up(&mut self, retry: Retry, seat: Seat) {
        let customer = self.customer(&retry);
        let was_open = customer.open.remove(&seat);
        let doubt = customer.doubtful.remove(&seat);
        if was_open && !doubt {
            self.oracle.never(retry.command);
        }
    }

    /// Retries that come when nothing is asked any more.
    pub fn give_up_late(&mut self, retry: Retry) {
        match retry.seat {
            Some(seat) => self.give_up(retry, seat),
            None => self.customer(&retry).waiting.clear(),
        }
    }

    fn another(&self, node: u64) -> u64 {
        let alive = self.alive();
        alive.iter().copied().find(|id| *id > node).or(alive.first().copied()).unwrap_or(node)
    }

    fn open_session(&mut self, retry: Retry) {
        if self.customer(&retry).opening {
            return;
        }
        self.customer(&retry).opening = true;
        let timeout = Some(retry.timeout.unwrap_or(500 * MILLI));
        if self.ask(retry.node, Op::Open(retry), Request::OpenSession, timeout).is_none() {
            self.session_opened(retry, None);
        }
    }

    /// There is one, or it has to be asked for again.
    pub fn session_opened(&mut self, retry: Retry, session: Option<u64>) {
        let node = self.another(retry.node);
        let turmoil = self.turmoil;
        let customer = self.customer(&retry);
        customer.opening = false;
        customer.session = session;
        customer.next = 0;
        let waiting = std::mem::take(&mut customer.waiting);
        for retry in waiting.into_iter().filter(|retry| turmoil && retry.left > 0) {
            self.after(5 * MILLI, Event::Retry(Retry { node, left: retry.left - 1, ..retry }));
        }
        if session.is_some() {
            self.count("sessions opened");
        }
    }

    /// Nothing is under way, and it needs the session no longer.
    pub fn close_session(&mut self, retry: &Retry) {
        let customer = self.customer(retry);
        if let Some(session) = customer.session.take_if(|_| customer.open.is_empty()) {
            self.ask(retry.node, Op::Other, Request::CloseSession(session), retry.timeout);
        }
    }

    /// The answer to one sending; `None`: the process that was asked has died.
    pub fn ended_in_session(&mut self, asked: Retry, result: Option<&Result<Reply, Error>>) {
        let Some(seat) = asked.seat else { return };
        let command = asked.command;
        let is_open = self.customer(&asked).open.contains(&seat);
        let (index, position) = match result {
            Some(Ok(Reply::Applied { index, data, .. })) => {
                assert!(!machine::raises(command), "VIOLATION: command {command} raised and its caller was not told");
                (*index, machine::decode(data))
            }
            Some(Err(error)) if error.code == ErrorCode::ApplyFailed => {
                (error.index.expect("an index"), error.message.parse().expect("the position it raised at"))
            }
            Some(Err(error)) => return self.failed_in_session(asked, seat, error),
            Some(Ok(other)) => panic!("VIOLATION: a proposal is answered with {other:?}"),
            None => {
                return if is_open {
                    self.send_again(asked, true)
                }
            }
        };
        if !is_open {
            self.count("answers to commands of sessions that came twice");
            return self.oracle.is_answer(command, index, position);
        }
        self.oracle.done(command, index, position);
        let customer = self.customer(&asked);
        customer.open.remove(&seat);
        customer.doubtful.remove(&seat);
        self.count("proposals of sessions done");
    }

    fn failed_in_session(&mut self, asked: Retry, seat: Seat, error: &Error) {
        if error.committed == Committed::Yes {
            self.oracle.promise(asked.command);
        }
        let expired = error.code == ErrorCode::SessionExpired;
        let customer = self.customer(&asked);
        if expired && customer.session == Some(seat.session) {
            customer.session = None;
        }
        if !customer.open.contains(&seat) {
            return;
        }
        let lost = error.code == ErrorCode::ResultLost && error.lasting;
        if expired || lost {
            if error.committed != Committed::No {
                customer.doubtful.insert(seat);
            }
            self.count(if lost { "results of sessions not kept" } else { "sessions expired" });
            return self.give_up(asked, seat);
        }
        self.send_again(asked, error.committed != Committed::No);
    }
}

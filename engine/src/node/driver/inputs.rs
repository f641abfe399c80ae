//! What comes in for the core: requests of callers, answers of the state machine, of the disk and of the snapshots' thread.

use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use crate::client;
use crate::core::Micros;
use crate::error::{Error, ErrorCode};
use crate::machine::MachineAnswer;
use crate::node::inbox::Input;
use crate::request::{Request, Ticket, Timeout, Token};

impl Driver {
    pub(super) fn input(&mut self, input: Input) {
        match input {
            Input::Proposals { proposals, timeout } => {
                self.shared
                    .door
                    .taken(proposals.len() as u64, proposals.iter().map(|(_, data)| data.len() as u64).sum());
                let timeout = self.timeout(timeout, self.options.config.request_timeout);
                self.core.propose(proposals, timeout);
            }
            Input::Request { token, request, timeout } => {
                self.shared.door.taken(1, request.command_bytes() as u64);
                let timeout = self.timeout(timeout, self.default_timeout(&request));
                self.core.submit(token, request, timeout);
            }
            Input::Reads { tokens, timeout } => {
                self.shared.door.taken(tokens.len() as u64, 0);
                let timeout = self.timeout(timeout, self.options.config.request_timeout);
                for token in tokens {
                    self.core.submit(token, Request::Read, timeout);
                }
            }
            Input::Join { token, ticket, timeout } => {
                self.shared.door.taken(1, 0);
                let timeout = self.timeout(timeout, self.options.config.conf_change_request_timeout);
                self.join(token, &ticket, timeout);
            }
            Input::JoinFailed { token, error } => self.core.abandon(token, error),
            Input::Answer(answer) => {
                if let MachineAnswer::Restored { id } = &answer {
                    self.shared.files.restored(*id);
                }
                self.core.machine_answer(answer);
            }
            Input::SnapshotWhole { id, result } => {
                let sessions = self.core.snapshot_sessions(id);
                let result = result.and_then(|()| sessions.ok_or_else(|| "nobody waits for it any more".into()));
                let inbox = self.inbox.clone();
                self.shared.files.complete(id, result, move |result| {
                    // A node that has ended needs no snapshot.
                    let _ = inbox.send(Input::SnapshotDone { id, result });
                });
            }
            Input::SnapshotDone { id, result } => match result {
                Ok(file) => self.core.snapshot_made(id, file),
                Err(reason) => self.core.snapshot_failed(id, reason),
            },
            Input::Written(number) => {
                self.threads.log.written(number);
                self.core.written(number);
            }
            Input::Fetched { id, entries } => self.core.fetched(id, entries),
            Input::DiskFailed(error) => {
                self.log(slog::Level::Error, "storage", || error.message.clone());
                self.core.fail(error);
            }
            #[cfg(test)]
            Input::Run(_, job) => job(),
            Input::Panicked(what) => self.core.fail(Error::unknown(ErrorCode::Internal, what)),
            Input::Close(timeout) => {
                // Two election timeouts at most: the deadline is there for the disk as well.
                let patience = (timeout / 2).min(self.options.config.election_timeout().saturating_mul(2));
                if self.retiring.is_none() {
                    let until = if self.core.retire() { Instant::now() + patience } else { Instant::now() };
                    self.retiring = Some((until, timeout.saturating_sub(patience)));
                }
            }
        }
    }

    pub(super) fn timeout(&self, timeout: Timeout, default: Duration) -> Option<Micros> {
        let span = match timeout {
            Timeout::Default => default,
            Timeout::None => return None,
            Timeout::After(span) => span,
        };
        Some(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn default_timeout(&self, request: &Request) -> Duration {
        match request {
            Request::Join { .. }
            | Request::ChangeMembers(_)
            | Request::Leave
            | Request::TransferLeader(_)
            | Request::StepDown => self.options.config.conf_change_request_timeout,
            Request::Snapshot => Duration::from_secs(600),
            _ => self.options.config.request_timeout,
        }
    }

    /// Becoming a member takes both sides: the cluster is asked until it says yes, and this node waits until its own log says so.
    fn join(&mut self, token: Token, ticket: &Ticket, timeout: Option<Micros>) {
        self.core.become_member(token, ticket, timeout);
        if self.core.cluster().is_voter(self.options.node_id) {
            return;
        }
        let mut addrs: Vec<String> = Vec::new();
        for addr in std::iter::once(&ticket.leader_addr).chain(ticket.peers.values()) {
            if !addr.is_empty() && *addr != self.addr && !addrs.contains(addr) {
                addrs.push(addr.clone());
            }
        }
        let request = Request::Join {
            id: self.options.node_id,
            addr: self.addr.clone(),
            directory: self.core.directory().to_bytes(),
            learner: false,
        };
        let (inbox, tls) = (self.inbox.clone(), self.tls.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = client::ask_to_join(&addrs, tls.as_ref(), request).await {
                let _ = inbox.send(Input::JoinFailed { token, error });
            }
        });
        self.joins.insert(token, task.abort_handle());
    }
}

//! The driver and the other nodes: what comes in from them goes to the core, what the core has for them goes out.
//!
//! Lives here: which lane a message takes, what a lost connection or an unsent message means to the core. The sockets are the transport's.

use std::collections::{BTreeMap, HashSet};

use prost_raft::Message as _;
use raft::eraftpb::Message;

use super::{Driver, Feedback};
use crate::cluster::{ClusterState, NodeId};
use crate::core::{Append, Body, Outbound, Run, SnapshotSend};
use crate::error::ErrorCode;
use crate::log::SnapshotMeta;
use crate::node::FIRST_INTERNAL_TOKEN;
use crate::request::Token;
use crate::snapshots::wire_header;
use crate::transport::{decode_message, encode_entries, Encoded, Incoming, Lane, Outgoing, Permit, What};
use crate::wire::{Body as ItemBody, Item, SnapshotHeader};

/// Whether another voter can be reached: all of a cluster that closes at once need not wait for a successor.
pub(super) fn may_succeed(cluster: &ClusterState, own: NodeId, lanes: &BTreeMap<NodeId, Vec<Lane>>) -> bool {
    lanes.iter().any(|(peer, up)| *peer != own && !up.is_empty() && cluster.is_voter(*peer))
}

impl Driver {
    pub(super) fn heard(&mut self, incoming: Incoming, permits: &mut Vec<Permit>) {
        match incoming {
            Incoming::Frame { from, items, bytes, permit, .. } => {
                permits.push(permit);
                for item in items {
                    self.item(from, item, bytes);
                }
            }
            Incoming::Hello { hello, answer, .. } => {
                let welcome = self.core.greeted(&hello);
                // The dialler may be gone already.
                let _ = answer.send(welcome);
            }
            Incoming::Welcomed { peer, welcome, answer, .. } => {
                let go_on = self.core.welcomed(peer, &welcome);
                let _ = answer.send(go_on);
            }
            Incoming::Connected { peer, lane } => {
                let lanes = self.lanes.entry(peer).or_default();
                if !lanes.contains(&lane) {
                    lanes.push(lane);
                }
                let both = lanes.len() == Lane::ALL.len();
                self.distrust.remove(&peer);
                self.core.connected(peer, both);
                self.status_due = true;
                self.log(slog::Level::Debug, "transport", || format!("connected to node {peer} ({lane:?})"));
            }
            Incoming::Disconnected { peer, lane, reason } => {
                self.lanes.entry(peer).or_default().retain(|l| *l != lane);
                self.core.connected(peer, false);
                self.status_due = true;
                self.log(slog::Level::Info, "transport", || format!("lost node {peer} ({lane:?}): {reason}"));
            }
            Incoming::DialFailed { peer, lane, why } => {
                // Certificates do not mend themselves: that is told, once for as long as it stays so.
                let news = why.code == ErrorCode::Tls && self.distrust.get(&peer) != Some(&why.reason);
                let level = if news { slog::Level::Warning } else { slog::Level::Debug };
                self.log(level, "transport", || format!("cannot reach node {peer} ({lane:?}): {}", why.reason));
                if news {
                    self.distrust.insert(peer, why.reason);
                }
            }
            Incoming::Said { level, message } => self.log(level, "transport", || message),
            Incoming::NotSent { to, items, .. } => self.not_sent(to, items),
            Incoming::SnapshotHeader { from, header, answer } => {
                let _ = answer.send(self.core.accepts_snapshot(from, header.index));
            }
            Incoming::SnapshotReceived { from, header, raft_message } => {
                self.snapshot_received(from, header, &raft_message)
            }
            Incoming::SnapshotIntakeFailed { from, index, error } => {
                self.log(slog::Level::Warning, "storage", || {
                    format!("snapshot {index} from node {from} was not stored: {}", error.message)
                });
            }
            Incoming::SnapshotSent { to, index, result } => {
                if let Err(reason) = &result {
                    self.log(slog::Level::Warning, "transport", || {
                        format!("snapshot {index} did not reach node {to}: {reason}")
                    });
                }
                self.core.snapshot_sent(to, result.is_ok());
            }
            Incoming::Call { request, timeout, answer } => {
                let token = self.next_token;
                self.next_token = self.next_token.wrapping_add(1).max(FIRST_INTERNAL_TOKEN);
                self.waiters.insert(token, answer);
                let timeout = self.timeout(timeout, self.default_timeout(&request));
                self.core.submit(token, request, timeout);
            }
        }
    }

    /// Calls whose connection is gone: without a deadline they would wait here for ever.
    pub(super) fn forget_abandoned(&mut self) {
        let gone: HashSet<Token> =
            self.waiters.iter().filter(|(_, answer)| answer.is_closed()).map(|(token, _)| *token).collect();
        if !gone.is_empty() {
            self.waiters.retain(|token, _| !gone.contains(token));
            self.core.forget_calls(&gone);
        }
    }

    /// `frame`: bytes of the one that it came in.
    fn item(&mut self, from: NodeId, item: Item, frame: usize) {
        match item.body {
            Some(ItemBody::Raft(bytes)) => match decode_message(&bytes, frame) {
                Ok(message) => self.core.receive(from, message),
                Err(error) => {
                    self.log(slog::Level::Warning, "transport", || {
                        format!("a message from node {from} cannot be read: {}", error.message())
                    });
                }
            },
            Some(ItemBody::Forward(forward)) => self.core.receive_forward(from, forward),
            Some(ItemBody::ForwardAnswer(answer)) => self.core.receive_forward_answer(from, answer),
            Some(ItemBody::OutcomeReport(report)) => self.core.receive_outcome_report(from, &report),
            Some(ItemBody::OutcomeAnswer(answer)) => self.core.receive_outcome_answer(from, &answer),
            // Of a newer version: not for us.
            None => {}
        }
    }

    fn snapshot_received(&mut self, from: NodeId, header: SnapshotHeader, raft_message: &[u8]) {
        let Ok(message) = Message::decode(raft_message) else { return };
        let Some(cluster) = header.cluster else { return };
        let SnapshotHeader { index, term, size, sessions, crc, has_file, outcomes, .. } = header;
        let meta = SnapshotMeta { index, term, cluster, size, sessions, crc, has_file, outcomes };
        match self.shared.files.sessions(&meta) {
            Ok(sessions) => self.core.receive_snapshot(from, message, meta, &sessions),
            Err(error) => self.log(slog::Level::Warning, "storage", || {
                format!("snapshot {index} from node {from} was not taken: {}", error.message)
            }),
        }
    }

    fn not_sent(&mut self, to: NodeId, items: Vec<Outgoing>) {
        let mut appends = false;
        for item in items {
            match item.what() {
                What::Forward(number) => self.feedback.push(Feedback::ForwardNotSent(number)),
                What::Raft => appends = true,
                What::Other => {}
            }
        }
        if appends {
            self.feedback.push(Feedback::Unreachable(to));
        }
    }

    /// One frame's worth for each peer and lane, in order.
    pub(super) fn post(&mut self, messages: Vec<Outbound>) {
        let mut lanes: BTreeMap<(NodeId, Lane), Vec<Outgoing>> = BTreeMap::new();
        // Most of what goes to one peer goes to the others as well.
        let mut encoded: Vec<(Run, Encoded)> = Vec::new();
        for Outbound { to, body } in messages {
            let (lane, item) = match body {
                Body::Raft(message) => (Lane::Control, Outgoing::raft(&message, Encoded::new())),
                // Also an append without entries: it must not overtake those with.
                Body::Append(Append { head, run }) => {
                    let known = encoded.iter().find(|(other, _)| other.is(&run)).map(|(_, pieces)| pieces.clone());
                    let entries = known.unwrap_or_else(|| {
                        let pieces = encode_entries(run.iter());
                        encoded.push((run, pieces.clone()));
                        pieces
                    });
                    (Lane::Bulk, Outgoing::raft(&head, entries))
                }
                Body::Forward(forward) => (Lane::Bulk, ItemBody::Forward(forward).into()),
                Body::ForwardAnswer(answer) => (Lane::Control, ItemBody::ForwardAnswer(answer).into()),
                Body::OutcomeReport(report) => (Lane::Control, ItemBody::OutcomeReport(report).into()),
                Body::OutcomeAnswer(answer) => (Lane::Control, ItemBody::OutcomeAnswer(answer).into()),
            };
            lanes.entry((to, lane)).or_default().push(item);
        }
        for ((to, lane), items) in lanes {
            if let Err(back) = self.transport.send(to, lane, items) {
                self.not_sent(to, back);
            }
        }
    }

    pub(super) fn send_snapshot(&mut self, send: SnapshotSend) {
        let meta = &send.meta;
        let header = wire_header(meta);
        match self.shared.files.source(meta) {
            Ok(source) => self.transport.send_snapshot(send.to, header, send.message.encode_to_vec(), source),
            Err(error) if error.code == ErrorCode::CorruptData => self.feedback.push(Feedback::Failed(error)),
            Err(error) => {
                self.log(slog::Level::Error, "storage", || error.message.clone());
                self.feedback.push(Feedback::SnapshotNotSent(send.to));
            }
        }
    }

    /// What a stream says first, and the directories that the log has recorded.
    pub(super) fn set_hello(&mut self) {
        let recorded: BTreeMap<NodeId, Vec<u8>> = self
            .core
            .cluster()
            .members()
            .iter()
            .filter(|m| !m.directory.is_empty())
            .map(|m| (m.id, m.directory.clone()))
            .collect();
        self.transport.set_hello(self.core.hello(0), recorded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_is_another_voter_that_is_connected() {
        let members = (1..=3).map(|id| (id, format!("h:{id}"))).collect();
        let cluster = ClusterState::founding(&members);
        let both = Lane::ALL.to_vec();
        for (lanes, found) in [
            (vec![], false),
            (vec![(2, vec![]), (3, vec![])], false), // both have closed before
            (vec![(2, vec![]), (3, vec![Lane::Control])], true), // one lane is enough to tell it
            (vec![(2, both.clone())], true),
            (vec![(1, both.clone())], false), // oneself
            (vec![(9, both)], false),         // no member
        ] {
            let lanes = lanes.into_iter().collect();
            assert_eq!(may_succeed(&cluster, 1, &lanes), found, "{lanes:?}");
        }
    }
}

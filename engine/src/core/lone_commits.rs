//! Commit indexes that go alone: appends without entries, which raft sends to everybody whenever something is committed.
//!
//! The next entries carry the commit index as well, and under load they follow at once: so one that goes alone waits a moment for
//! them, which saves a message, an answer and two wake-ups per peer and round. It does not wait where somebody at the peer does.
//! To drop or delay one is what a network may do with it anyway; nothing of safety rests on it.
//!
//! ```text
//!  append without entries ──► told at once   the peer proposed what is committed, or the members change
//!            │
//!            └──► waits ──► dropped          the next append to that peer says as much
//!                   ├─────► told first       anything else goes to that peer (a heartbeat, the answer to its read)
//!                   └─────► told             PATIENCE is over
//! ```

use std::collections::BTreeMap;

use raft::eraftpb::{Message, MessageType};
use raft::ProgressState;

use super::deadlines::Micros;
use super::Core;
use crate::cluster::NodeId;

/// Microseconds: longer than a client takes from an answer to its next proposal, shorter than anybody notices.
const PATIENCE: Micros = 2000;

#[derive(Default)]
pub(super) struct LoneCommits {
    /// Of this term; another one begins anew.
    term: u64,
    waiting: BTreeMap<NodeId, (Micros, Message)>,
    /// The newest commit index that each peer was sent.
    told: BTreeMap<NodeId, u64>,
    /// The newest entry that each peer proposed.
    proposed: BTreeMap<NodeId, u64>,
    /// The newest entry that concerns everybody.
    for_all: u64,
}

impl LoneCommits {
    pub fn next_due(&self) -> Option<Micros> {
        self.waiting.values().map(|(due, _)| *due).min()
    }

    /// Somebody waits for this peer to hear of a commit.
    fn is_urgent(&self, peer: NodeId) -> bool {
        let told = self.told.get(&peer).copied().unwrap_or(0);
        self.for_all > told || self.proposed.get(&peer).is_some_and(|index| *index > told)
    }
}

/// The later append makes the earlier one, which has no entries, superfluous.
fn carries(later: &Message, earlier: &Message) -> bool {
    later.msg_type == MessageType::MsgAppend as i32
        && later.term == earlier.term
        && later.index >= earlier.index
        && later.commit >= earlier.commit
}

impl Core {
    fn lone_commits_of_this_term(&mut self) -> &mut LoneCommits {
        let term = self.raw.raft.term;
        if self.lone_commits.term != term {
            self.lone_commits = LoneCommits { term, ..LoneCommits::default() };
        }
        &mut self.lone_commits
    }

    /// This entry of ours was proposed by that peer.
    pub(super) fn awaited_by(&mut self, peer: NodeId, index: u64) {
        self.lone_commits_of_this_term().proposed.insert(peer, index);
    }

    /// This entry of ours concerns everybody: it changes the members, or what they know of each other.
    pub(super) fn awaited_by_all(&mut self, index: u64) {
        self.lone_commits_of_this_term().for_all = index;
    }

    /// What raft as a leader has for a peer: sent, unless it is a commit index that can wait.
    pub(super) fn post_as_leader(&mut self, message: Message) {
        let to = message.to;
        let append = message.msg_type == MessageType::MsgAppend as i32;
        // In the other states raft waits for the answer to an append before it goes on.
        let streams = self.raw.raft.prs().get(to).is_some_and(|progress| progress.state == ProgressState::Replicate);
        let due = self.now.saturating_add(PATIENCE);
        let lone = self.lone_commits_of_this_term();
        let earlier = lone.waiting.remove(&to);
        if append && message.entries.is_empty() && streams && !lone.is_urgent(to) {
            // Not put off again and again.
            let due = earlier.map_or(due, |(due, _)| due);
            lone.waiting.insert(to, (due, message));
            return;
        }
        if let Some((_, earlier)) = earlier.filter(|(_, earlier)| !carries(&message, earlier)) {
            self.tell_commit(earlier);
        }
        if append {
            self.tell_commit(message);
        } else {
            self.post(message);
        }
    }

    fn tell_commit(&mut self, message: Message) {
        let told = self.lone_commits.told.entry(message.to).or_default();
        *told = message.commit.max(*told);
        self.post(message);
    }

    /// Those whose time is over. A leader that was deposed has nothing to tell.
    pub(super) fn tell_lone_commits(&mut self) {
        if self.lone_commits.waiting.is_empty() {
            return;
        }
        if !self.is_leader() || self.lone_commits.term != self.raw.raft.term {
            self.lone_commits.waiting.clear();
            return;
        }
        let now = self.now;
        let due: Vec<NodeId> =
            self.lone_commits.waiting.iter().filter(|(_, (due, _))| *due <= now).map(|(peer, _)| *peer).collect();
        for peer in due {
            if let Some((_, message)) = self.lone_commits.waiting.remove(&peer) {
                self.tell_commit(message);
            }
        }
    }
}

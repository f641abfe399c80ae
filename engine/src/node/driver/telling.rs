//! What goes out to the program: results, events, the status that handles read.

use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use crate::node::{lock, FIRST_INTERNAL_TOKEN};
use crate::request::{Completion, Reply};
use crate::status::Event;

impl Driver {
    pub(super) fn complete(&mut self, completions: Vec<Completion>) {
        if completions.is_empty() {
            return;
        }
        let mut outward = completions;
        if !self.waiters.is_empty() || !self.joins.is_empty() {
            let (ours, theirs): (Vec<_>, Vec<_>) = outward.into_iter().partition(|c| c.token >= FIRST_INTERNAL_TOKEN);
            outward = theirs;
            for Completion { token, result } in ours {
                if let Some(answer) = self.waiters.remove(&token) {
                    let _ = answer.send(result.map(|reply| self.with_path(reply)));
                }
            }
            for Completion { token, .. } in &outward {
                if let Some(task) = self.joins.remove(token) {
                    task.abort();
                }
            }
        }
        for completion in &mut outward {
            if let Ok(reply @ Reply::Snapshot(_)) = &mut completion.result {
                *reply = self.with_path(std::mem::replace(reply, Reply::Done));
            }
        }
        if !outward.is_empty() {
            self.sink.completions(outward);
        }
    }

    fn with_path(&self, reply: Reply) -> Reply {
        match reply {
            Reply::Snapshot(mut info) => {
                if let Some(meta) = self.core.snapshot().filter(|m| m.index == info.index) {
                    info.path = self.shared.files.path(&meta).display().to_string();
                }
                Reply::Snapshot(info)
            }
            other => other,
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.status_due = true;
        match &event {
            Event::LeaderChanged { term, leader_id: Some(leader) } => {
                self.log(slog::Level::Info, "raft", || format!("node {leader} leads in term {term}"));
            }
            Event::LeaderChanged { term, leader_id: None } => {
                self.log(slog::Level::Info, "raft", || format!("no leader in term {term}"));
            }
            Event::PeerRefused { peer, reason } => {
                self.log(slog::Level::Warning, "transport", || format!("node {peer}: {reason}"));
            }
            Event::DiskHung { millis } => {
                self.log(slog::Level::Error, "storage", || {
                    format!("a write has taken {millis} ms; this node does not lead until the disk answers")
                });
            }
            Event::SnapshotFailed { index, reason } => {
                self.log(slog::Level::Error, "storage", || format!("the snapshot at index {index} failed: {reason}"));
            }
            Event::SnapshotDamaged { index, stands_in, reason } => {
                self.log(slog::Level::Error, "storage", || {
                    format!(
                        "the snapshot at index {index} cannot be restored: {reason}; the one at index {stands_in} stands in, from \
                         which the log goes on"
                    )
                });
            }
            _ => {}
        }
        self.sink.event(event);
    }

    /// The status that handles read: members and peers when something happened, the numbers with each turn.
    pub(super) fn publish(&mut self) {
        let now = Instant::now();
        let mut status = lock(&self.shared.status);
        if self.status_due || now.duration_since(self.status_at) > Duration::from_millis(200) {
            self.status_due = false;
            self.status_at = now;
            *status = self.core.status();
        } else {
            let at = self.core.positions();
            status.term = at.term;
            status.leader_id = (at.leader != 0).then_some(at.leader);
            status.last_index = at.last;
            status.commit_index = at.commit;
            status.applied_index = at.applied;
            status.snapshot_index = at.snapshot;
        }
    }
}

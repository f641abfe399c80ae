//! Those that greet and that no entry has added: a greeting costs its sender nothing, so what is kept of them, and told, is bounded.
//!
//! ```text
//!  greets, or is named by a removed node ──► remembered, dialled ──(lets our stream in)──► stays ──(an entry adds it)──► a member
//!                                                 └──(silent for a while, or others need its place)──► forgotten; it may greet again
//! ```

use super::deadlines::Micros;
use super::Core;
use crate::cluster::NodeId;

/// A greeting costs its sender nothing. Of those whom no entry has added, and no ticket has named, so many are remembered, and dialled:
/// more than there are members in any cluster that takes in a node which knows of none of them.
const MAX_STRANGERS: usize = 64;
/// One of them that has not let our stream in by then is nobody, or greets again.
const STRANGER_PATIENCE: Micros = 60_000_000;
/// Of so many of them it is told within a while why they are refused; others come too many at once to be told of.
const MAX_REFUSED: usize = 16;
const REFUSED_PAUSE: Micros = 60_000_000;

impl Core {
    /// No entry has added it, and it is not one of those that this node began with.
    pub(super) fn is_stranger(&self, id: NodeId) -> bool {
        self.cluster.member(id).is_none() && !self.initial.contains_key(&id)
    }

    /// Before anything is kept of a stranger: the oldest goes if there are too many, and rather one that has never let our stream in.
    pub(super) fn make_room_for(&mut self, id: NodeId) {
        let known = self.greetings.learned.contains_key(&id) || self.greetings.strangers.contains(&id);
        if known || !self.is_stranger(id) {
            return;
        }
        if self.greetings.strangers.len() >= MAX_STRANGERS {
            let cluster = &self.cluster;
            self.greetings.strangers.retain(|id| cluster.member(*id).is_none());
        }
        if self.greetings.strangers.len() >= MAX_STRANGERS {
            let strangers = &self.greetings.strangers;
            let idle = strangers.iter().find(|id| !self.greetings.has_let_in(**id));
            if let Some(oldest) = idle.or(strangers.front()).copied() {
                self.forget_strangers(&[oldest]);
            }
        }
        self.greetings.strangers.push_back(id);
    }

    /// Streams with those that are dialled end; whoever is there greets again.
    fn forget_strangers(&mut self, gone: &[NodeId]) {
        let mut dialled = false;
        for id in gone {
            self.greetings.seen.remove(id);
            self.greetings.anew.remove(id);
            dialled |= self.greetings.learned.remove(id).is_some();
        }
        self.greetings.strangers.retain(|id| !gone.contains(id));
        if dialled {
            self.announce_peers();
        }
    }

    /// With each tick: those that have greeted and do not let us in are not dialled for ever.
    pub(super) fn forget_idle_strangers(&mut self) {
        let greetings = &self.greetings;
        let over = |id: &NodeId| {
            let silent = greetings.seen.get(id).is_some_and(|s| s.at.saturating_add(STRANGER_PATIENCE) < self.now);
            silent && !greetings.has_let_in(*id) && self.is_stranger(*id)
        };
        let gone: Vec<NodeId> = greetings.strangers.iter().copied().filter(over).collect();
        if !gone.is_empty() {
            self.forget_strangers(&gone);
        }
    }

    pub(super) fn may_tell_of_stranger(&mut self) -> bool {
        let told = &self.greetings.refused;
        let mut strangers: Vec<NodeId> = told.keys().copied().filter(|id| self.is_stranger(*id)).collect();
        if strangers.len() >= MAX_REFUSED {
            let now = self.now;
            let refused = &mut self.greetings.refused;
            strangers.retain(|id| {
                let stays = refused.get(id).is_some_and(|(at, _)| at.saturating_add(REFUSED_PAUSE) > now);
                if !stays {
                    refused.remove(id);
                }
                stays
            });
        }
        strangers.len() < MAX_REFUSED
    }
}

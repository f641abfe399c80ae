//! How a cluster begins (S11): whom a fresh initial member has to have seen, and the entry that gives the cluster its number.

use std::collections::BTreeMap;

use prost::Message as _;

use super::bugs::{self, Bug};
use super::entry::{Context, Founding, Kind};
use super::{Core, FOUNDING_INDEX, FOUNDING_TERM};
use crate::cluster::{ClusterState, Member, NodeId, Uid};
use crate::entry::Entry;
use crate::wire::Hello;

/// The directories that a founding entry names.
pub(super) fn founding_of(entry: &Entry) -> Option<BTreeMap<NodeId, Uid>> {
    if Context::of(entry)?.kind != Kind::Founding {
        return None;
    }
    let founding = Founding::decode(entry.data.as_ref()).ok()?;
    Some(founding.heard.iter().filter_map(|m| Some((m.id, Uid::from_bytes(&m.directory)?))).collect())
}

/// Digest of what initial members must agree on before they found a cluster: FNV-1a over cluster id, members, and who of them learns.
pub fn founding_digest(cluster_id: &str, founding: &ClusterState) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    add(cluster_id.as_bytes());
    for member in founding.members() {
        add(&member.id.to_le_bytes());
        add(member.addr.as_bytes());
    }
    // Versions that knew no initial learners had none.
    if !founding.learners.is_empty() {
        add(b"learners");
        founding.learners.iter().for_each(|id| add(&id.to_le_bytes()));
    }
    // 0 means "no initial member".
    hash.max(1)
}

impl Core {
    /// An initial member that was removed before it ever took part, or wiped, knows its cluster by the digest alone.
    pub(super) fn is_of_our_cluster(&self, hello: &Hello) -> bool {
        let Some(theirs) = Uid::from_bytes(&hello.incarnation) else { return false };
        match self.identity.incarnation {
            Some(ours) => ours == theirs,
            None => self.identity.digest != 0 && hello.digest == self.identity.digest,
        }
    }

    /// Nothing was ever written here: no term, no vote, no entry.
    pub(super) fn is_fresh(&self) -> bool {
        let hard_state = self.raw.raft.hard_state();
        let log = &self.raw.raft.raft_log;
        if self.initial.is_empty() {
            return hard_state.term == 0 && log.last_index() == 0;
        }
        hard_state.term <= FOUNDING_TERM && hard_state.vote == 0 && log.last_index() <= FOUNDING_INDEX
    }

    /// Of the cluster that this node was born to, or has joined; 0: not known.
    pub(super) fn digest(&self) -> u64 {
        match self.identity.digest {
            0 => self.cluster.founding_digest,
            own => own,
        }
    }

    /// A founder that began alone needs nobody to begin again: all it can do is stop when it hears that it had begun before (seed 6027491).
    /// Once others have joined the new cluster, somebody wants that one.
    pub(super) fn founded_before(&self, hello: &Hello) -> Option<Uid> {
        let theirs = Uid::from_bytes(&hello.incarnation).filter(|theirs| Some(*theirs) != self.identity.incarnation)?;
        let recorded = Uid::from_bytes(&hello.recorded)?;
        // An initial learner is named without ever having come.
        let alone = self.cluster.members().iter().all(|member| member.id == self.id || member.directory.is_empty());
        let born_alike = self.identity.digest != 0 && self.identity.digest == hello.digest;
        (alone && born_alike && hello.to == self.id && recorded != self.identity.directory).then_some(theirs)
    }

    /// A fresh founder takes part once it has seen a majority of the voters of the map without an incarnation, and nobody with one. Who was
    /// removed before it ever took part founds nothing: whoever sees it may have lost a directory of the cluster that removed it (found by
    /// seed 7004465).
    pub(super) fn open_founding(&mut self) {
        if self.initial.is_empty() || self.identity.incarnation.is_some() || self.greetings.founding_open {
            return;
        }
        let mut others = self.initial.keys().filter(|id| **id != self.id).filter_map(|id| self.greetings.seen.get(id));
        if others.any(|seen| seen.incarnation.is_some()) {
            return;
        }
        // No entry was applied yet: these are the voters that the map names.
        let voters = &self.cluster.voters;
        let founders = |id: &&NodeId| **id == self.id || self.greetings.seen.get(id).is_some_and(|seen| seen.founder);
        let fresh = voters.iter().filter(founders).count();
        if fresh > voters.len() / 2 || bugs::on(Bug::FreshDirectoriesVote) {
            self.greetings.founding_open = true;
        }
    }

    /// The first entry of a cluster fixes its number and the directories heard so far (S11).
    pub(super) fn found_cluster(&mut self) {
        self.open_founding();
        if !self.is_leader() || !self.cluster.incarnation.is_empty() || self.greetings.heard.is_some() {
            return;
        }
        let mut heard: BTreeMap<NodeId, Uid> = BTreeMap::from([(self.id, self.identity.directory)]);
        for (id, seen) in &self.greetings.seen {
            if let (Some(directory), None, true, true) =
                (seen.directory, seen.incarnation, seen.founder, self.initial.contains_key(id))
            {
                heard.insert(*id, directory);
            }
        }
        let incarnation = Uid((u128::from(self.rng.next()) << 64) | u128::from(self.rng.next()));
        let founding = Founding {
            incarnation: incarnation.to_bytes(),
            heard: heard
                .iter()
                .map(|(id, directory)| Member { id: *id, directory: directory.to_bytes(), ..Default::default() })
                .collect(),
            verify_results: self.config.verify_results,
            digest: self.identity.digest,
        };
        if self.append_own(Kind::Founding, founding.encode_to_vec()) {
            self.greetings.heard = Some(heard);
        }
    }

    /// An entry of the log that founds the cluster, not applied yet, names this directory.
    pub(super) fn is_named_by_founding(&self, peer: NodeId, directory: Option<Uid>) -> bool {
        let heard = self.greetings.heard.as_ref().filter(|_| self.cluster.incarnation.is_empty());
        directory.is_some() && heard.and_then(|heard| heard.get(&peer).copied()) == directory
    }
}

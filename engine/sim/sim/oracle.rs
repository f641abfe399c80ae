//! What must hold, whatever happens. It sees everything that nodes write, send, commit, apply and answer; the nodes do not see it.
//!
//! Checked: one leader a term, one vote a term, log matching, leader completeness, durability before promises (S1), one and the
//! same committed and applied sequence on all nodes, every outcome told is the true one (S15), reads are not stale (S16).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use raftify_engine::entry::Entry;
use raftify_engine::ClusterState;

use super::history::History;
use super::machine::mix;

/// The log of a running node, as it was written, synced or not: (term, hash) of each entry.
pub struct Shadow {
    pub base: u64,
    pub base_term: u64,
    entries: VecDeque<(u64, u64)>,
    /// Up to here it was compared with what is committed.
    pub checked: u64,
    /// Up to here the entries were seen by others or by the disk.
    told: u64,
}

impl Shadow {
    pub fn new(base: u64, base_term: u64, checked: u64) -> Self {
        Shadow { base, base_term, entries: VecDeque::new(), checked, told: base }
    }

    pub fn last(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    pub fn at(&self, index: u64) -> Option<(u64, u64)> {
        self.entries.get(index.checked_sub(self.base + 1)? as usize).copied()
    }

    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.base {
            return Some(self.base_term);
        }
        self.at(index).map(|(term, _)| term)
    }
}

#[derive(Clone, Copy)]
struct CommittedEntry {
    term: u64,
    hash: u64,
    /// The committing leader's term was at most this.
    seen_in: u64,
}

#[derive(Default)]
pub struct Oracle {
    /// (index, term) → (hash, term of the entry before).
    entries: HashMap<(u64, u64), (u64, u64)>,
    committed: Vec<Option<CommittedEntry>>,
    /// Index → (command, hash of the state after it, leader's clock, position).
    applied: Vec<Option<(u64, u64, u64, u64)>>,
    command_at: HashMap<u64, u64>,
    /// Told to be certainly not done.
    never: HashSet<u64>,
    /// Told to be done or committed.
    promised: HashSet<u64>,
    leaders: HashMap<u64, (u64, u64)>,
    votes: HashMap<(u128, u64), u64>,
    /// Everything up to this index was acknowledged, or seen by a read.
    pub floor: u64,
    pub newest_committed: u64,
    pub acknowledged: u64,
    pub history: History,
    /// The members from an index on, as the first who came there said.
    members: BTreeMap<u64, Members>,
}

/// Voters, learners, addresses.
pub type Members = (Vec<u64>, Vec<u64>, Vec<(u64, String)>);

fn slot<T: Clone>(of: &mut Vec<Option<T>>, index: u64) -> &mut Option<T> {
    let at = index as usize;
    if of.len() <= at {
        of.resize(at + 1, None);
    }
    &mut of[at]
}

pub fn entry_hash(entry: &Entry) -> u64 {
    let low = crc32c::crc32c(&entry.data);
    let high = crc32c::crc32c_append(entry.entry_type as u32, &entry.context);
    mix(u64::from(low) << 32 | u64::from(high), entry.data.len() as u64)
}

impl Oracle {
    /// A node writes these entries (or starts with them): the what its log is, synced or not.
    pub fn wrote(&mut self, node: u64, shadow: &mut Shadow, entries: &[Entry]) {
        for entry in entries {
            assert!(
                entry.index > shadow.base && entry.index <= shadow.last() + 1,
                "VIOLATION: node {node} writes {} to a log of {}..={}",
                entry.index,
                shadow.base,
                shadow.last()
            );
            assert!(
                entry.index > shadow.checked,
                "VIOLATION: node {node} overwrites the committed entry {} (committed up to {})",
                entry.index,
                shadow.checked
            );
            shadow.entries.truncate((entry.index - shadow.base - 1) as usize);
            shadow.told = shadow.told.min(entry.index - 1);
            shadow.entries.push_back((entry.term, entry_hash(entry)));
        }
    }

    /// Up to this index the entries are on a disk, or leave the node: from now on an index and a term name one entry and one history.
    /// (What dies with its writer unseen, as of a single voter that wins at once, may be replaced in the same term.)
    pub fn settles(&mut self, node: u64, shadow: &mut Shadow, upto: u64) {
        for index in shadow.told.max(shadow.base) + 1..=upto.min(shadow.last()) {
            let (term, hash) = shadow.at(index).expect("within the log");
            let before = shadow.term(index - 1).expect("the entry before is there");
            let known = *self.entries.entry((index, term)).or_insert((hash, before));
            assert_eq!(
                known,
                (hash, before),
                "VIOLATION: log matching: node {node} holds another entry at index {index} of term {term}"
            );
            shadow.told = index;
        }
    }

    /// A node says that everything up to `commit` is committed. True for an index that nobody knew before.
    pub fn commits(&mut self, node: u64, shadow: &mut Shadow, commit: u64, term: u64) -> Vec<(u64, u64)> {
        let mut fresh = Vec::new();
        while shadow.checked < commit {
            let index = shadow.checked + 1;
            let (entry_term, hash) = shadow
                .at(index)
                .unwrap_or_else(|| panic!("VIOLATION: node {node} commits {index}, which it does not hold"));
            match slot(&mut self.committed, index) {
                Some(known) => {
                    assert_eq!(
                        (known.term, known.hash),
                        (entry_term, hash),
                        "VIOLATION: state machine safety: node {node} commits another entry at index {index}"
                    );
                    known.seen_in = known.seen_in.min(term);
                }
                empty => {
                    *empty = Some(CommittedEntry { term: entry_term, hash, seen_in: term });
                    fresh.push((index, entry_term));
                }
            }
            self.newest_committed = self.newest_committed.max(index);
            shadow.checked = index;
        }
        fresh
    }

    /// A snapshot at this index must stand on what is committed.
    pub fn snapshot_at(&mut self, node: u64, index: u64, term: u64) {
        if let Some(known) = slot(&mut self.committed, index) {
            assert_eq!(known.term, term, "VIOLATION: node {node} has a snapshot at {index} of another term");
        }
    }

    /// A node acts as the leader of a term (it sends as one): election safety and leader completeness.
    pub fn leads(&mut self, node: u64, life: u64, term: u64, shadow: &Shadow) {
        let Some(known) = self.leaders.get(&term) else {
            self.leaders.insert(term, (node, life));
            return self.complete(node, term, shadow);
        };
        assert_eq!(*known, (node, life), "VIOLATION: election safety: two leaders in term {term} (node, start)");
    }

    fn complete(&self, node: u64, term: u64, shadow: &Shadow) {
        let newest = self
            .committed
            .iter()
            .enumerate()
            .rev()
            .find_map(|(index, known)| known.filter(|k| k.seen_in < term).map(|k| (index as u64, k)));
        if let Some((index, known)) = newest {
            let here = shadow.term(index);
            assert!(
                here == Some(known.term) || index < shadow.base,
                "VIOLATION: leader completeness: node {node} leads term {term} without the committed entry {index} of term {} (it has {here:?})",
                known.term
            );
        }
    }

    pub fn votes(&mut self, node: u64, directory: u128, term: u64, candidate: u64) {
        let known = *self.votes.entry((directory, term)).or_insert(candidate);
        assert_eq!(known, candidate, "VIOLATION: node {node} votes twice in term {term}");
    }

    /// A node's machine has taken a command.
    pub fn applied(&mut self, node: u64, index: u64, command: u64, hash: u64, time_us: u64, position: u64) {
        match slot(&mut self.applied, index) {
            Some(known) => assert_eq!(
                *known,
                (command, hash, time_us, position),
                "VIOLATION: node {node} applies another command, or onto another state, at index {index}"
            ),
            empty => {
                *empty = Some((command, hash, time_us, position));
                let at = *self.command_at.entry(command).or_insert(index);
                assert_eq!(at, index, "VIOLATION: command {command} is applied twice");
                assert!(
                    !self.never.contains(&command),
                    "VIOLATION: command {command} was certainly not done and is applied at index {index}"
                );
                let before = self.applied[..index as usize].iter().rev().take(64).find_map(|a| *a);
                if let Some((_, _, time, _)) = before {
                    assert!(time <= time_us, "VIOLATION: the leader's clock goes back at index {index}");
                }
            }
        }
    }

    /// A state restored from a snapshot.
    pub fn restored(&mut self, node: u64, index: u64, hash: u64) {
        let known = self.applied[..self.applied.len().min(index as usize + 1)].iter().rev().find_map(|a| *a);
        let known = known.map_or(0, |(_, hash, _, _)| hash);
        assert_eq!(known, hash, "VIOLATION: node {node} restores another state at index {index}");
    }

    /// A node says who the members are from this index on.
    pub fn members_from(&mut self, node: u64, index: u64, members: Members) {
        let known = self.members.entry(index).or_insert_with(|| members.clone());
        assert_eq!(*known, members, "VIOLATION: node {node} has other members from index {index} on");
    }

    /// A node stores or sends who the members are at this index (S13).
    pub fn members_at(&self, node: u64, what: &str, index: u64, cluster: &ClusterState) {
        let Some((since, known)) = self.members.range(..=index).next_back() else { return };
        let addresses = cluster.members().iter().map(|m| (m.id, m.addr.clone())).collect();
        let members: Members = (cluster.voters.clone(), cluster.learners.clone(), addresses);
        assert_eq!(
            members, *known,
            "VIOLATION: {what} of node {node} at {index} has other members than there were from index {since} on (S13)"
        );
    }

    /// The caller was told: done, with this result.
    pub fn done(&mut self, command: u64, index: u64, position: u64) {
        let at = self.command_at.get(&command).copied();
        assert_eq!(at, Some(index), "VIOLATION: command {command} was acknowledged at index {index}");
        let right = self.applied[index as usize].map(|(_, _, _, position)| position);
        assert_eq!(right, Some(position), "VIOLATION: command {command} has somebody else's result");
        self.acknowledged += 1;
        self.history.written(command);
        self.floor = self.floor.max(index);
        self.promised.insert(command);
    }

    /// The answer to a command whose client has ended with it: the same as everybody's.
    pub fn is_answer(&self, command: u64, index: u64, position: u64) {
        let at = self.command_at.get(&command).copied();
        assert_eq!(at, Some(index), "VIOLATION: command {command} was acknowledged at index {index}");
        let right = self.applied[index as usize].map(|(_, _, _, position)| position);
        assert_eq!(right, Some(position), "VIOLATION: command {command} has somebody else's result");
    }

    /// The caller was told that it is committed, and nothing else.
    pub fn promise(&mut self, command: u64) {
        self.promised.insert(command);
    }

    pub fn never(&mut self, command: u64) {
        assert!(
            !self.command_at.contains_key(&command),
            "VIOLATION: command {command} is applied and its caller was told that it is certainly not done"
        );
        self.never.insert(command);
        self.history.unwritten(command);
    }

    /// What was certainly not done is asked for again.
    pub fn again(&mut self, command: u64) {
        self.never.remove(&command);
    }

    /// At the end: all that was promised is there.
    pub fn finish(&self) {
        let mut lost: Vec<&u64> = self.promised.iter().filter(|c| !self.command_at.contains_key(c)).collect();
        lost.sort_unstable();
        assert!(lost.is_empty(), "VIOLATION: promised and never applied: {lost:?}");
        self.history.check();
    }
}

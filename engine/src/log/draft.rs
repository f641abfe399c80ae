//! What a log will be once a batch of writes is in it: the rules of the log itself, without any file.
//!
//! Lives here: order and consistency of writes (contiguous entries, terms and commit that never fall, S7). May not live
//! here: transactions and bytes. A refusal means that the caller is wrong; nothing may be written after it.

use raft::eraftpb::HardState;

use crate::entry::Entry;
use crate::log::load::Loaded;
use crate::log::record::{Bounds, Meta};
use crate::log::{ClusterRecord, Identity, LogWrite, SnapshotMeta};

/// What to do to the entries, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Everything goes, small records too.
    Clear,
    /// Entries `from..to` go.
    Delete { from: u64, to: u64 },
    /// The write's entries come behind the last one.
    Append,
}

/// A log as it is, or as it will be after the writes taken.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub identity: Identity,
    pub hard_state: HardState,
    pub cluster: ClusterRecord,
    pub snapshot: Option<SnapshotMeta>,
    pub bounds: Bounds,
    /// (index, term) at which each term begins, covering `bounds.first..=bounds.last`.
    terms: Vec<(u64, u64)>,
    changed: [bool; Meta::ALL.len()],
}

impl Draft {
    pub(crate) fn new(loaded: &Loaded) -> Self {
        Draft {
            identity: loaded.state.identity.clone(),
            hard_state: loaded.state.hard_state.clone(),
            cluster: loaded.state.cluster.clone(),
            snapshot: loaded.state.snapshot.clone(),
            bounds: loaded.bounds,
            terms: loaded.state.terms.clone(),
            changed: [false; Meta::ALL.len()],
        }
    }

    /// The small records that differ from what is stored; bounds and hard state always may.
    pub(crate) fn changed(&self) -> impl Iterator<Item = Meta> + '_ {
        Meta::ALL.into_iter().zip(self.changed).filter(|(_, changed)| *changed).map(|(meta, _)| meta)
    }

    pub(crate) fn all_stored(&mut self) {
        self.changed = [false; Meta::ALL.len()];
    }

    fn change(&mut self, which: Meta) {
        for (meta, changed) in Meta::ALL.into_iter().zip(&mut self.changed) {
            *changed |= meta == which;
        }
    }

    /// Nothing in it promises anything: it may wait for the next write.
    pub(crate) fn may_wait(&self, write: &LogWrite) -> bool {
        let same_vote =
            write.hard_state.as_ref().is_none_or(|h| h.term == self.hard_state.term && h.vote == self.hard_state.vote);
        !write.must_sync
            && same_vote
            && write.entries.as_ref().is_none_or(|e| e.is_empty())
            && write.identity.is_none()
            && write.snapshot.is_none()
            && write.compact_to.is_none()
            && !write.reset
    }

    /// Takes one write; returns what it does to the entries.
    pub(crate) fn take(&mut self, write: &LogWrite) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        if let Some(identity) = &write.identity {
            self.take_identity(identity)?;
        }
        if write.reset && write.snapshot.is_none() {
            return Err("it resets the log without naming a snapshot".into());
        }
        if let Some(snapshot) = &write.snapshot {
            if self.snapshot.as_ref().is_some_and(|s| s.index > snapshot.index) {
                return Err(format!("it names a snapshot at {}, older than the present one", snapshot.index));
            }
            if write.reset {
                self.reset(snapshot);
                steps.push(Step::Clear);
            } else if snapshot.index > self.bounds.last {
                return Err(format!("it names a snapshot at {} beyond the last entry", snapshot.index));
            }
            // A snapshot carries the configuration of exactly its index (S13).
            if self.cluster.index < snapshot.index {
                self.cluster = ClusterRecord { index: snapshot.index, cluster: snapshot.cluster.clone() };
                self.change(Meta::Cluster);
            }
            self.snapshot = Some(SnapshotMeta::clone(snapshot));
            self.change(Meta::Snapshot);
        }
        if let Some(entries) = write.entries.as_ref().filter(|e| !e.is_empty()) {
            self.append(entries, &mut steps)?;
        }
        if let Some(hard_state) = &write.hard_state {
            self.take_hard_state(hard_state)?;
        }
        if let Some(cluster) = &write.cluster {
            // One of a snapshot just named may be newer already; an older one says nothing more.
            if cluster.index >= self.cluster.index {
                self.cluster = ClusterRecord::clone(cluster);
                self.change(Meta::Cluster);
            }
        }
        if let Some(to) = write.compact_to {
            self.compact(to)?;
        }
        Ok(steps)
    }

    /// After the last write of a batch: commit at or above all that counts as applied (S7), and never beyond the log, which
    /// raft would not open again; what is committed beyond it is learnt anew from the leader.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        let compacted = self.bounds.first.saturating_sub(1);
        let applied = self.snapshot.as_ref().map_or(0, |s| s.index).max(self.cluster.index).max(compacted);
        if applied > self.bounds.last {
            return Err(format!("index {applied} counts as applied, but the last entry is {}", self.bounds.last));
        }
        let commit = self.hard_state.commit.clamp(applied, self.bounds.last);
        if commit != self.hard_state.commit {
            self.hard_state.commit = commit;
        }
        if self.terms.last().is_some_and(|(_, term)| *term > self.hard_state.term) {
            return Err(format!("its entries are of a later term than {}", self.hard_state.term));
        }
        Ok(())
    }

    fn take_identity(&mut self, identity: &Identity) -> Result<(), String> {
        let kept = identity.node_id == self.identity.node_id
            && identity.directory == self.identity.directory
            && (self.identity.incarnation.is_none() || identity.incarnation == self.identity.incarnation);
        if !kept {
            return Err("it changes the directory's identity".into());
        }
        self.identity = identity.clone();
        self.change(Meta::Identity);
        Ok(())
    }

    fn take_hard_state(&mut self, new: &HardState) -> Result<(), String> {
        let old = &self.hard_state;
        if new.term < old.term || (new.term == old.term && old.vote != 0 && new.vote != old.vote) {
            return Err(format!(
                "term {} and vote {} cannot follow term {} and vote {}",
                new.term, new.vote, old.term, old.vote
            ));
        }
        // What we raised for S7 stays.
        let commit = new.commit.max(old.commit);
        self.hard_state = HardState { term: new.term, vote: new.vote, commit };
        Ok(())
    }

    fn reset(&mut self, snapshot: &SnapshotMeta) {
        let next = snapshot.index.saturating_add(1);
        self.bounds = Bounds {
            first: next,
            prev_term: snapshot.term,
            last: snapshot.index,
            floor: next,
            number: self.bounds.number,
        };
        self.terms.clear();
        self.changed = [true; Meta::ALL.len()];
    }

    fn append(&mut self, entries: &[Entry], steps: &mut Vec<Step>) -> Result<(), String> {
        let Some(start) = entries.first().map(|e| e.index) else { return Ok(()) };
        let next = self.bounds.last.saturating_add(1);
        if start > next {
            return Err(format!("entry {start} leaves a gap after {}", self.bounds.last));
        }
        if start < next {
            if start <= self.hard_state.commit || start < self.bounds.first {
                return Err(format!("entry {start} would replace committed ones (commit {})", self.hard_state.commit));
            }
            steps.push(Step::Delete { from: start, to: next });
            self.terms.retain(|(begin, _)| *begin < start);
        }
        let mut term = self.terms.last().map_or(self.bounds.prev_term, |(_, term)| *term);
        for (entry, expected) in entries.iter().zip(start..) {
            if entry.index != expected || entry.term < term {
                return Err(format!(
                    "entry {} of term {} cannot stand at {expected} after term {term}",
                    entry.index, entry.term
                ));
            }
            if entry.term > term || self.terms.is_empty() {
                self.terms.push((expected, entry.term));
            }
            term = entry.term;
            self.bounds.last = expected;
        }
        steps.push(Step::Append);
        Ok(())
    }

    fn compact(&mut self, to: u64) -> Result<(), String> {
        if to < self.bounds.first {
            return Ok(());
        }
        if to > self.snapshot.as_ref().map_or(0, |s| s.index) || to > self.bounds.last {
            return Err(format!("it compacts up to {to}, beyond the snapshot or the last entry"));
        }
        let term = self.terms.iter().rev().find(|(begin, _)| *begin <= to).map(|(_, term)| *term);
        let Some(term) = term else { return Err(format!("entry {to} has no term")) };
        let first = to.saturating_add(1);
        self.terms.retain(|(_, t)| *t >= term);
        if let Some(run) = self.terms.first_mut() {
            run.0 = run.0.max(first);
        }
        // The run of `term` may have ended at `to`.
        if self.terms.get(1).is_some_and(|(begin, _)| *begin <= first) || first > self.bounds.last {
            self.terms.remove(0);
        }
        self.bounds.first = first;
        self.bounds.prev_term = term;
        Ok(())
    }
}

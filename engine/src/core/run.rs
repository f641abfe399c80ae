//! Entries where the log keeps them: nothing of a command is copied before it is encoded for a peer.

use std::sync::Arc;

use raft::eraftpb::Message;

use super::received::Received;
use crate::entry::Entry;

/// A piece of one of the log's chunks.
#[derive(Clone, Debug)]
struct Part {
    entries: Arc<Vec<Entry>>,
    from: usize,
    to: usize,
}

impl Part {
    fn slice(&self) -> &[Entry] {
        self.entries.get(self.from..self.to).unwrap_or(&[])
    }
}

/// Entries in order, with consecutive indexes.
#[derive(Clone, Debug, Default)]
pub struct Run {
    parts: Vec<Part>,
}

impl Run {
    /// `from..to` of these; the next piece begins where the one before ended.
    pub(super) fn push(&mut self, entries: &Arc<Vec<Entry>>, from: usize, to: usize) {
        if from < to && to <= entries.len() {
            self.parts.push(Part { entries: Arc::clone(entries), from, to });
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> + Clone + '_ {
        self.parts.iter().flat_map(|part| part.slice())
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.slice().len()).sum()
    }

    /// The very same entries, in the same place.
    pub fn is(&self, other: &Run) -> bool {
        let same = |(a, b): (&Part, &Part)| Arc::ptr_eq(&a.entries, &b.entries) && a.from == b.from && a.to == b.to;
        self.parts.len() == other.parts.len() && self.parts.iter().zip(&other.parts).all(same)
    }

    /// Takes entries off the front as long as they fit `limit` bytes, and one at least.
    fn split_off(&mut self, limit: u64) -> Run {
        let mut first = Run::default();
        let mut bytes = 0u64;
        while let Some(part) = self.parts.first_mut() {
            let mut to = part.from;
            for entry in part.entries.get(part.from..part.to).unwrap_or(&[]) {
                bytes = bytes.saturating_add(size(entry));
                if bytes > limit && !(first.is_empty() && to == part.from) {
                    break;
                }
                to = to.saturating_add(1);
            }
            first.push(&part.entries, part.from, to);
            part.from = to;
            if part.from < part.to {
                break;
            }
            self.parts.remove(0);
        }
        first
    }
}

/// About what an entry takes in a message.
fn size(entry: &Entry) -> u64 {
    (entry.data.len() as u64).saturating_add(64)
}

/// An append to a peer: raft's message, whose entries stand in `run`.
#[derive(Clone, Debug)]
pub struct Append {
    /// Without entries.
    pub head: Message,
    pub run: Run,
}

impl Append {
    /// As its receiver has it.
    pub fn received(&self) -> Received {
        Received { head: self.head.clone(), entries: self.run.iter().cloned().collect() }
    }

    /// Messages of at most `limit` bytes each (a larger entry goes alone), one going on where the other ends.
    pub(super) fn split(self, limit: u64) -> Vec<Append> {
        if self.run.iter().map(size).fold(0u64, u64::saturating_add) <= limit {
            return vec![self];
        }
        let Append { mut head, run: mut rest } = self;
        let mut out = Vec::new();
        while !rest.is_empty() {
            let run = rest.split_off(limit);
            let last = run.iter().last().map(|e| (e.index, e.term));
            out.push(Append { head: head.clone(), run });
            (head.index, head.log_term) = last.unwrap_or((head.index, head.log_term));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(pieces: &[(u64, u64)], bytes: usize) -> Append {
        let mut run = Run::default();
        for (start, end) in pieces.iter().copied() {
            let entry = |index| Entry { index, term: index / 4, data: vec![0; bytes].into(), ..Entry::default() };
            // Something else stands around it.
            let chunk: Vec<Entry> = (start - 1..end + 1).map(entry).collect();
            run.push(&Arc::new(chunk), 1, 1 + (end - start) as usize);
        }
        let index = pieces.first().map_or(0, |(start, _)| start - 1);
        Append { head: Message { index, log_term: index / 4, commit: 99, ..Message::default() }, run }
    }

    fn shape(appends: &[Append]) -> Vec<(u64, u64, usize)> {
        appends.iter().map(|a| (a.head.index, a.head.log_term, a.run.len())).collect()
    }

    #[test]
    fn a_message_that_is_too_large_goes_as_several_that_follow_on_each_other() {
        for (story, pieces, bytes, limit, expected) in [
            ("fits", vec![(5, 8)], 36, 300, vec![(4, 1, 3)]),
            ("two halves", vec![(5, 9)], 36, 200, vec![(4, 1, 2), (6, 1, 2)]),
            ("over the border of pieces", vec![(5, 8), (8, 11)], 36, 400, vec![(4, 1, 4), (8, 2, 2)]),
            ("each is too large", vec![(5, 6), (6, 8)], 100, 10, vec![(4, 1, 1), (5, 1, 1), (6, 1, 1)]),
            ("nothing", vec![], 0, 10, vec![(0, 0, 0)]),
        ] {
            let whole = append(&pieces, bytes);
            let expected_entries = whole.received().entries;
            let parts = whole.split(limit);
            assert_eq!(shape(&parts), expected, "{story}");
            let together: Vec<Entry> = parts.iter().flat_map(|a| a.received().entries).collect();
            assert_eq!(together, expected_entries, "{story}");
            assert!(parts.iter().all(|a| a.head.commit == 99), "{story}");
        }
    }

    #[test]
    fn the_same_entries_elsewhere_are_not_the_same_run() {
        let first = append(&[(5, 8)], 1);
        assert!(first.run.is(&first.run.clone()));
        assert!(!first.run.is(&append(&[(5, 8)], 1).run));
    }
}

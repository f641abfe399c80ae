//! What becomes of upstream's log: which entries count, under which index and term, and as what. No files here.
//!
//! Invariants: the planned entries follow the snapshot without a gap, their terms never fall; a command of upstream's is
//! a command of ours with the same bytes; what upstream passed over (empty entries, membership) is an empty entry.

use std::path::Path;

use raft::eraftpb::{Entry, EntryType};
use raftify_engine::core::{Context, Kind, Origin, FOUNDING_INDEX, FOUNDING_TERM};
use raftify_engine::{Error, ErrorCode, Result};

use crate::upstream::{UpstreamLog, UpstreamSnapshot};

/// The log of ours that upstream's becomes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// The log goes on right after this index.
    pub snapshot_index: u64,
    pub snapshot_term: u64,
    /// The state machine's state there, if it is not the empty one.
    pub state: Option<Vec<u8>>,
    pub entries: Vec<Entry>,
    /// Commands among them.
    pub commands: u64,
    pub term: u64,
    /// Added to upstream's indexes.
    pub shift: u64,
    /// Entries above the commit index that upstream had stored.
    pub newly_committed: u64,
    /// Upstream's index of the first entry left out at the end, and how many: leftovers that a later leader had replaced.
    pub left_out: Option<(u64, u64)>,
    /// Entries whose term was raised to that of an entry before them.
    pub terms_raised: u64,
}

/// Who the entries are said to come from, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub node: u64,
    /// Random: no start of a node has it.
    pub start: u64,
    pub time_us: u64,
}

/// Decides. `dir` is named in errors.
///
/// Upstream never removes a conflicting suffix: after a later leader has overwritten index 4 of 1..=6, the old 5 and 6 stay.
/// An entry of a lower term at the end of the log is such a leftover and was never committed: had it been, every later
/// leader had it, and none would have written another entry before it. If an entry of a higher term stands behind the
/// leftovers, upstream has taken them for its log and gone on: then they were replicated and applied, and they stay.
pub(crate) fn plan(upstream: UpstreamLog, stamp: Stamp, dir: &Path) -> Result<Plan> {
    let UpstreamLog { hard_state, snapshot, mut entries, .. } = upstream;
    let UpstreamSnapshot { index: at, term: snapshot_term, data, .. } = snapshot.unwrap_or_default();
    // What the snapshot holds already; upstream keeps some entries before it.
    entries.retain(|entry| entry.index > at);
    let corrupt = |index: u64, what: String| {
        let what = format!("{what}; import the directory of another member, or a backup of this one");
        Err(Error::storage(ErrorCode::CorruptData, dir, what).with_index(index))
    };
    for (entry, expected) in entries.iter().zip(at.saturating_add(1)..) {
        if entry.index != expected {
            let from = if at == 0 { "the beginning".to_string() } else { format!("the snapshot at {at}") };
            return corrupt(expected, format!("entry {expected} is missing in the log that goes on from {from}"));
        }
        if EntryType::from_i32(entry.entry_type).is_none() {
            return corrupt(entry.index, format!("entry {expected} is of the unknown type {}", entry.entry_type));
        }
    }
    if at == 0 && entries.is_empty() {
        return Err(Error::storage(
            ErrorCode::InvalidArgument,
            dir,
            "it holds neither a snapshot nor entries, so there is nothing to import; start the new node without it",
        ));
    }
    let highest = |term: u64, entry: &Entry| term.max(entry.term);
    let left_out = leave_out(&mut entries, snapshot_term, hard_state.commit);
    let newest_term = entries.iter().fold(snapshot_term, highest);
    // Our logs begin after index 1, so that whoever joins gets the members by snapshot.
    let snapshot_index = at.max(FOUNDING_INDEX);
    let shift = snapshot_index - at;
    let last = entries.last().map_or(at, |entry| entry.index);
    if last.checked_add(shift).is_none_or(|last| last == u64::MAX) {
        return corrupt(last, format!("index {last} is too high to be one"));
    }
    let mut plan = Plan {
        snapshot_index,
        snapshot_term: snapshot_term.max(FOUNDING_TERM),
        state: Some(data).filter(|data| !data.is_empty()),
        term: hard_state.term.max(newest_term).max(FOUNDING_TERM),
        shift,
        newly_committed: last.saturating_sub(hard_state.commit.max(at)),
        left_out,
        ..Plan::default()
    };
    if plan.term == u64::MAX {
        return corrupt(last, format!("term {} is too high to be one", plan.term));
    }
    let mut term = plan.snapshot_term;
    for entry in entries {
        plan.terms_raised += u64::from(entry.term < term && entry.term > 0);
        term = term.max(entry.term);
        let command = entry.entry_type == EntryType::EntryNormal as i32 && !entry.data.is_empty();
        let mut ours = Entry { term, index: entry.index.saturating_add(shift), ..Entry::default() };
        if command {
            let origin = Origin { node: stamp.node, start: stamp.start, sequence: plan.commands };
            ours.context = Context { kind: Kind::Command, time_us: stamp.time_us, origin }.encode().to_vec();
            ours.data = entry.data;
            plan.commands += 1;
        }
        plan.entries.push(ours);
    }
    Ok(plan)
}

/// Takes the leftovers off the end: everything behind the last entry whose term is the highest up to there. What upstream
/// had stored as committed is none.
fn leave_out(entries: &mut Vec<Entry>, snapshot_term: u64, commit: u64) -> Option<(u64, u64)> {
    let mut highest = snapshot_term;
    let mut whole = 0;
    for (entry, count) in entries.iter().zip(1..) {
        if entry.term >= highest || entry.index <= commit {
            highest = highest.max(entry.term);
            whole = count;
        }
    }
    let first = entries.get(whole)?.index;
    let count = entries.len().saturating_sub(whole) as u64;
    entries.truncate(whole);
    Some((first, count))
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::HardState;

    use super::*;

    const STAMP: Stamp = Stamp { node: 7, start: 99, time_us: 5 };

    fn entry(index: u64, term: u64, data: &str) -> Entry {
        Entry { index, term, data: data.into(), context: vec![1; 8], ..Entry::default() }
    }

    fn log(commit: u64, snapshot: Option<(u64, u64, &str)>, entries: &[(u64, u64)]) -> UpstreamLog {
        UpstreamLog {
            hard_state: HardState { term: 4, vote: 2, commit },
            snapshot: snapshot.map(|(index, term, data)| UpstreamSnapshot {
                index,
                term,
                data: data.into(),
                ..Default::default()
            }),
            entries: entries.iter().map(|(index, term)| entry(*index, *term, &format!("c{index}"))).collect(),
            ..Default::default()
        }
    }

    fn shape(plan: &Plan) -> Vec<(u64, u64, String)> {
        let text = |e: &Entry| String::from_utf8(e.data.clone()).unwrap();
        plan.entries.iter().map(|e| (e.index, e.term, text(e))).collect()
    }

    #[test]
    fn a_log_without_snapshot_moves_behind_the_founding_index() {
        let plan = plan(log(1, None, &[(1, 1), (2, 1), (3, 2)]), STAMP, Path::new("d")).unwrap();
        assert_eq!((plan.snapshot_index, plan.snapshot_term, plan.shift, plan.state.clone()), (1, 1, 1, None));
        assert_eq!(shape(&plan), [(2, 1, "c1".into()), (3, 1, "c2".into()), (4, 2, "c3".into())]);
        assert_eq!((plan.term, plan.newly_committed, plan.commands), (4, 2, 3));
        let context = Context::decode(&plan.entries[2].context).unwrap();
        assert_eq!((context.kind, context.time_us), (Kind::Command, 5));
        assert_eq!(context.origin, Origin { node: 7, start: 99, sequence: 2 });
    }

    #[test]
    fn a_snapshot_keeps_its_index_and_covers_the_entries_before_it() {
        let plan =
            plan(log(9, Some((5, 3, "state")), &[(1, 1), (4, 1), (5, 3), (6, 3), (7, 4)]), STAMP, Path::new("d"));
        let plan = plan.unwrap();
        assert_eq!((plan.snapshot_index, plan.snapshot_term, plan.shift), (5, 3, 0));
        assert_eq!(plan.state.as_deref(), Some(&b"state"[..]));
        assert_eq!(shape(&plan), [(6, 3, "c6".into()), (7, 4, "c7".into())]);
        assert_eq!(plan.newly_committed, 0);
    }

    #[test]
    fn a_snapshot_alone_is_enough() {
        let plan = plan(log(0, Some((5, 3, "")), &[]), STAMP, Path::new("d")).unwrap();
        assert_eq!((plan.snapshot_index, plan.entries.len(), plan.state, plan.newly_committed), (5, 0, None, 0));
    }

    #[test]
    fn what_upstream_passed_over_is_an_empty_entry() {
        let mut upstream = log(0, None, &[(1, 1)]);
        upstream.entries.push(entry(2, 1, ""));
        for (index, kind) in [(3, EntryType::EntryConfChange), (4, EntryType::EntryConfChangeV2)] {
            upstream.entries.push(Entry { entry_type: kind as i32, ..entry(index, 1, "change") });
        }
        let plan = plan(upstream, STAMP, Path::new("d")).unwrap();
        assert_eq!(plan.commands, 1);
        for ours in &plan.entries[1..] {
            assert_eq!(*ours, Entry { index: ours.index, term: 1, ..Entry::default() });
        }
    }

    #[test]
    fn leftovers_of_a_deposed_leader_are_left_out_unless_upstream_went_on_from_them() {
        // (terms from index 1 on, snapshot term at 0 means none) -> terms kept, left out, raised
        type Row = (&'static [u64], &'static [u64], Option<(u64, u64)>, u64);
        let table: &[Row] = &[
            (&[1, 1, 1, 2, 1, 1], &[1, 1, 1, 2], Some((5, 2)), 0),
            (&[1, 1, 1, 2, 1, 1, 3], &[1, 1, 1, 2, 2, 2, 3], None, 2),
            (&[1, 1, 1, 2, 1, 2, 1], &[1, 1, 1, 2, 2, 2], Some((7, 1)), 1),
            (&[1, 2, 3], &[1, 2, 3], None, 0),
            (&[3, 1], &[3], Some((2, 1)), 0),
        ];
        for (terms, kept, left_out, raised) in table {
            let entries: Vec<(u64, u64)> = (1..).zip(terms.iter().copied()).collect();
            let plan = plan(log(0, None, &entries), STAMP, Path::new("d")).unwrap();
            assert_eq!(plan.entries.iter().map(|e| e.term).collect::<Vec<_>>(), *kept, "{terms:?}");
            assert_eq!((plan.left_out, plan.terms_raised), (*left_out, *raised), "{terms:?}");
        }
        let committed = plan(log(2, None, &[(1, 3), (2, 1), (3, 1)]), STAMP, Path::new("d")).unwrap();
        assert_eq!((committed.entries.len(), committed.left_out), (2, Some((3, 1))), "stored as committed");
        let plan = plan(log(0, Some((5, 3, "s")), &[(6, 1), (7, 1)]), STAMP, Path::new("d")).unwrap();
        assert_eq!((plan.entries.len(), plan.left_out), (0, Some((6, 2))), "stale entries behind a received snapshot");
    }

    #[test]
    fn gaps_unknown_types_and_impossible_numbers_are_refused_by_name() {
        let mut unknown = log(0, None, &[(1, 1)]);
        unknown.entries[0].entry_type = 9;
        let mut endless = log(0, None, &[(1, 1)]);
        endless.hard_state.term = u64::MAX;
        let table = [
            (log(0, None, &[(2, 1)]), "entry 1 is missing"),
            (log(0, None, &[(1, 1), (3, 1)]), "entry 2 is missing"),
            (log(0, None, &[(1, 1), (1, 1)]), "entry 2 is missing"),
            (log(0, Some((5, 1, "s")), &[(1, 1), (7, 1)]), "from the snapshot at 5"),
            (log(0, Some((u64::MAX, 1, "s")), &[]), "too high"),
            (unknown, "unknown type 9"),
            (endless, "too high"),
        ];
        for (upstream, text) in table {
            let error = plan(upstream, STAMP, Path::new("d")).unwrap_err();
            assert_eq!(error.code, ErrorCode::CorruptData);
            assert!(error.message.contains(text), "{}", error.message);
        }
        let error = plan(log(0, None, &[]), STAMP, Path::new("d")).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }
}

//! Known faults of Raft systems, to be put back one at a time: a simulator that does not find them is not worth its seeds.
//!
//! Only with the feature `known-bugs`, which nothing enables but the simulator's own test. Without it [`on`] is a constant `false` and
//! nothing of this is in the program. Where raft itself owns the rule that is broken, it is broken at our border with it: in
//! messages, storage and hard state.
//!
//! May not live here: anything that a node does. Each fault is one `if` at the place where its rule is kept; what it takes more than
//! that stands here.

use super::Core;
use crate::entry::Entry;

/// One fault that somebody once shipped, or that a rule of ours (S1 …) exists to prevent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// What promises durability leaves before its write is durable (S1; etcd #14370, NATS 2.12.1).
    AcknowledgesBeforeSync,
    /// The vote is not in the hard state that is written.
    ForgetsItsVote,
    /// Votes pass the disk like heartbeat responses do (S2 widened).
    VotesPassTheDisk,
    /// Messages of a Ready without a write do not wait for the write in flight (S3).
    ReadyWithoutWriteDoesNotWait,
    /// A single voter that wins at once sends before its term is durable (S1).
    SendsBeforeItsTermIsDurable,
    /// A conflicting suffix stays behind what a new leader sends.
    KeepsConflictingSuffix,
    /// An entry of an earlier term counts as committed once a majority has it (Raft §5.4.2).
    CommitsEntriesOfOldTerms,
    /// A context of ReadIndex is used again (etcd #20418).
    ReusesReadContext,
    /// A leader answers reads without asking anybody.
    ReadsWithoutAsking,
    /// A follower's question is answered without a majority.
    AnswersWithoutMajority,
    /// A read does not wait for the state machine.
    ReadsBeforeApplied,
    /// The snapshot that the log names is not restored at start.
    DoesNotRestoreAtStart,
    /// Replay begins before the snapshot that was restored.
    ReplaysOverTheSnapshot,
    /// A change of members counts as soon as it is appended, and stays when it is overwritten.
    MembersAtAppend,
    /// A result goes to whoever waits under that counter, whatever node and start it was for.
    RepliesByBareCounter,
    /// A snapshot taken in the middle of a replay carries the members of the snapshot before (a766a06).
    SnapshotWithOldMembers,
    /// A received snapshot leaves a longer log in place that contradicts it (hashicorp/raft #697).
    InstallKeepsTheLog,
    /// A forward that is not answered in time is sent again (Redis-Raft #13).
    SendsForwardsAgain,
    /// A forward that comes twice is taken twice (S15).
    TakesForwardsTwice,
    /// What a snapshot overtook was certainly not done (S15).
    OvertakenMeansNotDone,
    /// A leader with a hung disk goes on leading (S4; etcd #13527).
    LeadsWithHungDisk,
    /// New ids are counted from the members that there are (S12).
    ReusesIds,
    /// A snapshot does not carry the counter of ids, nor the spent ones (S12).
    SnapshotForgetsIds,
    /// Nobody gives up a forward whose answer was lost: its caller waits for ever (hashicorp/raft #498).
    ForwardsWithoutEnd,
    /// Files go when a snapshot is complete, not when the log names it (S6).
    PrunesBeforeTheLogNamesIt,
    /// A fresh directory votes without having found a majority of fresh ones (S11).
    FreshDirectoriesVote,
    /// Whoever was greeted before the cluster was founded is not greeted again, and one whose own founding did not last hears
    /// nobody any more (found by seed 115).
    GreetsFoundersOnce,
    /// The leader's clock may go back in the log.
    ClockGoesBack,
    /// Entries go into an earlier append wherever that one stands (raft's own `batch_append`).
    MergesAppendsBlindly,
    /// The configuration is stored without a commit index at or above its own (S7, S13).
    StoresMembersAboveCommit,
    /// Whoever was told a result by the machine's side gets another one from the core (P3).
    AnswersTwice,
    /// A command of a session that comes again is applied again (Raft thesis §6.3).
    AppliesAgain,
    /// A snapshot does not carry what was done in sessions (S13).
    SnapshotForgetsSessions,
    /// A machine that kept its state skips a replay, and the table of sessions skips it as well.
    SkipsSessions,
}

#[cfg(feature = "known-bugs")]
impl Bug {
    pub const ALL: [Bug; 34] = [
        Bug::AcknowledgesBeforeSync,
        Bug::ForgetsItsVote,
        Bug::VotesPassTheDisk,
        Bug::ReadyWithoutWriteDoesNotWait,
        Bug::SendsBeforeItsTermIsDurable,
        Bug::KeepsConflictingSuffix,
        Bug::CommitsEntriesOfOldTerms,
        Bug::ReusesReadContext,
        Bug::ReadsWithoutAsking,
        Bug::AnswersWithoutMajority,
        Bug::ReadsBeforeApplied,
        Bug::DoesNotRestoreAtStart,
        Bug::ReplaysOverTheSnapshot,
        Bug::MembersAtAppend,
        Bug::RepliesByBareCounter,
        Bug::SnapshotWithOldMembers,
        Bug::InstallKeepsTheLog,
        Bug::SendsForwardsAgain,
        Bug::TakesForwardsTwice,
        Bug::OvertakenMeansNotDone,
        Bug::LeadsWithHungDisk,
        Bug::ReusesIds,
        Bug::SnapshotForgetsIds,
        Bug::ForwardsWithoutEnd,
        Bug::PrunesBeforeTheLogNamesIt,
        Bug::FreshDirectoriesVote,
        Bug::GreetsFoundersOnce,
        Bug::ClockGoesBack,
        Bug::MergesAppendsBlindly,
        Bug::StoresMembersAboveCommit,
        Bug::AnswersTwice,
        Bug::AppliesAgain,
        Bug::SnapshotForgetsSessions,
        Bug::SkipsSessions,
    ];
}

#[cfg(feature = "known-bugs")]
thread_local! {
    static PUT_BACK: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Puts one back for all cores of this thread, or none.
#[cfg(feature = "known-bugs")]
pub fn put_back(bug: Option<Bug>) {
    PUT_BACK.set(bug);
}

/// Whether this fault was put back.
#[cfg(feature = "known-bugs")]
pub(crate) fn on(bug: Bug) -> bool {
    PUT_BACK.get() == Some(bug)
}

#[cfg(not(feature = "known-bugs"))]
pub(crate) const fn on(_: Bug) -> bool {
    false
}

impl Core {
    /// [`Bug::CommitsEntriesOfOldTerms`].
    pub(super) fn commit_too_much(&mut self) {
        let (majority, _) = self.raw.raft.mut_prs().maximal_committed_index();
        let log = &mut self.raw.raft.raft_log;
        if majority > log.committed && majority <= log.last_index() {
            log.commit_to(majority);
        }
    }

    /// [`Bug::KeepsConflictingSuffix`].
    pub(super) fn keep_conflicting_suffix(&self, entries: &mut Vec<Entry>) {
        if let (Some(first), Some(last)) = (entries.first().map(|e| e.index), entries.last().map(|e| e.index)) {
            if first <= self.raw.store().last() {
                self.raw.store().for_each(last.saturating_add(1), u64::MAX, |entry| {
                    entries.push(entry.clone());
                    true
                });
            }
        }
    }
}

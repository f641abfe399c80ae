//! The net is proven: known faults of Raft systems are put back one at a time, and the same random runs that CI makes must find each
//! of them within a stated number of seeds. One that is not found is a hole in faults or oracle: close it there, never here.
//!
//! `make known-bugs` prints which promise each of them broke, and after how many seeds. `RAFTIFY_SIM_BUG=Name` looks at one alone,
//! `RAFTIFY_SIM_BASE=s` begins at another seed.
#![cfg(feature = "known-bugs")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)]
mod sim;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use raftify_engine::core::bugs::{put_back, Bug};

use sim::disk::Sabotage;
use sim::record::{try_seed, Failure};
use sim::shrink::Shrinker;

/// In the core, or in the simulator's own disk and operator.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Core(Bug),
    Shell(Sabotage),
}

impl Fault {
    fn name(self) -> String {
        match self {
            Fault::Core(bug) => format!("{bug:?}"),
            Fault::Shell(sabotage) => format!("{sabotage:?}"),
        }
    }
}

/// Seeds within which each is found: several times what was needed, from several bases, when it was last measured.
const BOUNDS: [(Fault, u64); 39] = [
    (Fault::Core(Bug::AcknowledgesBeforeSync), 50),
    (Fault::Core(Bug::ForgetsItsVote), 50),
    (Fault::Core(Bug::VotesPassTheDisk), 50),
    (Fault::Core(Bug::ReadyWithoutWriteDoesNotWait), 50),
    (Fault::Core(Bug::SendsBeforeItsTermIsDurable), 1000),
    (Fault::Core(Bug::KeepsConflictingSuffix), 150),
    (Fault::Core(Bug::CommitsEntriesOfOldTerms), 1000),
    (Fault::Core(Bug::ReusesReadContext), 150),
    (Fault::Core(Bug::ReadsWithoutAsking), 500),
    (Fault::Core(Bug::AnswersWithoutMajority), 6000),
    (Fault::Core(Bug::ReadsBeforeApplied), 50),
    (Fault::Core(Bug::DoesNotRestoreAtStart), 50),
    (Fault::Core(Bug::ReplaysOverTheSnapshot), 50),
    (Fault::Core(Bug::MembersAtAppend), 50),
    (Fault::Core(Bug::RepliesByBareCounter), 50),
    (Fault::Core(Bug::SnapshotWithOldMembers), 500),
    (Fault::Core(Bug::InstallKeepsTheLog), 1200),
    (Fault::Core(Bug::SendsForwardsAgain), 200),
    (Fault::Core(Bug::TakesForwardsTwice), 50),
    (Fault::Core(Bug::OvertakenMeansNotDone), 100),
    (Fault::Core(Bug::LeadsWithHungDisk), 150),
    (Fault::Core(Bug::ReusesIds), 50),
    (Fault::Core(Bug::SnapshotForgetsIds), 300),
    (Fault::Core(Bug::ForwardsWithoutEnd), 100),
    (Fault::Core(Bug::PrunesBeforeTheLogNamesIt), 400),
    (Fault::Core(Bug::FreshDirectoriesVote), 1000),
    (Fault::Core(Bug::GreetsFoundersOnce), 4000),
    (Fault::Core(Bug::ClockGoesBack), 50),
    (Fault::Core(Bug::MergesAppendsBlindly), 200),
    (Fault::Core(Bug::StoresMembersAboveCommit), 50),
    (Fault::Core(Bug::AnswersTwice), 50),
    (Fault::Core(Bug::AppliesAgain), 1000),
    (Fault::Core(Bug::SnapshotForgetsSessions), 1000),
    (Fault::Core(Bug::SkipsSessions), 1000),
    (Fault::Shell(Sabotage::OpenDoesNotSync), 2500),
    (Fault::Shell(Sabotage::WrittenTooEarly), 50),
    (Fault::Shell(Sabotage::WipedKeepsItsName), 1000),
    (Fault::Shell(Sabotage::RestoresUnchecked), 1000),
    (Fault::Shell(Sabotage::StandsInOverAGap), 1000),
];

fn run(fault: Fault, seed: u64) -> Option<Box<Failure>> {
    let sabotage = match fault {
        Fault::Core(bug) => {
            put_back(Some(bug));
            None
        }
        Fault::Shell(sabotage) => Some(sabotage),
    };
    let result = try_seed(seed, |profile| profile.sabotage = sabotage);
    put_back(None);
    result.err()
}

fn base() -> u64 {
    std::env::var("RAFTIFY_SIM_BASE").ok().and_then(|v| v.parse().ok()).unwrap_or(1)
}

#[test]
fn every_known_bug_is_found() {
    let only = std::env::var("RAFTIFY_SIM_BUG").ok();
    let faults: Vec<_> = BOUNDS.iter().filter(|(fault, _)| only.as_ref().is_none_or(|o| *o == fault.name())).collect();
    assert!(Bug::ALL.iter().all(|bug| BOUNDS.iter().any(|(fault, _)| *fault == Fault::Core(*bug))), "one has no bound");
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(4);
    let next = AtomicUsize::new(0);
    let search = || {
        let mut missed = Vec::new();
        while let Some((fault, bound)) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
            let started = Instant::now();
            let found = (0..*bound).find_map(|n| run(*fault, base() + n).map(|failure| (n + 1, failure)));
            let said = match &found {
                Some((seeds, failure)) => {
                    let text =
                        failure.message.lines().find(|line| line.contains("VIOLATION")).unwrap_or(&failure.message);
                    format!("{seeds:>5} of {bound:>5} seeds: {}", text.chars().take(110).collect::<String>())
                }
                None => format!("NOT FOUND in {bound} seeds"),
            };
            println!("{:<30} {:>5.1} s {said}", fault.name(), started.elapsed().as_secs_f64());
            if found.is_none() {
                missed.push(fault.name());
            }
        }
        missed
    };
    let missed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(search)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert!(missed.is_empty(), "holes in the net: {missed:?}");
}

/// Writes a shrunk script of the bug that RAFTIFY_SIM_BUG names to sim/kept, under its name.
#[test]
#[ignore = "writes a file; run it when a bug is added"]
fn keep_a_script() {
    let name = std::env::var("RAFTIFY_SIM_BUG").expect("RAFTIFY_SIM_BUG names a bug");
    let bug = named(&name);
    let failure = (base()..).find_map(|seed| run(Fault::Core(bug), seed)).unwrap();
    put_back(Some(bug));
    let mut small = Shrinker::shrink(&failure, Duration::from_secs(120));
    put_back(None);
    small.script.bug = Some(name.clone());
    let path = format!("{}/sim/kept/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::write(&path, serde_json::to_string_pretty(&small.script).unwrap() + "\n").unwrap();
    println!("{path}: {} steps of {}: {}", small.script.steps.len(), failure.script.steps.len(), small.message);
}

fn named(name: &str) -> Bug {
    Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name).unwrap_or_else(|| panic!("{name} is no known bug"))
}

/// A kept script is of use as long as it still finds what it was kept for. A change of what nodes send or draw may take that away:
/// then it is told here, and a new one is to be kept.
#[test]
fn kept_scripts_find_their_bug() {
    let mut found = 0;
    for script in sim::record::kept() {
        let Some(name) = script.bug.as_deref() else { continue };
        put_back(Some(named(name)));
        let result = script.try_run();
        put_back(None);
        match result {
            Err(failure) => {
                found += 1;
                println!("{name}: {}", failure.message.lines().nth(1).unwrap_or_default());
            }
            Ok(_) => println!("{name}: its script finds it no longer; keep a new one"),
        }
    }
    assert!(found > 0, "no kept script finds what it was kept for");
}

#[test]
fn a_failing_run_shrinks_to_a_few_steps_that_fail_in_the_same_way() {
    let fault = Fault::Core(Bug::DoesNotRestoreAtStart);
    let failure = (1..200).find_map(|seed| run(fault, seed)).unwrap();
    put_back(Some(Bug::DoesNotRestoreAtStart));
    let small = Shrinker::shrink(&failure, Duration::from_secs(20));
    let again = small.script.try_run().err().unwrap();
    put_back(None);
    let (before, after) = (failure.script.steps.len(), small.script.steps.len());
    println!("{before} steps became {after}: {:?}", small.script.steps);
    assert_eq!(Failure::kind(&again.message), Failure::kind(&failure.message));
    assert!(after <= 12 && after < before, "{before} steps became {after}");
    assert!(small.script.try_run().is_ok(), "without the bug it passes");
}

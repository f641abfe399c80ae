//! Simulated clusters: random ones by seed, those that failed once, and named scenarios for the rules of docs/rules.md.
//! docs/testing.md says how to add a fault, a scenario, a known bug.
//!
//! `RAFTIFY_SIM_SEEDS=n` runs n seeds instead of 200, `RAFTIFY_SIM_BASE=s` begins at s ("time": at a number of this moment),
//! `RAFTIFY_SIM_SECONDS=t` lets faults and clients go on for t seconds in clusters of 3 to 5 nodes, `RAFTIFY_SIM_HOURS=h` goes on for
//! h hours. A failure is shrunk, and its script written to a file; replay it with
//! `cargo run -p raftify-engine --example sim -- --script FILE`, a seed with `-- --seed N`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod founding;
mod rules;
mod sim;
mod stories;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use sim::profile::Profile;
use sim::record::{Failure, Script};
use sim::shrink::Shrinker;

fn number(name: &str) -> Option<f64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn base() -> u64 {
    match std::env::var("RAFTIFY_SIM_BASE").as_deref() {
        Ok("time") => SystemTime::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_secs() * 1000),
        Ok(text) => text.parse().expect("RAFTIFY_SIM_BASE is a number or \"time\""),
        Err(_) => 1,
    }
}

/// Shrinks it, and writes the script where the next person finds it.
fn keep(failure: &Failure) -> PathBuf {
    let seed = failure.script.seed;
    eprintln!("seed {seed} failed: {}\nshrinking …", failure.message);
    let small = Shrinker::shrink(failure, Duration::from_secs(60));
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("failed-{seed}.json"));
    let text = serde_json::to_string_pretty(&small.script).expect("a script is text");
    std::fs::write(&path, &text).expect("the script can be written");
    eprintln!(
        "{text}\n{}\n{} steps of {} are left",
        small.message,
        small.script.steps.len(),
        failure.script.steps.len()
    );
    eprintln!("replay: cargo run -p raftify-engine --example sim -- --script {}", path.display());
    let seconds =
        std::env::var("RAFTIFY_SIM_SECONDS").map_or_else(|_| String::new(), |s| format!("RAFTIFY_SIM_SECONDS={s} "));
    eprintln!("or:     {seconds}cargo run -p raftify-engine --example sim -- --seed {seed}");
    path
}

#[test]
fn seeds_keep_every_promise() {
    let (base, seeds) = (base(), number("RAFTIFY_SIM_SEEDS").unwrap_or(200.0) as u64);
    let until = number("RAFTIFY_SIM_HOURS").map(|hours| Instant::now() + Duration::from_secs_f64(hours * 3600.0));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(4);
    let threads = number("RAFTIFY_SIM_THREADS").map_or(threads, |n| n as u64);
    println!("seeds from {base} on");
    let (next, stopped) = (AtomicU64::new(base), AtomicBool::new(false));
    let failed: Vec<(u64, PathBuf)> = std::thread::scope(|scope| {
        let run = || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                let over = until.map_or(seed >= base + seeds, |until| Instant::now() >= until);
                if over {
                    break;
                }
                if until.is_some() && seed % 1000 == 0 {
                    eprintln!("seed {seed}");
                }
                if let Err(failure) = sim::record::try_seed(seed, Profile::stretch) {
                    stopped.store(until.is_some(), Ordering::Relaxed);
                    failed.push((seed, keep(&failure)));
                }
            }
            failed
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    let ran = next.load(Ordering::Relaxed).saturating_sub(base + threads).max(1);
    println!("{ran} seeds from {base} on, {} failed", failed.len());
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
}

#[test]
fn a_seed_means_the_same_run_every_time() {
    for seed in [3, 4, 20] {
        assert_eq!(sim::run(seed, false), sim::run(seed, false));
    }
}

/// S20: the script of a run is the run.
#[test]
fn the_script_of_a_seed_is_the_same_run() {
    for seed in 1..=40 {
        let mut draws = sim::draws::Draws::new(seed);
        let profile = Profile::drawn(&mut draws);
        let mut world = sim::drawing(seed, profile.clone(), draws, false);
        let drawn = sim::live(&mut world);
        let script = Script { what: String::new(), bug: None, seed, profile, steps: world.steps };
        let text = serde_json::to_string(&script).unwrap();
        let read: Script = serde_json::from_str(&text).unwrap();
        let replayed = read.run(false);
        assert_eq!((drawn.trace, drawn.counts), (replayed.trace, replayed.counts), "seed {seed}");
    }
}

/// Runs that failed once, shrunk; each says what it was.
#[test]
fn what_failed_once_is_kept_and_passes() {
    for script in sim::record::kept() {
        if let Err(failure) = script.try_run() {
            panic!("{}: {}", script.what, failure.message);
        }
    }
}

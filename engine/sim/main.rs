//! Simulated clusters: random ones by seed, and named scenarios for the rules of docs/rules.md.
//!
//! `RAFTIFY_SIM_SEEDS=n` runs n seeds instead of 200, `RAFTIFY_SIM_BASE=s` begins at s. A failure names its seed; replay it with
//! `cargo run -p raftify-engine --example sim -- --seed N`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod rules;
mod sim;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn seeds_keep_every_promise() {
    let (base, seeds) = (number("RAFTIFY_SIM_BASE", 1), number("RAFTIFY_SIM_SEEDS", 200));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(4);
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let run = |worker: u64| {
            move || {
                let mut failed = Vec::new();
                for seed in (base..base + seeds).filter(|s| s % threads == worker) {
                    if std::panic::catch_unwind(|| sim::run(seed, false)).is_err() {
                        eprintln!(
                            "seed {seed} failed; replay: cargo run -p raftify-engine --example sim -- --seed {seed}"
                        );
                        failed.push(seed);
                    }
                }
                failed
            }
        };
        let workers: Vec<_> = (0..threads).map(|worker| scope.spawn(run(worker))).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{} of {seeds} seeds failed: {failed:?}", failed.len());
}

#[test]
fn a_seed_means_the_same_run_every_time() {
    for seed in [3, 4] {
        assert_eq!(sim::run(seed, false), sim::run(seed, false));
    }
}

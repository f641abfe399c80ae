//! Tells the story of one seed: `cargo run -p raftify-engine --example sim -- --seed N [--quiet]`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)]
mod sim;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let after =
        |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).and_then(|v| v.parse().ok());
    let seed = after("--seed").unwrap_or(1);
    let count: u64 = after("--count").unwrap_or(1);
    for seed in seed..seed + count {
        let started = std::time::Instant::now();
        let summary = sim::run(seed, !args.iter().any(|a| a == "--quiet"));
        println!("seed {seed} in {:?}: {summary:?}", started.elapsed());
    }
}

//! Tells the story of one seed: `cargo run -p raftify-engine --example sim -- --seed N [--quiet]`; with `--count M` what happened in so many;
//! `RAFTIFY_SIM_SECONDS=t` for the longer runs of the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)]
mod sim;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let after =
        |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).and_then(|v| v.parse().ok());
    let seed = after("--seed").unwrap_or(1);
    let count: u64 = after("--count").unwrap_or(1);
    if let Some(path) = args.iter().position(|a| a == "--script").and_then(|i| args.get(i + 1)) {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
        let script: sim::record::Script = serde_json::from_str(&text).expect("a script");
        println!("{}: {:?}", script.what, script.run(!args.iter().any(|a| a == "--quiet")));
        return;
    }
    let quiet = args.iter().any(|a| a == "--quiet");
    let mut failed = 0;
    let mut counts = std::collections::BTreeMap::new();
    for seed in seed..seed + count {
        if count == 1 {
            let started = std::time::Instant::now();
            let summary = sim::run(seed, !quiet);
            println!("seed {seed} in {:?}: {summary:?}", started.elapsed());
        } else {
            match sim::record::try_seed(seed, sim::profile::Profile::stretch) {
                Ok(summary) => {
                    summary.counts.into_iter().for_each(|(what, of)| *counts.entry(what).or_insert(0) += of);
                }
                Err(failure) => {
                    failed += 1;
                    println!("seed {seed}: {}", failure.message);
                }
            }
        }
    }
    if count > 1 {
        println!("{failed} of {count} seeds failed; what happened in the others:");
        counts.into_iter().for_each(|(what, of)| println!("{of:>9} {what}"));
    }
}

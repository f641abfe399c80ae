//! Randomness: one stream of the seed for each purpose, so that a change in one place leaves the others as they were (S20).

use raftify_engine::core::Rng;

use super::machine::mix;

pub struct Draws {
    pub profile: Rng,
    pub network: Rng,
    pub disk: Rng,
    pub machine: Rng,
    pub clients: Rng,
    pub faults: Rng,
    pub nodes: Rng,
}

impl Draws {
    pub fn new(seed: u64) -> Self {
        let stream = |purpose: u64| Rng::new(mix(mix(0x5EED, seed), purpose));
        Draws {
            profile: stream(1),
            network: stream(2),
            disk: stream(3),
            machine: stream(4),
            clients: stream(5),
            faults: stream(6),
            nodes: stream(7),
        }
    }
}

/// A number of a skewed distribution: mostly near `low`, now and then far out to `high`.
pub fn skewed(rng: &mut Rng, low: u64, high: u64) -> u64 {
    let near = low + (high - low) / 8;
    if rng.chance(0.9) {
        rng.range(low, near + 1)
    } else {
        rng.range(low, high + 1)
    }
}

/// One of these.
pub fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.range(0, of.len() as u64) as usize]
}

//! Randomness: one stream of the seed for each purpose, and within it one for each node or link, so that a change in one place
//! leaves the others as they were (S20): an event that is dropped from a script disturbs those it touches, and nobody else.

use std::collections::BTreeMap;

use raftify_engine::core::Rng;

use super::machine::mix;

pub struct Draws {
    /// What kind of run it is.
    pub profile: Rng,
    /// What clients ask for. Not used when a script is replayed.
    pub clients: Rng,
    /// What goes wrong. Not used when a script is replayed.
    pub faults: Rng,
    seed: u64,
    of: BTreeMap<(u64, u64, u64), Rng>,
}

fn stream(seed: u64, purpose: u64) -> Rng {
    Rng::new(mix(mix(0x5EED, seed), purpose))
}

impl Draws {
    pub fn new(seed: u64) -> Self {
        Draws { profile: stream(seed, 1), clients: stream(seed, 5), faults: stream(seed, 6), seed, of: BTreeMap::new() }
    }

    fn of(&mut self, purpose: u64, one: u64, other: u64) -> &mut Rng {
        let seed = self.seed;
        self.of
            .entry((purpose, one, other))
            .or_insert_with(|| Rng::new(mix(mix(mix(0x5EED, seed), purpose), one << 32 | other)))
    }

    /// The way from one node to another.
    pub fn link(&mut self, from: u64, to: u64) -> &mut Rng {
        self.of(2, from, to)
    }

    pub fn disk(&mut self, node: u64) -> &mut Rng {
        self.of(3, node, 0)
    }

    pub fn machine(&mut self, node: u64) -> &mut Rng {
        self.of(4, node, 0)
    }

    /// Of the process itself: when it starts, what it draws for itself.
    pub fn node(&mut self, node: u64) -> &mut Rng {
        self.of(7, node, 0)
    }
}

/// A number of a skewed distribution: mostly near `low`, now and then far out to `high`.
pub fn skewed(rng: &mut Rng, low: u64, high: u64) -> u64 {
    let high = high.max(low);
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

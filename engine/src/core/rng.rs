//! A small generator for draws that need not be secret. Everything the core draws comes from one seed that its shell gives.

/// SplitMix64 (Steele, Lea, Flood 2014): every seed is good, and the state is one number.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    // An iterator would have to end; this does not.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` on, below `high`; `low` when the range is empty.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low.saturating_add(self.next().checked_rem(high.saturating_sub(low)).unwrap_or(0))
    }

    pub fn chance(&mut self, of: f64) -> bool {
        ((self.next() >> 11) as f64 / (1u64 << 53) as f64) < of
    }
}

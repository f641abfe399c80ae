//! A state machine that goes wrong: the cluster has to find it out by itself (S17).

/// A machine that does not do what the others do.
#[derive(Clone, Debug)]
pub struct Lie {
    /// At every command from here on.
    pub from: u64,
    /// It raises where the others do not, or the other way round; otherwise only the bytes differ.
    pub raises: bool,
    /// The first command it happened at.
    pub told: Option<u64>,
}

impl Lie {
    pub fn strikes(&mut self, index: u64) -> bool {
        if index >= self.from {
            self.told.get_or_insert(index);
        }
        index >= self.from
    }
}

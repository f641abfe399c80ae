//! The bytes of a frame: most of them copied together, and between them large data, which stay where the log has them.
//!
//! Invariant: every piece that is kept names how many of the frame's own bytes come before it, in rising order.

use bytes::Bytes;

use crate::entry::{Entry, APART};
use crate::log::record::{self, Fault};

#[derive(Debug, Default)]
pub(crate) struct Pieces {
    own: Vec<u8>,
    /// With the number of own bytes before each.
    kept: Vec<(usize, Bytes)>,
    kept_bytes: usize,
}

impl Pieces {
    /// Empty again, and no more memory held than that.
    pub(super) fn clear(&mut self, memory: usize) {
        self.kept.clear();
        self.kept.shrink_to(memory / size_of::<(usize, Bytes)>());
        self.kept_bytes = 0;
        self.own.clear();
        self.own.shrink_to(memory);
    }

    /// Of all.
    pub(super) fn len(&self) -> usize {
        self.own.len().saturating_add(self.kept_bytes)
    }

    /// Those that were copied; the first of them are the frame's first.
    pub(super) fn own(&mut self) -> &mut Vec<u8> {
        &mut self.own
    }

    /// Everything in order.
    pub(super) fn parts(&self) -> Vec<&[u8]> {
        let mut parts = Vec::with_capacity(self.kept.len().saturating_mul(2).saturating_add(1));
        let mut from = 0;
        for (before, piece) in &self.kept {
            parts.push(self.own.get(from..*before).unwrap_or_default());
            parts.push(piece);
            from = *before;
        }
        parts.push(self.own.get(from..).unwrap_or_default());
        parts
    }

    pub(super) fn keep(&mut self, piece: Bytes) {
        self.kept_bytes = self.kept_bytes.saturating_add(piece.len());
        self.kept.push((self.own.len(), piece));
    }

    /// The value of one entry.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.data.len() < APART {
            return record::append_entry(entry, &mut self.own);
        }
        record::append_entry_head(entry, &mut self.own)?;
        self.keep(entry.data.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_in_pieces_is_the_same_as_in_one(sizes in prop::collection::vec(0..3 * APART, 0..6), context: Vec<u8>) {
            let (mut pieces, mut whole) = (Pieces::default(), Vec::new());
            for (index, size) in sizes.iter().enumerate() {
                let entry = Entry {
                    index: index as u64,
                    data: vec![index as u8; *size].into(),
                    context: context.clone().into(),
                    ..Entry::default()
                };
                pieces.entry(&entry).unwrap();
                record::append_entry(&entry, &mut whole).unwrap();
                prop_assert_eq!(pieces.len(), whole.len());
                let kept = pieces.parts().iter().any(|part| part.as_ptr() == entry.data.as_ptr());
                prop_assert_eq!(kept, *size >= APART);
            }
            prop_assert_eq!(pieces.parts().concat(), whole);
            pieces.clear(0);
            prop_assert_eq!(pieces.parts().concat(), b"");
        }
    }
}

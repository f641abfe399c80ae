//! Byte strings of many things, copied into one memory that they share.

use bytes::Bytes;

/// Collects things with their bytes.
#[derive(Debug)]
pub struct Gather<T> {
    things: Vec<T>,
    /// Where the bytes of each end.
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

impl<T> Default for Gather<T> {
    fn default() -> Self {
        Self::with_capacity(0, 0)
    }
}

impl<T> Gather<T> {
    /// Room for so many things, and for so many bytes in all. What is left over is given back in the end.
    pub fn with_capacity(things: usize, bytes: usize) -> Self {
        Gather {
            things: Vec::with_capacity(things),
            ends: Vec::with_capacity(things),
            bytes: Vec::with_capacity(bytes),
        }
    }

    pub fn push(&mut self, thing: T, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.things.push(thing);
        self.ends.push(self.bytes.len());
    }

    /// Of all things so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Calls `put` for each thing with its bytes, in order. The memory is let go of with the last of them.
    pub fn finish(self, mut put: impl FnMut(&mut T, Bytes)) -> Vec<T> {
        let Gather { mut things, ends, bytes } = self;
        let mut rest = Bytes::from(bytes.into_boxed_slice());
        let mut from = 0usize;
        for (thing, to) in things.iter_mut().zip(ends) {
            put(thing, rest.split_to(to.saturating_sub(from).min(rest.len())));
            from = to;
        }
        things
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_has_its_bytes_and_all_lie_in_one_memory(said in prop::collection::vec(any::<Vec<u8>>(), 0..9), room in 0usize..99) {
            let mut gather = Gather::with_capacity(room, room);
            for (number, bytes) in said.iter().enumerate() {
                gather.push((number, Bytes::new()), bytes);
            }
            prop_assert_eq!(gather.bytes(), said.iter().map(Vec::len).sum::<usize>());
            let got = gather.finish(|(_, to), bytes| *to = bytes);
            prop_assert!(got.iter().map(|(number, _)| *number).eq(0..said.len()));
            prop_assert!(got.iter().map(|(_, bytes)| bytes.as_ref()).eq(said.iter().map(Vec::as_slice)));
            let held: Vec<&Bytes> = got.iter().map(|(_, bytes)| bytes).filter(|bytes| !bytes.is_empty()).collect();
            prop_assert!(held.windows(2).all(|two| two[0].as_ptr().wrapping_add(two[0].len()) == two[1].as_ptr()));
        }
    }
}

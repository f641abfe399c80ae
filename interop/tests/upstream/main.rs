//! The real crate raftify 0.1.82 writes a directory, ours reads and imports it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod importing;
mod ours;
mod reading;
mod shipped;
mod theirs;

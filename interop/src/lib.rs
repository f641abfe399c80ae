//! All that knows the crate `raftify` 0.1.x: what its data directories look like, and how one becomes a directory of ours.
//!
//! Lives here: reading upstream's LMDB file ([`read`], [`inspect`]) and turning it into a node's directory ([`import`]).
//! May not live here: upstream's code. Its format is few keys and the protobuf messages of `raft-proto`, which both raft
//! crates share, so the library needs neither its driver nor its network stack (`check_symbols.sh` shows that none of it
//! is linked); the crate itself is a dependency of the tests alone, which let it write what is read here.
//!
//! Invariants: upstream's directory is read with pread and never written to, locked or mapped, so a damaged file is an
//! error and nothing else; `import` leaves a whole new directory or none.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod format;
mod import;
mod inspect;
mod lmdb;
mod plan;
mod upstream;

pub use import::{import, ImportOptions, ImportReport};
pub use inspect::inspect;
pub use upstream::{is_upstream, read, UpstreamLog, UpstreamSnapshot};

//! The C ABI of raftify (`include/raftify.h` is generated from this crate): handles, checks, and the queue that
//! carries answers.
//!
//! Lives here: everything that touches a pointer of a foreign program; the only crate with `unsafe` of its own
//! making. May not
//! live here: any decision of Raft, any I/O of a node.
//!
//! Invariants of every exported function:
//! - it never unwinds: a panic becomes `RAFTIFY_ERR_INTERNAL`, and closes the node or client it happened in ([`panic`]);
//! - a NULL, a length without a pointer, text that is not UTF-8 are `RAFTIFY_ERR_INVALID_ARGUMENT` ([`pointer`]);
//! - in a forked child a handle of the parent is dead: `RAFTIFY_ERR_FORKED`, its free leaks ([`fork`]);
//! - what may wait for a callback is refused inside one: `RAFTIFY_ERR_REENTRANT` ([`panic`]);
//! - no lock is held while a foreign function is called.
//!
//! What a caller owes (pointers valid for the call, handles not freed meanwhile) is said once, in the header's
//! preface; every
//! `unsafe` block names the part of it that it relies on.
// The contract of every exported function is its text in the header, for callers in C.
#![allow(clippy::missing_safety_doc)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

// The public ones in the order of the header; blank lines keep them so.
mod version;

mod error;

mod config;

mod runtime;

mod queue;

mod record;

mod node;

mod requests;

mod answers;

mod machine;

mod client;

mod inspect;

#[cfg(feature = "interop")]
mod import;

mod fork;

mod layout;

mod json;
mod open_requests;
mod panic;
mod pointer;
mod sink;
mod wake;

pub use answers::*;
pub use client::*;
pub use config::*;
pub use error::*;
pub use fork::*;
#[cfg(feature = "interop")]
pub use import::*;
pub use inspect::*;
pub use layout::*;
pub use machine::*;
pub use node::*;
pub use queue::*;
pub use record::*;
pub use requests::*;
pub use runtime::*;
pub use version::*;

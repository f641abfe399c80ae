//! The Raft node of raftify_ffi: sans-I/O core, durable log, snapshots, transport, shell and client. No FFI.
//!
//! Rooms: [`core`] decides, [`log`] and [`snapshots`] keep, [`transport`] carries, [`node`] runs them on threads, [`client`] asks from outside.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod address;
mod baton;
mod checksum;
pub mod client;
pub mod cluster;
pub mod config;
pub mod core;
pub mod descriptors;
mod direct;
pub mod entry;
pub mod error;
#[cfg(test)]
mod faults;
pub mod gather;
mod locks;
pub mod log;
mod log_syncs;
pub mod machine;
pub mod machine_thread;
mod mailbox;
pub mod node;
mod own_thread;
mod removal;
pub mod request;
pub mod runtime;
pub mod snapshots;
pub mod status;
pub mod transport;
pub mod wire;

pub use cluster::{ClusterState, Member, NodeId, Uid};
pub use config::{Config, LogEngine};
pub use core::Rng;
pub use error::{Committed, Error, ErrorCode, Result};
pub use runtime::Runtime;

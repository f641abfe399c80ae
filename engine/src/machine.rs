//! The border between the core and the user's state machine: requests in log order, answers from any thread.

use std::path::PathBuf;

use crate::error::Error;
use crate::request::Token;

/// One command within an [`ApplyBatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyEntry {
    pub index: u64,
    pub term: u64,
    /// The leader's clock when it took the command, microseconds since 1970; never goes back in the log.
    pub time_us: u64,
    /// Where its bytes lie in [`ApplyBatch::data`].
    pub offset: usize,
    pub len: usize,
    /// Somebody waits for the result on this node, or the cluster compares results; the others' results are not needed.
    pub wanted: bool,
    /// Of the request that waits for the result on this node, if `wanted`; 0 when none does.
    pub token: Token,
}

/// Committed commands, in order, with all their bytes in one buffer.
#[derive(Clone, Debug, Default)]
pub struct ApplyBatch {
    /// Rises by one with each request to the machine; the answer names it.
    pub id: u64,
    /// The machine stands at this index once the batch is done (entries of the library's own lie between the commands).
    pub last_index: u64,
    pub last_term: u64,
    pub entries: Vec<ApplyEntry>,
    pub data: Vec<u8>,
}

/// Something for the machine to do. At most a few are outstanding; each is answered once, in order.
#[derive(Clone, Debug)]
pub enum MachineRequest {
    Apply(ApplyBatch),
    /// Hand over the state at exactly `index`.
    Snapshot {
        id: u64,
        index: u64,
        term: u64,
    },
    /// Replace the state by this file's.
    Restore {
        id: u64,
        index: u64,
        term: u64,
        path: PathBuf,
        size: u64,
    },
}

impl MachineRequest {
    pub fn id(&self) -> u64 {
        match self {
            MachineRequest::Apply(batch) => batch.id,
            MachineRequest::Snapshot { id, .. } | MachineRequest::Restore { id, .. } => *id,
        }
    }
}

/// What a command came to: the bytes for the proposer, or that it raised (type name and text).
pub type Outcome = Result<Vec<u8>, String>;

/// The machine's answer to the request of that id.
#[derive(Debug)]
pub enum MachineAnswer {
    /// Outcomes of every command that raised, and of every `wanted` one; ascending by index. The others returned normally.
    Applied {
        id: u64,
        outcomes: Vec<(u64, Outcome)>,
    },
    /// The same, where the machine's side has itself told those who waited for commands that `outcomes` does not name: their
    /// requests end here, without a completion.
    AppliedAndTold {
        id: u64,
        outcomes: Vec<(u64, Outcome)>,
    },
    /// The state was captured; its bytes are being written, or are written, to a file by the shell.
    Snapshot {
        id: u64,
        result: Result<(), String>,
    },
    Restored {
        id: u64,
    },
    /// The machine cannot go on: the node stops. `index` is the command it stopped at, which counts as not applied.
    Failed {
        id: u64,
        index: u64,
        error: Error,
    },
}

//! The segment log: recycled files of a fixed size, in them one checksummed frame a batch, one sync a frame.
//!
//! ```text
//!  log/00000004.seg     [frame 81: all small records, entries 40..43][frame 82][frame 83]..[old content]
//!      00000001.seg     [frame 97: all small records, entries 61..61][frame 98][ torn? ][old content]
//!      00000003.seg     recycled: frames of lower generations and numbers
//!      00000005.seg     made ahead: zeros, written or only allocated
//!      00000006.new     a segment that is being made; removed at the next open
//!      durable, clean   as beside every log (see `files`)
//!
//!  frame = [magic, generation, CRC32C, length, number, directory, CRC of the frame before,
//!           hard state, bounds of the log, oldest segment needed, segment before][records of the batch]
//! ```
//!
//! Lives here: the format (`frame`, `frame_builder`), single files (`segment_file`), which of them make up the log (`chain`), reading them
//! (`walk`, `replay`), where entries lie (`index`), and the two halves. May not live here: rules of the log itself
//! (`crate::log::draft`), what waits and what poisons (`crate::log::batching`).
//!
//! Invariants (S9): a batch is one frame in one segment, written and synced at once. All of the log can be learnt from its
//! live segments, oldest to newest: each begins with all small records. Behind the last whole frame lies at most one torn
//! one; a whole frame of a higher number anywhere means that what lies between has been damaged. A segment is overwritten
//! only when no durable state needs it and no reader holds it.

mod chain;
mod frame;
mod frame_builder;
mod index;
mod inspect;
mod open;
mod pieces;
mod pool;
mod reader;
mod replay;
mod segment_file;
#[cfg(test)]
mod tests;
mod walk;
mod writer;

pub(crate) use inspect::SegmentView;
pub(crate) use open::{check, create, open};
pub(crate) use segment_file::is_segment_log;

use std::path::PathBuf;

use crate::log::draft::Draft;
use crate::log::lock::DirectoryLock;
use crate::log::record::{self, Meta};
use crate::log::Identity;

use frame::FrameHeader;
use index::Index;

/// Bytes of a segment of a log that has grown: large enough to roll seldom, small enough that the tail is quickly
/// written again at each open.
pub(crate) const SEGMENT_SIZE: u64 = 16 << 20;

/// What writer and reader share. The directory is given up last.
struct Shared {
    index: Index,
    log_dir: PathBuf,
    _lock: DirectoryLock,
}

/// The directory's number as frames carry it.
fn directory_number(identity: &Identity) -> u64 {
    identity.directory.0 as u64
}

/// What every frame says of the log after it; its place in segments and chain is left to fill in.
fn header_of(draft: &Draft) -> FrameHeader {
    FrameHeader {
        number: draft.bounds.number,
        directory: directory_number(&draft.identity),
        term: draft.hard_state.term,
        vote: draft.hard_state.vote,
        commit: draft.hard_state.commit,
        first: draft.bounds.first,
        prev_term: draft.bounds.prev_term,
        last: draft.bounds.last,
        ..FrameHeader::default()
    }
}

/// A small record for a frame's body; `None` for what stands in the header, or does not exist.
fn small_record(meta: Meta, draft: &Draft) -> Option<Vec<u8>> {
    match meta {
        Meta::Identity => Some(record::encode_identity(&draft.identity)),
        Meta::Cluster => Some(record::encode_cluster(&draft.cluster)),
        Meta::Snapshot => draft.snapshot.as_ref().map(record::encode_snapshot),
    }
}

//! What a log holds, as JSON, beside a live node: read with pread only. Takes no lock, writes nothing, opens no file that
//! carries a lock (closing it would give up the lock of a node in this process).
//!
//! How it stays consistent is each engine's affair (`lmdb_view`, `segment::inspect`). The small records are of one moment;
//! entries come in parts, so they may be a little younger.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use raft::eraftpb::{EntryType, HardState};
use serde_json::{json, Value as Json};

use crate::cluster::ClusterState;
use crate::config::LogEngine;
use crate::core::{in_session, Context, Kind};
use crate::entry::Entry;
use crate::error::{Error, ErrorCode, Result};
use crate::log::files;
use crate::log::lmdb_view::LmdbView;
use crate::log::segment::{is_segment_log, SegmentView};
use crate::log::{ClusterRecord, Identity, SnapshotMeta};

/// Entries read as one part.
const PART: u64 = 64;
/// Data in one answer, roughly; the rest is named by `next_index`.
const MAX_DATA: u64 = 64 << 20;

/// The small records, and the bounds of what can be read.
pub(crate) struct Small {
    pub identity: Identity,
    pub hard_state: HardState,
    pub cluster: ClusterRecord,
    pub snapshot: Option<SnapshotMeta>,
    pub first: u64,
    pub last: u64,
}

/// A log as it can be read beside its writer.
pub(crate) trait View {
    fn small(&mut self) -> Result<Small>;

    /// Entries `low..high`; none if they have been compacted meanwhile.
    fn entries(&mut self, low: u64, high: u64) -> Result<Vec<Entry>>;
}

/// Shows the log in `directory`: a node's directory, or a `log_dir` that holds exactly one. Entries begin at `from` (0: the
/// first there is) and are at most `limit`; `next_index` says where to go on, or is null.
///
/// Keys: `identity {node_id, directory, cluster_id, incarnation}`, `hard_state {term, vote, commit}`, `snapshot {index, term, size,
/// sessions, has_file}` (bytes of the state, and of the table of client sessions) or null, `membership {index, voters, learners, members {id: addr}}`, `first_index`, `last_index`, `entries`
/// (each `{index, term, type, kind, time_us, proposer, session, size, data, context}`, bytes in hex; see [`entry_json`]),
/// `next_index`.
pub fn inspect(directory: &Path, from: u64, limit: u64) -> Result<Json> {
    let log_dir = find(directory)?;
    let mut view: Box<dyn View> = match files::engine_of(&log_dir)? {
        LogEngine::Lmdb => Box::new(LmdbView::open(&log_dir)?),
        LogEngine::Segment => Box::new(SegmentView::open(&log_dir)?),
    };
    let Small { identity, hard_state, cluster, snapshot, first: first_index, last } = view.small()?;
    let first = from.max(first_index);
    let end = last.saturating_add(1).min(first.saturating_add(limit));
    let mut entries = Vec::new();
    let (mut next, mut bytes) = (first, 0u64);
    while next < end && bytes < MAX_DATA {
        let part = view.entries(next, end.min(next.saturating_add(PART)))?;
        if part.is_empty() {
            break;
        }
        next = next.saturating_add(part.len() as u64);
        bytes = part.iter().fold(bytes, |sum, entry| sum.saturating_add(entry.data.len() as u64));
        entries.extend(part.iter().map(entry_json));
    }
    Ok(json!({
        "identity": {
            "node_id": identity.node_id,
            "directory": identity.directory.to_string(),
            "cluster_id": identity.cluster_id,
            "incarnation": identity.incarnation.map(|i| i.to_string()),
        },
        "hard_state": {"term": hard_state.term, "vote": hard_state.vote, "commit": hard_state.commit},
        "snapshot": snapshot.map(|s| json!({
            "index": s.index, "term": s.term, "size": s.state_size(), "sessions": s.sessions, "has_file": s.has_file,
        })),
        "membership": membership_json(cluster.index, &cluster.cluster),
        "first_index": first_index,
        "last_index": last,
        "entries": entries,
        "next_index": (next <= last).then_some(next),
    }))
}

/// The directory of the log meant by `directory`.
fn find(directory: &Path) -> Result<PathBuf> {
    let wrong = |what: &str| Err(Error::storage(ErrorCode::WrongDirectory, directory, what));
    let holds_log = |node: &Path| {
        let log_dir = node.join(files::LOG_DIR);
        match std::fs::read_dir(&log_dir) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(false),
            Err(e) => return Err(Error::io(&log_dir, "list the directory", &e)),
            Ok(_) => {}
        }
        // One whose data is gone is damaged, not absent: the numbers beside it are left.
        let held_log = || files::NumberFile::newest(&log_dir).is_some();
        Ok(log_dir.join(files::DATA_FILE).is_file() || is_segment_log(&log_dir) || held_log())
    };
    if holds_log(directory)? {
        return Ok(directory.join(files::LOG_DIR));
    }
    let listing = match std::fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(e) if e.kind() == ErrorKind::NotFound => return wrong("there is no such directory"),
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            return wrong("not a directory; name a node's directory, <log_dir>/node-<id>");
        }
        Err(e) => return Err(Error::io(directory, "list the directory", &e)),
    };
    let mut found = Vec::new();
    let mut empty = true;
    let mut unreadable = None;
    for item in listing.flatten() {
        empty = false;
        match holds_log(&item.path()) {
            Ok(true) => found.push(item.file_name().to_string_lossy().into_owned()),
            Ok(false) => {}
            Err(error) => unreadable = unreadable.or(Some(error)),
        }
    }
    // What may not be looked at may hold one.
    if let (true, Some(error)) = (found.is_empty(), unreadable) {
        return Err(error);
    }
    found.sort();
    match found.as_slice() {
        [node] => Ok(directory.join(node).join(files::LOG_DIR)),
        [] if empty => wrong("the directory is empty; name a node's directory, <log_dir>/node-<id>"),
        [] => wrong("no log of this library lies there; name a node's directory, <log_dir>/node-<id>"),
        several => wrong(&format!("several nodes lie there ({}); name one of them", several.join(", "))),
    }
}

fn membership_json(index: u64, cluster: &ClusterState) -> Json {
    let members: serde_json::Map<String, Json> =
        cluster.members().iter().map(|m| (m.id.to_string(), json!(m.addr))).collect();
    json!({"index": index, "voters": cluster.voters, "learners": cluster.learners, "members": members})
}

/// `type` is raft's word, `kind` ours: only a `command` is the program's own, and no other kind is a decoder's business.
/// `time_us` (of the leader's clock, since 1970) and `proposer` are null for what raft itself appended;
/// `session {number, sequence, first_open}` is of a command that a client sent in a session.
fn entry_json(entry: &Entry) -> Json {
    let entry_type = EntryType::from_i32(entry.entry_type);
    let name = match entry_type {
        Some(EntryType::EntryNormal) => "EntryNormal".to_string(),
        Some(EntryType::EntryConfChange) => "EntryConfChange".to_string(),
        Some(EntryType::EntryConfChangeV2) => "EntryConfChangeV2".to_string(),
        None => entry.entry_type.to_string(),
    };
    let ours = if entry_type == Some(EntryType::EntryNormal) { Context::of(entry) } else { None };
    let place = ours.filter(|context| context.kind == Kind::CommandInSession).and_then(|_| in_session(entry));
    let kind = match (entry_type, ours.map(|context| context.kind)) {
        (Some(EntryType::EntryConfChange | EntryType::EntryConfChangeV2), _) => "membership",
        (_, Some(Kind::Command | Kind::CommandInSession)) => "command",
        (_, Some(Kind::Founding)) => "founding",
        (_, Some(Kind::RecordDirectory)) => "record_directory",
        (_, Some(Kind::ReserveId)) => "reserve_id",
        (_, Some(Kind::OpenSession)) => "open_session",
        (_, Some(Kind::CloseSession)) => "close_session",
        // These two travel to the leader and never reach a log.
        (_, Some(Kind::ChangeMembers)) => "change_members",
        (_, Some(Kind::TransferLeader)) => "transfer_leader",
        (Some(EntryType::EntryNormal), None) if entry.data.is_empty() && entry.context.is_empty() => "empty",
        (_, None) => "unknown",
    };
    json!({
        "index": entry.index,
        "term": entry.term,
        "type": name,
        "kind": kind,
        "time_us": ours.map(|context| context.time_us),
        // The start is a random number that fills 64 bits: as text, because many readers of JSON would round it.
        "proposer": ours.map(|context| json!({
            "node_id": context.origin.node,
            "start": format!("{:016x}", context.origin.start),
            "sequence": context.origin.sequence,
        })),
        "session": place.map(|place| json!({
            "number": format!("{:016x}", place.session),
            "sequence": place.sequence,
            "first_open": place.first_open,
        })),
        "size": entry.data.len(),
        "data": hex(&entry.data),
        "context": hex(&entry.context),
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{note_session, Origin};
    use crate::request::InSession;

    #[test]
    fn an_entry_says_whose_it_is_and_of_what_kind() {
        let context = |kind| {
            let origin = Origin { node: 3, start: u64::MAX, sequence: 9 };
            Context { kind, time_us: 17, origin }.encode()
        };
        let shown = |entry_type: i32, data: &[u8], context: Vec<u8>| {
            entry_json(&Entry { entry_type, index: 5, term: 2, data: data.to_vec().into(), context: context.into() })
        };
        for (kind, name) in [
            (Kind::Command, "command"),
            (Kind::Founding, "founding"),
            (Kind::RecordDirectory, "record_directory"),
            (Kind::ReserveId, "reserve_id"),
        ] {
            let json = shown(0, b"x", context(kind).to_vec());
            assert_eq!((&json["kind"], &json["type"]), (&name.into(), &"EntryNormal".into()));
            assert_eq!(json["time_us"], 17);
            assert_eq!(json["proposer"], json!({"node_id": 3, "start": "ffffffffffffffff", "sequence": 9}));
        }
        let mut noted = context(Kind::CommandInSession);
        note_session(&mut noted, InSession { session: 255, sequence: 7, first_open: 6 });
        let json = shown(0, b"x", noted.to_vec());
        assert_eq!(json["kind"], "command");
        assert_eq!(json["session"], json!({"number": "00000000000000ff", "sequence": 7, "first_open": 6}));
        // An empty command is a command; an entry without anything is raft's own.
        assert_eq!(shown(0, b"", context(Kind::Command).to_vec())["kind"], "command");
        for (entry_type, data, context, name) in [
            (0, &b""[..], vec![], "empty"),
            (0, b"noise", vec![], "unknown"),
            (0, b"", vec![1, 99], "unknown"),
            (1, b"change", vec![], "membership"),
            (2, b"", vec![7; 40], "membership"),
            (9, b"", vec![], "unknown"),
        ] {
            let json = shown(entry_type, data, context);
            assert_eq!(json["kind"], name, "{json}");
            assert!(json["proposer"].is_null() && json["time_us"].is_null());
        }
    }
}

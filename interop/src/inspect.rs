//! A directory of upstream's as JSON, with the keys that the engine's `inspect` uses for ours.

use std::path::Path;

use raft::eraftpb::{Entry, EntryType};
use raftify_engine::Result;
use serde_json::{json, Map, Value as Json};

use crate::upstream::{peers, Directory};

/// Entries read as one part, so that a live node does not have to pause for the whole log.
const PART: u64 = 64;
/// Data in one answer, roughly; the rest is named by `next_index`.
const MAX_DATA: u64 = 64 << 20;

/// Shows upstream's log directory `dir`, for `debug persisted`. Entries begin at `from` (0: the first there is) and are at
/// most `limit`; `next_index` says where to go on, or is null. Writes nothing and takes no lock.
///
/// Keys: `format` ("raftify 0.1.x"), `hard_state {term, vote, commit}`, `snapshot {index, term, size, has_file}` or null
/// (`has_file`: it carries a state), `membership {index, voters, learners, members {id: addr}}` (addresses as far as the
/// entries shown name them; `index` is null: upstream does not store it), `first_index`, `last_index`, `entries` (each
/// `{index, term, type, size, data, context}`, bytes in hex), `next_index`.
///
/// Errors: those of [`crate::read`].
pub fn inspect(dir: &Path, from: u64, limit: u64) -> Result<Json> {
    let directory = Directory::open(dir)?;
    let meta = directory.meta()?;
    let first = directory.entries(0, 1)?.first().map(|entry| entry.index);
    let (mut next, mut bytes) = (from, 0u64);
    let mut entries: Vec<Entry> = Vec::new();
    let mut more = true;
    while more && (entries.len() as u64) < limit && bytes < MAX_DATA {
        let part = directory.entries(next, (limit - entries.len() as u64).min(PART) as usize)?;
        more = !part.is_empty();
        if let Some(last) = part.last() {
            next = last.index.saturating_add(1);
        }
        bytes = part.iter().fold(bytes, |sum, entry| sum.saturating_add(entry.data.len() as u64));
        entries.extend(part);
    }
    let next_index = directory.entries(next, 1)?.first().map(|entry| entry.index);
    let addresses: Map<String, Json> =
        peers(&entries).into_iter().map(|(id, addr)| (id.to_string(), addr.into())).collect();
    Ok(json!({
        "format": "raftify 0.1.x",
        "hard_state": {"term": meta.hard_state.term, "vote": meta.hard_state.vote, "commit": meta.hard_state.commit},
        "snapshot": meta.snapshot.map(|s| json!({
            "index": s.index, "term": s.term, "size": s.data.len(), "has_file": !s.data.is_empty(),
        })),
        "membership": {
            "index": Json::Null,
            "voters": meta.conf_state.voters,
            "learners": meta.conf_state.learners,
            "members": addresses,
        },
        "first_index": first,
        "last_index": meta.last_index,
        "entries": entries.iter().map(entry_json).collect::<Vec<_>>(),
        "next_index": next_index,
    }))
}

fn entry_json(entry: &Entry) -> Json {
    let kind = match EntryType::from_i32(entry.entry_type) {
        Some(EntryType::EntryNormal) => "EntryNormal".to_string(),
        Some(EntryType::EntryConfChange) => "EntryConfChange".to_string(),
        Some(EntryType::EntryConfChangeV2) => "EntryConfChangeV2".to_string(),
        None => entry.entry_type.to_string(),
    };
    json!({
        "index": entry.index,
        "term": entry.term,
        "type": kind,
        "size": entry.data.len(),
        "data": hex(&entry.data),
        "context": hex(&entry.context),
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! Keys and values of the log's one database, and how each proves itself.
//!
//! Lives here: encoding, decoding, checking. May not live here: files, transactions, rules of Raft.
//!
//! Invariants: every value begins `[format u8][header length u8][2 bytes][CRC32C u32]`, in every format there will ever be;
//! the CRC covers the key and the header (for small records: the whole value), so it is checked before the format number
//! is believed, and a record found under a foreign key is damage. An entry's payload has a CRC of its own inside that header.

use bytes::Bytes;
use raft::eraftpb::HardState;

use crate::checksum;
use crate::cluster::{ClusterState, Uid};
use crate::entry::{Entries, Entry, EntryContext};
use crate::log::{ClusterRecord, Identity, SnapshotMeta};

/// Highest format this version reads, and the one it writes.
pub(crate) const FORMAT: u8 = 1;

const PREFIX_META: u8 = 1;
const PREFIX_ENTRY: u8 = 2;
/// No key of the database: see [`Proof`].
const PREFIX_PROOF: u8 = 3;
const COMMON: usize = 8;
/// Header of an entry: the common part, index, term, context length, data length, payload CRC.
pub(crate) const ENTRY_HEADER: usize = COMMON + 28;

/// Why a record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not what was written.
    Damaged(String),
    /// Whole, but of a format number from the future.
    TooNew(u8),
}

fn damaged<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(what.into()))
}

/// The small records beside the entries. They sort before all entries, so that entries are appended at the end of the tree. What
/// changes with nearly every commit (bounds, hard state) is no record: LMDB's log has it in a [`Proof`], a segment in each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Meta {
    Identity = 1,
    Cluster = 3,
    Snapshot = 4,
}

impl Meta {
    pub(crate) const ALL: [Meta; 3] = [Meta::Identity, Meta::Cluster, Meta::Snapshot];

    pub(crate) fn key(self) -> [u8; 2] {
        [PREFIX_META, self as u8]
    }
}

/// What a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Meta(Meta),
    Entry(u64),
}

pub(crate) fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [PREFIX_ENTRY; 9];
    if let Some(tail) = key.get_mut(1..) {
        tail.copy_from_slice(&index.to_be_bytes());
    }
    key
}

/// `None`: no key of ours.
pub(crate) fn parse_key(key: &[u8]) -> Option<Key> {
    match key.split_first()? {
        (&PREFIX_META, [kind]) => Meta::ALL.into_iter().find(|m| *m as u8 == *kind).map(Key::Meta),
        (&PREFIX_ENTRY, index) => Some(Key::Entry(u64::from_be_bytes(index.try_into().ok()?))),
        _ => None,
    }
}

/// Which part of the log exists, and the running number of the commit that wrote this (S8).
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Bounds {
    /// Rises by one with each commit of the database.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// First index that can be read.
    #[prost(uint64, tag = "2")]
    pub first: u64,
    /// Term of the entry before it.
    #[prost(uint64, tag = "3")]
    pub prev_term: u64,
    /// `first - 1` when there is no entry.
    #[prost(uint64, tag = "4")]
    pub last: u64,
    /// Entries from here up to `first - 1` are compacted away but still lie in the tree; deleted in small steps.
    #[prost(uint64, tag = "5")]
    pub floor: u64,
}

/// What lies beside the meta page of an LMDB log's commit: that all of the commit is there, and what changes with every one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proof {
    /// LMDB's number of the commit.
    pub txn: u64,
    /// CRC32C of the pages that it wrote (see `lmdb_changes`).
    pub pages: u32,
    /// CRC32C of the meta page of the commit before it.
    pub before: u32,
    pub bounds: Bounds,
    pub hard_state: HardState,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProofBody {
    #[prost(uint64, tag = "1")]
    txn: u64,
    #[prost(fixed32, tag = "2")]
    pages: u32,
    #[prost(fixed32, tag = "3")]
    before: u32,
    #[prost(message, optional, tag = "4")]
    bounds: Option<Bounds>,
    #[prost(message, optional, tag = "5")]
    hard_state: Option<HardStateBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct IdentityBody {
    #[prost(uint64, tag = "1")]
    node_id: u64,
    #[prost(bytes = "vec", tag = "2")]
    directory: Vec<u8>,
    #[prost(uint64, tag = "3")]
    digest: u64,
    #[prost(bytes = "vec", tag = "4")]
    incarnation: Vec<u8>,
    #[prost(string, tag = "5")]
    cluster_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HardStateBody {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    vote: u64,
    #[prost(uint64, tag = "3")]
    commit: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ClusterBody {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(message, optional, tag = "2")]
    cluster: Option<ClusterState>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SnapshotBody {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(message, optional, tag = "3")]
    cluster: Option<ClusterState>,
    #[prost(uint64, tag = "4")]
    size: u64,
    #[prost(uint32, tag = "5")]
    crc: u32,
    #[prost(bool, tag = "6")]
    has_file: bool,
    #[prost(fixed64, optional, tag = "7")]
    outcomes: Option<u64>,
    #[prost(uint64, tag = "8")]
    sessions: u64,
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn put_u32(bytes: &mut [u8], at: usize, number: u32) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..4)) {
        field.copy_from_slice(&number.to_le_bytes());
    }
}

/// CRC over key and `covered` (a header or a whole value) without its CRC field.
fn crc_of(key: &[u8], covered: &[u8]) -> u32 {
    let (head, tail) = covered.split_at(covered.len().min(4));
    let parts = [key, head, tail.get(4..).unwrap_or_default()];
    // Begun three times it takes three times as long for what is as short as an entry's header.
    let mut together = [0; 48];
    let mut free = together.as_mut_slice();
    for part in parts {
        match free.split_at_mut_checked(part.len()) {
            Some((to, rest)) => {
                to.copy_from_slice(part);
                free = rest;
            }
            None => return parts.into_iter().fold(0, checksum::crc32c_append),
        }
    }
    let left = free.len();
    checksum::crc32c(together.get(..together.len().saturating_sub(left)).unwrap_or_default())
}

/// A small record: header length 0 says that the CRC covers the whole value.
fn seal(key: &[u8], body: &impl prost::Message) -> Vec<u8> {
    let mut value = vec![FORMAT, 0, 0, 0, 0, 0, 0, 0];
    value.extend_from_slice(&body.encode_to_vec());
    let crc = crc_of(key, &value);
    put_u32(&mut value, 4, crc);
    value
}

fn unseal<M: prost::Message + Default>(key: &[u8], value: &[u8]) -> Result<M, Fault> {
    if u32_at(value, 4) != Some(crc_of(key, value)) {
        return damaged("the checksum of a record does not match");
    }
    match value.first() {
        Some(&FORMAT) => {}
        Some(&newer) if newer > FORMAT => return Err(Fault::TooNew(newer)),
        _ => return damaged("a record has no valid format number"),
    }
    M::decode(value.get(COMMON..).unwrap_or_default()).or_else(|e| damaged(format!("a record does not decode: {e}")))
}

/// Checks what must hold between the numbers.
fn check_bounds(bounds: Bounds) -> Result<Bounds, Fault> {
    let whole = bounds.first >= 1 && bounds.last.checked_add(1).is_some_and(|next| bounds.first <= next);
    if !whole || bounds.floor > bounds.first || bounds.floor == 0 {
        return damaged("the bounds of the log contradict each other");
    }
    Ok(bounds)
}

pub(crate) fn encode_proof(proof: &Proof) -> Vec<u8> {
    let HardState { term, vote, commit } = proof.hard_state;
    let body = ProofBody {
        txn: proof.txn,
        pages: proof.pages,
        before: proof.before,
        bounds: Some(proof.bounds),
        hard_state: Some(HardStateBody { term, vote, commit }),
    };
    seal(&[PREFIX_PROOF], &body)
}

pub(crate) fn decode_proof(value: &[u8]) -> Result<Proof, Fault> {
    let body: ProofBody = unseal(&[PREFIX_PROOF], value)?;
    let (Some(bounds), Some(hard_state)) = (body.bounds, body.hard_state) else {
        return damaged("the proof of a commit lacks the bounds or the hard state");
    };
    let HardStateBody { term, vote, commit } = hard_state;
    let (bounds, hard_state) = (check_bounds(bounds)?, HardState { term, vote, commit });
    Ok(Proof { txn: body.txn, pages: body.pages, before: body.before, bounds, hard_state })
}

pub(crate) fn encode_identity(identity: &Identity) -> Vec<u8> {
    let body = IdentityBody {
        node_id: identity.node_id,
        directory: identity.directory.to_bytes(),
        digest: identity.digest,
        cluster_id: identity.cluster_id.clone(),
        incarnation: identity.incarnation.map(Uid::to_bytes).unwrap_or_default(),
    };
    seal(&Meta::Identity.key(), &body)
}

pub(crate) fn decode_identity(value: &[u8]) -> Result<Identity, Fault> {
    let body: IdentityBody = unseal(&Meta::Identity.key(), value)?;
    let Some(directory) = Uid::from_bytes(&body.directory) else {
        return damaged("the identity has no directory number");
    };
    let incarnation = Uid::from_bytes(&body.incarnation);
    if incarnation.is_none() && !body.incarnation.is_empty() {
        return damaged("the identity's incarnation is not 16 bytes");
    }
    Ok(Identity { node_id: body.node_id, directory, digest: body.digest, cluster_id: body.cluster_id, incarnation })
}

pub(crate) fn encode_cluster(record: &ClusterRecord) -> Vec<u8> {
    seal(&Meta::Cluster.key(), &ClusterBody { index: record.index, cluster: Some(record.cluster.clone()) })
}

pub(crate) fn decode_cluster(value: &[u8]) -> Result<ClusterRecord, Fault> {
    let body: ClusterBody = unseal(&Meta::Cluster.key(), value)?;
    Ok(ClusterRecord { index: body.index, cluster: body.cluster.unwrap_or_default() })
}

pub(crate) fn encode_snapshot(meta: &SnapshotMeta) -> Vec<u8> {
    let body = SnapshotBody {
        index: meta.index,
        term: meta.term,
        cluster: Some(meta.cluster.clone()),
        size: meta.size,
        sessions: meta.sessions,
        crc: meta.crc,
        has_file: meta.has_file,
        outcomes: meta.outcomes,
    };
    seal(&Meta::Snapshot.key(), &body)
}

pub(crate) fn decode_snapshot(value: &[u8]) -> Result<SnapshotMeta, Fault> {
    let body: SnapshotBody = unseal(&Meta::Snapshot.key(), value)?;
    Ok(SnapshotMeta {
        index: body.index,
        term: body.term,
        cluster: body.cluster.unwrap_or_default(),
        size: body.size,
        sessions: body.sessions,
        crc: body.crc,
        has_file: body.has_file,
        outcomes: body.outcomes,
    })
}

/// What an entry's header says, once its own CRC has been found right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryHeader {
    pub index: u64,
    pub term: u64,
    pub entry_type: u8,
    pub context_len: u32,
    pub data_len: u32,
    payload_crc: u32,
}

impl EntryHeader {
    /// Bytes of the whole value.
    pub(crate) fn value_len(&self) -> u64 {
        (ENTRY_HEADER as u64).saturating_add(self.context_len.into()).saturating_add(self.data_len.into())
    }
}

/// The header of an entry without its checksums, and its context. Fails for what the format cannot hold, and leaves `out` as it was.
fn open_entry(entry: &Entry, out: &mut Vec<u8>) -> Result<(), Fault> {
    let (Ok(context_len), Ok(data_len), Ok(entry_type)) =
        (u32::try_from(entry.context.len()), u32::try_from(entry.data.len()), u8::try_from(entry.entry_type))
    else {
        return damaged(format!("the entry at index {} is larger than 4 GiB or of an unknown type", entry.index));
    };
    out.extend_from_slice(&[FORMAT, ENTRY_HEADER as u8, entry_type, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&entry.index.to_le_bytes());
    out.extend_from_slice(&entry.term.to_le_bytes());
    out.extend_from_slice(&context_len.to_le_bytes());
    out.extend_from_slice(&data_len.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&entry.context);
    Ok(())
}

/// `value`: header, context, and as much of the data as lies there; `rest`: what does not.
fn prove_entry(index: u64, value: &mut [u8], rest: &[u8]) {
    if let Some((header, payload)) = value.split_at_mut_checked(ENTRY_HEADER) {
        put_u32(header, 32, checksum::crc32c_append(checksum::crc32c(payload), rest));
        put_u32(header, 4, crc_of(&entry_key(index), header));
    }
}

/// Writes the value of one entry behind what `out` holds. Fails for what the format cannot hold, and leaves `out` as it was.
pub(crate) fn append_entry(entry: &Entry, out: &mut Vec<u8>) -> Result<(), Fault> {
    let start = out.len();
    open_entry(entry, out)?;
    out.extend_from_slice(&entry.data);
    prove_entry(entry.index, out.get_mut(start..).unwrap_or_default(), &[]);
    Ok(())
}

/// The same but for the data, which belong right behind.
pub(crate) fn append_entry_head(entry: &Entry, out: &mut Vec<u8>) -> Result<(), Fault> {
    let start = out.len();
    open_entry(entry, out)?;
    prove_entry(entry.index, out.get_mut(start..).unwrap_or_default(), &entry.data);
    Ok(())
}

/// The value of one entry, into `out` (cleared first).
pub(crate) fn encode_entry(entry: &Entry, out: &mut Vec<u8>) -> Result<(), Fault> {
    out.clear();
    append_entry(entry, out)
}

/// Whether this is not one of the small records; nothing of it has been checked.
pub(crate) fn may_be_entry(value: &[u8]) -> bool {
    value.get(1).is_some_and(|length| usize::from(*length) == ENTRY_HEADER)
}

/// The index that the value of an entry gives itself; nothing of it has been checked.
pub(crate) fn stored_index(value: &[u8]) -> Option<u64> {
    u64_at(value, 8)
}

/// Checks and reads the header of the entry stored under `index`; `value` may be cut off anywhere behind the header.
pub(crate) fn decode_entry_header(index: u64, value: &[u8]) -> Result<EntryHeader, Fault> {
    let length = value.get(1).copied().map_or(0, usize::from);
    let Some(header) = value.get(..length).filter(|h| h.len() >= COMMON) else {
        return damaged("the header of an entry is cut off");
    };
    if u32_at(header, 4) != Some(crc_of(&entry_key(index), header)) {
        return damaged("the checksum of an entry's header does not match");
    }
    match header.first() {
        Some(&FORMAT) => {}
        Some(&newer) if newer > FORMAT => return Err(Fault::TooNew(newer)),
        _ => return damaged("an entry has no valid format number"),
    }
    let fields = (u64_at(header, 8), u64_at(header, 16), u32_at(header, 24), u32_at(header, 28), u32_at(header, 32));
    let (Some(own), Some(term), Some(context_len), Some(data_len), Some(payload_crc)) = fields else {
        return damaged("the header of an entry is too short");
    };
    if own != index {
        return damaged(format!("the entry stored at this index says that it is {own}"));
    }
    Ok(EntryHeader {
        index,
        term,
        entry_type: header.get(2).copied().unwrap_or_default(),
        context_len,
        data_len,
        payload_crc,
    })
}

/// Checks the payload of an entry, given its whole value; returns context and data.
pub(crate) fn check_payload<'v>(header: &EntryHeader, value: &'v [u8]) -> Result<(&'v [u8], &'v [u8]), Fault> {
    if value.len() as u64 != header.value_len() {
        return damaged("an entry is not as long as its header says");
    }
    let payload = value.get(ENTRY_HEADER..).unwrap_or_default();
    if checksum::crc32c(payload) != header.payload_crc {
        return damaged("the checksum of an entry's payload does not match");
    }
    payload.split_at_checked(header.context_len as usize).ok_or_else(|| Fault::Damaged("an entry is cut off".into()))
}

/// Checks everything about the entry stored under `index`, and puts it behind the others.
pub(crate) fn gather_entry(index: u64, value: &[u8], out: &mut Entries) -> Result<(), Fault> {
    let header = decode_entry_header(index, value)?;
    let (context, data) = check_payload(&header, value)?;
    let context = EntryContext::from_slice(context);
    let entry_type = header.entry_type.into();
    out.push(Entry { entry_type, term: header.term, index, context, data: Bytes::new() }, data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn decode_entry(index: u64, value: &[u8]) -> Result<Entry, Fault> {
        let mut entries = Entries::default();
        gather_entry(index, value, &mut entries)?;
        let whole = entries.whole();
        assert_eq!(whole.len(), 1);
        Ok(whole[0].clone())
    }

    fn proof(bounds: Bounds) -> Proof {
        Proof { txn: 9, pages: 7, before: 8, bounds, hard_state: HardState { term: 3, vote: 7, commit: 11 } }
    }

    fn entry(index: u64, term: u64, context: &[u8], data: &[u8]) -> Entry {
        Entry { entry_type: 1, term, index, data: data.to_vec().into(), context: context.into() }
    }

    #[test]
    fn every_record_comes_back_as_it_was() {
        let cluster = ClusterState::founding(&BTreeMap::from([(1, "a:1".to_string()), (7, "b:2".to_string())]));
        let identity = Identity {
            node_id: 7,
            directory: Uid(u128::MAX - 3),
            digest: 9,
            cluster_id: "blue".into(),
            incarnation: Some(Uid(5)),
        };
        assert_eq!(decode_identity(&encode_identity(&identity)), Ok(identity.clone()));
        let fresh = Identity { incarnation: None, ..identity.clone() };
        assert_eq!(decode_identity(&encode_identity(&fresh)), Ok(fresh));
        let record = ClusterRecord { index: 4, cluster: cluster.clone() };
        assert_eq!(decode_cluster(&encode_cluster(&record)), Ok(record));
        let meta = SnapshotMeta {
            index: 4,
            term: 2,
            cluster,
            size: 1 << 40,
            sessions: 1 << 20,
            crc: 77,
            has_file: true,
            outcomes: Some(u64::MAX),
        };
        assert_eq!(decode_snapshot(&encode_snapshot(&meta)), Ok(meta));
        let proof = Proof { pages: u32::MAX, ..proof(Bounds { number: 1, first: 5, prev_term: 2, last: 4, floor: 2 }) };
        assert_eq!(decode_proof(&encode_proof(&proof)), Ok(proof));
    }

    #[test]
    fn bounds_that_contradict_each_other_are_damage() {
        for (first, last, floor) in [(0, 0, 1), (5, 3, 5), (5, 9, 6), (1, u64::MAX, 1), (1, 0, 0)] {
            let value = encode_proof(&proof(Bounds { number: 1, first, prev_term: 0, last, floor }));
            assert!(matches!(decode_proof(&value), Err(Fault::Damaged(_))), "{first} {last} {floor}");
        }
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut value = encode_proof(&proof(Bounds { number: 1, first: 1, prev_term: 0, last: 0, floor: 1 }));
        value[0] = FORMAT + 1;
        assert!(matches!(decode_proof(&value), Err(Fault::Damaged(_))));
        let crc = crc_of(&[PREFIX_PROOF], &value);
        value[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode_proof(&value), Err(Fault::TooNew(FORMAT + 1)));

        let mut value = Vec::new();
        encode_entry(&entry(3, 1, b"", b"x"), &mut value).unwrap();
        value[0] = FORMAT + 1;
        let crc = crc_of(&entry_key(3), &value[..ENTRY_HEADER]);
        value[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode_entry(3, &value), Err(Fault::TooNew(FORMAT + 1)));
    }

    #[test]
    fn a_record_under_a_foreign_key_is_damage() {
        let mut value = Vec::new();
        encode_entry(&entry(3, 1, b"", b"x"), &mut value).unwrap();
        assert!(decode_entry(4, &value).is_err());
        let cluster = ClusterState::default();
        let snapshot = SnapshotMeta::without_file(4, 2, cluster);
        assert!(decode_cluster(&encode_snapshot(&snapshot)).is_err());
    }

    #[test]
    fn keys_sort_meta_first_and_entries_by_index() {
        let mut keys: Vec<Vec<u8>> = Meta::ALL.iter().map(|m| m.key().to_vec()).collect();
        keys.extend([1, 255, 256, 1 << 40, u64::MAX].map(|i| entry_key(i).to_vec()));
        let mut sorted = keys.clone();
        sorted.sort();
        assert_eq!(keys, sorted);
        for key in [&[][..], &[1], &[1, 99], &[1, 1, 1], &[2, 0], &[3, 1]] {
            assert_eq!(parse_key(key), None, "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn an_entry_comes_back_and_any_flipped_bit_is_seen(
            index in 1u64.., term: u64, context: Vec<u8>, data: Vec<u8>, at: usize, bit in 0u8..8
        ) {
            let entry = entry(index, term, &context, &data);
            let mut value = Vec::new();
            encode_entry(&entry, &mut value).unwrap();
            prop_assert_eq!(decode_entry(index, &value), Ok(entry));
            let at = at % value.len();
            value[at] ^= 1 << bit;
            prop_assert!(decode_entry(index, &value).is_err());
        }

        #[test]
        fn no_bytes_make_the_decoders_panic(bytes: Vec<u8>, index: u64) {
            let _ = (decode_entry(index, &bytes), decode_entry_header(index, &bytes), parse_key(&bytes));
            let _ = (decode_proof(&bytes), decode_identity(&bytes), decode_cluster(&bytes), decode_snapshot(&bytes));
        }
    }
}

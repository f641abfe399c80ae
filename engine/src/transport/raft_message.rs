//! Raft's messages on the wire (`eraftpb.Message`): entries are written from where the log keeps them, and read into one memory: one of
//! their own, or the frame's, if that holds little else.
//!
//! All but the entries is left to raft's own codec.

use bytes::{Bytes, BytesMut};
use prost::encoding::{decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint, WireType};
use prost_raft::Message as _;
use raft::eraftpb::Message;
use smallvec::SmallVec;
use tonic::Status;

use super::limits::{malformed, ROOM};
use crate::core::Received;
use crate::entry::{Entries, Entry, EntryContext, APART};

/// Field numbers: of an entry in its message, and of an entry.
const ENTRIES: u32 = 7;
const TYPE: u32 = 1;
const TERM: u32 = 2;
const INDEX: u32 = 3;
const DATA: u32 = 4;
/// Given up by raft, and still a number.
const SYNC_LOG: u32 = 5;
const CONTEXT: u32 = 6;

/// A number's field, unless it says nothing.
fn number_len(value: u64) -> usize {
    if value == 0 {
        0
    } else {
        encoded_len_varint(value).saturating_add(1)
    }
}

/// A field of one byte's tag with its contents.
pub(super) fn field_len(len: usize) -> usize {
    len.saturating_add(encoded_len_varint(len as u64)).saturating_add(1)
}

fn bytes_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() {
        0
    } else {
        field_len(bytes.len())
    }
}

/// As protobuf has a number that may be negative.
fn type_number(entry: &Entry) -> u64 {
    i64::from(entry.entry_type) as u64
}

fn entry_len(entry: &Entry) -> usize {
    number_len(type_number(entry))
        .saturating_add(number_len(entry.term))
        .saturating_add(number_len(entry.index))
        .saturating_add(bytes_len(&entry.data))
        .saturating_add(bytes_len(&entry.context))
}

fn put_number(field: u32, value: u64, out: &mut BytesMut) {
    if value != 0 {
        encode_key(field, WireType::Varint, out);
        encode_varint(value, out);
    }
}

fn put_bytes(field: u32, bytes: &[u8], out: &mut BytesMut) {
    if !bytes.is_empty() {
        open(field, bytes.len(), out);
        out.extend_from_slice(bytes);
    }
}

/// Tag and length of a field whose contents follow.
pub(super) fn open(field: u32, len: usize, out: &mut BytesMut) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

/// Bytes in pieces, which follow on each other: nearly always one.
pub type Encoded = SmallVec<[Bytes; 1]>;

/// The entries of a message, encoded.
pub fn encode_entries<'e>(entries: impl Iterator<Item = &'e Entry> + Clone) -> Encoded {
    let copied = |entry: &Entry| {
        let len = field_len(entry_len(entry));
        len.saturating_sub(if entry.data.len() < APART { 0 } else { entry.data.len() })
    };
    let size = entries.clone().map(copied).fold(0usize, usize::saturating_add);
    let mut pieces = Encoded::new();
    let mut out = BytesMut::with_capacity(size);
    for entry in entries {
        open(ENTRIES, entry_len(entry), &mut out);
        put_number(TYPE, type_number(entry), &mut out);
        put_number(TERM, entry.term, &mut out);
        put_number(INDEX, entry.index, &mut out);
        if entry.data.len() < APART {
            put_bytes(DATA, &entry.data, &mut out);
        } else {
            open(DATA, entry.data.len(), &mut out);
            pieces.push(out.split().freeze());
            pieces.push(entry.data.clone());
        }
        put_bytes(CONTEXT, &entry.context, &mut out);
    }
    if !out.is_empty() {
        pieces.push(out.freeze());
    }
    pieces
}

/// Nor does any frame hold one (`limits`).
const GROUP: &str = "message holds a group, which no version writes";

/// One field of a message.
enum Field<'b> {
    Number(u64),
    Bytes(&'b [u8]),
    /// Of four or eight bytes: none that we know is.
    Fixed,
}

/// Most numbers take one byte or two.
#[inline(always)]
fn number(bytes: &mut &[u8]) -> Result<u64, Status> {
    match *bytes {
        [low, rest @ ..] if *low < 0x80 => {
            *bytes = rest;
            Ok(u64::from(*low))
        }
        [low, high, rest @ ..] if *high < 0x80 => {
            *bytes = rest;
            Ok(u64::from(*low & 0x7f) | u64::from(*high) << 7)
        }
        _ => decode_varint(bytes).map_err(malformed),
    }
}

/// Takes a field off the front.
#[inline(always)]
fn take<'b>(bytes: &mut &'b [u8]) -> Result<(u32, Field<'b>), Status> {
    let (field, kind) = match *bytes {
        [key, rest @ ..] if (0x08..0x80).contains(key) => {
            *bytes = rest;
            (u32::from(*key >> 3), WireType::try_from(u64::from(*key & 7)).map_err(malformed)?)
        }
        _ => decode_key(bytes).map_err(malformed)?,
    };
    let len = match kind {
        WireType::Varint => return Ok((field, Field::Number(number(bytes)?))),
        WireType::LengthDelimited => usize::try_from(number(bytes)?).map_err(malformed)?,
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::StartGroup | WireType::EndGroup => return Err(Status::invalid_argument(GROUP)),
    };
    let (contents, rest) = bytes.split_at_checked(len).ok_or_else(|| malformed(""))?;
    *bytes = rest;
    Ok((field, if kind == WireType::LengthDelimited { Field::Bytes(contents) } else { Field::Fixed }))
}

/// An entry whose data lie in the message still.
fn entry_of(mut bytes: &[u8]) -> Result<(Entry, &[u8]), Status> {
    let mut entry = Entry::default();
    let mut data: &[u8] = &[];
    while !bytes.is_empty() {
        match take(&mut bytes)? {
            // As every protobuf decoder has it: of a number that is too large the low half counts.
            (TYPE, Field::Number(value)) => entry.entry_type = value as i32,
            (TERM, Field::Number(value)) => entry.term = value,
            (INDEX, Field::Number(value)) => entry.index = value,
            (DATA, Field::Bytes(value)) => data = value,
            (CONTEXT, Field::Bytes(value)) => entry.context = EntryContext::from_slice(value),
            (SYNC_LOG, Field::Number(_)) => {}
            (TYPE | TERM | INDEX | DATA | SYNC_LOG | CONTEXT, _) => return Err(malformed("")),
            // Of a newer version.
            _ => {}
        }
    }
    Ok((entry, data))
}

/// Bytes of a message beside its entries. What takes most there are the numbers of a snapshot's members, eight bytes each once decoded and
/// as little as one before: this is room for thousands.
const MAX_HEAD: usize = 64 << 10;

/// Entries of so many bytes together, and each on average, are not copied out of a frame that holds little else.
const LARGE: usize = 64 << 10;
const LARGE_ENTRY: usize = 1 << 10;

/// Reads a message whose decoded form takes no more than four times its length and a constant. `frame`: bytes of all that came with it,
/// in one memory; its entries may keep that alive.
pub fn decode_message(bytes: &Bytes, frame: usize) -> Result<Received, Status> {
    let (mut count, mut size, mut beside) = (0usize, 0usize, 0usize);
    let mut rest: &[u8] = bytes;
    while !rest.is_empty() {
        let before = rest.len();
        if let (ENTRIES, Field::Bytes(contents)) = take(&mut rest)? {
            (count, size) = (count.saturating_add(1), size.saturating_add(contents.len()));
        } else {
            beside = beside.saturating_add(before.saturating_sub(rest.len()));
        }
    }
    if beside > MAX_HEAD {
        return Err(Status::invalid_argument(format!(
            "message with {beside} bytes beside its entries: no more than {MAX_HEAD} are taken"
        )));
    }
    if count.saturating_mul(size_of::<Entry>()) > bytes.len().saturating_mul(4).saturating_add(ROOM) {
        return Err(Status::invalid_argument(format!(
            "message of {} bytes with {count} entries: too many for its size",
            bytes.len()
        )));
    }
    let mut head = Vec::with_capacity(beside);
    let stays = size >= LARGE && size >= count.saturating_mul(LARGE_ENTRY) && size.saturating_mul(2) >= frame;
    let mut entries = if stays { Entries::default() } else { Entries::with_capacity(count, size) };
    let mut in_frame = Vec::with_capacity(if stays { count } else { 0 });
    let mut rest: &[u8] = bytes;
    while !rest.is_empty() {
        let before = rest;
        match take(&mut rest)? {
            (ENTRIES, Field::Bytes(contents)) => {
                let (entry, data) = entry_of(contents)?;
                if stays {
                    in_frame.push(Entry { data: bytes.slice_ref(data), ..entry });
                } else {
                    entries.push(entry, data);
                }
            }
            (ENTRIES, _) => return Err(malformed("")),
            _ => head.extend_from_slice(before.get(..before.len().saturating_sub(rest.len())).unwrap_or_default()),
        }
    }
    let head = Message::decode(head.as_slice()).map_err(malformed)?;
    Ok(Received { head, entries: if stays { in_frame } else { entries.whole() } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prop::collection::vec;
    use proptest::prelude::*;
    use raft::eraftpb;

    fn any_entry() -> impl Strategy<Value = eraftpb::Entry> {
        let numbers = (any::<i32>(), any::<u64>(), any::<u64>());
        (numbers, any::<Vec<u8>>(), vec(any::<u8>(), 0..80)).prop_map(|((entry_type, term, index), data, context)| {
            eraftpb::Entry { entry_type, term, index, data, context, sync_log: false }
        })
    }

    fn any_message() -> impl Strategy<Value = Message> {
        (any::<[u64; 7]>(), any::<bool>(), any::<Vec<u8>>(), vec(any_entry(), 0..6)).prop_map(
            |(n, reject, context, entries)| Message {
                msg_type: (n[6] % 19) as i32,
                to: n[0],
                from: n[1],
                term: n[2],
                log_term: n[3],
                index: n[4],
                commit: n[5],
                reject,
                context,
                entries,
                ..Message::default()
            },
        )
    }

    proptest! {
        #[test]
        fn entries_are_written_as_rafts_own_codec_writes_them(entries in vec(any_entry(), 0..6)) {
            let expected = Message { entries: entries.clone(), ..Message::default() }.encode_to_vec();
            let entries: Vec<Entry> = entries.into_iter().map(Entry::from).collect();
            prop_assert_eq!(encode_entries(entries.iter()).concat(), expected);
        }

        #[test]
        fn large_data_are_sent_from_where_they_lie(sizes in vec(0..2 * APART, 0..6), context: Vec<u8>) {
            let entry = |(index, size): (u64, &usize)| Entry {
                index,
                data: vec![index as u8; *size].into(),
                context: context.clone().into(),
                ..Entry::default()
            };
            let entries: Vec<Entry> = (1..).zip(&sizes).map(entry).collect();
            let theirs = entries.iter().map(eraftpb::Entry::from).collect();
            let pieces = encode_entries(entries.iter());
            prop_assert_eq!(pieces.concat(), Message { entries: theirs, ..Message::default() }.encode_to_vec());
            let apart = |entry: &&Entry| pieces.iter().any(|piece| piece.as_ptr() == entry.data.as_ptr());
            prop_assert_eq!(entries.iter().filter(apart).count(), sizes.iter().filter(|size| **size >= APART).count());
        }

        #[test]
        fn a_message_is_read_as_rafts_own_codec_reads_it(message in any_message()) {
            let bytes = message.encode_to_vec();
            prop_assert_eq!(decode_message(&bytes.into(), 0).unwrap(), Received::from(message));
        }

        #[test]
        fn damage_is_an_error_or_what_rafts_own_codec_makes_of_it(message in any_message(), at: prop::sample::Index, to: u8) {
            let mut bytes = message.encode_to_vec();
            prop_assume!(!bytes.is_empty());
            let at = at.index(bytes.len());
            bytes[at] = to;
            match (decode_message(&bytes.clone().into(), 0), Message::decode(bytes.as_slice())) {
                (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, Received::from(theirs)),
                (Err(ours), Ok(_)) => prop_assert_eq!(ours.message(), GROUP),
                (ours, Err(_)) => prop_assert!(ours.is_err(), "{ours:?}"),
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode_message(&bytes.into(), 0);
        }
    }

    #[test]
    fn the_data_of_all_entries_lie_in_one_memory_and_in_the_frames_only_if_that_holds_little_else() {
        for (story, len, beside, stays) in [
            ("small entries", 100, 0, false),
            ("large ones", 40 << 10, 0, true),
            ("as much again beside them", 40 << 10, 80 << 10, true),
            ("more beside them", 40 << 10, 90 << 10, false),
        ] {
            let entry = |index| eraftpb::Entry { index, data: vec![index as u8; len], ..Default::default() };
            let message = Message { entries: vec![entry(1), entry(2)], ..Message::default() };
            let bytes = Bytes::from(message.encode_to_vec());
            let received = decode_message(&bytes, bytes.len() + beside).unwrap();
            let [first, second] = &received.entries[..] else { panic!("{story}: {} entries", received.entries.len()) };
            assert_eq!(bytes.as_ptr_range().contains(&first.data.as_ptr()), stays, "{story}");
            assert_eq!(first.data.as_ptr().wrapping_add(len) == second.data.as_ptr(), !stays, "{story}");
            assert_eq!(received, Received::from(message), "{story}");
        }
    }

    #[test]
    fn many_small_entries_are_copied_also_when_they_are_much_together() {
        let entry = |index| eraftpb::Entry { index, data: vec![1; 500], ..Default::default() };
        let bytes =
            Bytes::from(Message { entries: (1..400).map(entry).collect(), ..Message::default() }.encode_to_vec());
        let entries = decode_message(&bytes, bytes.len()).unwrap().entries;
        assert!(!bytes.as_ptr_range().contains(&entries[0].data.as_ptr()));
    }

    #[test]
    fn a_small_message_that_would_become_large_is_refused() {
        let empty_entries = |count| Bytes::from([0x3a, 0x00].repeat(count));
        assert_eq!(decode_message(&empty_entries(1000), 2000).unwrap().entries.len(), 1000);
        assert!(decode_message(&empty_entries(2_000_000), 4_000_000).unwrap_err().message().contains("too many"));
    }

    #[test]
    fn a_message_whose_head_would_become_large_is_refused() {
        // Members by number: one byte each there, eight here.
        let members = |count| {
            let conf_state = Some(eraftpb::ConfState { voters: vec![1; count], ..Default::default() });
            let metadata = Some(eraftpb::SnapshotMetadata { conf_state, ..Default::default() });
            let snapshot = Some(eraftpb::Snapshot { metadata, ..Default::default() });
            Message { snapshot, ..Message::default() }
        };
        let read = |message: &Message| decode_message(&message.encode_to_vec().into(), 0);
        assert_eq!(read(&members(1000)).unwrap(), Received::from(members(1000)));
        assert!(read(&members(1_000_000)).err().unwrap().message().contains("beside its entries"));
    }
}

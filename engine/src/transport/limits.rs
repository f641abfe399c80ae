//! What a received message may cost in memory once decoded.
//!
//! The length of a message is limited by the transport, but two bytes of an empty repeated element become a whole struct.
//! So the elements are counted before anything is decoded.

use bytes::Bytes;
use prost::encoding::{decode_key, decode_varint, WireType};
use prost::Message;
use tonic::Status;

use crate::wire::{ForwardedProposal, Frame, Item, OutcomeMark};

/// Beside the message's own length: what its elements may take.
pub(super) const ROOM: usize = 16 << 20;
/// Most items in one frame; a sender keeps to it.
pub const MAX_ITEMS: usize = 65_536;

pub(super) fn malformed(_: impl std::fmt::Display) -> Status {
    Status::invalid_argument("message is not well formed")
}

/// Calls `each` with number and bytes of every length-delimited field at the top level.
pub fn walk<'a>(mut bytes: &'a [u8], each: &mut dyn FnMut(u32, &'a [u8]) -> Result<(), Status>) -> Result<(), Status> {
    let skip = |bytes: &mut &'a [u8], n: u64| -> Result<&'a [u8], Status> {
        let n = usize::try_from(n).map_err(malformed)?;
        let (head, tail) = bytes.split_at_checked(n).ok_or_else(|| malformed(""))?;
        *bytes = tail;
        Ok(head)
    };
    while !bytes.is_empty() {
        let (tag, kind) = decode_key(&mut bytes).map_err(malformed)?;
        match kind {
            WireType::Varint => {
                decode_varint(&mut bytes).map_err(malformed)?;
            }
            WireType::SixtyFourBit => {
                skip(&mut bytes, 8)?;
            }
            WireType::ThirtyTwoBit => {
                skip(&mut bytes, 4)?;
            }
            WireType::LengthDelimited => {
                let length = decode_varint(&mut bytes).map_err(malformed)?;
                let payload = skip(&mut bytes, length)?;
                each(tag, payload)?;
            }
            WireType::StartGroup | WireType::EndGroup => return Err(malformed("")),
        }
    }
    Ok(())
}

/// Decodes a frame whose decoded form takes no more than four times its length and a constant.
pub fn decode_frame(bytes: &Bytes) -> Result<Vec<Item>, Status> {
    let mut items = 0usize;
    let mut proposals = 0usize;
    let mut marks = 0usize;
    walk(bytes, &mut |tag, item| {
        if tag != 1 {
            return Ok(());
        }
        items = items.saturating_add(1);
        walk(item, &mut |tag, body| match tag {
            2 => walk(body, &mut |tag, _| {
                proposals = proposals.saturating_add(usize::from(tag == 4));
                Ok(())
            }),
            4 => walk(body, &mut |tag, _| {
                marks = marks.saturating_add(usize::from(tag == 2 || tag == 5));
                Ok(())
            }),
            _ => Ok(()),
        })
    })?;
    let cost = items
        .saturating_mul(size_of::<Item>())
        .saturating_add(proposals.saturating_mul(size_of::<ForwardedProposal>()))
        .saturating_add(marks.saturating_mul(size_of::<OutcomeMark>()));
    if items > MAX_ITEMS || cost > bytes.len().saturating_mul(4).saturating_add(ROOM) {
        return Err(Status::invalid_argument(format!(
            "frame of {} bytes with {items} items, {proposals} proposals and {marks} outcomes: too many for its size",
            bytes.len()
        )));
    }
    Ok(Frame::decode(bytes.clone()).map_err(malformed)?.items)
}

/// Decodes any other message; its length limit (1 MiB) is small enough to bound what it becomes.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Status> {
    M::decode(bytes).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Forward, ForwardAnswer, OutcomeAnswer, OutcomeReport};
    use proptest::prelude::*;

    fn decoded(bytes: &[u8]) -> Result<Vec<Item>, Status> {
        decode_frame(&Bytes::copy_from_slice(bytes))
    }

    fn any_item() -> impl Strategy<Value = Item> {
        let forward = (any::<[u64; 4]>(), prop::collection::vec((any::<u64>(), any::<Vec<u8>>(), any::<u32>()), 0..4))
            .prop_map(|(n, proposals)| {
                Body::Forward(Forward {
                    term: n[0],
                    start: n[1],
                    number: n[2],
                    proposals: proposals
                        .into_iter()
                        .map(|(sequence, data, kind)| ForwardedProposal {
                            sequence,
                            data: data.into(),
                            kind,
                            place: None,
                        })
                        .collect(),
                    to_start: n[3],
                })
            });
        let answer =
            (any::<[u64; 4]>(), any::<bool>(), any::<i32>(), any::<String>()).prop_map(|(n, taken, code, message)| {
                Body::ForwardAnswer(ForwardAnswer {
                    start: n[0],
                    number: n[1],
                    taken,
                    first_index: n[2],
                    term: n[3],
                    code,
                    message,
                    already_at: n[0] ^ n[3],
                    lasting: n[1] % 2 == 0,
                })
            });
        let marks =
            || prop::collection::vec(any::<(u64, u64)>().prop_map(|(index, sum)| OutcomeMark { index, sum }), 0..4);
        let report = (any::<[u64; 3]>(), marks(), marks()).prop_map(|(n, sums, details)| {
            Body::OutcomeReport(OutcomeReport { term: n[0], sums, details_for: n[1], details_from: n[2], details })
        });
        let compared = any::<[u64; 4]>().prop_map(|n| {
            Body::OutcomeAnswer(OutcomeAnswer { term: n[0], upto: n[1], details_for: n[2], diverged_at: n[3] })
        });
        prop_oneof![any::<Vec<u8>>().prop_map(|bytes| Body::Raft(bytes.into())), forward, answer, report, compared]
            .prop_map(|body| Item { body: Some(body) })
    }

    proptest! {
        #[test]
        fn a_frame_decodes_to_what_was_encoded(items in prop::collection::vec(any_item(), 0..8)) {
            let bytes = Frame { items: items.clone() }.encode_to_vec();
            prop_assert_eq!(decoded(&bytes).unwrap(), items);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decoded(&bytes);
            let _ = decode::<crate::wire::Hello>(&bytes);
            let _ = decode::<crate::wire::SnapshotUp>(&bytes);
            let _ = decode::<crate::wire::SnapshotDown>(&bytes);
        }

        #[test]
        fn a_damaged_frame_never_panics(items in prop::collection::vec(any_item(), 1..4), at: prop::sample::Index, to: u8) {
            let mut bytes = Frame { items }.encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = decoded(&bytes);
        }
    }

    #[test]
    fn a_small_message_that_would_become_large_is_refused() {
        let empty_items: Vec<u8> = [0x0a, 0x00].repeat(MAX_ITEMS + 1);
        assert!(decoded(&empty_items).unwrap_err().message().contains("too many"));
        let frame = Frame { items: vec![] }.encode_to_vec();
        assert!(decoded(&frame).unwrap().is_empty());
        // A forward of empty proposals; a report of empty sums, and one of empty details.
        for (body, element, count) in [(0x12, 0x22, 2_000_000), (0x22, 0x12, 4_000_000), (0x22, 0x2a, 4_000_000)] {
            let elements: Vec<u8> = [element, 0x00].repeat(count);
            let mut item = vec![body];
            prost::encoding::encode_varint(elements.len() as u64, &mut item);
            item.extend(elements);
            let mut frame = vec![0x0a];
            prost::encoding::encode_varint(item.len() as u64, &mut frame);
            frame.extend(item);
            assert!(decoded(&frame).unwrap_err().message().contains("too many"), "{body} {element}");
        }
    }
}

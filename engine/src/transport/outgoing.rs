//! An item on its way out: encoded once, as it will stand in its frame.
//!
//! A frame is its items one behind the other (`Frame` has no other field), so it is never put together in a memory of its own; and
//! entries that go to several peers are encoded once for all of them.

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use prost_raft::Message as _;
use raft::eraftpb::Message;

use super::raft_message::{field_len, open, Encoded};
use crate::wire::{Body, Item};

/// What it means to its sender when it could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Raft,
    /// With its number.
    Forward(u64),
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    what: What,
    head: Bytes,
    /// What others may carry as well.
    rest: Encoded,
}

/// Field numbers: of an item in its frame, of a raft message in its item.
const ITEM: u32 = 1;
const RAFT: u32 = 1;
/// Most that a tag and a length take.
const PER_FIELD: usize = 1 + 10;

impl Outgoing {
    /// A message of raft's; `entries` as [`encode_entries`](super::encode_entries) made them, beside those that it has itself.
    pub fn raft(message: &Message, entries: Encoded) -> Self {
        let own = message.encoded_len();
        let body = entries.iter().map(Bytes::len).fold(own, usize::saturating_add);
        let mut head = BytesMut::with_capacity(own.saturating_add(2 * PER_FIELD));
        open(ITEM, field_len(body), &mut head);
        open(RAFT, body, &mut head);
        message.encode_raw(&mut head);
        Outgoing { what: What::Raft, head: head.freeze(), rest: entries }
    }

    pub fn what(&self) -> What {
        self.what
    }

    /// Its bytes in a frame.
    pub fn encoded_len(&self) -> usize {
        self.rest.iter().map(Bytes::len).fold(self.head.len(), usize::saturating_add)
    }

    /// Puts it behind what is in the frame already.
    pub fn put(self, frame: &mut Vec<Bytes>) {
        frame.push(self.head);
        frame.extend(self.rest);
    }
}

impl From<Body> for Outgoing {
    fn from(body: Body) -> Self {
        let what = match &body {
            Body::Raft(_) => What::Raft,
            Body::Forward(forward) => What::Forward(forward.number),
            Body::ForwardAnswer(_) | Body::OutcomeReport(_) | Body::OutcomeAnswer(_) => What::Other,
        };
        let item = Item { body: Some(body) };
        let len = item.encoded_len();
        let mut head = BytesMut::with_capacity(len.saturating_add(PER_FIELD));
        open(ITEM, len, &mut head);
        item.encode_raw(&mut head);
        Outgoing { what, head: head.freeze(), rest: Encoded::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Received;
    use crate::entry::Entry;
    use crate::transport::{decode_message, encode_entries};
    use crate::wire::{Forward, Frame};
    use proptest::prelude::*;
    use raft::eraftpb::MessageType;

    fn entry(index: u64, data: Vec<u8>) -> Entry {
        Entry { index, term: 3, context: vec![1; data.len() % 40].into(), data: data.into(), ..Entry::default() }
    }

    fn frame(items: impl IntoIterator<Item = Outgoing>) -> Frame {
        let mut parts = Vec::new();
        let mut len = 0;
        for item in items {
            len += item.encoded_len();
            item.put(&mut parts);
        }
        let bytes = parts.concat();
        assert_eq!(bytes.len(), len);
        Frame::decode(bytes.as_slice()).unwrap()
    }

    proptest! {
        #[test]
        fn an_append_arrives_as_the_message_that_raft_meant(
            numbers: [u64; 6], reject: bool, data in prop::collection::vec(any::<Vec<u8>>(), 0..5), big in 0usize..40_000,
        ) {
            let [to, from, term, index, log_term, commit] = numbers;
            let msg_type = MessageType::MsgAppend as i32;
            let head = Message { msg_type, to, from, term, index, log_term, commit, reject, ..Message::default() };
            let mut entries: Vec<Entry> = data.into_iter().zip(1..).map(|(data, index)| entry(index, data)).collect();
            entries.push(entry(9, vec![7; big]));
            let sent = frame([
                Outgoing::raft(&head, encode_entries(entries.iter())),
                Outgoing::raft(&head, Encoded::new()),
            ]);
            let got: Vec<Received> = sent.items.into_iter().map(|item| match item.body {
                Some(Body::Raft(bytes)) => decode_message(&bytes, bytes.len()).unwrap(),
                other => panic!("{other:?}"),
            }).collect();
            prop_assert_eq!(got, vec![Received { head: head.clone(), entries }, head.into()]);
        }
    }

    #[test]
    fn any_item_stands_in_its_frame_as_it_was() {
        let forward = Forward { number: 12, term: 3, ..Forward::default() };
        let bodies =
            [Body::Raft(Bytes::from_static(b"x")), Body::Forward(forward), Body::OutcomeAnswer(Default::default())];
        let sent: Vec<Outgoing> = bodies.iter().cloned().map(Outgoing::from).collect();
        let what: Vec<What> = sent.iter().map(Outgoing::what).collect();
        assert_eq!(what, [What::Raft, What::Forward(12), What::Other]);
        let got: Vec<Option<Body>> = frame(sent).items.into_iter().map(|item| item.body).collect();
        assert_eq!(got, bodies.map(Some));
    }
}

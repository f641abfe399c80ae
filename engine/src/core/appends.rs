//! Appends to one peer that follow on each other go as one message.
//!
//! Raft could do that itself (`batch_append`), but it puts entries into an earlier append that carries none without looking at
//! where that one stands: the message then names index 5 and carries entries from 9 on.

use raft::eraftpb::{Message, MessageType};

/// Merges each append into the one before it to the same peer, where it goes on exactly behind that one's entries.
pub(super) fn merge(messages: Vec<Message>) -> Vec<Message> {
    let mut out: Vec<Message> = Vec::with_capacity(messages.len());
    // (peer, where its newest message stands in `out`)
    let mut newest: Vec<(u64, usize)> = Vec::new();
    for message in messages {
        let known = newest.iter().position(|(peer, _)| *peer == message.to);
        let append = message.msg_type == MessageType::MsgAppend as i32;
        if let Some((_, at)) = known.and_then(|i| newest.get_mut(i)) {
            let before = out.get_mut(*at).filter(|before| {
                append
                    && before.msg_type == message.msg_type
                    && before.term == message.term
                    && before.index.saturating_add(before.entries.len() as u64) == message.index
            });
            if let Some(before) = before {
                before.entries.extend(message.entries);
                before.commit = before.commit.max(message.commit);
                continue;
            }
            *at = out.len();
        } else {
            newest.push((message.to, out.len()));
        }
        out.push(message);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::Entry;

    fn append(to: u64, term: u64, index: u64, count: u64, commit: u64) -> Message {
        let entries = (index + 1..=index + count).map(|index| Entry { index, term, ..Entry::default() }).collect();
        Message { msg_type: MessageType::MsgAppend as i32, to, term, index, commit, entries, ..Message::default() }
    }

    fn shape(messages: &[Message]) -> Vec<(u64, u64, usize, u64)> {
        messages.iter().map(|m| (m.to, m.index, m.entries.len(), m.commit)).collect()
    }

    #[test]
    fn appends_that_follow_on_each_other_are_one_and_others_stay_apart() {
        let heartbeat = Message { msg_type: MessageType::MsgHeartbeat as i32, to: 2, term: 5, ..Message::default() };
        type Case = (&'static str, Vec<Message>, Vec<(u64, u64, usize, u64)>);
        let table: Vec<Case> = vec![
            ("a run", vec![append(2, 5, 9, 2, 7), append(2, 5, 11, 1, 8)], vec![(2, 9, 3, 8)]),
            ("a commit alone", vec![append(2, 5, 9, 2, 7), append(2, 5, 11, 0, 9)], vec![(2, 9, 2, 9)]),
            ("a gap", vec![append(2, 5, 5, 0, 5), append(2, 5, 8, 2, 5)], vec![(2, 5, 0, 5), (2, 8, 2, 5)]),
            ("another term", vec![append(2, 5, 9, 1, 7), append(2, 6, 10, 1, 7)], vec![(2, 9, 1, 7), (2, 10, 1, 7)]),
            (
                "other peers between",
                vec![append(2, 5, 9, 1, 7), append(3, 5, 4, 1, 7), append(2, 5, 10, 1, 7)],
                vec![(2, 9, 2, 7), (3, 4, 1, 7)],
            ),
            (
                "another kind between",
                vec![append(2, 5, 9, 1, 7), heartbeat, append(2, 5, 10, 1, 7)],
                vec![(2, 9, 1, 7), (2, 0, 0, 0), (2, 10, 1, 7)],
            ),
        ];
        for (name, messages, merged) in table {
            assert_eq!(shape(&merge(messages)), merged, "{name}");
        }
    }
}

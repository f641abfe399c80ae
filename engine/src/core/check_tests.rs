//! S16: what no node of ours would send is dropped before raft sees it, and told by name.

use prost_raft::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};

use crate::core::test_cores::{chosen, follow, leader, message, sent};
use crate::core::Core;
use crate::status::Event;

/// Node 1 follows node 2 in term 3; its log, of term 2, is committed up to its end at 9.
fn follower() -> Core {
    let mut core = chosen();
    sent(&mut core);
    follow(&mut core, 9);
    core
}

/// Why the node says it drops this message, which comes on this peer's stream.
fn dropped(mut core: Core, from: u64, message: Message) -> Option<String> {
    let before = core.positions();
    core.receive(from, message);
    let actions = core.poll();
    let reason = actions.events.into_iter().find_map(|event| match event {
        Event::PeerRefused { peer, reason } if peer == from => Some(reason),
        _ => None,
    });
    if reason.is_some() {
        assert!(actions.messages.is_empty() && actions.writes.is_empty(), "{reason:?}, and it is worked in");
        let after = core.positions();
        assert_eq!((before.term, before.last, before.commit), (after.term, after.last, after.commit), "{reason:?}");
    }
    reason
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, ..Entry::default() }
}

/// Of the leader, behind the end of the log.
fn append(entries: Vec<Entry>) -> Message {
    Message { index: 9, log_term: 2, commit: 9, entries, ..of(MessageType::MsgAppend) }
}

fn of(kind: MessageType) -> Message {
    message(kind, 2, 3)
}

#[test]
fn s16_what_no_leader_sends_is_dropped_and_told() {
    let heartbeat = || Message { commit: 9, ..of(MessageType::MsgHeartbeat) };
    let change = |data: Vec<u8>| Entry { entry_type: EntryType::EntryConfChangeV2 as i32, data, ..entry(10, 3) };
    let context = |bytes| vec![Entry { data: vec![7; bytes], ..Entry::default() }];
    for good in [
        heartbeat(),
        append(vec![entry(10, 3), entry(11, 3)]),
        append(vec![change(ConfChangeV2::default().encode_to_vec())]),
        // Of a leader before: it may well contradict what is committed by now, and raft takes nothing of it.
        Message { term: 2, index: 7, entries: vec![entry(8, 1)], log_term: 1, ..of(MessageType::MsgAppend) },
        Message { entries: context(24), ..of(MessageType::MsgReadIndexResp) },
    ] {
        assert_eq!(dropped(follower(), 2, good.clone()), None, "{good:?}");
    }
    for (reason, message) in [
        ("another sender", Message { from: 3, ..heartbeat() }),
        ("for another node", Message { to: 3, ..heartbeat() }),
        ("its term is impossible", Message { term: 0, ..heartbeat() }),
        ("its term is impossible", Message { term: u64::MAX, ..heartbeat() }),
        ("its log term is above its term", Message { log_term: 4, ..append(vec![]) }),
        ("its index is impossible", Message { index: u64::MAX, ..append(vec![]) }),
        ("its index is impossible", Message { commit: u64::MAX, ..append(vec![]) }),
        ("asks for a snapshot", Message { request_snapshot: 1, ..append(vec![]) }),
        ("its kind is unknown", Message { msg_type: 99, ..heartbeat() }),
        ("it carries entries", Message { entries: vec![entry(10, 3)], ..heartbeat() }),
        ("its commit lies beyond our log", Message { commit: 10, ..heartbeat() }),
        ("its read context is malformed", Message { entries: context(23), ..of(MessageType::MsgReadIndexResp) }),
        ("its read context is malformed", of(MessageType::MsgReadIndexResp)),
        ("not contiguous", append(vec![entry(11, 3)])),
        ("not contiguous", append(vec![entry(10, 3), entry(12, 3)])),
        ("terms do not ascend", append(vec![entry(10, 1)])),
        ("terms do not ascend", append(vec![entry(10, 3), entry(11, 2)])),
        ("terms do not ascend", append(vec![entry(10, 4)])),
        ("an entry's kind is unknown", append(vec![Entry { entry_type: 9, ..entry(10, 3) }])),
        ("a membership entry cannot be read", append(vec![change(vec![0xff; 3])])),
        ("it contradicts a committed entry", Message { index: 8, ..append(vec![entry(9, 3)]) }),
    ] {
        let told = dropped(follower(), 2, message.clone()).unwrap_or_default();
        assert!(told.contains(reason), "{reason}: {told:?} of {message:?}");
    }
}

#[test]
fn s16_kinds_that_are_local_never_come_over_the_wire() {
    for kind in [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgTransferLeader,
        // With a stream of its own, once its file is whole.
        MessageType::MsgSnapshot,
    ] {
        for (core, from) in [(follower(), 2), (leader(3, true), 3)] {
            let told = dropped(core, from, message(kind, from, 3)).unwrap_or_default();
            assert!(told.contains("never comes over the wire"), "{kind:?} from {from}: {told:?}");
        }
    }
}

/// Node 1 leads term 3, whose log ends at 10.
#[test]
fn s16_what_no_follower_sends_is_dropped_and_told() {
    let of = |kind| message(kind, 3, 3);
    let answer =
        |index, reject, reject_hint| Message { index, reject, reject_hint, ..of(MessageType::MsgAppendResponse) };
    let question = |term, bytes| Message {
        entries: vec![Entry { data: vec![7; bytes], ..Entry::default() }],
        ..message(MessageType::MsgReadIndex, 3, term)
    };
    for good in [answer(10, false, 0), answer(10, true, 9), question(0, 24)] {
        assert_eq!(dropped(leader(3, true), 3, good.clone()), None, "{good:?}");
    }
    for (reason, message) in [
        ("two leaders in one term", Message { index: 10, log_term: 3, ..of(MessageType::MsgAppend) }),
        ("it acknowledges what was never sent", answer(11, false, 0)),
        ("its hint lies beyond what was sent", answer(10, true, 11)),
        ("its hint lies beyond what was sent", answer(11, true, 9)),
        ("its term is impossible", question(3, 24)),
        ("its read context is malformed", question(0, 25)),
    ] {
        let told = dropped(leader(3, true), 3, message.clone()).unwrap_or_default();
        assert!(told.contains(reason), "{reason}: {told:?} of {message:?}");
    }
}

/// Its leader tells it to take over.
#[test]
fn s4_who_waits_for_its_disk_does_not_take_over() {
    type Act = fn(&mut Core);
    let acts: [(&str, Act, u64); 3] = [
        ("nothing is being written", |_| {}, 4),
        ("its newest entry is not on its disk", |core| core.receive(2, append(vec![entry(10, 3)])), 3),
        // A write without entries: all of its log is there.
        (
            "its disk hangs",
            |core| {
                core.receive(2, Message { commit: 9, ..message(MessageType::MsgHeartbeat, 2, 4) });
                core.poll();
                core.begin_turn(60_000_000, 1);
                core.tick();
            },
            4,
        ),
    ];
    for (story, act, term) in acts {
        let mut core = follower();
        act(&mut core);
        core.poll();
        let now = core.term();
        core.receive(2, message(MessageType::MsgTimeoutNow, 2, now));
        core.poll();
        assert_eq!(core.term(), term, "{story}");
    }
}

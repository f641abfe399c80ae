//! S15: who may say of a forward that it was not taken.

use raft::eraftpb::{Message, MessageType};

use super::test_cores::{founders, log, options};
use super::{Body, Core};
use crate::cluster::ClusterState;
use crate::wire::{Forward, ForwardAnswer, ForwardedProposal};

/// A node that began in term 2, and follows node 2 in term 3.
fn follower() -> Core {
    let mut core = Core::new(options(log(None, (9, ClusterState::founding(&founders())), 9))).unwrap();
    let heartbeat = Message {
        msg_type: MessageType::MsgHeartbeat as i32,
        from: 2,
        to: 1,
        term: 3,
        commit: 9,
        ..Message::default()
    };
    core.receive(2, heartbeat);
    if let Some(write) = core.poll().writes.last() {
        core.written(write.number);
    }
    core.poll();
    assert_eq!(core.term(), 3);
    core
}

fn answer_to(core: &mut Core, term: u64) -> Option<ForwardAnswer> {
    let proposals = vec![ForwardedProposal { sequence: 1, data: b"x".to_vec(), kind: 0 }];
    core.receive_forward(3, Forward { term, start: 5, number: 1, proposals });
    core.poll().messages.into_iter().find_map(|message| match message.body {
        Body::ForwardAnswer(answer) => Some(answer),
        _ => None,
    })
}

#[test]
fn s15_what_the_process_before_may_have_taken_is_not_refused_by_the_next() {
    let taken = |term| answer_to(&mut follower(), term).map(|answer| answer.taken);
    assert_eq!(taken(2), None, "the asker would propose it again, and it may be in the log");
    assert_eq!(taken(3), Some(false), "this process knows that it has not taken it");
}

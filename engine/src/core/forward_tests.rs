//! S15: who may say of a forward that it was not taken.

use prost::Message as _;

use super::membership::Change;
use super::test_cores::{follow, founders, leader, log, options};
use super::{Body, Core, Kind, Outbound};
use crate::cluster::{ClusterState, Uid};
use crate::error::ErrorCode;
use crate::request::{MemberChange, Request};
use crate::wire::{Forward, ForwardAnswer, ForwardedProposal, Hello, Verdict, Welcome, PROTOCOL_VERSION};

/// Start number 7 of node 1, which began in term 2 and follows node 2 in term 3.
pub(super) fn follower() -> Core {
    let mut core = Core::new(options(log(None, (9, ClusterState::founding(&founders())), 9))).unwrap();
    follow(&mut core, 9);
    core
}

fn proposals() -> Vec<ForwardedProposal> {
    vec![ForwardedProposal { sequence: 1, data: "x".into(), kind: 0 }]
}

/// What the node says to a forward of its present term for the process with this start number.
fn answer_to(to_start: u64) -> Option<ForwardAnswer> {
    let mut core = follower();
    core.receive_forward(3, Forward { term: 3, start: 5, number: 1, proposals: proposals(), to_start });
    core.poll().messages.into_iter().find_map(|message| match message.body {
        Body::ForwardAnswer(answer) => Some(answer),
        _ => None,
    })
}

#[test]
fn s15_what_the_process_before_may_have_taken_is_not_refused_by_the_next() {
    let taken = |to_start| answer_to(to_start).map(|answer| answer.taken);
    assert_eq!(taken(6), None, "the asker would propose it again, and it may be in the log");
    assert_eq!(taken(7), Some(false), "this process knows that it has not taken it");
}

/// The leader answers our dial from the process with this start number.
pub(super) fn let_in(core: &mut Core, start: u64) {
    let hello = Hello {
        version: PROTOCOL_VERSION,
        node_id: 2,
        to: 1,
        directory: Uid(2).to_bytes(),
        digest: 1,
        start,
        ..Hello::default()
    };
    assert!(core.welcomed(2, &Welcome { verdict: Verdict::Accepted as i32, hello: Some(hello), ..Welcome::default() }));
}

pub(super) fn forwarded(core: &mut Core) -> Vec<Forward> {
    let forward = |message: Outbound| match message.body {
        Body::Forward(forward) => Some(forward),
        _ => None,
    };
    core.poll().messages.into_iter().filter_map(forward).collect()
}

#[test]
fn s15_a_forward_names_the_process_that_our_stream_leads_to_and_what_that_refuses_goes_to_the_next_leader() {
    let mut core = follower();
    core.submit(1, Request::Propose("x".into()), None);
    assert!(forwarded(&mut core).is_empty(), "no stream leads to the leader yet");

    let_in(&mut core, 20);
    let first = forwarded(&mut core).remove(0);
    assert_eq!((first.term, first.to_start), (3, 20));

    // The leader's process dies before the forward has left, and its next one lets us in: it leads nothing in this term, and says so.
    core.forward_not_sent(first.number);
    let_in(&mut core, 21);
    core.tick();
    let second = forwarded(&mut core).remove(0);
    assert_eq!((second.term, second.to_start, &second.proposals), (3, 21, &first.proposals));
    core.receive_forward_answer(2, ForwardAnswer { start: 7, number: second.number, ..ForwardAnswer::default() });
    core.tick();
    let actions = core.poll();
    assert!(actions.completions.is_empty(), "it waits for the next leader, and is not given up as unknown");
}

#[test]
fn a_change_of_more_members_than_a_call_may_name_is_refused_wherever_it_comes_from() {
    // Of no members, so that nothing is left to do.
    let changes =
        |count: u64| -> Vec<MemberChange> { (100..100 + count).map(|id| MemberChange::Remove { id }).collect() };
    for (count, refused) in [(1024, None), (1025, Some(ErrorCode::InvalidArgument))] {
        let data = Change::of(&changes(count)).encode_to_vec().into();
        let proposals = vec![ForwardedProposal { sequence: 1, data, kind: Kind::ChangeMembers.to_number() }];
        let mut core = leader(3, true);
        core.receive_forward(3, Forward { term: 3, start: 5, number: 1, proposals, to_start: 7 });
        core.submit(1, Request::ChangeMembers(changes(count)), None);
        let actions = core.poll();
        let answer = actions.messages.into_iter().find_map(|message| match message.body {
            Body::ForwardAnswer(answer) => Some(answer),
            _ => None,
        });
        let answer = answer.unwrap();
        assert_eq!(
            (answer.taken, ErrorCode::from_i32(answer.code)),
            (refused.is_none(), refused),
            "{}",
            answer.message
        );
        let own = actions.completions.into_iter().find(|completion| completion.token == 1).unwrap();
        assert_eq!(own.result.err().map(|error| error.code), refused);
    }
}

//! S15: who may say of a forward that it was not taken.

use prost::Message as _;

use super::membership::Change;
use raft::eraftpb::{Message, MessageType};

use super::test_cores::{follow, founders, leader, log, message, options, sent};
use super::{Body, Core, Kind, Outbound};
use crate::cluster::{ClusterState, Uid};
use crate::error::{Committed, ErrorCode};
use crate::request::{MemberChange, Reply, Request};
use crate::wire::{Forward, ForwardAnswer, ForwardedProposal, Hello, Verdict, Welcome, PROTOCOL_VERSION};

/// Start number 7 of node 1, which began in term 2 and follows node 2 in term 3.
pub(super) fn follower() -> Core {
    let mut core = Core::new(options(log(None, (9, ClusterState::founding(&founders())), 9))).unwrap();
    follow(&mut core, 9);
    core
}

fn proposals() -> Vec<ForwardedProposal> {
    vec![ForwardedProposal { sequence: 1, data: "x".into(), kind: 0, place: None }]
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
        let proposals =
            vec![ForwardedProposal { sequence: 1, data, kind: Kind::ChangeMembers.to_number(), place: None }];
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

#[test]
fn s15_an_answer_to_the_process_before_says_nothing_of_this_ones_forward() {
    let mut core = follower();
    let_in(&mut core, 20);
    core.submit(1, Request::Propose("x".into()), None);
    let number = forwarded(&mut core).remove(0).number;
    // Each process counts from 1.
    let before = ForwardAnswer { start: 6, number, taken: true, first_index: 10, term: 3, ..ForwardAnswer::default() };
    core.receive_forward_answer(2, before);
    let refused = ErrorCode::ProposalTooLarge as i32;
    core.receive_forward_answer(2, ForwardAnswer { start: 7, number, code: refused, ..ForwardAnswer::default() });
    let ended = core.poll().completions.pop().unwrap().result.unwrap_err();
    assert_eq!((ended.code, ended.committed), (ErrorCode::ProposalTooLarge, Committed::No));
}

/// What the leader of term 3 says to this forward, and what it adds to its log.
fn answered(core: &mut Core, forward: Forward) -> (ForwardAnswer, u64) {
    let last = core.positions().last;
    core.receive_forward(3, forward);
    let answer = core.poll().messages.into_iter().find_map(|message| match message.body {
        Body::ForwardAnswer(answer) => Some(answer),
        _ => None,
    });
    (answer.unwrap(), core.positions().last - last)
}

#[test]
fn s15_a_forward_for_another_term_of_the_leader_is_not_taken() {
    for (term, taken) in [(2, false), (3, true), (4, false)] {
        let mut core = leader(3, true);
        let forward = Forward { term, start: 5, number: 1, proposals: proposals(), to_start: 7 };
        let (answer, added) = answered(&mut core, forward);
        assert_eq!((answer.taken, answer.code, added), (taken, 0, u64::from(taken)), "it asks the leader of its term");
    }
}

#[test]
fn what_is_too_much_is_refused_wherever_it_comes_from() {
    type Limit = fn(&mut crate::Config);
    let cases: [(Limit, ErrorCode, bool); 4] = [
        (|config| config.max_proposal_size = 3, ErrorCode::ProposalTooLarge, true),
        (|config| config.max_uncommitted_size = 5, ErrorCode::Overloaded, true),
        (|config| config.max_unapplied_entries = 0, ErrorCode::Overloaded, true),
        // Those of another node are bounded there.
        (|config| config.max_pending_bytes = 5, ErrorCode::Overloaded, false),
    ];
    for (number, (limit, code, also_forwarded)) in cases.into_iter().enumerate() {
        // Index 11 is committed, and its machine has not answered; 12 is neither.
        let mut core = leader(3, true);
        core.submit(1, Request::Propose("x".into()), None);
        sent(&mut core);
        core.receive(2, Message { index: 11, ..message(MessageType::MsgAppendResponse, 2, 3) });
        sent(&mut core);
        core.submit(2, Request::Propose("yy".into()), None);
        sent(&mut core);
        limit(&mut core.config);

        core.submit(3, Request::Propose("four".into()), None);
        let ended = core.poll().completions.pop().and_then(|completion| completion.result.err());
        let ended = ended.map(|error| (error.code, error.committed));
        assert_eq!(ended, Some((code, Committed::No)), "{number}");
        let proposals = vec![ForwardedProposal { sequence: 1, data: "four".into(), kind: 0, place: None }];
        let (answer, added) = answered(&mut core, Forward { term: 3, start: 5, number: 1, proposals, to_start: 7 });
        assert_eq!((answer.taken, added), (!also_forwarded, u64::from(!also_forwarded)), "{number}");
        assert_eq!(ErrorCode::from_i32(answer.code), also_forwarded.then_some(code), "{number}");
    }
}

#[test]
fn s15_a_deadline_says_what_is_known_of_the_command() {
    for (acknowledged, committed) in [(false, Committed::Unknown), (true, Committed::Yes)] {
        let mut core = leader(3, true);
        core.submit(1, Request::Propose("x".into()), Some(1000));
        sent(&mut core);
        if acknowledged {
            // And the machine does not answer.
            core.receive(2, Message { index: 11, ..message(MessageType::MsgAppendResponse, 2, 3) });
            sent(&mut core);
        }
        core.begin_turn(2000, 1);
        core.expire();
        let ended = core.poll().completions.pop().unwrap().result.unwrap_err();
        assert_eq!((ended.code, ended.committed), (ErrorCode::Timeout, committed));
    }
}

#[test]
fn what_a_leader_refuses_for_good_is_told_so_also_by_way_of_a_follower() {
    let overloaded = ErrorCode::Overloaded as i32;
    let membership = ErrorCode::Membership as i32;
    for (code, lasting, retryable) in [(overloaded, false, true), (membership, true, false), (membership, false, true)]
    {
        let mut core = follower();
        core.submit(1, Request::ChangeMembers(vec![MemberChange::Promote { id: 9 }]), None);
        let_in(&mut core, 20);
        let number = forwarded(&mut core).remove(0).number;
        let answer = ForwardAnswer { start: 7, number, code, lasting, ..ForwardAnswer::default() };
        core.receive_forward_answer(2, answer);
        let error = core.poll().completions.remove(0).result.unwrap_err();
        assert_eq!((error.code as i32, error.retryable()), (code, retryable), "{error}");
    }
}

/// The address that a ticket is asked for is a member's as far as this follower knows; its leader may know better.
#[test]
fn s12_a_follower_asks_the_log_whose_an_address_is_and_only_without_a_leader_says_what_it_knows() {
    let ask = |core: &mut Core| core.submit(1, Request::ReserveId { addr: "h:3".into() }, None);
    let told = |core: &mut Core| {
        let completion = core.poll().completions.pop()?;
        match completion.result {
            Ok(Reply::Ticket(ticket)) => Some(ticket.reserved_id),
            other => panic!("{other:?}"),
        }
    };
    let mut lagging = follower();
    let_in(&mut lagging, 20);
    ask(&mut lagging);
    let asked = forwarded(&mut lagging).remove(0).proposals.remove(0);
    assert_eq!((Kind::from_number(asked.kind), &asked.data[..]), (Some(Kind::ReserveId), &b"h:3"[..]));

    // Node 3 may be the one without which nobody can be elected: it asks for its ticket before it starts again.
    let mut ticks = 0;
    while lagging.leader_id() != 0 {
        assert_eq!(told(&mut lagging), None, "the leader has not been given up");
        lagging.tick();
        ticks += 1;
        assert!(ticks < 100);
    }
    lagging.tick();
    assert_eq!(told(&mut lagging), Some(3));

    let mut leads = leader(3, true);
    ask(&mut leads);
    assert_eq!(told(&mut leads), Some(3), "it is up to date");
}

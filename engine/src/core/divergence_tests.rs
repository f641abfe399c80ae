//! S17: whose word counts where outcomes are compared, and which results come here to be compared.

use raft::eraftpb::{Message, MessageType};

use super::majority;
use crate::core::test_cores::{chosen, command, follow, message, sent};
use crate::core::{Body, Core};
use crate::error::ErrorCode;
use crate::machine::{ApplyBatch, MachineAnswer, MachineRequest};
use crate::request::Request;
use crate::wire::{OutcomeAnswer, OutcomeMark, OutcomeReport};

#[test]
fn half_of_the_voters_are_no_majority() {
    for (voters, differ, found) in
        [(0, 0, false), (1, 0, false), (1, 1, true), (2, 1, false), (3, 2, true), (4, 2, false), (4, 3, true)]
    {
        let half: Vec<u64> = (1..=voters).collect();
        assert_eq!(majority(&half, |id| *id <= differ), found, "{differ} of {voters}");
    }
}

#[test]
fn s17_a_follower_stops_at_the_word_of_its_leader_in_this_term_alone() {
    for (story, from, term, stops) in [
        ("its leader", 2, 3, true),
        ("its leader, in a term before", 2, 2, false),
        ("its leader, in a term to come", 2, 4, false),
        ("somebody else", 3, 3, false),
    ] {
        let mut core = chosen();
        sent(&mut core);
        follow(&mut core, 9);
        core.receive_outcome_answer(from, &OutcomeAnswer { term, diverged_at: 5, ..OutcomeAnswer::default() });
        let stop = core.poll().stop;
        assert_eq!(stop.is_some(), stops, "{story}");
        assert!(stop.into_iter().all(|end| end.unwrap_err().code == ErrorCode::StateDiverged));
    }
}

/// The machine takes what it is given until nothing more comes: its batches.
fn applied(core: &mut Core) -> Vec<ApplyBatch> {
    let mut batches = Vec::new();
    for _ in 0..10 {
        let actions = core.poll();
        for fetch in actions.fetches {
            core.fetched(fetch.id, (fetch.low..fetch.high).map(command).collect());
        }
        for request in actions.machine {
            if let MachineRequest::Apply(batch) = request {
                core.machine_answer(MachineAnswer::Applied { id: batch.id, outcomes: Vec::new() });
                batches.push(batch);
            }
        }
        actions.writes.last().into_iter().for_each(|write| core.written(write.number));
    }
    batches
}

/// Node 1 leads term 3, and has applied what is committed, up to 10.
fn leading() -> Core {
    let mut core = chosen();
    applied(&mut core);
    for (kind, index) in [(MessageType::MsgRequestVoteResponse, 0), (MessageType::MsgAppendResponse, 10)] {
        core.receive(2, Message { index, ..message(kind, 2, 3) });
        applied(&mut core);
    }
    assert_eq!((core.is_leader(), core.applied()), (true, 10));
    core
}

fn answered(core: &mut Core, report: &OutcomeReport) -> Option<OutcomeAnswer> {
    core.receive_outcome_report(2, report);
    core.poll().messages.into_iter().find_map(|message| match message.body {
        Body::OutcomeAnswer(answer) => Some(answer),
        _ => None,
    })
}

#[test]
fn s17_a_leader_compares_what_it_has_applied_in_its_own_term() {
    let report =
        |term, index| OutcomeReport { term, sums: vec![OutcomeMark { index, sum: 0 }], ..OutcomeReport::default() };
    for (term, index, upto) in [(3, 10, Some(10)), (3, 11, Some(0)), (2, 10, None), (4, 10, None)] {
        let mut core = leading();
        let answer = answered(&mut core, &report(term, index));
        assert_eq!(answer.map(|answer| answer.upto), upto, "index {index} of term {term}: the others come again");
    }
}

#[test]
fn s17_a_result_that_is_compared_comes_here_whoever_waits_for_it() {
    for (since, ours, wanted, token) in
        [(0, true, true, 5), (0, false, false, 0), (10, true, true, 0), (10, false, true, 0)]
    {
        let mut core = leading();
        let mut cluster = core.cluster().clone();
        cluster.verify_results_after = since;
        core.set_cluster(10, cluster);
        core.submit(5, Request::Propose("x".into()), None);
        sent(&mut core);
        if !ours {
            core.forget_calls(&[5].into());
        }
        core.receive(2, Message { index: 11, ..message(MessageType::MsgAppendResponse, 2, 3) });
        let told = applied(&mut core);
        let [batch] = told.as_slice() else { panic!("{told:?}") };
        let command = &batch.entries[0];
        assert_eq!((command.wanted, command.token), (wanted, token), "compared after {since}, waited for: {ours}");
    }
}

//! The table of client sessions by itself, and in a node.

use super::*;

const TERM: u64 = 3;

fn place(session: u64, sequence: u64, first_open: u64) -> InSession {
    InSession { session, sequence, first_open }
}

/// Entries from index 10 on: what is done, and the verdict on it.
fn table() -> (Sessions, u64) {
    let mut sessions = Sessions::new(4096, 9);
    sessions.open(10, 10);
    (sessions, 11)
}

#[test]
fn a_command_counts_once_however_often_and_in_whatever_order_it_comes() {
    let (mut sessions, mut index) = table();
    let cases = [
        // Sequence, first open one, verdict.
        (1, 1, Verdict::Apply),
        (3, 1, Verdict::Apply),
        (1, 1, Verdict::Again(Again::Pending { index: 11 })),
        (2, 1, Verdict::Apply),
        (3, 2, Verdict::Again(Again::Pending { index: 12 })),
        // Its client waits for 2 to 4 alone.
        (1, 1, Verdict::Past),
        (4, 4, Verdict::Apply),
        (2, 2, Verdict::Past),
        (4, 4, Verdict::Again(Again::Pending { index: 17 })),
        (3 + SESSION_WINDOW, 4, Verdict::Apply),
        (4 + SESSION_WINDOW, 4, Verdict::Beyond),
        (4 + SESSION_WINDOW, 5, Verdict::Apply),
    ];
    for (sequence, first_open, verdict) in cases {
        assert_eq!(sessions.decide(index, TERM, place(10, sequence, first_open)), verdict, "{index}");
        index += 1;
    }
    assert_eq!(sessions.decide(index, TERM, place(11, 1, 1)), Verdict::Expired, "11 is no session's number");
}

#[test]
fn sessions_of_one_log_and_of_any_two_have_different_numbers() {
    let origin = |start| Origin { node: 1, start, sequence: 5 };
    let numbers: std::collections::BTreeSet<u64> =
        [3, 4, u64::MAX].iter().flat_map(|start| (2..500).map(move |index| number(index, origin(*start)))).collect();
    assert_eq!(numbers.len(), 3 * 498);
}

#[test]
fn who_asks_again_hears_what_it_came_to_the_first_time() {
    let (mut sessions, _) = table();
    for (index, sequence) in [(11, 1), (12, 2), (13, 3)] {
        assert_eq!(sessions.decide(index, TERM, place(10, sequence, 1)), Verdict::Apply);
    }
    sessions.came_to(11, (10, 1), Some(&Ok(b"one".to_vec())));
    sessions.came_to(12, (10, 2), Some(&Err("raised".into())));
    sessions.came_to(13, (10, 3), None);
    // Words out of turn change nothing.
    sessions.came_to(11, (10, 1), Some(&Ok(b"two".to_vec())));
    sessions.came_to(99, (10, 2), Some(&Ok(b"two".to_vec())));
    sessions.came_to(12, (99, 2), Some(&Ok(b"two".to_vec())));
    let known = |index, result| Verdict::Again(Again::Known { index, term: TERM, result });
    let kept = Sessions::decode(&sessions.encode(), 4096, 13).unwrap();
    assert_eq!(kept, sessions);
    for mut sessions in [sessions, kept] {
        assert_eq!(sessions.decide(14, TERM + 1, place(10, 1, 1)), known(11, Ok("one".into())));
        assert_eq!(sessions.decide(15, TERM + 1, place(10, 2, 1)), known(12, Err("raised".into())));
        assert_eq!(sessions.decide(16, TERM + 1, place(10, 3, 1)), Verdict::Again(Again::Lost { index: 13 }));
    }
}

#[test]
fn a_snapshot_that_is_made_before_the_machine_has_answered_says_that_the_command_is_done() {
    let (mut sessions, _) = table();
    sessions.decide(11, TERM, place(10, 1, 1));
    let mut restored = Sessions::decode(&sessions.encode(), 4096, 11).unwrap();
    assert_eq!(restored.decide(12, TERM, place(10, 1, 1)), Verdict::Again(Again::Lost { index: 11 }));
}

#[test]
fn the_session_used_least_recently_is_forgotten() {
    let mut sessions = Sessions::new(2, 0);
    sessions.open(1, 1);
    sessions.open(2, 2);
    assert_eq!(sessions.decide(3, TERM, place(1, 1, 1)), Verdict::Apply);
    sessions.open(4, 4);
    assert_eq!(sessions.decide(5, TERM, place(2, 1, 1)), Verdict::Expired);
    assert_eq!(sessions.decide(6, TERM, place(1, 1, 1)), Verdict::Again(Again::Pending { index: 3 }));
    sessions.close(7, 1);
    assert_eq!(sessions.decide(8, TERM, place(1, 2, 2)), Verdict::Expired);
    assert_eq!(sessions.decide(9, TERM, place(4, 1, 1)), Verdict::Apply);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut sessions = Sessions::new(4096, 0);
    let mut index = 0;
    let mut next = || {
        index += 1;
        index
    };
    let opened: Vec<u64> = (0..COMMANDS / SESSION_WINDOW as usize + 2)
        .map(|_| {
            let session = next();
            sessions.open(session, session);
            for sequence in 0..SESSION_WINDOW {
                assert_eq!(sessions.decide(next(), TERM, place(session, sequence, 0)), Verdict::Apply);
            }
            session
        })
        .collect();
    assert!(sessions.commands <= COMMANDS, "{}", sessions.commands);
    assert_eq!(sessions.decide(next(), TERM, place(opened[0], 0, 0)), Verdict::Expired);
    let newest = *opened.last().unwrap();
    assert_eq!(sessions.decide(next(), TERM, place(newest, SESSION_WINDOW, SESSION_WINDOW)), Verdict::Apply);
    assert_eq!(sessions.open[&newest].done.len(), 1, "what its client has heard of is let go of");
}

#[test]
fn results_are_let_go_of_oldest_first_and_verdicts_stay_as_they_were() {
    let (mut sessions, _) = table();
    let large = RESULTS / 4;
    for sequence in 1..=5 {
        let index = 10 + sequence;
        assert_eq!(sessions.decide(index, TERM, place(10, sequence, 1)), Verdict::Apply);
        sessions.came_to(index, (10, sequence), Some(&Ok(vec![7; large])));
    }
    assert_eq!(sessions.result_bytes, 4 * large);
    assert_eq!(sessions.decide(16, TERM, place(10, 1, 1)), Verdict::Again(Again::Lost { index: 11 }));
    let kept = Verdict::Again(Again::Known { index: 12, term: TERM, result: Ok(vec![7; large].into()) });
    assert_eq!(sessions.decide(17, TERM, place(10, 2, 1)), kept);
    // Whoever has been answered needs none of them.
    assert_eq!(sessions.decide(18, TERM, place(10, 6, 6)), Verdict::Apply);
    assert_eq!((sessions.result_bytes, sessions.results.len()), (0, 0));
    sessions.came_to(18, (10, 6), Some(&Ok(vec![7; 2 * RESULTS])));
    assert_eq!(sessions.result_bytes, 0, "one that is larger than all that may be kept");
    sessions.close(19, 10);
    assert_eq!((sessions.commands, sessions.result_bytes, sessions.used.len()), (0, 0, 0));
}

#[test]
fn a_machine_behind_the_snapshot_gets_the_same_commands_once_more() {
    let (mut sessions, _) = table();
    let verdicts: Vec<bool> = [(11, 1), (12, 1), (13, 2), (14, 2), (15, 1)]
        .map(|(index, sequence)| sessions.decide(index, TERM, place(10, sequence, 1)) == Verdict::Apply)
        .to_vec();
    assert_eq!(verdicts, [true, false, true, false, false]);
    // Its client has heard of all of them: the session says nothing of them any more.
    sessions.decide(16, TERM, place(10, 3, 3));
    let mut restored = Sessions::decode(&sessions.encode(), 4096, 16).unwrap();
    assert!(restored.remembers(1));
    let before = restored.clone();
    let again: Vec<bool> =
        (11..=15).map(|index| restored.decide(index, TERM, place(10, 1, 1)) == Verdict::Apply).collect();
    assert_eq!(again, verdicts);
    assert_eq!(restored, before, "and nothing is counted twice");
}

#[test]
fn entries_that_were_not_applied_are_remembered_up_to_a_bound_and_it_is_known_from_where() {
    let (mut sessions, first) = table();
    sessions.decide(first, TERM, place(10, 1, 1));
    for index in first + 1..=first + PASSED as u64 + 2 {
        assert_ne!(sessions.decide(index, TERM, place(10, 1, 1)), Verdict::Apply);
    }
    assert_eq!(sessions.passed.len(), PASSED);
    for (index, remembered) in [(first, false), (first + 2, false), (first + 3, true)] {
        assert_eq!(sessions.remembers(index), remembered, "{index}");
    }
}

#[test]
fn a_table_without_sessions_says_nothing_and_noise_is_refused() {
    assert_eq!(Sessions::new(4096, 7).encode(), b"");
    assert_eq!(Sessions::decode(b"", 4096, 7), Ok(Sessions::new(4096, 7)));
    let twice = Table {
        sessions: [1, 2].map(|id| SessionRecord { id, used: 5, ..SessionRecord::default() }).to_vec(),
        ..Table::default()
    };
    for noise in [&b"\xff\xff"[..], b"\x0a\x05x", &twice.encode_to_vec()] {
        assert!(Sessions::decode(noise, 4096, 7).is_err(), "{noise:?}");
    }
}

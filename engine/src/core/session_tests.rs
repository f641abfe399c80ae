//! Client sessions in a node: who is answered what, what a snapshot says, and what a machine that kept its state is told after a start.

use super::entry::note_session;
use super::test_cores::{command, founders, log, lone_leader, message, options, snapshot};
use super::{Context, Core, CoreOptions, Kind, Origin, SnapshotFile};
use crate::cluster::ClusterState;
use crate::core::sessions::{Again, Sessions, Verdict};
use crate::entry::Entry;
use crate::error::{Committed, ErrorCode};
use crate::machine::{ApplyBatch, MachineAnswer, MachineRequest, Outcome};
use crate::request::{InSession, Reply, Request, Token};
use crate::Config;
use raft::eraftpb::{Message, MessageType};

fn place(session: u64, sequence: u64, first_open: u64) -> InSession {
    InSession { session, sequence, first_open }
}

/// What the node said since, with all that it writes synced at once.
#[derive(Default)]
struct Said {
    completions: Vec<(Token, Result<Reply, crate::Error>)>,
    machine: Vec<MachineRequest>,
}

impl Said {
    fn of(core: &mut Core) -> Self {
        let mut said = Said::default();
        loop {
            let actions = core.poll();
            said.completions.extend(actions.completions.into_iter().map(|c| (c.token, c.result)));
            said.machine.extend(actions.machine);
            for fetch in &actions.fetches {
                core.fetched(fetch.id, (fetch.low..fetch.high).map(entry).collect());
            }
            match actions.writes.last() {
                Some(write) => core.written(write.number),
                None if actions.fetches.is_empty() => return said,
                None => {}
            }
        }
    }

    fn batches(&self) -> Vec<&ApplyBatch> {
        self.machine
            .iter()
            .filter_map(|request| match request {
                MachineRequest::Apply(batch) => Some(batch),
                _ => None,
            })
            .collect()
    }
}

fn answer(core: &mut Core, batch: &ApplyBatch, outcome: &Outcome) {
    assert!(batch.entries.iter().all(|entry| entry.wanted && entry.token == 0), "each result is to be kept");
    let outcomes = batch.entries.iter().map(|entry| (entry.index, outcome.clone())).collect();
    core.machine_answer(MachineAnswer::Applied { id: batch.id, outcomes });
}

/// A cluster of one with an open session.
fn with_session() -> (Core, u64) {
    let mut core = lone_leader();
    core.submit(1, Request::OpenSession, None);
    let said = Said::of(&mut core);
    let [(1, Ok(Reply::Session(session)))] = said.completions.as_slice() else { panic!("{:?}", said.completions) };
    (core, *session)
}

fn propose(core: &mut Core, token: Token, place: InSession) -> Said {
    core.submit(token, Request::ProposeInSession(place, "x".into()), None);
    Said::of(core)
}

#[test]
fn a_command_that_comes_again_is_applied_once_and_both_hear_of_it() {
    for outcome in [Ok(b"value".to_vec()), Ok(Vec::new()), Err("it raised".to_string())] {
        let (mut core, session) = with_session();
        let first = propose(&mut core, 2, place(session, 1, 1));
        let again = propose(&mut core, 3, place(session, 1, 1));
        assert!(again.machine.is_empty() && again.completions.is_empty(), "it waits for the first one");
        answer(&mut core, first.batches()[0], &outcome);
        let mut told = Said::of(&mut core).completions;
        told.sort_by_key(|(token, _)| *token);
        // After that, and after the machine has gone on.
        told.extend(propose(&mut core, 4, place(session, 1, 1)).completions);
        let index = first.batches()[0].entries[0].index;
        assert_eq!(told.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [2, 3, 4]);
        for (_, result) in told {
            match (&outcome, result) {
                (Ok(value), Ok(Reply::Applied { index: at, term: 3, data })) => assert_eq!((at, &data), (index, value)),
                (Err(text), Err(error)) => {
                    assert_eq!((error.code, error.committed), (ErrorCode::ApplyFailed, Committed::Yes));
                    assert_eq!((error.index, &error.message), (Some(index), text));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn what_is_not_applied_says_why_and_whether_asking_again_helps() {
    let (mut core, session) = with_session();
    let first = propose(&mut core, 2, place(session, 5, 5));
    answer(&mut core, first.batches()[0], &Ok(vec![]));
    let cases = [
        (place(session + 1, 6, 5), ErrorCode::SessionExpired, Committed::No, true),
        (place(session, 4, 4), ErrorCode::SessionExpired, Committed::Unknown, true),
        (place(session, 5 + 1024, 5), ErrorCode::Overloaded, Committed::No, false),
    ];
    for (place, code, committed, lasting) in cases {
        let said = propose(&mut core, 9, place);
        assert!(said.machine.is_empty(), "{place:?}");
        let error = said.completions.last().and_then(|(_, result)| result.as_ref().err()).unwrap();
        assert_eq!((error.code, error.committed, error.lasting), (code, committed, lasting), "{place:?}");
    }
    core.submit(10, Request::CloseSession(session), None);
    assert!(matches!(Said::of(&mut core).completions.as_slice(), [(10, Ok(Reply::Done))]));
    let late = propose(&mut core, 11, place(session, 6, 6)).completions;
    assert_eq!(late[0].1.as_ref().unwrap_err().code, ErrorCode::SessionExpired);
}

#[test]
fn a_committed_command_counts_as_done_only_once_its_session_has_let_it_pass() {
    for (in_session, committed) in [(true, Committed::Unknown), (false, Committed::Yes)] {
        let mut core = lone_leader();
        core.config.machine_batches = 1;
        core.submit(1, Request::Propose("held up".into()), None);
        Said::of(&mut core);
        // The machine is busy: the table of sessions has not come to this one.
        match in_session {
            true => core.submit(2, Request::ProposeInSession(place(77, 1, 1), "x".into()), Some(1000)),
            false => core.submit(2, Request::Propose("x".into()), Some(1000)),
        }
        Said::of(&mut core);
        core.begin_turn(100_000, 1);
        core.expire();
        let told = Said::of(&mut core).completions;
        let error = told[0].1.as_ref().unwrap_err();
        assert_eq!((told[0].0, error.code, error.committed), (2, ErrorCode::Timeout, committed));
    }
}

#[test]
fn s13_a_snapshot_says_what_commands_came_to_that_were_with_the_machine_when_it_was_asked_for() {
    let (mut core, session) = with_session();
    let first = propose(&mut core, 2, place(session, 1, 1));
    core.submit(3, Request::Snapshot, None);
    let asked = Said::of(&mut core).machine;
    let [MachineRequest::Snapshot { id, index, .. }] = asked.as_slice() else { panic!("{asked:?}") };
    // What comes after its index is not in it.
    let later = propose(&mut core, 4, place(session, 2, 1));
    answer(&mut core, first.batches()[0], &Ok(b"one".to_vec()));
    answer(&mut core, later.batches()[0], &Ok(b"two".to_vec()));
    let table = core.snapshot_sessions(*id).unwrap();
    assert_eq!(core.snapshot_sessions(*id + 1), None);
    let mut restored = Sessions::decode(&table, 4096, *index).unwrap();
    let known = Again::Known { index: first.batches()[0].entries[0].index, term: 3, result: Ok("one".into()) };
    assert_eq!(restored.decide(*index + 1, 3, place(session, 1, 1)), Verdict::Again(known));
    assert_eq!(restored.decide(*index + 2, 3, place(session, 2, 1)), Verdict::Apply);
    core.snapshot_made(*id, SnapshotFile { size: 9, sessions: 6, crc: 0 });
    let told = Said::of(&mut core).completions;
    let sizes: Vec<u64> = told
        .iter()
        .filter_map(|(_, result)| match result {
            Ok(Reply::Snapshot(info)) => Some(info.size),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [3], "of the state alone");
}

/// The session that is opened at index 11.
fn opened() -> u64 {
    super::sessions::number(11, Origin { node: 9, start: 9, sequence: 11 })
}

/// A session is opened at index 11; every even entry of another node is its command, each sent twice.
fn entry(index: u64) -> Entry {
    if index == 11 {
        let origin = Origin { node: 9, start: 9, sequence: index };
        let context = Context { kind: Kind::OpenSession, time_us: 0, origin }.encode();
        return Entry { term: 2, index, context, ..Entry::default() };
    }
    if index % 2 == 1 {
        return command(index);
    }
    let origin = Origin { node: 9, start: 9, sequence: index };
    let mut context = Context { kind: Kind::CommandInSession, time_us: 0, origin }.encode();
    note_session(&mut context, place(opened(), index / 4, 1));
    Entry { term: 2, index, data: "x".into(), context, ..Entry::default() }
}

/// The table after the entry at `upto`.
fn table(upto: u64) -> Sessions {
    let mut sessions = Sessions::new(4096, 10);
    for index in 11..=upto {
        let entry = entry(index);
        match super::entry::in_session(&entry) {
            Some(place) => drop(sessions.decide(index, 2, place)),
            None if index == 11 => sessions.open(index, opened()),
            None => sessions.advance(index),
        }
    }
    sessions
}

/// Entries 6 to 30, all committed; the snapshot at `snapshot_at`, as of which the members are stored.
fn start(snapshot_at: u64, machine_applied: Option<u64>, sessions: &Sessions) -> Core {
    let mut cluster = ClusterState::founding(&founders());
    cluster.sessions = snapshot_at > 10;
    let mut log = log(Some(snapshot(snapshot_at, 2, &cluster)), (snapshot_at, cluster), 30);
    (log.first_index, log.terms) = (6, vec![(6, 2)]);
    let entries = (snapshot_at + 1..=30).map(entry).collect();
    let sessions = sessions.encode();
    let mut core = Core::new(CoreOptions { entries, sessions, machine_applied, ..options(log) }).unwrap();
    let commit = Message { commit: 30, ..message(MessageType::MsgHeartbeat, 2, 3) };
    core.receive(2, commit);
    core
}

/// Indexes that the machine is given, and whether it restores.
fn heard(core: &mut Core) -> (bool, Vec<u64>) {
    let (mut restored, mut heard) = (false, Vec::new());
    for turn in 1..20 {
        // Whoever follows gathers what nobody waits for.
        core.begin_turn(turn * 10_000, 1);
        let said = Said::of(core);
        for request in said.machine {
            match request {
                MachineRequest::Restore { id, .. } => {
                    restored = true;
                    core.machine_answer(MachineAnswer::Restored { id });
                }
                MachineRequest::Apply(batch) => {
                    heard.extend(batch.entries.iter().map(|e| e.index));
                    core.machine_answer(MachineAnswer::Applied { id: batch.id, outcomes: Vec::new() });
                }
                MachineRequest::Snapshot { .. } => {}
            }
        }
    }
    (restored, heard)
}

#[test]
fn s7_a_machine_that_kept_its_state_gets_the_commands_that_every_other_gets() {
    // 14, 18, 22, 26, 30 are sendings of 12, 16, 20, 24, 28 once more.
    let all: Vec<u64> = (12..=30).filter(|index| index % 4 != 2).collect();
    for snapshot_at in [10, 11, 15, 17, 20] {
        for machine in [None, Some(10), Some(12), Some(13), Some(16), Some(17), Some(21), Some(30)] {
            let mut core = start(snapshot_at, machine, &table(snapshot_at));
            let (restored, heard) = heard(&mut core);
            let from = machine.unwrap_or(snapshot_at);
            let expected: Vec<u64> = all.iter().copied().filter(|index| *index > from).collect();
            assert_eq!(
                (restored, heard),
                (machine.is_none(), expected),
                "snapshot at {snapshot_at}, machine at {machine:?}"
            );
            let (ours, theirs) = (core.sessions.encode(), table(30).encode());
            assert!(ours.len() >= theirs.len(), "results are kept beside what is done");
            let mut ours = core.sessions;
            for sequence in 3..=7 {
                let verdict = ours.decide(31 + sequence, 2, place(opened(), sequence, 1));
                assert!(matches!(verdict, Verdict::Again(_)), "{sequence}: {verdict:?}");
            }
        }
    }
}

#[test]
fn s13_no_snapshot_is_made_while_what_a_machine_has_already_is_looked_at_for_its_sessions() {
    let (before, mut cluster) = (ClusterState::founding(&founders()), ClusterState::founding(&founders()));
    cluster.sessions = true;
    let mut log = log(Some(snapshot(10, 2, &before)), (21, cluster), 30);
    (log.first_index, log.terms) = (6, vec![(6, 2)]);
    let (entries, sessions) = ((22..=30).map(entry).collect(), table(10).encode());
    let config = Config { snapshot_entries: 1, ..Config::default() };
    let mut core =
        Core::new(CoreOptions { config, entries, sessions, machine_applied: Some(21), ..options(log) }).unwrap();
    core.submit(1, Request::Snapshot, None);
    let mut looked_at = Vec::new();
    for turn in 1..=20 {
        core.begin_turn(turn * 10_000, 1);
        core.consider_snapshot();
        let actions = core.poll();
        match actions.machine.as_slice() {
            [] => looked_at.push(core.machine.queued()),
            // As of an earlier index the table would lack what the state has.
            [MachineRequest::Snapshot { index, .. }] => {
                assert_eq!(*index, 21);
                // The disk gives one entry at a time: there was every opportunity.
                assert_eq!(looked_at, (10..=20).collect::<Vec<_>>());
                return;
            }
            other => panic!("{other:?}"),
        }
        for fetch in &actions.fetches {
            core.fetched(fetch.id, vec![entry(fetch.low)]);
        }
    }
    panic!("no snapshot was made");
}

#[test]
fn s7_a_machine_takes_the_snapshot_where_nobody_knows_any_more_what_was_applied_before() {
    let mut sessions = Sessions::new(4096, 10);
    sessions.open(11, 11);
    for index in 12..=5000 {
        sessions.decide(index, 2, place(99, 1, 1));
    }
    let from = (0..5001).find(|index| sessions.remembers(*index)).unwrap();
    assert!(from > 100);
    let mut cluster = ClusterState::founding(&founders());
    cluster.sessions = true;
    for (applied, restores) in [(from - 2, true), (from - 1, false)] {
        let mut log = log(Some(snapshot(5000, 2, &cluster)), (5000, cluster.clone()), 5000);
        (log.first_index, log.terms) = (6, vec![(6, 2)]);
        let sessions = sessions.encode();
        let machine_applied = Some(applied);
        let mut core = Core::new(CoreOptions { sessions, machine_applied, ..options(log) }).unwrap();
        let asked = core.poll().machine;
        assert_eq!(matches!(asked.as_slice(), [MachineRequest::Restore { .. }]), restores, "{applied}");
    }
}

#[test]
fn a_table_that_cannot_be_read_is_damage_at_start_and_a_peers_is_refused() {
    let cluster = ClusterState::founding(&founders());
    let state = log(Some(snapshot(10, 2, &cluster)), (10, cluster), 10);
    let error = Core::new(CoreOptions { sessions: b"\xff\xff".to_vec(), ..options(state) }).err().unwrap();
    assert_eq!(error.code, ErrorCode::CorruptData);
    let config = Config { max_sessions: 0, ..Config::default() };
    assert!(Sessions::decode(b"", config.max_sessions, 1).is_ok(), "one session at least");
}

//! S6, S13, S19: what snapshots carry and when they are taken, sent and given up.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::eraftpb::{ConfState, Message, MessageType};

use crate::cluster::ClusterState;
use crate::core::tail::raft_snapshot;
use crate::core::test_cores::{command, follow, founders, leader, log, message, options, snapshot};
use crate::core::{Actions, Body, Context, Core, CoreOptions, Kind, Received, SnapshotFile};
use crate::entry::Entry;
use crate::error::ErrorCode;
use crate::log::SnapshotMeta;
use crate::machine::{MachineAnswer, MachineRequest};
use crate::request::Request;
use crate::status::Event;
use crate::Config;

/// A restarted node: snapshot at 10 with members 1 to 3, member 3 removed by entry 15, members stored as of 20.
fn replaying() -> Core {
    let then = ClusterState::founding(&founders());
    let mut now = then.clone();
    now.drop_member(3);
    now.voters = vec![1, 2];
    let bare = SnapshotMeta { size: 0, has_file: false, ..snapshot(10, 2, &then) };
    let log = log(Some(bare), (20, now), 20);
    Core::new(CoreOptions { config: Config { snapshot_entries: 2, ..Config::default() }, ..options(log) }).unwrap()
}

fn asked_for_snapshot(actions: &Actions) -> Option<(u64, u64)> {
    actions.machine.iter().find_map(|request| match request {
        MachineRequest::Snapshot { id, index, .. } => Some((*id, *index)),
        _ => None,
    })
}

#[test]
fn s19_a_send_that_the_log_does_not_go_on_from_any_more_ends_with_an_event() {
    let mut core = replaying();
    core.poll();
    core.snapshots.sending = BTreeMap::from([(2, 12), (4, 18), (5, 16)]);
    let cluster = core.cluster().clone();
    let meta =
        SnapshotMeta { index: 20, term: 2, cluster, size: 1, sessions: 0, crc: 1, has_file: true, outcomes: None };
    core.snapshot_named(Arc::new(meta), 16);
    let actions = core.poll();
    assert_eq!(actions.cancel_sends, [2], "members 4 and 5 can go on from where they will be");
    let told = actions.events.iter().any(|e| matches!(e, Event::SnapshotNotSent { peer: 2, index: 12, .. }));
    assert!(told, "{:?}", actions.events);
    // The shell's word that it ended.
    core.snapshot_sent(2, false);
    assert!(!core.snapshots.sending.contains_key(&2));
}

/// Raft sends a peer nothing else until it hears how its snapshot fared.
#[test]
fn s19_a_snapshot_is_sent_as_raft_means_it_to_who_is_listened_to_and_otherwise_raft_hears_that_it_failed() {
    for (story, index, recorded, sent) in [
        ("the one that there is", 8, true, true),
        ("one that a newer one has replaced", 7, true, false),
        ("to a member that is not recorded", 8, false, false),
    ] {
        let mut core = leader(3, true);
        let meta = snapshot(8, 2, core.cluster());
        core.raw.mut_store().set_snapshot_meta(Arc::new(meta.clone()));
        if !recorded {
            let mut cluster = core.cluster().clone();
            cluster.member_mut(3).unwrap().directory.clear();
            core.set_cluster(10, cluster);
        }
        core.poll();
        core.raw.raft.mut_prs().get_mut(3).unwrap().become_snapshot(index);
        let snapshot = Some(raft_snapshot(&SnapshotMeta { index, ..meta }));
        core.send_snapshot(Message { to: 3, snapshot, ..message(MessageType::MsgSnapshot, 1, 3) });
        assert_eq!(
            core.poll().snapshot_sends.iter().map(|send| send.to).collect::<Vec<_>>(),
            vec![3; sent.into()],
            "{story}"
        );
        let waits = core.raw.raft.prs().get(3).unwrap().state == raft::ProgressState::Snapshot;
        assert_eq!(waits, sent, "{story}");
    }
}

#[test]
fn s13_no_snapshot_is_taken_in_a_replay_before_the_index_whose_members_are_known() {
    let mut core = replaying();
    let first = core.poll();
    let fetch = first.fetches.first().copied().unwrap();
    core.fetched(fetch.id, (11..=17).map(command).collect());
    let midway = core.poll();
    assert_eq!(asked_for_snapshot(&midway), None, "the members at 17 are not those of the snapshot at 10");
    let fetch = midway.fetches.first().copied().unwrap();
    core.fetched(fetch.id, (18..=20).map(command).collect());
    let (id, index) = asked_for_snapshot(&core.poll()).unwrap();
    assert_eq!(index, 20);
    assert_eq!(core.snapshot_header(id).unwrap().2.voters, [1, 2]);
}

#[test]
fn s19_a_leader_whose_snapshot_is_too_old_hears_how_far_this_node_is() {
    let mut core = replaying();
    follow(&mut core, 20);
    assert!(core.accepts_snapshot(2, 15).is_err());
    let mut told = core.poll();
    if let Some(write) = told.writes.last().map(|w| w.number) {
        core.written(write);
        told.messages.extend(core.poll().messages);
    }
    let acknowledged = told.messages.iter().find_map(|m| match &m.body {
        Body::Raft(m) if m.msg_type == MessageType::MsgAppendResponse as i32 => Some((m.to, m.index, m.reject)),
        _ => None,
    });
    assert_eq!(acknowledged, Some((2, 20, false)), "otherwise it sends the same snapshot for ever");
}

#[test]
fn a_snapshot_that_failed_is_told_to_who_asked_and_tried_again_later() {
    let mut core = replaying();
    let fetch = core.poll().fetches.first().copied().unwrap();
    core.fetched(fetch.id, (11..=20).map(command).collect());
    core.submit(5, Request::Snapshot, None);
    let (id, index) = asked_for_snapshot(&core.poll()).unwrap();
    core.snapshot_failed(id, "no thread".into());
    let told = core.poll();
    assert_eq!(asked_for_snapshot(&told), None, "not at once");
    let failed = told.completions.iter().find(|c| c.token == 5).and_then(|c| c.result.as_ref().err());
    assert_eq!(failed.map(|error| (error.code, error.index)), Some((ErrorCode::SnapshotFailed, Some(index))));
    core.begin_turn(10_000_001, 1);
    let (again, index_again) = asked_for_snapshot(&core.poll()).unwrap();
    assert!(again > id && index_again == index);
}

/// Request and index.
fn asked_to_restore(actions: &Actions) -> Vec<(u64, u64)> {
    let restore = |request: &MachineRequest| match request {
        MachineRequest::Restore { id, index, .. } => Some((*id, *index)),
        _ => None,
    };
    actions.machine.iter().filter_map(restore).collect()
}

/// Node 2, which leads, has sent this snapshot whole.
fn receive(core: &mut Core, index: u64) {
    let meta = snapshot(index, 3, core.cluster());
    let sent = Message { snapshot: Some(raft_snapshot(&meta)), ..message(MessageType::MsgSnapshot, 2, 3) };
    core.receive_snapshot(2, sent, meta, b"");
}

#[test]
fn s6_a_snapshot_that_is_overtaken_before_the_machine_hears_of_it_is_still_the_one_it_restores() {
    let mut core = replaying();
    follow(&mut core, 20);
    receive(&mut core, 30);
    let write = core.poll().writes.last().map(|write| write.number).unwrap();
    // In one turn: the next one comes, and the write that names this one is done.
    receive(&mut core, 40);
    core.written(write);
    let actions = core.poll();
    let restores = asked_to_restore(&actions);
    assert_eq!(restores.iter().map(|(_, index)| *index).collect::<Vec<_>>(), [30]);
    assert_eq!(core.snapshot().map(|meta| meta.index), Some(40));
    let (first, _) = restores[0];
    assert_eq!(core.snapshot_to_restore(first).map(|meta| meta.index), Some(30));
    assert_eq!(actions.prune.map(|meta| meta.index), Some(30));
    // The log names the one at 40 durably, and the file at 30 stays until the machine has it.
    core.written(actions.writes.last().map(|write| write.number).unwrap());
    let actions = core.poll();
    let (second, _) = asked_to_restore(&actions)[0];
    assert_eq!(core.snapshot_to_restore(second).map(|meta| meta.index), Some(40));
    assert!(core.snapshot_to_restore(first).is_some() && actions.prune.is_none());
    core.machine_answer(MachineAnswer::Restored { id: first });
    assert_eq!(core.poll().prune.map(|meta| meta.index), Some(40));
    assert!(core.snapshot_to_restore(first).is_none());
}

/// A member of 1 and 2 at commit 20 of term 2, which follows node 2 in term 3, is sent this snapshot with this message: whether it takes
/// it, and what it says of node 2.
fn given(message: Message, meta: SnapshotMeta) -> (bool, Vec<String>) {
    let mut core = replaying();
    follow(&mut core, 20);
    core.receive_snapshot(message.from, message, meta, b"");
    let mut actions = core.poll();
    if let Some(write) = actions.writes.last().map(|write| write.number) {
        core.written(write);
        actions.events.extend(core.poll().events);
    }
    let refused = |event: &Event| match event {
        Event::PeerRefused { peer: 2, reason } => Some(reason.clone()),
        _ => None,
    };
    (core.snapshot_index() == 30, actions.events.iter().filter_map(refused).collect())
}

fn members(conf: ConfState) -> ClusterState {
    let mut cluster = ClusterState::founding(&founders());
    cluster.set_conf_state(&conf);
    cluster
}

/// Snapshot 30 of term 3, and the message that brings it.
fn stream(cluster: &ClusterState) -> (Message, SnapshotMeta) {
    let meta = snapshot(30, 3, cluster);
    (Message { snapshot: Some(raft_snapshot(&meta)), ..message(MessageType::MsgSnapshot, 2, 3) }, meta)
}

#[test]
fn s16_a_message_beside_a_snapshot_that_could_be_none_of_a_leaders_is_dropped_and_told() {
    let entry = || vec![raft::eraftpb::Entry { term: 3, index: 21, ..Default::default() }];
    let (good, meta) = stream(&members(ConfState { voters: vec![1, 2, 3], ..Default::default() }));
    assert_eq!(given(good.clone(), meta.clone()), (true, vec![]));
    let of = |kind: MessageType| Message { msg_type: kind as i32, ..good.clone() };
    let dropped: Vec<(&str, Message)> = vec![
        ("a heartbeat from beyond the log", Message { commit: 1 << 40, ..of(MessageType::MsgHeartbeat) }),
        ("a proposal", Message { entries: entry(), ..of(MessageType::MsgPropose) }),
        ("a transfer", of(MessageType::MsgTransferLeader)),
        ("an append", Message { index: 20, log_term: 2, entries: entry(), ..of(MessageType::MsgAppend) }),
        ("a campaign", of(MessageType::MsgHup)),
        ("a kind that there is not", Message { msg_type: 99, ..good.clone() }),
        ("entries", Message { entries: entry(), ..good.clone() }),
        ("a request", Message { request_snapshot: 1, ..good.clone() }),
        ("an index out of reach", Message { index: u64::MAX, ..good.clone() }),
        ("a commit out of reach", Message { commit: u64::MAX, ..good.clone() }),
        ("a log term above its own", Message { log_term: 4, ..good.clone() }),
    ];
    for (what, message) in dropped {
        let (taken, told) = given(message, meta.clone());
        assert_eq!((taken, told.len()), (false, 1), "{what}: {told:?}");
    }
}

#[test]
fn s16_a_snapshot_at_a_place_where_none_can_be_is_dropped_and_told() {
    let cluster = members(ConfState { voters: vec![1, 2, 3], ..Default::default() });
    for (index, term) in [(0, 3), (30, 0), (30, 4), (u64::MAX - 1, 3), (20, 3)] {
        let meta = SnapshotMeta { index, term, ..snapshot(30, 3, &cluster) };
        let (mut message, _) = stream(&cluster);
        message.snapshot = Some(raft_snapshot(&meta));
        let (taken, told) = given(message, meta);
        assert_eq!((taken, told.len()), (false, 1), "index {index} of term {term}: {told:?}");
    }
}

/// Raft panics on members that it cannot restore.
#[test]
fn s16_a_snapshot_is_taken_only_with_members_that_raft_can_restore() {
    let conf = |voters: &[u64], learners: &[u64], outgoing: &[u64], next: &[u64], auto_leave| ConfState {
        voters: voters.to_vec(),
        learners: learners.to_vec(),
        voters_outgoing: outgoing.to_vec(),
        learners_next: next.to_vec(),
        auto_leave,
    };
    let table = [
        (true, conf(&[1, 2], &[3], &[], &[], false)),
        (true, conf(&[2, 3], &[], &[1, 2], &[1], true)),
        (true, conf(&[2, 3], &[], &[1, 2], &[], false)),
        (true, conf(&[2], &[3], &[1, 2], &[], true)),
        (false, conf(&[], &[1], &[], &[], false)),
        (false, conf(&[], &[], &[1, 2], &[], true)),
        (false, conf(&[0, 1], &[], &[], &[], false)),
        (false, conf(&[1], &[0], &[], &[], false)),
        (false, conf(&[1], &[1], &[], &[], false)),
        (false, conf(&[1, 1], &[], &[], &[], false)),
        (false, conf(&[1], &[3, 3], &[], &[], false)),
        (false, conf(&[1], &[], &[], &[3], false)),
        (false, conf(&[1], &[], &[], &[], true)),
        (false, conf(&[1], &[], &[1, 2], &[3], true)),
        (false, conf(&[1], &[], &[1, 2], &[1], true)),
        (false, conf(&[1], &[2], &[1, 2], &[], true)),
        (false, conf(&[1], &[2], &[1, 2], &[2], true)),
        (false, conf(&[1], &[], &[1, 2, 2], &[], true)),
        (false, conf(&[1], &[], &[0, 1, 2], &[], true)),
    ];
    for (restorable, conf) in table {
        let (message, meta) = stream(&members(conf.clone()));
        let (taken, told) = given(message, meta);
        assert_eq!((taken, told.is_empty()), (restorable, restorable), "{conf:?}: {told:?}");
    }
}

#[test]
fn s13_a_snapshot_is_taken_only_with_the_message_that_names_it() {
    let cluster = members(ConfState { voters: vec![1, 2, 3], ..Default::default() });
    let (message, meta) = stream(&cluster);
    let other = members(ConfState { voters: vec![1, 2], learners: vec![3], ..Default::default() });
    for (what, meta, taken) in [
        ("itself", meta.clone(), true),
        ("one at another index", SnapshotMeta { index: 31, ..meta.clone() }, false),
        ("one of another term", SnapshotMeta { term: 2, ..meta.clone() }, false),
        ("one with other members", SnapshotMeta { cluster: other, ..meta }, false),
    ] {
        let (found, told) = given(message.clone(), meta);
        assert_eq!((found, told.len()), (taken, usize::from(!taken)), "{what}: {told:?}");
    }
}

/// It was let in when its file began to come; what removes its sender may be applied before that is whole.
#[test]
fn s12_a_snapshot_is_not_taken_any_more_from_who_has_been_removed_meanwhile() {
    let cluster = members(ConfState { voters: vec![1, 2, 3], ..Default::default() });
    for (from, taken) in [(2, true), (3, false)] {
        let (message, meta) = stream(&cluster);
        assert_eq!(given(Message { from, ..message }, meta).0, taken, "from node {from}");
    }
}

/// What is asked is answered at once: whatever is written is durable, whatever the machine is told is done.
fn settle(core: &mut Core) -> Actions {
    let mut all = Actions::default();
    for _ in 0..20 {
        let Actions { writes, machine, fetches, events, completions, stop, .. } = core.poll();
        assert!(stop.is_none(), "{stop:?}");
        for request in &machine {
            match request {
                MachineRequest::Apply(batch) => {
                    core.machine_answer(MachineAnswer::Applied { id: batch.id, outcomes: Vec::new() });
                }
                MachineRequest::Restore { id, .. } => core.machine_answer(MachineAnswer::Restored { id: *id }),
                MachineRequest::Snapshot { .. } => {}
            }
        }
        for fetch in fetches {
            core.fetched(fetch.id, (fetch.low..fetch.high).map(command).collect());
        }
        writes.last().into_iter().for_each(|write| core.written(write.number));
        all.writes.extend(writes);
        all.machine.extend(machine);
        all.events.extend(events);
        all.completions.extend(completions);
    }
    all
}

/// Its machine has taken a snapshot at 20, whose file is not complete yet; and it follows node 2.
fn making() -> (Core, u64) {
    let mut core = replaying();
    let (id, index) = asked_for_snapshot(&settle(&mut core)).unwrap();
    assert_eq!(index, 20);
    follow(&mut core, 20);
    (core, id)
}

#[test]
fn a_snapshot_that_comes_later_than_a_newer_one_changes_nothing() {
    let mut core = replaying();
    follow(&mut core, 20);
    receive(&mut core, 30);
    receive(&mut core, 25);
    settle(&mut core);
    assert_eq!((core.snapshot_index(), core.applied()), (30, 30));
}

#[test]
fn one_that_was_made_and_is_overtaken_holds_up_none_that_come_later() {
    for named_in_the_same_turn in [true, false] {
        let (mut core, id) = making();
        if named_in_the_same_turn {
            core.snapshot_made(id, SnapshotFile { size: 3, sessions: 0, crc: 0 });
            receive(&mut core, 30);
        } else {
            receive(&mut core, 30);
            core.poll();
            core.snapshot_made(id, SnapshotFile { size: 3, sessions: 0, crc: 0 });
        }
        let after = settle(&mut core);
        assert!(after.writes.iter().all(|w| w.snapshot.as_ref().is_none_or(|named| named.index == 30)));
        core.submit(5, Request::Snapshot, None);
        let told = settle(&mut core).completions;
        assert!(told.iter().any(|told| told.token == 5 && told.result.is_ok()), "{named_in_the_same_turn}: {told:?}");
    }
}

/// Megabytes of log that come while the snapshot at 20 is made; who is being sent the one at 10; up to where the log goes then.
#[test]
fn s19_the_log_goes_up_to_the_snapshot_and_stays_for_who_is_sent_one_up_to_a_limit() {
    for (grown, sending, expected) in [
        (0, None, 20),
        (0, Some(12), 12),
        (0, Some(25), 20),
        // More than the limit of 64 MiB comes behind it, and not all of it can go.
        (80, None, 20),
        // The limit is behind what a slow peer needs, and it has to do with a newer one.
        (80, Some(12), 20),
    ] {
        let (mut core, id) = making();
        (core.config.trailing_entries, core.config.snapshot_bytes) = (0, 0);
        core.snapshots.sending = sending.map(|index| (2, index)).into_iter().collect();
        let large = bytes::Bytes::from(vec![0; 1 << 20]);
        let entries = (21..21 + grown).map(|index| Entry { term: 3, data: large.clone(), ..command(index) }).collect();
        let head = Message { index: 20, log_term: 2, ..message(MessageType::MsgAppend, 2, 3) };
        core.receive(2, Received { head, entries });
        settle(&mut core);
        core.snapshot_made(id, SnapshotFile { size: 3, sessions: 0, crc: 0 });
        let named = settle(&mut core).writes.into_iter().find(|write| write.snapshot.is_some()).unwrap();
        assert_eq!(named.compact_to, Some(expected), "{grown} MiB, {sending:?} is being sent");
    }
}

#[test]
fn the_leaders_clock_does_not_go_back_behind_a_received_snapshot() {
    let mut core = replaying();
    follow(&mut core, 20);
    let mut cluster = core.cluster().clone();
    cluster.time_us = 1 << 50;
    let meta = snapshot(30, 3, &cluster);
    let sent = Message { snapshot: Some(raft_snapshot(&meta)), ..message(MessageType::MsgSnapshot, 2, 3) };
    core.receive_snapshot(2, sent, meta, b"");
    settle(&mut core);
    // Its own clock says that it is 1970.
    let context = core.context(Kind::Command, 1, 7, 1);
    let next = Context::of(&Entry { context, ..command(31) }).unwrap();
    assert!(next.time_us >= 1 << 50, "{}", next.time_us);
}

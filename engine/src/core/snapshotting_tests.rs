//! S6, S13, S19: what snapshots carry and when they are taken, sent and given up.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::eraftpb::{Message, MessageType, Snapshot, SnapshotMetadata};

use crate::cluster::ClusterState;
use crate::core::test_cores::{command, follow, founders, log, message, options, snapshot};
use crate::core::{Actions, Body, Core, CoreOptions};
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
    core.snapshots.sending = BTreeMap::from([(2, 12), (4, 18)]);
    let cluster = core.cluster().clone();
    let meta = SnapshotMeta { index: 20, term: 2, cluster, size: 1, crc: 1, has_file: true, outcomes: None };
    core.snapshot_named(Arc::new(meta), 16);
    let actions = core.poll();
    assert_eq!(actions.cancel_sends, [2], "member 4 can go on from 18");
    let told = actions.events.iter().any(|e| matches!(e, Event::SnapshotNotSent { peer: 2, index: 12, .. }));
    assert!(told, "{:?}", actions.events);
    // The shell's word that it ended.
    core.snapshot_sent(2, false);
    assert!(!core.snapshots.sending.contains_key(&2));
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
    let metadata = SnapshotMetadata { index, term: 3, conf_state: Some(meta.cluster.conf_state()) };
    let sent = Snapshot { metadata: Some(metadata), ..Snapshot::default() };
    core.receive_snapshot(2, Message { snapshot: Some(sent), ..message(MessageType::MsgSnapshot, 2, 3) }, meta);
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

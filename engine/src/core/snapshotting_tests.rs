//! S6, S13, S19: what snapshots carry and when they are taken, sent and given up.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::eraftpb::MessageType;

use crate::cluster::ClusterState;
use crate::core::test_cores::{command, follow, founders, log, options, snapshot};
use crate::core::{Actions, Body, Core, CoreOptions};
use crate::log::SnapshotMeta;
use crate::machine::MachineRequest;
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

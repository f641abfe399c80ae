//! What unit tests make a core from: a log's state and the options, with everything said that most of them do not care about.

use std::collections::BTreeMap;

use raft::eraftpb::{HardState, Message, MessageType};

use super::{Body, Context, Core, CoreOptions, Kind, Origin};
use crate::cluster::{ClusterState, NodeId, Uid};
use crate::entry::Entry;
use crate::log::{ClusterRecord, Identity, LogState, SnapshotMeta};
use crate::Config;

pub(super) fn founders() -> BTreeMap<NodeId, String> {
    founders_of(3)
}

fn founders_of(members: NodeId) -> BTreeMap<NodeId, String> {
    (1..=members).map(|id| (id, format!("h:{id}"))).collect()
}

/// A snapshot of a few bytes.
pub(super) fn snapshot(index: u64, term: u64, cluster: &ClusterState) -> SnapshotMeta {
    SnapshotMeta { index, term, cluster: cluster.clone(), size: 3, sessions: 0, crc: 0, has_file: true, outcomes: None }
}

/// The log of node 1 in term 2, of which all is of term 2: entries from behind `snapshot` to `last_index`; the members are stored as of
/// `cluster.0`, and up to there it is known to be committed.
pub(super) fn log(snapshot: Option<SnapshotMeta>, cluster: (u64, ClusterState), last_index: u64) -> LogState {
    let first_index = snapshot.as_ref().map_or(0, |s| s.index) + 1;
    let (index, cluster) = cluster;
    LogState {
        identity: Identity { node_id: 1, directory: Uid(1), digest: 1, incarnation: None, cluster_id: String::new() },
        hard_state: HardState { term: 2, vote: 0, commit: index },
        cluster: ClusterRecord { index, cluster },
        prev_term: if snapshot.is_some() { 2 } else { 0 },
        snapshot,
        first_index,
        last_index,
        terms: if last_index >= first_index { vec![(first_index, 2)] } else { Vec::new() },
        bytes: 0,
    }
}

/// The node of this log, one of three founders.
pub(super) fn options(log: LogState) -> CoreOptions {
    let node_id = log.identity.node_id;
    CoreOptions {
        config: Config::default(),
        node_id,
        addr: format!("h:{node_id}"),
        initial: founders(),
        start: 7,
        seed: 7,
        log,
        entries: Vec::new(),
        sessions: Vec::new(),
        machine_applied: None,
        now: 0,
    }
}

/// To node 1.
pub(super) fn message(kind: MessageType, from: NodeId, term: u64) -> Message {
    Message { msg_type: kind as i32, from, to: 1, term, ..Message::default() }
}

/// Node 1 of three founders that all know each other, about to lead term 3: node 2 has handed over to it. Its log up to 9 is on the disk
/// alone. The vote of node 2 is on its way once what it writes is durable.
pub(super) fn chosen() -> Core {
    chosen_of(3)
}

/// The same, of so many founders.
pub(super) fn chosen_of(members: NodeId) -> Core {
    chosen_with(members, None)
}

fn chosen_with(members: NodeId, machine_applied: Option<u64>) -> Core {
    let mut cluster = ClusterState::founding(&founders_of(members));
    cluster.incarnation = Uid(9).to_bytes();
    for id in 1..=members {
        cluster.member_mut(id).unwrap().directory = Uid(u128::from(id)).to_bytes();
    }
    let mut state = log(None, (9, cluster), 9);
    state.identity.incarnation = Some(Uid(9));
    let mut core = Core::new(CoreOptions { machine_applied, ..options(state) }).unwrap();
    core.begin_turn(1, 1);
    core.receive(2, message(MessageType::MsgTimeoutNow, 2, 2));
    core
}

/// Raft's messages that are sent, but appends: to whom and of which kind. What is written is synced at once.
pub(super) fn sent(core: &mut Core) -> Vec<(NodeId, Message)> {
    let mut sent = Vec::new();
    loop {
        let actions = core.poll();
        for message in actions.messages {
            if let Body::Raft(raft) = message.body {
                sent.push((message.to, raft));
            }
        }
        match actions.writes.last() {
            Some(write) => core.written(write.number),
            None => return sent,
        }
    }
}

/// Node 1 leads itself alone, and its machine has all that there is.
pub(super) fn lone_leader() -> Core {
    let mut core = chosen_with(1, Some(9));
    sent(&mut core);
    assert!(core.is_leader());
    core
}

/// Node 1 leads term 3 of that many members, and has committed index 10 in it, or not yet.
pub(super) fn leader(members: NodeId, committed: bool) -> Core {
    let mut core = chosen_of(members);
    sent(&mut core);
    for voter in 2..=members {
        core.receive(voter, message(MessageType::MsgRequestVoteResponse, voter, 3));
    }
    sent(&mut core);
    assert!(core.is_leader());
    if committed {
        for peer in 2..=members {
            core.receive(peer, Message { index: 10, ..message(MessageType::MsgAppendResponse, peer, 3) });
        }
        sent(&mut core);
    }
    core
}

/// Follows node 2 in term 3, durably; all up to `commit` is committed.
pub(super) fn follow(core: &mut Core, commit: u64) {
    let heartbeat =
        Message { msg_type: MessageType::MsgHeartbeat as i32, from: 2, to: 1, term: 3, commit, ..Message::default() };
    core.receive(2, heartbeat);
    if let Some(write) = core.poll().writes.last() {
        core.written(write.number);
    }
    core.poll();
    assert_eq!(core.term(), 3);
}

pub(super) fn command(index: u64) -> Entry {
    let origin = Origin { node: 9, start: 9, sequence: index };
    let context = Context { kind: Kind::Command, time_us: 0, origin }.encode();
    Entry { term: 2, index, data: "x".into(), context, ..Entry::default() }
}

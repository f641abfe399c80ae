//! S11: who is refused by whom, and in which words.

use std::collections::BTreeMap;

use raft::eraftpb::HardState;

use super::{founding_digest, Core, CoreOptions};
use crate::cluster::{ClusterState, Member, Uid};
use crate::log::{ClusterRecord, Identity, LogState};
use crate::wire::{Hello, Verdict, PROTOCOL_VERSION};
use crate::Config;

const INCARNATION: Uid = Uid(77);

fn founders() -> BTreeMap<u64, String> {
    (1..=3).map(|id| (id, format!("h:{id}"))).collect()
}

/// Node 4 of the cluster "ours": it joined, so its own directory knows no initial members. Node 3 has never come.
fn joined(known_digest: u64) -> Core {
    let mut cluster = ClusterState::founding(&founders());
    for id in [1, 2, 4] {
        let directory = Uid(u128::from(id)).to_bytes();
        cluster.put_member(Member { id, addr: format!("h:{id}"), directory, promote: false });
    }
    cluster.voters = vec![1, 2, 3, 4];
    cluster.incarnation = INCARNATION.to_bytes();
    cluster.founding_digest = known_digest;
    let incarnation = Some(INCARNATION);
    let identity = Identity { node_id: 4, directory: Uid(4), digest: 0, incarnation, cluster_id: "ours".into() };
    let log = LogState {
        identity,
        hard_state: HardState { term: 2, vote: 0, commit: 9 },
        cluster: ClusterRecord { index: 9, cluster },
        snapshot: None,
        first_index: 1,
        prev_term: 0,
        last_index: 9,
        terms: vec![(1, 2)],
        bytes: 0,
    };
    let options = CoreOptions {
        config: Config::default(),
        node_id: 4,
        addr: "h:4".into(),
        initial: BTreeMap::new(),
        start: 7,
        seed: 7,
        log,
        entries: Vec::new(),
        machine_applied: None,
        now: 0,
    };
    Core::new(options).unwrap()
}

fn late_founder(digest: u64) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        node_id: 3,
        to: 4,
        addr: "h:3".into(),
        directory: Uid(3).to_bytes(),
        digest,
        fresh: true,
        ..Hello::default()
    }
}

#[test]
fn s11_a_member_that_joined_refuses_a_late_initial_member_of_another_cluster_id_by_name() {
    let (ours, other) = (founding_digest("ours", &founders()), founding_digest("another", &founders()));
    for (known, theirs, expected) in [
        (ours, ours, Verdict::Later),
        (ours, other, Verdict::ClusterMismatch),
        // It waits to be joined, and names no members.
        (ours, 0, Verdict::Later),
        // Founded by a version that did not say.
        (0, other, Verdict::Later),
    ] {
        let mut core = joined(known);
        assert_eq!(core.hello(3).digest, known, "it says which founding it belongs to");
        let welcome = core.greeted(&late_founder(theirs));
        assert_eq!(welcome.verdict, expected as i32, "{known} {theirs}: {}", welcome.reason);
        assert_eq!(welcome.reason.contains("cluster_id"), expected == Verdict::ClusterMismatch, "{}", welcome.reason);
    }
}

//! S11: who is refused by whom, and in which words.

use std::collections::BTreeMap;

use super::test_cores::{founders, log, options};
use super::{founding_digest, Core, CoreOptions};
use crate::cluster::{ClusterState, Member, Uid};
use crate::log::Identity;
use crate::wire::{Hello, Verdict, PROTOCOL_VERSION};

const INCARNATION: Uid = Uid(77);

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
    let mut log = log(None, (9, cluster), 9);
    let incarnation = Some(INCARNATION);
    log.identity = Identity { node_id: 4, directory: Uid(4), digest: 0, incarnation, cluster_id: "ours".into() };
    Core::new(CoreOptions { initial: BTreeMap::new(), ..options(log) }).unwrap()
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

//! S11: who is refused by whom, and in which words.

use std::collections::BTreeMap;

use super::test_cores::{founders, log, options};
use super::{founding_digest, Core, CoreOptions};
use crate::cluster::{ClusterState, Member, Uid};
use crate::error::ErrorCode;
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

/// Seed 7004465: 3 was removed before it knew of the cluster that it had founded, and the directory of 1 is empty now.
#[test]
fn s11_a_fresh_founder_counts_founders_alone_and_none_that_was_removed() {
    for (story, digest, removed, incarnation, takes_part) in [
        ("a founder", 1, false, None, true),
        ("one that was removed", 1, true, None, false),
        ("one that waits to be joined", 0, false, None, false),
        ("one of the cluster", 1, false, Some(INCARNATION), false),
    ] {
        let mut cluster = ClusterState::founding(&founders());
        cluster.voters = vec![1, 2, 3];
        let mut log = log(None, (1, cluster), 1);
        log.hard_state = raft::eraftpb::HardState { term: 1, vote: 0, commit: 1 };
        log.terms = vec![(1, 1)];
        let mut core = Core::new(options(log)).unwrap();
        assert!(!core.may_take_part(), "it has seen nobody");
        let incarnation = incarnation.map(Uid::to_bytes).unwrap_or_default();
        let hello = Hello { to: 1, removed, incarnation, ..late_founder(digest) };
        core.greeted(&hello);
        assert_eq!(core.may_take_part(), takes_part, "{story}");
    }
}

/// Node 1, which began alone and has founded `incarnation`; `others` have joined it since.
fn lone_founder(incarnation: Option<Uid>, others: &[u64]) -> Core {
    let initial = BTreeMap::from([(1, "h:1".to_owned())]);
    let mut cluster = ClusterState::founding(&initial);
    for id in [1].iter().chain(others) {
        let directory = Uid(u128::from(*id)).to_bytes();
        cluster.put_member(Member { id: *id, addr: format!("h:{id}"), directory, promote: false });
    }
    cluster.incarnation = incarnation.map(Uid::to_bytes).unwrap_or_default();
    let mut log = log(None, (9, cluster), 9);
    log.identity.digest = founding_digest("ours", &initial);
    log.identity.incarnation = incarnation;
    Core::new(CoreOptions { initial, ..options(log) }).unwrap()
}

#[test]
fn s11_a_lone_founder_that_lost_its_directory_stops_when_its_old_cluster_greets_it() {
    let digest = founding_digest("ours", &BTreeMap::from([(1, "h:1".to_owned())]));
    let (new, old, other) = (Some(Uid(78)), INCARNATION, Uid(1000));
    // Its own cluster; who has joined that; what node 2 belongs to, was founded by, and knows as the directory of node 1.
    for (story, own, others, theirs, digest, recorded, stops) in [
        ("founded again", new, &[][..], old, digest, other, true),
        ("about to found again", None, &[], old, digest, other, true),
        ("others have joined the new cluster", new, &[5], old, digest, other, false),
        ("a cluster of other founders", new, &[], old, digest ^ 1, other, false),
        ("its own cluster", Some(old), &[2], old, digest, Uid(1), false),
        ("the directory that it has", new, &[], old, digest, Uid(1), false),
    ] {
        let mut core = lone_founder(own, others);
        let hello = Hello {
            version: PROTOCOL_VERSION,
            node_id: 2,
            to: 1,
            addr: "h:2".into(),
            directory: Uid(2).to_bytes(),
            digest,
            incarnation: theirs.to_bytes(),
            recorded: recorded.to_bytes(),
            ..Hello::default()
        };
        let welcome = core.greeted(&hello);
        let stop = core.poll().stop;
        assert_eq!(stop.is_some(), stops, "{story}: {}", welcome.reason);
        if let Some(Err(error)) = stop {
            assert_eq!(error.code, ErrorCode::WrongDirectory, "{story}: {error}");
            for part in ["node 2", &old.to_string(), "wiped", "remove node 1"] {
                assert!(error.to_string().contains(part), "{story}: {error}");
            }
            assert_eq!(welcome.verdict, Verdict::ClusterMismatch as i32, "{story}");
        }
    }
}

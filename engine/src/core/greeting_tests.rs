//! S11: who is refused by whom, and in which words.

use std::collections::BTreeMap;

use super::test_cores::{founders, log, options};
use super::{founding_digest, Core, CoreOptions};
use crate::cluster::{ClusterState, Member, Uid};
use crate::error::ErrorCode;
use crate::log::Identity;
use crate::request::Ticket;
use crate::status::{Event, Role};
use crate::wire::{Hello, Verdict, Welcome, PROTOCOL_VERSION};

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
    let (ours, other) = (
        founding_digest("ours", &ClusterState::founding(&founders())),
        founding_digest("another", &ClusterState::founding(&founders())),
    );
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

/// Node 1 of so many founders, of whom these learn, with an empty directory.
fn fresh_founder(members: u64, learners: &[u64]) -> Core {
    let initial: BTreeMap<u64, String> = (1..=members).map(|id| (id, format!("h:{id}"))).collect();
    let cluster = ClusterState::founding_with(&initial, &learners.iter().copied().collect());
    let digest = founding_digest("ours", &cluster);
    let mut log = log(None, (1, cluster), 1);
    log.hard_state = raft::eraftpb::HardState { term: 1, vote: 0, commit: 1 };
    log.terms = vec![(1, 1)];
    log.identity.digest = digest;
    Core::new(CoreOptions { initial, ..options(log) }).unwrap()
}

#[test]
fn s11_a_majority_of_the_initial_voters_founds_and_learners_do_not_count() {
    // Members; of these learners; who has greeted; with that it takes part.
    let cases: [(u64, &[u64], &[u64], bool); 8] = [
        (3, &[], &[3], true),
        (3, &[3], &[3], false),
        (3, &[3], &[2], true),
        (5, &[4, 5], &[4, 5], false),
        (5, &[4, 5], &[2], true),
        (4, &[1, 4], &[2], false),
        (4, &[1, 4], &[2, 3], true),
        (3, &[2, 3], &[], true),
    ];
    for (members, learners, greet, takes_part) in cases {
        let mut core = fresh_founder(members, learners);
        core.tick();
        for id in greet {
            let digest = core.hello(*id).digest;
            core.greeted(&Hello { to: 1, digest, ..stranger(*id, None) });
        }
        core.found_cluster();
        assert_eq!(core.may_take_part(), takes_part, "{members} {learners:?} {greet:?}");
    }
}

#[test]
fn s11_founders_that_disagree_about_who_learns_refuse_each_other_by_name() {
    let digest = |learners: &[u64]| fresh_founder(3, learners).hello(2).digest;
    for (ours, theirs, expected) in [
        (&[3][..], &[3][..], Verdict::Accepted),
        (&[3], &[], Verdict::ClusterMismatch),
        (&[], &[3], Verdict::ClusterMismatch),
        (&[2, 3], &[3], Verdict::ClusterMismatch),
    ] {
        let hello = Hello { to: 1, digest: digest(theirs), ..stranger(2, None) };
        let welcome = fresh_founder(3, ours).greeted(&hello);
        assert_eq!(welcome.verdict, expected as i32, "{ours:?} {theirs:?}: {}", welcome.reason);
    }
    assert_eq!(digest(&[]), founding_digest("ours", &ClusterState::founding(&founders())), "as versions before had it");
}

/// An initial learner that has never come.
const AWAY: u64 = 6;

/// Node 1, which began alone and has founded `incarnation`; `others` have joined it since.
fn lone_founder(incarnation: Option<Uid>, others: &[u64]) -> Core {
    let initial = BTreeMap::from([(1, "h:1".to_owned())]);
    let mut cluster = ClusterState::founding(&initial);
    for id in [1].iter().chain(others) {
        let directory = if *id == AWAY { Vec::new() } else { Uid(u128::from(*id)).to_bytes() };
        cluster.put_member(Member { id: *id, addr: format!("h:{id}"), directory, promote: false });
    }
    cluster.incarnation = incarnation.map(Uid::to_bytes).unwrap_or_default();
    let mut log = log(None, (9, cluster), 9);
    log.identity.digest = founding_digest("ours", &ClusterState::founding(&initial));
    log.identity.incarnation = incarnation;
    Core::new(CoreOptions { initial, ..options(log) }).unwrap()
}

#[test]
fn s11_a_lone_founder_that_lost_its_directory_stops_when_its_old_cluster_greets_it() {
    let digest = founding_digest("ours", &ClusterState::founding(&BTreeMap::from([(1, "h:1".to_owned())])));
    let (new, old, other) = (Some(Uid(78)), INCARNATION, Uid(1000));
    // Its own cluster; who has joined that; what node 2 belongs to, was founded by, and knows as the directory of node 1.
    for (story, own, others, theirs, digest, recorded, stops) in [
        ("founded again", new, &[][..], old, digest, other, true),
        ("about to found again", None, &[], old, digest, other, true),
        ("others have joined the new cluster", new, &[5], old, digest, other, false),
        ("others are named there that never came", new, &[AWAY], old, digest, other, true),
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

/// Of a node that no entry has added.
fn stranger(id: u64, incarnation: Option<Uid>) -> Hello {
    let incarnation = incarnation.map(Uid::to_bytes).unwrap_or_default();
    let directory = Uid(u128::from(id)).to_bytes();
    Hello { node_id: id, addr: format!("h:{id}"), directory, incarnation, ..late_founder(0) }
}

#[test]
fn s11_of_one_who_greets_under_ever_new_names_little_is_kept_and_told() {
    let mut core = joined(founding_digest("ours", &ClusterState::founding(&founders())));
    core.begin_turn(1, 1);
    // It waits to be joined, and has let our stream in.
    core.greeted(&stranger(5, Some(INCARNATION)));
    let hello = Some(stranger(5, Some(INCARNATION)));
    assert!(core.welcomed(5, &Welcome { verdict: Verdict::Accepted as i32, hello, ..Welcome::default() }));
    let (mut told, mut dialled) = (0, BTreeMap::new());
    for incarnation in [Some(Uid(78)), None, Some(INCARNATION)] {
        for id in 100..10_100 {
            core.greeted(&stranger(id, incarnation));
        }
        let actions = core.poll();
        told += actions.events.iter().filter(|event| matches!(event, Event::PeerRefused { .. })).count();
        dialled = actions.peers.unwrap_or(dialled);
        assert!(dialled.len() <= 3 + 64, "{} are dialled", dialled.len());
        assert!(
            [1, 2, 3, 5].iter().all(|id| dialled.contains_key(id)),
            "members and who has answered stay: {dialled:?}"
        );
        if incarnation == Some(INCARNATION) {
            assert!(dialled.contains_key(&10_099), "the oldest made room");
        }
        let kept = (0..10_100).filter(|id| core.greetings.seen(*id).is_some()).count();
        assert!(kept <= 3 + 64, "{kept} are remembered");
    }
    assert!((1..=16).contains(&told), "{told} were told");
    // Later: others are told of, and whoever has never answered is dialled no longer.
    core.begin_turn(61_000_002, 1);
    core.greeted(&stranger(7, Some(Uid(78))));
    core.tick();
    let actions = core.poll();
    assert!(actions.events.iter().any(|event| matches!(event, Event::PeerRefused { peer: 7, .. })));
    dialled = actions.peers.unwrap_or(dialled);
    assert_eq!(dialled.into_keys().collect::<Vec<_>>(), [1, 2, 3, 5]);
    assert!(core.greetings.seen(10_099).is_none());
}

/// Seed 140873112: 1 was wiped, and those that it began with are gone; who greets it takes it for a member still, and has moved on before it
/// hears what became of 1, and dials it no more.
#[test]
fn s11_a_founder_without_its_directory_asks_those_that_greet_it_what_became_of_it() {
    let digest = founding_digest("ours", &ClusterState::founding(&founders()));
    for (story, theirs, incarnation, asks) in [
        ("of the cluster that it was born to", digest, Some(INCARNATION), true),
        ("waits itself", digest, None, false),
        ("of a cluster of other founders", digest ^ 1, Some(INCARNATION), false),
        ("of a cluster that did not say who founded it", 0, Some(INCARNATION), false),
    ] {
        let mut cluster = ClusterState::founding(&founders());
        cluster.voters = vec![1, 2, 3];
        let mut log = log(None, (1, cluster), 1);
        log.hard_state = raft::eraftpb::HardState { term: 1, vote: 0, commit: 1 };
        log.terms = vec![(1, 1)];
        log.identity.digest = digest;
        let mut core = Core::new(options(log)).unwrap();
        let hello = Hello { to: 1, digest: theirs, ..stranger(7, incarnation) };
        core.greeted(&hello);
        let peers = core.poll().peers.unwrap();
        assert_eq!(peers.get(&7).map(String::as_str), asks.then_some("h:7"), "{story}");
        assert!([2, 3].iter().all(|id| peers.contains_key(id)), "{story}: those that it began with may come");
        core.welcomed(7, &Welcome { verdict: Verdict::Removed as i32, hello: Some(hello), ..Welcome::default() });
        assert_eq!(core.status().role == Role::Removed, asks, "{story}");
    }
}

#[test]
fn s11_many_members_that_greet_one_that_waits_all_stay() {
    let mut log = log(None, (0, ClusterState::default()), 0);
    log.identity.digest = 0;
    let mut core = Core::new(CoreOptions { initial: BTreeMap::new(), ..options(log) }).unwrap();
    let ticket = Ticket {
        reserved_id: 1,
        raft_addr: "h:1".into(),
        leader_id: 1000,
        leader_addr: "h:1000".into(),
        peers: (1000..1100).map(|id| (id, format!("h:{id}"))).collect(),
        incarnation: INCARNATION.to_string(),
    };
    core.begin_turn(1, 1);
    core.become_member(1, &ticket, None);
    for id in (1000..1100).chain(5000..6000) {
        core.greeted(&Hello { to: 1, ..stranger(id, Some(INCARNATION)) });
    }
    core.begin_turn(61_000_002, 1);
    core.tick();
    let peers = core.poll().peers.unwrap();
    assert_eq!(peers.into_keys().collect::<Vec<_>>(), (1000..1100).collect::<Vec<_>>());
}

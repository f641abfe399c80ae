//! S11: who is refused by whom, and in which words.

use std::collections::BTreeMap;

use prost::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::test_cores::{founders, leader, log, message, options};
use super::{founding_digest, new_log, Context, Core, CoreOptions, Kind, Origin};
use crate::cluster::{ClusterState, Member, Uid};
use crate::entry::Entry;
use crate::error::ErrorCode;
use crate::log::Identity;
use crate::request::{Request, Ticket};
use crate::status::{Event, Role};
use crate::wire::{Forward, Hello, OutcomeReport, Verdict, Welcome, PROTOCOL_VERSION};

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

/// A member of the cluster with the directory that is recorded for it.
fn member(id: u64, directory: u64) -> Hello {
    Hello { directory: Uid(u128::from(directory)).to_bytes(), ..stranger(id, Some(INCARNATION)) }
}

#[test]
fn s11_whoever_greets_is_told_who_it_is_taken_for() {
    let other = Uid(78).to_bytes();
    for (story, hello, verdict) in [
        ("a member", member(2, 2), Verdict::Accepted),
        (
            "one that has yet to take over the cluster's number",
            Hello { incarnation: vec![], ..member(2, 2) },
            Verdict::Later,
        ),
        ("one whose directory was wiped", Hello { incarnation: vec![], ..member(2, 5) }, Verdict::WrongDirectory),
        ("one whose directory was wiped and has joined again", member(2, 5), Verdict::WrongDirectory),
        ("one that means somebody else", Hello { to: 5, ..member(2, 2) }, Verdict::WrongNode),
        ("one with our own id", member(4, 2), Verdict::WrongNode),
        ("one without an id", member(0, 2), Verdict::WrongNode),
        ("one of another cluster", Hello { incarnation: other.clone(), ..member(2, 2) }, Verdict::ClusterMismatch),
        ("one that was removed", member(9, 9), Verdict::Removed),
        ("one that was removed, wiped", Hello { incarnation: vec![], ..member(9, 9) }, Verdict::Removed),
        // The id was spent here, and is somebody else's there.
        ("one of another cluster, 9 there", Hello { incarnation: other, ..member(9, 9) }, Verdict::ClusterMismatch),
        ("one of an old version", Hello { version: 0, ..member(2, 2) }, Verdict::Version),
    ] {
        let mut core = joined(1);
        let mut cluster = core.cluster().clone();
        cluster.drop_member(9);
        core.set_cluster(9, cluster);
        let welcome = core.greeted(&hello);
        assert_eq!(welcome.verdict, verdict as i32, "{story}: {}", welcome.reason);
        let taken = matches!(verdict, Verdict::Accepted | Verdict::Later);
        assert_eq!(core.greetings.seen(hello.node_id).is_some(), taken, "{story}: nothing of it is kept");
    }
}

#[test]
fn s11_of_an_even_number_of_founders_half_are_no_majority() {
    let initial: BTreeMap<u64, String> = (1..=4).map(|id| (id, format!("h:{id}"))).collect();
    let (hard_state, cluster, snapshot) = new_log(&ClusterState::founding(&initial));
    let mut log = log(snapshot, (cluster.index, cluster.cluster), 1);
    (log.hard_state, log.terms) = (hard_state, vec![]);
    let mut core = Core::new(CoreOptions { initial, ..options(log) }).unwrap();
    let other = core.greeted(&Hello { to: 1, digest: 2, ..stranger(4, None) });
    assert_eq!(other.verdict, Verdict::ClusterMismatch as i32, "{}", other.reason);
    for (id, takes_part) in [(2, false), (3, true)] {
        core.greeted(&Hello { to: 1, digest: 1, ..stranger(id, None) });
        assert_eq!(core.may_take_part(), takes_part, "it has seen {id}");
    }
}

/// Node 2 asks this node for its vote, with a log that is newer: whether it votes, or says anything.
fn moved_by_a_candidate(core: &mut Core) -> bool {
    let id = core.id();
    core.poll();
    let before = core.hard_state();
    for kind in [MessageType::MsgRequestPreVote, MessageType::MsgRequestVote] {
        core.receive(2, Message { to: id, index: 90, log_term: 4, ..message(kind, 2, 5) });
    }
    !core.poll().messages.is_empty() || core.hard_state() != before
}

#[test]
fn s11_who_takes_no_part_yet_does_not_vote() {
    let (hard_state, cluster, snapshot) = new_log(&ClusterState::founding(&founders()));
    let mut founding = log(snapshot, (cluster.index, cluster.cluster), 1);
    (founding.hard_state, founding.terms) = (hard_state, vec![]);
    let mut founder = Core::new(options(founding)).unwrap();
    assert!(!moved_by_a_candidate(&mut founder), "a founder that has seen nobody");

    let (hard_state, cluster, snapshot) = new_log(&ClusterState::default());
    let mut waits = log(snapshot, (cluster.index, cluster.cluster), 0);
    (waits.hard_state, waits.identity.digest) = (hard_state, 0);
    let mut waiting = Core::new(CoreOptions { initial: BTreeMap::new(), ..options(waits) }).unwrap();
    assert!(!moved_by_a_candidate(&mut waiting), "one that waits to be joined");
    waiting.become_member(1, &ticket(INCARNATION), None);
    assert!(!moved_by_a_candidate(&mut waiting), "one that has a ticket, and no log");

    assert!(moved_by_a_candidate(&mut joined(1)), "a member");
}

fn ticket(incarnation: Uid) -> Ticket {
    Ticket {
        reserved_id: 1,
        raft_addr: "h:1".into(),
        leader_id: 2,
        leader_addr: "h:2".into(),
        peers: BTreeMap::new(),
        incarnation: incarnation.to_string(),
    }
}

#[test]
fn s11_a_directory_joins_no_second_cluster() {
    for (story, mut core, incarnation, refused) in [
        ("a member asks again", joined(1), INCARNATION, None),
        ("a member, with a ticket of another cluster", joined(1), Uid(78), Some(ErrorCode::ClusterMismatch)),
        ("a founder that has not founded", lone_founder(None, &[]), Uid(78), Some(ErrorCode::Membership)),
    ] {
        let before = core.hello(2).incarnation;
        core.become_member(1, &ticket(incarnation), None);
        let ended = core.poll().completions.pop().and_then(|completion| completion.result.err());
        assert_eq!(ended.map(|error| error.code), refused, "{story}");
        assert_eq!(core.hello(2).incarnation, before, "{story}");
    }
}

#[test]
fn s11_a_refusal_counts_only_from_the_node_and_the_cluster_that_it_is_meant_to_come_from() {
    let other = Some(Uid(78));
    let from = |id, incarnation| Hello { to: 4, ..stranger(id, incarnation) };
    // Who answers, and what; that it is removed, or what is told of the node that it dialled.
    for (story, hello, verdict, removed, told) in [
        ("its own cluster has removed it", from(2, Some(INCARNATION)), Verdict::Removed, true, false),
        ("another cluster has moved to that address", from(2, other), Verdict::Removed, false, false),
        ("another node has", from(3, Some(INCARNATION)), Verdict::Removed, false, true),
        ("another node has, and would take it", from(1, Some(INCARNATION)), Verdict::Accepted, false, true),
        // Its directory is part of the cluster: what one of them says does not stop it.
        ("its directory is another's", from(2, Some(INCARNATION)), Verdict::WrongDirectory, false, true),
    ] {
        let mut core = joined(1);
        let welcome = Welcome { verdict: verdict as i32, hello: Some(hello), ..Welcome::default() };
        assert!(!core.welcomed(2, &welcome), "{story}: nothing is sent there");
        assert_eq!(core.status().role == Role::Removed, removed, "{story}");
        let actions = core.poll();
        assert!(actions.stop.is_none_or(|end| end.is_ok()), "{story}: it goes on");
        let refused = actions.events.iter().any(|event| matches!(event, Event::PeerRefused { peer: 2, .. }));
        assert_eq!(refused, told, "{story}");
    }
}

#[test]
fn s11_the_directory_that_was_recorded_first_stays() {
    let mut core = joined(1);
    let record = |index, directory: u128| {
        let origin = Origin { node: 1, start: 1, sequence: u64::MAX };
        let context = Context { kind: Kind::RecordDirectory, time_us: 0, origin }.encode();
        let data = Member { id: 3, directory: Uid(directory).to_bytes(), ..Member::default() }.encode_to_vec();
        Entry { index, term: 2, context, data: data.into(), ..Entry::default() }
    };
    // Two leaders have each heard of another one: the first has voted since.
    for (index, directory) in [(10, 3), (11, 33)] {
        core.apply_own(&record(index, directory));
        assert_eq!(core.cluster().recorded_directory(3), Some(Uid(3)));
    }
}

#[test]
fn s11_a_member_is_listened_to_with_the_directory_that_is_recorded() {
    // Node 3 has never come, by the members that node 4 knows.
    let mut core = joined(1);
    let admitted = |core: &Core| [1, 3, 4, 5].map(|id| core.admits(id));
    assert_eq!(admitted(&core), [true, false, false, true], "it may lag behind the entry that adds 5");
    core.greeted(&Hello { incarnation: vec![], ..member(3, 3) });
    assert!(!core.admits(3), "it knows of no cluster");
    core.greeted(&member(3, 3));
    assert!(core.admits(3), "it may lag behind the entry that records it");
    for (directory, admitted) in [(3, true), (33, false)] {
        let mut cluster = core.cluster().clone();
        cluster.member_mut(3).unwrap().directory = Uid(directory).to_bytes();
        core.set_cluster(10, cluster);
        assert_eq!(core.admits(3), admitted, "{directory} was recorded");
    }
    let mut cluster = core.cluster().clone();
    cluster.drop_member(1);
    core.set_cluster(11, cluster);
    assert!(!core.admits(1), "it was removed");
}

#[test]
fn s11_until_the_entry_that_founds_is_applied_those_that_it_names_are_listened_to() {
    let (_, cluster, _) = new_log(&ClusterState::founding(&founders()));
    let mut core = Core::new(options(log(None, (9, cluster.cluster), 9))).unwrap();
    core.greetings.set_heard(Some(BTreeMap::from([(1, Uid(1)), (2, Uid(2))])));
    assert_eq!([2, 3].map(|id| core.admits(id)), [true, false], "it names 2");
    core.greeted(&Hello { to: 1, digest: 1, ..stranger(3, None) });
    assert!(!core.admits(3));
    core.greeted(&Hello { to: 1, digest: 1, directory: Uid(22).to_bytes(), ..stranger(2, None) });
    assert!(!core.admits(2), "with another directory");
}

/// Node 1 leads, and no entry records the directory of node 3.
#[test]
fn s11_a_leader_neither_hears_nor_tells_a_member_that_is_not_recorded() {
    let mut core = leader(3, true);
    let mut cluster = core.cluster().clone();
    cluster.member_mut(3).unwrap().directory.clear();
    core.set_cluster(10, cluster);
    // It says that it is of this cluster.
    core.greeted(&Hello { to: 1, incarnation: Uid(9).to_bytes(), ..stranger(3, None) });
    core.poll();

    core.receive(3, message(MessageType::MsgHeartbeatResponse, 3, 9));
    core.receive_forward(3, Forward { term: 3, start: 5, number: 1, proposals: vec![], to_start: 7 });
    core.receive_outcome_report(3, &OutcomeReport { term: 3, ..OutcomeReport::default() });
    assert!(core.accepts_snapshot(3, 100).is_err());
    assert_eq!((core.is_leader(), core.term()), (true, 3), "a later term of its own moves nobody");
    core.submit(1, Request::Propose("x".into()), None);
    for turn in 1..30 {
        core.begin_turn(turn * 100_000, 1);
        core.tick();
        core.receive(2, message(MessageType::MsgHeartbeatResponse, 2, 3));
        let actions = core.poll();
        actions.writes.last().into_iter().for_each(|write| core.written(write.number));
        assert!(actions.messages.iter().all(|message| message.to == 2), "{:?}", actions.messages);
    }
    assert!(core.is_leader());
}

/// Node 1 leads. Node 4 was no member when it greeted; now an entry has added it, and its stream stays.
#[test]
fn s11_who_greeted_before_it_was_a_member_is_recorded_if_it_said_that_it_is_of_this_cluster() {
    for (story, incarnation, recorded) in [
        ("it is of this cluster", Some(Uid(9)), true),
        // Perhaps it was born to another founding, and nobody has looked yet: as a member it says so once more.
        ("it knew of no cluster", None, false),
        ("it was of another one", Some(Uid(10)), false),
    ] {
        let mut core = leader(3, true);
        core.see(&Hello { to: 1, ..stranger(4, incarnation) });
        let mut cluster = core.cluster().clone();
        cluster.put_member(Member { id: 4, addr: "h:4".into(), ..Member::default() });
        core.set_cluster(10, cluster);
        core.poll();
        let mut entries = Vec::new();
        // Nothing of it is committed meanwhile: it is recorded once all the same.
        for turn in 1..4 {
            core.begin_turn(turn * 1000, 1);
            core.tick();
            let written = core.poll().writes;
            written.last().into_iter().for_each(|write| core.written(write.number));
            entries
                .extend(written.into_iter().filter_map(|write| write.entries).flat_map(|entries| (*entries).clone()));
        }
        let names = |entry: &Entry| (Context::of(entry).unwrap().kind, Member::decode(&entry.data[..]).unwrap());
        let record = Member { id: 4, directory: Uid(4).to_bytes(), ..Member::default() };
        let expected = if recorded { vec![(Kind::RecordDirectory, record)] } else { Vec::new() };
        assert_eq!(entries.iter().map(names).collect::<Vec<_>>(), expected, "{story}");
    }
}

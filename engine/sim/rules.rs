//! One named scenario for each rule of docs/rules.md that is easily staged. The oracle watches all of them besides.

use raftify_engine::request::{MemberChange, Reply, Request};
use raftify_engine::status::Role;
use raftify_engine::{Committed, ErrorCode};

use crate::sim::act::Act;
use crate::sim::clients::Op;
use crate::sim::files::Spoil;
use crate::sim::finish;
use crate::sim::lie::Lie;
use crate::sim::world::{Event, Profile, World, MILLI, SECOND};

fn quiet(nodes: u64) -> World {
    World::scripted(7, Profile::quiet(nodes))
}

/// Takes a snapshot every few entries and keeps little before it.
fn snapshotting(nodes: u64) -> Profile {
    let mut profile = Profile::quiet(nodes);
    profile.config.snapshot_entries = 10;
    profile.config.trailing_entries = 2;
    profile
}

#[test]
fn a_plain_cluster_elects_proposes_and_applies() {
    for nodes in 1..=7 {
        let mut world = quiet(nodes);
        let leader = world.settle();
        for id in 1..=nodes {
            world.done(id, 10);
        }
        assert_eq!(world.leader(), Some(leader), "nothing was wrong, nobody should have been replaced");
        finish(&mut world);
    }
}

#[test]
fn s1_a_single_voter_tells_its_learner_nothing_before_its_term_is_durable() {
    for delay in 0..40 {
        let mut profile = Profile::quiet(1);
        profile.sync = (30 * MILLI, 60 * MILLI);
        let mut world = World::scripted(delay, profile);
        world.settle();
        world.grow(1, "host:2");
        let demote = MemberChange::Demote { id: 2 };
        let change = Request::ChangeMembers(vec![demote]);
        let token = world.ask(1, Op::Change, change, Some(5 * SECOND)).unwrap();
        world.outcome(token).unwrap();
        // It wins again inside `campaign()`, and loses power before or after that term is on its disk.
        world.crash(1, false, 10 * MILLI);
        world.run_until_so(5 * SECOND, |w| w.leader() == Some(1));
        world.run_for(delay * 3 * MILLI);
        world.crash(1, true, 10 * MILLI);
        world.run_until_so(5 * SECOND, |w| w.leader() == Some(1));
        finish(&mut world);
    }
}

#[test]
fn s2_slow_disks_of_followers_topple_no_leader() {
    let mut world = quiet(3);
    let leader = world.settle();
    let term = world.term(leader);
    let until = world.now + 3 * SECOND;
    for id in world.others(leader) {
        world.hosts.get_mut(&id).unwrap().disk.hung_until = until;
    }
    let (token, _) = world.propose(leader, Some(10 * SECOND)).unwrap();
    world.run_for(2 * SECOND);
    assert_eq!((world.leader(), world.term(leader)), (Some(leader), term));
    assert!(world.result(token).is_none(), "nothing can be durable on a majority");
    world.outcome(token).unwrap();
    assert_eq!((world.leader(), world.term(leader)), (Some(leader), term));
    finish(&mut world);
}

#[test]
fn s3_what_a_follower_says_twice_waits_twice_for_the_same_write() {
    let mut profile = Profile::quiet(3);
    // Each append comes a second time, and what raft answers then is a Ready that writes nothing.
    profile.duplicates = 1.0;
    let mut world = World::scripted(7, profile);
    let leader = world.settle();
    world.done(leader, 3);
    let until = world.now + 3 * SECOND;
    let followers = world.others(leader);
    for id in &followers {
        world.hosts.get_mut(id).unwrap().disk.hung_until = until;
    }
    let (token, _) = world.propose(leader, Some(10 * SECOND)).unwrap();
    world.run_for(2 * SECOND);
    let behind = |id: &u64| world.hosts[id].disk.synced.last_index() < world.hosts[&leader].disk.synced.last_index();
    assert!(followers.iter().all(behind), "both have it in their hands, and not on their disks");
    assert!(world.result(token).is_none(), "no acknowledgement passed the disk");
    world.outcome(token).unwrap();
    finish(&mut world);
}

#[test]
fn s4_a_leader_whose_disk_hangs_gives_up_and_does_not_campaign() {
    let mut world = quiet(3);
    let leader = world.settle();
    world.done(leader, 3);
    let until = world.now + 4 * SECOND;
    world.hosts.get_mut(&leader).unwrap().disk.hung_until = until;
    let (token, _) = world.propose(leader, Some(10 * SECOND)).unwrap();
    let others = world.others(leader);
    world.run_for(SECOND);
    let next = world.settle_among(&others);
    world.done(next, 5);
    assert!(world.now < until, "the others serve while the disk hangs");
    let hung = world.hosts[&leader].life.as_ref().unwrap();
    assert!(matches!(hung.core.status().role, Role::Follower), "it follows and does not campaign");
    world.outcome(token).ok();
    finish(&mut world);
}

#[test]
fn s5_what_is_read_at_open_survives_a_power_loss_right_after() {
    for seed in 0..30 {
        let mut profile = Profile::quiet(3);
        profile.sync = (5 * MILLI, 20 * MILLI);
        let mut world = World::scripted(seed, profile);
        let leader = world.settle();
        for _ in 0..20 {
            world.propose(leader, Some(2 * SECOND));
        }
        world.run_for(seed * MILLI);
        (1..=3).for_each(|id| world.crash(id, false, MILLI));
        world.run_for(20 * MILLI + seed * 10 * MILLI);
        (1..=3).for_each(|id| world.crash(id, true, MILLI));
        finish(&mut world);
    }
}

#[test]
fn s6_a_crash_at_any_moment_of_installing_a_snapshot_is_survived() {
    for step in 0..60 {
        for power in [false, true] {
            let mut profile = snapshotting(3);
            profile.sync = (MILLI, 5 * MILLI);
            profile.snapshot_file = (2 * MILLI, 4 * MILLI);
            let mut world = World::scripted(step, profile);
            let leader = world.settle();
            world.done(leader, 5);
            let lags = world.others(leader)[0];
            world.kill(lags, power);
            world.done(leader, 60);
            world.after(0, Event::Restart(lags));
            let behind = world.hosts[&lags].disk.synced.last_index();
            let fed = |w: &mut World| w.hosts[&lags].disk.files.newest() > behind;
            assert!(world.run_until_so(5 * SECOND, fed), "it needs a snapshot");
            world.run_for(step * 300);
            world.crash(lags, power, MILLI);
            finish(&mut world);
        }
    }
}

#[test]
fn s6_a_spoiled_snapshot_is_never_restored_and_an_older_one_only_where_the_log_goes_on_from_it() {
    for how in [Spoil::Flip(500), Spoil::Cut(700), Spoil::Gone] {
        for (trailing, all, starts) in [(15, false, true), (15, true, false), (2, false, false)] {
            let mut profile = snapshotting(3);
            profile.config.trailing_entries = trailing;
            profile.wipes = 1;
            let mut world = World::scripted(5, profile);
            let leader = world.settle();
            for _ in 0..4 {
                world.done(leader, 12);
                world.run_for(200 * MILLI);
            }
            let node = world.others(leader)[0];
            world.perform(Act::SpoilSnapshot { node, how, all, down: 50 * MILLI });
            world.run_for(SECOND);
            assert_eq!(world.place(node).is_some(), starts, "{how:?}, {trailing} entries are kept, all spoiled: {all}");
            // The others go on; the lost one is replaced by an operator.
            world.done(leader, 5);
            if !starts {
                let changes = vec![MemberChange::Remove { id: node }];
                let token = world.ask(leader, Op::Change, Request::ChangeMembers(changes), Some(5 * SECOND)).unwrap();
                world.outcome(token).unwrap();
                let joined = world.grow(leader, "host:9");
                world.done(joined, 3);
            }
            finish(&mut world);
        }
    }
}

#[test]
fn s7_a_durable_machine_that_comes_back_behind_hears_each_entry_once() {
    for seed in 0..30 {
        let mut profile = snapshotting(3);
        profile.durable_machine = true;
        profile.config.trailing_entries = seed % 15;
        let mut world = World::scripted(seed, profile);
        let leader = world.settle();
        for round in 0..3 {
            world.done(leader, 7);
            (1..=3).for_each(|id| world.crash(id, round == 1, 5 * MILLI));
            world.run_until_so(SOON, |w| w.leader().is_some());
            world.settle();
        }
        finish(&mut world);
    }
}

#[test]
fn s11_a_fresh_founder_alone_neither_campaigns_nor_votes() {
    let mut world = quiet(3);
    world.hosts.values_mut().skip(1).for_each(|h| h.retired = true);
    world.run_for(10 * SECOND);
    assert_eq!((world.leader(), world.term(1)), (None, 1));
    world.hosts.values_mut().for_each(|h| h.retired = false);
    world.after(0, Event::Restart(2));
    world.run_until_so(SOON, |w| w.leader().is_some());
    let leader = world.leader().expect("two of three found the cluster");
    world.done(leader, 3);
    let recorded = |w: &World| w.hosts[&leader].life.as_ref().unwrap().core.cluster().recorded_directory(3).is_some();
    assert!(!recorded(&world));
    // The latecomer is recorded by an entry, and serves.
    world.after(0, Event::Restart(3));
    world.settle();
    assert!(recorded(&world));
    world.done(3, 3);
    finish(&mut world);
}

#[test]
fn s11_no_change_is_planned_before_it_is_known_who_has_joined() {
    for wait in 0..12 {
        let mut profile = Profile::quiet(4);
        profile.delay = (4 * MILLI, 5 * MILLI);
        // The founding entry is committed well after the first one of the term.
        (profile.config.max_size_per_msg, profile.config.max_inflight_msgs) = (1, 1);
        let mut world = World::scripted(wait, profile);
        world.hosts.get_mut(&4).unwrap().retired = true;
        assert!(world.run_until_so(SOON, |w| w.leader().is_some()));
        let leader = world.leader().unwrap();
        world.run_for(wait * 2 * MILLI);
        // This would leave the voting to the leader and to one who has never joined.
        let change =
            world.others(leader).into_iter().filter(|id| *id != 4).map(|id| MemberChange::Remove { id }).collect();
        let token = world.ask(leader, Op::Change, Request::ChangeMembers(change), Some(5 * SECOND)).unwrap();
        let error = world.outcome(token).unwrap_err();
        assert!(error.message.contains("[4] have never joined"), "{error}");
        world.hosts.get_mut(&4).unwrap().retired = false;
        world.after(0, Event::Restart(4));
        finish(&mut world);
    }
}

#[test]
fn s11_every_member_knows_which_founding_the_cluster_is_of_also_one_that_joined() {
    let mut world = World::scripted(5, snapshotting(3));
    let leader = world.settle();
    world.done(leader, 30);
    let joined = world.grow(leader, "host:4");
    world.settle();
    let founding = raftify_engine::core::founding_digest("sim", &world.hosts[&1].founding);
    for id in [1, 2, 3, joined] {
        let core = &world.hosts[&id].life.as_ref().unwrap().core;
        assert_eq!(core.cluster().founding_digest, founding, "node {id}");
    }
    finish(&mut world);
}

#[test]
fn s11_a_wiped_directory_neither_votes_nor_acknowledges() {
    let mut world = quiet(3);
    world.profile.wipes = 1;
    let leader = world.settle();
    world.done(leader, 5);
    let (wiped, other) = (world.others(leader)[0], world.others(leader)[1]);
    world.wipe(wiped);
    world.run_for(2 * SECOND);
    world.done(leader, 5);
    // With the other one gone it would have to be the wiped one's word.
    world.kill(other, false);
    world.hosts.get_mut(&other).unwrap().retired = true;
    let (token, _) = world.propose(leader, Some(3 * SECOND)).unwrap();
    let error = world.outcome(token).unwrap_err();
    assert_ne!(error.committed, Committed::Yes, "{error}");
    world.hosts.get_mut(&other).unwrap().retired = false;
    world.after(0, Event::Restart(other));
    finish(&mut world);
}

#[test]
fn s12_ids_are_never_handed_out_twice_and_spent_ones_are_refused() {
    let mut world = quiet(3);
    let leader = world.settle();
    let joined = world.grow(leader, "host:4");
    assert_eq!(joined, 4);
    let remove = raftify_engine::request::MemberChange::Remove { id: joined };
    let change = raftify_engine::request::Request::ChangeMembers(vec![remove]);
    let token = world.ask(leader, Op::Change, change, Some(5 * SECOND)).unwrap();
    world.outcome(token).unwrap();
    let token = world.join(leader, joined, false, Some(5 * SECOND)).unwrap();
    let error = world.outcome(token).unwrap_err();
    assert_eq!((error.code, error.committed), (ErrorCode::Membership, Committed::No), "{error}");
    assert_eq!(world.grow(leader, "host:5"), 5);
    finish(&mut world);
}

#[test]
fn s13_a_member_added_after_the_newest_snapshot_gets_a_newer_one() {
    let mut world = World::scripted(1, snapshotting(3));
    let leader = world.settle();
    world.done(leader, 60);
    let before = world.hosts[&leader].life.as_ref().unwrap().core.positions().snapshot;
    assert!(before > 10, "the log is compacted");
    let joined = world.grow(leader, "host:4");
    world.done(joined, 3);
    finish(&mut world);
}

#[test]
fn s14_a_slow_state_machine_holds_up_no_election() {
    let mut world = quiet(3);
    let leader = world.settle();
    world.profile.machine = (4 * SECOND, 5 * SECOND);
    for _ in 0..30 {
        world.propose(leader, None);
    }
    world.run_for(300 * MILLI);
    world.kill(leader, false);
    world.hosts.get_mut(&leader).unwrap().retired = true;
    let others = world.others(leader);
    let start = world.now;
    world.settle_among(&others);
    assert!(world.now - start < 2 * SECOND, "the election waited for the machine");
    world.hosts.get_mut(&leader).unwrap().retired = false;
    world.calm();
    finish(&mut world);
}

#[test]
fn s15_a_forward_that_comes_twice_is_taken_once() {
    let mut profile = Profile::quiet(3);
    profile.duplicates = 1.0;
    let mut world = World::scripted(3, profile);
    let leader = world.settle();
    let follower = world.others(leader)[0];
    for _ in 0..20 {
        world.done(follower, 10);
    }
    finish(&mut world);
}

#[test]
fn s16_a_deposed_leader_answers_no_read_and_a_lost_round_is_asked_again() {
    let mut world = quiet(3);
    let old = world.settle();
    world.done(old, 3);
    world.cut_off(old);
    let others = world.others(old);
    let early = world.read(old, Some(3 * SECOND)).unwrap();
    world.run_for(500 * MILLI);
    let next = world.settle_among(&others);
    world.done(next, 5);
    let late = world.read(old, Some(SECOND)).unwrap();
    assert!(world.outcome(late).is_err());
    assert!(world.outcome(early).is_err());
    // Rounds whose messages are lost come again with another context.
    world.network.cut.clear();
    world.profile.loss = 0.4;
    for _ in 0..20 {
        let token = world.read(next, Some(10 * SECOND)).unwrap();
        if let Ok(reply) = world.outcome(token) {
            assert!(matches!(reply, Reply::ReadIndex(_)));
        }
    }
    world.calm();
    finish(&mut world);
}

#[test]
fn a_leader_that_is_to_leave_hands_over_to_one_that_stays() {
    for leaver in 1..=3 {
        let mut world = quiet(3);
        let leader = world.settle();
        let other = world.others(leader)[leaver as usize % 2];
        let changes = vec![MemberChange::Remove { id: other }, MemberChange::Demote { id: leader }];
        let token = world.ask(leader, Op::Change, Request::ChangeMembers(changes), Some(5 * SECOND)).unwrap();
        let term = world.term(leader);
        world.outcome(token).unwrap();
        let next = world.leader().unwrap();
        assert!(next != leader && next != other && world.term(next) <= term + 1, "one hand-over is enough");
        finish(&mut world);
    }
}

/// Makes the machine of this node lie about the next commands.
fn lies(world: &mut World, id: u64, raises: bool) {
    let from = world.hosts[&id].life.as_ref().unwrap().core.applied() + 1;
    world.hosts.get_mut(&id).unwrap().lie = Some(Lie { from, raises, told: None });
}

/// Proposes until this node has stopped.
fn until_found_out(world: &mut World, id: u64) {
    for _ in 0..30 {
        let Some(leader) = world.leader() else {
            world.run_for(SECOND / 10);
            continue;
        };
        let token = world.propose(leader, Some(SECOND)).unwrap().0;
        world.run_until_so(2 * SECOND, |w| w.result(token).is_some());
        if world.hosts[&id].life.is_none() {
            return;
        }
    }
    panic!("node {id} is not found out{}", world.describe());
}

#[test]
fn s17_a_follower_whose_commands_come_to_something_else_stops_and_the_others_go_on() {
    for (raises, verify_results, window) in
        [(true, false, 8192), (true, false, 4), (false, true, 8192), (true, true, 7)]
    {
        let mut profile = Profile::quiet(3);
        (profile.config.verify_results, profile.config.outcomes_window) = (verify_results, window);
        let mut world = World::scripted(7, profile);
        let leader = world.settle();
        world.done(leader, 20);
        let follower = world.others(leader)[0];
        lies(&mut world, follower, raises);
        until_found_out(&mut world, follower);
        assert_eq!(world.leader(), Some(leader), "the others go on");
        world.done(leader, 20);
        finish(&mut world);
    }
}

#[test]
fn s17_a_leader_with_which_the_majority_disagrees_is_the_one_that_stops() {
    for nodes in [3, 5] {
        let mut world = quiet(nodes);
        let leader = world.settle();
        world.done(leader, 20);
        lies(&mut world, leader, true);
        until_found_out(&mut world, leader);
        let others = world.others(leader);
        let next = world.settle_among(&others);
        world.done(next, 20);
        finish(&mut world);
    }
}

#[test]
fn s17_a_node_that_was_stopped_and_comes_to_the_same_when_it_starts_again_is_taken_back() {
    let mut world = quiet(3);
    let leader = world.settle();
    world.done(leader, 20);
    let follower = world.others(leader)[0];
    lies(&mut world, follower, true);
    until_found_out(&mut world, follower);
    let host = world.hosts.get_mut(&follower).unwrap();
    (host.lie, host.retired) = (None, false);
    world.after(0, Event::Restart(follower));
    world.settle();
    world.done(follower, 20);
    world.run_for(5 * SECOND);
    assert!(world.hosts[&follower].life.is_some(), "it was stopped once, not for ever");
    finish(&mut world);
}

#[test]
fn s17_results_are_compared_only_where_the_cluster_says_so() {
    let mut world = quiet(3);
    let leader = world.settle();
    let follower = world.others(leader)[0];
    lies(&mut world, follower, false);
    world.done(leader, 50);
    world.run_for(5 * SECOND);
    assert!(world.hosts[&follower].life.is_some());
}

#[test]
fn s17_a_node_that_took_a_snapshot_goes_on_with_its_sum_and_is_found_out_by_it() {
    let mut world = World::scripted(7, snapshotting(3));
    let leader = world.settle();
    let late = world.others(leader)[0];
    world.done(leader, 5);
    world.crash(late, true, 3 * SECOND);
    world.done(leader, 60);
    assert!(world.run_until_so(SOON, |w| w.settled().is_some()));
    world.done(leader, 20);
    assert!(world.hosts[&late].life.is_some(), "a snapshot's sum is the one that those who replayed have");
    lies(&mut world, late, true);
    until_found_out(&mut world, late);
    world.done(leader, 5);
    finish(&mut world);
}

#[test]
fn s18_appends_that_do_not_fit_a_narrow_link_go_again_and_hold_up_no_heartbeat() {
    let mut profile = Profile::quiet(3);
    profile.padding = 3000;
    profile.config.max_size_per_msg = 4096;
    let mut world = World::scripted(7, profile);
    let leader = world.settle();
    let term = world.term(leader);
    // Each append takes a third of an election timeout and more, and few may wait.
    world.perform(Act::Narrow { node: leader, rate: 50, room: 8000, long: 30 * SECOND });
    let asked: Vec<_> = (0..40).filter_map(|_| world.propose(leader, Some(25 * SECOND))).collect();
    for (token, _) in asked {
        if let Err(error) = world.outcome(token) {
            assert_eq!(error.code, ErrorCode::ApplyFailed, "{error}");
        }
    }
    assert_eq!((world.leader(), world.term(leader)), (Some(leader), term), "heartbeats pass the appends");
    assert!(world.clients.counts["sends that did not fit"] > 0);
    finish(&mut world);
}

/// S20: what one machine and its links draw for themselves disturbs no other.
#[test]
fn s20_what_happens_to_one_node_alone_is_drawn_from_nobody_elses_stream() {
    let run = |fault: Option<Act>| {
        let mut world = quiet(3);
        world.cut_off(3);
        let leader = world.settle_among(&[1, 2]);
        let other = 3 - leader;
        if let Some(act) = fault {
            world.perform(act);
        }
        world.propose(3, Some(SECOND));
        let mut seen = Vec::new();
        for id in [leader, other].repeat(20) {
            let token = world.propose(id, Some(SECOND)).unwrap().0;
            seen.push(format!("{:?} at {}", world.outcome(token), world.now));
        }
        let draws = &mut world.draws;
        let links = [(1, 2), (2, 1)].map(|(from, to)| draws.link(from, to).next());
        let nodes = [1, 2].map(|id| (draws.disk(id).next(), draws.machine(id).next(), draws.node(id).next()));
        (seen, links, nodes)
    };
    let node = 3;
    let alone = run(None);
    for act in [
        Act::Crash { node, power: true, down: 50 * MILLI },
        Act::CrashTwice { node, between: 5 * MILLI, down: 50 * MILLI },
        Act::SlowDisk { node, by: 20 * MILLI, long: SECOND },
        Act::FailSync { node, down: 100 * MILLI },
        Act::Snapshot { node, timeout: None },
        Act::Propose { node, first: 1, count: 20, padding: 10, timeout: None, retries: 0, customer: 0 },
    ] {
        assert_eq!(run(Some(act.clone())), alone, "{act:?}");
    }
}

const SOON: u64 = crate::sim::script::SOON;

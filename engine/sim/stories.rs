//! Named scenarios of what operators live through: disks that go bad, members that are wiped, moved, removed and come again.

use std::collections::BTreeMap;
use std::time::Duration;

use raftify_engine::request::{Reply, Request};
use raftify_engine::status::Role;
use raftify_engine::Committed;

use crate::sim::act::{Act, Alter};
use crate::sim::clients::Op;
use crate::sim::finish;
use crate::sim::world::{Event, Profile, World, MILLI, SECOND};

const LONG: Option<u64> = Some(10 * SECOND);

fn snapshotting(nodes: u64) -> Profile {
    let mut profile = Profile::quiet(nodes);
    profile.config.snapshot_entries = 10;
    profile.config.trailing_entries = 2;
    profile
}

impl World {
    /// Asks for a change of members, again until it is done.
    pub fn change(&mut self, via: u64, changes: &[Alter]) {
        for _ in 0..10 {
            let changes = changes.iter().map(Alter::change).collect();
            let token = self.ask(via, Op::Change, Request::ChangeMembers(changes), LONG).unwrap();
            if self.outcome(token).is_ok() {
                return;
            }
        }
        panic!("the members do not change{}", self.describe());
    }

    pub fn voters(&self, at: u64) -> Vec<u64> {
        self.hosts[&at].life.as_ref().map_or(Vec::new(), |l| l.core.cluster().voters.clone())
    }
}

#[test]
fn s11_a_node_whose_own_founding_did_not_last_follows_the_leader_of_the_one_that_did() {
    for seed in 0..20 {
        let mut world = World::scripted(seed, Profile::quiet(3));
        // It is elected by two, and cut off before anybody has its founding entry, which does not name the third.
        world.hosts.get_mut(&3).unwrap().retired = true;
        world.perform(Act::CutLeaders { count: 1, long: 3 * SECOND });
        assert!(world.run_until_so(5 * SECOND, |w| w.leader().is_some()));
        let first = world.leader().unwrap();
        world.hosts.get_mut(&3).unwrap().retired = false;
        world.after(0, Event::Restart(3));
        world.run_for(500 * MILLI);
        world.settle_among(&[3 - first, 3]);
        let to_third = Request::TransferLeader(Some(3));
        let token = world.ask(3, Op::Transfer, to_third, LONG).unwrap();
        world.outcome(token).ok();
        world.run_for(3 * SECOND);
        world.settle();
        world.done(first, 5);
        finish(&mut world);
    }
}

#[test]
fn s10_a_node_that_reads_what_is_corrupt_stops_and_neither_votes_nor_acknowledges() {
    let mut world = World::scripted(1, Profile::quiet(3));
    let leader = world.settle();
    world.done(leader, 30);
    let (bad, other) = (world.others(leader)[0], world.others(leader)[1]);
    // It has to read for its replay.
    world.kill(bad, false);
    world.start(bad);
    let host = world.hosts.get_mut(&bad).unwrap();
    (host.disk.flipped, host.lost) = (true, true);
    assert!(world.run_until_so(SECOND, |w| w.place(bad).is_none()), "it goes on with a log that it cannot read");
    world.start(bad);
    assert!(world.place(bad).is_none(), "it starts from a log that it cannot read");
    world.done(leader, 5);
    // With the other one gone it would have to be its word.
    world.kill(other, false);
    let (token, _) = world.propose(leader, Some(2 * SECOND)).unwrap();
    assert_ne!(world.outcome(token).unwrap_err().committed, Committed::Yes);
    world.after(0, Event::Restart(other));
    finish(&mut world);
}

#[test]
fn a_full_disk_stops_one_node_or_holds_it_up_and_the_others_go_on() {
    for stops in [false, true] {
        let mut world = World::scripted(2, snapshotting(3));
        let leader = world.settle();
        let full = world.others(leader)[0];
        world.perform(Act::Full { node: full, long: 3 * SECOND, stops });
        world.done(leader, 60);
        assert!(world.hosts[&full].disk.synced.last_index() < 30, "nothing can be appended there");
        world.run_for(4 * SECOND);
        world.done(full, 5);
        finish(&mut world);
    }
}

#[test]
fn a_leader_with_a_full_disk_hands_on_and_loses_nothing() {
    for stops in [false, true] {
        let mut world = World::scripted(3, Profile::quiet(3));
        let leader = world.settle();
        world.done(leader, 10);
        world.perform(Act::Full { node: leader, long: 5 * SECOND, stops });
        let (token, _) = world.propose(leader, Some(8 * SECOND)).unwrap();
        let others = world.others(leader);
        world.run_for(SECOND);
        let next = world.settle_among(&others);
        world.done(next, 10);
        world.run_until_so(9 * SECOND, |w| w.result(token).is_some());
        finish(&mut world);
    }
}

#[test]
fn a_wiped_member_is_removed_and_joins_again_under_a_new_id() {
    for seed in 0..10 {
        let mut profile = snapshotting(3);
        profile.wipes = 1;
        let mut world = World::scripted(seed, profile);
        let leader = world.settle();
        world.done(leader, 5 + 10 * seed as usize);
        let wiped = world.others(leader)[0];
        world.wipe(wiped);
        world.run_for(300 * MILLI);
        world.hosts.get_mut(&wiped).unwrap().retired = true;
        world.change(leader, &[Alter::Remove(wiped)]);
        let addr = world.hosts[&wiped].addr.clone();
        let joined = world.grow(leader, &addr);
        assert!(joined > 3, "the spent id {wiped} is not given again (S12)");
        assert!(world.run_until_so(5 * SECOND, |w| w.voters(leader).contains(&joined)));
        world.done(joined, 5);
        finish(&mut world);
    }
}

#[test]
fn a_removed_member_votes_for_a_leader_that_lost_the_removal_in_a_crash() {
    let mut lost = 0;
    for seed in 0..10 {
        let mut world = World::scripted(seed, Profile::quiet(3));
        let leader = world.settle();
        world.done(leader, 5);
        let (gone, hangs) = (world.others(leader)[0], world.others(leader)[1]);
        // The removal is on the disks of the leader and of the one that is removed, and nowhere else for a long time.
        world.perform(Act::Hang { node: hangs, long: 30 * SECOND });
        world.perform(Act::SlowDisk { node: leader, by: 90 * MILLI, long: SECOND });
        let remove = Request::ChangeMembers(vec![Alter::Remove(gone).change()]);
        world.ask(leader, Op::Change, remove, LONG).unwrap();
        let told = |w: &mut World| w.hosts[&gone].life.as_ref().unwrap().core.status().role == Role::Removed;
        assert!(world.run_until_so(5 * SECOND, told), "{}", world.describe());
        world.crash(leader, true, 10 * MILLI);
        world.run_for(11 * MILLI);
        if !world.voters(leader).contains(&gone) {
            continue;
        }
        lost += 1;
        let elected = world.run_until_so(10 * SECOND, |w| w.leader() == Some(leader));
        assert!(elected, "nobody else can vote, or lead{}", world.describe());
        world.run_for(30 * SECOND);
        finish(&mut world);
    }
    assert!(lost > 1, "the leader remembers the removal in every seed");
}

#[test]
fn a_join_that_is_killed_at_any_moment_runs_again() {
    for step in 0..40 {
        let mut world = World::scripted(step, snapshotting(3));
        let leader = world.settle();
        world.done(leader, 25);
        let addr = String::from("host:4");
        let token = world.ask(leader, Op::Reserve(addr.clone()), Request::ReserveId { addr }, LONG).unwrap();
        let Ok(Reply::Ticket(ticket)) = world.outcome(token) else { panic!("no ticket") };
        let id = ticket.reserved_id;
        assert!(world.run_until_so(SECOND, |w| w.place(id).is_some()));
        let token = world.join(leader, id, false, LONG).unwrap();
        world.run_for(step * 1500);
        world.crash(id, step % 2 == 0, 20 * MILLI);
        world.outcome(token).ok();
        let joined = |w: &World| w.place(id).is_some() && w.voters(leader).contains(&id);
        assert!(world.run_until_so(10 * SECOND, |w| joined(w)), "{}", world.describe());
        world.done(id, 3);
        finish(&mut world);
    }
}

#[test]
fn a_member_that_moves_twice_while_it_is_cut_off_is_found_again() {
    for seed in 0..10 {
        let mut world = World::scripted(seed, Profile::quiet(3));
        let leader = world.settle();
        world.done(leader, 5);
        let moves = world.others(leader)[0];
        world.cut_off(moves);
        for addr in ["moved:1", "moved:2"] {
            world.change(leader, &[Alter::Address { id: moves, addr: addr.into() }]);
            world.relocate(moves, addr.into());
            world.run_for(50 * MILLI);
        }
        world.done(leader, 5);
        world.network.cut.clear();
        world.settle();
        world.done(moves, 5);
        finish(&mut world);
    }
}

#[test]
fn a_snapshot_that_is_broken_off_again_and_again_arrives() {
    let mut world = World::scripted(4, snapshotting(3));
    let leader = world.settle();
    let lags = world.others(leader)[0];
    world.kill(lags, false);
    world.done(leader, 60);
    world.perform(Act::BreakSnapshots { count: 8 });
    world.after(0, Event::Restart(lags));
    world.done(leader, 60);
    world.settle();
    world.done(lags, 5);
    assert_eq!(world.network.break_snapshots, 0, "they were all sent");
    finish(&mut world);
}

#[test]
fn a_cluster_grows_from_one_and_shrinks_to_one_that_was_not_its_first() {
    let mut world = World::scripted(5, snapshotting(1));
    let first = world.settle();
    world.done(first, 20);
    let (second, third) = (world.grow(first, "host:2"), world.grow(first, "host:3"));
    world.done(third, 20);
    world.change(second, &[Alter::Remove(first)]);
    assert!(world.run_until_so(10 * SECOND, |w| w.leader().is_some_and(|leader| leader != first)));
    world.done(second, 10);
    world.change(second, &[Alter::Remove(third)]);
    assert!(world.run_until_so(10 * SECOND, |w| w.leader() == Some(second) && w.voters(second) == [second]));
    world.done(second, 10);
    let gone = |w: &World, id: u64| w.hosts[&id].life.as_ref().is_some_and(|l| l.core.status().role == Role::Removed);
    assert!(world.run_until_so(10 * SECOND, |w| gone(w, first) && gone(w, third)), "{}", world.describe());
    finish(&mut world);
}

/// The machine's side tells its callers their results, and the core hears of that a while later.
#[test]
fn p3_who_was_told_a_result_hears_nothing_else_whatever_happens_before_the_core_knows() {
    for step in 0..50 {
        let mut profile = Profile::quiet(3);
        (profile.tells, profile.answer) = (true, (30 * MILLI, 40 * MILLI));
        let mut world = World::scripted(step, profile);
        let node = world.settle();
        let asked: Vec<_> = (0..20).filter_map(|n| world.propose(node, Some((5 + 3 * n) * MILLI))).collect();
        world.run_for(step * MILLI);
        match step % 5 {
            0 => world.perform(Act::Close { node, down: 50 * MILLI }),
            1 => world.perform(Act::Crash { node, power: true, down: 50 * MILLI }),
            2 => world.perform(Act::FailMachine { node, down: 50 * MILLI }),
            3 => world.perform(Act::StepDown { node, timeout: LONG }),
            // Their deadlines pass.
            _ => {}
        }
        let told = asked.iter().filter(|(token, _)| matches!(world.result(*token), Some(Ok(_)))).count();
        world.run_for(SECOND);
        let still = asked.iter().filter(|(token, _)| matches!(world.result(*token), Some(Ok(_)))).count();
        assert!(still >= told, "a result was taken back");
        world.calm();
        finish(&mut world);
    }
}

#[test]
fn messages_of_long_ago_change_nothing() {
    for seed in 0..5 {
        let mut profile = Profile::quiet(3);
        profile.late = 0.5;
        let mut world = World::scripted(seed, profile);
        for _ in 0..4 {
            let leader = world.settle();
            world.done(leader, 20);
            world.crash(leader, true, 200 * MILLI);
            world.run_for(2 * SECOND);
        }
        finish(&mut world);
    }
}

/// Where each member's snapshots are, while so many commands are proposed one at a time.
fn snapshots_taken(world: &mut World, commands: usize) -> BTreeMap<u64, Vec<u64>> {
    let leader = world.settle();
    let mut taken: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for _ in 0..commands {
        world.done(leader, 1);
        world.run_for(20 * MILLI);
        for (id, host) in &world.hosts {
            let index = host.life.as_ref().and_then(|l| l.core.snapshot()).map_or(0, |s| s.index);
            let indexes = taken.entry(*id).or_default();
            if indexes.last() != Some(&index) {
                indexes.push(index);
            }
        }
    }
    taken
}

#[test]
fn members_take_their_snapshots_at_different_indexes() {
    for seed in 0..5 {
        let mut profile = Profile::quiet(3);
        profile.config.snapshot_entries = 30;
        let mut world = World::scripted(seed, profile);
        let taken = snapshots_taken(&mut world, 150);
        // The founding is one snapshot for all, and the one after it finds its place.
        let places: Vec<u64> = taken.values().map(|t| t.get(2).copied().unwrap_or(0) % 30).collect();
        assert_eq!(places, [0, 20, 10], "{taken:?}");
        for indexes in taken.values() {
            assert!(indexes.windows(2).all(|pair| pair[1] - pair[0] <= 30), "{indexes:?}");
        }
        finish(&mut world);
    }
}

/// Several each, and the newest ones of any two members an eighth of what lies between two of one member apart.
fn apart(taken: &BTreeMap<u64, Vec<u64>>) {
    assert!(taken.values().all(|indexes| indexes.len() > 3), "{taken:?}");
    let newest: Vec<(u64, u64)> = taken.values().map(|t| (t[t.len() - 2], t[t.len() - 1])).collect();
    for (n, (before, last)) in newest.iter().enumerate() {
        for (_, other) in newest.iter().skip(n + 1) {
            assert!(last.abs_diff(*other) * 8 > last - before, "{taken:?}");
        }
    }
}

#[test]
fn members_take_their_snapshots_at_different_times() {
    for every in [600, 900] {
        let mut profile = Profile::quiet(3);
        profile.config.snapshot_interval = Some(Duration::from_millis(every));
        let mut world = World::scripted(every, profile);
        let taken = snapshots_taken(&mut world, 150);
        apart(&taken);
        finish(&mut world);
    }
}

#[test]
fn members_take_their_snapshots_at_different_indexes_where_bytes_decide() {
    for (seed, entries, bytes) in [(1, 0, 2000), (2, 0, 3000), (3, 10_000, 3000), (4, 1, 0)] {
        let mut profile = Profile::quiet(3);
        // The last one: due after every entry, so that its size alone decides (S19).
        profile.config.snapshot_entries = entries;
        profile.config.snapshot_bytes = bytes;
        let mut world = World::scripted(seed, profile);
        let taken = snapshots_taken(&mut world, 400);
        apart(&taken);
        finish(&mut world);
    }
}

//! Named scenarios of how a cluster begins, and how it goes on after a crash in the middle of that (S11).

use crate::sim::act::{Act, Alter};
use crate::sim::finish;
use crate::sim::world::{Event, Profile, World, MILLI, SECOND};

impl World {
    /// Runs in small steps to the moment when that is so.
    fn run_to(&mut self, what: &str, so: impl Fn(&World) -> bool) {
        let end = self.now + 5 * SECOND;
        while !so(self) {
            assert!(self.now < end, "{what} does not come{}", self.describe());
            self.run_for(20);
        }
    }

    fn has_applied_founding(&self, id: u64) -> bool {
        self.hosts[&id].life.as_ref().is_some_and(|l| !l.core.cluster().incarnation.is_empty())
    }

    fn knows_number(&self, id: u64, by: u64) -> bool {
        self.hosts[&id].life.as_ref().is_some_and(|l| !l.core.hello(by).incarnation.is_empty())
    }
}

/// Two founders: the leader has founded the cluster, and the other one has the entry in its log, does not know that it is committed,
/// and has heard of the cluster's number in a greeting. With `hangs` the leader has nothing of this on its disk.
fn by_hearsay(seed: u64, profile: Profile, hangs: bool) -> (World, u64, u64) {
    let mut world = World::scripted(seed, profile);
    world.run_to("a leader", |w| w.leader().is_some());
    let leader = world.leader().unwrap();
    let other = 3 - leader;
    world.run_to("the founding entry", |w| w.hosts.values().all(|h| h.disk.synced.last_index() >= 3));
    world.network.cut.insert((leader, other));
    let until = if hangs { world.now + SECOND } else { 0 };
    world.hosts.get_mut(&leader).unwrap().disk.hung_until = until;
    world.run_to("the commit", |w| w.has_applied_founding(leader));
    world.perform(Act::Break { node: leader, both: true });
    world.run_for(10 * MILLI);
    world.network.cut.clear();
    world.run_to("the hearsay", |w| w.knows_number(other, leader));
    assert!(!world.has_applied_founding(other));
    (world, leader, other)
}

#[test]
fn s11_who_heard_of_the_cluster_by_a_greeting_elects_with_one_that_lost_its_number_in_a_crash() {
    for seed in 0..10 {
        let (mut world, leader, _) = by_hearsay(seed, Profile::quiet(2), true);
        world.crash(leader, true, 5 * MILLI);
        finish(&mut world);
    }
}

#[test]
fn s11_a_leader_that_has_not_applied_the_founding_entry_listens_to_whoever_it_names() {
    for seed in 0..10 {
        let mut profile = Profile::quiet(2);
        // Otherwise it gives up by itself after a while.
        profile.config.check_quorum = false;
        let (mut world, first, _) = by_hearsay(seed, profile, false);
        world.crash(first, false, 5 * MILLI);
        world.perform(Act::CutLeaders { count: 1, long: 500 * MILLI });
        world.run_to("another leader", |w| w.leader().is_some());
        let next = world.leader().unwrap();
        world.perform(Act::Break { node: next, both: true });
        world.run_for(SECOND);
        finish(&mut world);
    }
}

#[test]
fn s11_a_leader_that_was_cut_off_when_it_was_elected_gives_up_for_those_who_founded_the_cluster_meanwhile() {
    let mut staged = 0;
    for seed in 0..60 {
        let mut profile = Profile::quiet(4);
        // Nobody tells a leader of an old term that there is a newer one.
        (profile.config.check_quorum, profile.config.pre_vote) = (false, false);
        let mut world = World::scripted(seed, profile);
        // The founding entries of these two do not name each other.
        world.network.cut.extend([(1, 4), (4, 1)]);
        world.perform(Act::CutLeaders { count: 1, long: 3 * SECOND });
        assert!(world.run_until_so(5 * SECOND, |w| w.leader().is_some()));
        let first = world.leader().unwrap();
        world.perform(Act::Break { node: first, both: true });
        let others = world.others(first);
        assert!(world.run_until_so(3 * SECOND, |w| w.leader().is_some_and(|leader| leader != first)));
        staged += u32::from([(1, Some(4)), (4, Some(1))].contains(&(first, world.leader())));
        world.run_for(SECOND);
        world.network.cut.clear();
        world.done(others[0], 5);
        world.run_for(3 * SECOND);
        finish(&mut world);
    }
    assert!(staged > 0, "none of the seeds is the case that is meant");
}

#[test]
fn s11_initial_learners_get_the_log_and_have_no_vote_until_they_are_promoted() {
    for seed in 0..20 {
        let (nodes, learners) = [(3, 1), (3, 2), (5, 2), (2, 1)][seed as usize % 4];
        let mut profile = Profile::quiet(nodes);
        profile.learners = learners;
        let mut world = World::scripted(seed, profile);
        let voters = nodes - learners;
        // The voters found the cluster without them.
        let late: Vec<u64> = (voters + 1..=nodes).collect();
        late.iter().for_each(|id| world.hosts.get_mut(id).unwrap().retired = true);
        world.settle_among(&(1..=voters).collect::<Vec<_>>());
        let leader = world.leader().unwrap();
        world.done(leader, 10);
        assert!(!late.contains(&leader));
        for id in &late {
            world.hosts.get_mut(id).unwrap().retired = false;
            world.after(0, Event::Restart(*id));
        }
        world.settle();
        // What they propose and read is done by way of the leader.
        late.iter().for_each(|id| world.done(*id, 5));
        let cluster = world.hosts[&leader].life.as_ref().unwrap().core.cluster().clone();
        assert_eq!((cluster.voters, cluster.learners), ((1..=voters).collect(), late.clone()));
        // Without the voters they elect nobody.
        for id in 1..=voters {
            world.kill(id, false);
        }
        world.run_for(3 * SECOND);
        assert!(late.iter().all(|id| !world.hosts[id].life.as_ref().unwrap().core.is_leader()));
        (1..=voters).for_each(|id| world.after(0, Event::Restart(id)));
        world.run_for(SECOND);
        world.settle();
        let leader = world.leader().unwrap();
        world.change(leader, &[Alter::Promote(nodes)]);
        assert!(world.voters(leader).contains(&nodes));
        finish(&mut world);
    }
}

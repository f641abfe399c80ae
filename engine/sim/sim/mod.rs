//! The simulator: many real cores, a network, disks and clocks in one thread from one seed. No rule of Raft is repeated here;
//! what must hold is in [`oracle`], what may go wrong in [`faults`], who asks for what in [`clients`].

pub mod act;
pub mod applying;
pub mod checks;
pub mod clients;
pub mod disk;
pub mod draws;
pub mod faults;
pub mod files;
pub mod history;
pub mod host;
pub mod lie;
pub mod losses;
pub mod machine;
pub mod network;
pub mod oracle;
pub mod profile;
pub mod record;
pub mod script;
pub mod sessions;
pub mod shrink;
pub mod world;
pub mod writing;

use draws::Draws;
use raftify_engine::status::Role;
use world::{Event, Profile, World, MILLI, SECOND};

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub events: u64,
    pub simulated: u64,
    pub committed: u64,
    pub lives: u64,
    pub trace: u64,
    pub counts: std::collections::BTreeMap<&'static str, u64>,
}

/// One whole run; panics with `VIOLATION` when a promise is broken.
pub fn run(seed: u64, told: bool) -> Summary {
    let mut draws = Draws::new(seed);
    let mut profile = Profile::drawn(&mut draws);
    profile.stretch();
    run_with(seed, profile, draws, told)
}

pub fn run_with(seed: u64, profile: Profile, draws: Draws, told: bool) -> Summary {
    let mut world = drawing(seed, profile, draws, told);
    live(&mut world)
}

/// A world whose clients and faults are drawn.
pub fn drawing(seed: u64, profile: Profile, draws: Draws, told: bool) -> World {
    if told {
        println!("seed {seed}: {profile:#?}");
    }
    let mut world = World::new(seed, profile, draws, told);
    world.after(0, Event::Client);
    let first = world.draws.faults.range(0, 500_000);
    world.after(first, Event::Fault);
    world
}

/// From the first moment to the last check.
pub fn live(world: &mut World) -> Summary {
    let end = world.now + world.profile.turmoil;
    world.run_until(end);
    world.calm();
    finish(world);
    world.summary()
}

impl World {
    pub fn summary(&self) -> Summary {
        Summary {
            events: self.events,
            simulated: self.now - SECOND,
            committed: self.oracle.newest_committed,
            lives: self.lives,
            trace: self.trace,
            counts: self.clients.counts.clone(),
        }
    }

    /// The members, when there is a leader whom they all follow.
    pub fn settled(&self) -> Option<Vec<u64>> {
        let cores = || self.hosts.values().filter_map(|h| h.life.as_ref()).map(|l| &l.core);
        let leader = cores().filter(|c| c.is_leader()).max_by_key(|c| c.term())?;
        let members: Vec<u64> = leader.cluster().members().iter().map(|m| m.id).collect();
        let stays = |id: &u64| self.hosts.get(id).is_some_and(|h| !h.retired && !h.lost);
        let follow = |id: &u64| {
            self.hosts.get(id).and_then(|h| h.life.as_ref()).is_some_and(|l| {
                let p = l.core.positions();
                p.term == leader.term() && p.leader == leader.id()
            })
        };
        let members: Vec<u64> = members.into_iter().filter(stays).collect();
        (!members.is_empty() && members.iter().all(follow)).then_some(members)
    }

    /// Entries that some node has and some node has not applied yet; one that is down, not on its disk.
    fn backlog(&self) -> u64 {
        let stays = self.hosts.values().filter(|h| !h.retired && !h.lost);
        let at = stays.map(|h| {
            let written = h.disk.synced.last_index();
            h.life.as_ref().map_or((written, written), |l| (l.core.positions().last, l.core.applied()))
        });
        let (newest, slowest) = at.fold((0, u64::MAX), |(n, s), (last, applied)| (last.max(n), applied.min(s)));
        newest.saturating_sub(slowest)
    }

    pub fn describe(&self) -> String {
        let mut out = String::new();
        for (id, host) in &self.hosts {
            let state = host.life.as_ref().map(|l| serde_json::to_string(&l.core.status()).unwrap_or_default());
            out += &format!("\n  node {id}: retired {} {}", host.retired, state.unwrap_or_else(|| "down".into()));
        }
        out
    }
}

/// Faults are over: the cluster must elect, serve on every member, agree, and leave no request without an answer.
pub fn finish(world: &mut World) {
    // Minutes of proposals may wait, and go at one entry a message: each takes a round trip of a calm network and disk.
    let limit = 60 * SECOND + world.backlog() * 10 * MILLI;
    let ok = world.run_until_so(limit, |w| w.settled().is_some());
    assert!(ok, "VIOLATION: liveness: no leader that all members follow{}", world.describe());
    world.clients.keep = true;
    let mut served: Vec<u64> = Vec::new();
    let end = world.now + limit;
    while world.now < end {
        let Some(members) = world.settled() else {
            world.run_for(SECOND / 10);
            continue;
        };
        let Some(id) = members.iter().find(|id| !served.contains(id)).copied() else { break };
        let asked = (world.propose(id, Some(5 * SECOND)), world.read(id, Some(5 * SECOND)));
        let (Some((write, _)), Some(read)) = asked else { continue };
        world.run_until_so(6 * SECOND, |w| w.result(write).is_some() && w.result(read).is_some());
        let done = |token| match world.result(token) {
            Some(Ok(_)) => true,
            Some(Err(error)) => error.code == raftify_engine::ErrorCode::ApplyFailed,
            None => false,
        };
        if done(write) && done(read) {
            served.push(id);
        }
    }
    let members = world.settled().unwrap_or_default();
    assert!(
        !members.is_empty() && members.iter().all(|id| served.contains(id)),
        "VIOLATION: liveness: {served:?} of {members:?} serve{}",
        world.describe()
    );
    // What clients asked for before goes on meanwhile.
    let ok = world.run_until_so(limit, |w| w.settled().is_some_and(|members| w.unended_at(&members).is_empty()));
    assert!(ok, "VIOLATION: requests without an end: {:?}{}", world.unended_at(&members), world.describe());
    let ok = world.run_until_so(limit, |w| {
        let Some(members) = w.settled() else { return false };
        let mut at = members
            .iter()
            .filter_map(|id| w.hosts[id].life.as_ref())
            .map(|l| (l.core.positions().commit, l.core.applied()));
        let first = at.next();
        // Also what somebody knows to be committed who is no member any more, the one that leads until it is out among them.
        let newest = w.hosts.values().filter_map(|h| h.life.as_ref()).map(|l| l.core.positions().commit).max();
        first.is_some_and(|f| f.0 == f.1 && newest <= Some(f.0)) && at.all(|a| Some(a) == first)
    });
    assert!(ok, "VIOLATION: liveness: the members do not converge{}", world.describe());
    // A removed node is told so, unless it has lost its directory with all that it ever learned, and those that it began with are gone:
    // nobody dials it, and nobody answers where it dials.
    let ok = world.run_until_so(limit, |w| {
        let Some(members) = w.settled() else { return false };
        let cluster = w.hosts[&members[0]].life.as_ref().map(|l| l.core.cluster().clone()).unwrap_or_default();
        w.hosts.iter().filter(|(id, _)| cluster.is_removed(**id)).all(|(_, h)| {
            h.life.as_ref().is_none_or(|l| {
                let told = l.core.status().role == Role::Removed || l.core.cluster().members().is_empty();
                let knows_its_cluster = h.disk.synced.identity.incarnation.is_some();
                told || !(knows_its_cluster || l.peers.iter().any(|(id, addr)| w.is_there(*id, addr)))
            })
        })
    });
    assert!(ok, "VIOLATION: a removed node is not told so{}", world.describe());
    // Whoever is no member answers at the latest when it is closed.
    for id in world.alive() {
        let Some(at) = world.place(id) else { continue };
        world.poll(at);
        if let Some(life) = world.life(at) {
            life.core.close();
        }
        world.poll(at);
        // Callers who were told by the machine's side have their answer.
        let left = world.pending_at(&[id]);
        assert!(!world.clients.wait_at(at), "VIOLATION: requests without an end after close: {left:?}");
    }
    world.oracle.finish();
}

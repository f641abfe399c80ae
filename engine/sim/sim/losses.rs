//! What is lost for good: a directory that is wiped, a disk that turns out corrupt; and what operators then do, and may not do.
//!
//! A loss uses up one of the failures that the cluster tolerates until its member is removed. So nothing is lost, and no member that is
//! well is taken out of the voting, where that would leave a configuration without a majority: no cluster survives such an operator.

use raftify_engine::cluster::ClusterState;
use raftify_engine::request::Request;
use raftify_engine::Uid;

use super::act::Alter;
use super::clients::Op;
use super::disk::{Disk, Image, Sabotage};
use super::files::Spoil;
use super::world::{Event, World, MILLI, SECOND};

/// As long as this the network may keep a request whose caller was told nothing certain.
const MAY_STILL_COME: u64 = 12 * SECOND;

impl World {
    /// The members as the node that has applied most knows them.
    fn newest_view(&self) -> Option<ClusterState> {
        let lives = self.hosts.values().filter_map(|h| h.life.as_ref());
        lives.max_by_key(|l| l.core.positions().handed).map(|l| l.core.cluster().clone())
    }

    fn is_lost(&self, id: u64) -> bool {
        self.hosts.get(&id).is_some_and(|h| h.lost)
    }

    /// Every configuration that anybody goes by would still have a majority that is well without this node.
    fn can_do_without(&self, id: u64) -> bool {
        let well = |voter: &&u64| **voter != id && !self.is_lost(**voter);
        let lives = self.hosts.values().filter_map(|h| h.life.as_ref());
        lives.map(|l| l.core.cluster()).all(|cluster| {
            // A learner may be a voter before its loss is noticed, and before any other learner is (seed 221836601).
            let soon: Vec<u64> =
                cluster.voters.iter().chain(cluster.learners.iter().filter(|id| !well(id))).copied().collect();
            let halves = [&cluster.voters, &cluster.voters_outgoing, &soon];
            halves.iter().all(|half| half.is_empty() || half.iter().filter(well).count() > half.len() / 2)
        })
    }

    fn may_lose(&self, id: u64) -> bool {
        let there = self.profile.wipes > 0 && self.hosts.get(&id).is_some_and(|h| !h.lost && !h.retired);
        let Some(cluster) = self.newest_view().filter(|_| there) else { return false };
        // S11's limit: every member is there and knows whose directory it was.
        let knows = |member: &u64| {
            let life = self.hosts.get(member).and_then(|h| h.life.as_ref());
            *member == id
                || self.is_lost(*member)
                || life.is_some_and(|l| l.core.cluster().recorded_directory(id).is_some())
        };
        let members: Vec<u64> = cluster.members().iter().map(|m| m.id).collect();
        members.contains(&id)
            && !self.could_found_anew(id)
            && members.iter().all(knows)
            && !self.removal_may_come()
            && self.can_do_without(id)
    }

    /// Nor is a loss seen by one that is a majority of itself (seed 6027491), or where another founder of its has never come to know what they
    /// founded, removed by now or not (seed 7004465).
    fn could_found_anew(&self, id: u64) -> bool {
        let Some(founding) = self.hosts.get(&id).map(|h| &h.founding) else { return false };
        let unaware = |other: u64| {
            let host = self.hosts.get(&other).filter(|h| other != id && !h.retired);
            host.is_some_and(|h| h.disk.synced.identity.incarnation.is_none())
        };
        founding.voters.len() == 1 || founding.members().iter().any(|m| unaware(m.id))
    }

    /// Somebody who is well may yet be taken out of the voting by what was asked for before: it is on its way, or stands in a log, where
    /// it may wait for its commit for as long as no leader stays (seed 129466052).
    fn removal_may_come(&self) -> bool {
        let now = self.now;
        self.clients.removals.values().any(|until| until.is_none_or(|until| now < until))
            || self.hosts.values().any(|h| !h.retired && h.disk.may_change_members())
    }

    /// Whether an operator who is in his right mind asks for this now: as long as a lost member votes nobody else stops doing so.
    pub fn is_sane(&self, changes: &[Alter]) -> bool {
        let takes_away = |change: &Alter| match change {
            Alter::Remove(id) | Alter::Demote(id) => !self.is_lost(*id),
            Alter::Add { .. } | Alter::Promote(_) | Alter::Address { .. } => false,
        };
        !changes.iter().any(takes_away) || !self.has_lost_voters()
    }

    pub fn has_lost_voters(&self) -> bool {
        let lives = self.hosts.values().filter_map(|h| h.life.as_ref());
        let votes = |l: &super::host::Life| {
            let cluster = l.core.cluster();
            cluster.voters.iter().chain(&cluster.voters_outgoing).any(|id| self.is_lost(*id))
        };
        lives.into_iter().any(votes)
    }

    pub fn has_lost_members(&self) -> bool {
        let lives = self.hosts.values().filter_map(|h| h.life.as_ref());
        lives.into_iter().any(|l| l.core.cluster().members().iter().any(|m| self.is_lost(m.id)))
    }

    /// Nobody knows how this ended: it may be in a log, or on its way.
    pub fn may_have_removed(&mut self, token: u64) {
        let until = self.now + MAY_STILL_COME;
        if let Some(known) = self.clients.removals.get_mut(&token) {
            *known = Some(until);
        }
    }

    /// A directory is lost for good, once everybody running knows whose it was (S11's limit).
    pub fn wipe(&mut self, id: u64) {
        if !self.may_lose(id) {
            return;
        }
        self.profile.wipes -= 1;
        self.kill(id, true);
        self.tell(|| format!("the directory of node {id} is wiped"));
        self.count("directories wiped");
        let directory = Uid(u128::from(self.draws.node(id).next()));
        let keeps_name = self.profile.sabotage == Some(Sabotage::WipedKeepsItsName);
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let mut identity = host.disk.synced.identity.clone();
        if !keeps_name {
            identity.directory = directory;
            identity.incarnation = None;
        }
        host.disk = Disk::new(Image::born(identity, &host.founding));
        host.kept = None;
        host.wiped = true;
        host.lost = true;
        self.after(10 * MILLI, Event::Restart(id));
    }

    /// A bit of this node's log has turned: whoever reads it stops (S10), and does not start any more.
    pub fn flip(&mut self, id: u64) {
        if self.may_lose(id) {
            self.profile.wipes -= 1;
            self.tell(|| format!("a bit turns on the disk of node {id}"));
            if let Some(host) = self.hosts.get_mut(&id) {
                host.disk.flipped = true;
                host.lost = true;
            }
        }
    }

    /// It is lost, and nobody has taken its address since, or is about to.
    pub fn is_to_be_replaced(&self, id: u64) -> bool {
        let lost = self.hosts.get(&id).filter(|h| h.lost && !h.addr.is_empty());
        lost.is_some_and(|h| !self.clients.reserves(&h.addr))
    }

    /// S6: the file of its snapshot is not what it was, which the next start finds out.
    pub fn spoil_snapshot(&mut self, id: u64, how: Spoil, all: bool, down: u64) {
        let here = |w: &World| w.hosts.get(&id).filter(|h| !h.lost).and_then(|h| h.disk.synced.snapshot.clone());
        let named = |w: &World| here(w).filter(|m| m.has_file);
        if named(self).is_none() {
            return;
        }
        // What may not be lost may at least crash.
        self.crash(id, true, down);
        let may_lose = self.may_lose(id);
        let (spares, sabotage) = (self.profile.spares, self.profile.sabotage);
        let (Some(meta), Some(host)) = (named(self), self.hosts.get_mut(&id)) else { return };
        let log = host.disk.synced.open().0;
        let stands_in = host.disk.files.stand_in(&log, sabotage).filter(|_| spares && !all);
        if stands_in.is_none() && !may_lose {
            return;
        }
        host.disk.files.spoil(&meta, how);
        while let Some(spare) = host.disk.files.stand_in(&log, sabotage).filter(|_| all) {
            host.disk.files.spoil(&spare, how);
        }
        host.lost = stands_in.is_none();
        self.tell(|| {
            format!(
                "the snapshot {} of node {id} is spoiled; {:?} stands in",
                meta.index,
                stands_in.as_ref().map(|m| m.index)
            )
        });
        self.count(if stands_in.is_some() { "snapshots that another stood in for" } else { "snapshots lost" });
        if stands_in.is_none() {
            self.profile.wipes -= 1;
        }
    }

    /// The machine of a lost member gets an empty directory and a new id: it joins from the same address, in the lost one's place (S12).
    pub fn rejoin(&mut self, via: u64, lost: u64, timeout: Option<u64>) {
        if !self.is_to_be_replaced(lost) || via == lost {
            return;
        }
        let addr = self.hosts[&lost].addr.clone();
        self.kill(lost, false);
        if let Some(host) = self.hosts.get_mut(&lost) {
            host.retired = true;
        }
        self.count("lost members that join again");
        self.ask(via, Op::Reserve(addr.clone()), Request::ReserveId { addr }, timeout);
    }
}

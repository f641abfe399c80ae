//! What goes wrong, and what makes it good again.

use raftify_engine::Uid;

use super::disk::{Disk, Image, Sabotage};
use super::draws::pick;
use super::host::Host;
use super::world::{Event, World, MILLI, SECOND};

impl World {
    pub fn fault_strikes(&mut self) {
        let every = self.profile.fault_every;
        if !self.turmoil || every == 0 {
            return;
        }
        let wait = self.draws.faults.range(1, 2 * every);
        self.after(wait, Event::Fault);
        let alive = self.alive();
        let all: Vec<u64> = self.hosts.iter().filter(|(_, h)| !h.retired).map(|(id, _)| *id).collect();
        if alive.is_empty() || all.is_empty() {
            return;
        }
        let rng = &mut self.draws.faults;
        let one = pick(rng, &alive);
        let any = pick(rng, &all);
        let long = if rng.chance(0.2) { rng.range(0, 3 * SECOND) } else { rng.range(0, 400 * MILLI) };
        if self.profile.wipes > 0 && rng.chance(0.05) {
            return self.wipe(one);
        }
        match rng.range(0, 14) {
            0 | 1 => self.crash(one, false, long),
            2 => self.crash(any, true, long),
            3 => {
                // Everything at once, now and then.
                if self.draws.faults.chance(0.2) {
                    let power = self.draws.faults.chance(0.5);
                    for id in all {
                        self.crash(id, power, long);
                    }
                } else {
                    // The page cache after a kill, and then the power goes.
                    self.crash(one, false, long + MILLI);
                    self.kill(one, true);
                }
            }
            4..7 => self.partition(long),
            7 => {
                let host = self.hosts.get_mut(&one).expect("alive");
                host.paused_until = host.paused_until.max(self.now + long);
                host.late_until = host.paused_until;
                self.tell(|| format!("node {one} is paused for {long}"));
            }
            8 | 9 => {
                self.hosts.get_mut(&one).expect("alive").disk.hung_until = self.now + long;
                self.tell(|| format!("the disk of node {one} hangs for {long}"));
            }
            10 => {
                self.hosts.get_mut(&one).expect("alive").disk.fails = true;
                let wait = self.draws.faults.range(100 * MILLI, SECOND);
                self.after(wait, Event::Restart(one));
                self.tell(|| format!("the next sync of node {one} fails"));
            }
            11 => {
                let wall = self.draws.faults.range(0, 20 * SECOND);
                self.jump_clock(one, wall);
            }
            12 => self.network.break_snapshots += self.draws.faults.range(0, 3),
            _ => {
                // Connections break for no reason.
                let odds = self.draws.faults.chance(0.5);
                self.break_streams(|from, to| from == one || (odds && to == one), (0, 5 * MILLI));
            }
        }
    }

    /// A directory is lost for good, once everybody running knows whose it was (S11's limit).
    pub fn wipe(&mut self, id: u64) {
        let known = |h: &Host| h.life.as_ref().is_some_and(|l| l.core.cluster().recorded_directory(id).is_some());
        if self.hosts[&id].wiped || !self.hosts.values().all(known) {
            return;
        }
        self.profile.wipes -= 1;
        self.kill(id, true);
        self.tell(|| format!("the directory of node {id} is wiped"));
        let directory = Uid(u128::from(self.draws.faults.next()));
        let keeps_name = self.profile.sabotage == Some(Sabotage::WipedKeepsItsName);
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let mut identity = host.disk.synced.identity.clone();
        if !keeps_name {
            identity.directory = directory;
            identity.incarnation = None;
        }
        host.disk = Disk::new(Image::born(identity, &host.initial));
        host.kept = None;
        host.wiped = true;
        self.after(10 * MILLI, Event::Restart(id));
    }

    pub fn crash(&mut self, id: u64, power: bool, down: u64) {
        self.kill(id, power);
        self.after(down, Event::Restart(id));
    }

    fn partition(&mut self, long: u64) {
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        let rng = &mut self.draws.faults;
        let mut pairs = Vec::new();
        match rng.range(0, 4) {
            // One node from all others.
            0 => {
                let one = pick(rng, &ids);
                ids.iter().filter(|id| **id != one).for_each(|id| pairs.extend([(one, *id), (*id, one)]));
            }
            // Two halves.
            1 => {
                let side: Vec<bool> = ids.iter().map(|_| rng.chance(0.5)).collect();
                for (a, left) in ids.iter().zip(&side) {
                    for (b, right) in ids.iter().zip(&side) {
                        if left != right {
                            pairs.push((*a, *b));
                        }
                    }
                }
            }
            // One direction of one node.
            2 => {
                let one = pick(rng, &ids);
                let outward = rng.chance(0.5);
                ids.iter()
                    .filter(|id| **id != one)
                    .for_each(|id| pairs.push(if outward { (one, *id) } else { (*id, one) }));
            }
            // One link.
            _ => {
                let (a, b) = (pick(rng, &ids), pick(rng, &ids));
                pairs.push((a, b));
                if rng.chance(0.5) {
                    pairs.push((b, a));
                }
            }
        }
        self.tell(|| format!("cut for {long}: {pairs:?}"));
        self.network.cut.extend(pairs);
        if self.draws.faults.chance(0.6) {
            let cut = self.network.cut.clone();
            self.break_streams(|from, to| cut.contains(&(from, to)) || cut.contains(&(to, from)), (10 * MILLI, SECOND));
        }
        self.after(long, Event::Heal(0));
    }

    pub fn heal(&mut self, _number: u64) {
        self.tell(|| "links are whole again".into());
        self.network.cut.clear();
    }

    /// All faults end, and whoever can runs again.
    pub fn calm(&mut self) {
        self.turmoil = false;
        self.tell(|| "---- faults end ----".into());
        self.network.cut.clear();
        self.network.break_snapshots = 0;
        // A move that was asked for and whose outcome nobody heard: its operator sees to it that both addresses answer.
        self.addrs.extend(std::mem::take(&mut self.clients.moves));
        let profile = &mut self.profile;
        (profile.loss, profile.duplicates, profile.reorder) = (0.0, 0.0, 0.0);
        profile.delay = (100, 2 * MILLI);
        profile.sync = (100, 3 * MILLI);
        profile.machine = (10, 2 * MILLI);
        let now = self.now;
        for host in self.hosts.values_mut() {
            host.paused_until = host.paused_until.min(now);
            host.disk.hung_until = 0;
            host.disk.fails = false;
        }
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        for id in ids {
            self.after(0, Event::Restart(id));
        }
    }
}

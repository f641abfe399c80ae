//! What goes wrong, and what makes it good again. [`World::draw_fault`] says what strikes, [`World::fault`] how.

use std::collections::BTreeSet;

use super::act::Act;
use super::draws::pick;
use super::files::Spoil;
use super::host::Host;
use super::network::{Cut, Narrow};
use super::profile::Kind;
use super::world::{Event, World, MILLI, SECOND};

impl World {
    /// Draws what goes wrong next, and lets it.
    pub fn fault_strikes(&mut self) {
        let every = self.profile.fault_every;
        if !self.turmoil || every == 0 {
            return;
        }
        let wait = self.draws.faults.range(1, 2 * every);
        self.after(wait, Event::Fault);
        for act in self.draw_fault() {
            self.perform(act);
        }
    }

    fn draw_fault(&mut self) -> Vec<Act> {
        let alive = self.alive();
        let all: Vec<u64> = self.hosts.iter().filter(|(_, h)| !h.retired).map(|(id, _)| *id).collect();
        if alive.is_empty() || all.is_empty() {
            return Vec::new();
        }
        let total: u64 = self.profile.mix.iter().map(|(_, weight)| weight).sum();
        let mut at = self.draws.faults.range(0, total);
        let found = self.profile.mix.iter().find(|(_, weight)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let Some(kind) = found.map(|(kind, _)| *kind) else { return Vec::new() };
        let leader = self.leader();
        let losses = self.profile.wipes;
        let lasting = self.profile.lasting;
        let rng = &mut self.draws.faults;
        let one = pick(rng, &alive);
        let any = pick(rng, &all);
        let long = if rng.chance(0.2) { rng.range(0, 3 * SECOND) } else { rng.range(0, lasting) };
        let leading = leader.unwrap_or(one);
        let act = match kind {
            Kind::Kill => Act::Crash { node: one, power: false, down: long },
            Kind::Close => Act::Close { node: one, down: long },
            Kind::PowerLoss => Act::Crash { node: any, power: true, down: long },
            Kind::KillThenPower => {
                let (between, down) = (rng.range(0, 60 * MILLI), rng.range(0, 40 * MILLI));
                Act::CrashTwice { node: one, between, down }
            }
            Kind::Outage => {
                let power = rng.chance(0.5);
                if rng.chance(0.4) {
                    let (between, down) = (rng.range(0, 60 * MILLI), rng.range(0, 40 * MILLI));
                    return all.into_iter().map(|node| Act::CrashTwice { node, between, down }).collect();
                }
                return all.into_iter().map(|node| Act::Crash { node, power, down: long }).collect();
            }
            Kind::Isolate | Kind::IsolateLeader | Kind::Halves | Kind::OneWay | Kind::Link | Kind::Bridge => {
                let links = self.draw_links(kind, leading);
                let breaks = self.draws.faults.chance(0.6);
                Act::Cut { links, long, gap: 0, times: 1, breaks }
            }
            Kind::Flapping => {
                let shape = pick(rng, &[Kind::Isolate, Kind::IsolateLeader, Kind::Halves, Kind::OneWay, Kind::Link]);
                let (long, gap) = (rng.range(5, 150) * MILLI, rng.range(5, 150) * MILLI);
                let (times, breaks) = (rng.range(3, 12), rng.chance(0.3));
                let links = self.draw_links(shape, leading);
                Act::Cut { links, long, gap, times, breaks }
            }
            Kind::NewLeaders => Act::CutLeaders { count: rng.range(1, 5), long: rng.range(50, 600) * MILLI },
            Kind::Break => Act::Break { node: one, both: rng.chance(0.5) },
            Kind::Narrow => {
                let (rate, room) = (pick(rng, &[1, 20, 500]), pick(rng, &[200, 4000, 100_000]));
                Act::Narrow { node: leading, rate, room, long: 2 * long }
            }
            Kind::BreakSnapshots => Act::BreakSnapshots { count: rng.range(1, 4) },
            Kind::Pause => Act::Pause { node: one, long },
            Kind::Hang => Act::Hang { node: one, long },
            Kind::HangLeader => Act::Hang { node: leading, long },
            Kind::SlowDisk => Act::SlowDisk { node: one, by: rng.range(5, 200) * MILLI, long: 2 * long },
            Kind::FailSync => Act::FailSync { node: one, down: rng.range(100 * MILLI, SECOND) },
            Kind::Full => Act::Full { node: one, long, stops: rng.chance(0.5) },
            Kind::Flip if losses > 0 && rng.chance(0.7) => Act::Flip { node: one },
            Kind::Wipe if losses > 0 && rng.chance(0.7) => Act::Wipe { node: one },
            Kind::Flip | Kind::Wipe => return Vec::new(),
            Kind::SpoilSnapshot => {
                let place = rng.range(0, 1000);
                let how = pick(rng, &[Spoil::Flip(place), Spoil::Flip(place), Spoil::Cut(place), Spoil::Gone]);
                Act::SpoilSnapshot { node: one, how, all: rng.chance(0.2), down: long }
            }
            Kind::Jump => {
                let mut nodes = vec![one];
                if rng.chance(0.5) {
                    nodes.push(pick(rng, &alive));
                }
                Act::Jump { nodes, wall: rng.range(0, 20 * SECOND) }
            }
            Kind::SlowMachine => Act::SlowMachine { node: one, by: rng.range(10, 500) * MILLI, long: 2 * long },
            Kind::FailMachine => Act::FailMachine { node: one, down: rng.range(50 * MILLI, SECOND) },
        };
        vec![act]
    }

    fn draw_links(&mut self, kind: Kind, leading: u64) -> Vec<(u64, u64)> {
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        let rng = &mut self.draws.faults;
        let one = if kind == Kind::IsolateLeader { leading } else { pick(rng, &ids) };
        let others = ids.iter().copied().filter(|id| *id != one);
        match kind {
            Kind::Isolate | Kind::IsolateLeader => others.flat_map(|id| [(one, id), (id, one)]).collect(),
            Kind::OneWay => {
                let outward = rng.chance(0.5);
                others.map(|id| if outward { (one, id) } else { (id, one) }).collect()
            }
            Kind::Halves | Kind::Bridge => {
                let side: Vec<bool> = ids.iter().map(|_| rng.chance(0.5)).collect();
                let mut links = Vec::new();
                for (a, left) in ids.iter().zip(&side) {
                    for (b, right) in ids.iter().zip(&side) {
                        let bridge = kind == Kind::Bridge && (*a == one || *b == one);
                        if left != right && !bridge {
                            links.push((*a, *b));
                        }
                    }
                }
                links
            }
            _ => {
                let other = pick(rng, &ids);
                if rng.chance(0.5) {
                    vec![(one, other), (other, one)]
                } else {
                    vec![(one, other)]
                }
            }
        }
    }

    /// Lets this go wrong.
    pub fn fault(&mut self, act: &Act) {
        let now = self.now;
        match act.clone() {
            Act::Crash { node, power, down } => self.crash(node, power, down),
            Act::Close { node, down } => self.close(node, down),
            Act::CrashTwice { node, between, down } => {
                self.crash(node, false, down);
                self.after(between, Event::Power(node));
                self.after(between + down, Event::Restart(node));
            }
            Act::Cut { links, long, gap, times, breaks } => {
                if breaks {
                    let cut = |a: u64, b: u64| links.contains(&(a, b)) || links.contains(&(b, a));
                    self.break_streams(cut, (10 * MILLI, SECOND));
                }
                self.cut_links(links.into_iter().collect(), long, gap, times);
            }
            Act::CutLeaders { count, long } => {
                self.network.cut_leaders.extend((0..count).map(|_| long));
            }
            Act::Break { node, both } => {
                self.break_streams(|from, to| from == node || (both && to == node), (0, 5 * MILLI));
            }
            Act::Narrow { node, rate, room, long } => {
                self.network.narrow.insert(node, Narrow { rate, room, until: now + long });
            }
            Act::BreakSnapshots { count } => self.network.break_snapshots += count,
            Act::Wipe { node } => self.wipe(node),
            Act::Jump { nodes, wall } => nodes.iter().for_each(|id| self.jump_clock(*id, wall)),
            Act::Flip { node } => self.flip(node),
            Act::SpoilSnapshot { node, how, all, down } => self.spoil_snapshot(node, how, all, down),
            Act::Pause { node, .. }
            | Act::Hang { node, .. }
            | Act::SlowDisk { node, .. }
            | Act::FailSync { node, .. }
            | Act::Full { node, .. }
            | Act::SlowMachine { node, .. }
            | Act::FailMachine { node, .. } => {
                if let Some(host) = self.hosts.get_mut(&node) {
                    let again = host.suffer(act, now);
                    if let Some(down) = again {
                        self.after(down, Event::Restart(node));
                    }
                }
            }
            request => panic!("{request:?} is no fault"),
        }
    }

    fn cut_links(&mut self, links: BTreeSet<(u64, u64)>, long: u64, gap: u64, times: u64) {
        let number = self.network.cuts.last().map_or(1, |cut| cut.number + 1);
        self.network.cuts.push(Cut { number, open: true, links });
        self.after(long, Event::Heal { cut: number, long, gap, times });
    }

    /// This node was elected, and has not said so to anybody.
    pub fn elected(&mut self, id: u64) {
        if let Some(long) = self.network.cut_leaders.pop() {
            self.tell(|| format!("node {id} is cut off for {long}: it was elected"));
            let others = self.hosts.keys().filter(|other| **other != id);
            let links = others.flat_map(|other| [(id, *other), (*other, id)]).collect();
            self.cut_links(links, long, 0, 1);
        }
    }

    pub fn cut(&mut self, cut: u64, long: u64, gap: u64, times: u64) {
        if let Some(found) = self.network.cuts.iter_mut().find(|c| c.number == cut) {
            found.open = true;
            self.after(long, Event::Heal { cut, long, gap, times });
        }
    }

    pub fn heal(&mut self, cut: u64, long: u64, gap: u64, times: u64) {
        let Some(found) = self.network.cuts.iter_mut().find(|c| c.number == cut) else { return };
        found.open = false;
        if times > 1 {
            return self.after(gap, Event::Cut { cut, long, gap, times: times - 1 });
        }
        self.network.cuts.retain(|c| c.number != cut);
        self.tell(|| format!("cut {cut} is whole again"));
    }

    pub fn crash(&mut self, id: u64, power: bool, down: u64) {
        self.kill(id, power);
        self.after(down, Event::Restart(id));
    }

    /// As a program does that is stopped in order: whoever waits at this node hears of it.
    pub fn close(&mut self, id: u64, down: u64) {
        let Some(at) = self.place(id) else { return };
        // What has come by now is worked in first: a closed core writes nothing any more.
        self.poll(at);
        let Some(life) = self.life(at) else { return };
        life.core.close();
        self.poll(at);
        assert!(
            !self.clients.wait_at(at),
            "VIOLATION: requests without an end after close: {:?}",
            self.pending_at(&[id])
        );
        self.kill(id, false);
        self.after(down, Event::Restart(id));
    }

    /// All faults end, and whoever can runs again.
    pub fn calm(&mut self) {
        self.turmoil = false;
        self.tell(|| "---- faults end ----".into());
        self.network.cut.clear();
        self.network.cuts.clear();
        self.network.cut_leaders.clear();
        self.network.narrow.clear();
        self.network.break_snapshots = 0;
        // A move that was asked for and whose outcome nobody heard: its operator sees to it that both addresses answer.
        let moves = std::mem::take(&mut self.clients.moves);
        self.addrs.extend(moves.into_iter().filter(|(_, id)| self.hosts.get(id).is_some_and(|h| !h.retired)));
        let profile = &mut self.profile;
        (profile.loss, profile.duplicates, profile.reorder, profile.late) = (0.0, 0.0, 0.0, 0.0);
        profile.snapshot_fails = 0.0;
        profile.delay = (100, 2 * MILLI);
        profile.sync = (100, 3 * MILLI);
        profile.machine = (10, 2 * MILLI);
        profile.snapshot_send = (1000, 20 * MILLI);
        profile.snapshot_file = (500, 5 * MILLI);
        profile.restore = (500, 5 * MILLI);
        profile.answer = (5, 100);
        let now = self.now;
        for host in self.hosts.values_mut() {
            host.paused_until = host.paused_until.min(now);
            host.disk.calm();
            host.slow_machine = (0, 0);
            host.machine_fails = false;
        }
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        for id in ids {
            self.after(0, Event::Restart(id));
        }
    }
}

impl Host {
    /// What happens to one machine alone. When it is to be started again, if it stops.
    fn suffer(&mut self, act: &Act, now: u64) -> Option<u64> {
        match *act {
            Act::Pause { long, .. } => {
                self.paused_until = self.paused_until.max(now + long);
                self.late_until = self.paused_until;
                None
            }
            Act::Hang { long, .. } => {
                self.disk.hung_until = now + long;
                None
            }
            Act::SlowDisk { by, long, .. } => {
                self.disk.slow = (by, now + long);
                None
            }
            Act::FailSync { down, .. } => {
                self.disk.fails = true;
                Some(down)
            }
            Act::Full { long, stops, .. } => {
                self.disk.full = (now + long, stops);
                stops.then_some(long)
            }
            Act::SlowMachine { by, long, .. } => {
                self.slow_machine = (by, now + long);
                None
            }
            Act::FailMachine { down, .. } => {
                self.machine_fails = true;
                Some(down)
            }
            _ => None,
        }
    }
}

//! The world: one clock, one queue of events, all nodes. Everything happens in the order of (time, running number).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use raft::eraftpb::Message;
use raftify_engine::cluster::ClusterState;
use raftify_engine::core::{founding_digest, Body, Fetch};
use raftify_engine::log::{Identity, SnapshotMeta};
use raftify_engine::wire::{Hello, Welcome};
use raftify_engine::Uid;

use super::act::{Act, Step};
use super::clients::Clients;
use super::disk::{Disk, Image};
use super::draws::Draws;
use super::host::Host;
use super::machine::mix;
use super::network::Network;
use super::oracle::Oracle;
pub use super::profile::Profile;
use super::sessions::{Seat, Sessions};

pub const MILLI: u64 = 1000;
pub const SECOND: u64 = 1_000_000;
/// What clients use as the wall clock: 2020.
pub const EPOCH: u64 = 1_577_836_800_000_000;

/// Where an event happens: a node in one of its lives; in another life it does not happen.
pub type Place = (u64, u64);

pub enum Event {
    Tick(Place),
    Poll(Place),
    Deadline(Place),
    Synced(Place),
    Machine(Place),
    /// The machine's next answer has come through the inbox.
    Answered(Place),
    SnapshotFile {
        at: Place,
        id: u64,
        bytes: Vec<u8>,
    },
    Fetched {
        at: Place,
        fetch: Fetch,
    },
    Dial {
        at: Place,
        to: u64,
    },
    Hello {
        from: Place,
        to: Place,
        stream: u64,
        hello: Hello,
    },
    Welcome {
        at: Place,
        peer: Place,
        stream: u64,
        welcome: Welcome,
    },
    DialFailed {
        at: Place,
        peer: u64,
    },
    Broken {
        at: Place,
        peer: u64,
        stream: u64,
    },
    Deliver {
        from: u64,
        to: Place,
        stream: u64,
        body: Body,
    },
    DeliverBytes {
        from: u64,
        to: Place,
        stream: u64,
        bytes: Vec<u8>,
    },
    Snapshot {
        send: u64,
        from: Place,
        to: Place,
        stream: u64,
        meta: Arc<SnapshotMeta>,
        file: Option<Arc<Vec<u8>>>,
        message: Box<Message>,
    },
    SnapshotSent {
        at: Place,
        peer: u64,
        send: u64,
        delivered: bool,
    },
    /// A message of long ago comes once more.
    Late {
        from: u64,
        to: u64,
        body: Body,
    },
    Restart(u64),
    Move(u64, String),
    /// A command that was certainly not done is asked for again.
    Retry(Retry),
    Client,
    Fault,
    /// Of a script.
    Act(Box<Act>),
    /// Links go down, and up again, so many more times.
    Cut {
        cut: u64,
        long: u64,
        gap: u64,
        times: u64,
    },
    Heal {
        cut: u64,
        long: u64,
        gap: u64,
        times: u64,
    },
    /// The power goes at a machine whose process is down.
    Power(u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Retry {
    pub node: u64,
    pub command: u64,
    pub padding: u64,
    pub timeout: Option<u64>,
    pub left: u64,
    /// Who keeps a session; 0: nobody.
    pub customer: u64,
    pub seat: Option<Seat>,
    /// A second sending beside the first one.
    pub spare: bool,
}

impl Retry {
    pub fn of(node: u64, command: u64, padding: u64, timeout: Option<u64>, left: u64) -> Self {
        Retry { node, command, padding, timeout, left, customer: 0, seat: None, spare: false }
    }
}

impl Event {
    fn place(&self) -> Option<Place> {
        match self {
            Event::Tick(at) | Event::Poll(at) | Event::Deadline(at) | Event::Machine(at) | Event::Answered(at) => {
                Some(*at)
            }
            Event::SnapshotFile { at, .. }
            | Event::Fetched { at, .. }
            | Event::Dial { at, .. }
            | Event::Welcome { at, .. }
            | Event::DialFailed { at, .. }
            | Event::Broken { at, .. }
            | Event::SnapshotSent { at, .. } => Some(*at),
            Event::Hello { to, .. }
            | Event::Deliver { to, .. }
            | Event::DeliverBytes { to, .. }
            | Event::Snapshot { to, .. } => Some(*to),
            // The kernel goes on syncing although the process is stopped; its word comes later.
            Event::Synced(at) => Some(*at),
            Event::Late { .. }
            | Event::Restart(_)
            | Event::Move(..)
            | Event::Retry(_)
            | Event::Client
            | Event::Fault
            | Event::Act(_)
            | Event::Cut { .. }
            | Event::Heal { .. }
            | Event::Power(_) => None,
        }
    }

    /// What comes from outside happens before all else of the same moment: in a run that draws it, and in one that replays it.
    fn class(&self) -> u8 {
        u8::from(!matches!(self, Event::Client | Event::Fault | Event::Act(_)))
    }
}

struct Scheduled {
    at: u64,
    class: u8,
    number: u64,
    /// In a place of its own: the queue moves what is in it.
    event: Box<Event>,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.class, self.number) == (other.at, other.class, other.number)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.class, self.number).cmp(&(other.at, other.class, other.number))
    }
}

pub struct World {
    pub now: u64,
    pub profile: Profile,
    pub draws: Draws,
    pub hosts: BTreeMap<u64, Host>,
    /// Who listens at an address.
    pub addrs: BTreeMap<String, u64>,
    pub network: Network,
    pub oracle: Oracle,
    pub clients: Clients,
    pub sessions: Sessions,
    /// Faults and clients may still act.
    pub turmoil: bool,
    /// All that came from outside.
    pub steps: Vec<Step>,
    pub told: bool,
    pub events: u64,
    /// A running hash of all that happens: equal for equal seeds.
    pub trace: u64,
    pub lives: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
}

impl World {
    pub fn new(seed: u64, profile: Profile, draws: Draws, told: bool) -> Self {
        let mut world = World {
            now: SECOND,
            profile,
            draws,
            hosts: BTreeMap::new(),
            addrs: BTreeMap::new(),
            network: Network::default(),
            oracle: Oracle::default(),
            clients: Clients::default(),
            sessions: Sessions::default(),
            turmoil: true,
            steps: Vec::new(),
            told,
            events: 0,
            trace: mix(0, seed),
            lives: 0,
            queue: BinaryHeap::new(),
            number: 0,
        };
        let initial: BTreeMap<u64, String> = (1..=world.profile.nodes).map(|id| (id, format!("host:{id}"))).collect();
        let voters = world.profile.nodes - world.profile.learners;
        let founding = ClusterState::founding_with(&initial, &(voters + 1..=world.profile.nodes).collect());
        for (id, addr) in &initial {
            world.add_host(*id, addr.clone(), founding.clone());
            let at = world.now + world.draws.node(*id).range(0, 50 * MILLI);
            world.schedule(at, Event::Restart(*id));
        }
        world
    }

    /// A machine with an empty disk; not started yet.
    pub fn add_host(&mut self, id: u64, addr: String, founding: ClusterState) {
        let rng = self.draws.node(id);
        let directory = Uid(u128::from(rng.next()) << 64 | u128::from(rng.next()));
        let digest = if founding.members().is_empty() { 0 } else { founding_digest("sim", &founding) };
        let identity = Identity { node_id: id, directory, digest, cluster_id: "sim".into(), incarnation: None };
        let disk = Disk::new(Image::born(identity, &founding));
        let skew = self.profile.clock_skew;
        let rng = self.draws.node(id);
        let rate = 1000 + rng.range(0, skew + 1) - skew / 2;
        let wall = rng.range(0, 10 * SECOND);
        self.addrs.insert(addr.clone(), id);
        self.hosts.insert(id, Host::new(id, addr, founding, disk, rate, wall));
    }

    pub fn schedule(&mut self, at: u64, event: Event) {
        self.number += 1;
        let (at, class) = (at.max(self.now), event.class());
        self.queue.push(Reverse(Scheduled { at, class, number: self.number, event: Box::new(event) }));
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.schedule(self.now + delay, event);
    }

    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.told {
            println!("{:>12.3} {}", (self.now - SECOND) as f64 / 1000.0, what());
        }
    }

    pub fn is_alive(&self, at: Place) -> bool {
        self.hosts.get(&at.0).is_some_and(|h| h.life.as_ref().is_some_and(|l| l.number == at.1))
    }

    /// Runs until that moment.
    pub fn run_until(&mut self, until: u64) {
        while self.queue.peek().is_some_and(|Reverse(next)| next.at <= until) {
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now = next.at;
            if let Some(place) = next.event.place() {
                if !self.is_alive(place) {
                    continue;
                }
                let paused = self.hosts[&place.0].paused_until;
                if paused > self.now {
                    self.number += 1;
                    self.queue.push(Reverse(Scheduled {
                        at: paused,
                        class: next.class,
                        number: self.number,
                        event: next.event,
                    }));
                    continue;
                }
            }
            self.events += 1;
            self.happen(*next.event);
        }
        self.now = self.now.max(until);
    }

    pub fn run_for(&mut self, time: u64) {
        self.run_until(self.now + time);
    }

    /// Runs until that is so; false when it is not so in time.
    pub fn run_until_so(&mut self, limit: u64, mut so: impl FnMut(&mut World) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if so(self) {
                return true;
            }
            if self.now >= end {
                return false;
            }
            self.run_for(self.profile.tick.min(end - self.now));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(at) => self.tick(at),
            Event::Poll(at) => self.poll(at),
            Event::Deadline(at) => self.deadline(at),
            Event::Synced(at) => self.synced(at),
            Event::Machine(at) => self.machine_done(at),
            Event::Answered(at) => self.answered(at),
            Event::SnapshotFile { at, id, bytes } => self.snapshot_file_done(at, id, bytes),
            Event::Fetched { at, fetch } => self.fetched(at, fetch),
            Event::Dial { at, to } => self.dial(at, to),
            Event::Hello { from, to, stream, hello } => self.hello(from, to, stream, &hello),
            Event::Welcome { at, peer, stream, welcome } => self.welcome(at, peer, stream, &welcome),
            Event::DialFailed { at, peer } => self.dial_failed(at, peer),
            Event::Broken { at, peer, stream } => self.broken(at, peer, stream),
            Event::Deliver { from, to, stream, body } => self.deliver(from, to, stream, body),
            Event::DeliverBytes { from, to, stream, bytes } => self.deliver_bytes(from, to, stream, &bytes),
            Event::Snapshot { send, from, to, stream, meta, file, message } => {
                self.snapshot_arrives(send, from, to, stream, meta, file, *message);
            }
            Event::SnapshotSent { at, peer, send, delivered } => self.snapshot_sent(at, peer, send, delivered),
            Event::Restart(id) => self.start(id),
            Event::Move(id, addr) => self.relocate(id, addr),
            Event::Late { from, to, body } => self.late(from, to, body),
            Event::Retry(retry) => self.retry(retry),
            Event::Client => self.client_acts(),
            Event::Fault => self.fault_strikes(),
            Event::Act(act) => self.perform(*act),
            Event::Cut { cut, long, gap, times } => self.cut(cut, long, gap, times),
            Event::Heal { cut, long, gap, times } => self.heal(cut, long, gap, times),
            Event::Power(id) => self.kill(id, true),
        }
    }
}

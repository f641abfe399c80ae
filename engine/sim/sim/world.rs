//! The world: one clock, one queue of events, all nodes. Everything happens in the order of (time, running number).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::Message;
use raftify_engine::config::Config;
use raftify_engine::core::{founding_digest, Body, Fetch};
use raftify_engine::log::{Identity, SnapshotMeta};
use raftify_engine::wire::{Hello, Welcome};
use raftify_engine::Uid;

use super::clients::Clients;
use super::disk::{Disk, Image, Sabotage};
use super::draws::{pick, Draws};
use super::host::Host;
use super::machine::mix;
use super::network::Network;
use super::oracle::Oracle;

pub const MILLI: u64 = 1000;
pub const SECOND: u64 = 1_000_000;
/// What clients use as the wall clock: 2020.
pub const EPOCH: u64 = 1_577_836_800_000_000;

/// Where an event happens: a node in one of its lives; in another life it does not happen.
pub type Place = (u64, u64);

pub enum Event {
    Tick(Place),
    Poll(Place),
    Synced(Place),
    Machine(Place),
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
    Restart(u64),
    Move(u64, String),
    Client,
    Fault,
    Heal(u64),
}

impl Event {
    fn place(&self) -> Option<Place> {
        match self {
            Event::Tick(at) | Event::Poll(at) | Event::Machine(at) => Some(*at),
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
            Event::Restart(_) | Event::Move(..) | Event::Client | Event::Fault | Event::Heal(_) => None,
        }
    }
}

struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
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
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What kind of run this is.
#[derive(Clone, Debug)]
pub struct Profile {
    pub nodes: u64,
    /// How long faults and clients go on, in microseconds.
    pub turmoil: u64,
    pub tick: u64,
    pub config: Config,
    /// Microseconds from one node to the other.
    pub delay: (u64, u64),
    pub loss: f64,
    pub duplicates: f64,
    pub reorder: f64,
    /// Of a sync.
    pub sync: (u64, u64),
    pub machine: (u64, u64),
    pub restore: (u64, u64),
    pub snapshot_file: (u64, u64),
    pub snapshot_send: (u64, u64),
    /// Messages go through raft's codec.
    pub codec: bool,
    /// Between two requests of clients, on average.
    pub client_every: u64,
    /// Between two faults, on average; 0: none.
    pub fault_every: u64,
    pub membership: bool,
    pub snapshot_requests: bool,
    pub padding: u64,
    /// Parts in a thousand by which clocks run fast or slow.
    pub clock_skew: u64,
    /// Directories that may be lost for good.
    pub wipes: u64,
    /// State machines are durable by themselves, and come back at or behind what they had applied (S7).
    pub durable_machine: bool,
    pub sabotage: Option<Sabotage>,
}

impl Profile {
    /// Nothing goes wrong.
    pub fn quiet(nodes: u64) -> Self {
        let tick = 10 * MILLI;
        Profile {
            nodes,
            turmoil: 2 * SECOND,
            tick,
            config: Config {
                tick_interval: Duration::from_micros(tick),
                snapshot_entries: 0,
                snapshot_bytes: 0,
                ..Config::default()
            },
            delay: (200, 1000),
            loss: 0.0,
            duplicates: 0.0,
            reorder: 0.0,
            sync: (200, 1500),
            machine: (50, 500),
            restore: (500, 5000),
            snapshot_file: (500, 5000),
            snapshot_send: (1000, 20_000),
            codec: false,
            client_every: 5 * MILLI,
            fault_every: 0,
            membership: false,
            snapshot_requests: false,
            padding: 100,
            clock_skew: 0,
            wipes: 0,
            durable_machine: false,
            sabotage: None,
        }
    }

    pub fn drawn(draws: &mut Draws) -> Self {
        let rng = &mut draws.profile;
        let mut profile = Profile::quiet(pick(rng, &[1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 7]));
        profile.turmoil = rng.range(3, 10) * SECOND;
        profile.delay = (100, pick(rng, &[500, 2000, 8000, 30_000]));
        profile.sync = (100, pick(rng, &[500, 3000, 20_000, 80_000]));
        profile.machine = (10, pick(rng, &[200, 2000, 20_000, 200_000]));
        if rng.chance(0.5) {
            profile.loss = pick(rng, &[0.001, 0.01, 0.1]);
        }
        if rng.chance(0.5) {
            profile.duplicates = pick(rng, &[0.001, 0.02, 0.2]);
        }
        if rng.chance(0.3) {
            profile.reorder = pick(rng, &[0.01, 0.1]);
        }
        profile.codec = rng.chance(0.25);
        profile.client_every = pick(rng, &[2, 5, 20, 50]) * MILLI;
        if rng.chance(0.9) {
            profile.fault_every = pick(rng, &[50, 200, 600, 1500]) * MILLI;
        }
        profile.membership = rng.chance(0.5);
        profile.snapshot_requests = rng.chance(0.5);
        profile.padding = pick(rng, &[0, 100, 3000]);
        profile.clock_skew = pick(rng, &[0, 0, 20, 200]);
        let config = &mut profile.config;
        config.check_quorum = !rng.chance(0.05);
        config.pre_vote = !rng.chance(0.15);
        config.snapshot_entries = pick(rng, &[0, 7, 20, 60, 200]);
        config.snapshot_bytes = pick(rng, &[0, 0, 3000, 30_000]);
        config.trailing_entries = pick(rng, &[0, 3, 20, 200]);
        config.max_size_per_msg = pick(rng, &[1, 300, 4096, 1 << 20]);
        config.max_inflight_msgs = pick(rng, &[1, 4, 256]);
        config.max_committed_size_per_ready = pick(rng, &[1, 2000, 16 << 20]);
        config.max_unapplied_entries = pick(rng, &[20, 1_000_000, 1_000_000]);
        config.max_pending_proposals = pick(rng, &[10, 100_000, 100_000]);
        if rng.chance(0.2) {
            config.snapshot_interval = Some(Duration::from_millis(rng.range(50, 2000)));
        }
        if !profile.membership && rng.chance(0.3) {
            profile.wipes = (profile.nodes - 1) / 2;
        }
        profile.durable_machine = rng.chance(0.3);
        profile.config.outcomes_window = pick(rng, &[4, 30, 300, 8192]);
        profile.config.verify_results = rng.chance(0.3);
        profile
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
    /// Faults and clients may still act.
    pub turmoil: bool,
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
            turmoil: true,
            told,
            events: 0,
            trace: mix(0, seed),
            lives: 0,
            queue: BinaryHeap::new(),
            number: 0,
        };
        let initial: BTreeMap<u64, String> = (1..=world.profile.nodes).map(|id| (id, format!("host:{id}"))).collect();
        for (id, addr) in &initial {
            world.add_host(*id, addr.clone(), initial.clone());
            let at = world.now + world.draws.nodes.range(0, 50 * MILLI);
            world.schedule(at, Event::Restart(*id));
        }
        world
    }

    /// A machine with an empty disk; not started yet.
    pub fn add_host(&mut self, id: u64, addr: String, initial: BTreeMap<u64, String>) {
        let directory = Uid(u128::from(self.draws.nodes.next()) << 64 | u128::from(self.draws.nodes.next()));
        let digest = if initial.is_empty() { 0 } else { founding_digest("sim", &initial) };
        let identity = Identity { node_id: id, directory, digest, cluster_id: "sim".into(), incarnation: None };
        let disk = Disk::new(Image::born(identity, &initial));
        let skew = self.profile.clock_skew;
        let rate = 1000 + self.draws.nodes.range(0, skew + 1) - skew / 2;
        let wall = self.draws.nodes.range(0, 10 * SECOND);
        self.addrs.insert(addr.clone(), id);
        self.hosts.insert(id, Host::new(id, addr, initial, disk, rate, wall));
    }

    pub fn schedule(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), number: self.number, event }));
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
                    self.queue.push(Reverse(Scheduled { at: paused, number: self.number, event: next.event }));
                    continue;
                }
            }
            self.events += 1;
            self.happen(next.event);
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
            Event::Synced(at) => self.synced(at),
            Event::Machine(at) => self.machine_done(at),
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
            Event::Client => self.client_acts(),
            Event::Fault => self.fault_strikes(),
            Event::Heal(number) => self.heal(number),
        }
    }
}

//! What kind of run it is: the cluster, the network, disks and machines it lives with, and which faults exist at all.
//!
//! Swarm: each seed draws a subset of the faults, and how often each of them strikes. A run in which everything goes wrong at once
//! hides what one fault alone would show: a leader that is killed every second never has a long log.

use std::time::Duration;

use raftify_engine::config::Config;
use serde::{Deserialize, Serialize};

use super::disk::Sabotage;
use super::draws::{pick, Draws};
use super::world::{MILLI, SECOND};

/// What may strike; [`super::faults`] says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Kill,
    Close,
    PowerLoss,
    KillThenPower,
    /// Everybody at once.
    Outage,
    Isolate,
    IsolateLeader,
    Halves,
    OneWay,
    Link,
    /// Two halves and one node that sees both.
    Bridge,
    Flapping,
    /// Whoever is elected next is cut off at once.
    NewLeaders,
    Break,
    Narrow,
    BreakSnapshots,
    Pause,
    Hang,
    HangLeader,
    SlowDisk,
    FailSync,
    Full,
    Flip,
    SpoilSnapshot,
    Wipe,
    Jump,
    SlowMachine,
    FailMachine,
}

impl Kind {
    pub const ALL: [Kind; 28] = [
        Kind::Kill,
        Kind::Close,
        Kind::PowerLoss,
        Kind::KillThenPower,
        Kind::Outage,
        Kind::Isolate,
        Kind::IsolateLeader,
        Kind::Halves,
        Kind::OneWay,
        Kind::Link,
        Kind::Bridge,
        Kind::Flapping,
        Kind::NewLeaders,
        Kind::Break,
        Kind::Narrow,
        Kind::BreakSnapshots,
        Kind::Pause,
        Kind::Hang,
        Kind::HangLeader,
        Kind::SlowDisk,
        Kind::FailSync,
        Kind::Full,
        Kind::Flip,
        Kind::SpoilSnapshot,
        Kind::Wipe,
        Kind::Jump,
        Kind::SlowMachine,
        Kind::FailMachine,
    ];
}

/// What kind of run this is. Times are in microseconds, odds are of 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub nodes: u64,
    /// So many of them, the last ones, begin as learners.
    #[serde(default)]
    pub learners: u64,
    /// How long faults and clients go on.
    pub turmoil: u64,
    pub tick: u64,
    #[serde(with = "settings")]
    pub config: Config,
    /// From one node to the other.
    pub delay: (u64, u64),
    pub loss: f64,
    pub duplicates: f64,
    pub reorder: f64,
    /// Messages that come once more, long after, whatever has happened meanwhile.
    pub late: f64,
    /// Of a sync.
    pub sync: (u64, u64),
    pub machine: (u64, u64),
    pub restore: (u64, u64),
    pub snapshot_file: (u64, u64),
    pub snapshot_send: (u64, u64),
    /// From the machine's side to the core.
    #[serde(default)]
    pub answer: (u64, u64),
    /// Snapshots that cannot be taken or written.
    pub snapshot_fails: f64,
    /// Messages go through raft's codec.
    pub codec: bool,
    pub padding: u64,
    /// Parts in a thousand by which clocks run fast or slow.
    pub clock_skew: u64,
    /// Directories that may be lost for good; never more at once than leave every configuration a majority.
    pub wipes: u64,
    /// State machines are durable by themselves, and come back at or behind what they had applied (S7).
    #[serde(default)]
    pub durable_machine: bool,
    /// The machine's side tells its own proposers their results itself.
    #[serde(default)]
    pub tells: bool,
    /// An older snapshot file is kept as long as the log goes on from it (S6).
    #[serde(default)]
    pub spares: bool,
    pub sabotage: Option<Sabotage>,

    // ---- what a run draws from; a script says it all by itself
    /// Between two requests of clients, on average.
    pub client_every: u64,
    /// Of a hundred requests: reads, leaders transferred or stepping down, membership, snapshots.
    pub shares: [u64; 4],
    pub retries: u64,
    /// Of ten proposals so many are of clients with a session.
    #[serde(default)]
    pub sessions: u64,
    /// Between two faults, on average; 0: none.
    pub fault_every: u64,
    /// Which faults there are, and how often each.
    pub mix: Vec<(Kind, u64)>,
    /// How long a fault lasts.
    pub lasting: u64,
}

impl Profile {
    /// Nothing goes wrong.
    pub fn quiet(nodes: u64) -> Self {
        let tick = 10 * MILLI;
        Profile {
            nodes,
            learners: 0,
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
            late: 0.0,
            sync: (200, 1500),
            machine: (50, 500),
            restore: (500, 5000),
            snapshot_file: (500, 5000),
            snapshot_send: (1000, 20_000),
            snapshot_fails: 0.0,
            answer: (5, 100),
            codec: false,
            padding: 100,
            clock_skew: 0,
            wipes: 0,
            durable_machine: false,
            tells: false,
            spares: true,
            sabotage: None,
            client_every: 5 * MILLI,
            shares: [0; 4],
            retries: 0,
            sessions: 0,
            fault_every: 0,
            mix: Vec::new(),
            lasting: 400 * MILLI,
        }
    }

    /// A longer run of a middle-sized cluster, when `RAFTIFY_SIM_SECONDS` asks for that.
    pub fn stretch(&mut self) {
        if let Some(seconds) = std::env::var("RAFTIFY_SIM_SECONDS").ok().and_then(|v| v.parse::<f64>().ok()) {
            self.turmoil = (seconds * SECOND as f64) as u64;
            self.nodes = 3 + self.nodes % 3;
            self.learners = self.learners.min(self.nodes - 1);
        }
    }

    pub fn drawn(draws: &mut Draws) -> Self {
        let rng = &mut draws.profile;
        let mut profile = Profile::quiet(pick(rng, &[1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7]));
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
        if rng.chance(0.3) {
            profile.late = pick(rng, &[0.001, 0.01, 0.05]);
        }
        if rng.chance(0.5) {
            profile.snapshot_fails = 0.02;
        }
        if rng.chance(0.3) {
            profile.snapshot_file = (500, 200_000);
        }
        if rng.chance(0.3) {
            profile.snapshot_send = (1000, 600_000);
        }
        if rng.chance(0.3) {
            profile.restore = (500, 300_000);
        }
        profile.codec = rng.chance(0.25);
        profile.padding = pick(rng, &[0, 100, 3000]);
        profile.clock_skew = pick(rng, &[0, 0, 20, 200]);

        profile.client_every = pick(rng, &[2, 5, 20, 50]) * MILLI;
        let membership = if rng.chance(0.5) { pick(rng, &[1, 2, 8]) } else { 0 };
        profile.shares = [
            pick(rng, &[3, 30, 60]),
            pick(rng, &[0, 1, 1, 6]),
            membership,
            if rng.chance(0.5) { pick(rng, &[1, 2, 5]) } else { 0 },
        ];
        profile.retries = pick(rng, &[0, 0, 3]);
        if rng.chance(0.93) {
            profile.fault_every = pick(rng, &[50, 200, 600, 1500]) * MILLI;
        }
        profile.lasting = pick(rng, &[50, 400, 400, 1500]) * MILLI;
        let share = pick(rng, &[0.1, 0.3, 0.3, 0.6, 1.0]);
        for kind in Kind::ALL {
            let weight = pick(rng, &[1, 2, 2, 4, 10]);
            if rng.chance(share) {
                profile.mix.push((kind, weight));
            }
        }
        if rng.chance(0.5) {
            // Where members that are lost can be replaced there may be more of them, one after the other.
            profile.wipes = if membership == 0 { (profile.nodes - 1) / 2 } else { rng.range(1, 5) };
        }
        profile.durable_machine = rng.chance(0.3);
        draw_config(rng, &mut profile.config);
        profile.tells = rng.chance(0.5);
        profile.spares = rng.chance(0.7);
        profile.answer = (5, pick(rng, &[50, 50, 2000, 100_000]));
        if profile.nodes > 1 && rng.chance(0.15) {
            profile.learners = rng.range(1, profile.nodes);
        }
        profile.sessions = pick(rng, &[0, 0, 3, 10]);
        profile.config.max_sessions = pick(rng, &[1, 2, 4096]);
        // Small enough that a leader has to read from its disk what a follower lacks, or to send a snapshot instead.
        if rng.chance(0.3) {
            profile.config.tail_bytes = pick(rng, &[0, 2000, 20_000]);
        }
        profile
    }
}

fn draw_config(rng: &mut raftify_engine::core::Rng, config: &mut Config) {
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
    config.outcomes_window = pick(rng, &[4, 30, 300, 8192]);
    config.verify_results = rng.chance(0.3);
    // Small enough that a replay takes many batches: what happens in the middle of one is then seen.
    if rng.chance(0.7) {
        config.machine_batches = pick(rng, &[1, 2, 3]);
        config.machine_batch_entries = pick(rng, &[1, 3, 10, 50]);
        config.machine_batch_bytes = pick(rng, &[1, 200, 4000, 1 << 20]);
    }
}

/// The settings that a run may change, by name, where they are not the default.
mod settings {
    use std::collections::BTreeMap;

    use raftify_engine::config::Config;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    fn texts(config: &Config) -> BTreeMap<&'static str, String> {
        let seconds = |d: std::time::Duration| format!("{}", d.as_secs_f64());
        BTreeMap::from([
            ("tick_interval", seconds(config.tick_interval)),
            ("election_tick", config.election_tick.to_string()),
            ("heartbeat_tick", config.heartbeat_tick.to_string()),
            ("check_quorum", config.check_quorum.to_string()),
            ("pre_vote", config.pre_vote.to_string()),
            ("snapshot_entries", config.snapshot_entries.to_string()),
            ("snapshot_bytes", config.snapshot_bytes.to_string()),
            ("trailing_entries", config.trailing_entries.to_string()),
            ("max_size_per_msg", config.max_size_per_msg.to_string()),
            ("max_inflight_msgs", config.max_inflight_msgs.to_string()),
            ("max_committed_size_per_ready", config.max_committed_size_per_ready.to_string()),
            ("max_unapplied_entries", config.max_unapplied_entries.to_string()),
            ("max_pending_proposals", config.max_pending_proposals.to_string()),
            ("snapshot_interval", seconds(config.snapshot_interval.unwrap_or_default())),
            ("verify_results", config.verify_results.to_string()),
            ("outcomes_window", config.outcomes_window.to_string()),
            ("max_sessions", config.max_sessions.to_string()),
            ("machine_batches", config.machine_batches.to_string()),
            ("machine_batch_entries", config.machine_batch_entries.to_string()),
            ("machine_batch_bytes", config.machine_batch_bytes.to_string()),
            ("tail_bytes", config.tail_bytes.to_string()),
        ])
    }

    pub fn serialize<S: Serializer>(config: &Config, serializer: S) -> Result<S::Ok, S::Error> {
        let default = texts(&Config::default());
        let set: BTreeMap<_, _> = texts(config).into_iter().filter(|(name, value)| default[name] != *value).collect();
        set.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
        let mut config = Config::default();
        for (name, value) in BTreeMap::<String, String>::deserialize(deserializer)? {
            let number = || value.parse().expect("a number");
            match name.as_str() {
                "outcomes_window" => config.outcomes_window = number(),
                "max_sessions" => config.max_sessions = number(),
                "machine_batches" => config.machine_batches = number(),
                "machine_batch_entries" => config.machine_batch_entries = number(),
                "machine_batch_bytes" => config.machine_batch_bytes = number(),
                "tail_bytes" => config.tail_bytes = number(),
                _ => config.set(&name, &value).map_err(serde::de::Error::custom)?,
            }
        }
        Ok(config)
    }
}

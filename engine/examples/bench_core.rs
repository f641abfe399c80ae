//! The core alone: a cluster of cores in one thread, without disk, network and state machine. From proposing to applied.
//!
//! `cargo run --release -p raftify-engine --example bench_core`: a line of JSON for each size of cluster and of batch.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use raftify_engine::cluster::ClusterState;
use raftify_engine::core::{founding_digest, new_log, Body, Core, CoreOptions};
use raftify_engine::log::{Identity, LogState};
use raftify_engine::machine::{MachineAnswer, MachineRequest};
use raftify_engine::{Config, NodeId, Uid};

const PAYLOAD: usize = 128;
const WINDOW: Duration = Duration::from_secs(2);

fn founders(nodes: u64) -> BTreeMap<NodeId, String> {
    (1..=nodes).map(|id| (id, format!("host:{id}"))).collect()
}

fn identity(id: NodeId, initial: &BTreeMap<NodeId, String>) -> Identity {
    let digest = founding_digest("default", &ClusterState::founding(initial));
    Identity { node_id: id, directory: Uid(u128::from(id)), digest, cluster_id: "default".into(), incarnation: None }
}

/// Cores that hand each other their messages at once; every write is durable when it is asked for, every command applied.
struct Cluster {
    cores: Vec<Core>,
    now: u64,
    done: u64,
}

impl Cluster {
    fn new(nodes: u64) -> Self {
        let initial = founders(nodes);
        let config = Config { snapshot_entries: 0, snapshot_bytes: 0, ..Config::default() };
        let core = |id: NodeId| {
            let (hard_state, cluster, snapshot) = new_log(&ClusterState::founding(&initial));
            let log = LogState {
                identity: identity(id, &initial),
                hard_state,
                cluster,
                first_index: snapshot.as_ref().map_or(1, |s| s.index + 1),
                prev_term: snapshot.as_ref().map_or(0, |s| s.term),
                last_index: snapshot.as_ref().map_or(0, |s| s.index),
                snapshot,
                terms: Vec::new(),
                bytes: 0,
            };
            Core::new(CoreOptions {
                config: config.clone(),
                node_id: id,
                addr: initial[&id].clone(),
                initial: initial.clone(),
                start: id,
                seed: id,
                log,
                entries: Vec::new(),
                sessions: Vec::new(),
                machine_applied: None,
                now: 0,
            })
            .unwrap()
        };
        let mut cluster = Cluster { cores: (1..=nodes).map(core).collect(), now: 0, done: 0 };
        cluster.settle();
        let began = Instant::now();
        while !cluster.cores.iter().any(Core::is_leader) {
            assert!(began.elapsed() < Duration::from_secs(10), "nobody is elected");
            cluster.tick();
        }
        // The founding entry and the directories are recorded before anything is measured.
        for _ in 0..50 {
            cluster.tick();
        }
        cluster
    }

    fn tick(&mut self) {
        self.now += 100_000;
        for core in &mut self.cores {
            core.begin_turn(self.now, self.now);
            core.tick();
        }
        self.settle();
    }

    /// Both ways, as their streams would.
    fn greet(&mut self) {
        for from in 0..self.cores.len() {
            for to in (0..self.cores.len()).filter(|to| *to != from) {
                let hello = self.cores[from].hello(to as u64 + 1);
                let welcome = self.cores[to].greeted(&hello);
                let up = self.cores[from].welcomed(to as u64 + 1, &welcome);
                self.cores[from].connected(to as u64 + 1, up);
            }
        }
    }

    /// Until nobody has anything to do.
    fn settle(&mut self) {
        let mut greet = false;
        loop {
            let mut idle = true;
            for at in 0..self.cores.len() {
                let actions = self.cores[at].poll();
                greet |= actions.peers.is_some() || actions.hello_changed || !actions.disconnect.is_empty();
                if let Some(write) = actions.writes.last() {
                    self.cores[at].written(write.number);
                    idle = false;
                }
                for request in actions.machine {
                    idle = false;
                    let id = request.id();
                    self.cores[at].machine_answer(match request {
                        MachineRequest::Apply(batch) => {
                            self.done += batch.entries.iter().filter(|entry| entry.token != 0).count() as u64;
                            MachineAnswer::AppliedAndTold { id, outcomes: Vec::new() }
                        }
                        MachineRequest::Restore { .. } => MachineAnswer::Restored { id },
                        MachineRequest::Snapshot { .. } => MachineAnswer::Snapshot { id, result: Err("none".into()) },
                    });
                }
                for message in actions.messages {
                    if let Body::Raft(raft) = message.body.whole() {
                        idle = false;
                        self.cores[message.to as usize - 1].receive(at as u64 + 1, raft);
                    }
                }
            }
            if idle && greet {
                greet = false;
                self.greet();
            } else if idle {
                return;
            }
        }
    }

    fn run(&mut self, batch: u64) -> f64 {
        let leader = self.cores.iter().position(Core::is_leader).unwrap();
        let (began, before) = (Instant::now(), self.done);
        let mut token = 0;
        while began.elapsed() < WINDOW {
            let many = (0..batch).map(|_| {
                token += 1;
                (token, vec![7; PAYLOAD].into())
            });
            let many = many.collect();
            self.now += 1_000;
            for core in &mut self.cores {
                core.begin_turn(self.now, self.now);
            }
            self.cores[leader].propose(many, None);
            self.settle();
            // A commit index that nothing carries waits for its time.
            self.now += 10_000;
            for core in &mut self.cores {
                core.begin_turn(self.now, self.now);
                core.expire();
            }
            self.settle();
        }
        assert_eq!(self.done - before, token, "every proposal is applied");
        token as f64 / began.elapsed().as_secs_f64()
    }
}

fn main() {
    for nodes in [1, 3, 5] {
        for batch in [1, 64, 1024] {
            let rate = Cluster::new(nodes).run(batch);
            println!("{{\"part\":\"core\",\"nodes\":{nodes},\"batch\":{batch},\"entries_a_second\":{rate:.0}}}");
        }
    }
}

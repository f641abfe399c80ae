//! A node of ours over an imported directory, with a state machine that lists what it was given.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use raftify_engine::machine::{MachineAnswer, MachineRequest};
use raftify_engine::node::{LogRecord, Node, NodeOptions, Sink};
use raftify_engine::request::{Completion, Request, Timeout};
use raftify_engine::status::Event;
use raftify_engine::{Config, Error, Runtime};

#[derive(Default)]
struct State {
    node: OnceLock<Node>,
    waiting: Mutex<Vec<MachineRequest>>,
    lines: Mutex<Vec<Vec<u8>>>,
    times: Mutex<Vec<u64>>,
    completions: Mutex<Vec<Completion>>,
    /// Keeps requests in order while the handle is not there yet.
    turn: Mutex<()>,
}

pub struct Ours {
    state: Arc<State>,
    pub node: Node,
    _runtime: Runtime,
}

impl State {
    fn work(&self) {
        let _turn = self.turn.lock().unwrap();
        let Some(node) = self.node.get() else { return };
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        for request in waiting {
            node.answer(self.answer(node, request)).unwrap();
        }
    }

    fn answer(&self, node: &Node, request: MachineRequest) -> MachineAnswer {
        let mut lines = self.lines.lock().unwrap();
        match request {
            MachineRequest::Apply(batch) => {
                let mut outcomes = Vec::new();
                for (entry, command) in batch.commands() {
                    let command = command.to_vec();
                    self.times.lock().unwrap().push(entry.time_us);
                    if entry.wanted {
                        outcomes.push((entry.index, Ok(command.clone())));
                    }
                    lines.push(command);
                }
                MachineAnswer::Applied { id: batch.id, outcomes }
            }
            MachineRequest::Snapshot { id, .. } => {
                node.snapshot_chunk(id, &crate::theirs::encode(&lines)).unwrap();
                node.snapshot_done(id, Ok(())).unwrap();
                MachineAnswer::Snapshot { id, result: Ok(()) }
            }
            MachineRequest::Restore { id, size, .. } => {
                let mut bytes = vec![0; size as usize];
                let mut at = 0;
                while at < bytes.len() {
                    let read = node.restore_read(id, at as u64, &mut bytes[at..]).unwrap();
                    assert!(read > 0, "the snapshot ends at {at} of {size} bytes");
                    at += read;
                }
                *lines = raftify::bincode::deserialize(&bytes).unwrap();
                MachineAnswer::Restored { id }
            }
        }
    }
}

struct Ear(Arc<State>);

impl Sink for Ear {
    fn completions(&self, batch: Vec<Completion>) {
        self.0.completions.lock().unwrap().extend(batch);
    }

    fn machine(&self, request: MachineRequest) {
        self.0.waiting.lock().unwrap().push(request);
        self.0.work();
    }

    fn event(&self, _: Event) {}
    fn log(&self, record: LogRecord) {
        eprintln!("node {}: {}", record.node_id, record.message);
    }
    fn log_level(&self) -> slog::Level {
        slog::Level::Warning
    }
    fn started(&self, _: &str) {}
    fn closed(&self, why: Result<(), Error>) {
        why.unwrap();
    }
}

/// Waits for what must come; the limit only ends a test that has failed.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < limit, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Ours {
    pub fn start(log_dir: &Path, id: u64, addr: &str, peers: &[(u64, &str)]) -> Ours {
        let mut config = Config { log_dir: log_dir.to_path_buf(), ..Config::default() };
        config.tick_interval = Duration::from_millis(20);
        let peers: BTreeMap<u64, String> = peers.iter().map(|(id, addr)| (*id, addr.to_string())).collect();
        let options =
            NodeOptions { config, node_id: id, raft_addr: addr.into(), peers: Some(peers), machine_applied: None };
        let state = Arc::new(State::default());
        let runtime = Runtime::new().unwrap();
        let node = Node::start(&runtime, options, Arc::new(Ear(state.clone()))).unwrap();
        assert!(state.node.set(node.clone()).is_ok());
        state.work();
        Ours { state, node, _runtime: runtime }
    }

    pub fn lines(&self) -> Vec<Vec<u8>> {
        self.state.lines.lock().unwrap().clone()
    }

    pub fn times(&self) -> Vec<u64> {
        self.state.times.lock().unwrap().clone()
    }

    /// Proposes one command and waits until it is applied here.
    pub fn propose(&self, command: &[u8]) {
        let mut token = 0;
        until("the command is taken", || {
            token += 1;
            self.node.submit(token, Request::Propose(command.to_vec().into()), Timeout::Default).unwrap();
            let mut result = None;
            until("the proposal completes", || {
                let mut completions = self.state.completions.lock().unwrap();
                result = completions.iter().position(|c| c.token == token).map(|at| completions.remove(at).result);
                result.is_some()
            });
            match result.unwrap() {
                Ok(_) => true,
                Err(error) if error.retryable() => false,
                Err(error) => panic!("{error}"),
            }
        });
    }

    pub fn close(self) {
        self.node.close(Duration::from_secs(10));
        assert!(self.node.wait_closed(Duration::from_secs(30)));
    }
}

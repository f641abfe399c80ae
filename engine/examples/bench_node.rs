//! One node of the bench protocol (`benches/README.md`): the engine alone, a map as state machine, proposals submitted in batches; with
//! `BENCH_FUTURES` in the environment each proposal is a future that a task of its own awaits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, Write};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raftify_engine::machine::{ApplyBatch, MachineRequest};
use raftify_engine::machine_thread::{MachineThread, Results, SnapshotIn, SnapshotOut, StateMachine};
use raftify_engine::node::{LogRecord, Node, NodeOptions, Sink};
use raftify_engine::request::{Completion, Timeout};
use raftify_engine::status::Event;
use raftify_engine::{Config, Error, Rng, Runtime};
use tokio::sync::oneshot;

#[derive(Default)]
struct Map {
    values: HashMap<[u8; 8], Vec<u8>>,
    applied: u64,
}

impl Map {
    /// By key: equal maps look the same.
    fn sorted(&self) -> BTreeMap<&[u8; 8], &Vec<u8>> {
        self.values.iter().collect()
    }
}

struct Machine(Arc<Mutex<Map>>);

impl StateMachine for Machine {
    fn apply(&mut self, batch: &ApplyBatch, _results: &mut Results) -> Result<(), String> {
        let mut map = self.0.lock().unwrap();
        for (_, command) in batch.commands() {
            let (key, value) = command.split_first_chunk::<8>().ok_or("a command without a key")?;
            let present = map.values.entry(*key).or_default();
            present.clear();
            present.extend_from_slice(value);
            map.applied += 1;
        }
        Ok(())
    }

    fn snapshot(&mut self, out: &mut dyn SnapshotOut) -> Result<(), String> {
        let map = self.0.lock().unwrap();
        let mut write = |bytes: &[u8]| out.write(bytes).map_err(|e| e.to_string());
        write(&map.applied.to_le_bytes())?;
        for (key, value) in map.sorted() {
            write(key)?;
            write(&(value.len() as u32).to_le_bytes())?;
            write(value)?;
        }
        Ok(())
    }

    fn restore(&mut self, input: &mut dyn SnapshotIn) -> Result<(), String> {
        let mut state = Vec::new();
        let mut piece = vec![0; 1 << 16];
        loop {
            match input.read(&mut piece).map_err(|e| e.to_string())? {
                0 => break,
                n => state.extend_from_slice(&piece[..n]),
            }
        }
        let (applied, mut rest) = state.split_first_chunk::<8>().ok_or("too short")?;
        let mut map = Map { applied: u64::from_le_bytes(*applied), ..Map::default() };
        while let Some((key, more)) = rest.split_first_chunk::<8>() {
            let (len, more) = more.split_first_chunk::<4>().ok_or("too short")?;
            let (value, more) = more.split_at(u32::from_le_bytes(*len) as usize);
            map.values.insert(*key, value.to_vec());
            rest = more;
        }
        *self.0.lock().unwrap() = map;
        Ok(())
    }
}

struct Hear {
    machine: MachineThread,
    completions: tokio::sync::mpsc::UnboundedSender<Vec<Completion>>,
    closed: Mutex<bool>,
    close: Condvar,
}

impl Sink for Hear {
    fn completions(&self, batch: Vec<Completion>) {
        let _ = self.completions.send(batch);
    }
    fn machine(&self, request: MachineRequest) {
        self.machine.request(request);
    }
    fn event(&self, _: Event) {}
    fn log(&self, record: LogRecord) {
        eprintln!("{} {}", record.level, record.message);
    }
    fn log_level(&self) -> slog::Level {
        slog::Level::Warning
    }
    fn started(&self, _: &str) {}
    fn closed(&self, why: Result<(), Error>) {
        if let Err(error) = why {
            eprintln!("{error}");
        }
        *self.closed.lock().unwrap() = true;
        self.close.notify_all();
    }
}

struct Load {
    rng: Rng,
    body: Vec<u8>,
    keys: u64,
}

impl Load {
    fn next(&mut self) -> Bytes {
        let mut command = (self.rng.next() % self.keys).to_be_bytes().to_vec();
        command.extend_from_slice(&self.body);
        command.into()
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

/// What one `BENCH` line asks for.
#[derive(Clone, Copy)]
struct Plan {
    payload: usize,
    inflight: usize,
    secs: u64,
    warm: u64,
}

/// When what is measured begins and ends, and what was seen.
struct Window {
    from: Instant,
    to: Instant,
    measuring: bool,
    ended: bool,
    latencies: Vec<Duration>,
    errors: u64,
    sample: String,
}

impl Window {
    fn new(plan: Plan) -> Self {
        let from = Instant::now() + Duration::from_secs(plan.warm);
        let to = from + Duration::from_secs(plan.secs);
        Window { from, to, measuring: false, ended: false, latencies: vec![], errors: 0, sample: String::new() }
    }

    fn give_up(&self) -> Instant {
        self.to + Duration::from_secs(20)
    }

    fn look(&mut self, now: Instant) {
        if !self.measuring && now >= self.from {
            self.measuring = true;
            say("MEASURE");
        }
        if !self.ended && now >= self.to {
            self.ended = true;
            say("END");
        }
    }

    fn count(&mut self, latency: Duration, error: Option<Error>) {
        let counts = self.measuring && !self.ended;
        match error {
            None if counts => self.latencies.push(latency),
            None => {}
            Some(error) => {
                self.errors += u64::from(counts);
                self.sample = error.to_string();
            }
        }
    }

    fn tell(mut self, secs: u64, drained: bool) {
        self.latencies.sort_unstable();
        let at = |q: f64| {
            let i = ((self.latencies.len() as f64 * q) as usize).min(self.latencies.len().saturating_sub(1));
            self.latencies.get(i).map_or(0.0, |d| d.as_secs_f64() * 1e3)
        };
        let result = serde_json::json!({
            "n": self.latencies.len(), "errors": self.errors, "secs": secs, "p50_ms": at(0.5), "p99_ms": at(0.99),
            "max_ms": at(1.0), "err_sample": self.sample, "drained": drained,
        });
        say(&result.to_string());
    }
}

fn new_load(plan: Plan) -> Load {
    // The state stays at 16 MiB or below, whatever the payload.
    let keys = if plan.payload <= 4096 { 10_000 } else { ((16 << 20) / plan.payload as u64).clamp(1, 1024) };
    Load { rng: Rng::new(1), body: vec![7; plan.payload.saturating_sub(8)], keys }
}

type Completions = tokio::sync::mpsc::UnboundedReceiver<Vec<Completion>>;

/// Batches: what has completed is submitted anew in one call.
async fn batches(node: &Node, completions: &mut Completions, plan: Plan) {
    let mut load = new_load(plan);
    let mut window = Window::new(plan);
    let mut sent: Vec<Instant> = vec![Instant::now(); plan.inflight];
    let first: Vec<_> = (0..plan.inflight).map(|slot| (slot as u64, load.next())).collect();
    node.propose_many(first, Timeout::Default).unwrap();
    let mut pending = plan.inflight;
    while pending > 0 {
        let Ok(Some(batch)) = tokio::time::timeout_at(window.give_up().into(), completions.recv()).await else { break };
        let now = Instant::now();
        window.look(now);
        let mut again = Vec::with_capacity(batch.len());
        for completion in batch {
            let slot = completion.token as usize;
            window.count(now - sent[slot], completion.result.err());
            if window.ended {
                pending -= 1;
            } else {
                sent[slot] = now;
                again.push((slot as u64, load.next()));
            }
        }
        if let Err(error) = node.propose_many(again, Timeout::Default) {
            eprintln!("{error}");
            break;
        }
    }
    window.tell(plan.secs, pending == 0);
}

type Waiter = oneshot::Sender<Result<(), Error>>;

/// Those who wait for their proposals, by token, and what they have proposed since the last submit.
struct Futures {
    waiting: RefCell<Vec<Option<Waiter>>>,
    proposed: RefCell<Vec<(u64, Bytes)>>,
    filled: tokio::sync::Notify,
}

impl Futures {
    async fn propose(&self, slot: usize, command: Bytes) -> Result<(), Error> {
        let (tell, told) = oneshot::channel();
        self.waiting.borrow_mut()[slot] = Some(tell);
        self.proposed.borrow_mut().push((slot as u64, command));
        self.filled.notify_one();
        told.await.unwrap()
    }
}

/// One task a proposal in flight: it makes a command, proposes it, awaits its own result, and begins again.
async fn futures(node: &Node, completions: &mut Completions, plan: Plan) {
    let futures = Rc::new(Futures {
        waiting: RefCell::new((0..plan.inflight).map(|_| None).collect()),
        proposed: RefCell::default(),
        filled: tokio::sync::Notify::new(),
    });
    let load = Rc::new(RefCell::new(new_load(plan)));
    let window = Rc::new(RefCell::new(Window::new(plan)));
    let pending = Rc::new(Cell::new(plan.inflight));
    for slot in 0..plan.inflight {
        let (futures, load, window, pending) = (futures.clone(), load.clone(), window.clone(), pending.clone());
        tokio::task::spawn_local(async move {
            while !window.borrow().ended {
                let command = load.borrow_mut().next();
                let sent = Instant::now();
                let result = futures.propose(slot, command).await;
                let now = Instant::now();
                let mut window = window.borrow_mut();
                window.look(now);
                window.count(now - sent, result.err());
            }
            pending.set(pending.get() - 1);
            // Whoever waits for the last one looks again.
            futures.filled.notify_one();
        });
    }
    let give_up = tokio::time::sleep_until(window.borrow().give_up().into());
    tokio::pin!(give_up);
    while pending.get() > 0 {
        tokio::select! {
            () = futures.filled.notified() => {
                let proposed = futures.proposed.take();
                node.propose_many(proposed, Timeout::Default).unwrap();
            }
            batch = completions.recv() => for completion in batch.unwrap_or_default() {
                let waiter = futures.waiting.borrow_mut()[completion.token as usize].take();
                let _ = waiter.unwrap().send(completion.result.map(drop));
            },
            () = &mut give_up => break,
        }
    }
    let window = window.replace(Window::new(plan));
    window.tell(plan.secs, pending.get() == 0);
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).map(|i| args[i + 1].clone()).expect(name);
    let id: u64 = value("--id").parse().unwrap();
    let peers: BTreeMap<u64, String> = value("--peers")
        .split(',')
        .map(|peer| peer.split_once('=').expect("id=host:port"))
        .map(|(id, addr)| (id.parse().unwrap(), addr.to_string()))
        .collect();
    let mut config = Config { log_dir: value("--dir").into(), ..Config::default() };
    if let Ok(engine) = std::env::var("BENCH_LOG_ENGINE") {
        config.set("log_engine", &engine).unwrap();
    }
    let map = Arc::new(Mutex::new(Map::default()));
    let machine = MachineThread::spawn(Box::new(Machine(Arc::clone(&map))), || {}).unwrap();
    let (tell, mut completions) = tokio::sync::mpsc::unbounded_channel();
    let sink = Arc::new(Hear { machine, completions: tell, closed: Mutex::new(false), close: Condvar::new() });
    let runtime = Runtime::new().unwrap();
    let raft_addr = peers[&id].clone();
    let options = NodeOptions { config, node_id: id, raft_addr, peers: Some(peers), machine_applied: None };
    let node = Node::start(&runtime, options, Arc::clone(&sink) as Arc<dyn Sink>).unwrap();
    sink.machine.attach(node.clone());
    let client = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let leader = || node.status().leader_id.unwrap_or(0);
    while leader() == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    say(&format!("READY {}", leader()));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["BENCH", ..] if leader() != id => say(&format!("{{\"error\":\"not leader\",\"leader\":{}}}", leader())),
            ["BENCH", payload, inflight, secs, warm] => {
                let plan = Plan {
                    payload: payload.parse().unwrap(),
                    inflight: inflight.parse().unwrap(),
                    secs: secs.parse().unwrap(),
                    warm: warm.parse().unwrap(),
                };
                let tasks = tokio::task::LocalSet::new();
                if std::env::var_os("BENCH_FUTURES").is_some() {
                    tasks.block_on(&client, futures(&node, &mut completions, plan));
                } else {
                    tasks.block_on(&client, batches(&node, &mut completions, plan));
                }
            }
            ["STATE"] => {
                let map = map.lock().unwrap();
                let mut digest = 0u32;
                for (key, value) in map.sorted() {
                    digest = crc32c::crc32c_append(crc32c::crc32c_append(digest, key), value);
                }
                say(&format!("{{\"applied\":{},\"keys\":{},\"digest\":{digest}}}", map.applied, map.values.len()));
            }
            ["QUIT"] => break,
            _ => {}
        }
    }
    node.close(Duration::from_secs(2));
    node.wait_closed(Duration::from_secs(4));
}

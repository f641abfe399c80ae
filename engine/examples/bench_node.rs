//! One node of the bench protocol (`benches/README.md`): the engine alone, a map as state machine, proposals submitted in batches.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, Write};
use std::sync::{mpsc, Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use raftify_engine::machine::{ApplyBatch, MachineRequest};
use raftify_engine::machine_thread::{MachineThread, Results, SnapshotIn, SnapshotOut, StateMachine};
use raftify_engine::node::{LogRecord, Node, NodeOptions, Sink};
use raftify_engine::request::{Completion, Timeout};
use raftify_engine::status::Event;
use raftify_engine::{Config, Error, Rng, Runtime};

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
        for entry in &batch.entries {
            let command = &batch.data[entry.offset..entry.offset + entry.len];
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
    completions: Mutex<mpsc::Sender<Vec<Completion>>>,
    closed: Mutex<bool>,
    close: Condvar,
}

impl Sink for Hear {
    fn completions(&self, batch: Vec<Completion>) {
        let _ = self.completions.lock().unwrap().send(batch);
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
    fn next(&mut self) -> Vec<u8> {
        let mut command = (self.rng.next() % self.keys).to_be_bytes().to_vec();
        command.extend_from_slice(&self.body);
        command
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

fn bench(
    node: &Node,
    completions: &mpsc::Receiver<Vec<Completion>>,
    payload: usize,
    inflight: usize,
    secs: u64,
    warm: u64,
) {
    // The state stays at 16 MiB or below, whatever the payload.
    let keys = if payload <= 4096 { 10_000 } else { ((16 << 20) / payload as u64).clamp(1, 1024) };
    let mut load = Load { rng: Rng::new(1), body: vec![7; payload.saturating_sub(8)], keys };
    let mut sent: Vec<Instant> = vec![Instant::now(); inflight];
    let first: Vec<_> = (0..inflight).map(|slot| (slot as u64, load.next())).collect();
    node.propose_many(first, Timeout::Default).unwrap();
    let begin = Instant::now();
    let (from, to) = (begin + Duration::from_secs(warm), begin + Duration::from_secs(warm + secs));
    let (mut measuring, mut ended) = (false, false);
    let mut latencies: Vec<Duration> = Vec::new();
    let (mut errors, mut pending) = (0u64, inflight);
    let mut sample = String::new();
    let give_up = to + Duration::from_secs(20);
    while pending > 0 && Instant::now() < give_up {
        let Ok(batch) = completions.recv_timeout(Duration::from_millis(100)) else { continue };
        let now = Instant::now();
        if !measuring && now >= from {
            measuring = true;
            say("MEASURE");
        }
        if !ended && now >= to {
            ended = true;
            say("END");
        }
        let mut again = Vec::with_capacity(batch.len());
        for completion in batch {
            let slot = completion.token as usize;
            match completion.result {
                Ok(_) if measuring && !ended => latencies.push(now - sent[slot]),
                Ok(_) => {}
                Err(error) => {
                    errors += u64::from(measuring && !ended);
                    sample = error.to_string();
                }
            }
            if ended {
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
    latencies.sort_unstable();
    let at = |q: f64| {
        let i = ((latencies.len() as f64 * q) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(i).map_or(0.0, |d| d.as_secs_f64() * 1e3)
    };
    let result = serde_json::json!({
        "n": latencies.len(), "errors": errors, "secs": secs, "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
        "err_sample": sample, "drained": pending == 0,
    });
    say(&result.to_string());
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
    let (tell, completions) = mpsc::channel();
    let sink =
        Arc::new(Hear { machine, completions: Mutex::new(tell), closed: Mutex::new(false), close: Condvar::new() });
    let runtime = Runtime::new().unwrap();
    let raft_addr = peers[&id].clone();
    let options = NodeOptions { config, node_id: id, raft_addr, peers: Some(peers), machine_applied: None };
    let node = Node::start(&runtime, options, Arc::clone(&sink) as Arc<dyn Sink>).unwrap();
    sink.machine.attach(node.clone());
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
            ["BENCH", payload, inflight, secs, warm] => bench(
                &node,
                &completions,
                payload.parse().unwrap(),
                inflight.parse().unwrap(),
                secs.parse().unwrap(),
                warm.parse().unwrap(),
            ),
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

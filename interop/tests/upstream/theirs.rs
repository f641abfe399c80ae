//! Upstream, as it is: its storage by hand, and a whole node of it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use raftify::raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raftify::raft::logger::Logger;
use raftify::{
    AbstractLogEntry, AbstractStateMachine, Config, ConfigBuilder, HeedStorage, Raft, RaftConfig, Result,
    StableStorage as _,
};

#[derive(Debug)]
pub struct Silent;

impl Logger for Silent {
    fn trace(&self, _: &str) {}
    fn debug(&self, _: &str) {}
    fn info(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn error(&self, _: &str) {}
    fn fatal(&self, _: &str) {}
}

fn config(dir: &Path) -> Config {
    let raft_config = RaftConfig { id: 1, election_tick: 10, heartbeat_tick: 3, ..RaftConfig::default() };
    ConfigBuilder::new()
        .log_dir(dir.to_str().unwrap().to_owned())
        .raft_config(raft_config)
        .tick_interval(0.02)
        .lmdb_map_size(64 << 20)
        .build()
}

pub fn storage(dir: &Path) -> HeedStorage {
    HeedStorage::create(dir.to_str().unwrap(), &config(dir), Arc::new(Silent)).unwrap()
}

pub fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
    let context = raftify::bincode::serialize(&(index - 1)).unwrap();
    Entry { index, term, data: data.to_vec(), context, ..Entry::default() }
}

pub fn conf(voters: &[u64]) -> ConfState {
    ConfState { voters: voters.to_vec(), ..ConfState::default() }
}

pub fn snapshot(index: u64, term: u64, data: &[u8]) -> Snapshot {
    let mut snapshot = Snapshot { data: data.to_vec(), ..Snapshot::default() };
    snapshot.mut_metadata().index = index;
    snapshot.mut_metadata().term = term;
    *snapshot.mut_metadata().mut_conf_state() = conf(&[1, 2, 3]);
    snapshot
}

/// A directory with entries `1..=last` of term 1, of which `commit` are stored as committed.
pub fn plain(dir: &Path, last: u64, commit: u64) {
    let mut storage = storage(dir);
    storage.apply_snapshot(snapshot(0, 0, b"")).unwrap();
    let entries: Vec<Entry> = (1..=last).map(|i| entry(i, 1, format!("command {i}").as_bytes())).collect();
    storage.append(&entries).unwrap();
    storage.set_hard_state(&HardState { term: 1, vote: 1, commit }).unwrap();
}

/// A state machine that lists what it was given, each command behind its length.
#[derive(Clone, Debug, Default)]
pub struct Lines(pub Arc<Mutex<Vec<Vec<u8>>>>);

pub fn encode(lines: &[Vec<u8>]) -> Vec<u8> {
    raftify::bincode::serialize(lines).unwrap()
}

#[raftify::async_trait]
impl AbstractStateMachine for Lines {
    async fn apply(&mut self, command: Vec<u8>) -> Result<Vec<u8>> {
        self.0.lock().unwrap().push(command.clone());
        Ok(command)
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(encode(&self.0.lock().unwrap()))
    }

    async fn restore(&mut self, snapshot: Vec<u8>) -> Result<()> {
        *self.0.lock().unwrap() = raftify::bincode::deserialize(&snapshot).unwrap();
        Ok(())
    }

    fn encode(&self) -> Result<Vec<u8>> {
        Ok(encode(&self.0.lock().unwrap()))
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(Lines(Arc::new(Mutex::new(raftify::bincode::deserialize(bytes).unwrap()))))
    }
}

#[derive(Clone, Debug)]
pub struct Command(pub Vec<u8>);

impl AbstractLogEntry for Command {
    fn encode(&self) -> Result<Vec<u8>> {
        Ok(self.0.clone())
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(Command(bytes.to_vec()))
    }
}

pub type Node = Raft<Command, HeedStorage, Lines>;

/// Runs one whole node of upstream's over `dir` while `work` uses it, and stops it.
pub fn with_node<F: std::future::Future<Output = ()>>(dir: &Path, work: impl FnOnce(Node) -> F) -> Lines {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let lines = Lines::default();
    runtime.block_on(async {
        let addr = free_addr();
        let node = Node::bootstrap(1, addr, storage(dir), lines.clone(), config(dir), Arc::new(Silent)).unwrap();
        let running = tokio::spawn(node.clone().run());
        work(node.clone()).await;
        node.quit().await.unwrap();
        running.await.unwrap().unwrap();
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    lines
}

pub fn free_addr() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Every file below `dir`: length, checksum of its bytes, time of its last change.
pub fn files(dir: &Path) -> Vec<(PathBuf, usize, u32, SystemTime)> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .flat_map(|item| {
            let path = item.unwrap().path();
            if path.is_dir() {
                files(&path)
            } else {
                let bytes = std::fs::read(&path).unwrap();
                let changed = path.metadata().unwrap().modified().unwrap();
                vec![(path, bytes.len(), crc32c::crc32c(&bytes), changed)]
            }
        })
        .collect();
    found.sort();
    found
}

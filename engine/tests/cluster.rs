//! Real nodes over loopback with real directories: elect, propose anywhere, read anywhere, restart, snapshot, join.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{mpsc, Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use raftify_engine::machine::{MachineAnswer, MachineRequest};
use raftify_engine::node::{LogRecord, Node, NodeOptions, Sink};
use raftify_engine::request::{Completion, Reply, Request, Ticket, Timeout};
use raftify_engine::status::{Event, Role};
use raftify_engine::{Config, Error, ErrorCode, LogEngine, Runtime};

/// A machine that keeps every command, and answers with its number.
#[derive(Default)]
struct Machine {
    commands: Vec<Vec<u8>>,
}

struct Probe {
    node: OnceLock<Node>,
    machine: Mutex<Machine>,
    requests: Mutex<mpsc::Sender<MachineRequest>>,
    completions: Mutex<mpsc::Sender<Completion>>,
    started: Mutex<Option<mpsc::Sender<String>>>,
    closed: Mutex<Option<Result<(), Error>>>,
}

impl Sink for Probe {
    fn completions(&self, batch: Vec<Completion>) {
        let out = self.completions.lock().unwrap();
        batch.into_iter().for_each(|c| drop(out.send(c)));
    }
    fn machine(&self, request: MachineRequest) {
        let _ = self.requests.lock().unwrap().send(request);
    }
    fn event(&self, _event: Event) {}
    fn log(&self, record: LogRecord) {
        if std::env::var_os("RAFTIFY_TEST_LOG").is_some() {
            eprintln!("{} node {} term {}: {}", record.level, record.node_id, record.term, record.message);
        }
    }
    fn log_level(&self) -> slog::Level {
        slog::Level::Debug
    }
    fn started(&self, addr: &str) {
        if let Some(tell) = self.started.lock().unwrap().take() {
            let _ = tell.send(addr.to_string());
        }
    }
    fn closed(&self, why: Result<(), Error>) {
        *self.closed.lock().unwrap() = Some(why);
    }
}

struct Running {
    node: Node,
    probe: Arc<Probe>,
    completions: mpsc::Receiver<Completion>,
    token: u64,
    addr: String,
}

fn start(
    runtime: &Runtime,
    config: Config,
    id: u64,
    addr: &str,
    peers: Option<BTreeMap<u64, String>>,
) -> Result<Running, Error> {
    let (requests, to_do) = mpsc::channel();
    let (tell, completions) = mpsc::channel();
    let (started, told) = mpsc::channel();
    let probe = Arc::new(Probe {
        node: OnceLock::new(),
        machine: Mutex::default(),
        requests: Mutex::new(requests),
        completions: Mutex::new(tell),
        started: Mutex::new(Some(started)),
        closed: Mutex::new(None),
    });
    let options = NodeOptions { config, node_id: id, raft_addr: addr.into(), peers, machine_applied: None };
    let node = Node::start(runtime, options, Arc::clone(&probe) as Arc<dyn Sink>)?;
    probe.node.set(node.clone()).ok();
    let machine = Arc::clone(&probe);
    std::thread::spawn(move || {
        while let Ok(request) = to_do.recv() {
            serve(&machine, request);
        }
    });
    let addr = told.recv_timeout(Duration::from_secs(30)).expect("the node starts");
    Ok(Running { node, probe, completions, token: 0, addr })
}

fn serve(probe: &Probe, request: MachineRequest) {
    let Some(node) = probe.node.get() else { panic!("asked before it started") };
    match request {
        MachineRequest::Apply(batch) => {
            let mut outcomes = Vec::new();
            let mut machine = probe.machine.lock().unwrap();
            for (entry, command) in batch.commands() {
                machine.commands.push(command.to_vec());
                if entry.wanted {
                    outcomes.push((entry.index, Ok(machine.commands.len().to_string().into_bytes())));
                }
            }
            drop(machine);
            let _ = node.answer(MachineAnswer::Applied { id: batch.id, outcomes });
        }
        MachineRequest::Snapshot { id, .. } => {
            let commands = probe.machine.lock().unwrap().commands.clone();
            for command in &commands {
                let mut chunk = (command.len() as u32).to_le_bytes().to_vec();
                chunk.extend_from_slice(command);
                node.snapshot_chunk(id, &chunk).unwrap();
            }
            let _ = node.snapshot_done(id, Ok(()));
        }
        MachineRequest::Restore { id, size, .. } => {
            let mut state = vec![0; size as usize];
            let mut at = 0;
            while at < state.len() {
                at += node.restore_read(id, at as u64, &mut state[at..]).unwrap();
            }
            let mut commands = Vec::new();
            let mut rest = &state[..];
            while let Some((len, more)) = rest.split_first_chunk::<4>() {
                let (command, more) = more.split_at(u32::from_le_bytes(*len) as usize);
                commands.push(command.to_vec());
                rest = more;
            }
            probe.machine.lock().unwrap().commands = commands;
            let _ = node.answer(MachineAnswer::Restored { id });
        }
    }
}

impl Running {
    fn ask(&mut self, request: Request) -> Result<Reply, Error> {
        self.token += 1;
        self.node.submit(self.token, request, Timeout::After(Duration::from_secs(30)))?;
        let completion = self.completions.recv_timeout(Duration::from_secs(60)).expect("every request completes");
        assert_eq!(completion.token, self.token);
        completion.result
    }

    fn propose(&mut self, command: &str) -> String {
        match self.ask(Request::Propose(command.as_bytes().to_vec().into())) {
            Ok(Reply::Applied { data, .. }) => String::from_utf8(data).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn commands(&self) -> Vec<String> {
        let machine = self.probe.machine.lock().unwrap();
        machine.commands.iter().map(|c| String::from_utf8(c.clone()).unwrap()).collect()
    }

    fn read(&mut self) -> Vec<String> {
        assert!(matches!(self.ask(Request::Read), Ok(Reply::ReadIndex(_))));
        self.commands()
    }

    fn close(self) {
        self.node.close(Duration::from_secs(10));
        assert!(self.node.wait_closed(Duration::from_secs(20)));
        assert_eq!(*self.probe.closed.lock().unwrap(), Some(Ok(())));
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn free_addrs(count: usize) -> Vec<String> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|l| l.local_addr().unwrap().to_string()).collect()
}

fn config(dir: &std::path::Path, log_engine: LogEngine) -> Config {
    Config {
        log_engine,
        log_dir: dir.into(),
        tick_interval: Duration::from_millis(20),
        snapshot_entries: 50,
        trailing_entries: 10,
        ..Config::default()
    }
}

fn peers(addrs: &[String]) -> BTreeMap<u64, String> {
    (1..).zip(addrs.iter().cloned()).collect()
}

macro_rules! with_both_engines {
    ($($name:ident),* $(,)?) => {
        mod lmdb {
            $(#[test] fn $name() { super::$name(super::LogEngine::Lmdb) })*
        }
        mod segment {
            $(#[test] fn $name() { super::$name(super::LogEngine::Segment) })*
        }
    };
}

with_both_engines!(
    three_nodes_elect_serve_everywhere_and_come_back_complete,
    a_node_joins_by_ticket_and_gets_everything,
);

fn three_nodes_elect_serve_everywhere_and_come_back_complete(log_engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let addrs = free_addrs(3);
    let map = peers(&addrs);
    let begin = |id: u64| start(&runtime, config(dir.path(), log_engine), id, &map[&id], Some(map.clone())).unwrap();
    let mut nodes: Vec<Running> = (1..=3).map(begin).collect();
    let mut expected = Vec::new();
    for round in 0..40 {
        for node in &mut nodes {
            let command = format!("{}-{round}", node.addr);
            expected.push(command.clone());
            assert_eq!(node.propose(&command), expected.len().to_string());
        }
    }
    for node in &mut nodes {
        assert_eq!(node.read(), expected);
    }
    wait_for("snapshots are taken", || nodes.iter().all(|n| n.node.status().snapshot_index > 1));
    nodes.into_iter().for_each(Running::close);

    let mut nodes: Vec<Running> = (1..=3).map(begin).collect();
    expected.push("after".into());
    assert_eq!(nodes[1].propose("after"), expected.len().to_string());
    for node in &mut nodes {
        assert_eq!(node.read(), expected);
    }
    nodes.into_iter().for_each(Running::close);
}

fn a_node_joins_by_ticket_and_gets_everything(log_engine: LogEngine) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let mut first = start(&runtime, config(dir.path(), log_engine), 1, "127.0.0.1:0", None).unwrap();
    let expected: Vec<String> = (0..120).map(|i| format!("c{i}")).collect();
    for command in &expected {
        first.propose(command);
    }
    let mut others = Vec::new();
    for addr in free_addrs(2) {
        let ticket: Ticket = match first.ask(Request::ReserveId { addr: addr.clone() }) {
            Ok(Reply::Ticket(ticket)) => ticket,
            other => panic!("{other:?}"),
        };
        let contacts = BTreeMap::from([(1, first.addr.clone())]);
        let joiner =
            start(&runtime, config(dir.path(), log_engine), ticket.reserved_id, &addr, Some(contacts)).unwrap();
        assert_eq!(joiner.node.status().role, Role::Waiting);
        joiner.node.join(1, ticket, Timeout::After(Duration::from_secs(60))).unwrap();
        let joined = joiner.completions.recv_timeout(Duration::from_secs(90)).unwrap();
        assert!(joined.result.is_ok(), "{joined:?}");
        others.push(joiner);
    }
    assert_eq!(first.node.status().voters.len(), 3);
    for node in &mut others {
        node.token = 1;
        assert_eq!(node.read(), expected);
    }
    others.into_iter().for_each(Running::close);
    first.close();
}

#[test]
fn a_port_in_use_and_a_directory_in_use_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap().to_string();
    let error = start(&runtime, config(dir.path(), LogEngine::default()), 1, &addr, None).err().unwrap();
    assert_eq!(error.code, ErrorCode::InvalidConfig);
    assert!(error.message.contains(&addr), "{error}");
    let node = start(&runtime, config(dir.path(), LogEngine::default()), 1, "127.0.0.1:0", None).unwrap();
    let error = start(&runtime, config(dir.path(), LogEngine::default()), 1, "127.0.0.1:0", None).err().unwrap();
    assert_eq!(error.code, ErrorCode::DirectoryInUse, "{error}");
    node.close();
}

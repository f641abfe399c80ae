//! Whole nodes over loopback, on a disk that hangs when it is told to.

use std::sync::mpsc;
use std::sync::OnceLock;

use super::*;
use crate::error::Committed;
use crate::log::{LogWrite, LogWriter};
use crate::request::Reply;

const ENOUGH: Duration = Duration::from_secs(60);

/// Writes wait as long as somebody holds the lock, and fail for the reason that lies there.
struct Hangs {
    log: Box<dyn LogWriter>,
    disk: Arc<Mutex<Option<Error>>>,
}

impl LogWriter for Hangs {
    fn write(&mut self, writes: &[LogWrite]) -> Result<()> {
        match lock(&self.disk).clone() {
            Some(error) => Err(error),
            None => self.log.write(writes),
        }
    }
}

#[derive(Default)]
struct Heard {
    completions: Option<mpsc::Sender<Completion>>,
    machine: Option<mpsc::Sender<MachineRequest>>,
    /// To be asked for a snapshot is too much for it.
    breaks: bool,
    closed: Option<mpsc::Sender<Result<()>>>,
}

/// A machine without a state, which answers every command with its length.
struct Member {
    node: Node,
    sink: Arc<Mutex<Heard>>,
    disk: Arc<Mutex<Option<Error>>>,
    completions: mpsc::Receiver<Completion>,
    closed: mpsc::Receiver<Result<()>>,
    tokens: Token,
    _runtime: Runtime,
}

impl Sink for Mutex<Heard> {
    fn completions(&self, batch: Vec<Completion>) {
        let heard = lock(self);
        batch.into_iter().for_each(|completion| drop(heard.completions.as_ref().map(|to| to.send(completion))));
    }
    fn machine(&self, request: MachineRequest) {
        let breaks = lock(self).breaks && matches!(request, MachineRequest::Snapshot { .. });
        assert!(!breaks, "as a test wants it");
        let _ = lock(self).machine.as_ref().map(|to| to.send(request));
    }
    fn event(&self, _: Event) {}
    fn log(&self, _: LogRecord) {}
    fn log_level(&self) -> slog::Level {
        slog::Level::Critical
    }
    fn started(&self, _: &str) {}
    fn closed(&self, why: Result<()>) {
        let mut heard = lock(self);
        heard.machine = None;
        let _ = heard.closed.as_ref().map(|to| to.send(why));
    }
}

fn serve(node: &Node, request: MachineRequest) {
    let answer = match request {
        MachineRequest::Apply(batch) => {
            let wanted = batch.commands().filter(|(entry, _)| entry.wanted);
            let outcomes =
                wanted.map(|(entry, command)| (entry.index, Ok(command.len().to_string().into_bytes()))).collect();
            MachineAnswer::Applied { id: batch.id, outcomes }
        }
        MachineRequest::Snapshot { id, .. } => {
            let _ = node.snapshot_done(id, Ok(()));
            return;
        }
        MachineRequest::Restore { id, .. } => MachineAnswer::Restored { id },
    };
    let _ = node.answer(answer);
}

impl Member {
    fn start(id: NodeId, addrs: &[String], dir: &std::path::Path) -> Member {
        Self::start_with(Config::default(), id, addrs, dir)
    }

    fn start_with(config: Config, id: NodeId, addrs: &[String], dir: &std::path::Path) -> Member {
        let options = NodeOptions {
            config: Config { log_dir: dir.join(id.to_string()), tick_interval: Duration::from_millis(20), ..config },
            node_id: id,
            raft_addr: addrs[id as usize - 1].clone(),
            peers: Some((1..).zip(addrs.iter().cloned()).collect()),
            machine_applied: None,
        };
        let runtime = Runtime::new().unwrap();
        let disk = Arc::new(Mutex::new(None));
        let mut opened = open::open(&options).unwrap();
        opened.writer = Box::new(Hangs { log: opened.writer, disk: Arc::clone(&disk) });
        let (to_machine, requests) = mpsc::channel();
        let (to_caller, completions) = mpsc::channel();
        let (to_closer, closed) = mpsc::channel();
        let sink = Arc::new(Mutex::new(Heard {
            completions: Some(to_caller),
            machine: Some(to_machine),
            breaks: false,
            closed: Some(to_closer),
        }));
        let node = Node::start_with(&runtime, opened, options, sink.clone()).unwrap();
        let served = Arc::new(OnceLock::from(node.clone()));
        std::thread::spawn(move || {
            let node = served.get().unwrap();
            requests.iter().for_each(|request| serve(node, request));
        });
        Member { node, sink, disk, completions, closed, tokens: 0, _runtime: runtime }
    }

    fn ask(&mut self, request: Request, timeout: Duration) -> Result<Reply> {
        self.tokens += 1;
        self.node.submit(self.tokens, request, Timeout::After(timeout)).unwrap();
        let completion = self.completions.recv_timeout(ENOUGH).expect("every request completes");
        assert_eq!(completion.token, self.tokens);
        completion.result
    }

    fn propose(&mut self, command: &[u8]) {
        let reply = self.ask(Request::Propose(command.to_vec().into()), ENOUGH);
        assert!(matches!(reply, Ok(Reply::Applied { .. })), "{reply:?}");
    }
}

fn cluster(count: usize, dir: &std::path::Path) -> (Vec<Member>, Vec<String>) {
    let held: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addrs: Vec<String> = held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    drop(held);
    ((1..=count as u64).map(|id| Member::start(id, &addrs, dir)).collect(), addrs)
}

/// The disk of a follower hangs while its own thread writes: it still hears and answers, calls end by their deadlines, it topples no
/// leader, and closes in time; its directory stays its own until the write has returned, and holds what was acknowledged.
#[test]
fn a_follower_whose_disk_hangs_stays_responsive_and_closes_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let (mut members, addrs) = cluster(3, dir.path());
    members[0].propose(b"before");
    let leader = members[0].node.status().leader_id.unwrap() as usize - 1;
    let mut hung = members.remove((leader + 1) % 3);
    let leader = members.iter().position(|member| member.node.status().role == Role::Leader).unwrap();
    let term = members[leader].node.status().term;

    let disk = Arc::clone(&hung.disk);
    let hangs = lock(&disk);
    for _ in 0..3 {
        members[leader].propose(b"meanwhile");
    }
    let waited = hung.ask(Request::Propose("its own".into()), Duration::from_millis(500));
    // The two others commit it; what it comes to is applied here only when the disk answers.
    assert!(waited.is_err_and(|error| error.code == ErrorCode::Timeout && error.committed == Committed::Unknown));
    assert_eq!(members[leader].node.status().term, term);
    assert_eq!(hung.node.status().leader_id, Some(members[leader].node.status().node_id));

    hung.node.close(Duration::from_millis(500));
    assert_eq!(hung.closed.recv_timeout(ENOUGH).unwrap(), Ok(()));
    assert!(!hung.node.wait_closed(Duration::from_millis(50)), "the directory is still in use");
    drop(hangs);
    assert!(hung.node.wait_closed(ENOUGH));

    let id = hung.node.status().node_id;
    drop(hung);
    let mut again = Member::start(id, &addrs, dir.path());
    again.propose(b"after");
    for member in members.iter_mut().chain([&mut again]) {
        member.node.close(Duration::from_secs(10));
        assert!(member.node.wait_closed(ENOUGH));
    }
}

/// A cluster of one writes on its own thread as well; S4: a leader whose disk has hung gives up leadership.
#[test]
fn a_lone_node_whose_disk_hangs_says_so_and_serves_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut members, _) = cluster(1, dir.path());
    let alone = &mut members[0];
    alone.propose(b"before");
    let disk = Arc::clone(&alone.disk);
    let hangs = lock(&disk);
    let waited = alone.ask(Request::Propose("meanwhile".into()), Duration::from_secs(2));
    assert!(waited.is_err());
    assert_ne!(alone.node.status().role, Role::Leader);
    drop(hangs);
    let end = Instant::now() + ENOUGH;
    while alone.ask(Request::Propose("after".into()), ENOUGH).is_err() {
        assert!(Instant::now() < end, "it never serves again");
        std::thread::sleep(Duration::from_millis(20));
    }
    alone.node.close(Duration::from_secs(10));
    assert!(alone.node.wait_closed(ENOUGH));
}

/// What was accepted when the driver breaks has one end, whether it was seen before, at that moment, in the same turn, or not at all.
#[test]
fn what_is_accepted_has_one_end_when_the_driver_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let (mut members, _) = cluster(1, dir.path());
    let alone = &mut members[0];
    alone.propose(b"before");
    let (go_on, held) = mpsc::channel::<()>();
    let (reached, holds) = mpsc::channel();
    let run = |tokens: Vec<Token>, job: Box<dyn FnOnce() + Send>| {
        let count = tokens.len() as u64;
        alone.node.0.inbox.submit(Input::Run(tokens, job), count, 0).unwrap();
    };
    run(
        vec![],
        Box::new(move || {
            reached.send(()).unwrap();
            held.recv().unwrap();
        }),
    );
    holds.recv_timeout(ENOUGH).unwrap();
    // The driver waits: all of this is one turn's.
    let node = &alone.node;
    node.submit(10, Request::Propose("seen".into()), Timeout::None).unwrap();
    run(vec![11, 12], Box::new(|| panic!("as a test wants it")));
    node.submit(13, Request::Status, Timeout::None).unwrap();
    node.propose_many(vec![(14, "a".into()), (15, "b".into())], Timeout::None).unwrap();
    node.read_many(vec![16, 17], Timeout::None).unwrap();
    node.join(18, ticket(), Timeout::None).unwrap();
    go_on.send(()).unwrap();
    let why = alone.closed.recv_timeout(ENOUGH).unwrap().unwrap_err();
    assert!(why.code == ErrorCode::Internal && why.message.contains("as a test wants it"), "{why}");
    let mut ended: Vec<_> = alone.completions.try_iter().map(|c| (c.token, c.result.unwrap_err())).collect();
    ended.sort_by_key(|(token, _)| *token);
    assert_eq!(ended.iter().map(|(token, _)| *token).collect::<Vec<_>>(), (10..=18).collect::<Vec<_>>());
    for (token, error) in ended {
        let (code, committed) = match token {
            10 => (ErrorCode::Internal, Committed::No),
            11 | 12 => (ErrorCode::Internal, Committed::Unknown),
            _ => (ErrorCode::Closed, Committed::No),
        };
        assert_eq!((error.code, error.committed), (code, committed), "{token}: {error}");
    }
}

/// What was done when the driver breaks is told as it came out, also if it breaks over what follows from the same turn.
#[test]
fn what_is_done_is_told_though_the_driver_breaks_before_it_tells_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut members, _) = cluster(1, dir.path());
    let alone = &mut members[0];
    alone.propose(b"before");
    let (go_on, held) = mpsc::channel::<()>();
    alone.node.0.inbox.submit(Input::Run(vec![], Box::new(move || held.recv().unwrap())), 0, 0).unwrap();
    lock(&alone.sink).breaks = true;
    // One turn's: the status is there at once, and the machine is asked for its state before anybody hears of it.
    alone.node.submit(10, Request::Status, Timeout::None).unwrap();
    alone.node.submit(11, Request::Snapshot, Timeout::None).unwrap();
    go_on.send(()).unwrap();
    assert!(alone.closed.recv_timeout(ENOUGH).unwrap().is_err_and(|why| why.message.contains("as a test wants it")));
    let mut ended: Vec<_> = alone.completions.try_iter().map(|c| (c.token, c.result.is_ok())).collect();
    ended.sort_unstable();
    assert_eq!(ended, [(10, true), (11, false)]);
}

/// S10: the first failure of the disk is the end of the node; so is a thread of its own that breaks down.
#[test]
fn s10_a_node_ends_with_its_disk_or_one_of_its_threads_and_acknowledges_nothing_more() {
    let failed = Error::unknown(ErrorCode::Storage, "the disk has failed");
    for (count, panics) in [(1, false), (1, true), (3, false)] {
        let dir = tempfile::tempdir().unwrap();
        let (mut members, _) = cluster(count, dir.path());
        members[0].propose(b"before");
        let leader = members[0].node.status().leader_id.unwrap();
        let ill = members.iter_mut().find(|member| member.node.status().node_id == leader).unwrap();
        *lock(&ill.disk) = Some(failed.clone());
        if panics {
            ill.node.0.inbox.send(Input::Panicked("a thread panicked".into())).unwrap();
        } else {
            let lost = ill.ask(Request::Propose("lost".into()), Duration::from_secs(600)).unwrap_err();
            assert_eq!((lost.code, lost.committed), (ErrorCode::Storage, Committed::Unknown), "{lost}");
        }
        let why = ill.closed.recv_timeout(ENOUGH).unwrap().unwrap_err();
        assert_eq!(why.code, if panics { ErrorCode::Internal } else { ErrorCode::Storage }, "{why}");
        let late = ill.node.submit(99, Request::Propose("late".into()), Timeout::None).unwrap_err();
        assert_eq!((late.code, late.committed), (ErrorCode::Closed, Committed::No));
    }
}

#[test]
fn what_the_driver_has_seen_makes_room_for_the_next_of_any_kind() {
    let dir = tempfile::tempdir().unwrap();
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let config = Config { max_pending_proposals: 1, max_pending_bytes: 10, max_proposal_size: 10, ..Config::default() };
    let alone = Member::start_with(config, 1, &[addr], dir.path());
    for round in 0..3 {
        for kind in 0..5 {
            let token = round * 10 + kind;
            let (node, within) = (&alone.node, Timeout::After(ENOUGH));
            match kind {
                0 => node.submit(token, Request::Propose("ten bytes!".into()), within),
                1 => node.propose_many(vec![(token, "ten bytes!".into())], within),
                2 => node.submit(token, Request::Status, within),
                3 => node.read_many(vec![token], within),
                _ => node.join(token, ticket(), within),
            }
            .unwrap_or_else(|refused| panic!("{kind}: {refused}"));
            assert_eq!(alone.completions.recv_timeout(ENOUGH).map(|c| c.token), Ok(token), "{kind}");
        }
    }
    alone.node.close(Duration::from_secs(10));
    assert!(alone.node.wait_closed(ENOUGH));
}

/// Names nobody.
fn ticket() -> Ticket {
    Ticket {
        reserved_id: 1,
        raft_addr: String::new(),
        leader_id: 1,
        leader_addr: String::new(),
        peers: std::collections::BTreeMap::new(),
        incarnation: String::new(),
    }
}

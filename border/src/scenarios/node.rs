//! A node of one voter: the real core behind the real inbox, sink and queue, with its driver, log writer, machine and callers each on
//! a thread of the checker's. What the driver does here is what `engine/src/node/driver.rs` does, without network and files.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raftify_engine::cluster::ClusterState;
use raftify_engine::core::{new_log, Actions, Core, CoreOptions};
use raftify_engine::log::{Identity, LogState};
use raftify_engine::machine::{ApplyBatch, MachineAnswer};
use raftify_engine::node::Sink as _;
use raftify_engine::request::{Completion, Request, Timeout};
use raftify_engine::{Config, ErrorCode, Result, Uid};
use shuttle::future::block_on;
use shuttle::rand::Rng;
use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};
use shuttle::sync::{mpsc, Arc};
use shuttle::thread::{self, JoinHandle};

use crate::channel::mpsc::{unbounded_channel, UnboundedReceiver};

use super::inbox::{last, Bounds, Door, Inbox, Input};
use super::machine_thread::{Answers, MachineThread, Results, SnapshotIn, SnapshotOut, StateMachine};
use super::open_requests::Kind;
use super::queue::RAFTIFY_WAKE_NONE;
use super::queueing::{new_queue, Seen, Shared};
use super::record::{RAFTIFY_EVENT_APPLY, RAFTIFY_EVENT_CLOSED, RAFTIFY_EVENT_COMPLETION};
use super::sink::{Ending, NodeSink};

/// How requests have ended in all schedules so far. Not the checker's: no thread of a scenario hears another by it.
pub static OUTCOMES: std::sync::Mutex<BTreeSet<&str>> = std::sync::Mutex::new(BTreeSet::new());

const MILLI: u64 = 1000;
const EPOCH: u64 = 1_700_000_000_000_000;
const BOUNDS: Bounds = Bounds { requests: 100, bytes: 1 << 20 };

fn chance(n: u64) -> u64 {
    shuttle::rand::thread_rng().gen_range(0..n)
}

/// A leader that has applied what it begins with.
fn leader() -> (Core, u64) {
    let founders = BTreeMap::from([(1, "h:1".to_owned())]);
    let identity = Identity { node_id: 1, directory: Uid(1), digest: 1, incarnation: None, cluster_id: String::new() };
    let (hard_state, cluster, snapshot) = new_log(&ClusterState::founding(&founders));
    let log = LogState {
        identity,
        hard_state,
        cluster,
        snapshot,
        first_index: 2,
        prev_term: 1,
        last_index: 1,
        terms: Vec::new(),
        bytes: 0,
    };
    let options = CoreOptions {
        config: Config::default(),
        node_id: 1,
        addr: "h:1".into(),
        initial: founders,
        start: 7,
        seed: 7,
        log,
        sessions: Vec::new(),
        entries: Vec::new(),
        machine_applied: None,
        now: 0,
    };
    let mut core = Core::new(options).expect("a founded log");
    let mut now = 0;
    for _ in 0..200 {
        now += 100 * MILLI;
        core.begin_turn(now, EPOCH + now);
        core.tick();
        loop {
            let actions = core.poll();
            if let Some(write) = actions.writes.last() {
                core.written(write.number);
            }
            for request in &actions.machine {
                core.machine_answer(MachineAnswer::Applied { id: request.id(), outcomes: Vec::new() });
            }
            if actions.writes.is_empty() && actions.machine.is_empty() && !core.has_more() {
                break;
            }
        }
        if core.is_leader() && core.applied() > 1 && core.positions().commit == core.positions().last {
            return (core, now);
        }
    }
    panic!("a single voter leads at once");
}

struct Driver {
    core: Core,
    now: u64,
    sink: Arc<NodeSink>,
    writes: mpsc::Sender<u64>,
    door: Arc<Door>,
}

impl Driver {
    fn input(&mut self, input: Input) -> bool {
        let micros = |timeout| match timeout {
            Timeout::After(time) => Some(u64::try_from(time.as_micros()).expect("short")),
            _ => None,
        };
        match input {
            Input::Request { token, request, timeout } => {
                self.door.taken(1, 1);
                self.core.submit(token, request, micros(timeout));
            }
            Input::Proposals { proposals, timeout } => {
                self.door.taken(proposals.len() as u64, proposals.len() as u64);
                self.core.propose(proposals, micros(timeout));
            }
            Input::Answer(answer) => self.core.machine_answer(answer),
            Input::Written(number) => self.core.written(number),
            Input::Close(_) => {
                self.core.close();
                return false;
            }
            _ => panic!("not in this scenario"),
        }
        true
    }

    fn carry_out(&mut self, actions: Actions) {
        for write in actions.writes {
            let _ = self.writes.send(write.number);
        }
        for request in actions.machine {
            self.sink.machine(request);
        }
        self.complete(actions.completions);
    }

    fn complete(&self, completions: Vec<Completion>) {
        if !completions.is_empty() {
            self.sink.completions(completions);
        }
    }

    fn run(mut self, mut inputs: UnboundedReceiver<Input>) {
        let mut open = true;
        while open {
            let mut turn = vec![block_on(inputs.recv()).expect("a handle is there")];
            while let Ok(more) = inputs.try_recv() {
                turn.push(more);
            }
            // Time passes, or does not: deadlines come before, with or after what they are for.
            self.now += chance(4) * MILLI;
            self.core.begin_turn(self.now, EPOCH + self.now);
            for input in turn {
                open &= self.input(input);
            }
            self.core.expire();
            loop {
                let actions = self.core.poll();
                self.carry_out(actions);
                if !self.core.has_more() {
                    break;
                }
            }
        }
        let late = block_on(last(Vec::new(), inputs, &self.door));
        let actions = self.core.poll();
        self.complete(actions.completions);
        self.complete(late);
        self.sink.closed(Ok(()));
    }
}

struct Node {
    inbox: Arc<Inbox>,
    sink: Arc<NodeSink>,
    queue: Shared,
    threads: Vec<JoinHandle<()>>,
}

/// The node, as its machine of the push form sees it.
struct ByInbox(Arc<Inbox>);

impl Answers for ByInbox {
    fn answer(&self, answer: MachineAnswer) -> Result<()> {
        self.0.send(Input::Answer(answer))
    }

    fn snapshot_chunk(&self, _id: u64, _data: &[u8]) -> Result<()> {
        Ok(())
    }

    fn snapshot_done(&self, _id: u64, _result: Result<(), String>) -> Result<()> {
        Ok(())
    }

    fn restore_read(&self, _id: u64, _offset: u64, _out: &mut [u8]) -> Result<usize> {
        Ok(0)
    }
}

/// What a machine of the push form tells of itself.
#[derive(Clone, Default)]
struct Traces {
    last: Arc<AtomicU64>,
    gone: Arc<AtomicU64>,
    /// Of the request made inside the first call: 1 accepted, 2 refused.
    asked: Arc<AtomicU64>,
}

/// Token of the request that a machine makes.
const ASKED: u64 = 201;

/// A machine of the push form, which also asks something of its node from inside a call.
struct Pushed(Arc<Inbox>, Traces);

impl StateMachine for Pushed {
    fn apply(&mut self, batch: &ApplyBatch, results: &mut Results) -> std::result::Result<(), String> {
        for (i, entry) in batch.entries.iter().enumerate() {
            assert!(self.1.last.swap(entry.index, SeqCst) < entry.index, "twice, or out of order");
            results.set(i, Ok(command(entry.index))).map_err(|e| e.to_string())?;
        }
        if self.1.asked.load(SeqCst) == 0 {
            let asked = Input::Request { token: ASKED, request: Request::StepDown, timeout: Timeout::None };
            self.1.asked.store(if self.0.submit(asked, 1, 1).is_ok() { 1 } else { 2 }, SeqCst);
        }
        Ok(())
    }

    fn snapshot(&mut self, _out: &mut dyn SnapshotOut) -> std::result::Result<(), String> {
        Ok(())
    }

    fn restore(&mut self, _input: &mut dyn SnapshotIn) -> std::result::Result<(), String> {
        Ok(())
    }
}

impl Drop for Pushed {
    fn drop(&mut self) {
        self.1.gone.fetch_add(1, SeqCst);
    }
}

/// `pushed`: with a machine of the push form, which leaves these traces.
fn start(pushed: Option<&Traces>) -> Node {
    let queue = new_queue(RAFTIFY_WAKE_NONE);
    let (core, now) = leader();
    let (inputs, outbox) = unbounded_channel();
    let door = Arc::<Door>::default();
    let inbox = Arc::new(Inbox::new(inputs.clone(), Arc::clone(&door), BOUNDS));
    let ending = Arc::new(Ending::new(queue.queue(), 1, pushed.is_some()));
    let machine = pushed.map(|traces| {
        let (machine, ending) = (Box::new(Pushed(Arc::clone(&inbox), traces.clone())), Arc::clone(&ending));
        Arc::new(MachineThread::spawn(machine, move || ending.machine_gone()).expect("a thread"))
    });
    let sink = Arc::new(NodeSink::new(queue.queue(), 1, ending, machine.clone(), slog::FilterLevel::Off));
    let (writes, to_write) = mpsc::channel();
    let log = thread::spawn(move || {
        while let Ok(number) = to_write.recv() {
            if inputs.send(Input::Written(number)).is_err() {
                return;
            }
        }
    });
    let driver = Driver { core, now, sink: Arc::clone(&sink), writes, door };
    let driver = thread::spawn(move || driver.run(outbox));
    if let Some(machine) = machine {
        machine.attach(ByInbox(Arc::clone(&inbox)));
    }
    Node { inbox, sink, queue, threads: vec![log, driver] }
}

fn command(token: u64) -> Vec<u8> {
    token.to_le_bytes().to_vec()
}

/// The numbers of a record's table: (index, wanted).
fn entries(apply: &Seen) -> Vec<(u64, bool)> {
    const ROW: usize = size_of::<super::record::Entry>();
    let row = |i: usize| {
        let row = &apply.data[i * ROW..(i + 1) * ROW];
        let number = |at: usize| u64::from_le_bytes(row[at..at + 8].try_into().expect("eight bytes"));
        (number(0), number(32) >> 32 == 1)
    };
    (0..apply.count as usize).map(row).collect()
}

impl Node {
    /// Submits from a thread of its own; the tokens that were accepted, and not.
    fn caller(&self, tokens: std::ops::Range<u64>, timeout: fn() -> Timeout) -> JoinHandle<(Vec<u64>, Vec<u64>)> {
        let inbox = Arc::clone(&self.inbox);
        thread::spawn(move || {
            let (mut accepted, mut refused) = (Vec::new(), Vec::new());
            let mut note = |token, result: raftify_engine::Result<()>| match result {
                Ok(()) => accepted.push(token),
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::Closed);
                    refused.push(token);
                }
            };
            for token in tokens.clone().skip(2) {
                let request = if token % 5 == 0 { Request::Read } else { Request::Propose(command(token).into()) };
                note(token, inbox.submit(Input::Request { token, request, timeout: timeout() }, 1, 1));
            }
            let pair: Vec<u64> = tokens.take(2).collect();
            let proposals = pair.iter().map(|token| (*token, command(*token).into())).collect();
            let result = inbox.submit(Input::Proposals { proposals, timeout: timeout() }, 2, 2);
            for token in pair {
                note(token, result.clone());
            }
            (accepted, refused)
        })
    }

    /// The program: drains, applies, answers; until `until` says that it has seen enough.
    fn serve(&self, seen: &mut Vec<Seen>, until: impl Fn(&[Seen]) -> bool) {
        while !until(seen) {
            assert_eq!(self.queue.wait(), 0);
            for record in self.queue.drain(2) {
                if record.kind == RAFTIFY_EVENT_APPLY {
                    // What the machine returns is what the command was: here its index.
                    let outcomes =
                        entries(&record).into_iter().filter(|e| e.1).map(|e| (e.0, Ok(command(e.0)))).collect();
                    self.sink.open.answered(record.token, &[Kind::Apply]).expect("it is open");
                    // Refused only once the node has ended.
                    let _ = self.inbox.send(Input::Answer(MachineAnswer::Applied { id: record.token, outcomes }));
                } else {
                    seen.push(record);
                }
            }
        }
    }

    /// To CLOSED; then everything is looked at. `at_closed`: what must be so by then.
    fn end(self, mut seen: Vec<Seen>, callers: Vec<JoinHandle<(Vec<u64>, Vec<u64>)>>, at_closed: impl Fn()) {
        self.serve(&mut seen, |seen| seen.last().is_some_and(|s| s.kind == RAFTIFY_EVENT_CLOSED));
        at_closed();
        for thread in self.threads {
            thread.join().expect("a thread of the scenario");
        }
        assert!(self.queue.drain(2).is_empty(), "something after CLOSED");
        let closed = seen.pop().expect("CLOSED");
        assert_eq!((closed.kind, closed.status), (RAFTIFY_EVENT_CLOSED, 0));
        let happened = |outcome| OUTCOMES.lock().expect("no one panics with it").insert(outcome);
        let mut completed = BTreeSet::new();
        let mut positions = BTreeMap::new();
        for record in &seen {
            assert_eq!(record.kind, RAFTIFY_EVENT_COMPLETION);
            assert!(completed.insert(record.token), "{} completed twice", record.token);
            happened(match record.status {
                0 => "done",
                status if status == ErrorCode::Timeout as i32 => "timeout",
                status if status == ErrorCode::Closed as i32 => "closed",
                _ => panic!("{record:?}"),
            });
            if record.status == 0 && record.token % 5 != 0 && record.token != ASKED {
                assert_eq!(record.data, command(record.index), "the result of another command");
                assert!(positions.insert(record.index, record.token).is_none(), "two tokens for one entry");
            }
        }
        let mut accepted = BTreeSet::new();
        for caller in callers {
            let (taken, refused) = caller.join().expect("a thread of the scenario");
            assert!(refused.iter().all(|token| !completed.contains(token)), "refused, and completed all the same");
            if !refused.is_empty() {
                happened("refused");
            }
            accepted.extend(taken);
        }
        assert_eq!(completed, accepted, "accepted is what completes");
        let late = self.inbox.submit(Input::Request { token: 99, request: Request::Read, timeout: Timeout::None }, 1, 1);
        assert_eq!(late.map_err(|e| e.code), Err(ErrorCode::Closed));
        self.queue.free();
    }
}

pub fn every_accepted_request_completes_once() {
    let node = start(None);
    let callers = vec![node.caller(1..5, || Timeout::None), node.caller(11..14, || Timeout::Default)];
    let closer = Arc::clone(&node.inbox);
    let closer = thread::spawn(move || {
        closer.close(Duration::ZERO);
        closer.close(Duration::ZERO);
    });
    node.end(Vec::new(), callers, || ());
    closer.join().expect("a thread of the scenario");
}

pub fn a_deadline_races_its_completion() {
    let node = start(None);
    let soon = || Timeout::After(Duration::from_millis(chance(6)));
    let callers = vec![node.caller(1..6, soon), node.caller(11..14, soon)];
    let mut seen = Vec::new();
    node.serve(&mut seen, |seen| seen.len() == 8);
    for record in &seen {
        assert!([0, ErrorCode::Timeout as i32].contains(&record.status), "{record:?}");
    }
    node.inbox.close(Duration::ZERO);
    node.end(seen, callers, || ());
}

pub fn a_machine_of_its_own_ends_before_closed() {
    let traces = Traces::default();
    let node = start(Some(&traces));
    let mut callers = vec![node.caller(1..4, || Timeout::None)];
    let closer = Arc::clone(&node.inbox);
    let closer = thread::spawn(move || closer.close(Duration::ZERO));
    let told = traces.clone();
    // What the machine asked for completes like the rest. Looked at once all is over.
    callers.push(thread::spawn(move || {
        while told.gone.load(SeqCst) == 0 {
            thread::yield_now();
        }
        match told.asked.load(SeqCst) {
            1 => (vec![ASKED], Vec::new()),
            2 => (Vec::new(), vec![ASKED]),
            _ => (Vec::new(), Vec::new()),
        }
    }));
    node.end(Vec::new(), callers, || assert_eq!(traces.gone.load(SeqCst), 1, "the machine ends before CLOSED"));
    closer.join().expect("a thread of the scenario");
    assert_eq!(traces.gone.load(SeqCst), 1, "and once");
}

pub fn acceptance_races_the_last_look() {
    let (inputs, outbox) = unbounded_channel();
    let door = Arc::<Door>::default();
    let inbox = Inbox::new(inputs, Arc::clone(&door), BOUNDS);
    let caller = thread::spawn(move || {
        let accepted =
            inbox.submit(Input::Request { token: 1, request: Request::Read, timeout: Timeout::None }, 1, 0).is_ok();
        (accepted, inbox)
    });
    let late = block_on(last(Vec::new(), outbox, &door));
    let (accepted, inbox) = caller.join().expect("a thread of the scenario");
    assert_eq!(late.len(), usize::from(accepted), "accepted is what completes");
    assert!(inbox.submit(Input::Request { token: 2, request: Request::Read, timeout: Timeout::None }, 1, 0).is_err());
}

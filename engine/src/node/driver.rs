//! The driver: one task that owns the core, feeds it everything that came in, and carries out what it asks for (rules, F1).

mod inputs;
mod peers;
mod telling;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::inbox::{last, Input};
use super::open::{directory, random, Opened};
use super::threads::{self, Threads, Work};
use super::{lock, LogRecord, NodeOptions, Shared, Sink, FIRST_INTERNAL_TOKEN};
use crate::cluster::NodeId;
use crate::core::{Actions, Core, CoreOptions, Micros};
use crate::error::{Error, ErrorCode, Result};
use crate::machine::MachineRequest;
use crate::request::{Completion, Reply, Token};
use crate::runtime::Aside;
use crate::status::Role;
use crate::transport::tls::Tls;
use crate::transport::{Incoming, Lane, Transport, TransportConfig};

/// Inputs taken in one turn; the rest waits for the next, so that ticks and messages come between.
const TURN_INPUTS: usize = 8192;
const TURN_FRAMES: usize = 1024;

pub(super) struct Parts {
    pub options: NodeOptions,
    pub opened: Opened,
    pub aside: Aside,
    pub inbox: mpsc::UnboundedSender<Input>,
    pub outbox: mpsc::UnboundedReceiver<Input>,
    pub shared: Arc<Shared>,
    pub sink: Arc<dyn Sink>,
}

struct Driver {
    core: Core,
    transport: Transport,
    threads: Threads,
    aside: Aside,
    shared: Arc<Shared>,
    sink: Arc<dyn Sink>,
    inbox: mpsc::UnboundedSender<Input>,
    options: NodeOptions,
    addr: String,
    origin: Instant,
    next_tick: Instant,
    /// Calls over the wire, by their internal token.
    waiters: HashMap<Token, oneshot::Sender<Result<Reply>>>,
    next_token: Token,
    joins: HashMap<Token, AbortHandle>,
    /// Lanes that are up: a peer counts as connected when both are.
    lanes: BTreeMap<NodeId, Vec<Lane>>,
    /// Why nodes and we do not take each other's certificates, where that is so.
    distrust: BTreeMap<NodeId, String>,
    tls: Option<Arc<Tls>>,
    /// What the core has to hear of before it is polled again.
    feedback: Vec<Feedback>,
    /// Who waits for the input that is being worked in: the core may not know them yet.
    at_hand: Vec<Token>,
    /// What the core has completed and nobody has been told yet.
    untold: Vec<Completion>,
    status_due: bool,
    status_at: Instant,
    /// Closing, but still handing over leadership: until when, and how long the disk is waited for after that.
    retiring: Option<(Instant, Duration)>,
    /// The node ends after this turn.
    stop: Option<(Result<()>, Duration)>,
}

/// Ends when the threads of a node have ended that was not waited for.
type StillRunning = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

enum Feedback {
    Unreachable(NodeId),
    ForwardNotSent(u64),
    SnapshotNotSent(NodeId),
    Failed(Error),
}

/// Starts the node on the runtime's thread, tells how that went, and runs it to its end.
pub(super) async fn run(parts: Parts, tell: std::sync::mpsc::Sender<Result<()>>) {
    let shared = Arc::clone(&parts.shared);
    match Driver::start(parts).await {
        Ok((driver, outbox, incoming)) => {
            // The starter may have given up: then the node is closed by its last handle's owner.
            let _ = tell.send(Ok(()));
            if let Some(still_running) = driver.drive(outbox, incoming).await {
                // CLOSED has been said; `wait_closed` promises the directory as well.
                still_running.await;
            }
        }
        Err(error) => {
            let _ = tell.send(Err(error));
        }
    }
    *lock(&shared.ended) = true;
    shared.end.notify_all();
}

/// What the core finds wrong with a log, with the directory it lies in.
fn of_directory(options: &NodeOptions, error: Error) -> Error {
    match error.code {
        ErrorCode::CorruptData | ErrorCode::WrongDirectory => {
            Error::storage(error.code, &directory(options), error.message)
        }
        _ => error,
    }
}

impl Driver {
    async fn start(
        parts: Parts,
    ) -> Result<(Driver, mpsc::UnboundedReceiver<Input>, mpsc::UnboundedReceiver<Incoming>)> {
        let Parts { options, opened, aside, inbox, outbox, shared, sink } = parts;
        let (net, incoming) = mpsc::unbounded_channel();
        let config = TransportConfig {
            tls: opened.tls.clone(),
            ..TransportConfig::new(options.node_id, options.raft_addr.clone(), &options.config)
        };
        let transport = Transport::bind(config, net, shared.files.intake()).await?;
        let addr = transport.local_addr();
        let origin = Instant::now();
        let mut initial = opened.initial;
        let mut log = opened.log;
        if let Some(own) = initial.get_mut(&options.node_id).filter(|_| addr != options.raft_addr) {
            // A cluster of one whose port the system chose.
            own.clone_from(&addr);
            if let Some(member) = log.cluster.cluster.member_mut(options.node_id) {
                member.addr.clone_from(&addr);
            }
        }
        let core = Core::new(CoreOptions {
            config: options.config.clone(),
            node_id: options.node_id,
            addr: addr.clone(),
            initial,
            start: random()?,
            seed: random()?,
            log,
            entries: opened.entries,
            sessions: opened.sessions,
            machine_applied: options.machine_applied,
            now: 0,
        })
        .map_err(|error| of_directory(&options, error))?;
        let name = format!("raft-{}", options.node_id);
        let threads = threads::start(&name, opened.writer, opened.reader, shared.files.clone(), inbox.clone())?;
        let mut driver = Driver {
            core,
            transport,
            threads,
            aside,
            shared,
            sink,
            inbox,
            next_tick: origin + options.config.tick_interval,
            addr,
            origin,
            options,
            waiters: HashMap::new(),
            next_token: FIRST_INTERNAL_TOKEN,
            joins: HashMap::new(),
            lanes: BTreeMap::new(),
            distrust: BTreeMap::new(),
            tls: opened.tls,
            feedback: Vec::new(),
            at_hand: Vec::new(),
            untold: Vec::new(),
            status_due: true,
            status_at: origin,
            retiring: None,
            stop: None,
        };
        let born = if opened.created { "a new directory" } else { "its directory" };
        driver.log(slog::Level::Info, "raft", || {
            format!("node {} listens at {} with {born}", driver.options.node_id, driver.addr)
        });
        if let Some(told) = opened.spare_used {
            driver.tell(told);
        }
        driver.turn(|_| {});
        Ok((driver, outbox, incoming))
    }

    fn log(&self, level: slog::Level, target: &'static str, message: impl FnOnce() -> String) {
        if level.is_at_least(self.sink.log_level()) {
            let record =
                LogRecord { level, target, message: message(), node_id: self.options.node_id, term: self.core.term() };
            self.sink.log(record);
        }
    }

    async fn drive(
        mut self,
        mut outbox: mpsc::UnboundedReceiver<Input>,
        mut incoming: mpsc::UnboundedReceiver<Incoming>,
    ) -> Option<StillRunning> {
        let mut inputs = Vec::new();
        let mut frames = Vec::new();
        let mut left = Vec::new();
        // Set anew only when it would come too late, or has come: each setting wakes the thread from its next wait.
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(self.next_tick));
        while self.stop.is_none() {
            if self.core.owes_entries() {
                // What was given to the network leaves before there is more of it.
                tokio::task::yield_now().await;
            } else {
                let wake = self.core.next_deadline().map_or(self.next_tick, |at| self.next_tick.min(self.instant(at)));
                if wake < alarm.deadline() || alarm.is_elapsed() {
                    alarm.as_mut().reset(wake);
                }
                tokio::select! {
                    _ = outbox.recv_many(&mut inputs, TURN_INPUTS) => {}
                    _ = incoming.recv_many(&mut frames, TURN_FRAMES) => {}
                    () = &mut alarm => {}
                }
            }
            // The whole inbox, then one Ready (rules, F1).
            while inputs.len() < TURN_INPUTS {
                let Ok(input) = outbox.try_recv() else { break };
                inputs.push(input);
            }
            while frames.len() < TURN_FRAMES {
                let Ok(frame) = incoming.try_recv() else { break };
                frames.push(frame);
            }
            let mut permits = Vec::new();
            let mut unseen = inputs.drain(..);
            self.turn(|driver| {
                for frame in frames.drain(..) {
                    driver.heard(frame, &mut permits);
                }
                for input in unseen.by_ref() {
                    driver.at_hand.clear();
                    input.tokens(&mut driver.at_hand);
                    driver.input(input);
                }
                driver.at_hand.clear();
                driver.tick();
                driver.consider_end();
            });
            // Budgets go back to the streams once their frames have been worked in.
            drop(permits);
            frames.clear();
            // None, unless the turn has broken off.
            left.extend(unseen);
        }
        self.end(left, outbox).await
    }

    fn now(&self) -> Micros {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn instant(&self, at: Micros) -> Instant {
        self.origin.checked_add(Duration::from_micros(at)).unwrap_or(self.next_tick)
    }

    /// Feeds the core and carries out what follows, until nothing more follows. A panic in it ends this node, and only it.
    fn turn(&mut self, feed: impl FnOnce(&mut Self)) {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
        let now = self.now();
        let turned = catch_unwind(AssertUnwindSafe(|| {
            self.core.begin_turn(now, wall);
            feed(self);
            loop {
                let actions = self.core.poll();
                self.carry_out(actions);
                let more = !self.feedback.is_empty() || self.core.has_more();
                for feedback in std::mem::take(&mut self.feedback) {
                    self.feed_back(feedback);
                }
                if !more {
                    break;
                }
            }
            self.publish();
        }));
        if let Err(panic) = turned {
            self.broken(
                panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)),
            );
        }
    }

    fn broken(&mut self, what: Option<String>) {
        let what = what.unwrap_or_else(|| "no text".into());
        let error = Error::unknown(
            ErrorCode::Internal,
            format!(
                "node {} broke one of its invariants and has stopped: {what}; please report this",
                self.options.node_id
            ),
        );
        self.log(slog::Level::Critical, "raft", || error.message.clone());
        let ended = catch_unwind(AssertUnwindSafe(|| {
            self.core.fail(error.clone());
            let mut completions = std::mem::take(&mut self.untold);
            completions.extend(self.core.poll().completions);
            // Those of the input at hand that the core had not taken: each has one end, and nobody knows how far it has got.
            let told: HashSet<Token> = completions.iter().map(|completion| completion.token).collect();
            for token in std::mem::take(&mut self.at_hand).into_iter().filter(|token| !told.contains(token)) {
                completions.push(Completion { token, result: Err(error.clone()) });
            }
            self.complete(completions);
        }));
        drop(ended);
        self.stop = Some((Err(error), Duration::from_secs(5)));
    }

    fn feed_back(&mut self, feedback: Feedback) {
        match feedback {
            Feedback::Unreachable(peer) => self.core.unreachable(peer),
            Feedback::ForwardNotSent(number) => self.core.forward_not_sent(number),
            Feedback::SnapshotNotSent(peer) => self.core.snapshot_sent(peer, false),
            Feedback::Failed(error) => self.core.fail(error),
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if now < self.next_tick {
            self.core.expire();
            return;
        }
        self.forget_abandoned();
        self.core.tick();
        self.core.expire();
        self.status_due = true;
        self.next_tick += self.options.config.tick_interval;
        if self.next_tick < now {
            // The process was paused: time that nobody lived through starts no election.
            self.next_tick = now + self.options.config.tick_interval;
        }
    }

    /// A closing node ends once somebody else leads, when nobody is left who could, or when that has taken too long.
    fn consider_end(&mut self) {
        if let Some((until, patience)) = self.retiring {
            let successor = peers::may_succeed(self.core.cluster(), self.options.node_id, &self.lanes);
            if !self.core.is_leader() || !successor || Instant::now() >= until {
                self.core.close();
                self.stop = Some((Ok(()), patience));
            }
        }
    }

    fn carry_out(&mut self, actions: Actions) {
        self.untold = actions.completions;
        // Whoever leads others has their acknowledgements to hear of meanwhile.
        let waits = !self.core.is_leader() || self.core.cluster().members().len() <= 1;
        let aside = |job| self.aside.run(job);
        for write in actions.writes {
            self.threads.log.write(write, (waits && !self.aside.shared()).then_some(&aside));
        }
        self.post(actions.messages);
        for request in actions.machine {
            self.ask_machine(request);
        }
        for fetch in actions.fetches {
            let _ = self.threads.work.send(Work::Fetch(fetch));
        }
        for send in actions.snapshot_sends {
            self.send_snapshot(send);
        }
        for peer in actions.cancel_sends {
            self.transport.cancel_snapshot(peer);
        }
        if let Some(keep) = actions.prune {
            let _ = self.threads.work.send(Work::Prune { keep, first_index: self.core.first_index() });
        }
        if let Some(peers) = actions.peers {
            self.transport.set_peers(&peers);
        }
        if actions.hello_changed {
            self.set_hello();
        }
        for peer in actions.disconnect {
            self.transport.hang_up(peer);
        }
        let completions = std::mem::take(&mut self.untold);
        self.complete(completions);
        for event in actions.events {
            self.tell(event);
        }
        if actions.restored {
            self.sink.started(&self.addr);
        }
        if let Some(why) = actions.stop {
            self.stop.get_or_insert((why, Duration::from_secs(5)));
        }
    }

    fn ask_machine(&mut self, request: MachineRequest) {
        let request = match request {
            MachineRequest::Restore { id, index, term, size, .. } => {
                let meta = self.core.snapshot_to_restore(id);
                let path = meta.map(|meta| self.shared.files.name_restore(id, meta)).unwrap_or_default();
                MachineRequest::Restore { id, index, term, path, size }
            }
            MachineRequest::Snapshot { id, index, term } => {
                if let Some((index, term, cluster)) = self.core.snapshot_header(id) {
                    self.shared.files.announce(id, index, term, cluster);
                }
                MachineRequest::Snapshot { id, index, term }
            }
            apply => apply,
        };
        self.sink.machine(request);
    }

    /// The end: everything that waits has its answer, the disk has been waited for within the deadline, the port is free.
    /// Returned: the threads that had not ended by then, and still hold the directory.
    async fn end(mut self, unseen: Vec<Input>, outbox: mpsc::UnboundedReceiver<Input>) -> Option<StillRunning> {
        let (why, patience) = self.stop.take().unwrap_or((Ok(()), Duration::ZERO));
        for task in self.joins.values() {
            task.abort();
        }
        let late = last(unseen, outbox, &self.shared.door).await;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let actions = self.core.poll();
            self.complete(actions.completions);
            self.complete(late);
        }));
        drop(ended);
        let Driver { transport, threads, shared, sink, .. } = self;
        let Threads { log, work, ended } = threads;
        drop((log, work));
        let mut stopped: StillRunning = Box::pin(async move {
            for thread in ended {
                // A dropped sender: the thread has ended as well.
                let _ = thread.await;
            }
        });
        // S4: a hung disk is not waited for beyond the deadline; its thread ends with the process.
        let all = tokio::time::timeout(patience, &mut stopped).await.is_ok();
        transport.shutdown().await;
        {
            let mut status = lock(&shared.status);
            // That it was removed stays true, and is what its owner acts on.
            if status.role != Role::Removed {
                status.role = Role::Stopped;
            }
            status.leader_id = None;
            status.error = why.as_ref().err().map(ToString::to_string);
        }
        sink.closed(why);
        (!all).then_some(stopped)
    }
}

//! The remote client: finds the leader and follows it, retries what was certainly not done, keeps deadlines.
//!
//! Lives here: which node to ask, when to ask again, what a failure means for the caller. The wire is `transport`'s.
//!
//! Invariants (S15): nothing is sent a second time unless the first sending was certainly not carried out, or the cluster knows it again
//! (a command of a [session](ClientOptions::session)); every request ends by its deadline, or at `close`; each accepted request completes
//! exactly once, and never within `submit`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, Instant};

use crate::address;
use crate::client_session::{ClientSession, Seat};
use crate::error::{Committed, Error, ErrorCode, Result};
use crate::locks::lock;
use crate::request::{Completion, Reply, Request, Timeout, Token};
use crate::runtime::Runtime;
use crate::transport::ask::{ask, changes_nothing, Sent};
use crate::transport::connect::{connect, Patience};
use crate::transport::dial::jitter;
use crate::transport::tame::Tame;
use crate::transport::tls::{Dialling, Tls};
use crate::transport::{TlsFiles, Unreachable};

/// Requests waiting in one client; past it they are `Overloaded`.
const MAX_PENDING: usize = 100_000;
/// Bytes of their commands.
const MAX_PENDING_BYTES: usize = 256 << 20;
/// A command of a session that is not answered by then is sent elsewhere; a large one takes longer, on its way alone.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Of each byte of it.
const ATTEMPT_BYTE: Duration = Duration::from_micros(1);
/// Closing a session is a courtesy: the cluster forgets those that nobody uses.
const FAREWELL: Duration = Duration::from_millis(300);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
const PATIENCE: Patience = Patience { connect: Duration::from_secs(2), keepalive: Duration::from_secs(5) };
/// Deadline of a membership change when none is named, and of a snapshot.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(30);
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

/// Receives what a client has to say. Called on the runtime's thread; must not block.
pub trait ClientSink: Send + Sync + 'static {
    /// All that has completed since the last call.
    fn completions(&self, batch: Vec<Completion>);
    /// The last call, after the last completion.
    fn closed(&self);
}

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Certificates, where the nodes have them; read by [`Client::new`], and again when they change.
    pub tls: TlsFiles,
    /// What [`Timeout::Default`] stands for.
    pub timeout: Duration,
    /// Commands are sent within a session (Raft thesis §6.3): again, to any node, until it is known what they came to, and applied once.
    pub session: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions { tls: TlsFiles::default(), timeout: Duration::from_secs(5), session: false }
    }
}

enum Command {
    Ask { token: Token, request: Request, timeout: Timeout },
    Close,
}

/// Of all requests that have been accepted and not completed.
#[derive(Default)]
struct Pending {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// A handle; any thread. The client closes with `close` or with its last handle. Close it before its runtime is shut down: that drops
/// what is pending where it stands, without completions.
#[derive(Clone)]
pub struct Client {
    commands: mpsc::UnboundedSender<Command>,
    pending: Arc<Pending>,
}

impl Client {
    /// Connects lazily: nothing need be reachable yet. `addrs`: host:port of any nodes of the cluster, asked in turn until one knows
    /// the leader. Reads the files of certificates, which blocks.
    ///
    /// Errors: `InvalidConfig` for a list that is empty or holds what is no address; `Tls` for files that cannot be used; `Closed` if
    /// the runtime is.
    pub fn new(
        runtime: &Runtime,
        addrs: Vec<String>,
        options: &ClientOptions,
        sink: Arc<dyn ClientSink>,
    ) -> Result<Client> {
        if addrs.is_empty() {
            return Err(Error::config("addrs", "the list is empty; name at least one node of the cluster"));
        }
        for addr in &addrs {
            address::dialable("addrs", addr, false)?;
        }
        let tls = Tls::of_client(&options.tls)?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let pending = Arc::new(Pending::default());
        let held = Arc::clone(&pending);
        let cluster = Cluster {
            addrs,
            tls,
            next: AtomicUsize::new(0),
            leader: Mutex::default(),
            nodes: Mutex::default(),
            numbers: AtomicU64::new(0),
            session: options.session.then(Arc::default),
        };
        runtime.spawn(run(cluster, options.timeout, inbox, held, sink))?;
        Ok(Client { commands, pending })
    }

    /// Accepts a request; exactly one completion with this token follows. Errors (then none follows): `Overloaded`, `Closed`.
    pub fn submit(&self, token: Token, request: Request, timeout: Timeout) -> Result<()> {
        let bytes = request.command_bytes();
        let count = self.pending.count.fetch_add(1, Ordering::Relaxed);
        let held = self.pending.bytes.fetch_add(bytes, Ordering::Relaxed);
        let refuse = |error| {
            self.pending.release(bytes);
            Err(error)
        };
        if count >= MAX_PENDING || (count > 0 && held.saturating_add(bytes) > MAX_PENDING_BYTES) {
            return refuse(Error::not_done(
                ErrorCode::Overloaded,
                format!("{count} requests of {held} bytes wait in this client already; try again later"),
            ));
        }
        match self.commands.send(Command::Ask { token, request, timeout }) {
            Ok(()) => Ok(()),
            Err(_) => refuse(Error::not_done(ErrorCode::Closed, "the client is closed")),
        }
    }

    /// Ends all that is pending with `Closed`, then calls the sink's `closed`. Returns at once; may be called again.
    pub fn close(&self) {
        let _ = self.commands.send(Command::Close);
    }
}

impl Pending {
    fn release(&self, bytes: usize) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Asks one node once, without following anybody: a waiting node that joins, or a look at one node. Runs on the runtime.
///
/// Errors: what the node answered; `ConnectionFailed` or `Timeout`, `Committed::No` if the request never left.
pub async fn call(addr: &str, tls: Option<&Arc<Tls>>, request: Request, timeout: Duration) -> Result<Reply> {
    address::dialable("addr", addr, false)?;
    let sent = Sent::default();
    let deadline = Instant::now() + timeout;
    let asked = async {
        let channel = connect(addr, PATIENCE, dialling(tls).await).await.map_err(unreachable_node)?;
        ask(channel, &request, Some(for_the_node(deadline)), &sent).await
    };
    match tokio::time::timeout_at(deadline, asked).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(timeout, sent.get() && !changes_nothing(&request))),
    }
}

/// Asks for membership, at one address after the other, until it is granted; then this node's own log says so too. `Err`: in vain.
pub async fn ask_to_join(addrs: &[String], tls: Option<&Arc<Tls>>, request: Request) -> Result<()> {
    // So many in a row were none to ask: they took no certificate, or showed none that is good here, or were removed themselves.
    let mut useless = 0usize;
    for addr in addrs.iter().cycle() {
        // Idempotent: asking again for what is done is answered at once.
        let Err(error) = call(addr, tls, request.clone(), Duration::from_secs(10)).await else { return Ok(()) };
        let none_to_ask = error.code == ErrorCode::Tls || was_removed(&error);
        useless = if none_to_ask { useless.saturating_add(1) } else { 0 };
        // Refused for good. A change that was made and overtaken by another is asked for again.
        let refused =
            error.committed == Committed::No && matches!(error.code, ErrorCode::Membership | ErrorCode::WrongDirectory);
        if refused || useless >= addrs.len() {
            return Err(error);
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Whoever answers so speaks of itself, whatever it was asked: an id that is spent is refused as `Membership`. The others go on.
fn was_removed(error: &Error) -> bool {
    error.code == ErrorCode::Removed && error.committed == Committed::No
}

async fn dialling(tls: Option<&Arc<Tls>>) -> Option<Dialling> {
    Some(tls?.dialling().await.0)
}

fn unreachable_node(why: Unreachable) -> Error {
    Error::not_done(why.code, format!("cannot connect: {}", why.reason))
}

fn timed_out(after: Duration, doubt: bool) -> Error {
    let text = format!("no answer within {after:?}");
    match doubt {
        true => Error::unknown(ErrorCode::Timeout, format!("{text}; it may still be carried out")),
        false => Error::not_done(ErrorCode::Timeout, text),
    }
}

/// A little less than is left: the node's own answer at its deadline says more than ours.
fn for_the_node(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.saturating_sub((left / 10).min(Duration::from_millis(100)))
}

/// One address: its connection, made by the first who needs it while the others wait.
#[derive(Default)]
struct Node {
    channel: tokio::sync::Mutex<Option<(u64, Tame)>>,
    /// When connecting last failed, and why: those who waited for that attempt share its outcome.
    failed: Mutex<Option<(Instant, Unreachable)>>,
}

struct Cluster {
    addrs: Vec<String>,
    tls: Option<Arc<Tls>>,
    /// Which of `addrs` to ask while no leader is known.
    next: AtomicUsize,
    leader: Mutex<Option<String>>,
    nodes: Mutex<HashMap<String, Arc<Node>>>,
    numbers: AtomicU64,
    /// Within which commands are sent.
    session: Option<Arc<ClientSession>>,
}

impl Cluster {
    fn pick(&self) -> String {
        let leader = lock(&self.leader).clone();
        leader.or_else(|| self.next().cloned()).unwrap_or_default()
    }

    /// Whom to ask while no leader is known.
    fn next(&self) -> Option<&String> {
        self.addrs.get(self.next.load(Ordering::Relaxed) % self.addrs.len().max(1))
    }

    /// The one at `addr` was of no use: the next of the list, unless somebody has moved on already.
    fn leave(&self, addr: &str) {
        let mut leader = lock(&self.leader);
        match &*leader {
            Some(at) if at == addr => *leader = None,
            Some(_) => {}
            None if self.next().is_some_and(|at| at == addr) => {
                self.next.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
    }

    /// True if this is news.
    fn follow(&self, asked: &str, leader: &str) -> bool {
        if leader == asked || address::dialable("leader", leader, false).is_err() {
            return false;
        }
        *lock(&self.leader) = Some(leader.to_owned());
        // Addresses come from the cluster; a list that only grows would be memory in its hands.
        let mut nodes = lock(&self.nodes);
        if nodes.len() > self.addrs.len().saturating_add(64) {
            nodes.retain(|addr, _| addr == leader || self.addrs.contains(addr));
        }
        true
    }

    async fn channel(&self, addr: &str) -> Result<(u64, Tame)> {
        let node = Arc::clone(lock(&self.nodes).entry(addr.to_owned()).or_default());
        let begun = Instant::now();
        let mut channel = node.channel.lock().await;
        if let Some(channel) = &*channel {
            return Ok(channel.clone());
        }
        if let Some((_, why)) = lock(&node.failed).as_ref().filter(|(when, _)| *when >= begun) {
            return Err(unreachable_node(why.clone()));
        }
        match connect(addr, PATIENCE, dialling(self.tls.as_ref()).await).await {
            Ok(made) => {
                let made = (self.numbers.fetch_add(1, Ordering::Relaxed), made);
                *channel = Some(made.clone());
                Ok(made)
            }
            Err(why) => {
                *lock(&node.failed) = Some((Instant::now(), why.clone()));
                Err(unreachable_node(why))
            }
        }
    }

    /// A connection that has failed is not used again; names are resolved anew.
    async fn forget(&self, addr: &str, number: u64) {
        let node = lock(&self.nodes).get(addr).cloned();
        if let Some(node) = node {
            let mut channel = node.channel.lock().await;
            if channel.as_ref().is_some_and(|(present, _)| *present == number) {
                *channel = None;
            }
        }
    }
}

/// What is known of a request so far, for the one who has to end it.
#[derive(Default)]
struct Progress {
    /// Of the attempt under way.
    sent: Mutex<Sent>,
    /// Why the last attempt came to nothing.
    last: Mutex<Option<Error>>,
    /// What the attempts before it have left to believe of a command within a session.
    left: Mutex<Option<Committed>>,
    /// What is under way is not the request yet, but the opening of its session.
    opening: AtomicBool,
}

impl Progress {
    /// An attempt has ended, and another may follow.
    fn note(&self, committed: Committed) {
        let mut left = lock(&self.left);
        *left = match (committed, *left) {
            (Committed::No, before) => before,
            (_, Some(Committed::Yes)) => Some(Committed::Yes),
            (now, _) => Some(now),
        };
    }

    /// What the last attempt says of itself is not all that is known.
    fn whole(&self, error: Error) -> Error {
        match (*lock(&self.left), error.committed) {
            (Some(before), Committed::No) | (Some(before @ Committed::Yes), Committed::Unknown) => {
                Error { committed: before, ..error }
            }
            _ => error,
        }
    }
}

/// What is asked for, however often.
enum Ask<'a> {
    As(&'a Request),
    InSession(&'a Seat, &'a Bytes),
}

impl Ask<'_> {
    fn request(&self) -> Cow<'_, Request> {
        match self {
            Ask::As(request) => Cow::Borrowed(*request),
            Ask::InSession(seat, data) => Cow::Owned(Request::ProposeInSession(seat.place(), Bytes::clone(data))),
        }
    }

    /// Whether asking again may come to more, and can do no harm.
    fn goes_on(&self, error: &Error) -> bool {
        let knows_it_again = matches!(self, Ask::InSession(..)) && error.committed != Committed::No;
        (error.retryable() && error.code != ErrorCode::Membership)
            || (knows_it_again && !error.lasting && error.code != ErrorCode::ApplyFailed)
    }
}

async fn run(
    cluster: Cluster,
    default_timeout: Duration,
    mut inbox: mpsc::UnboundedReceiver<Command>,
    pending: Arc<Pending>,
    sink: Arc<dyn ClientSink>,
) {
    let cluster = Arc::new(cluster);
    let (done, mut finished) = mpsc::unbounded_channel::<Completion>();
    let (close, closing) = watch::channel(false);
    let told = Arc::clone(&sink);
    let teller = tokio::spawn(async move {
        let mut batch = Vec::new();
        while finished.recv_many(&mut batch, 4096).await > 0 {
            told.completions(std::mem::take(&mut batch));
        }
    });
    let mut asking = JoinSet::new();
    loop {
        let command = tokio::select! {
            command = inbox.recv() => command,
            Some(_) = asking.join_next() => continue,
        };
        let Some(Command::Ask { token, request, timeout }) = command else { break };
        let (cluster, pending, done) = (Arc::clone(&cluster), Arc::clone(&pending), done.clone());
        let mut closing = closing.clone();
        asking.spawn(async move {
            let bytes = request.command_bytes();
            let timeout = timeout_of(&request, timeout, default_timeout);
            let result = see_through(&cluster, &request, timeout, &mut closing).await;
            pending.release(bytes);
            let _ = done.send(Completion { token, result });
        });
    }
    // What was accepted and not looked at yet ends like the rest, and nothing more is accepted.
    inbox.close();
    close.send_replace(true);
    // `recv`, not `try_recv`: that says "empty" also while a sender that was let in before the close has not laid its message
    // down yet, and its request would never complete.
    while let Some(command) = inbox.recv().await {
        if let Command::Ask { token, request, .. } = command {
            pending.release(request.command_bytes());
            let result = Err(Error::not_done(ErrorCode::Closed, "the client was closed before this was sent"));
            let _ = done.send(Completion { token, result });
        }
    }
    while asking.join_next().await.is_some() {}
    drop(done);
    let _ = teller.await;
    if let Some(session) = cluster.session.as_ref().and_then(|session| session.number()) {
        let farewell = Request::CloseSession(session);
        let deadline = Instant::now() + FAREWELL;
        let (addr, progress) = (cluster.pick(), Progress::default());
        let farewell = Ask::As(&farewell);
        let said = attempt(&cluster, &farewell, &addr, Some(deadline), &progress);
        let _ = tokio::time::timeout_at(deadline, said).await;
    }
    sink.closed();
}

fn timeout_of(request: &Request, timeout: Timeout, default: Duration) -> Option<Duration> {
    match timeout {
        Timeout::None => None,
        Timeout::After(timeout) => Some(timeout),
        Timeout::Default => Some(match request {
            Request::Snapshot => default.max(SNAPSHOT_TIMEOUT),
            Request::Join { .. } | Request::ChangeMembers(_) | Request::Leave | Request::TransferLeader(_) => {
                default.max(MEMBERSHIP_TIMEOUT)
            }
            _ => default,
        }),
    }
}

/// One request from its acceptance to its end.
async fn see_through(
    cluster: &Cluster,
    request: &Request,
    timeout: Option<Duration>,
    closing: &mut watch::Receiver<bool>,
) -> Result<Reply> {
    // A deadline too far to name is none.
    let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
    let progress = Progress::default();
    let over = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        biased;
        result = answered(cluster, request, deadline, &progress) => return result.map_err(|error| progress.whole(error)),
        () = over => ErrorCode::Timeout,
        _ = closing.wait_for(|closing| *closing) => ErrorCode::Closed,
    };
    let sent = lock(&progress.sent).get() && !progress.opening.load(Ordering::Relaxed);
    let doubt = sent && !changes_nothing(request);
    if end == ErrorCode::Closed {
        return Err(progress.whole(match doubt {
            true => Error::unknown(ErrorCode::Closed, "the client was closed; it may still be carried out"),
            false => Error::not_done(ErrorCode::Closed, "the client was closed before this was carried out"),
        }));
    }
    let after = timeout.unwrap_or_default();
    if sent {
        return Err(progress.whole(timed_out(after, doubt)));
    }
    let last = lock(&progress.last).take();
    if let Some(left) = *lock(&progress.left) {
        let why = last.map_or_else(String::new, |last| format!("; the last attempt: {}", last.message));
        let text = match left {
            Committed::Yes => format!("it is committed, and what it came to was not heard of within {after:?}{why}"),
            _ => format!("no answer within {after:?}; it may still be carried out{why}"),
        };
        return Err(Error::new(ErrorCode::Timeout, left, text));
    }
    Err(match last {
        // It was somewhere, and that has a reason to tell.
        Some(last)
            if !matches!(last.code, ErrorCode::ConnectionFailed | ErrorCode::NotLeader | ErrorCode::NoLeader) =>
        {
            last
        }
        // Any node may answer this: a leader is not what is missing.
        Some(last) if *request == Request::Status => Error::not_done(
            ErrorCode::ConnectionFailed,
            format!("no node answers within {after:?} at {}: {}", cluster.addrs.join(", "), last.message),
        ),
        Some(last) => Error::not_done(
            ErrorCode::NoLeader,
            format!("no leader found within {after:?} at {}: {}", cluster.addrs.join(", "), last.message),
        )
        .with_leader(last.leader),
        None => Error::not_done(
            ErrorCode::NoLeader,
            format!("nobody reached within {after:?} at {}", cluster.addrs.join(", ")),
        ),
    })
}

/// Asks until there is an answer that is final; for a command within the client's session, if it has one.
async fn answered(
    cluster: &Cluster,
    request: &Request,
    deadline: Option<Instant>,
    progress: &Progress,
) -> Result<Reply> {
    let (Some(session), Request::Propose(data)) = (&cluster.session, request) else {
        return attempts(cluster, &Ask::As(request), deadline, progress).await;
    };
    loop {
        progress.opening.store(true, Ordering::Relaxed);
        let number = session.opened(async || open_session(cluster, deadline, progress).await).await?;
        let Some(seat) = session.seat(number) else { continue };
        *lock(&progress.sent) = Sent::default();
        progress.opening.store(false, Ordering::Relaxed);
        let many =
            "the oldest command of this session that is under way is not answered, and no more are sent beside it";
        let before = lock(&progress.last).replace(Error::not_done(ErrorCode::Overloaded, many));
        seat.turn().await;
        *lock(&progress.last) = before;
        let result = attempts(cluster, &Ask::InSession(&seat, data), deadline, progress).await;
        match &result {
            Err(error) if error.code == ErrorCode::SessionExpired => session.expired(seat.session()),
            _ => return result,
        }
        // Where no sending of it was in doubt it is as if it had not been sent: a new session, and a new name.
        if result.as_ref().is_err_and(|error| progress.whole(error.clone()).committed != Committed::No) {
            return result;
        }
    }
}

/// Asked for until there is one: if an opening was done and not heard of, nobody uses it, and the cluster forgets it.
async fn open_session(cluster: &Cluster, deadline: Option<Instant>, progress: &Progress) -> Result<u64> {
    loop {
        match attempts(cluster, &Ask::As(&Request::OpenSession), deadline, progress).await {
            Ok(Reply::Session(session)) => return Ok(session),
            Ok(_) => {
                return Err(Error::not_done(ErrorCode::Internal, "the node opened no session, and said that it had"))
            }
            Err(error) if error.committed == Committed::No => return Err(error),
            Err(error) => *lock(&progress.last) = Some(Error { committed: Committed::No, ..error }),
        }
        *lock(&progress.sent) = Sent::default();
        sleep(jitter(BACKOFF_MIN)).await;
    }
}

/// Asks until there is an answer that is final.
async fn attempts(
    cluster: &Cluster,
    request: &Ask<'_>,
    deadline: Option<Instant>,
    progress: &Progress,
) -> Result<Reply> {
    let mut backoff = BACKOFF_MIN;
    // Moves to another node that cost no waiting: each address once, then patience.
    let mut free = cluster.addrs.len().max(3);
    // Who was removed and still runs; nobody else has answered since.
    let mut gone: HashSet<String> = HashSet::new();
    loop {
        let addr = cluster.pick();
        let error = match attempt(cluster, request, &addr, deadline, progress).await {
            Err(error) if request.goes_on(&error) => error,
            // One node's certificate is not all of theirs; but what is wrong here does not pass by waiting.
            Err(error) if error.code == ErrorCode::Tls && cluster.addrs.len() > 1 && free > 0 => error,
            Err(error) if was_removed(&error) => {
                gone.insert(addr.clone());
                if cluster.addrs.iter().all(|addr| gone.contains(addr)) {
                    return Err(error);
                }
                error
            }
            result => return result,
        };
        *lock(&progress.sent) = Sent::default();
        if matches!(request, Ask::InSession(..)) {
            progress.note(error.committed);
        }
        let moved = match (error.code, &error.leader) {
            (ErrorCode::NotLeader | ErrorCode::NoLeader | ErrorCode::LeadershipLost, Some((_, leader)))
                if cluster.follow(&addr, leader) =>
            {
                true
            }
            (ErrorCode::Overloaded, _) => false,
            (ErrorCode::Timeout, _) if matches!(request, Ask::As(_)) => false,
            _ => {
                cluster.leave(&addr);
                cluster.addrs.len() > 1
            }
        };
        match error.code {
            // That somebody was removed says more than that the others cannot be reached.
            ErrorCode::ConnectionFailed if !gone.is_empty() => {}
            _ => {
                if error.code != ErrorCode::Removed {
                    gone.clear();
                }
                *lock(&progress.last) = Some(error);
            }
        }
        if moved && free > 0 {
            free = free.saturating_sub(1);
            continue;
        }
        sleep(jitter(backoff)).await;
        backoff = backoff.saturating_mul(2).min(BACKOFF_MAX);
    }
}

async fn attempt(
    cluster: &Cluster,
    request: &Ask<'_>,
    addr: &str,
    deadline: Option<Instant>,
    progress: &Progress,
) -> Result<Reply> {
    let (number, channel) = cluster.channel(addr).await?;
    let sent = lock(&progress.sent).clone();
    let asked = request.request();
    let result = match request {
        Ask::As(_) => ask(channel, &asked, deadline.map(for_the_node), &sent).await,
        Ask::InSession(_, data) => {
            let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let patience = ATTEMPT.saturating_add(ATTEMPT_BYTE.saturating_mul(bytes));
            let until = Instant::now() + patience;
            let until = deadline.map_or(until, |deadline| deadline.min(until));
            let late = |_| Err(timed_out(patience, sent.get()));
            let asking = ask(channel, &asked, Some(for_the_node(until)), &sent);
            tokio::time::timeout_at(until, asking).await.unwrap_or_else(late)
        }
    };
    if result.as_ref().is_err_and(|e| e.code == ErrorCode::ConnectionFailed) {
        cluster.forget(addr, number).await;
        // Whoever cannot be reached leads nobody; also when this request may not be sent again.
        cluster.leave(addr);
    }
    result
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

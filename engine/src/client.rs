//! The remote client: finds the leader and follows it, retries what was certainly not done, keeps deadlines. With a session commands are
//! sent as often as it takes, and count once.
//!
//! Lives here: a client's requests from their acceptance to their end, and what a failure means for the caller. Which node to ask, and when to
//! ask again: [`cluster`], [`attempts`]. The wire is `transport`'s.
//!
//! Invariants (S15): outside a session nothing is sent a second time unless the first sending was certainly not carried out; every request
//! ends by its deadline, or at `close`; each accepted request completes exactly once, and never within `submit`.

mod attempts;
mod cluster;
mod session;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, Instant};

use attempts::{attempts, Errand, Progress, BACKOFF_MAX, BACKOFF_MIN};
use cluster::Cluster;
use session::{Session, WINDOW};

use crate::address;
use crate::error::{Committed, Error, ErrorCode, Result};
use crate::request::{Completion, Reply, Request, Timeout, Token};
use crate::runtime::Runtime;
use crate::transport::ask::{ask, changes_nothing, Sent};
use crate::transport::connect::{connect, Patience};
use crate::transport::dial::jitter;
use crate::transport::tls::{Dialling, Tls};
use crate::transport::{TlsFiles, Unreachable};

/// Requests waiting in one client; past it they are `Overloaded`.
const MAX_PENDING: usize = 100_000;
/// Bytes of their commands.
const MAX_PENDING_BYTES: usize = 256 << 20;
const PATIENCE: Patience = Patience { connect: Duration::from_secs(2), keepalive: Duration::from_secs(5) };
/// Deadline of a membership change when none is named, and of a snapshot.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(30);
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

/// How a client asks.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Certificates, where the nodes have them; read when the client is made, which blocks, and again when they change.
    pub tls: TlsFiles,
    /// Of requests that name no deadline.
    pub default_timeout: Duration,
    /// Commands go through a session, which makes each count once however often it has to be sent.
    pub session: bool,
}

/// Receives what a client has to say. Called on the runtime's thread; must not block.
pub trait ClientSink: Send + Sync + 'static {
    /// All that has completed since the last call.
    fn completions(&self, batch: Vec<Completion>);
    /// The last call, after the last completion.
    fn closed(&self);
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
    /// the leader.
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
        let cluster = Cluster::new(addrs, Tls::of_client(&options.tls)?);
        let asking = Asking {
            cluster: Arc::new(cluster),
            default_timeout: options.default_timeout,
            session: options.session.then(Arc::default),
        };
        let (commands, inbox) = mpsc::unbounded_channel();
        let pending = Arc::new(Pending::default());
        let held = Arc::clone(&pending);
        runtime.spawn(run(asking, inbox, held, sink))?;
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
        Err(_) => {
            let doubt = sent.get() && !changes_nothing(&request);
            Err(timed_out(timeout, if doubt { Committed::Unknown } else { Committed::No }))
        }
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

fn timed_out(after: Duration, committed: Committed) -> Error {
    let more = match committed {
        Committed::Unknown => "; it may still be carried out",
        Committed::Yes => "; it was carried out",
        Committed::No => "",
    };
    Error::new(ErrorCode::Timeout, committed, format!("no answer within {after:?}{more}"))
}

/// A little less than is left: the node's own answer at its deadline says more than ours.
fn for_the_node(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.saturating_sub((left / 10).min(Duration::from_millis(100)))
}

/// What the requests of one client share.
#[derive(Clone)]
struct Asking {
    cluster: Arc<Cluster>,
    default_timeout: Duration,
    session: Option<Arc<Session>>,
}

async fn run(
    asking: Asking,
    mut inbox: mpsc::UnboundedReceiver<Command>,
    pending: Arc<Pending>,
    sink: Arc<dyn ClientSink>,
) {
    let (done, mut finished) = mpsc::unbounded_channel::<Completion>();
    let (close, closing) = watch::channel(false);
    let told = Arc::clone(&sink);
    let teller = tokio::spawn(async move {
        let mut batch = Vec::new();
        while finished.recv_many(&mut batch, 4096).await > 0 {
            told.completions(std::mem::take(&mut batch));
        }
    });
    let mut requests = JoinSet::new();
    loop {
        let command = tokio::select! {
            command = inbox.recv() => command,
            Some(_) = requests.join_next() => continue,
        };
        let Some(Command::Ask { token, request, timeout }) = command else { break };
        let (asking, pending, done) = (asking.clone(), Arc::clone(&pending), done.clone());
        let mut closing = closing.clone();
        requests.spawn(async move {
            let bytes = request.command_bytes();
            let timeout = timeout_of(&request, timeout, asking.default_timeout);
            let result = see_through(&asking, &request, timeout, &mut closing).await;
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
    while requests.join_next().await.is_some() {}
    if let Some(session) = &asking.session {
        session.close(&asking.cluster).await;
    }
    drop(done);
    let _ = teller.await;
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
    asking: &Asking,
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
    let answered = async {
        match (&asking.session, request) {
            (Some(session), Request::Propose(data)) => {
                in_session(&asking.cluster, session, data, deadline, &progress).await
            }
            _ => attempts(&asking.cluster, &Errand::CountsEachTime(request), deadline, &progress).await,
        }
    };
    let end = tokio::select! {
        biased;
        result = answered => return result,
        () = over => ErrorCode::Timeout,
        _ = closing.wait_for(|closing| *closing) => ErrorCode::Closed,
    };
    let committed = if changes_nothing(request) { Committed::No } else { progress.committed() };
    if end == ErrorCode::Closed {
        let text = match committed {
            Committed::Unknown => "the client was closed; it may still be carried out",
            Committed::No => "the client was closed before this was carried out",
            Committed::Yes => "the client was closed; it was carried out",
        };
        return Err(Error::new(ErrorCode::Closed, committed, text));
    }
    let after = timeout.unwrap_or_default();
    match &asking.session {
        Some(session) if !progress.has_begun() => Err(never_sent(&asking.cluster, session, after)),
        _ => Err(overdue(&asking.cluster, &progress, committed, request, after)),
    }
}

/// A command in a session, sent until it is known what it came to. In another session if the cluster has forgotten the one it was sent
/// in, unless it may have been applied there.
async fn in_session(
    cluster: &Arc<Cluster>,
    session: &Arc<Session>,
    data: &Bytes,
    deadline: Option<Instant>,
    progress: &Progress,
) -> Result<Reply> {
    let mut backoff = BACKOFF_MIN;
    loop {
        let place = session.take(cluster).await?;
        let result = attempts(cluster, &Errand::InSession(&place, data), deadline, progress).await;
        match result {
            Err(error) if error.code == ErrorCode::SessionExpired && error.committed == Committed::No => {
                session.expired(&place);
            }
            result => return result,
        }
        // More clients than the cluster keeps sessions for would drive out each other's as fast as they can ask.
        drop(place);
        sleep(jitter(backoff)).await;
        backoff = backoff.saturating_mul(2).min(BACKOFF_MAX);
    }
}

/// The deadline of a command that waited for its session, or in it for its turn.
fn never_sent(cluster: &Cluster, session: &Session, after: Duration) -> Error {
    let Some(opening) = session.opening() else {
        return Error::not_done(
            ErrorCode::Timeout,
            format!("not sent within {after:?}: {WINDOW} commands from the oldest without an answer on are under way"),
        );
    };
    let error = overdue(cluster, &opening.progress, Committed::No, &Request::OpenSession, after);
    Error { message: format!("no session for this client: {}", error.message), ..error }
}

/// The error of a request whose deadline has come.
fn overdue(cluster: &Cluster, progress: &Progress, committed: Committed, request: &Request, after: Duration) -> Error {
    let last = progress.last();
    if progress.earlier() != Committed::No {
        // In a session: each attempt so far had an end, and none of them was an answer.
        let error = timed_out(after, committed);
        return match last {
            Some(last) => Error { message: format!("{}; the last attempt: {last}", error.message), ..error },
            None => error,
        };
    }
    if progress.is_sent() {
        return timed_out(after, committed);
    }
    match last {
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
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "client/session_tests.rs"]
mod session_tests;

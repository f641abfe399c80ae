//! The client against nodes that answer by script.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::Mutex;

use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use super::*;
use crate::config::Config;
use crate::locks::lock;
use crate::transport::test_ca::{write, Ca};
use crate::transport::tests::run as in_runtime;
use crate::transport::{Incoming, IntakeFile, SnapshotIntake, Transport, TransportConfig};
use crate::wire::SnapshotHeader;

struct NoIntake;

impl SnapshotIntake for NoIntake {
    fn begin(&self, _: u64, _: &SnapshotHeader) -> Result<(Box<dyn IntakeFile>, u64)> {
        Err(Error::not_done(ErrorCode::Internal, "none"))
    }
}

/// A node whose answers are a script; `None`: never answers. After the script the last line repeats.
pub(super) struct Scripted {
    pub(super) addr: String,
    pub(super) asked: Arc<Mutex<Vec<Request>>>,
    pub(super) transport: Transport,
}

pub(super) type Line = Option<Result<Reply>>;

pub(super) async fn scripted(lines: Vec<Line>) -> Scripted {
    scripted_with(lines, None).await
}

async fn scripted_with(lines: Vec<Line>, tls: Option<Arc<Tls>>) -> Scripted {
    scripted_at("127.0.0.1:0", lines, tls).await
}

async fn scripted_at(addr: &str, lines: Vec<Line>, tls: Option<Arc<Tls>>) -> Scripted {
    let mut lines = VecDeque::from(lines);
    let next = move |_: &Request| if lines.len() > 1 { lines.pop_front().unwrap() } else { lines[0].clone() };
    answering(addr, tls, next).await
}

/// A node that answers by what it is asked.
pub(super) async fn answering(
    addr: &str,
    tls: Option<Arc<Tls>>,
    mut answer_to: impl FnMut(&Request) -> Line + Send + 'static,
) -> Scripted {
    let (tell, mut heard) = mpsc::unbounded_channel();
    let config = TransportConfig { tls, max_connections: 8, ..TransportConfig::new(1, addr, &Config::default()) };
    let transport = Transport::bind(config, tell, Arc::new(NoIntake)).await.unwrap();
    let asked = Arc::<Mutex<Vec<Request>>>::default();
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut unanswered: Vec<oneshot::Sender<Result<Reply>>> = Vec::new();
        while let Some(incoming) = heard.recv().await {
            if let Incoming::Call { request, answer, .. } = incoming {
                let line = answer_to(&request);
                lock(&seen).push(request);
                match line {
                    Some(result) => drop(answer.send(result)),
                    None => unanswered.push(answer),
                }
            }
        }
    });
    Scripted { addr: transport.local_addr(), asked, transport }
}

struct Collect {
    tell: mpsc::UnboundedSender<Completion>,
    closed: Arc<AtomicBool>,
}

impl ClientSink for Collect {
    fn completions(&self, batch: Vec<Completion>) {
        assert!(!self.closed.load(Ordering::SeqCst), "nothing after the last call");
        batch.into_iter().for_each(|c| self.tell.send(c).unwrap());
    }

    fn closed(&self) {
        assert!(!self.closed.swap(true, Ordering::SeqCst));
    }
}

pub(super) struct Asker {
    pub(super) client: Client,
    pub(super) done: mpsc::UnboundedReceiver<Completion>,
    pub(super) closed: Arc<AtomicBool>,
    runtime: Runtime,
}

impl Asker {
    fn new(addrs: &[&str]) -> Asker {
        Self::with(addrs, &TlsFiles::default())
    }

    fn with(addrs: &[&str], tls: &TlsFiles) -> Asker {
        Self::of(addrs, ClientOptions { tls: tls.clone(), ..options() })
    }

    pub(super) fn of(addrs: &[&str], options: ClientOptions) -> Asker {
        let runtime = Runtime::new().unwrap();
        let (tell, done) = mpsc::unbounded_channel();
        let closed = Arc::<AtomicBool>::default();
        let sink = Arc::new(Collect { tell, closed: Arc::clone(&closed) });
        let addrs = addrs.iter().map(|a| (*a).to_owned()).collect();
        let client = Client::new(&runtime, addrs, &options, sink).unwrap();
        Asker { client, done, closed, runtime }
    }

    pub(super) async fn ask(&mut self, request: Request, timeout: Timeout) -> Result<Reply> {
        self.client.submit(7, request, timeout).unwrap();
        let completion = self.done.recv().await.unwrap();
        assert_eq!(completion.token, 7);
        completion.result
    }
}

pub(super) fn options() -> ClientOptions {
    ClientOptions { tls: TlsFiles::default(), default_timeout: Duration::from_secs(20), session: false }
}

pub(super) fn propose() -> Request {
    Request::Propose("x".into())
}

pub(super) fn applied(index: u64) -> Line {
    Some(Ok(Reply::Applied { index, term: 1, data: vec![1] }))
}

pub(super) fn soon() -> Timeout {
    Timeout::After(Duration::from_secs(1))
}

/// An address where nobody listens.
pub(super) async fn dead() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn a_thousand_requests_at_once_are_answered_each_once() {
    in_runtime(async {
        let node = scripted(vec![applied(3)]).await;
        let mut asker = Asker::new(&[&node.addr]);
        for token in 0..1000 {
            asker.client.submit(token, propose(), Timeout::Default).unwrap();
        }
        let mut tokens = Vec::new();
        while tokens.len() < 1000 {
            let completion = asker.done.recv().await.unwrap();
            assert_eq!(completion.result, applied(3).unwrap());
            tokens.push(completion.token);
        }
        tokens.sort_unstable();
        assert_eq!(tokens, (0..1000).collect::<Vec<_>>());
        assert_eq!(asker.client.pending.count.load(Ordering::Relaxed), 0);
        assert_eq!(asker.client.pending.bytes.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn the_leader_named_by_another_node_is_followed_and_remembered() {
    in_runtime(async {
        let leader = scripted(vec![applied(5)]).await;
        let not_here = Error::not_done(ErrorCode::NotLeader, "not here").with_leader(Some((2, leader.addr.clone())));
        let other = scripted(vec![Some(Err(not_here))]).await;
        let mut asker = Asker::new(&[&other.addr]);
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(5).unwrap());
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(5).unwrap());
        assert_eq!((lock(&other.asked).len(), lock(&leader.asked).len()), (1, 2));
        // It goes away: back to the list.
        leader.transport.shutdown().await;
        let _ = asker.ask(Request::Read, soon()).await;
        assert!(lock(&other.asked).len() > 1);
    });
}

#[test]
fn what_was_certainly_not_done_is_asked_again() {
    in_runtime(async {
        for code in [ErrorCode::Overloaded, ErrorCode::NoLeader, ErrorCode::LeadershipLost, ErrorCode::Closed] {
            let node = scripted(vec![Some(Err(Error::not_done(code, ""))), applied(1)]).await;
            let mut asker = Asker::new(&[&node.addr]);
            assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(1).unwrap());
            assert_eq!(lock(&node.asked).len(), 2);
        }
    });
}

#[test]
fn what_may_have_been_done_or_is_final_is_never_asked_again() {
    in_runtime(async {
        for error in [
            Error::unknown(ErrorCode::LeadershipLost, "who knows"),
            Error::unknown(ErrorCode::Timeout, "late"),
            Error::new(ErrorCode::ApplyFailed, Committed::Yes, "raised"),
            Error::not_done(ErrorCode::ProposalTooLarge, "large"),
            Error::not_done(ErrorCode::Membership, "one at a time"),
        ] {
            let node = scripted(vec![Some(Err(error.clone())), applied(1)]).await;
            let mut asker = Asker::new(&[&node.addr]);
            assert_eq!(asker.ask(propose(), Timeout::Default).await, Err(error));
            assert_eq!(lock(&node.asked).len(), 1);
        }
    });
}

fn removed() -> Line {
    Some(Err(Error::not_done(ErrorCode::Removed, "node 1 was removed from its cluster")))
}

#[test]
fn a_node_that_was_removed_is_left_for_the_next() {
    in_runtime(async {
        let gone = scripted(vec![removed()]).await;
        let node = scripted(vec![applied(1)]).await;
        let mut asker = Asker::new(&[&gone.addr, &node.addr]);
        for _ in 0..3 {
            assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(1).unwrap());
        }
        assert_eq!((lock(&gone.asked).len(), lock(&node.asked).len()), (1, 3));
        // It led, and the client followed it.
        let leader = scripted(vec![applied(1), removed()]).await;
        let named = Error::not_done(ErrorCode::NotLeader, "not here").with_leader(Some((2, leader.addr.clone())));
        let other = scripted(vec![Some(Err(named)), applied(2)]).await;
        let mut asker = Asker::new(&[&other.addr]);
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(1).unwrap());
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(2).unwrap());
    });
}

#[test]
fn that_a_node_was_removed_is_the_answer_where_nobody_else_has_one() {
    in_runtime(async {
        let gone = scripted(vec![removed()]).await;
        let mut asker = Asker::new(&[&gone.addr]);
        assert_eq!(asker.ask(propose(), Timeout::None).await, removed().unwrap());
        let nobody = dead().await;
        for addrs in [[&gone.addr, &nobody], [&nobody, &gone.addr]] {
            let mut asker = Asker::new(&addrs.map(String::as_str));
            assert_eq!(asker.ask(propose(), soon()).await, removed().unwrap());
        }
    });
}

#[test]
fn a_join_asks_the_others_where_one_was_removed_and_ends_where_its_id_is_refused() {
    in_runtime(async {
        let join = Request::Join { id: 4, addr: "h:4".into(), directory: vec![4; 16], learner: false };
        let gone = scripted(vec![removed()]).await;
        let done = scripted(vec![Some(Ok(Reply::Done))]).await;
        let spent = Error::not_done(ErrorCode::Membership, "id 4 was removed before and is spent");
        let refuses = scripted(vec![Some(Err(spent.clone()))]).await;
        for (addrs, end) in [
            ([&gone.addr, &done.addr], Ok(())),
            ([&gone.addr, &refuses.addr], Err(spent)),
            ([&gone.addr, &gone.addr], Err(removed().unwrap().unwrap_err())),
        ] {
            let addrs = addrs.map(String::clone);
            assert_eq!(ask_to_join(&addrs, None, join.clone()).await, end, "{addrs:?}");
        }
    });
}

#[test]
fn a_deadline_ends_what_is_never_answered_and_says_what_is_known() {
    in_runtime(async {
        let node = scripted(vec![None]).await;
        let mut asker = Asker::new(&[&node.addr]);
        let error = asker.ask(propose(), soon()).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::Timeout, Committed::Unknown));
        let error = asker.ask(Request::Read, soon()).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::Timeout, Committed::No));
        let error = call(&node.addr, None, propose(), Duration::from_secs(1)).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::Timeout, Committed::Unknown));
    });
}

#[test]
fn where_nobody_listens_nothing_was_done() {
    in_runtime(async {
        let nobody = dead().await;
        let mut asker = Asker::new(&[&nobody]);
        let error = asker.ask(propose(), soon()).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::NoLeader, Committed::No), "{error}");
        assert!(error.message.contains(&nobody), "{error}");
        let error = asker.ask(Request::Status, soon()).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::ConnectionFailed, Committed::No), "{error}");
        assert!(error.message.contains(&nobody), "{error}");
        let error = call(&nobody, None, propose(), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::ConnectionFailed, Committed::No), "{error}");
        let node = scripted(vec![applied(1)]).await;
        let mut asker = Asker::new(&[&nobody, &node.addr]);
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(1).unwrap());
        assert_eq!(call(&node.addr, None, Request::Status, Duration::from_secs(5)).await, applied(1).unwrap());
    });
}

#[test]
fn a_refusal_that_lasts_is_the_answer_at_the_deadline() {
    in_runtime(async {
        let node = scripted(vec![Some(Err(Error::not_done(ErrorCode::Overloaded, "full")))]).await;
        let mut asker = Asker::new(&[&node.addr]);
        let error = asker.ask(propose(), soon()).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::Overloaded, Committed::No));
        assert!(lock(&node.asked).len() > 1);
    });
}

#[test]
fn a_node_that_dies_after_it_was_asked_leaves_the_outcome_unknown() {
    in_runtime(async {
        let node = scripted(vec![None]).await;
        let mut asker = Asker::new(&[&node.addr]);
        asker.client.submit(7, propose(), Timeout::None).unwrap();
        while lock(&node.asked).is_empty() {
            tokio::task::yield_now().await;
        }
        node.transport.shutdown().await;
        let error = asker.done.recv().await.unwrap().result.unwrap_err();
        assert_eq!(error.committed, Committed::Unknown, "{error}");
    });
}

#[test]
fn a_client_for_which_a_node_has_no_place_is_told_so_whatever_it_tried_last() {
    in_runtime(async {
        let node = scripted(vec![applied(1)]).await;
        let mut others = Vec::new();
        for _ in 0..8 {
            let mut other = tokio::net::TcpStream::connect(&node.addr).await.unwrap();
            other.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
            others.push(other);
        }
        let mut asker = Asker::new(&[&node.addr]);
        // Whatever became of the last attempt before the deadline.
        for millis in [1500, 1800] {
            let error = asker.ask(propose(), Timeout::After(Duration::from_millis(millis))).await.unwrap_err();
            assert_eq!(error.committed, Committed::No, "{error}");
            assert!(error.message.contains("this node has 8 connections"), "{error}");
        }
        drop(others);
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(1).unwrap());
    });
}

#[test]
fn a_command_above_the_limit_is_refused_by_name_and_certainly_not_done() {
    in_runtime(async {
        let node = scripted(vec![applied(1)]).await;
        let mut asker = Asker::new(&[&node.addr]);
        let large = Request::Propose(vec![0; 20 << 20].into());
        let error = asker.ask(large, Timeout::Default).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::ProposalTooLarge, Committed::No), "{error}");
        assert!(error.message.contains("max_proposal_size"), "{error}");
        let largest = Request::Propose(vec![0; 16 << 20].into());
        assert_eq!(asker.ask(largest, Timeout::Default).await, applied(1).unwrap());
    });
}

#[test]
fn close_ends_all_that_is_pending_and_then_takes_nothing_more() {
    in_runtime(async {
        let node = scripted(vec![None]).await;
        let mut asker = Asker::new(&[&node.addr]);
        for token in 0..10 {
            asker.client.submit(token, propose(), Timeout::None).unwrap();
        }
        while lock(&node.asked).len() < 10 {
            tokio::task::yield_now().await;
        }
        asker.client.submit(10, Request::Read, Timeout::None).unwrap();
        asker.client.close();
        asker.client.close();
        let mut known = Vec::new();
        while let Some(completion) = asker.done.recv().await {
            let error = completion.result.unwrap_err();
            assert_eq!(error.code, ErrorCode::Closed);
            known.push((completion.token, error.committed));
            if known.len() == 11 {
                break;
            }
        }
        known.sort_unstable_by_key(|(token, _)| *token);
        let expected = (0..10).map(|t| (t, Committed::Unknown)).chain([(10, Committed::No)]).collect::<Vec<_>>();
        assert_eq!(known, expected);
        while !asker.closed.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        let error = asker.client.submit(1, propose(), Timeout::None).unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::Closed, Committed::No));
        assert!(asker.runtime.shutdown(Duration::from_secs(5)));
    });
}

#[test]
fn s15_one_that_takes_connections_and_never_speaks_was_certainly_not_asked() {
    in_runtime(async {
        // As of a process that is stopped: the kernel still accepts.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = silent.local_addr().unwrap().to_string();
        let node = scripted(vec![applied(3)]).await;
        let mut asker = Asker::new(&[&addr, &node.addr]);
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(3).unwrap());
        let mut alone = Asker::new(&[&addr]);
        let error = alone.ask(propose(), Timeout::After(Duration::from_millis(300))).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::NoLeader, Committed::No), "{error}");
    });
}

#[test]
fn a_node_without_a_good_certificate_is_passed_over_and_alone_it_is_an_error_at_once() {
    in_runtime(async {
        let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let of = |files| Tls::of_node(&files, "127.0.0.1:0").unwrap();
        let bad = scripted_with(vec![applied(1)], of(theirs.files(dirs[0].path()))).await;
        let good = scripted_with(vec![applied(2)], of(ours.files(dirs[1].path()))).await;
        let files = ours.files(dirs[2].path());
        let mut asker = Asker::with(&[&bad.addr, &good.addr], &files);
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(2).unwrap());
        for files in [files, TlsFiles::default()] {
            let mut asker = Asker::with(&[&bad.addr], &files);
            let error = asker.ask(propose(), Timeout::None).await.unwrap_err();
            assert_eq!((error.code, error.committed, error.retryable()), (ErrorCode::Tls, Committed::No, false));
            assert!(error.message.contains(&bad.addr), "{error}");
        }
        assert!(lock(&bad.asked).is_empty());
    });
}

#[test]
fn a_connection_that_is_made_again_is_made_with_the_certificates_of_now() {
    in_runtime(async {
        let (before, next) = (Ca::new("before"), Ca::new("next"));
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let of = |files| Tls::of_node(&files, "127.0.0.1:0").unwrap();
        let both = format!("{}{}", before.pem, next.pem);
        let node = scripted_with(vec![applied(1)], of(before.files(dirs[0].path()))).await;
        let files = write(dirs[1].path(), &before.issue(|_| {}), &both);
        let mut asker = Asker::with(&[&node.addr], &files);
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(1).unwrap());
        write(dirs[1].path(), &next.issue(|_| {}), &both);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        node.transport.shutdown().await;
        // It shows what the client believes either way, and believes only what the client shows now.
        let _node = scripted_at(&node.addr, vec![applied(2)], of(next.files(dirs[0].path()))).await;
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(2).unwrap());
    });
}

#[test]
fn a_list_that_names_nobody_is_refused() {
    let runtime = Runtime::new().unwrap();
    let (tell, _done) = mpsc::unbounded_channel();
    let sink = Arc::new(Collect { tell, closed: Arc::default() });
    for addrs in [vec![], vec!["nonsense".to_owned()], vec!["a:1".to_owned(), "0.0.0.0:1".to_owned()]] {
        let error = Client::new(&runtime, addrs, &options(), sink.clone()).err().unwrap();
        assert_eq!((error.code, error.field.as_deref()), (ErrorCode::InvalidConfig, Some("addrs")));
    }
}

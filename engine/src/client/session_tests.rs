//! The client with a session, against nodes that keep one as a cluster does and lose answers by script.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::tests::{answering, applied, dead, options, propose, scripted, soon, Asker, Line, Scripted};
use super::*;
use crate::error::{Committed, Error, ErrorCode, Result};
use crate::locks::lock;
use crate::request::{InSession, Reply, Request, Timeout};
use crate::transport::tests::run as in_runtime;

/// What a cluster knows of sessions.
#[derive(Default)]
struct Ledger {
    opened: u64,
    /// Of the sessions that are open: what their commands came to.
    results: BTreeMap<u64, BTreeMap<u64, u64>>,
    applied: u64,
    first_open: u64,
}

impl Ledger {
    fn carry_out(&mut self, request: &Request) -> Result<Reply> {
        match request {
            Request::OpenSession => {
                self.opened += 1;
                self.first_open = 0;
                self.results.insert(self.opened, BTreeMap::new());
                Ok(Reply::Session(self.opened))
            }
            Request::CloseSession(session) => {
                self.results.remove(session);
                Ok(Reply::Done)
            }
            Request::ProposeInSession(InSession { session, sequence, first_open }, _) => {
                assert!(*sequence >= *first_open && *sequence < first_open + WINDOW, "{request:?}");
                assert!(*sequence > 0);
                let Some(results) = self.results.get_mut(session) else { return Err(expired()) };
                self.first_open = self.first_open.max(*first_open);
                if *sequence < self.first_open {
                    return Err(Error::unknown(ErrorCode::SessionExpired, "let go of").lasting());
                }
                let index = *results.entry(*sequence).or_insert_with(|| {
                    self.applied += 1;
                    self.applied
                });
                applied(index).unwrap()
            }
            _ => panic!("{request:?}"),
        }
    }
}

fn expired() -> Error {
    Error::not_done(ErrorCode::SessionExpired, "no such session").lasting()
}

fn unknown(code: ErrorCode) -> Error {
    Error::unknown(code, "who knows")
}

/// What a node does with the commands that reach it, one after the other; the last repeats.
#[derive(Clone)]
enum Act {
    Answer,
    /// It is applied, and this is said.
    Lose(Error),
    /// It is applied, and nothing is said.
    Silence,
    /// It is not applied, and this is said.
    Refuse(Error),
    /// The session is forgotten before.
    Forget,
}

type Shared = Arc<Mutex<Ledger>>;

/// A node of a cluster with this ledger. Other requests than commands are answered.
async fn node(ledger: &Shared, acts: Vec<Act>) -> Scripted {
    let (ledger, mut acts) = (Arc::clone(ledger), VecDeque::from(acts));
    answering("127.0.0.1:0", None, move |request| {
        let mut ledger = lock(&ledger);
        let Request::ProposeInSession(..) = request else { return Some(ledger.carry_out(request)) };
        match if acts.len() > 1 { acts.pop_front().unwrap() } else { acts[0].clone() } {
            Act::Answer => Some(ledger.carry_out(request)),
            Act::Lose(error) => Some(ledger.carry_out(request).and(Err(error))),
            Act::Silence => {
                let _ = ledger.carry_out(request);
                None
            }
            Act::Refuse(error) => Some(Err(error)),
            Act::Forget => {
                ledger.results.clear();
                Some(ledger.carry_out(request))
            }
        }
    })
    .await
}

fn asker(nodes: &[&Scripted]) -> Asker {
    let addrs: Vec<&str> = nodes.iter().map(|node| node.addr.as_str()).collect();
    Asker::of(&addrs, ClientOptions { session: true, ..options() })
}

/// The numbers of the commands that a node was asked, in their order.
fn sequences(node: &Scripted) -> Vec<u64> {
    let of = |request: &Request| match request {
        Request::ProposeInSession(place, _) => Some(place.sequence),
        _ => None,
    };
    lock(&node.asked).iter().filter_map(of).collect()
}

async fn completions(asker: &mut Asker, count: usize) -> Vec<Result<Reply>> {
    let mut results = Vec::new();
    while results.len() < count {
        results.push(asker.done.recv().await.unwrap().result);
    }
    results
}

/// Each of them was applied once.
fn assert_distinct(results: Vec<Result<Reply>>, ledger: &Shared) {
    let count = results.len();
    let index = |result: Result<Reply>| match result.unwrap() {
        Reply::Applied { index, .. } => index,
        other => panic!("{other:?}"),
    };
    assert_eq!(results.into_iter().map(index).collect::<BTreeSet<_>>().len(), count);
    assert_eq!(lock(ledger).applied, count as u64);
}

#[test]
fn s15_a_command_whose_answer_is_lost_is_asked_for_again_and_applied_once() {
    in_runtime(async {
        for lost in [
            unknown(ErrorCode::LeadershipLost),
            unknown(ErrorCode::ConnectionFailed),
            unknown(ErrorCode::Timeout),
            unknown(ErrorCode::Closed),
            Error::new(ErrorCode::Timeout, Committed::Yes, "not here yet"),
            Error::new(ErrorCode::ResultLost, Committed::Yes, "overtaken"),
        ] {
            let ledger = Shared::default();
            let node = node(&ledger, vec![Act::Lose(lost.clone()), Act::Lose(lost.clone()), Act::Answer]).await;
            let mut asker = asker(&[&node]);
            assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(1).unwrap(), "{lost}");
            assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(2).unwrap(), "{lost}");
            assert_eq!(sequences(&node), [1, 1, 1, 2], "{lost}");
        }
    });
}

#[test]
fn s15_a_node_that_never_answers_is_left_for_the_next_and_the_command_is_applied_once() {
    in_runtime(async {
        let ledger = Shared::default();
        let silent = node(&ledger, vec![Act::Silence]).await;
        let named = Error::not_done(ErrorCode::NotLeader, "not here").with_leader(Some((1, silent.addr.clone())));
        let other = node(&ledger, vec![Act::Refuse(named), Act::Answer]).await;
        let mut asker = asker(&[&silent, &other]);
        for index in 1..=3 {
            assert_eq!(asker.ask(propose(), Timeout::None).await, applied(index).unwrap());
        }
        assert_eq!(lock(&ledger).applied, 3);
    });
}

#[test]
fn s15_a_node_that_dies_after_it_has_applied_a_command_takes_no_answer_with_it() {
    in_runtime(async {
        let ledger = Shared::default();
        let (dies, other) = (node(&ledger, vec![Act::Silence]).await, node(&ledger, vec![Act::Answer]).await);
        let mut asker = asker(&[&dies, &other]);
        asker.client.submit(7, propose(), Timeout::None).unwrap();
        while sequences(&dies).is_empty() {
            tokio::task::yield_now().await;
        }
        dies.transport.shutdown().await;
        assert_eq!(asker.done.recv().await.unwrap().result, applied(1).unwrap());
        assert_eq!(lock(&ledger).applied, 1);
    });
}

#[test]
fn s15_what_was_in_doubt_once_is_never_said_to_be_certainly_not_done() {
    in_runtime(async {
        let full = || Act::Refuse(Error::not_done(ErrorCode::Overloaded, "full"));
        let lost = || Act::Lose(unknown(ErrorCode::LeadershipLost));
        let late = || Act::Lose(Error::new(ErrorCode::Timeout, Committed::Yes, "late"));
        let large = || Act::Refuse(Error::not_done(ErrorCode::ProposalTooLarge, "large"));
        for (acts, code, committed) in [
            (vec![full()], ErrorCode::Overloaded, Committed::No),
            (vec![lost(), full()], ErrorCode::Timeout, Committed::Unknown),
            (vec![late(), full()], ErrorCode::Timeout, Committed::Yes),
            (vec![late(), lost(), full()], ErrorCode::Timeout, Committed::Yes),
            (vec![Act::Silence], ErrorCode::Timeout, Committed::Unknown),
            (vec![full(), large()], ErrorCode::ProposalTooLarge, Committed::No),
            (vec![lost(), full(), large()], ErrorCode::ProposalTooLarge, Committed::Unknown),
            (vec![late(), large()], ErrorCode::ProposalTooLarge, Committed::Yes),
            (vec![lost(), Act::Forget], ErrorCode::SessionExpired, Committed::Unknown),
            (vec![late(), Act::Forget], ErrorCode::SessionExpired, Committed::Yes),
        ] {
            let ledger = Shared::default();
            let node = node(&ledger, acts).await;
            let mut asker = asker(&[&node]);
            let error = asker.ask(propose(), soon()).await.unwrap_err();
            assert_eq!((error.code, error.committed), (code, committed), "{error}");
            assert_eq!(error.retryable(), committed == Committed::No && code == ErrorCode::Overloaded, "{error}");
        }
    });
}

#[test]
fn what_is_final_is_not_asked_again_in_a_session_either() {
    in_runtime(async {
        for error in [
            Error::new(ErrorCode::ApplyFailed, Committed::Yes, "raised"),
            Error::new(ErrorCode::ResultLost, Committed::Yes, "not kept").lasting(),
            Error::not_done(ErrorCode::ProposalTooLarge, "large"),
            unknown(ErrorCode::SessionExpired).lasting(),
        ] {
            let ledger = Shared::default();
            let node = node(&ledger, vec![Act::Refuse(error.clone()), Act::Answer]).await;
            let mut asker = asker(&[&node]);
            assert_eq!(asker.ask(propose(), Timeout::Default).await, Err(error));
            assert_eq!(sequences(&node).len(), 1);
        }
    });
}

#[test]
fn a_session_is_opened_by_the_first_command_and_shared_by_all() {
    in_runtime(async {
        let ledger = Shared::default();
        let node = node(&ledger, vec![Act::Answer]).await;
        let mut asker = asker(&[&node]);
        assert!(lock(&node.asked).is_empty());
        for token in 0..3000 {
            asker.client.submit(token, propose(), Timeout::Default).unwrap();
        }
        assert_distinct(completions(&mut asker, 3000).await, &ledger);
        assert_eq!(lock(&ledger).opened, 1);
        let mut numbers = sequences(&node);
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=3000).collect::<Vec<_>>());
    });
}

#[test]
fn an_opening_of_unknown_outcome_is_repeated_and_nothing_is_sent_before() {
    in_runtime(async {
        let ledger = Shared::default();
        let held = Arc::clone(&ledger);
        let mut lost = [Some(Err(unknown(ErrorCode::LeadershipLost))), None].into_iter();
        let node = answering("127.0.0.1:0", None, move |request| {
            let result = lock(&held).carry_out(request);
            lost.next().unwrap_or(Some(result))
        })
        .await;
        let mut asker = asker(&[&node]);
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(1).unwrap());
        assert_eq!(lock(&ledger).opened, 3);
        assert!(matches!(&lock(&node.asked)[3], Request::ProposeInSession(place, _) if place.session == 3));
    });
}

#[test]
fn where_no_session_can_be_had_no_command_was_sent() {
    in_runtime(async {
        let old = Error::not_done(ErrorCode::InvalidArgument, "this node does not know the request");
        let lasts = Error::not_done(ErrorCode::Overloaded, "full");
        for (line, code) in [
            (Some(Err(old)), ErrorCode::InvalidArgument),
            (Some(Err(lasts)), ErrorCode::Overloaded),
            (Some(Err(unknown(ErrorCode::LeadershipLost))), ErrorCode::Timeout),
            (Some(Ok(Reply::Done)), ErrorCode::Internal),
            (None, ErrorCode::Timeout),
        ] as [(Line, ErrorCode); 5]
        {
            let node = scripted(vec![line]).await;
            let mut asker = asker(&[&node]);
            for token in 0..10 {
                asker.client.submit(token, propose(), soon()).unwrap();
            }
            for result in completions(&mut asker, 10).await {
                let error = result.unwrap_err();
                assert_eq!((error.code, error.committed), (code, Committed::No), "{error}");
                assert!(error.message.starts_with("no session for this client: "), "{error}");
            }
            assert!(sequences(&node).is_empty());
        }
        let nobody = dead().await;
        let mut asker = Asker::of(&[&nobody], ClientOptions { session: true, ..options() });
        let error = asker.ask(propose(), soon()).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::NoLeader, Committed::No), "{error}");
    });
}

#[test]
fn what_is_beyond_the_window_waits_for_its_turn() {
    in_runtime(async {
        let ledger = Shared::default();
        let (held, release) = (Arc::clone(&ledger), Arc::<AtomicUsize>::default());
        let gate = Arc::clone(&release);
        let node = answering("127.0.0.1:0", None, move |request| match request {
            Request::ProposeInSession(InSession { sequence: 1, .. }, _) if gate.load(Ordering::SeqCst) == 0 => None,
            _ => Some(lock(&held).carry_out(request)),
        })
        .await;
        let mut asker = asker(&[&node]);
        asker.client.submit(0, propose(), Timeout::None).unwrap();
        for token in 1..WINDOW {
            asker.client.submit(token, propose(), Timeout::Default).unwrap();
        }
        let mut results = completions(&mut asker, 1023).await;
        for token in WINDOW..WINDOW + 10 {
            asker.client.submit(token, propose(), soon()).unwrap();
        }
        for result in completions(&mut asker, 10).await {
            let error = result.unwrap_err();
            assert_eq!((error.code, error.committed, error.retryable()), (ErrorCode::Timeout, Committed::No, true));
            assert!(error.message.contains("1024 commands"), "{error}");
        }
        assert_eq!(sequences(&node).into_iter().max(), Some(WINDOW));
        for token in 0..10 {
            asker.client.submit(token, propose(), Timeout::None).unwrap();
        }
        release.store(1, Ordering::SeqCst);
        results.extend(completions(&mut asker, 11).await);
        assert_distinct(results, &ledger);
    });
}

#[test]
fn a_session_that_was_forgotten_is_replaced_by_one_for_all_where_nothing_was_in_doubt() {
    in_runtime(async {
        let ledger = Shared::default();
        let node = node(&ledger, vec![Act::Answer, Act::Forget, Act::Answer]).await;
        let mut asker = asker(&[&node]);
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(1).unwrap());
        for token in 0..100 {
            asker.client.submit(token, propose(), Timeout::Default).unwrap();
        }
        let mut results = completions(&mut asker, 100).await;
        results.push(applied(1).unwrap());
        assert_distinct(results, &ledger);
        assert_eq!(lock(&ledger).opened, 2);
    });
}

#[test]
fn a_deadline_lets_go_of_the_number_and_the_cluster_is_told() {
    in_runtime(async {
        let ledger = Shared::default();
        let node = node(&ledger, vec![Act::Silence, Act::Answer]).await;
        let mut asker = asker(&[&node]);
        let error = asker.ask(propose(), soon()).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::Timeout, Committed::Unknown));
        assert_eq!(asker.ask(propose(), Timeout::Default).await, applied(2).unwrap());
        assert_eq!(lock(&ledger).first_open, 2);
    });
}

#[test]
fn other_requests_need_no_session() {
    in_runtime(async {
        let node = scripted(vec![Some(Ok(Reply::Done))]).await;
        let mut asker = asker(&[&node]);
        assert_eq!(asker.ask(Request::StepDown, Timeout::Default).await, Ok(Reply::Done));
        assert_eq!(*lock(&node.asked), [Request::StepDown]);
        let node = scripted(vec![Some(Err(unknown(ErrorCode::LeadershipLost)))]).await;
        let mut asker = self::asker(&[&node]);
        let error = asker.ask(Request::StepDown, Timeout::Default).await.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::LeadershipLost, Committed::Unknown));
        assert_eq!(lock(&node.asked).len(), 1);
    });
}

async fn closed(asker: &Asker) {
    asker.client.close();
    while !asker.closed.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_session_ends_with_its_client_after_the_last_command() {
    in_runtime(async {
        let ledger = Shared::default();
        let node = node(&ledger, vec![Act::Silence]).await;
        let mut asker = asker(&[&node]);
        asker.client.submit(7, propose(), Timeout::None).unwrap();
        while sequences(&node).is_empty() {
            tokio::task::yield_now().await;
        }
        closed(&asker).await;
        let error = asker.done.recv().await.unwrap().result.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::Closed, Committed::Unknown));
        assert_eq!(lock(&node.asked).last(), Some(&Request::CloseSession(1)));
        assert!(lock(&ledger).results.is_empty());
    });
}

#[test]
fn a_client_ends_also_where_nobody_hears_that_its_session_does() {
    in_runtime(async {
        // Never used; opening; open, and the node does not answer any more.
        let node = scripted(vec![Some(Ok(Reply::Session(1))), applied(1), None]).await;
        let silent = scripted(vec![None]).await;
        closed(&asker(&[&node])).await;
        assert!(lock(&node.asked).is_empty());
        let mut opening = asker(&[&silent]);
        opening.client.submit(7, propose(), Timeout::None).unwrap();
        while lock(&silent.asked).is_empty() {
            tokio::task::yield_now().await;
        }
        closed(&opening).await;
        let error = opening.done.recv().await.unwrap().result.unwrap_err();
        assert_eq!((error.code, error.committed), (ErrorCode::Closed, Committed::No));
        let mut open = asker(&[&node]);
        assert_eq!(open.ask(propose(), Timeout::Default).await, applied(1).unwrap());
        closed(&open).await;
        assert_eq!(lock(&node.asked).last(), Some(&Request::CloseSession(1)));
    });
}

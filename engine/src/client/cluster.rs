//! The cluster as one client knows it: whom to ask, and the connections to them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::{dialling, unreachable_node, PATIENCE};
use crate::address;
use crate::error::Result;
use crate::locks::lock;
use crate::transport::connect::connect;
use crate::transport::tame::Tame;
use crate::transport::tls::Tls;
use crate::transport::Unreachable;

/// For so long nobody is sent to one who has let a request wait in vain: in this time a leader that hears nobody is replaced.
const AVOIDED: Duration = Duration::from_secs(2);

/// One address: its connection, made by the first who needs it while the others wait.
#[derive(Default)]
struct Node {
    channel: tokio::sync::Mutex<Option<(u64, Tame)>>,
    /// When connecting last failed, and why: those who waited for that attempt share its outcome.
    failed: Mutex<Option<(Instant, Unreachable)>>,
    /// When it last let a request wait in vain.
    stuck: Mutex<Option<Instant>>,
}

pub(super) struct Cluster {
    pub(super) addrs: Vec<String>,
    tls: Option<Arc<Tls>>,
    /// Which of `addrs` to ask while no leader is known.
    next: AtomicUsize,
    leader: Mutex<Option<String>>,
    nodes: Mutex<HashMap<String, Arc<Node>>>,
    numbers: AtomicU64,
}

impl Cluster {
    pub(super) fn new(addrs: Vec<String>, tls: Option<Arc<Tls>>) -> Self {
        Cluster {
            addrs,
            tls,
            next: AtomicUsize::new(0),
            leader: Mutex::default(),
            nodes: Mutex::default(),
            numbers: AtomicU64::new(0),
        }
    }

    pub(super) fn pick(&self) -> String {
        let leader = lock(&self.leader).clone();
        leader.or_else(|| self.next().cloned()).unwrap_or_default()
    }

    /// Whom to ask while no leader is known.
    fn next(&self) -> Option<&String> {
        self.addrs.get(self.next.load(Ordering::Relaxed) % self.addrs.len().max(1))
    }

    /// The one at `addr` was of no use: the next of the list, unless somebody has moved on already.
    pub(super) fn leave(&self, addr: &str) {
        let mut leader = lock(&self.leader);
        match &*leader {
            Some(at) if at == addr => *leader = None,
            Some(_) => {}
            None if self.next().is_some_and(|at| at == addr) => {
                self.next.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
        // Where all are stuck, whoever is next.
        for _ in &self.addrs {
            if leader.is_some() || !self.next().is_some_and(|at| self.is_stuck(at)) {
                break;
            }
            self.next.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As [`Self::leave`], and not to be sent back there at once by those who have not noticed yet.
    pub(super) fn avoid(&self, addr: &str) {
        if let Some(node) = lock(&self.nodes).get(addr) {
            *lock(&node.stuck) = Some(Instant::now());
        }
        self.leave(addr);
    }

    /// It has answered.
    pub(super) fn trust(&self, addr: &str) {
        if let Some(node) = lock(&self.nodes).get(addr) {
            *lock(&node.stuck) = None;
        }
    }

    fn is_stuck(&self, addr: &str) -> bool {
        let nodes = lock(&self.nodes);
        let since = nodes.get(addr).and_then(|node| *lock(&node.stuck));
        since.is_some_and(|since| since.elapsed() < AVOIDED)
    }

    /// True if this is news.
    pub(super) fn follow(&self, asked: &str, leader: &str) -> bool {
        if leader == asked || address::dialable("leader", leader, false).is_err() || self.is_stuck(leader) {
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

    pub(super) async fn channel(&self, addr: &str) -> Result<(u64, Tame)> {
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
    pub(super) async fn forget(&self, addr: &str, number: u64) {
        let node = lock(&self.nodes).get(addr).cloned();
        if let Some(node) = node {
            let mut channel = node.channel.lock().await;
            if channel.as_ref().is_some_and(|(present, _)| *present == number) {
                *channel = None;
            }
        }
    }
}

//! From options to an opened directory: who this node is to be, checked before anything is touched.

use std::collections::BTreeMap;
use std::path::PathBuf;

use raft::eraftpb::Entry;

use super::NodeOptions;
use crate::cluster::{NodeId, Uid};
use crate::core::{founding_digest, new_log};
use crate::error::{Error, ErrorCode, Result};
use crate::log::{open_or_create, Identity, LogOptions, LogReader, LogState, LogWriter, NewLog};
use crate::snapshots::SnapshotDir;
use crate::transport::address;

pub(super) struct Opened {
    pub log: LogState,
    pub writer: Box<dyn LogWriter>,
    pub reader: Box<dyn LogReader>,
    pub snapshots: SnapshotDir,
    /// The founding map, when this directory was born as an initial member's.
    pub initial: BTreeMap<NodeId, String>,
    /// The log's entries above its stored configuration.
    pub entries: Vec<Entry>,
    pub created: bool,
}

/// A random number from the operating system.
pub(super) fn random() -> Result<u64> {
    getrandom::u64()
        .map_err(|e| Error::not_done(ErrorCode::Internal, format!("the system gives no random numbers: {e}")))
}

/// The founding map that these options mean for an empty directory; empty for a node that waits to be joined.
fn initial_members(options: &NodeOptions) -> Result<BTreeMap<NodeId, String>> {
    let (id, addr) = (options.node_id, &options.raft_addr);
    let (host, port) = address::dialable("raft_addr", addr, true)?;
    let Some(peers) = &options.peers else {
        return Ok(if id == 1 { BTreeMap::from([(id, addr.clone())]) } else { BTreeMap::new() });
    };
    let mut seen: BTreeMap<&str, NodeId> = BTreeMap::new();
    for (peer, peer_addr) in peers {
        if *peer == 0 {
            return Err(Error::config("peers", "0 is not a node id; use ids above 0"));
        }
        address::dialable("peers", peer_addr, false)?;
        if let Some(other) = seen.insert(peer_addr, *peer) {
            return Err(Error::config(
                "peers",
                format!("nodes {other} and {peer} have the same address {peer_addr}; give each its own"),
            ));
        }
        if *peer != id && peer_addr == addr {
            return Err(Error::config(
                "peers",
                format!("{addr} is this node's own raft_addr, but belongs to node {peer} there and this is node {id}; correct one of them"),
            ));
        }
    }
    match peers.get(&id) {
        None => Ok(BTreeMap::new()),
        Some(own) if own != addr => Err(Error::config(
            "peers",
            format!("node {id} is at {own} there, but its raft_addr is {addr}; give the same address in both"),
        )),
        Some(_) if port == 0 && peers.len() > 1 => Err(Error::config(
            "raft_addr",
            format!("{host}:0 lets the system choose a port, which the other initial members cannot know; name a port"),
        )),
        Some(_) => Ok(peers.clone()),
    }
}

pub(super) fn directory(options: &NodeOptions) -> PathBuf {
    options.config.log_dir.join(format!("node-{}", options.node_id))
}

pub(super) fn open(options: &NodeOptions) -> Result<Opened> {
    options.config.validate()?;
    if options.node_id == 0 {
        return Err(Error::config("node_id", "0 is not a node id; use an id above 0"));
    }
    let initial = initial_members(options)?;
    if !options.config.listen_addr.is_empty() {
        address::split("listen_addr", &options.config.listen_addr)?;
    }
    let dir = directory(options);
    let log_options = LogOptions {
        disk_quota: options.config.disk_quota,
        engine: options.config.log_engine,
        ..LogOptions::of(options.node_id)
    };
    let founding = initial.clone();
    let opened = open_or_create(&dir, &log_options, || {
        let directory = Uid((u128::from(random()?) << 64) | u128::from(random()?));
        let digest = if founding.is_empty() { 0 } else { founding_digest(&options.config.cluster_id, &founding) };
        let cluster_id = options.config.cluster_id.clone();
        let identity = Identity { node_id: options.node_id, directory, digest, cluster_id, incarnation: None };
        let (hard_state, cluster, snapshot) = new_log(&founding);
        Ok(NewLog { identity, cluster, hard_state, snapshot })
    })?;
    let state = opened.state;
    let (born, given) = (&state.identity.cluster_id, &options.config.cluster_id);
    if !born.is_empty() && born != given {
        return Err(Error::storage(
            ErrorCode::WrongDirectory,
            &dir,
            format_args!("it belongs to cluster_id {born:?}, and the configuration says {given:?}; correct it, or name another log_dir"),
        ));
    }
    // A directory that exists is what it is, whatever `peers` says now. Before it is founded its members are the founding map.
    let initial = if state.identity.digest == 0 {
        BTreeMap::new()
    } else {
        state.cluster.cluster.members().iter().map(|m| (m.id, m.addr.clone())).collect()
    };
    let snapshots = SnapshotDir::open(&dir)?;
    if let Some(meta) = state.snapshot.as_ref().filter(|s| s.has_file) {
        // S6: the snapshot that the log names is the one that is restored; without it this node has no state.
        snapshots.verify(meta)?;
    }
    let mut entries = Vec::new();
    let mut next = state.cluster.index.saturating_add(1);
    while next <= state.last_index {
        let mut more = opened.reader.entries(next, state.last_index.saturating_add(1), 16 << 20)?;
        let Some(last) = more.last().map(|e| e.index) else { break };
        next = last.saturating_add(1);
        entries.append(&mut more);
    }
    Ok(Opened {
        log: state,
        writer: opened.writer,
        reader: opened.reader,
        snapshots,
        initial,
        entries,
        created: opened.created,
    })
}

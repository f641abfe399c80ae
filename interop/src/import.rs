//! Upstream's directory becomes a node's directory of ours: all of it, or nothing.
//!
//! It is built beside its place under another name, checked to the last byte and renamed. The imported node is the only
//! voter, in a cluster that is founded already (its incarnation is drawn here, S11): it leads alone from its first
//! start. The other members are added as learners by entries at the end of the log, so that the leader makes a snapshot that
//! names them (S13) and, once they have caught up with it, makes them voters.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType, HardState,
};
use raftify_engine::address;
use raftify_engine::core::{founding_digest, new_log, FOUNDING_INDEX};
use raftify_engine::log::{self, ClusterRecord, Identity, LogOptions, LogWrite, NewLog, OpenedLog, SnapshotMeta};
use raftify_engine::snapshots::SnapshotDir;
use raftify_engine::wire::MembershipContext;
use raftify_engine::{ClusterState, Error, ErrorCode, Member, NodeId, Result, Uid};
use rustix::process::{fcntl_getlk, Flock, FlockType};
use serde_json::{json, Value as Json};

use crate::plan::{plan, Plan, Stamp};
use crate::upstream::{read, Directory, UpstreamLog};

/// Data and number of entries in one write.
const WRITE_BYTES: usize = 8 << 20;
const WRITE_ENTRIES: usize = 4096;

/// What the imported directory is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportOptions {
    /// The node that goes on from upstream's data.
    pub node_id: NodeId,
    /// host:port that the others will dial.
    pub raft_addr: String,
    /// As in the configuration that the node will be started with.
    pub cluster_id: String,
    /// The members to be: id and address of each, this node or not. The others join with empty directories.
    pub peers: BTreeMap<NodeId, String>,
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// `<log_dir>/node-<id>`.
    pub directory: PathBuf,
    /// Index and bytes of the snapshot's state, if there is one.
    pub snapshot: Option<(u64, u64)>,
    /// Indexes of the entries in the new log; none when the first is above the last.
    pub first_index: u64,
    pub last_index: u64,
    pub term: u64,
    /// Entries that carry a command; the others had no meaning for a state machine.
    pub commands: u64,
    /// Added to each of upstream's indexes.
    pub shift: u64,
    /// Entries above the commit index that upstream had stored: committed by this import.
    pub newly_committed: u64,
    /// Upstream's index of the first entry at the end that was left out, and how many: a later leader had replaced them.
    pub left_out: Option<(u64, u64)>,
    /// Leftovers in the midst of the log that upstream had gone on from: kept, with the term of the entry before them.
    pub terms_raised: u64,
    /// Members that will join with empty directories.
    pub joining: Vec<NodeId>,
}

impl ImportReport {
    pub fn to_json(&self) -> Json {
        json!({
            "directory": self.directory.to_string_lossy(),
            "snapshot": self.snapshot.map(|(index, size)| json!({"index": index, "size": size})),
            "first_index": self.first_index,
            "last_index": self.last_index,
            "term": self.term,
            "commands": self.commands,
            "shift": self.shift,
            "newly_committed": self.newly_committed,
            "left_out": self.left_out.map(|(from, count)| json!({"from": from, "count": count})),
            "terms_raised": self.terms_raised,
            "joining": self.joining,
        })
    }
}

impl std::fmt::Display for ImportReport {
    /// For the terminal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "imported into {}: ", self.directory.display())?;
        match self.snapshot {
            Some((index, size)) => write!(f, "the snapshot at index {index} ({size} bytes)")?,
            None => write!(f, "no snapshot")?,
        }
        let entries = self.last_index.saturating_add(1).saturating_sub(self.first_index);
        writeln!(f, ", {entries} entries up to index {} with {} commands", self.last_index, self.commands)?;
        writeln!(
            f,
            "{} entries lay above the commit index that was stored; they are committed now",
            self.newly_committed
        )?;
        if self.shift > 0 {
            writeln!(f, "every index is {} higher than before", self.shift)?;
        }
        if let Some((from, count)) = self.left_out {
            writeln!(
                f,
                "{count} entries from the old index {from} on were left out: a later leader had replaced them"
            )?;
        }
        if self.terms_raised > 0 {
            writeln!(f, "{} entries of an older term stood between newer ones; they were kept", self.terms_raised)?;
        }
        let ids: Vec<String> = self.joining.iter().map(ToString::to_string).collect();
        match ids.as_slice() {
            [] => write!(f, "start this node; others join it with tickets"),
            _ => write!(
                f,
                "start this node first, then node {} with empty directories: they become voters once they have caught up",
                ids.join(", ")
            ),
        }
    }
}

/// Makes `<log_dir>/node-<id>` out of upstream's directory `old`, which is only read and has to be a stopped node's. Every
/// entry counts as committed from then on, so import the directory of *one* member: the one whose log goes furthest.
/// Blocks for reading, writing and checking.
///
/// Errors: those of [`read`]; `DirectoryInUse` (the old node runs), `InvalidConfig`, `InvalidArgument` (nothing to import),
/// `CorruptData` (entries are missing), `WrongDirectory` (the new place is taken), `DiskFull`, `Storage`. After an error
/// nothing is left of the new directory.
pub fn import(old: &Path, log_dir: &Path, options: &ImportOptions) -> Result<ImportReport> {
    let members = members(options)?;
    Directory::open(old)?;
    refuse_running(old)?;
    let place = log_dir.join(format!("node-{}", options.node_id));
    refuse_taken(&place)?;
    let upstream = read(old)?;
    let ids_used = highest_id(&upstream);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let stamp = Stamp { node: options.node_id, start: random_u64()?, time_us };
    let mut plan = plan(upstream, stamp, old)?;
    let joining: Vec<Member> = members
        .iter()
        .filter(|(id, _)| **id != options.node_id)
        .map(|(id, addr)| Member { id: *id, addr: addr.clone(), directory: Vec::new(), promote: true })
        .collect();
    add_learners(&mut plan, &joining);
    let cluster = cluster(options.node_id, &options.raft_addr, ids_used, time_us)?;
    let report = report(&place, &plan, joining.iter().map(|member| member.id).collect());
    let building = log_dir.join(format!("node-{}.importing", options.node_id));
    std::fs::create_dir_all(log_dir).map_err(|e| Error::io(log_dir, "make the directory", &e))?;
    std::fs::create_dir(&building).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::storage(
            ErrorCode::DirectoryInUse,
            &building,
            "another import is at work, or one did not finish; if none is, remove this directory and try again",
        ),
        _ => Error::io(&building, "make the directory", &e),
    })?;
    let digest = founding_digest(&options.cluster_id, &ClusterState::founding(&members));
    let made = build(&building, options.node_id, (digest, &options.cluster_id), cluster, plan).and_then(|()| {
        std::fs::rename(&building, &place).map_err(|e| Error::io(&place, "put the new directory in place", &e))
    });
    if let Err(error) = made {
        // Ours, made above; what remains of it would only be in the way.
        let _ = std::fs::remove_dir_all(&building);
        return Err(error);
    }
    sync(log_dir)?;
    Ok(report)
}

/// The members to be, this node among them.
fn members(options: &ImportOptions) -> Result<BTreeMap<NodeId, String>> {
    let (id, addr) = (options.node_id, &options.raft_addr);
    if id == 0 || options.peers.contains_key(&0) {
        return Err(Error::config("node_id", "0 is not a node id; use ids above 0"));
    }
    address::dialable("raft_addr", addr, false)?;
    let mut members = BTreeMap::from([(id, addr.clone())]);
    for (peer, peer_addr) in &options.peers {
        address::dialable("peers", peer_addr, false)?;
        if let Some((other, _)) = members.iter().find(|(other, a)| *other != peer && *a == peer_addr) {
            let why = format!("nodes {other} and {peer} have the same address {peer_addr}; give each its own");
            return Err(Error::config("peers", why));
        }
        if members.insert(*peer, peer_addr.clone()).is_some_and(|own| own != *peer_addr) {
            let why = format!("node {id} is at {peer_addr} there, but its raft_addr is {addr}; give the same in both");
            return Err(Error::config("peers", why));
        }
    }
    Ok(members)
}

/// The highest id that upstream's cluster is known to have used: tickets give higher ones (S12).
fn highest_id(upstream: &UpstreamLog) -> NodeId {
    let snapshot = upstream.snapshot.as_ref().map(|s| &s.conf_state);
    let named = [Some(&upstream.conf_state), snapshot].into_iter().flatten().flat_map(|conf| {
        [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next].into_iter().flatten().copied()
    });
    let changed = upstream.entries.iter().flat_map(crate::format::changes_of).map(|(single, _)| single.node_id);
    named.chain(changed).max().unwrap_or(0)
}

/// One entry for each, behind upstream's: a change of one member needs no joint configuration.
fn add_learners(plan: &mut Plan, joining: &[Member]) {
    let (mut index, term) =
        plan.entries.last().map_or((plan.snapshot_index, plan.snapshot_term), |e| (e.index, e.term));
    for member in joining {
        index = index.saturating_add(1);
        let change = ConfChangeV2 {
            transition: ConfChangeTransition::Auto as i32,
            changes: vec![ConfChangeSingle { change_type: ConfChangeType::AddLearnerNode as i32, node_id: member.id }],
            context: MembershipContext { members: vec![member.clone()] }.encode_to_vec(),
        };
        plan.entries.push(Entry {
            entry_type: EntryType::EntryConfChangeV2 as i32,
            term,
            index,
            data: prost_raft::Message::encode_to_vec(&change),
            ..Entry::default()
        });
    }
}

/// The cluster before any entry: incarnation and directory are new, tickets give ids that upstream's never had (S12).
fn cluster(node_id: NodeId, addr: &str, ids_used: NodeId, time_us: u64) -> Result<(ClusterState, Uid, Uid)> {
    let (incarnation, directory) = (random_uid()?, random_uid()?);
    let mut cluster = ClusterState::founding(&BTreeMap::from([(node_id, addr.to_string())]));
    cluster.put_member(Member { id: node_id, addr: addr.into(), directory: directory.to_bytes(), promote: false });
    cluster.next_id = cluster.next_id.max(ids_used.saturating_add(1));
    cluster.incarnation = incarnation.to_bytes();
    cluster.time_us = time_us;
    Ok((cluster, incarnation, directory))
}

fn report(place: &Path, plan: &Plan, joining: Vec<NodeId>) -> ImportReport {
    ImportReport {
        directory: place.to_path_buf(),
        snapshot: plan.state.as_ref().map(|state| (plan.snapshot_index, state.len() as u64)),
        first_index: plan.snapshot_index.saturating_add(1),
        last_index: plan.entries.last().map_or(plan.snapshot_index, |entry| entry.index),
        term: plan.term,
        commands: plan.commands,
        shift: plan.shift,
        newly_committed: plan.newly_committed,
        left_out: plan.left_out,
        terms_raised: plan.terms_raised,
        joining,
    }
}

/// Writes and checks the whole directory.
fn build(
    directory: &Path,
    node_id: NodeId,
    (digest, cluster_id): (u64, &str),
    (cluster, incarnation, uid): (ClusterState, Uid, Uid),
    plan: Plan,
) -> Result<()> {
    let log_options = LogOptions::of(node_id);
    let OpenedLog { mut writer, reader, .. } = log::open_or_create(directory, &log_options, || {
        let identity = Identity {
            node_id,
            directory: uid,
            digest,
            cluster_id: cluster_id.to_owned(),
            incarnation: Some(incarnation),
        };
        // Of any founding map only term, commit and index count here; the members are ours.
        let (hard_state, record, snapshot) =
            new_log(&ClusterState::founding(&BTreeMap::from([(node_id, String::new())])));
        let snapshot = snapshot.map(|meta| SnapshotMeta { cluster: cluster.clone(), ..meta });
        Ok(NewLog { identity, cluster: ClusterRecord { cluster: cluster.clone(), ..record }, hard_state, snapshot })
    })?;
    let snapshots = SnapshotDir::open(directory)?;
    let mut meta = SnapshotMeta::without_file(plan.snapshot_index, plan.snapshot_term, cluster.clone());
    if let Some(state) = &plan.state {
        let mut file = snapshots.create(meta.index, meta.term, &cluster)?;
        file.write(state)?;
        meta = file.finish(b"")?;
    }
    let hard_state = |commit| Some(HardState { term: plan.term, vote: 0, commit });
    let mut number = 1;
    let named = meta.has_file || meta.index != FOUNDING_INDEX;
    writer.write(&[LogWrite {
        number,
        snapshot: named.then(|| Arc::new(meta.clone())),
        reset: named,
        hard_state: hard_state(meta.index),
        must_sync: true,
        ..LogWrite::default()
    }])?;
    let mut entries = plan.entries.into_iter().peekable();
    while entries.peek().is_some() {
        let batch = next_batch(&mut entries);
        number += 1;
        writer.write(&[LogWrite {
            number,
            hard_state: batch.last().and_then(|last| hard_state(last.index)),
            entries: Some(Arc::new(batch.into_iter().map(Into::into).collect())),
            must_sync: true,
            ..LogWrite::default()
        }])?;
    }
    drop((writer, reader));
    let checked = log::check(directory)?;
    snapshots.verify(&meta)?;
    if checked.hard_state.commit != checked.last_index {
        let what = format_args!("commit {} was stored, not {}", checked.hard_state.commit, checked.last_index);
        return Err(Error::storage(ErrorCode::Internal, directory, what));
    }
    Ok(())
}

fn next_batch(entries: &mut impl Iterator<Item = Entry>) -> Vec<Entry> {
    let mut batch = Vec::new();
    let mut bytes = 0usize;
    while bytes < WRITE_BYTES && batch.len() < WRITE_ENTRIES {
        let Some(entry) = entries.next() else { break };
        bytes = bytes.saturating_add(entry.data.len());
        batch.push(entry);
    }
    batch
}

/// LMDB holds a lock on its lock file as long as a process has the database open.
fn refuse_running(old: &Path) -> Result<()> {
    let path = old.join("lock.mdb");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(&path, "open the file", &e)),
    };
    match fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)) {
        Ok(None) => Ok(()),
        Ok(Some(lock)) => {
            let by = lock.pid.map_or(String::new(), |pid| format!(" by process {}", pid.as_raw_nonzero()));
            Err(Error::storage(
                ErrorCode::DirectoryInUse,
                old,
                format_args!("the directory is in use{by}; stop all nodes of the old cluster, then import"),
            ))
        }
        Err(errno) => Err(Error::io(&path, "see who has it locked", &errno.into())),
    }
}

/// An empty directory is fine: the new one takes its place.
fn refuse_taken(place: &Path) -> Result<()> {
    match std::fs::read_dir(place).map(Iterator::count) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Error::storage(
            ErrorCode::WrongDirectory,
            place,
            "there is something in it already; nothing was changed; name another log_dir, or empty this directory",
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(place, "list the directory", &e)),
    }
}

fn sync(directory: &Path) -> Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| Error::io(directory, "sync the directory", &e))
}

fn random_u64() -> Result<u64> {
    let failed = |e| Error::not_done(ErrorCode::Internal, format!("the system gives no random numbers: {e}"));
    getrandom::u64().map_err(failed)
}

fn random_uid() -> Result<Uid> {
    Ok(Uid((u128::from(random_u64()?) << 64) | u128::from(random_u64()?)))
}

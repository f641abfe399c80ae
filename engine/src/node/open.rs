//! From options to an opened directory: who this node is to be, checked before anything is touched.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::NodeOptions;
use crate::address;
use crate::cluster::{ClusterState, NodeId, Uid};
use crate::core::{founding_digest, new_log};
use crate::entry::Entry;
use crate::error::{Error, ErrorCode, Result};
use crate::log::files::REMEDY;
use crate::log::{open_or_create, Identity, LogOptions, LogReader, LogState, LogWriter, NewLog};
use crate::snapshots::SnapshotDir;
use crate::status::Event;
use crate::transport::tls::Tls;

pub(super) struct Opened {
    pub log: LogState,
    pub writer: Box<dyn LogWriter>,
    pub reader: Box<dyn LogReader>,
    pub snapshots: SnapshotDir,
    /// The founding map, when this directory was born as an initial member's.
    pub initial: BTreeMap<NodeId, String>,
    /// The log's entries above its stored configuration.
    pub entries: Vec<Entry>,
    /// The table of client sessions of the snapshot that the log names.
    pub sessions: Vec<u8>,
    pub created: bool,
    pub tls: Option<Arc<Tls>>,
    /// The snapshot that the log names is damaged, and an older one stands in: to be told.
    pub spare_used: Option<Event>,
}

/// A random number from the operating system.
pub(super) fn random() -> Result<u64> {
    getrandom::u64()
        .map_err(|e| Error::not_done(ErrorCode::Internal, format!("the system gives no random numbers: {e}")))
}

/// The cluster that these options mean for an empty directory to found; without members for a node that waits to be joined.
fn founding(options: &NodeOptions) -> Result<ClusterState> {
    let initial = initial_members(options)?;
    let learners = &options.config.initial_learners;
    if initial.is_empty() || learners.is_empty() {
        return Ok(ClusterState::founding(&initial));
    }
    if let Some(unknown) = learners.iter().find(|id| !initial.contains_key(id)) {
        let text = format!("node {unknown} is none of the initial members; name it in peers as well, or leave it out");
        return Err(Error::config("initial_learners", text));
    }
    let founding = ClusterState::founding_with(&initial, learners);
    if founding.voters.is_empty() {
        let text = "all initial members are learners, and nobody could ever lead them; one at least must be a voter";
        return Err(Error::config("initial_learners", text));
    }
    Ok(founding)
}

/// The founding map; empty for a node that waits to be joined.
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

/// S6: the snapshot that the log names is the one that is restored. When its file is damaged or missing, the newest older one that
/// is whole stands in, but only where the log goes on from it without a gap: then the two together are all there ever was. The
/// file stays as it is.
fn check_snapshot(snapshots: &SnapshotDir, state: &mut LogState) -> Result<Option<Event>> {
    let Some(named) = state.snapshot.clone() else { return Ok(None) };
    let error = match snapshots.verify(&named) {
        Ok(()) => return Ok(None),
        Err(error) if error.code == ErrorCode::CorruptData => error,
        Err(error) => return Err(error),
    };
    let spare =
        snapshots.list()?.into_iter().find(|older| state.goes_on_from(older) && snapshots.verify(older).is_ok());
    let Some(spare) = spare else {
        let message = format!(
            "{} (the log names this snapshot, at index {}, and there is no older one that the log goes on from)",
            error.message, named.index
        );
        return Err(Error { message, ..error });
    };
    // What to do about damage is not said where nothing has to be done.
    let what = error.message.strip_suffix(REMEDY).unwrap_or(&error.message);
    let reason = what.trim_end_matches([';', ' ']).to_owned();
    let stands_in = spare.index;
    state.snapshot = Some(spare);
    Ok(Some(Event::SnapshotDamaged { index: named.index, stands_in, reason }))
}

pub(super) fn directory(options: &NodeOptions) -> PathBuf {
    options.config.log_dir.join(format!("node-{}", options.node_id))
}

pub(super) fn open(options: &NodeOptions) -> Result<Opened> {
    options.config.validate()?;
    if options.node_id == 0 {
        return Err(Error::config("node_id", "0 is not a node id; use an id above 0"));
    }
    let founding = founding(options)?;
    if !options.config.listen_addr.is_empty() {
        address::split("listen_addr", &options.config.listen_addr)?;
    }
    let tls = Tls::of_node(&options.config.tls, &options.raft_addr)?;
    let dir = directory(options);
    let log_options = LogOptions {
        disk_quota: options.config.disk_quota,
        engine: options.config.log_engine,
        ..LogOptions::of(options.node_id)
    };
    let opened = open_or_create(&dir, &log_options, || {
        let directory = Uid((u128::from(random()?) << 64) | u128::from(random()?));
        let founds = !founding.members().is_empty();
        let digest = if founds { founding_digest(&options.config.cluster_id, &founding) } else { 0 };
        let cluster_id = options.config.cluster_id.clone();
        let identity = Identity { node_id: options.node_id, directory, digest, cluster_id, incarnation: None };
        let (hard_state, cluster, snapshot) = new_log(&founding);
        Ok(NewLog { identity, cluster, hard_state, snapshot })
    })?;
    let mut state = opened.state;
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
    let spare_used = check_snapshot(&snapshots, &mut state)?;
    let sessions = state.snapshot.as_ref().map_or(Ok(Vec::new()), |snapshot| snapshots.sessions(snapshot))?;
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
        sessions,
        created: opened.created,
        tls,
        spare_used,
    })
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::HardState;

    use super::*;
    use crate::cluster::ClusterState;
    use crate::log::{ClusterRecord, SnapshotMeta};

    fn cluster(incarnation: u8) -> ClusterState {
        let mut cluster = ClusterState::founding(&BTreeMap::from([(1, "a:1".into())]));
        cluster.incarnation = vec![incarnation; 16];
        cluster
    }

    #[test]
    fn a_founding_map_has_a_voter_and_names_its_learners() {
        // Peers, who of them learns; voters and learners, or what is said.
        type Found = std::result::Result<(&'static [u64], &'static [u64]), &'static str>;
        let cases: [(&[u64], &[u64], Found); 8] = [
            (&[1, 2, 3], &[], Ok((&[1, 2, 3], &[]))),
            (&[1, 2, 3], &[3], Ok((&[1, 2], &[3]))),
            (&[1, 2, 3], &[1, 3], Ok((&[2], &[1, 3]))),
            (&[1, 2, 3], &[1, 2, 3], Err("all initial members are learners")),
            (&[1], &[1], Err("all initial members are learners")),
            (&[1, 2], &[2, 7], Err("node 7 is none of the initial members")),
            // Contacts of one who joins: it is told there what it becomes.
            (&[2, 3], &[3], Ok((&[], &[]))),
            (&[2, 3], &[1, 7], Ok((&[], &[]))),
        ];
        for (peers, learners, found) in cases {
            let mut options = NodeOptions {
                config: Default::default(),
                node_id: 1,
                raft_addr: "h:1".into(),
                peers: Some(peers.iter().map(|id| (*id, format!("h:{id}"))).collect()),
                machine_applied: None,
            };
            options.config.initial_learners = learners.iter().copied().collect();
            match (founding(&options), found) {
                (Ok(cluster), Ok((voters, learners))) => {
                    assert_eq!((&cluster.voters[..], &cluster.learners[..]), (voters, learners), "{peers:?}");
                    assert!(cluster
                        .members()
                        .iter()
                        .map(|m| m.id)
                        .eq(if voters.is_empty() { &[] } else { peers }.iter().copied()));
                }
                (Err(error), Err(says)) => {
                    assert_eq!(
                        (error.code, error.field.as_deref()),
                        (ErrorCode::InvalidConfig, Some("initial_learners"))
                    );
                    assert!(error.message.contains(says), "{error}");
                }
                (other, _) => panic!("{peers:?} {learners:?}: {other:?}"),
            }
        }
    }

    fn written(snapshots: &SnapshotDir, index: u64, term: u64, incarnation: u8) -> SnapshotMeta {
        let mut writer = snapshots.create(index, term, &cluster(incarnation)).unwrap();
        writer.write(format!("the state at {index}").as_bytes()).unwrap();
        writer.finish(b"").unwrap()
    }

    /// Entries `first_index` to 40: those up to 19 of term 1, then of term 2. It names `named`.
    fn log(first_index: u64, named: &SnapshotMeta) -> LogState {
        let prev_term = if first_index > 20 { 2 } else { 1 };
        LogState {
            identity: Identity {
                node_id: 1,
                directory: Uid(1),
                digest: 1,
                cluster_id: String::new(),
                incarnation: named.cluster.incarnation(),
            },
            hard_state: HardState { term: 2, vote: 0, commit: 40 },
            cluster: ClusterRecord { index: 40, cluster: named.cluster.clone() },
            snapshot: Some(named.clone()),
            first_index,
            prev_term,
            last_index: 40,
            terms: if first_index < 20 { vec![(first_index, 1), (20, 2)] } else { vec![(first_index, 2)] },
            bytes: 0,
        }
    }

    fn damage(path: &std::path::Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn s6_an_older_snapshot_stands_in_for_a_damaged_one_only_where_the_log_goes_on_from_it() {
        // First index of the log; older snapshots as (index, term, incarnation, whole); which one stands in.
        type Older = (u64, u64, u8, bool);
        let cases: [(u64, &[Older], Option<u64>); 9] = [
            (11, &[(10, 1, 7, true)], Some(10)),
            (5, &[(10, 1, 7, true), (20, 2, 7, true)], Some(20)),
            (5, &[(10, 1, 7, true), (20, 2, 7, false)], Some(10)),
            (21, &[(20, 2, 7, true)], Some(20)),
            (22, &[(20, 2, 7, true)], None),
            (11, &[(10, 2, 7, true)], None),
            (11, &[(10, 1, 8, true)], None),
            (11, &[(10, 1, 7, false)], None),
            (11, &[], None),
        ];
        for (number, (first_index, older, expected)) in cases.into_iter().enumerate() {
            for missing in [false, true] {
                let root = tempfile::tempdir().unwrap();
                let snapshots = SnapshotDir::open(root.path()).unwrap();
                for (index, term, incarnation, whole) in older {
                    let meta = written(&snapshots, *index, *term, *incarnation);
                    if !whole {
                        damage(&snapshots.path(&meta));
                    }
                }
                let named = written(&snapshots, 30, 2, 7);
                // One that the log does not name is a leftover, however new.
                written(&snapshots, 35, 2, 7);
                let mut state = log(first_index, &named);
                assert_eq!(check_snapshot(&snapshots, &mut state).unwrap(), None);
                assert_eq!(state.snapshot.as_ref(), Some(&named));
                let path = snapshots.path(&named);
                if missing {
                    std::fs::remove_file(&path).unwrap();
                } else {
                    damage(&path);
                }
                let checked = check_snapshot(&snapshots, &mut state);
                let used = state.snapshot.map(|meta| meta.index).filter(|index| *index != 30);
                assert_eq!(used, expected, "case {number}");
                match (expected, checked) {
                    (Some(expected), Ok(Some(Event::SnapshotDamaged { index: 30, stands_in, reason }))) => {
                        assert_eq!(stands_in, expected, "case {number}");
                        assert!(reason.contains(path.to_str().unwrap()) && !reason.contains("join again"), "{reason}");
                    }
                    (None, Err(error)) => {
                        assert_eq!((error.code, error.path.as_ref()), (ErrorCode::CorruptData, Some(&path)));
                        assert!(error.message.contains("join again"), "{error}");
                    }
                    (_, other) => panic!("case {number}: {other:?}"),
                }
                assert_eq!(path.exists(), !missing, "nothing is deleted");
            }
        }
    }
}

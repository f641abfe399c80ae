//! Who is who (S11): what nodes say to each other before anything else counts, and who is listened to.
//!
//! ```text
//!  initial member: fresh ──(majority of the map seen fresh, nobody has an incarnation)──► takes part ──(first entry)──► incarnation
//!  latecomer:      fresh ──(its directory recorded by an entry)──► adopts the incarnation ──► takes part
//!  joiner:         waiting ──(ticket, or recorded by hand)──► adopts the incarnation ──► member by an entry
//!  wiped:          fresh, but its id is recorded with another directory ──► WrongDirectory
//!  lone founder:   founds at once; if it was wiped, it founds another cluster, until a member of the first greets it ──► WrongDirectory
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prost::Message as _;

use super::bugs::{self, Bug};
use super::deadlines::Micros;
use super::entry::{Context, Founding, Kind};
use super::{Core, FOUNDING_INDEX, FOUNDING_TERM};
use crate::cluster::{ClusterState, Member, NodeId, Uid};
use crate::entry::Entry;
use crate::error::{Error, ErrorCode, Result};
use crate::request::Ticket;
use crate::status::Event;
use crate::wire::{Hello, Verdict, Welcome, PROTOCOL_VERSION};

/// Reasons told of one refused peer until it is accepted; some are texts of the peer's.
const MAX_REASONS: usize = 8;
/// Characters of each that are told.
const MAX_REASON: usize = 1000;

/// What was heard of a peer.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub directory: Option<Uid>,
    pub incarnation: Option<Uid>,
    /// An initial member of the cluster that this node was born to, and not known to itself as one that was removed.
    pub founder: bool,
    pub at: Micros,
    pub connected: bool,
    /// The start number of the process that our own stream leads to, once it agreed.
    pub listener: Option<u64>,
}

pub(super) struct Greetings {
    pub(super) seen: BTreeMap<NodeId, Seen>,
    /// Directories in a founding entry that is in the log and not applied.
    heard: Option<BTreeMap<NodeId, Uid>>,
    /// When those were last asked to greet anew whom an entry that founds and did not last does not name.
    pub(super) anew: BTreeMap<NodeId, Micros>,
    /// Directories whose recording was proposed, with the term it was proposed in.
    recording: BTreeMap<NodeId, u64>,
    /// A fresh founder that has seen its majority takes part from then on.
    founding_open: bool,
    /// What was told of a refused peer, once each, and since when: greetings go both ways and come again and again.
    pub(super) refused: BTreeMap<NodeId, (Micros, BTreeSet<String>)>,
    /// Where members of this cluster say they are: known before the log says so, when this node lags or waits to be joined; and all that
    /// there is to ask, once those that it began with are gone (seed 140873112).
    pub(super) learned: BTreeMap<NodeId, String>,
    /// Whom their own greeting, or the word of one that was removed, has brought into the maps above; oldest first, members taken out late.
    pub(super) strangers: VecDeque<NodeId>,
}

/// The directories that a founding entry names.
pub(super) fn founding_of(entry: &Entry) -> Option<BTreeMap<NodeId, Uid>> {
    if Context::of(entry)?.kind != Kind::Founding {
        return None;
    }
    let founding = Founding::decode(entry.data.as_ref()).ok()?;
    Some(founding.heard.iter().filter_map(|m| Some((m.id, Uid::from_bytes(&m.directory)?))).collect())
}

/// Digest of what initial members must agree on before they found a cluster: FNV-1a over cluster id, members, and who of them learns.
pub fn founding_digest(cluster_id: &str, founding: &ClusterState) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    add(cluster_id.as_bytes());
    for member in founding.members() {
        add(&member.id.to_le_bytes());
        add(member.addr.as_bytes());
    }
    // Versions that knew no initial learners had none.
    if !founding.learners.is_empty() {
        add(b"learners");
        founding.learners.iter().for_each(|id| add(&id.to_le_bytes()));
    }
    // 0 means "no initial member".
    hash.max(1)
}

impl Greetings {
    pub fn new(heard: Option<BTreeMap<NodeId, Uid>>) -> Self {
        Greetings {
            seen: BTreeMap::new(),
            heard,
            anew: BTreeMap::new(),
            recording: BTreeMap::new(),
            founding_open: false,
            refused: BTreeMap::new(),
            learned: BTreeMap::new(),
            strangers: VecDeque::new(),
        }
    }

    pub fn set_heard(&mut self, heard: Option<BTreeMap<NodeId, Uid>>) {
        self.heard = heard;
    }

    pub fn seen(&self, id: NodeId) -> Option<&Seen> {
        self.seen.get(&id)
    }

    pub(super) fn has_let_in(&self, id: NodeId) -> bool {
        self.seen.get(&id).is_some_and(|seen| seen.listener.is_some())
    }
}

impl Core {
    /// Nothing was ever written here: no term, no vote, no entry.
    fn is_fresh(&self) -> bool {
        let hard_state = self.raw.raft.hard_state();
        let log = &self.raw.raft.raft_log;
        if self.initial.is_empty() {
            return hard_state.term == 0 && log.last_index() == 0;
        }
        hard_state.term <= FOUNDING_TERM && hard_state.vote == 0 && log.last_index() <= FOUNDING_INDEX
    }

    /// Of the cluster that this node was born to, or has joined; 0: not known.
    fn digest(&self) -> u64 {
        match self.identity.digest {
            0 => self.cluster.founding_digest,
            own => own,
        }
    }

    /// May campaign and vote.
    pub(super) fn may_take_part(&self) -> bool {
        if self.identity.incarnation.is_some() {
            // A waiting node becomes a member by an entry or a snapshot, never by an election.
            return !self.cluster.voters.is_empty() || self.raw.raft.raft_log.last_index() > 0;
        }
        self.identity.digest != 0 && (!self.is_fresh() || self.greetings.founding_open)
    }

    /// What this node says to that peer.
    pub fn hello(&self, to: NodeId) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            node_id: self.id,
            to,
            addr: self.addr.clone(),
            directory: self.identity.directory.to_bytes(),
            digest: self.digest(),
            incarnation: self.identity.incarnation.map(Uid::to_bytes).unwrap_or_default(),
            fresh: self.is_fresh(),
            recorded: self.cluster.recorded_directory(to).map(Uid::to_bytes).unwrap_or_default(),
            start: self.start,
            kind: 0,
            removed: self.removed,
        }
    }

    fn verdict(&mut self, hello: &Hello) -> (Verdict, String) {
        let peer = hello.node_id;
        let theirs = Uid::from_bytes(&hello.incarnation);
        let directory = Uid::from_bytes(&hello.directory);
        if hello.version < PROTOCOL_VERSION {
            let text = format!(
                "protocol version {} is older than {PROTOCOL_VERSION}, the oldest that this node speaks",
                hello.version
            );
            return (Verdict::Version, text);
        }
        if hello.to != self.id {
            return (Verdict::WrongNode, format!("this is node {}, not node {}", self.id, hello.to));
        }
        if peer == 0 || peer == self.id {
            return (
                Verdict::WrongNode,
                format!("node {peer} is this node's own id; every node needs an id of its own"),
            );
        }
        let same_cluster =
            self.identity.incarnation.is_none() || theirs.is_none() || self.identity.incarnation == theirs;
        if same_cluster && self.cluster.is_removed(peer) {
            return (Verdict::Removed, format!("node {peer} was removed from the cluster; join again under a new id"));
        }
        if let Some(cluster) = self.founded_before(hello) {
            let id = self.id;
            let text = format!(
                "node {peer} belongs to cluster {cluster}, which this node {id} founded from another directory: that was wiped or moved, and \
                 starting without it began a new cluster. Put it back; or remove node {id} from the old cluster and join that again, from an \
                 empty directory; or, to keep the new one, stop the members of the old or give the new another cluster_id"
            );
            self.fail(Error::not_done(ErrorCode::WrongDirectory, text.clone()));
            return (Verdict::ClusterMismatch, text);
        }
        match (self.identity.incarnation, theirs) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                (Verdict::ClusterMismatch, format!("this node belongs to cluster {ours}, node {peer} to cluster {theirs}"))
            }
            (Some(_), theirs) => match (self.cluster.member(peer), self.cluster.recorded_directory(peer)) {
                (Some(_), Some(recorded)) if Some(recorded) != directory => (
                    Verdict::WrongDirectory,
                    format!("node {peer} is recorded with another directory: its data was wiped or moved; remove the member and let it join again"),
                ),
                (Some(_), Some(_)) if theirs.is_some() => (Verdict::Accepted, String::new()),
                (Some(_), Some(_)) => (Verdict::Later, "recorded; take over the cluster's number first".into()),
                // The entry that founds the cluster is in our log and not applied: nobody could be recorded before those that it names have
                // elected, and it is committed. (The other side may have lost in a crash what it knew of it.)
                (Some(_), None) if self.is_named_by_founding(peer, directory) => {
                    (Verdict::Accepted, String::new())
                }
                // S11: who was born to another founding is never recorded, or it would count as one of ours.
                (Some(_), None)
                    if theirs.is_none()
                        && hello.digest != 0
                        && self.digest() != 0
                        && hello.digest != self.digest() =>
                {
                    (
                        Verdict::ClusterMismatch,
                        format!("node {peer} was started as an initial member with other peers or another cluster_id: give it the same, or peers without itself if it is to join"),
                    )
                }
                // It was recorded by an entry that this node has not got yet.
                (Some(_), None) if theirs.is_some() && !self.is_leader() => (Verdict::Accepted, String::new()),
                (Some(_), None) => {
                    self.record_directory(peer, directory);
                    (Verdict::Later, format!("the directory of node {peer} is not recorded yet"))
                }
                // This node may lag behind the entry that adds it.
                (None, _) if theirs.is_some() => (Verdict::Accepted, String::new()),
                (None, _) => (Verdict::Later, format!("node {peer} is not a member")),
            },
            (None, Some(theirs)) => {
                if Uid::from_bytes(&hello.recorded) == Some(self.identity.directory) {
                    self.adopt(theirs);
                    (Verdict::Accepted, String::new())
                } else if self.identity.digest != 0 && hello.digest != 0 && hello.digest != self.identity.digest {
                    (Verdict::ClusterMismatch, "the initial members, their roles or the cluster_id differ".into())
                } else if self.identity.digest != 0 && !self.is_fresh() {
                    (Verdict::Accepted, String::new())
                } else {
                    (Verdict::Later, format!("node {} is not a member of that cluster yet", self.id))
                }
            }
            (None, None) if self.identity.digest == 0 => (Verdict::Later, format!("node {} waits to be joined", self.id)),
            (None, None) if hello.digest == 0 => (Verdict::Later, format!("node {peer} waits to be joined")),
            (None, None) if hello.digest != self.identity.digest => (
                Verdict::ClusterMismatch,
                "the initial members, their roles or the cluster_id differ: give every initial member the same peers and the same cluster_id".into(),
            ),
            (None, None) => (Verdict::Accepted, String::new()),
        }
    }

    /// A founder that began alone needs nobody to begin again: all it can do is stop when it hears that it had begun before (seed 6027491).
    /// Once others have joined the new cluster, somebody wants that one.
    fn founded_before(&self, hello: &Hello) -> Option<Uid> {
        let theirs = Uid::from_bytes(&hello.incarnation).filter(|theirs| Some(*theirs) != self.identity.incarnation)?;
        let recorded = Uid::from_bytes(&hello.recorded)?;
        // An initial learner is named without ever having come.
        let alone = self.cluster.members().iter().all(|member| member.id == self.id || member.directory.is_empty());
        let born_alike = self.identity.digest != 0 && self.identity.digest == hello.digest;
        (alone && born_alike && hello.to == self.id && recorded != self.identity.directory).then_some(theirs)
    }

    /// Somebody dials: may it speak?
    pub fn greeted(&mut self, hello: &Hello) -> Welcome {
        let (verdict, reason) = self.verdict(hello);
        if matches!(verdict, Verdict::Accepted | Verdict::Later) {
            self.see(hello);
        } else if !matches!(verdict, Verdict::WrongNode) {
            self.refuse_peer(hello.node_id, reason.clone());
        }
        let members = if self.removed { self.cluster.members().to_vec() } else { Vec::new() };
        Welcome { verdict: verdict as i32, reason, hello: Some(self.hello(hello.node_id)), members }
    }

    /// The answer to our own dial: go on sending?
    pub fn welcomed(&mut self, peer: NodeId, welcome: &Welcome) -> bool {
        let Some(hello) = welcome.hello.as_ref().filter(|h| h.node_id == peer) else {
            self.refuse_peer(peer, format!("another node answers at its address: {}", welcome.reason));
            return false;
        };
        self.learn_members(hello, &welcome.members);
        match Verdict::try_from(welcome.verdict) {
            Ok(Verdict::Accepted) => {
                let (ours, reason) = self.verdict(hello);
                match ours {
                    Verdict::Accepted => {
                        self.see(hello);
                        if let Some(seen) = self.greetings.seen.get_mut(&peer) {
                            seen.listener = Some(hello.start);
                        }
                        self.greetings.refused.remove(&peer);
                        true
                    }
                    Verdict::Later => {
                        self.see(hello);
                        false
                    }
                    _ => {
                        self.refuse_peer(peer, reason);
                        false
                    }
                }
            }
            Ok(Verdict::Later) => {
                // Looking at who they are may be what it takes: adopt, or have them recorded.
                let (ours, reason) = self.verdict(hello);
                if matches!(ours, Verdict::Accepted | Verdict::Later) {
                    self.see(hello);
                } else {
                    self.refuse_peer(peer, reason);
                }
                false
            }
            Ok(Verdict::Removed) => {
                if self.is_of_our_cluster(hello) {
                    self.note_removed("the cluster has removed it");
                }
                false
            }
            Ok(Verdict::WrongDirectory) if self.identity.incarnation.is_none() => {
                let text = format!("node {peer} refuses this directory: {}", welcome.reason);
                self.fail(Error::not_done(ErrorCode::WrongDirectory, text));
                false
            }
            _ => {
                self.refuse_peer(peer, welcome.reason.clone());
                false
            }
        }
    }

    /// An initial member that was removed before it ever took part, or wiped, knows its cluster by the digest alone.
    fn is_of_our_cluster(&self, hello: &Hello) -> bool {
        let Some(theirs) = Uid::from_bytes(&hello.incarnation) else { return false };
        match self.identity.incarnation {
            Some(ours) => ours == theirs,
            None => self.identity.digest != 0 && hello.digest == self.identity.digest,
        }
    }

    /// A removed node says who was left: whoever knows only nodes that are gone would wait for them for ever (found by seed 1007296).
    fn learn_members(&mut self, hello: &Hello, members: &[Member]) {
        let ours = self.is_of_our_cluster(hello);
        let mut news = false;
        let own = self.id;
        for member in members.iter().filter(|m| ours && m.id != 0 && m.id != own && !m.addr.is_empty()) {
            if self.cluster.member(member.id).is_none() && !self.cluster.is_removed(member.id) {
                self.make_room_for(member.id);
                news |= self.greetings.learned.insert(member.id, member.addr.clone()).as_ref() != Some(&member.addr);
            }
        }
        if news {
            self.announce_peers();
        }
    }

    /// Removed: whoever holds a stream to this node greets anew, and hears who is left.
    pub(super) fn let_go_of_peers(&mut self) {
        self.out.disconnect.extend(self.greetings.seen.keys());
    }

    fn see(&mut self, hello: &Hello) {
        self.make_room_for(hello.node_id);
        let before = self.greetings.seen.get(&hello.node_id);
        let seen = Seen {
            directory: Uid::from_bytes(&hello.directory),
            incarnation: Uid::from_bytes(&hello.incarnation),
            founder: hello.digest != 0 && hello.digest == self.identity.digest && !hello.removed,
            at: self.now,
            connected: before.is_some_and(|s| s.connected),
            listener: before.and_then(|s| s.listener),
        };
        self.greetings.seen.insert(hello.node_id, seen);
        if self.is_of_our_cluster(hello) && !hello.addr.is_empty() {
            let recorded = self.cluster.member(hello.node_id).map(|m| m.addr.as_str());
            let known = self.greetings.learned.get(&hello.node_id).map(String::as_str).or(recorded);
            if known != Some(hello.addr.as_str()) {
                self.greetings.learned.insert(hello.node_id, hello.addr.clone());
                self.announce_peers();
            }
        }
        self.open_founding();
    }

    /// A fresh founder takes part once it has seen a majority of the voters of the map without an incarnation, and nobody with one. Who was
    /// removed before it ever took part founds nothing: whoever sees it may have lost a directory of the cluster that removed it (found by
    /// seed 7004465).
    fn open_founding(&mut self) {
        if self.initial.is_empty() || self.identity.incarnation.is_some() || self.greetings.founding_open {
            return;
        }
        let mut others = self.initial.keys().filter(|id| **id != self.id).filter_map(|id| self.greetings.seen.get(id));
        if others.any(|seen| seen.incarnation.is_some()) {
            return;
        }
        // No entry was applied yet: these are the voters that the map names.
        let voters = &self.cluster.voters;
        let founders = |id: &&NodeId| **id == self.id || self.greetings.seen.get(id).is_some_and(|seen| seen.founder);
        let fresh = voters.iter().filter(founders).count();
        if fresh > voters.len() / 2 || bugs::on(Bug::FreshDirectoriesVote) {
            self.greetings.founding_open = true;
        }
    }

    /// The first entry of a cluster fixes its number and the directories heard so far (S11).
    pub(super) fn found_cluster(&mut self) {
        self.open_founding();
        if !self.is_leader() || !self.cluster.incarnation.is_empty() || self.greetings.heard.is_some() {
            return;
        }
        let mut heard: BTreeMap<NodeId, Uid> = BTreeMap::from([(self.id, self.identity.directory)]);
        for (id, seen) in &self.greetings.seen {
            if let (Some(directory), None, true, true) =
                (seen.directory, seen.incarnation, seen.founder, self.initial.contains_key(id))
            {
                heard.insert(*id, directory);
            }
        }
        let incarnation = Uid((u128::from(self.rng.next()) << 64) | u128::from(self.rng.next()));
        let founding = Founding {
            incarnation: incarnation.to_bytes(),
            heard: heard
                .iter()
                .map(|(id, directory)| Member { id: *id, directory: directory.to_bytes(), ..Default::default() })
                .collect(),
            verify_results: self.config.verify_results,
            digest: self.identity.digest,
        };
        if self.append_own(Kind::Founding, founding.encode_to_vec()) {
            self.greetings.heard = Some(heard);
        }
    }

    /// A latecomer's directory, by an entry, before it may vote or acknowledge (S11). Once per term: what is lost comes again with the next hello.
    fn record_directory(&mut self, peer: NodeId, directory: Option<Uid>) {
        let term = self.raw.raft.term;
        let Some(directory) = directory else { return };
        if !self.takes_own() || self.greetings.recording.get(&peer) == Some(&term) {
            return;
        }
        let record = Member { id: peer, directory: directory.to_bytes(), ..Default::default() };
        if self.append_own(Kind::RecordDirectory, record.encode_to_vec()) {
            self.greetings.recording.insert(peer, term);
        }
    }

    fn takes_own(&self) -> bool {
        self.is_leader() && self.raw.raft.commit_to_current_term()
    }

    /// This directory is part of that cluster from now on; durable before anything later is.
    pub(super) fn adopt(&mut self, incarnation: Uid) {
        if self.identity.incarnation.is_none() {
            self.identity.incarnation = Some(incarnation);
            let identity = self.identity.clone();
            self.writes.extra().identity = Some(identity);
            self.out.hello_changed = true;
            if self.cluster.incarnation.is_empty() {
                // The cluster is founded, and not by what this node can count: were it the leader, it would listen to none of those who
                // did, and without check_quorum for ever.
                self.abdicate();
            }
        }
    }

    pub(super) fn use_ticket(&mut self, ticket: &Ticket) -> Result<()> {
        let incarnation = u128::from_str_radix(&ticket.incarnation, 16).map(Uid).map_err(|_| {
            Error::not_done(
                ErrorCode::InvalidArgument,
                "the ticket names no cluster; ask for a new one with request_id",
            )
        })?;
        match self.identity.incarnation {
            Some(ours) if ours != incarnation => Err(Error::not_done(
                ErrorCode::ClusterMismatch,
                format!("this directory belongs to cluster {ours}, the ticket to cluster {incarnation}; use the directory of that cluster, or an empty one"),
            )),
            Some(_) => Ok(()),
            None if self.identity.digest != 0 => Err(Error::not_done(
                ErrorCode::Membership,
                "this node was started as an initial member; a node that joins is started without itself in peers",
            )
            .lasting()),
            None => {
                self.adopt(incarnation);
                Ok(())
            }
        }?;
        if self.cluster.members().is_empty() {
            // Named by the cluster, however many they are.
            self.greetings.strangers.retain(|id| !ticket.peers.contains_key(id));
            self.greetings.learned.extend(ticket.peers.iter().map(|(id, addr)| (*id, addr.clone())));
            self.announce_peers();
        }
        Ok(())
    }

    /// This node's directory, for the request to join.
    pub fn directory(&self) -> Uid {
        self.identity.directory
    }

    /// Whose messages count, and who gets ours.
    pub(super) fn admits(&self, peer: NodeId) -> bool {
        if peer == self.id || self.cluster.is_removed(peer) {
            return false;
        }
        let seen = self.greetings.seen.get(&peer).and_then(|s| s.directory);
        if !self.cluster.incarnation.is_empty() {
            return match self.cluster.member(peer) {
                // A leader counts only whom its log records; a follower may lag behind the entry that records its leader.
                Some(member) if member.directory.is_empty() => !self.is_leader() && self.shares_incarnation(peer),
                Some(member) => seen.is_none() || Uid::from_bytes(&member.directory) == seen,
                None => true,
            };
        }
        match &self.greetings.heard {
            Some(heard) => {
                let named = heard.get(&peer).is_some_and(|directory| seen.is_none_or(|s| s == *directory));
                // An entry of ours that founds the cluster and did not last: whoever lasted replaces it, and is listened to.
                named || (!self.is_leader() && self.shares_incarnation(peer) && !bugs::on(Bug::GreetsFoundersOnce))
            }
            None => true,
        }
    }

    /// An entry of the log that founds the cluster, not applied yet, names this directory.
    fn is_named_by_founding(&self, peer: NodeId, directory: Option<Uid>) -> bool {
        let heard = self.greetings.heard.as_ref().filter(|_| self.cluster.incarnation.is_empty());
        directory.is_some() && heard.and_then(|heard| heard.get(&peer).copied()) == directory
    }

    /// It says that it is of the cluster that this directory is known to be of.
    fn shares_incarnation(&self, peer: NodeId) -> bool {
        let theirs = self.greetings.seen.get(&peer).and_then(|s| s.incarnation);
        theirs.is_some() && theirs == self.identity.incarnation
    }

    pub(super) fn heard(&mut self, peer: NodeId) {
        let now = self.now;
        if let Some(seen) = self.greetings.seen.get_mut(&peer) {
            seen.at = now;
        }
    }

    /// The stream to a peer is up, or down.
    pub fn connected(&mut self, peer: NodeId, connected: bool) {
        if let Some(seen) = self.greetings.seen.get_mut(&peer) {
            seen.connected = connected;
        }
        if !connected {
            self.unreachable(peer);
        }
    }

    /// Told once for each peer and reason, not with each try; and of strangers not more than so many in a while.
    pub(super) fn refuse_peer(&mut self, peer: NodeId, reason: String) {
        let news = !self.greetings.refused.contains_key(&peer);
        if news && self.is_stranger(peer) && !self.may_tell_of_stranger() {
            return;
        }
        let reason: String = reason.chars().take(MAX_REASON).collect();
        let (_, told) = self.greetings.refused.entry(peer).or_insert_with(|| (self.now, BTreeSet::new()));
        if told.len() < MAX_REASONS && told.insert(reason.clone()) {
            self.out.events.push(Event::PeerRefused { peer, reason });
        }
    }

    /// Members that greeted before an entry added them: their streams stay, so their directories are recorded from what they said then.
    pub(super) fn record_acquaintances(&mut self) {
        if !self.is_leader() {
            return;
        }
        for id in self.unrecorded_acquaintances() {
            let seen = self.greetings.seen.get(&id);
            if let Some(seen) = seen.filter(|s| s.incarnation.is_some() && s.incarnation == self.identity.incarnation) {
                self.record_directory(id, seen.directory);
            }
        }
    }

    /// Members that have spoken to this node and whose directory no entry records.
    pub(super) fn unrecorded_acquaintances(&self) -> Vec<NodeId> {
        let unrecorded = self.cluster.members().iter().filter(|m| m.directory.is_empty() && m.id != self.id);
        unrecorded.map(|m| m.id).filter(|id| self.greetings.seen.contains_key(id)).collect()
    }

    /// A member speaks that this node does not listen to. Where that is because of an entry of its own log that founds the cluster and
    /// names others, another one may have lasted: the speaker greets anew, and says whether it is of a cluster now.
    pub(super) fn greet_anew(&mut self, peer: NodeId) {
        let passed_over = self.cluster.incarnation.is_empty()
            && self.greetings.heard.as_ref().is_some_and(|heard| !heard.contains_key(&peer))
            && self.greetings.seen.get(&peer).is_some_and(|seen| seen.incarnation.is_none());
        if !passed_over || bugs::on(Bug::GreetsFoundersOnce) {
            return;
        }
        let patience = u64::try_from(self.config.election_timeout().as_micros()).unwrap_or(u64::MAX);
        let asked = self.greetings.anew.get(&peer);
        if asked.is_none_or(|at| self.now.saturating_sub(*at) > patience) {
            self.greetings.anew.insert(peer, self.now);
            self.out.disconnect.push(peer);
        }
    }

    /// What the log says of a member's address is newer than what it said itself before.
    pub(super) fn forget_learned(&mut self, before: &ClusterState) {
        let cluster = &self.cluster;
        let moved =
            |id: &NodeId| before.member(*id).is_some_and(|b| cluster.member(*id).is_some_and(|m| m.addr != b.addr));
        self.greetings.learned.retain(|id, _| !cluster.is_removed(*id) && !moved(id));
    }

    /// Whom to dial: the members, and before there are any the initial ones.
    pub(super) fn announce_peers(&mut self) {
        let mut peers: BTreeMap<NodeId, String> =
            self.cluster.members().iter().filter(|m| !m.addr.is_empty()).map(|m| (m.id, m.addr.clone())).collect();
        if self.cluster.members().is_empty() {
            peers = self.initial.clone();
        }
        for (id, addr) in &self.greetings.learned {
            if !self.cluster.is_removed(*id) {
                peers.insert(*id, addr.clone());
            }
        }
        peers.remove(&self.id);
        self.out.peers = Some(peers);
        self.out.hello_changed = true;
    }
}

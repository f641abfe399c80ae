//! Whom this node has met (S11): what peers said of themselves, where they are, which of their directories the log still has to record.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prost::Message as _;

use super::bugs::{self, Bug};
use super::deadlines::Micros;
use super::entry::Kind;
use super::Core;
use crate::cluster::{ClusterState, Member, NodeId, Uid};
use crate::status::Event;
use crate::wire::Hello;

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
    pub(super) heard: Option<BTreeMap<NodeId, Uid>>,
    /// When those were last asked to greet anew whom an entry that founds and did not last does not name.
    pub(super) anew: BTreeMap<NodeId, Micros>,
    /// Directories whose recording was proposed, with the term it was proposed in.
    pub(super) recording: BTreeMap<NodeId, u64>,
    /// A fresh founder that has seen its majority takes part from then on.
    pub(super) founding_open: bool,
    /// What was told of a refused peer, once each, and since when: greetings go both ways and come again and again.
    pub(super) refused: BTreeMap<NodeId, (Micros, BTreeSet<String>)>,
    /// Where members of this cluster say they are: known before the log says so, when this node lags or waits to be joined; and all that
    /// there is to ask, once those that it began with are gone (seed 140873112).
    pub(super) learned: BTreeMap<NodeId, String>,
    /// Whom their own greeting, or the word of one that was removed, has brought into the maps above; oldest first, members taken out late.
    pub(super) strangers: VecDeque<NodeId>,
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
    /// A removed node says who was left: whoever knows only nodes that are gone would wait for them for ever (found by seed 1007296).
    pub(super) fn learn_members(&mut self, hello: &Hello, members: &[Member]) {
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

    pub(super) fn see(&mut self, hello: &Hello) {
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

    /// A latecomer's directory, by an entry, before it may vote or acknowledge (S11). Once per term: what is lost comes again with the next hello.
    pub(super) fn record_directory(&mut self, peer: NodeId, directory: Option<Uid>) {
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

    pub(super) fn takes_own(&self) -> bool {
        self.is_leader() && self.raw.raft.commit_to_current_term()
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

    /// It says that it is of the cluster that this directory is known to be of.
    pub(super) fn shares_incarnation(&self, peer: NodeId) -> bool {
        let theirs = self.greetings.seen.get(&peer).and_then(|s| s.incarnation);
        theirs.is_some() && theirs == self.identity.incarnation
    }
}

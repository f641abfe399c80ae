//! Who is who (S11): what nodes say to each other before anything else counts, and who is listened to.
//!
//! ```text
//!  initial member: fresh ──(majority of the map seen fresh, nobody has an incarnation)──► takes part ──(first entry)──► incarnation
//!  latecomer:      fresh ──(its directory recorded by an entry)──► adopts the incarnation ──► takes part
//!  joiner:         waiting ──(ticket, or recorded by hand)──► adopts the incarnation ──► member by an entry
//!  wiped:          fresh, but its id is recorded with another directory ──► WrongDirectory
//!  lone founder:   founds at once; if it was wiped, it founds another cluster, until a member of the first greets it ──► WrongDirectory
//! ```

use super::bugs::{self, Bug};
use super::Core;
use crate::cluster::{NodeId, Uid};
use crate::error::{Error, ErrorCode, Result};
use crate::request::Ticket;
use crate::wire::{Hello, Verdict, Welcome, PROTOCOL_VERSION};

impl Core {
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
}

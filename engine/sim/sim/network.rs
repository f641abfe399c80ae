//! The network: one stream from each node to each other that it dials, greeted before anything counts; two lanes a stream, each in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost_raft::Message as _;
use raft::eraftpb::{Message, MessageType};
use raftify_engine::core::{Body, Outbound, SnapshotSend};
use raftify_engine::log::SnapshotMeta;
use raftify_engine::wire::{Hello, Verdict, Welcome};

use super::draws::skewed;
use super::files;
use super::world::{Event, Place, World, MILLI};

#[derive(Default)]
pub struct Network {
    /// Nothing passes from the first to the second.
    pub cut: BTreeSet<(u64, u64)>,
    /// The same, by faults: each ends by itself.
    pub cuts: Vec<Cut>,
    /// Who is elected next is cut off for so long.
    pub cut_leaders: Vec<u64>,
    streams: u64,
    /// What a node sends passes slowly.
    pub narrow: BTreeMap<u64, Narrow>,
    /// Snapshots that are broken off: how many more.
    pub break_snapshots: u64,
}

pub struct Cut {
    pub number: u64,
    pub open: bool,
    pub links: BTreeSet<(u64, u64)>,
}

/// Appends and forwards of a node pass at so many bytes a millisecond on each stream, and so many may wait (S18).
pub struct Narrow {
    pub rate: u64,
    pub room: u64,
    pub until: u64,
}

/// Our stream to a peer.
#[derive(Default)]
pub struct Stream {
    pub number: u64,
    pub open: bool,
    dialling: bool,
    /// The peer's life it goes to.
    to_life: u64,
    /// When the last message of each lane arrives.
    arrival: [u64; 2],
    /// When all that waits in the bulk lane of a narrow link will have left.
    passed: u64,
}

impl World {
    fn delay(&mut self, from: u64, to: u64) -> u64 {
        let (low, high) = self.profile.delay;
        skewed(self.draws.link(from, to), low, high)
    }

    pub fn is_cut(&self, from: u64, to: u64) -> bool {
        let link = (from, to);
        (!self.network.cut.is_empty() && self.network.cut.contains(&link))
            || self.network.cuts.iter().any(|cut| cut.open && cut.links.contains(&link))
    }

    /// What a node's core says about whom to dial.
    pub fn set_peers(&mut self, at: Place, peers: BTreeMap<u64, String>) {
        let Some(life) = self.life(at) else { return };
        let old = std::mem::replace(&mut life.peers, peers);
        let mut changed: Vec<u64> = Vec::new();
        for (id, addr) in &life.peers {
            if old.get(id) != Some(addr) {
                changed.push(*id);
            }
        }
        let gone: Vec<u64> = old.keys().filter(|id| !life.peers.contains_key(id)).copied().collect();
        for id in changed.iter().chain(&gone) {
            self.hang_up(at, *id);
        }
        for id in changed {
            self.after(0, Event::Dial { at, to: id });
        }
    }

    /// Something else is to be said now: streams that were refused are tried again at once.
    pub fn redial(&mut self, at: Place) {
        let Some(life) = self.life(at) else { return };
        let closed: Vec<u64> =
            life.peers.keys().filter(|id| !life.streams.get(id).is_some_and(|s| s.open)).copied().collect();
        for to in closed {
            self.after(0, Event::Dial { at, to });
        }
    }

    pub fn hang_up(&mut self, at: Place, peer: u64) {
        let Some(life) = self.life(at) else { return };
        if let Some(stream) = life.streams.get_mut(&peer).filter(|s| s.open) {
            stream.open = false;
            life.core.connected(peer, false);
            self.wake(at);
        }
    }

    /// Whoever dials that address reaches that node.
    pub fn is_there(&self, id: u64, addr: &str) -> bool {
        self.addrs.get(addr) == Some(&id) && self.hosts.get(&id).is_some_and(|h| h.life.is_some())
    }

    pub fn dial(&mut self, at: Place, to: u64) {
        let number = self.network.streams + 1;
        let Some(life) = self.life(at) else { return };
        let Some(addr) = life.peers.get(&to).cloned() else { return };
        let stream = life.streams.entry(to).or_default();
        if stream.open || stream.dialling {
            return;
        }
        stream.dialling = true;
        stream.number = number;
        let hello = life.core.hello(to);
        self.network.streams = number;
        let target = self.addrs.get(&addr).copied().unwrap_or(0);
        let delay = self.delay(at.0, target);
        match self.hosts.get(&target).and_then(|h| h.life.as_ref()).map(|l| (target, l.number)) {
            Some(place) if !self.is_cut(at.0, target) => {
                self.after(delay, Event::Hello { from: at, to: place, stream: number, hello });
                // Nobody may answer: the dial ends all the same.
                self.after(delay + 200 * MILLI, Event::DialFailed { at, peer: to });
            }
            _ => self.after(delay + 20 * MILLI, Event::DialFailed { at, peer: to }),
        }
    }

    pub fn hello(&mut self, from: Place, to: Place, stream: u64, hello: &Hello) {
        let Some(life) = self.life(to) else { return };
        let welcome = life.core.greeted(hello);
        if welcome.verdict == Verdict::Accepted as i32 {
            life.accepted.insert((from.0, stream));
        }
        self.tell(|| {
            format!("node {} greeted by {}: {:?} {}", to.0, from.0, Verdict::try_from(welcome.verdict), welcome.reason)
        });
        self.wake(to);
        if !self.is_cut(to.0, from.0) {
            let delay = self.delay(to.0, from.0);
            self.after(delay, Event::Welcome { at: from, peer: to, stream, welcome });
        }
    }

    pub fn welcome(&mut self, at: Place, peer: Place, number: u64, welcome: &Welcome) {
        let Some(life) = self.life(at) else { return };
        // The id it was dialled for may be another than that of who answered.
        let Some((to, stream)) = life.streams.iter_mut().find(|(_, s)| s.number == number && s.dialling) else {
            return;
        };
        let to = *to;
        stream.dialling = false;
        let open = life.core.welcomed(to, welcome);
        if let Some(stream) = life.streams.get_mut(&to).filter(|_| open) {
            stream.open = true;
            stream.to_life = peer.1;
            (stream.arrival, stream.passed) = ([0; 2], 0);
            life.core.connected(to, true);
        }
        self.tell(|| format!("node {} welcomed by {to}: {open} ({})", at.0, welcome.reason));
        self.wake(at);
        if !open {
            self.dial_again(at, to);
        } else if !self.is_alive(peer) {
            // Who answered has died meanwhile.
            self.after(10 * MILLI, Event::Broken { at, peer: to, stream: number });
        }
    }

    fn dial_again(&mut self, at: Place, to: u64) {
        let wait = self.draws.link(at.0, to).range(20 * MILLI, 120 * MILLI);
        self.after(wait, Event::Dial { at, to });
    }

    pub fn dial_failed(&mut self, at: Place, peer: u64) {
        let Some(life) = self.life(at) else { return };
        let Some(stream) = life.streams.get_mut(&peer).filter(|s| s.dialling) else { return };
        stream.dialling = false;
        self.dial_again(at, peer);
    }

    pub fn broken(&mut self, at: Place, peer: u64, number: u64) {
        let Some(life) = self.life(at) else { return };
        if life.streams.get(&peer).is_some_and(|s| s.open && s.number == number) {
            self.tell(|| format!("node {} loses its stream to {peer}", at.0));
            self.hang_up(at, peer);
            self.dial_again(at, peer);
        }
    }

    /// Streams to a node that is gone, or over a link that is cut, break after a while.
    pub fn break_streams(&mut self, of: impl Fn(u64, u64) -> bool, within: (u64, u64)) {
        let mut broken = Vec::new();
        for (id, host) in &self.hosts {
            let Some(life) = &host.life else { continue };
            for (peer, stream) in life.streams.iter().filter(|(peer, s)| s.open && of(*id, **peer)) {
                broken.push(((*id, life.number), *peer, stream.number));
            }
        }
        for (at, peer, stream) in broken {
            let wait = self.draws.link(at.0, peer).range(within.0, within.1);
            self.after(wait, Event::Broken { at, peer, stream });
        }
    }

    pub fn send(&mut self, at: Place, outbound: Outbound) {
        let Outbound { to, body } = outbound;
        let Some(life) = self.life(at) else { return };
        let Some(stream) = life.streams.get(&to).filter(|s| s.open) else { return self.not_sent(at, to, &body) };
        let (number, place) = (stream.number, (to, stream.to_life));
        if self.is_cut(at.0, to) || (self.profile.loss > 0.0 && self.draws.link(at.0, to).chance(self.profile.loss)) {
            return;
        }
        let lane = match &body {
            Body::Raft(message) => usize::from(message.msg_type == MessageType::MsgAppend as i32),
            Body::Append(_) | Body::Forward(_) => 1,
            Body::ForwardAnswer(_) | Body::OutcomeReport(_) | Body::OutcomeAnswer(_) => 0,
        };
        let waits = if lane == 1 { self.squeeze(at, to, &body) } else { Some(0) };
        let Some(waits) = waits else { return self.not_sent(at, to, &body) };
        let mut arrival = self.now + waits + self.delay(at.0, to);
        if self.profile.duplicates > 0.0 && self.draws.link(at.0, to).chance(self.profile.duplicates) {
            let far = if self.draws.link(at.0, to).chance(0.1) { 2000 } else { 50 };
            let late = arrival + self.draws.link(at.0, to).range(0, far * MILLI);
            self.schedule(late, Event::Deliver { from: at.0, to: place, stream: number, body: copy(&body) });
        }
        if self.profile.late > 0.0 && self.draws.link(at.0, to).chance(self.profile.late) {
            let late = arrival + self.draws.link(at.0, to).range(50 * MILLI, 8000 * MILLI);
            self.schedule(late, Event::Late { from: at.0, to, body: copy(&body) });
        }
        if self.profile.reorder > 0.0 && self.draws.link(at.0, to).chance(self.profile.reorder) {
            arrival += self.draws.link(at.0, to).range(0, 30 * MILLI);
        } else if let Some(stream) = self.life(at).and_then(|l| l.streams.get_mut(&to)) {
            arrival = arrival.max(stream.arrival[lane]);
            stream.arrival[lane] = arrival;
        }
        match body {
            Body::Raft(message) if self.profile.codec => {
                let bytes = message.encode_to_vec();
                self.schedule(arrival, Event::DeliverBytes { from: at.0, to: place, stream: number, bytes });
            }
            body => self.schedule(arrival, Event::Deliver { from: at.0, to: place, stream: number, body }),
        }
    }

    /// It certainly never left, and the core hears so.
    fn not_sent(&mut self, at: Place, to: u64, body: &Body) {
        let Some(life) = self.life(at) else { return };
        match body {
            Body::Raft(_) | Body::Append(_) => life.core.unreachable(to),
            Body::Forward(forward) => life.core.forward_not_sent(forward.number),
            Body::ForwardAnswer(_) | Body::OutcomeReport(_) | Body::OutcomeAnswer(_) => {}
        }
        self.wake(at);
    }

    /// How long this waits in the bulk lane of a narrow link; `None`: it does not fit any more.
    fn squeeze(&mut self, at: Place, to: u64, body: &Body) -> Option<u64> {
        let now = self.now;
        let Some(narrow) = self.network.narrow.get(&at.0).filter(|n| now < n.until) else { return Some(0) };
        let (rate, room, until) = (narrow.rate.max(1), narrow.room, narrow.until);
        let size = match body {
            Body::Raft(message) => 64 + message.entries.iter().map(|e| 64 + e.data.len() as u64).sum::<u64>(),
            Body::Forward(forward) => 64 + prost::Message::encoded_len(forward) as u64,
            _ => 64,
        };
        let stream = self.life(at)?.streams.get_mut(&to)?;
        let waiting = stream.passed.saturating_sub(now) * rate / MILLI;
        // One that is alone may be larger than the room.
        if waiting > 0 && waiting + size > room {
            self.count("sends that did not fit");
            return None;
        }
        // What has not passed by then passes at once when the link is wide again.
        stream.passed = (stream.passed.max(now) + size * MILLI / rate).min(until.max(now));
        Some(stream.passed - now)
    }

    pub fn deliver_bytes(&mut self, from: u64, to: Place, stream: u64, bytes: &[u8]) {
        let message = Message::decode(bytes).expect("raft's codec reads what it wrote");
        self.deliver(from, to, stream, Body::Raft(message));
    }

    pub fn deliver(&mut self, from: u64, to: Place, stream: u64, body: Body) {
        let Some(life) = self.life(to) else { return };
        if !life.accepted.contains(&(from, stream)) {
            // Hung up here while the answer to its greeting was on its way: the connection is closed, and the other side sees that.
            if let Some(at) = self.place(from) {
                self.after(MILLI, Event::Broken { at, peer: to.0, stream });
            }
            return;
        }
        match body {
            Body::Raft(message) => life.core.receive(from, message),
            Body::Append(append) => life.core.receive(from, append.received()),
            Body::Forward(forward) => life.core.receive_forward(from, forward),
            Body::ForwardAnswer(answer) => life.core.receive_forward_answer(from, answer),
            Body::OutcomeReport(report) => life.core.receive_outcome_report(from, &report),
            Body::OutcomeAnswer(answer) => life.core.receive_outcome_answer(from, &answer),
        }
        self.wake(to);
    }

    /// Something once said comes again, on whatever stream is open now.
    pub fn late(&mut self, from: u64, to: u64, body: Body) {
        if !self.turmoil || self.is_cut(from, to) {
            return;
        }
        let Some(place) = self.place(to) else { return };
        let stream = self.life(place).and_then(|l| l.accepted.iter().rev().find(|(peer, _)| *peer == from).copied());
        if let Some((_, stream)) = stream {
            self.deliver(from, place, stream, body);
        }
    }

    pub fn send_snapshot(&mut self, at: Place, send: SnapshotSend) {
        let SnapshotSend { to, meta, message } = send;
        let file = self.hosts.get(&at.0).and_then(|h| h.disk.files.get(&meta)).cloned();
        assert!(
            file.is_some() || !meta.has_file,
            "VIOLATION: node {} sends snapshot {} and has no file of it",
            at.0,
            meta.index
        );
        let (low, high) = self.profile.snapshot_send;
        let time = skewed(self.draws.link(at.0, to), low, high);
        let broken = self.network.break_snapshots > 0 || self.draws.link(at.0, to).chance(self.profile.loss);
        self.network.streams += 1;
        let number = self.network.streams;
        let Some(life) = self.life(at) else { return };
        life.sending.insert(to, number);
        let failed = Event::SnapshotSent { at, peer: to, send: number, delivered: false };
        let Some(stream) = life.streams.get(&to).filter(|s| s.open) else { return self.after(MILLI, failed) };
        let send = number;
        let (number, place) = (stream.number, (to, stream.to_life));
        self.tell(|| {
            format!(
                "node {} sends snapshot {} to {to}{}",
                at.0,
                meta.index,
                if broken { " and breaks off" } else { "" }
            )
        });
        if broken || self.is_cut(at.0, to) {
            self.network.break_snapshots = self.network.break_snapshots.saturating_sub(1);
            return self.after(time, failed);
        }
        self.after(
            time,
            Event::Snapshot { send, from: at, to: place, stream: number, meta, file, message: Box::new(message) },
        );
        // Nobody may answer.
        self.after(time + 500 * MILLI, failed);
    }

    /// The file is whole, synced and renamed on the receiver's disk.
    #[allow(clippy::too_many_arguments)]
    pub fn snapshot_arrives(
        &mut self,
        send: u64,
        from: Place,
        to: Place,
        stream: u64,
        meta: Arc<SnapshotMeta>,
        file: Option<Arc<Vec<u8>>>,
        message: Message,
    ) {
        let delay = self.delay(to.0, from.0);
        let cut = self.is_cut(from.0, to.0);
        let Some(host) = self.hosts.get_mut(&to.0) else { return };
        let Some(life) = host.life.as_mut() else { return };
        if cut || !life.accepted.contains(&(from.0, stream)) {
            return self.after(delay, Event::SnapshotSent { at: from, peer: to.0, send, delivered: false });
        }
        if life.core.accepts_snapshot(from.0, meta.index).is_err() {
            self.wake(to);
            return self.after(delay, Event::SnapshotSent { at: from, peer: to.0, send, delivered: false });
        }
        let table = file.as_ref().map_or(Vec::new(), |file| files::table(&meta, file).to_vec());
        if let Some(file) = file {
            host.disk.files.insert((*meta).clone(), file);
        }
        life.core.receive_snapshot(from.0, message, (*meta).clone(), &table);
        self.tell(|| format!("node {} has received snapshot {}", to.0, meta.index));
        self.wake(to);
        if !self.is_cut(to.0, from.0) {
            self.after(delay, Event::SnapshotSent { at: from, peer: to.0, send, delivered: true });
        }
    }

    pub fn snapshot_sent(&mut self, at: Place, peer: u64, send: u64, delivered: bool) {
        if let Some(life) = self.life(at).filter(|l| l.sending.get(&peer) == Some(&send)) {
            life.sending.remove(&peer);
            life.core.snapshot_sent(peer, delivered);
            self.wake(at);
        }
    }
}

fn copy(body: &Body) -> Body {
    match body {
        Body::Raft(message) => Body::Raft(message.clone()),
        Body::Append(append) => Body::Append(append.clone()),
        Body::Forward(forward) => Body::Forward(forward.clone()),
        Body::ForwardAnswer(answer) => Body::ForwardAnswer(answer.clone()),
        Body::OutcomeReport(report) => Body::OutcomeReport(report.clone()),
        Body::OutcomeAnswer(answer) => Body::OutcomeAnswer(*answer),
    }
}

//! One machine and the process on it: carries out what the core asks for, as the real shell does, and shows the oracle all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft::eraftpb::{Message, MessageType};
use raftify_engine::core::{Actions, Body, Core, CoreOptions, Fetch, Outbound};
use raftify_engine::log::LogWrite;
use raftify_engine::machine::{MachineAnswer, MachineRequest};
use raftify_engine::request::{Completion, Reply, Ticket};
use raftify_engine::status::{Event as Told, Role};
use raftify_engine::{Error, ErrorCode};

use super::disk::{Disk, Sabotage};
use super::draws::skewed;
use super::machine::{self, Machine};
use super::network::Stream;
use super::oracle::Shadow;
use super::world::{Event, Place, World, EPOCH, MILLI};

pub struct Host {
    pub addr: String,
    pub initial: BTreeMap<u64, String>,
    pub disk: Disk,
    /// What a durable machine has on its own disk while no process runs.
    pub kept: Option<Machine>,
    pub life: Option<Life>,
    pub paused_until: u64,
    /// It may answer nothing before this moment because it was paused.
    pub late_until: u64,
    /// Ticks take tick * 1000 / rate.
    rate: u64,
    wall: u64,
    /// It joined with this.
    pub ticket: Option<Ticket>,
    /// Never started again: removed, or lost for good.
    pub retired: bool,
    /// Its directory was wiped: it may refuse itself.
    pub wiped: bool,
    /// Wiped, or corrupt: not counted on any more.
    pub lost: bool,
    /// Each request to the machine takes so much longer, until then.
    pub slow_machine: (u64, u64),
    /// The machine gives up at its next request.
    pub machine_fails: bool,
    /// Its machine goes wrong: it is to be found out (S17).
    pub lie: Option<Lie>,
}

/// A machine that does not do what the others do.
#[derive(Clone, Debug)]
pub struct Lie {
    /// At every command from here on.
    pub from: u64,
    /// It raises where the others do not, or the other way round; otherwise only the bytes differ.
    pub raises: bool,
    /// The first command it happened at.
    pub told: Option<u64>,
}

impl Lie {
    fn strikes(&mut self, index: u64) -> bool {
        if index >= self.from {
            self.told.get_or_insert(index);
        }
        index >= self.from
    }
}

/// One run of a process.
pub struct Life {
    pub number: u64,
    pub core: Core,
    pub machine: Machine,
    pub shadow: Shadow,
    pub peers: BTreeMap<u64, String>,
    pub streams: BTreeMap<u64, Stream>,
    /// Streams that were greeted here: (peer, number).
    pub accepted: BTreeSet<(u64, u64)>,
    pub sending: BTreeMap<u64, u64>,
    poll_due: bool,
    redial_due: bool,
    positions: (u64, u64, u64, u64),
    pub restored: bool,
}

impl Host {
    pub fn new(_id: u64, addr: String, initial: BTreeMap<u64, String>, disk: Disk, rate: u64, wall: u64) -> Self {
        Host {
            addr,
            initial,
            disk,
            kept: None,
            life: None,
            paused_until: 0,
            late_until: 0,
            rate,
            wall,
            ticket: None,
            retired: false,
            wiped: false,
            lost: false,
            slow_machine: (0, 0),
            machine_fails: false,
            lie: None,
        }
    }
}

impl World {
    pub fn life(&mut self, at: Place) -> Option<&mut Life> {
        self.hosts.get_mut(&at.0)?.life.as_mut().filter(|l| l.number == at.1)
    }

    /// Where this node runs now.
    pub fn place(&self, id: u64) -> Option<Place> {
        let life = self.hosts.get(&id)?.life.as_ref()?;
        Some((id, life.number))
    }

    pub fn start(&mut self, id: u64) {
        let Some(host) = self.hosts.get(&id).filter(|h| h.life.is_none() && !h.retired) else { return };
        if host.disk.flipped {
            return self.tell(|| format!("node {id} does not start: its log is corrupt"));
        }
        let (start, seed) = (self.draws.node(id).next(), self.draws.node(id).next());
        self.lives += 1;
        let number = self.lives;
        let config = self.profile.config.clone();
        let (clock, _) = self.clock(id);
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let machine = host.kept.take().unwrap_or_default();
        let machine_applied = self.profile.durable_machine.then_some(machine.applied);
        let (log, entries) = host.disk.open(self.profile.sabotage);
        let image = &host.disk.synced;
        let mut shadow = Shadow::new(log.first_index - 1, log.prev_term, log.first_index - 1);
        let kept = image.read(log.first_index, u64::MAX, u64::MAX);
        self.oracle.wrote(id, &mut shadow, &kept);
        self.oracle.settles(id, &mut shadow, u64::MAX);
        let options = CoreOptions {
            config,
            node_id: id,
            addr: host.addr.clone(),
            initial: host.initial.clone(),
            start,
            seed,
            log,
            entries,
            machine_applied,
            now: clock,
        };
        let core = match Core::new(options) {
            Ok(core) => core,
            Err(error) => panic!("VIOLATION: node {id} cannot start from its own disk: {error}"),
        };
        let positions = core.positions();
        host.life = Some(Life {
            number,
            core,
            machine,
            shadow,
            peers: BTreeMap::new(),
            streams: BTreeMap::new(),
            accepted: BTreeSet::new(),
            sending: BTreeMap::new(),
            poll_due: false,
            redial_due: false,
            positions: (0, 0, 0, 0),
            restored: false,
        });
        self.tell(|| format!("node {id} starts (life {number}): {positions:?}"));
        let at = (id, number);
        let wait = self.draws.node(id).range(0, self.profile.tick);
        self.after(wait, Event::Tick(at));
        self.wake(at);
        self.after_start(at);
    }

    /// The process ends. What it had in its hands is lost; what it had written may still be readable.
    pub fn kill(&mut self, id: u64, power: bool) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let in_flight = (host.disk.in_flight.len() + host.disk.page_cache.len()) as u64;
        let rng = self.draws.disk(id);
        let keep = if rng.chance(0.5) { rng.range(0, in_flight + 1) as usize } else { 0 };
        let Some(host) = self.hosts.get_mut(&id) else { return };
        if host.life.is_some() && !power {
            host.disk.process_died(keep);
        } else if power {
            host.disk.power_lost(keep);
        }
        host.paused_until = 0;
        host.machine_fails = false;
        host.disk.hung_until = 0;
        host.disk.fails = false;
        let Some(life) = host.life.take() else { return };
        if self.profile.durable_machine {
            // S7: `applied_index` is durable when it is returned, so never less than what this life began with.
            let lost = self.draws.machine(id).range(0, life.machine.states());
            host.kept = Some(life.machine.reopen(lost));
        }
        self.tell(|| {
            format!("node {id} {} ({keep} of {in_flight} writes kept)", if power { "loses power" } else { "is killed" })
        });
        self.clients_lost(id, life.number);
        self.break_streams(|_, peer| peer == id, (MILLI, 30 * MILLI));
    }

    pub fn wake(&mut self, at: Place) {
        let delay = self.draws.node(at.0).range(0, 150);
        let Some(life) = self.life(at).filter(|l| !l.poll_due) else { return };
        life.poll_due = true;
        self.after(delay, Event::Poll(at));
    }

    fn clock(&self, id: u64) -> (u64, u64) {
        let host = &self.hosts[&id];
        let now = (u128::from(self.now) * u128::from(host.rate) / 1000) as u64;
        (now, EPOCH + now + host.wall)
    }

    /// The wall clock jumps.
    pub fn jump_clock(&mut self, id: u64, wall: u64) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.wall = wall;
        }
    }

    pub fn tick(&mut self, at: Place) {
        let (now, wall) = self.clock(at.0);
        let rate = self.hosts[&at.0].rate;
        let Some(life) = self.life(at) else { return };
        life.core.set_time(now, wall);
        life.core.tick();
        self.check_hung(at);
        self.check_wiped(at);
        self.wake(at);
        let next = self.profile.tick * 1000 / rate;
        self.after(next, Event::Tick(at));
    }

    /// S4: nobody leads with a disk that has hung for longer than it may.
    fn check_hung(&self, at: Place) {
        let host = &self.hosts[&at.0];
        let (Some(since), Some(life)) = (host.disk.waits_since, host.life.as_ref()) else { return };
        let limit = self.profile.config.hung_write_after().as_micros() as u64;
        let age = u128::from(self.now - since) * u128::from(host.rate) / 1000;
        assert!(
            !life.core.is_leader() || age <= u128::from(limit + 2 * self.profile.tick),
            "VIOLATION: node {} leads with a write that hangs since {age} µs (S4)",
            at.0
        );
    }

    pub fn poll(&mut self, at: Place) {
        let (now, wall) = self.clock(at.0);
        let Some(life) = self.life(at) else { return };
        life.poll_due = false;
        life.core.set_time(now, wall);
        life.core.expire();
        let voters = voters_of(&life.core);
        let actions = life.core.poll();
        let more = life.core.has_more();
        self.carry_out(at, actions, voters);
        if more {
            self.wake(at);
        }
        if self.life(at).is_some_and(|l| std::mem::take(&mut l.redial_due)) {
            self.redial(at);
        }
    }

    fn carry_out(&mut self, at: Place, mut actions: Actions, voters_before: Vec<Vec<u64>>) {
        let id = at.0;
        let told = std::mem::take(&mut actions.events);
        self.hear(id, told);
        if !actions.writes.is_empty() {
            self.issue_writes(at, actions.writes);
        }
        if !matches!(actions.stop, Some(Err(_))) {
            self.check_positions(at, &voters_before);
        }
        for outbound in actions.messages {
            if let Body::Raft(m) = &outbound.body {
                self.tell(|| {
                    format!(
                        "node {id} -> {}: {:?} term {} index {} log term {} entries {} commit {} reject {}",
                        outbound.to,
                        MessageType::from_i32(m.msg_type),
                        m.term,
                        m.index,
                        m.log_term,
                        m.entries.len(),
                        m.commit,
                        m.reject
                    )
                });
            }
            self.check_promise(at, &outbound);
            self.send(at, outbound);
        }
        for request in actions.machine {
            let Some(life) = self.life(at) else { break };
            life.machine.queue.push_back(request);
        }
        self.run_machine(at);
        for fetch in actions.fetches {
            let (low, high) = self.profile.sync;
            let delay = skewed(self.draws.disk(at.0), low, high);
            self.after(delay, Event::Fetched { at, fetch });
        }
        for send in actions.snapshot_sends {
            self.send_snapshot(at, send);
        }
        for peer in actions.cancel_sends {
            let send = self.life(at).and_then(|l| l.sending.get(&peer).copied());
            if let Some(send) = send {
                self.after(0, Event::SnapshotSent { at, peer, send, delivered: false });
            }
        }
        if let Some(meta) = actions.prune {
            let host = self.hosts.get_mut(&id).expect("a running host");
            host.disk.files.retain(|index, _| *index >= meta.index);
        }
        if let Some(peers) = actions.peers {
            self.tell(|| format!("node {id} peers: {peers:?}"));
            self.set_peers(at, peers);
        }
        if actions.hello_changed {
            if let Some(life) = self.life(at) {
                life.redial_due = true;
            }
        }
        for peer in actions.disconnect {
            self.hang_up(at, peer);
            if let Some(life) = self.life(at) {
                life.accepted.retain(|(from, _)| *from != peer);
            }
            self.break_streams(|from, to| from == peer && to == id, (0, 5 * MILLI));
            self.after(MILLI, Event::Dial { at, to: peer });
        }
        if actions.restored {
            self.tell(|| format!("node {id} has restored its state"));
            if let Some(life) = self.life(at) {
                life.restored = true;
            }
        }
        for completion in actions.completions {
            self.completed(at, completion);
        }
        if let Some(stop) = actions.stop {
            self.stopped(at, stop);
        }
    }

    /// What a node tells its program, before anything it does.
    fn hear(&mut self, id: u64, events: Vec<Told>) {
        for event in events {
            self.tell(|| format!("node {id}: {event:?}"));
            if matches!(&event, Told::RoleChanged { role: Role::Leader, .. }) {
                self.elected(id);
            }
            if let Told::MembersChanged { index, voters, learners, addresses } = &event {
                let addresses = addresses.iter().map(|(id, addr)| (*id, addr.clone())).collect();
                self.oracle.members_from(id, *index, (voters.clone(), learners.clone(), addresses));
            }
            if let Told::PeerRefused { reason, .. } = &event {
                assert!(!reason.contains("was dropped"), "VIOLATION: node {id} was sent what cannot be: {reason}");
            }
        }
    }

    fn stopped(&mut self, at: Place, stop: Result<(), Error>) {
        self.tell(|| format!("node {} stops: {stop:?}", at.0));
        let Some(host) = self.hosts.get_mut(&at.0) else { return };
        match &stop {
            Ok(()) => host.retired = true,
            Err(error) if error.code == ErrorCode::WrongDirectory && host.wiped => {}
            Err(error) if error.message.contains("injected") => {}
            Err(error) if error.code == ErrorCode::StateDiverged && host.lie.is_some() => {
                let first = host.lie.as_ref().and_then(|lie| lie.told);
                assert_eq!(error.index, first, "VIOLATION: the divergence of node {} is named wrongly (S17)", at.0);
                host.retired = true;
            }
            Err(error) => panic!("VIOLATION: node {} stops without a cause: {error}", at.0),
        }
        self.kill(at.0, false);
    }

    fn issue_writes(&mut self, at: Place, writes: Vec<LogWrite>) {
        for write in &writes {
            self.tell(|| {
                let entries = write.entries.as_ref().and_then(|e| {
                    Some((e.first()?.index, e.last()?.index, e.first()?.term, e.last()?.term))
                });
                let snapshot = write.snapshot.as_ref().map(|s| (s.index, s.term));
                format!(
                    "node {} writes {}: entries {entries:?} {:?} cluster {:?} snapshot {snapshot:?} reset {} compact {:?} identity {}",
                    at.0,
                    write.number,
                    write.hard_state.as_ref().map(|h| (h.term, h.vote, h.commit)),
                    write.cluster.as_ref().map(|c| c.index),
                    write.reset,
                    write.compact_to,
                    write.identity.is_some()
                )
            });
        }
        let now = self.now;
        let host = self.hosts.get_mut(&at.0).expect("a running host");
        let life = host.life.as_mut().expect("a running process");
        for write in &writes {
            if let Some(record) = &write.cluster {
                self.oracle.members_at(at.0, "the stored configuration", record.index, &record.cluster);
            }
            if let Some(meta) = &write.snapshot {
                self.oracle.members_at(at.0, "a snapshot", meta.index, &meta.cluster);
            }
            if write.reset {
                let meta = write.snapshot.as_ref().expect("a reset names its snapshot");
                self.oracle.snapshot_at(at.0, meta.index, meta.term);
                life.shadow = Shadow::new(meta.index, meta.term, meta.index);
            }
            if let Some(entries) = &write.entries {
                self.oracle.wrote(at.0, &mut life.shadow, entries);
            }
            if let Some(meta) = write.snapshot.as_ref().filter(|m| m.has_file) {
                assert!(
                    host.disk.files.contains_key(&meta.index),
                    "VIOLATION: node {} names snapshot {} in its log without the file (S6)",
                    at.0,
                    meta.index
                );
            }
        }
        if self.profile.sabotage == Some(Sabotage::WrittenTooEarly) {
            life.core.written(writes.last().map_or(0, |w| w.number));
        }
        host.disk.enqueue(writes, now);
        self.start_write(at);
    }

    /// Never more than one sync in flight; what is queued meanwhile is the next one.
    fn start_write(&mut self, at: Place) {
        let (low, high) = self.profile.sync;
        let delay = skewed(self.draws.disk(at.0), low, high);
        let now = self.now;
        let disk = &mut self.hosts.get_mut(&at.0).expect("a running host").disk;
        if disk.begin() {
            let slow = if now < disk.slow.1 { disk.slow.0 } else { 0 };
            self.after(delay + slow, Event::Synced(at));
        }
    }

    pub fn synced(&mut self, at: Place) {
        let now = self.now;
        let host = self.hosts.get_mut(&at.0).expect("a running host");
        if host.disk.hung_until > now {
            let until = host.disk.hung_until;
            return self.schedule(until, Event::Synced(at));
        }
        let Some(life) = host.life.as_mut() else { return };
        if host.disk.fails {
            // S10: the node stops for good; what was in flight may be on the disk or not.
            host.disk.fails = false;
            life.core.fail(Error::not_done(ErrorCode::Storage, "injected: the sync failed"));
            return self.wake(at);
        }
        if host.disk.is_full(now) {
            if host.disk.full.1 {
                life.core.fail(Error::not_done(ErrorCode::DiskFull, "injected: there is no room"));
                return self.wake(at);
            }
            return self.after(20 * MILLI, Event::Synced(at));
        }
        let number = host.disk.sync();
        if self.told {
            println!("{:>12.3} node {} has written up to {number}", (now - 1_000_000) as f64 / 1000.0, at.0);
        }
        let upto = host.disk.synced.last_index();
        self.oracle.settles(at.0, &mut life.shadow, upto);
        life.core.written(number);
        self.wake(at);
        self.start_write(at);
    }

    fn run_machine(&mut self, at: Place) {
        let Some(life) = self.life(at).filter(|l| !l.machine.busy && !l.machine.queue.is_empty()) else { return };
        life.machine.busy = true;
        let restores = matches!(life.machine.queue.front(), Some(MachineRequest::Restore { .. }));
        let (low, high) = if restores { self.profile.restore } else { self.profile.machine };
        let delay = skewed(self.draws.machine(at.0), low, high);
        let slow = self.hosts.get(&at.0).map_or((0, 0), |h| h.slow_machine);
        let slow = if self.now < slow.1 { slow.0 } else { 0 };
        self.after(delay + slow, Event::Machine(at));
    }

    pub fn machine_done(&mut self, at: Place) {
        let odds = self.profile.snapshot_fails;
        let fails = odds > 0.0 && self.draws.machine(at.0).chance(odds);
        let id = at.0;
        let host = self.hosts.get_mut(&id).expect("a running host");
        let Some(life) = host.life.as_mut() else { return };
        life.machine.busy = false;
        let Some(request) = life.machine.queue.pop_front() else { return };
        if std::mem::take(&mut host.machine_fails) {
            let index = life.machine.applied + 1;
            let error = Error::unknown(ErrorCode::MachineFailed, "injected: the machine gives up");
            life.core.machine_answer(MachineAnswer::Failed { id: request.id(), index, error });
            return self.wake(at);
        }
        let tells = self.profile.tells;
        let mut told = Vec::new();
        match request {
            MachineRequest::Apply(batch) => {
                let mut outcomes = Vec::new();
                for entry in &batch.entries {
                    let command = machine::decode(&batch.data[entry.offset..entry.offset + entry.len]);
                    assert!(
                        entry.index > life.machine.applied,
                        "VIOLATION: node {id} applies {} after {}",
                        entry.index,
                        life.machine.applied
                    );
                    let position = life.machine.apply(entry.index, command);
                    let lie = host.lie.as_mut().is_some_and(|lie| lie.strikes(entry.index));
                    self.oracle.applied(id, entry.index, command, life.machine.hash, entry.time_us, position);
                    if machine::raises(command) != (lie && host.lie.as_ref().is_some_and(|lie| lie.raises)) {
                        outcomes.push((entry.index, Err(format!("{position}"))));
                    } else if tells && entry.token != 0 {
                        told.push((entry.token, entry.index, entry.term, position));
                    } else if entry.wanted {
                        let result = if lie { !position } else { position };
                        outcomes.push((entry.index, Ok(result.to_le_bytes().to_vec())));
                    }
                }
                life.machine.reach(batch.last_index);
                let answer = match tells {
                    true => MachineAnswer::AppliedAndTold { id: batch.id, outcomes },
                    false => MachineAnswer::Applied { id: batch.id, outcomes },
                };
                life.core.machine_answer(answer);
            }
            MachineRequest::Snapshot { id: request, index, .. } => {
                assert!(life.machine.applied <= index, "VIOLATION: node {id} takes a snapshot of its past");
                if fails {
                    let result = Err("injected: no snapshot today".into());
                    life.core.machine_answer(MachineAnswer::Snapshot { id: request, result });
                } else {
                    // Entries of the library's own may lie between the last command and this index.
                    life.machine.applied = index;
                    let bytes = life.machine.snapshot();
                    life.core.machine_answer(MachineAnswer::Snapshot { id: request, result: Ok(()) });
                    let (low, high) = self.profile.snapshot_file;
                    let delay = skewed(self.draws.disk(at.0), low, high);
                    self.after(delay, Event::SnapshotFile { at, id: request, bytes });
                }
            }
            MachineRequest::Restore { id: request, index, size, .. } => {
                let file = host.disk.files.get(&index);
                let Some(file) = file.filter(|f| f.len() as u64 == size) else {
                    panic!("VIOLATION: node {id} is to restore snapshot {index} and has no file of it");
                };
                assert!(life.machine.applied <= index, "VIOLATION: node {id} goes back to the snapshot {index} (S7)");
                life.machine.restore(file);
                assert_eq!(life.machine.applied, index, "VIOLATION: node {id} restores another snapshot");
                let hash = life.machine.hash;
                life.core.machine_answer(MachineAnswer::Restored { id: request });
                self.oracle.restored(id, index, hash);
            }
        }
        for (token, index, term, position) in told {
            // One that ended before (its deadline came) has had its answer.
            if self.clients.is_pending(token) {
                let data = position.to_le_bytes().to_vec();
                self.completed(at, Completion { token, result: Ok(Reply::Applied { index, term, data }) });
                self.clients.told(token);
            }
        }
        self.wake(at);
        self.run_machine(at);
    }

    pub fn snapshot_file_done(&mut self, at: Place, id: u64, bytes: Vec<u8>) {
        let odds = self.profile.snapshot_fails;
        let fails = odds > 0.0 && self.draws.machine(at.0).chance(odds);
        let host = self.hosts.get_mut(&at.0).expect("a running host");
        let Some(life) = host.life.as_mut() else { return };
        let Some((index, _, _)) = life.core.snapshot_header(id) else { return };
        if fails {
            life.core.snapshot_failed(id, "injected: the file cannot be written".into());
        } else {
            let (size, crc) = (bytes.len() as u64, crc32c::crc32c(&bytes));
            host.disk.files.insert(index, Arc::new(bytes));
            life.core.snapshot_made(id, size, crc);
        }
        self.wake(at);
    }

    pub fn fetched(&mut self, at: Place, fetch: Fetch) {
        let host = self.hosts.get_mut(&at.0).expect("a running host");
        let entries = host.disk.synced.read(fetch.low, fetch.high, fetch.max_bytes);
        let flipped = host.disk.flipped;
        if let Some(life) = host.life.as_mut() {
            if flipped {
                life.core.fail(Error::not_done(ErrorCode::CorruptData, "injected: a bit has turned"));
            } else {
                life.core.fetched(fetch.id, entries);
            }
        }
        self.wake(at);
    }

    /// `snapshot <= applied <= handed <= commit <= last`, nothing goes back, and all that is committed is the same everywhere.
    fn check_positions(&mut self, at: Place, voters_before: &[Vec<u64>]) {
        let host = self.hosts.get_mut(&at.0).expect("a running host");
        let Some(life) = host.life.as_mut() else { return };
        let p = life.core.positions();
        assert!(
            p.applied <= p.handed && p.handed <= p.commit && p.commit <= p.last,
            "VIOLATION: node {}: applied {} <= handed {} <= commit {} <= last {}",
            at.0,
            p.applied,
            p.handed,
            p.commit,
            p.last
        );
        let old = std::mem::replace(&mut life.positions, (p.term, p.commit, p.applied, p.snapshot));
        assert!(
            old.0 <= p.term && old.1 <= p.commit && old.2 <= p.applied && old.3 <= p.snapshot,
            "VIOLATION: node {} goes back: (term, commit, applied, snapshot) {old:?} -> {p:?}",
            at.0
        );
        self.trace = machine::mix(self.trace, p.term ^ p.commit.rotate_left(16) ^ p.applied.rotate_left(32) ^ self.now);
        let fresh = self.oracle.commits(at.0, &mut life.shadow, p.commit, p.term);
        let voters_after = voters_of(&life.core);
        for (index, term) in fresh {
            let durable = |voters: &[Vec<u64>]| {
                voters.iter().all(|half| {
                    let have = half
                        .iter()
                        .filter(|id| self.hosts.get(id).is_some_and(|h| h.wiped || h.disk.synced.covers(index, term)));
                    half.is_empty() || have.count() > half.len() / 2
                })
            };
            assert!(
                durable(voters_before) || durable(&voters_after),
                "VIOLATION: node {} commits {index} of term {term}, which no majority has on its disks",
                at.0
            );
            let voters = if durable(voters_before) { voters_before } else { &voters_after };
            if let Some(other) = self.could_lead_without(index, term, voters) {
                panic!(
                    "VIOLATION: node {} commits {index} of term {term}, and node {other} could be elected without it",
                    at.0
                );
            }
        }
    }

    /// A voter whose disk does not hold this entry, and for whom a majority would vote by what is on their disks.
    fn could_lead_without(&self, index: u64, term: u64, voters: &[Vec<u64>]) -> Option<u64> {
        let newest = |id: &u64| {
            let disk = &self.hosts.get(id)?.disk.synced;
            Some((disk.term(disk.last_index())?, disk.last_index()))
        };
        voters.iter().flatten().copied().find(|id| {
            let Some(host) = self.hosts.get(id).filter(|h| !h.wiped && !h.disk.synced.covers(index, term)) else {
                return false;
            };
            let own = newest(id);
            host.life.is_some()
                && voters.iter().filter(|half| !half.is_empty()).all(|half| {
                    // Who was wiped votes for nobody (S11).
                    let may = |v: &&u64| self.hosts.get(v).is_some_and(|h| !h.wiped);
                    let votes = half.iter().filter(may).filter(|v| newest(v) <= own);
                    votes.count() > half.len() / 2
                })
        })
    }

    /// S11: a directory that was wiped takes part in nothing.
    fn check_wiped(&self, at: Place) {
        let host = &self.hosts[&at.0];
        if let Some(life) = host.life.as_ref().filter(|_| host.wiped) {
            let role = life.core.status().role;
            assert!(
                !matches!(role, Role::Candidate | Role::Leader),
                "VIOLATION: node {} was wiped and is a {role:?} (S11)",
                at.0
            );
        }
    }

    /// Nothing leaves that a crash could make untrue (S1, S2).
    fn check_promise(&mut self, at: Place, outbound: &Outbound) {
        let Body::Raft(message) = &outbound.body else { return };
        let Some(kind) = MessageType::from_i32(message.msg_type) else { return };
        let host = self.hosts.get(&at.0).expect("a running host");
        let disk = &host.disk.synced;
        let hard_state = &disk.hard_state;
        let asks_first = matches!(kind, MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse);
        if !asks_first && message.term != 0 {
            assert!(
                hard_state.term >= message.term,
                "VIOLATION: node {} sends {kind:?} of term {} before that term is on its disk (S1)",
                at.0,
                message.term
            );
        }
        match kind {
            MessageType::MsgAppendResponse if !message.reject => {
                assert!(
                    // An acceptance of an earlier term stays true: what a later leader took away again was never committed.
                    disk.last_index() >= message.index || hard_state.term > message.term,
                    "VIOLATION: node {} acknowledges {} and has {} on its disk (S1)",
                    at.0,
                    message.index,
                    disk.last_index()
                );
            }
            MessageType::MsgRequestVoteResponse if !message.reject => {
                self.check_vote(at, message, message.to);
            }
            MessageType::MsgRequestVote => self.check_vote(at, message, at.0),
            MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                let host = self.hosts.get_mut(&at.0).expect("a running host");
                let Some(life) = host.life.as_mut() else { return };
                self.oracle.leads(at.0, at.1, message.term, &life.shadow);
                self.oracle.settles(at.0, &mut life.shadow, message.index + message.entries.len() as u64);
            }
            _ => {}
        }
    }

    fn check_vote(&mut self, at: Place, message: &Message, candidate: u64) {
        let hard_state = &self.hosts[&at.0].disk.synced.hard_state;
        assert!(
            hard_state.term > message.term || (hard_state.term == message.term && hard_state.vote == candidate),
            "VIOLATION: node {} votes for {candidate} in term {} and its disk says {hard_state:?} (S1)",
            at.0,
            message.term
        );
        let directory = self.hosts[&at.0].disk.synced.identity.directory.0;
        self.oracle.votes(at.0, directory, message.term, candidate);
    }
}

/// The halves of the configuration, each of which must agree.
fn voters_of(core: &Core) -> Vec<Vec<u64>> {
    let cluster = core.cluster();
    vec![cluster.voters.clone(), cluster.voters_outgoing.clone()]
}

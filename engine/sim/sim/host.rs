//! One machine and the process on it: carries out what the core asks for, as the real shell does, and shows the oracle all of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::MessageType;
use raftify_engine::cluster::ClusterState;
use raftify_engine::core::{Actions, Body, Core, CoreOptions, Outbound};
use raftify_engine::machine::MachineAnswer;
use raftify_engine::request::Ticket;
use raftify_engine::status::{Event as Told, Role};
use raftify_engine::{Error, ErrorCode};

use super::checks::voters_of;
use super::disk::Disk;
use super::draws::skewed;
use super::files;
use super::lie::Lie;
use super::machine::Machine;
use super::network::Stream;
use super::oracle::Shadow;
use super::world::{Event, Place, World, EPOCH, MILLI};

pub struct Host {
    pub addr: String,
    /// What it was born to; without members: to be joined.
    pub founding: ClusterState,
    pub disk: Disk,
    /// What a durable machine has on its own disk while no process runs.
    pub kept: Option<Machine>,
    pub life: Option<Life>,
    pub paused_until: u64,
    /// It may answer nothing before this moment because it was paused.
    pub late_until: u64,
    /// Ticks take tick * 1000 / rate.
    pub rate: u64,
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
    deadline_due: bool,
    redial_due: bool,
    /// Term, commit, applied and snapshot, as they were last seen.
    pub positions: (u64, u64, u64, u64),
    pub restored: bool,
    /// Answers of the machine on their way to the core, with the requests whose results its side has told.
    pub inbox: VecDeque<(MachineAnswer, Vec<u64>)>,
    pub inbox_until: u64,
    /// The core has heard that these were told: with the next poll they have ended.
    pub told: Vec<u64>,
}

impl Host {
    pub fn new(_id: u64, addr: String, founding: ClusterState, disk: Disk, rate: u64, wall: u64) -> Self {
        Host {
            addr,
            founding,
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
        let Some((log, entries)) = host.disk.open(self.profile.sabotage, self.profile.spares) else {
            assert!(host.lost, "VIOLATION: node {id} does not start, and a snapshot could stand in (S6)");
            return self.tell(|| format!("node {id} does not start: its snapshot is corrupt"));
        };
        let named = log.snapshot.as_ref();
        let file = named.and_then(|meta| host.disk.files.get(meta).map(|file| files::table(meta, file)));
        let sessions = file.unwrap_or_default().to_vec();
        let image = &host.disk.synced;
        let mut shadow = Shadow::new(log.first_index - 1, log.prev_term, log.first_index - 1);
        let kept = image.read(log.first_index, u64::MAX, u64::MAX);
        self.oracle.wrote(id, &mut shadow, &kept);
        self.oracle.settles(id, &mut shadow, u64::MAX);
        let options = CoreOptions {
            config,
            node_id: id,
            addr: host.addr.clone(),
            initial: host.founding.members().iter().map(|m| (m.id, m.addr.clone())).collect(),
            start,
            seed,
            log,
            entries,
            sessions,
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
            deadline_due: false,
            redial_due: false,
            positions: (0, 0, 0, 0),
            restored: false,
            inbox: VecDeque::new(),
            inbox_until: 0,
            told: Vec::new(),
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
        life.core.begin_turn(now, wall);
        life.core.tick();
        self.check_hung(at);
        self.check_wiped(at);
        self.wake(at);
        let next = self.profile.tick * 1000 / rate;
        self.after(next, Event::Tick(at));
    }

    pub fn deadline(&mut self, at: Place) {
        if let Some(life) = self.life(at) {
            life.deadline_due = false;
            self.poll(at);
        }
    }

    pub fn poll(&mut self, at: Place) {
        let (now, wall) = self.clock(at.0);
        let (tick, rate) = (self.profile.tick, self.hosts[&at.0].rate);
        let Some(life) = self.life(at) else { return };
        life.poll_due = false;
        life.core.begin_turn(now, wall);
        life.core.expire();
        let voters = voters_of(&life.core);
        let actions = life.core.poll();
        let told = std::mem::take(&mut life.told);
        let more = life.core.has_more() || life.core.owes_entries();
        // What is due before the next tick.
        let due = life.core.next_deadline().map(|due| due.saturating_sub(now) * 1000 / rate);
        let due = due.filter(|after| (1..tick).contains(after) && !std::mem::replace(&mut life.deadline_due, true));
        self.carry_out(at, actions, voters);
        self.clients.told_ended(&told);
        if more {
            self.wake(at);
        }
        if let Some(after) = due {
            self.after(after, Event::Deadline(at));
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
            let outbound = Outbound { body: outbound.body.whole(), ..outbound };
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
            let (spares, sabotage) = (self.profile.spares, self.profile.sabotage);
            let host = self.hosts.get_mut(&id).expect("a running host");
            let first_index = host.life.as_ref().map_or(0, |l| l.core.first_index());
            host.disk.files.prune(&meta, first_index, spares, sabotage);
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
                // What was meant for the directory that this node lost may come late.
                let lost = self.hosts.get(&id).is_some_and(|h| h.wiped);
                assert!(
                    lost || !reason.contains("was dropped"),
                    "VIOLATION: node {id} was sent what cannot be: {reason}"
                );
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
        let broke_down = matches!(&stop, Err(error) if error.message.contains("injected"));
        self.kill(at.0, false);
        if broke_down && !self.turmoil {
            // It had given up before the faults ended, and was heard only now.
            self.after(0, Event::Restart(at.0));
        }
    }
}

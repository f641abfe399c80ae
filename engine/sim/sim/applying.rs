//! What the core asks of the state machine on its node, one request after the other, and how it is answered. Nothing here waits (S14).

use std::sync::Arc;

use raftify_engine::core::SnapshotFile;
use raftify_engine::log::SnapshotMeta;
use raftify_engine::machine::{MachineAnswer, MachineRequest};
use raftify_engine::request::{Completion, Reply};
use raftify_engine::{Error, ErrorCode};

use super::disk::Sabotage;
use super::draws::skewed;
use super::machine;
use super::world::{Event, Place, World};

impl World {
    pub(super) fn run_machine(&mut self, at: Place) {
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
        let Some(request) = life.machine.queue.pop_front() else { return };
        let gives_up = std::mem::take(&mut host.machine_fails);
        // Nothing comes after that.
        life.machine.busy = gives_up;
        let tells = self.profile.tells;
        let mut told = Vec::new();
        let request_id = request.id();
        let mut answer = None;
        match request {
            MachineRequest::Apply(batch) => {
                // One that gives up does so in the middle of its batch.
                let some = self.draws.machine(id).range(0, batch.entries.len() as u64) as usize;
                let upto = if gives_up { some } else { batch.entries.len() };
                let mut outcomes = Vec::new();
                for entry in &batch.entries[..upto] {
                    let command = machine::decode(batch.command(entry));
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
                if !gives_up {
                    life.machine.reach(batch.last_index);
                }
                answer = Some(match tells {
                    true => MachineAnswer::AppliedAndTold { id: batch.id, outcomes },
                    false => MachineAnswer::Applied { id: batch.id, outcomes },
                });
            }
            _ if gives_up => {}
            MachineRequest::Snapshot { id: request, index, .. } => {
                assert!(life.machine.applied <= index, "VIOLATION: node {id} takes a snapshot of its past");
                if fails {
                    let result = Err("injected: no snapshot today".into());
                    answer = Some(MachineAnswer::Snapshot { id: request, result });
                } else {
                    // Entries of the library's own may lie between the last command and this index.
                    life.machine.applied = index;
                    let bytes = life.machine.snapshot();
                    answer = Some(MachineAnswer::Snapshot { id: request, result: Ok(()) });
                    let (low, high) = self.profile.snapshot_file;
                    let delay = skewed(self.draws.disk(at.0), low, high);
                    self.after(delay, Event::SnapshotFile { at, id: request, bytes });
                }
            }
            MachineRequest::Restore { id: request, index, size, .. } => {
                let meta = life.core.snapshot_to_restore(request);
                let file = meta.and_then(|meta| host.disk.files.get(&meta));
                let unchecked = self.profile.sabotage == Some(Sabotage::RestoresUnchecked);
                let Some(file) = file.filter(|f| f.len() as u64 >= size || unchecked) else {
                    panic!("VIOLATION: node {id} is to restore snapshot {index} and has no file of it");
                };
                let file = &file[..file.len().min(size as usize)];
                assert!(life.machine.applied <= index, "VIOLATION: node {id} goes back to the snapshot {index} (S7)");
                life.machine.restore(file);
                assert!(life.machine.applied == index, "VIOLATION: node {id} restores another snapshot");
                let hash = life.machine.hash;
                answer = Some(MachineAnswer::Restored { id: request });
                self.oracle.restored(id, index, hash);
            }
        }
        if gives_up {
            let index = self.life(at).map_or(0, |l| l.machine.applied) + 1;
            let error = Error::unknown(ErrorCode::MachineFailed, "injected: the machine gives up");
            answer = Some(MachineAnswer::Failed { id: request_id, index, error });
        }
        let mut tokens = Vec::new();
        for (token, index, term, position) in told {
            // One that ended before (its deadline came) has had its answer.
            if self.clients.is_pending(token) {
                let data = position.to_le_bytes().to_vec();
                self.completed(at, Completion { token, result: Ok(Reply::Applied { index, term, data }) });
                self.clients.told(token, at);
                self.count("results told by the machine's side");
            }
            tokens.push(token);
        }
        if let Some(answer) = answer {
            self.answer(at, answer, tokens);
        }
        self.run_machine(at);
    }

    /// Puts it into the node's inbox, where it waits its turn: what callers were told by then the core does not know.
    fn answer(&mut self, at: Place, answer: MachineAnswer, told: Vec<u64>) {
        let (low, high) = self.profile.answer;
        let delay = skewed(self.draws.machine(at.0), low, high);
        let now = self.now;
        let Some(life) = self.life(at) else { return };
        life.inbox.push_back((answer, told));
        life.inbox_until = life.inbox_until.max(now + delay);
        let when = life.inbox_until;
        self.schedule(when, Event::Answered(at));
    }

    pub fn answered(&mut self, at: Place) {
        let Some(life) = self.life(at) else { return };
        let Some((answer, told)) = life.inbox.pop_front() else { return };
        life.core.machine_answer(answer);
        life.told.extend(told);
        self.wake(at);
    }

    pub fn snapshot_file_done(&mut self, at: Place, id: u64, bytes: Vec<u8>) {
        let odds = self.profile.snapshot_fails;
        let fails = odds > 0.0 && self.draws.machine(at.0).chance(odds);
        let host = self.hosts.get_mut(&at.0).expect("a running host");
        let Some(life) = host.life.as_mut() else { return };
        let Some((index, term, cluster)) = life.core.snapshot_header(id) else { return };
        if fails {
            life.core.snapshot_failed(id, "injected: the file cannot be written".into());
        } else {
            let table = life.core.snapshot_sessions(id).expect("it is being made");
            let sessions = table.len() as u64;
            let bytes = [bytes, table].concat();
            let (size, crc) = (bytes.len() as u64, crc32c::crc32c(&bytes));
            let meta = SnapshotMeta { index, term, cluster, size, sessions, crc, has_file: true, outcomes: None };
            host.disk.files.insert(meta, Arc::new(bytes));
            life.core.snapshot_made(id, SnapshotFile { size, sessions, crc });
        }
        self.wake(at);
    }
}

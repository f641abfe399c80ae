//! What a node hands to its disk and reads back from it: one sync in flight, what is queued meanwhile is the next one.

use raftify_engine::core::Fetch;
use raftify_engine::log::LogWrite;
use raftify_engine::{Error, ErrorCode};

use super::disk::Sabotage;
use super::draws::skewed;
use super::oracle::Shadow;
use super::world::{Event, Place, World, MILLI};

impl World {
    pub(super) fn issue_writes(&mut self, at: Place, writes: Vec<LogWrite>) {
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
                    host.disk.files.is_whole(meta),
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
}

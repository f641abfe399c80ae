//! The log alone, both engines in one run: how many writes a second, what they cost the disk, how long a log takes to open.
//!
//! `cargo run --release -p raftify-engine --example bench_log -- [--secs N] [--dir DIR]`
//!
//! A line for each engine and batch: writes/s (one write is one batch with one sync), entries/s, p50 and p99 of a write, and of the
//! block device under DIR, when it is alone on it: KiB written and flushes a write. A snapshot lets the log be compacted now
//! and then, so that segments are recycled. At the end: the bytes on disk and the time to open 256 MiB of entries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use raft::eraftpb::HardState;
use raftify_engine::entry::Entry;
use raftify_engine::log::{
    open_or_create, ClusterRecord, Identity, LogOptions, LogWrite, NewLog, OpenedLog, SnapshotMeta,
};
use raftify_engine::{ClusterState, LogEngine, Uid};

/// Bytes of entries between two compactions, and entries kept.
const SNAPSHOT_BYTES: u64 = 64 << 20;
const TRAILING: u64 = 1000;

struct Log {
    log: OpenedLog,
    last: u64,
    since: u64,
    cluster: ClusterState,
}

fn open(dir: &Path, engine: LogEngine) -> Log {
    let cluster = ClusterState::founding(&BTreeMap::from([1, 2, 3].map(|id| (id, format!("127.0.0.1:{id}")))));
    let meta = SnapshotMeta::without_file(1, 1, cluster.clone());
    let new = || {
        Ok(NewLog {
            identity: Identity {
                node_id: 1,
                directory: Uid(7),
                digest: 1,
                cluster_id: String::new(),
                incarnation: None,
            },
            cluster: ClusterRecord { index: 1, cluster: cluster.clone() },
            hard_state: HardState { term: 1, vote: 1, commit: 1 },
            snapshot: Some(meta),
        })
    };
    let log = open_or_create(dir, &LogOptions { engine, ..LogOptions::of(1) }, new).unwrap();
    Log { last: log.state.last_index, log, since: 0, cluster }
}

impl Log {
    fn write(&mut self, count: u64, size: usize, compacting: bool) {
        let entry = |index| Entry {
            index,
            term: 1,
            data: vec![index as u8; size].into(),
            context: vec![3; 25].into(),
            ..Entry::default()
        };
        let entries: Vec<Entry> = (self.last + 1..=self.last + count).map(entry).collect();
        let hard_state = HardState { term: 1, vote: 1, commit: self.last };
        let mut write = LogWrite {
            entries: Some(Arc::new(entries)),
            hard_state: Some(hard_state),
            must_sync: true,
            ..LogWrite::default()
        };
        self.since += count * size as u64;
        if compacting && self.since > SNAPSHOT_BYTES && self.last > TRAILING {
            self.since = 0;
            let cluster = self.cluster.clone();
            let meta = SnapshotMeta {
                index: self.last,
                term: 1,
                cluster,
                size: 0,
                sessions: 0,
                crc: 0,
                has_file: true,
                outcomes: None,
            };
            write.snapshot = Some(Arc::new(meta));
            write.compact_to = Some(self.last - TRAILING);
        }
        self.log.writer.write(&[write]).unwrap();
        self.last += count;
    }
}

/// KiB written to the block device of `dir`, and flushes; nothing where the system does not say.
fn device(dir: &Path) -> Option<(f64, f64)> {
    let device = std::fs::metadata(dir).ok()?.dev();
    let (major, minor) = ((device >> 8) & 0xFFF, device & 0xFF);
    let stats = std::fs::read_to_string("/proc/diskstats").ok()?;
    let line = stats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let fields = line.into_iter().find(|f| f[0] == major.to_string() && f[1] == minor.to_string())?;
    Some((fields[9].parse::<f64>().ok()? / 2.0, fields.get(18)?.parse().ok()?))
}

fn on_disk(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir.join("log")).unwrap();
    files.map(|f| f.unwrap().metadata().unwrap().blocks() * 512).sum()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut secs, mut parent) = (3u64, PathBuf::from("."));
    while let Some(name) = arguments.next() {
        let value = arguments.next().expect("a value");
        match name.as_str() {
            "--secs" => secs = value.parse().expect("whole seconds"),
            "--dir" => parent = value.into(),
            _ => panic!("{name}: use --secs N, --dir DIR"),
        }
    }
    let parent = parent.join(format!("bench_log-{}", std::process::id()));
    let engines = [("lmdb", LogEngine::Lmdb), ("segment", LogEngine::Segment)];
    println!("engine    batch         writes/s  entries/s   p50 ms   p99 ms  KiB/write  flushes/write  MiB on disk");
    for (count, size) in [(1, 128), (16, 128), (256, 128), (1, 16 << 10), (16, 16 << 10)] {
        for (name, engine) in engines {
            let dir = parent.join(format!("{name}-{count}-{size}"));
            std::fs::create_dir_all(&dir).unwrap();
            let mut log = open(&dir, engine);
            let before = device(&dir);
            let (start, mut times) = (Instant::now(), Vec::new());
            while start.elapsed() < Duration::from_secs(secs) {
                let begin = Instant::now();
                log.write(count, size, true);
                times.push(begin.elapsed());
            }
            let taken = start.elapsed().as_secs_f64();
            let writes = times.len() as f64;
            let cost = before.zip(device(&dir)).map(|(b, a)| ((a.0 - b.0) / writes, (a.1 - b.1) / writes));
            let (kib, flushes) = cost.map_or(("?".into(), "?".into()), |(k, f)| (format!("{k:.1}"), format!("{f:.2}")));
            times.sort();
            let at = |share: f64| times[((writes * share) as usize).min(times.len() - 1)].as_secs_f64() * 1e3;
            println!(
                "{name:<9} {count:>3} x {size:<6} {:>9.0} {:>10.0} {:>8.3} {:>8.3} {kib:>10} {flushes:>14} {:>12.1}",
                writes / taken,
                writes * count as f64 / taken,
                at(0.5),
                at(0.99),
                on_disk(&dir) as f64 / f64::from(1 << 20),
            );
            drop(log);
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
    for (name, engine) in engines {
        let dir = parent.join(name);
        let mut log = open(&dir, engine);
        for _ in 0..(256u64 << 20) / (2048 * 128) {
            log.write(2048, 128, false);
        }
        let last = log.last;
        let _ = std::fs::remove_file(dir.join("log/clean"));
        drop(log);
        let _ = std::fs::remove_file(dir.join("log/clean"));
        let start = Instant::now();
        let log = open(&dir, engine);
        assert_eq!(log.last, last);
        println!(
            "{name:<9} {} entries of 128 B, not stopped in order: open in {:.3} s",
            last - 1,
            start.elapsed().as_secs_f64()
        );
        drop(log);
        std::fs::remove_dir_all(&dir).unwrap();
    }
    let _ = std::fs::remove_dir_all(&parent);
}

//! How long the syncs of logs take at the moment: the one thing that says how busy the disk is.
//!
//! A write past the page cache does not: below a virtual machine, or a controller with a cache, it is done at the speed of memory, and the
//! next sync pays for it (measured: pieces of .3 ms each, and syncs of 20 ms instead of .2).
//!
//! One value for the process: its nodes mostly share a disk, and nothing but the pace of background work depends on it.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What is older says nothing of now.
const RECENT: Duration = Duration::from_secs(1);

/// Microseconds that the last one took, and when that was, since `ORIGIN`. Written one after the other: a reader between the two is off
/// by one sync.
static TOOK: AtomicU64 = AtomicU64::new(0);
static AT: AtomicU64 = AtomicU64::new(0);
static ORIGIN: OnceLock<Instant> = OnceLock::new();

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn since_origin(now: Instant) -> u64 {
    micros(now.saturating_duration_since(*ORIGIN.get_or_init(Instant::now)))
}

/// `File::sync_data` of a log, which is remembered.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    let begun = Instant::now();
    let synced = file.sync_data();
    TOOK.store(micros(begun.elapsed()), Ordering::Relaxed);
    AT.store(since_origin(Instant::now()), Ordering::Relaxed);
    synced
}

/// What the newest one took; nothing if there was none lately.
pub(crate) fn newest() -> Duration {
    let age = since_origin(Instant::now()).saturating_sub(AT.load(Ordering::Relaxed));
    if age > micros(RECENT) {
        return Duration::ZERO;
    }
    Duration::from_micros(TOOK.load(Ordering::Relaxed))
}

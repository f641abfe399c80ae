//! Large files and the one disk they share with the log's syncs.
//!
//! Written past the page cache, where system and file system can: filling pages takes the processor from those who answer (measured: 3 ms
//! a MiB of fresh pages), and one sync of all of them the disk from the log's syncs (20 ms and more). Written so, a file reaches the disk
//! piece by piece, with rests between. Read likewise by what is asked for: megabytes read ahead at once hold up a sync for 10 ms.
//!
//! Lives here: how they are written and read. May not live here: what. Promises nothing: the sync after it does.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::log_syncs;

/// What memory and places in files are made of here: what page caches and direct writes want, at most, on the systems there are.
pub(crate) const PAGE: usize = 4096;
/// What is written at once.
pub(crate) const PIECE: usize = 256 << 10;
/// Longest rest where no log waits: on a slow disk the pieces are far enough apart as it is.
const LONGEST_ALONE: Duration = Duration::from_millis(1);
/// Longest rest ever. 256 KiB so often are 25 MB/s: a snapshot of many gigabytes has to get done, too.
const LONGEST_REST: Duration = Duration::from_millis(10);

/// Memory of `PIECE` bytes that begins where a direct write may: zeros at first.
#[derive(Debug)]
pub(crate) struct Piece {
    room: Vec<u8>,
    start: usize,
}

impl Piece {
    pub(crate) fn new() -> Self {
        let room = vec![0; PIECE.saturating_add(PAGE)];
        let start = room.as_ptr().align_offset(PAGE).min(PAGE);
        Piece { room, start }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.room.get(self.start..self.start.saturating_add(PIECE)).unwrap_or_default()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.room.get_mut(self.start..self.start.saturating_add(PIECE)).unwrap_or_default()
    }
}

/// How eagerly a file is written. It only ever becomes more urgent.
#[derive(Debug, Default)]
pub(crate) struct Pace(AtomicU8);

/// Nobody waits: with rests between the pieces.
const AT_LEISURE: u8 = 0;
/// Somebody waits for all of it.
const HURRIED: u8 = 1;
/// Somebody waits, and what can be left out of it is left out.
const CUT_SHORT: u8 = 2;

impl Pace {
    /// Somebody waits for it from the beginning.
    pub(crate) fn hurried() -> Self {
        Pace(AtomicU8::new(HURRIED))
    }

    /// Only what has to be is done from the beginning.
    pub(crate) fn least() -> Self {
        Pace(AtomicU8::new(CUT_SHORT))
    }

    /// Somebody waits for it now.
    pub(crate) fn hurry(&self) {
        self.0.fetch_max(HURRIED, Ordering::Relaxed);
    }

    /// Somebody waits for it now, and needs no more of it than there has to be.
    pub(crate) fn cut_short(&self) {
        self.0.fetch_max(CUT_SHORT, Ordering::Relaxed);
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.0.load(Ordering::Relaxed) != AT_LEISURE
    }

    pub(crate) fn is_cut_short(&self) -> bool {
        self.0.load(Ordering::Relaxed) == CUT_SHORT
    }

    /// After a piece that took so long. Twice that belongs to the others, on a fast disk; and twice what a log's sync takes, if that is
    /// more: the less the disk can do besides, the less is asked of it.
    pub(crate) fn rest(&self, took: Duration) {
        self.pause(rest_after(took, log_syncs::newest()));
    }

    /// So long, unless somebody waits.
    pub(crate) fn pause(&self, span: Duration) {
        if !self.is_hurried() {
            std::thread::sleep(span);
        }
    }
}

fn rest_after(took: Duration, sync: Duration) -> Duration {
    took.saturating_mul(2).min(LONGEST_ALONE).max(sync.saturating_mul(2).min(LONGEST_REST))
}

/// Has the file system set aside `len` bytes for a file that is empty, which read as zeros then. `false`: not here; what else may be wrong
/// with the file shows when it is written. An error: there is no room for them.
pub(crate) fn allocate(file: &File, len: u64) -> std::io::Result<bool> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::fs::{fallocate, FallocateFlags};
        use rustix::io::{retry_on_intr, Errno};
        match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, len)) {
            Ok(()) => Ok(true),
            Err(full @ (Errno::NOSPC | Errno::DQUOT)) => Err(full.into()),
            Err(_) => Ok(false),
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = (file, len);
        Ok(false)
    }
}

/// A file that is written from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    /// The same file, past the page cache; `None`: not here.
    past_cache: Option<File>,
}

impl Direct {
    /// `file` is the one at `path`.
    pub(crate) fn new(file: File, path: &Path) -> Self {
        Direct { file, past_cache: open_past_cache(path) }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Writes one piece into the page cache alone: for somebody who cannot wait for the disk. See [`write_back`].
    pub(crate) fn write_to_cache(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// Writes one piece, whole or in part, and rests. Past the page cache if memory, place and length allow it.
    pub(crate) fn write(&mut self, bytes: &[u8], at: u64, pace: &Pace) -> std::io::Result<()> {
        let begun = Instant::now();
        let fits = bytes.len().is_multiple_of(PAGE) && at.is_multiple_of(PAGE as u64);
        let written = self.past_cache.as_ref().filter(|_| fits).map(|file| file.write_all_at(bytes, at));
        match written {
            Some(Ok(())) => {}
            // Some file systems open a file so, and then do not write to it.
            Some(Err(e)) if e.kind() == std::io::ErrorKind::InvalidInput => {
                self.past_cache = None;
                self.file.write_all_at(bytes, at)?;
            }
            Some(Err(e)) => return Err(e),
            None => self.file.write_all_at(bytes, at)?,
        }
        pace.rest(begun.elapsed());
        Ok(())
    }
}

/// What lies in the page cache is given to the disk in such parts.
const PART: u64 = 1 << 20;
/// And so long until the next; all of them together take no longer than `PAUSES`.
const PAUSE: Duration = Duration::from_millis(4);
const PAUSES: Duration = Duration::from_secs(5);

fn pause(parts: u64) -> Duration {
    PAUSES.checked_div(u32::try_from(parts).unwrap_or(u32::MAX)).unwrap_or(PAUSE).min(PAUSE)
}

/// Has the disk begin with the first `len` bytes of a file that was written to the page cache: given all at once, the syncs of the log
/// would queue behind it. Promises nothing, and does nothing where the system does not take such advice.
pub(crate) fn write_back(file: &File, len: u64) {
    let parts = len / PART;
    for part in 0..parts {
        if !begin_to_write(file, part.saturating_mul(PART)) {
            return;
        }
        std::thread::sleep(pause(parts));
    }
}

/// From now on the disk is asked for what is read and no more: whoever reads on anyway asks for enough at once.
pub(crate) fn read_no_further(file: &File) {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    let _ = file;
}

/// The other way round.
pub(crate) fn read_ahead(file: &File) {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Normal);
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    let _ = file;
}

/// Tells the kernel to write what of this part is not written yet, without waiting for it.
#[cfg(target_os = "linux")]
fn begin_to_write(file: &File, at: u64) -> bool {
    rustix::fs::fadvise(file, at, std::num::NonZeroU64::new(PART), rustix::fs::Advice::DontNeed).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn begin_to_write(_: &File, _: u64) -> bool {
    false
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn open_past_cache(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
    std::fs::OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn open_past_cache(_: &Path) -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_begins_where_a_direct_write_may() {
        let mut piece = Piece::new();
        assert_eq!((piece.bytes().len(), piece.bytes_mut().len()), (PIECE, PIECE));
        assert_eq!(piece.bytes().as_ptr().align_offset(PAGE), 0);
    }

    #[test]
    fn what_does_not_fit_and_what_the_file_system_refuses_is_written_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut direct = Direct::new(File::create_new(&path).unwrap(), &path);
        let mut piece = Piece::new();
        piece.bytes_mut().fill(7);
        direct.write(piece.bytes(), 0, &Pace::default()).unwrap();
        direct.write(&piece.bytes()[..100], PIECE as u64, &Pace::default()).unwrap();
        // Memory that begins anywhere is what a file system refuses.
        direct.write(&piece.bytes()[1..=PAGE], 2 * PIECE as u64, &Pace::default()).unwrap();
        let mut expected = vec![7; PIECE + 100];
        expected.resize(2 * PIECE, 0);
        expected.resize(2 * PIECE + PAGE, 7);
        assert!(std::fs::read(&path).unwrap() == expected);
    }

    #[test]
    fn a_file_that_cannot_be_allocated_is_one_that_has_to_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::create_new(&path).unwrap();
        assert!(!allocate(&File::open(&path).unwrap(), 1 << 20).unwrap(), "it is open for reading alone");
        assert!(!allocate(&file, 0).unwrap());
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_file_of_any_size_is_given_to_the_disk_in_bounded_time() {
        assert_eq!(pause(0), PAUSE);
        for parts in [1, 16, 200, 10_000, 1 << 20, 1 << 40] {
            let all = pause(parts).saturating_mul(u32::try_from(parts).unwrap_or(u32::MAX));
            assert!(pause(parts) <= PAUSE && all <= PAUSES, "{parts}: {all:?}");
        }
    }

    #[test]
    fn the_slower_the_logs_syncs_the_longer_the_rest() {
        let micros = Duration::from_micros;
        for (took, sync, rest) in [
            (300, 0, 600),
            (300, 200, 600),
            (300, 2000, 4000),
            (300, 20_000, 10_000),
            (50_000, 0, 1000),
            (50_000, 2000, 4000),
        ] {
            assert_eq!(rest_after(micros(took), micros(sync)), micros(rest));
        }
    }

    #[test]
    fn one_that_is_waited_for_does_not_rest() {
        let begun = Instant::now();
        let pace = Pace::default();
        pace.hurry();
        pace.rest(Duration::from_secs(600));
        Pace::hurried().rest(Duration::from_secs(600));
        // And the one that is not rests for a bounded time.
        Pace::default().rest(Duration::from_secs(600));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}

//! Writing large files past the page cache, where system and file system can.
//!
//! Filling pages takes the processor from those who answer (measured: 3 ms a MiB of fresh pages), and one sync of all of them the disk
//! from the log's syncs (20 ms and more). Written so, a file reaches the disk piece by piece, with rests between.
//!
//! Lives here: how it is written. May not live here: what. Promises nothing: the sync after it does.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What memory and places in files are made of here: what page caches and direct writes want, at most, on the systems there are.
pub(crate) const PAGE: usize = 4096;
/// What is written at once.
pub(crate) const PIECE: usize = 256 << 10;
/// On a slow disk the pieces are far enough apart as it is, and a snapshot of many gigabytes must arrive before its sender loses patience.
const LONGEST_REST: Duration = Duration::from_millis(1);

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

/// How eagerly a file is written.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    hurry: AtomicBool,
}

impl Pace {
    /// Somebody waits for it from the beginning.
    pub(crate) fn hurried() -> Self {
        Pace { hurry: AtomicBool::new(true) }
    }

    /// Somebody waits for it now.
    pub(crate) fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }

    /// After a piece that took so long: twice that belongs to the others, on a fast disk.
    fn rest(&self, took: Duration) {
        if !self.hurry.load(Ordering::Relaxed) {
            std::thread::sleep(took.saturating_mul(2).min(LONGEST_REST));
        }
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

    /// Writes one piece, whole or in part, and rests. Past the page cache if memory, place and length allow it.
    pub(crate) fn write(&mut self, bytes: &[u8], at: u64, pace: &Pace) -> std::io::Result<()> {
        let begun = Instant::now();
        let fits = bytes.len() % PAGE == 0 && at % PAGE as u64 == 0;
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

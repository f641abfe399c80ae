//! One segment on the disk: a file of a fixed size, all of its bytes written once before it is used.
//!
//! Invariants: a file with a segment's name is allocated to its last byte (it is made under another name, synced, and
//! renamed), so a frame in it changes neither size nor allocation and one fdatasync makes it durable. A file is never
//! cut or grown; what it holds is replaced from the beginning when it is used again.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::log::files;

const SUFFIX: &str = ".seg";
const UNFINISHED: &str = ".new";
/// What a new file is filled by.
const PIECE: usize = 256 << 10;
/// What the page cache and direct writes are made of, at most, on the systems there are.
pub(crate) const PAGE: usize = 4096;
/// A disk that hangs for a moment must not keep the filler asleep for long when it no longer does.
const LONGEST_REST: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct SegmentFile {
    file: File,
    path: PathBuf,
    len: u64,
    /// The number in its name, which says nothing of its content.
    slot: u64,
}

impl SegmentFile {
    /// Makes a file of `len` zeros. When it fails nothing stays behind.
    pub(crate) fn create(log_dir: &Path, slot: u64, len: u64, pace: &Pace) -> Result<Self> {
        let unfinished = log_dir.join(format!("{slot:08}{UNFINISHED}"));
        let made = Self::fill(&unfinished, len, pace).and_then(|file| {
            let path = log_dir.join(format!("{slot:08}{SUFFIX}"));
            std::fs::rename(&unfinished, &path).map_err(|e| Error::io(&path, "put a new segment in place", &e))?;
            files::sync_directory(log_dir)?;
            Ok(SegmentFile { file, path, len, slot })
        });
        if made.is_err() {
            let _ = std::fs::remove_file(&unfinished);
        }
        made
    }

    /// Real zeros instead of an empty allocation: marking blocks as written would cost each sync that first reaches
    /// one a second journal write (measured: twice the time). Past the page cache, where it can be: filling pages would take
    /// the processor from those who answer, and one sync of all of them the disk from the log's.
    fn fill(path: &Path, len: u64, pace: &Pace) -> Result<File> {
        let failed = |e: std::io::Error| Error::io(path, "allocate a new segment", &e);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).map_err(failed)?;
        let mut direct = open_direct(path);
        let room = vec![0; PIECE.saturating_add(PAGE)];
        let zeros = room.get(room.as_ptr().align_offset(PAGE)..).and_then(|from| from.get(..PIECE)).unwrap_or_default();
        let mut at = 0;
        while at < len {
            let begun = Instant::now();
            let piece = zeros.get(..usize::try_from(len - at).unwrap_or(usize::MAX)).unwrap_or(zeros);
            let written = match &direct {
                Some(direct) => direct.write_all_at(piece, at),
                None => file.write_all_at(piece, at),
            };
            match written {
                Ok(()) => at = at.saturating_add(piece.len() as u64),
                // Some file systems open a file so and then do not write to it.
                Err(e) if direct.is_some() && e.kind() == std::io::ErrorKind::InvalidInput => direct = None,
                Err(e) => return Err(failed(e)),
            }
            pace.rest(begun.elapsed());
        }
        file.sync_all().map_err(failed)?;
        Ok(file)
    }

    /// Opens what is there; `write` false for a look that must change nothing.
    fn open(path: PathBuf, slot: u64, write: bool) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io(&path, "open the segment", &e);
        let file = OpenOptions::new().read(true).write(write).open(&path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        Ok(SegmentFile { file, path, len, slot })
    }

    /// All segments of a directory, in the order of their names.
    pub(crate) fn list(log_dir: &Path, write: bool) -> Result<Vec<Self>> {
        let listing = std::fs::read_dir(log_dir).map_err(|e| Error::io(log_dir, "list the directory", &e))?;
        let mut found = Vec::new();
        for item in listing {
            let item = item.map_err(|e| Error::io(log_dir, "list the directory", &e))?;
            if let Some(slot) = slot_of(&item.path(), SUFFIX) {
                found.push(Self::open(item.path(), slot, write)?);
            }
        }
        found.sort_by_key(|file| file.slot);
        Ok(found)
    }

    /// Removes what a crash left of files that were never used.
    pub(crate) fn remove_unfinished(log_dir: &Path) -> Result<()> {
        let listing = std::fs::read_dir(log_dir).map_err(|e| Error::io(log_dir, "list the directory", &e))?;
        for path in listing.flatten().map(|item| item.path()).filter(|path| slot_of(path, UNFINISHED).is_some()) {
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, "remove an unfinished segment", &e))?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn slot(&self) -> u64 {
        self.slot
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        self.file.read_exact_at(buffer, at).map_err(|e| Error::io(&self.path, "read the segment", &e))
    }

    /// Writes and syncs. What an error leaves on the disk is unknown, and no second sync would tell (S5, S10).
    pub(crate) fn write_durably(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, at)
            .and_then(|()| self.file.sync_data())
            .map_err(|e| files::write_error(&self.path, "write the log", &e))
    }

    pub(crate) fn remove(&self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| Error::io(&self.path, "remove a segment", &e))
    }
}

/// For writes past the page cache; `None`: this system, or this file system, has none.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
    OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

/// How eagerly a file is filled that is made ahead of need.
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

    /// After a piece that took so long: twice that belongs to the others.
    fn rest(&self, took: Duration) {
        if !self.hurry.load(Ordering::Relaxed) {
            std::thread::sleep(took.saturating_mul(2).min(LONGEST_REST));
        }
    }
}

fn slot_of(path: &Path, suffix: &str) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_suffix(suffix)?;
    (digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

/// A directory that holds one is a segment log.
pub(crate) fn is_segment_log(log_dir: &Path) -> bool {
    std::fs::read_dir(log_dir)
        .is_ok_and(|listing| listing.flatten().any(|item| slot_of(&item.path(), SUFFIX).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_segment_is_zeros_to_its_last_byte_whatever_its_length() {
        let dir = tempfile::tempdir().unwrap();
        for (slot, len) in [(1, 4096), (2, PIECE as u64), (3, PIECE as u64 + 8192), (4, 1000), (5, PIECE as u64 + 1)] {
            let file = SegmentFile::create(dir.path(), slot, len, &Pace::default()).unwrap();
            assert_eq!(file.len(), len);
            let mut bytes = vec![1; usize::try_from(len).unwrap()];
            file.read(&mut bytes, 0).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{len}");
            // What is written through the page cache afterwards is what is read.
            file.write_durably(b"frame", 10.min(len - 5)).unwrap();
            let mut back = [0; 5];
            file.read(&mut back, 10.min(len - 5)).unwrap();
            assert_eq!(&back, b"frame");
        }
        assert_eq!(SegmentFile::list(dir.path(), false).unwrap().len(), 5);
    }

    #[test]
    fn one_that_is_waited_for_does_not_rest() {
        let pace = Pace::default();
        pace.hurry();
        let begun = Instant::now();
        pace.rest(Duration::from_secs(600));
        Pace::hurried().rest(Duration::from_secs(600));
        // And the one that is not rests for a bounded time.
        Pace::default().rest(Duration::from_secs(600));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}

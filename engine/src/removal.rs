//! Removing large files without holding up the disk.
//!
//! What a file took goes back to the file system with the next commit of its journal. Where that includes telling the disk which blocks
//! are free (`discard`), every sync waits for it: 200 MB removed at once held up the log's syncs for 15 to 50 ms, piece by piece 4 ms.
//!
//! Lives here: how files are removed. May not live here: which.
//!
//! Invariants: the name goes first, so a file is there whole or not at all, also after a crash; a file that has another name keeps its
//! content. Whoever else has the file open finds it cut: our own readers are asked for before (`SnapshotDir`, `Pool`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::direct::Pace;
use crate::own_thread;

/// What is given back at once, and how long that counts as, at least: the rest that follows goes by it.
const PIECE: u64 = 1 << 20;
const COUNTS: Duration = Duration::from_micros(500);
/// Pieces of a very large file are larger: it is gone after some seconds.
const MOST_PIECES: u64 = 4096;
/// Less than this is not worth a thread.
const SMALL: u64 = 4 * PIECE;

/// Gives back what the file takes; its name must be gone.
pub(crate) fn give_back(file: &File, pace: &Pace) {
    let Ok(about) = file.metadata() else { return };
    if about.nlink() != 0 {
        return;
    }
    let mut left = about.len();
    let piece = PIECE.max(left / MOST_PIECES);
    while left > 0 {
        left = left.saturating_sub(piece);
        // What cannot be cut is given back when it is closed.
        if file.set_len(left).is_err() {
            return;
        }
        pace.rest(COUNTS);
    }
}

/// Files whose names are gone, and whose space is not given back yet. Dropped, all of it is given back at once.
#[derive(Debug, Default)]
#[must_use]
pub struct Removed {
    files: Vec<File>,
    bytes: u64,
}

impl Removed {
    /// Removes the name of a file that nobody else in this process reads. A file that is not there is no error.
    pub(crate) fn take(&mut self, path: &Path) -> io::Result<()> {
        // It is removed all the same if it cannot be opened.
        let file = OpenOptions::new().write(true).open(path);
        remove_name(path)?;
        if let Ok(file) = file {
            self.bytes = self.bytes.saturating_add(file.metadata().map_or(0, |about| about.len()));
            self.files.push(file);
        }
        Ok(())
    }

    pub(crate) fn give_back(self, pace: &Pace) {
        for file in self.files {
            give_back(&file, pace);
        }
    }

    /// On a thread of its own. It touches no name, so the directory may be somebody else's by then.
    pub(crate) fn give_back_aside(self) {
        if self.bytes > SMALL {
            // Without a thread for it, it is dropped.
            let _ = own_thread::spawn("raftify-remove", move || self.give_back(&Pace::default()));
        }
    }
}

/// Removes a name, and says nothing if it is not there.
pub(crate) fn remove_name(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 5 * PIECE as usize + 100;

    #[test]
    fn a_removed_file_is_cut_unless_it_has_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kept) = (dir.path().join("f"), dir.path().join("kept"));
        for linked in [false, true] {
            std::fs::write(&path, vec![7; LEN]).unwrap();
            if linked {
                std::fs::hard_link(&path, &kept).unwrap();
            }
            let file = File::open(&path).unwrap();
            let mut removed = Removed::default();
            removed.take(&path).unwrap();
            assert!(!path.exists());
            assert_eq!(file.metadata().unwrap().len(), LEN as u64);
            removed.give_back(&Pace::hurried());
            assert_eq!(file.metadata().unwrap().len(), if linked { LEN as u64 } else { 0 });
        }
        assert!(std::fs::read(&kept).unwrap() == vec![7; LEN]);
    }

    #[test]
    fn what_is_not_there_is_removed_and_what_cannot_be_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut removed = Removed::default();
        removed.take(&dir.path().join("absent")).unwrap();
        assert!(removed.take(dir.path()).is_err());
        assert!(removed.files.is_empty());
        removed.give_back_aside();
    }

    #[test]
    fn a_file_that_is_not_removed_is_not_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; LEN]).unwrap();
        give_back(&OpenOptions::new().write(true).open(&path).unwrap(), &Pace::hurried());
        assert_eq!(path.metadata().unwrap().len(), LEN as u64);
    }
}

//! The bytes of a snapshot file, one behind the other, on their way to the disk in pieces.

use std::fs::File;
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::direct::{write_back, Direct, Pace, Piece, PAGE, PIECE};

/// Holds less than one piece in memory. Dropped, it gives the file what it holds: what has arrived is kept.
#[derive(Debug)]
pub(super) struct Appender {
    direct: Direct,
    piece: Piece,
    /// Where the piece begins in the file: at a page.
    at: u64,
    filled: usize,
    through_cache: bool,
}

impl Appender {
    /// Goes on at `end` of the file at `path`; one that does not begin there has to be readable.
    pub(super) fn new(file: File, path: &Path, end: u64) -> Result<Self> {
        let into = end % PAGE as u64;
        let at = end.saturating_sub(into);
        let filled = usize::try_from(into).unwrap_or_default();
        let mut piece = Piece::new();
        let begun = piece.bytes_mut().get_mut(..filled).unwrap_or_default();
        file.read_exact_at(begun, at)?;
        Ok(Appender { direct: Direct::new(file, path), piece, at, filled, through_cache: false })
    }

    /// From now on appending waits for no disk; `sync` waits for all of it.
    pub(super) fn through_cache(&mut self) {
        self.through_cache = true;
    }

    /// After an error nothing more is to be appended.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        #[cfg(test)]
        crate::faults::due(crate::faults::Fault::Write)?;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at_checked(PIECE.saturating_sub(self.filled)).unwrap_or((bytes, &[]));
            let end = self.filled.saturating_add(now.len());
            if let Some(room) = self.piece.bytes_mut().get_mut(self.filled..end) {
                room.copy_from_slice(now);
            }
            self.filled = end;
            bytes = later;
            if self.filled == PIECE {
                if self.through_cache {
                    self.direct.write_to_cache(self.piece.bytes(), self.at)?;
                } else {
                    self.direct.write(self.piece.bytes(), self.at, &Pace::default())?;
                }
                self.at = self.at.saturating_add(PIECE as u64);
                self.filled = 0;
            }
        }
        Ok(())
    }

    /// What it holds is not given to the file any more.
    pub(super) fn forget(&mut self) {
        self.filled = 0;
    }

    /// Gives the file what is left.
    fn flush(&mut self) -> Result<()> {
        let rest = self.piece.bytes().get(..self.filled).unwrap_or_default();
        self.direct.file().write_all_at(rest, self.at)
    }

    /// Makes everything durable. Nothing is appended afterwards.
    pub(super) fn sync(&mut self) -> Result<()> {
        #[cfg(test)]
        crate::faults::due(crate::faults::Fault::Sync)?;
        self.flush()?;
        self.filled = 0;
        if self.through_cache {
            write_back(self.direct.file(), self.at);
        }
        self.direct.file().sync_all()
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        // Promises nothing: what is missing is asked for again.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn a_file_is_what_was_appended_wherever_it_was_begun_and_broken_off() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<u8> = (0..3 * PIECE + 1000).map(|n| (n * 7 + n / 251) as u8).collect();
        for (case, parts) in [
            vec![0, all.len()],
            vec![0, 1, PAGE, PAGE + 1, PIECE - 1, PIECE, PIECE + 5, 2 * PIECE + 17, all.len()],
            vec![0, 2 * PIECE, all.len()],
        ]
        .into_iter()
        .enumerate()
        {
            let path = dir.path().join(case.to_string());
            std::fs::write(&path, b"").unwrap();
            for part in parts.windows(2) {
                let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
                let mut appender = Appender::new(file, &path, part[0] as u64).unwrap();
                if case == 1 && part[0] > PIECE {
                    appender.through_cache();
                }
                all[part[0]..part[1]].chunks(1000).for_each(|bytes| appender.append(bytes).unwrap());
                if part[1] == all.len() {
                    appender.sync().unwrap();
                }
            }
            assert!(std::fs::read(&path).unwrap() == all, "{case}");
        }
    }
}

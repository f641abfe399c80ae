//! One segment on the disk: a file of a fixed size, its bytes written once before it is used, where there is time for that.
//!
//! Invariants: a file with a segment's name is allocated to its last byte (it is made under another name, synced, and
//! renamed), so a frame in it changes neither size nor allocation and one fdatasync makes it durable. A file is never
//! cut or grown; what it holds is replaced from the beginning when it is used again.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::descriptors::retry_while_out_of_descriptors;
use crate::direct::{allocate, read_no_further, Direct, Pace, Piece};
use crate::error::{Error, Result};
use crate::log::files;
use crate::log_syncs;

const SUFFIX: &str = ".seg";
const UNFINISHED: &str = ".new";
/// Bytes of one part.
const AT_ONCE: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct SegmentFile {
    file: File,
    path: PathBuf,
    len: u64,
    /// The number in its name, which says nothing of its content.
    slot: u64,
}

impl SegmentFile {
    /// Makes a file of `len` zeros; as soon as `pace` says that it is enough, the rest is only allocated. When it fails nothing stays behind.
    pub(crate) fn create(log_dir: &Path, slot: u64, len: u64, pace: &Pace) -> Result<Self> {
        let unfinished = log_dir.join(format!("{slot:08}{UNFINISHED}"));
        let made = Self::fill(&unfinished, len, pace).and_then(|file| {
            let path = log_dir.join(format!("{slot:08}{SUFFIX}"));
            std::fs::rename(&unfinished, &path).map_err(|e| Error::io(&path, "put a new segment in place", &e))?;
            let directory = retry_while_out_of_descriptors(|| File::open(log_dir));
            let synced = directory.and_then(|directory| directory.sync_all());
            synced.map_err(|e| Error::io(log_dir, "sync the directory", &e))?;
            read_no_further(&file);
            Ok(SegmentFile { file, path, len, slot })
        });
        if made.is_err() {
            let _ = std::fs::remove_file(&unfinished);
        }
        made
    }

    /// Real zeros instead of an empty allocation: marking blocks as written costs each sync that first reaches
    /// one a second journal write (measured: two to four times the time with small frames, a fifth more with 1 MiB).
    fn fill(path: &Path, len: u64, pace: &Pace) -> Result<File> {
        let failed = |e: std::io::Error| Error::io(path, "allocate a new segment", &e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = retry_while_out_of_descriptors(|| options.open(path)).map_err(failed)?;
        let mut direct = Direct::new(file, path);
        let piece = Piece::new();
        let mut at = 0;
        let allocated = allocate(direct.file(), len).map_err(failed)?;
        while at < len && !(allocated && pace.is_cut_short()) {
            let zeros = piece.bytes();
            let zeros = zeros.get(..usize::try_from(len - at).unwrap_or(usize::MAX)).unwrap_or(zeros);
            direct.write(zeros, at, pace).map_err(failed)?;
            at = at.saturating_add(zeros.len() as u64);
        }
        direct.file().sync_all().map_err(failed)?;
        Ok(direct.into_file())
    }

    /// Opens what is there; `write` false for a look that must change nothing.
    fn open(path: PathBuf, slot: u64, write: bool) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io(&path, "open the segment", &e);
        let file = OpenOptions::new().read(true).write(write).open(&path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        read_no_further(&file);
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

    /// Writes these, one behind the other, and syncs. What an error leaves on the disk is unknown, and no second sync would tell (S5,
    /// S10).
    pub(crate) fn write_durably(&self, parts: &[&[u8]], at: u64) -> Result<()> {
        write_all_at(&self.file, parts, at)
            .and_then(|()| log_syncs::sync_data(&self.file))
            .map_err(|e| files::write_error(&self.path, "write the log", &e))
    }

    /// The same for much at once: other logs on this disk, whose syncs would wait for the end of it, have their turn in between.
    pub(crate) fn write_durably_in_parts(&self, parts: &[&[u8]], mut at: u64) -> Result<()> {
        for part in parts.iter().flat_map(|part| part.chunks(AT_ONCE)) {
            self.write_durably(&[part], at)?;
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    pub(crate) fn remove(&self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| Error::io(&self.path, "remove a segment", &e))
    }
}

/// Most pieces that one system call takes (`IOV_MAX`).
const CALL_PIECES: usize = 1024;

fn write_all_at(file: &File, parts: &[&[u8]], mut at: u64) -> io::Result<()> {
    for group in parts.chunks(CALL_PIECES) {
        let pieces: Vec<IoSlice<'_>> = group.iter().map(|part| IoSlice::new(part)).collect();
        // The usual frame is one piece. Of several all are written at once, nearly always; what is not follows piece by piece.
        let mut written = match &pieces[..] {
            [_] => 0,
            _ => rustix::io::retry_on_intr(|| rustix::io::pwritev(file, &pieces, at))?,
        };
        for part in group {
            let done = written.min(part.len());
            written -= done;
            if let Some(rest) = part.get(done..).filter(|rest| !rest.is_empty()) {
                file.write_all_at(rest, at.saturating_add(done as u64))?;
            }
            at = at.saturating_add(part.len() as u64);
        }
    }
    Ok(())
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
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::direct::PIECE;

    #[test]
    fn a_new_segment_is_zeros_to_its_last_byte_whatever_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let lens = [4096, PIECE as u64, PIECE as u64 + 8192, 1000, PIECE as u64 + 1];
        let made =
            lens.iter().flat_map(|len| [(*len, Pace::default()), (*len, Pace::hurried()), (*len, Pace::least())]);
        for (slot, (len, pace)) in (1..).zip(made) {
            let file = SegmentFile::create(dir.path(), slot, len, &pace).unwrap();
            assert_eq!(file.len(), len);
            assert!(file.file().metadata().unwrap().blocks() * 512 >= len, "it takes no more room later");
            let mut bytes = vec![1; usize::try_from(len).unwrap()];
            file.read(&mut bytes, 0).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{len}");
            // What is written through the page cache afterwards is what is read.
            file.write_durably(&[b"fr", b"", b"ame"], 10.min(len - 5)).unwrap();
            let mut back = [0; 5];
            file.read(&mut back, 10.min(len - 5)).unwrap();
            assert_eq!(&back, b"frame");
        }
        assert_eq!(SegmentFile::list(dir.path(), false).unwrap().len(), 15);
    }

    #[test]
    fn what_is_written_in_parts_lies_there_as_if_it_had_been_written_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..2 * AT_ONCE + 3).map(|n| (n / 251) as u8).collect();
        for (slot, split) in [(1, 0), (2, 1), (3, AT_ONCE), (4, AT_ONCE + 7), (5, bytes.len())] {
            let (first, second) = bytes.split_at(split);
            let file = SegmentFile::create(dir.path(), slot, 3 * AT_ONCE as u64, &Pace::default()).unwrap();
            file.write_durably_in_parts(&[first, second], 16).unwrap();
            let mut back = vec![0; bytes.len() + 32];
            file.read(&mut back, 0).unwrap();
            assert_eq!(back[16..16 + bytes.len()], bytes, "{split}");
            assert!(back[..16].iter().chain(&back[16 + bytes.len()..]).all(|byte| *byte == 0), "{split}");
        }
    }

    #[test]
    fn any_number_of_pieces_lies_one_behind_the_other() {
        let dir = tempfile::tempdir().unwrap();
        for (slot, count) in [(1, 0), (2, 1), (3, 2), (4, CALL_PIECES), (5, CALL_PIECES + 1), (6, 2 * CALL_PIECES + 7)]
        {
            let bytes: Vec<u8> = (0..count * 3).map(|n| n as u8).collect();
            let parts: Vec<&[u8]> = bytes.chunks(3).collect();
            let file = SegmentFile::create(dir.path(), slot, 8192, &Pace::default()).unwrap();
            file.write_durably(&parts, 5).unwrap();
            let mut back = vec![0; 8192];
            file.read(&mut back, 0).unwrap();
            assert_eq!(back[5..5 + bytes.len()], bytes, "{count}");
            assert!(back[5 + bytes.len()..].iter().chain(&back[..5]).all(|byte| *byte == 0), "{count}");
        }
    }
}

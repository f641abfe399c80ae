//! A node's directory on disk: what lies where, who it belongs to, and the small files beside the log.
//!
//! ```text
//! <node directory>/lock          held while the node runs (see `lock`)
//!                  log/data.mdb  the log kept by LMDB; log/lock.mdb is LMDB's own
//!                  log/*.seg     or the log kept in segments (see `segment`)
//!                  log/durable   number of the newest durable commit, unsynced (S8)
//!                  log/clean     number of the commit at which the node was stopped in order
//!                  log.new/      a log that is just being made; renamed to log/ when whole
//!                  snapshots/    see `crate::snapshots`
//! ```
//! Invariants: `log/` exists only with its founding records durable inside, so nothing half-made is ever opened; a
//! directory that holds anything else and no `log/` is somebody else's and is left alone.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::checksum;
use crate::config::LogEngine;
use crate::error::{Committed, Error, ErrorCode, Result};
use crate::log::lock::LOCK_FILE;
use crate::log::segment::is_segment_log;

pub(crate) const LOG_DIR: &str = "log";
pub(crate) const NEW_LOG_DIR: &str = "log.new";
pub(crate) const SNAPSHOTS_DIR: &str = "snapshots";
pub(crate) const DATA_FILE: &str = "data.mdb";
const LMDB_LOCK_FILE: &str = "lock.mdb";
const DURABLE_FILE: &str = "durable";
const CLEAN_FILE: &str = "clean";

/// What to do about damage; the same everywhere.
pub(crate) const REMEDY: &str =
    "this node must not go on with it: remove it from the cluster, empty its directory and let it join again, or put back a copy of the directory";

pub(crate) fn corrupt(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::storage(ErrorCode::CorruptData, path, format_args!("{what}; {REMEDY}"))
}

pub(crate) fn too_new(path: &Path, format: u32) -> Error {
    Error::storage(
        ErrorCode::FormatTooNew,
        path,
        format_args!("written in format {format} by a newer version; use that version, or a later one"),
    )
}

/// A failure of a write: nobody can say what of it has reached the disk.
pub(crate) fn write_error(path: &Path, attempted: &str, source: &std::io::Error) -> Error {
    outcome_unknown(Error::io(path, attempted, source))
}

/// The error of a write that was begun (S10).
pub(crate) fn outcome_unknown(mut error: Error) -> Error {
    error.committed = Committed::Unknown;
    if error.code == ErrorCode::Storage {
        error.message.push_str("; the node has stopped, because a failed write cannot be repeated safely (S10): check the disk and start the node again");
    }
    error
}

/// Bytes that may still be written to the file system of `path`, and its size. `None`: it does not say.
pub(crate) fn disk_space(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let unit = if stat.f_frsize == 0 { stat.f_bsize } else { stat.f_frsize };
    Some((stat.f_bavail.saturating_mul(unit), stat.f_blocks.saturating_mul(unit)))
}

/// Which engine keeps the log in `log_dir`: what lies there decides, never a setting.
pub(crate) fn engine_of(log_dir: &Path) -> Result<LogEngine> {
    match (log_dir.join(DATA_FILE).is_file(), is_segment_log(log_dir)) {
        (true, false) => Ok(LogEngine::Lmdb),
        (false, true) => Ok(LogEngine::Segment),
        (true, true) => Err(corrupt(log_dir, "an LMDB log and a segment log lie in the same directory")),
        (false, false) => Err(corrupt(log_dir, "the file of the log is missing")),
    }
}

/// The log was stopped in order at this commit. Any later commit makes the marker void by its number.
pub(crate) fn mark_clean(log_dir: &Path, number: u64) -> Result<()> {
    let marker = NumberFile::open(NumberFile::clean(log_dir))?;
    marker.write(number)?;
    marker.sync()?;
    sync_directory(log_dir)
}

/// What a node's directory holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// It does not exist, or holds nothing but an unfinished beginning.
    Nothing,
    /// A whole log.
    Log,
}

/// Looks at a directory and changes nothing. `WrongDirectory` says what was found instead of a log.
pub(crate) fn classify(directory: &Path) -> Result<Contents> {
    let listing = match std::fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Contents::Nothing),
        Err(e) => return Err(Error::io(directory, "list the directory", &e)),
    };
    let mut foreign = Vec::new();
    let mut snapshots = false;
    for item in listing {
        let item = item.map_err(|e| Error::io(directory, "list the directory", &e))?;
        let name = item.file_name();
        if name == LOG_DIR {
            return Ok(Contents::Log);
        } else if name == SNAPSHOTS_DIR {
            snapshots = std::fs::read_dir(item.path()).is_ok_and(|mut files| files.next().is_some());
        } else if name != LOCK_FILE && name != NEW_LOG_DIR && name != "lost+found" {
            foreign.push(name.to_string_lossy().into_owned());
        }
    }
    foreign.sort();
    let found = match foreign.as_slice() {
        _ if snapshots => "snapshots without the log that names them".to_string(),
        [] => return Ok(Contents::Nothing),
        names if names.iter().any(|n| n == DATA_FILE) => {
            "an LMDB database of another program or of an older library".to_string()
        }
        [name] => format!("{name:?}"),
        [name, more @ ..] => format!("{name:?} and {} more", more.len()),
    };
    Err(Error::storage(
        ErrorCode::WrongDirectory,
        directory,
        format_args!(
            "not a node's directory: found {found}; nothing was changed; name another directory, or empty this one"
        ),
    ))
}

/// Makes a directory with its parents; each new name is durable in its parent when this returns. Of one that exists that is its opener's
/// to see to.
pub(crate) fn make_directory(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent().filter(|p| !p.as_os_str().is_empty()) {
        if parent.is_dir() {
            sync_name(parent)?;
        } else {
            make_directory(parent)?;
        }
    }
    match std::fs::create_dir(directory) {
        Ok(()) => sync_parent(directory),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(e) => Err(Error::io(directory, "make the directory", &e)),
    }
}

pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| Error::io(directory, "sync the directory", &e))
}

pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

/// S5: a process before may have made this directory, and was killed before its name was durable; it made no other after that. Where the
/// one above may not be read, or nobody can write, it is somebody else's, and so is the name.
fn sync_name(directory: &Path) -> Result<()> {
    let Some(above) = directory.parent() else { return Ok(()) };
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    let synced = File::open(above).and_then(|directory| directory.sync_all());
    synced.or_else(|e| match e.kind() {
        // File systems that are only read know no sync at all.
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::InvalidInput => Ok(()),
        _ => Err(Error::io(above, "sync the directory", &e)),
    })
}

/// Makes the file what the disk says (S5): everything written is synced; after an unclean stop what is only in the page
/// cache is thrown away, because a sync that failed before the crash leaves there what never reached the disk.
pub(crate) fn settle(file: &File, path: &Path, forget_cache: bool) -> Result<()> {
    file.sync_all().map_err(|e| Error::io(path, "sync the file", &e))?;
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    if forget_cache {
        // Advice only: where it is not followed the check reads the cache, as it must on other systems.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }
    Ok(())
}

/// LMDB maps its lock file for writing: a hole in it on a full disk would be a SIGBUS. So its blocks exist before.
pub(crate) fn prepare_lmdb_lock(log_dir: &Path) -> Result<()> {
    /// What LMDB asks for with its default number of readers.
    const SIZE: usize = 8192;
    let path = log_dir.join(LMDB_LOCK_FILE);
    let write = || -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        // Nobody else has it open: the directory lock is held. LMDB builds the content anew as its only user.
        file.write_all_at(&[0; SIZE], 0)?;
        file.set_len(SIZE as u64)
    };
    write().map_err(|e| Error::io(&path, "prepare LMDB's lock file", &e))
}

/// A file that holds one running number: `durable` or `clean`. One small overwrite in place; a torn one is no number.
#[derive(Debug)]
pub(crate) struct NumberFile {
    file: File,
    path: PathBuf,
}

impl NumberFile {
    const SIZE: usize = 16;

    pub(crate) fn durable(log_dir: &Path) -> PathBuf {
        log_dir.join(DURABLE_FILE)
    }

    pub(crate) fn clean(log_dir: &Path) -> PathBuf {
        log_dir.join(CLEAN_FILE)
    }

    /// Of the newest commit that was durable, as far as the two files know.
    pub(crate) fn newest(log_dir: &Path) -> Option<u64> {
        Self::read(&Self::durable(log_dir)).max(Self::read(&Self::clean(log_dir)))
    }

    /// `None`: no such file, or no number in it.
    pub(crate) fn read(path: &Path) -> Option<u64> {
        let bytes = std::fs::read(path).ok()?;
        let number: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
        let crc: [u8; 4] = bytes.get(8..12)?.try_into().ok()?;
        (checksum::crc32c(&number) == u32::from_le_bytes(crc)).then(|| u64::from_le_bytes(number))
    }

    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        match OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
            Ok(file) => Ok(NumberFile { file, path }),
            Err(e) => Err(Error::io(&path, "open the file", &e)),
        }
    }

    pub(crate) fn write(&self, number: u64) -> Result<()> {
        let number = number.to_le_bytes();
        let mut bytes = [0; Self::SIZE];
        let parts = number.into_iter().chain(checksum::crc32c(&number).to_le_bytes());
        bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
        self.file.write_all_at(&bytes, 0).map_err(|e| Error::io(&self.path, "write the file", &e))
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, "sync the file", &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_without_strangers_counts_as_empty() {
        let table: &[(&[&str], Option<&str>)] = &[
            (&[], None),
            (&["lock"], None),
            (&["lock", "log.new/data.mdb", "lost+found/"], None),
            (&["snapshots/"], None),
            (&["notes.txt"], Some("\"notes.txt\"")),
            (&["a", "b", "c"], Some("\"a\" and 2 more")),
            (&["data.mdb", "lock.mdb"], Some("an LMDB database of another program")),
            (&["lock", "snapshots/1"], Some("snapshots without the log")),
        ];
        for (names, found) in table {
            let dir = tempfile::tempdir().unwrap();
            for name in *names {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                if name.ends_with('/') {
                    std::fs::create_dir_all(path).unwrap();
                } else {
                    std::fs::write(path, b"").unwrap();
                }
            }
            match (classify(dir.path()), found) {
                (Ok(Contents::Nothing), None) => {}
                (Err(e), Some(found)) if e.code == ErrorCode::WrongDirectory => {
                    assert!(e.message.contains(found), "{}", e.message);
                }
                (other, _) => panic!("{names:?}: {other:?}"),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        std::fs::write(dir.path().join("notes.txt"), b"").unwrap();
        assert_eq!(classify(dir.path()), Ok(Contents::Log));
        assert_eq!(classify(&dir.path().join("absent")), Ok(Contents::Nothing));
    }

    #[test]
    fn a_number_file_holds_the_last_number_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        assert_eq!(NumberFile::read(&path), None);
        let file = NumberFile::open(path.clone()).unwrap();
        for number in [0, 7, u64::MAX] {
            file.write(number).unwrap();
            assert_eq!(NumberFile::read(&path), Some(number));
        }
        for at in 0..12 {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(NumberFile::read(&path), None);
            bytes[at] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
        }
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        make_directory(&deep).unwrap();
        make_directory(&deep).unwrap();
        assert!(deep.is_dir());
        std::fs::write(dir.path().join("f"), b"").unwrap();
        let error = make_directory(&dir.path().join("f/g")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Storage);
    }
}

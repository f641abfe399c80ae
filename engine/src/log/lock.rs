//! One process, and one node within it, per directory.
//!
//! A POSIX record lock keeps other processes out: unlike a flock it does not live on in forked workers. It does not keep
//! out the same process, and closing *any* descriptor of the file gives it up, so a registry in the process comes first
//! and nothing else in the crate may open the file `lock`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::FlockOperation;
use rustix::process::{fcntl_getlk, Flock, FlockType};

use crate::error::{Error, ErrorCode, Result};

/// Name of the lock file in a node's directory.
pub(crate) const LOCK_FILE: &str = "lock";

/// Device and inode: a directory stays the same one under another name.
type DirectoryKey = (u64, u64);

/// Directories in use by this process, and the descriptors that hold their locks.
static HELD: Mutex<Option<HashMap<DirectoryKey, RawFd>>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<HashMap<DirectoryKey, RawFd>>> {
    // A map of plain numbers is whole after any panic.
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Descriptors of all held lock files, for a forked child that closes them raw. Empty when another thread held the
/// registry at the fork: the child must not wait for a thread that it does not have.
pub fn lock_descriptors() -> Vec<RawFd> {
    match HELD.try_lock() {
        Ok(map) => map.iter().flat_map(|m| m.values().copied()).collect(),
        Err(_) => Vec::new(),
    }
}

/// Holds a directory; given up when dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    /// `None` only while being dropped.
    file: Option<File>,
    key: DirectoryKey,
    path: PathBuf,
}

impl DirectoryLock {
    /// Takes the lock of an existing directory, without waiting. `DirectoryInUse` names the directory and, if known, the process.
    pub fn acquire(directory: &Path) -> Result<Self> {
        let meta = std::fs::metadata(directory).map_err(|e| Error::io(directory, "look at the directory", &e))?;
        let key = (meta.dev(), meta.ino());
        let path = directory.join(LOCK_FILE);
        let mut map = held();
        let map = map.get_or_insert_default();
        if map.contains_key(&key) {
            return Err(in_use(directory, "by another node of this process"));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io(&path, "open the lock file", &e))?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                map.insert(key, file.as_raw_fd());
                Ok(DirectoryLock { file: Some(file), key, path })
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                let holder = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok().flatten().and_then(|l| l.pid);
                Err(match holder {
                    Some(pid) => in_use(directory, &format!("by process {}", pid.as_raw_nonzero())),
                    None => in_use(directory, "by another process"),
                })
            }
            Err(errno) => Err(Error::io(&path, "lock the directory", &errno.into())),
        }
    }

    /// The descriptor that holds the lock.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        let mut map = held();
        // Closed before the registry lets the next one in: closing it later would give up *their* lock.
        self.file = None;
        if let Some(map) = map.as_mut() {
            map.remove(&self.key);
        }
    }
}

fn in_use(directory: &Path, by: &str) -> Error {
    Error::storage(
        ErrorCode::DirectoryInUse,
        directory,
        format_args!("the directory is in use {by}; stop that node, or give this one a log_dir or id of its own"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_once_under_any_name_and_free_after_the_drop() {
        let dir = tempfile::tempdir().unwrap();
        let other_name = dir.path().join("x");
        std::fs::create_dir(&other_name).unwrap();
        let lock = DirectoryLock::acquire(dir.path()).unwrap();
        for name in [dir.path().to_path_buf(), other_name.join("..")] {
            let error = DirectoryLock::acquire(&name).unwrap_err();
            assert_eq!((error.code, error.path.as_deref()), (ErrorCode::DirectoryInUse, Some(name.as_path())));
        }
        assert!(lock_descriptors().contains(&lock.descriptor().unwrap()));
        drop(lock);
        DirectoryLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_missing_or_unwritable_directory_is_a_storage_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = DirectoryLock::acquire(&dir.path().join("absent")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Storage);
    }
}

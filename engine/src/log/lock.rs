//! One process, and one node within it, per directory.
//!
//! A POSIX record lock keeps other processes out: unlike a flock it does not live on in forked workers. It does not keep
//! out the same process, and closing *any* descriptor of the file gives it up, so what this process holds (`held`) comes first
//! and nothing else in the crate may open the file `lock`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::{fcntl_getlk, Flock, FlockType};

use super::held::{turn, DirectoryKey};
use crate::descriptors::Inherited;
use crate::error::{Error, ErrorCode, Result};

/// Name of the lock file in a node's directory.
pub(crate) const LOCK_FILE: &str = "lock";

/// Holds a directory; given up when dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    /// `None` only while being dropped. The number is given up before the file is closed.
    file: Option<(Inherited, File)>,
    key: DirectoryKey,
    path: PathBuf,
}

impl DirectoryLock {
    /// Takes the lock of an existing directory, without waiting. `DirectoryInUse` names the directory and, if known, the process.
    pub fn acquire(directory: &Path) -> Result<Self> {
        let meta = std::fs::metadata(directory).map_err(|e| Error::io(directory, "look at the directory", &e))?;
        let key = (meta.dev(), meta.ino());
        let path = directory.join(LOCK_FILE);
        let mut turn = turn();
        if turn.holds(key) {
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
            Ok(()) if turn.add(key) => Ok(DirectoryLock { file: Some((Inherited::note(&file), file)), key, path }),
            Ok(()) => Err(Error::storage(
                ErrorCode::Storage,
                directory,
                "this process holds too many directories at once; stop some of its nodes",
            )),
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

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        let mut turn = turn();
        // Closed before the next one is let in: closing it later would give up *their* lock.
        self.file = None;
        turn.remove(self.key);
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

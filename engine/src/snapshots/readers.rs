//! Which snapshot files this process reads: a peer may still be sent one that is older than the log needs.
//!
//! Invariant: a file is named here before it is opened, so one whose name is removed while nobody is named for it is nobody's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::locks::lock;

#[derive(Clone, Debug, Default)]
pub(super) struct Readers(Arc<Mutex<BTreeMap<PathBuf, usize>>>);

/// While it lives the file is read.
#[derive(Debug)]
pub(super) struct Reading {
    readers: Readers,
    path: PathBuf,
}

impl Readers {
    pub(super) fn begin(&self, path: &Path) -> Reading {
        let count = &mut *lock(&self.0);
        let readers = count.entry(path.to_path_buf()).or_default();
        *readers = readers.saturating_add(1);
        Reading { readers: self.clone(), path: path.to_path_buf() }
    }

    /// Does this while nobody can begin to read; `do_it` hears whether somebody has.
    pub(super) fn while_none_begins<T>(&self, path: &Path, do_it: impl FnOnce(bool) -> T) -> T {
        let count = lock(&self.0);
        do_it(count.contains_key(path))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let count = &mut *lock(&self.readers.0);
        if let Some(readers) = count.get_mut(&self.path) {
            *readers = readers.saturating_sub(1);
            if *readers == 0 {
                count.remove(&self.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_until_its_last_reader_is_dropped() {
        let readers = Readers::default();
        let read = |path: &str| readers.while_none_begins(Path::new(path), |read| read);
        let first = readers.begin(Path::new("a"));
        let second = readers.clone().begin(Path::new("a"));
        assert!(read("a") && !read("b"));
        drop(first);
        assert!(read("a"));
        drop(second);
        assert!(!read("a"));
    }
}

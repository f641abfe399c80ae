//! Opens LMDB: the one place of the crate with `unsafe`, because a memory map cannot be safe by itself.
//!
//! NOSYNC is set, because the sync is ours: `lmdb_proof` takes pages and meta page with one, and says why that is enough. Without that proof
//! the flag corrupts what was acknowledged, as WRITEMAP does.
#![allow(unsafe_code)]

use std::path::Path;

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, MdbError, WithoutTls};

use crate::error::{Error, ErrorCode, Result};
use crate::log::files::{corrupt, disk_space, outcome_unknown, too_new};

/// Address space for the map; the file itself grows only as it is filled. LMDB fixes it at open.
const MAP_SIZE: usize = if size_of::<usize>() >= 8 { 64 << 30 } else { 1 << 30 };
/// Below this no log is worth opening.
const SMALLEST_MAP: usize = 64 << 20;

pub(crate) type Records = Database<Bytes, Bytes>;

/// An open database whose file has been checked.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub env: Env<WithoutTls>,
    pub records: Records,
    /// What the map can hold.
    pub map_size: u64,
}

/// Opens the database in `log_dir`. The caller holds the directory's lock, and the file is new or has passed the check of
/// `lmdb_pages` under that lock. `at_least` bytes must fit into the map.
pub(crate) fn open(log_dir: &Path, at_least: u64) -> Result<Opened> {
    let wanted = usize::try_from(at_least).unwrap_or(usize::MAX).clamp(MAP_SIZE, isize::MAX as usize / 2);
    // LMDB wants whole pages of the operating system; none is larger than 64 KiB.
    let mut size = wanted & !0xFFFF;
    let env = loop {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(size);
        // SAFETY: a commit that is not all on the disk is never followed: it is not proven, and the check before this has put an empty one
        // in its place.
        unsafe { options.flags(EnvFlags::NO_SYNC) };
        // SAFETY: the map is sound as long as nobody changes the file behind LMDB's back. The exclusive directory lock keeps
        // our own processes away and the registry beside it our own nodes; every page LMDB will follow
        // has just been checked to lie in the file and to fit together. What foreign programs do to the file, or a read
        // error of the disk under the map, cannot be excluded and is a limit stated in the guarantees.
        match unsafe { options.open(log_dir) } {
            Ok(env) => break env,
            // A limit on address space (ulimit -v, a container: ENOMEM; valgrind: EINVAL): a smaller map will do. What has
            // another cause fails at every size, and is told then.
            Err(heed::Error::Io(e)) if too_large(&e) && size / 2 >= SMALLEST_MAP => {
                size = (size / 2) & !0xFFFF;
            }
            Err(e) => return Err(translate(log_dir, "open the log", e)),
        }
    };
    let mut txn = env.write_txn().map_err(|e| translate(log_dir, "open the log", e))?;
    let records = env.create_database(&mut txn, None).map_err(|e| translate(log_dir, "open the log", e))?;
    // Nothing was changed: the database without a name always exists.
    txn.abort();
    Ok(Opened { env, records, map_size: size as u64 })
}

fn too_large(map: &std::io::Error) -> bool {
    matches!(map.kind(), std::io::ErrorKind::OutOfMemory | std::io::ErrorKind::InvalidInput)
}

/// An error of LMDB as one of ours.
pub(crate) fn translate(path: &Path, attempted: &str, error: heed::Error) -> Error {
    let storage =
        |code, why: &dyn std::fmt::Display| Error::storage(code, path, format_args!("cannot {attempted}: {why}"));
    match error {
        heed::Error::Io(e) => {
            // LMDB reports a short write, which a full disk causes, as EIO.
            let full = e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
                && disk_space(path).is_some_and(|(free, _)| free < 1 << 20);
            if full {
                Error::io(path, attempted, &std::io::Error::from(std::io::ErrorKind::StorageFull))
            } else {
                Error::io(path, attempted, &e)
            }
        }
        heed::Error::Mdb(MdbError::MapFull) => storage(
            ErrorCode::DiskFull,
            &"the log has reached the size of its map; take a snapshot so that it can be compacted",
        ),
        heed::Error::Mdb(MdbError::VersionMismatch) => too_new(path, 2),
        heed::Error::Mdb(
            e @ (MdbError::Corrupted
            | MdbError::PageNotFound
            | MdbError::Invalid
            | MdbError::Panic
            | MdbError::CursorFull
            | MdbError::PageFull),
        ) => corrupt(path, format_args!("cannot {attempted}: {e}")),
        heed::Error::Mdb(e) => storage(ErrorCode::Storage, &e),
        heed::Error::EnvAlreadyOpened => {
            storage(ErrorCode::DirectoryInUse, &"another node of this process has it open")
        }
        heed::Error::Encoding(e) | heed::Error::Decoding(e) => storage(ErrorCode::Internal, &e),
    }
}

/// A failure of a write: nobody can say what of it has reached the disk.
pub(crate) fn write_error(path: &Path, attempted: &str, error: heed::Error) -> Error {
    outcome_unknown(translate(path, attempted, error))
}

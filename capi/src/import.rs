//! Data directories of the crate raftify 0.1.x become directories of ours.

use std::collections::BTreeMap;
use std::ffi::c_char;
use std::path::Path;

use raftify_engine::Result;
use raftify_interop::{import, ImportOptions};

use crate::error::{c_text, raftify_status, ErrorObject};
use crate::node::Peer;
use crate::panic::catch;
use crate::pointer::{finish, place, slice, text};

/// Makes a directory of ours, `<log_dir>/node-<node_id>`, from one that the crate raftify 0.1.x wrote. Its snapshot and all
/// its entries are taken over and count as committed, also those above the commit index that was stored: it lags. One
/// directory of a cluster is imported; the other members join with empty ones. The old directory is only read.
///
/// old: in, UTF-8 path of the old directory, whose node must not be running. log_dir: in, UTF-8 path. node_id: above 0.
/// raft_addr: in, UTF-8 host:port that others will dial. cluster_id: in, UTF-8, as in the configuration that the node
/// will be started with; len 0: the default. peers: in, the members to be, this node or not; NULL if peer_count is 0.
/// out: out, owned JSON text {"directory", "snapshot", "first_index", "last_index", "term", "commands",
/// "newly_committed", ...}: raftify_string_free. out_len: out, its bytes without the final NUL; NULL allowed. error: out,
/// NULL allowed.
/// Threads: any. Blocks: for the disk. Errors: INVALID_ARGUMENT, INVALID_CONFIG, WRONG_DIRECTORY, DIRECTORY_IN_USE,
///   CORRUPT_DATA, DISK_FULL, STORAGE: nothing is left behind. Since: ABI 1.
#[no_mangle]
pub unsafe extern "C" fn raftify_import(
    old: *const c_char,
    old_len: usize,
    log_dir: *const c_char,
    log_dir_len: usize,
    node_id: u64,
    raft_addr: *const c_char,
    raft_addr_len: usize,
    cluster_id: *const c_char,
    cluster_id_len: usize,
    peers: *const Peer,
    peer_count: usize,
    out: *mut *mut c_char,
    out_len: *mut usize,
    error: *mut *mut ErrorObject,
) -> raftify_status {
    let work = || -> Result<()> {
        // SAFETY: NULL or writable, NULL or as many bytes or elements as named (preface of the header).
        let (out, old, log_dir, raft_addr, cluster_id, list) = unsafe {
            (
                place(out, "out")?,
                text(old, old_len, "old")?,
                text(log_dir, log_dir_len, "log_dir")?,
                text(raft_addr, raft_addr_len, "raft_addr")?,
                text(cluster_id, cluster_id_len, "cluster_id")?,
                slice(peers, peer_count, "peers")?,
            )
        };
        let mut members = BTreeMap::new();
        for peer in list {
            // SAFETY: NULL or `addr_len` bytes (preface of the header).
            let addr = unsafe { text(peer.addr, peer.addr_len, "peers.addr") }?;
            members.insert(peer.id, addr.to_owned());
        }
        let default = raftify_engine::Config::default().cluster_id;
        let options = ImportOptions {
            node_id,
            raft_addr: raft_addr.to_owned(),
            cluster_id: if cluster_id.is_empty() { default } else { cluster_id.to_owned() },
            peers: members,
        };
        let json = c_text(&import(Path::new(old), Path::new(log_dir), &options)?.to_json().to_string());
        // SAFETY: NULL or writable (preface of the header).
        if let Some(out_len) = unsafe { out_len.as_mut() } {
            *out_len = json.as_bytes().len();
        }
        *out = json.into_raw();
        Ok(())
    };
    // SAFETY: `error` is NULL or writable (preface of the header).
    unsafe { finish(catch(work), error) }
}

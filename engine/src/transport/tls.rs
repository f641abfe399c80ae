//! The certificates in use, which follow their files.
//!
//! Invariants: both sides of every connection show a certificate of a CA in `tls_ca`, and prove that it is theirs; without TLS in the
//! settings nothing of this is touched. Files that cannot be used leave what was in use in use.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

use super::connect::Unreachable;
use super::tls_files::{server_name, Loaded, TlsFiles};
use crate::address;
use crate::error::{Error, ErrorCode, Result};
use crate::locks::lock;

/// The files are looked at before a connection, but not more often.
const LOOK: Duration = Duration::from_secs(1);
/// A connection waits so long for that: a disk that hangs must not keep a node from its peers.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which file lay there: number, bytes, time of its last change. `None`: none.
type Stamp = [Option<(u64, u64, i64, i64)>; 3];

struct Present {
    loaded: Loaded,
    /// Of the files that it was made of.
    stamp: Stamp,
    looked: Instant,
    /// Why newer files are not in use.
    trouble: Option<String>,
}

/// Lets the next one look once this one has, however that ends.
struct Looking(Arc<Tls>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.looking.store(false, Ordering::Release);
    }
}

/// For the log: what came of looking at the files.
pub type News = Result<String, String>;

/// The certificates of one node, or of one client.
pub struct Tls {
    files: TlsFiles,
    /// What others expect this node's certificate to name.
    own: Option<ServerName<'static>>,
    present: Mutex<Present>,
    looking: AtomicBool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// How to dial with certificates.
#[derive(Clone, Debug)]
pub struct Dialling {
    pub config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl Dialling {
    /// What the certificate at `addr` has to name.
    pub fn name(&self, addr: &str) -> Result<ServerName<'static>, Unreachable> {
        let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
        self.name.clone().or_else(|| server_name(host)).ok_or_else(|| Unreachable {
            code: ErrorCode::Tls,
            reason: format!("{addr}: no certificate can name {host:?}; set tls_server_name to what it names"),
        })
    }
}

impl Tls {
    /// Of a node that others dial at `raft_addr`; `None` without TLS. Blocks on the disk.
    ///
    /// Errors: `Tls` with field and path where a file cannot be used, or the others would not take the certificate.
    pub fn of_node(files: &TlsFiles, raft_addr: &str) -> Result<Option<Arc<Tls>>> {
        if files.is_empty() {
            return Ok(None);
        }
        let (host, _) = address::split("raft_addr", raft_addr)?;
        let name = if files.server_name.is_empty() { host } else { &files.server_name };
        let own = server_name(name).ok_or_else(|| {
            Error::config("raft_addr", format!("no certificate can name {name:?}; set tls_server_name"))
        })?;
        Self::load(files, Some(own)).map(Some)
    }

    /// Of a client; `None` without TLS. Blocks on the disk. Errors: `Tls` with field and path.
    pub fn of_client(files: &TlsFiles) -> Result<Option<Arc<Tls>>> {
        if files.is_empty() {
            return Ok(None);
        }
        Self::load(files, None).map(Some)
    }

    fn load(files: &TlsFiles, own: Option<ServerName<'static>>) -> Result<Arc<Tls>> {
        files.check()?;
        // Before they are read: what is replaced meanwhile is seen as new.
        let stamp = stamp(files);
        let loaded = files.load(own.as_ref())?;
        let present = Mutex::new(Present { loaded, stamp, looked: Instant::now(), trouble: None });
        let looking = AtomicBool::new(false);
        Ok(Arc::new(Tls { files: files.clone(), own, present, looking }))
    }

    /// What is in use from now on, after a look at the files.
    async fn current(self: &Arc<Self>) -> (Loaded, Option<News>) {
        let due = lock(&self.present).looked.elapsed() >= LOOK;
        let mut news = None;
        // A disk that hangs takes one thread, not one for each connection.
        if due && !self.looking.swap(true, Ordering::AcqRel) {
            let looking = Looking(Arc::clone(self));
            let look = tokio::task::spawn_blocking(move || looking.0.look());
            news = timeout(PATIENCE, look).await.map(Result::unwrap_or_default).unwrap_or_default();
        }
        (lock(&self.present).loaded.clone(), news)
    }

    fn look(&self) -> Option<News> {
        let stamp = stamp(&self.files);
        let unchanged = lock(&self.present).stamp == stamp;
        let loaded = (!unchanged).then(|| self.files.load(self.own.as_ref()));
        let mut present = lock(&self.present);
        present.looked = Instant::now();
        match loaded {
            None => present.trouble.take().map(|_| Ok("the files of the certificates are those in use again".into())),
            Some(Ok(loaded)) => {
                (present.loaded, present.stamp, present.trouble) = (loaded, stamp, None);
                Some(Ok("the certificates were read anew, for all connections from now on".into()))
            }
            // The stamp stays: files that are half replaced are looked at again.
            Some(Err(error)) => {
                let told = present.trouble.as_ref() == Some(&error.message);
                present.trouble = Some(error.message.clone());
                (!told).then(|| {
                    Err(format!("{}; the certificates from before stay in use until this is mended", error.message))
                })
            }
        }
    }

    pub async fn dialling(self: &Arc<Self>) -> (Dialling, Option<News>) {
        let (loaded, news) = self.current().await;
        (Dialling { config: loaded.client, name: server_name(&self.files.server_name) }, news)
    }

    pub async fn taking(self: &Arc<Self>) -> (Arc<ServerConfig>, Option<News>) {
        let (loaded, news) = self.current().await;
        (loaded.server, news)
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    files.all().map(|(_, path)| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    })
}

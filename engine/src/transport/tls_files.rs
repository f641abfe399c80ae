//! The files that TLS takes: which they are, and what is made of them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{ring, CryptoProvider};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

use super::tls_reason::certificate;
use crate::error::{Error, ErrorCode, Result};

/// Far above any file of certificates.
const MAX_FILE: u64 = 4 << 20;
const H2: &[u8] = b"h2";

/// Where the certificates are. All empty: connections are plain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: this side's certificate, then those between it and the CA.
    pub cert: PathBuf,
    /// PEM: its private key, not encrypted.
    pub key: PathBuf,
    /// PEM: the CAs whose certificates are believed, of nodes and clients alike.
    pub ca: PathBuf,
    /// What the certificate of a node that is dialled has to name; empty: the host that is dialled.
    pub server_name: String,
}

/// What the files came to.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
}

fn of_file(field: &str, path: &Path, what: impl std::fmt::Display) -> Error {
    let mut error = Error::not_done(ErrorCode::Tls, format!("{field}: {}: {what}", path.display()));
    (error.field, error.path) = (Some(field.into()), Some(path.into()));
    error
}

/// `name` as certificates know it: a host name or an IP address.
pub fn server_name(name: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).ok()
}

impl TlsFiles {
    pub fn is_empty(&self) -> bool {
        *self == TlsFiles::default()
    }

    /// Fields and paths, in the order in which they are looked at.
    pub fn all(&self) -> [(&'static str, &Path); 3] {
        [("tls_cert", &self.cert), ("tls_key", &self.key), ("tls_ca", &self.ca)]
    }

    /// All or none. The files themselves are not looked at.
    pub fn check(&self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        for (field, path) in self.all() {
            if path.as_os_str().is_empty() {
                return Err(Error::config(
                    field,
                    "is not set; TLS takes tls_cert, tls_key and tls_ca together, and without it none of them",
                ));
            }
        }
        if !self.server_name.is_empty() && server_name(&self.server_name).is_none() {
            return Err(Error::config(
                "tls_server_name",
                format!("{:?} is neither a host name nor an IP address", self.server_name),
            ));
        }
        Ok(())
    }

    /// Reads and checks them. `own`: of a node, what those who dial it expect its certificate to name. Blocks on the disk.
    ///
    /// Errors: `Tls` with field and path.
    pub fn load(&self, own: Option<&ServerName<'_>>) -> Result<Loaded> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates("tls_cert", &self.cert)?;
        let key = self.key()?;
        let mut roots = RootCertStore::empty();
        for root in certificates("tls_ca", &self.ca)? {
            roots.add(root).map_err(|e| of_file("tls_ca", &self.ca, format_args!("no certificate of a CA: {e}")))?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|e| of_file("tls_ca", &self.ca, e))?;
        if let Some(own) = own {
            self.check_own(&chain, own, &roots, &provider, verifier.as_ref())?;
        }
        let fits = |e: rustls::Error| match e {
            rustls::Error::InconsistentKeys(_) => of_file(
                "tls_key",
                &self.key,
                format_args!(
                    "is not the key of the certificate in {}; name the two that belong together",
                    self.cert.display()
                ),
            ),
            other => of_file("tls_key", &self.key, other),
        };
        let versions = |e: rustls::Error| Error::not_done(ErrorCode::Internal, format!("TLS cannot be set up: {e}"));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(fits)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(fits)?;
        server.alpn_protocols = vec![H2.to_vec()];
        client.alpn_protocols = vec![H2.to_vec()];
        // Every connection proves itself anew: a ticket would outlive the certificate that it was given for.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        Ok(Loaded { server: Arc::new(server), client: Arc::new(client) })
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        let bytes = read("tls_key", &self.key)?;
        let why = if bytes.windows(9).any(|w| w == b"ENCRYPTED") {
            "the key is encrypted; give it without a pass phrase, in a file that only this program's user can read"
        } else {
            "holds no private key in PEM form (PRIVATE KEY)"
        };
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| of_file("tls_key", &self.key, why))
    }

    /// What the other members are going to check, so that the reason stands where the files are.
    fn check_own(
        &self,
        chain: &[CertificateDer<'static>],
        own: &ServerName<'_>,
        roots: &Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
        as_client: &dyn ClientCertVerifier,
    ) -> Result<()> {
        let Some((leaf, between)) = chain.split_first() else { return Ok(()) };
        let now = UnixTime::now();
        let refuse = |e: rustls::Error, side: &str| {
            let why = certificate(&e);
            of_file("tls_cert", &self.cert, format_args!("the other members would not take it from a {side}: it {why}"))
        };
        let as_server = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(|e| of_file("tls_ca", &self.ca, e))?;
        as_server.verify_server_cert(leaf, between, own, &[], now).map_err(|e| refuse(e, "node that they dial"))?;
        as_client.verify_client_cert(leaf, between, now).map_err(|e| refuse(e, "node that dials them"))?;
        Ok(())
    }
}

fn read(field: &str, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map_err(|e| of_file(field, path, format_args!("cannot be read: {e}; check the path and its permissions")))?;
    Ok(bytes)
}

fn certificates(field: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(field, path)?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|e| of_file(field, path, format_args!("is not in PEM form: {e}")))?;
    if all.is_empty() {
        return Err(of_file(field, path, "holds no certificate in PEM form (CERTIFICATE)"));
    }
    Ok(all)
}

//! A CA for tests.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::TlsFiles;

pub struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub pem: String,
}

/// A certificate and its key.
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { params, key, pem }
    }

    /// For a node at 127.0.0.1, as others know it, but for what `change` makes of it.
    pub fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// Files in `dir` with a certificate of this CA, which they believe.
    pub fn files(&self, dir: &Path) -> TlsFiles {
        write(dir, &self.issue(|_| {}), &self.pem)
    }
}

pub fn write(dir: &Path, pair: &Pair, ca: &str) -> TlsFiles {
    let put = |name: &str, text: &str| -> PathBuf {
        let (path, new) = (dir.join(name), dir.join(format!("{name}.new")));
        // As such files are replaced: by another of the same name.
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &path).unwrap();
        path
    };
    TlsFiles {
        cert: put("cert.pem", &pair.cert),
        key: put("key.pem", &pair.key),
        ca: put("ca.pem", ca),
        server_name: String::new(),
    }
}

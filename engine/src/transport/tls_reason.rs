//! Why TLS said no, for people: rustls names the rule, these name what to look at.

use std::io;

use tokio_rustls::rustls::{CertificateError, Error};

/// Completes "it …" or "its certificate …".
pub fn certificate(error: &Error) -> String {
    let Error::InvalidCertificate(why) = error else { return format!("cannot be used: {error}") };
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired (by the clock of this machine)".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet (by the clock of this machine)".into()
        }
        CertificateError::UnknownIssuer => "is not signed by a CA in tls_ca".into(),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "names {}, not {}: have that added to it, or set tls_server_name to a name that it bears",
            match presented.as_slice() {
                [] => "nobody".to_owned(),
                names => names.join(", "),
            },
            expected.to_str()
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not meant for this: its extended key usage has to name serverAuth to be dialled, and clientAuth to dial"
                .into()
        }
        other => format!("cannot be used: {other}"),
    }
}

/// Who looks at a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Dialled,
    Taken,
}

/// A plain connection came to somebody who wants TLS.
#[derive(Debug, thiserror::Error)]
#[error("what listens there wants TLS; give this side tls_cert, tls_key and tls_ca as well")]
pub struct Expected;

/// What the failure of a handshake means; `None` if TLS has no part in it.
pub fn handshake(error: &io::Error, side: Side) -> Option<String> {
    let inner = error.get_ref()?;
    if let Some(expected) = inner.downcast_ref::<Expected>() {
        return Some(expected.to_string());
    }
    let error = inner.downcast_ref::<Error>()?;
    Some(match (error, side) {
        (Error::InvalidCertificate(_), _) => format!("its certificate {}", certificate(error)),
        (Error::NoCertificatesPresented, _) => "it shows no certificate".into(),
        (Error::InvalidMessage(_), Side::Dialled) => {
            "what listens there does not speak TLS; give it a certificate too, or take it from this side".into()
        }
        (Error::InvalidMessage(_), Side::Taken) => "it does not speak TLS".into(),
        (Error::AlertReceived(alert), Side::Dialled) => {
            format!("it does not take this side's certificate ({alert:?}): its tls_ca has to hold the CA of that one")
        }
        (Error::AlertReceived(alert), Side::Taken) => format!("it does not take this node's certificate ({alert:?})"),
        (other, _) => other.to_string(),
    })
}

/// TLS' answer to what is not TLS, before anything is encrypted: an alert. HTTP/2 never begins so.
pub fn is_alert(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15, 0x03, ..])
}

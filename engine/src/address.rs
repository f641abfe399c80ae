//! `host:port` as users write it.

use crate::error::{Error, Result};

/// Splits and checks; the error names the field, the value and what to write instead.
pub fn split<'a>(field: &str, addr: &'a str) -> Result<(&'a str, u16)> {
    let refuse = |why: &str| {
        Err(Error::config(
            field,
            format!("{addr:?} {why}; write host:port, for example 127.0.0.1:60061 or [::1]:60061"),
        ))
    };
    let Some((host, port)) = addr.rsplit_once(':') else {
        return refuse("has no port");
    };
    let Ok(port) = port.parse::<u16>() else {
        return refuse("has no port between 0 and 65535");
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if bracketed.is_none() && host.contains(':') {
        return refuse("is an IPv6 address without brackets");
    }
    if bracketed.is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_err()) {
        return refuse("has no IPv6 address between its brackets");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if bracketed.is_none() && (host.is_empty() || !host.chars().all(plain)) {
        return refuse("has no host name");
    }
    Ok((host, port))
}

/// An address that others can dial: not a wildcard. `port_zero`: whether port 0 (take any) makes sense here.
pub fn dialable<'a>(field: &str, addr: &'a str, port_zero: bool) -> Result<(&'a str, u16)> {
    let (host, port) = split(field, addr)?;
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    if ip.is_ok_and(|ip| ip.is_unspecified()) {
        return Err(Error::config(
            field,
            format!(
                "{addr:?} is a wildcard, which nobody can dial; put it into listen_addr and name this machine here"
            ),
        ));
    }
    if port == 0 && !port_zero {
        return Err(Error::config(field, format!("{addr:?} has port 0, which nobody can dial; name the port")));
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_or_refused_with_a_remedy() {
        for good in ["127.0.0.1:60061", "localhost:1", "[::1]:7", "node-1.example_a:65535"] {
            assert!(dialable("raft_addr", good, false).is_ok(), "{good}");
        }
        for bad in [
            "",
            "nonsense",
            "a:",
            "a:65536",
            ":1",
            "::1:5",
            "[::1:5",
            "[x]:5",
            "a b:5",
            "http://a:5",
            "0.0.0.0:5",
            "[::]:5",
            "a:0",
        ] {
            let error = dialable("raft_addr", bad, false).unwrap_err();
            assert_eq!(error.field.as_deref(), Some("raft_addr"), "{bad}");
            assert!(error.message.contains(bad) && error.message.contains(" "), "{}", error.message);
        }
        assert!(dialable("raft_addr", "a:0", true).is_ok());
    }
}

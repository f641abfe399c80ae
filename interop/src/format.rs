//! Upstream's records: names of its databases and keys, and how the values are encoded.
//!
//! ```text
//! database "entries"   key: the index in decimal, at least 10 digits   value: eraftpb.Entry
//! database "meta"      hard_state: eraftpb.HardState   conf_state: eraftpb.ConfState   snapshot: eraftpb.Snapshot
//!                      last_index: u64, little endian (bincode)
//! ```
//! An entry's data is what was given to `propose`, as it was; its context is a counter (bincode u64). A membership
//! entry's data is a ConfChangeV2 whose context names one address per change (bincode of `Vec<SocketAddr>`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use prost_raft::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeV2, Entry, EntryType};

pub(crate) const ENTRIES: &str = "entries";
pub(crate) const META: &str = "meta";
pub(crate) const HARD_STATE: &[u8] = b"hard_state";
pub(crate) const CONF_STATE: &[u8] = b"conf_state";
pub(crate) const SNAPSHOT: &[u8] = b"snapshot";
pub(crate) const LAST_INDEX: &[u8] = b"last_index";

const KEY_DIGITS: usize = 10;

pub(crate) fn entry_key(index: u64) -> String {
    format!("{index:0KEY_DIGITS$}")
}

/// `None`: no key of an entry.
pub(crate) fn parse_entry_key(key: &[u8]) -> Option<u64> {
    let digits = key.len() >= KEY_DIGITS && key.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(key).ok().filter(|_| digits)?.parse().ok()
}

/// Changes of the membership that an entry makes, with the address each names; none for other entries.
pub(crate) fn changes_of(entry: &Entry) -> Vec<(ConfChangeSingle, Option<SocketAddr>)> {
    let change = match EntryType::from_i32(entry.entry_type) {
        Some(EntryType::EntryConfChange) => ConfChange::decode(entry.data.as_slice()).ok().map(|one| ConfChangeV2 {
            changes: vec![ConfChangeSingle { change_type: one.change_type, node_id: one.node_id }],
            context: one.context,
            ..ConfChangeV2::default()
        }),
        Some(EntryType::EntryConfChangeV2) => ConfChangeV2::decode(entry.data.as_slice()).ok(),
        _ => None,
    };
    let Some(change) = change else { return Vec::new() };
    let mut addresses = decode_addresses(&change.context).unwrap_or_default().into_iter();
    change.changes.into_iter().map(|single| (single, addresses.next())).collect()
}

/// bincode of `Vec<SocketAddr>`: a count of 8 bytes; for each a kind of 4 bytes, the address, the port of 2 bytes.
fn decode_addresses(bytes: &[u8]) -> Option<Vec<SocketAddr>> {
    let (count, mut rest) = take::<8>(bytes)?;
    let mut addresses = Vec::new();
    for _ in 0..u64::from_le_bytes(count) {
        let (kind, after) = take::<4>(rest)?;
        let (ip, after) = match u32::from_le_bytes(kind) {
            0 => take::<4>(after).map(|(ip, after)| (IpAddr::from(Ipv4Addr::from(ip)), after))?,
            1 => take::<16>(after).map(|(ip, after)| (IpAddr::from(Ipv6Addr::from(ip)), after))?,
            _ => return None,
        };
        let (port, after) = take::<2>(after)?;
        addresses.push(SocketAddr::new(ip, u16::from_le_bytes(port)));
        rest = after;
    }
    rest.is_empty().then_some(addresses)
}

fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    Some((*head, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decimal_numbers_of_ten_digits_or_more() {
        for index in [0, 1, 9_999_999_999, 10_000_000_000, u64::MAX] {
            assert_eq!(parse_entry_key(entry_key(index).as_bytes()), Some(index));
        }
        for noise in [&b""[..], b"1", b"+000000001", b"000000000x", b"99999999999999999999", "٠٠٠٠٠٠٠٠٠٠".as_bytes()]
        {
            assert_eq!(parse_entry_key(noise), None, "{noise:?}");
        }
    }

    #[test]
    fn addresses_are_decoded_whole_or_not_at_all() {
        let two = [
            &2u64.to_le_bytes()[..],
            &[0, 0, 0, 0, 127, 0, 0, 1, 0x5d, 0xea],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
        ]
        .concat();
        let expected = vec!["127.0.0.1:59997".parse().unwrap(), "[::1]:1".parse().unwrap()];
        assert_eq!(decode_addresses(&two), Some(expected));
        for end in 0..two.len() {
            assert_eq!(decode_addresses(&two[..end]), None);
        }
        let mut huge = two.clone();
        huge[7] = 0xff;
        assert_eq!(decode_addresses(&huge), None);
        let mut unknown = two;
        unknown[8] = 7;
        assert_eq!(decode_addresses(&unknown), None);
    }
}

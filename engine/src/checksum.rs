//! CRC-32C (Castagnoli), the checksum of everything that is stored or sent.

use crc_fast::{CrcAlgorithm, Digest};

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// That of what has the checksum `crc`, followed by `bytes`.
pub(crate) fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    // The state between is the checksum without the inversion that ends it.
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::{crc32c, crc32c_append};

    #[test]
    fn it_is_the_checksum_that_others_compute() {
        // RFC 3720, B.4.
        let ascending: Vec<u8> = (0..32).collect();
        for (bytes, known) in [(&[0; 32][..], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43), (&ascending, 0x46dd_794e)] {
            assert_eq!(crc32c(bytes), known);
        }
        let bytes: Vec<u8> = (0..70_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        for len in (0..600).chain([1023, 1024, 4097, 65_536, 70_000]) {
            let bytes = &bytes[..len];
            let expected = ::crc32c::crc32c(bytes);
            assert_eq!(crc32c(bytes), expected, "{len}");
            for split in [0, 1, len / 3, len.saturating_sub(1), len] {
                let (first, second) = bytes.split_at(split.min(len));
                assert_eq!(crc32c_append(crc32c(first), second), expected, "{len}, {split}");
            }
        }
    }
}

//! The form of every gRPC message of ours: one format byte, CRC32C of what follows it, the prost bytes.
//!
//! The codec checks the checksum and hands on bytes; what they mean is decided by who reads the stream, because that
//! depends on what was said before. A wrong checksum ends the stream: TCP's own misses one damaged segment in thousands.

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::Status;

/// The only format there is so far. Another one is refused by name.
pub const FORMAT: u8 = 1;
/// Format byte and checksum.
pub const OVERHEAD: usize = 5;

/// Codec of tonic for both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Envelope;

impl Codec for Envelope {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Envelope;
    type Decoder = Envelope;

    fn encoder(&mut self) -> Envelope {
        Envelope
    }

    fn decoder(&mut self) -> Envelope {
        Envelope
    }
}

impl Encoder for Envelope {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.reserve(item.len().saturating_add(OVERHEAD));
        seal(&item, dst);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1024, 32 << 10)
    }
}

impl Decoder for Envelope {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        open(src).map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1024, 32 << 10)
    }
}

fn seal(item: &[u8], dst: &mut impl BufMut) {
    dst.put_u8(FORMAT);
    dst.put_u32_le(crc32c::crc32c(item));
    dst.put_slice(item);
}

/// Takes exactly one message: all that `src` holds.
fn open(src: &mut impl Buf) -> Result<Bytes, Status> {
    if src.remaining() < OVERHEAD {
        return Err(Status::invalid_argument("message without format byte and checksum"));
    }
    let format = src.get_u8();
    if format != FORMAT {
        return Err(Status::invalid_argument(format!("message format {format} is not known here; known: {FORMAT}")));
    }
    let crc = src.get_u32_le();
    let body = src.copy_to_bytes(src.remaining());
    if crc32c::crc32c(&body) != crc {
        return Err(Status::data_loss("checksum of a message is wrong: it was damaged on its way"));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(item: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        seal(item, &mut out);
        out
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_to_the_same(item: Vec<u8>) {
            prop_assert_eq!(open(&mut &sealed(&item)[..]).unwrap(), item);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = open(&mut &bytes[..]);
        }

        #[test]
        fn one_flipped_bit_is_seen(item: Vec<u8>, at: prop::sample::Index, bit in 0..8u8) {
            let mut bytes = sealed(&item);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(open(&mut &bytes[..]).is_err());
        }
    }
}

//! The form of every gRPC message of ours: one format byte, CRC32C of what follows it, the prost bytes.
//!
//! The codec checks the checksum and hands on bytes; what they mean is decided by who reads the stream, because that
//! depends on what was said before. A wrong checksum ends the stream: TCP's own misses one damaged segment in thousands.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::Status;

use crate::checksum;

/// The only format there is so far. Another one is refused by name.
pub const FORMAT: u8 = 1;
/// Format byte and checksum.
pub const OVERHEAD: usize = 5;

/// Bytes of one message, in pieces: they are put together where they are sent.
#[derive(Clone, Debug, Default)]
pub struct Parts(Vec<Bytes>);

impl From<Vec<Bytes>> for Parts {
    fn from(parts: Vec<Bytes>) -> Self {
        Parts(parts)
    }
}

impl From<Bytes> for Parts {
    fn from(bytes: Bytes) -> Self {
        Parts(vec![bytes])
    }
}

/// Codec of tonic for both directions; `T` is what is sent.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<T>(PhantomData<fn(T)>);

impl<T> Default for Envelope<T> {
    fn default() -> Self {
        Envelope(PhantomData)
    }
}

impl<T: Into<Parts> + Send + 'static> Codec for Envelope<T> {
    type Encode = T;
    type Decode = Bytes;
    type Encoder = Envelope<T>;
    type Decoder = Open;

    fn encoder(&mut self) -> Envelope<T> {
        Envelope::default()
    }

    fn decoder(&mut self) -> Open {
        Open
    }
}

impl<T: Into<Parts> + Send + 'static> Encoder for Envelope<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let Parts(parts) = item.into();
        dst.reserve(parts.iter().map(Bytes::len).fold(OVERHEAD, usize::saturating_add));
        seal(&parts, dst);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1024, 32 << 10)
    }
}

/// The receiving half.
#[derive(Clone, Copy, Debug)]
pub struct Open;

impl Decoder for Open {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        open(src).map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1024, 32 << 10)
    }
}

fn seal(parts: &[Bytes], dst: &mut impl BufMut) {
    dst.put_u8(FORMAT);
    dst.put_u32_le(parts.iter().fold(0, |crc, part| checksum::crc32c_append(crc, part)));
    parts.iter().for_each(|part| dst.put_slice(part));
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
    if checksum::crc32c(&body) != crc {
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
        let (first, rest) = item.split_at(item.len() / 3);
        seal(&[Bytes::copy_from_slice(first), Bytes::copy_from_slice(rest)], &mut out);
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

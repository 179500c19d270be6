//! One version byte, then the value in bincode's encoding; the only file that names bincode.
//!
//! Decoding takes bytes from disk or network: it never panics, refuses trailing bytes, and takes
//! memory in proportion to the bytes, and no more than [`RECORD_BYTES_MAX`], whatever lengths they
//! claim. It does not find flipped bits: checksums are the business of who stores or sends the
//! bytes.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version written by [`encode`] and read by [`decode`].
pub const FORMAT: u8 = 1;

/// No record is larger than this when encoded, nor when decoded.
pub const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Records up to these sizes are decoded within eight times as much.
const SMALL_BYTES: usize = 4 * 1024;
const MEDIUM_BYTES: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("encode a record")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),

    #[error("encode a record of {bytes} bytes: more than {RECORD_BYTES_MAX}")]
    TooLarge { bytes: usize },

    #[error("decode a record: it is empty")]
    Empty,

    #[error("decode a record of version {found}: this release reads version {expected}")]
    Version { found: u8, expected: u8 },

    #[error("decode a record")]
    Decode(#[source] Box<dyn std::error::Error + Send + Sync>),

    #[error("decode a record: {bytes} bytes are left over")]
    Trailing { bytes: usize },
}

/// Encodes a value as version [`FORMAT`].
pub fn encode<T: Serialize>(value: &T) -> Result<Bytes, CodecError> {
    encode_as(FORMAT, value)
}

/// Decodes a value of version [`FORMAT`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_as(FORMAT, bytes)
}

/// Encodes a value whose kind counts its own versions.
pub fn encode_as<T: Serialize>(version: u8, value: &T) -> Result<Bytes, CodecError> {
    let mut bytes = vec![version];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .map_err(|source| CodecError::Encode(Box::new(source)))?;
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: bytes.len() });
    }
    Ok(Bytes::from(bytes))
}

/// Decodes a value whose kind counts its own versions; see [`version`].
pub fn decode_as<T: DeserializeOwned>(expected: u8, bytes: &[u8]) -> Result<T, CodecError> {
    let found = version(bytes)?;
    if found != expected {
        return Err(CodecError::Version { found, expected });
    }
    let body = &bytes[1..];
    // bincode reserves what a length claims before it looks whether so much is there, up to a limit
    // that is fixed when it is compiled. A byte stands for eight at most (a number or a length).
    let decoded = if body.len() <= SMALL_BYTES {
        decode_within::<T, { 8 * SMALL_BYTES }>(body)
    } else if body.len() <= MEDIUM_BYTES {
        decode_within::<T, { 8 * MEDIUM_BYTES }>(body)
    } else {
        decode_within::<T, RECORD_BYTES_MAX>(body)
    };
    let (value, read) = decoded.map_err(|source| CodecError::Decode(Box::new(source)))?;
    if read != body.len() {
        return Err(CodecError::Trailing { bytes: body.len() - read });
    }
    Ok(value)
}

fn decode_within<T: DeserializeOwned, const BYTES: usize>(
    body: &[u8],
) -> Result<(T, usize), bincode::error::DecodeError> {
    bincode::serde::decode_from_slice(body, bincode::config::standard().with_limit::<BYTES>())
}

/// The version a record was written with.
pub fn version(bytes: &[u8]) -> Result<u8, CodecError> {
    bytes.first().copied().ok_or(CodecError::Empty)
}

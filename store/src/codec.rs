//! Records: one version byte, then the value in bincode's encoding; the only file that names bincode.
//!
//! bincode is positional: a value with one field more is another encoding. So each [`Kind`] of
//! record counts its own versions, writes the newest and reads all of them:
//!
//! ```
//! use piton_store::codec::Kind;
//! # use serde::{Deserialize, Serialize};
//! #[derive(Serialize, Deserialize)]
//! struct Visit { place: String, days: u32 }
//!
//! /// What version 1 of it was. Never changed.
//! #[derive(Serialize, Deserialize)]
//! struct Visit1 { place: String }
//!
//! const VISIT: Kind<Visit> = Kind::new("a visit", &[|old| {
//!     let Visit1 { place } = old.read()?;
//!     Ok(Visit { place, days: 1 })
//! }]);
//!
//! let old = Kind::<Visit1>::new("a visit", &[]).encode(&Visit1 { place: "Lhasa".into() })?;
//! assert_eq!(VISIT.decode(&old)?.days, 1);
//! # Ok::<_, piton_store::codec::CodecError>(())
//! ```
//!
//! What all nodes of a cluster read is written in a version that all of them know. Which one that is,
//! the cluster's feature level says ([`Kind::encode_at`]): a kind names what is written below a level.
//!
//! ```
//! # use piton_store::codec::Kind;
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Serialize, Deserialize)]
//! # struct Visit { place: String, days: u32 }
//! # #[derive(Serialize, Deserialize)]
//! # struct Visit1 { place: String }
//! const VISIT_1: Kind<Visit1> = Kind::new("a visit", &[]);
//! const VISIT: Kind<Visit> = Kind::new("a visit", &[|old| {
//!     let Visit1 { place } = old.read()?;
//!     Ok(Visit { place, days: 1 })
//! }])
//! .below(&[(3, |visit| VISIT_1.encode(&Visit1 { place: visit.place.clone() }))]);
//!
//! let visit = Visit { place: "Lhasa".into(), days: 2 };
//! assert_eq!(VISIT_1.decode(&VISIT.encode_at(2, &visit)?)?.place, "Lhasa");
//! assert_eq!(VISIT.decode(&VISIT.encode_at(3, &visit)?)?.days, 2);
//! # Ok::<_, piton_store::codec::CodecError>(())
//! ```
//!
//! Decoding takes bytes from disk or network: it never panics, refuses trailing bytes, and takes
//! memory in proportion to the bytes, and no more than [`RECORD_BYTES_MAX`], whatever lengths they
//! claim. It does not find flipped bits: checksums are the business of who stores or sends the
//! bytes.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No record is larger than this when encoded, nor when decoded.
pub const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Records up to these sizes are decoded within eight times as much.
const SMALL_BYTES: usize = 4 * 1024;
const MEDIUM_BYTES: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("encode {kind}")]
    Encode {
        kind: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("encode {kind} of {bytes} bytes: more than {RECORD_BYTES_MAX}")]
    TooLarge { kind: &'static str, bytes: usize },

    #[error("decode {kind}: it is cut short")]
    Short { kind: &'static str },

    #[error("decode {kind} of version {found}: this release knows versions up to {known}")]
    Version { kind: &'static str, found: u8, known: u8 },

    #[error("decode {kind}: its version is not read any more")]
    Retired { kind: &'static str },

    #[error("decode {kind}")]
    Decode {
        kind: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("decode {kind}: {bytes} bytes are left over")]
    Trailing { kind: &'static str, bytes: usize },
}

/// A kind of record and its versions.
pub struct Kind<T: 'static> {
    name: &'static str,
    older: &'static [Older<T>],
    below: &'static [(u32, Lower<T>)],
}

/// Reads the body of a version that is not written any more.
pub type Older<T> = fn(Body<'_>) -> Result<T, CodecError>;

/// Writes a version that is not the newest.
pub type Lower<T> = fn(&T) -> Result<Bytes, CodecError>;

/// What follows the version byte of a record.
pub struct Body<'a> {
    kind: &'static str,
    bytes: &'a [u8],
}

impl<T> Kind<T> {
    /// A kind by the name that errors give it. `older` reads the versions that are not written any
    /// more, the first one first: the version that is written is one more than they are.
    pub const fn new(name: &'static str, older: &'static [Older<T>]) -> Kind<T> {
        assert!(older.len() < u8::MAX as usize, "a version is one byte");
        Kind { name, older, below: &[] }
    }

    /// What is written below these feature levels, the lowest first.
    pub const fn below(self, below: &'static [(u32, Lower<T>)]) -> Kind<T> {
        Kind { name: self.name, older: self.older, below }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The version that is written.
    pub fn version(&self) -> u8 {
        self.older.len() as u8 + 1
    }
}

impl<T: Serialize> Kind<T> {
    /// Encodes a value in the newest version.
    ///
    /// # Errors
    /// When it is too large.
    pub fn encode(&self, value: &T) -> Result<Bytes, CodecError> {
        let kind = self.name;
        let mut out = Growing(vec![self.version()]);
        bincode::serde::encode_into_std_write(value, &mut out, bincode::config::standard())
            .map_err(|source| CodecError::Encode { kind, source: Box::new(source) })?;
        let Growing(bytes) = out;
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(CodecError::TooLarge { kind, bytes: bytes.len() });
        }
        Ok(Bytes::from(bytes))
    }

    /// Encodes a value in the newest version that every node of a cluster of this feature level knows.
    ///
    /// # Errors
    /// As [`Kind::encode`].
    pub fn encode_at(&self, level: u32, value: &T) -> Result<Bytes, CodecError> {
        match self.below.iter().find(|(from, _)| level < *from) {
            Some((_, write)) => write(value),
            None => self.encode(value),
        }
    }
}

impl<T: DeserializeOwned> Kind<T> {
    /// Decodes a value of any version there was.
    ///
    /// # Errors
    /// When the bytes are none, or of a version that only a newer release knows or none reads any more.
    pub fn decode(&self, bytes: &[u8]) -> Result<T, CodecError> {
        let (kind, known) = (self.name, self.version());
        let Some((&found, bytes)) = bytes.split_first() else {
            return Err(CodecError::Short { kind });
        };
        let body = Body { kind, bytes };
        let older = usize::from(found).checked_sub(1).and_then(|index| self.older.get(index));
        match older {
            Some(read) => read(body),
            None if found == known => body.read(),
            None => Err(CodecError::Version { kind, found, known }),
        }
    }
}

impl Body<'_> {
    /// For a version that is not read any more: only for what can be done without.
    ///
    /// # Errors
    /// Always.
    pub fn retired<T>(self) -> Result<T, CodecError> {
        Err(CodecError::Retired { kind: self.kind })
    }

    /// Decodes it as a value of the type that the version had.
    ///
    /// # Errors
    /// When the bytes are no such value.
    pub fn read<T: DeserializeOwned>(self) -> Result<T, CodecError> {
        let Body { kind, bytes } = self;
        // bincode reserves what a length claims before it looks whether so much is there, up to a
        // limit that is fixed when it is compiled. A byte stands for eight at most (a number or a
        // length).
        let decoded = if bytes.len() <= SMALL_BYTES {
            decode_within::<T, { 8 * SMALL_BYTES }>(bytes)
        } else if bytes.len() <= MEDIUM_BYTES {
            decode_within::<T, { 8 * MEDIUM_BYTES }>(bytes)
        } else {
            decode_within::<T, RECORD_BYTES_MAX>(bytes)
        };
        let (value, read) =
            decoded.map_err(|source| CodecError::Decode { kind, source: Box::new(source) })?;
        if read != bytes.len() {
            return Err(CodecError::Trailing { kind, bytes: bytes.len() - read });
        }
        Ok(value)
    }
}

/// What is encoded so far. A large part gets some room behind it: what follows is short, and would have
/// the whole moved to a place twice as large.
struct Growing(Vec<u8>);

impl io::Write for Growing {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if part.len() > SMALL_BYTES {
            self.0.reserve(part.len() + SMALL_BYTES);
        }
        self.0.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn decode_within<T: DeserializeOwned, const BYTES: usize>(
    body: &[u8],
) -> Result<(T, usize), bincode::error::DecodeError> {
    bincode::serde::decode_from_slice(body, bincode::config::standard().with_limit::<BYTES>())
}

/// A kind of value that is laid out by hand behind its version byte.
pub struct Layout {
    name: &'static str,
    version: u8,
}

impl Layout {
    /// A kind by the name that errors give it, and the version that is written.
    pub const fn new(name: &'static str, version: u8) -> Layout {
        Layout { name, version }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A value that so far has its version, with room for `body` bytes.
    pub fn begin(&self, body: usize) -> BytesMut {
        let mut value = BytesMut::with_capacity(1 + body);
        value.put_u8(self.version);
        value
    }

    /// What follows the version.
    ///
    /// # Errors
    /// When it is empty, or of another version.
    pub fn body<'a>(&self, value: &'a [u8]) -> Result<&'a [u8], CodecError> {
        let (kind, known) = (self.name, self.version);
        match value.split_first() {
            Some((&found, body)) if found == known => Ok(body),
            Some((&found, _)) => Err(CodecError::Version { kind, found, known }),
            None => Err(CodecError::Short { kind }),
        }
    }
}

//! Keys of the meta group; a table of its own, so they share no tags with a shard's.

use bytes::{BufMut, Bytes};

use super::{build, parse, put_text, take_tag, take_text};

const NAMESPACE: u8 = b'n';
const ATTRIBUTES: u8 = b'a';

/// How many commands were applied.
pub fn version() -> Bytes {
    Bytes::from_static(b"v")
}

pub fn limits() -> Bytes {
    Bytes::from_static(b"l")
}

pub fn routes() -> Bytes {
    Bytes::from_static(b"s")
}

/// What all namespaces begin with.
pub fn namespaces() -> Bytes {
    Bytes::from_static(&[NAMESPACE])
}

pub fn namespace(id: &str) -> Bytes {
    build(|key| {
        key.put_u8(NAMESPACE);
        put_text(key, id);
    })
}

/// What the search attributes of all namespaces begin with.
pub fn all_search_attributes() -> Bytes {
    Bytes::from_static(&[ATTRIBUTES])
}

pub fn search_attributes(namespace_id: &str) -> Bytes {
    build(|key| {
        key.put_u8(ATTRIBUTES);
        put_text(key, namespace_id);
    })
}

/// The namespace id in a key of search attributes.
pub fn parse_search_attributes(key: &[u8]) -> Option<String> {
    parse(key, |rest| {
        take_tag(rest, ATTRIBUTES)?;
        take_text(rest)
    })
}

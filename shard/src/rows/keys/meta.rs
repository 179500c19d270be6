//! Keys of the meta group; a table of its own, so they share no tags with a shard's.

use bytes::{BufMut, Bytes};

use super::parts::{build, parse, put_text, take_tag, take_text};

const NAMESPACE: u8 = b'n';
const ATTRIBUTES: u8 = b'a';

const NODE: u8 = b'N';
const PLACEMENT: u8 = b'p';

/// How many commands were applied.
pub(crate) fn version() -> Bytes {
    Bytes::from_static(b"v")
}

pub(crate) fn limits() -> Bytes {
    Bytes::from_static(b"l")
}

pub(crate) fn routes() -> Bytes {
    Bytes::from_static(b"s")
}

pub(crate) fn settings() -> Bytes {
    Bytes::from_static(b"c")
}

/// What all nodes begin with.
pub(crate) fn nodes() -> Bytes {
    Bytes::from_static(&[NODE])
}

pub(crate) fn node(id: u64) -> Bytes {
    build(|key| {
        key.put_u8(NODE);
        key.put_u64(id);
    })
}

/// What all placements begin with.
pub(crate) fn placements() -> Bytes {
    Bytes::from_static(&[PLACEMENT])
}

pub(crate) fn placement(shard: u32) -> Bytes {
    build(|key| {
        key.put_u8(PLACEMENT);
        key.put_u32(shard);
    })
}

/// What all namespaces begin with.
pub(crate) fn namespaces() -> Bytes {
    Bytes::from_static(&[NAMESPACE])
}

pub(crate) fn namespace(id: &str) -> Bytes {
    build(|key| {
        key.put_u8(NAMESPACE);
        put_text(key, id);
    })
}

/// What the search attributes of all namespaces begin with.
pub(crate) fn all_search_attributes() -> Bytes {
    Bytes::from_static(&[ATTRIBUTES])
}

pub(crate) fn search_attributes(namespace_id: &str) -> Bytes {
    build(|key| {
        key.put_u8(ATTRIBUTES);
        put_text(key, namespace_id);
    })
}

/// The namespace id in a key of search attributes.
pub(crate) fn parse_search_attributes(key: &[u8]) -> Option<String> {
    parse(key, |rest| {
        take_tag(rest, ATTRIBUTES)?;
        take_text(rest)
    })
}

//! Tokens by which a list goes on: where the last page ended, bound to the list that it is of.
//!
//! ```text
//! version(1) hash(8) place(..)
//! ```
//!
//! The hash is of the list and the place, so that a token of another list, or of a client's own making,
//! is refused. It is no secret: the place itself must be harmless.

use xxhash_rust::xxh3::Xxh3;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 9;

/// What a list is of.
#[derive(Clone, Copy, Debug)]
pub struct ListOf<'a> {
    /// Which kind of list.
    pub call: &'a str,
    /// The namespace's id; empty for a list of namespaces.
    pub namespace: &'a str,
    /// All that was asked for but the size of the page.
    pub query: &'a [u8],
}

impl ListOf<'_> {
    /// The token to go on behind `place`.
    pub fn token(&self, place: &[u8]) -> Vec<u8> {
        [&[VERSION], &self.hash(place)[..], place].concat()
    }

    /// The place that a token stands for; `None` if it was not made for this list.
    pub fn place<'t>(&self, token: &'t [u8]) -> Option<&'t [u8]> {
        let (head, place) = token.split_at_checked(HEAD_BYTES)?;
        (head[0] == VERSION && head[1..] == self.hash(place)).then_some(place)
    }

    fn hash(&self, place: &[u8]) -> [u8; HEAD_BYTES - 1] {
        let mut hash = Xxh3::new();
        for part in [self.call.as_bytes(), self.namespace.as_bytes(), self.query, place] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.digest().to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: ListOf<'_> = ListOf { call: "list", namespace: "n", query: b"q" };

    #[test]
    fn a_token_stands_for_its_place() {
        for place in [&b""[..], b"place"] {
            assert_eq!(LIST.place(&LIST.token(place)), Some(place));
        }
    }

    #[test]
    fn a_token_of_another_list_or_of_a_clients_own_making_is_refused() {
        let token = LIST.token(b"place");
        for other in [
            ListOf { call: "other", ..LIST },
            ListOf { namespace: "other", ..LIST },
            ListOf { query: b"other", ..LIST },
            // The same bytes, divided otherwise.
            ListOf { call: "listn", namespace: "", ..LIST },
        ] {
            assert_eq!(other.place(&token), None, "{other:?}");
        }
        for at in 0..token.len() {
            assert_eq!(LIST.place(&token[..at]), None, "{at} bytes of it");
            let mut changed = token.clone();
            changed[at] ^= 1;
            assert_eq!(LIST.place(&changed), None, "byte {at} changed");
        }
    }
}

//! Golden bytes: what each kind of record was encoded to when its version was made. A file of them
//! only grows. For the tests of all crates; no other code may use it.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{CodecError, Kind};

/// A file of golden bytes: a line `name: bytes in hex` for each record, `#` before a remark.
pub struct Golden {
    lines: BTreeMap<String, String>,
    wrong: Vec<String>,
}

impl Golden {
    pub fn of(text: &str) -> Golden {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let lines = lines.filter_map(|line| line.split_once(": "));
        let lines = lines.map(|(name, hex)| (name.to_owned(), hex.to_owned()));
        Golden { lines: lines.collect(), wrong: Vec::new() }
    }

    /// Checks that this is still encoded to the bytes in the file.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let mut hex = String::new();
        for byte in bytes {
            write!(hex, "{byte:02x}").expect("a string takes all");
        }
        if self.lines.get(name) != Some(&hex) {
            self.wrong.push(format!("{name}: {hex}"));
        }
    }

    /// Checks a record: it is encoded as in the file, and what the file has of all its versions is
    /// read, unless it is retired; of the newest one, as this value.
    pub fn record<T>(&mut self, kind: &Kind<T>, label: &str, value: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let name = |version| format!("{}{label} (version {version})", kind.name());
        self.bytes(&name(kind.version()), &kind.encode(value).expect("a short record"));
        for version in 1..=kind.version() {
            let Some(hex) = self.lines.get(&name(version)) else { continue };
            let read = kind.decode(&from_hex(hex));
            if version < kind.version() && matches!(read, Err(CodecError::Retired { .. })) {
                continue;
            }
            let read = read.unwrap_or_else(|error| panic!("{}: {error}", name(version)));
            assert!(version < kind.version() || read == *value, "{}: {read:?}", name(version));
        }
    }

    /// The bytes in the file.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.lines.get(name).map(|hex| from_hex(hex))
    }

    /// # Panics
    /// When something was not as in the file.
    pub fn finish(self) {
        assert!(
            self.wrong.is_empty(),
            "these are not encoded as in the file of golden bytes. What is new gets a line there; \
             what was released must not change: make a new version of its kind.\n{}",
            self.wrong.join("\n")
        );
    }
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).expect("hex is ascii");
        u8::from_str_radix(pair, 16).expect("two hex digits")
    });
    digits.collect()
}

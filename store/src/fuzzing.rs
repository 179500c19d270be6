//! Hostile bytes: what damage or malice makes of valid ones, and this crate's decoders to give them
//! to. Owns the ways in which bytes go wrong, for the tests of all crates and for the targets in
//! `tests/fuzz`; no other code may use it.
//!
//! A decoder function here may return whatever it likes, but never panics, and asserts what must
//! hold of what it accepted.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::codec::Kind;
use crate::frame::{self, Engine, View};
use crate::{Batch, KeyRange, MemoryStore, Order, Store, Table, Write as StoreWrite};

/// Inputs that each decoder is given in a test.
const CASES: usize = 100_000;
/// What a decoder may hold in memory: so much whatever the input, and so much for each byte of it.
const HELD_BYTES_MAX: u64 = 4 << 20;
const HELD_BYTES_PER_BYTE: u64 = 64;
/// Far beyond any honest case, even on a machine that does other things.
const CASE_TIME_MAX: Duration = Duration::from_secs(5);

/// Gives a decoder [`CASES`] inputs made of the samples. `held` runs a closure and tells how many
/// bytes it held at most. `PITON_SEED` replaces the seed.
///
/// # Panics
/// When the decoder does, or holds more memory than the input justifies; the input is printed.
#[expect(clippy::print_stdout, reason = "a failing run names its seed and input")]
pub fn attack(
    what: &str,
    samples: Vec<Vec<u8>>,
    held: impl Fn(&mut dyn FnMut()) -> u64,
    decode: impl Fn(&[u8]),
) {
    let seed = std::env::var("PITON_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("{what}: seed {seed}, {} samples", samples.len());
    for sample in &samples {
        decode(sample);
    }
    let mut hostile = Hostile::new(seed, samples);
    for case in 0..CASES {
        let bytes = hostile.bytes();
        let began = Instant::now();
        let mut outcome = Ok(());
        let held = held(&mut || outcome = catch_unwind(AssertUnwindSafe(|| decode(&bytes))));
        let held_max = HELD_BYTES_MAX + HELD_BYTES_PER_BYTE * bytes.len() as u64;
        if outcome.is_err() || held > held_max || began.elapsed() > CASE_TIME_MAX {
            println!("case {case}, {} bytes: {bytes:02x?}", bytes.len());
        }
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(held <= held_max, "{what}, case {case}: held {held} bytes, at most {held_max}");
        assert!(began.elapsed() <= CASE_TIME_MAX, "{what}, case {case}: {:?}", began.elapsed());
    }
}

/// Draws hostile inputs, repeatably from a seed.
pub struct Hostile {
    random: SmallRng,
    samples: Vec<Vec<u8>>,
}

impl Hostile {
    pub fn new(seed: u64, samples: Vec<Vec<u8>>) -> Hostile {
        Hostile { random: SmallRng::seed_from_u64(seed), samples }
    }

    /// Random bytes, or a sample that went wrong in up to four ways.
    pub fn bytes(&mut self) -> Vec<u8> {
        if self.samples.is_empty() || self.random.random_ratio(1, 10) {
            let mut bytes = vec![0; self.random.random_range(0..200)];
            self.random.fill_bytes(&mut bytes);
            return bytes;
        }
        let mut bytes = self.sample().clone();
        for _ in 0..self.random.random_range(1..=4) {
            self.damage(&mut bytes);
        }
        bytes
    }

    fn sample(&mut self) -> &Vec<u8> {
        let which = self.random.random_range(0..self.samples.len());
        &self.samples[which]
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        let place = self.random.random_range(0..=bytes.len());
        match self.random.random_range(0..8) {
            0 if place < bytes.len() => bytes[place] ^= 1 << self.random.random_range(0..8),
            1 if place < bytes.len() => bytes[place] = self.random.random(),
            2 => bytes.truncate(place),
            3 => {
                // The begin of this and the end of another one.
                let other = self.sample().clone();
                let from = self.random.random_range(0..=other.len());
                bytes.truncate(place);
                bytes.extend_from_slice(&other[from..]);
            }
            4 => {
                // A part twice.
                let end = self.random.random_range(place..=bytes.len());
                let part = bytes[place..end].to_vec();
                bytes.splice(place..place, part);
            }
            _ => {
                let lie = self.lie(bytes.len());
                let end = bytes.len().min(place + lie.len());
                bytes.splice(place..end, lie);
            }
        }
    }

    /// A number as lengths and counts are written, out of all proportion or just beside the truth.
    fn lie(&mut self, length: usize) -> Vec<u8> {
        let number = self.number(length as u64);
        match self.random.random_range(0..8) {
            0 => vec![number as u8],
            1 => (number as u16).to_be_bytes().to_vec(),
            2 => (number as u32).to_be_bytes().to_vec(),
            3 => (number as u32).to_le_bytes().to_vec(),
            4 => number.to_be_bytes().to_vec(),
            5 => number.to_le_bytes().to_vec(),
            // As bincode and protobuf write numbers of any length.
            6 => [&[0xfd], &number.to_le_bytes()[..]].concat(),
            _ => leb128(number),
        }
    }

    fn number(&mut self, length: u64) -> u64 {
        match self.random.random_range(0..5) {
            0 => self.random.random_range(0..4),
            1 => (1 << self.random.random_range(0..64)) - self.random.random_range(0..2_u64),
            2 => u64::MAX - self.random.random_range(0..3),
            3 => length.wrapping_add(self.random.random_range(0..5)).wrapping_sub(2),
            _ => self.random.random(),
        }
    }
}

fn leb128(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

type Record = (u64, String, Vec<(Bytes, Option<Vec<u64>>)>);
const RECORD: Kind<Record> = Kind::new("a record", &[]);

/// A record of our own encoding.
pub fn codec(bytes: &[u8]) {
    if let Ok(record) = RECORD.decode(bytes) {
        let again = RECORD.encode(&record).expect("it was decoded");
        assert_eq!(RECORD.decode(&again).expect("it was encoded"), record);
    }
}

/// Engine rows of one value: the first byte says which of them are sealed with a right checksum.
pub fn frame(bytes: &[u8]) {
    let Some((&sealed, body)) = bytes.split_first() else { return };
    let store = MemoryStore::new();
    let (head, chunk) = body.split_at(body.len() / 2);
    let row = |bit: u8, key: &'static [u8], body: &[u8]| {
        let value = if sealed & bit == 0 {
            Bytes::copy_from_slice(body)
        } else {
            frame::seal(key, &[body])
        };
        StoreWrite::put(key, value)
    };
    // All of it as the value of one key, and half of it beside a chunk of another.
    let rows = vec![
        row(1, b"rkey", body),
        row(2, b"rother", head),
        row(4, b"cother\0\0\0\0", chunk),
        row(8, b"cother\0\0\0\x01", chunk),
    ];
    store.engine().write(rows).expect("memory takes all");
    let got = store.get(b"key");
    let scanned = store.scan(KeyRange::all(), Order::Descending, 10);
    assert!(got.is_ok() || scanned.is_err(), "a scan meets what a read does");
    // Whatever lies there is replaced and removed.
    let writes = vec![StoreWrite::put("key", "value"), StoreWrite::delete("other")];
    store.write(Batch { writes }).expect("it is replaced");
    assert_eq!(store.get(b"key").expect("it is whole").as_deref(), Some(&b"value"[..]));
    assert_eq!(store.get(b"other").expect("it is gone"), None);
    store.clear_prefix(b"").expect("it is cleared");
    let left = store.engine().scan(KeyRange::all(), Order::Ascending, 1).expect("rows");
    assert_eq!(left, []);
}

/// The mark that says where a group's rows stand.
pub fn mark(bytes: &[u8]) {
    const GROUP: u32 = 7;
    let store = Arc::new(MemoryStore::new());
    let key = [&[0xff; 4][..], &GROUP.to_be_bytes()].concat();
    let writes = vec![StoreWrite::put(key, Bytes::copy_from_slice(bytes))];
    store.write(Batch { writes }).expect("memory takes all");
    if let Ok(table) = Table::open(store, GROUP) {
        let mark = table.applied().expect("a mark was there");
        assert_eq!([&mark.index.to_be_bytes()[..], &mark.bytes].concat(), bytes);
    }
}

#[cfg(test)]
mod tests;

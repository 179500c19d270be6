//! The bytes of one record. Owns the layout and its checksums; knows nothing of files or order.
//!
//! ```text
//!  0  u32  header checksum: CRC32C of segment number, offset, and bytes 4..44
//!  4  u32  payload checksum: CRC32C
//!  8  u32  payload length
//! 12  u32  group
//! 16  u8   kind
//! 17  u8   version of its kind
//! 18  u16  magic
//! 20  u64  batch number
//! 28  u64  index     (see [`RecordKind`] for kinds that use it for something else)
//! 36  u64  term
//! 44  payload
//! ```
//!
//! All numbers are little endian. The header's checksum covers where the record lies, so an old
//! record in a reused file, or one copied by mistake, is never valid; it also covers the payload's
//! checksum, so a valid header with a payload of another record is not valid either.
//!
//! The header is the same in all releases, so that an older one knows what a newer one wrote, and
//! leaves it alone. A kind whose payload changes gets its next version.

use super::GroupId;

/// Bytes of a record before its payload.
pub(super) const HEADER_BYTES: usize = 44;
/// Longest payload: well over the limits of any entry, low enough for 32-bit offsets.
pub(super) const PAYLOAD_BYTES_MAX: usize = 256 << 20;

const MAGIC: u16 = 0x7450;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// Opens a batch. Index: number of records that follow; term: bytes of the whole batch.
    Batch,
    /// First record of a segment; see `segment::Head`.
    Head,
    /// An entry that continues its group's log.
    Entry,
    /// An entry copied from a segment that is to be freed. Never implies anything about others.
    RewrittenEntry,
    /// The group's vote.
    Vote,
    /// The group's committed id.
    Committed,
    /// The group's entries up to and with `index` are gone; the payload is the caller's log id.
    Purge,
    /// The group's entries from `index` on are gone.
    Truncate,
    /// Segments below the number in `index` hold nothing any more.
    Freed,
    /// Index of a segment, in its last batch; see `segment::SegmentIndex`.
    Footer,
    /// Nothing of the group is left but its vote.
    Forgotten,
    /// The group's entries reached `index` and `term` here before it was forgotten.
    Floor,
}

impl RecordKind {
    pub(super) const ALL: [RecordKind; 12] = [
        RecordKind::Batch,
        RecordKind::Head,
        RecordKind::Entry,
        RecordKind::RewrittenEntry,
        RecordKind::Vote,
        RecordKind::Committed,
        RecordKind::Purge,
        RecordKind::Truncate,
        RecordKind::Freed,
        RecordKind::Footer,
        RecordKind::Forgotten,
        RecordKind::Floor,
    ];

    pub(super) fn to_byte(self) -> u8 {
        match self {
            RecordKind::Batch => 1,
            RecordKind::Head => 2,
            RecordKind::Entry => 3,
            RecordKind::RewrittenEntry => 4,
            RecordKind::Vote => 5,
            RecordKind::Committed => 6,
            RecordKind::Purge => 7,
            RecordKind::Truncate => 8,
            RecordKind::Freed => 9,
            RecordKind::Footer => 10,
            RecordKind::Forgotten => 11,
            RecordKind::Floor => 12,
        }
    }

    fn from_byte(byte: u8) -> Option<RecordKind> {
        RecordKind::ALL.into_iter().find(|kind| kind.to_byte() == byte)
    }

    /// The version of the kind that is written.
    pub(super) fn version(self) -> u8 {
        match self {
            RecordKind::Batch
            | RecordKind::Head
            | RecordKind::Entry
            | RecordKind::RewrittenEntry
            | RecordKind::Vote
            | RecordKind::Committed
            | RecordKind::Purge
            | RecordKind::Truncate
            | RecordKind::Freed
            | RecordKind::Footer
            | RecordKind::Forgotten
            | RecordKind::Floor => 1,
        }
    }
}

/// Where a record lies: checked together with its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u32,
}

/// A record without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: RecordKind,
    pub(super) group: GroupId,
    pub(super) batch: u64,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) length: u32,
    payload_checksum: u32,
}

impl Header {
    /// Bytes from this record's begin to the next one's.
    pub(super) fn record_bytes(&self) -> usize {
        HEADER_BYTES + self.length as usize
    }
}

/// Why no record is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// There is none that is valid for its place.
    Invalid,
    /// There is one that only a newer release can have written.
    Newer(Newer),
}

/// What this release does not know of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Newer {
    pub(super) kind: u8,
    pub(super) version: u8,
}

/// What a record is to say; [`encode`] adds where it lies and its batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) kind: RecordKind,
    pub(super) group: GroupId,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) payload: &'a [u8],
}

/// Appends a record to `out`. The payload is at most [`PAYLOAD_BYTES_MAX`].
pub(super) fn encode(out: &mut Vec<u8>, place: Place, batch: u64, content: Content<'_>) {
    let start = out.len();
    out.extend_from_slice(&encode_header(place, batch, content));
    out.extend_from_slice(content.payload);
    debug_assert_eq!(out.len() - start, HEADER_BYTES + content.payload.len());
}

/// The header of a record with this content.
pub(super) fn encode_header(place: Place, batch: u64, content: Content<'_>) -> [u8; HEADER_BYTES] {
    let length = u32::try_from(content.payload.len()).expect("payloads are limited when submitted");
    let mut header = [0; HEADER_BYTES];
    header[4..8].copy_from_slice(&crc32c::crc32c(content.payload).to_le_bytes());
    header[8..12].copy_from_slice(&length.to_le_bytes());
    header[12..16].copy_from_slice(&content.group.0.to_le_bytes());
    header[16] = content.kind.to_byte();
    header[17] = content.kind.version();
    header[18..20].copy_from_slice(&MAGIC.to_le_bytes());
    header[20..28].copy_from_slice(&batch.to_le_bytes());
    header[28..36].copy_from_slice(&content.index.to_le_bytes());
    header[36..44].copy_from_slice(&content.term.to_le_bytes());
    let checksum = header_checksum(&header, place);
    header[0..4].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Reads the header at the begin of `bytes`.
pub(super) fn decode_header(bytes: &[u8], place: Place) -> Result<Header, Unread> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Unread::Invalid)?;
    // Cheap tests first: recovery tries every offset of a torn tail.
    if header[18..20] != MAGIC.to_le_bytes() {
        return Err(Unread::Invalid);
    }
    let length = read_u32(header, 8);
    if length as usize > PAYLOAD_BYTES_MAX || read_u32(header, 0) != header_checksum(header, place)
    {
        return Err(Unread::Invalid);
    }
    let (kind, version) = (header[16], header[17]);
    let known = RecordKind::from_byte(kind).filter(|kind| version == kind.version());
    let kind = known.ok_or(Unread::Newer(Newer { kind, version }))?;
    Ok(Header {
        kind,
        group: GroupId(read_u32(header, 12)),
        batch: read_u64(header, 20),
        index: read_u64(header, 28),
        term: read_u64(header, 36),
        length,
        payload_checksum: read_u32(header, 4),
    })
}

/// Reads the record at the begin of `bytes`.
pub(super) fn decode(bytes: &[u8], place: Place) -> Result<(Header, &[u8]), Unread> {
    let header = decode_header(bytes, place)?;
    let payload = bytes.get(HEADER_BYTES..header.record_bytes()).ok_or(Unread::Invalid)?;
    let whole = (crc32c::crc32c(payload) == header.payload_checksum).then_some((header, payload));
    whole.ok_or(Unread::Invalid)
}

pub(super) fn header_checksum(header: &[u8; HEADER_BYTES], place: Place) -> u32 {
    let mut seed = [0; 12];
    seed[0..8].copy_from_slice(&place.segment.to_le_bytes());
    seed[8..12].copy_from_slice(&place.offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&seed), &header[4..])
}

fn read_u32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn read_u64(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, RngCore, SeedableRng};

    use super::*;

    const PLACE: Place = Place { segment: 7, offset: 4096 };

    fn record(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let content =
            Content { kind: RecordKind::Entry, group: GroupId(3), index: 11, term: 2, payload };
        encode(&mut out, PLACE, 5, content);
        out
    }

    #[test]
    fn a_record_is_read_back_as_written() {
        let bytes = record(b"payload");
        let (header, payload) = decode(&bytes, PLACE).expect("a record just written is valid");
        assert_eq!((header.kind, header.group), (RecordKind::Entry, GroupId(3)));
        assert_eq!((header.batch, header.index, header.term), (5, 11, 2));
        assert_eq!(payload, b"payload");
    }

    #[test]
    fn every_kind_has_its_own_byte() {
        for kind in RecordKind::ALL {
            assert_eq!(RecordKind::from_byte(kind.to_byte()), Some(kind));
        }
        assert_eq!(RecordKind::from_byte(0), None);
    }

    #[test]
    fn a_record_is_valid_only_where_it_was_written() {
        let bytes = record(b"payload");
        assert_eq!(decode(&bytes, Place { segment: 8, ..PLACE }), Err(Unread::Invalid));
        assert_eq!(decode(&bytes, Place { offset: 4097, ..PLACE }), Err(Unread::Invalid));
    }

    #[test]
    fn any_flipped_bit_makes_a_record_invalid() {
        let bytes = record(b"some payload");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped, PLACE), Err(Unread::Invalid), "bit {bit}");
        }
    }

    #[test]
    fn any_shortened_record_is_invalid() {
        let bytes = record(b"some payload");
        for length in 0..bytes.len() {
            let read = decode(&bytes[..length], PLACE);
            assert_eq!(read, Err(Unread::Invalid), "length {length}");
        }
    }

    /// Goal: no input panics the decoder, and none that differs from a record passes for it.
    #[test]
    fn a_hundred_thousand_random_and_mutated_records_neither_panic_nor_pass() {
        let mut random = SmallRng::seed_from_u64(1);
        for round in 0..100_000 {
            let mut payload = vec![0; random.random_range(0..64)];
            random.fill_bytes(&mut payload);
            let good = record(&payload);
            let mut bytes = good.clone();
            match round % 3 {
                0 => random.fill_bytes(&mut bytes),
                1 => {
                    for _ in 0..random.random_range(1..6) {
                        let at = random.random_range(0..bytes.len());
                        bytes[at] = random.random();
                    }
                }
                _ => {
                    let at = random.random_range(0..bytes.len());
                    bytes.truncate(at);
                    let mut tail = vec![0; random.random_range(0..32)];
                    random.fill_bytes(&mut tail);
                    bytes.extend(tail);
                }
            }
            if let Ok((header, _)) = decode(&bytes, PLACE) {
                assert_eq!(bytes[..header.record_bytes()], good[..], "round {round}");
            }
        }
    }
}

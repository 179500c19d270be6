//! What keys are made of: texts, times and numbers, so that keys sort as these do.

use bytes::{BufMut, Bytes, BytesMut};

pub(super) fn build(fill: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut key = BytesMut::with_capacity(160);
    fill(&mut key);
    key.freeze()
}

pub(super) fn put_text(key: &mut BytesMut, text: &str) {
    for &byte in text.as_bytes() {
        match byte {
            0 | 1 => key.put_slice(&[1, byte + 1]),
            _ => key.put_u8(byte),
        }
    }
    key.put_u8(0);
}

pub(super) fn put_time(key: &mut BytesMut, time: i64) {
    key.put_u64(sortable(time));
}

/// Sorts as the signed number does.
pub(super) fn sortable(time: i64) -> u64 {
    time.cast_unsigned() ^ (1 << 63)
}

pub(super) fn signed(sortable: u64) -> i64 {
    (sortable ^ (1 << 63)).cast_signed()
}

/// Runs a parser over the whole key; bytes left over make it fail.
pub(super) fn parse<T>(key: &[u8], take: impl FnOnce(&mut &[u8]) -> Option<T>) -> Option<T> {
    let mut rest = key;
    let found = take(&mut rest)?;
    rest.is_empty().then_some(found)
}

pub(super) fn take_text(rest: &mut &[u8]) -> Option<String> {
    let end = rest.iter().position(|&byte| byte == 0)?;
    let mut text = Vec::with_capacity(end);
    let mut bytes = rest[..end].iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            1 => match bytes.next()? {
                escaped @ (1 | 2) => text.push(escaped - 1),
                _ => return None,
            },
            _ => text.push(byte),
        }
    }
    *rest = &rest[end + 1..];
    String::from_utf8(text).ok()
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

pub(super) fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    take_array(rest).map(u8::from_be_bytes)
}

pub(super) fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    take_array(rest).map(u16::from_be_bytes)
}

pub(super) fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take_array(rest).map(u32::from_be_bytes)
}

pub(super) fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take_array(rest).map(u64::from_be_bytes)
}

pub(super) fn take_time(rest: &mut &[u8]) -> Option<i64> {
    take_u64(rest).map(signed)
}

pub(super) fn take_tag(rest: &mut &[u8], tag: u8) -> Option<()> {
    (take_u8(rest)? == tag).then_some(())
}

pub(super) fn take_flag(rest: &mut &[u8]) -> Option<bool> {
    match take_u8(rest)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

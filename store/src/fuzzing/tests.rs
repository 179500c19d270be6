use super::*;

fn held(run: &mut dyn FnMut()) -> u64 {
    allocation_counter::measure(run).bytes_max
}

#[test]
fn a_record_survives_hostile_bytes() {
    let record: Record = (
        7,
        "seven".into(),
        vec![(Bytes::from_static(b"k"), Some(vec![1, 2, u64::MAX])), (Bytes::new(), None)],
    );
    let long: Record = (1 << 60, "x".repeat(300), vec![]);
    let samples = [record, long].map(|record| RECORD.encode(&record).unwrap().to_vec());
    attack("a record", samples.to_vec(), held, codec);
}

#[test]
fn a_stored_value_survives_hostile_bytes() {
    let small = [&[0x0f, 0][..], b"value and other"].concat();
    let value = vec![7; 20];
    let large = |length: u64| {
        let crc = crc32c::crc32c(&value).to_be_bytes();
        [&[0x0f, 1][..], &length.to_be_bytes(), &crc, &value[..13]].concat()
    };
    attack("a stored value", vec![small, large(20), large(7_168), large(20_000)], held, frame);
}

#[test]
fn a_mark_survives_hostile_bytes() {
    attack("a mark", vec![vec![0; 8], vec![3; 30]], held, mark);
}

/// The seed decides all of it.
#[test]
fn hostile_bytes_are_repeatable() {
    let draw = |seed| {
        let mut hostile = Hostile::new(seed, vec![vec![1, 2, 3], vec![4; 100]]);
        (0..100).map(|_| hostile.bytes()).collect::<Vec<_>>()
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}

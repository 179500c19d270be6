use piton_core::placement::SLOTS;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;

fn bytes(random: &mut SmallRng) -> Bytes {
    let mut bytes = vec![0; random.random_range(0..40)];
    random.fill_bytes(&mut bytes);
    bytes.into()
}

fn record(random: &mut SmallRng) -> TransitionRecord {
    let writes = (0..random.random_range(0..5)).map(|_| match random.random() {
        true => Write::put(bytes(random), bytes(random)),
        false => Write::delete(bytes(random)),
    });
    let writes = writes.collect();
    let name = format!("workflow é {}", random.random_range(0..1_000));
    TransitionRecord {
        term: random.next_u64(),
        key: WorkflowKey { namespace: "namespace".into(), workflow_id: name.into() }.into(),
        base: Position(random.next_u64()),
        writes,
    }
}

fn entry(random: &mut SmallRng) -> Vec<TransitionRecord> {
    (0..random.random_range(0..4)).map(|_| record(random)).collect()
}

#[test]
fn an_entry_decodes_to_what_was_encoded_and_has_the_length_announced() {
    let random = &mut SmallRng::seed_from_u64(1);
    for _ in 0..2_000 {
        let transitions = entry(random);
        let encoded = encode_entry(1, &transitions);
        let announced: usize = transitions.iter().map(TransitionRecord::encoded_len).sum();
        assert_eq!(encoded.len(), ENTRY_HEADER_BYTES + announced);
        assert_eq!(decode_entry(encoded), Ok(Entry::Transitions(transitions)));
    }
    let range = SlotRange { version: 3, slots: 7..SLOTS };
    assert_eq!(decode_entry(encode_range(1, &range)), Ok(Entry::Range(range)));
}

#[test]
fn decoded_values_are_slices_of_the_payload() {
    let write = Write::put("key", vec![7; 1_000]);
    let key = WorkflowKey { namespace: "n".into(), workflow_id: "w".into() };
    let record =
        TransitionRecord { term: 1, key: key.into(), base: Position(0), writes: vec![write] };
    let payload = encode_entry(1, &[record]);
    let within = payload.as_ptr_range();
    let Ok(Entry::Transitions(decoded)) = decode_entry(payload.clone()) else { panic!("decodes") };
    let Write::Put { value, .. } = &decoded[0].writes[0] else { panic!("it was a put") };
    assert!(within.contains(&value.as_ptr()));
}

#[test]
fn garbage_is_refused_without_a_panic() {
    let random = &mut SmallRng::seed_from_u64(2);
    let mut refused = 0;
    for round in 0..100_000 {
        let mut garbage = match round % 3 {
            0 => bytes(random).to_vec(),
            _ => encode_entry(1, &entry(random)).to_vec(),
        };
        match random.random_range(0..4) {
            0 => garbage.truncate(random.random_range(0..=garbage.len())),
            1 => garbage.push(random.random()),
            _ if garbage.is_empty() => {}
            _ => {
                // Lengths and counts are the dangerous bytes: set some to the extremes.
                let at = random.random_range(0..garbage.len());
                garbage[at] = [0, 1, 0x7f, 0xff, random.random()][random.random_range(0..5)];
            }
        }
        match decode_entry(garbage.clone().into()) {
            Err(_) => refused += 1,
            Ok(Entry::Transitions(decoded)) => assert_eq!(encode_entry(1, &decoded), garbage),
            Ok(Entry::Range(range)) => assert_eq!(encode_range(1, &range), garbage),
        }
    }
    assert!(refused > 50_000, "{refused}");
}

#[test]
fn a_count_beyond_the_bytes_takes_no_memory() {
    let bytes = [&[1, TRANSITIONS][..], &[0xff; 4]].concat();
    assert_eq!(decode_entry(bytes.into()), Err(EntryError::Short { what: "a term" }));
}

#[test]
fn verdicts_decode_and_garbage_does_not() {
    let verdicts = [Verdict::Applied, Verdict::WrongTerm, Verdict::Moved, Verdict::SlotNotHere];
    assert_eq!(decode_verdicts(&encode_verdicts(&verdicts)), Ok(verdicts.to_vec()));
    assert!(decode_verdicts(&[0, 4]).is_err());
}

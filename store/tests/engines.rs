//! One suite for every engine: the contract of `trait Store`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use piton_store::frame::{CHUNK_BYTES, Engine, Framed};
use piton_store::{
    Batch, EngineKind, KeyRange, MemoryStore, Opened, Order, Row, Store, StoreError, Watched,
    Write, codec, open_or_rebuild, prefix_end, redb, sled,
};

const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// Runs the same claim over every engine; the raw engine is for damage.
macro_rules! over_every_engine {
    ($($(#[$attribute:meta])* fn $name:ident($store:ident) $body:block)+) => {
        mod memory { $(
            #[test] $(#[$attribute])*
            fn $name() {
                super::$name(&super::MemoryStore::new())
            }
        )+ }
        mod redb_engine { $(
            #[test] $(#[$attribute])*
            fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let (store, _) =
                    super::redb::open_or_rebuild(dir.path(), super::CACHE_BYTES).unwrap();
                super::$name(&store)
            }
        )+ }
        mod sled_engine { $(
            #[test] $(#[$attribute])*
            fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let (store, _) =
                    super::sled::open_or_rebuild(dir.path(), "boot", super::CACHE_BYTES).unwrap();
                super::$name(&store)
            }
        )+ }
        $( fn $name<E: Engine>($store: &Framed<E>) $body )+
    };
}

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(store: &dyn Store, rows: &[(&str, &[u8])]) {
    let writes = rows.iter().map(|(k, v)| Write::put(key(k), Bytes::copy_from_slice(v))).collect();
    store.write(Batch { writes }).unwrap();
}

fn keys(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| std::str::from_utf8(&row.key).unwrap()).collect()
}

/// Bytes that differ at every place, so that chunks in the wrong order are seen.
fn large(length: usize, seed: u32) -> Bytes {
    (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) ^ seed << 16).to_be_bytes()[1])
        .collect()
}

over_every_engine! {
    fn what_was_put_is_read_and_what_was_deleted_is_not(store) {
        put(store, &[("a", b"1"), ("b", b""), ("", b"empty key")]);
        assert_eq!(store.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(store.get(b"b").unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(store.get(b"").unwrap().as_deref(), Some(&b"empty key"[..]));
        assert_eq!(store.get(b"c").unwrap(), None);
        store.write(Batch { writes: vec![Write::delete(key("a")), Write::delete(key("z"))] }).unwrap();
        assert_eq!(store.get(b"a").unwrap(), None);
        assert_eq!(store.get(b"b").unwrap().as_deref(), Some(&b""[..]));
    }

    fn a_scan_keeps_to_range_order_and_limit(store) {
        let names: Vec<String> = (0..100).map(|n| format!("k{n:02}")).collect();
        let rows: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), n.as_bytes())).collect();
        put(store, &rows);
        let range = KeyRange::new(b"k10", b"k20");
        let up = store.scan(range, Order::Ascending, 1000).unwrap();
        assert_eq!(keys(&up), names[10..20].iter().map(String::as_str).collect::<Vec<_>>());
        assert!(up.iter().all(|row| row.key == row.value));
        let down = store.scan(range, Order::Descending, 3).unwrap();
        assert_eq!(keys(&down), ["k19", "k18", "k17"]);
        let first = store.scan(KeyRange::from(b"k97"), Order::Ascending, 2).unwrap();
        assert_eq!(keys(&first), ["k97", "k98"]);
        assert_eq!(store.scan(KeyRange::all(), Order::Descending, usize::MAX).unwrap().len(), 100);
        for (start, end) in [("k20", "k20"), ("k20", "k10"), ("x", "y")] {
            let range = KeyRange::new(start.as_bytes(), end.as_bytes());
            assert_eq!(store.scan(range, Order::Ascending, 10).unwrap(), []);
            assert_eq!(store.scan(range, Order::Descending, 10).unwrap(), []);
        }
        assert_eq!(store.scan(KeyRange::all(), Order::Ascending, 0).unwrap(), []);
    }

    fn the_last_write_to_a_key_in_a_batch_wins(store) {
        let writes = vec![
            Write::put(key("a"), "first"),
            Write::put(key("a"), "second"),
            Write::put(key("b"), "gone"),
            Write::delete(key("b")),
        ];
        store.write(Batch { writes }).unwrap();
        assert_eq!(store.get(b"a").unwrap().as_deref(), Some(&b"second"[..]));
        assert_eq!(store.get(b"b").unwrap(), None);
    }

    fn large_values_are_cut_and_put_together_again(store) {
        let lengths =
            [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3_000_000];
        for (n, length) in lengths.into_iter().enumerate() {
            let value = large(length, n as u32);
            store.write(Batch { writes: vec![Write::put(key("big"), value.clone())] }).unwrap();
            assert_eq!(store.get(b"big").unwrap(), Some(value.clone()), "{length} bytes");
            let rows = store.scan(KeyRange::all(), Order::Ascending, 10).unwrap();
            assert_eq!(rows, [Row { key: key("big"), value }]);
        }
    }

    fn an_engine_never_sees_a_row_over_eight_kibibytes_and_no_chunk_is_left_over(store) {
        let raw = || store.engine().scan(KeyRange::all(), Order::Ascending, usize::MAX).unwrap();
        for length in [100_000, 20_000, 10, 50_000] {
            let value = large(length, 1);
            store.write(Batch { writes: vec![Write::put(key("big"), value)] }).unwrap();
            let rows = raw();
            let chunks = if length > CHUNK_BYTES { length.div_ceil(CHUNK_BYTES) } else { 0 };
            assert_eq!(rows.len(), 1 + chunks);
            assert!(rows.iter().all(|row| row.value.len() <= 8 * 1024));
        }
        store.write(Batch { writes: vec![Write::delete(key("big"))] }).unwrap();
        assert_eq!(raw(), []);
    }

    fn a_flipped_bit_anywhere_in_a_stored_row_is_corruption_not_an_answer(store) {
        put(store, &[("small", b"value"), ("other", b"fine")]);
        store.write(Batch { writes: vec![Write::put(key("large"), large(30_000, 7))] }).unwrap();
        for row in store.engine().scan(KeyRange::all(), Order::Ascending, 100).unwrap() {
            if row.key.ends_with(b"other") {
                continue;
            }
            for place in [0, row.value.len() / 2, row.value.len() - 1] {
                let mut damaged = row.value.to_vec();
                damaged[place] ^= 0x10;
                store.engine().write(vec![Write::put(row.key.clone(), damaged)]).unwrap();
                let owner: &[u8] = if row.key.ends_with(b"small") { b"small" } else { b"large" };
                assert!(matches!(store.get(owner), Err(StoreError::Corrupt { .. })), "{row:?}");
                assert!(store.scan(KeyRange::all(), Order::Ascending, 100).is_err());
                assert_eq!(store.get(b"other").unwrap().as_deref(), Some(&b"fine"[..]));
            }
            store.engine().write(vec![Write::put(row.key, row.value)]).unwrap();
        }
        assert_eq!(store.scan(KeyRange::all(), Order::Ascending, 100).unwrap().len(), 3);
    }

    fn cut_exchanged_and_missing_rows_are_corruption(store) {
        put(store, &[("a", b"one"), ("b", b"two")]);
        let raw_a = store.engine().get(b"ra").unwrap().unwrap();
        for cut in 0..raw_a.len() {
            store.engine().write(vec![Write::put(key("ra"), raw_a.slice(..cut))]).unwrap();
            assert!(matches!(store.get(b"a"), Err(StoreError::Corrupt { .. })), "cut to {cut}");
        }
        // A row that is whole, but another key's.
        store.engine().write(vec![Write::put(key("rb"), raw_a)]).unwrap();
        assert!(matches!(store.get(b"b"), Err(StoreError::Corrupt { .. })));
        store.write(Batch { writes: vec![Write::put(key("big"), large(30_000, 7))] }).unwrap();
        let chunk = &b"cbig\0\0\0\x02"[..];
        let of_this_value = store.engine().get(chunk).unwrap().unwrap();
        store.engine().write(vec![Write::delete(chunk)]).unwrap();
        assert!(matches!(store.get(b"big"), Err(StoreError::Corrupt { .. })));
        // A chunk that is whole and in its place, but of the value before.
        store.write(Batch { writes: vec![Write::put(key("big"), large(30_000, 8))] }).unwrap();
        store.engine().write(vec![Write::put(chunk, of_this_value)]).unwrap();
        assert!(matches!(store.get(b"big"), Err(StoreError::Corrupt { .. })));
    }

    fn clearing_a_prefix_takes_damaged_rows_and_chunks_but_nothing_else(store) {
        let rows = ["ab", "b", "ba", "ba0", "c"];
        for name in rows {
            store.write(Batch { writes: vec![Write::put(key(name), large(20_000, 3))] }).unwrap();
        }
        store.engine().write(vec![Write::put(key("rba"), "damaged")]).unwrap();
        store.clear_prefix(b"ba").unwrap();
        let left = store.scan(KeyRange::all(), Order::Ascending, 10).unwrap();
        assert_eq!(keys(&left), ["ab", "b", "c"]);
        let raw = store.engine().scan(KeyRange::all(), Order::Ascending, 100).unwrap();
        assert_eq!(raw.len(), 3 * (1 + 20_000_usize.div_ceil(CHUNK_BYTES)));
        // The chunk numbers of "b" begin with a zero byte, as a longer prefix may.
        store.clear_prefix(b"b\0\0").unwrap();
        assert_eq!(store.get(b"b").unwrap(), Some(large(20_000, 3)));
        store.clear_prefix(b"").unwrap();
        assert_eq!(store.engine().scan(KeyRange::all(), Order::Ascending, 1).unwrap(), []);
    }

    // One thread rewrites all rows (large ones too) with one number, others read: each answer is
    // of one batch.
    fn readers_see_whole_batches(store) {
        let batch = |n: u32| {
            let length = if n.is_multiple_of(2) { 9_000 } else { 20_000 };
            let writes = (0..20).map(|k| {
                let value = if k == 7 { vec![n as u8; length] } else { vec![n as u8; 10] };
                Write::put(key(&format!("{k:02}")), value)
            });
            Batch { writes: writes.collect() }
        };
        store.write(batch(0)).unwrap();
        const BATCHES: u32 = 100;
        let written = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for order in [Order::Ascending, Order::Descending] {
                let written = &written;
                scope.spawn(move || {
                    while written.load(Ordering::Acquire) < BATCHES {
                        let rows = store.scan(KeyRange::all(), order, 100).unwrap();
                        let first = rows[0].value[0];
                        assert_eq!(rows.len(), 20);
                        assert!(rows.iter().all(|row| row.value.iter().all(|&b| b == first)));
                        let big = store.get(b"07").unwrap().unwrap();
                        assert!(big.iter().all(|&b| b == big[0]));
                    }
                });
            }
            for n in 1..=BATCHES {
                // Counted first: if the write panics, the readers must end all the same.
                written.store(n, Ordering::Release);
                store.write(batch(n)).unwrap();
            }
        });
    }

    // A reader that takes its time, in the middle of its rows, sees none of what is written then.
    fn a_view_stands_between_two_batches(store) {
        put(store, &[("a", b"1"), ("b", b"1")]);
        let seen = std::thread::scope(|scope| {
            store.engine().view(|view| {
                let first = view.get(b"ra")?;
                scope.spawn(|| put(store, &[("a", b"2"), ("b", b"2")]));
                // An engine may let the writer go on beside the view, or make it wait.
                for _ in 0..1_000 {
                    std::thread::yield_now();
                }
                let second = view.get(b"rb")?;
                Ok((first, second))
            })
        });
        let (first, second) = seen.unwrap();
        let value = |sealed: Option<Bytes>| sealed.unwrap()[1];
        assert_eq!((value(first), value(second)), (b'1', b'1'));
        assert_eq!(store.get(b"b").unwrap().as_deref(), Some(&b"2"[..]));
    }

    fn bytes_on_disk_grow_with_what_is_stored(store) {
        let before = store.bytes_on_disk().unwrap();
        for n in 0..40 {
            let name = format!("{n}");
            store.write(Batch { writes: vec![Write::put(key(&name), large(50_000, n))] }).unwrap();
        }
        store.sync().unwrap();
        assert!(store.bytes_on_disk().unwrap() >= before + 1_000_000);
    }
}

#[test]
fn a_crash_in_memory_keeps_exactly_the_synced_batches() {
    let store = MemoryStore::new();
    put(&store, &[("a", b"synced"), ("b", b"synced")]);
    store.sync().unwrap();
    put(&store, &[("a", b"lost"), ("c", b"lost")]);
    store.write(Batch { writes: vec![Write::delete(key("b"))] }).unwrap();
    assert_eq!(store.batches_unsynced(), 2);
    store.crash();
    let rows = store.scan(KeyRange::all(), Order::Ascending, 10).unwrap();
    assert_eq!(keys(&rows), ["a", "b"]);
    assert!(rows.iter().all(|row| row.value == "synced"));
}

#[test]
fn a_crash_in_memory_may_keep_the_first_of_the_unsynced_batches() {
    let store = MemoryStore::new();
    for n in 0..5 {
        put(&store, &[("a", &[n]), (&format!("{n}"), b"")]);
    }
    store.crash_keeping(3);
    assert_eq!(store.get(b"a").unwrap().as_deref(), Some(&[2][..]));
    let rows = store.scan(KeyRange::all(), Order::Ascending, 10).unwrap();
    assert_eq!(keys(&rows), ["0", "1", "2", "a"]);
    assert_eq!(store.batches_unsynced(), 0);
}

#[test]
fn the_end_of_a_prefix_follows_every_key_that_begins_with_it() {
    assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
    assert_eq!(prefix_end(b"a\xff\xff"), Some(b"b".to_vec()));
    assert_eq!(prefix_end(b"\xff\xff"), None);
    assert_eq!(prefix_end(b""), None);
}

#[test]
fn records_survive_the_codec_and_garbage_does_not_panic() {
    use rand::{Rng, SeedableRng};
    type Record = (u64, String, Vec<(Bytes, Option<Vec<u64>>)>);
    let record: Record =
        (7, "seven".into(), vec![(key("k"), Some(vec![1, 2, 3])), (key(""), None)]);
    let kind = codec::Kind::<Record>::new("a record", &[]);
    let bytes = kind.encode(&record).unwrap();
    assert_eq!(bytes[0], kind.version());
    assert_eq!(kind.decode(&bytes).unwrap(), record);

    let trailing = [bytes.as_ref(), &[0]].concat();
    assert!(matches!(kind.decode(&trailing), Err(codec::CodecError::Trailing { bytes: 1, .. })));
    assert!(matches!(kind.decode(&[]), Err(codec::CodecError::Short { .. })));
    for cut in 1..bytes.len() {
        assert!(kind.decode(&bytes[..cut]).is_err(), "cut to {cut}");
    }
    let mut random = rand::rngs::SmallRng::seed_from_u64(1);
    for _ in 0..20_000 {
        let mut garbage = vec![0; random.random_range(1..64)];
        random.fill(&mut garbage[..]);
        garbage[0] = kind.version();
        let _outcome = kind.decode(&garbage);
    }
    // A string, a byte string and a list that claim 2^63 items.
    for record in [
        &[1, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0x80][..],
        &[1, 0, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0x80],
        &[1, 0, 0, 1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0x80],
        &[1, 0, 0, 1, 0, 1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0x80],
    ] {
        assert!(kind.decode(record).is_err());
    }
}

/// A record that has had two versions.
#[test]
fn an_older_version_is_read_and_a_newer_one_is_refused_by_name() {
    use piton_store::codec::Kind;
    type Old = (u64, String);
    type New = (u64, String, Option<u32>);
    const FIRST: Kind<Old> = Kind::new("a stay", &[]);
    const SECOND: Kind<New> = Kind::new(
        "a stay",
        &[|old| {
            let (room, guest): Old = old.read()?;
            Ok((room, guest, None))
        }],
    );
    let old = FIRST.encode(&(7, "Mori".to_owned())).unwrap();
    let new = SECOND.encode(&(7, "Mori".to_owned(), Some(3))).unwrap();
    assert_eq!((old[0], new[0]), (1, 2));
    assert_eq!(SECOND.decode(&old).unwrap(), (7, "Mori".to_owned(), None));
    assert_eq!(SECOND.decode(&new).unwrap(), (7, "Mori".to_owned(), Some(3)));
    let refused = FIRST.decode(&new).unwrap_err().to_string();
    assert_eq!(refused, "decode a stay of version 2: this release knows versions up to 1");
    let refused = SECOND.decode(&[&[0], &old[1..]].concat()).unwrap_err().to_string();
    assert_eq!(refused, "decode a stay of version 0: this release knows versions up to 2");
    let long = [old.as_ref(), &[0]].concat();
    assert!(matches!(SECOND.decode(&long), Err(codec::CodecError::Trailing { bytes: 1, .. })));
}

#[test]
fn an_engine_behind_a_trait_object_is_a_store() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    put(store.as_ref(), &[("a", b"1")]);
    assert_eq!(store.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
}

#[test]
fn a_store_that_is_watched_tells_of_what_only_a_rebuild_repairs() {
    let store = Arc::new(MemoryStore::new());
    let key = Bytes::from_static(b"key");
    let batch = |value: &'static str| Batch { writes: vec![Write::put(key.clone(), value)] };
    let told = Arc::new(AtomicU32::new(0));
    let listener = {
        let told = Arc::clone(&told);
        Box::new(move |_: &StoreError| {
            told.fetch_add(1, Ordering::SeqCst);
        })
    };
    let watched = Watched::over(Arc::clone(&store) as Arc<dyn Store>, listener);
    watched.write(batch("one")).unwrap();
    assert_eq!(watched.get(&key).unwrap().unwrap(), "one");
    assert_eq!(told.load(Ordering::SeqCst), 0);

    let damaged = Write::put(Bytes::from_static(b"rkey"), "not what was written");
    store.engine().write(vec![damaged]).unwrap();
    assert!(matches!(watched.get(&key), Err(StoreError::Corrupt { .. })));
    let all = watched.scan(KeyRange::all(), Order::Ascending, 10);
    assert!(matches!(all, Err(StoreError::Corrupt { .. })));
    assert_eq!(told.load(Ordering::SeqCst), 2);
    assert!(!StoreError::Restoring { group: 1 }.needs_rebuild());
}

#[test]
fn a_closed_store_lets_go_of_its_files_while_others_still_hold_it() {
    for engine in EngineKind::ALL {
        let dir = tempfile::tempdir().unwrap();
        let open = || open_or_rebuild(engine, dir.path(), CACHE_BYTES).unwrap();
        let (held, opened) = open();
        assert_eq!(opened, Opened::Created);
        held.write(Batch { writes: vec![Write::put("key", "value")] }).unwrap();
        held.close();
        assert!(matches!(held.get(b"key"), Err(StoreError::Stopped { .. })));
        let (again, opened) = open();
        assert_eq!(opened, Opened::Kept);
        assert_eq!(again.get(b"key").unwrap().unwrap(), "value");
        held.close();
    }
}

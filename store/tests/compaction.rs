//! Space given back: nothing is lost, readers and writers go on, and a crash amid it is harmless.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "figures are printed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use piton_store::compaction::{Beside, Compacting};
use piton_store::frame::Framed;
use piton_store::redb::RedbEngine;
use piton_store::sled::SledEngine;
use piton_store::{
    Batch, EngineKind, KeyRange, Opened, Order, Store, Write, open_or_rebuild, redb, sled,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CACHE_BYTES: u64 = 1 << 22;
const BOOT: &str = "boot";

type Rows = BTreeMap<Bytes, Bytes>;

/// Opens an engine whose files are never too small to be looked at.
trait Open: Beside {
    const KIND: EngineKind;
    /// Where a copy is made.
    const FRESH: &str;
    fn open(dir: &Path) -> (Framed<Compacting<Self>>, Opened);
}

impl Open for RedbEngine {
    const KIND: EngineKind = EngineKind::Redb;
    const FRESH: &str = "redb/store.redb.new";
    fn open(dir: &Path) -> (Framed<Compacting<Self>>, Opened) {
        let (store, opened) = redb::open_or_rebuild(dir, CACHE_BYTES).unwrap();
        (Framed::over(Compacting::over(store.into_engine(), 0)), opened)
    }
}

impl Open for SledEngine {
    const KIND: EngineKind = EngineKind::Sled;
    const FRESH: &str = "sled.new";
    fn open(dir: &Path) -> (Framed<Compacting<Self>>, Opened) {
        let (store, opened) = sled::open_or_rebuild(dir, BOOT, CACHE_BYTES).unwrap();
        (Framed::over(Compacting::over(store.into_engine(), 0)), opened)
    }
}

macro_rules! for_every_engine {
    ($(fn $name:ident<$engine:ident>() $body:block)+) => {
        mod redb_engine { $(
            #[test]
            fn $name() {
                super::$name::<super::RedbEngine>();
            }
        )+ }
        mod sled_engine { $(
            #[test]
            fn $name() {
                super::$name::<super::SledEngine>();
            }
        )+ }
        $( fn $name<$engine: Open>() $body )+
    };
}

fn key(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

fn value(random: &mut SmallRng, n: u32) -> Bytes {
    let length = if n.is_multiple_of(50) { 20_000 } else { random.random_range(0..2_000) };
    let mut value = vec![0; length];
    random.fill(&mut value[..]);
    value.into()
}

/// Many rows, of which every twentieth is left: the files take up far more than that.
fn wasteful(store: &dyn Store) -> Rows {
    let mut random = SmallRng::seed_from_u64(1);
    let mut rows = Rows::new();
    for n in 0..8_000 {
        rows.insert(key(n), value(&mut random, n));
    }
    let all: Vec<Write> = rows.iter().map(|(k, v)| Write::put(k.clone(), v.clone())).collect();
    for writes in all.chunks(500) {
        store.write(Batch { writes: writes.to_vec() }).unwrap();
    }
    store.sync().unwrap();
    let gone = (0..8_000_u32).filter(|n| !n.is_multiple_of(20));
    let gone: Vec<Write> = gone.map(|n| Write::delete(key(n))).collect();
    for writes in gone.chunks(500) {
        store.write(Batch { writes: writes.to_vec() }).unwrap();
    }
    store.sync().unwrap();
    rows.retain(|key, _| u32::from_be_bytes(*key.first_chunk().unwrap()).is_multiple_of(20));
    rows
}

fn all(store: &dyn Store) -> Rows {
    let rows = store.scan(KeyRange::all(), Order::Ascending, usize::MAX).unwrap();
    rows.into_iter().map(|row| (row.key, row.value)).collect()
}

for_every_engine! {
    fn space_is_given_back_and_nothing_is_lost<E>() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = E::open(dir.path());
        let mut rows = wasteful(&store);
        let compacted = store.compact(&|| true).unwrap().expect("it is worth it");
        println!("{:?}: {compacted:?}", E::KIND);
        assert!(compacted.after * 2 < compacted.before, "{compacted:?}");
        assert_eq!(store.bytes_on_disk().unwrap(), compacted.after);
        assert_eq!(all(&store), rows);
        // Once is enough.
        assert_eq!(store.compact(&|| true).unwrap(), None);
        // It goes on, and what was written since is there after a restart.
        let writes = vec![Write::put("new", "row"), Write::delete(key(0))];
        store.write(Batch { writes }).unwrap();
        store.sync().unwrap();
        rows.insert("new".into(), "row".into());
        rows.remove(&key(0));
        drop(store);
        let (store, opened) = E::open(dir.path());
        assert_eq!(opened, Opened::Kept);
        assert_eq!(all(&store), rows);
    }

    fn what_is_written_meanwhile_is_in_the_copy<E>() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = E::open(dir.path());
        let mut rows = wasteful(&store);
        let done = AtomicBool::new(false);
        let compacted = std::thread::scope(|scope| {
            let (store, done) = (&store, &done);
            let reader = scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    let found = store.get(&key(7_980)).unwrap();
                    assert!(found.is_some(), "a row is there all the time");
                }
            });
            let writer = scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(2);
                let mut written = BTreeMap::new();
                while !done.load(Ordering::Acquire) {
                    let writes = (0..20).map(|_| {
                        let n = random.random_range(0..8_000);
                        let value = (n == 7_980 || random.random_bool(0.6))
                            .then(|| value(&mut random, n));
                        written.insert(key(n), value.clone());
                        match value {
                            Some(value) => Write::put(key(n), value),
                            None => Write::delete(key(n)),
                        }
                    });
                    store.write(Batch { writes: writes.collect() }).unwrap();
                    store.sync().unwrap();
                }
                written
            });
            let compacted = store.compact(&|| true).unwrap();
            done.store(true, Ordering::Release);
            reader.join().unwrap();
            for (key, value) in writer.join().unwrap() {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
            compacted
        });
        assert!(compacted.is_some());
        assert_eq!(all(&store), rows);
        drop(store);
        let (store, opened) = E::open(dir.path());
        assert_eq!(opened, Opened::Kept);
        assert_eq!(all(&store), rows);
    }

    // Given up at one of its first steps, with the files as they are then: what a crash leaves.
    fn a_crash_while_it_copies_is_harmless<E>() {
        for steps in [0, 1, 2] {
            let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (store, _) = E::open(dir.path());
            let rows = wasteful(&store);
            let asked = AtomicUsize::new(0);
            let go_on = || {
                let is_copying = dir.path().join(E::FRESH).exists();
                if !is_copying || asked.fetch_add(1, Ordering::SeqCst) < steps {
                    return true;
                }
                copy(dir.path(), crashed.path());
                false
            };
            assert_eq!(store.compact(&go_on).unwrap(), None);
            assert!(!dir.path().join(E::FRESH).exists(), "what was given up is gone");
            assert_eq!(asked.load(Ordering::SeqCst), steps + 1);
            assert_eq!(all(&store), rows);
            let (again, opened) = E::open(crashed.path());
            // sled writes in the background, so its files may be of two moments.
            if opened == Opened::Kept || E::KIND == EngineKind::Redb {
                assert_eq!((opened, all(&again)), (Opened::Kept, rows), "after {steps} steps");
            }
            assert!(!crashed.path().join(E::FRESH).exists());
        }
    }

    fn a_small_or_dense_store_is_left_alone<E>() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open_or_rebuild(E::KIND, dir.path(), CACHE_BYTES).unwrap();
        wasteful(&*store);
        assert_eq!(store.compact(&|| true).unwrap(), None, "below the floor");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

#[test]
fn a_crash_while_sleds_directories_change_places_is_a_lost_store() {
    for left in [&["sled.old", "sled.new"][..], &["sled.old"], &["sled.new"]] {
        let dir = tempfile::tempdir().unwrap();
        drop(SledEngine::open(dir.path()));
        let sled = dir.path().join("sled");
        left.iter().for_each(|name| copy(&sled, &dir.path().join(name)));
        fs::remove_dir_all(&sled).unwrap();
        let (store, opened) = SledEngine::open(dir.path());
        assert_eq!((opened, all(&store)), (Opened::Created, Rows::new()));
        left.iter().for_each(|name| assert!(!dir.path().join(name).exists(), "{name}"));
    }
}

//! A store's directory damaged, made by another engine, restarted over, killed under load: opening
//! never panics and never keeps what it cannot rely on. One suite for every engine on disk.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "a failing run names its seed")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use piton_store::sled::machine_boot_id;
use piton_store::{
    Batch, EngineKind, KeyRange, Opened, Order, Store, StoreError, Write, discard, open_or_rebuild,
    sled,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CACHE_BYTES: u64 = 1 << 22;
const ROWS: u32 = 200;

macro_rules! for_every_engine {
    ($($(#[$attribute:meta])* fn $name:ident($engine:ident) $body:block)+) => {
        mod redb_engine { $(
            #[test]
            fn $name() {
                super::$name(super::EngineKind::Redb);
            }
        )+ }
        mod sled_engine { $(
            #[test]
            fn $name() {
                super::$name(super::EngineKind::Sled);
            }
        )+ }
        $( $(#[$attribute])* fn $name($engine: EngineKind) $body )+
    };
}

fn open(engine: EngineKind, dir: &Path) -> (Arc<dyn Store>, Opened) {
    open_or_rebuild(engine, dir, CACHE_BYTES).unwrap()
}

/// Puts the number of the batch into every row, padded so that the rows take many pages.
fn batch(number: u64) -> Batch {
    let row = |n: u32| {
        let length = if n == 9 { 20_000 } else { 8 + n as usize * 5 };
        let mut value = number.to_be_bytes().to_vec();
        value.resize(length, n as u8);
        Write::put(n.to_be_bytes().to_vec(), value)
    };
    Batch { writes: (0..ROWS).map(row).collect() }
}

/// A store with several batches in it, closed.
fn filled(engine: EngineKind) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (store, opened) = open(engine, dir.path());
    assert_eq!(opened, Opened::Created);
    for number in 1..=20 {
        store.write(batch(number)).unwrap();
    }
    store.sync().unwrap();
    drop(store);
    // Opening writes a snapshot of sled's own, so that there is one to damage.
    drop(open(engine, dir.path()));
    dir
}

/// The number in every row; an error if a row cannot be read, `None` if the store is empty.
fn number(store: &dyn Store) -> Result<Option<u64>, StoreError> {
    let rows = store.scan(KeyRange::all(), Order::Ascending, usize::MAX)?;
    let Some(first) = rows.first() else { return Ok(None) };
    let number = u64::from_be_bytes(*first.value.first_chunk().unwrap());
    let expected = batch(number).writes;
    assert_eq!(rows.len(), expected.len());
    for (row, write) in rows.into_iter().zip(expected) {
        assert_eq!(Write::put(row.key, row.value), write);
    }
    Ok(Some(number))
}

/// The files of a store, the largest first.
fn files(engine: EngineKind, dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join(engine.name())).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort_by_key(|path| (std::cmp::Reverse(fs::metadata(path).unwrap().len()), path.clone()));
    files
}

fn overwrite_with_garbage(path: &Path) {
    let mut garbage = vec![0; fs::metadata(path).unwrap().len() as usize];
    SmallRng::seed_from_u64(1).fill(&mut garbage[..]);
    fs::write(path, garbage).unwrap();
}

fn discarded(engine: EngineKind, dir: &Path) -> String {
    let (store, opened) = open(engine, dir);
    let Opened::Discarded { reason } = opened else { panic!("{opened:?}") };
    assert_eq!(number(&*store).unwrap(), None);
    // The new store works, and is kept at the next start.
    store.write(batch(77)).unwrap();
    drop(store);
    let (store, opened) = open(engine, dir);
    assert_eq!(opened, Opened::Kept);
    assert_eq!(number(&*store).unwrap(), Some(77));
    reason
}

for_every_engine! {
    fn an_undamaged_store_is_kept(engine) {
        let dir = filled(engine);
        let (store, opened) = open(engine, dir.path());
        assert_eq!(opened, Opened::Kept);
        assert_eq!(number(&*store).unwrap(), Some(20));
    }

    fn a_store_that_another_engine_made_is_discarded(engine) {
        for other in EngineKind::ALL.into_iter().filter(|other| *other != engine) {
            let dir = filled(other);
            let reason = discarded(engine, dir.path());
            assert!(reason.contains(&format!("made by {}", other.name())), "{reason}");
            assert!(!dir.path().join(other.name()).exists());
            // And back: nothing of the first one comes to light again.
            discarded(other, dir.path());
        }
    }

    fn a_store_that_is_discarded_is_gone(engine) {
        let dir = filled(engine);
        discard(dir.path()).unwrap();
        assert!(!dir.path().exists());
        discard(dir.path()).unwrap();
        let (store, opened) = open(engine, dir.path());
        assert_eq!(opened, Opened::Created);
        assert_eq!(number(&*store).unwrap(), None);
    }

    fn a_file_of_garbage_is_discarded(engine) {
        for which in 0..files(engine, filled(engine).path()).len() {
            let dir = filled(engine);
            let path = files(engine, dir.path()).swap_remove(which);
            overwrite_with_garbage(&path);
            println!("{}: {}", path.display(), discarded(engine, dir.path()));
        }
    }

    fn a_file_that_is_emptied_or_gone_is_discarded(engine) {
        let empty = |path: &Path| fs::write(path, b"");
        let remove = |path: &Path| fs::remove_file(path);
        for loss in [&empty as &dyn Fn(&Path) -> std::io::Result<()>, &remove] {
            let dir = filled(engine);
            loss(&files(engine, dir.path())[0]).unwrap();
            println!("{}", discarded(engine, dir.path()));
        }
    }

    fn another_handle_is_refused_and_nothing_is_discarded(engine) {
        let dir = filled(engine);
        let (store, _) = open(engine, dir.path());
        let second = open_or_rebuild(engine, dir.path(), CACHE_BYTES);
        assert!(matches!(second, Err(StoreError::InUse { .. })));
        assert_eq!(number(&*store).unwrap(), Some(20));
        drop(store);
        assert_eq!(number(&*open(engine, dir.path()).0).unwrap(), Some(20));
    }

    /// Damage at random places. Opening discards, or keeps a store whose every answer is an error
    /// or a value that once was written under its key.
    fn random_damage_is_discarded_or_refused_or_reads_what_was_written(engine) {
        let template = filled(engine);
        let (mut discards, mut refusals, mut reads) = (0, 0, 0);
        for seed in 0..60 {
            println!("seed {seed}");
            let mut random = SmallRng::seed_from_u64(seed);
            let dir = copied(template.path());
            damage_at_random(&mut random, engine, dir.path());
            let (store, opened) = open(engine, dir.path());
            if let Opened::Discarded { .. } = opened {
                discards += 1;
                assert_eq!(number(&*store).unwrap(), None);
                continue;
            }
            let mut numbers = BTreeSet::new();
            for n in 0..ROWS {
                match store.get(&n.to_be_bytes()) {
                    Err(_) => refusals += 1,
                    Ok(None) => {}
                    Ok(Some(value)) => {
                        reads += 1;
                        let number = u64::from_be_bytes(*value.first_chunk().unwrap());
                        numbers.insert(number);
                        let key = Bytes::from(n.to_be_bytes().to_vec());
                        assert_eq!(batch(number).writes[n as usize], Write::Put { key, value });
                    }
                }
            }
            println!("kept: {numbers:?}");
            let outcome = store.write(batch(21)).and_then(|()| store.sync());
            drop(store);
            if engine == EngineKind::Redb && outcome.is_err() {
                assert_ne!(open(engine, dir.path()).1, Opened::Kept, "after {outcome:?}");
            }
        }
        println!("{discards} discarded, {refusals} rows refused, {reads} rows read");
        assert!(discards > 0 && reads > 0);
    }

    fn a_killed_process_leaves_one_batch_not_older_than_the_last_synced_one(engine) {
        let dir = tempfile::tempdir().unwrap();
        let mut random = SmallRng::seed_from_u64(3);
        for round in 0..8 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_that_writes_batches_until_it_is_killed", "--nocapture"])
                .env(CHILD_DIR, dir.path())
                .env(CHILD_ENGINE, engine.name())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut synced = 0;
            let wanted = random.random_range(1..30);
            let numbers = lines.map_while(Result::ok);
            let numbers =
                numbers.filter_map(|line| line.strip_prefix("synced ")?.parse::<u64>().ok());
            for number in numbers.take(wanted) {
                synced = number;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(synced > 0, "round {round}: the child wrote nothing");
            let (store, opened) = open(engine, dir.path());
            assert_eq!(opened, Opened::Kept);
            let found = number(&*store).unwrap();
            assert!(found >= Some(synced), "round {round}: {found:?}, synced {synced}");
        }
    }
}

fn damage_at_random(random: &mut SmallRng, engine: EngineKind, dir: &Path) {
    let files = files(engine, dir);
    // Most rows lie in the largest.
    let which = if random.random_ratio(3, 4) { 0 } else { random.random_range(0..files.len()) };
    let mut bytes = fs::read(&files[which]).unwrap();
    let place = random.random_range(0..bytes.len());
    let end = bytes.len().min(place + 4096);
    match random.random_range(0..4) {
        0 => bytes.truncate(place),
        1 => bytes[place] ^= 1 << random.random_range(0..8),
        2 => bytes[place..end].fill(0),
        _ => random.fill(&mut bytes[place..end]),
    }
    fs::write(&files[which], bytes).unwrap();
}

fn copied(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy(from, to.path());
    to
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

const CHILD_DIR: &str = "PITON_STORE_KILLED_CHILD";
const CHILD_ENGINE: &str = "PITON_STORE_KILLED_ENGINE";

/// Not a test by itself: the process that is killed by the test above.
#[test]
fn child_that_writes_batches_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let name = std::env::var(CHILD_ENGINE).unwrap();
    let engine = EngineKind::ALL.into_iter().find(|engine| engine.name() == name).unwrap();
    let (store, opened) = open(engine, Path::new(&dir));
    assert!(!matches!(opened, Opened::Discarded { .. }), "{opened:?}");
    let first = number(&*store).unwrap().unwrap_or(0) + 1;
    let mut out = std::io::stdout();
    for number in first.. {
        store.write(batch(number)).unwrap();
        if number % 3 == 0 {
            store.sync().unwrap();
            writeln!(out, "synced {number}").unwrap();
            out.flush().unwrap();
        }
    }
}

#[test]
fn a_sled_store_of_an_earlier_boot_is_discarded() {
    let dir = filled(EngineKind::Sled);
    let open = || sled::open_or_rebuild(dir.path(), "another boot", CACHE_BYTES).unwrap();
    let (store, opened) = open();
    assert!(matches!(&opened, Opened::Discarded { reason } if reason.contains("restarted")));
    assert_eq!(number(&store).unwrap(), None);
    drop(store);
    assert_eq!(open().1, Opened::Kept);
}

#[test]
fn the_machine_has_one_boot_id() {
    let id = machine_boot_id().unwrap();
    assert!(id.len() > 30 && !id.contains('\n'), "{id:?}");
    assert_eq!(id, machine_boot_id().unwrap());
}

#[test]
fn a_sled_store_without_a_readable_boot_id_is_discarded() {
    for content in [None, Some(&b""[..]), Some(b"\xff\xfe"), Some(b"piton store 0\nboot\n")] {
        let dir = filled(EngineKind::Sled);
        let path = dir.path().join("boot_id");
        match content {
            None => fs::remove_file(path).unwrap(),
            Some(content) => fs::write(path, content).unwrap(),
        }
        discarded(EngineKind::Sled, dir.path());
    }
}

#[test]
fn an_empty_generating_snapshot_of_sled_is_discarded() {
    let dir = filled(EngineKind::Sled);
    fs::write(dir.path().join("sled/snap.ffffffffffffffff.generating"), b"").unwrap();
    discarded(EngineKind::Sled, dir.path());
}

#[test]
fn a_sled_file_of_garbage_without_a_snapshot_is_discarded() {
    // sled then takes the file for one that was never written to.
    let dir = filled(EngineKind::Sled);
    let is =
        |path: &PathBuf, name: &str| path.file_name().unwrap().to_str().unwrap().starts_with(name);
    for path in files(EngineKind::Sled, dir.path()) {
        if is(&path, "snap") {
            fs::remove_file(path).unwrap();
        } else if is(&path, "db") {
            overwrite_with_garbage(&path);
        }
    }
    discarded(EngineKind::Sled, dir.path());
}

//! sled's directory damaged, restarted over, killed under load: opening never panics and never
//! keeps what it cannot rely on.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "a failing run names its seed")]

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use piton_store::sled::{Opened, SledStore, machine_boot_id, open_or_rebuild};
use piton_store::{Batch, KeyRange, Order, Store, StoreError, Write};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CACHE_BYTES: u64 = 1 << 22;
const ROWS: u32 = 200;

fn open(dir: &Path) -> (SledStore, Opened) {
    open_or_rebuild(dir, "boot", CACHE_BYTES).unwrap()
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
fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (store, opened) = open(dir.path());
    assert_eq!(opened, Opened::Created);
    for number in 1..=20 {
        store.write(batch(number)).unwrap();
    }
    store.sync().unwrap();
    drop(store);
    // Opening writes a snapshot of sled's own, so that there is one to damage.
    drop(open(dir.path()));
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

fn sled_file(dir: &Path, name_begins: &str) -> PathBuf {
    let files = fs::read_dir(dir.join("sled")).unwrap().map(|entry| entry.unwrap().path());
    let begins =
        |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(name_begins);
    files.filter(begins).max().unwrap()
}

fn discarded(dir: &Path) -> String {
    let (store, opened) = open(dir);
    let Opened::Discarded { reason } = opened else { panic!("{opened:?}") };
    assert_eq!(number(&store).unwrap(), None);
    // The new store works, and is kept at the next start.
    store.write(batch(77)).unwrap();
    drop(store);
    let (store, opened) = open(dir);
    assert_eq!(opened, Opened::Kept);
    assert_eq!(number(&store).unwrap(), Some(77));
    reason
}

#[test]
fn an_undamaged_store_is_kept() {
    let dir = filled();
    let (store, opened) = open(dir.path());
    assert_eq!(opened, Opened::Kept);
    assert_eq!(number(&store).unwrap(), Some(20));
}

#[test]
fn a_store_of_an_earlier_boot_is_discarded() {
    let dir = filled();
    let (store, opened) = open_or_rebuild(dir.path(), "another boot", CACHE_BYTES).unwrap();
    assert!(matches!(&opened, Opened::Discarded { reason } if reason.contains("restarted")));
    assert_eq!(number(&store).unwrap(), None);
    drop(store);
    let (_, opened) = open_or_rebuild(dir.path(), "another boot", CACHE_BYTES).unwrap();
    assert_eq!(opened, Opened::Kept);
}

#[test]
fn the_machine_has_one_boot_id() {
    let id = machine_boot_id().unwrap();
    assert!(id.len() > 30 && !id.contains('\n'), "{id:?}");
    assert_eq!(id, machine_boot_id().unwrap());
}

#[test]
fn a_store_without_a_readable_boot_id_is_discarded() {
    for content in [None, Some(&b""[..]), Some(b"\xff\xfe"), Some(b"piton store 0\nboot\n")] {
        let dir = filled();
        let path = dir.path().join("boot_id");
        match content {
            None => fs::remove_file(path).unwrap(),
            Some(content) => fs::write(path, content).unwrap(),
        }
        discarded(dir.path());
    }
}

#[test]
fn an_empty_generating_snapshot_is_discarded() {
    let dir = filled();
    fs::write(dir.path().join("sled/snap.ffffffffffffffff.generating"), b"").unwrap();
    discarded(dir.path());
}

#[test]
fn a_file_of_garbage_is_discarded() {
    for (name, snapshot) in [("db", true), ("db", false), ("conf", true), ("snap", true)] {
        let dir = filled();
        if !snapshot {
            // sled then takes the file for one that was never written to.
            fs::remove_file(sled_file(dir.path(), "snap")).unwrap();
        }
        let path = sled_file(dir.path(), name);
        let mut garbage = vec![0; fs::metadata(&path).unwrap().len() as usize];
        SmallRng::seed_from_u64(1).fill(&mut garbage[..]);
        fs::write(&path, garbage).unwrap();
        let reason = discarded(dir.path());
        println!("{name}: {reason}");
    }
}

#[test]
fn another_handle_is_refused_and_nothing_is_discarded() {
    let dir = filled();
    let (store, _) = open(dir.path());
    let second = open_or_rebuild(dir.path(), "boot", CACHE_BYTES);
    assert!(matches!(second, Err(StoreError::InUse { .. })));
    assert_eq!(number(&store).unwrap(), Some(20));
    drop(store);
    assert_eq!(number(&open(dir.path()).0).unwrap(), Some(20));
}

/// Damage at random places. Opening discards, or keeps a store whose every answer is an error or
/// a value that once was written under its key.
#[test]
fn random_damage_is_discarded_or_refused_or_reads_what_was_written() {
    let template = filled();
    let (mut discards, mut refusals, mut reads) = (0, 0, 0);
    for seed in 0..60 {
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let dir = copied(template.path());
        let path = sled_file(dir.path(), ["db", "db", "db", "snap"][seed as usize % 4]);
        let mut bytes = fs::read(&path).unwrap();
        let place = random.random_range(0..bytes.len());
        match random.random_range(0..4) {
            0 => bytes.truncate(place),
            1 => bytes[place] ^= 1 << random.random_range(0..8),
            2 => {
                let end = bytes.len().min(place + 4096);
                bytes[place..end].fill(0);
            }
            _ => {
                let end = bytes.len().min(place + 4096);
                random.fill(&mut bytes[place..end]);
            }
        }
        fs::write(&path, bytes).unwrap();
        let (store, opened) = open(dir.path());
        if let Opened::Discarded { .. } = opened {
            discards += 1;
            assert_eq!(number(&store).unwrap(), None);
            continue;
        }
        let mut numbers = std::collections::BTreeSet::new();
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
        let _outcome = store.write(batch(21)).and_then(|()| store.sync());
    }
    println!("{discards} discarded, {refusals} rows refused, {reads} rows read");
    assert!(discards > 0 && reads > 0);
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

/// Not a test by itself: the process that is killed by the test below.
#[test]
fn child_that_writes_batches_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let (store, opened) = open(Path::new(&dir));
    assert!(!matches!(opened, Opened::Discarded { .. }), "{opened:?}");
    let first = number(&store).unwrap().unwrap_or(0) + 1;
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
fn a_killed_process_leaves_one_batch_not_older_than_the_last_synced_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = SmallRng::seed_from_u64(3);
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_batches_until_it_is_killed", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut synced = 0;
        let wanted = random.random_range(1..30);
        let numbers = lines.map_while(Result::ok);
        let numbers = numbers.filter_map(|line| line.strip_prefix("synced ")?.parse::<u64>().ok());
        for number in numbers.take(wanted) {
            synced = number;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(synced > 0, "round {round}: the child wrote nothing");
        let (store, opened) = open(dir.path());
        assert_eq!(opened, Opened::Kept);
        let found = number(&store).unwrap();
        assert!(found >= Some(synced), "round {round}: {found:?}, synced {synced}");
    }
}

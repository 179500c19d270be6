use piton_store::golden::Golden;

use bytes::{BufMut, BytesMut};

use super::*;
use crate::error::ReplicaError;
use crate::log::FaultyDisk;

const GROUP: GroupId = GroupId(7);
const DIR: &str = "/snapshot";

/// Two rows, at index 4.
struct TwoRows {
    left: Vec<Row>,
}

fn two_rows() -> TwoRows {
    let row = |key: &'static [u8]| Row {
        key: Bytes::from_static(key),
        value: Bytes::from(vec![b'v'; 20_000]),
    };
    TwoRows { left: vec![row(b"a"), row(b"b")] }
}

impl SnapshotRows for TwoRows {
    fn mark(&self) -> Mark {
        Mark { index: 4, bytes: Bytes::from_static(b"mark") }
    }

    fn next_rows(&mut self, _: usize) -> Result<Vec<Row>, ReplicaError> {
        Ok(std::mem::take(&mut self.left))
    }
}

fn open(disk: &FaultyDisk) -> Snapshots {
    open_on(Arc::new(disk.clone()))
}

fn open_on(disk: Arc<dyn Disk>) -> Snapshots {
    Snapshots::open(disk, PathBuf::from(DIR), GROUP, Arc::default()).expect("open the snapshots")
}

/// The keys of a snapshot, each row checked.
fn keys(snapshots: &Snapshots, file: &SnapshotFile) -> Vec<Bytes> {
    let rows = snapshots.rows(file).expect("read the rows");
    rows.map(|row| row.expect("a whole row").key).collect()
}

/// Goal: once a snapshot is taken, the log may be purged up to it. Whatever a power cut leaves of
/// what was not synced, the snapshot is there and whole.
#[test]
fn a_snapshot_that_was_taken_survives_the_loss_of_power() {
    for seed in 0..64 {
        let disk = FaultyDisk::new(seed);
        open(&disk).write(&mut two_rows()).expect("take a snapshot");
        let snapshots = open(&disk.cut_power());
        let file = snapshots.current().unwrap_or_else(|| panic!("seed {seed}: it is gone"));
        assert_eq!(file.mark, two_rows().mark());
        assert_eq!(keys(&snapshots, &file), ["a", "b"], "seed {seed}");
    }
}

/// A disk that turns a bit around in all that it writes late in a file.
#[derive(Debug)]
struct LyingDisk(FaultyDisk);

#[derive(Debug)]
struct LyingFile(Arc<dyn DiskFile>);

impl Disk for LyingDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LyingFile(self.0.create(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
}

impl DiskFile for LyingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut written = bytes.to_vec();
        if let Some(byte) = written.get_mut(10_000) {
            *byte ^= 1;
        }
        self.0.write_at(&written, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
}

#[test]
fn a_snapshot_that_does_not_read_back_is_not_taken() {
    let snapshots = open_on(Arc::new(LyingDisk(FaultyDisk::new(1))));
    let taken = snapshots.write(&mut two_rows());
    assert!(matches!(taken, Err(SnapshotError::Corrupt { .. })), "{taken:?}");
    assert!(snapshots.current().is_none());
}

#[test]
fn a_snapshot_is_laid_out_as_ever() {
    let mut golden = Golden::of(include_str!("../../testdata/records.txt"));
    let mut rows = BytesMut::new();
    rows.put_u8(KIND_ROWS);
    wire::put_bytes(&mut rows, b"key");
    wire::put_bytes(&mut rows, b"value");
    let mut end = BytesMut::new();
    end.put_u8(KIND_END);
    end.put_u64(1);
    let parts = [
        ("a snapshot's head (version 1)", head_bytes(GROUP, 4, b"mark")),
        ("a snapshot's rows (version 1)", block_bytes(0, &rows)),
        ("a snapshot's end (version 1)", block_bytes(1, &end)),
    ];
    let whole = parts.map(|(name, bytes)| {
        golden.bytes(name, &bytes);
        golden.get(name).unwrap_or_else(|| bytes.to_vec())
    });
    let disk = FaultyDisk::new(1);
    put_snapshot(&disk, &whole.concat());
    let snapshots = open(&disk);
    let file = snapshots.current().expect("it is there");
    assert_eq!(file.mark, two_rows().mark());
    assert_eq!(keys(&snapshots, &file), ["key"]);
    golden.finish();
}

fn put_snapshot(disk: &FaultyDisk, bytes: &[u8]) {
    disk.create_dir(Path::new(DIR)).expect("memory takes all");
    let path = PathBuf::from(format!("{DIR}/{GROUP}-4{FINAL_SUFFIX}"));
    let file = disk.create(&path).expect("memory takes all");
    file.write_at(bytes, 0).expect("memory takes all");
}

#[test]
fn a_snapshot_of_a_newer_release_is_refused_as_such() {
    let mut head = BytesMut::from(&head_bytes(GROUP, 4, b"mark")[..]);
    head[MAGIC.len()] = b'2';
    let checksum = head.len() - 4;
    let crc = crc32c::crc32c(&head[..checksum]);
    head[checksum..].copy_from_slice(&crc.to_be_bytes());
    let disk = FaultyDisk::new(1);
    put_snapshot(&disk, &head);
    let refused = Snapshots::open(Arc::new(disk), DIR.into(), GROUP, Arc::default())
        .err()
        .expect("it is newer");
    let SnapshotError::Newer { version: b'2', .. } = refused else { panic!("{refused}") };
    assert!(refused.to_string().contains("of version 2, which only a newer"), "{refused}");
}

#[test]
fn a_received_snapshot_is_refused_for_any_flipped_byte() {
    let sender = open(&FaultyDisk::new(1));
    let file = sender.write(&mut two_rows()).expect("take a snapshot");
    let whole = file.part(0, usize::MAX).expect("read it");
    let receive = |bytes: &[u8]| {
        let snapshots = open(&FaultyDisk::new(2));
        let mut incoming = snapshots.receive().expect("begin to receive");
        incoming.write(bytes).expect("receive");
        snapshots.received(incoming).map(|file| keys(&snapshots, &file))
    };
    assert_eq!(receive(&whole).expect("it is whole"), ["a", "b"]);
    for at in (0..whole.len()).step_by(997).chain([whole.len() - 1]) {
        let mut flipped = whole.to_vec();
        flipped[at] ^= 0x40;
        let received = receive(&flipped);
        assert!(received.is_err(), "byte {at}: {received:?}");
    }
}

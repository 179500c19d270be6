//! A disk that loses with the process what was not synced. Bytes and names that are to be synced yet
//! are kept in memory; of the bytes, some are written at once, since a power cut may spare any of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use piton_raft::log::{Disk, DiskFile, RealDisk};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Chances in a hundred that a write that nobody synced yet is spared.
const SPARED_PERCENT: u32 = 25;
/// What names end with under which files lie that are not durably created.
const UNSYNCED: &str = "unsynced";

#[derive(Debug, Default)]
pub(crate) struct LossyDisk {
    names: Mutex<Names>,
}

/// What programs see, and how it differs from what is durable.
#[derive(Debug, Default)]
struct Names {
    open: BTreeMap<PathBuf, Arc<LossyFile>>,
    unsynced: Vec<Change>,
    created: u64,
}

#[derive(Clone, Debug)]
enum Change {
    /// The file lies under another name until then.
    Create(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Change {
    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Create(path, _) | Self::Rename(path, _) | Self::Remove(path)) = self;
        path.parent() == Some(dir)
    }

    fn carry_out(&self) -> io::Result<()> {
        match self {
            Self::Create(path, from) => RealDisk.rename(from, path),
            Self::Rename(from, to) => RealDisk.rename(from, to),
            Self::Remove(path) => RealDisk.remove(path),
        }
    }
}

impl Names {
    /// Where a file lies that programs see under this name.
    fn real(&self, path: &Path) -> io::Result<PathBuf> {
        let mut path = path.to_owned();
        for change in self.unsynced.iter().rev() {
            match change {
                Change::Create(created, lies) if *created == path => return Ok(lies.clone()),
                Change::Rename(from, to) if *to == path => path.clone_from(from),
                Change::Rename(gone, _) | Change::Remove(gone) if *gone == path => {
                    return Err(io::ErrorKind::NotFound.into());
                }
                _ => {}
            }
        }
        if path.exists() { Ok(path) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl Disk for LossyDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = self.names.lock();
        if names.real(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        names.created += 1;
        let mut lies = path.as_os_str().to_owned();
        lies.push(format!(".{}.{UNSYNCED}", names.created));
        let lies = PathBuf::from(lies);
        // One of that name may be left of a process that was killed.
        if lies.exists() {
            RealDisk.remove(&lies)?;
        }
        let file = Arc::new(LossyFile::on(RealDisk.create(&lies)?));
        names.open.insert(path.to_owned(), Arc::clone(&file));
        names.unsynced.push(Change::Create(path.to_owned(), lies));
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = self.names.lock();
        // A node that gives its log up moves the directory away.
        let real = names.real(path)?;
        // ORDER: its bytes that are not synced are known to the file that is open, and to no other.
        if let Some(file) = names.open.get(path) {
            return Ok(Arc::clone(file) as Arc<dyn DiskFile>);
        }
        let file = Arc::new(LossyFile::on(RealDisk.open(&real)?));
        names.open.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        names.real(from)?;
        names.open.remove(to);
        if let Some(file) = names.open.remove(from) {
            names.open.insert(to.to_owned(), file);
        }
        names.unsynced.push(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        names.real(path)?;
        names.open.remove(path);
        names.unsynced.push(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let names = self.names.lock();
        let real = RealDisk.list(dir)?.into_iter().filter(|name| !name.ends_with(UNSYNCED));
        let mut seen: BTreeSet<String> = real.collect();
        let name = |path: &Path| {
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        for change in names.unsynced.iter().filter(|change| change.is_in(dir)) {
            let (gone, new) = match change {
                Change::Create(path, _) => (None, Some(path)),
                Change::Rename(from, to) => (Some(from), Some(to)),
                Change::Remove(path) => (Some(path), None),
            };
            if let Some(gone) = gone {
                seen.remove(&name(gone));
            }
            if let Some(new) = new {
                seen.insert(name(new));
            }
        }
        Ok(seen.into_iter().collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        let (synced, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut names.unsynced).into_iter().partition(|change| change.is_in(dir));
        names.unsynced = others;
        for change in synced {
            match change.carry_out() {
                // A node that gives its log up moves the directory away, and what was under way there.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        RealDisk.sync_dir(dir)
    }
}

#[derive(Debug)]
struct LossyFile {
    real: Arc<dyn DiskFile>,
    state: Mutex<Unsynced>,
}

#[derive(Debug)]
struct Unsynced {
    writes: Vec<(u64, Vec<u8>)>,
    random: SmallRng,
}

impl LossyFile {
    fn on(real: Arc<dyn DiskFile>) -> Self {
        let state = Unsynced { writes: Vec::new(), random: SmallRng::from_os_rng() };
        Self { real, state: Mutex::new(state) }
    }

    fn length_with(&self, unsynced: &Unsynced) -> io::Result<u64> {
        let ends = unsynced.writes.iter().map(|(at, bytes)| at + bytes.len() as u64);
        Ok(ends.max().unwrap_or_default().max(self.real.length()?))
    }
}

impl DiskFile for LossyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let unsynced = self.state.lock();
        let left = self.length_with(&unsynced)?.saturating_sub(offset);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..count];
        let real = self.real.read_at(buffer, offset)?;
        buffer[real..].fill(0);
        for (at, bytes) in &unsynced.writes {
            let from = offset.max(*at);
            let to = (offset + count as u64).min(at + bytes.len() as u64);
            if from < to {
                let source = &bytes[(from - at) as usize..(to - at) as usize];
                buffer[(from - offset) as usize..][..source.len()].copy_from_slice(source);
            }
        }
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut unsynced = self.state.lock();
        let end = offset + bytes.len() as u64;
        let overlaps =
            unsynced.writes.iter().any(|(at, old)| *at < end && offset < at + old.len() as u64);
        // ORDER: one that is spared must not be covered by an older one at the next sync.
        if !overlaps && unsynced.random.random_range(0..100) < SPARED_PERCENT {
            return self.real.write_at(bytes, offset);
        }
        unsynced.writes.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut unsynced = self.state.lock();
        for (at, bytes) in unsynced.writes.drain(..) {
            self.real.write_at(&bytes, at)?;
        }
        self.real.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.length_with(&self.state.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 1 << 10;

    /// Many writes, of which not all can be spared.
    fn write(file: &dyn DiskFile, byte: u8) {
        for at in 0..BYTES {
            file.write_at(&[byte], at as u64).expect("it is written");
        }
    }

    fn read(disk: &LossyDisk, path: &Path) -> Vec<u8> {
        let file = disk.open(path).expect("it is there");
        let mut buffer = vec![9; BYTES + 1];
        let count = file.read_at(&mut buffer, 0).expect("it is read");
        buffer.truncate(count);
        buffer
    }

    #[test]
    fn what_was_not_synced_is_there_until_the_process_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let disk = LossyDisk::default();
        let file = disk.create(&old).expect("created");
        write(file.as_ref(), 1);
        file.sync().expect("synced");
        assert!(LossyDisk::default().list(dir.path()).expect("listed").is_empty());
        disk.sync_dir(dir.path()).expect("synced");
        write(file.as_ref(), 2);
        disk.rename(&old, &new).expect("renamed");
        assert_eq!(disk.list(dir.path()).expect("listed"), ["new"]);
        assert_eq!(read(&disk, &new), [2; BYTES]);
        assert!(disk.open(&old).is_err());
        // The next life.
        let disk = LossyDisk::default();
        assert_eq!(disk.list(dir.path()).expect("listed"), ["old"]);
        let left = read(&disk, &old);
        assert_eq!(left.len(), BYTES);
        assert!(left.contains(&1) && left.contains(&2), "some is spared, and some is not");
    }

    #[test]
    fn what_was_synced_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let disk = LossyDisk::default();
        let file = disk.create(&path).expect("created");
        write(file.as_ref(), 1);
        write(file.as_ref(), 2);
        file.sync().expect("synced");
        disk.sync_dir(dir.path()).expect("synced");
        disk.remove(&path).expect("removed");
        assert!(disk.list(dir.path()).expect("listed").is_empty());
        assert_eq!(read(&LossyDisk::default(), &path), [2; BYTES]);
        disk.sync_dir(dir.path()).expect("synced");
        assert!(LossyDisk::default().list(dir.path()).expect("listed").is_empty());
    }
}

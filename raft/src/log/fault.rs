//! A disk in memory that fails as disks do, repeatably from a seed. For tests and simulation.
//!
//! It keeps what programs see apart from what a power cut leaves: of the bytes written but not
//! synced, any block may survive or not, and of the names changed since the directory was synced,
//! any number of the first. It never loses what was synced, unless told to flip a bit.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile};

/// What goes wrong, and when. Calls are counted from the moment the faults are set.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The power fails during this call (1: the next) of those that change something.
    pub cut_at_call: Option<u64>,
    /// This sync of a file (1: the next) fails, and what it should have synced is lost.
    pub fail_at_sync: Option<u64>,
    /// Files may hold this many bytes together.
    pub capacity: Option<u64>,
}

/// A disk in memory, as one life of a process sees it. Clones belong to the same life; after
/// [`FaultyDisk::cut_power`] or [`FaultyDisk::kill`] all their calls fail.
#[derive(Debug, Clone)]
pub struct FaultyDisk {
    platter: Arc<Platter>,
    life: u64,
}

#[derive(Debug)]
struct Platter {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    life: u64,
    random: u64,
    faults: Faults,
    changes: u64,
    syncs: u64,
    refused_for_space: u64,
    power_is_off: bool,
    syncs_held: bool,
    files: Vec<File>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<NameChange>,
}

#[derive(Debug, Default)]
struct File {
    visible: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    file: usize,
}

impl FaultyDisk {
    /// An empty disk; the seed decides what a power cut leaves.
    pub fn new(seed: u64) -> FaultyDisk {
        let state = State { random: seed, ..State::default() };
        let platter = Platter { state: Mutex::new(state), released: Condvar::new() };
        FaultyDisk { platter: Arc::new(platter), life: 0 }
    }

    /// Replaces the faults to come, and counts calls anew.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.platter.state.lock();
        (state.faults, state.changes, state.syncs) = (faults, 0, 0);
        state.refused_for_space = 0;
    }

    /// Calls that changed something since the faults were set.
    pub fn changes(&self) -> u64 {
        self.platter.state.lock().changes
    }

    /// Writes that there was no room for since the faults were set.
    pub fn refused_for_space(&self) -> u64 {
        self.platter.state.lock().refused_for_space
    }

    /// Makes syncs wait, or lets them go on.
    pub fn hold_syncs(&self, hold: bool) {
        self.platter.state.lock().syncs_held = hold;
        self.platter.released.notify_all();
    }

    /// Takes the power away and gives it back: the disk as the next life finds it.
    pub fn cut_power(&self) -> FaultyDisk {
        let mut state = self.platter.state.lock();
        state.lose_unsynced();
        self.next_life(state)
    }

    /// Ends this life's process alone: what it wrote stays, synced or not.
    pub fn kill(&self) -> FaultyDisk {
        self.next_life(self.platter.state.lock())
    }

    fn next_life(&self, mut state: MutexGuard<'_, State>) -> FaultyDisk {
        state.life += 1;
        state.faults = Faults::default();
        (state.power_is_off, state.syncs_held) = (false, false);
        let life = state.life;
        drop(state);
        self.platter.released.notify_all();
        FaultyDisk { platter: self.platter.clone(), life }
    }

    /// A copy of the disk as it is now, for trying several futures.
    pub fn fork(&self) -> FaultyDisk {
        let state = self.platter.state.lock();
        let copy = |file: &File| File {
            visible: file.visible.clone(),
            durable: file.durable.clone(),
            unsynced: file.unsynced.clone(),
        };
        let forked = State {
            random: state.random,
            files: state.files.iter().map(copy).collect(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            unsynced_names: state.unsynced_names.clone(),
            ..State::default()
        };
        let platter = Platter { state: Mutex::new(forked), released: Condvar::new() };
        FaultyDisk { platter: Arc::new(platter), life: 0 }
    }

    /// Flips one bit of a file, as decay does.
    ///
    /// # Panics
    ///
    /// If there is no such file or bit.
    pub fn flip(&self, path: &Path, offset: usize, bit: u8) {
        let mut state = self.platter.state.lock();
        let file = state.names[path];
        let file = &mut state.files[file];
        file.visible[offset] ^= 1 << bit;
        if let Some(byte) = file.durable.get_mut(offset) {
            *byte ^= 1 << bit;
        }
    }

    /// All files and their bytes.
    pub fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let state = self.platter.state.lock();
        let contents = |(path, file): (&PathBuf, &usize)| {
            let bytes = state.files[*file].visible.clone();
            (path.clone(), bytes)
        };
        state.names.iter().map(contents).collect()
    }

    fn live(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.platter.state.lock();
        match () {
            () if state.life != self.life => Err(io::Error::other("this process is gone")),
            () if state.power_is_off => Err(io::Error::other("the power is off")),
            () => Ok(state),
        }
    }
}

impl State {
    /// Counts a call that changes something; the power may fail during it.
    fn change(&mut self) -> io::Result<()> {
        self.changes += 1;
        if self.faults.cut_at_call == Some(self.changes) {
            self.power_is_off = true;
            return Err(io::Error::other("the power failed"));
        }
        Ok(())
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        apply(&mut self.names, &change);
        self.unsynced_names.push(change);
        self.change()
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_capacity(&mut self, more: usize) -> io::Result<()> {
        let used: usize = self.names.values().map(|file| self.files[*file].visible.len()).sum();
        match self.faults.capacity {
            Some(capacity) if (used + more) as u64 > capacity => {
                self.refused_for_space += 1;
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Splitmix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Keeps some of what was not synced, and drops the rest.
    fn lose_unsynced(&mut self) {
        let changes = std::mem::take(&mut self.unsynced_names);
        let kept = self.random() as usize % (changes.len() + 1);
        for change in &changes[..kept] {
            apply(&mut self.durable_names, change);
        }
        self.names = self.durable_names.clone();
        // Small blocks make tears within the short batches of a test.
        let block = [8, 64, 512, 4096][self.random() as usize % 4];
        let kept_of_eight = [0, 1, 4, 7, 8][self.random() as usize % 5];
        for file in 0..self.files.len() {
            for (offset, bytes) in std::mem::take(&mut self.files[file].unsynced) {
                let mut start = 0;
                while start < bytes.len() {
                    let end = ((offset + start) / block + 1) * block - offset;
                    let end = end.min(bytes.len());
                    if self.random() % 8 < kept_of_eight {
                        write(&mut self.files[file].durable, offset + start, &bytes[start..end]);
                    }
                    start = end;
                }
            }
            self.files[file].visible = self.files[file].durable.clone();
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
    match change {
        NameChange::Create(path, file) => {
            names.insert(path.clone(), *file);
        }
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        NameChange::Remove(path) => {
            names.remove(path);
        }
    }
}

fn write(target: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if target.len() < end {
        target.resize(end, 0);
    }
    target[offset..end].copy_from_slice(bytes);
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.live()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.files.len();
        state.files.push(File::default());
        state.change_names(NameChange::Create(path.to_owned(), file))?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), file }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.live()?.file(path)?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.live()?;
        state.file(from)?;
        state.change_names(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.live()?;
        state.file(path)?;
        state.change_names(NameChange::Remove(path.to_owned()))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.live()?;
        let inside = |path: &&PathBuf| path.parent() == Some(dir);
        let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        Ok(state.names.keys().filter(inside).filter_map(name).collect())
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.live().map(drop)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.live()?;
        state.change()?;
        let inside = |change: &NameChange| match change {
            NameChange::Create(path, _)
            | NameChange::Rename(path, _)
            | NameChange::Remove(path) => path.parent() == Some(dir),
        };
        let changes = std::mem::take(&mut state.unsynced_names);
        let (synced, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(inside);
        for change in &synced {
            apply(&mut state.durable_names, change);
        }
        state.unsynced_names = rest;
        Ok(())
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.live()?;
        let visible = &state.files[self.file].visible;
        let start = usize::try_from(offset).map_or(visible.len(), |at| at.min(visible.len()));
        let count = buffer.len().min(visible.len() - start);
        buffer[..count].copy_from_slice(&visible[start..start + count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.live()?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let length = state.files[self.file].visible.len();
        state.check_capacity((offset + bytes.len()).saturating_sub(length))?;
        let file = &mut state.files[self.file];
        write(&mut file.visible, offset, bytes);
        file.unsynced.push((offset, bytes.to_owned()));
        state.change()
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.live()?;
        while state.syncs_held {
            self.disk.platter.released.wait(&mut state);
        }
        drop(state);
        let mut state = self.disk.live()?;
        state.change()?;
        state.syncs += 1;
        let fails = state.faults.fail_at_sync == Some(state.syncs);
        let file = &mut state.files[self.file];
        let unsynced = std::mem::take(&mut file.unsynced);
        if fails {
            // As Linux does it: the pages are marked clean, so the next sync finds nothing to do.
            return Err(io::Error::other("the disk failed to sync"));
        }
        for (offset, bytes) in unsynced {
            write(&mut file.durable, offset, &bytes);
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.live()?.files[self.file].visible.len() as u64)
    }
}

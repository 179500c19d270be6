//! Directories as they are checked in: each file compressed by itself, since most of a log and of a
//! store is zeros.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

const SUFFIX: &str = ".gz";

/// Writes every file below `from` to `to`, compressed.
pub(super) fn pack(from: &Path, to: &Path) {
    for_each_file(from, to, &|source, target| {
        let target = target.with_file_name(name_of(target) + SUFFIX);
        let mut packed = GzEncoder::new(File::create(target)?, Compression::best());
        io::copy(&mut File::open(source)?, &mut packed)?;
        packed.finish().map(drop)
    });
}

/// Takes back what [`pack`] wrote.
pub(super) fn unpack(from: &Path, to: &Path) {
    for_each_file(from, to, &|source, target| {
        let name = name_of(target);
        let name = name.strip_suffix(SUFFIX).unwrap_or_else(|| panic!("what is {name}?"));
        let target = target.with_file_name(name);
        io::copy(&mut GzDecoder::new(File::open(source)?), &mut File::create(target)?).map(drop)
    });
}

fn for_each_file(from: &Path, to: &Path, act: &dyn Fn(&Path, &Path) -> io::Result<()>) {
    std::fs::create_dir_all(to).unwrap();
    for path in entries(from) {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            for_each_file(&path, &target, act);
        } else {
            act(&path, &target).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// What lies in a directory, in order.
pub(super) fn entries(directory: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(directory);
    let listed = listed.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

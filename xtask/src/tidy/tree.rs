//! Rules on the tree as a whole: what must be there, what must not, and no path of a machine.

use super::{File, Finding};

const REQUIRED: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "docs/compatibility.md",
    "docs/design.md",
    "examples/typescript/package-lock.json",
    ".ci/run",
];

/// A toolchain file makes rustup download another compiler before the first build.
const FORBIDDEN: &[&str] = &["rust-toolchain", "rust-toolchain.toml"];

/// Written in halves, so that this file does not find itself.
const PLACES: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/main"),
    concat!("/wo", "rk/shared"),
    concat!("registry.", "npmjs.org"),
    concat!("registry.", "yarnpkg.com"),
    concat!("files.", "pythonhosted.org"),
    concat!("pypi.", "org/simple"),
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
    concat!("proxy.", "golang.org"),
];

pub(super) fn check(files: &[File], findings: &mut Vec<Finding>) {
    let there = |path: &str| files.iter().any(|file| file.path == path);
    for path in REQUIRED.iter().filter(|path| !there(path)) {
        findings.push(Finding::new(path, 0, "is missing"));
    }
    for path in FORBIDDEN.iter().filter(|path| there(path)) {
        findings.push(Finding::new(path, 0, "the compiler is chosen by rust-version alone"));
    }
    for file in files {
        if file.path == "CHANGELOG.md" && !file.text.contains("## Unreleased") {
            findings.push(Finding::new(&file.path, 0, "has no section 'Unreleased'"));
        }
        if file.path == ".gitignore" && file.text.lines().any(|line| line.contains("Cargo.lock")) {
            findings.push(Finding::new(&file.path, 0, "Cargo.lock is committed"));
        }
        for (index, line) in file.text.lines().enumerate() {
            for place in PLACES.iter().filter(|place| line.contains(**place)) {
                let what = format!("names a place of one machine or registry: {place}");
                findings.push(Finding::new(&file.path, index + 1, what));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_machine_is_found_with_its_line() {
        let text = concat!("one\ntwo /ro", "ot/three\n").to_owned();
        let mut findings = Vec::new();
        check(&[File { path: "docs/a.md".to_owned(), text }], &mut findings);
        assert!(findings.iter().any(|found| found.path == "docs/a.md" && found.line == 2));
        assert!(findings.iter().any(|found| found.path == "Cargo.lock"));
    }
}

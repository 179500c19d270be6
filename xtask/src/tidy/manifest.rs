//! Rules on manifests: who may import whom, and that every crate takes the workspace's lints.

use super::{File, Finding};

/// The crates of ours that each crate may depend on. `piton-tests` may import all; a crate that is
/// not listed may import none.
const LAYERS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("core", &["piton-proto"]),
    ("store", &[]),
    ("raft", &["piton-store"]),
    ("shard", &["piton-core", "piton-raft", "piton-store"]),
    ("node", &["piton-proto", "piton-core", "piton-raft", "piton-shard", "piton-store"]),
    ("client", &["piton-proto"]),
];

pub(super) fn check(file: &File, findings: &mut Vec<Finding>) {
    let Some((crate_name, "Cargo.toml")) = file.path.split_once('/') else { return };
    // All of proto but its build script is generated.
    if crate_name != "proto" && !file.text.contains("[lints]\nworkspace = true") {
        findings.push(Finding::new(&file.path, 0, "lacks [lints] workspace = true"));
    }
    if crate_name == "tests" {
        return;
    }
    let allowed = LAYERS.iter().find(|(name, _)| *name == crate_name).map_or(&[][..], |(_, to)| to);
    let mut section = "";
    for (index, line) in file.text.lines().enumerate() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
            continue;
        }
        // What only tests of a crate use does not bind its layer.
        if section != "dependencies" {
            continue;
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if name.starts_with("piton-") && !allowed.contains(&name) {
            let what = format!("{crate_name} may not depend on {name} (see the layering)");
            findings.push(Finding::new(&file.path, index + 1, what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines_of;
    use super::*;

    fn found(path: &str, text: &str) -> Vec<usize> {
        lines_of(check, path, text)
    }

    #[test]
    fn an_upward_import_is_found() {
        let text = "[lints]\nworkspace = true\n[dependencies]\npiton-shard.workspace = true\n";
        assert_eq!(found("raft/Cargo.toml", text), [4]);
        assert_eq!(found("node/Cargo.toml", text), [0; 0]);
        assert_eq!(found("tests/Cargo.toml", text), [0; 0]);
    }

    #[test]
    fn a_crate_without_the_workspaces_lints_is_found() {
        assert_eq!(found("raft/Cargo.toml", "[dependencies]\n"), [0]);
    }
}

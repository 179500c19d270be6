//! Rule on the wings of `shard`: a file imports only from its own wing and from wings below it.

use super::{File, Finding};

const ROOT: &str = "shard/src/";

/// From top to bottom.
const WINGS: &[&str] =
    &["placement", "workflow", "entity", "leader", "route", "meta", "replica", "rows", "message"];

/// Files at the root that put the wings together. All others there lie below every wing.
const ABOVE_ALL: &[&str] = &["lib.rs", "serve.rs", "fuzzing.rs"];

pub(super) fn check(file: &File, findings: &mut Vec<Finding>) {
    let Some(path) = file.path.strip_prefix(ROOT) else { return };
    // What tests of a wing use does not bind it.
    if ABOVE_ALL.contains(&path) || path.ends_with("tests.rs") || path.starts_with("fuzzing/") {
        return;
    }
    let wing = path.split_once('/').map(|(wing, _)| wing);
    let Some(height) = wing.map_or(Some(WINGS.len()), height_of) else {
        let what = format!("no wing of shard goes by this name: {}", WINGS.join(", "));
        return findings.push(Finding::new(&file.path, 0, what));
    };
    for (index, line) in file.text.lines().enumerate() {
        if line.trim() == "#[cfg(test)]" {
            return;
        }
        let code = line.split("//").next().unwrap_or_default();
        for (at, crate_root) in code.match_indices("crate::") {
            let name =
                code[at + crate_root.len()..].split(|c: char| !c.is_alphanumeric() && c != '_');
            let name = name.into_iter().next().unwrap_or_default();
            let is_above = |other: usize| other < height;
            if name == "serve" || height_of(name).is_some_and(is_above) {
                let what = format!(
                    "{} may not import from {name}, which lies above it",
                    wing.unwrap_or(path)
                );
                findings.push(Finding::new(&file.path, index + 1, what));
            }
        }
    }
}

fn height_of(name: &str) -> Option<usize> {
    WINGS.iter().position(|wing| *wing == name)
}

#[cfg(test)]
mod tests {
    use super::super::lines_of;
    use super::*;

    fn found(path: &str, text: &str) -> Vec<usize> {
        lines_of(check, path, text)
    }

    #[test]
    fn an_import_from_a_higher_wing_is_found_where_it_stands() {
        let text = "//! Head.\nuse crate::rows::Row;\nuse crate::leader::term;\n";
        assert_eq!(found("shard/src/route/a.rs", text), [3]);
        assert_eq!(found("shard/src/leader/a.rs", text), [0; 0]);
        assert_eq!(found("shard/src/message/a.rs", text), [2, 3]);
        assert_eq!(found("shard/src/clock.rs", text), [2, 3]);
        assert_eq!(found("shard/src/serve.rs", text), [0; 0]);
        assert_eq!(found("raft/src/log/a.rs", text), [0; 0]);
    }

    #[test]
    fn a_path_within_code_counts_and_one_in_a_comment_or_a_test_does_not() {
        let text = "let x = crate::workflow::actor::start;\n// crate::workflow::actor\n#[cfg(test)]\n\
                    mod tests { use crate::workflow::actor; }\n";
        assert_eq!(found("shard/src/leader/a.rs", text), [1]);
        assert_eq!(found("shard/src/leader/a/tests.rs", text), [0; 0]);
    }

    #[test]
    fn a_folder_that_is_no_wing_is_found() {
        assert_eq!(found("shard/src/attic/a.rs", "//! Head.\n"), [0]);
    }
}

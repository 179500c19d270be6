//! Rules on Rust files: length, a head, fences of foreign crates, pure core, one place for gRPC
//! codes, and no sleeping tests.

use super::{File, Finding};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
/// A test tells one story, which falls apart when it is cut up.
const TEST_LINES_MAX: usize = 100;

/// A foreign name and the path prefixes that may say it.
const FENCES: &[(&str, &[&str])] = &[
    ("openraft", &["raft/"]),
    ("ractor", &["shard/"]),
    ("sled", &["store/"]),
    ("redb", &["store/"]),
    ("bincode", &["store/src/codec.rs"]),
    ("tonic", &["node/", "proto/", "tests/", "client/"]),
    ("axum", &["node/"]),
    ("rustls", &["node/src/peer/"]),
    ("tokio_rustls", &["node/src/peer/"]),
    ("prometheus_client", &["node/", "shard/src/metrics.rs", "tests/"]),
    ("anyhow", &["node/src/cli/", "xtask/", "tests/"]),
];

/// What would make `core` depend on more than its arguments. Floats are left to review: the API has
/// doubles of its own (a retry's coefficient, attributes).
const IMPURE: &[&str] = &["tokio", "rand", "SystemTime", "Instant", "HashMap", "HashSet"];

/// This file, whose tests quote what it forbids.
const OWN_FILE: &str = "xtask/src/tidy/rust.rs";

const STATUS_FILE: &str = "node/src/frontend/status.rs";

pub(super) fn check(file: &File, findings: &mut Vec<Finding>) {
    let lines: Vec<&str> = file.text.lines().collect();
    // A sibling that holds a module's tests stands under that module's head.
    let heads_itself = !file.path.ends_with("tests.rs");
    if heads_itself && !file.text.starts_with("//!") {
        findings.push(Finding::new(&file.path, 1, "does not open with //! (what it owns)"));
    }
    if lines.len() > FILE_LINES_MAX {
        let what = format!("{} lines, at most {FILE_LINES_MAX}", lines.len());
        findings.push(Finding::new(&file.path, lines.len(), what));
    }
    check_functions(&file.path, &lines, findings);
    let tests_from = lines.iter().position(|line| line.trim() == "#[cfg(test)]");
    for (index, line) in lines.iter().enumerate() {
        let in_tests = is_test_file(&file.path) || tests_from.is_some_and(|from| index > from);
        check_line(&file.path, index + 1, code_of(line), in_tests, findings);
    }
}

fn check_line(path: &str, number: usize, code: &str, in_tests: bool, findings: &mut Vec<Finding>) {
    let mut find = |what: String| findings.push(Finding::new(path, number, what));
    for (name, allowed) in FENCES.iter().filter(|_| path != OWN_FILE) {
        if names_crate(code, name) && !allowed.iter().any(|prefix| path.starts_with(prefix)) {
            find(format!("{name} stays behind its fence: {}", allowed.join(", ")));
        }
    }
    if path.starts_with("core/src/") && !in_tests {
        for word in IMPURE.iter().filter(|word| has_word(code, word)) {
            find(format!("{word} in core, which is a function of its arguments"));
        }
    }
    if path.starts_with("node/src/") && path != STATUS_FILE && !in_tests && makes_status(code) {
        find(format!("gRPC codes are made in {STATUS_FILE} alone"));
    }
    if in_tests && (code.contains("thread::sleep(") || code.contains("time::sleep(")) {
        find("a test waits for a state, never for time".to_owned());
    }
}

/// Lengths of functions, by rustfmt's indentation: a function ends at the first `}` in the column
/// where it began.
fn check_functions(path: &str, lines: &[&str], findings: &mut Vec<Finding>) {
    let longest = if is_test_file(path) { TEST_LINES_MAX } else { FUNCTION_LINES_MAX };
    for (index, line) in lines.iter().enumerate() {
        let start = line.trim_start();
        if !is_function(start) {
            continue;
        }
        let indent = &line[..line.len() - start.len()];
        let signature_ends = lines[index..]
            .iter()
            .position(|line| line.ends_with('{') || line.ends_with('}') || line.ends_with(';'));
        let Some(body) = signature_ends else { continue };
        if !lines[index + body].ends_with('{') {
            continue;
        }
        let closing = format!("{indent}}}");
        let length = lines[index..].iter().position(|line| line.starts_with(&closing));
        let length = length.map_or(0, |last| last + 1);
        if length > longest {
            let what = format!("function of {length} lines, at most {longest}");
            findings.push(Finding::new(path, index + 1, what));
        }
    }
}

fn is_function(code: &str) -> bool {
    let mut words = code.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "pub" | "async" | "const" | "unsafe" => {}
            "fn" => return words.next().is_some_and(|name| name.contains(['(', '<'])),
            word if word.starts_with("pub(") => {}
            // `pub(in crate::a)` splits at its space.
            word if word.ends_with(')') => {}
            _ => return false,
        }
    }
    false
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs")
}

/// The line without its comment. A `//` within a string cuts too much, which only loses a finding.
fn code_of(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn names_crate(code: &str, name: &str) -> bool {
    let imported = code
        .trim_start()
        .trim_start_matches("pub ")
        .strip_prefix("use ")
        .and_then(|rest| rest.strip_prefix(name))
        .is_some_and(|rest| rest.starts_with([';', ':', ' ']));
    imported
        || positions(code, name).any(|at| {
            // After `::` it is a module of ours that goes by the crate's name.
            !code[..at].ends_with("::") && code[at + name.len()..].starts_with("::")
        })
}

fn makes_status(code: &str) -> bool {
    positions(code, "Status").any(|at| {
        let after = &code[at + "Status".len()..];
        // `Status::code(..)` reads; only a lower-case constructor makes one.
        after.strip_prefix("::").is_some_and(|rest| {
            rest.starts_with(|first: char| first.is_ascii_lowercase()) && !rest.starts_with("code(")
        })
    })
}

fn has_word(code: &str, word: &str) -> bool {
    positions(code, word).any(|at| {
        !code[at + word.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '_')
    })
}

/// Where `word` begins in `code`, not within a longer word or as a string.
fn positions<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(|&at| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '"')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, line: &str) -> bool {
        let text = format!("//! Head.\n{line}\n");
        let mut findings = Vec::new();
        check(&File { path: path.to_owned(), text }, &mut findings);
        !findings.is_empty()
    }

    #[test]
    fn a_foreign_crate_outside_its_fence_is_found() {
        assert!(check_one("shard/src/a.rs", "use openraft::Raft;"));
        assert!(check_one("node/src/a.rs", "    let x = sled::open(path);"));
        assert!(!check_one("raft/src/a.rs", "use openraft::Raft;"));
        assert!(!check_one("shard/src/a.rs", "// as openraft::Raft does"));
        assert!(!check_one("shard/src/a.rs", "let engine = crate::sled::open();"));
    }

    #[test]
    fn core_stays_pure() {
        assert!(check_one("core/src/a.rs", "use std::collections::HashMap;"));
        assert!(check_one("core/src/a.rs", "let now = std::time::Instant::now();"));
        assert!(!check_one("core/src/a.rs", "let operand = brand(strand);"));
    }

    #[test]
    fn codes_are_made_in_one_file() {
        assert!(check_one("node/src/frontend/workflow.rs", "Err(Status::not_found(text))"));
        assert!(check_one("node/src/frontend/workflow.rs", "Err(tonic::Status::internal(text))"));
        assert!(!check_one("node/src/frontend/status.rs", "Status::not_found(text)"));
        assert!(!check_one("node/src/a.rs", "WorkflowExecutionStatus::running_states()"));
    }

    #[test]
    fn a_sleep_is_found_in_tests_only() {
        let sleep = concat!("tokio::time::sle", "ep(second).await;");
        assert!(check_one("raft/tests/a.rs", sleep));
        assert!(check_one("raft/src/a.rs", &format!("#[cfg(test)]\nmod tests {{\n{sleep}\n}}")));
        assert!(!check_one("raft/src/a.rs", sleep));
    }

    #[test]
    fn a_long_function_is_found_where_it_begins() {
        let body = "    work();\n".repeat(FUNCTION_LINES_MAX);
        assert!(check_one("raft/src/a.rs", &format!("pub(crate) async fn long() {{\n{body}}}")));
        let short = "    work();\n".repeat(FUNCTION_LINES_MAX - 2);
        assert!(!check_one("raft/src/a.rs", &format!("pub fn short() {{\n{short}}}")));
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        let mut findings = Vec::new();
        let file = File { path: "raft/src/a.rs".to_owned(), text: "mod a;\n".to_owned() };
        check(&file, &mut findings);
        assert_eq!(findings.len(), 1);
    }
}

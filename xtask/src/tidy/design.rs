//! References to the design: each decision, promise or rule that code, tests and mutations cite by
//! number is defined in `docs/design.md` (the auditor's rules where they are checked), and nothing
//! cites a text that the repository does not hold.

use std::collections::BTreeSet;

use super::{File, Finding};

const DESIGN: &str = "docs/design.md";
/// Where the auditors' rules are written.
const AUDITORS: [&str; 2] = ["tests/src/audit.rs", "tests/sim/src/auditor.rs"];
/// This file, whose tests quote what it forbids.
const OWN_FILE: &str = "xtask/src/tidy/design.rs";

/// Ways of citing texts that a reader of the repository cannot open.
const ELSEWHERE: &[&str] =
    &["semantics.md", "(semantics ", "architecture section", "Architecture section", "(issue "];

pub(super) fn check(files: &[File], findings: &mut Vec<Finding>) {
    let defined = definitions(files);
    for file in files.iter().filter(|file| file.path != OWN_FILE) {
        for (index, line) in file.text.lines().enumerate() {
            let mut find = |what| findings.push(Finding::new(&file.path, index + 1, what));
            for cited in ELSEWHERE.iter().filter(|cited| line.contains(**cited)) {
                find(format!("cites what is not in the repository: {cited}"));
            }
            for reference in references(prose_of(&file.path, line)) {
                if !defined.contains(reference) {
                    find(format!("cites {reference}, which {DESIGN} does not define"));
                }
            }
        }
    }
}

/// The part of a line in which numbers of the design may stand: comments, and all of a text.
fn prose_of<'a>(path: &str, line: &'a str) -> &'a str {
    if path.ends_with(".rs") {
        return line.find("//").map_or("", |at| &line[at..]);
    }
    let is_text = path.starts_with("tests/mutations/") || path.ends_with(".md");
    if is_text { line } else { "" }
}

/// `### D9: ...` and `| P1 | ...` of the design, `//! - A1 ...` and `//! A10, ...` of the auditor.
fn definitions(files: &[File]) -> BTreeSet<&str> {
    let mut defined = BTreeSet::new();
    for file in files {
        let starts: &[&str] = match file.path.as_str() {
            DESIGN => &["### ", "| "],
            path if AUDITORS.contains(&path) => &["//! - ", "//! "],
            _ => continue,
        };
        for line in file.text.lines() {
            let rest = starts.iter().find_map(|start| line.strip_prefix(start));
            defined.extend(
                rest.and_then(|rest| references(rest).next().filter(|r| rest.starts_with(r))),
            );
        }
    }
    defined
}

/// Words such as `D9`, `D5a`, `P3` or `A11`.
fn references(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '{' | '}');
    text.split(move |c| !is_part(c)).filter(|word| {
        let Some(number) = word.strip_prefix(['D', 'P', 'A']) else { return false };
        let digits = number.trim_end_matches('a');
        (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_number_that_nothing_defines_is_found_and_others_are_not() {
        let files = [
            file(DESIGN, "### D9: one log\n\nD10 is not a heading.\n\n| P1 | it survives |\n"),
            file(
                AUDITORS[1],
                "//! - A1 what was acknowledged\n//!\n//! A10, that each fault hit\n",
            ),
            file("raft/src/log.rs", "// D9, P1 and A10 hold (D5a).\nlet D7 = \"D7\";\n"),
        ];
        let mut findings = Vec::new();
        check(&files, &mut findings);
        let found: Vec<_> =
            findings.iter().map(|f| (f.path.as_str(), f.line, f.what.as_str())).collect();
        let text = |n: &str| format!("cites {n}, which docs/design.md does not define");
        assert_eq!(found, [(DESIGN, 3, &*text("D10")), ("raft/src/log.rs", 1, &*text("D5a"))]);
    }

    #[test]
    fn a_text_that_is_not_here_is_found() {
        let mut findings = Vec::new();
        check(&[file("core/src/a.rs", "//! Timers (semantics 6.1).\n")], &mut findings);
        assert_eq!(findings.len(), 1);
    }
}

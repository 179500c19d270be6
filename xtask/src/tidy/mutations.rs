//! Rules on the list of `cargo xtask mutate`: that each entry still fits the code it changes.

use std::collections::BTreeMap;

use super::{File, Finding};
use crate::mutate::list::{self, DIRECTORY, Mutation, Replacement};

pub(super) fn check(files: &[File], findings: &mut Vec<Finding>) {
    let texts: BTreeMap<&str, &str> =
        files.iter().map(|file| (file.path.as_str(), file.text.as_str())).collect();
    let mut parsed = Vec::new();
    for file in files {
        if !file.path.starts_with(DIRECTORY) || !file.path.ends_with(".toml") {
            continue;
        }
        match list::parse(&file.text) {
            Ok(entries) => parsed.push((file, entries)),
            Err(error) => findings.push(Finding::new(&file.path, 0, error.to_string())),
        }
    }
    let mut names = Vec::new();
    for (file, entries) in &parsed {
        for (name, what) in list::faults(entries, &mut names, |path| texts.get(path).copied()) {
            let line = file.text.lines().position(|line| line == format!("name = \"{name}\""));
            let line = line.map_or(0, |line| line + 1);
            findings.push(Finding::new(&file.path, line, format!("{name}: {what}")));
        }
    }
    overlaps(parsed.iter().flat_map(|(_, entries)| entries), &texts, findings);
}

/// All of them stand in one tree, so no two may change the same text.
fn overlaps<'a>(
    list: impl Iterator<Item = &'a Mutation>,
    texts: &BTreeMap<&str, &str>,
    findings: &mut Vec<Finding>,
) {
    let mut changes: BTreeMap<&str, Vec<Replacement<'a>>> = BTreeMap::new();
    for replacement in list.filter_map(|mutation| mutation.replacements().ok()).flatten() {
        changes.entry(replacement.file).or_default().push(replacement);
    }
    for (path, mut replacements) in changes {
        let Some(text) = texts.get(path) else { continue };
        // What does not fit has been found already.
        replacements.retain(|replacement| text.matches(replacement.find).count() == 1);
        if let Err(error) = list::rewrite(path, text, &replacements) {
            findings.push(Finding::new(path, 0, error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_does_not_fit_is_found_at_its_name() {
        let list = "\n[[mutation]]\nname = \"off\"\nprotects = \"D1\"\nfile = \"a.rs\"\nfind = \"a\"\n\
                    replace = \"MUTATED\"\nred = [\"sim 1\"]\n";
        let path = format!("{DIRECTORY}/one.toml");
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let found = |text: &str| {
            let mut findings = Vec::new();
            check(&[file(&path, list), file("a.rs", text)], &mut findings);
            findings.iter().map(|finding| finding.line).collect::<Vec<_>>()
        };
        assert_eq!(found("a"), [0; 0]);
        assert_eq!(found("a a"), [3]);
        let twice = list.replace("off", "on") + list;
        let mut findings = Vec::new();
        check(&[file(&path, &twice), file("a.rs", "a")], &mut findings);
        let texts: Vec<_> = findings.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(texts, ["off: overlaps another one in a.rs"]);
        let mut findings = Vec::new();
        check(&[file(&path, "mutation = 1")], &mut findings);
        assert_eq!(findings.len(), 1);
    }
}

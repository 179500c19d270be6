//! Rules on the list of `cargo xtask mutate`: that each entry still fits the code it changes.

use std::collections::BTreeMap;

use super::{File, Finding};
use crate::mutate::list::{self, DIRECTORY};

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
        let mut findings = Vec::new();
        check(&[file(&path, "mutation = 1")], &mut findings);
        assert_eq!(findings.len(), 1);
    }
}

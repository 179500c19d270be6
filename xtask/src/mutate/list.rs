//! The list of protections, `tests/mutations/*.toml`: what each entry says, what must hold of it,
//! and how its replacements get into the text of a file.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Where the list lies, from the root.
pub(crate) const DIRECTORY: &str = "tests/mutations";
/// Stands in a replacement for "this mutation is on".
pub(crate) const MARKER: &str = "MUTATED";
/// Names the mutation that is on, while a test runs. It does not begin with `PITON_`: tests take such
/// names out of the environment of the servers that they start.
pub(crate) const VARIABLE: &str = "MUTATION_OF_PITON";

/// One protection of the design, the change that removes it, and what must turn red then.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mutation {
    pub(crate) name: String,
    /// Which decision or promise of the design, and its protection in a few words.
    pub(crate) protects: String,
    /// The file of all changes that name none.
    file: Option<String>,
    /// One change may stand in the entry itself.
    find: Option<String>,
    replace: Option<String>,
    #[serde(default)]
    change: Vec<Change>,
    red: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    file: Option<String>,
    find: String,
    replace: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    mutation: Vec<Mutation>,
}

/// What must turn red: `raft log_faults a_missing_segment_is_refused`, that is a crate's directory,
/// a test target (`lib` for the library's own tests, `bin` for the binary's), and the test's name
/// with its modules; or `sim 6`, one of the first six seeds of the simulation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Red {
    Test { package: String, target: String, name: String },
    Seeds(u64),
}

impl FromStr for Red {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Red> {
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["sim", count] => Ok(Red::Seeds(count.parse().context("sim and how many seeds")?)),
            [package, target, name] => Ok(Red::Test {
                package: package.to_owned(),
                target: target.to_owned(),
                name: name.to_owned(),
            }),
            _ => bail!("neither `crate target test` nor `sim seeds`: {text}"),
        }
    }
}

impl std::fmt::Display for Red {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Red::Test { package, target, name } => write!(formatter, "{package} {target} {name}"),
            Red::Seeds(count) => write!(formatter, "sim {count}"),
        }
    }
}

/// One replacement in one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replacement<'a> {
    pub(crate) mutation: &'a str,
    pub(crate) file: &'a str,
    pub(crate) find: &'a str,
    replace: &'a str,
}

impl Mutation {
    pub(crate) fn replacements(&self) -> Result<Vec<Replacement<'_>>> {
        let own = match (&self.find, &self.replace) {
            (Some(find), Some(replace)) => Some((&self.file, find, replace)),
            (None, None) => None,
            _ => bail!("find and replace stand together"),
        };
        let more = self.change.iter().map(|change| (&change.file, &change.find, &change.replace));
        let mut replacements = Vec::new();
        for (file, find, replace) in own.into_iter().chain(more) {
            let file = file.as_ref().or(self.file.as_ref()).context("a change names no file")?;
            replacements.push(Replacement { mutation: &self.name, file, find, replace });
        }
        Ok(replacements)
    }

    pub(crate) fn reds(&self) -> Result<Vec<Red>> {
        self.red.iter().map(|red| red.parse()).collect()
    }
}

/// Reads the entries of one file of the list.
pub(crate) fn parse(text: &str) -> Result<Vec<Mutation>> {
    Ok(toml::from_str::<Area>(text)?.mutation)
}

/// Reads the whole list, in the order of its files.
pub(crate) fn read(root: &Path) -> Result<Vec<Mutation>> {
    let directory = root.join(DIRECTORY);
    let entries =
        std::fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut list = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path)?;
        list.extend(parse(&text).with_context(|| format!("read {}", path.display()))?);
    }
    Ok(list)
}

/// What is wrong with the entries of one file of the list, each by its name. `file` answers the
/// text of a file of the tree; `names` are those of the files before.
pub(crate) fn faults<'a>(
    list: &'a [Mutation],
    names: &mut Vec<&'a str>,
    file: impl Fn(&str) -> Option<&'a str>,
) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    for mutation in list {
        let mut fault = |what: String| faults.push((mutation.name.clone(), what));
        if names.contains(&mutation.name.as_str()) {
            fault("there are two of this name".to_owned());
        }
        names.push(&mutation.name);
        if mutation.protects.is_empty() {
            fault("does not say what it protects".to_owned());
        }
        match mutation.reds() {
            Ok(reds) if reds.is_empty() => fault("names nothing that turns red".to_owned()),
            Ok(_) => {}
            Err(error) => fault(error.to_string()),
        }
        let replacements = match mutation.replacements() {
            Ok(replacements) if replacements.is_empty() => {
                fault("changes nothing".to_owned());
                continue;
            }
            Ok(replacements) => replacements,
            Err(error) => {
                fault(error.to_string());
                continue;
            }
        };
        for Replacement { file: path, find, replace, .. } in replacements {
            match file(path).map(|text| text.matches(find).count()) {
                None => fault(format!("{path} is not there")),
                Some(1) => {}
                Some(count) => fault(format!("stands {count} times in {path}: {}", one_line(find))),
            }
            if !replace.contains(MARKER) {
                fault(format!("a replacement has no {MARKER}: {}", one_line(replace)));
            }
        }
    }
    faults
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text of `file` with all its replacements in it, each behind its own switch.
///
/// # Errors
/// Where a text to be replaced does not stand there exactly once, or two overlap.
pub(crate) fn rewrite(file: &str, text: &str, replacements: &[Replacement<'_>]) -> Result<String> {
    let mut places = BTreeMap::new();
    for replacement in replacements {
        let mut found = text.match_indices(replacement.find);
        let (Some((at, _)), None) = (found.next(), found.next()) else {
            bail!("{}: not exactly once in {file}: {}", replacement.mutation, replacement.find);
        };
        if places.insert(at, *replacement).is_some() {
            bail!("{}: overlaps another one in {file}", replacement.mutation);
        }
    }
    let mut rewritten = String::with_capacity(text.len());
    let mut end = 0;
    for (at, Replacement { mutation, find, replace, .. }) in places {
        if at < end {
            bail!("{mutation}: overlaps another one in {file}");
        }
        rewritten.push_str(&text[end..at]);
        rewritten.push_str(&replace.replace(MARKER, &switch(mutation)));
        end = at + find.len();
    }
    rewritten.push_str(&text[end..]);
    Ok(rewritten)
}

/// An expression that is true while `mutation` is on.
fn switch(mutation: &str) -> String {
    format!(r#"(std::env::var_os("{VARIABLE}").is_some_and(|name| name == "{mutation}"))"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"
[[mutation]]
name = "fence-off"
protects = "D4: the fence"
file = "a.rs"
find = "a != b"
replace = "a != b && !MUTATED"
red = ["shard lib replica::tests::a_term", "sim 6"]
"#;

    fn faults_of(list: &str, text: &'static str) -> Vec<String> {
        let list = parse(list).expect("it parses");
        let list: &'static [Mutation] = list.leak();
        let file = |path: &str| (path == "a.rs").then_some(text);
        faults(list, &mut Vec::new(), file).into_iter().map(|(_, what)| what).collect()
    }

    #[test]
    fn an_entry_that_fits_has_no_fault() {
        assert_eq!(faults_of(ONE, "if a != b {}"), [""; 0]);
    }

    #[test]
    fn an_entry_that_no_longer_fits_is_told() {
        assert_eq!(faults_of(ONE, "if a == b {}"), ["stands 0 times in a.rs: a != b"]);
        assert_eq!(faults_of(ONE, "a != b; a != b"), ["stands 2 times in a.rs: a != b"]);
        let elsewhere = ONE.replace("a.rs", "b.rs");
        assert_eq!(faults_of(&elsewhere, "a != b"), ["b.rs is not there"]);
        let twice = [ONE, ONE].concat();
        assert_eq!(faults_of(&twice, "a != b"), ["there are two of this name"]);
        let unmarked = ONE.replace(" && !MUTATED", "");
        assert_eq!(faults_of(&unmarked, "a != b"), ["a replacement has no MUTATED: a != b"]);
        let unknown = ONE.replace("sim 6", "sim");
        assert_eq!(faults_of(&unknown, "a != b").len(), 1);
    }

    #[test]
    fn all_replacements_get_into_the_text_whatever_their_order() {
        let text = "one two three";
        let replacement =
            |mutation, find, replace| Replacement { mutation, file: "", find, replace };
        let both = [replacement("b", "three", "MUTATED"), replacement("a", "one", "1")];
        let expected = format!("1 two {}", switch("b"));
        assert_eq!(rewrite("", text, &both).ok(), Some(expected));
        let overlapping = [replacement("a", "one two", "1"), replacement("b", "two three", "2")];
        assert!(rewrite("", text, &overlapping).is_err());
    }
}

//! Recorded lines against those of this run, field by field, less the differences that are meant.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};

use crate::script::Scenario;

/// The list of differences that are meant, each with its reason.
pub(crate) struct Accepted {
    rules: Vec<Rule>,
    used: BTreeSet<usize>,
}

/// `SCENARIO WHERE FIELD  reason`; `*` stands for all scenarios or all places.
struct Rule {
    text: String,
    scenario: String,
    /// An event's type or a call's name.
    place: String,
    /// The names of a field, or of one that it is within.
    field: String,
}

/// What one event or one answer holds: values by path.
#[derive(Default)]
struct Section {
    title: String,
    fields: BTreeMap<String, String>,
}

impl Accepted {
    pub(crate) fn read(path: &Path) -> Result<Accepted> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut rules = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            let mut next = || words.next().map(str::to_owned);
            let rule = (|| Some((next()?, next()?, next()?)))();
            let (scenario, place, field) =
                rule.with_context(|| format!("scenario, place, field, reason: {line}"))?;
            words.next().with_context(|| format!("no reason: {line}"))?;
            rules.push(Rule { text: line.to_owned(), scenario, place, field });
        }
        Ok(Accepted { rules, used: BTreeSet::new() })
    }

    /// All differences that no rule names.
    pub(crate) fn compare(&mut self, scenario: &Scenario, answers: &[Vec<String>]) -> Vec<String> {
        let mut findings = Vec::new();
        let (mut recorded_names, mut names) = (Vec::new(), Vec::new());
        for (step, answer) in scenario.steps.iter().zip(answers) {
            let mut recorded = sections(&step.words, &step.recorded);
            let mut here = sections(&step.words, answer);
            self.number_again(&scenario.name, &mut recorded, &mut recorded_names);
            self.number_again(&scenario.name, &mut here, &mut names);
            let titles = |all: &[Section]| all.iter().map(|s| s.title.clone()).collect::<Vec<_>>();
            let (recorded_titles, here_titles) = (titles(&recorded), titles(&here));
            let mut of_step = Vec::new();
            if recorded_titles != here_titles {
                of_step.push(format!("recorded: {}", recorded_titles.join(", ")));
                of_step.push(format!("here:     {}", here_titles.join(", ")));
            }
            for (recorded, here) in recorded.iter().zip(&here) {
                if recorded.title != here.title {
                    break;
                }
                of_step.extend(self.fields(&scenario.name, recorded, here));
            }
            if !of_step.is_empty() {
                findings.push(format!("> {}", step.title()));
                findings.extend(of_step.into_iter().map(|line| format!("    {line}")));
            }
        }
        findings
    }

    /// Numbers the request ids by first appearance once more, leaving out those in fields that may
    /// differ: one that only one side has would shift the numbers of all that follow.
    fn number_again(&self, scenario: &str, sections: &mut [Section], names: &mut Vec<String>) {
        for section in sections {
            let mut fields = BTreeMap::new();
            for (path, value) in std::mem::take(&mut section.fields) {
                if self.rule_for(scenario, &section.title, &path).is_some() {
                    fields.insert(path, value);
                } else {
                    fields.insert(renamed(&path, names), renamed(&value, names));
                }
            }
            section.fields = fields;
        }
    }

    /// The rules that no difference needed.
    pub(crate) fn unused(&self) -> impl Iterator<Item = &str> {
        let unused = self.rules.iter().enumerate().filter(|(index, _)| !self.used.contains(index));
        unused.map(|(_, rule)| rule.text.as_str())
    }

    fn fields(&mut self, scenario: &str, recorded: &Section, here: &Section) -> Vec<String> {
        let paths: BTreeSet<_> = recorded.fields.keys().chain(here.fields.keys()).collect();
        let mut findings = Vec::new();
        for path in paths {
            let (was, is) = (recorded.fields.get(path), here.fields.get(path));
            if was == is || self.accepts(scenario, &recorded.title, path) {
                continue;
            }
            let show = |value: Option<&String>| value.map_or("-", String::as_str).to_owned();
            let title = &recorded.title;
            findings.push(format!("{title}: {path}: recorded {}, here {}", show(was), show(is)));
        }
        findings
    }

    fn accepts(&mut self, scenario: &str, title: &str, path: &str) -> bool {
        let found = self.rule_for(scenario, title, path);
        self.used.extend(found);
        found.is_some()
    }

    fn rule_for(&self, scenario: &str, title: &str, path: &str) -> Option<usize> {
        let place = title.rsplit(' ').next().unwrap_or_default();
        self.rules.iter().position(|rule| {
            (rule.scenario == "*" || rule.scenario == scenario)
                && (rule.place == "*" || rule.place == place)
                && is_within(path, &rule.field)
        })
    }
}

/// A text with the names of request ids in it, each by its place in `names`.
fn renamed(text: &str, names: &mut Vec<String>) -> String {
    const PREFIX: &str = "request-";
    let mut parts = text.split(PREFIX);
    let mut renamed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (number, rest) = part.split_at(end);
        renamed.push_str(PREFIX);
        if !number.is_empty() {
            let place = names.iter().position(|name| name == number).unwrap_or_else(|| {
                names.push(number.to_owned());
                names.len() - 1
            });
            renamed.push_str(&(place + 1).to_string());
        }
        renamed.push_str(rest);
    }
    renamed
}

/// Whether the names of `field` stand in `path`, one after the other and whole.
fn is_within(path: &str, field: &str) -> bool {
    path.match_indices(field).any(|(at, _)| {
        let (before, after) = (&path[..at], &path[at + field.len()..]);
        (before.is_empty() || before.ends_with('.'))
            && (after.is_empty() || after.starts_with(['.', '[']))
    })
}

/// A history's events, or the one answer of a call.
fn sections(words: &[String], lines: &[String]) -> Vec<Section> {
    let is_history = words.first().is_some_and(|word| word == "history");
    let mut all = Vec::new();
    if !is_history {
        let title = words.iter().find(|word| word.starts_with(char::is_uppercase));
        let title = title.or(words.first()).cloned().unwrap_or_default();
        all.push(Section { title, ..Section::default() });
    }
    for line in lines {
        if is_history && !line.starts_with(' ') {
            all.push(Section { title: line.clone(), ..Section::default() });
            continue;
        }
        let Some(section) = all.last_mut() else { continue };
        let (path, value) = line.trim_start().split_once(": ").unwrap_or((line, ""));
        section.fields.insert(path.to_owned(), value.to_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn a_field_that_differs_is_found_unless_a_rule_names_it() {
        let words = lines(&["history", "w"]);
        let recorded = sections(&words, &lines(&["1 STARTED", "    a.b: 1", "    c: 2"]));
        let here = sections(&words, &lines(&["1 STARTED", "    a.b: 3"]));
        let rule = |field: &str| Rule {
            text: field.to_owned(),
            scenario: "*".to_owned(),
            place: "STARTED".to_owned(),
            field: field.to_owned(),
        };
        let mut accepted = Accepted { rules: Vec::new(), used: BTreeSet::new() };
        let findings = accepted.fields("s", &recorded[0], &here[0]);
        assert_eq!(
            findings,
            ["1 STARTED: a.b: recorded 1, here 3", "1 STARTED: c: recorded 2, here -"]
        );
        accepted.rules = vec![rule("b"), rule("c"), rule("d")];
        assert!(accepted.fields("s", &recorded[0], &here[0]).is_empty());
        assert_eq!(accepted.unused().collect::<Vec<_>>(), ["d"]);
        assert!(is_within("a.points[0].b", "points"));
        assert!(is_within("a.points[0].b", "a.points"));
        assert!(!is_within("a.points[0].b", "point"));
    }
}

//! The files: a script, and under each of its steps what the official server made of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One file.
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
    path: PathBuf,
}

/// One call, or one of the script's own verbs.
pub(crate) struct Step {
    /// The lines as they stand: comments, then those that begin with `>`.
    source: Vec<String>,
    /// The first line's words, without a body.
    pub(crate) words: Vec<String>,
    /// The request in protobuf's text format, between the outermost braces.
    pub(crate) body: String,
    pub(crate) recorded: Vec<String>,
}

impl Scenario {
    /// Reads all files whose name begins with one of `prefixes`, in the order of their names.
    pub(crate) fn read_all(directory: &Path, prefixes: &[String]) -> Result<Vec<Scenario>> {
        let mut scenarios = Vec::new();
        let entries = std::fs::read_dir(directory)
            .with_context(|| format!("read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let wanted = prefixes.is_empty() || prefixes.iter().any(|p| name.starts_with(p));
            if !wanted {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            let steps = parse(&text).with_context(|| format!("in {}", path.display()))?;
            scenarios.push(Scenario { name, steps, path });
        }
        if scenarios.is_empty() {
            bail!("no scenario in {} is named so", directory.display());
        }
        scenarios.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(scenarios)
    }

    /// Puts the answers in the place of the recorded ones.
    pub(crate) fn write(&self, answers: &[Vec<String>]) -> Result<()> {
        let mut text = String::new();
        for (step, answer) in self.steps.iter().zip(answers) {
            for line in step.source.iter().chain(answer) {
                text.push_str(line);
                text.push('\n');
            }
        }
        Ok(std::fs::write(&self.path, text)?)
    }
}

impl Step {
    /// The step as a reader of a finding recognizes it.
    pub(crate) fn title(&self) -> String {
        self.words.join(" ")
    }
}

fn parse(text: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut comments: Vec<String> = Vec::new();
    for line in text.lines() {
        if let Some(script) = line.strip_prefix('>') {
            if script.starts_with("  ") || script.trim() == "}" {
                let step = steps.last_mut().context("a continuation line begins the file")?;
                step.source.push(line.to_owned());
                step.body.push_str(script);
                step.body.push('\n');
                continue;
            }
            let (head, body) = match script.split_once('{') {
                Some((head, body)) => (head, format!("{body}\n")),
                None => (script, String::new()),
            };
            let mut source = std::mem::take(&mut comments);
            source.push(line.to_owned());
            let words: Vec<String> = head.split_whitespace().map(str::to_owned).collect();
            if words.is_empty() {
                bail!("a step without a name: {line}");
            }
            steps.push(Step { source, words, body, recorded: Vec::new() });
        } else if line.starts_with('#') || line.is_empty() {
            comments.push(line.to_owned());
        } else {
            let step = steps.last_mut().context("an answer without a step")?;
            step.recorded.push(line.to_owned());
        }
    }
    for step in &mut steps {
        let body = step.body.trim();
        step.body = match body.strip_suffix('}') {
            Some(inner) => inner.to_owned(),
            None if body.is_empty() => String::new(),
            None => bail!("the body of {} has no closing brace", step.words.join(" ")),
        };
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_steps_with_their_answers() -> Result<()> {
        let text = "# Why.\n> Start w {\n>   a { b: 1 }\n> }\nx: 1\n\n# Then.\n> await w E\n";
        let steps = parse(text)?;
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0].title(), "Start w");
        assert_eq!(steps[0].body.trim(), "a { b: 1 }");
        assert_eq!(steps[0].recorded, ["x: 1"]);
        assert_eq!(steps[1].source, ["", "# Then.", "> await w E"]);
        assert!(parse("x: 1\n").is_err());
        assert!(parse("> Start {\n>   a: 1\n").is_err());
        Ok(())
    }
}

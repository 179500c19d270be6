//! What is in `deploy/` and `docs/operations.md` against what it is about: dashboard and rules name only
//! metrics and labels that `docs/metrics.md` has (the nodes' tests compare that with `/metrics`), each
//! rule is tested and explained, and versions are the workspace's.

use std::collections::{BTreeMap, BTreeSet};

use super::{File, Finding};

const METRICS: &str = "docs/metrics.md";
const OPERATIONS: &str = "docs/operations.md";
const DASHBOARD: &str = "deploy/grafana/piton.json";
const ALERTS: &str = "deploy/prometheus/alerts.yaml";
const ALERTS_TEST: &str = "deploy/prometheus/alerts_test.yaml";
const CHART: &str = "deploy/helm/piton/Chart.yaml";
const IMAGE: &str = "deploy/Dockerfile";

/// What Prometheus and a histogram add to the labels of a metric.
const LABELS: &[&str] = &["job", "instance", "le"];

pub(super) fn check(files: &[File], findings: &mut Vec<Finding>) {
    let text_of = |path: &str| files.iter().find(|file| file.path == path).map(|f| &*f.text);
    let documented = documented(text_of(METRICS).unwrap_or_default());
    for file in files.iter().filter(|f| [DASHBOARD, ALERTS, ALERTS_TEST].contains(&&*f.path)) {
        check_metrics(file, &documented, findings);
    }
    let alerts = text_of(ALERTS).unwrap_or_default();
    for (index, line) in alerts.lines().enumerate() {
        let Some(alert) = line.trim().strip_prefix("- alert: ") else { continue };
        for (path, word) in
            [(ALERTS_TEST, format!("alertname=\"{alert}\"")), (OPERATIONS, format!("`{alert}`"))]
        {
            if !text_of(path).unwrap_or_default().contains(&word) {
                let what = format!("{alert} is not in {path}");
                findings.push(Finding::new(ALERTS, index + 1, what));
            }
        }
    }
    check_explained(text_of(OPERATIONS).unwrap_or_default(), alerts, findings);
    let manifest = text_of("Cargo.toml").unwrap_or_default();
    for (path, key, before) in
        [(CHART, "version", "appVersion: "), (IMAGE, "rust-version", "FROM rust:")]
    {
        let value = manifest.lines().find_map(|l| l.strip_prefix(&format!("{key} = \"")));
        let wanted = format!("{before}{}", value.unwrap_or_default().trim_end_matches('"'));
        if text_of(path).is_some_and(|text| !text.contains(&wanted)) {
            findings.push(Finding::new(path, 0, format!("does not say `{wanted}`")));
        }
    }
}

/// An alert that is explained and is none.
fn check_explained(operations: &str, alerts: &str, findings: &mut Vec<Finding>) {
    for (index, line) in operations.lines().enumerate() {
        let Some(rest) = line.strip_prefix("| `Piton") else { continue };
        let alert = format!("Piton{}", rest.split('`').next().unwrap_or_default());
        if !alerts.contains(&format!("- alert: {alert}\n")) {
            let what = format!("explains {alert}, which {ALERTS} does not have");
            findings.push(Finding::new(OPERATIONS, index + 1, what));
        }
    }
}

/// Series by name, as Prometheus has them, with their labels.
fn documented(text: &str) -> BTreeMap<String, BTreeSet<&str>> {
    let mut documented = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `piton_")) {
        let cells: Vec<&str> = row.split('|').collect();
        let [_, names, kind, ..] = cells[..] else { continue };
        for metric in names.split('`').filter(|span| span.starts_with("piton_")) {
            let (name, labels) = metric.split_once('{').unwrap_or((metric, ""));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            let labels: BTreeSet<&str> = labels.collect();
            let parts: &[&str] = match kind.trim() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            let series = parts.iter().map(|part| (format!("{name}{part}"), labels.clone()));
            documented.extend(series);
        }
    }
    documented
}

fn check_metrics(
    file: &File,
    documented: &BTreeMap<String, BTreeSet<&str>>,
    findings: &mut Vec<Finding>,
) {
    for (index, line) in file.text.lines().enumerate() {
        let mut find = |what| findings.push(Finding::new(&file.path, index + 1, what));
        // As it is in JSON.
        let line = line.replace("\\\"", "\"");
        for (name, labels) in series(&line) {
            let Some(known) = documented.get(name) else {
                find(format!("names {name}, which {METRICS} does not have"));
                continue;
            };
            let is_known = |label: &&str| known.contains(label) || LABELS.contains(label);
            for label in labels.into_iter().filter(|label| !is_known(label)) {
                find(format!("gives {name} a label {label}, which {METRICS} does not have"));
            }
        }
    }
}

/// The series that a line names, with the labels that it selects them by.
fn series(line: &str) -> Vec<(&str, Vec<&str>)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = line.match_indices("piton_").map(|(at, _)| at);
    let starts = starts.filter(|&at| !line[..at].ends_with(is_part));
    let named = starts.map(|at| {
        let rest = &line[at..];
        let (name, rest) = rest.split_at(rest.find(|c| !is_part(c)).unwrap_or(rest.len()));
        let selector = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        // Every other piece is what stands in quotes.
        let outside = selector.map_or("", |(selector, _)| selector).split('"').step_by(2);
        let labels = outside.flat_map(|piece| piece.split(|c| !is_part(c)));
        (name, labels.filter(|label| !label.is_empty()).collect())
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTED: &str = "\
| Metric | Kind | What it tells |
|---|---|---|
| `piton_rpcs_total{method,code}` | counter | RPCs |
| `piton_commit_seconds` | histogram | from proposal to applied |
";

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let file = |&(path, text): &(&str, &str)| File { path: path.into(), text: text.into() };
        let files: Vec<File> = files.iter().map(file).collect();
        let mut findings = Vec::new();
        check(&files, &mut findings);
        findings
            .into_iter()
            .map(|Finding { path, line, what }| format!("{path}:{line} {what}"))
            .collect()
    }

    #[test]
    fn a_metric_or_label_that_is_not_documented_is_found() {
        let dashboard = r#"
"expr": "rate(piton_rpcs_total{job=\"$job\", code!=\"a,b\", method=~\"x|y\"}[5m])"
"expr": "piton_rpcs{code=\"OK\"} / piton_commit_seconds"
"expr": "piton_commit_seconds_bucket{le=\"1\", shard=\"2\"} + piton_commit_seconds_count"
"#;
        let found = found(&[(METRICS, DOCUMENTED), (DASHBOARD, dashboard)]);
        let text = |line: u32, what: &str| format!("{DASHBOARD}:{line} {what}");
        assert_eq!(
            found,
            [
                text(3, "names piton_rpcs, which docs/metrics.md does not have"),
                text(3, "names piton_commit_seconds, which docs/metrics.md does not have"),
                text(
                    4,
                    "gives piton_commit_seconds_bucket a label shard, which docs/metrics.md does not have"
                ),
            ]
        );
    }

    #[test]
    fn an_alert_is_tested_and_explained_and_an_explanation_has_an_alert() {
        let files = [
            (ALERTS, "  - alert: PitonA\n  - alert: PitonB\n"),
            (ALERTS_TEST, "- {labels: '{alertname=\"PitonA\"}'}\n- '{alertname=\"PitonB\"}'"),
            (OPERATIONS, "| `PitonA` | it is down |\n| `PitonC` | it is up |\n"),
        ];
        assert_eq!(
            found(&files),
            [
                format!("{ALERTS}:2 PitonB is not in docs/operations.md"),
                format!("{OPERATIONS}:2 explains PitonC, which {ALERTS} does not have"),
            ]
        );
    }

    #[test]
    fn versions_are_the_workspaces() {
        let manifest = ("Cargo.toml", "version = \"0.2.0\"\nrust-version = \"1.91\"\n");
        let image = (IMAGE, "FROM rust:1.91-slim AS build\n");
        assert_eq!(
            found(&[manifest, image, (CHART, "appVersion: 0.1.0\n")]),
            [format!("{CHART}:0 does not say `appVersion: 0.2.0`")]
        );
    }
}

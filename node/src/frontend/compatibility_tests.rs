//! `docs/compatibility.md` against the descriptor and against what is built. That what is not built
//! answers UNIMPLEMENTED with its name, and nothing else does, is tested in `gate_tests.rs`.

use std::collections::BTreeMap;

use super::rpc;

const DOCUMENT: &str = include_str!("../../../docs/compatibility.md");

/// `(service, rpc)` -> state, from the tables.
fn documented() -> BTreeMap<(String, String), String> {
    let mut service = String::new();
    let mut rows = BTreeMap::new();
    for line in DOCUMENT.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            service = heading.split(':').next().unwrap().to_owned();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, state, _, ""] = cells[..] else { continue };
        if name == "RPC" || name.starts_with('-') {
            continue;
        }
        let row = (service.clone(), name.to_owned());
        assert_eq!(rows.insert(row, state.to_owned()), None, "{name} stands twice");
    }
    rows
}

#[test]
fn the_compatibility_document_lists_every_rpc_with_its_state() {
    let actual: BTreeMap<_, _> = rpc::all()
        .map(|(_, method)| {
            let state = if method.is_built { "built" } else { "unimplemented" };
            ((method.service.to_owned(), method.name.to_owned()), state.to_owned())
        })
        .collect();
    assert_eq!(documented(), actual);
}

#[test]
fn the_headings_count_what_is_built() {
    for service in ["WorkflowService", "OperatorService"] {
        let of = |built: bool| {
            let methods = rpc::all().filter(|(_, m)| m.service == service);
            methods.filter(|(_, m)| m.is_built || !built).count()
        };
        let heading = format!("## {service}: {} of {}", of(true), of(false));
        assert!(DOCUMENT.contains(&heading), "{heading}");
    }
}

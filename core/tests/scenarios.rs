//! Data-driven scenarios: `core/testdata/*.txt` say requests and what each comes to. How they are
//! written is told in `core/testdata/README.md`. `UPDATE_EXPECT=1 cargo test -p piton-core` writes
//! what comes out into the files; read the diff then.

use std::fs;
use std::path::{Path, PathBuf};

mod scenario;

use scenario::{Block, World, blocks};

#[test]
fn every_scenario_comes_out_as_written() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut failures = Vec::new();
    let files = scenario_files();
    assert!(!files.is_empty(), "no scenario was found");
    for file in files {
        let written = fs::read_to_string(&file).expect("a scenario can be read");
        let found = run(&written, &file);
        if found == written {
            continue;
        }
        if update {
            fs::write(&file, found).expect("a scenario can be written");
        } else {
            failures.push(difference(&file, &written, &found));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn scenario_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("testdata is a folder")
        .map(|entry| entry.expect("testdata can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}

/// The file with what comes out in place of what was expected. Each `##` begins a new workflow.
fn run(written: &str, file: &Path) -> String {
    let mut world = World::new();
    let mut out = String::new();
    for block in blocks(written) {
        match block {
            Block::Text(text) => {
                if text.starts_with("## ") {
                    world = World::new();
                }
                out.push_str(text);
                out.push('\n');
            }
            Block::Step(step) => {
                let place = format!("{}:{}", file.display(), step.line);
                out.push_str(&step.text());
                out.push_str(&world.step(&step, &place));
            }
        }
    }
    out
}

fn difference(file: &Path, written: &str, found: &str) -> String {
    let mut text = format!("{} comes out differently:\n", file.display());
    let (written, found): (Vec<_>, Vec<_>) = (written.lines().collect(), found.lines().collect());
    let same = written.iter().zip(&found).take_while(|(a, b)| a == b).count();
    for line in written.iter().skip(same).take(8) {
        text.push_str(&format!("{:>4} - {line}\n", same + 1));
    }
    for line in found.iter().skip(same).take(8) {
        text.push_str(&format!("{:>4} + {line}\n", same + 1));
    }
    text
}

//! Generates message types and gRPC stubs of the Temporal API from the descriptor set that
//! `temporalio-protos` publishes through its `links` key, so that no proto file is copied here.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// The files whose transitive imports are kept; everything else of the published set is dropped.
const ROOTS: &[&str] = &[
    "temporal/api/workflowservice/v1/service.proto",
    "temporal/api/operatorservice/v1/service.proto",
    "temporal/api/errordetails/v1/message.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::var("DEP_TEMPORALIO_PROTOS_DESCRIPTOR_PATH")?;
    println!("cargo:rerun-if-changed={path}");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let published = FileDescriptorSet::decode(fs::read(&path)?.as_slice())?;
    let files = published.file.into_iter().map(|f| (f.name().to_owned(), f)).collect();
    let mut kept = Kept { files, seen: BTreeSet::new(), ordered: Vec::new() };
    for root in ROOTS {
        kept.visit(root)?;
    }
    let set = FileDescriptorSet { file: kept.ordered };
    fs::write(out.join("temporal_api.fds"), set.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_client(env::var_os("CARGO_FEATURE_CLIENT").is_some())
        .build_server(true)
        // A method that is not overridden answers UNIMPLEMENTED.
        .generate_default_stubs(true)
        // `bytes` fields become `Bytes`: decoding a gRPC frame then shares its buffer.
        .bytes(".temporal.api")
        .include_file("temporal_api.rs")
        .compile_fds(set)?;
    Ok(())
}

/// The transitive closure of the roots, each file after the files it imports.
struct Kept {
    files: BTreeMap<String, FileDescriptorProto>,
    seen: BTreeSet<String>,
    ordered: Vec<FileDescriptorProto>,
}

impl Kept {
    fn visit(&mut self, name: &str) -> Result<(), Box<dyn Error>> {
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let file = self.files.get(name).ok_or(format!("descriptor set lacks {name}"))?.clone();
        for import in &file.dependency {
            self.visit(import)?;
        }
        self.ordered.push(file);
        Ok(())
    }
}

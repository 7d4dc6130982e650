//! The fuzz targets' corpus, run through the same functions as the fuzzer does: what was once found stays found.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;

#[path = "../fuzz/bodies/bundle.rs"]
mod bundle;
#[path = "../fuzz/bodies/cgroup.rs"]
mod cgroup;
#[path = "../fuzz/bodies/handover.rs"]
mod handover;
#[path = "../fuzz/bodies/interpreter.rs"]
mod interpreter;
#[path = "../fuzz/bodies/line.rs"]
mod line;
#[path = "../fuzz/bodies/manifest.rs"]
mod manifest;
#[path = "../fuzz/bodies/mountinfo.rs"]
mod mountinfo;
#[path = "../fuzz/bodies/path.rs"]
mod path;
#[path = "../fuzz/bodies/process.rs"]
mod process;
#[path = "../fuzz/bodies/record.rs"]
mod record;
#[path = "../fuzz/bodies/request.rs"]
mod request;

fn corpus(target: &str, run: fn(&[u8])) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        run(&bytes);
        // Cut short anywhere, it must still be answered.
        for end in 0..bytes.len().min(400) {
            run(&bytes[..end]);
        }
        seen += 1;
    }
    assert!(seen >= 5, "{seen} inputs for {target}");
}

#[test]
fn interpreters() {
    corpus("interpreter", interpreter::run);
}

#[test]
fn manifests() {
    corpus("manifest", manifest::run);
}

#[test]
fn paths() {
    corpus("path", path::run);
}

#[test]
fn records() {
    corpus("record", record::run);
}

#[test]
fn bundles() {
    corpus("bundle", bundle::run);
}

#[test]
fn cgroups() {
    corpus("cgroup", cgroup::run);
}

#[test]
fn handovers() {
    corpus("handover", handover::run);
}

#[test]
fn lines() {
    corpus("line", line::run);
}

#[test]
fn mountinfos() {
    corpus("mountinfo", mountinfo::run);
}

#[test]
fn processes() {
    corpus("process", process::run);
}

#[test]
fn requests() {
    corpus("request", request::run);
}

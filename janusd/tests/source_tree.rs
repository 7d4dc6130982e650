//! The source tree itself: who may import whom, where unsafe code may stand, what janusd may depend on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let mut ahead = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(below)];
    let mut found = Vec::new();
    while let Some(path) = ahead.pop() {
        if path.is_dir() {
            ahead.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    assert!(!found.is_empty(), "nothing at {below}");
    found
}

/// The code of a file, without its inline tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

/// Each room, and the rooms that it must not know of.
const WALLS: [(&str, &[&str]); 19] = [
    ("gate", &["crate::server", "crate::registry", "crate::node", "crate::commands", "crate::admin", "tokio"]),
    (
        "gate/held.rs",
        &["crate::guard", "crate::container", "rustix", "std::fs", "std::os", "Instant", "tracing", "metrics"],
    ),
    ("policy", &["crate::", "std::fs", "std::os", "std::time", "std::thread", "rustix", "libc", "tracing", "fanotify"]),
    ("process", &["crate::guard", "crate::commands", "crate::admin", "crate::metrics"]),
    ("container", &["crate::guard", "crate::policy", "crate::commands", "crate::admin", "crate::metrics"]),
    ("root", &["crate::guard", "crate::policy", "crate::commands", "crate::admin", "crate::metrics"]),
    ("fanotify", &["crate::guard", "crate::root", "crate::commands", "crate::admin", "crate::metrics", "tracing"]),
    ("manifest", &["crate::guard", "crate::fanotify", "crate::commands", "rustix", "std::fs"]),
    ("check.rs", &["crate::guard", "crate::fanotify", "rustix", "std::fs"]),
    ("line.rs", &["crate::guard", "crate::fanotify", "rustix", "std::fs"]),
    ("rights.rs", &["crate::guard", "crate::policy", "crate::process", "crate::commands", "crate::metrics"]),
    ("flood.rs", &["crate::guard", "crate::fanotify", "rustix", "std::fs"]),
    ("limits.rs", &["crate::guard", "crate::commands", "crate::admin"]),
    ("guard", &["crate::commands", "crate::admin", "tokio", "axum"]),
    ("registry", &["crate::server", "crate::commands", "crate::node", "crate::admin", "tonic", "axum", "janus_proto"]),
    ("node", &["crate::server", "crate::commands", "crate::admin", "tokio", "tonic"]),
    ("server", &["crate::commands", "crate::node", "crate::container", "crate::fanotify", "crate::admin"]),
    (
        "registry/state.rs",
        &["crate::", "janus_proto", "std::fs", "std::os", "std::sync", "std::thread", "Instant", "rustix", "tokio"],
    ),
    (
        "wire",
        &[
            "crate::guard",
            "crate::registry",
            "crate::fanotify",
            "crate::commands",
            "rustix",
            "std::fs",
            "tokio",
            "tonic",
        ],
    ),
];

#[test]
fn rooms_know_only_whom_they_may() {
    for (room, strangers) in WALLS {
        for (path, text) in sources(room) {
            for line in code(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
                for stranger in strangers {
                    let own = *stranger == "crate::" && line.contains("crate::policy");
                    assert!(own || !line.contains(stranger), "{}: {stranger}: {line}", path.display());
                }
            }
        }
    }
}

#[test]
fn unsafe_code_has_one_room() {
    for (path, text) in sources("") {
        let room = path.ends_with("fanotify/sys.rs");
        let words = code(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        let opened = words.clone().any(|line| line.contains("unsafe_code"));
        let used = words
            .clone()
            .any(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe"));
        assert_eq!(opened || used, room, "{}", path.display());
    }
}

#[test]
fn pure_judging_imports_no_kernel() {
    for file in ["guard/judge.rs", "guard/view.rs", "guard/known.rs", "guard/reach.rs"] {
        for (path, text) in sources(file) {
            for stranger in ["rustix", "std::fs", "std::os", "std::thread", "tracing", "metrics", "crossbeam"] {
                assert!(!code(&text).contains(stranger), "{}: {stranger}", path.display());
            }
        }
    }
}

/// janusd never links a Kubernetes client: it has no API token, and nothing to ask the API server.
#[test]
fn janusd_does_not_know_kubernetes() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--package", "janusd", "--edges", "normal", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.contains("fanotify-rs"));
    for name in ["kube", "kube-client", "kube-core", "k8s-openapi", "aws-lc-rs", "openssl-sys"] {
        let found = tree.lines().any(|line| line.split(' ').next() == Some(name));
        assert!(!found, "janusd depends on {name}");
    }
}

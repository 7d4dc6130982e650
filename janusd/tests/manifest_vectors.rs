//! The manifests that the API server and janusd must judge alike: `tests/vectors/manifests`, described there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;

use janusd::manifest;

fn vectors(kind: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/manifests").join(kind);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() > 20, "only {} vectors in {}", files.len(), folder.display());
    files
        .into_iter()
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn accepted() {
    let mut wrong = Vec::new();
    for (name, bytes) in vectors("accepted") {
        if let Err(errors) = manifest::parse(&name, &bytes) {
            wrong.extend(errors.iter().map(ToString::to_string));
        }
    }
    assert!(wrong.is_empty(), "refused:\n{}", wrong.join("\n"));
}

#[test]
fn refused() {
    let mut wrong = Vec::new();
    for (name, bytes) in vectors("refused") {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let field = text.lines().find_map(|line| line.strip_prefix("# field: ")).unwrap().trim();
        match manifest::parse(&name, &bytes) {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(errors) => {
                if errors.iter().any(|error| error.field != field) {
                    wrong.push(format!("{name}: wanted {field} alone: {errors:?}"));
                }
                for error in &errors {
                    if error.line.is_none() || error.to_string().chars().any(char::is_control) {
                        wrong.push(format!("{name}: no line, or not printable: {error:?}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

//! Bad input: refused with file, field and reason, exit 2, nothing enforced. None of this needs rights.
//!
//! Guarantee shown: contract 2 (exit status) and the bounds of contract 1, by the vectors shared with the CRD's tests.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::case::Case;
use crate::daemon::{Ended, run};
use crate::manifest::{guard, guard_with, together};

crate::command_tests![
    refused_vectors,
    accepted_vectors,
    not_yaml,
    not_utf8,
    nothing_in_the_file,
    alias_bomb,
    deep_nesting,
    one_bad_document_of_several,
    one_bad_file_of_several,
    unknown_fields_and_values,
    another_kind,
    two_guards_of_one_name,
    missing_file,
    directory_as_file,
    manifest_on_stdin,
    missing_process,
    missing_root,
    pid_and_root_together,
    no_arguments,
    unknown_arguments,
];

const GOOD: &str = "{deny: [/secret], events: [open]}";

fn check(case: &Case, content: &[u8]) -> Ended {
    let file = case.scratch("bad.yaml");
    fs::write(&file, content).unwrap();
    run(&case.watch, &["check".as_ref(), "-f".as_ref(), file.as_os_str()], b"")
}

/// `janusd guard` on a scratch directory with these arguments: it must not get as far as enforcing.
fn guard_a_directory(case: &Case, arguments: &[&str]) -> Ended {
    let root = case.scratch("root");
    fs::create_dir_all(&root).unwrap();
    let all: Vec<&str> = ["guard", "--root", root.to_str().unwrap()].iter().chain(arguments).copied().collect();
    run(&case.watch, &all, b"")
}

/// The vectors of one directory, in order. There must be some.
fn vectors(kind: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/manifests").join(kind);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no vectors in {}", directory.display());
    files
}

/// Every refused vector names in its first line the field that must be named: `# field: spec.subjects[0].deny[0]`.
fn refused_vectors(case: &Case) {
    let mut wrong = String::new();
    for file in vectors("refused") {
        let content = fs::read(&file).unwrap();
        let first = String::from_utf8_lossy(content.split(|byte| *byte == b'\n').next().unwrap()).into_owned();
        let Some(field) = first.strip_prefix("# field:").map(str::trim) else {
            writeln!(wrong, "{}: no `# field:` line", file.display()).unwrap();
            continue;
        };
        let ended = run(&case.watch, &["check".as_ref(), "-f".as_ref(), file.as_os_str()], b"");
        let name = file.file_name().unwrap().to_string_lossy();
        if ended.code != Some(2) || !ended.stderr.contains(field) || !ended.stderr.contains(&*name) {
            writeln!(wrong, "{name}: {field} and exit 2 expected: {ended:?}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn accepted_vectors(case: &Case) {
    let mut wrong = String::new();
    for file in vectors("accepted") {
        let ended = run(&case.watch, &["check".as_ref(), "-f".as_ref(), file.as_os_str()], b"");
        if ended.code != Some(0) {
            writeln!(wrong, "{}: {ended:?}", file.display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn not_yaml(case: &Case) {
    for content in ["}{", "a: b: c", "spec:\n\t- tab", "\"unterminated", "[1, 2", "just text", "- a\n- list"] {
        check(case, content.as_bytes()).refused(&["bad.yaml"]);
        let file = case.scratch("bad.yaml");
        guard_a_directory(case, &["-f", file.to_str().unwrap()]).refused(&["bad.yaml"]);
    }
}

fn not_utf8(case: &Case) {
    let mut manifest = guard(&[GOOD]).into_bytes();
    manifest.extend(b"# \xff\xfe\n");
    check(case, &manifest).refused(&["bad.yaml"]);
    check(case, b"\xff\xfe\x00").refused(&["bad.yaml"]);
    check(case, b"\0\0\0\0").refused(&["bad.yaml"]);
}

/// Empty, or with nothing but comments and separators: no guard is not what anybody meant.
fn nothing_in_the_file(case: &Case) {
    for content in ["", "\n\n", "# a comment\n", "---\n---\n", "null\n"] {
        check(case, content.as_bytes()).refused(&["bad.yaml"]);
    }
}

/// Ten levels of ten references each: refused before it is expanded.
fn alias_bomb(case: &Case) {
    let mut bomb = "a0: &a0 [/secret, /secret]\n".to_owned();
    for level in 1..12 {
        let references = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{references}]").unwrap();
    }
    bomb.push_str(&guard(&["{deny: *a11, events: [open]}"]));
    check(case, bomb.as_bytes()).refused(&["bad.yaml"]);
}

/// A thousand opening brackets, and a hundred thousand.
fn deep_nesting(case: &Case) {
    for depth in [1_000, 100_000] {
        check(case, "[".repeat(depth).as_bytes()).refused(&["bad.yaml"]);
        check(case, "{a: ".repeat(depth).as_bytes()).refused(&["bad.yaml"]);
    }
}

/// A file with one bad guard enforces none of it.
fn one_bad_document_of_several(case: &Case) {
    let manifest = together(&[
        guard_with("good", &[], &[GOOD]),
        guard_with("bad", &[], &[GOOD, "{deny: [/x, relative], events: [open]}"]),
    ]);
    check(case, manifest.as_bytes()).refused(&["bad.yaml", "spec.subjects[1].deny[1]"]);
    let file = case.scratch("bad.yaml");
    guard_a_directory(case, &["-f", file.to_str().unwrap()]).refused(&["bad.yaml", "spec.subjects[1].deny[1]"]);
}

fn one_bad_file_of_several(case: &Case) {
    let (good, bad) = (case.scratch("good.yaml"), case.scratch("bad.yaml"));
    fs::write(&good, guard(&[GOOD])).unwrap();
    fs::write(&bad, guard_with("other", &[], &["{deny: [/x], events: [modify]}"])).unwrap();
    let files = ["-f", good.to_str().unwrap(), "-f", bad.to_str().unwrap()];
    guard_a_directory(case, &files).refused(&["bad.yaml", "spec.subjects[0].events[0]", "modify"]);
}

/// A misspelt field is never ignored: the guard would be weaker than it reads.
fn unknown_fields_and_values(case: &Case) {
    for (spec, subject, words) in [
        (&[][..], "{deny: [/x], event: [open]}", &["event"][..]),
        (&[], "{denied: [/x], events: [open]}", &["denied"]),
        (&[], "{deny: [/x], events: [open], recursive: maybe}", &["recursive"]),
        (&[], "{deny: [/x], events: []}", &["spec.subjects[0].events"]),
        (&[], "{events: [open]}", &["spec.subjects[0]"]),
        (&[], "{deny: [/x], events: [open], recursive: false, maxDepth: 2}", &["spec.subjects[0].maxDepth"]),
        (&[], "{deny: ['/x/*'], events: [open], onlyDir: true}", &["spec.subjects[0].onlyDir"]),
        (&[], "{deny: [/x], events: [open], maxDepth: 0}", &["spec.subjects[0].maxDepth"]),
        (&[], "{deny: [/a/../b], events: [open]}", &["spec.subjects[0].deny[0]"]),
        (&[], r#"{deny: ["/a\nb"], events: [open]}"#, &["spec.subjects[0].deny[0]"]),
        (&["enforcement: Maybe"], GOOD, &["spec.enforcement"]),
        (&["failurePolicy: Maybe"], GOOD, &["spec.failurePolicy"]),
        (&["logFormat: '{file} {allow}'"], GOOD, &["spec.logFormat", "file"]),
        (&["logFormat: '{path'"], GOOD, &["spec.logFormat"]),
        (&["enforced: true"], GOOD, &["enforced"]),
    ] {
        check(case, guard_with("g", spec, &[subject]).as_bytes()).refused(&["bad.yaml"]);
        check(case, guard_with("g", spec, &[subject]).as_bytes()).refused(words);
    }
}

fn another_kind(case: &Case) {
    let good = guard(&[GOOD]);
    check(case, good.replace("JanusGuard", "ArgusWatcher").as_bytes()).refused(&["bad.yaml", "kind"]);
    check(case, good.replace("v1alpha1", "v9").as_bytes()).refused(&["bad.yaml", "apiVersion"]);
}

/// Their counters could not be told apart.
fn two_guards_of_one_name(case: &Case) {
    check(case, together(&[guard(&[GOOD]), guard(&[GOOD])]).as_bytes()).refused(&["bad.yaml", "metadata.name"]);
}

fn missing_file(case: &Case) {
    let missing = case.scratch("missing.yaml");
    let missing = missing.to_str().unwrap();
    run(&case.watch, &["check", "-f", missing], b"").refused(&["missing.yaml"]);
    guard_a_directory(case, &["-f", missing]).refused(&["missing.yaml"]);
}

fn directory_as_file(case: &Case) {
    let directory = case.scratch("");
    run(&case.watch, &["check", "-f", directory.to_str().unwrap()], b"").refused(&[directory.to_str().unwrap()]);
}

/// `-f -`
fn manifest_on_stdin(case: &Case) {
    run(&case.watch, &["check", "-f", "-"], guard(&[GOOD]).as_bytes()).succeeded();
    let bad = guard(&["{deny: [relative], events: [open]}"]);
    run(&case.watch, &["check", "-f", "-"], bad.as_bytes()).refused(&["spec.subjects[0].deny[0]"]);
    run(&case.watch, &["check", "-f", "-"], b"").refused(&[]);
}

/// A pid that no kernel gives.
fn missing_process(case: &Case) {
    let file = case.scratch("guard.yaml");
    fs::write(&file, guard(&[GOOD])).unwrap();
    let guard = |pid: &str| run(&case.watch, &["guard", "-f", file.to_str().unwrap(), "--pid", pid], b"");
    guard("2147483647").refused(&["2147483647"]);
    guard("0").refused(&["--pid"]);
    guard("-1").refused(&[]);
    guard("self").refused(&["--pid"]);
}

fn missing_root(case: &Case) {
    let file = case.scratch("guard.yaml");
    fs::write(&file, guard(&[GOOD])).unwrap();
    let (file, missing) = (file.to_str().unwrap(), case.scratch("missing"));
    let guard = |root: &str| run(&case.watch, &["guard", "-f", file, "--root", root], b"");
    guard(missing.to_str().unwrap()).refused(&[missing.to_str().unwrap()]);
    // A root is a directory.
    guard(file).refused(&[file]);
}

fn pid_and_root_together(case: &Case) {
    let file = case.scratch("guard.yaml");
    fs::write(&file, guard(&[GOOD])).unwrap();
    let pid = std::process::id().to_string();
    guard_a_directory(case, &["-f", file.to_str().unwrap(), "--pid", &pid]).refused(&["--pid", "--root"]);
}

fn no_arguments(case: &Case) {
    let none: [&str; 0] = [];
    run(&case.watch, &none, b"").refused(&["guard", "check"]);
    run(&case.watch, &["guard"], b"").refused(&["-f"]);
    run(&case.watch, &["check"], b"").refused(&["-f"]);
}

fn unknown_arguments(case: &Case) {
    let file = case.scratch("guard.yaml");
    fs::write(&file, guard(&[GOOD])).unwrap();
    let file = file.to_str().unwrap();
    run(&case.watch, &["guard", "-f", file, "--rot", "/x"], b"").refused(&["--rot"]);
    guard_a_directory(case, &["-f", file, "--admin-listen", "nowhere"]).refused(&["--admin-listen"]);
    guard_a_directory(case, &["-f", file, "--event-format", "xml"]).refused(&["--event-format"]);
    run(&case.watch, &["--help"], b"").succeeded();
    run(&case.watch, &["--version"], b"").succeeded();
}

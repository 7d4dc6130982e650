//! The commands that answer and end: `demo`, `preflight`, `check --explain`.

use std::fs;

use crate::case::Case;
use crate::daemon::{run, run_with_temporary, run_without_rights};
use crate::manifest::guard;

crate::command_tests![
    demo_denies_and_allows.privileged(),
    preflight_lists_features.privileged(),
    preflight_as_json.privileged(),
    missing_rights_are_named,
    check_accepts,
    explain_names_the_rule,
    explain_by_event,
];

/// A real denial, a real allow, and nothing left behind.
fn demo_denies_and_allows(case: &Case) {
    let temporary = case.scratch("tmp");
    fs::create_dir(&temporary).unwrap();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let ended = run_with_temporary(&case.watch, &["demo"], &temporary);
    ended.succeeded();
    for response in ["<DENY>", "<ALLOW>"] {
        assert!(ended.stdout.lines().any(|line| line.starts_with(response)), "no {response} line: {ended:#?}");
    }
    assert_eq!(mounts(), before);
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// One line a feature.
fn preflight_lists_features(case: &Case) {
    let ended = run(&case.watch, &["preflight"], b"");
    ended.succeeded();
    assert!(ended.stdout.lines().count() >= 3, "{ended:#?}");
    // How permission events behave, and what enforcement rests on.
    for behaviour in ["answers, every mark", "close lets go"] {
        let line = ended.stdout.lines().find(|line| line.contains(behaviour));
        assert!(line.is_some_and(|line| line.starts_with("yes")), "{behaviour}: {ended:#?}");
    }
}

fn preflight_as_json(case: &Case) {
    let ended = run(&case.watch, &["preflight", "-o", "json"], b"");
    ended.succeeded();
    let found: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert!(found.is_object() || found.is_array(), "{found}");
}

/// Without CAP_SYS_ADMIN: exit 1, because nothing is wrong with what was asked.
fn missing_rights_are_named(case: &Case) {
    let (file, root) = (case.scratch("guard.yaml"), case.scratch("root"));
    fs::create_dir(&root).unwrap();
    fs::write(&file, guard(&["{deny: [/secret], events: [open]}"])).unwrap();
    let arguments = ["guard", "-f", file.to_str().unwrap(), "--root", root.to_str().unwrap()];
    for ended in [run_without_rights(&case.watch, &arguments), run_without_rights(&case.watch, &["demo"])] {
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        assert!(ended.stderr.contains("CAP_SYS_ADMIN"), "{ended:#?}");
        assert!(!ended.stderr.contains("ready:"), "{ended:#?}");
    }
}

fn check_accepts(case: &Case) {
    let file = case.scratch("guard.yaml");
    fs::write(&file, guard(&["{deny: [/secret], events: [open]}"])).unwrap();
    run(&case.watch, &["check", "-f", file.to_str().unwrap()], b"").succeeded();
}

fn explained(case: &Case, arguments: &[&str]) -> String {
    let file = case.scratch("guard.yaml");
    let subject = "{name: keys, allow: [/denied/open], deny: [/denied, '/etc/*.key'], events: [open]}";
    fs::write(&file, guard(&[subject])).unwrap();
    let all: Vec<&str> = ["check", "-f", file.to_str().unwrap()].iter().chain(arguments).copied().collect();
    let ended = run(&case.watch, &all, b"");
    ended.succeeded();
    ended.stdout
}

/// Which rule would decide, and how.
fn explain_names_the_rule(case: &Case) {
    for (path, response, rule) in [
        ("/denied/file", "deny", "/denied"),
        ("/denied/open/file", "allow", "/denied/open"),
        ("/etc/host.key", "deny", "/etc/*.key"),
    ] {
        let said = explained(case, &["--explain", path]);
        assert!(said.to_lowercase().contains(response) && said.contains(rule), "{path}: {said}");
    }
    let said = explained(case, &["--explain", "/elsewhere"]).to_lowercase();
    assert!(said.contains("allow") && !said.contains("deny"), "{said}");
}

fn explain_by_event(case: &Case) {
    assert!(explained(case, &["--explain", "/denied/file", "--event", "open"]).to_lowercase().contains("deny"));
    assert!(explained(case, &["--explain", "/denied/file", "--event", "execute"]).to_lowercase().contains("allow"));
}

//! What subjects and guards mean together: several of them, Audit, what is logged, what cannot be guarded.
//!
//! Guarantee shown: contract 1, the spec's and the subject's fields that are not paths, and meaning, points 5 and 6.

use crate::case::Case;
use crate::manifest::{guard, guard_with, together};
use crate::protocol::{execute, list, read};

crate::kernel_tests![
    deny_from_any_subject,
    deny_from_any_guard,
    guards_of_several_files,
    events_are_told_apart,
    all_events,
    audit_mode_denies_nothing.without_control(),
    audit_mode_beside_enforcement,
    log_denied,
    log_none,
    kernel_audit,
    what_cannot_be_guarded_is_said,
    absent_path_is_no_obstacle,
];

/// Subjects are judged one by one: what one allows another may deny, however specific.
fn deny_from_any_subject(case: &Case) {
    let container = case.container();
    let subjects = ["{allow: [/denied/file, /secret], events: [open]}", "{deny: [/denied], events: [open]}"];
    let _janusd = case.guard(&container, &guard(&subjects));
    case.denied(container.open("/denied/file"));
    case.allowed(container.open("/secret"));
}

/// Two guards in one file.
fn deny_from_any_guard(case: &Case) {
    let container = case.container();
    let manifest = together(&[
        guard_with("one", &[], &["{allow: [/denied], deny: [/secret], events: [open]}"]),
        guard_with("two", &[], &["{allow: [/secret], deny: [/denied], events: [open]}"]),
    ]);
    let janusd = case.guard(&container, &manifest);
    case.denied(container.open("/secret"));
    case.denied(container.open("/denied/file"));
    case.allowed(container.open("/public"));
    if let Some(janusd) = janusd.running() {
        assert_eq!(janusd.ready().last().unwrap().0, 2, "guards in the ready line");
        janusd.counts(&[("guard", "one"), ("event", "open"), ("response", "deny")], 1);
        janusd.counts(&[("guard", "two"), ("event", "open"), ("response", "deny")], 1);
        assert!(janusd.metrics().has("janus_guards"));
        assert!(janusd.metrics().sum("janus_marks", &[]) >= 1);
    }
}

/// `-f` twice.
fn guards_of_several_files(case: &Case) {
    let container = case.container();
    let second = case.scratch("second.yaml");
    std::fs::write(&second, guard_with("two", &[], &["{deny: [/denied], events: [open]}"])).unwrap();
    let first = guard_with("one", &[], &["{deny: [/secret], events: [open]}"]);
    let janusd = case.guard_with(&container, &first, &["-f", second.to_str().unwrap()]);
    case.denied(container.open("/secret"));
    case.denied(container.open("/denied/file"));
    case.allowed(container.open("/public"));
    if let Some(janusd) = janusd.running() {
        assert_eq!(janusd.ready().last().unwrap().0, 2, "guards in the ready line");
    }
}

/// A rule holds for its subject's events and no others.
fn events_are_told_apart(case: &Case) {
    let container = case.container();
    let subjects = [
        "{deny: [/secret], events: [access]}",
        "{deny: [/public], events: [open]}",
        "{deny: [/bin/true], events: [execute]}",
    ];
    let _janusd = case.guard(&container, &guard(&subjects));
    case.allowed(container.open("/secret"));
    case.denied(container.act(read("/secret")));
    case.denied(container.open("/public"));
    case.denied(container.act(execute("/bin/true", [])));
    case.allowed(container.act(read("/bin/true")));
}

/// `all` is the three of them.
fn all_events(case: &Case) {
    let container = case.container();
    let subject = "{deny: [/denied, /bin/true], allow: [/bin/cat, /public], events: [all]}";
    let janusd = case.guard(&container, &guard(&[subject]));
    case.denied(container.open("/denied/file"));
    case.denied(container.act(list("/denied")));
    case.denied(container.act(execute("/bin/true", [])));
    case.allowed(container.act(execute("/bin/cat", ["/public"])));
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["<DENY> OPEN_EXEC_PERM file '/bin/true'"]);
        janusd.line_with(&["<DENY> OPEN_PERM directory '/denied'"]);
        janusd.line_with(&["<ALLOW> OPEN_EXEC_PERM file '/bin/cat'"]);
        janusd.line_with(&["<ALLOW> ACCESS_PERM file '/public'"]);
    }
}

/// Audit answers allow, and counts and logs what Enforce would have denied.
fn audit_mode_denies_nothing(case: &Case) {
    let container = case.container();
    let subject = "{allow: [/public], deny: [/secret, /denied], events: [open]}";
    let janusd = case.guard(&container, &guard_with("g", &["enforcement: Audit"], &[subject]));
    let janusd = janusd.running().unwrap();
    for path in ["/secret", "/denied/file", "/public"] {
        case.allowed(container.open(path));
    }
    assert_eq!(container.act(read("/secret")), Ok(b"/secret\n".to_vec()));
    janusd.line_with(&["<AUDIT> OPEN_PERM file '/secret'"]);
    janusd.line_with(&["<AUDIT> OPEN_PERM file '/denied/file'"]);
    janusd.line_with(&["<ALLOW> OPEN_PERM file '/public'"]);
    janusd.counts(&[("guard", "g"), ("event", "open"), ("response", "audit")], 3);
    janusd.counts(&[("guard", "g"), ("response", "deny")], 0);
}

/// A guard in Audit lifts no other guard's deny.
fn audit_mode_beside_enforcement(case: &Case) {
    let container = case.container();
    let manifest = together(&[
        guard_with("tried", &["enforcement: Audit"], &["{deny: [/secret, /public], events: [open]}"]),
        guard_with("real", &["enforcement: Enforce"], &["{deny: [/secret], events: [open]}"]),
    ]);
    let janusd = case.guard(&container, &manifest);
    case.denied(container.open("/secret"));
    case.allowed(container.open("/public"));
    if let Some(janusd) = janusd.running() {
        janusd.counts(&[("guard", "real"), ("response", "deny")], 1);
        janusd.line_with(&["<AUDIT>", "'/public'"]);
    }
}

/// `log: Denied` makes no line of what is allowed.
fn log_denied(case: &Case) {
    let container = case.container();
    let subject = "{allow: [/public], deny: [/secret], log: Denied, events: [open]}";
    let janusd = case.guard(&container, &guard(&[subject]));
    case.allowed(container.open("/public"));
    case.denied(container.open("/secret"));
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["<DENY>", "'/secret'"]);
        let lines = janusd.lines();
        assert_eq!(lines.len(), 1, "lines of what was allowed: {lines:?}");
    }
}

/// `log: None` makes no line, and denies and counts all the same.
fn log_none(case: &Case) {
    let container = case.container();
    let subjects = ["{deny: [/secret], log: None, events: [open]}", "{deny: [/denied], events: [open]}"];
    let janusd = case.guard(&container, &guard(&subjects));
    case.denied(container.open("/secret"));
    // The barrier: its line comes after any that the first open could have made.
    case.denied(container.open("/denied/file"));
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["<DENY>", "'/denied/file'"]);
        assert_eq!(janusd.lines().len(), 1, "a line in spite of `log: None`: {:?}", janusd.lines());
        janusd.counts(&[("guard", "g"), ("response", "deny")], 2);
    }
}

/// `audit: true` denies as well: whether the kernel's audit log can be written to, or it is said that it cannot.
fn kernel_audit(case: &Case) {
    let container = case.container();
    let subject = "{allow: [/public], deny: [/secret], audit: true, events: [open]}";
    let _janusd = case.guard(&container, &guard(&[subject]));
    case.denied(container.open("/secret"));
    case.allowed(container.open("/public"));
    case.denied(container.open("/secret"));
}

/// A device and a procfs file cannot be guarded: that is said, and the rest holds.
fn what_cannot_be_guarded_is_said(case: &Case) {
    let container = case.container();
    let subject = "{deny: [/dev/null, /proc/version, /secret], events: [open]}";
    let janusd = case.guard(&container, &guard(&[subject]));
    case.denied(container.open("/secret"));
    case.allowed(container.open("/proc/version"));
    if let Some(janusd) = janusd.running() {
        janusd.says(&["/dev/null"]);
        janusd.says(&["/proc/version"]);
    }
}

/// A path that is merely absent keeps nothing else from being guarded.
fn absent_path_is_no_obstacle(case: &Case) {
    let container = case.container();
    let subject = "{deny: [/not/there, '/nor/*/here', /secret], allow: [/not/there/either], events: [open]}";
    let janusd = case.guard(&container, &guard(&[subject]));
    case.denied(container.open("/secret"));
    if let Some(janusd) = janusd.running() {
        assert_eq!(janusd.ready().last().unwrap().0, 1);
    }
}

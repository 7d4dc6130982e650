//! One event, one line: the default format, a guard's own, JSON; hostile file names; what is counted.
//!
//! Guarantee shown: contract 4 and 5.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::SystemTime;

use crate::case::Case;
use crate::container::Container;
use crate::daemon::Running;
use crate::manifest::{guard, guard_with};
use crate::protocol::{execute, list, make_directories, open, read, rename, write};

crate::kernel_tests![
    default_format,
    several_tags,
    own_format,
    process_specifiers,
    json,
    from_the_host_and_by_other_names,
    hostile_names,
    hostile_names_as_json,
    counted_exactly,
    janusd_itself_is_not_counted,
    admin_routes.without_control(),
    what_janusd_itself_takes.without_control(),
];

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim_end().to_owned()
}

/// The format of v0.1.0, to the letter.
fn default_format(case: &Case) {
    let container = case.container();
    let subject = "{allow: [/public], deny: [/secret], tags: {foo: bar}, events: [open]}";
    let janusd = case.guard(&container, &guard(&[subject]));
    case.denied(container.open("/secret"));
    case.allowed(container.open("/public"));
    if let Some(janusd) = janusd.running() {
        let host = host_name();
        let denied = format!("<DENY> OPEN_PERM file '/secret' (local:{host}) foo=bar");
        let allowed = format!("<ALLOW> OPEN_PERM file '/public' (local:{host}) foo=bar");
        janusd.line(&denied, |line| line == denied);
        janusd.line(&allowed, |line| line == allowed);
        assert_eq!(janusd.lines().len(), 2, "{:?}", janusd.lines());
    }
}

/// Tags are `k=v,k=v`; a line shows those of the subject that decided.
fn several_tags(case: &Case) {
    let container = case.container();
    let subjects =
        ["{deny: [/secret], tags: {a: '1', b: '2'}, events: [open]}", "{deny: [/denied], events: [open, access]}"];
    let janusd = case.guard(&container, &guard(&subjects));
    case.denied(container.open("/secret"));
    case.denied(container.open("/denied"));
    if let Some(janusd) = janusd.running() {
        assert!(janusd.line_with(&["'/secret'"]).ends_with(" a=1,b=2"));
        let untagged = janusd.line_with(&["<DENY> OPEN_PERM directory '/denied' (local:"]);
        assert!(untagged.trim_end().ends_with(')'), "{untagged}");
    }
}

/// A guard's own `logFormat`, with literal braces.
fn own_format(case: &Case) {
    let container = case.container();
    let format =
        "logFormat: '{namespace}/{guard} {subject} {response} {event} {ftype} {path} {pod}@{node} {{x}} {tags}|'";
    let subject = "{name: keys, deny: [/secret], tags: {k: v}, events: [open]}";
    let janusd = case.guard(&container, &guard_with("own", &[format], &[subject]));
    case.denied(container.open("/secret"));
    if let Some(janusd) = janusd.running() {
        let expected = format!("default/own keys DENY OPEN_PERM file /secret local@{} {{x}} k=v|", host_name());
        janusd.line(&expected, |line| line == expected);
    }
}

/// Who asked: pid, comm and uid as the host sees them.
fn process_specifiers(case: &Case) {
    let container = case.container();
    let format = "logFormat: '{pid} {comm} {uid} {exe} {rule} {reason} {time}'";
    let janusd = case.guard(&container, &guard_with("g", &[format], &["{deny: [/secret], events: [open]}"]));
    case.denied(container.open("/secret"));
    if let Some(janusd) = janusd.running() {
        let comm = fs::read_to_string(format!("/proc/{}/comm", container.pid)).unwrap();
        let line = janusd.line_with(&[&format!("{} {} 0 ", container.pid, comm.trim_end())]);
        assert!(line.contains("rule-deny"), "{line}");
        assert!(line.contains('T') && line.contains(':'), "a time as RFC 3339: {line}");
    }
}

/// `--event-format json`: one object a line, with every specifier's name as a key.
fn json(case: &Case) {
    let container = case.container();
    let subject = "{name: keys, deny: [/secret], tags: {foo: bar}, events: [open]}";
    let janusd = case.guard_with(&container, &guard(&[subject]), &["--event-format", "json"]);
    case.denied(container.open("/secret"));
    if let Some(janusd) = janusd.running() {
        let line = janusd.line_with(&["/secret"]);
        let event: serde_json::Value = serde_json::from_str(&line).expect("a JSON object");
        for (key, value) in [
            ("response", "DENY"),
            ("event", "OPEN_PERM"),
            ("ftype", "file"),
            ("path", "/secret"),
            ("pod", "local"),
            ("node", &host_name()),
            ("namespace", "default"),
            ("guard", "g"),
            ("subject", "keys"),
        ] {
            assert_eq!(event[key], value, "{key} in {line}");
        }
        for key in ["tags", "container", "rule", "reason", "origin", "pid", "comm", "exe", "uid", "time"] {
            assert!(event.get(key).is_some(), "{key} in {line}");
        }
    }
}

/// The path is the container's own, whoever opens it and however.
fn from_the_host_and_by_other_names(case: &Case) {
    let container = case.container();
    let host = case.host();
    let janusd = case.guard(&container, &guard(&["{deny: [/secret], tags: {foo: bar}, events: [open]}"]));
    case.denied(host.open(container.seen_from_host("/secret")));
    case.denied(container.open("/absolute-link"));
    if let Some(janusd) = janusd.running() {
        janusd.counts(&[("response", "deny")], 2);
        janusd.line("twice", |_| janusd.lines().len() == 2);
        for line in janusd.lines() {
            assert!(String::from_utf8_lossy(&line).contains("file '/secret' (local:"), "{line:?}");
        }
    }
}

/// Names that would forge a line, recolour a terminal, or fill a buffer.
fn names() -> Vec<OsString> {
    let mut names: Vec<OsString> = [
        "new\nline",
        "x' (local:y) end=here\n<ALLOW> OPEN_PERM file 'forged",
        "escape\x1b[31m\x1b]0;title\x07",
        "tab\tcarriage\rreturn\u{7f}",
        "quote'\"\\{path}{{",
        "next\u{85}line\u{2028}separator\u{202e}override",
        "ünï⚙",
        " ",
    ]
    .map(OsString::from)
    .to_vec();
    names.push("x".repeat(255).into());
    names.push("é".repeat(127).into());
    names.push(OsString::from_vec(b"not\xff\xfeutf8\xc3".to_vec()));
    names.push(OsString::from_vec((1..=46).chain(48..=255).collect()));
    names.push(OsString::from_vec(vec![0x80; 255]));
    names
}

fn make_names(container: &Container) -> Vec<(OsString, OsString)> {
    container.prepare([make_directories("/denied/names"), make_directories("/names")]);
    let pairs = names().into_iter().map(|name| {
        let below = |directory: &str| {
            let mut path = OsString::from(directory);
            path.push(&name);
            path
        };
        (below("/denied/names/"), below("/names/"))
    });
    pairs
        .inspect(|(denied, allowed)| {
            for path in [denied, allowed] {
                container.prepare([write("/aside", "new"), rename("/aside", path)]);
            }
        })
        .collect()
}

/// Opens every file, and gives the lines: one an event, in order.
fn lines_of_names<'a>(
    case: &Case,
    container: &Container,
    janusd: Option<&'a Running>,
) -> Option<(&'a Running, Vec<Vec<u8>>)> {
    let mut events = 0;
    for (denied, allowed) in names().into_iter().map(|name| {
        let below = |directory: &str| [OsStr::new(directory), &name].map(OsStr::as_bytes).concat();
        (OsString::from_vec(below("/denied/names/")), OsString::from_vec(below("/names/")))
    }) {
        case.denied(container.act(open(denied)));
        case.allowed(container.act(open(allowed)));
        events += 2;
    }
    let janusd = janusd?;
    janusd.line("after all of them", |_| janusd.lines().len() >= events);
    let lines = janusd.lines();
    assert_eq!(lines.len(), events, "one event, one line");
    Some((janusd, lines))
}

const NAMES: &str = "{allow: [/names], deny: [/denied], tags: {end: here}, events: [open]}";

/// File names with newlines, escapes, 255 bytes, not UTF-8: one event, one line, escaped, and the right answer.
fn hostile_names(case: &Case) {
    let container = case.container();
    make_names(&container);
    let janusd = case.guard(&container, &guard(&[NAMES]));
    let Some((_, lines)) = lines_of_names(case, &container, janusd.running()) else {
        return;
    };
    for (index, line) in lines.iter().enumerate() {
        let text = std::str::from_utf8(line).expect("a line that is UTF-8");
        assert!(!text.chars().any(char::is_control), "control characters in {text:?}");
        let expected =
            if index % 2 == 0 { "<DENY> OPEN_PERM file '/denied/names/" } else { "<ALLOW> OPEN_PERM file '/names/" };
        assert!(text.starts_with(expected), "{text:?}");
        assert!(text.ends_with("end=here"), "{text:?}");
    }
    let distinct: BTreeSet<&Vec<u8>> = lines.iter().collect();
    assert_eq!(distinct.len(), lines.len(), "two names look the same");
    assert!(lines.iter().any(|line| String::from_utf8_lossy(line).contains(&"x".repeat(255))), "a long name in full");
}

/// The same, as JSON.
fn hostile_names_as_json(case: &Case) {
    let container = case.container();
    make_names(&container);
    let janusd = case.guard_with(&container, &guard(&[NAMES]), &["--event-format", "json"]);
    let Some((_, lines)) = lines_of_names(case, &container, janusd.running()) else {
        return;
    };
    for (index, line) in lines.iter().enumerate() {
        let event: serde_json::Value = serde_json::from_slice(line).expect("a JSON object");
        assert_eq!(event["response"], if index % 2 == 0 { "DENY" } else { "ALLOW" });
        assert!(event["path"].as_str().unwrap().contains("/names/"), "{event}");
    }
}

/// Opens, reads, listings and executions are counted as what they are, one each.
fn counted_exactly(case: &Case) {
    let container = case.container();
    let subjects = [
        "{allow: [/public], deny: [/secret], events: [open]}",
        "{deny: [/beside, /etc/passwd], events: [access]}",
        "{deny: [/bin/true], events: [execute]}",
    ];
    let janusd = case.guard(&container, &guard(&subjects));
    for _ in 0..3 {
        case.denied(container.open("/secret"));
    }
    for _ in 0..4 {
        case.denied(container.act(read("/etc/passwd")));
    }
    for _ in 0..5 {
        case.denied(container.act(list("/beside")));
    }
    for _ in 0..6 {
        case.denied(container.act(execute("/bin/true", [])));
    }
    for _ in 0..7 {
        case.allowed(container.open("/public"));
    }
    if let Some(janusd) = janusd.running() {
        let count = |event, response, expected| {
            let labels = [("namespace", "default"), ("guard", "g"), ("event", event), ("response", response)];
            janusd.counts(&labels, expected);
        };
        count("open", "deny", 3);
        // The files that were opened to be read, and the directories to be listed, were opened all the same.
        count("open", "allow", 7 + 4 + 5);
        count("access", "deny", 4 + 5);
        count("access", "allow", 0);
        count("execute", "deny", 6);
        count("execute", "allow", 0);
        assert_eq!(janusd.metrics().sum("janus_guard_fallbacks_total", &[]), 0);
        let answered = 7 + 4 + 5 + 3 + 4 + 5 + 6;
        assert_eq!(janusd.metrics().sum("janus_guard_response_seconds_count", &[("guard", "g")]), answered);
    }
}

/// Laying a guard over a tree, and surveying it again, is no event.
fn janusd_itself_is_not_counted(case: &Case) {
    let container = case.container();
    let manifest = guard(&["{deny: [/denied, '/**/key', /s/token, /vol], events: [all]}"]);
    let janusd = case.guard(&container, &manifest);
    janusd.update(&manifest);
    container.prepare([make_directories("/denied/a/b")]);
    if let Some(janusd) = janusd.running() {
        assert_eq!(janusd.events(&[]), 0, "events that nobody caused");
    }
    case.denied(container.open("/denied/file"));
    if let Some(janusd) = janusd.running() {
        janusd.counts(&[], 1);
    }
}

/// `/livez`, `/readyz` and `/metrics`, and what these always hold.
fn admin_routes(case: &Case) {
    let container = case.container();
    let janusd = case.guard(&container, &guard(&["{deny: [/secret], events: [open]}"]));
    let janusd = janusd.running().unwrap();
    for route in ["/livez", "/readyz"] {
        assert_eq!(janusd.get(route).0, 200, "{route}");
    }
    assert_eq!(janusd.get("/nothing").0, 404);
    case.denied(container.open("/secret"));
    janusd.counts(&[("response", "deny")], 1);
    let metrics = janusd.metrics();
    for name in ["janus_guards", "janus_marks", "janus_build_info", "janus_guard_response_seconds_count"] {
        assert!(metrics.has(name), "{name}");
    }
    assert_eq!(metrics.sum("janus_guards", &[]), 1);
    assert!(metrics.sum("janus_marks", &[("kind", "filesystem")]) >= 1, "an overlay root gets a filesystem mark");
}

/// The names that every Prometheus client gives a process's own figures, each against what procfs says from outside.
fn what_janusd_itself_takes(case: &Case) {
    let before = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let container = case.container();
    let janusd = case.guard(&container, &guard(&["{deny: [/secret], events: [open]}"]));
    let janusd = janusd.running().unwrap();
    let metrics = janusd.metrics();
    let told = |name| metrics.sum(name, &[]);
    let proc = PathBuf::from(format!("/proc/{}", janusd.pid()));
    let entries = |directory| fs::read_dir(proc.join(directory)).unwrap().count() as u64;
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<u64>().unwrap()
    };
    // Connections come and go, and the server's own.
    let close_to = |name, seen: u64, off: u64| {
        let told = told(name);
        assert!(told.abs_diff(seen) <= off, "{name}: {told}, and {seen} seen");
    };
    close_to("process_open_fds", entries("fd"), 4);
    close_to("process_threads", entries("task"), 4);
    close_to("process_resident_memory_bytes", 1024 * kilobytes("VmRSS"), 8 << 20);
    close_to("process_virtual_memory_bytes", 1024 * kilobytes("VmSize"), 256 << 20);
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    let most = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(told("process_max_fds").to_string(), most.split_whitespace().nth(3).unwrap());
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    // The kernel tells when it booted in whole seconds.
    let started = told("process_start_time_seconds");
    assert!((before - 2..=now + 2).contains(&started), "{started}, and not from {before} to {now}");
    assert!(metrics.has("process_cpu_seconds_total") && told("process_cpu_seconds_total") < 60);
    // A second scrape tells of the same start.
    assert_eq!(janusd.metrics().sum("process_start_time_seconds", &[]), started);
}

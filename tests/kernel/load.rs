//! Many openers at once.
//!
//! Guarantee shown: nobody waits for long, every answer is the right one, and the counters equal what the openers
//! counted themselves.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::case::{Case, Janus};
use crate::container::Agent;
use crate::daemon::Janusd;
use crate::manifest::{guard, guard_with, together};
use crate::watchdog::wait_until;

crate::kernel_tests![
    two_hundred_openers_of_a_container.lasting(90),
    two_hundred_openers_of_volumes.lasting(90),
    two_hundred_openers_of_a_directory.lasting(90),
    a_slow_reader_of_lines_stops_nobody,
    two_guards_under_load.lasting(60),
];

/// How long a load lasts: `JANUS_TEST_SECONDS` may shorten it.
pub(crate) fn duration(seconds: u64) -> Duration {
    let shorter = std::env::var("JANUS_TEST_SECONDS").ok().and_then(|value| value.parse().ok());
    Duration::from_secs(shorter.map_or(seconds, |shorter: u64| shorter.min(seconds)))
}

/// Which of the paths a load opens are denied.
struct Mixed {
    denied: Vec<PathBuf>,
    allowed: Vec<PathBuf>,
}

/// 200 threads on files of an overlay root: literal, below a directory, allowed by a rule of their own. All are
/// named by a rule: what no rule names the kernel may come to answer by itself.
fn two_hundred_openers_of_a_container(case: &Case) {
    let container = case.container();
    let subject = "{allow: [/denied/open, /public, /etc/passwd], deny: [/secret, /denied], events: [open]}";
    let janusd = case.guard(&container, &guard(&[subject]));
    let files = Mixed {
        denied: ["/secret", "/denied/file", "/denied/sub/deep/file"].map(PathBuf::from).to_vec(),
        allowed: ["/public", "/denied/open/file", "/etc/passwd"].map(PathBuf::from).to_vec(),
    };
    two_hundred_openers(case, &container, &janusd, &files);
}

/// The same on a tmpfs and a disk volume.
fn two_hundred_openers_of_volumes(case: &Case) {
    let container = case.container();
    let janusd = case.guard(&container, &guard(&["{deny: [/s/token, /vol/file], log: Denied, events: [open]}"]));
    let files = Mixed {
        denied: ["/s/token", "/vol/file"].map(PathBuf::from).to_vec(),
        // Under `log: Denied` the kernel may answer these by itself, uncounted: so only what is denied is opened.
        allowed: vec![],
    };
    two_hundred_openers(case, &container, &janusd, &files);
}

/// The same on a directory of the disk. What no mark reaches makes no event: only marked files are opened.
fn two_hundred_openers_of_a_directory(case: &Case) {
    let place = case.directory();
    let subject = "{allow: [/denied/open], deny: [/secret, /denied], events: [open]}";
    let janusd = case.guard(&place, &guard(&[subject]));
    let files = Mixed {
        denied: ["/secret", "/denied/file", "/denied/sub/deep/file"].map(|path| place.at(path)).to_vec(),
        allowed: vec![place.at("/denied/open/file")],
    };
    two_hundred_openers(case, &place, &janusd, &files);
}

fn two_hundred_openers(case: &Case, agent: &Agent, janusd: &Janusd, files: &Mixed) {
    let before = janusd
        .running()
        .map(|janusd| (janusd.events(&[("response", "allow")]), janusd.events(&[("response", "deny")])));
    let paths: Vec<PathBuf> = files.denied.iter().chain(&files.allowed).cloned().collect();
    let lasting = match case.janus {
        Janus::Guards => duration(10),
        Janus::Absent => Duration::from_millis(200),
    };
    let load = agent.start_openers(200, &paths);
    wait_until(lasting, || false);
    let opened = load.stop();

    for (path, answers) in paths.iter().zip(&opened.paths) {
        assert_eq!(answers.failed, 0, "{path:?}: {answers:?}");
        assert!(answers.allowed + answers.denied > 0, "{path:?} was never opened");
        match files.denied.contains(path) {
            true => case.holds(answers.allowed == 0, &format!("{path:?} is always denied: {answers:?}")),
            false => assert_eq!(answers.denied, 0, "{path:?}: {answers:?}"),
        }
    }
    let (Some(janusd), Some((allowed, denied))) = (janusd.running(), before) else {
        return;
    };
    assert!(opened.slowest < Duration::from_secs(1), "an open took {:?}", opened.slowest);
    let total = opened.total();
    janusd.counts(&[("guard", "g"), ("event", "open"), ("response", "allow")], allowed + total.allowed);
    janusd.counts(&[("guard", "g"), ("event", "open"), ("response", "deny")], denied + total.denied);
    // The barrier: were anything counted late, it would be by the time that a later event is.
    case.denied(agent.open(&files.denied[0]));
    janusd.counts(&[("response", "deny")], denied + total.denied + 1);
    janusd.counts(&[("response", "allow")], allowed + total.allowed);
    let metrics = janusd.metrics();
    assert_eq!(metrics.sum("janus_guard_fallbacks_total", &[]), 0, "answers that were not judged");
    let lines = u64::try_from(janusd.lines().len()).unwrap();
    let dropped = metrics.sum("janus_guard_log_dropped_total", &[("guard", "g")]);
    assert!(lines + dropped <= metrics.sum("janus_guard_events_total", &[]), "{lines} lines and {dropped} dropped");
}

/// The reader of janusd's stdout may itself wait for an answer, or stand still: answers go on.
fn a_slow_reader_of_lines_stops_nobody(case: &Case) {
    let container = case.container();
    let subject = "{allow: [/public], deny: [/secret], events: [open]}";
    let mut janusd = case.guard(&container, &guard(&[subject]));
    if let Some(janusd) = janusd.running() {
        janusd.stop_reading_lines();
    }
    // Lines of 60 bytes and more: many times what a pipe holds.
    let load = container.start_openers(16, &["/secret", "/public"]);
    let progress = wait_until(Duration::from_secs(10), || load.opened() > 20_000);
    let opened = load.stop();
    assert!(progress, "only {opened:?}");
    assert!(opened.slowest < Duration::from_secs(1), "an open took {:?}", opened.slowest);
    case.holds(opened.paths[0].allowed == 0, "the file is denied");
    if let Some(janusd) = janusd.running() {
        janusd.counts(&[("response", "deny")], opened.total().denied);
        janusd.counts(&[("response", "allow")], opened.total().allowed);
        let dropped = janusd.metrics().sum("janus_guard_log_dropped_total", &[("guard", "g")]);
        assert!(dropped > 0, "20,000 lines in a pipe that nobody reads, and none was dropped");
    }
    // Nor does it wait for its reader at the end.
    janusd.end([Signal::TERM]);
}

/// Each guard counts its own answers; a deny of one may keep an event from the other.
fn two_guards_under_load(case: &Case) {
    let container = case.container();
    let manifest = together(&[
        guard_with("one", &[], &["{deny: [/secret], allow: [/public], events: [open]}"]),
        guard_with("two", &[], &["{deny: [/denied], allow: [/public], events: [open]}"]),
    ]);
    let janusd = case.guard(&container, &manifest);
    let load = container.start_openers(50, &["/secret", "/denied/file", "/public"]);
    wait_until(duration(2), || false);
    let opened = load.stop();
    let [secret, denied, public] = opened.paths[..] else { panic!("{opened:?}") };
    case.holds(secret.allowed == 0 && denied.allowed == 0, "both guards deny");
    assert_eq!(public.denied, 0);
    if let Some(janusd) = janusd.running() {
        janusd.counts(&[("guard", "one"), ("response", "deny")], secret.denied);
        janusd.counts(&[("guard", "two"), ("response", "deny")], denied.denied);
        for guard in ["one", "two"] {
            let allowed = janusd.events(&[("guard", guard), ("response", "allow")]);
            assert!(allowed >= public.allowed, "{guard} counted {allowed} of {}", public.allowed);
        }
    }
}

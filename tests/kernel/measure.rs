//! Figures, as ratios to a floor of the same run: `cargo test --release -p janusd --test kernel -- --bench`.
//!
//! Not tests: nothing here fails for being slow.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Measurement, Trial};

use crate::case::{Case, Janus};
use crate::container::Agent;
use crate::crowd::{self, Kind};
use crate::floor;
use crate::manifest;
use crate::serve;
use crate::watchdog::{Watchdog, wait_until};

/// A figure, and how it is come by.
type Measure = (&'static str, fn(&Case));

pub(crate) const MEASURES: &[Measure] = &[
    ("opens", opens),
    ("table", floor::table),
    ("floor_one_opener", |case| floor::part(case, floor::one_opener)),
    ("floor_many_openers", |case| floor::part(case, floor::many_openers)),
    ("floor_unasked", |case| floor::part(case, floor::unasked)),
    ("floor_execs", |case| floor::part(case, floor::execs)),
    ("floor_peer", |case| floor::part(case, floor::peer)),
    ("floor_short", floor::short),
    ("a_large_tree", a_large_tree),
    ("guards_500", |case| guards(case, 500)),
    ("ten_million_events", ten_million_events),
    ("guards_1000", |case| guards(case, 1000)),
    ("crowd_served", serve::crowd::served),
    ("five_hundred_pods", crate::found::five_hundred_pods),
    ("a_container_starts", crate::found::a_container_starts),
    ("never_a_hang", serve::hangs::never_a_hang),
];

/// Of any of them: ten million events take minutes, and many of them where others want the CPUs.
const LONGEST: Duration = Duration::from_secs(3600);

pub(crate) fn trial((name, measure): &Measure) -> Trial {
    let measure = *measure;
    Trial::bench(format!("measure::{name}"), move |test_mode| {
        if test_mode {
            return Ok(None);
        }
        let watchdog = Watchdog::start(LONGEST);
        let case = Case::new(Janus::Guards, watchdog.watch());
        let started = Instant::now();
        measure(&case);
        drop(case);
        if watchdog.stop() {
            return Err(Failed::from(format!("took more than {LONGEST:?}")));
        }
        // What counts is printed; the harness wants a figure too.
        Ok(Some(Measurement { avg: started.elapsed().as_nanos() as u64, variance: 0 }))
    })
}

/// Microseconds that one open takes, the median of several rounds of one spinning opener.
fn open_takes(agent: &Agent, path: &str) -> f64 {
    let mut rounds: Vec<f64> = (0..7)
        .map(|_| {
            let load = agent.start_openers(1, &[path]);
            let (from, before) = (Instant::now(), load.opened());
            wait_until(Duration::from_millis(300), || false);
            let opened = load.opened() - before;
            let took = from.elapsed().as_secs_f64() * 1e6 / opened as f64;
            load.stop();
            took
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

/// What an open costs under a guard on a container, by what the rules say of the file.
fn opens(case: &Case) {
    let container = case.container();
    let floor = open_takes(&container, "/public");
    println!("\n  {:<58} {:>8} {:>8}", "one opener, an overlay root, medians of 7", "µs", "ratio");
    let row = |what: &str, took: f64| println!("  {what:<58} {took:>8.2} {:>8.2}", took / floor);
    row("no guard", floor);
    let settled = Instant::now();
    let _janusd = case.guard(
        &container,
        &manifest::guard(&["{deny: [/denied, /secret], allow: [/open], events: [open], log: Denied}"]),
    );
    row("a sibling of a guarded file (never left to the kernel)", open_takes(&container, "/public"));
    // Until then a file is too fresh for the kernel to be told to answer by itself.
    wait_until(Duration::from_millis(2500).saturating_sub(settled.elapsed()), || false);
    row("a file that no rule names, repeated", open_takes(&container, "/bin/true"));
    row("a denied file", open_takes(&container, "/denied/file"));
}

/// What a tree takes, each entry of it.
pub(crate) struct Tree {
    /// To arm.
    pub(crate) microseconds: f64,
    /// In janusd.
    pub(crate) bytes: f64,
}

fn a_large_tree(case: &Case) {
    tree(case);
}

/// A tree of 100,000 files under one deny.
pub(crate) fn tree(case: &Case) -> Tree {
    const FILES: usize = 100_000;
    let place = case.directory();
    let directories = 100;
    for directory in 0..directories {
        let directory = place.at("/denied").join(format!("d{directory:03}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..FILES / directories {
            fs::write(directory.join(format!("file-{file:05}.json")), "").unwrap();
        }
    }
    let started = Instant::now();
    let empty = case.guard(&place, &manifest::guard(&["{deny: [/secret], events: [open], log: None}"]));
    let floor = started.elapsed();
    drop(empty);
    let slab_before = slab();
    let started = Instant::now();
    let janusd = case.guard(&place, &manifest::guard(&["{deny: [/denied], events: [open], log: None}"]));
    let armed = started.elapsed() - floor;
    let janusd = janusd.running().expect("a bench has no control");
    let metrics = janusd.metrics();
    let known = metrics.sum("janus_guard_identities", &[]);
    let bytes = metrics.sum("janus_guard_identity_bytes", &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", janusd.pid())).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().trim().to_owned();
    println!("\n  {FILES} files in {directories} directories under one deny, --root on the disk");
    println!(
        "  armed in {:.0} ms, {:.2} µs a file",
        armed.as_secs_f64() * 1e3,
        armed.as_secs_f64() * 1e6 / FILES as f64
    );
    println!("  {known} identities, {:.0} bytes each; janusd's RSS {rss}", bytes as f64 / known as f64);
    println!(
        "  kernel slab grew by {} kB (marks, and inodes and names that the walk read)",
        slab().saturating_sub(slab_before)
    );
    let file: PathBuf = place.at("/denied/d000/file-00000.json");
    println!("  an open in it: {:.1} µs", open_takes(&case.host(), file.to_str().unwrap()));
    Tree { microseconds: armed.as_secs_f64() * 1e6 / FILES as f64, bytes: bytes as f64 / known as f64 }
}

/// Raised by janusd, and put back here: this machine is not ours.
const GROUPS: &str = "/proc/sys/fs/fanotify/max_user_groups";

/// So many guards in one process, each on a small root of its own.
fn guards(case: &Case, count: usize) {
    println!("\n  {count} guards, armed from a few threads; RSS, threads, fds: with them, less without");
    println!(
        "  {:<12} {:>8} {:>8} {:>7} {:>9} {:>8} {:>7} {:>8} {:>7}",
        "roots", "armed s", "CPU s", "marks", "RSS MiB", "threads", "fds", "idle %", "stop s"
    );
    for kind in [Kind::Directories, Kind::Tmpfs, Kind::Containers] {
        let seen = so_many_guards(case, kind, count);
        let (before, after) = (&seen.before, &seen.after);
        println!(
            "  {:<12} {:>8.2} {:>8.2} {:>7} {:>9.1} {:>8} {:>7} {:>8.3} {:>7.2}   RSS in all {:.1} MiB",
            kind.word(),
            seen.armed_seconds,
            seen.arming_cpu,
            seen.marks,
            (after.rss_kb - before.rss_kb) as f64 / 1024.0,
            after.threads - before.threads,
            after.descriptors - before.descriptors,
            100.0 * seen.idle_cpu / seen.idle_seconds,
            seen.stopped_seconds,
            after.rss_kb as f64 / 1024.0,
        );
    }
}

/// So many guards on roots of one kind.
pub(crate) fn so_many_guards(case: &Case, kind: Kind, count: usize) -> crowd::Seen {
    let before = fs::read_to_string(GROUPS).unwrap();
    let scratch = case.scratch(kind.word());
    fs::create_dir(&scratch).unwrap();
    let seen = crowd::run(&case.watch, &scratch, kind, count, Duration::from_secs(10));
    fs::write(GROUPS, before).unwrap();
    assert_eq!(seen.guards, count, "{:?}", seen.refused.first());
    seen
}

/// The kernel's slab memory, kB.
fn slab() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Slab:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}

/// Twenty guards, ten million opens, each counted by its opener and by janusd.
fn ten_million_events(case: &Case) {
    const GUARDS: usize = 20;
    const EVENTS: u64 = 10_000_000;
    let place = case.directory();
    let mut paths = Vec::new();
    let mut manifests = Vec::new();
    for guard in 0..GUARDS {
        fs::create_dir_all(place.at(&format!("/g{guard}/open"))).unwrap();
        for path in [format!("/g{guard}/file"), format!("/g{guard}/open/file")] {
            fs::write(place.at(&path), "x").unwrap();
            paths.push(place.at(&path));
        }
        let subject = format!("{{deny: [/g{guard}], allow: [/g{guard}/open], events: [open], log: None}}");
        manifests.push(manifest::guard_with(&format!("g{guard}"), &[], &[&subject]));
    }
    let janusd = case.guard(&place, &manifest::together(&manifests));
    let started = Instant::now();
    let load = place.start_openers(200, &paths);
    let enough = wait_until(LONGEST - Duration::from_secs(20), || load.opened() >= EVENTS);
    let opened = load.stop();
    let took = started.elapsed().as_secs_f64();
    let running = janusd.running().unwrap();
    let mut against_the_rules = 0;
    for (guard, answers) in opened.paths.chunks(2).enumerate() {
        let name = format!("g{guard}");
        let (denied, allowed) = (answers[0].denied + answers[1].denied, answers[0].allowed + answers[1].allowed);
        running.counts(&[("guard", &name), ("event", "open"), ("response", "deny")], denied);
        running.counts(&[("guard", &name), ("event", "open"), ("response", "allow")], allowed);
        against_the_rules += answers[0].allowed + answers[1].denied;
    }
    let total = opened.total();
    let fallbacks = running.metrics().sum("janus_guard_fallbacks_total", &[]);
    println!(
        "{} events over {GUARDS} guards in {took:.0} s: counters equal; {fallbacks} fallbacks, slowest open {:?}",
        total.allowed + total.denied,
        opened.slowest
    );
    // Who has not the time to judge answers by failurePolicy, and counts that as well.
    assert!(against_the_rules <= fallbacks, "{against_the_rules} answers are against the rules");
    assert!(enough, "no {EVENTS} events in that time");
}

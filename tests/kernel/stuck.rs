//! A guard's thread that hangs: in a judge, by a debugger, inside of the kernel.
//!
//! Guarantee shown: every opener gets the guard's failurePolicy soon after the deadline of half a second, each answer is
//! counted once, and the guard denies again by its rules, by itself.

use std::fs;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use janusd::fanotify::look::Stat;
use janusd::guard::judge::{Judge, Mount, Seen, Verdict};
use janusd::guard::known::KnownFiles;
use janusd::guard::view::Names;
use janusd::guard::watchdog::Watchdog;
use janusd::guard::{ProblemReason, Roots, Shared, SiteId};
use janusd::policy::{Decision, Failure};
use janusd::root::Root;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::case::Case;
use crate::container::{Agent, Directory};
use crate::daemon::{Janusd, Running};
use crate::fuse::Fuse;
use crate::in_process::InProcess;
use crate::protocol::Tally;
use crate::raw::Stopped;
use crate::watchdog::{kernel_pid, wait_until};
use crate::{kernel_tests, manifest};

kernel_tests! {
    a_judge_that_hangs_and_one_opener.without_control(),
    a_judge_that_hangs_and_one_opener_denied,
    a_judge_that_hangs_and_fifty_openers.without_control(),
    a_judge_that_hangs_and_fifty_openers_denied,
    a_judge_that_hangs_in_audit.without_control(),
    nobody_answers_without_a_watchdog.without_control(),
    a_judge_that_never_returns.without_control(),
    at_any_moment_after_another_event.lasting(60).without_control(),
    one_stuck_guard_delays_no_other.without_control(),
    a_guard_ends_while_its_judge_hangs.without_control(),
    stopped_by_a_debugger_and_one_opener.without_control(),
    stopped_by_a_debugger_and_fifty_openers_denied,
    stopped_anywhere_under_load.lasting(60).without_control(),
    inside_of_a_read.lasting(60).without_control(),
    inside_of_a_read_denied.lasting(60).without_control(),
    asleep_while_nothing_happens.without_control(),
}

const SUBJECT: &str = "{deny: [/secret, /denied], events: [open], log: None}";
/// Half a second, and what a busy machine takes to wake somebody up.
const SOON: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

fn manifest_with(policy: &str) -> String {
    manifest::guard_with("g", &[&format!("failurePolicy: {policy}")], &[SUBJECT])
}

/// Shut by the test; who comes to it waits until it is opened.
#[derive(Debug, Default)]
struct Gate {
    shut: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
    /// Lets the second one through.
    once: AtomicBool,
}

impl Gate {
    fn set(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let shut = self.shut.lock().unwrap();
        if self.waiting.fetch_add(1, Ordering::SeqCst) > 0 && self.once.load(Ordering::SeqCst) {
            return;
        }
        drop(self.changed.wait_while(shut, |shut| *shut).unwrap());
        self.waiting.store(0, Ordering::SeqCst);
    }
}

/// Judges as the guard does, but waits at the gate for files named `trigger`.
#[derive(Debug)]
struct Hangs(Arc<dyn Judge>, Arc<Gate>);

impl Judge for Hangs {
    fn judge(&self, seen: &Seen<'_>, mount: Mount<'_>, known: &KnownFiles, names: &mut Names) -> Verdict {
        if seen.path.is_some_and(|path| path.ends_with(b"/trigger")) {
            self.1.pass();
        }
        self.0.judge(seen, mount, known, names)
    }

    fn indifferent(&self, stat: &Stat, path: &[u8], names: &mut Names) -> bool {
        self.0.indifferent(stat, path, names)
    }

    fn denies(&self, site: SiteId, name: &[u8], directory: bool) -> bool {
        self.0.denies(site, name, directory)
    }

    fn failed(&self, failure: Failure) -> Decision {
        self.0.failed(failure)
    }
}

/// A guard on a directory whose judge hangs while the gate is shut.
fn hanging(
    case: &Case,
    place: &Directory,
    manifest: &str,
    adjust: impl Fn(&mut Shared),
) -> (Option<InProcess>, Arc<Gate>) {
    fs::write(place.at("/trigger"), "").unwrap();
    let gate = Arc::new(Gate::default());
    gate.set(true);
    let root = || Roots::One(Root::of_directory(&place.at("/")).unwrap());
    let wrapped = gate.clone();
    let janusd = InProcess::start(case, root, manifest, |shared| {
        shared.wrap.0 = Some(Arc::new(move |judge| Arc::new(Hangs(judge, wrapped.clone()))));
        adjust(shared);
    });
    (janusd, gate)
}

fn fallbacks(janusd: &InProcess, reason: &str) -> u64 {
    janusd.sample(&format!(r#"janus_guard_fallbacks_total{{namespace="default",guard="g",reason="{reason}"}}"#))
}

fn answered(janusd: &InProcess) -> [u64; 3] {
    ["allow", "deny", "audit"].map(|response| {
        let labels = format!(r#"{{namespace="default",guard="g",event="open",response="{response}"}}"#);
        janusd.sample(&format!("janus_guard_events_total{labels}"))
    })
}

/// The threads of a process that are called so.
pub(crate) fn threads(process: &str, named: &str) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let names =
        |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == named);
    tasks.filter(names).map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// What the openers saw, for the report of a run.
fn tell(what: &str, opened: &Tally) {
    println!("  {what}: {:?}, the slowest open took {:?}", opened.total(), opened.slowest);
}

/// One opener that makes the worker hang, and others that find it so.
fn a_judge_that_hangs(case: &Case, openers: usize, policy: &str) {
    let place = case.directory();
    let (janusd, gate) = hanging(case, &place, &manifest_with(policy), |_| {});
    let denied_before = janusd.as_ref().map(|_| case.denied(place.open(place.at("/secret"))));
    let first = case.host();
    let trigger = first.start_openers_once(1, &[place.at("/trigger")]);
    if janusd.is_some() {
        assert!(wait_until(PATIENCE, || gate.waiting.load(Ordering::SeqCst) > 0), "the worker does not hang");
    }
    let others = case.host();
    let paths = ["/secret", "/public"].map(|path| place.at(path));
    let mut opened = others.start_openers_once(openers - 1, &paths).join();
    let triggered = trigger.join();
    tell("others", &opened);
    tell("the one that made it hang", &triggered);
    opened.slowest = opened.slowest.max(triggered.slowest);
    opened.paths.extend(triggered.paths);
    let total = opened.total();
    let openers = openers as u64;
    assert!(opened.slowest < SOON, "an open took {:?}", opened.slowest);
    match policy {
        "Deny" => case.holds(total.denied == openers, &format!("all are denied: {total:?}")),
        _ => assert_eq!(total.allowed, openers, "{total:?}"),
    }
    let Some(janusd) = janusd else { return };
    let failed = || fallbacks(&janusd, "deadline") + fallbacks(&janusd, "worker-stuck");
    assert!(wait_until(PATIENCE, || failed() == openers), "{} of {openers} are counted", failed());
    assert!(fallbacks(&janusd, "deadline") >= 1);
    let expected = [total.allowed, total.denied + u64::from(denied_before.is_some()), 0];
    assert_eq!(answered(&janusd), expected);
    let stuck = || janusd.guard().report().problems.iter().any(|it| it.reason == ProblemReason::WorkerStuck);
    assert!(wait_until(PATIENCE, stuck), "the report does not say so");

    gate.set(false);
    assert!(wait_until(PATIENCE, || !stuck()), "the report does not say that it is over");
    case.denied(place.open(place.at("/secret")));
    case.allowed(place.open(place.at("/public")));
    assert_eq!(failed(), openers);
    let expected = [expected[0] + 1, expected[1] + 1, 0];
    assert!(wait_until(PATIENCE, || answered(&janusd) == expected), "{:?}, not {expected:?}", answered(&janusd));
    let abandoned = r#"janus_guard_workers_abandoned_total{namespace="default",guard="g"}"#;
    assert_eq!(janusd.sample(abandoned), 0);
    assert!(wait_until(PATIENCE, || threads("self", "janus-rescue").is_empty()), "a rescuer stays");
}

fn a_judge_that_hangs_and_one_opener(case: &Case) {
    a_judge_that_hangs(case, 1, "Allow");
}

fn a_judge_that_hangs_and_one_opener_denied(case: &Case) {
    a_judge_that_hangs(case, 1, "Deny");
}

fn a_judge_that_hangs_and_fifty_openers(case: &Case) {
    a_judge_that_hangs(case, 50, "Allow");
}

fn a_judge_that_hangs_and_fifty_openers_denied(case: &Case) {
    a_judge_that_hangs(case, 50, "Deny");
}

/// What Enforce would have denied is counted as such.
fn a_judge_that_hangs_in_audit(case: &Case) {
    let place = case.directory();
    let manifest = manifest::guard_with("g", &["failurePolicy: Deny", "enforcement: Audit"], &[SUBJECT]);
    let (janusd, gate) = hanging(case, &place, &manifest, |_| {});
    let janusd = janusd.unwrap();
    case.allowed(place.open(place.at("/trigger")));
    assert!(wait_until(PATIENCE, || answered(&janusd) == [0, 0, 1]), "{:?}", answered(&janusd));
    gate.set(false);
}

/// The control: with a deadline of an hour the openers wait for as long as the worker hangs.
fn nobody_answers_without_a_watchdog(case: &Case) {
    let place = case.directory();
    let (janusd, gate) = hanging(case, &place, &manifest_with("Allow"), |shared| {
        let (watchdog, _thread) = Watchdog::start(Duration::from_secs(3600)).unwrap();
        shared.watchdog = watchdog;
    });
    let (first, other) = (case.host(), case.host());
    let trigger = first.start_openers_once(1, &[place.at("/trigger")]);
    assert!(wait_until(PATIENCE, || gate.waiting.load(Ordering::SeqCst) > 0), "the worker does not hang");
    let load = other.start_openers_once(1, &[place.at("/public")]);
    let answered = wait_until(SOON, || trigger.opened() + load.opened() > 0);
    gate.set(false);
    assert!(!answered, "somebody answered");
    assert_eq!(load.join().total().allowed + trigger.join().total().allowed, 2);
    assert_eq!(fallbacks(&janusd.unwrap(), "deadline"), 0);
}

/// It is replaced: by its rules the guard denies again while the old worker still hangs.
fn a_judge_that_never_returns(case: &Case) {
    let place = case.directory();
    let deadline = Duration::from_millis(100);
    let (janusd, gate) = hanging(case, &place, &manifest_with("Allow"), |shared| {
        let (watchdog, _thread) = Watchdog::start(deadline).unwrap();
        shared.watchdog = watchdog;
    });
    let janusd = janusd.unwrap();
    gate.once.store(true, Ordering::SeqCst);
    let abandoned = || janusd.sample(r#"janus_guard_workers_abandoned_total{namespace="default",guard="g"}"#);
    case.allowed(place.open(place.at("/trigger")));
    let (asked, mut allowed) = (Instant::now(), 1);
    let replaced = wait_until(PATIENCE, || {
        let outcome = place.open(place.at("/secret"));
        allowed += u64::from(outcome.is_ok());
        outcome.is_err()
    });
    assert!(replaced, "the guard does not come back");
    println!("  denied by rule again {:?} after the hang was met", asked.elapsed());
    assert_eq!(abandoned(), 1);
    let failed = || fallbacks(&janusd, "deadline") + fallbacks(&janusd, "worker-stuck");
    let tries = settle(&place, failed);
    let failed = failed();
    // While both have marks, the lost one and the new, an open is asked about twice.
    assert!((allowed..=allowed + tries).contains(&failed), "{allowed} were allowed, {failed} counted");
    for _ in 0..20 {
        case.denied(place.open(place.at("/secret")));
        case.denied(place.open(place.at("/denied/sub/deep/file")));
        case.allowed(place.open(place.at("/public")));
    }
    assert_eq!(fallbacks(&janusd, "deadline") + fallbacks(&janusd, "worker-stuck"), failed);
    assert_eq!(threads("self", "jg-g").len(), 2, "one of them is left behind");
    // An update goes to the new one.
    let manifest = manifest::guard(&["{deny: [/public], events: [open], log: None}"]);
    let spec = janusd::manifest::parse("test", manifest.as_bytes()).unwrap().remove(0);
    janusd.guard().update(Arc::new(spec)).unwrap();
    case.denied(place.open(place.at("/public")));
    case.allowed(place.open(place.at("/secret")));
    gate.set(false);
    assert!(wait_until(PATIENCE, || threads("self", "jg-g").len() == 1), "it is not joined");
    assert!(wait_until(PATIENCE, || groups("self").len() == 2), "old groups are kept: {:?}", groups("self"));
    case.denied(place.open(place.at("/public")));
    assert_eq!(abandoned(), 1);
}

/// Waits until the marks of a lost worker have gone: until then opens are counted for it as well. Says how many it made.
fn settle(place: &Directory, failed: impl Fn() -> u64) -> u64 {
    let mut tries = 1;
    let gone = || {
        let before = failed();
        for _ in 0..5 {
            tries += 1;
            // Until then it is answered by failurePolicy too.
            let _either = place.open(place.at("/public"));
        }
        !wait_until(Duration::from_millis(30), || failed() != before)
    };
    assert!(wait_until(PATIENCE, gone), "the marks of the lost worker stay");
    tries
}

/// The watchdog goes to sleep about a guard a little after its last event. One that comes just then is not forgotten.
fn at_any_moment_after_another_event(case: &Case) {
    let place = case.directory();
    let deadline = Duration::from_millis(20);
    let (janusd, gate) = hanging(case, &place, &manifest_with("Allow"), |shared| {
        let (watchdog, _thread) = Watchdog::start(deadline).unwrap();
        shared.watchdog = watchdog;
    });
    let mut slowest = Duration::ZERO;
    for turn in 0..200 {
        // By rule, or by the deadline on a busy machine.
        let _either = place.open(place.at("/secret"));
        let (from, pause) = (Instant::now(), Duration::from_micros(1_000 + turn * 15));
        while from.elapsed() < pause {
            std::hint::spin_loop();
        }
        let asked = Instant::now();
        case.allowed(place.open(place.at("/trigger")));
        slowest = slowest.max(asked.elapsed());
        gate.set(false);
        assert!(wait_until(PATIENCE, || gate.waiting.load(Ordering::SeqCst) == 0), "the worker does not go on");
        gate.set(true);
    }
    println!("  the slowest of 200 opens took {slowest:?} at a deadline of {deadline:?}");
    assert!(slowest < SOON, "an open took {slowest:?}");
    gate.set(false);
    drop(janusd);
}

/// Two guards hang at the same time; a third does not.
fn one_stuck_guard_delays_no_other(case: &Case) {
    let places = ["a", "b", "c"].map(|name| Directory::start(&case.watch, case.scratch(name)));
    let hung: Vec<_> = places[..2].iter().map(|place| hanging(case, place, &manifest_with("Allow"), |_| {})).collect();
    let (well, _gate) = hanging(case, &places[2], &manifest_with("Allow"), |_| {});
    let agents = [case.host(), case.host()];
    let started = Instant::now();
    let loads: Vec<_> = agents
        .iter()
        .zip(&places)
        .map(|(agent, place)| agent.start_openers_once(10, &["/trigger", "/secret"].map(|path| place.at(path))))
        .collect();
    while started.elapsed() < Duration::from_millis(400) {
        case.denied(places[2].open(places[2].at("/secret")));
    }
    for load in loads {
        let opened = load.join();
        tell("openers of a stuck guard", &opened);
        assert_eq!(opened.total().allowed + opened.total().denied, 10);
        assert!(opened.slowest < SOON, "an open took {:?}", opened.slowest);
    }
    hung.iter().for_each(|(_, gate)| gate.set(false));
    assert_eq!(fallbacks(&well.unwrap(), "deadline"), 0);
}

/// Who ends a guard does not wait for its judge, and afterwards nobody is asked.
fn a_guard_ends_while_its_judge_hangs(case: &Case) {
    let place = case.directory();
    let (janusd, gate) = hanging(case, &place, &manifest_with("Deny"), |_| {});
    case.denied(place.open(place.at("/trigger")));
    let asked = Instant::now();
    drop(janusd);
    assert!(asked.elapsed() < Duration::from_secs(3), "took {:?} to end", asked.elapsed());
    case.allowed(place.open(place.at("/secret")));
    gate.set(false);
    assert!(wait_until(PATIENCE, || threads("self", "jg-g").is_empty()), "it does not end");
    assert!(wait_until(PATIENCE, || groups("self").is_empty()), "groups are kept: {:?}", groups("self"));
}

/// The descriptors of fanotify groups that a process holds.
pub(crate) fn groups(process: &str) -> Vec<i32> {
    let all = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    let groups = all.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:[fanotify]"));
    groups.map(|fd| fd.file_name().to_str().unwrap().parse().unwrap()).collect()
}

fn worker(janusd: &Running) -> u32 {
    let workers = threads(&janusd.pid().to_string(), "jg-g");
    assert_eq!(workers.len(), 1, "{workers:?}");
    workers[0]
}

fn failed(janusd: &Running) -> u64 {
    let metrics = janusd.metrics();
    ["deadline", "worker-stuck"]
        .map(|reason| metrics.sum("janus_guard_fallbacks_total", &[("reason", reason)]))
        .iter()
        .sum()
}

/// The worker of a real janusd is stopped where it waits for events.
fn stopped_by_a_debugger(case: &Case, openers: usize, policy: &str) {
    let place = case.directory();
    let janusd = case.guard(&place, &manifest_with(policy));
    case.denied(place.open(place.at("/secret")));
    let agent = case.host();
    let stopped = janusd.running().map(|janusd| Stopped::stop(worker(janusd)).unwrap());
    let opened = agent.start_openers_once(openers, &["/secret", "/public"].map(|path| place.at(path))).join();
    tell("openers", &opened);
    let (total, openers) = (opened.total(), openers as u64);
    assert!(opened.slowest < SOON, "an open took {:?}", opened.slowest);
    match policy {
        "Deny" => case.holds(total.denied == openers, &format!("all are denied: {total:?}")),
        _ => assert_eq!(total.allowed, openers, "{total:?}"),
    }
    let Some(janusd) = janusd.running() else { return };
    assert!(wait_until(PATIENCE, || failed(janusd) == openers), "{} of {openers} are counted", failed(janusd));
    janusd.counts(&[("response", "allow")], total.allowed);
    janusd.counts(&[("response", "deny")], total.denied + 1);
    drop(stopped);
    case.becomes_denied(PATIENCE, || place.open(place.at("/secret")));
    case.allowed(place.open(place.at("/public")));
}

fn stopped_by_a_debugger_and_one_opener(case: &Case) {
    stopped_by_a_debugger(case, 1, "Allow");
}

fn stopped_by_a_debugger_and_fifty_openers_denied(case: &Case) {
    stopped_by_a_debugger(case, 50, "Deny");
}

/// Wherever it is stopped, nobody is answered twice, forgotten, or given another's answer. Two of the stops are long enough
/// for it to be given up if it was inside of a read.
fn stopped_anywhere_under_load(case: &Case) {
    let place = case.directory();
    let janusd = case.guard(&place, &manifest_with("Deny"));
    let running = janusd.running().unwrap();
    let (one, other) = (case.host(), case.host());
    let paths = ["/secret", "/denied/file", "/public"].map(|path| place.at(path));
    let loads = [&one, &other].map(|agent| agent.start_openers(8, &paths));
    for turn in 0..12 {
        let all = threads(&running.pid().to_string(), "jg-g");
        // The newest: others were left behind.
        let Some(worker) = all.iter().max() else { continue };
        let stopped = Stopped::stop(*worker);
        wait_until(Duration::from_millis(if turn % 6 == 5 { 1600 } else { 650 }), || false);
        drop(stopped);
        wait_until(Duration::from_millis(100 + turn * 7), || false);
    }
    let opened = loads.map(crate::container::Load::stop);
    let (mut allowed, mut denied) = (0, 0);
    for opened in &opened {
        tell("openers", opened);
        assert_eq!(opened.total().failed, 0, "{opened:?}");
        assert_eq!(opened.paths[0].allowed + opened.paths[1].allowed, 0, "a denied file was opened: {opened:?}");
        assert!(opened.slowest < SOON, "an open took {:?}", opened.slowest);
        allowed += opened.total().allowed;
        denied += opened.total().denied;
    }
    let metrics = running.metrics();
    println!(
        "  {} by failurePolicy, {} workers replaced",
        failed(running),
        metrics.sum("janus_guard_workers_abandoned_total", &[])
    );
    assert!(failed(running) >= 12, "it was hardly ever stuck: {}", failed(running));
    running.counts(&[("response", "allow")], allowed);
    running.counts(&[("response", "deny")], denied);
    case.becomes_denied(PATIENCE, || place.open(place.at("/secret")));
    case.allowed(place.open(place.at("/public")));
}

/// The worker reads an event of a file whose open does not return. Janus marks no such file, so the test does, on janusd's
/// own group.
fn hangs_inside_of_a_read(case: &Case, policy: &str) {
    let place = case.directory();
    let janusd = case.guard(&place, &manifest_with(policy));
    let running = janusd.running().unwrap();
    case.denied(place.open(place.at("/secret")));
    let (hung, agent) = (case.host(), case.host());
    // Gone first, whatever happens: who waits for its server cannot even be killed.
    let fuse = Fuse::mount(&case.scratch("hangs"));
    mark(running, &fuse);
    let held = groups(&running.pid().to_string()).len();
    // One for the worker, and two more for whoever reads on.
    let hanging = hung.start_openers_once(3, &[&fuse.path]);
    assert!(wait_until(PATIENCE, || fuse.opens() > 0), "nobody reads it");
    let met = Instant::now();
    let paths = ["/secret", "/public"].map(|path| place.at(path));
    let opened = agent.start_openers_once(20, &paths).join();
    tell("openers", &opened);
    assert!(opened.slowest < SOON, "an open took {:?}", opened.slowest);
    let total = opened.total();
    match policy {
        "Deny" => assert_eq!(total.denied, 20, "{total:?}"),
        _ => assert_eq!(total.allowed, 20, "{total:?}"),
    }
    assert!(wait_until(PATIENCE, || failed(running) == 20), "{} are counted", failed(running));
    // By rule, now: one is denied and the other allowed.
    let mut tries = 0;
    let back = || {
        tries += 2;
        place.open(place.at("/secret")).is_err() & place.open(place.at("/public")).is_ok()
    };
    assert!(wait_until(PATIENCE, back), "the guard does not come back");
    println!("  back {:?} after the read began; {} of 3 hung", met.elapsed(), fuse.opens());
    let abandoned = || running.metrics().sum("janus_guard_workers_abandoned_total", &[]);
    assert_eq!(abandoned(), 1);
    running.says(&["worker", "stuck"]);
    tries += settle(&place, || failed(running));
    let counted = || ["allow", "deny"].map(|response| running.events(&[("response", response)]));
    let before = (failed(running), counted());
    for _ in 0..20 {
        case.denied(place.open(place.at("/secret")));
        case.allowed(place.open(place.at("/public")));
    }
    assert_eq!(failed(running), before.0);
    running.counts(&[("response", "allow")], before.1[0] + 20);
    running.counts(&[("response", "deny")], before.1[1] + 20);

    fuse.answer();
    let last = hanging.join();
    tell("those that hung", &last);
    assert_eq!(last.total().allowed + last.total().denied, 3, "{last:?}");
    let pid = running.pid().to_string();
    assert!(wait_until(PATIENCE, || threads(&pid, "jg-g").len() == 1), "it is not joined");
    assert!(wait_until(PATIENCE, || threads(&pid, "janus-rescue").is_empty()), "a rescuer stays");
    assert!(wait_until(PATIENCE, || groups(&pid).len() == held), "old groups are kept: {:?}", groups(&pid));
    // While both have marks, the old groups and the new, an open may be asked about twice.
    let (opens, answers) = (20 + tries + 40 + 3, counted().iter().sum::<u64>());
    assert!((opens..=opens + tries).contains(&answers), "{answers} answers to {opens} opens");
    case.denied(place.open(place.at("/secret")));
    assert_eq!(abandoned(), 1);
}

fn inside_of_a_read(case: &Case) {
    hangs_inside_of_a_read(case, "Allow");
}

fn inside_of_a_read_denied(case: &Case) {
    hangs_inside_of_a_read(case, "Deny");
}

/// Lays a mark that janusd would not lay.
fn mark(janusd: &Running, fuse: &Fuse) {
    let process = pidfd_open(kernel_pid(janusd.pid()), PidfdFlags::empty()).unwrap();
    let (pid, all) = (janusd.pid(), groups(&janusd.pid().to_string()));
    // The near one: its marks are never flushed while the guard stands.
    let has_marks =
        |fd: &&i32| fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap().contains("fanotify ino:");
    let number = all.iter().find(has_marks).unwrap();
    let group = pidfd_getfd(process.as_fd(), *number, PidfdGetfdFlags::empty()).unwrap();
    use fanotify::low_level::{AT_FDCWD, FAN_MARK_ADD, FAN_OPEN_PERM, fanotify_mark};
    use std::os::fd::AsRawFd;
    fanotify_mark(group.as_raw_fd(), FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, fuse.path.to_str().unwrap()).unwrap();
}

/// Twenty guards, and nothing to do: the watchdog is not even woken.
fn asleep_while_nothing_happens(case: &Case) {
    let place = case.directory();
    let guards: Vec<String> =
        (0..20).map(|number| manifest::guard_with(&format!("g{number}"), &[], &[SUBJECT])).collect();
    let janusd: Janusd = case.guard(&place, &manifest::together(&guards));
    let running = janusd.running().unwrap();
    let agent: Agent = case.host();
    case.denied(agent.open(place.at("/secret")));
    let pid = running.pid().to_string();
    let watchdog = threads(&pid, "janus-watchdog")[0];
    let woken = || {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{watchdog}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    // It looks once more after the events that there were.
    let mut last = woken();
    let asleep = wait_until(PATIENCE, || {
        wait_until(Duration::from_secs(1), || false);
        std::mem::replace(&mut last, woken()) == last
    });
    assert!(asleep, "it is woken all the time");
    wait_until(Duration::from_secs(3), || false);
    assert_eq!(woken(), last);
}

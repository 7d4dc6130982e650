//! How janusd ends: asked to, or killed.
//!
//! Guarantee shown: nobody is left waiting, nothing is left mounted, and what can still be judged is judged.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::case::{Case, Janus};
use crate::container::{Agent, Load};
use crate::daemon::Janusd;
use crate::load::duration;
use crate::manifest::guard;
use crate::watchdog::wait_until;

crate::kernel_tests![
    idle_sigterm,
    idle_sigint,
    sigterm_under_load,
    sigint_under_load,
    sigterm_under_load_in_a_directory,
    waiting_openers_are_judged_at_sigterm,
    killed_under_load,
    killed_while_all_wait,
    killed_while_all_wait_in_a_directory,
    started_again_after_a_kill,
    guarded_process_ends,
];

const MANIFEST: [&str; 1] = ["{allow: [/denied/open], deny: [/secret, /denied], events: [open]}"];
const PATHS: [&str; 3] = ["/secret", "/denied/sub/file", "/public"];

fn idle_sigterm(case: &Case) {
    ends_when_idle(case, Signal::TERM);
}

fn idle_sigint(case: &Case) {
    ends_when_idle(case, Signal::INT);
}

/// Exit 0 within a second; from then on nothing is denied.
fn ends_when_idle(case: &Case, signal: Signal) {
    let container = case.container();
    let mounts = mounts();
    let mut janusd = case.guard(&container, &guard(&MANIFEST));
    case.denied(container.open("/secret"));
    janusd.end([signal]);
    case.allowed(container.open("/secret"));
    assert_eq!(mounts, self::mounts());
}

fn sigterm_under_load(case: &Case) {
    let container = case.container();
    let mut janusd = case.guard(&container, &guard(&MANIFEST));
    ends_under_load(case, &container, &mut janusd, load(&container, &PATHS), Signal::TERM);
}

fn sigint_under_load(case: &Case) {
    let container = case.container();
    let mut janusd = case.guard(&container, &guard(&MANIFEST));
    ends_under_load(case, &container, &mut janusd, load(&container, &PATHS), Signal::INT);
}

fn sigterm_under_load_in_a_directory(case: &Case) {
    let place = case.directory();
    let mut janusd = case.guard(&place, &guard(&MANIFEST));
    let load = load(&place, &PATHS.map(|path| place.at(path)));
    ends_under_load(case, &place, &mut janusd, load, Signal::TERM);
}

/// 50 openers that do nothing else: once nobody makes them wait they compete with the ending janusd for the CPUs. That
/// is part of the load, and the second holds all the same. Pausing openers would be easier on janusd and hide it.
fn load<'a>(agent: &'a Agent, paths: &[impl AsRef<Path>]) -> Load<'a> {
    agent.start_openers(50, paths)
}

/// Exit 0 within a second, every opener released.
fn ends_under_load(case: &Case, agent: &Agent, janusd: &mut Janusd, load: Load<'_>, signal: Signal) {
    let mounts = mounts();
    assert!(wait_until(Duration::from_secs(5), || load.opened() > 1000), "hardly any load");
    janusd.end([signal]);
    let ended = Instant::now();
    let opened = load.stop();
    assert!(ended.elapsed() < Duration::from_secs(1), "openers wait after the end: {opened:?}");
    assert!(opened.slowest < Duration::from_secs(1), "an open took {:?}", opened.slowest);
    assert_eq!(opened.total().failed, 0, "{opened:?}");
    case.holds(opened.paths[0].denied > 0, "the file was denied");
    assert!(agent.pid > 0);
    assert_eq!(mounts, self::mounts());
}

/// Openers that wait when SIGTERM comes get the answer that their file has, not a wave through the door.
fn waiting_openers_are_judged_at_sigterm(case: &Case) {
    let container = case.container();
    let mut janusd = case.guard(&container, &guard(&MANIFEST));
    let load = all_waiting(&container, &janusd, &["/secret", "/public"]);
    // It finds the signal and forty events when it wakes up.
    janusd.end([Signal::TERM, Signal::CONT]);
    let opened = load.join();
    case.holds(opened.paths[0].allowed == 0 && opened.paths[0].denied == 20, &format!("judged: {opened:?}"));
    assert_eq!(opened.paths[1].allowed, 20, "{opened:?}");
}

/// `kill -9` under load: every opener is released, nothing stays mounted or hangs.
fn killed_under_load(case: &Case) {
    let container = case.container();
    let mounts = mounts();
    let mut janusd = case.guard(&container, &guard(&MANIFEST));
    let load = load(&container, &PATHS);
    wait_until(duration(1), || false);
    janusd.kill();
    let killed = Instant::now();
    let opened = load.stop();
    assert!(killed.elapsed() < Duration::from_secs(1), "openers wait after the kill: {opened:?}");
    case.holds(opened.paths[0].denied > 0, "the file was denied");
    case.allowed(container.open("/secret"));
    assert_eq!(mounts, self::mounts());
}

/// The same when for certain every opener waits at that moment.
fn killed_while_all_wait(case: &Case) {
    let container = case.container();
    let mut janusd = case.guard(&container, &guard(&MANIFEST));
    let load = all_waiting(&container, &janusd, &["/secret", "/public"]);
    released_by_kill(&mut janusd, load);
    case.allowed(container.open("/secret"));
}

/// And on a directory of the disk.
fn killed_while_all_wait_in_a_directory(case: &Case) {
    let place = case.directory();
    let mut janusd = case.guard(&place, &guard(&MANIFEST));
    let load = all_waiting(&place, &janusd, &["/secret", "/denied/file"].map(|path| place.at(path)));
    released_by_kill(&mut janusd, load);
    case.allowed(place.open(place.at("/secret")));
}

fn released_by_kill(janusd: &mut Janusd, load: Load<'_>) {
    let killed = Instant::now();
    janusd.kill();
    let opened = load.join();
    assert!(killed.elapsed() < Duration::from_secs(1), "took {:?} to be released: {opened:?}", killed.elapsed());
    let total = opened.total();
    assert_eq!((total.allowed + total.denied, total.failed), (40, 0), "{opened:?}");
}

/// 40 openers, each of which waits for an answer of a janusd that has been stopped.
fn all_waiting<'a>(agent: &'a Agent, janusd: &Janusd, paths: &[impl AsRef<Path>]) -> Load<'a> {
    if let Some(janusd) = janusd.running() {
        janusd.signal(Signal::STOP);
        // Until then a thread of it might still answer.
        let stopped = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", janusd.pid())).unwrap();
            stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
        };
        assert!(wait_until(Duration::from_secs(5), stopped), "janusd does not stop");
    }
    let load = agent.start_openers_once(40, paths);
    if janusd.running().is_some() {
        let all = wait_until(Duration::from_secs(5), || load.waiting() == 40);
        assert!(all, "{} of 40 openers wait: the others were not asked about", load.waiting());
    }
    load
}

/// After a kill a new janusd guards again.
fn started_again_after_a_kill(case: &Case) {
    let container = case.container();
    let mut janusd = case.guard(&container, &guard(&MANIFEST));
    case.denied(container.open("/secret"));
    janusd.kill();
    case.allowed(container.open("/secret"));
    drop(janusd);
    let _again = case.guard(&container, &guard(&MANIFEST));
    case.denied(container.open("/secret"));
    case.denied(container.open("/denied/sub/file"));
}

/// The container ends first: janusd keeps nothing of it, and still ends when asked to.
fn guarded_process_ends(case: &Case) {
    let container = case.container();
    let mut janusd = case.guard(&container, &guard(&MANIFEST));
    case.denied(container.open("/secret"));
    drop(container);
    // It may have ended by itself, having nothing left to guard: that is not for this test to say.
    if case.janus == Janus::Guards && janusd.ended_by_itself() {
        return;
    }
    janusd.end([Signal::TERM]);
}

/// The host's mounts. Agents' mounts are not among them.
fn mounts() -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().map(str::to_owned).collect()
}

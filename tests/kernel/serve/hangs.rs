//! What stops, hangs or runs out, and what openers see of it: nobody waits for ever.
//!
//! Guarantee shown: whatever is stopped as a whole (by SIGSTOP, by a debugger), killed for want of memory, flooded, or has its
//! clock moved, every opener is answered: by the rules, or by failurePolicy a little after a deadline. With Deny no denied file
//! is opened meanwhile, and the counters equal what the openers counted.
//!
//! `never_a_hang` among the measures makes one table of all, those of [`super::faults`] as well.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use janus_proto::v1;
use janusd::handover::link::Link;
use janusd::handover::message::{Part, Pulse};
use janusd::policy::Failure;
use rustix::event::{EventfdFlags, eventfd};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::certificates::Authority;
use super::client::{create, create_one, spec};
use super::faults::{self, AT_MOST, Daemon, Scene, full_pipe};
use super::handover::{READERS, among, queued};
use super::held::{DEADLINE, Hold, asking, deposit};
use super::{NODE, SOON, Serve, Setting, phase};
use crate::case::{Case, Janus, free_address};
use crate::daemon::{program, run};
use crate::fuse::Fuse;
use crate::kernel_tests;
use crate::load::duration;
use crate::metrics::Metrics;
use crate::protocol::Tally;
use crate::raw::{BareEvents, Stopped};
use crate::stuck::{groups, threads};
use crate::watchdog::{kernel_pid, wait_until};

kernel_tests! {
    a_stopped_janusd_is_stood_for.lasting(300),
    one_that_is_traced_as_a_whole.lasting(60),
    one_that_is_slow_is_not_stood_for.lasting(60).without_control(),
    a_late_answer_hits_nobody.lasting(60).without_control(),
    a_holder_to_which_nobody_listens.lasting(60),
    a_full_disk.lasting(60),
    a_file_system_that_never_answers.lasting(60),
    memory_runs_out.lasting(60),
    no_controller.lasting(60),
    a_burst.lasting(120),
    its_own_files_are_guarded.lasting(60),
    a_clock_that_jumps.needing("cc").lasting(60),
}

/// What a busy machine takes beyond a deadline: two looks, and to wake somebody up.
const SLACK: Duration = Duration::from_millis(1500);
/// What the openers of two paths are.
const PATHS: [&str; 2] = ["/secret", "/public"];

/// A line of the table.
pub(crate) struct Seen {
    pub(super) fault: String,
    pub(super) slowest: Duration,
    pub(super) answer: &'static str,
    pub(super) counted: String,
}

impl Seen {
    pub(super) fn of(fault: &str, opened: &Tally, answer: &'static str, metrics: &Metrics) -> Seen {
        let count = |name, label, word: &str| metrics.sum(name, &[(label, word)]);
        let answers =
            ["allow", "deny"].map(|word| format!("{word} {}", count("janus_guard_events_total", "response", word)));
        let fallbacks = Failure::ALL
            .map(|failure| (failure.word(), count("janus_guard_fallbacks_total", "reason", failure.word())));
        let fallbacks = fallbacks.iter().filter(|(_, count)| *count > 0).map(|(word, count)| format!("{word} {count}"));
        let counted = answers.into_iter().chain(fallbacks).collect::<Vec<_>>().join(", ");
        let seen = Seen { fault: fault.to_owned(), slowest: opened.slowest, answer, counted };
        seen.tell();
        seen
    }

    fn tell(&self) {
        eprintln!("{} | {:.2} s | {} | {}", self.fault, self.slowest.as_secs_f64(), self.answer, self.counted);
    }
}

/// A fault, and what comes of it; nothing in a control.
type Fault = fn(&Case) -> Option<Seen>;

/// One table of all of them.
pub(crate) fn never_a_hang(case: &Case) {
    const FAULTS: &[Fault] = &[
        |case| faults::a_worker_that_hangs(case, v1::FailurePolicy::Deny),
        |case| stopped(case, "janusd stopped 50 times (SIGSTOP)", Halt::signal, v1::FailurePolicy::Deny, 50),
        |case| stopped(case, "the same, failurePolicy Allow", Halt::signal, v1::FailurePolicy::Allow, 5),
        traced,
        unheard,
        faults::nobody_reads,
        disk_full,
        fuse_hangs,
        faults::no_descriptor_is_left,
        out_of_memory,
        uncontrolled,
        burst,
        own_files,
        clock_jumps,
    ];
    let seen: Vec<Seen> = FAULTS
        .iter()
        .filter_map(|fault| {
            let case = Case::new(Janus::Guards, case.watch.clone());
            fault(&case)
        })
        .collect();
    println!("\n| What is wrong | Slowest opener | Answer | Counted |\n|---|--:|---|---|");
    for Seen { fault, slowest, answer, counted } in seen {
        println!("| {fault} | {:.2} s | {answer} | {counted} |", slowest.as_secs_f64());
    }
}

/// A janusd that stands still until this is dropped.
enum Halt {
    Stopped(Pid),
    /// Every thread by itself. To be dropped by who made it.
    Traced(#[expect(dead_code, reason = "held")] Vec<Stopped>),
}

impl Halt {
    fn signal(pid: u32) -> Halt {
        let pid = kernel_pid(pid);
        kill_process(pid, Signal::STOP).unwrap();
        Halt::Stopped(pid)
    }

    fn trace(pid: u32) -> Halt {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let threads: Vec<u32> = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
        Halt::Traced(threads.into_iter().map(|thread| Stopped::stop(thread).unwrap()).collect())
    }
}

impl Drop for Halt {
    fn drop(&mut self) {
        if let Halt::Stopped(pid) = self {
            // Killed meanwhile.
            let _gone = kill_process(*pid, Signal::CONT);
        }
    }
}

fn answers(metrics: &Metrics) -> [u64; 2] {
    ["allow", "deny"].map(|word| metrics.sum("janus_guard_events_total", &[("response", word)]))
}

/// What was counted since equals what the openers counted. `twice`: but for some that are allowed, of which a few more were
/// seen to be counted than were opened; by what is not known.
fn counted(daemon: &Daemon, before: [u64; 2], opened: &Tally, twice: bool) {
    let total = opened.total();
    let expected = [before[0] + total.allowed, before[1] + total.denied];
    let is_right = |[allowed, denied]: [u64; 2]| {
        denied == expected[1] && (allowed == expected[0] || twice && allowed > expected[0])
    };
    assert!(
        wait_until(SOON, || is_right(answers(&daemon.metrics()))),
        "{:?}, not {expected:?}",
        answers(&daemon.metrics())
    );
}

/// Stopped again and again under readers, wherever it is: in the middle of a batch, of an answer, of a read.
fn stopped(case: &Case, fault: &str, halt: fn(u32) -> Halt, policy: v1::FailurePolicy, turns: u64) -> Option<Seen> {
    let hold = (case.janus == Janus::Guards).then(|| Hold::start(case));
    let mut scene = Scene::guarded(case, among(0), policy);
    let Scene { container, daemon: Some(daemon), .. } = &mut scene else { return None };
    let hold = hold?;
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    let before = answers(&daemon.settled());
    let load = container.start_openers(READERS, &PATHS);
    // Then some of its threads go on for a moment while others stand.
    let mut thread_by_thread = false;
    for turn in 0..turns {
        let opened = load.opened();
        assert!(wait_until(SOON, || load.opened() > opened + 200), "turn {turn}: it does not go on");
        let (from, pause) = (Instant::now(), Duration::from_micros(turn * 137 % 3_000));
        while from.elapsed() < pause {
            std::hint::spin_loop();
        }
        let halted = halt(daemon.serve.process.id());
        thread_by_thread |= matches!(halted, Halt::Traced(_));
        let opened = load.opened();
        assert!(
            wait_until(DEADLINE + SLACK + SOON, || load.opened() > opened + 500),
            "turn {turn}: nobody answers: {}",
            Hold::log(case)
        );
        drop(halted);
    }
    let opened = load.stop();
    let total = opened.total();
    assert_eq!(total.failed, 0, "{opened:?}");
    assert!(opened.slowest < DEADLINE + SLACK, "an open took {:?}", opened.slowest);
    match policy {
        v1::FailurePolicy::Deny => assert_eq!(opened.paths[0].allowed, 0, "a denied file was opened: {opened:?}"),
        _ => assert!(opened.paths[0].allowed > 0 && opened.paths[1].denied == 0, "{opened:?}"),
    }
    counted(daemon, before, &opened, thread_by_thread);
    assert!(daemon.fallbacks(&["deadline"]) > 500 * turns);
    assert_eq!(daemon.metrics().sum("janus_guard_workers_abandoned_total", &[]), 0, "none of its threads hung");
    // By the rules, from then on.
    let failed = daemon.fallbacks(&["deadline", "worker-stuck"]);
    for _ in 0..20 {
        case.denied(container.open("/secret"));
        case.allowed(container.open("/public"));
    }
    assert_eq!(daemon.fallbacks(&["deadline", "worker-stuck"]), failed);
    let seen = Seen::of(fault, &opened, "failurePolicy, by the holder", &daemon.metrics());
    daemon.ends_well();
    Some(seen)
}

/// `JANUS_STOPS` more or fewer times.
fn a_stopped_janusd_is_stood_for(case: &Case) {
    let turns = std::env::var("JANUS_STOPS").ok().and_then(|turns| turns.parse().ok()).unwrap_or(6);
    for policy in [v1::FailurePolicy::Deny, v1::FailurePolicy::Allow] {
        let again = Case::new(case.janus, case.watch.clone());
        let _told = stopped(&again, "janusd stopped (SIGSTOP)", Halt::signal, policy, turns);
    }
}

fn traced(case: &Case) -> Option<Seen> {
    stopped(case, "janusd traced as a whole (ptrace)", Halt::trace, v1::FailurePolicy::Deny, 3)
}

fn one_that_is_traced_as_a_whole(case: &Case) {
    let _told = traced(case);
}

/// For half of the deadline, again and again: whoever waited is answered by the rules, not by failurePolicy.
fn one_that_is_slow_is_not_stood_for(case: &Case) {
    let hold = Hold::start(case);
    let scene = Scene::guarded(case, among(0), v1::FailurePolicy::Allow);
    let daemon = scene.daemon.as_ref().unwrap();
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    let load = scene.container.start_openers(READERS, &["/secret"]);
    for _ in 0..6 {
        let halted = Halt::signal(daemon.serve.process.id());
        wait_until(DEADLINE / 2, || false);
        drop(halted);
        wait_until(Duration::from_millis(400), || false);
    }
    let opened = load.stop();
    eprintln!("{opened:?}");
    assert_eq!((opened.total().allowed, opened.total().failed), (0, 0), "{opened:?}");
    let log = Hold::log(case);
    assert!(!log.contains("has stopped"), "{log}");
}

/// This process is the janusd, and is silent. It has read an event before, and answers it late, over and over: none of the
/// events that the holder has read meanwhile gets that answer.
fn a_late_answer_hits_nobody(case: &Case) {
    let hold = Hold::start(case);
    let (groups, file) = asking(case, "file");
    let link = Link::new(UnixStream::connect(case.scratch("state/hold.sock")).unwrap(), Arc::default()).unwrap();
    let until = || Instant::now() + SOON;
    link.say(deposit("guard/pod", 0), &groups.each_ref().map(AsFd::as_fd), until()).unwrap();
    let beats = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    link.say(Part::Pulse(Pulse { beats: true }), &[beats.as_fd()], until()).unwrap();
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    let (first, other) = (case.host(), case.host());
    let waiting = first.start_openers_once(1, &[&file]);
    assert!(wait_until(SOON, || queued(&groups[1]) == 1), "nobody waits");
    groups[1].read(&mut BareEvents::default()).unwrap();
    // By its number.
    assert_eq!(waiting.join().total().denied, 1, "{}", Hold::log(case));
    let load = other.start_openers(READERS, &[&file]);
    let (from, mut late) = (Instant::now(), 0_u64);
    while from.elapsed() < Duration::from_secs(3) {
        for number in 0_i32..128 {
            let allow = [number.to_ne_bytes(), 1_u32.to_ne_bytes()].concat();
            // ENOENT, as it has to be.
            late += u64::from(rustix::io::write(&groups[1], &allow).is_ok());
        }
    }
    let opened = load.stop();
    eprintln!("{opened:?}, {late} late answers were taken");
    assert_eq!((opened.total().allowed, late), (0, 0), "{opened:?}");
    assert!(opened.total().denied > 1_000, "{opened:?}");
    // It goes on, and is told.
    rustix::io::write(&beats, &1_u64.to_ne_bytes()).unwrap();
    match link.hear(until()).unwrap().0 {
        Part::Stood(stood) => {
            let counted: u64 = stood.answered.unwrap().answers.iter().map(|answers| answers.count).sum();
            assert_eq!(counted, opened.total().denied + 1);
        }
        told => panic!("{told:?}"),
    }
}

/// The holder's log cannot be written.
fn unheard(case: &Case) -> Option<Seen> {
    let (_reader, stderr) = full_pipe();
    let hold = (case.janus == Janus::Guards).then(|| Hold::start_with(case, stderr));
    let mut scene = Scene::guarded(case, among(0), v1::FailurePolicy::Deny);
    let Scene { container, daemon: Some(daemon), .. } = &mut scene else { return None };
    assert!(wait_until(SOON, || hold.as_ref().is_some_and(|hold| hold.groups() == 2)), "nothing was deposited");
    let before = answers(&daemon.settled());
    let load = container.start_openers(READERS, &PATHS);
    let halted = Halt::signal(daemon.serve.process.id());
    let opened = load.opened();
    assert!(wait_until(SOON, || load.opened() > opened + 10_000), "nobody answers");
    drop(halted);
    let opened = load.stop();
    assert_eq!((opened.paths[0].allowed, opened.total().failed), (0, 0), "{opened:?}");
    assert!(opened.slowest < DEADLINE + SLACK, "an open took {:?}", opened.slowest);
    counted(daemon, before, &opened, false);
    let seen = Seen::of(
        "the holder's stderr full, janusd stopped",
        &opened,
        "failurePolicy, by the holder",
        &daemon.metrics(),
    );
    daemon.ends_well();
    Some(seen)
}

fn a_holder_to_which_nobody_listens(case: &Case) {
    let _told = unheard(case);
}

/// A small tmpfs, until dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Disk {
        fs::create_dir_all(&at).unwrap();
        let options = c"size=64k,nr_inodes=24,mode=0700";
        mount("janus-test", &at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options)).unwrap();
        Disk(at)
    }

    /// Leaves no byte and no inode.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("bytes")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        for number in 0.. {
            if fs::File::create(self.0.join(format!("inode-{number}"))).is_err() {
                break;
            }
        }
    }

    fn clear(&self) {
        for entry in fs::read_dir(&self.0).unwrap().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with("inode-") || name == "bytes") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _busy = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// The state directory's file system is full: what runs goes on, with and without janusd; one that starts says why it cannot.
fn disk_full(case: &Case) -> Option<Seen> {
    let disk = Disk::mount(case.scratch("state"));
    let hold = (case.janus == Janus::Guards).then(|| Hold::start(case));
    let mut scene = Scene::guarded(case, among(0), v1::FailurePolicy::Deny);
    let Scene { container, daemon: Some(daemon), .. } = &mut scene else { return None };
    assert!(wait_until(SOON, || hold.as_ref().is_some_and(|hold| hold.groups() == 2)), "nothing was deposited");
    disk.fill();
    let load = container.start_openers(READERS, &PATHS);
    let state = daemon.create(create_one(7, 0, spec(&["/secret"]))).unwrap();
    assert_eq!(phase(&state), v1::GuardPhase::InForce, "{state:?}");
    let (grpc, admin, at) = (free_address().to_string(), free_address().to_string(), case.scratch("state"));
    let arguments = ["serve", "--insecure", "--node-name", NODE, "--namespace", "janus-test"];
    let arguments = arguments.iter().copied().chain(["--listen", &grpc, "--admin-listen", &admin, "--state-dir"]);
    let arguments: Vec<&str> = arguments.chain([at.to_str().unwrap()]).collect();
    run(&case.watch, &arguments, b"").refused(&["--state-dir", "No space left"]);
    wait_until(duration(3), || false);
    let judged = load.stop();
    assert_eq!((judged.paths[0].allowed, judged.total().failed), (0, 0), "{judged:?}");
    assert!(judged.slowest < AT_MOST, "an open took {:?}", judged.slowest);
    assert_eq!(daemon.metrics().sum("janus_guard_fallbacks_total", &[]), 0);
    let seen = Seen::of("state directory full", &judged, "by the rules", &daemon.metrics());
    // Killed, while it is full.
    let load = container.start_openers(READERS, &["/secret"]);
    daemon.serve.process.kill().unwrap();
    daemon.serve.process.wait().unwrap();
    let opened = load.opened();
    assert!(wait_until(SOON, || load.opened() > opened + 500), "nobody answers");
    disk.clear();
    let next = Serve::start_with(case, &Authority::new(), among(1));
    assert_eq!(Metrics::read(next.admin).sum("janus_handover_guards_total", &[("result", "whole")]), 2);
    let opened = load.stop();
    assert_eq!((opened.total().allowed, opened.total().failed), (0, 0), "{opened:?}");
    assert!(opened.slowest < DEADLINE + SLACK, "an open took {:?}", opened.slowest);
    Some(seen)
}

fn a_full_disk(case: &Case) {
    let _told = disk_full(case);
}

/// In a guarded container, by a path that a rule names.
fn fuse_hangs(case: &Case) -> Option<Seen> {
    let mut scene = Scene::new(case, Setting::default());
    let fuse = Fuse::mount_inside(scene.container.pid, Path::new("/hangs"));
    let container = &scene.container;
    if let Some(daemon) = &mut scene.daemon {
        let mut spec = spec(&["/secret", "/hangs"]);
        spec.subjects[0].allow = vec!["/public".into()];
        let state = daemon.create(create(1, 1, spec)).unwrap();
        // And it is said which one is not.
        assert_eq!(phase(&state), v1::GuardPhase::Degraded, "{state:?}");
        assert!(state.problems.iter().any(|problem| problem.reason == "FilesystemNotGated"), "{state:?}");
    }
    case.becomes_denied(SOON, || container.open("/secret"));
    let before = scene.daemon.as_ref().map(|daemon| answers(&daemon.settled()));
    // Those wait for its server, whoever guards.
    let others = case.host();
    let hung = others.start_openers_once(3, &[container.seen_from_host("/hangs")]);
    assert!(wait_until(SOON, || fuse.opens() == 3), "{} of 3 opens have come to its server", fuse.opens());
    let load = container.start_openers(READERS, &PATHS);
    wait_until(duration(3), || false);
    let opened = load.stop();
    fuse.answer();
    assert_eq!(hung.join().total().allowed, 3);
    assert_eq!(opened.total().failed, 0, "{opened:?}");
    assert!(opened.slowest < AT_MOST, "an open took {:?}", opened.slowest);
    case.holds(opened.paths[0].allowed == 0, "the file is denied");
    let daemon = scene.daemon.as_mut()?;
    counted(daemon, before?, &opened, false);
    let metrics = daemon.metrics();
    assert_eq!(metrics.sum("janus_guard_fallbacks_total", &[]), 0);
    let seen = Seen::of("FUSE that never answers, in the pod", &opened, "by the rules", &metrics);
    daemon.ends_well();
    Some(seen)
}

fn a_file_system_that_never_answers(case: &Case) {
    let _told = fuse_hangs(case);
}

/// This thread, and what it starts, in a cgroup of memory, until dropped.
pub(super) struct Inside(PathBuf);

const MEMORY: &str = "/sys/fs/cgroup/memory";

impl Inside {
    pub(super) fn enter(cgroup: &Path) -> Inside {
        let all = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        let before = all.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path)).unwrap();
        let before = PathBuf::from(format!("{MEMORY}{before}"));
        Inside::go(cgroup);
        Inside(before)
    }

    fn go(cgroup: &Path) {
        fs::write(cgroup.join("tasks"), rustix::thread::gettid().to_string()).unwrap();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        Inside::go(&self.0);
    }
}

/// A cgroup of memory, until dropped.
struct Purse(PathBuf);

impl Purse {
    fn new(case: &Case) -> Purse {
        let unique = case.scratch("").file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let at = Path::new(MEMORY).join(format!("janus-test-{}-{unique}", std::process::id()));
        fs::create_dir(&at).unwrap();
        Purse(at)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        assert!(wait_until(SOON, || fs::remove_dir(&self.0).is_ok()) || std::thread::panicking());
    }
}

/// janusd is killed by the kernel for want of memory in its own cgroup; the holder has one of its own, as any container.
fn out_of_memory(case: &Case) -> Option<Seen> {
    if !Path::new(MEMORY).join("tasks").exists() {
        eprintln!("SKIPPED serve::hangs::memory_runs_out: needs the memory hierarchy of cgroups, version 1");
        return None;
    }
    let purse = Purse::new(case);
    let hold = (case.janus == Janus::Guards).then(|| Hold::start(case));
    let setting = Setting { cgroup: Some(purse.0.clone()), ..among(0) };
    let mut scene = Scene::guarded(case, setting, v1::FailurePolicy::Deny);
    let Scene { container, daemon: Some(daemon), .. } = &mut scene else { return None };
    assert!(wait_until(SOON, || hold.as_ref().is_some_and(|hold| hold.groups() == 2)), "nothing was deposited");
    let load = container.start_openers(READERS, &["/secret"]);
    let used: u64 = purse.read("memory.usage_in_bytes").trim().parse().unwrap();
    fs::write(purse.0.join("memory.limit_in_bytes"), (used + 256 * 1024).to_string()).unwrap();
    let mut ended = None;
    for number in 0..500 {
        let paths: Vec<String> = (0..128).map(|path| format!("/{}/{number}/{path}", "x".repeat(200))).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        // Refused, or cut off.
        let _either = daemon.create(create_one(number, number % 8, spec(&paths)));
        ended = daemon.serve.process.try_wait().unwrap();
        if ended.is_some() {
            break;
        }
    }
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(ended.and_then(|status| status.signal()), Some(Signal::KILL.as_raw()), "it is not killed");
    let killed = purse.read("memory.oom_control");
    assert!(killed.lines().any(|line| line.starts_with("oom_kill ") && line != "oom_kill 0"), "{killed}");
    let opened = load.opened();
    assert!(wait_until(SOON, || load.opened() > opened + 500), "nobody answers");
    let next = Serve::start_with(case, &Authority::new(), among(1));
    let opened = load.stop();
    assert_eq!((opened.total().allowed, opened.total().failed), (0, 0), "{opened:?}");
    assert!(opened.slowest < DEADLINE + SLACK, "an open took {:?}", opened.slowest);
    case.denied(container.open("/secret"));
    Some(Seen::of(
        "janusd killed for want of memory",
        &opened,
        "failurePolicy, by the holder, until the next has the guards",
        &Metrics::read(next.admin),
    ))
}

fn memory_runs_out(case: &Case) {
    let _told = out_of_memory(case);
}

/// Nobody drives it any more.
fn uncontrolled(case: &Case) -> Option<Seen> {
    let scene = Scene::guarded(case, Setting::default(), v1::FailurePolicy::Deny);
    let Scene { container, daemon, .. } = scene;
    let Daemon { mut serve, client, runtime } = daemon?;
    // A connection that nobody serves any more, and then none.
    drop(runtime);
    let load = container.start_openers(READERS, &PATHS);
    wait_until(duration(3), || false);
    drop(client);
    wait_until(duration(5), || false);
    let opened = load.stop();
    assert_eq!((opened.paths[0].allowed, opened.paths[1].denied, opened.total().failed), (0, 0, 0), "{opened:?}");
    assert!(opened.slowest < AT_MOST, "an open took {:?}", opened.slowest);
    let metrics = Metrics::read(serve.admin);
    assert_eq!(metrics.sum("janus_guard_fallbacks_total", &[]), 0);
    let seen = Seen::of("no controller, no API server", &opened, "by the rules", &metrics);
    assert_eq!(serve.end().0, Some(0));
    Some(seen)
}

fn no_controller(case: &Case) {
    let _told = uncontrolled(case);
}

/// So many threads wait at once: janusd is stopped until they do. Ten times.
fn burst(case: &Case) -> Option<Seen> {
    const AT_ONCE: usize = 5_000;
    let mut scene = Scene::guarded(case, Setting::default(), v1::FailurePolicy::Deny);
    let Scene { container, daemon: Some(daemon), .. } = &mut scene else { return None };
    let before = answers(&daemon.settled());
    let mut all: Option<Tally> = None;
    let mut longest = Duration::ZERO;
    for turn in 0..10 {
        let halted = Halt::signal(daemon.serve.process.id());
        let load = container.start_openers_once(AT_ONCE, &PATHS);
        // A thread of janusd that is just then answering goes on to the end of that.
        assert!(wait_until(SOON, || load.waiting() >= AT_ONCE - 100), "turn {turn}: {} wait", load.waiting());
        let from = Instant::now();
        drop(halted);
        let opened = load.join();
        longest = longest.max(from.elapsed());
        let sum = all.get_or_insert_with(|| Tally { slowest: Duration::ZERO, ..opened.clone() });
        if turn > 0 {
            for (sum, one) in sum.paths.iter_mut().zip(&opened.paths) {
                sum.allowed += one.allowed;
                sum.denied += one.denied;
                sum.failed += one.failed;
            }
        }
    }
    let all = Tally { slowest: longest, ..all? };
    assert_eq!((all.paths[0].allowed, all.total().failed), (0, 0), "{all:?}");
    // Each answer wakes all of them.
    assert!(longest < 10 * AT_MOST, "the last was answered after {longest:?}");
    counted(daemon, before, &all, false);
    let seen = Seen::of("50,000 openers, 5,000 at once", &all, "by the rules, or failurePolicy", &daemon.metrics());
    daemon.ends_well();
    Some(seen)
}

fn a_burst(case: &Case) {
    let _told = burst(case);
}

/// The program of janusd, its keys and what it meets its holder in lie in a container of which everything is denied.
fn own_files(case: &Case) -> Option<Seen> {
    let pod = crate::found::PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    let home = container.seen_from_host("/janus");
    fs::create_dir(&home).unwrap();
    let key = home.join("tls.key");
    let node = case.host();
    if case.janus == Janus::Absent {
        fs::write(&key, "key").unwrap();
        case.denied(node.open(&key));
        return None;
    }
    let binary = home.join("janusd");
    fs::copy(program(), &binary).unwrap();
    let (authority, next) = (Authority::new(), home.join("next"));
    fs::create_dir(&next).unwrap();
    Authority::new().write(&next);
    let serve = Serve::start_with(
        case,
        &authority,
        Setting { binary: Some(binary.clone()), home: Some(home.clone()), ..among(0) },
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(super::client::Client::connect(serve.grpc, &authority.controller())).unwrap();
    let mut daemon = Daemon { serve, client, runtime };
    let mut spec = spec(&["/"]);
    spec.subjects[0].events = vec![v1::Event::Open.into(), v1::Event::Access.into(), v1::Event::Execute.into()];
    spec.failure_policy = v1::FailurePolicy::Deny.into();
    let state = daemon.create(create(1, 1, spec)).unwrap();
    // But for /proc and its like, which is said.
    assert_eq!(phase(&state), v1::GuardPhase::Degraded, "{state:?}");
    case.becomes_denied(SOON, || node.open(&key));
    // The node's own programs go on.
    let elsewhere = case.scratch("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    let load = node.start_openers(READERS, &[&key, &elsewhere, &binary]);
    // New ones come by rename, which asks nobody; it reads them, which asks.
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        fs::rename(next.join(file), home.join(file)).unwrap();
    }
    let reloads = || daemon.metrics().sum("janus_certificate_reloads_total", &[("result", "ok")]);
    assert!(wait_until(SOON, || reloads() > 0), "it is denied its own keys");
    let opened = load.stop();
    assert_eq!(opened.paths[0].allowed + opened.paths[2].allowed, 0, "{opened:?}");
    assert_eq!((opened.paths[1].denied, opened.total().failed), (0, 0), "{opened:?}");
    assert!(opened.slowest < AT_MOST, "an open took {:?}", opened.slowest);
    let seen = Seen::of("`/` of a pod denied, janusd and its keys in it", &opened, "by the rules", &daemon.metrics());
    let pid = daemon.pid();
    assert_eq!(groups(&pid).len(), 2);
    assert_eq!(threads(&pid, "jg-g").len(), 1);
    daemon.ends_well();
    Some(seen)
}

fn its_own_files_are_guarded(case: &Case) {
    let _told = own_files(case);
}

/// A clock of its own for a program: CLOCK_REALTIME differs from the machine's by as many seconds as a file says.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long *ahead;
__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("JANUS_TEST_CLOCK"), O_RDONLY);
    if (fd >= 0) ahead = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && clock == CLOCK_REALTIME && ahead) time->tv_sec += *ahead;
    return failed;
}
"#;

/// Hours ahead and back, while readers read; the machine's own clock is left alone: others live by it.
fn clock_jumps(case: &Case) -> Option<Seen> {
    let (source, library, clock) = (case.scratch("clock.c"), case.scratch("clock.so"), case.scratch("clock"));
    fs::write(&source, CLOCK).unwrap();
    fs::write(&clock, [0; 4096]).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status();
    assert!(compiled.unwrap().success());
    let file = fs::File::options().write(true).open(&clock).unwrap();
    let set = |hours: i64| rustix::io::pwrite(&file, &(hours * 3600).to_ne_bytes(), 0).unwrap();
    let hold = (case.janus == Janus::Guards).then(|| Hold::start(case));
    let setting = Setting { preload: Some(library), clock: Some(clock), stdout: Some(Stdio::piped()), ..among(0) };
    let mut scene = Scene::guarded(case, setting, v1::FailurePolicy::Deny);
    let Scene { container, daemon: Some(daemon), .. } = &mut scene else { return None };
    assert!(wait_until(SOON, || hold.as_ref().is_some_and(|hold| hold.groups() == 2)), "nothing was deposited");
    let lines = crate::daemon::Lines::collect(daemon.serve.process.stdout.take().unwrap());
    let before = answers(&daemon.settled());
    let load = container.start_openers(4, &PATHS);
    for hours in [0, 5, -5, 30, -30, 24 * 365, 0, -1, 0] {
        set(hours);
        let opened = load.opened();
        wait_until(Duration::from_millis(700), || false);
        assert!(wait_until(AT_MOST, || load.opened() > opened + 100), "{hours} hours: nobody answers");
        let state = daemon.states().remove(0);
        assert_eq!(phase(&state), v1::GuardPhase::InForce, "{hours} hours: {state:?}");
    }
    let opened = load.stop();
    assert_eq!((opened.paths[0].allowed, opened.paths[1].denied, opened.total().failed), (0, 0, 0), "{opened:?}");
    assert!(opened.slowest < AT_MOST, "an open took {:?}", opened.slowest);
    counted(daemon, before, &opened, false);
    assert_eq!(daemon.metrics().sum("janus_guard_fallbacks_total", &[]), 0);
    let said = lines.text();
    let years: std::collections::BTreeSet<&str> =
        said.lines().filter_map(|line| line.split_once(r#""time":""#)?.1.get(..4)).collect();
    assert!(years.len() > 1, "its clock did not jump: {years:?}");
    let seen = Seen::of("CLOCK_REALTIME jumps by hours and a year", &opened, "by the rules", &daemon.metrics());
    daemon.ends_well();
    Some(seen)
}

fn a_clock_that_jumps(case: &Case) {
    let _told = clock_jumps(case);
}

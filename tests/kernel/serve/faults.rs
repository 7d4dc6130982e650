//! What `janusd serve` does when something that it needs runs out, or hangs, or ends.
//!
//! Guarantee shown: openers get their answers; who asks for a guard is told which limit stands against it; and what was
//! missing is made good by itself once it is there.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use janus_proto::v1;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use tokio::runtime::Runtime;
use tonic::{Code, Status};

use super::certificates::Authority;
use super::client::{Client, create, create_one, lift, spec};
use super::crowd::{Pods, create_all};
use super::hangs::Seen;
use super::{SOON, Serve, Setting, phase};
use crate::agent;
use crate::case::{Case, Janus};
use crate::container::{Agent, Container};
use crate::daemon::Poor;
use crate::found::PodCgroup;
use crate::kernel_tests;
use crate::metrics::{Metrics, get};
use crate::raw::Stopped;
use crate::stuck::{groups, threads};
use crate::watchdog::{kernel_pid, wait_until};

kernel_tests! {
    descriptors_run_out.lasting(60),
    groups_run_out.lasting(60),
    a_limit_found_at_start_is_named.without_control(),
    streams_that_nobody_reads.lasting(120),
    sigterm_under_a_flood.lasting(60),
    sigterm_with_as_many_guards_as_fit.lasting(120),
    a_worker_that_hangs_denies,
    a_worker_that_hangs_allows.without_control(),
}

/// A second, and what a busy machine takes to wake somebody up.
pub(super) const AT_MOST: Duration = Duration::from_secs(2);

/// A pod's container, and a daemon with a client; in the control the container alone.
pub(super) struct Scene {
    pub(super) container: Container,
    _pod: PodCgroup,
    pub(super) daemon: Option<Daemon>,
}

pub(super) struct Daemon {
    pub(super) serve: Serve,
    pub(super) client: Client,
    pub(super) runtime: Runtime,
}

impl Scene {
    pub(super) fn new(case: &Case, setting: Setting) -> Scene {
        let pod = PodCgroup::new(case);
        let container = case.container();
        pod.container('a', container.pid);
        let daemon = (case.janus == Janus::Guards).then(|| Daemon::start(case, setting));
        Scene { container, _pod: pod, daemon }
    }

    /// Opens of `/secret` are denied, those of `/public` answered.
    pub(super) fn guarded(case: &Case, setting: Setting, policy: v1::FailurePolicy) -> Scene {
        let mut scene = Scene::new(case, setting);
        if let Some(daemon) = &mut scene.daemon {
            let mut spec = spec(&["/secret"]);
            spec.subjects[0].allow = vec!["/public".into()];
            spec.failure_policy = policy.into();
            let state = daemon.create(create(1, 1, spec)).unwrap();
            assert_eq!(phase(&state), v1::GuardPhase::InForce, "{state:?}");
        }
        case.becomes_denied(SOON, || scene.container.open("/secret"));
        case.allowed(scene.container.open("/public"));
        scene
    }
}

impl Daemon {
    fn start(case: &Case, setting: Setting) -> Daemon {
        let authority = Authority::new();
        let serve = Serve::start_with(case, &authority, setting);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(Client::connect(serve.grpc, &authority.controller())).unwrap();
        Daemon { serve, client, runtime }
    }

    pub(super) fn create(&mut self, request: v1::CreateGuardRequest) -> Result<v1::GuardState, Status> {
        self.runtime.block_on(self.client.create(request))
    }

    fn refused(&mut self, request: v1::CreateGuardRequest, words: &str) {
        let status = self.create(request).expect_err("a refusal");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains(words), "{words}: {status:?}");
        assert!(!status.details().is_empty(), "{status:?}");
    }

    pub(super) fn states(&mut self) -> Vec<v1::GuardState> {
        self.runtime.block_on(self.client.state(Vec::new())).1
    }

    /// All guards are in force, within `SOON`.
    pub(super) fn all_in_force(&mut self, guards: usize) {
        let all = |states: &[v1::GuardState]| {
            states.len() == guards && states.iter().all(|state| phase(state) == v1::GuardPhase::InForce)
        };
        assert!(wait_until(SOON, || all(&self.states())), "{:?}", self.states());
    }

    pub(super) fn pid(&self) -> String {
        self.serve.process.id().to_string()
    }

    pub(super) fn metrics(&self) -> Metrics {
        Metrics::read(self.serve.admin)
    }

    /// Once what was answered is counted, which comes after the answer.
    pub(super) fn settled(&self) -> Metrics {
        let mut counted = u64::MAX;
        let same = || {
            wait_until(Duration::from_millis(50), || false);
            let sum = self.metrics().sum("janus_guard_events_total", &[]);
            std::mem::replace(&mut counted, sum) == sum
        };
        assert!(wait_until(SOON, same), "events without end");
        self.metrics()
    }

    pub(super) fn fallbacks(&self, reasons: &[&str]) -> u64 {
        let metrics = self.metrics();
        reasons.iter().map(|reason| metrics.sum("janus_guard_fallbacks_total", &[("reason", reason)])).sum()
    }

    pub(super) fn ends_well(&mut self) {
        let (code, took) = self.serve.end();
        eprintln!("ended {took:?} after SIGTERM");
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(5), "took {took:?}");
    }
}

/// Lets a process have no descriptor beyond those that it holds, not even when it closes what it has open for a moment
/// only. Gives the limit as it was.
fn leave_no_descriptors(pid: u32) -> Rlimit {
    let lowest_free = || {
        let numbers = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let held: Vec<u64> = numbers.filter_map(|it| it.file_name().to_str()?.parse().ok()).collect();
        (0..).find(|number| !held.contains(number)).unwrap()
    };
    let set = |limit| prlimit(Some(kernel_pid(pid)), Resource::Nofile, limit).unwrap();
    let usual = set(Rlimit { current: Some(lowest_free()), maximum: getrlimit(Resource::Nofile).maximum });
    let mut since = Instant::now();
    let mut limit = lowest_free();
    while since.elapsed() < Duration::from_millis(500) {
        let free = lowest_free();
        if free < limit {
            (limit, since) = (free, Instant::now());
            set(Rlimit { current: Some(limit), maximum: usual.maximum });
        }
        wait_until(Duration::from_millis(2), || false);
    }
    usual
}

/// No descriptor is left: the kernel denies, nobody waits, and nothing that was guarded comes to be open.
fn descriptors_run_out(case: &Case) {
    let _told = no_descriptor_is_left(case);
}

pub(super) fn no_descriptor_is_left(case: &Case) -> Option<Seen> {
    let mut scene = Scene::guarded(case, Setting::default(), v1::FailurePolicy::Deny);
    let Scene { container, daemon: Some(daemon), .. } = &mut scene else { return None };
    let process = kernel_pid(daemon.serve.process.id());
    let before = daemon.fallbacks(&["read-failed", "event-fd"]);
    let usual = leave_no_descriptors(daemon.serve.process.id());
    let paths = ["/secret", "/public"];
    let openers = container.start_openers_once(20, &paths).join();
    assert_eq!(openers.total().failed, 0, "{openers:?}");
    assert_eq!(openers.paths[0].allowed, 0, "a denied file was opened: {openers:?}");
    assert!(openers.slowest < AT_MOST, "an open took {:?}", openers.slowest);
    daemon.refused(create_one(1, 0, spec(&["/secret"])), "RLIMIT_NOFILE");
    // Longer than anything takes to be looked at again.
    let from = Instant::now();
    while from.elapsed() < Duration::from_secs(5) {
        case.denied(container.open("/secret"));
        wait_until(Duration::from_millis(50), || false);
    }
    prlimit(Some(process), Resource::Nofile, usual).unwrap();
    let admin = daemon.serve.admin;
    assert!(wait_until(SOON, || std::net::TcpStream::connect(admin).is_ok() && get(admin, "/readyz").0 == 200));
    assert!(daemon.fallbacks(&["read-failed", "event-fd"]) > before, "what the kernel denied is not counted");
    assert!(wait_until(SOON, || container.open("/public").is_ok()), "answers do not come back");
    case.denied(container.open("/secret"));
    // The second guard, by itself.
    daemon.all_in_force(2);
    let seen = Seen::of("no descriptor left (NOFILE)", &openers, "denied by the kernel", &daemon.metrics());
    daemon.ends_well();
    case.allowed(container.open("/secret"));
    Some(seen)
}

/// Somebody else of the same user holds all groups but those of three guards.
fn groups_run_out(case: &Case) {
    let poor = Poor { user: 61_240, open_files: None };
    let scene = Scene::new(case, Setting { poor: Some(poor), ..Setting::default() });
    let Scene { container, daemon, .. } = scene;
    let groups_of_a_user: u64 =
        fs::read_to_string("/proc/sys/fs/fanotify/max_user_groups").unwrap().trim().parse().unwrap();
    let binary = std::env::current_exe().unwrap();
    let (user, files) = (poor.user.to_string(), (groups_of_a_user + 64).to_string());
    let count = (groups_of_a_user - 6).to_string();
    let words = ["poor", &user, &files, binary.to_str().unwrap(), agent::WORD, "groups", &count];
    let _holder = Agent::start(&case.watch, &words.map(std::path::Path::new));
    let mut daemon = daemon;
    let last = || {
        let mut request = create(1, 1, spec(&["/secret"]));
        request.guard.as_mut().unwrap().name = "last".into();
        request
    };
    if let Some(daemon) = &mut daemon {
        for number in 0..3 {
            let created = daemon.create(create_one(number, 0, spec(&["/secret"])));
            assert!(created.is_ok(), "{number}, {} groups of 6: {created:?}", groups(&daemon.pid()).len());
        }
        daemon.refused(last(), "fs.fanotify.max_user_groups");
        // The others are as they were.
        assert_eq!(daemon.states().iter().filter(|state| phase(state) == v1::GuardPhase::InForce).count(), 3);
        case.allowed(container.open("/secret"));
        let first = create_one(0, 0, spec(&["/secret"]));
        assert!(daemon.runtime.block_on(daemon.client.destroy(lift(&first))).unwrap());
        // By itself: it is tried again.
        daemon.all_in_force(3);
        let state = daemon.create(last()).unwrap();
        assert_eq!(phase(&state), v1::GuardPhase::InForce, "{state:?}");
    }
    case.denied(container.open("/secret"));
    case.allowed(container.open("/public"));
}

/// Sixty-four descriptors are left to guards: six of them fit.
fn a_limit_found_at_start_is_named(case: &Case) {
    let poor = Poor { user: 61_241, open_files: Some(128) };
    let mut daemon = Daemon::start(case, Setting { poor: Some(poor), ..Setting::default() });
    for number in 0..6 {
        daemon.create(create_one(number, number, spec(&["/secret"]))).unwrap();
    }
    daemon.refused(create_one(6, 6, spec(&["/secret"])), "no more than 6 guards fit: RLIMIT_NOFILE is 128");
    let first = create_one(0, 0, spec(&["/secret"]));
    assert!(daemon.runtime.block_on(daemon.client.destroy(lift(&first))).unwrap());
    daemon.create(create_one(6, 6, spec(&["/secret"]))).unwrap();
    daemon.all_in_force(6);
    daemon.ends_well();
}

/// A pipe in which there is no room: who reads it, and who writes into it.
pub(super) fn full_pipe() -> (OwnedFd, Stdio) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    let mut writer = fs::File::from(writer);
    while writer.write(&[b'x'; 4096]).is_ok() || writer.write(b"x").is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer.into())
}

/// Neither events nor the log can be written, from the first line on.
fn streams_that_nobody_reads(case: &Case) {
    let _told = nobody_reads(case);
}

pub(super) fn nobody_reads(case: &Case) -> Option<Seen> {
    let ((_events, stdout), (_log, stderr)) = (full_pipe(), full_pipe());
    let setting = Setting { stdout: Some(stdout), stderr: Some(stderr), ..Setting::default() };
    let mut scene = Scene::guarded(case, setting, v1::FailurePolicy::Deny);
    let before = scene.daemon.as_ref().map(Daemon::settled);
    let load = scene.container.start_openers(16, &["/secret", "/public"]);
    // Twice as many lines as wait for their writer.
    let progress = wait_until(4 * SOON, || load.opened() > 40_000);
    let opened = load.stop();
    assert!(progress, "only {opened:?}");
    assert_eq!(opened.total().failed, 0, "{opened:?}");
    assert!(opened.slowest < AT_MOST, "an open took {:?}", opened.slowest);
    case.holds(opened.paths[0].allowed == 0, "the file is denied");
    let (Some(daemon), Some(before)) = (&mut scene.daemon, before) else { return None };
    for (response, expected) in [("deny", opened.total().denied), ("allow", opened.total().allowed)] {
        let counted = |metrics: &Metrics| metrics.sum("janus_guard_events_total", &[("response", response)]);
        assert!(wait_until(SOON, || counted(&daemon.metrics()) - counted(&before) == expected), "{response}");
    }
    let dropped = daemon.metrics().sum("janus_guard_log_dropped_total", &[("guard", "g")]);
    assert!(dropped > 10_000, "{dropped} lines were dropped, of {:?}", opened.total());
    assert_eq!(daemon.metrics().sum("janus_guard_fallbacks_total", &[]), 0);
    eprintln!("{:?}, slowest {:?}, {dropped} lines dropped", opened.total(), opened.slowest);
    let seen = Seen::of("stdout and stderr full", &opened, "by the rules", &daemon.metrics());
    daemon.ends_well();
    Some(Seen { counted: format!("{}; {dropped} lines dropped", seen.counted), ..seen })
}

/// Everybody who waits is let go, and nobody waits for long.
fn sigterm_under_a_flood(case: &Case) {
    let mut scene = Scene::guarded(case, Setting::default(), v1::FailurePolicy::Deny);
    let load = scene.container.start_openers(32, &["/secret", "/public"]);
    assert!(wait_until(SOON, || load.opened() > 2_000), "{} opens", load.opened());
    if let Some(daemon) = &mut scene.daemon {
        daemon.ends_well();
    }
    let ended = load.opened();
    assert!(wait_until(SOON, || load.opened() > ended + 1_000), "openers hang");
    let opened = load.stop();
    eprintln!("{:?}, slowest {:?}", opened.total(), opened.slowest);
    assert_eq!(opened.total().failed, 0, "{opened:?}");
    case.holds(opened.paths[0].denied > 0, "the file was denied");
    assert!(opened.slowest < AT_MOST, "an open took {:?}", opened.slowest);
    case.allowed(scene.container.open("/secret"));
}

/// As many as a node is made for, or as may be had here: thirty-two pods with as many guards each.
fn sigterm_with_as_many_guards_as_fit(case: &Case) {
    let pods = Pods::start(case, 32);
    let host = case.host();
    let keys = pods.file(7, "/app/keys/server.key");
    if case.janus == Janus::Absent {
        return case.denied(host.open(keys));
    }
    let mut daemon = Daemon::start(case, Setting::default());
    let header = daemon.runtime.block_on(daemon.client.state(Vec::new())).0;
    let fit = header.limits.unwrap().guards_free as usize;
    let requests: Vec<_> = (0..fit).map(|number| pods.guard(number, spec(&["/app/keys"]))).collect();
    let begun = Instant::now();
    let (states, _) = daemon.runtime.block_on(create_all(&daemon.client, &requests));
    assert!(states.iter().all(|state| phase(state) == v1::GuardPhase::InForce));
    eprintln!("{fit} guards created in {:?}", begun.elapsed());
    assert_eq!(groups(&daemon.pid()).len(), 2 * fit, "groups");
    case.denied(host.open(&keys));
    daemon.ends_well();
    case.allowed(host.open(&keys));
}

/// The worker of a guard is stopped where it waits for events: openers get its failurePolicy, and it comes back.
pub(super) fn a_worker_that_hangs(case: &Case, policy: v1::FailurePolicy) -> Option<Seen> {
    const OPENERS: usize = 20;
    let mut scene = Scene::guarded(case, Setting::default(), policy);
    let container = &scene.container;
    let stopped = scene.daemon.as_ref().map(|daemon| {
        let workers = threads(&daemon.pid(), "jg-g");
        assert_eq!(workers.len(), 1, "{workers:?}");
        Stopped::stop(workers[0]).unwrap()
    });
    let opened = container.start_openers_once(OPENERS, &["/secret", "/public"]).join();
    let total = opened.total();
    eprintln!("{total:?}, the slowest open took {:?}", opened.slowest);
    assert!(opened.slowest < AT_MOST, "an open took {:?}", opened.slowest);
    match policy {
        v1::FailurePolicy::Deny => case.holds(total.denied == OPENERS as u64, &format!("all are denied: {total:?}")),
        _ => assert_eq!(total.allowed, OPENERS as u64, "{total:?}"),
    }
    let daemon = scene.daemon.as_mut()?;
    let failed = || daemon.fallbacks(&["deadline", "worker-stuck"]);
    assert!(wait_until(SOON, || failed() == OPENERS as u64), "{} of {OPENERS} are counted", failed());
    drop(stopped);
    case.becomes_denied(SOON, || container.open("/secret"));
    assert!(wait_until(SOON, || container.open("/public").is_ok()), "it does not come back");
    daemon.all_in_force(1);
    let seen = Seen::of("a worker stopped", &opened, "failurePolicy", &daemon.metrics());
    daemon.ends_well();
    case.allowed(container.open("/secret"));
    Some(seen)
}

fn a_worker_that_hangs_denies(case: &Case) {
    let _told = a_worker_that_hangs(case, v1::FailurePolicy::Deny);
}

fn a_worker_that_hangs_allows(case: &Case) {
    let _told = a_worker_that_hangs(case, v1::FailurePolicy::Allow);
}

//! Starts are held: a guard is in force before the first instruction of a container's entrypoint.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::case::{Case, Janus};
use crate::daemon::{Janusd, PATIENCE};
use crate::manifest::{guard, guard_with};
use crate::node::STRANGE;
use crate::pod::{PLAIN, Plan, Pod, Volume};
use crate::watchdog::wait_until;

crate::pod_tests![
    no_container_reads_before_its_guard.lasting(|| Duration::from_secs(60 + 2 * u64::from(how_many()))),
    an_entrypoint_that_may_not_be_executed,
    a_start_that_is_late_is_let_go.lasting(|| CROWDED),
    a_start_that_is_late_is_denied.lasting(|| CROWDED),
    nobody_waits_for_anothers_start.lasting(|| CROWDED),
    a_janusd_that_is_stopped_stops_no_runtime.without_control(),
    a_runtime_that_is_replaced,
    a_runtime_that_nobody_knows,
];

const SECRET: &str = "{deny: [/etc/secret], events: [open]}";

/// One-shot containers; more of them: JANUS_STARTS.
fn how_many() -> u32 {
    std::env::var("JANUS_STARTS").ok().and_then(|starts| starts.parse().ok()).unwrap_or(30)
}

/// Where there is a [`Crowd`]: on a busy disk its files take a while to make.
const CROWDED: Duration = Duration::from_secs(180);

/// Containers that come and go beside each other.
const BESIDE: u32 = 3;

/// The first thing that a container does is to read a denied file, and then it is over. Prints how long starts took.
fn no_container_reads_before_its_guard(case: &Case) {
    let (janusd, wanted) = (case.janusd(), how_many());
    let pods: Vec<Pod> = (0..BESIDE).map(|_| case.pod()).collect();
    for pod in &pods {
        janusd.guard(pod, &guard(&[SECRET]));
    }
    let asked = Instant::now();
    let runs = case.node.run("sh", &["-c", "for i in $(seq 100); do runc --version >/dev/null || exit 1; done"]);
    assert_eq!(runs.code, Some(0), "{runs:?}");
    eprintln!("runc executed for nothing: {:.2?} each", asked.elapsed() / 100);
    let (next, reads) = (AtomicU32::new(0), AtomicU32::new(0));
    let one_after_another = |pod: &Pod| {
        let mut took = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= wanted {
                return took;
            }
            // Init containers are called anything, too.
            let container = pod.make_command(&format!("init-{number}"), &["cat", "/etc/secret"], &[]);
            let asked = Instant::now();
            container.start().unwrap();
            took.push(asked.elapsed());
            match container.ended() {
                0 => drop(reads.fetch_add(1, Ordering::Relaxed)),
                1 => {}
                code => panic!("cat ended with {code}"),
            }
            container.remove();
        }
    };
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(|| one_after_another(pod))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    took.sort_unstable();
    let reads = reads.into_inner();
    eprintln!("{wanted} containers: {reads} reads; started in {}", spread(&took));
    match case.janus {
        Janus::Absent => assert_eq!(reads, wanted, "the control"),
        Janus::Guards => {
            assert_eq!(reads, 0, "{}", janusd.said());
            let mut held = held(&janusd);
            held.sort_unstable();
            eprintln!(
                "{} starts held for {}; passed {}, late {}",
                held.len(),
                spread(&held),
                janusd.metric(r#"janus_starts_total{result="passed"}"#),
                janusd.metric(r#"janus_starts_total{result="late-allowed"}"#)
            );
        }
    }
}

fn spread(sorted: &[Duration]) -> String {
    match sorted {
        [] => "nothing".to_owned(),
        some => format!(
            "median {:.1?}, p99 {:.1?}, at most {:.1?}",
            some[some.len() / 2],
            some[some.len() * 99 / 100],
            some[some.len() - 1]
        ),
    }
}

/// How long starts were held.
fn held(janusd: &Janusd) -> Vec<Duration> {
    let said = janusd.said();
    let of_line = |line: &str| {
        let (_, rest) = line.split_once("a start was held microseconds=")?;
        rest.trim().parse().ok().map(Duration::from_micros)
    };
    said.lines().filter_map(of_line).collect()
}

/// Not even the entrypoint itself is executed where that is denied: there is no earlier moment.
fn an_entrypoint_that_may_not_be_executed(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    janusd.guard(&pod, &guard(&["{deny: [/bin/busybox], events: [execute]}"]));
    for number in 0..5 {
        let container = pod.make_command(&format!("app-{number}"), &["true"], &[]);
        let outcome = container.start().map(|()| match container.ended() {
            0 => String::new(),
            code => format!("ended with {code}"),
        });
        match case.janus {
            Janus::Guards => {
                assert!(outcome.as_ref().is_ok_and(|it| !it.is_empty()) || outcome.is_err(), "{outcome:?}")
            }
            Janus::Absent => assert_eq!(outcome, Ok(String::new())),
        }
        container.remove();
    }
    janusd.guard(&pod, &guard(&[SECRET]));
    case.allowed(pod.start_app("app", &[]).act("true"));
}

/// So many files that a guard takes a while to arm.
struct Crowd(PathBuf);

impl Crowd {
    const VOLUMES: [Volume; 1] = [Volume::EmptyDir("crowd")];

    fn of(case: &Case, pod: &Pod, directories: u32) -> Crowd {
        pod.make(Crowd::VOLUMES[0]);
        // Nothing is armed in the control.
        let directories = if case.janus == Janus::Guards { directories } else { 1 };
        let at = pod.node.path(&pod.on_node(Crowd::VOLUMES[0]));
        for directory in 0..directories {
            let directory = at.join(directory.to_string());
            std::fs::create_dir(&directory).unwrap();
            for file in 0..150 {
                std::fs::write(directory.join(file.to_string()), "").unwrap();
            }
        }
        Crowd(at)
    }
}

impl Drop for Crowd {
    /// So that whoever takes the node down has little to do.
    fn drop(&mut self) {
        let _goes_with_the_node = std::fs::remove_dir_all(&self.0);
    }
}

const CROWD: &str = "{deny: [/etc/secret, /volumes], events: [open]}";

/// The limit comes before the guard: failurePolicy says what then.
fn a_start_that_is_late_is_let_go(case: &Case) {
    let janusd = case.janusd_with(&["--start-limit", "30ms"]);
    let pod = case.pod();
    let _crowd = Crowd::of(case, &pod, 60);
    janusd.guard(&pod, &guard(&[CROWD]));
    let asked = Instant::now();
    let app = pod.start_app("app", &Crowd::VOLUMES);
    eprintln!("let go after {:?} in all", asked.elapsed());
    if case.janus == Janus::Guards {
        assert!(janusd.metric(r#"janus_starts_total{result="late-allowed"}"#) >= 1.0, "{}", janusd.said());
        // Once it is armed, and for a while from then on.
        let told =
            wait_until(PATIENCE, || janusd.state(&pod).is_some_and(|it| it.problems.contains(&"StartLate".to_owned())));
        assert!(told, "{:?} {}", janusd.state(&pod), janusd.said());
        assert!(
            janusd.metric(r#"janus_guard_problems_total{namespace="default",guard="g",reason="StartLate"}"#) >= 1.0
        );
    }
    janusd.in_force(&pod, &["app"]);
    case.denied(app.cat("/etc/secret"));
    // What the runtime does about it afterwards waits for nothing.
    app.kill();
    app.remove();
}

fn a_start_that_is_late_is_denied(case: &Case) {
    let janusd = case.janusd_with(&["--start-limit", "30ms"]);
    let pod = case.pod();
    let _crowd = Crowd::of(case, &pod, 60);
    janusd.guard(&pod, &guard_with("g", &["failurePolicy: Deny"], &[CROWD]));
    let container = pod.make_command("app", &["cat", "/etc/public"], &Crowd::VOLUMES);
    case.denied(container.start().map(|()| String::new()));
    if case.janus == Janus::Guards {
        assert!(janusd.metric(r#"janus_starts_total{result="late-denied"}"#) >= 1.0, "{}", janusd.said());
        let told =
            wait_until(PATIENCE, || janusd.state(&pod).is_some_and(|it| it.problems.contains(&"StartLate".to_owned())));
        assert!(told, "{:?} {}", janusd.state(&pod), janusd.said());
    } else {
        assert_eq!(container.ended(), 0);
    }
    // A pod whose start was denied can be taken down.
    container.remove();
    pod.end();
}

/// While a start is held, nobody else waits: neither what is done in running containers, nor other pods' starts, guarded or
/// not.
fn nobody_waits_for_anothers_start(case: &Case) {
    let janusd = case.janusd_with(&["--start-limit", "20s"]);
    let (slow, quick, free) = (case.pod(), case.pod(), case.pod());
    let _crowd = Crowd::of(case, &slow, 300);
    janusd.guard(&slow, &guard(&[CROWD]));
    janusd.guard(&quick, &guard(&[SECRET]));
    let (quick_app, free_app) = (quick.start_app("app", &[]), free.start_app("app", &[]));
    janusd.in_force(&quick, &["app"]);
    let made = slow.make_command("app", &["cat", "/etc/secret"], &Crowd::VOLUMES);
    let over = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        let held = scope.spawn(|| {
            let asked = Instant::now();
            made.start().unwrap();
            over.store(true, Ordering::Release);
            asked.elapsed()
        });
        let asked = Instant::now();
        case.denied(quick_app.exec_cat("/etc/secret"));
        case.allowed(free_app.exec_cat("/etc/secret"));
        let done = quick.make_command("other", &["cat", "/etc/secret"], &[]);
        done.start().unwrap();
        let there = free.make_command("other", &["true"], &[]);
        there.start().unwrap();
        free_app.kill();
        free_app.remove();
        let took = asked.elapsed();
        let before = !over.load(Ordering::Acquire);
        let held = held.join().unwrap();
        eprintln!("two execs, two starts and a kill in {took:?}, beside a start that took {held:?}");
        assert!(case.janus == Janus::Absent || before, "they waited for another's start");
        assert_eq!(there.ended(), 0);
        done.ended()
    });
    case.denied(if ended == 0 { Ok(String::new()) } else { Err("Operation not permitted".to_owned()) });
    let ended = made.ended();
    case.denied(if ended == 0 { Ok(String::new()) } else { Err("Operation not permitted".to_owned()) });
}

/// A process that is stopped as a whole answers nobody; the holder beside it lets the runtime go, by which it could be killed.
fn a_janusd_that_is_stopped_stops_no_runtime(case: &Case) {
    let state = case.node.scratch(format!("state-{}", case.node.number()));
    let directory = state.to_str().unwrap();
    let (holder, log) = case.node.spawn(env!("CARGO_BIN_EXE_janusd"), &["hold", "--state-dir", directory]);
    assert!(wait_until(PATIENCE, || sockets(&state) > 0), "{}", log.stderr());
    let janusd = case.janusd_with(&["--state-dir", directory]);
    let (pod, free) = (case.pod(), case.pod());
    janusd.guard(&pod, &guard(&[SECRET]));
    let app = pod.start_app("app", &[]);
    case.denied(app.cat("/etc/secret"));
    // The gate's group, and the two of the guard.
    assert!(wait_until(PATIENCE, || groups(case, holder) == 3), "{} groups; {}", groups(case, holder), log.stderr());
    janusd.signal(Signal::STOP);
    let asked = Instant::now();
    let there = free.make_command("app", &["true"], &[]);
    let started = there.start();
    let took = asked.elapsed();
    janusd.signal(Signal::CONT);
    started.unwrap_or_else(|error| panic!("{error}: {}", log.stderr()));
    eprintln!("made and started in {took:?} beside a janusd that was stopped");
    assert_eq!(there.ended(), 0);
    assert!(log.stderr().contains("does not read the starts that it holds"), "{}", log.stderr());
    // It goes on, and so does what it guards: also the next start.
    case.denied(app.cat("/etc/secret"));
    let gated = || janusd.metric(r#"janus_starts_total{result="passed"}"#);
    let before = gated();
    let again = wait_until(PATIENCE, || {
        let one = pod.make_command(&format!("one-{}", case.node.number()), &["cat", "/etc/secret"], &[]);
        one.start().unwrap();
        one.ended();
        gated() > before
    });
    assert!(again, "starts are not asked about any more: {}", janusd.said());
    drop(janusd);
    case.node.signal(holder, Signal::TERM);
    assert!(wait_until(PATIENCE, || case.node.ended(holder)), "the holder does not end");
}

fn sockets(directory: &Path) -> usize {
    std::fs::read_dir(directory).into_iter().flatten().count()
}

/// How many fanotify groups a process of the node has.
fn groups(case: &Case, process: u32) -> usize {
    let files = case.node.run("sh", &["-c", &format!("ls -l /proc/{process}/fd")]).stdout;
    files.matches("fanotify").count()
}

/// A package upgrade puts another file in the runtime's place.
fn a_runtime_that_is_replaced(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    janusd.guard(&pod, &guard(&[SECRET]));
    let runtimes = case.node.scratch("sbin");
    let gated = || janusd.said().matches("starts are held for guards").count();
    let before = gated();
    std::fs::copy(runtimes.join("runc"), runtimes.join("runc.new")).unwrap();
    std::fs::rename(runtimes.join("runc.new"), runtimes.join("runc")).unwrap();
    if case.janus == Janus::Guards {
        assert!(wait_until(PATIENCE, || gated() > before), "{}", janusd.said());
    }
    let held_before = held(&janusd).len();
    for number in 0..5 {
        let container = pod.make_command(&format!("one-{number}"), &["cat", "/etc/secret"], &[]);
        container.start().unwrap();
        let ended = container.ended();
        case.denied(if ended == 0 { Ok(String::new()) } else { Err("Operation not permitted".to_owned()) });
        container.remove();
    }
    if case.janus == Janus::Guards {
        let passed = janusd.metric(r#"janus_starts_total{result="passed"}"#);
        assert!(passed >= 5.0, "the new one is asked about: {passed} passed, {held_before} held before");
        assert!(janusd.metric(r#"janus_starts_total{result="unwatched"}"#) == 0.0, "{}", janusd.said());
    }
}

/// It is said, and its containers are guarded as soon as they are found.
fn a_runtime_that_nobody_knows(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod_of(&Plan { runtime: STRANGE, ..PLAIN }));
    janusd.guard(&pod, &guard(&[SECRET]));
    // Younger than the marks by more than the margin.
    std::thread::sleep(Duration::from_secs(3));
    let app = pod.start_app("app", &[]);
    janusd.in_force(&pod, &["app"]);
    case.denied(app.cat("/etc/secret"));
    if case.janus == Janus::Guards {
        let said = wait_until(PATIENCE, || janusd.said().contains("a runtime that is not gated"));
        assert!(said, "{}", janusd.said());
        assert!(janusd.metric(r#"janus_starts_total{result="unwatched"}"#) >= 1.0);
    }
    // Where it is named, it is one like any other.
    drop((app, janusd));
    let janusd = case.janusd_with(&["--runtime", &format!("{}/{STRANGE}", crate::inside::RUNTIMES)]);
    janusd.guard(&pod, &guard(&[SECRET]));
    for number in 0..5 {
        let container = pod.make_command(&format!("one-{number}"), &["cat", "/etc/secret"], &[]);
        container.start().unwrap();
        let ended = container.ended();
        case.denied(if ended == 0 { Ok(String::new()) } else { Err("Operation not permitted".to_owned()) });
    }
    drop(janusd);
}

//! Containers come, go and come again; a guard is told of none of it.

use std::time::{Duration, Instant};

use janus_proto::v1::GuardPhase;

use crate::case::{Case, Janus};
use crate::daemon::PATIENCE;
use crate::manifest::{guard, guard_with};
use crate::pod::{PLAIN, Plan, Volume};
use crate::watchdog::wait_until;

crate::pod_tests![
    containers_that_come_after_the_guard,
    containers_that_were_there_before,
    killed_and_restarted,
    an_app_that_restarts_under_a_guard_of_everything,
    named_containers_only,
    an_init_container,
    containers_that_end_at_once.without_control(),
    a_static_pod,
    another_pod_of_the_same_image,
    torn_down_under_a_guard_of_everything,
    a_pid_that_is_given_out_again,
];

const SECRET: &str = "{deny: [/etc/secret], events: [open]}";

/// Two subjects: the image's file, and a volume's.
const SECRETS: &str = "{deny: [/etc/secret, /volumes], events: [open]}";

fn containers_that_come_after_the_guard(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    let volumes = [Volume::Secret("s"), Volume::ConfigMap("c"), Volume::EmptyDir("e"), Volume::HostPath("h")];
    volumes.iter().for_each(|volume| pod.make(*volume));
    janusd.guard(&pod, &guard(&[SECRETS]));
    janusd.in_force(&pod, &[]);
    let app = pod.start_app("app", &volumes);
    janusd.in_force(&pod, &["app"]);
    said(case, "a container that came after its guard was guarded", app.started);
    let sidecar = pod.start_app("sidecar", &volumes);
    janusd.in_force(&pod, &["app", "sidecar"]);
    for container in [&app, &sidecar] {
        for path in ["/etc/secret", "/volumes/s/token", "/volumes/c/token"] {
            case.denied(container.exec_cat(path));
            case.denied(container.cat(path));
        }
        case.allowed(container.exec_cat("/etc/public"));
        case.allowed(container.cat("/srv/other"));
        // By the mounts that its containers have, a rule reaches a volume that others may hold as well.
        case.denied(container.exec(&["ls", "/volumes/h"]));
        case.denied(container.exec(&["ls", "/volumes/e"]));
    }
    // As the host, through the container's root, and where volumes lie; never where others may hold them.
    case.denied(pod.host(&["cat", &pod.through(&app, "/etc/secret")]));
    case.denied(pod.host(&["cat", &format!("{}/token", pod.on_node(Volume::Secret("s")))]));
    case.denied(pod.host(&["ls", &pod.on_node(Volume::EmptyDir("e"))]));
    case.allowed(pod.host(&["ls", &pod.on_node(Volume::HostPath("h"))]));
    janusd.lift(&pod);
    for path in ["/etc/secret", "/volumes/s/token", "/volumes/c/token"] {
        case.allowed(app.exec_cat(path));
        case.allowed(sidecar.cat(path));
    }
    case.allowed(pod.host(&["cat", &pod.through(&app, "/etc/secret")]));
}

fn containers_that_were_there_before(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    let app = pod.start_app("app", &[]);
    case.allowed(app.exec_cat("/etc/secret"));
    let asked = Instant::now();
    if let Some(state) = janusd.guard(&pod, &guard(&[SECRET])) {
        assert_eq!(state.containers, [("app".to_owned(), app.id.clone(), true)]);
    }
    said(case, "a container that was there was guarded", asked);
    case.denied(app.exec_cat("/etc/secret"));
    case.denied(app.cat("/etc/secret"));
    // Another guard in its place.
    janusd.guard(&pod, &guard(&["{deny: [/srv], events: [open]}"]));
    case.denied(app.cat("/srv/data/key"));
    case.allowed(app.cat("/etc/secret"));
}

/// Longer than the pause after which containers are looked for without a reason.
const LONG_AGO: Duration = Duration::from_secs(3);
/// How often [`UNTIL_DENIED`] tries: some ten seconds.
const MOST: u32 = 50_000;

/// The first process looks at the file until it may not, and tells how long it could.
const UNTIL_DENIED: &str = "read begun rest </proc/uptime; times=0
while cat /etc/secret; do times=$((times + 1)); [ $times -lt 50000 ] || break; done >/dev/null 2>&1
read ended rest </proc/uptime
echo $begun $ended $times >/control/told; exec sleep 600";

/// Show 2: killed and restarted it is guarded again, and nobody has said so. Prints the time without a guard.
fn killed_and_restarted(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    janusd.guard(&pod, &guard(&[SECRET]));
    let mut app = pod.start_app("app", &[]);
    janusd.in_force(&pod, &["app"]);
    case.denied(app.cat("/etc/secret"));
    for _ in 0..2 {
        app.kill();
        janusd.in_force(&pod, &[]);
        app.remove();
        app = pod.restart_app(&app, &[]);
        let id = app.id.clone();
        case.becomes_denied(PATIENCE, || app.cat("/etc/secret"));
        said(case, "a restarted container was guarded", app.started);
        janusd.in_force(&pod, &["app"]);
        if let Some(state) = janusd.state(&pod) {
            assert_eq!(state.containers[0].1, id);
        }
        case.denied(app.exec_cat("/etc/secret"));
    }
    if case.janus == Janus::Absent {
        return;
    }
    // From its own first instruction on: restarted at once, and after a pause, as a kubelet that backs off does.
    for pause in [Duration::ZERO, LONG_AGO] {
        app.kill();
        janusd.in_force(&pod, &[]);
        std::thread::sleep(pause);
        let told;
        (app, told) = pod.restart_script(&app, UNTIL_DENIED);
        let (begun, ended, times) = until_denied(&told);
        eprintln!(
            "restarted after {pause:?}: its own first process could open the file for {:.2} s, {times} times",
            ended - begun
        );
        assert!(times < MOST, "never denied");
    }
}

fn until_denied(told: &str) -> (f64, f64, u32) {
    let words: Vec<&str> = told.split(' ').collect();
    let [begun, ended, times] = words.as_slice() else { panic!("{told:?}") };
    (begun.parse().unwrap(), ended.parse().unwrap(), times.parse().unwrap())
}

/// Everything is denied but to the app itself: a runtime can start it again, and nobody can enter it.
fn an_app_that_restarts_under_a_guard_of_everything(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    let everything = guard_with("g", &["failurePolicy: Deny"], &["{deny: [/], events: [all], autoAllowOwner: true}"]);
    janusd.guard(&pod, &everything);
    let mut app = pod.start_app("app", &[]);
    for _ in 0..3 {
        janusd.in_force(&pod, &["app"]);
        case.allowed(app.cat("/etc/secret"));
        case.denied(app.exec_cat("/etc/secret"));
        app.kill();
        app.remove();
        app = pod.restart_app(&app, &[]);
    }
    case.allowed(app.cat("/etc/secret"));
}

fn named_containers_only(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    janusd.guard(&pod, &guard_with("g", &["containers: [app]"], &[SECRET]));
    let (app, sidecar) = (pod.start_app("app", &[]), pod.start_app("sidecar", &[]));
    janusd.in_force(&pod, &["app"]);
    case.denied(app.cat("/etc/secret"));
    case.denied(app.exec_cat("/etc/secret"));
    for _ in 0..3 {
        case.allowed(sidecar.cat("/etc/secret"));
        case.allowed(sidecar.exec_cat("/etc/secret"));
    }
    if let Some(state) = janusd.state(&pod) {
        assert_eq!(state.problems, Vec::<String>::new());
    }
}

/// It runs before the others, and is guarded for as long as it does.
fn an_init_container(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    pod.make(Volume::EmptyDir("e"));
    janusd.guard(&pod, &guard(&[SECRETS]));
    let init = pod.start_app("init", &[Volume::EmptyDir("e")]);
    janusd.in_force(&pod, &["init"]);
    case.denied(init.cat("/etc/secret"));
    init.act("echo written 2>/dev/null >/volumes/e/new").ok();
    init.end();
    let app = pod.start_app("app", &[Volume::EmptyDir("e")]);
    janusd.in_force(&pod, &["app"]);
    case.denied(app.cat("/etc/secret"));
    case.denied(app.exec(&["ls", "/volumes/e"]));
}

/// They leave nothing, neither containers nor problems.
fn containers_that_end_at_once(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    janusd.guard(&pod, &guard(&["{deny: [/etc/secret], events: [open], autoAllowOwner: true}"]));
    for attempt in 0..5 {
        let container = pod.start_command(&format!("init-{attempt}"), &["cat", "/etc/public"], &[]);
        assert_eq!(container.ended(), 0);
    }
    janusd.in_force(&pod, &[]);
    if let Some(state) = janusd.state(&pod) {
        assert!(state.marks == 0 && state.problems.is_empty(), "{state:?}; {}", janusd.said());
    }
    let app = pod.start_app("app", &[]);
    janusd.in_force(&pod, &["app"]);
    case.denied(app.exec_cat("/etc/secret"));
}

/// Its cgroups go by another UID than the one that the API server knows.
fn a_static_pod(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod_of(&Plan { from_file: true, ..PLAIN }));
    assert_ne!(pod.uid, pod.kubelet_uid);
    pod.make(Volume::Secret("s"));
    janusd.guard(&pod, &guard(&[SECRETS]));
    let app = pod.start_app("app", &[Volume::Secret("s")]);
    janusd.in_force(&pod, &["app"]);
    case.denied(app.exec_cat("/etc/secret"));
    case.denied(app.cat("/volumes/s/token"));
    janusd.lift(&pod);
    case.allowed(app.exec_cat("/etc/secret"));
    case.allowed(app.cat("/volumes/s/token"));
}

/// Containers of two pods have an image's layers in common, and no guard.
fn another_pod_of_the_same_image(case: &Case) {
    let (janusd, pod, other) = (case.janusd(), case.pod(), case.pod());
    janusd.guard(&pod, &guard(&[SECRET]));
    let (app, others) = (pod.start_app("app", &[]), other.start_app("app", &[]));
    janusd.in_force(&pod, &["app"]);
    case.denied(app.cat("/etc/secret"));
    case.allowed(others.cat("/etc/secret"));
    case.allowed(others.exec_cat("/etc/secret"));
    case.denied(app.cat("/etc/secret"));
}

/// The runtime is denied nothing: a pod whose every file is denied to everybody can be ended and removed.
fn torn_down_under_a_guard_of_everything(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    let volumes = [Volume::Secret("s"), Volume::EmptyDir("e"), Volume::EtcHosts];
    volumes.iter().for_each(|volume| pod.make(*volume));
    let everything = guard_with("g", &["failurePolicy: Deny"], &["{deny: [/], events: [all]}"]);
    let app = pod.start_app("app", &volumes);
    let sidecar = pod.start_app("sidecar", &volumes);
    if let Some(state) = janusd.create(&pod, &everything) {
        // All but the kernel's own file systems, and the answer says so.
        assert_eq!(state.phase, GuardPhase::Degraded, "{state:?}");
        assert!(state.problems.iter().all(|reason| reason == "FilesystemNotGated"), "{state:?}");
    }
    janusd.in_force(&pod, &["app", "sidecar"]);
    case.denied(app.cat("/etc/public"));
    case.denied(sidecar.exec_cat("/etc/hosts"));
    case.denied(pod.host(&["ls", &pod.on_node(Volume::EmptyDir("e"))]));
    let asked = Instant::now();
    pod.end();
    eprintln!("torn down in {:?}, {:?}", asked.elapsed(), case.janus);
    // As soon as its containers are gone.
    for volume in volumes {
        let removed = case.node.kubelet("remove", &pod.on_node(volume));
        assert_eq!(removed.code, Some(0), "{removed:?}");
    }
    janusd.in_force(&pod, &[]);
    if janusd.state(&pod).is_some() {
        let gone = wait_until(PATIENCE, || janusd.state(&pod).is_some_and(|state| state.marks == 0));
        assert!(gone, "{:?}", janusd.state(&pod));
    }
    janusd.lift(&pod);
}

/// A process of the node's that gets the number of a container's first process is none of the pod's.
fn a_pid_that_is_given_out_again(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    janusd.guard(&pod, &guard(&["{deny: [/etc/secret], events: [open], autoAllowOwner: true}"]));
    let app = pod.start_app("app", &[]);
    janusd.in_force(&pod, &["app"]);
    let pid = app.pid();
    app.kill();
    app.remove();
    case.node.start_as(pid);
    janusd.in_force(&pod, &[]);
    let again = pod.restart_app(&app, &[]);
    janusd.in_force(&pod, &["app"]);
    assert_ne!(again.pid(), pid);
    case.allowed(again.cat("/etc/secret"));
    case.denied(again.exec_cat("/etc/secret"));
    // The container's number is the node's now: it is a process of the node's for the guard.
    case.denied(pod.host(&["cat", &pod.through(&again, "/etc/secret")]));
    case.node.signal(pid, rustix::process::Signal::KILL);
    let gone: bool = wait_until(Duration::from_secs(5), || case.node.ended(pid));
    assert!(gone);
}

fn said(case: &Case, what: &str, since: Instant) {
    if case.janus == Janus::Guards {
        eprintln!("{what} within {:?}", since.elapsed());
    }
}

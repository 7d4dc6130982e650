//! Show 1: who asks, for real exec sessions, sidecars and the host.

use janus_proto::v1::{Origin, Response};

use crate::case::Case;
use crate::manifest::{guard, guard_with};
use crate::pod::{PLAIN, Plan, Volume};

crate::pod_tests![app_session_sidecar_and_host, a_sidecar_by_a_common_volume, a_daemon_of_the_app, sessions_that_hide,];

const BUT_OWNER: &str = "{deny: [/etc/secret, /volumes/s], events: [open], autoAllowOwner: true}";

/// Containers that share the pod's pid namespace can reach into one another.
fn app_session_sidecar_and_host(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod_of(&Plan { shared_pids: true, ..PLAIN }));
    pod.make(Volume::Secret("s"));
    janusd.guard(&pod, &guard_with("g", &["containers: [app]"], &[BUT_OWNER]));
    let (app, sidecar) = (pod.start_app("app", &[Volume::Secret("s")]), pod.start_app("sidecar", &[]));
    janusd.in_force(&pod, &["app"]);
    let inner = app.act("echo $$").unwrap();
    for path in ["/etc/secret", "/volumes/s/token"] {
        case.allowed(app.cat(path));
        case.denied(app.exec_cat(path));
        case.denied(sidecar.cat(&format!("/proc/{inner}/root{path}")));
        case.denied(sidecar.exec_cat(&format!("/proc/{inner}/root{path}")));
        case.denied(pod.host(&["cat", &pod.through(&app, path)]));
        case.allowed(app.cat(path));
    }
    let path = ("path", "/etc/secret");
    for (origin, response) in [("Owner", "ALLOW"), ("Session", "DENY"), ("Pod", "DENY"), ("Node", "DENY")] {
        janusd.line_with(&[path, ("origin", origin), ("response", response), ("container", "app")]);
    }
    for (origin, response) in [
        (Origin::Owner, Response::Allow),
        (Origin::Session, Response::Deny),
        (Origin::Pod, Response::Deny),
        (Origin::Node, Response::Deny),
    ] {
        janusd.decision("app", "/etc/secret", origin, response);
    }
    if let Some(state) = janusd.state(&pod) {
        // Two paths, four denials each.
        assert_eq!(state.denied, 8, "{state:?}");
    }
    janusd.lift(&pod);
    for path in ["/etc/secret", "/volumes/s/token"] {
        case.allowed(app.exec_cat(path));
        case.allowed(sidecar.cat(&format!("/proc/{inner}/root{path}")));
        case.allowed(pod.host(&["cat", &pod.through(&app, path)]));
    }
}

/// Each container has a pid namespace of its own, and the sidecar a mount of the same volume.
fn a_sidecar_by_a_common_volume(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    let volumes = [Volume::Secret("s"), Volume::EmptyDir("e")];
    volumes.iter().for_each(|volume| pod.make(*volume));
    let subject = "{deny: [/volumes/s, /volumes/e/key], events: [open], autoAllowOwner: true}";
    let (app, sidecar) = (pod.start_app("app", &volumes), pod.start_app("sidecar", &volumes));
    app.act("echo key >/volumes/e/key").unwrap();
    janusd.guard(&pod, &guard_with("g", &["containers: [app]"], &[subject]));
    janusd.in_force(&pod, &["app"]);
    for path in ["/volumes/s/token", "/volumes/e/key"] {
        case.allowed(app.cat(path));
        case.denied(app.exec_cat(path));
        case.denied(sidecar.cat(path));
        case.denied(sidecar.exec_cat(path));
    }
    janusd.line_with(&[("path", "/volumes/e/key"), ("origin", "Pod"), ("response", "DENY")]);
    // Once both are selected each is the owner of what it holds.
    janusd.guard(&pod, &guard(&[subject]));
    janusd.in_force(&pod, &["app", "sidecar"]);
    for path in ["/volumes/s/token", "/volumes/e/key"] {
        case.allowed(app.cat(path));
        case.allowed(sidecar.cat(path));
        case.denied(sidecar.exec_cat(path));
    }
}

/// It orphans itself: while it stays in the session of the container's first process it is the app's own.
fn a_daemon_of_the_app(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    janusd.guard(&pod, &guard(&["{deny: [/etc/secret], events: [open], autoAllowOwner: true}"]));
    let app = pod.start_app("app", &[]);
    janusd.in_force(&pod, &["app"]);
    let orphan = "(sh -c 'sleep 0.3; cat /etc/secret >/tmp/owner 2>&1; echo $? >/tmp/owner.done' &)";
    app.act(orphan).unwrap();
    let waits = "until [ -e /tmp/owner.done ]; do sleep 0.05; done; read code </tmp/owner.done; [ $code = 0 ]";
    case.allowed(app.act(waits));
    case.denied(app.exec_cat("/etc/secret"));
}

/// An exec that leaves its parent behind, in its own session or another one, is still a session from outside.
fn sessions_that_hide(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    janusd.guard(&pod, &guard(&["{deny: [/etc/secret], events: [open], autoAllowOwner: true}"]));
    let app = pod.start_app("app", &[]);
    janusd.in_force(&pod, &["app"]);
    for (name, start) in [("orphan", "sh -c"), ("session", "setsid sh -c")] {
        let read = format!("sleep 0.3; cat /etc/secret >/tmp/{name} 2>&1; echo $? >/tmp/{name}.done");
        case.allowed(app.exec(&["sh", "-c", &format!("({start} '{read}' </dev/null >/dev/null 2>&1 &)")]));
        let told = app.act(&format!("until [ -e /tmp/{name}.done ]; do sleep 0.05; done; cat /tmp/{name}; read code </tmp/{name}.done; return $code"));
        case.denied(told);
    }
}

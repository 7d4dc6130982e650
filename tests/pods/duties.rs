//! Show 0: what the node's own agents have to do with guarded volumes, and an ordinary root shell may not.

use crate::case::Case;
use crate::manifest::guard_with;
use crate::pod::{Volume, outcome};

crate::pod_tests![
    a_secret_is_rotated_and_an_empty_dir_removed,
    a_copy_of_the_agent_is_none,
    a_container_that_brings_the_agent_along,
];

const EVERYTHING: &str = "{deny: [/volumes], events: [all]}";

fn everything() -> String {
    guard_with("g", &["failurePolicy: Deny"], &[EVERYTHING])
}

fn a_secret_is_rotated_and_an_empty_dir_removed(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    let (secret, config_map, empty_dir) = (Volume::Secret("s"), Volume::ConfigMap("c"), Volume::EmptyDir("e"));
    let volumes = [secret, config_map, empty_dir];
    volumes.iter().for_each(|volume| pod.make(*volume));
    janusd.guard(&pod, &everything());
    let app = pod.start_app("app", &volumes);
    janusd.in_force(&pod, &["app"]);
    let denied_to_others = || {
        for volume in [secret, config_map] {
            case.denied(pod.host(&["cat", &format!("{}/token", pod.on_node(volume))]));
            case.denied(pod.host(&["ls", &pod.on_node(volume)]));
            case.denied(app.exec_cat(&format!("/volumes/{}/token", volume.name())));
            case.denied(app.cat(&format!("/volumes/{}/token", volume.name())));
        }
        case.denied(pod.host(&["ls", &pod.on_node(empty_dir)]));
        case.denied(app.exec(&["ls", "/volumes/e"]));
    };
    for version in 1..=3 {
        denied_to_others();
        for volume in [secret, config_map] {
            let rotated = case.node.kubelet("rotate", &pod.on_node(volume));
            assert_eq!(rotated.code, Some(0), "rotation {version} of {volume:?}: {rotated:?}");
        }
    }
    denied_to_others();
    janusd.line_with(&[("reason", "node-agent"), ("response", "ALLOW")]);
    // Its container has it no more; the guard still holds.
    app.kill();
    app.remove();
    let removed = case.node.kubelet("remove", &pod.on_node(empty_dir));
    assert_eq!(removed.code, Some(0), "{removed:?}");
    let again = pod.restart_app(&app, &[secret, config_map]);
    janusd.in_force(&pod, &["app"]);
    case.denied(again.cat("/volumes/s/token"));
    // And while a container has it: a kubelet does so for an emptyDir of a pod that is being taken down.
    let removed = case.node.kubelet("empty", &pod.on_node(config_map));
    assert_eq!(removed.code, Some(0), "{removed:?}");
    janusd.lift(&pod);
    assert_eq!(again.cat("/volumes/s/token"), Ok("token 3".to_owned()));
}

/// An agent is known by its file, not by its bytes or its name.
fn a_copy_of_the_agent_is_none(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    pod.make(Volume::Secret("s"));
    janusd.guard(&pod, &everything());
    let app = pod.start_app("app", &[Volume::Secret("s")]);
    janusd.in_force(&pod, &["app"]);
    let copy = format!("/run/copy-{}", case.node.number());
    let copied = case.node.run("mkdir", &[&copy]);
    assert_eq!(copied.code, Some(0), "{copied:?}");
    let copy = format!("{copy}/kubelet");
    let copied = case.node.run("cp", &[case.node.scratch("kubelet").to_str().unwrap(), &copy]);
    assert_eq!(copied.code, Some(0), "{copied:?}");
    let rotate = |program: &str| {
        outcome(case.node.run(program, &[crate::inside::WORD, "kubelet", "rotate", &pod.on_node(Volume::Secret("s"))]))
    };
    case.denied(rotate(&copy));
    case.allowed(rotate(case.node.scratch("kubelet").to_str().unwrap()));
    case.denied(app.cat("/volumes/s/token"));
}

/// The agent's own file, mounted into a container and executed there, is a process of the container's.
fn a_container_that_brings_the_agent_along(case: &Case) {
    let (janusd, pod) = (case.janusd(), case.pod());
    pod.make(Volume::Secret("s"));
    janusd.guard(&pod, &everything());
    let app = pod.start_app("app", &[Volume::Secret("s"), Volume::Agent]);
    janusd.in_force(&pod, &["app"]);
    let on_node = format!("{}/token", pod.on_node(Volume::Secret("s")));
    case.allowed(pod.host(&[&pod.on_node(Volume::Agent), "cat", &on_node]));
    case.denied(pod.host(&["busybox", "cat", &on_node]));
    let inside = ["/busybox", "cat", "/volumes/s/token"];
    case.denied(app.exec(&inside));
    case.denied(app.act(&inside.join(" ")));
}

//! What fails while guards are in force: janusd, the leading controller, a kubelet, the API server.

use std::time::Instant;

use serde_json::Value;

use crate::case::Case;
use crate::e2e_tests;
use crate::janus::{Janus, Kind, NAMESPACE, level};
use crate::probe::{longest_gap, probing, wait_until_seen};
use crate::tenant::{Opened, PATIENCE, denies, pod};

e2e_tests![
    a_killed_daemon_is_waited_for,
    a_killed_daemon_without_a_holder_guards_again,
    a_killed_leader_is_followed,
    a_guard_outlives_a_killed_kubelet,
    a_guard_outlives_the_api_server,
];

/// The holder keeps its groups: nobody gets in while the kubelet starts it again, nor if that takes longer than the holder
/// waits, for the guard says what then.
fn a_killed_daemon_is_waited_for(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("killed-daemon");
    tenant.start(&[probing("web", "node1")]);
    let mut guard = denies("web", &["/etc/secret"], false);
    guard["failurePolicy"] = "Deny".into();
    tenant.guard("web", &guard, 1);
    wait_until_seen(&tenant, "web", 2, Opened::Denied);
    let kill = "for p in $(pidof janusd); do tr '\\0' ' ' < /proc/$p/cmdline | grep -q ' serve ' && kill -9 $p && echo $p; done; true";
    let killed = janus.cluster.nodes[0].run("sh", &["-c", kill]).success();
    assert_eq!(killed.lines().count(), 1, "{killed}");
    let started = Instant::now();
    // Asked again and again, so that it waits whenever nobody answers.
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Denied);
    eprintln!("janusd killed: the next open was answered after {:.1} s", started.elapsed().as_secs_f32());
    janus.wait_until_ready();
    tenant.wait_until_guarded("web", 1);
    let seen = wait_until_seen(&tenant, "web", 2, Opened::Denied);
    assert_eq!(seen.len(), 2, "lifted meanwhile: {seen:?}");
}

fn a_killed_daemon_without_a_holder_guards_again(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("killed-both");
    // Not the node of the other test: a kubelet waits longer each time.
    tenant.start(&[probing("web", "node2")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    wait_until_seen(&tenant, "web", 2, Opened::Denied);
    // Both: they are one program.
    kill_on(&janus, 1, "janusd");
    // The dead deny nobody: read until there is a new one that was told of the guard.
    let seen = wait_until_seen(&tenant, "web", 4, Opened::Denied);
    eprintln!("janusd and holder killed: guarded again after {:.1} s", longest_gap(&seen));
    assert!(longest_gap(&seen) < 20.0, "{seen:?}");
    tenant.wait_until_guarded("web", 1);
    janus.wait_until_ready();
}

fn a_killed_leader_is_followed(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("killed-leader");
    tenant.start(&[pod("web")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    let holder = || {
        let lease = janus.read(Kind::Lease, Some(NAMESPACE), "janus-controller").unwrap_or_default();
        lease.pointer("/spec/holderIdentity").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let before = holder();
    let leader = before.split('_').next().unwrap();
    let node = janus.read(Kind::Pod, Some(NAMESPACE), leader).unwrap()["spec"]["nodeName"].clone();
    let node = janus.cluster.nodes.iter().position(|it| node == it.plan.name.as_str()).unwrap();
    kill_on(&janus, node, "janus-controller");
    let started = Instant::now();
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Denied, "guards do not depend on it");
    // Nobody else may lead before its lease has run out.
    tenant.guard("next", &denies("web", &["/etc/public"], false), 1);
    assert_eq!(tenant.exec("web", "/etc/public"), Opened::Denied);
    assert_ne!(holder(), before);
    eprintln!("leader killed: a new guard in force after {:.1} s", started.elapsed().as_secs_f32());
    janus.wait_until_ready();
}

fn a_guard_outlives_a_killed_kubelet(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("killed-kubelet");
    let node = &janus.cluster.nodes[0];
    tenant.start(&[probing("web", "node1")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    wait_until_seen(&tenant, "web", 2, Opened::Denied);
    node.kill_kubelet();
    // Nothing of a guard needs the kubelet: another one comes into force on the node meanwhile.
    tenant.guard("other", &denies("web", &["/etc/public"], false), 1);
    node.start_kubelet();
    let answers = level(PATIENCE, || tenant.kubectl(&["exec", "web", "-c", "app", "--", "true"]).code == Some(0));
    assert!(answers, "{}", node.kubelet_log());
    assert_eq!(tenant.exec("web", "/etc/public"), Opened::Denied);
    let seen = wait_until_seen(&tenant, "web", 2, Opened::Denied);
    assert_eq!(seen.len(), 2, "lifted meanwhile: {seen:?}");
    janus.wait_until_ready();
}

fn a_guard_outlives_the_api_server(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("killed-server");
    tenant.start(&[probing("web", "node1")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    wait_until_seen(&tenant, "web", 2, Opened::Denied);
    janus.cluster.api.kill();
    janus.cluster.api.start_again();
    let started = Instant::now();
    tenant.guard("other", &denies("web", &["/etc/public"], false), 1);
    assert_eq!(tenant.exec("web", "/etc/public"), Opened::Denied);
    eprintln!("API server killed: a new guard in force {:.1} s after its return", started.elapsed().as_secs_f32());
    let seen = wait_until_seen(&tenant, "web", 2, Opened::Denied);
    assert_eq!(seen.len(), 2, "lifted meanwhile: {seen:?}");
    janus.wait_until_ready();
}

/// Kills a program of the pods of a node.
fn kill_on(janus: &Janus, node: usize, program: &str) {
    janus.cluster.nodes[node].run("sh", &["-c", &format!("kill -9 $(pidof {program})")]).success();
}

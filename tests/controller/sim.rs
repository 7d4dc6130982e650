//! Thousands of nodes: how long until everything is in force, what that takes, and what it costs to keep it so.
//!
//! Daemons speak real gRPC over real TLS, all in this process; the controller is a process of its own, so that memory and
//! CPU time are its alone. The API server is of [`crate::paper`], since a real one would be what is measured.
//!
//! The large ones are for a release build, one at a time:
//! `cargo test --release -p janus-controller --test controller -- --ignored sim`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::certificates::{Authority, NAMESPACE};
use crate::chance::Chance;
use crate::fake::{Daemon, Fleet, Key, wait_until};
use crate::paper::{Kind, Paper};
use crate::process::{Controller, Setting};
use crate::{controller_tests, say};

controller_tests! {
    fifty_nodes,
    a_thousand_nodes.long(),
    two_thousand_five_hundred_nodes.long(),
    five_thousand_nodes.long(),
}

/// Labels of a namespace's pods.
const APPS: usize = 10;
/// Of those, what each of a namespace's two guards selects.
const SELECTED: [std::ops::Range<usize>; 2] = [0..6, 3..7];

/// How much there is.
struct Size {
    nodes: usize,
    pods: usize,
    guards: usize,
    changes: usize,
    rest: Duration,
}

/// What is asked of it.
struct Goals {
    cold: Duration,
    memory_mib: u64,
    change: Duration,
}

fn fifty_nodes() {
    // For a machine with other things to do, without optimisation.
    let goals = Goals { cold: Duration::from_secs(60), memory_mib: 200, change: Duration::from_secs(5) };
    let size = Size { nodes: 50, pods: 1_000, guards: 20, changes: 50, rest: Duration::from_secs(3) };
    simulate(&size, &goals);
}

fn a_thousand_nodes() {
    large(1_000);
}

fn two_thousand_five_hundred_nodes() {
    large(2_500);
}

fn five_thousand_nodes() {
    large(5_000);
}

fn large(nodes: usize) {
    let goals = Goals { cold: Duration::from_secs(30), memory_mib: 300, change: Duration::from_secs(1) };
    let size = Size { nodes, pods: 100_000, guards: 200, changes: 500, rest: Duration::from_secs(30) };
    simulate(&size, &goals);
}

/// The cluster.
struct Sim {
    size: Size,
    fleet: Fleet,
    paper: Paper,
    daemons: Vec<Arc<Daemon>>,
    /// UIDs of guards, by their numbers.
    guards: Vec<String>,
}

fn simulate(size: &Size, goals: &Goals) {
    let authority = Authority::new();
    let began = Instant::now();
    let mut sim = Sim::new(&authority, size);
    let units = sim.fill();
    let Size { nodes, pods, guards, .. } = sim.size;
    let size = &sim.size;
    let name = format!("{nodes} daemons, {pods} pods, {guards} guards");
    say(&format!("simulation of {name}: {units} units, made in {:.0} s", began.elapsed().as_secs_f32()));

    let scratch = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let controller = Controller::start(&Setting {
        kubeconfig: &sim.paper.kubeconfig(scratch.path()),
        port: sim.fleet.port(),
        authority: &authority,
        resync: Duration::from_secs(30),
        elect: false,
        name: "janus-controller-0",
    });
    let long = 10 * goals.cold;
    let in_force = || sim.daemons.iter().map(|daemon| daemon.in_force()).sum::<usize>();
    assert!(wait_until(long, || in_force() == units), "{} of {units} units in force\n{}", in_force(), controller.log());
    let cold = began.elapsed();
    assert!(wait_until(long, || sim.unready() == 0), "{} guards not Ready", sim.unready());
    let ready = began.elapsed();
    let (_, most) = controller.memory();
    say(&format!(
        "simulation of {name}: in force after {:.1} s, all guards Ready after {:.1} s, {:.1} s of CPU, at most {} MiB",
        cold.as_secs_f32(),
        ready.as_secs_f32(),
        controller.cpu().as_secs_f32(),
        most / 1024,
    ));

    // Two resyncs for what is left of the beginning to end.
    let (requests, states, busy) = (sim.paper.counted(), sim.fleet.counts(), controller.cpu());
    std::thread::sleep(size.rest);
    let used = controller.cpu() - busy;
    let (now, later) = (sim.paper.counted(), sim.fleet.counts());
    let (memory, _) = controller.memory();
    say(&format!(
        "simulation of {name}: at rest {} MiB, {:.2} % of a CPU over {} s, {} states asked for ({} unchanged), \
         {} other calls, {} requests to the API server (of those {} to the Lease, {} lists)",
        memory / 1024,
        100.0 * used.as_secs_f64() / size.rest.as_secs_f64(),
        size.rest.as_secs(),
        later.states - states.states,
        later.unchanged - states.unchanged,
        later.accepted + later.refused - states.accepted - states.refused,
        now.requests - requests.requests,
        now.leases - requests.leases,
        now.lists - requests.lists,
    ));

    let mut times = sim.changes(goals.change * 20);
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    say(&format!(
        "simulation of {name}: one pod's change to its guard in force: p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms ({} changes)",
        at(50).as_secs_f64() * 1000.0,
        at(99).as_secs_f64() * 1000.0,
        at(100).as_secs_f64() * 1000.0,
        times.len(),
    ));
    assert!(sim.fleet.usurped().is_empty() && sim.fleet.breaches().is_empty());
    let connections = sim.daemons.iter().filter(|daemon| daemon.connections() != (1, 1)).count();
    assert_eq!(connections, 0, "daemons with more than one connection, or none");
    assert!(cold <= goals.cold, "in force after {cold:?}");
    assert!(most / 1024 <= goals.memory_mib, "{} MiB", most / 1024);
    assert!(at(99) <= goals.change, "p99 is {:?}", at(99));
}

impl Sim {
    fn new(authority: &Authority, size: &Size) -> Sim {
        let fleet = Fleet::start(Some(authority));
        fleet.remember(0);
        let Size { nodes, pods, guards, changes, rest } = *size;
        let size = Size { nodes, pods, guards, changes, rest };
        Sim { size, fleet, paper: Paper::start(), daemons: Vec::new(), guards: Vec::new() }
    }

    /// Makes all there is; how many units follow.
    fn fill(&mut self) -> usize {
        for node in 0..self.size.nodes {
            let daemon = self.fleet.add(&node_name(node));
            self.paper.put(Kind::Pod, daemon_pod(node, &daemon.ip.to_string()));
            self.daemons.push(daemon);
        }
        for number in 0..self.size.guards {
            let made = self.paper.put(Kind::Guard, guard(number));
            self.guards.push(made["metadata"]["uid"].as_str().unwrap().to_owned());
        }
        (0..self.size.pods).map(|number| self.add_pod(number, self.app(number))).sum()
    }

    /// The namespace of a pod: two guards have one.
    fn namespace(&self, pod: usize) -> usize {
        pod % (self.size.guards / 2)
    }

    /// The label that a pod has at first.
    fn app(&self, pod: usize) -> usize {
        pod / (self.size.guards / 2) % APPS
    }

    fn node(&self, pod: usize) -> usize {
        // Pods of one namespace lie on all nodes.
        pod * 7919 % self.size.nodes
    }

    /// Puts a pod there, or another label on it; how many guards select it.
    fn add_pod(&self, number: usize, app: usize) -> usize {
        let node = self.node(number);
        let made = self.paper.put(Kind::Pod, pod(number, self.namespace(number), node, app));
        let uid = made["metadata"]["uid"].as_str().unwrap();
        for name in ["app", "proxy"] {
            self.daemons[node].start_container(uid, name, &container_id(number, name));
        }
        SELECTED.iter().filter(|selected| selected.contains(&app)).count()
    }

    /// Guards whose status does not say that all is well.
    fn unready(&self) -> usize {
        let ready = |guard: &Value| {
            let conditions = guard["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
                && guard["status"]["observablePods"].as_u64().unwrap_or(0) > 0
        };
        self.paper.all(Kind::Guard).iter().filter(|guard| !ready(guard)).count()
    }

    /// One pod after the other gets a label by which a guard selects it: how long until it is in force there.
    fn changes(&self, deadline: Duration) -> Vec<Duration> {
        let mut chance = Chance::new(1);
        let mut times = Vec::new();
        let unselected = (0..self.size.pods).filter(|pod| self.app(*pod) >= 7);
        let mut pods: Vec<usize> = unselected.collect();
        while times.len() < self.size.changes && !pods.is_empty() {
            let number = pods.swap_remove(chance.among(0..pods.len()));
            let namespace = self.namespace(number);
            let daemon = &self.daemons[self.node(number)];
            let uid = self.paper.get(Kind::Pod, &namespace_name(namespace), &pod_name(number)).unwrap();
            let unit = Key::new(&self.guards[2 * namespace], uid["metadata"]["uid"].as_str().unwrap());
            assert_eq!(daemon.generation(&unit), None);
            let began = Instant::now();
            self.add_pod(number, 0);
            let in_force = || daemon.generation(&unit).is_some();
            while !in_force() {
                assert!(began.elapsed() < deadline, "pod {number} not guarded within {deadline:?}");
                std::thread::sleep(Duration::from_micros(200));
            }
            times.push(began.elapsed());
        }
        times
    }
}

fn node_name(number: usize) -> String {
    format!("node-{number}.example.internal")
}

fn namespace_name(number: usize) -> String {
    format!("team-{number}")
}

fn pod_name(number: usize) -> String {
    format!("workload-{number}-5d4f8c7b9d")
}

fn container_id(pod: usize, name: &str) -> String {
    format!("{:064x}", pod * 2 + usize::from(name == "app"))
}

fn guard(number: usize) -> Value {
    let (namespace, which) = (number / 2, number % 2);
    let apps: Vec<String> = SELECTED[which].clone().map(|app| format!("app-{app}")).collect();
    json!({
        "metadata": { "namespace": namespace_name(namespace), "name": format!("guard-{which}") },
        "spec": {
            "selector": { "matchExpressions": [{ "key": "app", "operator": "In", "values": apps }] },
            "subjects": [
                { "name": "secrets", "deny": ["/var/run/secrets/**", "/etc/shadow"], "events": ["open"],
                  "autoAllowOwner": true, "tags": { "team": namespace_name(namespace), "severity": "high" } },
                { "name": "tools", "deny": ["/usr/bin/curl", "/usr/bin/wget", "/bin/sh"], "events": ["execute"] },
            ],
        },
    })
}

fn daemon_pod(node: usize, ip: &str) -> Value {
    json!({
        "metadata": {
            "namespace": NAMESPACE, "name": format!("janusd-{node}"),
            "labels": { "app.kubernetes.io/name": "janusd", "app.kubernetes.io/part-of": "janus" },
        },
        "spec": { "nodeName": node_name(node), "containers": [{ "name": "janusd" }] },
        "status": { "phase": "Running", "podIP": ip, "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

/// A pod as large as they are: most of it is nothing to the controller.
fn pod(number: usize, namespace: usize, node: usize, app: usize) -> Value {
    let status = |name: &str| {
        json!({
            "name": name, "containerID": format!("containerd://{}", container_id(number, name)), "ready": true,
            "image": "registry.example.com/team/service:1.2.3", "started": true, "restartCount": 0,
            "imageID": format!("registry.example.com/team/service@sha256:{:064x}", 7),
            "state": { "running": { "startedAt": "2026-01-02T03:04:05Z" } }, "lastState": {},
        })
    };
    let container = |name: &str| {
        json!({
            "name": name, "image": "registry.example.com/team/service:1.2.3", "imagePullPolicy": "IfNotPresent",
            "env": [{ "name": "LOG_LEVEL", "value": "info" }, { "name": "POD_IP",
                "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "status.podIP" } } }],
            "ports": [{ "containerPort": 8080, "name": "http", "protocol": "TCP" }],
            "resources": { "limits": { "cpu": "1", "memory": "512Mi" }, "requests": { "cpu": "100m", "memory": "128Mi" } },
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "volumeMounts": [{ "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "token", "readOnly": true }],
        })
    };
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-02T03:04:05Z" });
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    let uid = format!("5e1ec7ed-0000-4000-8000-{number:012x}");
    json!({
        "metadata": {
            "namespace": namespace_name(namespace), "name": pod_name(number), "uid": uid,
            "generateName": format!("workload-{number}-"), "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": { "app": format!("app-{app}"), "pod-template-hash": format!("{app:010}"), "tier": "backend" },
            "annotations": { "prometheus.io/scrape": "true", "checksum/config": format!("{:064x}", 9) },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("workload-{app}"),
                "uid": format!("5e1ec7ed-0000-4000-9000-{app:012x}"), "controller": true, "blockOwnerDeletion": true }],
        },
        "spec": {
            "nodeName": node_name(node), "containers": [container("app"), container("proxy")],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "priority": 0, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "serviceAccountName": "default",
            "terminationGracePeriodSeconds": 30,
            "tolerations": [{ "effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists",
                "tolerationSeconds": 300 }],
            "volumes": [{ "name": "token", "projected": { "defaultMode": 420, "sources": [
                { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } }] } }],
        },
        "status": {
            "phase": "Running", "podIP": "10.1.2.3", "podIPs": [{ "ip": "10.1.2.3" }], "hostIP": "10.0.0.1",
            "qosClass": "Burstable", "startTime": "2026-01-02T03:04:05Z",
            "conditions": conditions,
            "containerStatuses": [status("app"), status("proxy")],
        },
    })
}

//! What the harness promises to the other modules.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::case::{Case, NODES};
use crate::cluster::{Cluster, archive_of};
use crate::watchdog::wait_until;
use crate::{e2e_tests, image, room};

e2e_tests![
    pods_run_on_every_node,
    pods_reach_the_api_server_and_each_other,
    a_killed_kubelet_comes_back,
    containers_outlive_their_runtime,
    an_unplugged_node_is_lost_and_found,
    a_program_of_ours_is_an_image,
    nothing_is_left_behind,
];

/// How long a pod may take to start, or to go.
const POD: Duration = Duration::from_secs(60);

/// A pod of the image that every node has, on a node.
fn pod(name: &str, node: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": image::NAME, "imagePullPolicy": "Never"}],
        },
    })
    .to_string()
}

fn start_everywhere(cluster: &Cluster) -> Vec<String> {
    let admin = cluster.admin();
    let start = |number: u8| {
        let name = format!("pod{number}");
        admin.apply(&pod(&name, &format!("node{number}")));
        name
    };
    let names: Vec<String> = (1..=NODES).map(start).collect();
    for name in &names {
        let limit = format!("--timeout={}s", POD.as_secs());
        admin.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), &limit]).success();
    }
    names
}

fn delete(cluster: &Cluster, names: &[String]) {
    for name in names {
        cluster.admin().kubectl(&["delete", "pod", name]).success();
    }
}

fn pods_run_on_every_node(case: &Case) {
    let cluster = case.cluster();
    let names = start_everywhere(&cluster);
    for (name, node) in names.iter().zip(&cluster.nodes) {
        let said = cluster.admin().kubectl(&["exec", name, "--", "cat", "/etc/secret"]).success();
        assert_eq!(said, "/etc/secret\n");
        // Seen from the node as well: the kubelet's containers are in the node's own runtime.
        let containers = node.run("ctr", &["-n", "k8s.io", "tasks", "ls"]).success();
        assert_eq!(containers.matches("RUNNING").count(), 2, "sandbox and container: {containers}");
        cluster.admin().kubectl(&["logs", name]).success();
    }
    delete(&cluster, &names);
}

fn pods_reach_the_api_server_and_each_other(case: &Case) {
    let cluster = case.cluster();
    let names = start_everywhere(&cluster);
    let admin = cluster.admin();
    let address = admin.kubectl(&["get", "pod", &names[1], "-o", "jsonpath={.status.podIP}"]).success();
    let ping = admin.kubectl(&["exec", &names[0], "--", "ping", "-c", "1", "-W", "5", &address]);
    assert_eq!(ping.code, Some(0), "{ping:?}");
    let open = "nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null";
    let mut last = None;
    // kube-proxy may take a moment.
    let reached = wait_until(POD, || {
        let output = admin.kubectl(&["exec", &names[0], "--", "sh", "-c", open]);
        let reached = output.code == Some(0);
        last = Some(output);
        reached
    });
    assert!(reached, "{last:?}");
    delete(&cluster, &names);
}

fn a_killed_kubelet_comes_back(case: &Case) {
    let cluster = case.cluster();
    let names = start_everywhere(&cluster);
    let node = &cluster.nodes[0];
    let exec = || cluster.admin().kubectl(&["exec", &names[0], "--", "true"]).code == Some(0);
    node.kill_kubelet();
    assert!(!exec());
    let tasks = node.run("ctr", &["-n", "k8s.io", "tasks", "ls"]).success();
    assert!(tasks.contains("RUNNING"), "{tasks}");
    node.start_kubelet();
    assert!(wait_until(POD, exec), "{}", node.kubelet_log());
    delete(&cluster, &names);
}

fn containers_outlive_their_runtime(case: &Case) {
    let cluster = case.cluster();
    let names = start_everywhere(&cluster);
    let node = &cluster.nodes[1];
    let exec = || cluster.admin().kubectl(&["exec", &names[1], "--", "true"]).code == Some(0);
    let tasks = || {
        let told = node.run("ctr", &["-n", "k8s.io", "tasks", "ls", "--quiet"]).success();
        told.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = tasks();
    node.restart_containerd();
    assert_eq!(tasks(), before);
    assert!(wait_until(POD, exec), "{}", node.kubelet_log());
    delete(&cluster, &names);
}

fn an_unplugged_node_is_lost_and_found(case: &Case) {
    let cluster = case.cluster();
    let ready = |is: &str| {
        let template = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        wait_until(POD, || cluster.admin().kubectl(&["get", "node", "node2", "-o", template]).success() == is)
    };
    cluster.set_plugged(&cluster.nodes[1], false);
    let lost = ready("Unknown");
    cluster.set_plugged(&cluster.nodes[1], true);
    assert!(lost && ready("True"));
}

fn a_program_of_ours_is_an_image(case: &Case) {
    const NAME: &str = "localhost/janus-controller:test";
    let cluster = case.cluster();
    let program = Path::new(env!("CARGO_BIN_EXE_janus-controller"));
    cluster.import(&archive_of(cluster.api.deputy.scratch(), NAME, program));
    let run = ["run", "prints", "--restart=Never", "--image-pull-policy=Never"];
    let image = format!("--image={NAME}");
    cluster.admin().kubectl(&[run.as_slice(), &[&image, "--", "crd"]].concat()).success();
    // By its log: whoever attaches to what ends at once may come too late.
    let mut printed = String::new();
    let whole = wait_until(POD, || {
        let log = cluster.admin().kubectl(&["logs", "prints"]);
        printed = format!("{log:?}");
        log.code == Some(0) && printed.contains("kind: CustomResourceDefinition")
    });
    assert!(whole, "{printed}");
    delete(&cluster, &["prints".to_owned()]);
}

fn nothing_is_left_behind(case: &Case) {
    let cluster = case.own_cluster(1);
    let admin = cluster.admin();
    admin.apply(&pod("stays", "node1"));
    admin.kubectl(&["wait", "--for=condition=Ready", "pod/stays", "--timeout=60s"]).success();
    let places = [&cluster.api.deputy, &cluster.nodes[0].deputy].map(|deputy| deputy.scratch().to_owned());
    let cgroup = room::cgroup(&places[1]);
    let cgroups = || room::hierarchies().iter().filter(|hierarchy| hierarchy.join(&cgroup).exists()).count();
    let first = format!("/proc/{}", cluster.nodes[0].deputy.first());
    assert!(cgroups() > 0 && Path::new(&first).exists());
    drop(cluster);
    assert_eq!(cgroups(), 0);
    // With the first process of a pid namespace all others have ended.
    assert!(!Path::new(&first).exists());
    assert!(places.iter().all(|place| !place.exists()));
}

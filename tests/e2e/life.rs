//! Pods and containers that come and go under a guard.
//!
//! A container is guarded before its first instruction: what its entrypoint opens at once is denied already, whenever the
//! guard was there before it.

use serde_json::{Value, json};

use crate::case::Case;
use crate::e2e_tests;
use crate::janus::{Kind, level};
use crate::tenant::{Opened, PATIENCE, Tenant, container, denies, guard, pod};
use crate::{image, node};

e2e_tests![
    a_pod_that_is_made_again_is_guarded,
    a_container_that_restarts_is_guarded,
    an_init_container_is_guarded,
    an_ephemeral_container_is_guarded,
    a_static_pod_is_guarded,
    pods_with_guarded_volumes_end_in_time,
];

fn a_pod_that_is_made_again_is_guarded(case: &Case) {
    let tenant = case.janus().tenant("again");
    tenant.start(&[pod("web")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    tenant.delete_pod("web");
    tenant.wait_until_guarded("web", 0);
    tenant.start(&[pod("web")]);
    tenant.wait_until_guarded("web", 1);
    assert_eq!((tenant.exec("web", "/etc/secret"), tenant.app("web", "/etc/secret")), (Opened::Denied, Opened::Denied));
}

fn a_container_that_restarts_is_guarded(case: &Case) {
    let tenant = case.janus().tenant("restart");
    tenant.start(&[pod("web")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    // Its own PID 1 cannot be killed from within; it ends when it is told to, and who has told it may end with it.
    tenant.kubectl(&["exec", "web", "--", "kill", "-TERM", "1"]);
    let restarts = || tenant.read(Kind::Pod, "web").map(|pod| pod["status"]["containerStatuses"][0].clone());
    let again = level(PATIENCE, || restarts().is_some_and(|it| it["restartCount"] == 1 && it["ready"] == true));
    assert!(again, "{}", tenant.kubectl(&["describe", "pod", "web"]).stdout);
    tenant.wait_until_guarded("web", 1);
    assert_eq!((tenant.exec("web", "/etc/secret"), tenant.app("web", "/etc/secret")), (Opened::Denied, Opened::Denied));
}

/// Opens the file until somebody has denied it, and says how often it could read it before.
const UNTIL_DENIED: &str = "n=0; while cat /etc/secret >/dev/null; do n=$((n+1)); sleep 0.1; done; echo read $n times";

fn an_init_container_is_guarded(case: &Case) {
    let tenant = case.janus().tenant("init");
    // It ends as soon as it is denied, and the pod is ready after that.
    let mut web = pod("web");
    web["spec"]["initContainers"] = json!([{
        "name": "first", "image": image::NAME, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", UNTIL_DENIED],
    }]);
    tenant.apply(&guard("web", &denies("web", &["/etc/secret"], false)));
    tenant.start(&[web]);
    let said = tenant.kubectl(&["logs", "web", "-c", "first"]).success();
    assert!(said.contains("Operation not permitted"), "{said}");
    eprintln!("an init container, before it was denied: {}", said.lines().last().unwrap_or_default());
    tenant.wait_until_guarded("web", 1);
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Denied);
}

fn an_ephemeral_container_is_guarded(case: &Case) {
    let tenant = case.janus().tenant("debug");
    tenant.start(&[pod("web")]);
    let debug = |name: &str| {
        let (image, name) = (format!("--image={}", image::NAME), format!("--container={name}"));
        let script = format!("while ! test -e /tmp/go; do sleep 0.1; done; {UNTIL_DENIED}");
        tenant
            .kubectl(&[
                "debug",
                "web",
                &image,
                "--image-pull-policy=Never",
                &name,
                "--target=app",
                "--",
                "sh",
                "-c",
                &script,
            ])
            .success();
    };
    // The control: without a guard it reads for as long as it is let.
    debug("before");
    let read = || tenant.kubectl(&["exec", "web", "-c", "before", "--", "cat", "/etc/secret"]);
    assert!(level(PATIENCE, || read().code == Some(0)), "{:?}", read());
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    debug("after");
    tenant.kubectl(&["exec", "web", "-c", "before", "--", "touch", "/tmp/go"]).success();
    assert!(
        level(PATIENCE, || tenant.kubectl(&["exec", "web", "-c", "after", "--", "touch", "/tmp/go"]).code == Some(0))
    );
    for name in ["before", "after"] {
        let log = || tenant.kubectl(&["logs", "web", "-c", name]).stdout;
        assert!(level(PATIENCE, || log().contains("times")), "{name}: {}", log());
        assert!(log().contains("Operation not permitted"), "{name}: {}", log());
    }
}

fn a_static_pod_is_guarded(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("static");
    let node = &janus.cluster.nodes[0];
    let mut manifest = pod("still");
    manifest["metadata"]["namespace"] = json!(tenant.name);
    let file = Manifest::put(node, "still.json", &manifest);
    let name = format!("still-{}", node.plan.name);
    assert!(level(PATIENCE, || tenant.read(Kind::Pod, &name).is_some()), "no mirror: {}", node.kubelet_log());
    tenant.wait_until_ready(&name);
    assert_eq!(tenant.exec(&name, "/etc/secret"), Opened::Read);
    tenant.guard("still", &denies("still", &["/etc/secret"], true), 1);
    assert_eq!(tenant.exec(&name, "/etc/secret"), Opened::Denied);
    assert_eq!(tenant.app(&name, "/etc/secret"), Opened::Read);
    drop(file);
    let gone = level(PATIENCE, || janus.is_absent(Kind::Pod, Some(&tenant.name), &name));
    assert!(gone, "{}", node.kubelet_log());
}

/// A static pod's manifest, for as long as the pod is to live.
struct Manifest(std::path::PathBuf);

impl Manifest {
    fn put(node: &node::Node, name: &str, manifest: &Value) -> Manifest {
        let file = node.static_pods().join(name);
        std::fs::write(&file, manifest.to_string()).unwrap();
        Manifest(file)
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.0);
    }
}

fn pods_with_guarded_volumes_end_in_time(case: &Case) {
    let tenant = case.janus().tenant("teardown");
    tenant.kubectl(&["create", "secret", "generic", "app", "--from-literal=key=s3cret"]).success();
    tenant.kubectl(&["create", "configmap", "app", "--from-literal=key=public"]).success();
    let volumes = json!([
        {"name": "secret", "secret": {"secretName": "app"}},
        {"name": "config", "configMap": {"name": "app"}},
        {"name": "empty", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "all", "projected": {"sources": [
            {"secret": {"name": "app"}}, {"serviceAccountToken": {"path": "token"}},
        ]}},
    ]);
    let mounts: Vec<Value> = ["secret", "config", "empty", "memory", "all"]
        .iter()
        .map(|name| json!({"name": name, "mountPath": format!("/volumes/{name}")}))
        .collect();
    let names = ["web1", "web2"];
    let pods = names.map(|name| {
        let mut web = pod(name);
        web["metadata"]["labels"] = json!({"app": "web"});
        web["spec"]["volumes"] = volumes.clone();
        let mut own = container();
        own["volumeMounts"] = json!(mounts);
        web["spec"]["containers"][0] = own;
        web
    });
    tenant.start(&pods);
    let everything = json!({
        "selector": {"matchLabels": {"app": "web"}}, "failurePolicy": "Deny",
        "subjects": [{"deny": ["/volumes"], "events": ["all"]}, {"deny": ["/volumes/secret"], "mount": true, "events": ["all"]}],
    });
    assert_eq!(tenant.exec("web1", "/volumes/secret/key"), Opened::Read);
    tenant.guard("web", &everything, 2);
    for file in ["secret/key", "config/key", "all/token"] {
        assert_eq!(tenant.exec("web1", &format!("/volumes/{file}")), Opened::Denied, "{file}");
    }
    end_within(&tenant, &names, 15.0);
    tenant.wait_until_guarded("web", 0);
}

/// Deletes pods, which must have gone within so many seconds, with all that the kubelet had of them.
fn end_within(tenant: &Tenant, pods: &[&str], seconds: f32) {
    let started = std::time::Instant::now();
    let uids: Vec<String> = pods
        .iter()
        .map(|pod| tenant.read(Kind::Pod, pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned())
        .collect();
    tenant.kubectl(&[&["delete", "pod", "--wait=false"], pods].concat()).success();
    let gone = || pods.iter().all(|pod| tenant.janus.is_absent(Kind::Pod, Some(&tenant.name), pod));
    assert!(level(PATIENCE, gone), "{}", tenant.kubectl(&["get", "pods", "-o", "yaml"]).stdout);
    let took = started.elapsed().as_secs_f32();
    eprintln!("pods with guarded volumes: gone after {took:.1} s");
    assert!(took < seconds, "{took} s");
    let left = || -> Vec<std::path::PathBuf> {
        let homes =
            tenant.janus.cluster.nodes.iter().map(|node| {
                std::path::PathBuf::from(format!("/proc/{}/root/var/lib/kubelet/pods", node.deputy.first()))
            });
        homes.flat_map(|home| uids.iter().map(move |uid| home.join(uid))).filter(|home| home.exists()).collect()
    };
    assert!(level(PATIENCE, || left().is_empty()), "the kubelet still has {:?}", left());
}

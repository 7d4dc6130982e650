//! A guard on pods: who is denied, and what the guard says of it.

use serde_json::json;

use crate::case::{Case, NODES};
use crate::e2e_tests;
use crate::tenant::{Opened, denies, deployment, pod};

e2e_tests![pods_of_a_deployment_on_both_nodes, a_secret_is_for_the_app];

fn pods_of_a_deployment_on_both_nodes(case: &Case) {
    let tenant = case.janus().tenant("deployment");
    let pods = tenant.deploy(&deployment("web", NODES));
    assert_ne!(pods[0].1, pods[1].1, "both are on one node");
    for (pod, _) in &pods {
        assert_eq!((tenant.exec(pod, "/etc/secret"), tenant.app(pod, "/etc/secret")), (Opened::Read, Opened::Read));
    }
    tenant.guard("web", &denies("web", &["/etc/secret"], true), NODES.into());
    for (pod, node) in &pods {
        assert_eq!(tenant.exec(pod, "/etc/secret"), Opened::Denied, "on {node}");
        assert_eq!(tenant.app(pod, "/etc/secret"), Opened::Read, "on {node}");
        assert_eq!(tenant.exec(pod, "/etc/public"), Opened::Read, "on {node}");
    }
    let shown = tenant.kubectl(&["get", "jg", "web", "--no-headers"]).success();
    let columns: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(columns[..5], ["web", "2", "2", "Enforce", "True"], "{shown}");
}

fn a_secret_is_for_the_app(case: &Case) {
    const TOKEN: &str = "/etc/app-secret/token";
    let tenant = case.janus().tenant("secret");
    tenant.kubectl(&["create", "secret", "generic", "app", "--from-literal=token=s3cret"]).success();
    let mut web = pod("web");
    web["spec"]["volumes"] = json!([{"name": "secret", "secret": {"secretName": "app"}}]);
    web["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "secret", "mountPath": "/etc/app-secret"}]);
    tenant.start(&[web]);
    assert_eq!((tenant.exec("web", TOKEN), tenant.app("web", TOKEN)), (Opened::Read, Opened::Read));
    // The example is for pods with the label app=web.
    let example = crate::janus::deploy().join("examples/exec-secret-readers.yaml");
    tenant.kubectl(&["apply", "-f", example.to_str().unwrap()]).success();
    tenant.wait_until_guarded("exec-secret-readers", 1);
    assert_eq!((tenant.exec("web", TOKEN), tenant.app("web", TOKEN)), (Opened::Denied, Opened::Read));
    // By the name that the kubelet has put it under as well.
    assert_eq!(tenant.exec("web", "/etc/app-secret/..data/token"), Opened::Denied);
}

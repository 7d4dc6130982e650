//! Janus on a cluster, shown: `cargo test --workspace --test e2e -- demo` brings a cluster up, installs Janus, guards a
//! Secret, and prints what a user would type and what comes of it. Then everything is taken down.
//!
//! It is a test like the others: what is shown must be so.

use std::io::Write;

use serde_json::json;

use crate::case::{Case, NODES};
use crate::e2e_tests;
use crate::janus::deploy;
use crate::program::Output;
use crate::tenant::{Opened, Tenant, deployment};

e2e_tests![demo];

const TOKEN: &str = "/etc/app-secret/token";

fn demo(case: &Case) {
    show("# A cluster: etcd, API server, scheduler, controllers, two nodes with kubelet, containerd and runc.\n");
    let cluster = case.cluster();
    tell("kubectl get nodes -o wide", &cluster.admin().kubectl(&["get", "nodes", "-o", "wide"]));
    let janus = case.janus_telling(&tell);
    let system = |command: &str| {
        let output = run(|words| janus.kubectl(words), command);
        tell(&format!("kubectl {command}"), &output);
    };
    system("-n janus-system get pods -o wide");
    system("-n janus-system get daemonset janusd -o jsonpath={.spec.template.spec.containers[0].securityContext}");

    let tenant = janus.tenant("shop");
    let kubectl = |command: &str| {
        let output = run(|words| tenant.kubectl(words), command);
        tell(&format!("kubectl {command}"), &output);
        output
    };
    show(&format!("\n# An app with a Secret, on both nodes; from here on in namespace {}.\n", tenant.name));
    kubectl("create secret generic app-secret --from-literal=token=s3cret").success();
    let mut web = deployment("web", NODES);
    let spec = &mut web["spec"]["template"]["spec"];
    spec["volumes"] = json!([{"name": "secret", "secret": {"secretName": "app-secret"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "secret", "mountPath": "/etc/app-secret"}]);
    let pods = tenant.deploy(&web);
    kubectl("get pods -o wide").success();
    let pod = &pods[0].0;
    kubectl(&format!("exec {pod} -- cat {TOKEN}")).success();

    show("\n# For the app, and not for kubectl exec.\n");
    kubectl("apply -f deploy/examples/exec-secret-readers.yaml").success();
    kubectl("wait --for=condition=Ready jg/exec-secret-readers").success();
    tenant.wait_until_guarded("exec-secret-readers", NODES.into());
    kubectl("get jg -A").success();
    for (pod, node) in &pods {
        let denied = kubectl(&format!("exec {pod} -- cat {TOKEN}"));
        assert!(denied.stderr.contains("Operation not permitted"), "on {node}: {denied:?}");
        by_the_app(&tenant, pod);
    }
    kubectl("describe jg exec-secret-readers").success();
    let logs = "-n janus-system logs -l app.kubernetes.io/name=janusd --prefix";
    let lines = run(|words| janus.kubectl(words), logs).success();
    let stdout = lines.lines().filter(|line| line.contains("DENY")).map(|line| format!("{line}\n")).collect::<String>();
    assert!(stdout.contains(pod.as_str()), "no line of a denial: {lines}");
    tell(&format!("kubectl {logs} | grep DENY"), &Output { code: Some(0), stdout, stderr: String::new() });

    show("\n# The guard goes, and so does the denial.\n");
    kubectl("delete jg exec-secret-readers").success();
    kubectl(&format!("exec {pod} -- cat {TOKEN}")).success();
}

/// The app reads it: it was asked to, through a pipe.
fn by_the_app(tenant: &Tenant, pod: &str) {
    assert_eq!(tenant.app(pod, TOKEN), Opened::Read);
    show(&format!("# {pod}: its app opens {TOKEN}, and reads it.\n"));
}

/// A command of kubectl, with files of `deploy/` where they are.
fn run(kubectl: impl Fn(&[&str]) -> Output, command: &str) -> Output {
    let place = |word: &str| match word.strip_prefix("deploy/") {
        Some(file) => deploy().join(file).display().to_string(),
        None => word.to_owned(),
    };
    let words: Vec<String> = command.split(' ').map(place).collect();
    kubectl(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn tell(command: &str, output: &Output) {
    show(&format!("$ {command}\n{}{}", output.stdout, output.stderr));
    if !output.stdout.is_empty() && !output.stdout.ends_with('\n') {
        show("\n");
    }
}

fn show(text: &str) {
    // Whoever does not read it misses a show, and no more.
    let _lost = std::io::stdout().write_all(text.as_bytes());
}

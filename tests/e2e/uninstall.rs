//! How Janus goes: with its controller, and where that has gone first.

use std::process::Command;
use std::time::Duration;

use crate::case::Case;
use crate::e2e_tests;
use crate::janus::{Janus, Kind, NAMESPACE, level};
use crate::program::{Output, run};
use crate::tenant::{Opened, PATIENCE, condition, denies, pod};

e2e_tests![a_namespace_without_a_controller_is_let_go, nothing_is_left_of_an_installation];

const LIMIT: Duration = Duration::from_secs(20);

fn a_namespace_without_a_controller_is_let_go(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("left");
    tenant.start(&[pod("web")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    let controllers = Absent::make(&janus);
    tenant.kubectl(&["delete", "namespace", &tenant.name, "--wait=false"]).success();
    // The control: it waits for the guard, and for nothing else.
    let waits = level(PATIENCE, || {
        let namespace = janus.read(Kind::Namespace, None, &tenant.name).unwrap_or_default();
        let why = condition(&namespace["status"], "NamespaceFinalizersRemaining");
        why["status"] == "True"
            && why["message"].as_str().is_some_and(|it| it.contains("januscontroller"))
            && janus.is_absent(Kind::Pod, Some(&tenant.name), "web")
    });
    assert!(waits, "{}", janus.kubectl(&["get", "namespace", &tenant.name, "-o", "yaml"]).stdout);
    let said = let_go(&janus).stderr;
    assert!(said.contains("1 guards let go"), "{said}");
    assert!(level(PATIENCE, || janus.is_absent(Kind::Namespace, None, &tenant.name)));
    drop(controllers);
    janus.wait_until_ready();
}

fn nothing_is_left_of_an_installation(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("uninstalled");
    tenant.start(&[pod("web")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Denied);
    janus.kubectl(&["delete", "jg", "-A", "--all"]).success();
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Read);
    let overlay = janus.overlay().to_str().unwrap().to_owned();
    // The job that makes certificates goes by itself.
    janus.kubectl(&["delete", "-k", &overlay, "--ignore-not-found", "--wait=false"]).success();
    let left = || janus.kubectl(&["get", "-k", &overlay, "--ignore-not-found", "-o", "name"]);
    // Asked for a kind that has gone, kubectl says so.
    let gone = |output: &Output| {
        output.stdout.is_empty() && (output.code == Some(0) || output.stderr.contains("doesn't have a resource"))
    };
    assert!(level(PATIENCE, || gone(&left())), "{:?}", left());
    for node in &janus.cluster.nodes {
        let gone = level(PATIENCE, || node.run("pidof", &["janusd", "janus-controller"]).code == Some(1));
        assert!(gone, "{}: {}", node.plan.name, node.run("ps", &["ax"]).stdout);
    }
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Read);
    crate::case::uninstalled();
}

/// `janus-controller uninstall`, as an administrator runs it.
fn let_go(janus: &Janus) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_janus-controller"));
    command.arg("uninstall").env("KUBECONFIG", janus.cluster.admin().kubeconfig()).env("NO_PROXY", "*");
    let output = run(command, "", LIMIT).unwrap();
    assert_eq!(output.code, Some(0), "{output:?}");
    output
}

/// No controller, for as long as it lives.
struct Absent<'a>(&'a Janus);

impl<'a> Absent<'a> {
    fn make(janus: &'a Janus) -> Absent<'a> {
        let absent = Absent(janus);
        absent.scale("0");
        let pods = || janus.list(Kind::Pod, NAMESPACE, "app.kubernetes.io/name=janus-controller");
        assert!(level(PATIENCE, || pods().is_empty()));
        absent
    }

    fn scale(&self, replicas: &str) {
        let replicas = format!("--replicas={replicas}");
        self.0.kubectl(&["-n", NAMESPACE, "scale", "deployment/janus-controller", &replicas]).success();
    }
}

impl Drop for Absent<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.scale("2");
        }
    }
}

//! New versions of Janus, while guards are in force.

use crate::case::Case;
use crate::e2e_tests;
use crate::janus::NAMESPACE;
use crate::probe::{probing, seen, wait_until_seen};
use crate::tenant::{Opened, denies};

e2e_tests![daemons_roll_out, controllers_roll_out];

fn daemons_roll_out(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("daemons");
    let pods = ["node1", "node2"];
    let probes = pods.map(|node| {
        let mut pod = probing(node, node);
        pod["metadata"]["labels"]["app"] = "web".into();
        pod
    });
    tenant.start(&probes);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 2);
    for pod in pods {
        wait_until_seen(&tenant, pod, 2, Opened::Denied);
    }
    // One takes a minute or so; more of them: JANUS_ROLLOUTS.
    let turns = std::env::var("JANUS_ROLLOUTS").ok().and_then(|turns| turns.parse().ok()).unwrap_or(1);
    for turn in 1..=turns {
        janus.kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/janusd"]).success();
        janus.wait_until_ready();
        for pod in pods {
            let seen = wait_until_seen(&tenant, pod, 2, Opened::Denied);
            assert_eq!(seen.len(), 2, "turn {turn}: lifted on {pod} meanwhile: {seen:?}");
        }
        eprintln!("janusd rolled out, turn {turn}: lifted nowhere");
    }
    for pod in pods {
        assert_eq!(tenant.exec(pod, "/etc/secret"), Opened::Denied);
    }
    tenant.wait_until_guarded("web", 2);
}

fn controllers_roll_out(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("controllers");
    tenant.start(&[probing("web", "node1")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    wait_until_seen(&tenant, "web", 2, Opened::Denied);
    janus.kubectl(&["-n", NAMESPACE, "rollout", "restart", "deployment/janus-controller"]).success();
    janus.wait_until_ready();
    tenant.guard("other", &denies("web", &["/etc/public"], false), 1);
    assert_eq!(tenant.exec("web", "/etc/public"), Opened::Denied);
    assert_eq!(seen(&tenant, "web").len(), 2, "lifted meanwhile: {:?}", seen(&tenant, "web"));
}

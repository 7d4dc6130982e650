//! What the harness promises to the other modules.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::json;

use crate::case::Case;
use crate::cluster_tests;
use crate::watchdog::wait_until;

cluster_tests![
    a_pod_can_be_made_up,
    a_user_may_do_what_it_was_granted,
    a_service_account_has_a_token,
    a_server_can_be_killed_and_frozen,
    nothing_is_left_behind,
];

const LIMIT: Duration = Duration::from_secs(20);

/// On any node, with any status, and gone at once.
fn a_pod_can_be_made_up(case: &Case) {
    let api = case.api();
    let namespace = case.namespace(&api);
    case.within(LIMIT, async {
        let pods: Api<Pod> = Api::namespaced(api.admin().client().await, &namespace);
        let pod = json!({
            "metadata": {"name": "web"},
            "spec": {"nodeName": "nowhere", "containers": [{"name": "app", "image": "none"}]},
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let status = json!({"status": {"phase": "Running", "podIP": "10.1.2.3"}});
        let patch = kube::api::Patch::Merge(status);
        let pod = pods.patch_status("web", &kube::api::PatchParams::default(), &patch).await.unwrap();
        assert_eq!(pod.status.unwrap().pod_ip.as_deref(), Some("10.1.2.3"));
        pods.delete("web", &DeleteParams::default().grace_period(0)).await.unwrap();
        assert!(pods.get_opt("web").await.unwrap().is_none());
    });
}

fn a_user_may_do_what_it_was_granted(case: &Case) {
    let api = case.api();
    let namespace = case.namespace(&api);
    let reader = api.user("reader");
    let list = ["get", "configmaps", "-n", &namespace];
    let refused = reader.kubectl(&list);
    assert!(refused.stderr.contains("User \"reader\" cannot list resource"), "{refused:?}");
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]);
    api.grant("reader", Some(&namespace), &rules);
    reader.kubectl(&list).success();
    let elsewhere = reader.kubectl(&["get", "configmaps", "-n", "default"]);
    assert!(elsewhere.stderr.contains("cannot list resource"), "{elsewhere:?}");
    let more = reader.kubectl(&["create", "configmap", "mine", "-n", &namespace]);
    assert!(more.stderr.contains("cannot create resource"), "{more:?}");
}

fn a_service_account_has_a_token(case: &Case) {
    let api = case.api();
    let namespace = case.namespace(&api);
    api.admin().kubectl(&["create", "serviceaccount", "robot", "-n", &namespace]).success();
    let robot = api.service_account(&namespace, "robot");
    let name = robot.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).success();
    assert_eq!(name, format!("system:serviceaccount:{namespace}:robot"));
}

fn a_server_can_be_killed_and_frozen(case: &Case) {
    let api = case.own_api();
    let namespace = case.namespace(&api);
    let admin = api.admin();
    admin.kubectl(&["create", "configmap", "kept", "-n", &namespace]).success();
    let kept = ["get", "configmap", "kept", "-n", &namespace, "--request-timeout=2s"];
    api.kill();
    let refused = admin.kubectl(&kept);
    assert!(refused.stderr.contains("refused"), "{refused:?}");
    api.start_again();
    // With all that was stored, at the same address, under the same certificate.
    admin.kubectl(&kept).success();
    case.within(LIMIT, async {
        let maps: Api<ConfigMap> = Api::namespaced(admin.client().await, &namespace);
        maps.get("kept").await.unwrap();
    });
    api.freeze();
    let late = admin.kubectl(&kept);
    assert!(late.stderr.contains("Client.Timeout") || late.stderr.contains("deadline"), "{late:?}");
    api.thaw();
    assert!(wait_until(LIMIT, || admin.kubectl(&kept).code == Some(0)));
}

/// Neither when a test ends its server, nor when the deputy is killed.
fn nothing_is_left_behind(case: &Case) {
    let api = case.own_api();
    let scratch = api.deputy.scratch().to_owned();
    let processes = api.processes();
    assert!(processes.iter().all(|process| pidfd_send_signal(process, Signal::CONT).is_ok()));
    drop(api);
    assert!(processes.iter().all(|process| pidfd_send_signal(process, Signal::CONT).is_err()), "still there");
    assert!(!scratch.exists());

    let api = case.own_api();
    let processes = api.processes();
    let scratch = api.deputy.scratch().to_owned();
    api.deputy.kill();
    let gone = || processes.iter().all(|process| pidfd_send_signal(process, Signal::CONT).is_err());
    assert!(wait_until(LIMIT, gone), "still there");
    drop(api);
    remove(&scratch);
}

/// What a killed deputy could not remove.
fn remove(scratch: &Path) {
    std::fs::remove_dir_all(scratch).unwrap();
}

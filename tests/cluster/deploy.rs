//! What `deploy/` makes: a server takes all of it; its policies and rights are what they say; certificates come about.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use janus_crd::JanusGuard;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::case::Case;
use crate::cluster_tests;
use crate::program::run;
use crate::server::ApiServer;
use crate::watchdog::wait_until;

cluster_tests![
    all_that_renders_is_taken.lasting(300),
    guards_are_refused_where_the_cluster_lives,
    the_controller_may_patch_finalizers_and_one_annotation,
    certificates_are_made_by_a_job_that_may_nothing_else,
];

const LIMIT: Duration = Duration::from_secs(60);
const JANUS: &str = "janus-system";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").canonicalize().unwrap()
}

/// Applies the default overlay with more components, as a user's own overlay would.
fn install(api: &ApiServer, components: &[&str]) {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().canonicalize().unwrap();
    // Kustomize takes no absolute paths.
    let up: PathBuf = place.components().skip(1).map(|_| "..").collect();
    let from = up.join(folder().strip_prefix("/").unwrap());
    let components: Vec<_> = components.iter().map(|name| from.join("components").join(name)).collect();
    let overlay = json!({"resources": [from.join("overlays/default")], "components": components});
    std::fs::write(place.join("kustomization.yaml"), overlay.to_string()).unwrap();
    api.admin().kubectl(&["apply", "-k", place.to_str().unwrap()]).success();
}

fn guard(name: &str) -> String {
    let (version, subjects) =
        ("januscontroller.clustergarage.io/v1alpha1", json!([{"deny": ["/s"], "events": ["open"]}]));
    let spec = json!({"selector": {}, "subjects": subjects});
    json!({"apiVersion": version, "kind": "JanusGuard", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A policy is in force a moment after it was taken.
fn wait_for_policies(api: &ApiServer) {
    let refused = || {
        let put = ["create", "--dry-run=server", "-n", "kube-system", "-f", "-"];
        api.admin().kubectl_reads(&put, &guard("early")).code != Some(0)
    };
    assert!(wait_until(LIMIT, refused), "no policy is in force");
}

fn all_that_renders_is_taken(case: &Case) {
    let api = case.own_api();
    let mut check = Command::new(folder().join("check"));
    check.arg("--server").env("KUBECONFIG", api.admin().kubeconfig()).env("KUBECTL", api.programs().join("kubectl"));
    check.env("NO_PROXY", "*").env("no_proxy", "*");
    let said = run(check, "", Duration::from_secs(280)).unwrap();
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
}

fn guards_are_refused_where_the_cluster_lives(case: &Case) {
    let api = case.own_api();
    install(&api, &[]);
    wait_for_policies(&api);
    let create = |namespace: &str| {
        api.admin().kubectl_reads(&["create", "--dry-run=server", "-n", namespace, "-f", "-"], &guard("g"))
    };
    for namespace in ["kube-system", "kube-public", "kube-node-lease", JANUS] {
        let said = create(namespace);
        assert!(said.code != Some(0) && said.stderr.contains("the cluster runs on it"), "{namespace}: {said:?}");
    }
    create("default").success();
}

fn the_controller_may_patch_finalizers_and_one_annotation(case: &Case) {
    let api = case.own_api();
    install(&api, &["annotate-pods"]);
    wait_for_policies(&api);
    let namespace = case.namespace(&api);
    api.admin().kubectl_reads(&["create", "-n", &namespace, "-f", "-"], &guard("g")).success();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "x"}, "annotations": {"a": "b"}},
        "spec": {"serviceAccountName": "none", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "x"}]},
    });
    api.admin().kubectl(&["create", "serviceaccount", "none", "-n", &namespace]).success();
    api.admin().kubectl_reads(&["create", "-n", &namespace, "-f", "-"], &pod.to_string()).success();

    let controller = api.service_account(JANUS, "janus-controller");
    case.within(LIMIT, async {
        let client = controller.client().await;
        let guards: Api<JanusGuard> = Api::namespaced(client.clone(), &namespace);
        let pods: Api<Pod> = Api::namespaced(client, &namespace);
        let key = "clustergarage.io/janus-guard";
        let on_guard = async |body: Value| outcome(guards.patch("g", &merge(), &Patch::Merge(body)).await);
        let on_pod = async |body: Value| outcome(pods.patch_status("p", &merge(), &Patch::Merge(body)).await);

        assert_eq!(on_guard(json!({"metadata": {"finalizers": ["a.example/b"]}})).await, "taken");
        assert_eq!(on_guard(json!({"metadata": {"finalizers": []}})).await, "taken");
        // Garbage collection deletes what has an owner that is not there.
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": "none"});
        for body in [
            json!({"spec": {"enforcement": "Audit"}}),
            json!({"metadata": {"labels": {"a": "b"}}}),
            json!({"metadata": {"annotations": {"a": "b"}}}),
            json!({"metadata": {"ownerReferences": [owner]}}),
        ] {
            assert!(on_guard(body.clone()).await.contains("janus-controller changes no guard's"), "{body}");
        }

        for value in [json!("g"), json!("g,h"), Value::Null] {
            assert_eq!(on_pod(json!({"metadata": {"annotations": {key: value}}})).await, "taken");
        }
        for body in [
            json!({"metadata": {"annotations": {"a": "c"}}}),
            json!({"metadata": {"annotations": {"a": null}}}),
            json!({"metadata": {"annotations": {"new": "c"}}}),
            json!({"metadata": {"labels": {"app": "y"}}}),
            json!({"metadata": {"finalizers": ["a.example/b"]}}),
            json!({"status": {"phase": "Succeeded"}}),
        ] {
            let said = on_pod(body.clone()).await;
            assert!(said.contains("janus-controller changes no"), "{body}: {said}");
        }
        // Past the status subresource RBAC does not let it.
        let body = json!({"metadata": {"annotations": {key: "g"}}});
        let said = outcome(pods.patch("p", &merge(), &Patch::Merge(body)).await);
        assert!(said.contains("cannot patch resource"), "{said}");
    });
}

fn merge() -> PatchParams {
    PatchParams::default()
}

fn outcome<T>(result: kube::Result<T>) -> String {
    match result {
        Ok(_) => "taken".to_owned(),
        Err(kube::Error::Api(status)) => status.message.clone(),
        Err(error) => panic!("{error}"),
    }
}

fn certificates_are_made_by_a_job_that_may_nothing_else(case: &Case) {
    let api = case.own_api();
    install(&api, &[]);
    let once = |who: &str| {
        let user = api.service_account(JANUS, who);
        let mut command = Command::new(env!("CARGO_BIN_EXE_janus-controller"));
        command.args(["certificates", "--namespace", JANUS]).env("KUBECONFIG", user.kubeconfig());
        command.env("NO_PROXY", "*").env("no_proxy", "*");
        run(command, "", LIMIT).unwrap()
    };
    let secrets = || {
        case.within(LIMIT, async {
            let client: Client = api.admin().client().await;
            let secrets: Api<Secret> = Api::namespaced(client, JANUS);
            let mut held = Vec::new();
            for name in ["janus-ca", "janusd-tls", "janus-controller-tls"] {
                let secret = secrets.get(name).await.unwrap();
                let keys: Vec<String> = secret.data.unwrap_or_default().into_keys().collect();
                held.push((keys, secret.metadata.resource_version));
            }
            held
        })
    };
    let refused = once("janus-controller");
    assert!(refused.code == Some(1) && refused.stderr.contains("janus-ca"), "{refused:?}");
    assert!(secrets().iter().all(|(keys, _)| keys.is_empty()), "the controller may read no Secret");

    once("janus-certificates").success();
    let made = secrets();
    let keys: Vec<_> = made.iter().map(|(keys, _)| keys.join(" ")).collect();
    assert_eq!(keys, ["ca.crt ca.key", "ca.crt tls.crt tls.key", "ca.crt tls.crt tls.key"]);
    once("janus-certificates").success();
    assert_eq!(secrets(), made, "nothing is due");
    // As an upgrade does: what was filled stays.
    install(&api, &[]);
    assert_eq!(secrets(), made, "applied again");
}

//! Guards and pods as the API server sends them.

use janus_controller::index::Home;
use janus_controller::index::guard::Seen;
use janus_controller::index::pod::{SeenPod, WatchedPod};
use janus_crd::JanusGuard;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::DeserializeGuard;
use serde_json::{Value, json};

/// Where Janus runs.
pub(crate) const HOME: &str = "janus-system";
/// What janusd's pods bear.
pub(crate) const JANUSD: (&str, &str) = ("app.kubernetes.io/name", "janusd");

pub(crate) fn home() -> Home {
    let labels = [(JANUSD.0.to_owned(), JANUSD.1.to_owned())].into();
    let daemons = LabelSelector { match_labels: Some(labels), ..LabelSelector::default() };
    Home { namespace: HOME.to_owned(), daemons: daemons.try_into().unwrap() }
}

/// A guard, in JSON: one that selects all of its namespace, unless told otherwise.
pub(crate) fn guard(uid: &str, namespace: &str, generation: i64) -> Value {
    json!({
        "apiVersion": "januscontroller.clustergarage.io/v1alpha1",
        "kind": "JanusGuard",
        "metadata": {
            "uid": uid, "namespace": namespace, "name": uid, "generation": generation,
            "resourceVersion": generation.to_string(),
        },
        "spec": { "selector": {}, "subjects": [{ "deny": ["/etc/shadow"], "events": ["open"] }] },
    })
}

pub(crate) fn watched_guard(guard: &Value) -> DeserializeGuard<JanusGuard> {
    serde_json::from_value(guard.clone()).unwrap()
}

pub(crate) fn seen_guard(guard: &Value) -> Seen {
    Seen::of(watched_guard(guard)).unwrap()
}

/// A pod, in JSON, with one container that runs.
pub(crate) fn pod(uid: &str, namespace: &str, node: &str) -> Value {
    json!({
        "metadata": { "uid": uid, "namespace": namespace, "name": uid },
        "spec": { "nodeName": node },
        "status": { "phase": "Running", "containerStatuses": [running("app", &format!("{uid}-app"))] },
    })
}

/// A pod of janusd, ready, at an address.
pub(crate) fn daemon(uid: &str, node: &str, address: &str) -> Value {
    let mut pod = pod(uid, HOME, node);
    pod["metadata"]["labels"] = json!({ JANUSD.0: JANUSD.1 });
    pod["status"]["podIP"] = address.into();
    pod["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    pod
}

/// The status of a container that runs.
pub(crate) fn running(name: &str, id: &str) -> Value {
    json!({
        "name": name, "containerID": format!("containerd://{id}"), "restartCount": 0,
        "state": { "running": { "startedAt": "2026-01-02T03:04:05Z" } },
    })
}

pub(crate) fn watched_pod(pod: &Value) -> WatchedPod {
    serde_json::from_value(pod.clone()).unwrap()
}

pub(crate) fn seen_pod(pod: &Value) -> SeenPod {
    SeenPod::of(watched_pod(pod)).unwrap().unwrap()
}

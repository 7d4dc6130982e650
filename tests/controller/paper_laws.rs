//! The API server of paper does as a real one: the same script for both.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use janus_crd::JanusGuard;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::controller_tests;
use crate::host::Host;

controller_tests! {
    on_paper,
    on_a_real_api_server.real(),
}

const SPACE: &str = "laws";
const FIELDS: &str = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";

fn on_paper() {
    run(&Host::paper());
}

fn on_a_real_api_server() {
    run(&Host::real(&[SPACE.to_owned()]));
}

fn run(host: &Host) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = host.client().await;
        tokio::time::timeout(Duration::from_secs(60), async {
            guards(Api::namespaced(client.clone(), SPACE)).await;
            pods(Api::namespaced(client, SPACE)).await;
        })
        .await
        .expect("an end in time");
    });
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result.unwrap_err() {
        kube::Error::Api(status) => status.code,
        error => panic!("{error:?}"),
    }
}

async fn guards(api: Api<JanusGuard>) {
    let guard: JanusGuard = serde_json::from_value(json!({
        "apiVersion": "januscontroller.clustergarage.io/v1alpha1", "kind": "JanusGuard", "metadata": { "name": "g" },
        "spec": { "selector": {}, "subjects": [{ "deny": ["/a"], "events": ["open"] }] },
    }))
    .unwrap();
    assert_eq!(code(api.get("g").await), 404);
    let made = api.create(&PostParams::default(), &guard).await.unwrap();
    assert_eq!(code(api.create(&PostParams::default(), &guard).await), 409);
    assert_eq!(made.metadata.generation, Some(1));

    // A finalizer is no change of the spec, and a version that is no more is a conflict.
    let finalizers =
        |version: &str| json!({ "metadata": { "resourceVersion": version, "finalizers": ["example.com/f"] } });
    let version = made.resource_version().unwrap();
    let held = api.patch("g", &PatchParams::default(), &Patch::Merge(finalizers(&version))).await.unwrap();
    assert_eq!(held.metadata.generation, Some(1));
    assert_eq!(code(api.patch("g", &PatchParams::default(), &Patch::Merge(finalizers(&version))).await), 409);

    // A status by server-side apply touches nothing else, and nothing else touches it.
    let status = json!({ "apiVersion": "januscontroller.clustergarage.io/v1alpha1", "kind": "JanusGuard",
        "metadata": { "name": "g" }, "status": { "observablePods": 3, "guardedPods": 2 } });
    let apply = PatchParams::apply("laws").force();
    api.patch_status("g", &apply, &Patch::Apply(status)).await.unwrap();
    let edit = json!({ "spec": { "enforcement": "Audit" }, "status": { "observablePods": 9 } });
    let edited = api.patch("g", &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    assert_eq!(edited.metadata.generation, Some(2));
    assert_eq!(edited.status.unwrap().observable_pods, Some(3));

    // It is there until its finalizer has gone.
    api.delete("g", &DeleteParams::default()).await.unwrap();
    let going = api.get("g").await.unwrap();
    assert!(going.metadata.deletion_timestamp.is_some());
    assert_eq!(going.metadata.generation, Some(3));
    let none = json!({ "metadata": { "finalizers": [] } });
    api.patch("g", &PatchParams::default(), &Patch::Merge(none)).await.unwrap();
    assert_eq!(code(api.get("g").await), 404);
}

fn pod(name: &str, node: Option<&str>) -> Pod {
    let mut spec = json!({ "containers": [{ "name": "app", "image": "example.com/none:1" }] });
    if let Some(node) = node {
        spec["nodeName"] = node.into();
    }
    serde_json::from_value(json!({ "metadata": { "name": name, "labels": { "a": "b" } }, "spec": spec })).unwrap()
}

async fn pods(api: Api<Pod>) {
    for (name, node) in [("bound-1", Some("n")), ("bound-2", Some("n")), ("bound-3", Some("n")), ("waiting", None)] {
        api.create(&PostParams::default(), &pod(name, node)).await.unwrap();
    }
    // In pages, of which the selector leaves one out.
    let page = api.list(&ListParams::default().fields(FIELDS).limit(2)).await.unwrap();
    assert_eq!(page.items.len(), 2);
    let more = page.metadata.continue_.clone().unwrap();
    let rest = api.list(&ListParams::default().fields(FIELDS).limit(2).continue_token(&more)).await.unwrap();
    assert_eq!(rest.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["bound-3"]);

    // What happens from there on: also what comes into the selection, and what leaves it.
    let version = page.metadata.resource_version.unwrap();
    let watch = api.watch(&WatchParams::default().fields(FIELDS), &version).await.unwrap();
    let mut watch = pin!(watch.filter_map(async |event| told(event.unwrap())));
    let label = json!({ "metadata": { "labels": { "a": "c" } } });
    api.patch("bound-1", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    expect(&mut watch, "modified bound-1").await;
    let status = json!({ "status": { "phase": "Succeeded" } });
    api.patch_status("bound-1", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    expect(&mut watch, "deleted bound-1").await;
    api.create(&PostParams::default(), &pod("bound-4", Some("n"))).await.unwrap();
    expect(&mut watch, "added bound-4").await;
    let now = DeleteParams::default().grace_period(0);
    api.delete("waiting", &now).await.unwrap();
    api.delete("bound-2", &now).await.unwrap();
    // First it is going, then gone, even without a grace.
    expect(&mut watch, "modified bound-2").await;
    expect(&mut watch, "deleted bound-2").await;

    // A pod of the same name is another one.
    let before = api.get("bound-3").await.unwrap().metadata.uid;
    api.delete("bound-3", &now).await.unwrap();
    api.create(&PostParams::default(), &pod("bound-3", Some("n"))).await.unwrap();
    assert_ne!(api.get("bound-3").await.unwrap().metadata.uid, before);
    expect(&mut watch, "modified bound-3").await;
    expect(&mut watch, "deleted bound-3").await;
    expect(&mut watch, "added bound-3").await;
    let labels = api.get("bound-3").await.unwrap().metadata.labels.unwrap();
    assert_eq!(labels, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
}

fn told(event: WatchEvent<Pod>) -> Option<String> {
    match event {
        WatchEvent::Added(pod) => Some(format!("added {}", pod.name_any())),
        WatchEvent::Modified(pod) => Some(format!("modified {}", pod.name_any())),
        WatchEvent::Deleted(pod) => Some(format!("deleted {}", pod.name_any())),
        WatchEvent::Bookmark(_) => None,
        WatchEvent::Error(status) => Some(format!("{status:?}")),
    }
}

async fn expect(watch: &mut (impl Stream<Item = String> + Unpin), what: &str) {
    assert_eq!(watch.next().await.as_deref(), Some(what));
}

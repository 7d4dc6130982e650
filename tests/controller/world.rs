//! Guards, pods and nodes in an API server, and the kubelet's part in them.
//!
//! Flow: what a test does to an object goes to the API server; what a kubelet and a container runtime would do about it
//! goes to the object's status and to the node's fake daemons. Works with any API server that `kube` can talk to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use janus_crd::JanusGuard;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::certificates::NAMESPACE;
use crate::expected::Objects;
use crate::fake::{Daemon, Fleet};

/// A pod, and what runs in it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: String,
    /// Names and IDs of the containers that run.
    containers: Vec<(String, String)>,
}

pub(crate) struct World {
    client: Client,
    pub(crate) fleet: Fleet,
    /// By node: the pods of its daemons, oldest first, and where they serve.
    pub(crate) daemons: BTreeMap<String, Vec<(String, Arc<Daemon>)>>,
    pub(crate) pods: Vec<Known>,
    /// Of pods that are made from now on.
    pub(crate) annotations: Value,
    /// Daemons do not know the names of containers that start from now on.
    pub(crate) unnamed: bool,
    numbers: u64,
}

impl World {
    pub(crate) fn new(client: Client, fleet: Fleet) -> World {
        World {
            client,
            fleet,
            daemons: BTreeMap::new(),
            pods: Vec::new(),
            annotations: json!({}),
            unnamed: false,
            numbers: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn pod_api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn guard_api(&self, namespace: &str) -> Api<JanusGuard> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn lease_api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// All guards and pods, as the API server has them.
    pub(crate) async fn objects(&self) -> kube::Result<Objects> {
        let all = ListParams::default();
        let guards = Api::<JanusGuard>::all(self.client.clone()).list(&all).await?.items;
        let pods = Api::<Pod>::all(self.client.clone()).list(&all).await?.items;
        Ok(Objects { guards, pods })
    }

    // Nodes.

    /// A new daemon on a node, which is ready at once; those that were there stay.
    pub(crate) async fn add_daemon(&mut self, node: &str) -> kube::Result<Arc<Daemon>> {
        let daemon = self.fleet.add(node);
        self.serve(node, daemon.clone()).await?;
        Ok(daemon)
    }

    /// A daemon at the address of one that is gone.
    pub(crate) async fn add_daemon_at(&mut self, node: &str, old: &Daemon) -> kube::Result<Arc<Daemon>> {
        let daemon = self.fleet.replace(old, node);
        self.serve(node, daemon.clone()).await?;
        Ok(daemon)
    }

    async fn serve(&mut self, node: &str, daemon: Arc<Daemon>) -> kube::Result<()> {
        for pod in self.pods.iter().filter(|pod| pod.node == node) {
            pod.containers.iter().for_each(|(name, id)| daemon.start_container(&pod.uid, name, id));
        }
        let name = format!("janusd-{}", self.number());
        let labels = json!({ "app.kubernetes.io/name": "janusd", "app.kubernetes.io/part-of": "janus" });
        let api = self.pod_api(NAMESPACE);
        api.create(&PostParams::default(), &pod(NAMESPACE, &name, node, &labels, &["janusd"])).await?;
        let status = json!({ "status": {
            "phase": "Running", "podIP": daemon.ip.to_string(),
            "conditions": [{ "type": "Ready", "status": "True" }],
        } });
        self.daemons.entry(node.to_owned()).or_default().push((name.clone(), daemon));
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    /// A daemon's pod says whether it is ready.
    pub(crate) async fn set_ready(&self, name: &str, ready: bool) -> kube::Result<()> {
        let status = if ready { "True" } else { "False" };
        let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": status }] } });
        self.pod_api(NAMESPACE).patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    /// A daemon's pod is gone, and nobody serves there any more.
    pub(crate) async fn remove_daemon(&mut self, node: &str, name: &str) -> kube::Result<Option<Arc<Daemon>>> {
        delete(&self.pod_api(NAMESPACE), name).await?;
        let Some(daemons) = self.daemons.get_mut(node) else { return Ok(None) };
        let Some(index) = daemons.iter().position(|(known, _)| known == name) else { return Ok(None) };
        let (_, daemon) = daemons.remove(index);
        daemon.temper(|temper| temper.down = true);
        Ok(Some(daemon))
    }

    // Pods.

    /// A pod that is bound to a node; none of its containers has started.
    pub(crate) async fn add_pod(
        &mut self,
        namespace: &str,
        name: &str,
        node: &str,
        labels: &Value,
        containers: &[&str],
    ) -> kube::Result<usize> {
        let api = self.pod_api(namespace);
        let mut pod = pod(namespace, name, node, labels, containers);
        pod.metadata.annotations = serde_json::from_value(self.annotations.clone()).unwrap();
        let made = api.create(&PostParams::default(), &pod).await?;
        let (namespace, name, node) = (namespace.to_owned(), name.to_owned(), node.to_owned());
        let uid = made.metadata.uid.unwrap();
        self.pods.push(Known { namespace, name, uid, node, containers: Vec::new() });
        Ok(self.pods.len() - 1)
    }

    /// Some of a pod's containers start, or start again, under new IDs.
    pub(crate) async fn start(&mut self, index: usize, containers: &[&str]) -> kube::Result<()> {
        let mut ids = Vec::new();
        for name in containers {
            let id = format!("{:064x}", self.number());
            ids.push(((*name).to_owned(), id));
        }
        let pod = &mut self.pods[index];
        for (_, daemon) in self.daemons.get(&pod.node).into_iter().flatten() {
            for (name, id) in &pod.containers {
                if containers.contains(&name.as_str()) {
                    daemon.end_container(&pod.uid, id);
                }
            }
            for (name, id) in &ids {
                if self.unnamed {
                    daemon.start_unnamed_container(&pod.uid, name, id);
                } else {
                    daemon.start_container(&pod.uid, name, id);
                }
            }
        }
        pod.containers.retain(|(name, _)| !containers.contains(&name.as_str()));
        pod.containers.extend(ids);
        let pod = self.pods[index].clone();
        let statuses: Vec<Value> = pod.containers.iter().map(|(name, id)| running(name, id)).collect();
        let status = json!({ "status": { "phase": "Running", "containerStatuses": statuses } });
        let api = self.pod_api(&pod.namespace);
        api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    /// A pod gets other labels; null removes one.
    pub(crate) async fn label(&self, index: usize, labels: &Value) -> kube::Result<()> {
        let pod = &self.pods[index];
        let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
        self.pod_api(&pod.namespace).patch(&pod.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// All of a pod's containers have ended, and it with them.
    pub(crate) async fn finish(&mut self, index: usize, phase: &str) -> kube::Result<()> {
        self.end_containers(index);
        let pod = &self.pods[index];
        let patch = Patch::Merge(json!({ "status": { "phase": phase } }));
        self.pod_api(&pod.namespace).patch_status(&pod.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// A pod is gone.
    pub(crate) async fn remove_pod(&mut self, index: usize) -> kube::Result<()> {
        self.end_containers(index);
        let pod = self.pods.swap_remove(index);
        delete(&self.pod_api(&pod.namespace), &pod.name).await
    }

    fn end_containers(&mut self, index: usize) {
        let pod = &mut self.pods[index];
        for (_, daemon) in self.daemons.get(&pod.node).into_iter().flatten() {
            daemon.end_pod(&pod.uid);
        }
        pod.containers.clear();
    }

    // Guards.

    pub(crate) async fn add_guard(&self, namespace: &str, name: &str, spec: Value) -> kube::Result<()> {
        let guard: JanusGuard = serde_json::from_value(json!({
            "apiVersion": "januscontroller.clustergarage.io/v1alpha1", "kind": "JanusGuard",
            "metadata": { "namespace": namespace, "name": name }, "spec": spec,
        }))
        .unwrap();
        self.guard_api(namespace).create(&PostParams::default(), &guard).await?;
        Ok(())
    }

    pub(crate) async fn edit_guard(&self, namespace: &str, name: &str, spec: &Value) -> kube::Result<()> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.guard_api(namespace).patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    pub(crate) async fn remove_guard(&self, namespace: &str, name: &str) -> kube::Result<()> {
        delete(&self.guard_api(namespace), name).await
    }
}

/// Repeats what an API server that was away for a moment did not do.
pub(crate) async fn persist<T>(within: Duration, mut attempt: impl AsyncFnMut() -> kube::Result<T>) -> T {
    let end = tokio::time::Instant::now() + within;
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(tokio::time::Instant::now() < end, "not done within {within:?}: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn delete<K>(api: &Api<K>, name: &str) -> kube::Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, &DeleteParams::default().grace_period(0)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

fn pod(namespace: &str, name: &str, node: &str, labels: &Value, containers: &[&str]) -> Pod {
    let containers: Vec<Value> =
        containers.iter().map(|name| json!({ "name": name, "image": "example.com/none:1" })).collect();
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": { "nodeName": node, "containers": containers },
    }))
    .unwrap()
}

fn running(name: &str, id: &str) -> Value {
    json!({
        "name": name, "containerID": format!("containerd://{id}"), "image": "example.com/none:1", "imageID": "",
        "ready": true, "started": true, "restartCount": 0,
        "state": { "running": { "startedAt": k8s_openapi::jiff::Timestamp::now().to_string() } },
    })
}

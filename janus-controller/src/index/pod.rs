//! A pod as the watch brings it, with the little that is needed of it.
//!
//! A type of our own: the API's is some kilobytes a pod, most of which would be decoded to be dropped.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer};

use super::guard::Nameless;
use crate::core::unit::Uid;

/// The annotation that holds the UID by which the kubelet names a static pod's cgroups. Only mirrors of static pods bear
/// [`MIRROR`] as well, and only the kubelet may make those.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The annotation that names a pod's guards, where it is asked for.
pub const GUARDED_BY: &str = "clustergarage.io/janus-guard";

/// Bound to a node, and not finished. The API server selects by these.
pub const FIELDS: &str = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";

/// What the watch decodes.
#[derive(Clone, Debug, Deserialize)]
pub struct WatchedPod {
    #[serde(deserialize_with = "few")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<PodCondition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    #[serde(default)]
    restart_count: i32,
    #[serde(default)]
    state: State,
    #[serde(default)]
    last_state: State,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    running: Option<Running>,
    terminated: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Running {
    started_at: Option<Time>,
}

/// Metadata without what nobody here looks at: most of it, by size.
fn few<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Few {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
    }
    let few = Few::deserialize(deserializer)?;
    let annotations = few.annotations.map(|mut annotations| {
        annotations.retain(|key, _| [CONFIG_HASH, MIRROR, GUARDED_BY].contains(&key.as_str()));
        annotations
    });
    Ok(ObjectMeta {
        name: few.name,
        namespace: few.namespace,
        uid: few.uid,
        resource_version: few.resource_version,
        creation_timestamp: few.creation_timestamp,
        deletion_timestamp: few.deletion_timestamp,
        labels: few.labels,
        annotations,
        ..Default::default()
    })
}

impl Resource for WatchedPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        core::Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        core::Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        core::Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        core::Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A pod, before the index has shared what pods share.
#[derive(Clone, Debug)]
pub struct SeenPod {
    /// `metadata.uid`.
    pub uid: Uid,
    /// See [`crate::core::unit::Pod`].
    pub cgroup_uid: Option<Box<str>>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// `spec.nodeName`.
    pub node: Box<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Whether a container of it has ever started.
    pub started: bool,
    /// The containers that run.
    pub running: Vec<SeenContainer>,
    /// The guards that its annotation names.
    pub annotated: Option<Box<str>>,
    /// What there is to know if it should be a daemon: it can be reached once it has an address.
    pub daemon: Option<Daemon>,
}

/// A container that runs.
#[derive(Clone, Debug)]
pub struct SeenContainer {
    /// Its name.
    pub name: Box<str>,
    /// Its ID, without the runtime's name.
    pub id: Box<str>,
    /// When it started, seconds since 1970.
    pub started: i64,
}

/// A pod of janusd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// `status.podIP`.
    pub address: IpAddr,
    /// Whether it is Ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// When it was created, seconds since 1970.
    pub created: i64,
}

impl SeenPod {
    /// Takes a pod apart; `None` for one that is not bound to a node, which the API server does not send.
    ///
    /// # Errors
    /// [`Nameless`].
    pub fn of(pod: WatchedPod) -> Result<Option<SeenPod>, Nameless> {
        let WatchedPod { metadata, spec, status } = pod;
        let Some(node) = spec.node_name.filter(|node| !node.is_empty()) else { return Ok(None) };
        let annotations = metadata.annotations.unwrap_or_default();
        let mirror = annotations.contains_key(MIRROR);
        let cgroup_uid = annotations.get(CONFIG_HASH).filter(|_| mirror).map(|hash| hash.as_str().into());
        let daemon = status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()).map(|address| Daemon {
            address,
            ready: status.conditions.iter().flatten().any(|it| it.kind == "Ready" && it.status == "True"),
            leaving: metadata.deletion_timestamp.is_some(),
            created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
        });
        let statuses = [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses];
        let mut started = false;
        let mut running = Vec::new();
        for container in statuses.into_iter().flatten().flatten() {
            started |= container.has_started();
            running.extend(container.running());
        }
        Ok(Some(SeenPod {
            uid: Uid::from(metadata.uid.ok_or(Nameless("uid"))?),
            cgroup_uid,
            namespace: metadata.namespace.ok_or(Nameless("namespace"))?.into(),
            name: metadata.name.ok_or(Nameless("name"))?.into(),
            node: node.into(),
            labels: metadata.labels.unwrap_or_default(),
            started,
            running,
            annotated: annotations.get(GUARDED_BY).map(|names| names.as_str().into()),
            daemon,
        }))
    }
}

impl ContainerStatus {
    fn has_started(&self) -> bool {
        let State { running, terminated } = &self.state;
        running.is_some() || terminated.is_some() || self.restart_count > 0 || self.last_state.terminated.is_some()
    }

    fn running(self) -> Option<SeenContainer> {
        let Running { started_at } = self.state.running?;
        let id = self.container_id?;
        // `containerd://4ae3...`; the runtime is no part of the name.
        let id = id.rsplit_once("://").map_or(id.as_str(), |(_, id)| id).into();
        let started = started_at.map_or(0, |time| time.0.as_second());
        Some(SeenContainer { name: self.name.into(), id, started })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(pod: serde_json::Value) -> SeenPod {
        SeenPod::of(serde_json::from_value(pod).unwrap()).unwrap().unwrap()
    }

    fn pod(metadata: serde_json::Value, status: serde_json::Value) -> serde_json::Value {
        let mut metadata = metadata;
        for (key, value) in [("uid", "u"), ("namespace", "n"), ("name", "p")] {
            metadata[key] = value.into();
        }
        json!({ "metadata": metadata, "spec": { "nodeName": "a", "containers": [{}] }, "status": status })
    }

    #[test]
    fn containers_of_every_kind_that_run() {
        let running = |id: &str| json!({ "running": { "startedAt": "2026-01-02T03:04:05Z" }, "id": id });
        let status = |name: &str, id: &str| json!({ "name": name, "containerID": id, "state": running(id) });
        let pod = seen(pod(
            json!({}),
            json!({
                // Pending, with a container running already: init containers do.
                "phase": "Pending",
                "containerStatuses": [{ "name": "app", "state": { "waiting": {} } }],
                "initContainerStatuses": [status("init", "cri-o://1")],
                "ephemeralContainerStatuses": [status("debug", "containerd://2")],
            }),
        ));
        let running: Vec<_> = pod.running.iter().map(|it| (&*it.name, &*it.id, it.started)).collect();
        assert_eq!(running, [("init", "1", 1_767_323_045), ("debug", "2", 1_767_323_045)]);
        assert!(pod.started);
    }

    #[test]
    fn between_restarts_it_has_started_and_nothing_runs() {
        let waiting = json!([{ "name": "app", "restartCount": 3, "containerID": "containerd://9",
            "state": { "waiting": { "reason": "CrashLoopBackOff" } } }]);
        let pod = seen(pod(json!({}), json!({ "containerStatuses": waiting })));
        assert!(pod.started && pod.running.is_empty());
    }

    #[test]
    fn only_a_mirror_goes_by_another_uid() {
        let hash = json!({ "annotations": { CONFIG_HASH: "abc", "other": "x".repeat(1000) } });
        assert_eq!(seen(pod(hash, json!({}))).cgroup_uid, None);
        let mirror = json!({ "annotations": { CONFIG_HASH: "abc", MIRROR: "abc" } });
        assert_eq!(seen(pod(mirror, json!({}))).cgroup_uid.as_deref(), Some("abc"));
    }

    #[test]
    fn a_daemon_is_one_once_it_has_an_address() {
        let ready = json!({ "podIP": "10.1.2.3", "conditions": [{ "type": "Ready", "status": "True" }] });
        let daemon = seen(pod(json!({}), ready)).daemon.unwrap();
        assert!(daemon.ready && !daemon.leaving);
        assert_eq!(seen(pod(json!({}), json!({}))).daemon, None);
    }
}

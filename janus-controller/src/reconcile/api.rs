//! The API server behind the port [`Cluster`], and the watches that feed the hub.

use std::time::Duration;

use backon::ExponentialBuilder;
use futures::{Stream, StreamExt};
use janus_crd::{JanusGuard, JanusGuardStatus};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, CustomResourceExt, Resource};
use serde_json::json;

use super::cluster::{Annotation, Cluster, GuardName, Happening, WriteError};
use super::hub::Input;
use crate::core::observation::plain;
use crate::index::pod::{FIELDS, GUARDED_BY, WatchedPod};
use crate::metrics::{Metrics, Resource as Watching};

/// Who writes, for server-side apply and events.
const MANAGER: &str = "janus-controller";
/// How long a write may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the API server may be silent on a connection that waits for it. Without a bound a list or the beginning of a
/// watch would wait for ever for one that has gone without a word.
const SILENCE: Duration = Duration::from_secs(45);
/// Seconds after which a watch is begun anew where it ended: one that has died is given up five seconds later by kube, which
/// has to be before [`SILENCE`].
const WATCH: u32 = 30;
/// How long a broken watch waits at most.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// How a cluster is spoken with by whoever acts there all the time.
pub fn acting(mut config: Config) -> Config {
    config.read_timeout = Some(SILENCE);
    // Counted from the request, and not from when the connection was used last.
    config.reset_reader_on_write = true;
    // What is refused (429, 503) is tried again by us, told and counted: within kube it would be neither, for minutes.
    config.default_retry = false;
    config
}

/// The API server.
#[derive(Clone)]
pub struct ApiServer {
    client: Client,
    reporter: Reporter,
}

impl ApiServer {
    /// By way of `client`; events say that `instance` reports them.
    pub fn new(client: Client, instance: String) -> ApiServer {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(instance) };
        ApiServer { client, reporter }
    }

    fn guards(&self, guard: &GuardName) -> Api<kube::api::DynamicObject> {
        // Without our type: a guard that cannot be decoded has a status as well.
        Api::namespaced_with(self.client.clone(), &guard.namespace, &JanusGuard::api_resource())
    }
}

impl Cluster for ApiServer {
    async fn status(&self, guard: GuardName, status: JanusGuardStatus) -> Result<(), WriteError> {
        let patch = json!({
            "apiVersion": JanusGuard::api_version(&()),
            "kind": JanusGuard::kind(&()),
            // A UID would be of no use: the status subresource does not look at it. A guard that was made anew meanwhile bears
            // its predecessor's status until the watch has brought it.
            "metadata": { "name": &*guard.name },
            "status": status,
        });
        let api = self.guards(&guard);
        let params = PatchParams::apply(MANAGER).force();
        within(async { api.patch_status(&guard.name, &params, &Patch::Apply(&patch)).await.map(drop) }).await
    }

    async fn finalizers(&self, guard: GuardName, version: Box<str>, finalizers: Vec<String>) -> Result<(), WriteError> {
        let patch = json!({ "metadata": { "resourceVersion": version, "uid": &*guard.uid, "finalizers": finalizers } });
        let api = self.guards(&guard);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        within(async { api.patch_metadata(&guard.name, &params, &Patch::Merge(&patch)).await.map(drop) }).await
    }

    async fn publish(&self, guard: GuardName, happening: Happening) -> Result<(), WriteError> {
        let regarding = ObjectReference {
            api_version: Some(JanusGuard::api_version(&()).into_owned()),
            kind: Some(JanusGuard::kind(&()).into_owned()),
            namespace: Some(guard.namespace.to_string()),
            name: Some(guard.name.to_string()),
            uid: Some(guard.uid.to_string()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if happening.warning { EventType::Warning } else { EventType::Normal },
            reason: happening.reason.to_owned(),
            note: Some(happening.note),
            action: "Guard".to_owned(),
            secondary: None,
        };
        // A recorder that remembers takes two events for one whatever they say, and keeps what the first said. Ours are
        // gathered already.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        within(recorder.publish(&event, &regarding)).await
    }

    async fn annotate(&self, annotation: Annotation) -> Result<(), WriteError> {
        let Annotation { namespace, pod, uid, guards } = annotation;
        let patch = json!({ "metadata": { "uid": &*uid, "annotations": { GUARDED_BY: guards } } });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        within(async { api.patch_status(&pod, &params, &Patch::Strategic(&patch)).await.map(drop) }).await
    }
}

async fn within(write: impl Future<Output = Result<(), kube::Error>>) -> Result<(), WriteError> {
    match tokio::time::timeout(DEADLINE, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(kube::Error::Api(status))) => match status.code {
            404 => Err(WriteError::Gone),
            409 => Err(WriteError::Conflict),
            _ => Err(WriteError::Failed(plain(&status.message).into())),
        },
        Ok(Err(error)) => Err(WriteError::Failed(plain(&error.to_string()).into())),
        Err(_elapsed) => Err(WriteError::Failed(format!("no answer within {} s", DEADLINE.as_secs()))),
    }
}

/// What the hub is fed with: all guards, and all pods that are bound and not finished. Watches that break are taken up
/// again, later each time; that is logged and counted.
pub fn watches(client: &Client, metrics: std::sync::Arc<Metrics>) -> impl Stream<Item = Input> + use<> {
    let guards: Api<DeserializeGuard<JanusGuard>> = Api::all(client.clone());
    let pods: Api<WatchedPod> = Api::all(client.clone());
    let of_guards = metrics.clone();
    let guards = watcher(guards, watcher::Config::default().timeout(WATCH))
        .backoff(again())
        .filter_map(move |event| std::future::ready(taken(event, Watching::Guards, &of_guards).map(Input::Guards)));
    let pods = watcher(pods, watcher::Config::default().timeout(WATCH).fields(FIELDS))
        .backoff(again())
        .filter_map(move |event| std::future::ready(taken(event, Watching::Pods, &metrics).map(Input::Pods)));
    futures::stream::select(guards, pods)
}

/// When a broken watch is taken up again. Sooner than kube's own, which is meant for a thousand clients and waits up to half
/// a minute, also after a restart: there is one of us, and an API server that restarts is back within seconds.
fn again() -> watcher::ExponentialBackoff {
    let delays = ExponentialBuilder::new().with_min_delay(Duration::from_millis(200)).with_max_delay(LONGEST_DELAY);
    delays.with_factor(2.0).without_max_times().with_jitter().into()
}

fn taken<K>(
    event: Result<watcher::Event<K>, watcher::Error>,
    resource: Watching,
    metrics: &Metrics,
) -> Option<watcher::Event<K>> {
    event
        .inspect_err(|error| {
            metrics.watch_failed(resource);
            let error = plain(&error.to_string());
            tracing::warn!(?resource, %error, "a watch broke; it is taken up again");
        })
        .ok()
}

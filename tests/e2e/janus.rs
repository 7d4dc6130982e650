//! Janus, as its users install it: `kubectl apply -k` of an overlay as it is, and images of the names that it asks for.
//!
//! Owns: the installation, and a client by which levels are waited for. What runs in the images are the binaries that
//! cargo has built.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::cluster::{Cluster, archive_of};
use crate::own;
use crate::program::Output;
use crate::tenant::Tenant;
use crate::user::User;

/// Where the overlays install it.
pub(crate) const NAMESPACE: &str = "janus-system";

/// How long it may take until all of it is ready.
const INSTALLED: Duration = Duration::from_secs(150);

/// How long one question to the API server may take.
const ANSWER: Duration = Duration::from_secs(10);

/// How often a level is asked for: the API server has other things to do.
const PAUSE: Duration = Duration::from_millis(100);

/// What a test reads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Guard,
    Pod,
    Namespace,
    ServiceAccount,
    Deployment,
    DaemonSet,
    Lease,
}

impl Kind {
    fn resource(self) -> ApiResource {
        let (group, version, kind, plural) = match self {
            Kind::Guard => ("januscontroller.clustergarage.io", "v1alpha1", "JanusGuard", "janusguards"),
            Kind::Pod => ("", "v1", "Pod", "pods"),
            Kind::Namespace => ("", "v1", "Namespace", "namespaces"),
            Kind::ServiceAccount => ("", "v1", "ServiceAccount", "serviceaccounts"),
            Kind::Deployment => ("apps", "v1", "Deployment", "deployments"),
            Kind::DaemonSet => ("apps", "v1", "DaemonSet", "daemonsets"),
            Kind::Lease => ("coordination.k8s.io", "v1", "Lease", "leases"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }
}

pub(crate) struct Janus {
    pub(crate) cluster: Arc<Cluster>,
    overlay: PathBuf,
    client: Client,
    runtime: Runtime,
}

impl Janus {
    /// Installs an overlay, and waits until all of it is ready. `told`: each command, and what it said.
    pub(crate) fn install(cluster: Arc<Cluster>, overlay: &Path, told: &dyn Fn(&str, &Output)) -> Janus {
        let started = Instant::now();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(cluster.admin().client());
        let janus = Janus { cluster, overlay: overlay.to_owned(), client, runtime };
        janus.import_images();
        let applied = janus.apply(told);
        applied.success();
        janus.wait_until_ready();
        eprintln!("Janus: {:.1} s", started.elapsed().as_secs_f32());
        janus
    }

    /// A namespace for one test. It is deleted, whatever becomes of the test.
    pub(crate) fn tenant(self: &Arc<Self>, name: &str) -> Tenant {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Tenant::new(Arc::clone(self), name)
    }

    /// kubectl, as the administrator.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Output {
        self.cluster.admin().kubectl(arguments)
    }

    /// An object as it is; `None`: there is none, or no answer.
    pub(crate) fn read(&self, kind: Kind, namespace: Option<&str>, name: &str) -> Option<Value> {
        let api = self.api(kind, namespace);
        let answer = async { tokio::time::timeout(ANSWER, api.get_opt(name)).await };
        let object = self.runtime.block_on(answer).ok()?.ok()??;
        Some(serde_json::to_value(object).unwrap())
    }

    /// Whether the API server says that there is no such object.
    pub(crate) fn is_absent(&self, kind: Kind, namespace: Option<&str>, name: &str) -> bool {
        let api = self.api(kind, namespace);
        let answer = async { tokio::time::timeout(ANSWER, api.get_opt(name)).await };
        matches!(self.runtime.block_on(answer), Ok(Ok(None)))
    }

    /// Objects with these labels.
    pub(crate) fn list(&self, kind: Kind, namespace: &str, labels: &str) -> Vec<Value> {
        let api = self.api(kind, Some(namespace));
        let params = ListParams::default().labels(labels);
        let answer = async { tokio::time::timeout(ANSWER, api.list(&params)).await };
        let objects = self.runtime.block_on(answer).unwrap().unwrap();
        objects.items.into_iter().map(|object| serde_json::to_value(object).unwrap()).collect()
    }

    /// Changes a pod by its status subresource in somebody's name, who need not be able to read it; or says why not.
    pub(crate) fn patch_pod_status(
        &self,
        user: &User,
        namespace: &str,
        pod: &str,
        patch: &Value,
    ) -> Result<(), String> {
        let patched = async {
            let pods: Api<DynamicObject> = Api::namespaced_with(user.client().await, namespace, &Kind::Pod.resource());
            pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(patch)).await
        };
        self.runtime.block_on(patched).map(drop).map_err(|error| error.to_string())
    }

    fn api(&self, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind.resource()),
            None => Api::all_with(self.client.clone(), &kind.resource()),
        }
    }

    /// Every image that the overlay asks for, under its name.
    fn import_images(&self) {
        let rendered = self.kubectl(&["kustomize", self.overlay.to_str().unwrap()]).success();
        let names = rendered.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image: "));
        for name in names.collect::<BTreeSet<_>>() {
            let program = name.rsplit('/').next().and_then(|last| last.split(':').next()).unwrap_or_default();
            self.cluster.import(&archive_of(self.cluster.api.deputy.scratch(), name, &own::program(program)));
        }
    }

    /// Applies the overlay, again.
    pub(crate) fn apply(&self, told: &dyn Fn(&str, &Output)) -> Output {
        let output = self.kubectl(&["apply", "-k", self.overlay.to_str().unwrap()]);
        told("kubectl apply -k deploy/overlays/default", &output);
        output
    }

    pub(crate) fn overlay(&self) -> &Path {
        &self.overlay
    }

    /// Waits until each node has the janusd that it should have, and there are as many controllers as there should be.
    pub(crate) fn wait_until_ready(&self) {
        let mut last = String::new();
        let ready = level(INSTALLED, || {
            let daemons = self.read(Kind::DaemonSet, Some(NAMESPACE), "janusd").unwrap_or_default();
            let controllers = self.read(Kind::Deployment, Some(NAMESPACE), "janus-controller").unwrap_or_default();
            last = format!("{}\n{}", daemons["status"], controllers["status"]);
            daemon_set_is_done(&daemons) && deployment_is_done(&controllers)
        });
        assert!(ready, "Janus is not ready within {INSTALLED:?}: {last}\n{}", self.describe());
    }

    /// What there is to see when something does not come up.
    pub(crate) fn describe(&self) -> String {
        let pods = self.kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "wide"]);
        let events = self.kubectl(&["-n", NAMESPACE, "events"]);
        let logs = ["janusd", "janus-controller"].map(|name| {
            let label = format!("app.kubernetes.io/name={name}");
            self.kubectl(&["-n", NAMESPACE, "logs", "-l", &label, "--prefix", "--tail=30"]).stdout
        });
        format!("{}{}\n{}", pods.stdout, events.stdout, logs.join("\n"))
    }
}

/// Whether every node has the pod that it should have, available.
pub(crate) fn daemon_set_is_done(set: &Value) -> bool {
    let status = &set["status"];
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    let wanted = number("desiredNumberScheduled");
    status["observedGeneration"] == set["metadata"]["generation"]
        && wanted > 0
        && number("updatedNumberScheduled") == wanted
        && number("numberAvailable") == wanted
}

/// Whether all its pods are those that it should have, and available, and no others are left.
pub(crate) fn deployment_is_done(deployment: &Value) -> bool {
    let status = &deployment["status"];
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    status["observedGeneration"] == deployment["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"].into_iter().all(|field| number(field) == wanted)
}

/// Asks for a level until it holds; false when `limit` passes first. For what costs somebody something to answer.
pub(crate) fn level(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if started.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Where the manifests are.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").canonicalize().unwrap()
}

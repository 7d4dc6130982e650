//! A namespace of Janus's users: their pods, their guards, and what can be opened.
//!
//! A pod's app ([`pod`]) is a shell that opens what it is asked to, so that a test can have a file opened by the app itself
//! as well as by `kubectl exec`.
//!
//! Guarantee: the namespace is deleted when the test ends, whatever its end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::image;
use crate::janus::{Janus, Kind, level};
use crate::program::Output;

/// How long a pod may take to start or to go, and a guard to be in force.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Opens what it reads the name of, and says what came of it. It holds its own end of the pipe open, and ends when told to.
const APP: &str = r#"mkfifo /tmp/ask /tmp/said; exec 3<>/tmp/ask; trap 'exit 0' TERM
while read -r file <&3; do { cat "$file" 2>&1; echo "ended with $?"; } > /tmp/said; done"#;

const DENIED: &str = "Operation not permitted";

/// What came of opening a file and reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    Read,
    Denied,
}

pub(crate) struct Tenant {
    pub(crate) janus: Arc<Janus>,
    pub(crate) name: String,
}

impl Tenant {
    pub(crate) fn new(janus: Arc<Janus>, name: String) -> Tenant {
        janus.kubectl(&["create", "namespace", &name]).success();
        let tenant = Tenant { janus, name };
        // Without it no pod is let in, and a controller makes it.
        let account = level(PATIENCE, || tenant.read(Kind::ServiceAccount, "default").is_some());
        assert!(account, "no default service account");
        tenant
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Output {
        self.janus.kubectl(&[&["-n", &self.name], arguments].concat())
    }

    pub(crate) fn apply(&self, manifest: &Value) {
        let admin = self.janus.cluster.admin();
        admin.kubectl_reads(&["-n", &self.name, "apply", "-f", "-"], &manifest.to_string()).success();
    }

    pub(crate) fn read(&self, kind: Kind, name: &str) -> Option<Value> {
        self.janus.read(kind, Some(&self.name), name)
    }

    /// Applies pods, and waits until they are ready.
    pub(crate) fn start(&self, pods: &[Value]) {
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}));
        for pod in pods {
            self.wait_until_ready(pod["metadata"]["name"].as_str().unwrap());
        }
    }

    pub(crate) fn wait_until_ready(&self, pod: &str) {
        let ready = level(PATIENCE, || self.read(Kind::Pod, pod).is_some_and(|pod| is_ready(&pod)));
        assert!(ready, "{pod}: {}", self.kubectl(&["describe", "pod", pod]).stdout);
    }

    /// Runs a [`deployment`], and waits until its pods are ready: name and node of each.
    pub(crate) fn deploy(&self, deployment: &Value) -> Vec<(String, String)> {
        self.apply(deployment);
        let name = deployment["metadata"]["name"].as_str().unwrap();
        let replicas = usize::try_from(deployment["spec"]["replicas"].as_u64().unwrap()).unwrap();
        let pods = || -> Vec<Value> {
            let all = self.janus.list(Kind::Pod, &self.name, &format!("app={name}"));
            all.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && is_ready(pod)).collect()
        };
        let ready = level(PATIENCE, || pods().len() == replicas);
        assert!(ready, "{}", self.kubectl(&["describe", "pods"]).stdout);
        let word = |pod: &Value, at: &str| pod.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        pods().iter().map(|pod| (word(pod, "/metadata/name"), word(pod, "/spec/nodeName"))).collect()
    }

    /// Applies a guard, and waits until it is in force on so many pods.
    pub(crate) fn guard(&self, name: &str, spec: &Value, pods: i64) {
        self.apply(&guard(name, spec));
        self.wait_until_guarded(name, pods);
    }

    /// Waits until this guard's generation is in force on so many pods, and on all that there are.
    pub(crate) fn wait_until_guarded(&self, name: &str, pods: i64) {
        let mut last = Value::Null;
        let guarded = level(PATIENCE, || {
            last = self.read(Kind::Guard, name).unwrap_or_default();
            is_in_force(&last, pods)
        });
        assert!(guarded, "{name} is not in force on {pods} pods: {last:#}\n{}", self.janus.describe());
    }

    /// Opens a file as `kubectl exec` does.
    #[track_caller]
    pub(crate) fn exec(&self, pod: &str, file: &str) -> Opened {
        let output = self.kubectl(&["exec", pod, "-c", "app", "--", "cat", file]);
        judge(&output, output.code == Some(0))
    }

    /// Has the app open a file.
    #[track_caller]
    pub(crate) fn app(&self, pod: &str, file: &str) -> Opened {
        let ask = format!("echo {file} > /tmp/ask; cat /tmp/said");
        let output = self.kubectl(&["exec", pod, "-c", "app", "--", "sh", "-c", &ask]);
        judge(&output, output.stdout.ends_with("ended with 0\n"))
    }

    /// Deletes a pod, and waits until it has gone.
    pub(crate) fn delete_pod(&self, name: &str) {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["delete", "pod", name, &limit]).success();
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.kubectl(&["get", "janusguards,pods,events", "-o", "wide"]).stdout);
        }
        // The next test need not wait for it.
        let deleted = self.janus.kubectl(&["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"]);
        if deleted.code != Some(0) {
            eprintln!("{}: not deleted: {}", self.name, deleted.stderr);
        }
    }
}

#[track_caller]
fn judge(output: &Output, success: bool) -> Opened {
    if success {
        return Opened::Read;
    }
    assert!(format!("{}{}", output.stdout, output.stderr).contains(DENIED), "{output:?}");
    Opened::Denied
}

/// Whether a guard's status says that its generation is in force on so many pods, which are all.
fn is_in_force(guard: &Value, pods: i64) -> bool {
    let (status, generation) = (&guard["status"], &guard["metadata"]["generation"]);
    let ready = condition(status, "Ready");
    status["observedGeneration"] == *generation
        && status["observablePods"] == pods
        && status["guardedPods"] == pods
        && ready["status"] == "True"
        && ready["observedGeneration"] == *generation
}

pub(crate) fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    condition(&pod["status"], "Ready")["status"] == "True"
}

pub(crate) fn guard(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "januscontroller.clustergarage.io/v1alpha1", "kind": "JanusGuard",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// A guard's spec that denies opening these files in pods with the label `app=APP`, to everybody or to all but the app.
pub(crate) fn denies(app: &str, files: &[&str], owner: bool) -> Value {
    json!({
        "selector": {"matchLabels": {"app": app}},
        "subjects": [{"deny": files, "events": ["open"], "autoAllowOwner": owner}],
    })
}

/// A container whose process opens what it is asked to.
pub(crate) fn container() -> Value {
    json!({"name": "app", "image": image::NAME, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", APP]})
}

/// What a pod with such a container is.
pub(crate) fn pod_spec() -> Value {
    json!({"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false, "containers": [container()]})
}

/// A pod of the label `app=NAME`.
pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": pod_spec(),
    })
}

/// So many pods of the label `app=NAME`, on as many nodes.
pub(crate) fn deployment(name: &str, replicas: u8) -> Value {
    let labels = json!({ "app": name });
    let mut spec = pod_spec();
    spec["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}},
    ]}});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    })
}

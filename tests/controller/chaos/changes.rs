//! What users and their workloads do.

use serde_json::{Value, json};

use super::{Chaos, GUARDS, NAMESPACES, NODES, PODS, namespace, node_name};

impl Chaos {
    pub(super) async fn change(&mut self) {
        match self.chance.among(0..100) {
            0..12 => self.add_guard().await,
            12..26 => self.edit_guard().await,
            26..34 => self.remove_guard().await,
            34..52 => self.add_pod().await,
            52..64 => self.start_containers().await,
            64..74 => self.label_pod().await,
            74..80 => self.finish_pod().await,
            80..90 => self.remove_pod().await,
            90..97 => self.make_pod_anew().await,
            _ => self.empty_namespace().await,
        }
    }

    pub(super) fn tell(&mut self, what: String) {
        self.story.push(what);
    }

    pub(super) async fn add_guard(&mut self) {
        let namespace = namespace(self.chance.among(0..NAMESPACES));
        let name = format!("guard-{}", self.chance.among(0..GUARDS));
        let spec = self.spec();
        // One of that name may be there, or still on its way out.
        match self.world.add_guard(&namespace, &name, spec).await {
            Ok(()) => {
                self.tell(format!("guard {namespace}/{name} made"));
                self.guards.insert((namespace, name));
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    fn some_guard(&mut self) -> Option<(String, String)> {
        let guards: Vec<_> = self.guards.iter().cloned().collect();
        self.chance.pick(&guards).cloned()
    }

    async fn edit_guard(&mut self) {
        let Some((namespace, name)) = self.some_guard() else { return };
        let spec = self.spec();
        self.tell(format!("guard {namespace}/{name} edited"));
        self.world.edit_guard(&namespace, &name, &spec).await.unwrap();
    }

    async fn remove_guard(&mut self) {
        let Some((namespace, name)) = self.some_guard() else { return };
        self.tell(format!("guard {namespace}/{name} deleted"));
        self.world.remove_guard(&namespace, &name).await.unwrap();
        self.guards.remove(&(namespace, name));
    }

    fn spec(&mut self) -> Value {
        let color = ["red", "green", "blue"][self.chance.among(0..3)];
        let selector = match self.chance.among(0..6) {
            0 => json!({}),
            1 | 2 => json!({ "matchLabels": { "color": color } }),
            3 => json!({ "matchExpressions": [{ "key": "color", "operator": "In", "values": [color, "white"] }] }),
            4 => json!({ "matchExpressions": [{ "key": "color", "operator": "NotIn", "values": [color] }] }),
            _ => json!({ "matchExpressions": [{ "key": "shiny", "operator": "Exists" }] }),
        };
        let containers = if self.chance.percent(25) { json!(["app"]) } else { json!([]) };
        let path = format!("/etc/secret-{}", self.chance.among(0..1000));
        json!({
            "selector": selector,
            "containers": containers,
            "enforcement": if self.chance.percent(20) { "Audit" } else { "Enforce" },
            "subjects": [{ "deny": [path], "events": ["open", "access"], "tags": { "team": color } }],
        })
    }

    fn labels(&mut self) -> Value {
        let color = ["red", "green", "blue", "white"][self.chance.among(0..4)];
        let shiny = if self.chance.percent(30) { json!("yes") } else { Value::Null };
        json!({ "color": color, "shiny": shiny })
    }

    pub(super) async fn add_pod(&mut self) {
        if self.world.pods.len() >= PODS {
            return self.remove_pod().await;
        }
        let namespace = namespace(self.chance.among(0..NAMESPACES));
        let name = format!("pod-{}", self.chance.among(0..1_000_000));
        let node = node_name(self.chance.among(0..NODES));
        self.make_pod(&namespace, &name, &node).await;
    }

    async fn make_pod(&mut self, namespace: &str, name: &str, node: &str) {
        let mut labels = self.labels();
        labels.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        self.tell(format!("pod {namespace}/{name} made on {node}"));
        let containers = ["app", "sidecar"];
        let index = self.world.add_pod(namespace, name, node, &labels, &containers).await.unwrap();
        if self.chance.percent(80) {
            self.world.start(index, &containers).await.unwrap();
        }
    }

    fn some_pod(&mut self) -> Option<usize> {
        (!self.world.pods.is_empty()).then(|| self.chance.among(0..self.world.pods.len()))
    }

    fn tell_of(&mut self, index: usize, what: &str) {
        let pod = &self.world.pods[index];
        let line = format!("pod {}/{} on {}: {what}", pod.namespace, pod.name, pod.node);
        self.tell(line);
    }

    async fn start_containers(&mut self) {
        let Some(index) = self.some_pod() else { return };
        self.tell_of(index, "containers started");
        let which: &[&str] = if self.chance.percent(50) { &["app"] } else { &["app", "sidecar"] };
        self.world.start(index, which).await.unwrap();
    }

    async fn label_pod(&mut self) {
        let Some(index) = self.some_pod() else { return };
        let labels = self.labels();
        self.tell_of(index, &format!("labels {labels}"));
        self.world.label(index, &labels).await.unwrap();
    }

    async fn finish_pod(&mut self) {
        let Some(index) = self.some_pod() else { return };
        let phase = if self.chance.percent(50) { "Succeeded" } else { "Failed" };
        self.tell_of(index, phase);
        self.world.finish(index, phase).await.unwrap();
        // It is of no more use to the test.
        self.world.pods.swap_remove(index);
    }

    async fn remove_pod(&mut self) {
        let Some(index) = self.some_pod() else { return };
        self.tell_of(index, "deleted");
        self.world.remove_pod(index).await.unwrap();
    }

    /// As a StatefulSet does: the same name, and another pod.
    async fn make_pod_anew(&mut self) {
        let Some(index) = self.some_pod() else { return };
        let pod = self.world.pods[index].clone();
        self.tell_of(index, "deleted, and made anew");
        self.world.remove_pod(index).await.unwrap();
        let node = if self.chance.percent(50) { pod.node } else { node_name(self.chance.among(0..NODES)) };
        self.make_pod(&pod.namespace, &pod.name, &node).await;
    }

    /// All that is in it goes, as when it is deleted.
    async fn empty_namespace(&mut self) {
        let namespace = namespace(self.chance.among(0..NAMESPACES));
        self.tell(format!("namespace {namespace} deleted"));
        let guards: Vec<_> = self.guards.iter().filter(|guard| guard.0 == namespace).cloned().collect();
        for guard in guards {
            self.world.remove_guard(&guard.0, &guard.1).await.unwrap();
            self.guards.remove(&guard);
        }
        while let Some(index) = self.world.pods.iter().position(|pod| pod.namespace == namespace) {
            self.world.remove_pod(index).await.unwrap();
        }
    }
}

//! Folds of the watches: which guards, pods and daemons there are, and what follows for each node.
//!
//! Flow: a watch event is applied, deleted, or part of a listing; what it touches is marked; whoever owns the index takes
//! the marks and asks for [`Index::desired`] and [`Index::target`] of each node, and looks again at each guard.
//!
//! Guarantees: what the index says depends on the objects alone, not on the order or number of events that brought them.
//! A listing that has ended ([`Index::listed`]) is a restart: what was not in it is gone.
//!
//! The index decides nothing and knows no clock.

mod few;
pub mod guard;
pub mod pod;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use kube::core::{Selector, SelectorExt};

use crate::core::plan::Desired;
use crate::core::unit::{Container, Pod, Uid, UnitId, Wanted};

use self::few::Few;
use self::guard::{Guard, Seen};
use self::pod::{Daemon, SeenPod};

/// The label of all of Janus's own pods, in its namespace.
const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "janus");

/// Texts that are kept though nobody may have them any more.
const LEAST_TEXTS: usize = 1024;

/// Where Janus itself runs.
#[derive(Clone, Debug)]
pub struct Home {
    /// Its namespace.
    pub namespace: String,
    /// What its daemons' labels match.
    pub daemons: Selector,
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Watched {
    /// JanusGuards.
    Guards,
    /// Pods, those of janusd among them.
    Pods,
}

/// Where a node's daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The daemon's pod: another one has other guards.
    pub pod: Uid,
    /// Its address.
    pub address: IpAddr,
}

/// What has changed since it was last asked for.
#[derive(Debug, Default)]
pub struct Touched {
    /// Nodes whose units or daemon may differ.
    pub nodes: HashSet<Arc<str>>,
    /// Guards whose status may differ; also guards that are gone.
    pub guards: HashSet<Uid>,
}

struct PodEntry {
    pod: Arc<Pod>,
    protected: bool,
    /// The guards of its namespace that select it.
    guards: Few<Uid>,
    round: u64,
}

struct GuardEntry {
    guard: Guard,
    /// The pods that it selects.
    pods: BTreeSet<Uid>,
    round: u64,
}

#[derive(Default)]
struct Namespace {
    guards: BTreeSet<Uid>,
    pods: HashSet<Uid>,
}

#[derive(Default)]
struct Node {
    pods: BTreeSet<Uid>,
    daemons: BTreeMap<Uid, Daemon>,
}

/// All that has been seen.
pub struct Index {
    home: Home,
    guards: HashMap<Uid, GuardEntry>,
    pods: HashMap<Uid, PodEntry>,
    namespaces: HashMap<Arc<str>, Namespace>,
    nodes: HashMap<Arc<str>, Node>,
    texts: HashSet<Arc<str>>,
    /// How many there may be before those that nobody has are looked for.
    most_texts: usize,
    labels: HashSet<Arc<BTreeMap<String, String>>>,
    rounds: HashMap<Watched, u64>,
    touched: Touched,
}

impl Index {
    /// An empty one.
    pub fn new(home: Home) -> Index {
        Index {
            home,
            guards: HashMap::new(),
            pods: HashMap::new(),
            namespaces: HashMap::new(),
            nodes: HashMap::new(),
            texts: HashSet::new(),
            most_texts: LEAST_TEXTS,
            labels: HashSet::new(),
            rounds: HashMap::new(),
            touched: Touched::default(),
        }
    }

    /// What has changed since the last call.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    // -- listings

    /// A listing begins: what follows is all there is.
    pub fn listing(&mut self, watched: Watched) {
        *self.rounds.entry(watched).or_default() += 1;
    }

    /// A listing has ended: what it did not name is gone.
    pub fn listed(&mut self, watched: Watched) {
        let round = self.round(watched);
        let old = |seen: u64| seen != round;
        match watched {
            Watched::Guards => {
                let gone = self.guards.iter().filter(|(_, entry)| old(entry.round));
                for uid in gone.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
                    self.delete_guard(&uid);
                }
            }
            Watched::Pods => {
                let gone = self.pods.iter().filter(|(_, entry)| old(entry.round));
                for uid in gone.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
                    self.delete_pod(&uid);
                }
            }
        }
        // Namespaces, nodes and label sets that only the past had.
        self.forget_texts();
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
    }

    fn round(&self, watched: Watched) -> u64 {
        self.rounds.get(&watched).copied().unwrap_or_default()
    }

    // -- guards

    /// A guard is there, new or changed.
    pub fn apply_guard(&mut self, seen: Seen) {
        let round = self.round(Watched::Guards);
        let uid = seen.uid.clone();
        let namespace = self.text(&seen.namespace);
        let (before, selected) = match self.guards.remove(&uid) {
            Some(entry) => (Some(entry.guard), entry.pods),
            None => (None, BTreeSet::new()),
        };
        let guard = Guard::of(seen, before.as_ref());
        self.touched.guards.insert(uid.clone());
        self.namespaces.entry(namespace.clone()).or_default().guards.insert(uid.clone());
        let same = before.as_ref().is_some_and(|before| before.places_as(&guard));
        let unknown = guard.is_unknown() || before.as_ref().is_some_and(Guard::is_unknown);
        let mut entry = GuardEntry { guard, pods: selected, round };
        if !same {
            self.place_guard(&uid, &mut entry, &namespace, unknown);
        }
        self.guards.insert(uid, entry);
    }

    /// Sees anew which pods the guard selects; the nodes of those that it selects, or did, are touched. `unknown`: nobody
    /// knows which it selects, or knew before: all nodes with pods of the namespace are.
    fn place_guard(&mut self, uid: &Uid, entry: &mut GuardEntry, namespace: &Arc<str>, unknown: bool) {
        let Some(space) = self.namespaces.get(namespace) else { return };
        for pod_uid in &space.pods {
            let Some(pod) = self.pods.get_mut(pod_uid) else { continue };
            let selects = entry.guard.selects(&pod.pod.labels);
            if selects {
                entry.pods.insert(pod_uid.clone());
                pod.guards.insert(uid.clone());
            } else {
                entry.pods.remove(pod_uid);
            }
            if selects || pod.guards.contains(uid) || unknown {
                self.touched.nodes.insert(pod.pod.node.clone());
            }
            if !selects {
                pod.guards.remove(uid);
            }
        }
    }

    /// A guard is gone.
    pub fn delete_guard(&mut self, uid: &Uid) {
        let Some(entry) = self.guards.remove(uid) else { return };
        self.touched.guards.insert(uid.clone());
        for pod_uid in &entry.pods {
            if let Some(pod) = self.pods.get_mut(pod_uid) {
                pod.guards.remove(uid);
                self.touched.nodes.insert(pod.pod.node.clone());
            }
        }
        if let Some(space) = self.namespaces.get_mut(&*entry.guard.namespace) {
            space.guards.remove(uid);
            if entry.guard.is_unknown() {
                let nodes = space.pods.iter().filter_map(|pod| self.pods.get(pod)).map(|entry| entry.pod.node.clone());
                self.touched.nodes.extend(nodes);
            }
        }
        self.forget_namespace(&entry.guard.namespace);
    }

    /// A guard.
    pub fn guard(&self, uid: &Uid) -> Option<&Guard> {
        self.guards.get(uid).map(|entry| &entry.guard)
    }

    /// All of them.
    pub fn guards(&self) -> impl Iterator<Item = &Guard> {
        self.guards.values().map(|entry| &entry.guard)
    }

    /// The pods that a guard selects, and whether each is one of Janus's own.
    pub fn selected(&self, guard: &Uid) -> impl Iterator<Item = (&Arc<Pod>, bool)> {
        let pods = self.guards.get(guard).into_iter().flat_map(|entry| &entry.pods);
        pods.filter_map(|uid| self.pods.get(uid)).map(|entry| (&entry.pod, entry.protected))
    }

    // -- pods

    /// A pod is there, new or changed: bound to a node, and not finished.
    pub fn apply_pod(&mut self, seen: SeenPod) {
        let round = self.round(Watched::Pods);
        let labels = self.shared(seen.labels);
        let ours = *seen.namespace == *self.home.namespace;
        let daemon = (ours && self.home.daemons.matches(&labels)).then_some(seen.daemon);
        let protected = daemon.is_some() || ours && labels.get(PART_OF.0).is_some_and(|value| value == PART_OF.1);
        let pod = Pod {
            namespace: self.text(&seen.namespace),
            node: self.text(&seen.node),
            labels,
            uid: seen.uid,
            cgroup_uid: seen.cgroup_uid,
            name: seen.name,
            annotated: seen.annotated,
            started: seen.started,
            running: seen
                .running
                .into_iter()
                .map(|it| Container { name: self.text(&it.name), id: it.id.into(), started: it.started })
                .collect(),
        };
        self.place_daemon(&pod, daemon.flatten());
        if let Some(entry) = self.pods.get_mut(&pod.uid) {
            entry.round = round;
            if *entry.pod == pod && entry.protected == protected {
                return;
            }
            let moved = entry.pod.node != pod.node || entry.pod.namespace != pod.namespace;
            let relabelled = entry.pod.labels != pod.labels;
            if moved {
                // The API server allows neither; whatever it means, it is another pod.
                self.delete_pod(&pod.uid.clone());
            } else {
                entry.protected = protected;
                let uid = pod.uid.clone();
                entry.pod = Arc::new(pod);
                self.place_pod(&uid, relabelled);
                return;
            }
        }
        let uid = pod.uid.clone();
        self.namespaces.entry(pod.namespace.clone()).or_default().pods.insert(uid.clone());
        self.nodes.entry(pod.node.clone()).or_default().pods.insert(uid.clone());
        let entry = PodEntry { pod: Arc::new(pod), protected, guards: Few::default(), round };
        self.pods.insert(uid.clone(), entry);
        self.place_pod(&uid, true);
    }

    /// Sees which guards select the pod; its node and those guards are touched.
    fn place_pod(&mut self, uid: &Uid, relabelled: bool) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let Some(space) = self.namespaces.get(&entry.pod.namespace) else { return };
        let mut concerned = !entry.guards.is_empty();
        self.touched.guards.extend(entry.guards.iter().cloned());
        if relabelled {
            for guard_uid in &space.guards {
                let Some(guard) = self.guards.get_mut(guard_uid) else { continue };
                if guard.guard.selects(&entry.pod.labels) {
                    guard.pods.insert(uid.clone());
                    entry.guards.insert(guard_uid.clone());
                } else {
                    guard.pods.remove(uid);
                    entry.guards.remove(guard_uid);
                }
                concerned |= guard.guard.is_unknown();
            }
            concerned |= !entry.guards.is_empty();
            self.touched.guards.extend(entry.guards.iter().cloned());
        }
        if concerned {
            self.touched.nodes.insert(entry.pod.node.clone());
        }
    }

    /// Keeps who is the daemon of a node.
    fn place_daemon(&mut self, pod: &Pod, daemon: Option<Daemon>) {
        match daemon {
            Some(daemon) => {
                let node = self.nodes.entry(pod.node.clone()).or_default();
                let before = node.target();
                node.daemons.insert(pod.uid.clone(), daemon);
                if node.target() != before {
                    self.touched.nodes.insert(pod.node.clone());
                }
            }
            None => self.remove_daemon(&pod.node, &pod.uid),
        }
    }

    fn remove_daemon(&mut self, name: &Arc<str>, uid: &Uid) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let before = node.target();
        if node.daemons.remove(uid).is_some() && node.target() != before {
            self.touched.nodes.insert(name.clone());
        }
    }

    /// A pod is gone: deleted, or finished.
    pub fn delete_pod(&mut self, uid: &Uid) {
        let Some(entry) = self.pods.remove(uid) else { return };
        self.remove_daemon(&entry.pod.node, uid);
        for guard_uid in entry.guards.iter() {
            if let Some(guard) = self.guards.get_mut(guard_uid) {
                guard.pods.remove(uid);
            }
        }
        let mut concerned = !entry.guards.is_empty();
        self.touched.guards.extend(entry.guards.iter().cloned());
        if let Some(space) = self.namespaces.get_mut(&entry.pod.namespace) {
            space.pods.remove(uid);
            concerned |= space.guards.iter().any(|it| self.guards.get(it).is_some_and(|it| it.guard.is_unknown()));
        }
        if concerned {
            self.touched.nodes.insert(entry.pod.node.clone());
        }
        self.forget_namespace(&entry.pod.namespace);
        if let Some(node) = self.nodes.get_mut(&entry.pod.node) {
            node.pods.remove(uid);
            if node.pods.is_empty() && node.daemons.is_empty() {
                self.nodes.remove(&entry.pod.node);
            }
        }
    }

    fn forget_namespace(&mut self, name: &str) {
        if self.namespaces.get(name).is_some_and(|space| space.guards.is_empty() && space.pods.is_empty()) {
            self.namespaces.remove(name);
        }
    }

    // -- what follows

    /// What should be in force on a node.
    pub fn desired(&self, node: &str) -> Desired {
        let mut desired = Desired::default();
        let Some(node) = self.nodes.get(node) else { return desired };
        for uid in &node.pods {
            let Some(entry) = self.pods.get(uid) else { continue };
            if entry.protected {
                continue;
            }
            for guard in entry.guards.iter() {
                let Some(order) = self.guards.get(guard).and_then(|it| it.guard.order()) else { continue };
                let unit = UnitId { guard: guard.clone(), pod: uid.clone() };
                desired.units.insert(unit, Wanted { order: order.clone(), pod: entry.pod.clone() });
            }
            let Some(space) = self.namespaces.get(&entry.pod.namespace) else { continue };
            let unknown = space.guards.iter().filter(|it| self.guards.get(*it).is_some_and(|it| it.guard.is_unknown()));
            for guard in unknown {
                desired.unknown.insert(guard.clone());
                desired.pods.insert(uid.clone());
            }
        }
        desired
    }

    /// The daemon that a node's guards are sent to: the newest that is ready, or else the newest; one that is being
    /// deleted, which takes nothing new, only where there is no other.
    pub fn target(&self, node: &str) -> Option<Target> {
        self.nodes.get(node)?.target()
    }

    /// A pod.
    pub fn pod(&self, uid: &Uid) -> Option<&Arc<Pod>> {
        self.pods.get(uid).map(|entry| &entry.pod)
    }

    /// The pods on a node that guards select, or whose annotation says so.
    pub fn concerned_on(&self, node: &str) -> impl Iterator<Item = &Uid> {
        let pods = self.nodes.get(node).into_iter().flat_map(|node| &node.pods);
        pods.filter(|uid| {
            self.pods.get(*uid).is_some_and(|entry| !entry.guards.is_empty() || entry.pod.annotated.is_some())
        })
    }

    /// The guards that select a pod.
    pub fn guards_of(&self, pod: &Uid) -> impl Iterator<Item = &Guard> {
        let guards = self.pods.get(pod).into_iter().flat_map(|entry| entry.guards.iter());
        guards.filter_map(|uid| self.guard(uid))
    }

    /// The guards that select pods on a node.
    pub fn guards_on(&self, node: &str) -> BTreeSet<Uid> {
        let pods = self.nodes.get(node).into_iter().flat_map(|node| &node.pods);
        pods.filter_map(|uid| self.pods.get(uid)).flat_map(|entry| entry.guards.iter().cloned()).collect()
    }

    /// Pods that are known.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        // Ephemeral containers have names of their own, which go with them; a watch may go for weeks without a listing.
        if self.texts.len() >= self.most_texts {
            self.forget_texts();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    /// Those that nobody has any more.
    fn forget_texts(&mut self) {
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.most_texts = 2 * self.texts.len() + LEAST_TEXTS;
    }

    fn shared(&mut self, labels: BTreeMap<String, String>) -> Arc<BTreeMap<String, String>> {
        if let Some(known) = self.labels.get(&labels) {
            return known.clone();
        }
        // StatefulSets give each pod labels of its own, which go with it.
        if self.labels.len() >= 2 * self.pods.len() + 1024 {
            self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        }
        let labels = Arc::new(labels);
        self.labels.insert(labels.clone());
        labels
    }
}

impl Node {
    fn target(&self) -> Option<Target> {
        let newest = self
            .daemons
            .iter()
            .max_by_key(|(uid, daemon)| (!daemon.leaving, daemon.ready, daemon.created, (*uid).clone()));
        newest.map(|(uid, daemon)| Target { pod: uid.clone(), address: daemon.address })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
    use serde_json::json;

    use super::*;

    /// Each with a container's name and labels of its own.
    fn pod(index: usize) -> SeenPod {
        let id = format!("containerd://{index}");
        let running = json!({ "running": { "startedAt": "2026-01-02T03:04:05Z" } });
        let pod = json!({
            "metadata": { "uid": format!("u{index}"), "namespace": "a", "name": "p", "labels": { "x": index.to_string() } },
            "spec": { "nodeName": "n" },
            "status": { "ephemeralContainerStatuses": [{ "name": format!("debug-{index}"), "containerID": id, "state": running }] },
        });
        SeenPod::of(serde_json::from_value(pod).unwrap()).unwrap().unwrap()
    }

    #[test]
    fn what_pods_shared_goes_with_them_though_nothing_is_listed() {
        let daemons = LabelSelector::default().try_into().unwrap();
        let mut index = Index::new(Home { namespace: "janus-system".to_owned(), daemons });
        for round in 0..10 * LEAST_TEXTS {
            let pod = pod(round);
            let uid = pod.uid.clone();
            index.apply_pod(pod);
            index.delete_pod(&uid);
        }
        assert!(index.texts.len() <= 2 * LEAST_TEXTS, "{} texts", index.texts.len());
        assert!(index.labels.len() <= 2 * LEAST_TEXTS, "{} sets of labels", index.labels.len());
        assert!(index.nodes.is_empty() && index.namespaces.is_empty() && index.pods.is_empty());
    }
}

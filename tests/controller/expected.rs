//! What daemons must hold in the end, worked out from the API server's objects alone.
//!
//! Written without a look at the controller, as plainly as can be: all guards x all pods, every time. Where the two differ,
//! one of them is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use janus_crd::{Enforcement, Event, FailurePolicy, JanusGuard, JanusGuardSpec, Log, Operator, Origin};
use janus_proto::v1;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::certificates::NAMESPACE;
use crate::fake::{Daemon, Fleet, Key};

/// What there is in the cluster.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) guards: Vec<JanusGuard>,
    /// Of all namespaces, the daemons' own among them.
    pub(crate) pods: Vec<Pod>,
}

/// One guard in one pod, as a daemon must hold it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unit {
    pub(crate) guard: String,
    pub(crate) pod: String,
    pub(crate) cgroup_uid: String,
    pub(crate) generation: i64,
    pub(crate) spec: v1::GuardSpec,
}

/// What follows from the objects.
pub(crate) struct Expected {
    /// Of each daemon that is driven.
    pub(crate) books: BTreeMap<IpAddr, BTreeMap<Key, Unit>>,
    /// Pods that could be guarded, by the guard's UID.
    pub(crate) observable: BTreeMap<String, BTreeSet<String>>,
}

impl Expected {
    pub(crate) fn of(objects: &Objects) -> Expected {
        let driven = driven(&objects.pods);
        let mut books: BTreeMap<IpAddr, BTreeMap<Key, Unit>> =
            driven.values().map(|ip| (*ip, BTreeMap::new())).collect();
        let mut observable = BTreeMap::new();
        for guard in objects.guards.iter().filter(|guard| guard.metadata.deletion_timestamp.is_none()) {
            let uid = guard.metadata.uid.clone().unwrap();
            let spec = on_the_wire(&guard.spec);
            let mut seen = BTreeSet::new();
            for pod in objects.pods.iter().filter(|pod| is_selected(guard, pod)) {
                let pod_uid = pod.metadata.uid.clone().unwrap();
                if has_started_container(pod) {
                    seen.insert(pod_uid.clone());
                }
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).unwrap();
                let Some(ip) = driven.get(node) else { continue };
                let unit = Unit {
                    guard: format!("{}/{}", namespace(&guard.metadata), name(&guard.metadata)),
                    pod: name(&pod.metadata),
                    cgroup_uid: cgroup_uid(pod),
                    generation: guard.metadata.generation.unwrap(),
                    spec: spec.clone(),
                };
                books.get_mut(ip).unwrap().insert(Key::new(&uid, pod_uid), unit);
            }
            observable.insert(uid, seen);
        }
        Expected { books, observable }
    }

    /// How the books differ, one line for each difference; empty: not at all.
    pub(crate) fn differences(&self, fleet: &Fleet) -> Vec<String> {
        let mut lines = Vec::new();
        for (ip, units) in &self.books {
            match fleet.at(*ip) {
                Some(daemon) => self.differences_of(&daemon, units, &mut lines),
                None => lines.push(format!("no daemon serves at {ip}")),
            }
        }
        lines
    }

    fn differences_of(&self, daemon: &Daemon, units: &BTreeMap<Key, Unit>, lines: &mut Vec<String>) {
        let held = daemon.held();
        let whose = |guard: &str, pod: &str| format!("{} ({}): guard {guard} in pod {pod}", daemon.node, daemon.ip);
        for (key, unit) in units {
            let whose = whose(&unit.guard, &unit.pod);
            let Some(held) = held.get(key) else {
                lines.push(format!("{whose}: missing, should be there at generation {}", unit.generation));
                continue;
            };
            if held.accepted != unit.generation {
                lines.push(format!("{whose}: generation {}, should be {}", held.accepted, unit.generation));
            } else if held.generation != unit.generation {
                let (have, phase) = (held.generation, held.phase);
                lines.push(format!("{whose}: {have} in force ({phase:?}), {} is not yet", unit.generation));
            } else if held.spec.as_deref() != Some(&unit.spec) {
                let had = held.spec.as_deref().map(|spec| format!("{spec:?}")).unwrap_or_default();
                lines.push(format!("{whose}: another spec: {}", apart(&had, &format!("{:?}", unit.spec))));
            } else if held.cgroup_uid != unit.cgroup_uid {
                lines.push(format!("{whose}: cgroup UID {}, should be {}", held.cgroup_uid, unit.cgroup_uid));
            } else if (&held.guard, &held.pod) != (&unit.guard, &unit.pod) {
                lines.push(format!("{whose}: held under the names {} and {}", held.guard, held.pod));
            }
        }
        for (key, held) in held.iter().filter(|(key, _)| !units.contains_key(key)) {
            let whose = whose(&held.guard, &held.pod);
            let Key { guard, pod } = key;
            lines.push(format!("{whose}: should not be there ({guard} in {pod}, {:?})", held.phase));
        }
    }
}

/// Where two texts part, with some of what is around.
fn apart(have: &str, want: &str) -> String {
    let same = have.chars().zip(want.chars()).take_while(|(have, want)| have == want).count();
    let around = |text: &str| text.chars().skip(same.saturating_sub(20)).take(80).collect::<String>();
    format!("...{}..., should be ...{}...", around(have), around(want))
}

fn name(metadata: &kube::core::ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn namespace(metadata: &kube::core::ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or_default()
}

fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// The IP of the daemon that is driven on each node: the newest that is ready, or else the newest; one that is being deleted
/// only where there is no other.
fn driven(pods: &[Pod]) -> BTreeMap<String, IpAddr> {
    let mut best = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_daemon(pod) && !is_finished(pod)) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        let (Some(node), Some(ip)) = (node, ip) else { continue };
        let stays = pod.metadata.deletion_timestamp.is_none();
        let created = pod.metadata.creation_timestamp.clone().map(|it| it.0);
        let rank = (stays, is_ready(pod), created, pod.metadata.uid.clone());
        let known = best.entry(node).or_insert_with(|| (rank.clone(), ip));
        if rank > known.0 {
            *known = (rank, ip);
        }
    }
    best.into_iter().map(|(node, (_, ip))| (node, ip)).collect()
}

fn is_daemon(pod: &Pod) -> bool {
    namespace(&pod.metadata) == NAMESPACE && label(pod, "app.kubernetes.io/name") == Some("janusd")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|it| it.type_ == "Ready" && it.status == "True"))
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_selected(guard: &JanusGuard, pod: &Pod) -> bool {
    let of_janus = is_daemon(pod)
        || namespace(&pod.metadata) == NAMESPACE && label(pod, "app.kubernetes.io/part-of") == Some("janus");
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_ref().is_some_and(|node| !node.is_empty()));
    let selector = &guard.spec.selector;
    let labels = selector.match_labels.iter().all(|(key, value)| label(pod, key) == Some(value));
    let expressions = selector.match_expressions.iter().all(|required| {
        let value = label(pod, &required.key);
        let among = value.is_some_and(|value| required.values.iter().any(|it| it == value));
        match required.operator {
            Operator::In => among,
            Operator::NotIn => !among,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    });
    namespace(&guard.metadata) == namespace(&pod.metadata)
        && bound
        && !is_finished(pod)
        && !of_janus
        && labels
        && expressions
}

/// Whether a container of any kind has ever started.
fn has_started_container(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().any(|it: &ContainerStatus| {
        let now = it.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some());
        now || it.restart_count > 0 || it.last_state.as_ref().is_some_and(|state| state.terminated.is_some())
    })
}

/// A static pod's cgroups bear its configuration's hash, which its mirror tells.
fn cgroup_uid(pod: &Pod) -> String {
    let annotation = |key: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(key).cloned());
    let hash = annotation("kubernetes.io/config.mirror").and(annotation("kubernetes.io/config.hash"));
    hash.or(pod.metadata.uid.clone()).unwrap_or_default()
}

/// A guard's spec as the wire has it: less its selector, every default filled in.
pub(crate) fn on_the_wire(spec: &JanusGuardSpec) -> v1::GuardSpec {
    let subjects = spec.subjects.iter().map(|subject| {
        let mut events = BTreeSet::new();
        for event in &subject.events {
            match event {
                Event::Open => drop(events.insert(v1::Event::Open)),
                Event::Access => drop(events.insert(v1::Event::Access)),
                Event::Execute => drop(events.insert(v1::Event::Execute)),
                Event::All => events.extend([v1::Event::Open, v1::Event::Access, v1::Event::Execute]),
            }
        }
        let depth = if subject.recursive == Some(false) { Some(1) } else { subject.max_depth };
        let except = subject.except.iter().map(|matcher| v1::ProcessMatcher {
            executables: matcher.executables.clone(),
            users: matcher.users.clone(),
            origins: matcher.origins.iter().map(|it| origin(*it).into()).collect(),
        });
        v1::Subject {
            name: subject.name.clone(),
            allow: subject.allow.clone(),
            deny: subject.deny.clone(),
            events: events.into_iter().map(Into::into).collect(),
            recursion: depth.map(|depth| v1::Recursion { max_depth: depth.try_into().unwrap() }),
            only_dir: subject.only_dir == Some(true),
            mount: subject.mount == Some(true),
            except: except.collect(),
            audit: subject.audit == Some(true),
            tags: subject.tags.clone().into_iter().collect(),
            log: match subject.log {
                None | Some(Log::All) => v1::LogPolicy::All,
                Some(Log::Denied) => v1::LogPolicy::Denied,
                Some(Log::None) => v1::LogPolicy::None,
            }
            .into(),
            auto_allow_owner: subject.auto_allow_owner == Some(true),
        }
    });
    v1::GuardSpec {
        containers: spec.containers.clone(),
        subjects: subjects.collect(),
        log_format: spec.log_format.clone().unwrap_or_default(),
        enforcement: match spec.enforcement {
            Enforcement::Enforce => v1::Enforcement::Enforce,
            Enforcement::Audit => v1::Enforcement::Audit,
        }
        .into(),
        failure_policy: match spec.failure_policy {
            FailurePolicy::Allow => v1::FailurePolicy::Allow,
            FailurePolicy::Deny => v1::FailurePolicy::Deny,
        }
        .into(),
    }
}

fn origin(origin: Origin) -> v1::Origin {
    match origin {
        Origin::Owner => v1::Origin::Owner,
        Origin::Session => v1::Origin::Session,
        Origin::Pod => v1::Origin::Pod,
        Origin::Node => v1::Origin::Node,
    }
}

//! The unit of enforcement, guard x pod, and what is known of either side of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use janus_proto::v1;

use super::spec::Features;

/// `metadata.uid` of a guard or a pod; shared, since each stands in many places.
pub type Uid = Arc<str>;

/// One guard in one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitId {
    /// The guard's UID.
    pub guard: Uid,
    /// The pod's UID, as the API server knows it.
    pub pod: Uid,
}

/// A guard as daemons are told of it, at one generation. One for all of its pods.
#[derive(Debug, PartialEq)]
pub struct Order {
    /// `metadata.uid`.
    pub uid: Uid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// What goes over the wire.
    pub spec: v1::GuardSpec,
    /// What a daemon must know to honour it.
    pub needs: Features,
}

impl Order {
    /// Whether the guard selects a container of this name.
    pub fn selects(&self, container: &str) -> bool {
        self.spec.containers.is_empty() || self.spec.containers.iter().any(|name| name == container)
    }
}

/// A pod that is bound to a node and has not finished.
#[derive(Debug, PartialEq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Uid,
    /// The UID in the names of its cgroups, where it differs: the annotation `kubernetes.io/config.hash` of a static
    /// pod's mirror.
    pub cgroup_uid: Option<Box<str>>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Box<str>,
    /// `spec.nodeName`.
    pub node: Arc<str>,
    /// `metadata.labels`; pods of one template share them.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The guards that its annotation names, if it has one.
    pub annotated: Option<Box<str>>,
    /// Whether any of its containers has ever started.
    pub started: bool,
    /// The containers that run: app, sidecar, init and ephemeral ones.
    pub running: Box<[Container]>,
}

/// A container that runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name in the pod.
    pub name: Arc<str>,
    /// Its ID, without the runtime's name. What daemons say of it shares it.
    pub id: Arc<str>,
    /// When it started, seconds since 1970; 0 if that is not known.
    pub started: i64,
}

/// A unit that should be in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The guard.
    pub order: Arc<Order>,
    /// The pod.
    pub pod: Arc<Pod>,
}

impl Wanted {
    /// Its name.
    pub fn id(&self) -> UnitId {
        UnitId { guard: self.order.uid.clone(), pod: self.pod.uid.clone() }
    }

    /// The running containers that the guard selects.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.pod.running.iter().filter(|container| self.order.selects(&container.name))
    }
}

//! Calls that change what is guarded.

use std::sync::Arc;

use janus_proto::v1;

use super::names::{Caller, ContainerName, PodName, Uid, UnitId};
use super::{Faults, Invalid, spec};
use crate::policy::{GuardSpec, check_dns_label, check_dns_subdomain};

const MAX_CONTAINER_IDS: usize = 256;

/// CreateGuard, checked.
#[derive(Debug, Clone)]
pub struct Create {
    /// Who calls.
    pub caller: Caller,
    /// Guard and pod.
    pub unit: UnitId,
    /// The guard's generation, at least 1.
    pub generation: i64,
    /// The pod.
    pub pod: PodName,
    /// The guard, with its names; its selector is empty.
    pub spec: GuardSpec,
    /// The spec as it was sent: two that are equal mean the same.
    pub sent: Arc<v1::GuardSpec>,
    /// Containers whose IDs the caller knows.
    pub containers: Vec<ContainerName>,
}

impl TryFrom<v1::CreateGuardRequest> for Create {
    type Error = Invalid;

    fn try_from(request: v1::CreateGuardRequest) -> Result<Create, Invalid> {
        let mut faults = Faults::default();
        let create = Create::take(request, &mut faults);
        faults.unless_any(create)
    }
}

impl Create {
    fn take(request: v1::CreateGuardRequest, faults: &mut Faults) -> Option<Create> {
        let v1::CreateGuardRequest { caller, guard, pod, spec: sent, container_ids } = request;
        let caller = Caller::take(caller, faults);
        let guard = faults.required("guard", guard);
        let v1::GuardRef { uid, namespace, name, generation } = guard?;
        let uid = faults.take("guard.uid", Uid::parse(uid));
        check_generation(generation, faults);
        let pod = PodName::take(pod, &namespace, faults);
        let sent = faults.required("spec", sent);
        if container_ids.len() > MAX_CONTAINER_IDS {
            let count = container_ids.len();
            faults.add("container_ids", format!("must have at most {MAX_CONTAINER_IDS} items, has {count}"));
        }
        let mut containers = Vec::new();
        for (index, id) in container_ids.into_iter().take(MAX_CONTAINER_IDS).enumerate() {
            containers.extend(ContainerName::take(&format!("container_ids[{index}]"), id, faults));
        }
        let sent = Arc::new(sent?);
        let spec = match GuardSpec::new(spec::raw(namespace, name, v1::GuardSpec::clone(&sent))) {
            Ok(spec) => spec,
            Err(errors) => {
                for error in errors {
                    match error.field.strip_prefix("metadata.") {
                        Some(name) => faults.add(&format!("guard.{name}"), error.reason),
                        None => faults.0.push(error),
                    }
                }
                return None;
            }
        };
        let pod = pod?;
        let unit = UnitId { guard: uid?, pod: pod.uid().clone() };
        Some(Create { caller: caller?, unit, generation, pod, spec, sent, containers })
    }
}

impl Create {
    /// The call that brings the same about, by a caller of `epoch` that knows these containers: the last ones of them, as
    /// many as a call may name.
    pub fn request(&self, epoch: u64, containers: &[ContainerName]) -> v1::CreateGuardRequest {
        let Create { caller, unit, generation, pod, spec, sent, containers: _ } = self;
        let name = spec.name();
        let containers = &containers[containers.len().saturating_sub(MAX_CONTAINER_IDS)..];
        v1::CreateGuardRequest {
            caller: Some(v1::Caller { epoch, node: caller.node().to_owned() }),
            guard: Some(v1::GuardRef {
                uid: unit.guard.to_string(),
                namespace: name.namespace.clone(),
                name: name.name.clone(),
                generation: *generation,
            }),
            pod: Some(v1::PodRef {
                uid: pod.uid().to_string(),
                cgroup_uid: pod.cgroup_uid().to_string(),
                namespace: pod.namespace().to_owned(),
                name: pod.name().to_owned(),
            }),
            spec: Some(v1::GuardSpec::clone(sent)),
            container_ids: containers
                .iter()
                .map(|it| v1::ContainerId { name: it.name().to_owned(), id: it.id().to_owned() })
                .collect(),
        }
    }
}

/// DestroyGuard, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destroy {
    /// Who calls.
    pub caller: Caller,
    /// Guard and pod.
    pub unit: UnitId,
    /// The last generation that the caller knows, at least 1.
    pub generation: i64,
}

impl TryFrom<v1::DestroyGuardRequest> for Destroy {
    type Error = Invalid;

    fn try_from(request: v1::DestroyGuardRequest) -> Result<Destroy, Invalid> {
        let mut faults = Faults::default();
        let destroy = Destroy::take(request, &mut faults);
        faults.unless_any(destroy)
    }
}

impl Destroy {
    fn take(request: v1::DestroyGuardRequest, faults: &mut Faults) -> Option<Destroy> {
        let v1::DestroyGuardRequest { caller, guard, pod } = request;
        let caller = Caller::take(caller, faults);
        let guard = faults.required("guard", guard);
        let pod = faults.required("pod", pod);
        let v1::GuardRef { uid, namespace, name, generation } = guard?;
        let guard = faults.take("guard.uid", Uid::parse(uid));
        check_generation(generation, faults);
        if !namespace.is_empty() {
            faults.take("guard.namespace", check_dns_label(&namespace));
        }
        if !name.is_empty() {
            faults.take("guard.name", check_dns_subdomain(&name));
        }
        // Only the UID counts: the pod may be long gone, and its names with it.
        let v1::PodRef { uid, cgroup_uid: _, namespace: _, name: _ } = pod?;
        let pod = faults.take("pod.uid", Uid::parse(uid));
        Some(Destroy { caller: caller?, unit: UnitId { guard: guard?, pod: pod? }, generation })
    }
}

fn check_generation(generation: i64, faults: &mut Faults) {
    if generation < 1 {
        faults.add("guard.generation", "must be at least 1");
    }
}

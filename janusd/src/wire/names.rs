//! Who calls, and about what: names and UIDs.

use std::fmt;

use janus_proto::v1;

use super::Faults;
use crate::policy::{check_dns_label, check_dns_subdomain};

const MAX_UID: usize = 64;
/// Containers' IDs have 64 hexadecimal digits with every runtime that is known; some room is left.
const MAX_CONTAINER_ID: usize = 128;

/// `metadata.uid` of something: 1 to 64 of A-Z, a-z, 0-9 and `-`, with a letter or digit at either end. Safe in the name
/// of a file, of a cgroup, and in a line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(String);

impl Uid {
    /// Checks a UID.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: String) -> Result<Uid, String> {
        let bytes = text.as_bytes();
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        if bytes.len() <= MAX_UID
            && ends(bytes.first())
            && ends(bytes.last())
            && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            Ok(Uid(text))
        } else {
            Err("must be a UID: 1 to 64 of A-Z, a-z, 0-9 and `-`, with a letter or digit at either end".to_owned())
        }
    }

    /// As it was sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Names a unit: one guard in one pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitId {
    /// The guard's UID.
    pub guard: Uid,
    /// The pod's UID, as the API server knows it.
    pub pod: Uid,
}

/// A call that is meant for another node: FAILED_PRECONDITION.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is node {have}")]
pub struct WrongNode {
    /// The node of this daemon.
    pub have: String,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    epoch: u64,
    node: String,
}

impl Caller {
    pub(super) fn take(sent: Option<v1::Caller>, faults: &mut Faults) -> Option<Caller> {
        let v1::Caller { epoch, node } = faults.required("caller", sent)?;
        if epoch == 0 {
            faults.add("caller.epoch", "must be at least 1");
        }
        faults.take("caller.node", check_dns_subdomain(&node))?;
        Some(Caller { epoch, node })
    }

    /// The node that the call is meant for.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its epoch, at least 1.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Checks that the call is meant for this node, which is `have`.
    ///
    /// # Errors
    /// [`WrongNode`] if it is not.
    pub fn check_node(&self, have: &str) -> Result<(), WrongNode> {
        if self.node == have { Ok(()) } else { Err(WrongNode { have: have.to_owned() }) }
    }
}

/// A pod on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    uid: Uid,
    cgroup_uid: Uid,
    namespace: String,
    name: String,
}

impl PodName {
    /// Checks a pod of the namespace of its guard: no guard reaches past that.
    pub(super) fn take(sent: Option<v1::PodRef>, guard_namespace: &str, faults: &mut Faults) -> Option<PodName> {
        let v1::PodRef { uid, cgroup_uid, namespace, name } = faults.required("pod", sent)?;
        let uid = faults.take("pod.uid", Uid::parse(uid));
        let cgroup_uid =
            if cgroup_uid.is_empty() { uid.clone() } else { faults.take("pod.cgroup_uid", Uid::parse(cgroup_uid)) };
        // Its syntax is that of the guard's, which is checked.
        if namespace != guard_namespace {
            faults.add("pod.namespace", "must be the namespace of the guard");
        }
        faults.take("pod.name", check_dns_subdomain(&name));
        Some(PodName { uid: uid?, cgroup_uid: cgroup_uid?, namespace, name })
    }

    /// Its UID, as the API server knows it.
    pub fn uid(&self) -> &Uid {
        &self.uid
    }

    /// Its UID in the names of its cgroups.
    pub fn cgroup_uid(&self) -> &Uid {
        &self.cgroup_uid
    }

    /// Its namespace, which is the guard's.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The name of a container that is known by its ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerName {
    name: String,
    id: String,
}

impl ContainerName {
    pub(super) fn take(field: &str, sent: v1::ContainerId, faults: &mut Faults) -> Option<ContainerName> {
        let v1::ContainerId { name, id } = sent;
        faults.take(&format!("{field}.name"), check_dns_label(&name));
        let id = faults.take(&format!("{field}.id"), bare_id(&id))?;
        Some(ContainerName { name, id })
    }

    /// As the pod's spec names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Without the runtime's name.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The ID without the runtime's name.
fn bare_id(sent: &str) -> Result<String, String> {
    let id = match sent.split_once("://") {
        Some((runtime, id)) if check_dns_label(runtime).is_ok() => id,
        _ => sent,
    };
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.len() <= MAX_CONTAINER_ID
        && id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && id.as_bytes().iter().all(inner)
    {
        Ok(id.to_owned())
    } else {
        Err("must be a container's ID, with or without `<runtime>://`: at most 128 of A-Z, a-z, 0-9, `-`, `_` and `.`, \
             with a letter or digit in front"
            .to_owned())
    }
}

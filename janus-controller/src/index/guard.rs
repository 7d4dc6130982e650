//! A JanusGuard as it was seen, and what of it can be enforced.

use std::collections::BTreeMap;
use std::sync::Arc;

use janus_crd::{JanusGuard, JanusGuardStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DeserializeGuard, Selector, SelectorExt};

use crate::core::observation::plain;
use crate::core::selector;
use crate::core::spec;
use crate::core::unit::{Order, Uid};

/// What keeps a deleted guard until daemons have lifted it.
pub const FINALIZER: &str = "januscontroller.clustergarage.io/release";

/// A guard as the watch brought it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `metadata.uid`.
    pub uid: Uid,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Version of the object.
    pub resource_version: Box<str>,
    /// Whether it has been deleted, and waits for its finalizers.
    pub deleted: bool,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// Its status, if it can be read.
    pub status: Option<JanusGuardStatus>,
    /// What it asks for, or why that cannot be said.
    pub spec: Result<Spec, Box<str>>,
}

/// A spec that can be enforced.
#[derive(Clone, Debug)]
pub struct Spec {
    selector: Selector,
    wire: janus_proto::v1::GuardSpec,
    needs: spec::Features,
}

/// An object that the API server cannot have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an object without metadata.{0}")]
pub struct Nameless(pub &'static str);

impl Seen {
    /// Takes an object apart. What cannot be decoded is a guard all the same.
    ///
    /// # Errors
    /// [`Nameless`].
    pub fn of(object: DeserializeGuard<JanusGuard>) -> Result<Seen, Nameless> {
        let (metadata, status, spec) = match object.0 {
            Ok(JanusGuard { metadata, spec, status }) => {
                let compiled = selector::compile(&spec.selector);
                let spec = compiled.map_err(|error| plain(&error.to_string())).map(|selector| Spec {
                    selector,
                    wire: spec::wire(&spec),
                    needs: spec::needs(&spec),
                });
                (metadata, status, spec)
            }
            Err(invalid) => (invalid.metadata, None, Err(plain(&invalid.error))),
        };
        let ObjectMeta { uid, namespace, name, generation, resource_version, deletion_timestamp, finalizers, .. } =
            metadata;
        Ok(Seen {
            uid: Uid::from(uid.ok_or(Nameless("uid"))?),
            namespace: namespace.ok_or(Nameless("namespace"))?.into(),
            name: name.ok_or(Nameless("name"))?.into(),
            // Absent on objects of before there were generations.
            generation: generation.unwrap_or(1),
            resource_version: resource_version.ok_or(Nameless("resourceVersion"))?.into(),
            deleted: deletion_timestamp.is_some(),
            finalizers: finalizers.unwrap_or_default(),
            status,
            spec,
        })
    }
}

/// A guard, with what of it is enforced: its spec, or the last one that could be decoded.
#[derive(Debug)]
pub struct Guard {
    /// `metadata.uid`.
    pub uid: Uid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Version of the object.
    pub resource_version: Box<str>,
    /// Whether it has been deleted: nothing of it is enforced any more.
    pub deleted: bool,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// Its status, if it can be read.
    pub status: Option<JanusGuardStatus>,
    /// Why this generation cannot be used.
    pub invalid: Option<Box<str>>,
    enforced: Option<Enforced>,
}

#[derive(Debug, Clone)]
struct Enforced {
    selector: Selector,
    order: Arc<Order>,
}

impl Guard {
    pub(super) fn of(seen: Seen, before: Option<&Guard>) -> Guard {
        let Seen { uid, namespace, name, generation, resource_version, deleted, finalizers, status, spec } = seen;
        let (namespace, name): (Arc<str>, Arc<str>) = (namespace.into(), name.into());
        let last = before.and_then(|before| before.enforced.clone());
        let (enforced, invalid) = match spec {
            Ok(Spec { selector, wire, needs }) => {
                let order = Order {
                    uid: uid.clone(),
                    namespace: namespace.clone(),
                    name: name.clone(),
                    generation,
                    spec: wire,
                    needs,
                };
                // The same order is the same allocation: nodes see by that that nothing has changed.
                let order = match last {
                    Some(last) if *last.order == order => last.order,
                    _ => Arc::new(order),
                };
                (Some(Enforced { selector, order }), None)
            }
            Err(why) => (last, Some(why)),
        };
        Guard { uid, namespace, name, generation, resource_version, deleted, finalizers, status, invalid, enforced }
    }

    /// What daemons are told; `None` when nothing is enforced, or nobody knows what.
    pub fn order(&self) -> Option<&Arc<Order>> {
        self.enforced.as_ref().filter(|_| !self.deleted).map(|enforced| &enforced.order)
    }

    /// Whether it is enforced by whoever enforces it, and we cannot say what it is.
    pub fn is_unknown(&self) -> bool {
        !self.deleted && self.enforced.is_none()
    }

    /// Whether it bears our finalizer.
    pub fn is_held(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }

    /// Whether it selects pods with these labels. One that is deleted does not: nothing of it is enforced any more.
    pub(super) fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.deleted && self.enforced.as_ref().is_some_and(|enforced| enforced.selector.matches(labels))
    }

    /// Whether pods are placed by the two alike.
    pub(super) fn places_as(&self, other: &Guard) -> bool {
        let same = match (&self.enforced, &other.enforced) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(&ours.order, &theirs.order) && ours.selector == theirs.selector,
            (None, None) => true,
            _ => false,
        };
        same && self.deleted == other.deleted
    }
}

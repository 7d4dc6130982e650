//! Where the Lease lies: a port, and the API server behind it.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use super::candidate::{Failed, Kind, Record, Timing, Write};

/// Why the Lease could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It has changed since it was read, or has been created or deleted.
    #[error("the Lease has changed since it was read")]
    Conflict,
    /// There was no answer in time.
    #[error("the API server did not answer in time")]
    Timeout,
    /// The API server refuses it, or cannot be asked.
    #[error("the Lease cannot be had: {0}")]
    Api(#[source] Box<kube::Error>),
}

impl StoreError {
    pub(super) fn failed(&self) -> Failed {
        match self {
            StoreError::Conflict => Failed::Conflict,
            StoreError::Timeout | StoreError::Api(_) => Failed::Unknown,
        }
    }
}

/// One Lease, read and written with optimistic concurrency.
pub trait Store: Send + Sync {
    /// What it is now, by a read that no write is missing from; none if there is none.
    fn get(&self) -> impl Future<Output = Result<Option<Lease>, StoreError>> + Send;

    /// Makes it, unless there is one: [`StoreError::Conflict`].
    fn create(&self, lease: &Lease) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// Replaces it, if it still has the resourceVersion of `lease`: else [`StoreError::Conflict`], also if it is gone.
    fn replace(&self, lease: &Lease) -> impl Future<Output = Result<Lease, StoreError>> + Send;
}

/// A Lease of a real API server.
#[derive(Debug, Clone)]
pub struct ApiStore {
    api: Api<Lease>,
    name: String,
    parameters: PostParams,
}

impl ApiStore {
    /// The Lease of that name.
    pub fn new(client: Client, namespace: &str, name: &str) -> ApiStore {
        let parameters = PostParams { field_manager: Some("janus-controller".to_owned()), ..PostParams::default() };
        ApiStore { api: Api::namespaced(client, namespace), name: name.to_owned(), parameters }
    }
}

impl Store for ApiStore {
    async fn get(&self) -> Result<Option<Lease>, StoreError> {
        self.api.get_opt(&self.name).await.map_err(|error| StoreError::Api(Box::new(error)))
    }

    async fn create(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.api.create(&self.parameters, lease).await.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 409 => StoreError::Conflict,
            error => StoreError::Api(Box::new(error)),
        })
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.api.replace(&self.name, &self.parameters, lease).await.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 409 || status.code == 404 => StoreError::Conflict,
            error => StoreError::Api(Box::new(error)),
        })
    }
}

/// What matters of it. An object without a resourceVersion, which no API server answers, is like no other.
pub(super) fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let uid = lease.metadata.uid.as_deref().unwrap_or_default();
    let version = lease.metadata.resource_version.as_deref().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    Record {
        version: format!("{uid}/{version}"),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        transitions: spec.lease_transitions.unwrap_or_default().max(0),
        duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
    }
}

/// What `write` makes of `over`; of nothing, a new Lease.
pub(super) fn written(over: Option<&Lease>, write: &Write, who: &Holder<'_>, now: Timestamp) -> Lease {
    let mut lease = over.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            namespace: Some(who.namespace.to_owned()),
            name: Some(who.name.to_owned()),
            labels: Some([("app.kubernetes.io/part-of".to_owned(), "janus".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.renew_time = Some(MicroTime(now));
    match write.kind {
        Kind::Take(transitions) | Kind::Reserve(transitions) => {
            spec.holder_identity = Some(who.identity.to_owned());
            spec.lease_duration_seconds = Some(seconds(who.timing.lease()));
            spec.acquire_time = Some(MicroTime(now));
            spec.lease_transitions = Some(transitions);
        }
        Kind::Renew => {}
        Kind::Release => {
            spec.holder_identity = None;
            // As client-go leaves it.
            spec.lease_duration_seconds = Some(1);
            spec.acquire_time = Some(MicroTime(now));
        }
    }
    lease
}

/// Whose name goes where.
#[derive(Debug)]
pub(super) struct Holder<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) identity: &'a str,
    pub(super) timing: &'a Timing,
}

/// Whole ones, never fewer than there are.
fn seconds(duration: Duration) -> i32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(whole.max(1)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Holder<'static> =
        Holder { namespace: "janus", name: "janus-controller", identity: "a_1", timing: &Timing::USUAL };

    fn take(over: Option<&Lease>, transitions: i32) -> Lease {
        let over_version = over.map(|lease| record(lease).version);
        written(over, &Write { over: over_version, kind: Kind::Take(transitions) }, &WHO, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_new_lease_is_as_other_candidates_write_theirs() {
        let text = serde_json::to_value(take(None, 7)).unwrap();
        let expected = serde_json::json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "namespace": "janus",
                "name": "janus-controller",
                "labels": {"app.kubernetes.io/part-of": "janus"},
            },
            "spec": {
                "holderIdentity": "a_1",
                "leaseDurationSeconds": 15,
                "acquireTime": "1970-01-01T00:00:00.000000Z",
                "renewTime": "1970-01-01T00:00:00.000000Z",
                "leaseTransitions": 7,
            },
        });
        assert_eq!(text, expected);
    }

    #[test]
    fn what_others_put_into_it_stays() {
        let mut old = take(None, 7);
        old.metadata.annotations = Some([("kept".to_owned(), "yes".to_owned())].into());
        old.metadata.resource_version = Some("5".to_owned());
        let later = Timestamp::from_second(60).unwrap();
        let write = |kind| Write { over: Some(record(&old).version), kind };
        let renewed = written(Some(&old), &write(Kind::Renew), &WHO, later);
        assert_eq!(renewed.metadata, old.metadata);
        let (new, before) = (renewed.spec.unwrap(), old.spec.clone().unwrap());
        assert_eq!(new, LeaseSpec { renew_time: Some(MicroTime(later)), ..before });
    }

    #[test]
    fn a_released_lease_has_no_holder_and_keeps_its_transitions() {
        let old = take(None, 7);
        let released = written(Some(&old), &Write { over: None, kind: Kind::Release }, &WHO, Timestamp::UNIX_EPOCH);
        let read = record(&released);
        assert_eq!((read.holder, read.transitions), (None, 7));
    }

    #[test]
    fn odd_leases_are_read_as_what_they_are() {
        let mut lease = take(None, 7);
        let spec = lease.spec.as_mut().unwrap();
        spec.holder_identity = Some(String::new());
        spec.lease_transitions = Some(-3);
        spec.lease_duration_seconds = Some(-3);
        let read = record(&lease);
        assert_eq!((read.holder, read.transitions, read.duration), (None, 0, Duration::ZERO));
        lease.spec = None;
        assert_eq!(record(&lease).holder, None);
    }

    #[test]
    fn the_same_name_made_anew_is_another_version() {
        let mut lease = take(None, 7);
        lease.metadata.resource_version = Some("5".to_owned());
        lease.metadata.uid = Some("u".to_owned());
        let before = record(&lease);
        lease.metadata.uid = Some("v".to_owned());
        assert_ne!(record(&lease).version, before.version);
    }

    #[test]
    fn seconds_are_never_fewer_than_there_are() {
        assert_eq!([0, 1, 1000, 1001, 15000].map(|ms| seconds(Duration::from_millis(ms))), [1, 1, 1, 2, 15]);
    }
}

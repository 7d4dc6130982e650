//! What the shell writes to the API server, as a port.

use std::sync::Arc;

use janus_crd::JanusGuardStatus;

/// A guard, as writes name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardName {
    /// `metadata.uid`: a guard that was made anew under the same name is another one.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// Something that people should see in `kubectl describe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// `Added`, `Removed`, `Degraded`, `Recovered`, `ReleasedUnconfirmed`.
    pub reason: &'static str,
    /// Whether somebody should look at it.
    pub warning: bool,
    /// In words.
    pub note: String,
}

/// A pod whose annotation is to name its guards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub pod: Box<str>,
    /// Its UID.
    pub uid: Arc<str>,
    /// The guards, joined by commas; `None`: none.
    pub guards: Option<String>,
}

/// A write that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The object is not the one that we have seen: the watch will tell.
    #[error("it has changed meanwhile")]
    Conflict,
    /// It is not there any more.
    #[error("it is gone")]
    Gone,
    /// Anything else, tried again.
    #[error("{0}")]
    Failed(String),
}

/// The API server's part. Bounded in time by itself.
pub trait Cluster: Clone + Send + Sync + 'static {
    /// Puts a status in place of ours.
    fn status(&self, guard: GuardName, status: JanusGuardStatus)
    -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Puts finalizers in place of those that the object had at `version`.
    fn finalizers(
        &self,
        guard: GuardName,
        version: Box<str>,
        finalizers: Vec<String>,
    ) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Tells of something.
    fn publish(&self, guard: GuardName, happening: Happening) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Names a pod's guards in its annotation.
    fn annotate(&self, annotation: Annotation) -> impl Future<Output = Result<(), WriteError>> + Send;
}

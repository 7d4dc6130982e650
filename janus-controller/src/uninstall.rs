//! `janus-controller uninstall`: lets guards go, where there is no controller that would.

use anyhow::Context;
use janus_crd::JanusGuard;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::index::guard::FINALIZER;

/// How often a guard that changes meanwhile is tried.
const TRIES: usize = 5;

/// Removes our finalizer from every guard; gives how many bore it.
///
/// # Errors
/// The API server's.
pub async fn uninstall() -> anyhow::Result<usize> {
    let client = Client::try_default().await.context("no cluster: kubeconfig as kubectl finds it, or a pod's own")?;
    // Metadata alone: guards that cannot be decoded are let go as well.
    let all: Api<PartialObjectMeta<JanusGuard>> = Api::all(client.clone());
    let guards = all.list(&ListParams::default()).await.context("listing JanusGuards")?;
    let mut released = 0;
    for guard in guards {
        let namespace = guard.namespace().unwrap_or_default();
        let api: Api<PartialObjectMeta<JanusGuard>> = Api::namespaced(client.clone(), &namespace);
        released += usize::from(release(&api, guard).await?);
    }
    Ok(released)
}

async fn release(
    api: &Api<PartialObjectMeta<JanusGuard>>,
    mut guard: PartialObjectMeta<JanusGuard>,
) -> anyhow::Result<bool> {
    let name = guard.name_any();
    for _ in 0..TRIES {
        if !guard.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(false);
        }
        let others: Vec<_> = guard.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let patch = json!({ "metadata": { "resourceVersion": guard.resource_version(), "finalizers": others } });
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                match api.get_opt(&name).await.context(name.clone())? {
                    Some(changed) => guard = changed,
                    None => return Ok(true),
                }
            }
            Err(error) => return Err(error).context(name),
        }
    }
    anyhow::bail!("{name} changes faster than it can be let go")
}

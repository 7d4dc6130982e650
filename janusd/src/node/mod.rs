//! Guards on this node's pods: a guard, and the finder that tells it which containers its pod has.

use std::sync::Arc;

use crate::container::{Finder, PodUid, Sighting, Watch};
use crate::events::Whose;
use crate::guard::{Answer, Guard, Offer, Report, Roots, Shared, Site, StartError, SurveyError};
use crate::metrics::GuardMetrics;
use crate::policy::GuardSpec;
use std::time::Duration;

/// One guard on one pod.
#[derive(Debug)]
pub struct PodGuard {
    /// Before the guard: once it is gone, nobody offers containers any more.
    watch: Watch,
    guard: Guard,
}

impl PodGuard {
    /// Starts it. The pod's containers are guarded as they are found; that there may be none yet is no error.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        spec: Arc<GuardSpec>,
        pod: PodUid,
        name: Arc<str>,
        metrics: GuardMetrics,
        shared: &Shared,
        finder: &Finder,
    ) -> Result<PodGuard, StartError> {
        let whose = Whose { pod: name.to_string(), ..Whose::default() };
        let guard = Guard::start(spec, Roots::Pod(Offer::default()), Some(Arc::new(whose)), metrics, shared)?;
        let door = guard.door();
        let watch = finder.watch(pod, Box::new(move |sighting| door.offer(offer(&sighting), Answer::unasked())));
        Ok(PodGuard { watch, guard })
    }

    /// [`Guard::update`].
    ///
    /// # Errors
    /// [`SurveyError`].
    pub fn update(&self, spec: Arc<GuardSpec>) -> Result<(), SurveyError> {
        self.guard.update(spec)
    }

    /// How it is.
    pub fn report(&self) -> Report {
        self.guard.report()
    }

    /// Asks it to stop; [`PodGuard::stop`] waits for that.
    pub fn begin_stop(&self) {
        self.guard.begin_stop();
    }

    /// [`Guard::stop`].
    pub fn stop(self, patience: Duration) -> bool {
        drop(self.watch);
        self.guard.stop(patience)
    }
}

fn offer(sighting: &Sighting) -> Offer {
    let mut unreachable = sighting.unreachable.clone();
    let mut sites = Vec::new();
    for container in &sighting.containers {
        match container.root.try_clone() {
            Ok(root) => {
                sites.push(Site { id: container.id.clone(), name: container.name.clone(), root, init: container.init });
            }
            Err(error) => drop(unreachable.insert(container.id.clone(), format!("its pidfd: {error}"))),
        }
    }
    Offer { sites, unreachable }
}

//! Guards on this node's pods: a guard, and the finder that tells it which containers its pod has.

mod enforcer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use self::enforcer::NodeEnforcer;
use crate::container::{Finder, PodUid, Sighting, Watch};
use crate::events::Whose;
use crate::gate::{Enrolment, Roll};
use crate::guard::transfer::{Estate, Transfer};
use crate::guard::{Answer, Door, Ended, Guard, Offer, Report, Roots, Shared, Site, StartError, SurveyError};
use crate::metrics::GuardMetrics;
use crate::policy::GuardSpec;

/// One guard on one pod.
#[derive(Debug)]
pub struct PodGuard {
    /// Before the guard: once it is gone, nobody offers containers any more.
    watch: Watch,
    guard: Guard,
    pod: PodUid,
    whose: Arc<Whose>,
    porch: Arc<Porch>,
    /// Starts of the pod's containers are held for it.
    enrolment: Option<Enrolment>,
}

impl PodGuard {
    /// Starts it, and returns once the containers that the pod has are guarded. That there may be none yet is no error.
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
        let whose = Arc::new(Whose { pod: name.to_string(), ..Whose::default() });
        let (tell, told) = crossbeam_channel::bounded(1);
        let answer = Answer::new(move |result| {
            // Whoever waited has gone; the guard stands as it is.
            let _gone = tell.send(result);
        });
        let guard = PodGuard::launch(spec, pod, whose, metrics, shared, finder, None, None, answer, Box::new(|| {}))?;
        match told.recv().unwrap_or(Err(SurveyError::Stopped)) {
            Ok(()) => Ok(guard),
            Err(error) => {
                guard.stop(Duration::from_secs(1));
                Err(error.into())
            }
        }
    }

    /// Starts it without waiting: `answer` is told once the containers that the pod has are guarded, `ended` is called once
    /// it has stopped ([`Guard::launch`]). With a `roll`, starts of the pod's containers are held for it.
    ///
    /// # Errors
    /// [`StartError`].
    #[expect(clippy::too_many_arguments, reason = "each is another thing, and there are two callers")]
    pub fn launch(
        spec: Arc<GuardSpec>,
        pod: PodUid,
        whose: Arc<Whose>,
        metrics: GuardMetrics,
        shared: &Shared,
        finder: &Finder,
        roll: Option<&Roll>,
        estate: Option<Estate>,
        answer: Answer,
        ended: Ended,
    ) -> Result<PodGuard, StartError> {
        let roots = Roots::Pod(Offer::default());
        let (name, policy) = (spec.name().clone(), spec.failure_policy());
        let guard = Guard::launch(spec, roots, Some(whose.clone()), metrics, shared, estate, ended)?;
        let enrolment = roll.map(|roll| roll.enrol(pod.clone(), name, policy, guard.reports(), guard.door()));
        let porch = Arc::new(Porch { door: guard.door(), inside: Mutex::default() });
        let watch = watch(finder, &pod, &porch, enrolment.as_ref(), answer);
        Ok(PodGuard { watch, guard, pod, whose, porch, enrolment })
    }

    /// [`Guard::update`].
    ///
    /// # Errors
    /// [`SurveyError`].
    pub fn update(&self, spec: Arc<GuardSpec>) -> Result<(), SurveyError> {
        self.guard.update(spec)
    }

    /// The same without waiting.
    pub fn update_then(&self, spec: Arc<GuardSpec>, answer: Answer) {
        if let Some(enrolment) = &self.enrolment {
            enrolment.change(spec.failure_policy());
        }
        self.guard.update_then(spec, answer);
    }

    /// Looks which containers the pod has now; answers once they are guarded. Its cgroups may bear another UID than was
    /// thought.
    pub fn look(&mut self, pod: PodUid, finder: &Finder, answer: Answer) {
        if let Some(enrolment) = self.enrolment.as_ref().filter(|_| pod != self.pod) {
            enrolment.rename(&pod);
        }
        self.watch = watch(finder, &pod, &self.porch, self.enrolment.as_ref(), answer);
        self.pod = pod;
    }

    /// Learns containers' names by their ids. Those that the runtime's bundle gives count before these. True when there is
    /// one among the ids that has not been found yet.
    pub fn know(&self, names: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> bool {
        self.porch.know(names)
    }

    /// Whose events it answers.
    pub fn whose(&self) -> &Arc<Whose> {
        &self.whose
    }

    /// [`Guard::transfer`].
    pub fn transfer(&self) -> Transfer {
        self.guard.transfer()
    }

    /// How it is.
    pub fn report(&self) -> Report {
        self.guard.report()
    }

    /// How it is, for whoever asks later.
    pub fn reports(&self) -> Arc<Mutex<Report>> {
        self.guard.reports()
    }

    /// Asks it to stop; [`PodGuard::stop`] waits for that.
    pub fn begin_stop(&self) {
        if let Some(enrolment) = &self.enrolment {
            enrolment.withdraw();
        }
        self.guard.begin_stop();
    }

    /// [`Guard::stop`].
    pub fn stop(self, patience: Duration) -> bool {
        drop(self.enrolment);
        drop(self.watch);
        self.guard.stop(patience)
    }
}

/// Names of containers that are kept for a pod: more than it can have at once.
const MOST_NAMES: usize = 1024;

/// Where what the finder sees and what the controller says of the same containers come together.
#[derive(Debug)]
struct Porch {
    door: Door,
    inside: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    sighting: Option<Arc<Sighting>>,
    names: BTreeMap<Arc<str>, Arc<str>>,
}

impl Porch {
    fn see(&self, sighting: Arc<Sighting>, answer: Answer) {
        // Offered under the lock, so that what was seen last is offered last. Offering never blocks.
        let mut inside = self.inside.lock();
        inside.sighting = Some(sighting);
        self.door.offer(inside.offer(), answer);
    }

    fn know(&self, names: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> bool {
        let mut inside = self.inside.lock();
        let mut unseen = false;
        let mut new = false;
        for (id, name) in names {
            let seen = inside.sighting.iter().flat_map(|sighting| &sighting.containers).any(|it| it.id == id);
            unseen |= !seen;
            if inside.names.len() >= MOST_NAMES {
                // Of those that have gone; the bundle names most of the others.
                inside.names.clear();
            }
            new |= inside.names.insert(id, name.clone()) != Some(name);
        }
        if new && inside.sighting.is_some() {
            self.door.offer(inside.offer(), Answer::unasked());
        }
        unseen
    }
}

impl Known {
    fn offer(&self) -> Offer {
        let Some(sighting) = &self.sighting else { return Offer::default() };
        let mut unreachable = sighting.unreachable.clone();
        let mut sites = Vec::new();
        for container in &sighting.containers {
            let name = container.name.clone().or_else(|| self.names.get(&container.id).cloned());
            match container.root.try_clone() {
                Ok(root) => sites.push(Site { id: container.id.clone(), name, root, init: container.init }),
                Err(error) => drop(unreachable.insert(container.id.clone(), format!("its pidfd: {error}"))),
            }
        }
        Offer { sites, passed_over: sighting.sandboxes.clone(), unreachable }
    }
}

fn watch(finder: &Finder, pod: &PodUid, porch: &Arc<Porch>, enrolment: Option<&Enrolment>, answer: Answer) -> Watch {
    let porch = porch.clone();
    let first = Mutex::new(Some(answer));
    let told = enrolment.map(|enrolment| Arc::new(enrolment.teller(pod.clone())));
    let deliver = move |sighting| {
        let answer = first.lock().take().unwrap_or_else(Answer::unasked);
        let answer = match told.clone() {
            Some(told) => answer.then(move || told()),
            None => answer,
        };
        porch.see(sighting, answer);
    };
    finder.watch(pod.clone(), Box::new(deliver))
}

//! The registry's port, on this node: every unit is a [`PodGuard`].

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::PodGuard;
use crate::container::{Finder, PodUid};
use crate::events::Whose;
use crate::fanotify::GroupError;
use crate::gate::Gate;
use crate::guard::transfer::{Estate, Transfer};
use crate::guard::{Answer, Report, Shared, StartError};
use crate::limits::{Bound, Capacity};
use crate::metrics::{Metrics, Tally};
use crate::policy::GuardName;
use crate::registry::port::{Enforcer, Failure, Job, Limit, Looked, Run, Teller};
use crate::wire::ContainerName;

/// What is left of a guard that has stopped is two threads on their last lines.
const LAST_LINES: Duration = Duration::from_millis(200);

/// Puts guards in force on this node.
#[derive(Debug)]
pub struct NodeEnforcer {
    /// What guards share.
    pub shared: Shared,
    /// How many fit.
    pub capacity: Capacity,
    /// Finds their containers.
    pub finder: Finder,
    /// Holds the starts of containers for them, if anybody does.
    pub gate: Option<Gate>,
    /// Where they count.
    pub metrics: Arc<Metrics>,
}

/// One guard on one pod, as the registry runs it.
#[derive(Debug)]
pub struct PodRun {
    guard: PodGuard,
    tally: Arc<Tally>,
    finder: Finder,
}

impl Enforcer for NodeEnforcer {
    type Run = PodRun;

    fn admit(&self, units: usize) -> Result<(), Failure> {
        self.capacity.admit(units).map_err(|exhausted| {
            let (limit, at) = match exhausted.bound {
                Bound::Groups(at) => (Limit::Groups, at),
                Bound::OpenFiles(at) | Bound::Threads(at) | Bound::Pids(at) => (Limit::Process, at),
            };
            Failure::Limit { limit, at: Some(at), text: exhausted.to_string() }
        })
    }

    fn start(&mut self, job: &Job, running: usize, teller: Teller) -> Result<PodRun, Failure> {
        self.admit(running)?;
        self.launch(job, teller, None)
    }

    fn inherit(&mut self, job: &Job, running: usize, teller: Teller, estate: Estate) -> Result<PodRun, Failure> {
        self.admit(running)?;
        self.launch(job, teller, Some(estate))
    }

    fn forget(&mut self, guard: &GuardName) {
        self.metrics.forget(guard);
    }
}

impl NodeEnforcer {
    fn launch(&self, job: &Job, teller: Teller, estate: Option<Estate>) -> Result<PodRun, Failure> {
        let metrics = self.metrics.guard(job.spec.name());
        let tally = metrics.tally();
        let whose = Arc::new(Whose {
            pod: job.pod.name().to_owned(),
            pod_uid: job.unit.pod.to_string(),
            guard_uid: job.unit.guard.to_string(),
            generation: AtomicI64::new(job.generation),
        });
        let ended = {
            let teller = teller.clone();
            Box::new(move || teller.gone())
        };
        let guard = PodGuard::launch(
            job.spec.clone(),
            cgroups(job)?,
            whose,
            metrics,
            &self.shared,
            &self.finder,
            self.gate.as_ref().map(Gate::roll),
            estate,
            answer(teller, || {}),
            ended,
        )?;
        let run = PodRun { guard, tally, finder: self.finder.clone() };
        run.know(&job.containers);
        Ok(run)
    }
}

impl PodRun {
    fn know(&self, containers: &[ContainerName]) {
        if self.guard.know(containers.iter().map(|it| (Arc::from(it.id()), Arc::from(it.name())))) {
            self.finder.look();
        }
    }
}

impl Run for PodRun {
    fn update(&mut self, job: &Job, teller: Teller) {
        let pod = match cgroups(job) {
            Ok(pod) => pod,
            Err(failure) => return teller.failed(failure),
        };
        let (whose, generation) = (self.guard.whose().clone(), job.generation);
        let in_force = move || whose.generation.store(generation, Ordering::Relaxed);
        let (rules, containers) = answer(teller, in_force).halves();
        self.guard.update_then(job.spec.clone(), rules);
        self.guard.look(pod, &self.finder, containers);
        self.know(&job.containers);
    }

    fn look(&mut self, job: &Job, looked: Looked) {
        self.know(&job.containers);
        match cgroups(job) {
            // How that went is in its report.
            Ok(pod) => self.guard.look(pod, &self.finder, Answer::new(move |_result| drop(looked))),
            Err(failure) => tracing::error!(%failure, "a pod was not looked at"),
        }
    }

    fn stop(&self) {
        self.guard.begin_stop();
    }

    fn finish(self) {
        if !self.guard.stop(LAST_LINES) {
            tracing::error!("a guard that has stopped has not ended");
        }
    }

    fn transfer(&self) -> Option<Transfer> {
        Some(self.guard.transfer())
    }

    fn reports(&self) -> Arc<Mutex<Report>> {
        self.guard.reports()
    }

    fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }
}

fn answer(teller: Teller, in_force: impl FnOnce() + Send + 'static) -> Answer {
    Answer::new(move |result| match result {
        Ok(()) => {
            in_force();
            teller.done();
        }
        // Also where it was dropped untold: the guard has ended, or its keeper has panicked over it.
        Err(error) => teller.failed(Failure::Internal(error.to_string())),
    })
}

fn cgroups(job: &Job) -> Result<PodUid, Failure> {
    let uid = job.pod.cgroup_uid().as_str();
    PodUid::new(uid).ok_or_else(|| Failure::Internal(format!("no cgroup can be named after the pod's UID {uid}")))
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        let text = error.to_string();
        let process = |text| Failure::Limit { limit: Limit::Process, at: None, text };
        match error {
            StartError::Group(GroupError::GroupLimit) => Failure::Limit { limit: Limit::Groups, at: None, text },
            StartError::Group(GroupError::DescriptorLimit) => process(text),
            StartError::Group(GroupError::Permission | GroupError::Unsupported) => Failure::Kernel(text),
            StartError::Resource { ref source, .. } => match exhausted(source) {
                Some(limit) => process(format!("{text}; {limit} is reached")),
                None => Failure::Internal(text),
            },
            StartError::Group(GroupError::Other(_)) | StartError::Survey(_) => Failure::Internal(text),
        }
    }
}

/// The limit behind EMFILE and ENFILE, or behind EAGAIN of a thread that cannot be had.
fn exhausted(error: &std::io::Error) -> Option<&'static str> {
    match rustix::io::Errno::from_io_error(error) {
        Some(rustix::io::Errno::MFILE) => Some("RLIMIT_NOFILE"),
        Some(rustix::io::Errno::NFILE) => Some("fs.file-max"),
        _ if error.kind() == ErrorKind::WouldBlock => Some("pids.max, kernel.threads-max or RLIMIT_NPROC"),
        _ => None,
    }
}

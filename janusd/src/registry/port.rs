//! What the registry needs of whatever enforces guards.
//!
//! Nothing behind this port may block: the registry's one thread serves every guard of the node.

use std::sync::Arc;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::state::Ticket;
use super::thread::Message;
use crate::guard::Report;
use crate::guard::transfer::{Estate, Transfer};
use crate::metrics::Tally;
use crate::policy::{GuardName, GuardSpec};
use crate::wire::{ContainerName, PodName, UnitId};

/// Puts guards in force.
pub trait Enforcer: Send + 'static {
    /// Whether one more unit fits beside so many.
    ///
    /// # Errors
    /// [`Failure::Limit`], naming what stands against it.
    fn admit(&self, units: usize) -> Result<(), Failure> {
        let _all_the_same = units;
        Ok(())
    }

    /// One guard in one pod, being put in force, in force, or on its way out.
    type Run: Run;

    /// Starts one. `teller` says [`Teller::done`] once it is in force in the containers that the pod has by then, or
    /// [`Teller::failed`]; and [`Teller::gone`] once it has ended, however that came.
    ///
    /// # Errors
    /// [`Failure`]; nothing is left behind then.
    fn start(&mut self, job: &Job, running: usize, teller: Teller) -> Result<Self::Run, Failure>;

    /// The same of one that another process has handed over: with its groups, which that one reads until it is told
    /// otherwise. `teller` says [`Teller::done`] once all is ready to be taken up.
    ///
    /// # Errors
    /// Likewise; the other process still has the groups.
    fn inherit(&mut self, job: &Job, running: usize, teller: Teller, estate: Estate) -> Result<Self::Run, Failure> {
        drop(estate);
        self.start(job, running, teller)
    }

    /// A guard is in no pod any more.
    fn forget(&mut self, guard: &GuardName);
}

/// See [`Enforcer::Run`].
pub trait Run: Send {
    /// Brings it up to date in place; `teller` says [`Teller::done`] or [`Teller::failed`].
    fn update(&mut self, job: &Job, teller: Teller);
    /// Looks which containers the pod has now; drops `looked` once they are guarded, or are not to be.
    fn look(&mut self, job: &Job, looked: Looked);
    /// Ends it, whatever it is doing; [`Teller::gone`] says when it has ended.
    fn stop(&self);
    /// Has ended: lets go of what is left.
    fn finish(self);
    /// The way to bring it to another process, if there is one.
    fn transfer(&self) -> Option<Transfer> {
        None
    }
    /// How it is, for whoever asks later.
    fn reports(&self) -> Arc<Mutex<Report>>;
    /// What it has answered.
    fn tally(&self) -> Arc<Tally>;
}

/// What to put in force.
#[derive(Debug, Clone)]
pub struct Job {
    /// Guard and pod, by their UIDs.
    pub unit: UnitId,
    /// The pod.
    pub pod: PodName,
    /// The guard's generation.
    pub generation: i64,
    /// The guard.
    pub spec: Arc<GuardSpec>,
    /// Names of containers, as far as the caller knew them.
    pub containers: Vec<ContainerName>,
}

/// Why a guard could not be put in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A limit is reached.
    #[error("{text}")]
    Limit {
        /// Which.
        limit: Limit,
        /// Where it stands, if it is a number.
        at: Option<u64>,
        /// In words.
        text: String,
    },
    /// The kernel cannot do what the guard needs.
    #[error("{0}")]
    Kernel(String),
    /// Something of ours, or of the kernel's, that should not have failed.
    #[error("{0}")]
    Internal(String),
}

/// What there may be no more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Guards on this node, as this daemon bounds them.
    Guards,
    /// Guards of one namespace.
    Namespace,
    /// `fs.fanotify.max_user_groups`.
    Groups,
    /// Descriptors, threads.
    Process,
}

/// A look at a pod's containers that somebody waits for: over when this is dropped.
#[derive(Debug)]
pub struct Looked {
    pub(super) messages: Sender<Message>,
    pub(super) unit: UnitId,
    pub(super) look: u64,
}

impl Drop for Looked {
    fn drop(&mut self) {
        // The registry has ended, and with it whoever wanted to know.
        let _ended = self.messages.send(Message::Looked { unit: self.unit.clone(), look: self.look });
    }
}

/// Says what became of a step, and of a run. Never blocks.
#[derive(Debug, Clone)]
pub struct Teller {
    pub(super) messages: Sender<Message>,
    pub(super) unit: UnitId,
    pub(super) run: Ticket,
    pub(super) step: Ticket,
}

impl Teller {
    /// The step is in force.
    pub fn done(&self) {
        self.tell(Message::Done { unit: self.unit.clone(), run: self.run, step: self.step });
    }

    /// The step has failed. Of an update: what was in force before still is.
    pub fn failed(&self, failure: Failure) {
        self.tell(Message::Failed { unit: self.unit.clone(), run: self.run, step: self.step, failure });
    }

    /// The run has ended, and nothing of it is in force.
    pub fn gone(&self) {
        self.tell(Message::Gone { unit: self.unit.clone(), run: self.run });
    }

    fn tell(&self, message: Message) {
        // The registry has ended, and with it whoever wanted to know.
        let _ended = self.messages.send(message);
    }
}

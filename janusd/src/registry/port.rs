//! What the registry needs of whatever enforces guards.
//!
//! Nothing behind this port may block: the registry's one thread serves every guard of the node.

use std::sync::Arc;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::state::Ticket;
use super::thread::Message;
use crate::guard::Report;
use crate::metrics::Tally;
use crate::policy::{GuardName, GuardSpec};
use crate::wire::{ContainerName, PodName, UnitId};

/// Puts guards in force.
pub trait Enforcer: Send + 'static {
    /// One guard in one pod, being put in force, in force, or on its way out.
    type Run: Run;

    /// Starts one. `teller` says [`Teller::done`] once it is in force in the containers that the pod has by then, or
    /// [`Teller::failed`]; and [`Teller::gone`] once it has ended, however that came.
    ///
    /// # Errors
    /// [`Failure`]; nothing is left behind then.
    fn start(&mut self, job: &Job, running: usize, teller: Teller) -> Result<Self::Run, Failure>;

    /// A guard is in no pod any more.
    fn forget(&mut self, guard: &GuardName);
}

/// See [`Enforcer::Run`].
pub trait Run: Send {
    /// Brings it up to date in place; `teller` says [`Teller::done`] or [`Teller::failed`].
    fn update(&mut self, job: &Job, teller: Teller);
    /// Learns names of containers.
    fn know(&self, containers: &[ContainerName]);
    /// Ends it, whatever it is doing; [`Teller::gone`] says when it has ended.
    fn stop(&self);
    /// Has ended: lets go of what is left.
    fn finish(self);
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
        self.tell(Message::Done { unit: self.unit.clone(), step: self.step });
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

//! The life of one unit: one guard in one pod.
//!
//! ```text
//!             create                done                 create of another spec
//!  Stopped ------------> Starting --------> Guarding <------------------------> Updating
//!     ^                   |    ^             |                done, failed        |
//!     |             failed|    |retry due    | died                               | died
//!     |                   v    |             v                                    |
//!     |                   Failed <------------------------------------------------+
//!     | gone                |
//!  Draining <---------------+-- destroy or drain, from wherever a run is; from Failed straight to Stopped
//! ```
//!
//! Guarantees, whatever the order of calls and reports: never two runs of the engine at once; one step of the engine at
//! a time; each run is stopped at most once; what is carried out last is the last call that was accepted; a report about
//! a step or a run that is over changes nothing.
//!
//! Assumptions. Of each [`Effect::Start`] and [`Effect::Update`] the engine says [`Input::Done`] or [`Input::Failed`]
//! once, unless the run ends first. A start that failed leaves no run. Each other run ends with one [`Input::Gone`],
//! asked for ([`Effect::Stop`]) or not.
//!
//! Caveat: calls of one epoch and one generation are taken in the order in which they come. A leader that has several on
//! their way at once has to keep them in order itself.

use std::time::Duration;

/// The wait before the first new try.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait before a new try.
pub const LONGEST_RETRY: Duration = Duration::from_secs(64);
/// A run that held this long before it died is tried again after [`FIRST_RETRY`], however often it had failed before.
pub const STEADY: Duration = Duration::from_secs(64);

/// Names one step that the engine was asked for, or one wait; never used twice in a unit, nor in two units of different
/// [`Unit::series`].
///
/// A run bears the ticket of the step that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What is to be in force. `S` tells one spec from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<S> {
    /// The guard's generation.
    pub generation: i64,
    /// Its spec.
    pub spec: S,
}

/// How a target is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Wholly.
    InForce,
    /// With something left unguarded. The engine mends that by itself, and says so.
    Degraded,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input<S> {
    /// CreateGuard.
    Create {
        /// Of the caller.
        epoch: u64,
        /// Of the guard.
        generation: i64,
        /// Of the guard.
        spec: S,
    },
    /// DestroyGuard.
    Destroy {
        /// Of the caller.
        epoch: u64,
        /// The last one that the caller knows.
        generation: i64,
    },
    /// The engine: the step is in force. Also later on, whenever its health changes.
    Done {
        /// The step.
        ticket: Ticket,
        /// How it is in force.
        health: Health,
    },
    /// The engine: the step failed. Of an update: what was in force before still is.
    Failed {
        /// The step.
        ticket: Ticket,
    },
    /// The engine: the run has ended, and nothing of it is in force.
    Gone {
        /// The run.
        run: Ticket,
    },
    /// The wait of an [`Effect::Retry`] is over.
    RetryDue {
        /// The wait.
        ticket: Ticket,
    },
    /// The daemon goes: lift it, and take no more.
    Drain,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<S> {
    /// Nothing. To a call: it is accepted; [`Unit::standing`] says how far it is.
    Nothing,
    /// Start a run. There is no other.
    Start {
        /// The step, and the run.
        ticket: Ticket,
        /// What it is to put in force.
        target: Target<S>,
    },
    /// Bring a run up to date in place.
    Update {
        /// The run.
        run: Ticket,
        /// The step.
        ticket: Ticket,
        /// What it is to put in force.
        target: Target<S>,
    },
    /// End a run, whatever it is doing.
    Stop {
        /// The run.
        run: Ticket,
    },
    /// Say [`Input::RetryDue`] after a while.
    Retry {
        /// The wait.
        ticket: Ticket,
        /// How long.
        after: Duration,
    },
    /// Refuse the call; nothing has changed but what has been seen.
    Refuse(Refusal),
}

/// Why a call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A later leader has spoken.
    #[error("epoch {have} has been seen")]
    StaleEpoch {
        /// Its epoch.
        have: u64,
    },
    /// A later generation has been seen.
    #[error("generation {have} has been seen")]
    StaleGeneration {
        /// That generation.
        have: i64,
    },
    /// The generation is here with another spec, by a leader that is no older.
    #[error("generation {generation} is here with another spec, by epoch {epoch}")]
    AnotherSpec {
        /// The generation.
        generation: i64,
        /// Of the last call that had this spec.
        epoch: u64,
    },
    /// The daemon takes no more guards.
    #[error("the daemon is draining")]
    Draining,
}

/// Where the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// A run is being started; nothing is in force yet.
    Starting,
    /// A target is in force, maybe not the last one (an update failed and waits for another try).
    Guarding,
    /// A target is in force and another one is being put in its place.
    Updating,
    /// A run is ending. A guard that was created again in the meantime is started afterwards.
    Draining,
    /// There is no run and none is wanted.
    Stopped,
    /// A run is wanted, there is none, and the next try waits.
    Failed,
}

/// How a unit stands, for whoever asks: the wire's GuardPhase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Not there.
    Absent,
    /// Accepted, and on its way.
    Pending,
    /// In force, all of it.
    InForce,
    /// Something is in force, and something is not: a part, or the last update.
    Degraded,
    /// On its way out.
    Draining,
    /// Nothing is in force, and that was not to be so.
    Failed,
}

/// What the engine holds in force.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Force<S> {
    run: Ticket,
    /// The step that brought it.
    step: Ticket,
    target: Target<S>,
    health: Health,
    /// When the run was first in force.
    since: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State<S> {
    Stopped,
    Starting { run: Ticket, target: Target<S> },
    Guarding { force: Force<S>, retry: Option<Ticket> },
    Updating { force: Force<S>, step: Ticket, target: Target<S> },
    Draining { run: Ticket, was_starting: bool },
    Failed { retry: Ticket },
}

/// The spec of the highest generation, and the epoch of the last call that had it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Brought<S> {
    spec: S,
    epoch: u64,
}

/// One guard in one pod. Remembers what it has seen as long as it lives itself, also while it is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit<S> {
    epoch: u64,
    generation: i64,
    brought: Option<Brought<S>>,
    wanted: Option<Target<S>>,
    state: State<S>,
    last_ticket: u64,
    failures: u32,
    /// Failures and deaths that lengthen the wait.
    strikes: u32,
    died: bool,
    restarts: u64,
    /// What is wanted was accepted after it died.
    renewed: bool,
    closed: bool,
}

impl<S> Default for Unit<S> {
    fn default() -> Unit<S> {
        Unit {
            epoch: 0,
            generation: 0,
            brought: None,
            wanted: None,
            state: State::Stopped,
            last_ticket: 0,
            failures: 0,
            strikes: 0,
            died: false,
            restarts: 0,
            renewed: false,
            closed: false,
        }
    }
}

impl<S> Unit<S> {
    /// One whose tickets are none of those of another series: what is said late about a unit that has been forgotten must
    /// not be taken for its successor's.
    pub fn series(number: u32) -> Unit<S> {
        Unit { last_ticket: u64::from(number) << u32::BITS, ..Unit::default() }
    }
}

impl<S: Clone + Eq> Unit<S> {
    /// Takes in what happened at `now`, on any clock that does not run backwards.
    pub fn apply(&mut self, input: Input<S>, now: Duration) -> Effect<S> {
        match input {
            Input::Create { epoch, generation, spec } => match self.admit_create(epoch, generation, spec) {
                Ok(true) => self.advance(),
                Ok(false) => Effect::Nothing,
                Err(refusal) => Effect::Refuse(refusal),
            },
            Input::Destroy { epoch, generation } => match self.admit(epoch, generation) {
                Ok(()) => self.lift(),
                Err(refusal) => Effect::Refuse(refusal),
            },
            Input::Drain => {
                self.closed = true;
                self.lift()
            }
            Input::Done { ticket, health } => self.done(ticket, health, now),
            Input::Failed { ticket } => self.failed(ticket),
            Input::Gone { run } => self.gone(run, now),
            Input::RetryDue { ticket } => self.retry_due(ticket),
        }
    }

    fn admit(&mut self, epoch: u64, generation: i64) -> Result<(), Refusal> {
        if epoch < self.epoch {
            return Err(Refusal::StaleEpoch { have: self.epoch });
        }
        self.epoch = epoch;
        if generation < self.generation {
            return Err(Refusal::StaleGeneration { have: self.generation });
        }
        if generation > self.generation {
            self.generation = generation;
            self.brought = None;
        }
        Ok(())
    }

    /// Whether there is something new to carry out.
    fn admit_create(&mut self, epoch: u64, generation: i64, spec: S) -> Result<bool, Refusal> {
        if self.closed {
            return Err(Refusal::Draining);
        }
        self.admit(epoch, generation)?;
        if let Some(brought) = &self.brought
            && brought.spec != spec
            && epoch <= brought.epoch
        {
            return Err(Refusal::AnotherSpec { generation, epoch: brought.epoch });
        }
        self.brought = Some(Brought { spec: spec.clone(), epoch });
        let target = Target { generation, spec };
        if self.wants(&target) {
            return Ok(false);
        }
        if self.wanted.is_none() {
            self.restarts = 0;
            self.died = false;
        }
        self.wanted = Some(target);
        self.renewed = true;
        self.failures = 0;
        self.strikes = 0;
        Ok(true)
    }

    /// Whether `target` is what was last accepted.
    fn wants(&self, target: &Target<S>) -> bool {
        self.wanted.as_ref() == Some(target)
    }

    fn ticket(&mut self) -> Ticket {
        self.last_ticket = self.last_ticket.wrapping_add(1);
        Ticket(self.last_ticket)
    }

    /// The next step towards what is wanted, unless one is being taken.
    fn advance(&mut self) -> Effect<S> {
        let Some(target) = self.wanted.clone() else {
            return Effect::Nothing;
        };
        match &self.state {
            State::Stopped | State::Failed { .. } => self.start(target),
            State::Guarding { force, .. } => {
                let force = force.clone();
                self.update(force, target)
            }
            State::Starting { .. } | State::Updating { .. } | State::Draining { .. } => Effect::Nothing,
        }
    }

    fn start(&mut self, target: Target<S>) -> Effect<S> {
        let ticket = self.ticket();
        self.state = State::Starting { run: ticket, target: target.clone() };
        Effect::Start { ticket, target }
    }

    fn update(&mut self, force: Force<S>, target: Target<S>) -> Effect<S> {
        if force.target == target {
            self.state = State::Guarding { force, retry: None };
            return Effect::Nothing;
        }
        let ticket = self.ticket();
        let run = force.run;
        self.state = State::Updating { force, step: ticket, target: target.clone() };
        Effect::Update { run, ticket, target }
    }

    fn lift(&mut self) -> Effect<S> {
        self.wanted = None;
        self.failures = 0;
        let (run, was_starting) = match &self.state {
            State::Stopped | State::Draining { .. } => return Effect::Nothing,
            State::Failed { .. } => {
                self.state = State::Stopped;
                return Effect::Nothing;
            }
            State::Starting { run, .. } => (*run, true),
            State::Guarding { force, .. } | State::Updating { force, .. } => (force.run, false),
        };
        self.state = State::Draining { run, was_starting };
        Effect::Stop { run }
    }

    fn done(&mut self, ticket: Ticket, health: Health, now: Duration) -> Effect<S> {
        let force = match &mut self.state {
            State::Guarding { force, .. } | State::Updating { force, .. } if force.step == ticket => {
                force.health = health;
                return Effect::Nothing;
            }
            State::Starting { run, target } if *run == ticket => {
                Force { run: *run, step: ticket, target: target.clone(), health, since: now }
            }
            State::Updating { force, step, target } if *step == ticket => {
                Force { step: ticket, target: target.clone(), health, ..force.clone() }
            }
            _ => return Effect::Nothing,
        };
        if self.wants(&force.target) {
            self.failures = 0;
        }
        if self.died {
            self.died = false;
            self.restarts = self.restarts.saturating_add(1);
        }
        self.state = State::Guarding { force, retry: None };
        self.advance()
    }

    fn failed(&mut self, ticket: Ticket) -> Effect<S> {
        match &self.state {
            State::Starting { run, target } if *run == ticket => {
                let target = target.clone();
                self.no_run(&target)
            }
            State::Draining { run, was_starting: true } if *run == ticket => self.drained(),
            State::Updating { force, step, target } if *step == ticket => {
                let (force, target) = (force.clone(), target.clone());
                if !self.wants(&target) {
                    self.state = State::Guarding { force, retry: None };
                    return self.advance();
                }
                self.failures = self.failures.saturating_add(1);
                let (ticket, after) = self.strike();
                self.state = State::Guarding { force, retry: Some(ticket) };
                Effect::Retry { ticket, after }
            }
            _ => Effect::Nothing,
        }
    }

    fn gone(&mut self, run: Ticket, now: Duration) -> Effect<S> {
        let (force, target) = match &self.state {
            State::Draining { run: draining, .. } if *draining == run => return self.drained(),
            State::Starting { run: starting, target } if *starting == run => {
                let target = target.clone();
                return self.no_run(&target);
            }
            State::Guarding { force, .. } if force.run == run => (force, None),
            State::Updating { force, target, .. } if force.run == run => (force, Some(target.clone())),
            _ => return Effect::Nothing,
        };
        self.died = true;
        self.renewed = false;
        if now.saturating_sub(force.since) >= STEADY {
            self.strikes = 0;
        }
        if target.is_some_and(|target| self.wants(&target)) {
            self.failures = self.failures.saturating_add(1);
        }
        self.wait()
    }

    /// A start of `target` came to nothing.
    fn no_run(&mut self, target: &Target<S>) -> Effect<S> {
        if !self.wants(target) {
            // What was created since has not failed yet.
            self.state = State::Stopped;
            return self.advance();
        }
        self.failures = self.failures.saturating_add(1);
        self.wait()
    }

    fn wait(&mut self) -> Effect<S> {
        let (ticket, after) = self.strike();
        self.state = State::Failed { retry: ticket };
        Effect::Retry { ticket, after }
    }

    fn strike(&mut self) -> (Ticket, Duration) {
        let doublings = self.strikes;
        self.strikes = self.strikes.saturating_add(1);
        let after = 2_u32.checked_pow(doublings).map_or(LONGEST_RETRY, |times| FIRST_RETRY.saturating_mul(times));
        (self.ticket(), after.min(LONGEST_RETRY))
    }

    fn drained(&mut self) -> Effect<S> {
        self.state = State::Stopped;
        self.advance()
    }

    fn retry_due(&mut self, ticket: Ticket) -> Effect<S> {
        match &self.state {
            State::Failed { retry } if *retry == ticket => self.advance(),
            State::Guarding { retry: Some(retry), .. } if *retry == ticket => self.advance(),
            _ => Effect::Nothing,
        }
    }
}

impl<S: Eq> Unit<S> {
    /// Where the machine is.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Stopped => Phase::Stopped,
            State::Starting { .. } => Phase::Starting,
            State::Guarding { .. } => Phase::Guarding,
            State::Updating { .. } => Phase::Updating,
            State::Draining { .. } => Phase::Draining,
            State::Failed { .. } => Phase::Failed,
        }
    }

    /// How it stands. A try after a failure counts as the failure until it has succeeded, or something else is wanted.
    pub fn standing(&self) -> Standing {
        match &self.state {
            State::Stopped => Standing::Absent,
            State::Failed { .. } => Standing::Failed,
            State::Starting { .. } if self.failures > 0 || self.died && !self.renewed => Standing::Failed,
            State::Updating { .. } if self.failures > 0 => Standing::Degraded,
            State::Starting { .. } | State::Updating { .. } => Standing::Pending,
            State::Draining { .. } if self.wanted.is_some() => Standing::Pending,
            State::Draining { .. } => Standing::Draining,
            State::Guarding { force, retry: None } if force.health == Health::InForce => Standing::InForce,
            State::Guarding { .. } => Standing::Degraded,
        }
    }

    /// The target that was last accepted, until it is lifted.
    pub fn accepted(&self) -> Option<&Target<S>> {
        self.wanted.as_ref()
    }

    /// The target that is in force. While it is drained, none counts.
    pub fn in_force(&self) -> Option<&Target<S>> {
        match &self.state {
            State::Guarding { force, .. } | State::Updating { force, .. } => Some(&force.target),
            State::Stopped | State::Starting { .. } | State::Draining { .. } | State::Failed { .. } => None,
        }
    }

    /// Whether it was in force, has died, and is not back yet.
    pub fn died(&self) -> bool {
        self.died && self.wanted.is_some()
    }

    /// Tries to put the accepted target in force that failed one after the other.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Times that it was put in force anew because its run had died, since it was created.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// The highest epoch and generation that it has seen; 0 for none.
    pub fn seen(&self) -> (u64, i64) {
        (self.epoch, self.generation)
    }
}

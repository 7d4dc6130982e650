//! What the daemon guards, as calls change it.
//!
//! Flow: a call off the wire passes the [`Leader`] (which epoch may still speak) and reaches its [`Unit`], one guard in
//! one pod, whose state machine says what the engine is to do about it: an [`Effect`]. What the engine then reports goes
//! into the same machine.
//!
//! [`state`] is pure: which call counts, and what happens next. [`thread`] carries it out, by way of [`port`].

pub mod port;
mod state;
mod thread;

pub use state::{
    Effect, FIRST_RETRY, Health, Input, LONGEST_RETRY, Phase, Refusal, STEADY, Standing, Target, Ticket, Unit,
};

pub use thread::{Bequest, Brief, Census, Denied, Everything, Registry, RegistryThread, UnitState};

/// How many guards are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Guards x pods in all.
    pub guards: u32,
    /// Of one namespace: so that none takes all of them.
    pub of_namespace: u32,
}

/// The epoch of the leader that speaks: the highest that any call has had, whatever the unit.
///
/// A [`Unit`] that has been forgotten remembers no epoch; this does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leader(u64);

impl Leader {
    /// Hears a call of `epoch`.
    ///
    /// # Errors
    /// [`Refusal::StaleEpoch`] if a later leader has spoken.
    pub fn hear(&mut self, epoch: u64) -> Result<(), Refusal> {
        if epoch < self.0 {
            return Err(Refusal::StaleEpoch { have: self.0 });
        }
        self.0 = epoch;
        Ok(())
    }

    /// The highest epoch that was heard; 0 for none.
    pub fn epoch(self) -> u64 {
        self.0
    }
}

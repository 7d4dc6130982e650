//! What this janusd has with the holder, kept up to date: should it be killed, the holder keeps its groups open; should it be
//! stopped, the holder answers in its place, and says afterwards what.
//!
//! It beats while it has guards there and nobody else can be reading them. During a hand-over another janusd may, so it is
//! still: of what it has deposited the holder then answers nothing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{EventfdFlags, eventfd};

use super::link::{Link, LinkError};
use super::message::{Deposit, DepositKnown, Estate, Gate, Highest, Known, Part, Pulse, Stood, Unit, Withdraw};
use crate::doorbell::Bell;
use crate::fanotify::{Group, group};
use crate::guard::transfer::Transfer;
use crate::guard::watchdog::Watchdog;
use crate::limits::DESCRIPTORS_LEFT;
use crate::metrics::Counts;
use crate::policy::{Enforcement, FailurePolicy};
use crate::registry::{Bequest, Registry};
use crate::wire::UnitId;

/// For anything that is said.
const PATIENCE: Duration = Duration::from_secs(2);
/// For a guard to share what it has.
const SHARING: Duration = Duration::from_millis(500);
/// A guard that could not be shared is tried again after this.
const AGAIN: Duration = Duration::from_millis(900);
/// So near may events come to the highest number that the holder knows of: what are read until it knows of higher ones.
const MARGIN: i32 = (DESCRIPTORS_LEFT / 2) as i32;
/// Files in one frame: a name is 4,096 bytes at most, so they fit.
const FILES: usize = 1024;

/// The holder, and what it has.
#[derive(Debug)]
pub(super) struct Depot {
    pub(super) link: Link,
    /// Of each unit: the generation, and the worker whose groups they are.
    deposited: BTreeMap<UnitId, (i64, u64)>,
    /// Rung when something is to be deposited anew.
    bell: Bell,
    lacks_some: bool,
    /// The highest number of an event that the holder knows of.
    highest: i32,
    watchdog: Watchdog,
    beats: bool,
    /// What holds starts, if anything does.
    gate: Option<Group>,
    /// The highest number of an event of it that the holder knows of, once it has it.
    gate_highest: Option<i32>,
}

impl Depot {
    /// `held`: what it has already, as it came from there.
    pub(super) fn new(
        link: Link,
        bell: Bell,
        watchdog: Watchdog,
        gate: Option<Group>,
        held: impl IntoIterator<Item = UnitId>,
    ) -> Depot {
        // Of no generation: each is deposited anew.
        let deposited = held.into_iter().map(|id| (id, (0, 0))).collect();
        Depot {
            link,
            deposited,
            bell,
            lacks_some: false,
            highest: -1,
            watchdog,
            beats: false,
            gate,
            gate_highest: None,
        }
    }

    /// Whether the holder has all that there was when it was kept up.
    pub(super) fn is_complete(&self) -> bool {
        !self.lacks_some
    }

    /// When to keep up again although nothing has changed: numbers may have risen.
    pub(super) fn pause(&self) -> Option<Duration> {
        (self.lacks_some || !self.deposited.is_empty() || self.gate.is_some()).then_some(AGAIN)
    }

    /// Hears what has come: what the holder has answered, the connection's end, or something newer.
    pub(super) fn hear(&self, registry: &Registry) -> Result<(), LinkError> {
        match self.link.hear_any(Instant::now() + PATIENCE)? {
            None => {}
            Some((Part::Stood(Stood { name: whose, answered: Some(answered) }), _)) => {
                let counts = Counts::from(answered);
                let units = registry.units().ok_or(LinkError::Stopped)?;
                // Gone meanwhile: then so are its counters.
                if let Some((transfer, tally)) =
                    units.into_iter().find(|unit| name(&unit.unit) == whose).and_then(|unit| unit.run)
                {
                    tally.add(&counts);
                    transfer.metrics().add(&counts);
                }
                tracing::warn!(guard = whose, "this janusd stood still, and the holder answered by failurePolicy");
            }
            Some((Part::Stood(_), _)) => {}
            Some(_) => return Err(LinkError::Unexpected),
        }
        Ok(())
    }

    /// Begins to beat, if there is something to beat for; otherwise stops.
    fn pulse(&mut self) -> Result<(), LinkError> {
        if self.deposited.is_empty() {
            return self.be_still();
        }
        if self.beats {
            return Ok(());
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let Ok((here, there)) =
            eventfd(0, flags).and_then(|here| Ok((rustix::io::fcntl_dupfd_cloexec(&here, 0)?, here)))
        else {
            // No descriptor is left: tried again.
            self.lacks_some = true;
            return Ok(());
        };
        self.watchdog.beat(Some(here));
        self.beats = true;
        self.say(Part::Pulse(Pulse { beats: true }), &[there.as_fd()])
    }

    /// Beats no more: somebody else may come to read what is deposited, or nothing is.
    pub(super) fn be_still(&mut self) -> Result<(), LinkError> {
        if !std::mem::take(&mut self.beats) {
            return Ok(());
        }
        let told = self.say(Part::Pulse(Pulse { beats: false }), &[]);
        self.watchdog.beat(None);
        told
    }

    /// Deposits what is new, and withdraws what has gone.
    pub(super) fn keep_up(&mut self, registry: &Registry) -> Result<(), LinkError> {
        if self.link.has_ended() {
            return Err(LinkError::Gone);
        }
        self.deposit_gate()?;
        let units = registry.units().ok_or(LinkError::Stopped)?;
        let stands = |id: &UnitId| units.iter().any(|unit| unit.unit == *id && unit.run.is_some());
        let gone: Vec<UnitId> = self.deposited.keys().filter(|id| !stands(id)).cloned().collect();
        for id in gone {
            self.withdraw(&id)?;
            self.deposited.remove(&id);
        }
        self.lacks_some = false;
        for unit in &units {
            let Some((transfer, _)) = &unit.run else { continue };
            let stamp = (unit.create.generation, transfer.stamp(self.bell.clone()));
            if self.deposited.get(&unit.unit) == Some(&stamp) {
                continue;
            }
            if self.deposit(unit, transfer)? {
                self.deposited.insert(unit.unit.clone(), stamp);
            } else {
                self.lacks_some = true;
            }
        }
        self.raise()?;
        self.pulse()
    }

    /// Should this janusd be stopped as a whole, the holder lets go of the starts that it holds.
    fn deposit_gate(&mut self) -> Result<(), LinkError> {
        let Some(gate) = &self.gate else { return Ok(()) };
        if self.gate_highest.is_some_and(|known| group::highest_number().saturating_add(MARGIN) <= known) {
            return Ok(());
        }
        let highest = highest_number();
        self.say(Part::Gate(Gate { highest }), &[gate.as_fd()])?;
        self.gate_highest = Some(highest);
        Ok(())
    }

    /// Tells the holder of higher numbers before events have them.
    fn raise(&mut self) -> Result<(), LinkError> {
        let near = group::highest_number().saturating_add(MARGIN);
        if self.deposited.is_empty() || near <= self.highest {
            return Ok(());
        }
        self.highest = highest_number();
        self.say(Part::Highest(Highest { highest: self.highest }), &[])
    }

    fn deposit(&mut self, unit: &Bequest, transfer: &Transfer) -> Result<bool, LinkError> {
        let Some(estate) = transfer.deposit(Instant::now() + SHARING) else { return Ok(false) };
        let told = Estate::new(estate.audits(), &estate.numbers, &estate.fingerprints);
        let sent =
            Unit { index: 0, request: Some(unit.create.request(unit.epoch, &unit.containers)), estate: Some(told) };
        let spec = &unit.create.spec;
        let denies = spec.failure_policy() == FailurePolicy::Deny && spec.enforcement() == Enforcement::Enforce;
        self.highest = self.highest.max(highest_number());
        let deposit = Deposit {
            name: name(&unit.unit),
            unit: sent.encode_to_vec(),
            deny: denies,
            highest: self.highest,
            answered: None,
        };
        self.say(Part::Deposit(deposit), &estate.descriptors())?;
        for files in estate.known.chunks(FILES) {
            let files = files.iter().cloned().map(Into::into).collect();
            let known = Known { index: 0, files }.encode_to_vec();
            self.say(Part::DepositKnown(DepositKnown { name: name(&unit.unit), known }), &[])?;
        }
        Ok(true)
    }

    fn withdraw(&self, id: &UnitId) -> Result<(), LinkError> {
        self.say(Part::Withdraw(Withdraw { name: name(id) }), &[])
    }

    /// Nothing is to be held any more: guards end, or are another janusd's.
    pub(super) fn withdraw_all(mut self) -> Result<(), LinkError> {
        self.be_still()?;
        self.deposited.keys().try_for_each(|id| self.withdraw(id))
    }

    fn say(&self, part: Part, descriptors: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        self.link.say(part, descriptors, Instant::now() + PATIENCE)
    }
}

impl Drop for Depot {
    fn drop(&mut self) {
        if self.beats {
            self.watchdog.beat(None);
        }
    }
}

fn name(id: &UnitId) -> String {
    format!("{}/{}", id.guard, id.pod)
}

/// No event of this process has a higher number, nor will have: for a while.
pub(super) fn highest_number() -> i32 {
    let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // Numbers are given from the lowest that is free.
    numbers.max().unwrap_or(0).max(group::highest_number()).saturating_add(2 * MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doorbell;
    use crate::wire::Uid;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    #[test]
    fn the_holder_knows_of_higher_numbers_before_there_are_any() {
        let (one, other) = UnixStream::pair().unwrap();
        let link = |stream| Link::new(stream, Arc::default());
        // Only root may.
        let (Ok(one), Ok(other)) = (link(one), link(other)) else { return };
        let uid = |text: &str| Uid::parse(text.to_owned()).unwrap();
        let (watchdog, _thread) = Watchdog::start(Duration::from_secs(1)).unwrap();
        let held = [UnitId { guard: uid("g"), pod: uid("p") }];
        let mut depot = Depot::new(one, doorbell::channel::<()>().unwrap().0.bell(), watchdog, None, held);
        let now = group::highest_number();
        for (knows, told) in [(now + MARGIN - 1, true), (now + 2 * MARGIN, false), (-1, true)] {
            depot.highest = knows;
            depot.raise().unwrap();
            match other.hear(Instant::now()) {
                Ok((Part::Highest(Highest { highest }), _)) => {
                    assert!(told && highest >= now + 2 * MARGIN, "{highest}")
                }
                other => assert!(!told && matches!(other, Err(LinkError::Late)), "{knows}: {other:?}"),
            }
        }
    }
}

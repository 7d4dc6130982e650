//! What a guard's worker and the watchdog share, and the worker's half of it: which events are out, and when their
//! descriptors may be closed. The rules are in [`super::slots`].

use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use super::groups::Queue;
use super::slots::{Millis, Nanos, Phase, Post, Release, Slots};
use crate::fanotify::PermissionEvent;
use crate::fanotify::answer::BATCH;
use crate::fanotify::group::{Glimpse, ReadBuffer};
use crate::policy::{Decision, Failure, Reason, Response};

/// Events that may wait for lookups. Beyond it an event that needs one gets failure policy at once.
pub(super) const MOST_HELD: usize = 1280;
/// So there is always room for what one read brings.
const SLOTS: usize = MOST_HELD + BATCH;
/// How long a closing inbox waits for somebody who is writing to one of its numbers.
const WRITE: Duration = Duration::from_millis(100);

/// The clock of phases.
pub(super) fn nanos(at: Instant) -> Nanos {
    static START: OnceLock<Instant> = OnceLock::new();
    // Narrowing: 584 years.
    at.saturating_duration_since(*START.get_or_init(Instant::now)).as_nanos() as Nanos
}

/// The clock of slots.
pub(super) fn millis(at: Instant) -> Millis {
    nanos(at) / 1_000_000
}

/// Shared by a guard's workers, one after the other, and the watchdog.
#[derive(Debug)]
pub(super) struct Station {
    /// Tells it from any other of this process.
    pub(super) number: u64,
    pub(super) slots: Slots,
    pub(super) phase: Phase,
    /// What the worker's read has brought so far.
    pub(super) glimpse: Glimpse,
    /// What [`Station::fallback`] tells.
    fallback: AtomicU8,
    condition: AtomicU8,
    unwatched: AtomicBool,
    abandoned: AtomicBool,
    parked: AtomicBool,
    stopped: AtomicBool,
}

/// How a worker is, as the watchdog sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// It answers, or nobody asks.
    Well,
    /// It has been at the same thing for too long; others answer meanwhile.
    Stuck,
    /// And will not be waited for.
    Lost,
}

const DENY: u8 = 1;
const WOULD_DENY: u8 = 2;

impl Station {
    pub(super) fn condition(&self) -> Condition {
        match self.condition.load(Ordering::Acquire) {
            0 => Condition::Well,
            1 => Condition::Stuck,
            _ => Condition::Lost,
        }
    }

    pub(super) fn set_condition(&self, condition: Condition) {
        self.condition.store(condition as u8, Ordering::Release);
    }

    /// From now on its guard has another worker; this one ends should it ever come back.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Worker, when it begins to do something, and before it reads: whether the watchdog has to be woken for that.
    pub(super) fn wakes_the_watchdog(&self) -> bool {
        // With SeqCst one of the two sees the other: the worker this, or the watchdog the worker's phase.
        self.unwatched.swap(false, Ordering::SeqCst)
    }

    /// Watchdog: wants to be woken. What the worker is at has to be looked at once more afterwards.
    pub(super) fn leave_alone(&self) {
        self.unwatched.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Watchdog: whether it was not woken since.
    pub(super) fn is_left_alone(&self) -> bool {
        self.unwatched.load(Ordering::SeqCst)
    }

    /// From now on nobody here reads the groups, until it is told otherwise: another process does, or is about to.
    pub(super) fn set_parked(&self, parked: bool) {
        self.parked.store(parked, Ordering::SeqCst);
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::SeqCst)
    }

    /// The worker was told to stop, and has.
    pub(super) fn set_stopped(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// From now on this is answered to what cannot be judged. Told with each new orders, by the worker that obeys them.
    pub(super) fn set_fallback(&self, decision: &Decision) {
        let denies = if decision.response == Response::Deny { DENY } else { 0 };
        let would = if decision.would_deny { WOULD_DENY } else { 0 };
        self.fallback.store(denies | would, Ordering::Relaxed);
    }

    /// The same decision, for whoever cannot ask the judge. Without a line: nobody looks at the file.
    pub(super) fn fallback(&self, failure: Failure) -> Decision {
        let told = self.fallback.load(Ordering::Relaxed);
        Decision {
            response: if told & DENY != 0 { Response::Deny } else { Response::Allow },
            would_deny: told & WOULD_DENY != 0,
            reason: Reason::Failure(failure),
            ..Decision::ALLOW
        }
    }
}

/// An event that others may answer as well.
#[derive(Debug)]
pub(super) struct Posted {
    event: PermissionEvent,
    slot: u16,
}

impl Deref for Posted {
    type Target = PermissionEvent;
    fn deref(&self) -> &PermissionEvent {
        &self.event
    }
}

/// The worker's half.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) station: Arc<Station>,
    pub(super) buffer: ReadBuffer,
    free: Vec<u16>,
    /// Slots from here on were never used.
    unused: u16,
    /// Done with, but somebody is writing to their numbers: not closed yet.
    limbo: Vec<Posted>,
}

impl Board {
    pub(super) fn new() -> Board {
        let buffer = ReadBuffer::default();
        static STATIONS: AtomicU64 = AtomicU64::new(1);
        let station = Arc::new(Station {
            number: STATIONS.fetch_add(1, Ordering::Relaxed),
            slots: Slots::new(SLOTS),
            phase: Phase::new(),
            glimpse: buffer.glimpse(),
            fallback: AtomicU8::new(0),
            condition: AtomicU8::new(Condition::Well as u8),
            unwatched: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        Board { station, buffer, free: Vec::new(), unused: 0, limbo: Vec::new() }
    }

    /// Lets others answer an event.
    pub(super) fn publish(&mut self, event: PermissionEvent, queue: Queue, own: bool, since: Millis) -> Posted {
        let slot = self.free.pop().unwrap_or_else(|| self.another());
        let post = Post { number: event.file.as_raw_fd(), near: queue == Queue::Near, kind: event.event as u8, own };
        self.station.slots.publish(slot.into(), post, since);
        Posted { event, slot }
    }

    fn another(&mut self) -> u16 {
        if usize::from(self.unused) == SLOTS {
            // Without a slot it is nobody's but ours. Cannot happen: MOST_HELD leaves room for a read.
            return u16::MAX;
        }
        self.unused += 1;
        self.unused - 1
    }

    /// Whether nobody else has answered it.
    pub(super) fn is_pending(&self, posted: &Posted) -> bool {
        // What has no slot nobody else knows of.
        posted.slot == u16::MAX || self.station.slots.is_pending(posted.slot.into())
    }

    /// Takes an event back, and puts its file to those that are closed next, now or later.
    pub(super) fn withdraw(&mut self, posted: Posted, closing: &mut Vec<OwnedFd>) {
        match self.station.slots.release(posted.slot.into()) {
            Release::Close => {
                if posted.slot != u16::MAX {
                    self.free.push(posted.slot);
                }
                closing.push(posted.event.file);
            }
            Release::NotYet => self.limbo.push(posted),
        }
    }

    /// Whether something is still to be closed.
    pub(super) fn lingers(&self) -> bool {
        !self.limbo.is_empty()
    }

    /// Tries again to take back what could not be.
    pub(super) fn tidy(&mut self, closing: &mut Vec<OwnedFd>) {
        for _ in 0..self.limbo.len() {
            let posted = self.limbo.swap_remove(0);
            self.withdraw(posted, closing);
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let mut closing = Vec::new();
        let started = Instant::now();
        while self.lingers() {
            self.tidy(&mut closing);
            if started.elapsed() > WRITE {
                break;
            }
            std::thread::yield_now();
        }
        for posted in self.limbo.drain(..) {
            // Rather a descriptor lost than an answer given to another event of its number.
            std::mem::forget(posted.event.file);
        }
    }
}

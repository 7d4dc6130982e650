//! A guard goes from one process to another, and at every moment one of them reads its groups, and only one.
//!
//! ```text
//!   the old one                                       the new one
//!   begin, share ── groups, what is known, numbers ─► Guard::launch with an Estate: marks are laid, rules are in force
//!   park          ── what was learned since ────────► take_up: reads on
//!   the guard stops, and leaves its marks
//! ```
//!
//! Before it shares, the old one's keeper changes nothing any more and the kernel answers for no more files. Once it is
//! parked it reads nothing and has answered all that it had read. A worker that cannot park in time is either inside of a
//! read, and then the guard is not handed over at all (it has groups of its own in the new process, armed beforehand); or
//! it is stuck elsewhere, and then what it has read and not answered is known by number ([`Resting::Late`]).
//!
//! Two processes must never read one group at a time: both give the numbers of their own descriptors to events, and the
//! kernel tells two events of one number apart by nothing.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use parking_lot::Mutex;

use super::board::{Condition, Station};
use super::groups::Groups;
pub use super::groups::Legacy;
use super::keeper::Errand;
use super::known::{Fingerprints, Learned};
use super::site::Numbers;
use super::slots::{Post, Step};
use super::worker::{Command, Parked};
use crate::doorbell::{Bell, Speaker};
use crate::metrics::GuardMetrics;
use crate::policy::Event;

/// The worker of a guard, as others find it.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) worker: Speaker<Command>,
    pub(super) station: Arc<Station>,
    /// Rung when another worker takes this one's place.
    pub(super) bell: Option<Bell>,
}

/// What a guard needs to go on in another process.
#[derive(Debug)]
pub struct Estate {
    pub(super) groups: Groups,
    /// The numbers of its roots.
    pub numbers: Numbers,
    /// The files that a deny is known to reach.
    pub known: Vec<Learned>,
    /// By which they are told apart.
    pub fingerprints: Fingerprints,
}

impl Estate {
    /// What has come from another process.
    pub fn new(legacy: Legacy, numbers: Numbers, known: Vec<Learned>, fingerprints: Fingerprints) -> Estate {
        Estate { groups: Groups::adopt(legacy), numbers, known, fingerprints }
    }

    /// The groups: wide, near.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.groups.wide.as_fd(), self.groups.near.as_fd()]
    }

    /// Whether responses may carry `FAN_AUDIT`.
    pub fn audits(&self) -> bool {
        self.groups.audits()
    }
}

/// An event that was read and not answered, by the number of its descriptor in the process that read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outstanding {
    /// The number.
    pub number: i32,
    /// Which of the two groups asked.
    pub near: bool,
    /// What.
    pub event: Event,
    /// Asked by Janus itself.
    pub own: bool,
}

impl Outstanding {
    fn of(post: Post) -> Option<Outstanding> {
        let Post { number, near, kind, own } = post;
        Some(Outstanding { number, near, event: *Event::ALL.get(usize::from(kind))?, own })
    }
}

/// How a worker rests that was told to park.
#[derive(Debug, PartialEq, Eq)]
pub enum Resting {
    /// It has answered all that it had read, and has learned this since it shared what it knew.
    Settled(Vec<Learned>),
    /// It reads nothing more; these it has read and not answered.
    Late(Vec<Outstanding>),
    /// It may still be reading, and nobody else may; or it has ended.
    Reading,
}

/// See [`Transfer::begin`].
#[derive(Debug)]
pub struct Begun(Receiver<Numbers>);

/// See [`Transfer::park`].
#[derive(Debug)]
pub struct Parking(Receiver<Parked>);

/// See [`Transfer::begin_anew`].
#[derive(Debug)]
pub struct Renewed(Receiver<()>);

impl Renewed {
    /// Whether the guard has marks in groups of its own, or has ended.
    pub fn is_in_force(&self) -> bool {
        self.0.try_recv() != Err(TryRecvError::Empty)
    }
}

/// The way to a guard for whoever brings it to another process, or takes it up from one.
#[derive(Debug, Clone)]
pub struct Transfer {
    errands: Speaker<Errand>,
    front: Arc<Mutex<Front>>,
    fingerprints: Fingerprints,
    metrics: GuardMetrics,
}

impl Transfer {
    pub(super) fn new(
        errands: Speaker<Errand>,
        front: Arc<Mutex<Front>>,
        fingerprints: Fingerprints,
        metrics: GuardMetrics,
    ) -> Transfer {
        Transfer { errands, front, fingerprints, metrics }
    }

    /// What it counts.
    pub fn metrics(&self) -> &GuardMetrics {
        &self.metrics
    }

    fn tell(&self, command: Command) {
        // Gone: then so is the guard, and whoever waits for an answer learns that by its channel.
        let _gone = self.front.lock().worker.send(command);
    }

    /// Old process: has the keeper change nothing more. Of many guards, begin all before the first is waited for.
    pub fn begin(&self) -> Begun {
        let (reply, numbers) = bounded(1);
        let _gone = self.errands.send(Errand::Freeze(reply));
        Begun(numbers)
    }

    /// Old process: what its successor needs, or `None` if that cannot be had in time, or the worker is not well: then the
    /// guard is not handed over.
    pub fn share(&self, begun: &Begun, until: Instant) -> Option<Estate> {
        self.estate(begun, true, until)
    }

    /// `journal`: what is learned from then on is told by [`Transfer::parked`].
    fn estate(&self, begun: &Begun, journal: bool, until: Instant) -> Option<Estate> {
        let numbers = begun.0.recv_deadline(until).ok()?;
        let (reply, share) = bounded(1);
        self.tell(Command::Share { reply, journal });
        let share = share.recv_deadline(until).ok()?;
        let well = self.front.lock().station.condition() == Condition::Well;
        let (groups, known, fingerprints) = (share.groups, share.known, self.fingerprints.clone());
        well.then_some(Estate { groups, numbers, known, fingerprints })
    }

    /// What a successor needs, should this process be killed; all goes on. `None`: not in time.
    pub fn deposit(&self, until: Instant) -> Option<Estate> {
        let (reply, numbers) = bounded(1);
        let _gone = self.errands.send(Errand::Tell(reply));
        self.estate(&Begun(numbers), false, until)
    }

    /// Tells one worker of the guard, and so its groups, from another. Rings when another one takes its place.
    pub(crate) fn stamp(&self, bell: Bell) -> u64 {
        let mut front = self.front.lock();
        front.bell = Some(bell);
        front.station.number
    }

    /// Old process: has the worker read no more. Of many guards, park all before the first is waited for.
    pub fn park(&self) -> Parking {
        let (reply, parked) = bounded(1);
        self.tell(Command::Park(reply));
        Parking(parked)
    }

    /// Old process: waits for that.
    pub fn parked(&self, parking: &Parking, until: Instant) -> Resting {
        if let Ok(Parked { learned }) = parking.0.recv_deadline(until) {
            return Resting::Settled(learned);
        }
        let front = self.front.lock();
        front.station.set_parked(true);
        // From here on it begins no read; if it is not at one, there will be none. One that has stopped, and was not parked
        // before, has taken its marks along: of that nothing is left to hand over.
        let reads = matches!(front.station.phase.now().step(), Step::Reading { .. });
        if reads || front.station.has_stopped() || front.station.condition() != Condition::Well {
            front.station.set_parked(false);
            let _gone = front.worker.send(Command::Unpark);
            return Resting::Reading;
        }
        Resting::Late(front.station.slots.outstanding().into_iter().filter_map(Outstanding::of).collect())
    }

    /// Old process: the hand-over has come to nothing, and all is as it was. New process: reads on in the old one's place,
    /// and surveys once more what may have changed meanwhile.
    pub fn take_up(&self) {
        self.tell(Command::Unpark);
        // Gone: then so is the guard.
        let _gone = self.errands.send(Errand::Thaw);
    }

    /// New process: reads on, at once, where nobody else does; what is read waits until there are rules.
    pub fn read_on(&self) {
        self.tell(Command::Unpark);
    }

    /// New process: learns what the old one has learned since it shared what it knew.
    pub fn learn(&self, learned: Vec<Learned>) {
        self.tell(Command::Learn(learned, None));
    }

    /// New process, before [`Transfer::take_up`]: answers what the old one has read and not answered, by failure policy.
    /// Returns when that is done, or at `until`.
    pub fn settle(&self, outstanding: Vec<Outstanding>, until: Instant) {
        let (reply, settled) = bounded(1);
        self.tell(Command::Settle(outstanding, reply));
        // Late: the kernel takes one answer to each, whoever gives it.
        let _late = settled.recv_deadline(until);
    }

    /// New process: the old one goes on reading those groups; the guard gets others, with marks of their own.
    pub fn begin_anew(&self) -> Renewed {
        let (reply, marked) = bounded(1);
        let _gone = self.errands.send(Errand::Anew(reply));
        Renewed(marked)
    }
}

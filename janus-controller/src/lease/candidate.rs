//! One candidate, as a state machine: what it has seen of the Lease, and what it does next. No I/O, no clock.
//!
//! The shell asks for the next [`Step`], does it, and tells what came of it: [`Candidate::looked`], [`Candidate::wrote`],
//! [`Candidate::failed`]. `tests/lease_laws.rs` runs several of them, with clocks that differ, against one Lease.

use std::time::Duration;

use super::clock::Moment;

/// The longest that a holder's own word about the length of its lease is believed: a slip of the hand must not keep
/// everybody from acting for days.
const LONGEST: Duration = Duration::from_secs(5 * 60);

/// How long things may take. See the module's head for what follows from what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    lease: Duration,
    deadline: Duration,
    retry: Duration,
}

impl Timing {
    /// As client-go's: a lease of 15 s, 10 s to renew it, tries 2 s apart.
    pub const USUAL: Timing =
        Timing { lease: Duration::from_secs(15), deadline: Duration::from_secs(10), retry: Duration::from_secs(2) };

    /// None, if a leader could go on acting for so long that a third of the lease were not left, or had no second try.
    pub fn new(lease: Duration, deadline: Duration, retry: Duration) -> Option<Timing> {
        let sound = deadline * 3 <= lease * 2 && retry * 3 <= deadline && !retry.is_zero();
        sound.then_some(Timing { lease, deadline, retry })
    }

    /// Others take the Lease when it has not been seen to change for so long.
    pub const fn lease(&self) -> Duration {
        self.lease
    }

    /// A leader acts for so long after it sent the last renewal that succeeded.
    pub const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Between two looks or two renewals.
    pub const fn retry(&self) -> Duration {
        self.retry
    }

    /// How long one request may take: three fit in the deadline, so that one that hangs does not end a leadership.
    pub fn attempt(&self) -> Duration {
        self.deadline * 3 / 10
    }
}

/// What a Lease says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Differs after every change of the object, by whomever: its UID and resourceVersion.
    pub version: String,
    /// Who has it; none when it was released.
    pub holder: Option<String>,
    /// `leaseTransitions`.
    pub transitions: i32,
    /// `leaseDurationSeconds`.
    pub duration: Duration,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until then.
    Wait(Moment),
    /// Ask what the Lease says, for so long at most.
    Look(Duration),
    /// Write it, for so long at most.
    Write(Write, Duration),
}

/// A write, which holds only over what was seen: create, or replace with the resourceVersion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The version that it replaces; none where there is no Lease.
    pub over: Option<String>,
    /// What it is for.
    pub kind: Kind,
}

/// What a write is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To lead, with this `leaseTransitions`.
    Take(i32),
    /// To have a Lease again where somebody deleted it, with this `leaseTransitions`; not to lead. Its leader may not know
    /// yet, and that there is none has no version by which it could be seen that nothing has changed for a while.
    Reserve(i32),
    /// To go on leading.
    Renew,
    /// To let go.
    Release,
}

/// Why a write failed. Whoever was not answered does not know whether it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// What was there was something else: it was not done.
    Conflict,
    /// Anything else.
    Unknown,
}

/// Why a leadership ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// No renewal succeeded in time.
    Deadline,
    /// Another has it.
    Taken(String),
    /// Somebody released it, or changed its transitions.
    Changed,
    /// Somebody deleted it.
    Deleted,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Loss::Deadline => f.write_str("it could not be renewed in time"),
            Loss::Taken(holder) => write!(f, "{holder} has it"),
            Loss::Changed => f.write_str("somebody changed it"),
            Loss::Deleted => f.write_str("somebody deleted it"),
        }
    }
}

/// `leaseTransitions` is as large as it can be, so that no leader can have an epoch of its own: 2^31 leaders, or a slip of
/// the hand. Only a person can put that right, since daemons know the highest epoch that they have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("leaseTransitions is {} and cannot grow: nobody can lead", i32::MAX)]
pub struct NoEpochLeft;

/// A leadership, as the candidate knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lead {
    transitions: i32,
    until: Moment,
}

impl Lead {
    /// Larger than that of every leadership before it.
    pub fn epoch(&self) -> u64 {
        u64::from(self.transitions.unsigned_abs()) + 1
    }

    /// It may act before then.
    pub const fn until(&self) -> Moment {
        self.until
    }
}

/// The last answer about the Lease, and since when there has been no other.
#[derive(Debug)]
struct Seen {
    record: Option<Record>,
    since: Moment,
}

#[derive(Debug)]
enum Next {
    Look,
    Write(Write),
}

/// See the module.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    elect: bool,
    timing: Timing,
    seen: Option<Seen>,
    /// Whether the Lease was ever seen to be there.
    existed: bool,
    /// The highest `leaseTransitions` that was seen: also of a Lease that is gone, or was set back.
    highest: i32,
    /// The highest with which this process wanted to create it. Such a write may be done late, over whatever there was
    /// in between: a Lease that comes of it names us, and is no proof that nobody else has led.
    created: Option<i32>,
    lead: Option<Lead>,
    loss: Option<Loss>,
    next: Next,
    not_before: Moment,
    /// One after the other.
    conflicts: u32,
}

impl Candidate {
    /// `identity`: like no other process's, past ones included. `elect`: false takes the Lease, whoever has it.
    pub fn new(identity: String, elect: bool, timing: Timing) -> Candidate {
        Candidate {
            identity,
            elect,
            timing,
            seen: None,
            existed: false,
            highest: 0,
            created: None,
            lead: None,
            loss: None,
            next: Next::Look,
            not_before: Moment::FIRST,
            conflicts: 0,
        }
    }

    /// What it leads, if it may act now.
    pub fn lead(&self, now: Moment) -> Option<Lead> {
        self.lead.filter(|lead| now < lead.until)
    }

    /// Who has the Lease, as last seen.
    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.record.as_ref()?.holder.as_deref()
    }

    /// Why the last leadership ended.
    pub fn loss(&self) -> Option<&Loss> {
        self.loss.as_ref()
    }

    /// What to do now.
    pub fn step(&mut self, now: Moment) -> Step {
        self.lapse(now);
        if now < self.not_before {
            return Step::Wait(self.lead.map_or(self.not_before, |lead| lead.until.min(self.not_before)));
        }
        // Nobody waits for an answer past the moment at which a leadership ends: it has to be told of then.
        let left = self.lead.map_or(Duration::MAX, |lead| lead.until.since(now));
        let patience = self.timing.attempt().min(left);
        match &self.next {
            Next::Look => Step::Look(patience),
            Next::Write(write) => Step::Write(write.clone(), patience),
        }
    }

    /// The Lease was read. `now`: when the answer was there, so that what it says is no younger. `minutes`: since 1970.
    ///
    /// # Errors
    /// It could be taken, but for this; it will be looked at again.
    pub fn looked(&mut self, record: Option<Record>, now: Moment, minutes: i32) -> Result<(), NoEpochLeft> {
        self.see(record, now);
        self.lapse(now);
        if let Some(lead) = self.lead {
            match self.seen.as_ref().and_then(|seen| seen.record.as_ref()) {
                Some(record) if self.is_mine(record, lead.transitions) => {
                    let over = Some(record.version.clone());
                    self.next(Next::Write(Write { over, kind: Kind::Renew }), now);
                    return Ok(());
                }
                Some(Record { holder: Some(holder), .. }) if *holder != self.identity => {
                    let holder = holder.clone();
                    self.lose(Loss::Taken(holder));
                }
                Some(_) => self.lose(Loss::Changed),
                None => self.lose(Loss::Deleted),
            }
        }
        let free_from = self.free_from();
        if now < free_from {
            self.conflicts = 0;
            self.next(Next::Look, free_from.min(now.plus(self.timing.retry)));
            return Ok(());
        }
        let over = self.seen.as_ref().and_then(|seen| seen.record.as_ref()).map(|record| record.version.clone());
        let least = if over.is_some() { 0 } else { minutes };
        let Some(transitions) = self.highest.checked_add(1).map(|next| next.max(least)) else {
            self.next(Next::Look, now.plus(self.timing.retry));
            return Err(NoEpochLeft);
        };
        let kind = match &over {
            None if self.existed && self.elect => Kind::Reserve(transitions),
            _ => Kind::Take(transitions),
        };
        if over.is_none() {
            self.created = self.created.max(Some(transitions));
        }
        self.next(Next::Write(Write { over, kind }), now);
        Ok(())
    }

    /// A write was done, and left this. `sent`: before it was on its way.
    pub fn wrote(&mut self, write: &Write, record: Record, sent: Moment, now: Moment) {
        self.conflicts = 0;
        self.lapse(now);
        // One that changes nothing (the same renewTime twice, by a clock that was set back) shows nobody that we live.
        let changed = write.over.as_ref() != Some(&record.version);
        let until = sent.plus(self.timing.deadline);
        let renewal = Next::Write(Write { over: Some(record.version.clone()), kind: Kind::Renew });
        let mine = match (write.kind, self.lead) {
            (Kind::Take(transitions), _) => changed && now < until && self.is_mine(&record, transitions),
            (Kind::Renew, Some(lead)) => changed && self.is_mine(&record, lead.transitions),
            (Kind::Renew, None) | (Kind::Reserve(_) | Kind::Release, _) => false,
        };
        if mine {
            self.lead = Some(Lead { transitions: record.transitions, until });
            self.next(renewal, sent.plus(self.timing.retry));
        } else {
            self.next(Next::Look, now.max(sent.plus(self.timing.retry)));
        }
        self.see(Some(record), now);
    }

    /// A request failed that was sent then.
    pub fn failed(&mut self, why: Failed, sent: Moment, now: Moment) {
        self.lapse(now);
        self.conflicts = if why == Failed::Conflict { self.conflicts.saturating_add(1) } else { 0 };
        // Whoever was first is soon known; whoever keeps being first is not run after.
        let at = if self.conflicts == 1 { now } else { now.max(sent.plus(self.timing.retry)) };
        self.next(Next::Look, at);
    }

    fn next(&mut self, next: Next, not_before: Moment) {
        self.next = next;
        self.not_before = not_before;
    }

    fn see(&mut self, record: Option<Record>, now: Moment) {
        if let Some(record) = &record {
            self.existed = true;
            self.highest = self.highest.max(record.transitions);
        }
        let version = |record: &Option<Record>| record.as_ref().map(|record| record.version.clone());
        match &mut self.seen {
            Some(seen) if version(&seen.record) == version(&record) => seen.record = record,
            seen => *seen = Some(Seen { record, since: now }),
        }
    }

    fn is_mine(&self, record: &Record, transitions: i32) -> bool {
        record.holder.as_ref() == Some(&self.identity) && record.transitions == transitions
    }

    /// A leadership that has run out stays so, whatever is answered afterwards.
    fn lapse(&mut self, now: Moment) {
        if self.lead.is_some_and(|lead| now >= lead.until) {
            self.lose(Loss::Deadline);
            self.next(Next::Look, now);
        }
    }

    fn lose(&mut self, loss: Loss) {
        self.lead = None;
        self.loss = Some(loss);
    }

    /// From when on what was seen last may be taken.
    fn free_from(&self) -> Moment {
        let Some(seen) = self.seen.as_ref().filter(|_| self.elect) else { return Moment::FIRST };
        let Some(record) = &seen.record else { return Moment::FIRST };
        match &record.holder {
            None => Moment::FIRST,
            // It is over what was free, so nobody else has taken it since; and what we led under it has ended.
            Some(holder) if *holder == self.identity && Some(record.transitions) > self.created => Moment::FIRST,
            Some(_) => seen.since.plus(record.duration.clamp(self.timing.lease, LONGEST.max(self.timing.lease))),
        }
    }
}

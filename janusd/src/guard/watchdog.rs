//! Sees to it that nobody waits for a worker that does not answer.
//!
//! One thread for the process. Asleep while every worker waits for events and none comes. It is woken by the first worker
//! that begins to do something, before that one reads; and by an event that no worker reads (an epoll of all groups, which
//! tells of nothing that has been read meanwhile). Then it looks a little later, and goes back to sleep about a guard that
//! is idle again. So it costs no CPU while nothing happens, and some twenty looks a second under load.
//!
//! What is overdue gets the guard's failure policy ([`super::rescue`]):
//! - events that a worker has read, each for itself, whatever the worker is doing;
//! - all that is queued, if the worker is *stuck*: for the length of the deadline it has been at the same thing, with
//!   events to read.
//!
//! A worker that goes on is left alone again; what it then answers late, the kernel refuses (ENOENT), and is not counted.
//! One that is not back after a while is *lost*: the keeper is told, and replaces it ([`super::keeper`]). One inside of a
//! read is given up sooner: each other event of that kind would take one more thread.
//!
//! Where a holder keeps the groups as well ([`crate::handover::hold`]), it is told by *beats* that the process goes on: one
//! each turn, five a second. They come from this thread, since while it goes on nobody else is needed.
//!
//! It may itself have been stopped, with the whole process or for want of a CPU. What is overdue then has waited for nobody
//! in here, so workers are left to answer by their rules for one more look, once.
//!
//! Must never block, log, or take a lock that a worker or whoever waits for one may hold.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::board::{Condition, nanos};
use super::groups::Groups;
use super::keeper::Errand;
use super::rescue::{Client, PULSE, Rescuer};
use super::slots::{Moment, Nanos, Step};
use crate::doorbell::{self, Bell, Mailbox, Speaker};

/// How long an opener waits for an answer before it gets the failure policy.
pub const DEADLINE: Duration = Duration::from_millis(500);
/// So many deadlines after it began, a read is given up.
const READ_IS_LOST: u32 = 2;
/// And anything else.
const ALL_ELSE_IS_LOST: u32 = 20;
/// How often the keeper is told of a worker that is lost, in deadlines: it may have failed to replace it.
const REMIND: u32 = 10;
/// A part of the deadline between two looks at a guard that is at work.
const LOOKS: u32 = 10;
/// Rescuers of one guard. Each that hangs in a read stands for one opener that nobody can answer.
const MOST_RESCUERS: usize = 16;
/// How long whoever ends a guard waits until its groups are let go here as well.
const LET_GO: Duration = Duration::from_millis(500);
/// How often it beats.
pub(crate) const BEAT: Duration = Duration::from_millis(200);
/// The bell's number among the epoll's; guards have others.
const BELL: u64 = u64::MAX;

/// The way to the watchdog's thread.
#[derive(Debug, Clone)]
pub struct Watchdog {
    door: Speaker<Message>,
    next: Arc<AtomicU64>,
}

/// The thread, to be joined; and the one that closes for it.
#[derive(Debug)]
pub struct WatchdogThread(JoinHandle<()>, JoinHandle<()>);

/// Keeps a worker watched, until dropped.
#[derive(Debug)]
pub(super) struct Watch {
    id: u64,
    door: Speaker<Message>,
    /// The watchdog forgets it by itself.
    settled: bool,
}

#[derive(Debug)]
enum Message {
    Watch(u64, Arc<Client>, Speaker<Errand>),
    /// The worker has been replaced, and its marks have gone: its groups are let go once nothing is queued.
    Drain(u64),
    /// The worker has ended. Answered when the groups are let go.
    Forget(u64, Option<Sender<()>>),
    /// Where to beat from now on, if anywhere.
    Beat(Option<OwnedFd>),
}

impl Watchdog {
    /// Starts the thread. It ends when every `Watchdog` is gone and no worker is watched.
    ///
    /// # Errors
    /// The kernel's, when no descriptor or thread can be had.
    pub fn start(deadline: Duration) -> std::io::Result<(Watchdog, WatchdogThread)> {
        let (door, mailbox) = doorbell::channel()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &mailbox, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        let (closing, closed) = unbounded();
        let closer = std::thread::Builder::new().name("janus-close".into()).stack_size(super::STACK);
        let closer = closer.spawn(move || closed.into_iter().for_each(drop::<Arc<Client>>))?;
        let (watched, leaving, pulse) = Default::default();
        let post = Lookout { epoll, mailbox, deadline, watched, leaving, closing, pulse };
        let thread = std::thread::Builder::new().name("janus-watchdog".into()).spawn(move || post.keep())?;
        Ok((Watchdog { door, next: Arc::default() }, WatchdogThread(thread, closer)))
    }

    /// Wakes it.
    pub(super) fn bell(&self) -> Bell {
        self.door.bell()
    }

    /// Has it beat on an eventfd that does not block, or no more.
    pub(crate) fn beat(&self, on: Option<OwnedFd>) {
        // Gone only when the process ends.
        let _gone = self.door.send(Message::Beat(on));
    }

    /// Watches a worker. `keeper` is told when its condition changes.
    pub(super) fn watch(&self, client: Client, keeper: Speaker<Errand>) -> Watch {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        // Gone only when the process ends.
        let _gone = self.door.send(Message::Watch(id, Arc::new(client), keeper));
        Watch { id, door: self.door.clone(), settled: false }
    }
}

impl WatchdogThread {
    /// Waits for its end; drop every [`Watchdog`] first, and end every guard.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the watchdog panicked");
        }
        // Otherwise it hangs in the kernel, and ends with the process.
        if self.1.is_finished() && self.1.join().is_err() {
            tracing::error!("the thread that closes groups panicked");
        }
    }
}

impl Watch {
    /// Has its groups let go once nothing is queued in them.
    pub(super) fn drain(mut self) {
        self.settled = self.door.send(Message::Drain(self.id)).is_ok();
    }

    /// Returns when the groups are let go, so that they are gone with the worker's own; or after a moment.
    pub(super) fn end(mut self) {
        let (tell, told) = bounded(1);
        self.settled = self.door.send(Message::Forget(self.id, Some(tell))).is_ok();
        if self.settled {
            // A rescuer that hangs in a read keeps them.
            let _late = told.recv_timeout(LET_GO);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.settled {
            let _gone = self.door.send(Message::Forget(self.id, None));
        }
    }
}

/// A worker, and what was last seen of it.
struct Watched {
    client: Arc<Client>,
    keeper: Speaker<Errand>,
    /// When to look next; `None`: when an event comes.
    due: Option<Instant>,
    /// What it was at when it was looked at last.
    seen: Moment,
    /// A worker that waited for events when there were some, and since when there are.
    noticed: Option<(Moment, Instant)>,
    /// Where it is stuck, and since when.
    stuck: Option<(Moment, Instant)>,
    /// When its keeper was last told that it is lost.
    told: Option<Instant>,
    rescuers: Vec<Rescuer>,
    drained: bool,
}

/// One that is not watched any more, but whose rescuers have not ended.
struct Leaving {
    client: Arc<Client>,
    rescuers: Vec<Rescuer>,
    tell: Option<Sender<()>>,
}

struct Lookout {
    epoll: OwnedFd,
    mailbox: Mailbox<Message>,
    deadline: Duration,
    watched: HashMap<u64, Watched>,
    leaving: Vec<Leaving>,
    /// To let go of groups may take the kernel seconds, if nobody else has them any more.
    closing: Sender<Arc<Client>>,
    /// Where to beat, and when next.
    pulse: Option<(OwnedFd, Instant)>,
}

impl Lookout {
    fn keep(mut self) {
        let mut events = Vec::with_capacity(64);
        // Nobody can send any more: what is to be drained is, and then it ends.
        let mut ending = None;
        let mut was_late = false;
        while ending.is_none_or(|end| Instant::now() < end && !self.watched.is_empty()) {
            let timeout = self.timeout(ending);
            // A failure (EINTR) is as good as nothing there.
            let _asked_again = epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref());
            let now = Instant::now();
            self.beat(now);
            for event in events.drain(..) {
                if let Some(watched) = self.watched.get_mut(&event.data.u64()) {
                    watched.notice(now, self.deadline);
                }
            }
            self.mailbox.quiet();
            loop {
                match self.mailbox.take() {
                    Ok(Some(message)) => self.heed(message, now),
                    Ok(None) => break,
                    Err(doorbell::Gone) => {
                        ending.get_or_insert(now + LET_GO);
                        break;
                    }
                }
            }
            let mut drained = Vec::new();
            let overslept = self.watched.values().filter_map(|watched| watched.due).min();
            let overslept = overslept.is_some_and(|due| now.saturating_duration_since(due) >= self.deadline / 2);
            // Twice in a row it is too slow, and not stopped: then nobody is to wait for that.
            was_late = overslept && !was_late;
            if was_late {
                self.watched.values_mut().for_each(|watched| watched.put_off(now, self.deadline));
            }
            for (id, watched) in &mut self.watched {
                if !watched.client.station.is_left_alone() {
                    watched.notice(now, self.deadline);
                }
                if watched.due.is_some_and(|due| due <= now) {
                    watched.look(now, self.deadline);
                    if watched.due.is_none() {
                        watched.client.station.leave_alone();
                        arm(&self.epoll, &watched.client.groups, *id);
                        watched.look_back(now, self.deadline);
                    }
                }
                if watched.drained && !watched.client.has_unread() {
                    drained.push(*id);
                }
            }
            drained.into_iter().for_each(|id| self.forget(id, None));
            for left in self.leaving.extract_if(.., Leaving::has_left) {
                if let Some(tell) = left.tell {
                    // Whoever waits has them as well, so that this is quickly done.
                    drop(left.client);
                    // Whoever waited has gone on.
                    let _gone = tell.send(());
                } else {
                    // It ends after this thread.
                    let _never_gone = self.closing.send(left.client);
                }
            }
        }
        // Its rescuers end by themselves, but for those that hang in a read: they end with the process.
        for watched in self.watched.values() {
            watched.client.dismissed.store(true, Ordering::Relaxed);
        }
    }

    fn timeout(&self, ending: Option<Instant>) -> Option<Timespec> {
        let looks = self.watched.values().filter_map(|watched| watched.due).chain(ending);
        let looks = looks.chain(self.pulse.as_ref().map(|(_, next)| *next));
        let next = looks.chain((!self.leaving.is_empty()).then(|| Instant::now() + PULSE)).min()?;
        let left = next.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() })
    }

    fn heed(&mut self, message: Message, now: Instant) {
        match message {
            Message::Watch(id, client, keeper) => {
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
                let data = epoll::EventData::new_u64(id);
                let added =
                    [&client.groups.wide, &client.groups.near].map(|group| epoll::add(&self.epoll, group, data, flags));
                // Out of memory, or of fs.epoll.max_user_watches: looked at all the time then.
                let due = added.iter().any(Result::is_err).then_some(now);
                let watched = Watched {
                    seen: client.station.phase.now(),
                    client,
                    keeper,
                    due,
                    noticed: None,
                    stuck: None,
                    told: None,
                    rescuers: Vec::new(),
                    drained: false,
                };
                // Not left alone yet: looked at soon.
                self.watched.insert(id, watched);
            }
            Message::Drain(id) => {
                if let Some(watched) = self.watched.get_mut(&id) {
                    watched.drained = true;
                    watched.due = Some(now);
                }
            }
            Message::Forget(id, tell) => self.forget(id, tell),
            Message::Beat(on) => {
                self.pulse = on.map(|on| (on, now));
                self.beat(now);
            }
        }
    }

    fn beat(&mut self, now: Instant) {
        if let Some((on, next)) = self.pulse.as_mut().filter(|(_, next)| *next <= now) {
            // Fails only when the count is at its maximum: nobody has looked for ages.
            let _unseen = rustix::io::write(on, &1_u64.to_ne_bytes());
            *next = now + BEAT;
        }
    }

    fn forget(&mut self, id: u64, tell: Option<Sender<()>>) {
        // Not there: forgotten before, and let go.
        let Some(watched) = self.watched.remove(&id) else { return };
        watched.client.dismissed.store(true, Ordering::Relaxed);
        for group in [&watched.client.groups.wide, &watched.client.groups.near] {
            // ENOENT: it could not be added.
            let _never_there = epoll::delete(&self.epoll, group);
        }
        self.leaving.push(Leaving { client: watched.client, rescuers: watched.rescuers, tell });
    }
}

/// Has the watchdog told of the next event; at once if one is there.
fn arm(epoll: &OwnedFd, groups: &Groups, id: u64) {
    for group in [&groups.wide, &groups.near] {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        // ENOENT: it could not be added.
        let _never_there = epoll::modify(epoll, group, epoll::EventData::new_u64(id), flags);
    }
}

impl Leaving {
    fn has_left(&mut self) -> bool {
        reap(&mut self.rescuers);
        self.rescuers.is_empty()
    }
}

/// Joins those that have finished.
fn reap(rescuers: &mut Vec<Rescuer>) {
    for finished in rescuers.extract_if(.., |rescuer| rescuer.is_finished()) {
        // Nothing in it panics; and if it did, another is started.
        let _panicked = finished.join();
    }
}

impl Watched {
    /// A worker that was idle has an event, or has begun to do something. What comes of it is seen later.
    fn notice(&mut self, now: Instant, deadline: Duration) {
        if self.due.is_none() {
            self.noticed = Some((self.client.station.phase.now(), now));
            self.due = Some(now + deadline / LOOKS);
        }
    }

    /// Looks a little later.
    fn put_off(&mut self, now: Instant, deadline: Duration) {
        if self.due.is_some_and(|due| due <= now) {
            self.due = Some(now + deadline / LOOKS);
        }
    }

    /// Who began to do something before it was left alone has woken nobody.
    fn look_back(&mut self, now: Instant, deadline: Duration) {
        if self.client.station.phase.now() != self.seen {
            self.due = Some(now + deadline / LOOKS);
        }
    }

    fn look(&mut self, now: Instant, deadline: Duration) {
        self.client.answer_overdue(now, deadline);
        let moment = self.client.station.phase.now();
        self.seen = moment;
        let lasts = Duration::from_nanos(nanos(now).saturating_sub(moment.since()));
        if let Step::Reading { near } = moment.step()
            && lasts >= deadline
        {
            self.client.answer_unpublished(moment, near, lasts);
        }
        let has_unread = self.client.has_unread();
        // Another process reads what is queued, or will.
        let has_unread = has_unread && !self.client.station.is_parked();
        let since = match moment.step() {
            Step::Idle if !has_unread => {
                self.noticed = None;
                None
            }
            Step::Idle => match self.noticed {
                Some((noticed, since)) if noticed == moment => Some(since),
                _ => {
                    self.noticed = Some((moment, now));
                    Some(now)
                }
            },
            Step::Working | Step::Reading { .. } => now.checked_sub(lasts),
        };
        let was_stuck = self.stuck.is_some();
        let stays = self.stuck.filter(|(where_it_was, _)| *where_it_was == moment);
        let overdue = since.filter(|since| now.saturating_duration_since(*since) >= deadline);
        let abandoned = self.client.station.is_abandoned();
        self.stuck = stays.or(overdue.map(|since| (moment, since))).or(abandoned.then_some((moment, now)));
        match self.stuck {
            Some((moment, since)) => {
                self.rescue(moment, nanos(now));
                if !abandoned {
                    self.tell(moment, now, now.saturating_duration_since(since), deadline);
                }
            }
            None if was_stuck => {
                self.told = None;
                self.change(Condition::Well);
            }
            None => {}
        }
        reap(&mut self.rescuers);
        self.due = self.next_look(moment, has_unread, now, deadline);
    }

    /// Sees to it that somebody reads what is queued.
    fn rescue(&mut self, stuck: Moment, now: Nanos) {
        reap(&mut self.rescuers);
        if self.client.station.is_parked() {
            return;
        }
        let available = self.rescuers.iter().any(|rescuer| !rescuer.hangs(now));
        if !available && self.rescuers.len() < MOST_RESCUERS {
            // No thread can be had: tried again at the next look.
            self.rescuers.extend(Rescuer::start(self.client.clone(), stuck).ok());
        }
    }

    fn tell(&mut self, stuck: Moment, now: Instant, lasts: Duration, deadline: Duration) {
        let patience = match stuck.step() {
            Step::Reading { .. } => READ_IS_LOST,
            Step::Idle | Step::Working => ALL_ELSE_IS_LOST,
        };
        if lasts < deadline * patience {
            if self.client.station.condition() == Condition::Well {
                self.change(Condition::Stuck);
            }
        } else if self.told.is_none_or(|told| now.saturating_duration_since(told) >= deadline * REMIND) {
            self.told = Some(now);
            self.change(Condition::Lost);
        }
    }

    fn change(&self, condition: Condition) {
        self.client.station.set_condition(condition);
        // A keeper that is gone has told the worker to stop.
        let _gone = self.keeper.send(Errand::Worker);
    }

    fn next_look(&self, moment: Moment, has_unread: bool, now: Instant, deadline: Duration) -> Option<Instant> {
        let station = &self.client.station;
        if self.stuck.is_some() || !self.rescuers.is_empty() {
            return Some(now + (deadline / LOOKS).min(PULSE));
        }
        let oldest = station.slots.oldest(nanos(now) / 1_000_000).map(Duration::from_millis);
        if moment.step() == Step::Idle && !has_unread && oldest.is_none() {
            return None;
        }
        // Rounded up: slots know milliseconds.
        let overdue = oldest.map(|age| deadline.saturating_sub(age) + Duration::from_millis(1));
        let pause = overdue.unwrap_or(deadline).min(deadline / LOOKS);
        Some(now + pause)
    }
}

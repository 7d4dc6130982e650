//! The guard's thread: reads, judges, answers.
//!
//! Flow: poll the group and the mailbox; read a batch; for each event look at its file (two calls on the descriptor that
//! the kernel opened) and ask the [`Judge`]; learn what is denied for the first time; write every answer with one
//! `writev`; only then count, hand over lines, and close the files.
//!
//! Guarantees: between read and answer there is no log, no lock that another thread holds, no file opened (procfs
//! excepted, and only when an event line asks who it was), and no allocation but where a file is denied for the first time
//! or a line asks. Our own process is always
//! allowed, first. An event whose mount is not known, or whose answer depends on who asks, waits for a lookup thread, never
//! longer than [`lookup::DEADLINE`], while the others are answered.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::board::nanos;
use super::groups::{Groups, Queue};
use super::inbox::{Awaited, Held, Inbox};
use super::judge::{Ask, Asker, Judge, Known, Mount, Verdict};
use super::kin::Kin;
use super::known::{Fingerprint, Fingerprints, Learned, Pool};
use super::lookup::{self, Lookups, MountRequest, ProcessRequest};
use super::opener::{Opener, Wanted};
use super::sight::Sight;
use super::site::SiteId;
use super::transfer::Outstanding;
use super::view::Tree;
use crate::doorbell::{Bell, Mailbox, Speaker};
use crate::events::relay::Watched;
use crate::events::{GuardText, Line, ShownPath};
use crate::fanotify::answer::{Answer, BATCH, Outcome};
use crate::fanotify::look::{self, Stat};
use crate::fanotify::{Features, PermissionEvent, ReadError};
use crate::metrics::GuardMetrics;
use crate::policy::{Decision, Depends, Events, Exceptions, Failure, Origin, Reason, Response};
use crate::process::look::{Anchor, Found, NodeAgents};

/// Commands that take longer than this are interrupted for events, which have a deadline.
const COMMANDS: Duration = Duration::from_millis(100);
/// How long the next event is awaited without sleeping, and how soon it must have come last time for that. To be woken
/// costs several times this thread's work, more so on another CPU.
const LINGER: Duration = Duration::from_micros(50);
/// A thread that yields for longer has let another one run: the CPU is wanted.
const YIELD: Duration = Duration::from_micros(2);
/// So many times it goes to sleep at once then, before it tries that again; twice as often each time, up to the other.
const SLEEPS: (u16, u16) = (4, 1024);
/// Files of a batch whose decision is remembered for other events of the same batch.
const EXAMPLES: usize = 16;
/// Files that are told to another process: so that telling them makes no opener late.
const MOST_TOLD: usize = 100_000;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Judge by these orders from now on; answers when they are in force.
    Orders(Arc<Orders>, Sender<()>),
    /// These files are denied by name somewhere; answers when they are known.
    Learn(Vec<Learned>, Option<Sender<()>>),
    /// A container has ended.
    Forget(SiteId, Gone),
    /// Whether the kernel may be told to answer for files that no rule denies; answers when that holds.
    Ignoring(bool, Sender<()>),
    /// A lookup has come back.
    Mount {
        /// Which mount.
        mount: u64,
        /// What it shows.
        tree: Result<Arc<Tree>, Failure>,
    },
    /// A process was looked at.
    Process {
        /// Names the request.
        ticket: u64,
        /// By whose exceptions.
        exceptions: Arc<Exceptions>,
        /// What it is.
        found: Result<Found, Failure>,
    },
    /// Tell what another process needs to answer in this one's place. Reading goes on. `journal`: it will be told what is
    /// learned from then on, when this one parks.
    Share {
        /// The way back.
        reply: Sender<Share>,
        /// See above.
        journal: bool,
    },
    /// Read no more, answer all that was read; answers once that is done.
    Park(Sender<Parked>),
    /// Answer what another process has read from our groups and not answered; answers once that is done.
    Settle(Vec<Outstanding>, Sender<()>),
    /// Read on.
    Unpark,
    /// Remove all marks, answer what is queued, end. Of a parked worker: end; the rest is for whoever reads in its place.
    Stop,
}

/// What a worker shares with its successor in another process.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) groups: Groups,
    /// The files that it knows, or so many of them as may be told.
    pub(super) known: Vec<Learned>,
}

/// A worker reads no more, and has answered all that it had read.
#[derive(Debug)]
pub(super) struct Parked {
    /// What it has learned since it shared what it knew.
    pub(super) learned: Vec<Learned>,
}

/// What has gone with a container.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gone {
    /// The file system of its own root. What is known of its volumes stays: it may start again, and find them as it left
    /// them.
    Root {
        /// Device, major number.
        major: u32,
        /// Device, minor number.
        minor: u32,
    },
    /// Everything: it never had a name by which it could come back.
    All,
}

/// What a worker judges by, replaced as a whole.
#[derive(Debug, Clone)]
pub(super) struct Orders {
    /// The rules.
    pub judge: Arc<dyn Judge>,
    /// The names and formats for event lines.
    pub text: Arc<GuardText>,
    /// Which facts about the opener the lines ask for.
    pub wanted: Wanted,
    /// There are rules: until then what is read waits for them.
    pub armed: bool,
    /// The events that marks ask about.
    pub events: Events,
    /// Inode numbers may change under us: the root shows an overlay.
    pub by_handle: bool,
    /// Nothing in the root bears wide marks: a file is asked about only if it, or its directory, bears one of its own.
    pub near_only: bool,
    /// Whom denies do not reach.
    pub exceptions: Arc<Exceptions>,
    /// The roots that are guarded.
    pub posts: Vec<Post>,
}

/// A guarded root, as far as its worker has to know it.
#[derive(Debug, Clone)]
pub(super) struct Post {
    /// Which.
    pub site: SiteId,
    /// The container's name, if it is one and known.
    pub container: Option<Arc<str>>,
    /// What processes are told apart by.
    pub anchor: Arc<Anchor>,
}

impl Orders {
    fn post(&self, site: Option<SiteId>) -> Option<&Post> {
        self.posts.iter().find(|post| Some(post.site) == site)
    }
}

/// What a worker needs besides orders; the same for the guard's whole life.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) metrics: GuardMetrics,
    pub(super) lines: Sender<Line>,
    pub(super) pool: Pool,
    pub(super) watched: Watched,
    pub(super) lookups: Lookups,
    pub(super) replies: Speaker<Command>,
    pub(super) features: Features,
    pub(super) fingerprints: Fingerprints,
    pub(super) kin: Kin,
    /// Wakes the watchdog.
    pub(super) watchdog: Bell,
    /// The node's agents, if there are any.
    pub(super) agents: Option<Arc<dyn NodeAgents>>,
}

impl Desk {
    /// The fingerprint of an open file, where its file system gives it a handle.
    pub(super) fn fingerprint(&self, file: BorrowedFd<'_>) -> Option<Fingerprint> {
        look::handle(file, &self.features).map(|handle| self.fingerprints.of(&handle))
    }
}

/// Why a worker ended by itself.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to.
    Stopped,
    /// The group cannot be polled or read any more.
    GroupLost(Errno),
    /// It misread the queue.
    Misread(ReadError),
    /// It was stuck for so long that its guard has another worker by now.
    Abandoned,
}

pub(super) struct Worker {
    pub(super) inbox: Inbox,
    pub(super) mailbox: Mailbox<Command>,
    pub(super) orders: Arc<Orders>,
    sight: Sight,
    batch: Batch,
    /// Who waits for it to have answered all that it had read.
    parking: Option<Sender<Parked>>,
    /// One opener opens one file after the other, and is likely to be back before this thread would have gone to sleep.
    /// Never so with several of them: what is answered together costs least, and they come together when they are let
    /// go together.
    lingers: bool,
    /// How many times more it does not, since somebody else wants the CPU: perhaps the opener itself.
    sleeps: u16,
    /// How many times it will not, the next time that somebody wants it.
    respect: u16,
}

/// What came of a batch, event by event; refilled, never reallocated.
#[derive(Default)]
struct Batch {
    decisions: Vec<Option<Decision>>,
    notes: Vec<Note>,
    /// Those whose decision holds for other events on their file.
    examples: Vec<usize>,
    shown: Vec<u8>,
    denied: Vec<u8>,
    answers: Vec<Answer>,
    outcomes: Vec<Option<Outcome>>,
}

/// What is remembered of an event for after its answer.
#[derive(Default)]
struct Note {
    own: bool,
    stat: Option<Stat>,
    /// The end of its path in `shown`; it begins where the previous one ends.
    shown_to: usize,
    opener: Option<Opener>,
    /// Whose name it is shown by.
    site: Option<SiteId>,
    /// The end of its denied name in `denied`, likewise.
    denied_to: usize,
    /// The kernel may answer for this file from now on.
    ignore: bool,
    /// What it waits for, if it has no decision yet.
    awaited: Option<Awaited>,
    /// What was looked up for it before.
    tree: Option<Result<Arc<Tree>, Failure>>,
}

/// What lookups have brought for the fresh events.
#[derive(Clone, Copy)]
struct Brought<'a> {
    tree: Option<&'a Result<Arc<Tree>, Failure>>,
    asker: Asker,
    origin: Option<Origin>,
}

impl<'a> Brought<'a> {
    const NOTHING: Brought<'static> = Brought { tree: None, asker: Asker::Unasked, origin: None };

    fn is_nothing(&self) -> bool {
        self.tree.is_none() && self.asker == Asker::Unasked && self.origin.is_none()
    }

    fn mount(&self) -> Mount<'a> {
        match self.tree {
            None => Mount::Unasked,
            Some(Ok(tree)) => Mount::Tree(tree),
            Some(Err(failure)) => Mount::Failed(*failure),
        }
    }
}

/// What there is to be done, as poll said. What came later it says next time.
#[derive(Clone, Copy)]
struct Ready {
    mailbox: bool,
    wide: bool,
    near: bool,
}

impl Ready {
    fn has(self, queue: Queue) -> bool {
        match queue {
            Queue::Wide => self.wide,
            Queue::Near => self.near,
        }
    }
}

impl Worker {
    /// # Errors
    /// Why `/proc/self/fd` cannot be opened, and the inbox back: its events still want their answers.
    pub(super) fn new(
        inbox: Inbox,
        mailbox: Mailbox<Command>,
        orders: Arc<Orders>,
    ) -> Result<Worker, (std::io::Error, Box<Inbox>)> {
        let sight = match Sight::new() {
            Ok(sight) => sight,
            Err(errno) => return Err((errno.into(), Box::new(inbox))),
        };
        Ok(Worker {
            inbox,
            mailbox,
            orders,
            sight,
            batch: Batch::default(),
            parking: None,
            lingers: false,
            sleeps: 0,
            respect: SLEEPS.0,
        })
    }

    /// Answers events until it is told to stop. `inbox` may hold what a predecessor left.
    pub(super) fn run(&mut self) -> End {
        self.inbox.board.station.set_fallback(&self.orders.judge.failed(Failure::Deadline));
        self.begin_work();
        self.judge_and_answer(Brought::NOTHING);
        loop {
            let idle = Instant::now();
            self.inbox.board.station.phase.idle(nanos(idle));
            let waited = self.wait(idle);
            self.lingers = self.begin_work().duration_since(idle) < LINGER;
            if self.inbox.board.station.is_abandoned() {
                return End::Abandoned;
            }
            let ready = match waited {
                Ok(ready) => ready,
                Err(errno) => return End::GroupLost(errno),
            };
            self.inbox.tidy();
            if ready.mailbox {
                self.mailbox.quiet();
            }
            let began = Instant::now();
            while let Ok(Some(command)) = self.mailbox.take() {
                match command {
                    Command::Orders(orders, acknowledge) => {
                        self.inbox.judge = orders.judge.clone();
                        self.inbox.board.station.set_fallback(&orders.judge.failed(Failure::Deadline));
                        self.orders = orders;
                        self.inbox.make_room();
                        if self.orders.armed {
                            self.release(|held| held.awaited == Awaited::Rules, Brought::NOTHING);
                        }
                        // Whoever gave the order may have gone; the order stands.
                        let _gone = acknowledge.send(());
                    }
                    Command::Learn(files, acknowledge) => {
                        for file in files {
                            self.inbox.learn(&file);
                        }
                        if let Some(acknowledge) = acknowledge {
                            let _gone = acknowledge.send(());
                        }
                    }
                    Command::Forget(site, gone) => self.inbox.forget(site, gone),
                    Command::Ignoring(ignoring, acknowledge) => {
                        self.inbox.ignoring = ignoring;
                        let _gone = acknowledge.send(());
                    }
                    Command::Mount { mount, tree } => {
                        let brought = Brought { tree: Some(&tree), ..Brought::NOTHING };
                        self.release(|held| held.awaited == Awaited::Mount(mount), brought);
                    }
                    Command::Process { ticket, exceptions, found } => self.identified(ticket, &exceptions, found),
                    Command::Share { reply, journal } => {
                        // None: its groups are shared without a descriptor more.
                        if let Ok(groups) = self.inbox.groups.try_clone() {
                            if journal {
                                self.inbox.begin_journal();
                            }
                            let _gone = reply.send(Share { groups, known: self.inbox.tell(MOST_TOLD) });
                        }
                    }
                    Command::Park(reply) => {
                        self.inbox.board.station.set_parked(true);
                        self.parking = Some(reply);
                    }
                    Command::Settle(outstanding, reply) => {
                        self.inbox.settle_for_another(&outstanding);
                        let _gone = reply.send(());
                    }
                    Command::Unpark => {
                        self.parking = None;
                        // Nobody will be told.
                        let _untold = self.inbox.take_journal();
                        self.inbox.board.station.set_parked(false);
                    }
                    Command::Stop => return self.stop(),
                }
                if began.elapsed() > COMMANDS {
                    self.mailbox.remind();
                    break;
                }
            }
            self.expire();
            if self.inbox.board.station.is_parked() {
                if self.inbox.is_settled()
                    && let Some(reply) = self.parking.take()
                {
                    let _gone = reply.send(Parked { learned: self.inbox.take_journal() });
                }
                continue;
            }
            for queue in [Queue::Wide, Queue::Near].into_iter().filter(|queue| ready.has(*queue)) {
                let read = self.read(queue);
                self.lingers &= self.batch.decisions.len() <= 1;
                match read {
                    Ok(()) | Err(ReadError::Empty) => {}
                    Err(error @ ReadError::Record(_)) => return End::Misread(error),
                    Err(ReadError::Read(errno @ (Errno::BADF | Errno::INVAL | Errno::FAULT))) => {
                        return End::GroupLost(errno);
                    }
                    // EMFILE, ENFILE, ENOMEM, or the file's own error: the kernel has denied the event at the head.
                    Err(ReadError::Read(_)) => self.inbox.desk.metrics.failed(Failure::ReadFailed, 1),
                }
            }
        }
    }

    /// From here on the deadline runs.
    fn begin_work(&self) -> Instant {
        let station = &self.inbox.board.station;
        let now = Instant::now();
        station.phase.working(nanos(now));
        if station.wakes_the_watchdog() {
            self.inbox.desk.watchdog.ring();
        }
        now
    }

    fn wait(&mut self, from: Instant) -> Result<Ready, Errno> {
        let looked_up = self.inbox.held.iter().filter(|held| held.awaited != Awaited::Rules);
        let overdue = looked_up.map(|held| held.since).min();
        let left = overdue.map(|oldest| lookup::DEADLINE.saturating_sub(oldest.elapsed()));
        // Somebody is writing to a number of ours: a matter of microseconds.
        let left = if self.inbox.board.lingers() { Some(Duration::ZERO) } else { left };
        let timeout = left.map(|left| {
            // Rounded up, or the last millisecond would be spent spinning.
            let left = left + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = [
            PollFd::from_borrowed_fd(self.mailbox.as_fd(), PollFlags::IN),
            PollFd::new(&self.inbox.groups.wide, PollFlags::IN),
            PollFd::new(&self.inbox.groups.near, PollFlags::IN),
        ];
        let parked = self.inbox.board.station.is_parked();
        let awaited = if parked { &mut fds[..1] } else { &mut fds[..] };
        let mut ready = 0;
        if self.lingers && timeout.is_none() && !parked {
            self.sleeps = self.sleeps.saturating_sub(1);
            if self.sleeps == 0 {
                ready = poll_now(awaited)?;
            }
            let mut now = from;
            while self.sleeps == 0 && ready == 0 && now.duration_since(from) < LINGER {
                let before = Instant::now();
                std::thread::yield_now();
                now = Instant::now();
                if now.duration_since(before) > YIELD {
                    self.sleeps = self.respect;
                    self.respect = (self.respect * 2).min(SLEEPS.1);
                    break;
                }
                ready = poll_now(awaited)?;
                if ready != 0 {
                    self.respect = SLEEPS.0;
                }
            }
        }
        if ready == 0 {
            match poll(awaited, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        // An error is something to be read, too.
        let [mailbox, wide, near] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready { mailbox, wide, near })
    }

    /// Reads one batch of one group and answers it, even if reading failed behind its first events.
    fn read(&mut self, queue: Queue) -> Result<(), ReadError> {
        let result = self.inbox.read(queue);
        if self.inbox.board.station.is_abandoned() {
            self.inbox.settle_fresh(Failure::Deadline);
        } else if !self.inbox.fresh.is_empty() {
            self.judge_and_answer(Brought::NOTHING);
        }
        if let Ok(report) = result
            && report.denied_by_kernel > 0
        {
            self.inbox.desk.metrics.failed(Failure::EventFd, report.denied_by_kernel.into());
        }
        result.map(|_| ())
    }

    /// Judges everything fresh, answers it in one go, and keeps what has to wait for a lookup. `brought`: what is now known
    /// of every fresh event.
    fn judge_and_answer(&mut self, brought: Brought<'_>) {
        self.batch.decisions.clear();
        self.batch.notes.clear();
        self.batch.examples.clear();
        self.batch.shown.clear();
        self.batch.denied.clear();
        for at in 0..self.inbox.fresh.len() {
            self.inbox.judging = Some(at);
            let decision = self.judge(at, brought);
            self.batch.decisions.push(decision);
        }
        self.inbox.judging = None;
        if self.inbox.fresh.is_empty() {
            return;
        }
        self.learn();
        let Batch { decisions, answers, outcomes, .. } = &mut self.batch;
        self.inbox.answer(decisions, answers, outcomes);
        self.hold_back();
        self.account();
    }

    /// `None`: has to wait for a lookup, which is under way.
    fn judge(&mut self, at: usize, brought: Brought<'_>) -> Option<Decision> {
        let event = &self.inbox.fresh[at];
        let mut note = Note { shown_to: self.batch.shown.len(), ..Note::default() };
        let decision = if self.inbox.desk.kin.has(event.pid) {
            note.own = true;
            Some(OWN)
        } else if !self.inbox.is_pending(at) {
            // It was overdue. Whoever answers it now, answers this.
            Some(Decision { line: false, ..self.orders.judge.failed(Failure::Deadline) })
        } else {
            match self.sight.look(&self.inbox, event, &self.orders) {
                Ok(stat) => {
                    note.stat = Some(stat);
                    if let Some(example) = self.example(at, &stat) {
                        return self.judge_alike(at, example, note);
                    }
                    let decision = self.judge_seen(at, &stat, brought, &mut note);
                    if brought.is_nothing() && self.is_exemplary(&stat, decision.as_ref()) {
                        self.batch.examples.push(at);
                    }
                    decision
                }
                Err(failure) => Some(self.orders.judge.failed(failure)),
            }
        };
        note.denied_to = self.batch.denied.len();
        self.batch.notes.push(note);
        if let Some(decision) = decision {
            self.remember(at, &decision, brought.origin);
        }
        decision
    }

    /// Whether the decision just made is that of every event of this batch on the same file, through the same mount. Then
    /// what costs most, the file's path, is asked for once.
    ///
    /// That is no cache, and nothing goes stale: whoever is in this batch has waited since before it was read, so where the
    /// file was at any moment since then is where it was while they waited. It has this one name, so that they opened it
    /// by this one.
    fn is_exemplary(&self, stat: &Stat, decision: Option<&Decision>) -> bool {
        stat.links == 1
            && self.sight.path_holds()
            && self.batch.examples.len() < EXAMPLES
            && decision.is_some_and(|it| it.depends.is_nothing() && !matches!(it.reason, Reason::Failure(_)))
    }

    fn example(&self, at: usize, stat: &Stat) -> Option<usize> {
        let fresh = &self.inbox.fresh;
        self.batch.examples.iter().copied().find(|example| {
            fresh[*example].event == fresh[at].event
                && self.batch.notes[*example].stat.is_some_and(|other| {
                    (other.inode, other.mount, other.links) == (stat.inode, stat.mount, stat.links)
                })
        })
    }

    /// What holds for the example holds for this one. What is to be learned of their file, it has learned.
    fn judge_alike(&mut self, at: usize, example: usize, mut note: Note) -> Option<Decision> {
        let decision = self.batch.decisions[example];
        let site = self.batch.notes[example].site;
        note.site = site;
        note.denied_to = self.batch.denied.len();
        self.batch.notes.push(note);
        if decision.is_some_and(|decision| decision.line) {
            let from = example.checked_sub(1).map_or(0, |before| self.batch.notes[before].shown_to);
            let shown = from..self.batch.notes[example].shown_to;
            self.batch.shown.extend_from_within(shown);
            self.note(at, site, None);
        }
        decision
    }

    /// Remembers what is to be learned, told and left to the kernel of the event. Its names are at hand only now.
    fn remember(&mut self, at: usize, decision: &Decision, origin: Option<Origin>) {
        if decision.line {
            if let Some(name) = self.sight.names().iter().next() {
                self.batch.shown.extend_from_slice(name);
            } else if let Some(path) = self.sight.path(&self.inbox.fresh[at]) {
                self.batch.shown.extend_from_slice(path);
            }
            self.note(at, self.sight.names().site(), origin);
        }
        let Self { inbox, sight, orders, batch, .. } = self;
        let Some(note) = batch.notes.last_mut() else { return };
        let Some(stat) = note.stat.filter(|_| !note.own) else { return };
        let denied = decision.response == Response::Deny || decision.would_deny;
        if decision.rule.is_some() && (denied || matches!(decision.reason, Reason::Except | Reason::NodeAgent)) {
            if inbox.known.names(stat.inode, sight.fingerprint()).next().is_none()
                && let Some(site) = note.site
                && let Some(name) =
                    sight.names().iter().find(|name| orders.judge.denies(site, name, stat.is_directory()))
            {
                batch.denied.extend_from_slice(name);
                note.denied_to = batch.denied.len();
            }
        } else {
            note.ignore = inbox.ignoring
                && inbox.queue == Queue::Wide
                && matches!(decision.reason, Reason::NoRule | Reason::RuleAllow)
                && !decision.line
                && sight.current(inbox, &inbox.fresh[at], &stat).is_some_and(|stat| {
                    inbox.may_ignore(&stat) && sight.indifferent(&inbox.fresh[at], &stat, &*orders.judge)
                });
        }
    }

    fn judge_seen(&mut self, at: usize, stat: &Stat, brought: Brought<'_>, note: &mut Note) -> Option<Decision> {
        let Self { inbox, sight, orders, .. } = self;
        let (inbox, orders) = (&*inbox, &**orders);
        let event = &inbox.fresh[at];
        if !orders.armed {
            if !inbox.may_hold() {
                return Some(orders.judge.failed(Failure::LookupBusy));
            }
            note.awaited = Some(Awaited::Rules);
            return None;
        }
        let verdict = sight.judge(inbox, event, stat, orders, brought.mount(), brought.asker);
        note.site = sight.names().site();
        if verdict != Verdict::AskMount {
            return conclude(inbox, orders, event, brought, note, verdict);
        }
        let Err(failure) = ask_mount(inbox, event, stat) else {
            note.awaited = Some(Awaited::Mount(stat.mount));
            return None;
        };
        let refused = Err(failure);
        let brought = Brought { tree: Some(&refused), ..brought };
        let verdict = sight.judge(inbox, event, stat, orders, brought.mount(), brought.asker);
        note.site = sight.names().site();
        conclude(inbox, orders, event, brought, note, verdict)
    }

    /// Learns the files that are denied for the first time. Before the answer: the opener's next step may be to open the
    /// file by another name.
    fn learn(&mut self) {
        let mut from = 0;
        for (at, note) in self.batch.notes.iter().enumerate() {
            let denied = &self.batch.denied[from..note.denied_to];
            from = note.denied_to;
            if let Some(site) = note.site
                && !denied.is_empty()
            {
                self.inbox.learn_open(at, note.stat, site, denied, &self.orders);
            }
        }
    }

    /// Remembers what an event's line will show besides its path, which is the last in `shown`.
    fn note(&mut self, at: usize, site: Option<SiteId>, origin: Option<Origin>) {
        let event = &self.inbox.fresh[at];
        let watched = self.inbox.desk.watched.concerns(&self.orders.text);
        let wanted = if watched { Wanted::EVERYTHING } else { self.orders.wanted };
        let opener = (wanted != Wanted::default()).then(|| {
            let post = self.orders.post(site);
            let user = |ours| post.and_then(|post| post.anchor.user(ours));
            Opener { origin, ..Opener::look(event.pid, wanted, user) }
        });
        if let Some(note) = self.batch.notes.last_mut() {
            note.shown_to = self.batch.shown.len();
            note.opener = opener;
        }
    }

    /// Moves the events without a decision behind the answered ones, and from there to `held`.
    fn hold_back(&mut self) {
        let waiting = self.batch.decisions.iter().filter(|d| d.is_none()).count();
        if waiting == 0 {
            return;
        }
        let since = self.inbox.read_at;
        let mut at = 0;
        for (decision, note) in self.batch.decisions.iter().zip(&mut self.batch.notes) {
            match (decision, note.awaited) {
                (None, Some(awaited)) => {
                    let event = self.inbox.fresh.remove(at);
                    let queue = self.inbox.queue;
                    self.inbox.held.push(Held { event, queue, since, awaited, tree: note.tree.take() });
                }
                _ => at += 1,
            }
        }
    }

    /// After the answers: closes, counts, hands over lines. `fresh` holds the answered events only.
    fn account(&mut self) {
        let seconds = self.inbox.read_at.elapsed().as_secs_f64();
        let mut answered = 0;
        let mut shown_from = 0;
        let mut now = None;
        for ((decision, note), outcome) in
            self.batch.decisions.iter().zip(&mut self.batch.notes).zip(&self.batch.outcomes)
        {
            let shown = &self.batch.shown[shown_from..note.shown_to];
            shown_from = note.shown_to;
            let (Some(decision), Some(outcome)) = (decision, outcome) else { continue };
            // What was found out about a file long ago may no longer hold.
            if note.ignore && self.inbox.is_pending(answered) && seconds < lookup::DEADLINE.as_secs_f64() {
                self.inbox.ignore(answered, self.orders.events);
            }
            let event = &self.inbox.fresh[answered];
            answered += 1;
            match outcome {
                Outcome::Answered if !note.own => {
                    self.inbox.desk.metrics.answered(event.event, decision, seconds);
                    if decision.line {
                        let line = Line {
                            at: *now.get_or_insert_with(SystemTime::now),
                            text: self.orders.text.clone(),
                            decision: *decision,
                            event: event.event,
                            directory: note.stat.is_some_and(|stat| stat.is_directory()),
                            path: ShownPath::from_slice(shown),
                            container: self.orders.post(note.site).and_then(|post| post.container.clone()),
                            pid: event.pid,
                            opener: note.opener.take(),
                        };
                        if self.inbox.desk.lines.try_send(line).is_err() {
                            self.inbox.desk.metrics.line_dropped();
                        }
                    }
                }
                Outcome::Answered | Outcome::Gone => {}
                Outcome::Refused(errno) => {
                    self.inbox.desk.metrics.failed(Failure::AnswerRefused, 1);
                    tracing::error!(%errno, "the kernel refused an answer: an opener may be blocked");
                }
            }
        }
        self.inbox.close_answered(answered);
    }

    /// A process was looked at: judges the event that waited for it.
    fn identified(&mut self, ticket: u64, exceptions: &Arc<Exceptions>, found: Result<Found, Failure>) {
        // Not there: it was overdue, and is answered.
        let Some(at) = self.inbox.held.iter().position(|held| held.awaited == Awaited::Process(ticket)) else { return };
        let asker = match found {
            // Weighed by exceptions that are no longer in force: asked again, by those that are.
            Ok(_) if !Arc::ptr_eq(exceptions, &self.orders.exceptions) => Asker::Unasked,
            Ok(found) => Asker::Known(Known { who: found.who, agent: found.agent }),
            Err(failure) => Asker::Failed(failure),
        };
        self.release_one(at, asker, found.ok().and_then(|found| found.process.origin));
    }

    /// Judges the events whose lookup is overdue without it.
    fn expire(&mut self) {
        // Whoever waits for rules has the watchdog's deadline.
        self.give_up(|held| held.awaited != Awaited::Rules && held.since.elapsed() >= lookup::DEADLINE);
    }

    /// Judges events without what they wait for. They are told that both lookups failed, so none of them waits again.
    fn give_up(&mut self, those: impl Fn(&Held) -> bool) {
        let asker = Asker::Failed(Failure::LookupTimeout);
        while let Some(at) = self.inbox.held.iter().position(|held| held.tree.is_some() && those(held)) {
            self.release_one(at, asker, None);
        }
        self.release(those, Brought { tree: Some(&Err(Failure::LookupTimeout)), asker, origin: None });
    }

    fn release_one(&mut self, at: usize, asker: Asker, origin: Option<Origin>) {
        let held = self.inbox.held.swap_remove(at);
        self.inbox.read_at = held.since;
        self.inbox.queue = held.queue;
        self.inbox.fresh.push(held.event);
        self.judge_and_answer(Brought { tree: held.tree.as_ref(), asker, origin });
    }

    fn release(&mut self, ready: impl Fn(&Held) -> bool, brought: Brought<'_>) {
        // A batch is of one group, and bounded by what one writev takes. Events that were looked up are decided, so this
        // ends.
        while let Some(first) = self.inbox.held.iter().position(&ready) {
            self.inbox.queue = self.inbox.held[first].queue;
            let mut at = first;
            while at < self.inbox.held.len() && self.inbox.fresh.len() < BATCH {
                let held = &self.inbox.held[at];
                if held.queue == self.inbox.queue && ready(held) {
                    let held = self.inbox.held.swap_remove(at);
                    if self.inbox.fresh.is_empty() || held.since < self.inbox.read_at {
                        self.inbox.read_at = held.since;
                    }
                    self.inbox.fresh.push(held.event);
                } else {
                    at += 1;
                }
            }
            self.judge_and_answer(brought);
        }
    }

    /// Takes all marks away, answers what is queued, and ends.
    fn stop(&mut self) -> End {
        if !self.orders.armed {
            // They will not come.
            self.orders = Arc::new(Orders { armed: true, ..Orders::clone(&self.orders) });
        }
        if self.inbox.board.station.is_parked() {
            self.give_up(|_| true);
            self.inbox.board.station.set_stopped();
            return End::Stopped;
        }
        if let Err(error) = self.inbox.groups.flush() {
            tracing::error!(%error, "marks could not be removed; they go with the group");
        }
        for queue in [Queue::Wide, Queue::Near] {
            while let Ok(()) | Err(ReadError::Read(Errno::MFILE | Errno::NFILE)) = self.read(queue) {}
        }
        self.give_up(|_| true);
        self.inbox.board.station.set_stopped();
        End::Stopped
    }
}

/// How many of them are ready.
fn poll_now(awaited: &mut [PollFd<'_>]) -> Result<usize, Errno> {
    match poll(awaited, Some(&Timespec::default())) {
        Err(Errno::INTR) => Ok(0),
        polled => polled,
    }
}

/// Makes a decision of a verdict; `None`: the process has to be looked up first, and is being.
fn conclude(
    inbox: &Inbox,
    orders: &Orders,
    event: &PermissionEvent,
    brought: Brought<'_>,
    note: &mut Note,
    verdict: Verdict,
) -> Option<Decision> {
    let judge = &*orders.judge;
    let ask = match verdict {
        // Only the line depends on it: one without is better than none.
        Verdict::Decided(decision)
            if decision.line && brought.asker == Asker::Unasked && shows_origin(inbox, orders) =>
        {
            Ask { site: note.site, depends: Depends::NOTHING, agent: false, otherwise: decision }
        }
        Verdict::Decided(decision) => return Some(decision),
        Verdict::AskProcess(ask) => ask,
        // Asked for again after it failed, which no judge of ours does.
        Verdict::AskMount => return Some(judge.failed(Failure::UnknownMount)),
    };
    match ask_process(inbox, orders, event, &ask) {
        Ok(ticket) => {
            note.awaited = Some(Awaited::Process(ticket));
            note.tree = brought.tree.cloned();
            None
        }
        Err(Failure::LookupBusy) => Some(ask.otherwise),
        Err(_) if ask.depends.is_nothing() => Some(ask.otherwise),
        Err(failure) => Some(judge.failed(failure)),
    }
}

/// Whether a line says where its opener comes from.
fn shows_origin(inbox: &Inbox, orders: &Orders) -> bool {
    orders.wanted.origin || inbox.is_calm() && inbox.desk.watched.concerns(&orders.text)
}

/// Has the mount of an event looked up; the answer comes as [`Command::Mount`].
fn ask_mount(inbox: &Inbox, event: &PermissionEvent, stat: &Stat) -> Result<(), Failure> {
    // One lookup serves every event that waits for the same mount.
    if inbox.may_hold() && inbox.held.iter().any(|held| held.awaited == Awaited::Mount(stat.mount)) {
        return Ok(());
    }
    if !inbox.may_hold() {
        return Err(Failure::LookupBusy);
    }
    let mountinfo_id = look::mountinfo_id(event.file.as_fd()).map_err(|_| Failure::StatFailed)?;
    let reply = inbox.desk.replies.clone();
    inbox.desk.lookups.ask_mount(MountRequest {
        mount: stat.mount,
        mountinfo_id,
        pid: event.pid,
        since: inbox.read_at,
        reply,
    })
}

/// Has the process that asks looked at; the answer comes as [`Command::Process`], under the ticket.
fn ask_process(inbox: &Inbox, orders: &Orders, event: &PermissionEvent, ask: &Ask) -> Result<u64, Failure> {
    if !inbox.may_hold() {
        return Err(Failure::LookupBusy);
    }
    // Unique over all workers: a successor inherits what its predecessor has asked for.
    static TICKETS: AtomicU64 = AtomicU64::new(0);
    let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
    let file =
        if ask.depends.interpreter { Some(event.file.try_clone().map_err(|_| Failure::ProcessLookup)?) } else { None };
    inbox.desk.lookups.ask_process(ProcessRequest {
        ticket,
        pid: event.pid,
        depends: ask.depends,
        agents: inbox.desk.agents.clone().filter(|_| ask.agent),
        exceptions: orders.exceptions.clone(),
        anchor: orders.post(ask.site).map(|post| post.anchor.clone()),
        features: inbox.desk.features,
        file,
        since: inbox.read_at,
        reply: inbox.desk.replies.clone(),
    })?;
    Ok(ticket)
}

/// The answer to ourselves.
const OWN: Decision = Decision::ALLOW;

//! The events that were read and not yet answered: an obligation that survives the worker.
//!
//! Whatever happens to the thread that read an event, its opener gets an answer: a worker that panics leaves its inbox to
//! its successor, and an inbox that is dropped answers what is left by the guard's failure policy. Dropping an event
//! without an answer would block its opener for ever, and its number would be given to the next event, which would then
//! get an answer that was meant for this one.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FileType;

use super::board::{Board, MOST_HELD, Posted, millis, nanos};
use super::groups::{Groups, Queue};
use super::judge::Judge;
use super::known::{KnownFiles, Learned, Lesson};
use super::site::SiteId;
use super::transfer::Outstanding;
use super::view::Tree;
use super::worker::{Desk, Gone, Orders};
use crate::fanotify::answer::{Answer, Outcome, answer_all};
use crate::fanotify::group::ReadReport;
use crate::fanotify::look::Stat;
use crate::fanotify::{self, MarkTarget, PermissionEvent, ReadError};
use crate::policy::{Decision, Events, Failure};

/// How long a file must have been unchanged before the kernel may answer for it.
const SETTLED: Duration = Duration::from_secs(2);

/// What an event waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// This mount.
    Mount(u64),
    /// Who asks; the ticket of the request.
    Process(u64),
    /// The first rules: the groups came with events in them.
    Rules,
}

/// An event that waits for a lookup.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) event: Posted,
    /// Which group asked.
    pub(super) queue: Queue,
    /// When it was read.
    pub(super) since: Instant,
    /// What is being looked up.
    pub(super) awaited: Awaited,
    /// What was looked up before: the mount that it came through.
    pub(super) tree: Option<Result<Arc<Tree>, Failure>>,
}

/// What was read and not answered.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) groups: Groups,
    /// Read, and to be judged now.
    pub(super) fresh: Vec<Posted>,
    /// Which group asked all of `fresh`.
    pub(super) queue: Queue,
    /// When `fresh` was read.
    pub(super) read_at: Instant,
    /// Waiting for a lookup.
    pub(super) held: Vec<Held>,
    /// Which of `fresh` is being judged: after a panic, the one that caused it.
    pub(super) judging: Option<usize>,
    pub(super) desk: Arc<Desk>,
    pub(super) judge: Arc<dyn Judge>,
    /// The files that a deny is known to reach. Here, since they too must outlive the worker.
    pub(super) known: KnownFiles,
    /// Whether the kernel may be told to answer for files that no rule denies.
    pub(super) ignoring: bool,
    pub(super) board: Board,
    /// Read, and not yet on the board.
    arrived: Vec<PermissionEvent>,
    /// What was learned since [`Inbox::begin_journal`], if it is to be told to another process.
    journal: Option<Vec<Learned>>,
    closing: Vec<OwnedFd>,
}

impl Inbox {
    pub(super) fn new(groups: Groups, desk: Arc<Desk>, judge: Arc<dyn Judge>) -> Inbox {
        let known = KnownFiles::of(desk.pool.clone());
        Inbox {
            groups,
            fresh: Vec::new(),
            queue: Queue::Wide,
            read_at: Instant::now(),
            held: Vec::new(),
            judging: None,
            desk,
            judge,
            known,
            ignoring: false,
            board: Board::new(),
            arrived: Vec::new(),
            journal: None,
            closing: Vec::new(),
        }
    }

    /// Takes over what another inbox still has to do, and what it knows.
    pub(super) fn take_over(&mut self, other: &mut Inbox) {
        self.read_at = other.read_at;
        self.queue = other.queue;
        // The watchdog knows the old one's.
        std::mem::swap(&mut self.board, &mut other.board);
        self.arrived.append(&mut other.arrived);
        self.fresh.append(&mut other.fresh);
        self.held.append(&mut other.held);
        self.known = std::mem::take(&mut other.known);
        self.ignoring = other.ignoring;
        self.journal = other.journal.take();
        // If it died of reading, that read ends here.
        self.publish();
    }

    /// Reads a batch from one group. `fresh` must be empty, or of that group.
    pub(super) fn read(&mut self, queue: Queue) -> Result<ReadReport, ReadError> {
        self.queue = queue;
        self.board.buffer.clear();
        self.board.station.phase.begin_read(queue == Queue::Near, nanos(Instant::now()));
        // With SeqCst one of the two sees the other: the reader that it is parked, or whoever parks it that it reads.
        fence(Ordering::SeqCst);
        let result = if self.board.station.is_parked() {
            Err(ReadError::Empty)
        } else {
            self.groups.of(queue).read(&mut self.board.buffer, &mut self.arrived)
        };
        self.read_at = Instant::now();
        self.publish();
        result
    }

    /// Lets others answer what has arrived, and ends the read.
    fn publish(&mut self) {
        let since = millis(self.read_at);
        for event in self.arrived.drain(..) {
            let own = self.desk.kin.has(event.pid);
            self.fresh.push(self.board.publish(event, self.queue, own, since));
        }
        self.board.station.phase.end_read(nanos(Instant::now()));
    }

    /// Whether a fresh event is still ours to judge: otherwise it was overdue, and is answered.
    pub(super) fn is_pending(&self, at: usize) -> bool {
        self.fresh.get(at).is_some_and(|event| self.board.is_pending(event))
    }

    /// Whether everything fresh may be held.
    pub(super) fn may_hold(&self) -> bool {
        self.held.len() + self.fresh.len() <= MOST_HELD
    }

    /// Whether there is no more than one event: then a lookup that no answer rests on makes none late.
    pub(super) fn is_calm(&self) -> bool {
        self.held.len() + self.fresh.len() <= 1
    }

    /// Writes the answers to `fresh[i]`, for each `Some` of `decisions`, in one go, and says by `outcomes` what
    /// became of each. Files stay open: [`Inbox::close_answered`].
    pub(super) fn answer(
        &mut self,
        decisions: &[Option<Decision>],
        answers: &mut Vec<Answer>,
        outcomes: &mut Vec<Option<Outcome>>,
    ) {
        answers.clear();
        outcomes.clear();
        let group = self.groups.of(self.queue);
        let audits = group.audits();
        for (event, decision) in self.fresh.iter().zip(decisions) {
            if let Some(decision) = decision {
                answers.push(Answer::new(event.file.as_raw_fd(), decision.response, decision.audit && audits));
            }
        }
        outcomes.extend(decisions.iter().map(|_| None));
        let mut slots = outcomes.iter_mut().zip(decisions).filter(|(_, d)| d.is_some()).map(|(slot, _)| slot);
        answer_all(&mut &*group, answers, |_, outcome| {
            if let Some(slot) = slots.next() {
                *slot = Some(outcome);
            }
        });
    }

    /// Closes the files of the first `count` fresh events, which have been answered.
    pub(super) fn close_answered(&mut self, count: usize) {
        for event in self.fresh.drain(..count) {
            self.board.withdraw(event, &mut self.closing);
        }
        self.tidy();
    }

    /// Closes what can be closed.
    pub(super) fn tidy(&mut self) {
        self.board.tidy(&mut self.closing);
        fanotify::close(&mut self.closing);
    }

    /// Answers the event that a worker died of, and keeps the others for the next worker.
    pub(super) fn settle_after_panic(&mut self) {
        let Some(culprit) = self.judging.take().filter(|at| *at < self.fresh.len()) else { return };
        if let Some(event) = self.fresh.get(culprit) {
            self.settle(event, self.queue, Failure::WorkerPanicked, self.read_at);
        }
        let event = self.fresh.remove(culprit);
        self.board.withdraw(event, &mut self.closing);
        self.tidy();
    }

    /// Learns that a file bears a denied name.
    pub(super) fn learn(&mut self, file: &Learned) -> Lesson {
        let lesson = self.known.learn(file.inode, file.fingerprint, file.site, &file.name);
        match lesson {
            Lesson::New => {
                self.desk.metrics.identities(self.known.len(), self.known.bytes());
                if let Some(journal) = &mut self.journal {
                    journal.push(file.clone());
                }
            }
            Lesson::Known => {}
            Lesson::Full => self.desk.metrics.identity_dropped(),
        }
        lesson
    }

    /// What is known, at most so much of it, for another process.
    pub(super) fn tell(&self, most: usize) -> Vec<Learned> {
        self.known.iter().take(most).collect()
    }

    /// What is learned from now on is told by [`Inbox::take_journal`]. It grows until then.
    pub(super) fn begin_journal(&mut self) {
        self.journal = Some(Vec::new());
    }

    /// What was learned since [`Inbox::begin_journal`].
    pub(super) fn take_journal(&mut self) -> Vec<Learned> {
        self.journal.take().unwrap_or_default()
    }

    /// Whether nothing that was read is left to be answered or closed.
    pub(super) fn is_settled(&self) -> bool {
        self.fresh.is_empty() && self.held.is_empty() && self.arrived.is_empty() && !self.board.lingers()
    }

    /// Learns a file that is denied by name for the first time. If the kernel answers for it under another name, it stops.
    pub(super) fn learn_open(&mut self, at: usize, stat: Option<Stat>, site: SiteId, name: &[u8], orders: &Orders) {
        let (Some(stat), Some(event)) = (stat, self.fresh.get(at)) else { return };
        let fingerprint = self.desk.fingerprint(event.file.as_fd());
        // ENOENT, as nearly always: it was never ignored.
        let _not_ignored = self.groups.wide.heed_file(orders.events, event.file.as_fd());
        if orders.near_only {
            // So that it is asked about by another name too, at once; the keeper, told by its watch, comes later. A
            // refusal leaves it to the keeper, which says so.
            let _left_to_the_keeper = self.groups.near.mark(MarkTarget::Inode, orders.events, event.file.as_fd());
        }
        self.learn(&Learned { inode: stat.inode, fingerprint, site, name: name.into() });
    }

    /// Forgets what is known of the files of a container's own root, which has gone with it.
    pub(super) fn forget(&mut self, site: SiteId, gone: Gone) {
        self.known.retain(|inode, whose, _| {
            whose != site
                || match gone {
                    Gone::Root { major, minor } => (inode.major, inode.minor) != (major, minor),
                    Gone::All => false,
                }
        });
        self.desk.metrics.identities(self.known.len(), self.known.bytes());
    }

    /// Forgets names that no rule denies any more, if there are many: rules have changed.
    pub(super) fn make_room(&mut self) {
        if self.known.len() > KnownFiles::LIMIT / 2 {
            let judge = self.judge.clone();
            self.known.retain(|_, site, name| judge.denies(site, name, true) || judge.denies(site, name, false));
            self.desk.metrics.identities(self.known.len(), self.known.bytes());
        }
    }

    /// Whether a file is of a kind that the kernel may be told to answer for: a regular file with this one name, of which
    /// nothing is known, and that has been as it is for some seconds. What is being prepared aside, to be moved into a
    /// guarded place, is always fresher.
    pub(super) fn may_ignore(&self, stat: &Stat) -> bool {
        let age = |changed: SystemTime| SystemTime::now().duration_since(changed).unwrap_or_default();
        self.desk.features.ignore_marks
            && stat.file_type == FileType::RegularFile
            && stat.links == 1
            && !self.known.suspects(stat.inode)
            && age(stat.changed) >= SETTLED
    }

    /// Tells the kernel to answer for a file.
    pub(super) fn ignore(&self, at: usize, events: Events) {
        if let Some(event) = self.fresh.get(at) {
            // A refusal costs speed only.
            let _asked_again_then = self.groups.wide.ignore_file(events, event.file.as_fd());
        }
    }

    /// Answers everything fresh by failure policy.
    pub(super) fn settle_fresh(&mut self, failure: Failure) {
        for event in std::mem::take(&mut self.fresh) {
            self.settle(&event, self.queue, failure, self.read_at);
            self.board.withdraw(event, &mut self.closing);
        }
        self.tidy();
    }

    /// Answers by failure policy what another process has read from these groups: the numbers are that one's.
    pub(super) fn settle_for_another(&self, outstanding: &[Outstanding]) {
        for event in outstanding {
            let decision = if event.own { Decision::ALLOW } else { self.judge.failed(Failure::Deadline) };
            let group = if event.near { &self.groups.near } else { &self.groups.wide };
            let answer = Answer::new(event.number, decision.response, false);
            answer_all(&mut &*group, &[answer], |_, outcome| match outcome {
                Outcome::Answered if !event.own => self.desk.metrics.answered(event.event, &decision, 0.0),
                // Gone: that one was faster, or the opener was killed.
                Outcome::Answered | Outcome::Gone => {}
                Outcome::Refused(_) => self.desk.metrics.failed(Failure::AnswerRefused, 1),
            });
        }
    }

    /// Answers one event by failure policy. Its file is to be closed by the caller, afterwards.
    pub(super) fn settle(&self, event: &PermissionEvent, queue: Queue, failure: Failure, since: Instant) {
        let decision = self.judge.failed(failure);
        let answer = Answer::new(event.file.as_raw_fd(), decision.response, false);
        answer_all(&mut self.groups.of(queue), &[answer], |_, outcome| match outcome {
            Outcome::Answered => {
                self.desk.metrics.answered(event.event, &decision, since.elapsed().as_secs_f64());
            }
            Outcome::Gone => {}
            Outcome::Refused(errno) => {
                self.desk.metrics.failed(Failure::AnswerRefused, 1);
                tracing::error!(%errno, "the kernel refused an answer: an opener may be blocked");
            }
        });
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.publish();
        self.settle_fresh(Failure::WorkerPanicked);
        for held in std::mem::take(&mut self.held) {
            self.settle(&held.event, held.queue, Failure::LookupTimeout, held.since);
            self.board.withdraw(held.event, &mut self.closing);
        }
        self.tidy();
    }
}

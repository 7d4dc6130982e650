//! Answers in a worker's place: by failure policy, and never twice.
//!
//! What the worker has read is answered by the watchdog itself: writing an answer never blocks. What it has not read has to
//! be read first, and a read can hang (the kernel opens the file for us): that is a thread of its own, for each guard, and
//! another if that one hangs. It reads one event at a time, so that it takes no other into the trap with it.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::board::{Station, nanos};
use super::groups::{Groups, Queue};
use super::kin::Kin;
use super::slots::{Moment, Nanos, Post};
use crate::fanotify::answer::{Answer, Outcome, answer_all};
use crate::fanotify::group::ReadBuffer;
use crate::fanotify::{PermissionEvent, ReadError};
use crate::metrics::GuardMetrics;
use crate::policy::{Decision, Event, Failure};

/// How often a rescuer looks whether it is still wanted.
pub(super) const PULSE: Duration = Duration::from_millis(50);

/// Whose events are answered, and how.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) station: Arc<Station>,
    pub(super) groups: Groups,
    pub(super) metrics: GuardMetrics,
    pub(super) kin: Kin,
    /// Nobody is to be rescued here any more.
    pub(super) dismissed: AtomicBool,
}

impl Client {
    /// Answers one event, and counts it if it was ours to answer. `waited`: since it was read.
    fn answer(&self, post: Post, failure: Failure, waited: Duration) {
        let decision = if post.own { Decision::ALLOW } else { self.station.fallback(failure) };
        let queue = if post.near { Queue::Near } else { Queue::Wide };
        let Some(event) = Event::ALL.get(usize::from(post.kind)) else { return };
        let answer = Answer::new(post.number, decision.response, false);
        answer_all(&mut self.groups.of(queue), &[answer], |_, outcome| match outcome {
            Outcome::Answered if !post.own => self.metrics.answered(*event, &decision, waited.as_secs_f64()),
            // Gone: its worker was faster, or the opener was killed.
            Outcome::Answered | Outcome::Gone => {}
            Outcome::Refused(_) => self.metrics.failed(Failure::AnswerRefused, 1),
        });
    }

    /// Answers what has been waiting for too long with a worker that has read it, and told so.
    pub(super) fn answer_overdue(&self, now: Instant, deadline: Duration) {
        let limit = deadline.as_millis() as u64;
        self.station.slots.rescue(nanos(now) / 1_000_000, limit, |post, age| {
            self.answer(post, Failure::Deadline, Duration::from_millis(age));
        });
    }

    /// Answers what a read has brought of which its worker has told nobody.
    pub(super) fn answer_unpublished(&self, moment: Moment, near: bool, waited: Duration) {
        self.station.phase.scan(moment, || {
            for record in self.station.glimpse.records() {
                if let Some(event) = record.question().filter(|_| record.fd >= 0) {
                    let own = self.kin.has(record.pid);
                    let post = Post { number: record.fd, near, kind: event as u8, own };
                    self.answer(post, Failure::Deadline, waited);
                }
            }
        });
    }

    /// Whether something is queued that nobody has read.
    pub(super) fn has_unread(&self) -> bool {
        let mut fds = [PollFd::new(&self.groups.wide, PollFlags::IN), PollFd::new(&self.groups.near, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    fn wants_rescue(&self, stuck: Moment) -> bool {
        !self.dismissed.load(Ordering::Relaxed)
            && !self.station.is_parked()
            && (self.station.is_abandoned() || self.station.phase.now() == stuck)
    }
}

/// A thread that reads and answers for as long as a worker is where it was found stuck.
#[derive(Debug)]
pub(super) struct Rescuer {
    thread: JoinHandle<()>,
    /// When it began what it is at; 0: waiting.
    began: Arc<AtomicU64>,
}

impl Rescuer {
    /// # Errors
    /// The kernel's, when no thread can be had.
    pub(super) fn start(client: Arc<Client>, stuck: Moment) -> std::io::Result<Rescuer> {
        let began = Arc::new(AtomicU64::new(0));
        let clock = began.clone();
        let builder = std::thread::Builder::new().name("janus-rescue".into()).stack_size(super::STACK);
        let thread = builder.spawn(move || rescue(&client, stuck, &clock))?;
        Ok(Rescuer { thread, began })
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Whether it has been at one event for too long.
    pub(super) fn hangs(&self, now: Nanos) -> bool {
        let began = self.began.load(Ordering::Relaxed);
        began != 0 && now.saturating_sub(began) > 2 * PULSE.as_nanos() as Nanos
    }

    /// Of one that has finished.
    pub(super) fn join(self) -> std::thread::Result<()> {
        self.thread.join()
    }
}

fn rescue(client: &Client, stuck: Moment, began: &AtomicU64) {
    let mut buffer = ReadBuffer::for_one();
    let mut events = Vec::with_capacity(1);
    let pulse = Timespec { tv_sec: 0, tv_nsec: PULSE.subsec_nanos().into() };
    while client.wants_rescue(stuck) {
        let mut found = false;
        for queue in [Queue::Wide, Queue::Near] {
            began.store(nanos(Instant::now()).max(1), Ordering::Relaxed);
            match client.groups.of(queue).read(&mut buffer, &mut events) {
                Ok(report) => {
                    found = true;
                    client.metrics.failed(Failure::EventFd, report.denied_by_kernel.into());
                }
                Err(ReadError::Empty) => {}
                // Another rescuer is no help either: whoever reads this group cannot.
                Err(ReadError::Record(_) | ReadError::Read(Errno::BADF | Errno::INVAL | Errno::FAULT)) => return,
                // The kernel has denied the event at the head.
                Err(ReadError::Read(_)) => {
                    found = true;
                    client.metrics.failed(Failure::ReadFailed, 1);
                }
            }
            for PermissionEvent { file, pid, event } in events.drain(..) {
                let own = client.kin.has(pid);
                let post = Post { number: file.as_raw_fd(), near: queue == Queue::Near, kind: event as u8, own };
                client.answer(post, Failure::WorkerStuck, Duration::ZERO);
                // Closed here, by whom it belongs to, after its answer.
                drop(file);
            }
        }
        began.store(0, Ordering::Relaxed);
        if !found {
            let mut fds =
                [PollFd::new(&client.groups.wide, PollFlags::IN), PollFd::new(&client.groups.near, PollFlags::IN)];
            // A failure (EINTR, ENOMEM) is as good as nothing there: it is asked again.
            let _asked_again = poll(&mut fds, Some(&pulse));
        }
    }
}

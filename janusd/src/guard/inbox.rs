//! The events that were read and not yet answered: an obligation that survives the worker.
//!
//! Whatever happens to the thread that read an event, its opener gets an answer: a worker that panics leaves its inbox to
//! its successor, and an inbox that is dropped answers what is left by the guard's failure policy. Dropping an event
//! without an answer would block its opener for ever, and its number would be given to the next event, which would then
//! get an answer that was meant for this one.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::judge::Judge;
use super::worker::Desk;
use crate::fanotify::answer::{Answer, Outcome, answer_all};
use crate::fanotify::{self, Group, PermissionEvent};
use crate::policy::{Decision, Failure};

/// An event that waits for a lookup.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) event: PermissionEvent,
    /// When it was read.
    pub(super) since: Instant,
    /// The mount that is being looked up.
    pub(super) mount: u64,
}

/// What was read and not answered.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) group: Group,
    /// Read, and to be judged now.
    pub(super) fresh: Vec<PermissionEvent>,
    /// When `fresh` was read.
    pub(super) read_at: Instant,
    /// Waiting for a lookup.
    pub(super) held: Vec<Held>,
    /// Which of `fresh` is being judged: after a panic, the one that caused it.
    pub(super) judging: Option<usize>,
    pub(super) desk: Arc<Desk>,
    pub(super) judge: Arc<dyn Judge>,
    closing: Vec<OwnedFd>,
}

impl Inbox {
    pub(super) fn new(group: Group, desk: Arc<Desk>, judge: Arc<dyn Judge>) -> Inbox {
        Inbox {
            group,
            fresh: Vec::new(),
            read_at: Instant::now(),
            held: Vec::new(),
            judging: None,
            desk,
            judge,
            closing: Vec::new(),
        }
    }

    /// Writes the answers to `fresh[i]`, for each `Some` of `decisions`, in one go, closes their files, and says by
    /// `outcomes` what became of each. Events without a decision stay.
    pub(super) fn answer(
        &mut self,
        decisions: &[Option<Decision>],
        answers: &mut Vec<Answer>,
        outcomes: &mut Vec<Option<Outcome>>,
    ) {
        answers.clear();
        outcomes.clear();
        let audits = self.group.audits();
        for (event, decision) in self.fresh.iter().zip(decisions) {
            if let Some(decision) = decision {
                answers.push(Answer::new(event.file.as_raw_fd(), decision.response, decision.audit && audits));
            }
        }
        outcomes.extend(decisions.iter().map(|_| None));
        let mut slots = outcomes.iter_mut().zip(decisions).filter(|(_, d)| d.is_some()).map(|(slot, _)| slot);
        answer_all(&mut &self.group, answers, |_, outcome| {
            if let Some(slot) = slots.next() {
                *slot = Some(outcome);
            }
        });
    }

    /// Closes the files of the first `count` fresh events, which have been answered.
    pub(super) fn close_answered(&mut self, count: usize) {
        self.closing.extend(self.fresh.drain(..count).map(|event| event.file));
        fanotify::close(&mut self.closing);
    }

    /// Answers the event that a worker died of, and keeps the others for the next worker.
    pub(super) fn settle_after_panic(&mut self) {
        let Some(culprit) = self.judging.take().filter(|at| *at < self.fresh.len()) else { return };
        let event = self.fresh.remove(culprit);
        self.settle(event, Failure::WorkerPanicked, self.read_at);
    }

    /// Answers one event by failure policy.
    pub(super) fn settle(&self, event: PermissionEvent, failure: Failure, since: Instant) {
        let decision = self.judge.failed(failure);
        let answer = Answer::new(event.file.as_raw_fd(), decision.response, false);
        answer_all(&mut &self.group, &[answer], |_, outcome| match outcome {
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
        for event in std::mem::take(&mut self.fresh) {
            self.settle(event, Failure::WorkerPanicked, self.read_at);
        }
        for held in std::mem::take(&mut self.held) {
            self.settle(held.event, Failure::LookupTimeout, held.since);
        }
    }
}

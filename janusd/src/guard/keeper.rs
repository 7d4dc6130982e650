//! The guard's second thread: surveys its root when it is armed, when its rules change and when the root changes, and
//! brings what it found to the worker.
//!
//! Order of an update: new marks are laid (events on them still judged by the old rules), the new rules are in force
//! (the worker has said so), marks that nobody wants any more are taken away. So at no moment is a file unguarded that
//! both the old and the new rules guard.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Wrapping;
use super::doorbell::{Mailbox, Speaker};
use super::groups::Groups;
use super::judge::{Judge, Ruling};
use super::known::Fingerprints;
use super::marks::Ledger;
use super::opener::Wanted;
use super::problem::{Problem, ProblemReason};
use super::survey::{Stopping, SurveyError, Surveyed, Surveyor};
use super::watch::{Change, Watcher};
use super::worker::{Command, Orders};
use crate::events::GuardText;
use crate::fanotify::Features;
use crate::metrics::{GuardMetrics, GuardState, MarkCounts};
use crate::policy::{Exceptions, GuardSpec};
use crate::root::Root;

/// After a change the root is surveyed at once; while changes go on, surveys take at most this share of the time: one
/// part in [`SHARE`].
const SHARE: u32 = 4;
/// And a change is never seen later than this.
const LATEST: Duration = Duration::from_secs(5);
/// A survey that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a worker may take to take orders. It takes them between two batches; a worker that is being restarted takes
/// them once it is back.
const OBEY: Duration = Duration::from_secs(10);

/// What a keeper is told.
pub(super) enum Errand {
    /// Enforce this; answers when it is in force.
    Update(Arc<GuardSpec>, Sender<Result<(), SurveyError>>),
    /// End. Marks stay for the worker to remove.
    Stop,
}

/// What is known of a guard, for whoever asks.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its state.
    pub state: GuardState,
    /// Its marks.
    pub marks: MarkCounts,
    /// What it cannot guard.
    pub problems: BTreeSet<Problem>,
}

pub(super) struct Keeper {
    pub(super) root: Root,
    pub(super) groups: Groups,
    pub(super) fingerprints: Fingerprints,
    pub(super) features: Features,
    pub(super) errands: Mailbox<Errand>,
    pub(super) worker: Speaker<Command>,
    pub(super) metrics: GuardMetrics,
    pub(super) report: Arc<Mutex<Report>>,
    pub(super) stopping: Stopping,
    pub(super) wants_everything: bool,
    pub(super) wrap: Wrapping,
    pub(super) ledger: Ledger,
    pub(super) watcher: Watcher,
    pub(super) spec: Arc<GuardSpec>,
    /// What the worker judges by, once armed.
    pub(super) ruling: Option<Arc<Ruling>>,
}

/// What wakes a keeper.
struct Woken {
    changes: Vec<Change>,
    mounts: bool,
    ended: bool,
}

impl Keeper {
    /// Runs until it is told to stop, then tells the worker: this thread may be listing a directory that its own group
    /// marks, so the worker must answer for as long as this thread lives.
    pub(super) fn keep(mut self) {
        while let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| self.run())) {
            let message = super::supervisor::panic_text(&*panic);
            tracing::error!(guard = %self.spec.name(), message, "a keeper panicked; it starts again");
            self.metrics.problem(ProblemReason::KeeperPanicked.word());
            std::thread::park_timeout(LATEST);
        }
        // The worker has ended before us only if it was told to.
        let _gone = self.worker.send(Command::Stop);
    }

    fn run(&mut self) {
        // Holds the mount namespace: closed as soon as the root's process has ended.
        let mut mountinfo = File::open(self.root.mountinfo_path()).ok();
        // Something has changed that only a survey can see to.
        let mut stale = false;
        let mut not_before = Instant::now();
        let mut ended = false;
        loop {
            let due = (stale && !ended).then_some(not_before);
            let woken = self.wait(mountinfo.as_ref(), due, ended);
            self.errands.quiet();
            loop {
                match self.errands.take() {
                    Ok(Some(Errand::Update(spec, answer))) => {
                        let before = std::mem::replace(&mut self.spec, spec);
                        let result = self.arm(true);
                        stale = result.is_err();
                        if stale {
                            self.spec = before;
                        }
                        // Whoever asked has gone; the guard stands as it is.
                        let _gone = answer.send(result);
                    }
                    Ok(None) => break,
                    Ok(Some(Errand::Stop)) | Err(_) => return,
                }
            }
            if woken.ended && !ended {
                ended = true;
                mountinfo = None;
                let detail = "the process whose root is guarded has ended; marks that outlive it still hold";
                self.root_is_unreachable(detail.to_owned());
            }
            if ended {
                continue;
            }
            stale |= woken.mounts | woken.changes.contains(&Change::Survey);
            let appeared = woken.changes.into_iter().filter_map(|change| match change {
                Change::Survey => None,
                Change::Appeared(path) => Some(path),
            });
            let appeared: Vec<_> = appeared.collect();
            if !appeared.is_empty() {
                stale |= self.extend(&appeared).is_err();
            }
            if stale && not_before <= Instant::now() {
                let started = Instant::now();
                stale = self.survey_again();
                let rest = if stale { AGAIN } else { (started.elapsed() * (SHARE - 1)).min(LATEST) };
                not_before = Instant::now() + rest;
            }
        }
    }

    fn wait(&mut self, mountinfo: Option<&File>, due: Option<Instant>, ended: bool) -> Woken {
        let timeout = due.map(|due| {
            let left = due.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.errands.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.watcher.as_fd(), PollFlags::IN),
        ];
        let mut mountinfo_at = None;
        let mut process_at = None;
        if let Some(mountinfo) = mountinfo {
            mountinfo_at = Some(fds.len());
            fds.push(PollFd::new(mountinfo, PollFlags::PRI));
        }
        if let Root::Process { pidfd, .. } = &self.root
            && !ended
        {
            process_at = Some(fds.len());
            fds.push(PollFd::new(pidfd, PollFlags::IN));
        }
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Woken { changes: Vec::new(), mounts: false, ended: false };
        }
        let happened = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        let (mounts, ended) = (happened(mountinfo_at), happened(process_at));
        Woken { changes: self.watcher.take(), mounts, ended }
    }

    /// Surveys, brings the findings to the worker, takes away what is no longer wanted.
    fn arm(&mut self, rules_changed: bool) -> Result<(), SurveyError> {
        let spec = self.spec.clone();
        // What no rule denied may be denied from now on: the kernel asks about everything again, until the new rules are
        // in force.
        self.obey(|acknowledge| Command::Ignoring(false, acknowledge))?;
        self.groups.wide.flush_inodes().map_err(SurveyError::Flush)?;
        let found = self.survey(&spec)?;
        let text = Arc::new(GuardText::new(&spec, self.metrics.log_dropped()));
        let wanted = if self.wants_everything { Wanted::EVERYTHING } else { text.wanted() };
        let mut judge: Arc<dyn Judge> = found.ruling.clone();
        if let Some(wrap) = &self.wrap.0 {
            judge = wrap(judge);
        }
        let exceptions = Arc::new(Exceptions::new(&spec));
        let orders = Arc::new(Orders {
            judge,
            text,
            wanted,
            events: spec.kernel_events(),
            by_handle: found.overlay,
            near_only: found.near_only,
            exceptions,
        });
        self.obey(|acknowledge| Command::Orders(orders, acknowledge))?;
        self.ruling = Some(found.ruling);
        let watches_lacking = self.surveyor().sweep(rules_changed)?;
        self.obey(|acknowledge| Command::Ignoring(true, acknowledge))?;
        let mut problems = found.problems;
        let mut note = |reason, detail: &str| {
            problems.insert(Problem { reason, rule: None, path: Vec::new(), detail: detail.to_owned() });
        };
        if watches_lacking {
            note(
                ProblemReason::WatchLimit,
                "fs.inotify.max_user_watches is reached: changes are noticed late or never",
            );
        }
        if spec.subjects().iter().any(|subject| subject.audit()) && !self.groups.audits() {
            note(
                ProblemReason::AuditUnavailable,
                "audit: true needs CONFIG_AUDIT and CAP_AUDIT_WRITE when the guard starts; answers are not audited",
            );
        }
        self.publish(problems);
        Ok(())
    }

    /// Tells the worker something, and waits until it has taken it.
    fn obey(&self, command: impl FnOnce(Sender<()>) -> Command) -> Result<(), SurveyError> {
        let (acknowledge, acknowledged) = bounded(1);
        self.worker.send(command(acknowledge)).map_err(|_| SurveyError::Stopped)?;
        let patience = Instant::now() + OBEY;
        loop {
            match acknowledged.recv_timeout(Duration::from_millis(50)) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) if self.stopping.now() => {
                    return Err(SurveyError::Stopped);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < patience => {}
                Err(_) => return Err(SurveyError::Unanswered),
            }
        }
    }

    fn survey(&mut self, spec: &GuardSpec) -> Result<Surveyed, SurveyError> {
        let worker = self.worker.clone();
        // The worker takes commands in order: what is learned here is known when the rules that follow are in force.
        let mut lessons = |files| {
            let _gone = worker.send(Command::Learn(files, None));
        };
        self.surveyor().survey(spec, &mut lessons)
    }

    fn extend(&mut self, appeared: &[Vec<u8>]) -> Result<(), SurveyError> {
        let Some(ruling) = self.ruling.clone() else { return Ok(()) };
        let spec = self.spec.clone();
        let worker = self.worker.clone();
        let mut lessons = |files| {
            let (acknowledge, acknowledged) = bounded(1);
            if worker.send(Command::Learn(files, Some(acknowledge))).is_ok() {
                // A worker that does not answer is being replaced; its successor finds the lesson in the mailbox.
                let _late = acknowledged.recv_timeout(OBEY);
            }
        };
        self.surveyor().extend(&spec, &ruling, appeared, &mut lessons)?;
        self.report.lock().marks = self.ledger.counts();
        Ok(())
    }

    /// Whether another survey is needed: this one failed.
    fn survey_again(&mut self) -> bool {
        match self.arm(false) {
            Ok(()) | Err(SurveyError::Stopped) => false,
            Err(error) => {
                self.root_is_unreachable(format!("{error}; what was in force stays"));
                true
            }
        }
    }

    fn root_is_unreachable(&self, detail: String) {
        let mut problems = self.report.lock().problems.clone();
        problems.insert(Problem { reason: ProblemReason::RootUnreachable, rule: None, path: Vec::new(), detail });
        self.publish(problems);
    }

    /// Says what is new, keeps the rest.
    fn publish(&self, problems: BTreeSet<Problem>) {
        let mut report = self.report.lock();
        for problem in problems.difference(&report.problems) {
            self.metrics.problem(problem.reason.word());
            let path = crate::line::escaped(&problem.path);
            let rule = problem.rule.map(|rule| rule.to_string()).unwrap_or_default();
            let (reason, detail, guard) = (problem.reason.word(), &problem.detail, self.spec.name().to_string());
            if problem.reason.degrades() {
                tracing::warn!(%guard, reason, rule, path, "not guarded: {detail}");
            } else {
                tracing::info!(%guard, reason, rule, path, "{detail}");
            }
        }
        let degraded = problems.iter().any(|problem| problem.reason.degrades());
        report.state = if degraded { GuardState::Degraded } else { GuardState::Guarding };
        report.marks = self.ledger.counts();
        report.problems = problems;
    }

    fn surveyor(&mut self) -> Surveyor<'_> {
        Surveyor {
            root: &self.root,
            groups: &self.groups,
            fingerprints: &self.fingerprints,
            features: &self.features,
            ledger: &mut self.ledger,
            watcher: &mut self.watcher,
            stopping: &self.stopping,
        }
    }
}

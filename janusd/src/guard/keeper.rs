//! The guard's second thread: surveys its roots when it is armed, when its rules change, when a container comes and when
//! a root changes, and brings what it found to the worker.
//!
//! Order of an update: new marks are laid (events on them still judged by the old rules), the new rules are in force
//! (the worker has said so), marks that nobody wants any more are taken away. So at no moment is a file unguarded that
//! both the old and the new rules guard.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Wrapping;
use super::answer::Answer;
use super::board::{Condition, Station};
use super::crew::{Crew, Hand};
use super::judge::{Judge, Ruling, Stance};
use super::marks::Ledger;
use super::opener::Wanted;
use super::problem::{Problem, ProblemReason};
use super::site::{Numbers, Offer, Site, SiteReport};
use super::standing::{OnNode, Standing};
use super::supervisor::Place;
use super::survey::{Stopping, SurveyError, Surveyed, Surveyor};
use super::transfer::Front;
use super::watch::{Change, Watches};
use super::worker::{Command, Gone, Orders};
use crate::doorbell::Mailbox;
use crate::events::{GuardText, Whose};
use crate::fanotify::Features;
use crate::metrics::{GuardMetrics, GuardState, MarkCounts};
use crate::policy::{Exceptions, GuardSpec, List};
use crate::process::look::Anchor;
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
/// How often an ending keeper looks whether its worker has ended, or is stuck.
const STOPPING: Duration = Duration::from_millis(1);
/// A start that was let go late is told of for as long: who asks every 30 seconds hears of it.
const LATE_TOLD: Duration = Duration::from_secs(90);
/// Of so many containers.
const MOST_LATE: usize = 16;
/// Workers of a guard that were replaced and have not come back: each keeps a thread and two groups.
const MOST_MISSING: usize = 4;

/// What a keeper is told.
pub(super) enum Errand {
    /// Enforce this; answers when it is in force.
    Update(Arc<GuardSpec>, Answer),
    /// These are the pod's containers; answers when those that are selected are guarded.
    Containers(Offer, Answer),
    /// A container's start was let go before the guard was in force there: tell of it.
    Late(LateStart),
    /// The worker's condition has changed, as the watchdog sees it.
    Worker,
    /// Change nothing until told to go on: another process is to do this one's work. Answers when that holds, with the
    /// numbers of the roots.
    Freeze(Sender<Numbers>),
    /// Go on.
    Thaw,
    /// Tell the numbers of the roots, and go on.
    Tell(Sender<Numbers>),
    /// Another process goes on reading the groups that this guard was given: have groups and marks of our own. Answers
    /// once those are laid.
    Anew(Sender<()>),
    /// End. Marks stay for the worker to remove.
    Stop,
}

/// A container that began before its guard was in force there, or was kept from beginning because it was not.
#[derive(Debug, Clone)]
pub struct LateStart {
    /// Its id.
    pub container: Arc<str>,
    /// What was done.
    pub detail: String,
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
    /// The roots that it guards.
    pub sites: Vec<SiteReport>,
    /// Containers that have been seen to, by id: those that it selects and that could be surveyed are guarded, the others
    /// are none of its business.
    pub seen_to: BTreeSet<Arc<str>>,
    /// Since when it changes nothing, because another process is to do its work.
    pub frozen: Option<Instant>,
}

pub(super) struct Keeper {
    pub(super) crew: Crew,
    /// The worker.
    pub(super) hand: Hand,
    /// Where others find the way to it.
    pub(super) door: Arc<Mutex<Front>>,
    /// What it was last told to judge by.
    pub(super) orders: Arc<Orders>,
    /// Lost ones whose marks are still laid.
    pub(super) replaced: Vec<Hand>,
    /// Lost ones that have not come back.
    pub(super) missing: Vec<Weak<Station>>,
    pub(super) features: Features,
    pub(super) errands: Mailbox<Errand>,
    pub(super) metrics: GuardMetrics,
    pub(super) report: Arc<Mutex<Report>>,
    pub(super) stopping: Stopping,
    pub(super) wants_everything: bool,
    pub(super) wrap: Wrapping,
    pub(super) spec: Arc<GuardSpec>,
    /// The pod, for lines.
    pub(super) whose: Option<Arc<Whose>>,
    /// There are agents of the node's that no guard denies.
    pub(super) agents: bool,
    /// The roots that are guarded.
    pub(super) standings: Vec<Standing>,
    /// The containers that the pod has; `None`: the guard is for one root. Shared with nobody but whoever goes through it:
    /// what panics over it must not lose it.
    pub(super) offered: Option<Arc<Offer>>,
    /// Where watches come from.
    pub(super) watches: Watches,
    /// Numbers of containers: one that starts again keeps its own.
    pub(super) numbers: Numbers,
    /// Containers that could not be entered.
    pub(super) outside: BTreeSet<Problem>,
    /// Something has changed that only a survey can see to.
    pub(super) stale: bool,
    /// The rules in force, while others are being put in their place.
    pub(super) before: Option<Arc<GuardSpec>>,
    /// Nothing is changed: another process is to do this one's work.
    pub(super) frozen: bool,
    /// The groups are another process's, and others are to be had; whoever waits for their marks.
    pub(super) anew: Option<Sender<()>>,
    /// Those are there, and bear no marks yet.
    pub(super) unmarked: Option<Sender<()>>,
    /// It has panicked, and nothing has been put in force since.
    pub(super) panicked: bool,
    /// Starts that were let go before the guard was in force, and until when they are told of.
    pub(super) late: Vec<(Instant, Problem)>,
}

/// What has happened to a root.
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
            // What it had taken from others, to put back, is put back by `resume`. Marks that it was about are laid again by
            // the next survey; those that it may have lost sight of are judged by no rule.
            self.panicked = true;
            std::thread::park_timeout(AGAIN);
        }
        self.bury_replaced();
        let mut told = Instant::now();
        // The worker has ended before us only if it was told to.
        let mut gone = self.hand.worker.send(Command::Stop).is_err();
        while self.hand.station.condition() == Condition::Well {
            if gone || self.hand.station.has_stopped() {
                return;
            }
            std::thread::park_timeout(STOPPING);
            if told.elapsed() > AGAIN {
                // It may have panicked over it, and its successor knows of nothing.
                told = Instant::now();
                gone = self.hand.worker.send(Command::Stop).is_err();
            }
        }
        // It does not hear that. What waits is answered by failure policy, and nothing more comes.
        if !self.hand.station.is_parked() {
            self.flush(&self.hand);
        }
        self.crew.shared.supervisor.give_up(self.hand.ward);
        self.hand.station.abandon();
    }

    /// After a panic: says so, and goes back to the rules that were in force.
    fn resume(&mut self) -> Instant {
        if let Some(before) = self.before.take() {
            self.spec = before;
        }
        self.stale = true;
        self.publish(false);
        Instant::now() + LATEST
    }

    fn run(&mut self) {
        let mut not_before = if self.panicked { self.resume() } else { Instant::now() };
        loop {
            let due =
                self.stale.then_some(not_before).into_iter().chain(self.late.iter().map(|(until, _)| *until)).min();
            let woken = if self.frozen { self.wait_frozen() } else { self.wait(due) };
            self.errands.quiet();
            loop {
                match self.errands.take() {
                    Ok(Some(Errand::Update(spec, answer))) => {
                        self.before = Some(std::mem::replace(&mut self.spec, spec));
                        self.select();
                        let result = self.arm(true);
                        self.stale = result.is_err() || self.lacks_something();
                        if let Some(before) = self.before.take().filter(|_| result.is_err()) {
                            self.spec = before;
                        }
                        answer.tell(result);
                    }
                    Ok(Some(Errand::Containers(offer, answer))) => {
                        self.offered = Some(Arc::new(offer));
                        if self.frozen {
                            self.stale = true;
                            answer.tell(Ok(()));
                            continue;
                        }
                        let result = if self.select() { self.arm(false) } else { self.post() };
                        self.stale |= result.is_err() || self.lacks_something();
                        answer.tell(result);
                    }
                    Ok(Some(Errand::Late(late))) => self.tell_late(late),
                    Ok(Some(Errand::Worker)) if self.frozen => {}
                    Ok(Some(Errand::Worker)) => self.stale |= self.see_to_worker().is_err(),
                    Ok(Some(Errand::Freeze(reply))) => {
                        // The kernel answers for no more files: other rules may be in force by the time it is asked again.
                        // A worker that does not obey does not share its groups either.
                        let _stuck = self.obey(|acknowledge| Command::Ignoring(false, acknowledge));
                        self.freeze(true);
                        let _gone = reply.send(self.numbers.clone());
                    }
                    Ok(Some(Errand::Tell(reply))) => {
                        let _gone = reply.send(self.numbers.clone());
                    }
                    Ok(Some(Errand::Thaw)) => {
                        self.freeze(false);
                        self.stale = true;
                    }
                    Ok(Some(Errand::Anew(reply))) => {
                        self.freeze(false);
                        (self.stale, self.anew) = (true, Some(reply));
                        not_before = Instant::now();
                    }
                    Ok(None) => break,
                    Ok(Some(Errand::Stop)) | Err(_) => return,
                }
            }
            if self.frozen {
                continue;
            }
            if self.late.iter().any(|(until, _)| *until <= Instant::now()) {
                self.late.retain(|(until, _)| *until > Instant::now());
                self.publish_late();
            }
            self.stale |= self.see_to(woken);
            if self.stale && not_before <= Instant::now() {
                let started = Instant::now();
                self.select();
                self.begin_anew();
                self.stale = self.survey_again() || self.anew.is_some();
                let rest = if self.stale { AGAIN } else { (started.elapsed() * (SHARE - 1)).min(LATEST) };
                not_before = Instant::now() + rest;
            }
        }
    }

    /// Waits for an errand.
    fn wait_frozen(&self) -> HashMap<Arc<str>, Woken> {
        let mut fds = [PollFd::from_borrowed_fd(self.errands.as_fd(), PollFlags::IN)];
        // A failure (EINTR) is as good as nothing there.
        let _asked_again = poll(&mut fds, None);
        HashMap::new()
    }

    /// Waits for something to happen, and says what has happened to which root.
    fn wait(&mut self, due: Option<Instant>) -> HashMap<Arc<str>, Woken> {
        let timeout = due.map(|due| {
            let left = due.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = vec![PollFd::from_borrowed_fd(self.errands.as_fd(), PollFlags::IN)];
        let mut at = Vec::new();
        for standing in &self.standings {
            fds.push(PollFd::from_borrowed_fd(standing.watcher.as_fd(), PollFlags::IN));
            let mountinfo_at = standing.mountinfo.as_ref().map(|mountinfo| {
                fds.push(PollFd::new(mountinfo, PollFlags::PRI));
                fds.len() - 1
            });
            let process_at = match &standing.root {
                Root::Process { pidfd, .. } if !standing.ended => {
                    fds.push(PollFd::new(pidfd, PollFlags::IN));
                    Some(fds.len() - 1)
                }
                _ => None,
            };
            at.push((mountinfo_at, process_at));
        }
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return HashMap::new();
        }
        let happened = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        let happened: Vec<_> =
            at.into_iter().map(|(mountinfo_at, process_at)| (happened(mountinfo_at), happened(process_at))).collect();
        let woken = self.standings.iter_mut().zip(happened).map(|(standing, (mounts, ended))| {
            (standing.id.clone(), Woken { changes: standing.watcher.take(), mounts, ended })
        });
        woken.collect()
    }

    /// Sees to what has happened. True when that takes a survey.
    fn see_to(&mut self, mut woken: HashMap<Arc<str>, Woken>) -> bool {
        let mut stale = false;
        let mut gone = Vec::new();
        for at in 0..self.standings.len() {
            let Some(Woken { changes, mounts, ended }) = woken.remove(&self.standings[at].id) else { continue };
            if ended && !self.standings[at].ended {
                self.standings[at].ended = true;
                self.standings[at].mountinfo = None;
                if self.offered.is_some() {
                    gone.push(self.standings[at].id.clone());
                } else {
                    let detail = "the process whose root is guarded has ended; marks that outlive it still hold";
                    self.root_is_unreachable(detail.to_owned());
                }
            }
            if self.standings[at].ended {
                continue;
            }
            stale |= mounts | changes.contains(&Change::Survey);
            let appeared = changes.into_iter().filter_map(|change| match change {
                Change::Survey => None,
                Change::Appeared(path) => Some(path),
            });
            let appeared: Vec<_> = appeared.collect();
            if !appeared.is_empty() {
                stale |= self.extend(at, &appeared).is_err();
            }
        }
        if let Some(offered) = self.offered.as_mut().and_then(Arc::get_mut).filter(|_| !gone.is_empty()) {
            offered.sites.retain(|site| !gone.contains(&site.id));
            self.select();
            stale |= self.post().is_err();
        }
        stale
    }

    /// Stands in the roots of the containers that the guard selects, and in no others. True when there is a new one.
    fn select(&mut self) -> bool {
        let Some(offered) = self.offered.clone() else { return false };
        let spec = self.spec.clone();
        let names = spec.containers();
        let selected = |site: &Site| {
            let named = |name: &Arc<str>| names.iter().any(|wanted| **wanted == **name);
            names.is_empty() || site.name.as_ref().is_none_or(named)
        };
        let leaving: Vec<Standing> = self
            .standings
            .extract_if(.., |standing| !offered.sites.iter().any(|site| site.id == standing.id && selected(site)))
            .collect();
        for standing in leaving {
            self.retire(standing);
        }
        let unreachable = offered.unreachable.iter().map(|(id, why)| Problem {
            reason: ProblemReason::RootUnreachable,
            rule: None,
            path: Vec::new(),
            detail: why.clone(),
            container: Some(id.clone()),
        });
        self.outside = unreachable.collect();
        let mut new = false;
        for site in offered.sites.iter().filter(|site| selected(site)) {
            if let Some(standing) = self.standings.iter_mut().find(|standing| standing.id == site.id) {
                if standing.name != site.name {
                    standing.name.clone_from(&site.name);
                    if let Some(name) = &site.name {
                        // It may have been here before, under its name: then it is that one again.
                        let number = *self.numbers.named.entry(name.clone()).or_insert(standing.site);
                        new |= number != standing.site;
                        standing.site = number;
                    }
                }
                continue;
            }
            let number = self.numbers.of(site);
            let entered = site.root.try_clone().and_then(|root| {
                let anchor = Anchor::of_container(root.try_clone()?, site.init)?;
                let watcher = self.watches.watcher()?;
                Ok(Standing::new(number, site.id.clone(), site.name.clone(), root, anchor, watcher))
            });
            match entered {
                Ok(standing) => {
                    self.standings.push(standing);
                    new = true;
                }
                Err(error) => {
                    self.outside.insert(Problem {
                        reason: ProblemReason::RootUnreachable,
                        rule: None,
                        path: Vec::new(),
                        detail: error.to_string(),
                        container: Some(site.name.clone().unwrap_or_else(|| site.id.clone())),
                    });
                }
            }
        }
        // Whoever asks meanwhile is told of what is not guarded yet.
        self.report.lock().sites = self.standings.iter().map(Standing::report).collect();
        new
    }

    /// Takes away the marks of a root that has gone. Whatever is left of them is judged by no rule.
    fn retire(&mut self, standing: Standing) {
        self.numbers.nameless.remove(&standing.id);
        let forgotten = match (&standing.name, standing.own_device) {
            (None, _) => Some(Gone::All),
            (Some(_), Some((major, minor))) => Some(Gone::Root { major, minor }),
            (Some(_), None) => None,
        };
        if let Some(gone) = forgotten {
            // A worker that has gone knows nothing any more.
            let _gone = self.hand.worker.send(Command::Forget(standing.site, gone));
        }
        if self.standings.is_empty() {
            if let Err(error) = self.hand.groups.flush() {
                tracing::warn!(guard = %self.spec.name(), %error, "marks of a container that has ended could not be removed");
            }
            return;
        }
        let others: Vec<_> = self.standings.iter().map(|other| &other.ledger).collect();
        let places = standing.rules.as_ref().map(|rules| rules.view.places.as_slice()).unwrap_or_default();
        let on_node = OnNode::new(places);
        standing.ledger.retire(&self.hand.groups, &self.features, &others, |path| on_node.find(path));
    }

    /// Surveys, brings the findings to the worker, takes away what is no longer wanted.
    fn arm(&mut self, rules_changed: bool) -> Result<(), SurveyError> {
        // What no rule denied may be denied from now on: the kernel asks about everything again, until the new rules are
        // in force.
        self.obey(|acknowledge| Command::Ignoring(false, acknowledge))?;
        self.hand.groups.wide.flush_inodes().map_err(SurveyError::Flush)?;
        for at in 0..self.standings.len() {
            match self.survey(at) {
                Ok(()) => {}
                Err(error @ SurveyError::Stopped) => return Err(error),
                // Of several roots one may be out of reach: the others are guarded all the same.
                Err(error) if self.offered.is_some() => {
                    let standing = &mut self.standings[at];
                    standing.in_force = false;
                    standing.problems.insert(unreachable(format!("{error}; what was in force stays")));
                }
                Err(error) => return Err(error),
            }
        }
        self.hand_over()?;
        let mut watches_lacking = false;
        for at in 0..self.standings.len() {
            if self.standings[at].in_force {
                let mut ledger = std::mem::take(&mut self.standings[at].ledger);
                let others: Vec<_> = self.standings.iter().map(|other| &other.ledger).collect();
                let standing = &self.standings[at];
                let root = match standing.root.open() {
                    Ok(root) => root,
                    // It has ended meanwhile, and will be retired.
                    Err(_) if self.offered.is_some() => {
                        self.standings[at].ledger = ledger;
                        continue;
                    }
                    Err(error) => {
                        self.standings[at].ledger = ledger;
                        return Err(error.into());
                    }
                };
                ledger.sweep(&self.hand.groups, root.as_fd(), &self.features, rules_changed, &others);
                drop(others);
                self.standings[at].ledger = ledger;
                watches_lacking |= self.standings[at].watcher.sweep();
            }
        }
        self.obey(|acknowledge| Command::Ignoring(true, acknowledge))?;
        self.bury_replaced();
        if let Some(told) = self.unmarked.take() {
            // Whoever waited has gone.
            let _gone = told.send(());
        }
        self.panicked = false;
        self.publish(watches_lacking);
        self.see_to_all();
        Ok(())
    }

    /// Everything that was offered is in force, or is not to be.
    fn see_to_all(&self) {
        let Some(offered) = &self.offered else { return };
        let ids = offered.sites.iter().map(|site| &site.id).chain(&offered.passed_over);
        self.report.lock().seen_to = ids.cloned().collect();
    }

    fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
        self.report.lock().frozen = frozen.then(Instant::now);
    }

    fn tell_late(&mut self, late: LateStart) {
        let problem = Problem {
            reason: ProblemReason::StartLate,
            rule: None,
            path: Vec::new(),
            detail: late.detail,
            container: Some(late.container),
        };
        if self.late.len() >= MOST_LATE {
            self.late.remove(0);
        }
        self.late.push((Instant::now() + LATE_TOLD, problem));
        self.publish_late();
    }

    fn publish_late(&self) {
        // A guard that is not in force yet says so when it is.
        let state = self.report.lock().state;
        if state != GuardState::Starting {
            self.publish(false);
        }
    }

    /// The watchdog has found the worker stuck, lost, or well again.
    fn see_to_worker(&mut self) -> Result<(), SurveyError> {
        let condition = self.hand.station.condition();
        if condition == Condition::Lost && !self.stopping.now() {
            return self.rebuild();
        }
        // A guard that is not in force yet says so when it is.
        let state = self.report.lock().state;
        if state != GuardState::Starting {
            self.publish(false);
        }
        Ok(())
    }

    /// Puts another worker in the place of one that is lost, with groups and marks of its own. The old groups go when the
    /// new marks are laid; until then, and for as long as anybody waits in them, they are answered by failure policy.
    fn rebuild(&mut self) -> Result<(), SurveyError> {
        self.missing.retain(|station| station.strong_count() > 0);
        if self.missing.len() >= MOST_MISSING {
            tracing::error!(guard = %self.spec.name(), "another worker is stuck, and too many were replaced already");
            return Ok(());
        }
        let place = Place::InsteadOf(self.hand.ward);
        let hand = match self.crew.hire(audits(&self.spec), self.orders.clone(), place) {
            Ok(hand) => hand,
            Err(error) => {
                // The watchdog reminds us.
                tracing::error!(guard = %self.spec.name(), %error, "a worker that is stuck could not be replaced");
                return Ok(());
            }
        };
        let lost = self.replace_hand(hand);
        self.metrics.worker_abandoned();
        self.missing.push(Arc::downgrade(&lost.station));
        self.replaced.push(lost);
        self.arm(false)
    }

    /// Has a worker on groups of our own, if the groups are another process's. Those are let go as they are: what is marked
    /// and who waits there is that one's business.
    fn begin_anew(&mut self) {
        let Some(reply) = self.anew.take() else { return };
        match self.crew.hire(audits(&self.spec), self.orders.clone(), Place::After(self.hand.ward)) {
            Ok(hand) => {
                let given = self.replace_hand(hand);
                self.crew.shared.supervisor.let_go(given.ward);
                self.unmarked = Some(reply);
            }
            Err(error) => {
                tracing::error!(guard = %self.spec.name(), %error, "no groups of its own yet: the guard is another janusd's");
                self.anew = Some(reply);
            }
        }
    }

    /// Puts this one in the place of the worker, which ends if it can. Its groups bear no marks yet.
    fn replace_hand(&mut self, hand: Hand) -> Hand {
        let before = std::mem::replace(&mut self.hand, hand);
        before.station.abandon();
        let (worker, station) = (self.hand.worker.clone(), self.hand.station.clone());
        let bell = std::mem::replace(&mut *self.door.lock(), Front { worker, station, bell: None }).bell;
        if let Some(bell) = bell {
            // Whoever has a share of the groups has one of those that are not read any more.
            bell.ring();
        }
        for standing in &mut self.standings {
            standing.ledger = Ledger::default();
        }
        before
    }

    /// Takes away the marks of workers that were replaced.
    fn bury_replaced(&mut self) {
        for lost in std::mem::take(&mut self.replaced) {
            self.flush(&lost);
            self.crew.shared.supervisor.bury(lost.ward);
        }
    }

    fn flush(&self, hand: &Hand) {
        if let Err(error) = hand.groups.flush() {
            tracing::error!(guard = %self.spec.name(), %error, "marks could not be removed; they go with the group");
        }
    }

    /// Brings what is known of the roots to the worker.
    fn hand_over(&mut self) -> Result<(), SurveyError> {
        let spec = &self.spec;
        let text = Arc::new(GuardText::new(spec, self.whose.clone(), self.metrics.log_dropped()));
        let wanted = if self.wants_everything { Wanted::EVERYTHING } else { text.wanted() };
        let stance = stance(spec, self.agents);
        let surveyed = || self.standings.iter().filter(|standing| standing.rules.is_some());
        let rules = surveyed().filter_map(|standing| standing.rules.clone()).collect();
        let mut judge: Arc<dyn Judge> = Arc::new(Ruling::new(rules, stance));
        if let Some(wrap) = &self.wrap.0 {
            judge = wrap(judge);
        }
        let orders = Arc::new(Orders {
            judge,
            text,
            wanted,
            armed: true,
            events: spec.kernel_events(),
            by_handle: surveyed().any(|standing| standing.overlay),
            near_only: surveyed().all(|standing| standing.near_only),
            exceptions: Arc::new(Exceptions::new(spec)),
            posts: surveyed().map(Standing::post).collect(),
        });
        self.orders = orders.clone();
        self.obey(|acknowledge| Command::Orders(orders, acknowledge))
    }

    /// The same roots, or fewer, perhaps by other names: no survey is needed.
    fn post(&mut self) -> Result<(), SurveyError> {
        self.hand_over()?;
        self.publish(false);
        self.see_to_all();
        Ok(())
    }

    /// Tells the worker something, and waits until it has taken it.
    fn obey(&self, command: impl FnOnce(Sender<()>) -> Command) -> Result<(), SurveyError> {
        let (acknowledge, acknowledged) = bounded(1);
        self.hand.worker.send(command(acknowledge)).map_err(|_| SurveyError::Stopped)?;
        obeyed(&acknowledged, &self.hand.station, &self.stopping)
    }

    fn survey(&mut self, at: usize) -> Result<(), SurveyError> {
        let worker = self.hand.worker.clone();
        let spec = self.spec.clone();
        // The worker takes commands in order: what is learned here is known when the rules that follow are in force.
        let mut lessons = |files| {
            let _gone = worker.send(Command::Learn(files, None));
        };
        let Surveyed { rules, problems, overlay, near_only, own_device } =
            self.surveyor(at).survey(&spec, &mut lessons)?;
        let standing = &mut self.standings[at];
        standing.rules = Some(rules);
        standing.problems = problems;
        (standing.overlay, standing.near_only, standing.own_device) = (overlay, near_only, own_device);
        standing.in_force = true;
        Ok(())
    }

    fn extend(&mut self, at: usize, appeared: &[Vec<u8>]) -> Result<(), SurveyError> {
        let Some(rules) = self.standings[at].rules.clone() else { return Ok(()) };
        let spec = self.spec.clone();
        let (worker, station, stopping) = (self.hand.worker.clone(), self.hand.station.clone(), self.stopping.clone());
        let mut lessons = |files| {
            let (acknowledge, acknowledged) = bounded(1);
            if worker.send(Command::Learn(files, Some(acknowledge))).is_ok() {
                // A worker that does not answer is being restarted, and its successor finds the lesson in the mailbox; or
                // it is lost, and then all is surveyed again.
                let _late = obeyed(&acknowledged, &station, &stopping);
            }
        };
        self.surveyor(at).extend(&spec, &rules, appeared, &mut lessons)?;
        self.report.lock().marks = self.marks();
        Ok(())
    }

    /// Whether another survey is needed: this one failed.
    fn survey_again(&mut self) -> bool {
        match self.arm(false) {
            Ok(()) => self.lacks_something(),
            Err(SurveyError::Stopped) => false,
            Err(error) => {
                self.root_is_unreachable(format!("{error}; what was in force stays"));
                true
            }
        }
    }

    /// Whether a container is there that could not be entered or surveyed: it is tried again.
    fn lacks_something(&self) -> bool {
        !self.outside.is_empty() || self.standings.iter().any(|standing| !standing.in_force && !standing.ended)
    }

    /// Of the one root of a guard without a cluster, or of all of them.
    fn root_is_unreachable(&mut self, detail: String) {
        for standing in &mut self.standings {
            standing.problems.insert(unreachable(detail.clone()));
        }
        self.publish(false);
    }

    fn problems(&self, watches_lacking: bool) -> BTreeSet<Problem> {
        let mut problems = self.outside.clone();
        // By its name, if that is known by now.
        problems.extend(self.late.iter().map(|(_, late)| {
            let label = self.standings.iter().find(|standing| Some(&standing.id) == late.container.as_ref());
            Problem { container: label.and_then(Standing::label).or_else(|| late.container.clone()), ..late.clone() }
        }));
        for standing in &self.standings {
            let label = standing.label();
            problems.extend(standing.problems.iter().cloned().map(|it| Problem { container: label.clone(), ..it }));
            if self.offered.is_some() && standing.name.is_none() && !self.spec.containers().is_empty() {
                problems.insert(Problem {
                    reason: ProblemReason::NameUnknown,
                    rule: None,
                    path: Vec::new(),
                    detail: "the container's name is not known yet; it is guarded".to_owned(),
                    container: label,
                });
            }
        }
        let mut note = |reason, detail: &str| {
            let detail = detail.to_owned();
            problems.insert(Problem { reason, rule: None, path: Vec::new(), detail, container: None });
        };
        if watches_lacking {
            note(
                ProblemReason::WatchLimit,
                "fs.inotify.max_user_watches is reached: changes are noticed late or never",
            );
        }
        if self.panicked {
            note(
                ProblemReason::KeeperPanicked,
                "the thread that surveys panicked: what was in force stays, and it starts again",
            );
        }
        if self.hand.station.condition() != Condition::Well {
            note(
                ProblemReason::WorkerStuck,
                "the thread that answers is stuck: failurePolicy is answered until it is back, or replaced",
            );
        }
        if audits(&self.spec) && !self.hand.groups.audits() {
            note(
                ProblemReason::AuditUnavailable,
                "audit: true needs CONFIG_AUDIT and CAP_AUDIT_WRITE when the guard starts; answers are not audited",
            );
        }
        problems
    }

    /// Says what is new, keeps the rest.
    fn publish(&self, watches_lacking: bool) {
        let problems = self.problems(watches_lacking);
        let mut report = self.report.lock();
        for problem in problems.difference(&report.problems) {
            self.metrics.problem(problem.reason.word());
            let path = crate::line::escaped(&problem.path);
            let rule = problem.rule.map(|rule| rule.to_string()).unwrap_or_default();
            let container = problem.container.as_deref().unwrap_or_default();
            let (reason, detail, guard) = (problem.reason.word(), &problem.detail, self.spec.name().to_string());
            if problem.reason.degrades() {
                tracing::warn!(%guard, container, reason, rule, path, "not guarded: {detail}");
            } else {
                tracing::info!(%guard, container, reason, rule, path, "{detail}");
            }
        }
        let degraded = problems.iter().any(|problem| problem.reason.degrades());
        report.state = if degraded { GuardState::Degraded } else { GuardState::Guarding };
        report.marks = self.marks();
        report.problems = problems;
        report.sites = self.standings.iter().map(Standing::report).collect();
    }

    fn marks(&self) -> MarkCounts {
        self.standings.iter().map(|standing| standing.ledger.counts()).fold(MarkCounts::default(), MarkCounts::plus)
    }

    fn surveyor(&mut self, at: usize) -> Surveyor<'_> {
        let standing = &mut self.standings[at];
        Surveyor {
            root: &standing.root,
            groups: &self.hand.groups,
            fingerprints: &self.crew.fingerprints,
            features: &self.features,
            ledger: &mut standing.ledger,
            watcher: &mut standing.watcher,
            stopping: &self.stopping,
            site: standing.site,
        }
    }
}

/// What is answered to what cannot be judged, and to whom nothing is denied.
pub(super) fn stance(spec: &GuardSpec, agents: bool) -> Stance {
    Stance {
        denies_something: spec.rules().any(|(rule, _)| rule.list == List::Deny),
        failure_policy: spec.failure_policy(),
        enforcement: spec.enforcement(),
        agents,
    }
}

/// Whether a guard's answers go to the kernel's audit log.
pub(super) fn audits(spec: &GuardSpec) -> bool {
    spec.subjects().iter().any(|subject| subject.audit())
}

/// Waits until a worker has done what it was told.
fn obeyed(acknowledged: &Receiver<()>, station: &Station, stopping: &Stopping) -> Result<(), SurveyError> {
    let patience = Instant::now() + OBEY;
    loop {
        match acknowledged.recv_timeout(Duration::from_millis(50)) {
            Ok(()) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if stopping.now() => return Err(SurveyError::Stopped),
            Err(RecvTimeoutError::Timeout) if station.condition() == Condition::Lost => {
                return Err(SurveyError::Unanswered);
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < patience => {}
            Err(_) => return Err(SurveyError::Unanswered),
        }
    }
}

fn unreachable(detail: String) -> Problem {
    Problem { reason: ProblemReason::RootUnreachable, rule: None, path: Vec::new(), detail, container: None }
}

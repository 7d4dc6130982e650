//! The thread that is asked whenever a runtime is executed.
//!
//! Answers first: what waits for nothing is answered before anything else is done about it. Nothing here blocks but the
//! poll.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::caller::{Caller, program_of};
use super::held::{Holds, Standing, Verdict};
use super::relief::{Board, Relief};
use super::roll::{Message, Roll};
use super::runtimes::{News, Runtimes};
use crate::container::scout::{Kept, Scout, Unbegun};
use crate::container::{Finder, PodUid, tick};
use crate::doorbell::Mailbox;
use crate::fanotify::answer::{Answer, Outcome, answer_all};
use crate::fanotify::group::ReadBuffer;
use crate::fanotify::{Features, Group, GroupError, PermissionEvent, ReadError};
use crate::metrics::{Metrics, Start};
use crate::policy::{FailurePolicy, Response};
use crate::root::Root;

/// How often the runtimes' programs are looked for: an upgrade puts others in their place.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// While a start is held, how often it is looked whether it may go: beside the bell, for guards that were tried again.
const REVIEW: Duration = Duration::from_millis(10);
/// Starts that are held at once; one more goes as if it were late. Each takes a descriptor.
const MOST_HELD: usize = 512;
/// Keepers of containers that were seen to execute a runtime.
const MOST_KEEPERS: usize = 4096;
/// Containers whose keepers were looked at.
const MOST_VOUCHED: usize = 16_384;
/// Ticks that a container may be younger than the marks without having been seen by them.
const MARGIN: u64 = 200;
/// By then a container has been made, and is kept by whoever keeps it...
const MADE: Duration = Duration::from_secs(2);
/// ... if its first process has been there for so many ticks.
const YOUNG: u64 = 100;
/// After so many panics it holds nothing any more.
const MOST_PANICS: u32 = 8;
/// How long one turn may take before others are let go in its place: going through the procfs of a large node takes a
/// fraction of it.
const TURN: Duration = Duration::from_secs(1);

/// How starts are held.
#[derive(Debug, Clone)]
pub struct Settings {
    /// No start is held longer.
    pub limit: Duration,
    /// More programs that are container runtimes.
    pub runtimes: Vec<PathBuf>,
}

/// No gate could be set up.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// No thread or descriptor.
    #[error("{0}")]
    Resource(#[from] std::io::Error),
}

/// Where guards are enrolled.
#[derive(Debug, Clone)]
pub struct Gate(Roll);

/// The threads, to be joined.
#[derive(Debug)]
pub struct GateThread {
    group: Group,
    roll: Roll,
    thread: JoinHandle<()>,
    relief: Relief,
}

impl Gate {
    /// Starts it: from here on the start of every runtime that is found is asked about.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn start(
        settings: &Settings,
        features: Features,
        finder: Finder,
        metrics: Arc<Metrics>,
    ) -> Result<(Gate, GateThread), GateError> {
        metrics.holds_starts();
        let (roll, mailbox) = Roll::new()?;
        let group = Group::new(&features, false)?;
        let board = Board::new();
        let relief = Relief::start(board.clone(), group.try_clone()?, TURN)?;
        let share = group.try_clone()?;
        let mut post = Post {
            group,
            features,
            mailbox,
            roll: roll.clone(),
            finder,
            metrics,
            board,
            scout: Scout::new(),
            runtimes: Runtimes::new(&settings.runtimes),
            looked: None,
            since: None,
            holds: Holds::new(settings.limit),
            fresh: Vec::new(),
            roots: BTreeMap::new(),
            keepers: BTreeMap::new(),
            vouched: HashSet::new(),
            unvouched: BTreeMap::new(),
            strangers: BTreeSet::new(),
            began: Instant::now(),
        };
        // Whoever starts it may go on as if it had always been there.
        post.look_for_runtimes();
        let thread = match std::thread::Builder::new().name("janus-gate".into()).spawn(move || post.keep()) {
            Ok(thread) => thread,
            Err(error) => {
                relief.end();
                return Err(error.into());
            }
        };
        Ok((Gate(roll.clone()), GateThread { group: share, roll, thread, relief }))
    }

    /// Where guards are enrolled.
    pub fn roll(&self) -> &Roll {
        &self.0
    }
}

impl GateThread {
    /// Its group, for whoever lets go of what is held should this process be stopped.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Ends it. What is held goes.
    pub fn end(self) {
        self.roll.send(Message::End);
        if self.thread.join().is_err() {
            tracing::error!("the gate of starts panicked");
        }
        self.relief.end();
    }
}

type Key = (PodUid, Arc<str>);

/// An execution of a runtime that is held.
struct Asking {
    event: PermissionEvent,
    /// It is about the containers that it waits for, or their pod. Otherwise it may be about anybody's, and is let go when
    /// one of those is given up: a pod must not deny what is done about others.
    may_be_denied: bool,
}

impl Asking {
    fn answered(self, response: Response) -> (PermissionEvent, Response) {
        (self.event, if self.may_be_denied { response } else { Response::Allow })
    }
}

struct Post {
    group: Group,
    features: Features,
    mailbox: Mailbox<Message>,
    roll: Roll,
    finder: Finder,
    metrics: Arc<Metrics>,
    board: Arc<Board>,
    scout: Scout,
    runtimes: Runtimes,
    /// When they were last looked for.
    looked: Option<Instant>,
    /// Since when one of them is gated, in ticks of the node's clock.
    since: Option<u64>,
    holds: Holds<Key, Asking>,
    /// Read, and neither answered nor held.
    fresh: Vec<PermissionEvent>,
    /// Of the containers that are waited for.
    roots: BTreeMap<Key, Root>,
    /// Who has had a runtime executed, and when last.
    keepers: BTreeMap<i32, Instant>,
    /// Containers that were looked at for who keeps them.
    vouched: HashSet<Key>,
    /// Pods that have something new, and when it is looked at for who keeps it.
    unvouched: BTreeMap<PodUid, Instant>,
    /// What keeps containers without executing a runtime that is gated.
    strangers: BTreeSet<String>,
    began: Instant,
}

impl Post {
    fn keep(mut self) {
        let mut panics = 0;
        while std::panic::catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
            panics += 1;
            self.let_all_go();
            self.let_the_forgotten_go();
            tracing::error!(panics, "the gate of starts panicked; what it held was let go");
            if panics >= MOST_PANICS {
                self.stand_down();
                return;
            }
        }
        // Others may have a share of the group for a moment longer.
        self.take_marks_away();
        self.let_all_go();
    }

    /// Holds nothing from here on, and waits for its end.
    fn stand_down(&mut self) {
        tracing::error!("the gate of starts is closed for good: containers may begin before their guards are in force");
        self.take_marks_away();
        loop {
            self.let_queued_go();
            self.wait(Some(LOOK_AGAIN));
            self.mailbox.quiet();
            loop {
                match self.mailbox.take() {
                    Ok(Some(Message::End)) | Err(_) => return,
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn run(&mut self) {
        loop {
            if self.board.rest() {
                // Whoever relieved it took its marks away.
                self.looked = None;
                self.let_queued_go();
            }
            let again = self.looked.map_or(Duration::ZERO, |looked| LOOK_AGAIN.saturating_sub(looked.elapsed()));
            let due = self.holds.due().map(|due| due.saturating_sub(self.now()).min(REVIEW));
            self.wait(due.into_iter().chain([again]).min());
            self.board.begin();
            if !self.hear() {
                return;
            }
            if !self.read() {
                continue;
            }
            self.judge();
            self.review();
            if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN) {
                self.look_for_runtimes();
                self.vouch_for_all();
            }
        }
    }

    fn wait(&self, timeout: Option<Duration>) {
        let timeout =
            timeout.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
        let mut fds = [
            PollFd::from_borrowed_fd(self.group.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.mailbox.as_fd(), PollFlags::IN),
        ];
        // EINTR: it is as if nothing had happened.
        let _asked_again = poll(&mut fds, timeout.as_ref());
    }

    /// Takes what it is told. False: it is to end.
    fn hear(&mut self) -> bool {
        self.mailbox.quiet();
        let mut enrolled = false;
        loop {
            match self.mailbox.take() {
                Ok(Some(Message::Enrolled)) => enrolled = true,
                Ok(Some(Message::Told(pod))) => {
                    self.unvouched.entry(pod).or_insert_with(|| Instant::now() + MADE);
                }
                Ok(None) => break,
                Ok(Some(Message::End)) | Err(_) => return false,
            }
        }
        if enrolled {
            let pods = self.roll.pods();
            self.scout.want(&pods);
            // Another guard may have come to a pod that was settled.
            pods.iter().for_each(|pod| self.scout.unsettle(pod));
            self.vouched.retain(|(pod, _)| pods.contains(pod));
        }
        true
    }

    /// Takes what is queued. False: that failed, and the gate is open for a while.
    fn read(&mut self) -> bool {
        let mut buffer = ReadBuffer::default();
        loop {
            let before = self.fresh.len();
            let read = self.group.read(&mut buffer, &mut self.fresh);
            buffer.clear();
            self.board.note(self.fresh[before..].iter().map(|event| event.file.as_raw_fd()));
            match read {
                Ok(report) => {
                    for _ in 0..report.denied_by_kernel {
                        self.metrics.start(Start::Failed);
                    }
                    if report.denied_by_kernel > 0 {
                        self.open_up("no descriptor for the start of a runtime, which the kernel has denied");
                        return false;
                    }
                }
                Err(ReadError::Empty) => return true,
                Err(error) => {
                    self.metrics.start(Start::Failed);
                    let why = match error {
                        ReadError::Read(Errno::MFILE | Errno::NFILE) => {
                            "RLIMIT_NOFILE or fs.file-max is reached, and the kernel has denied the start of a runtime"
                        }
                        _ => "the gate of starts cannot read",
                    };
                    tracing::error!(%error, "{why}");
                    self.open_up(why);
                    return false;
                }
            }
        }
    }

    /// A gate that cannot read must not gate: everything goes until the next look.
    fn open_up(&mut self, why: &str) {
        tracing::error!("{why}: starts are not held for {LOOK_AGAIN:?}");
        self.take_marks_away();
        self.let_all_go();
        self.looked = Some(Instant::now());
        self.runtimes.forget();
    }

    fn take_marks_away(&self) {
        if let Err(error) = self.group.flush_inodes() {
            tracing::error!(%error, "marks on runtimes could not be removed");
        }
    }

    /// Allows what is queued, what was read and what is held.
    fn let_all_go(&mut self) {
        let held = self.holds.take_all().into_iter().map(|asking| asking.event);
        let events: Vec<PermissionEvent> = held.chain(self.fresh.drain(..)).collect();
        self.answer(events.into_iter().map(|event| (event, Response::Allow)).collect());
        self.let_queued_go();
        self.roots.clear();
    }

    fn let_queued_go(&mut self) {
        let mut buffer = ReadBuffer::for_one();
        // Whatever it is that fails, it is not waited for: it ends with what is queued, or with the group.
        while self.group.read(&mut buffer, &mut self.fresh).is_ok() {
            buffer.clear();
        }
        let events = std::mem::take(&mut self.fresh);
        self.answer(events.into_iter().map(|event| (event, Response::Allow)).collect());
    }

    /// What was on its way through a turn that panicked is closed, and still waited for: what is read next may have its
    /// number, and goes as well.
    fn let_the_forgotten_go(&self) {
        let numbers = self.board.take();
        let answers: Vec<Answer> = numbers.iter().map(|number| Answer::new(*number, Response::Allow, false)).collect();
        answer_all(&mut &self.group, &answers, |_, _| {});
    }

    /// Writes answers, and closes what they were about. True for those that somebody waited for.
    fn answer(&self, events: Vec<(PermissionEvent, Response)>) -> Vec<bool> {
        let answers: Vec<Answer> =
            events.iter().map(|(event, response)| Answer::new(event.file.as_raw_fd(), *response, false)).collect();
        let mut waited = vec![false; answers.len()];
        answer_all(&mut &self.group, &answers, |at, outcome| {
            waited[at] = outcome == Outcome::Answered;
            if let Outcome::Refused(error) = outcome {
                tracing::error!(%error, "the kernel refused the answer to the start of a runtime");
            }
        });
        let numbers: Vec<RawFd> = events.iter().map(|(event, _)| event.file.as_raw_fd()).collect();
        // Before their descriptors are closed, and their numbers given out again.
        self.board.strike(&numbers);
        waited
    }

    /// Answers what need not wait, and holds the rest.
    fn judge(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let callers: Vec<Caller> = self.fresh.iter().map(|event| Caller::of(event.pid, event.file.as_fd())).collect();
        for keeper in callers.iter().filter_map(|caller| caller.keeper()) {
            self.keepers.insert(keeper, Instant::now());
        }
        // After the events were read: what was ready before them is seen.
        let starts = callers.iter().any(|caller| caller.keeper().is_some()) && !self.scout.is_idle();
        let roll = &self.roll;
        let settled = |pod: &PodUid, id: &str| roll.standing(pod, id) == Standing::Open;
        let unbegun = if starts { self.scout.look(settled) } else { Vec::new() };
        let now = self.began.elapsed();
        let (mut passed, mut beyond) = (Vec::new(), Vec::new());
        let mut hurried = BTreeSet::new();
        for (event, caller) in std::mem::take(&mut self.fresh).into_iter().zip(callers) {
            let about = || unbegun.iter().filter(|it| caller.may_start(it.parent));
            let keys: Vec<Key> = about().map(key).collect();
            let event = Asking { event, may_be_denied: caller.acts_for_one_pod() };
            if self.holds.len() >= MOST_HELD && !keys.is_empty() {
                let denies = |(pod, id): &Key| roll.standing(pod, id) == Standing::Waiting(FailurePolicy::Deny);
                let response = if keys.iter().any(denies) { Response::Deny } else { Response::Allow };
                beyond.push(event.answered(response));
                continue;
            }
            match self.holds.ask(event, keys.iter().cloned(), now) {
                Err(asking) => passed.push(asking.answered(Response::Allow)),
                Ok(()) => hurried.extend(keys),
            }
        }
        let count = passed.len();
        self.answer(passed);
        for _ in 0..count {
            self.metrics.start(Start::Passed);
        }
        for (_, response) in &beyond {
            self.metrics.start(Start::Late(*response, Duration::ZERO));
            tracing::warn!("more than {MOST_HELD} starts are held: another one was answered by failurePolicy");
        }
        self.answer(beyond);
        for (pod, _) in &hurried {
            self.finder.hurry(pod.clone());
        }
        for Unbegun { pod, id, root, .. } in unbegun {
            if hurried.contains(&(pod.clone(), id.clone())) {
                self.roots.entry((pod, id)).or_insert(root);
            }
        }
        if self.keepers.len() > MOST_KEEPERS {
            let mut times: Vec<Instant> = self.keepers.values().copied().collect();
            times.sort_unstable();
            let middle = times[times.len() / 2];
            self.keepers.retain(|_, last| *last > middle);
        }
    }

    /// Lets go of what may go.
    fn review(&mut self) {
        if self.holds.is_empty() {
            return;
        }
        let (roll, roots) = (&self.roll, &self.roots);
        let answered = self.holds.review(self.began.elapsed(), |key| {
            // It has ended: there is nothing to wait for.
            if roots.get(key).is_some_and(|root| !root.alive()) {
                return Standing::Open;
            }
            roll.standing(&key.0, &key.1)
        });
        if answered.is_empty() {
            return;
        }
        let (events, verdicts): (Vec<_>, Vec<_>) = answered.into_iter().unzip();
        let response = |verdict: &Verdict<Key>| match verdict {
            Verdict::Opened { .. } => Response::Allow,
            Verdict::Late { response, .. } => *response,
        };
        let answers: Vec<(PermissionEvent, Response)> =
            events.into_iter().zip(&verdicts).map(|(asking, verdict)| asking.answered(response(verdict))).collect();
        let responses: Vec<Response> = answers.iter().map(|(_, response)| *response).collect();
        let ours = self.answer(answers);
        let mut told = BTreeSet::new();
        for ((verdict, answered), ours) in verdicts.into_iter().zip(responses).zip(ours) {
            // Somebody else has let it go, or it has ended.
            let answered = if ours { answered } else { Response::Allow };
            match verdict {
                Verdict::Opened { waited } => {
                    self.metrics.start(Start::Held(waited));
                    tracing::debug!(microseconds = waited.as_micros(), "a start was held");
                }
                Verdict::Late { containers, waited, .. } => {
                    self.metrics.start(Start::Late(answered, waited));
                    for container in containers.into_iter().filter(|it| told.insert(it.clone())) {
                        self.tell_late(&container, answered, waited);
                    }
                }
            }
        }
        let waited_for = self.holds.waited_for();
        self.roots.retain(|key, _| waited_for.contains(key));
    }

    fn tell_late(&self, (pod, id): &Key, response: Response, waited: Duration) {
        let what = match response {
            Response::Allow => "it was let go, and has begun unguarded",
            Response::Deny => "it was denied",
        };
        let detail = format!("the guard was not in force when the container was to begin, {waited:.1?} later: {what}");
        let guards = self.roll.tell_late(pod, id, &detail);
        let guards: Vec<String> = guards.iter().map(ToString::to_string).collect();
        tracing::warn!(pod = pod.as_str(), container = %id, guards = guards.join(" "), "{detail}");
    }

    fn look_for_runtimes(&mut self) {
        let first = self.looked.is_none();
        self.looked = Some(Instant::now());
        for news in self.runtimes.look(&self.group, &self.features) {
            match news {
                News::Gated(path) => tracing::info!(runtime = %path.display(), "starts are held for guards"),
                News::NotGated(path, why) => {
                    tracing::warn!(runtime = %path.display(), why, "a container runtime cannot be gated");
                }
                News::Gone(path) => tracing::info!(runtime = %path.display(), "a container runtime is gone"),
            }
        }
        let gated = self.runtimes.gated();
        self.metrics.runtimes_gated(gated);
        if gated == 0 && (first || self.since.is_some()) {
            tracing::warn!(
                "no container runtime is found that can be gated: containers may begin before their guards are in \
                 force; --runtime names one"
            );
        }
        self.since = self.since.filter(|_| gated > 0).or_else(|| tick().filter(|_| gated > 0));
    }

    fn vouch_for_all(&mut self) {
        let now = Instant::now();
        let due: Vec<PodUid> = self.unvouched.extract_if(.., |_, due| *due <= now).map(|(pod, _)| pod).collect();
        for pod in due {
            self.vouch(&pod);
        }
    }

    /// Whoever keeps a container has had a runtime executed that is gated; or it is said that somebody has not.
    fn vouch(&mut self, pod: &PodUid) {
        if self.vouched.len() > MOST_VOUCHED {
            self.vouched.clear();
        }
        let now = tick().unwrap_or(u64::MAX);
        for Kept { id, parent, start } in self.scout.kept(pod) {
            if now.saturating_sub(start) < YOUNG {
                // Perhaps it is still being made, and its parent is the runtime.
                self.unvouched.insert(pod.clone(), Instant::now() + MADE);
                continue;
            }
            if !self.vouched.insert((pod.clone(), id.clone())) {
                continue;
            }
            let after = self.since.is_none_or(|since| start > since + MARGIN);
            // Adopted by the node's first process: by whom it was kept is not known any more.
            if !after || parent <= 1 || self.keepers.contains_key(&parent) {
                continue;
            }
            self.metrics.start(Start::Unwatched);
            let keeper = program_of(parent).unwrap_or_else(|| "?".to_owned());
            if self.strangers.insert(keeper.clone()) {
                tracing::warn!(
                    keeper,
                    pod = pod.as_str(),
                    container = %id,
                    "containers are started by a runtime that is not gated: they begin before their guards are in force; \
                     --runtime names its program"
                );
            }
        }
    }
}

fn key(unbegun: &Unbegun) -> Key {
    (unbegun.pod.clone(), unbegun.id.clone())
}

//! One guard on one root, or on the containers of one pod: one thread that answers, one that surveys, two fanotify groups.
//!
//! ```text
//!  manifest ──► keeper ──(orders, over a channel and an eventfd)──► worker ◄──► kernel
//!                 │  surveys the root, lays marks                     │  reads, judges, answers
//!                 └─ watches what its findings rest on                ├─► counters (atomics), lines (bounded queue)
//!                                                                     └─► lookup threads (foreign mounts, who asks)
//!  supervisor: starts and joins every worker, holds a share of every group
//!  watchdog: answers for a worker that is stuck, and has the keeper replace one that stays so
//! ```
//!
//! Where an event is read: [`worker`]. Where it is judged: [`judge`] (pure; rules in [`crate::policy`]). Where it is
//! answered: [`inbox`] by way of [`crate::fanotify::answer`]. What happens when one of these breaks: the inbox survives
//! its worker, the supervisor starts another, and [`crate::policy::Failure`] says what is answered meanwhile.

mod answer;
mod board;
mod crew;
mod groups;
mod inbox;
pub mod judge;
mod keeper;
pub mod kin;
pub mod known;
pub mod lookup;
mod marks;
mod mounts;
pub mod opener;
pub mod problem;
pub mod reach;
mod rescue;
mod sight;
pub mod site;
mod slots;
mod standing;
pub mod supervisor;
mod survey;
pub mod transfer;
pub mod view;
mod walk;
pub mod watch;
pub mod watchdog;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

pub use answer::Answer;
pub use keeper::{LateStart, Report};
pub use problem::{Problem, ProblemReason};
pub use site::{Numbers, Offer, Roots, Site, SiteId, SiteReport};
use survey::Stopping;
pub use survey::SurveyError;

use self::crew::Crew;
use self::judge::{Judge, Ruling, Unarmed, Wrap};
use self::keeper::{Errand, Keeper};
use self::kin::Kin;
use self::known::{Fingerprints, Pool};
use self::lookup::Lookups;
use self::opener::Wanted;
use self::standing::Standing;
use self::supervisor::{Place, Supervisor};
use self::transfer::{Estate, Front, Transfer};
use self::watch::Watches;
use self::watchdog::Watchdog;
use self::worker::{Command, Orders};
use crate::doorbell;
use crate::doorbell::Speaker;
use crate::events::relay::Watched;
use crate::events::{GuardText, Line, Whose};
use crate::fanotify::{Features, GroupError};
use crate::metrics::{GuardMetrics, GuardState, MarkCounts};
use crate::policy::{Exceptions, GuardSpec};
use crate::process::look::{Anchor, NodeAgents};

/// What the names of worker threads begin with.
pub const WORKER_PREFIX: &str = "jg-";

/// Stack of a guard's threads, bytes. What they were seen to touch of it, also under load: at most 16 KiB, 28 KiB in a
/// build for tests. Less than a huge page, so that no kernel gives one to each (with `transparent_hugepage=always` some
/// do: 2 MiB a thread).
const STACK: usize = 512 * 1024;

/// What all guards of a process share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// What the kernel can do.
    pub features: Features,
    /// Keeps workers alive.
    pub supervisor: Supervisor,
    /// Answers for those that are stuck.
    pub watchdog: Watchdog,
    /// Looks up foreign mounts, and who asks.
    pub lookups: Lookups,
    /// Tells what changes in the directories that rules rest on.
    pub watches: Watches,
    /// Where event lines go.
    pub lines: Sender<Line>,
    /// Event lines show everything (JSON), whatever their format asks.
    pub wants_everything: bool,
    /// What is known of files, by how much.
    pub known: Pool,
    /// Who watches lines: they show everything then, as far as that makes nothing late.
    pub watched: Watched,
    /// Set when the process ends: surveys are given up.
    pub stopping: Arc<AtomicBool>,
    /// Who is Janus.
    pub kin: Kin,
    /// The node's own agents, which no guard denies, if there are any.
    pub agents: Option<Arc<dyn NodeAgents>>,
    /// For tests of what happens when judging breaks; otherwise empty.
    pub wrap: Wrapping,
}

/// A judge to put around every guard's own, or none.
#[derive(Clone, Default)]
pub struct Wrapping(pub Option<Arc<Wrap>>);

impl std::fmt::Debug for Wrapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Wrapping(some)" } else { "Wrapping(none)" })
    }
}

/// A guard could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The root could not be surveyed.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// No thread or descriptor.
    #[error("{what}: {source}")]
    Resource {
        /// What could not be had.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// A guard in force. Dropped without [`Guard::stop`], its threads end by themselves and what waits is answered.
#[derive(Debug)]
pub struct Guard {
    errands: Speaker<Errand>,
    worker: Arc<Mutex<Front>>,
    fingerprints: Fingerprints,
    metrics: GuardMetrics,
    keeper: Option<JoinHandle<()>>,
    stopped: Receiver<()>,
    stopping: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
}

impl std::fmt::Debug for Errand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Errand::Update(..) => "Update",
            Errand::Containers(..) => "Containers",
            Errand::Late(_) => "Late",
            Errand::Worker => "Worker",
            Errand::Freeze(_) => "Freeze",
            Errand::Thaw => "Thaw",
            Errand::Tell(_) => "Tell",
            Errand::Anew(_) => "Anew",
            Errand::Stop => "Stop",
        })
    }
}

/// What to do once a guard has stopped, whether it was told to or not: called on the supervisor's thread, so it must not
/// block.
pub type Ended = Box<dyn FnOnce() + Send>;

impl Guard {
    /// Starts a guard; returns when it is in force. `whose`: the pod, if it is one's.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind then.
    pub fn start(
        spec: Arc<GuardSpec>,
        roots: Roots,
        whose: Option<Arc<Whose>>,
        metrics: GuardMetrics,
        shared: &Shared,
    ) -> Result<Guard, StartError> {
        let guard = Guard::launch(spec.clone(), roots, whose, metrics, shared, None, Box::new(|| {}))?;
        match guard.update(spec) {
            Ok(()) => Ok(guard),
            Err(error) => {
                guard.stop(Duration::from_secs(1));
                Err(error.into())
            }
        }
    }

    /// Starts a guard's threads, and waits for nothing: [`Guard::update_then`] with the same rules puts them in force.
    /// `ended` is called once it has stopped; also, perhaps, when this fails half-way. With an `estate` it stands ready to
    /// answer in another process's place, and does so once it is told ([`Transfer::take_up`]).
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind then.
    pub fn launch(
        spec: Arc<GuardSpec>,
        roots: Roots,
        whose: Option<Arc<Whose>>,
        metrics: GuardMetrics,
        shared: &Shared,
        estate: Option<Estate>,
        ended: Ended,
    ) -> Result<Guard, StartError> {
        let resource = |what| move |source| StartError::Resource { what, source };
        let (errands, errand_box) = doorbell::channel().map_err(resource("an eventfd"))?;
        let (standings, offered) = match roots {
            Roots::One(root) => {
                let anchor = Anchor::new(&root).map_err(resource("the container's first process"))?;
                let nameless = Arc::from("");
                let watcher = shared.watches.watcher().map_err(resource("an eventfd"))?;
                (vec![Standing::new(SiteId(0), nameless, None, root, anchor, watcher)], None)
            }
            Roots::Pod(offer) => (Vec::new(), Some(offer)),
        };

        let judge: Arc<dyn Judge> = match &estate {
            None => Arc::new(Unarmed),
            // Somebody may be waiting already: what cannot wait for the rules gets failure policy.
            Some(_) => Arc::new(Ruling::new(Vec::new(), keeper::stance(&spec, shared.agents.is_some()))),
        };
        let orders = Arc::new(Orders {
            judge,
            armed: estate.is_none(),
            text: Arc::new(GuardText::new(&spec, whose.clone(), metrics.log_dropped())),
            wanted: Wanted::default(),
            events: spec.kernel_events(),
            by_handle: false,
            near_only: false,
            exceptions: Arc::new(Exceptions::new(&spec)),
            posts: Vec::new(),
        });
        let (stopped_sender, stopped) = bounded(1);
        let ended: Ended = Box::new(move || {
            // Nobody waits for it.
            let _gone = stopped_sender.send(());
            ended();
        });
        let name = &spec.name().name;
        let crew = Crew {
            name: thread_name(WORKER_PREFIX, name),
            shared: shared.clone(),
            metrics: metrics.clone(),
            fingerprints: estate.as_ref().map(|estate| estate.fingerprints.clone()).unwrap_or_default(),
            keeper: errands.clone(),
        };
        let fingerprints = crew.fingerprints.clone();
        let place = Place::First(ended);
        let (hand, numbers) = match estate {
            None => (crew.hire(keeper::audits(&spec), orders.clone(), place)?, Numbers::default()),
            Some(Estate { groups, numbers, known, .. }) => {
                let hand = crew.hire_heir(groups, orders.clone(), place)?;
                // Before anything is judged: commands are taken in order.
                let _gone = hand.worker.send(Command::Learn(known, None));
                (hand, numbers)
            }
        };
        let worker =
            Arc::new(Mutex::new(Front { worker: hand.worker.clone(), station: hand.station.clone(), bell: None }));

        let report = Arc::new(Mutex::new(Report {
            state: GuardState::Starting,
            marks: MarkCounts::default(),
            problems: Default::default(),
            sites: Vec::new(),
            seen_to: Default::default(),
            frozen: None,
        }));
        let stopping = Arc::new(AtomicBool::new(false));
        let keeper = Keeper {
            crew,
            hand,
            door: worker.clone(),
            orders,
            replaced: Vec::new(),
            missing: Vec::new(),
            features: shared.features,
            errands: errand_box,
            metrics: metrics.clone(),
            report: report.clone(),
            stopping: Stopping { guard: stopping.clone(), process: shared.stopping.clone() },
            wants_everything: shared.wants_everything,
            wrap: shared.wrap.clone(),
            spec: spec.clone(),
            whose,
            agents: shared.agents.is_some(),
            standings,
            offered: offered.map(Arc::new),
            watches: shared.watches.clone(),
            numbers,
            frozen: false,
            outside: Default::default(),
            stale: false,
            before: None,
            anew: None,
            unmarked: None,
            panicked: false,
            late: Vec::new(),
        };
        let mut guard = Guard { errands, worker, fingerprints, metrics, keeper: None, stopped, stopping, report };
        let builder = std::thread::Builder::new().name(thread_name("jk-", name)).stack_size(STACK);
        let thread = builder.spawn(move || keeper.keep());
        match thread {
            Ok(thread) => {
                guard.keeper = Some(thread);
                Ok(guard)
            }
            Err(source) => {
                guard.stop(Duration::from_secs(1));
                Err(StartError::Resource { what: "a keeper thread", source })
            }
        }
    }

    /// Changes what is enforced, in place; returns when it is in force. What both specs guard is guarded throughout.
    ///
    /// # Errors
    /// [`SurveyError`]; the old rules stay in force then.
    pub fn update(&self, spec: Arc<GuardSpec>) -> Result<(), SurveyError> {
        answer::wait(|answer| self.update_then(spec, answer))
    }

    /// The same without waiting.
    pub fn update_then(&self, spec: Arc<GuardSpec>, answer: Answer) {
        // Gone: the answer goes with the errand, and says so.
        let _gone = self.errands.send(Errand::Update(spec, answer));
    }

    /// Says which containers the pod has now: all of them, selected or not. Returns when those that are selected are
    /// guarded, and the marks of those that have gone are taken away.
    ///
    /// # Errors
    /// [`SurveyError`]. A container that cannot be entered is none: it is a problem in the report, and tried again.
    pub fn containers(&self, offer: Offer) -> Result<(), SurveyError> {
        answer::wait(|answer| self.door().offer(offer, answer))
    }

    /// The way to say the same without waiting, for whoever finds containers.
    pub fn door(&self) -> Door {
        Door(self.errands.clone())
    }

    /// The way to bring it to another process, or to take it up from one.
    pub fn transfer(&self) -> Transfer {
        let (errands, worker) = (self.errands.clone(), self.worker.clone());
        Transfer::new(errands, worker, self.fingerprints.clone(), self.metrics.clone())
    }

    /// How it is.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// How it is, for whoever asks later.
    pub fn reports(&self) -> Arc<Mutex<Report>> {
        self.report.clone()
    }

    /// Asks it to stop; [`Guard::stop`] waits for that. Asking many first stops them side by side.
    pub fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Gone already: then so is what it would have stopped.
        let _gone = self.errands.send(Errand::Stop);
    }

    /// Stops it: marks are removed, what is queued is answered, threads are joined. False when that was not done within
    /// `patience`; what still waits is then answered by the kernel (allowed) when the process ends.
    pub fn stop(mut self, patience: Duration) -> bool {
        self.begin_stop();
        let deadline = Instant::now() + patience;
        match self.keeper.take() {
            Some(keeper) => {
                // The keeper goes first and tells the worker; one that hangs is left behind at half time.
                while !keeper.is_finished() && Instant::now() + patience / 2 < deadline {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                if !keeper.is_finished() {
                    let _gone = self.worker.lock().worker.send(Command::Stop);
                } else if keeper.join().is_err() {
                    tracing::error!("a keeper panicked");
                }
            }
            None => {
                let _gone = self.worker.lock().worker.send(Command::Stop);
            }
        }
        self.stopped.recv_deadline(deadline).is_ok()
    }
}

/// Takes word of a pod's containers to its guard.
#[derive(Debug, Clone)]
pub struct Door(Speaker<Errand>);

impl Door {
    /// Says which containers the pod has now: [`Guard::containers`] without waiting. Never blocks.
    pub fn offer(&self, offer: Offer, answer: Answer) {
        // Gone: the answer goes with the errand, and says so.
        let _gone = self.0.send(Errand::Containers(offer, answer));
    }

    /// Says that a container's start was let go before the guard was in force there. Never blocks.
    pub fn late(&self, late: LateStart) {
        // Gone: then there is no guard of which to tell it.
        let _gone = self.0.send(Errand::Late(late));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

/// The kernel keeps 15 bytes of a thread's name.
fn thread_name(prefix: &str, name: &str) -> String {
    prefix.chars().chain(name.chars()).take(15).collect()
}

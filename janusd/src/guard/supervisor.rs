//! Keeps workers alive.
//!
//! One thread for the process. It starts every worker, joins every worker, and holds a share of every group's
//! descriptor: were a dying worker's the last one, closing it would *allow* everything that waits. A worker that dies
//! leaves its inbox; the event that it died of is answered by failure policy, a successor judges the rest.
//!
//! Must never touch a guarded path, wait for a lock that a guard holds, or judge.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::Ended;
use super::groups::{Groups, Queue};
use super::inbox::Inbox;
use super::watchdog::Watch;
use super::worker::{End, Worker};
use crate::policy::Failure;

/// Restarts that come at once; beyond them each waits twice as long as the one before.
const FREE_RESTARTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// An opener waits while its worker is away, so this bounds how long.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// A worker that lived this long starts with a clean record.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

/// Names a guard among the supervisor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ward(u64);

enum Message {
    Adopt {
        ward: Ward,
        name: String,
        groups: Groups,
        worker: Box<Worker>,
        watch: Watch,
        place: Place,
        started: Sender<std::io::Result<()>>,
    },
    Bury(Ward),
    LetGo(Ward),
    GiveUp(Ward),
    Ended {
        ward: Ward,
        worker: Box<Worker>,
        how: How,
    },
}

/// Whose place a worker takes.
pub(super) enum Place {
    /// Nobody's. This is called once the guard has ended: once a worker was told to stop and has.
    First(Ended),
    /// A lost one's.
    InsteadOf(Ward),
    /// That of one whose groups are another process's.
    After(Ward),
}

enum How {
    End(End),
    Panicked(String),
}

/// The way to the supervisor thread.
#[derive(Debug, Clone)]
pub struct Supervisor {
    messages: Sender<Message>,
    next: Arc<std::sync::atomic::AtomicU64>,
}

/// The thread, to be joined.
#[derive(Debug)]
pub struct SupervisorThread(JoinHandle<usize>);

impl Supervisor {
    /// Starts the thread. It ends when every `Supervisor` is gone and every worker has ended.
    ///
    /// # Errors
    /// The kernel's, when no thread can be had.
    pub fn start() -> std::io::Result<(Supervisor, SupervisorThread)> {
        let (sender, messages) = unbounded();
        let (report, reports) = unbounded();
        let post = Post { guards: messages, report, reports, wards: HashMap::new(), resting: Vec::new() };
        let thread = std::thread::Builder::new().name("janus-super".into()).spawn(move || post.keep())?;
        Ok((Supervisor { messages: sender, next: Arc::default() }, SupervisorThread(thread)))
    }

    /// Starts a worker and keeps it alive.
    pub(super) fn adopt(
        &self,
        name: String,
        groups: Groups,
        worker: Worker,
        watch: Watch,
        place: Place,
    ) -> std::io::Result<Ward> {
        let ward = Ward(self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let (started, answer) = bounded(1);
        let adopt = Message::Adopt { ward, name, groups, worker: Box::new(worker), watch, place, started };
        let gone = || std::io::Error::other("the supervisor is gone");
        self.messages.send(adopt).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?.map(|()| ward)
    }

    /// Lets a replaced worker's groups go once nobody waits in them: their marks are gone. Its thread is joined if it ever
    /// comes back.
    pub(super) fn bury(&self, ward: Ward) {
        // Gone: then the process ends.
        let _gone = self.messages.send(Message::Bury(ward));
    }

    /// Lets a replaced worker's groups go at once: another process has them too, and sees to who waits in them.
    pub(super) fn let_go(&self, ward: Ward) {
        // Likewise.
        let _gone = self.messages.send(Message::LetGo(ward));
    }

    /// [`Supervisor::bury`] of a worker that nobody replaces: its guard ends.
    pub(super) fn give_up(&self, ward: Ward) {
        // Likewise.
        let _gone = self.messages.send(Message::GiveUp(ward));
    }
}

impl SupervisorThread {
    /// Waits for its end; drop every [`Supervisor`] first. False if a worker that is stuck had to be left behind, with what
    /// it holds: nobody may wait for that.
    pub fn join(self) -> bool {
        match self.0.join() {
            Ok(0) => true,
            Ok(left) => {
                tracing::error!(left, "workers that are stuck are left behind");
                false
            }
            Err(_) => {
                tracing::error!("the supervisor panicked");
                false
            }
        }
    }
}

struct Guarded {
    name: String,
    /// Keeps the group open while no worker does; `None`: nobody needs it any more.
    groups: Option<Groups>,
    watch: Option<Watch>,
    thread: Option<JoinHandle<()>>,
    ended: Option<Ended>,
    /// It was stuck: another has its place, or its guard has ended.
    abandoned: bool,
    started_at: Instant,
    restarts: u32,
}

struct Post {
    /// Guards to keep. Closed once nobody can send any more.
    guards: Receiver<Message>,
    /// Workers report here: a channel of their own, since its senders outlive the other's.
    report: Sender<Message>,
    reports: Receiver<Message>,
    wards: HashMap<Ward, Guarded>,
    /// Workers that wait for their restart.
    resting: Vec<(Instant, Ward, Box<Worker>)>,
}

impl Post {
    /// Gives the number of those that were stuck to the end.
    fn keep(mut self) -> usize {
        let mut open = true;
        while open || self.wards.values().any(|guarded| !guarded.abandoned) {
            let pause = self.resting.iter().map(|(due, ..)| due.saturating_duration_since(Instant::now())).min();
            let never = crossbeam_channel::never();
            let guards = if open { &self.guards } else { &never };
            let message = crossbeam_channel::select! {
                recv(guards) -> message => message.map_err(|_| RecvTimeoutError::Disconnected),
                recv(self.reports) -> message => message.map_err(|_| RecvTimeoutError::Disconnected),
                default(pause.unwrap_or(Duration::from_secs(3600))) => Err(RecvTimeoutError::Timeout),
            };
            match message {
                Ok(Message::Adopt { ward, name, groups, worker, watch, place, started }) => {
                    let guarded = Guarded {
                        name,
                        groups: Some(groups),
                        watch: Some(watch),
                        thread: None,
                        ended: None,
                        abandoned: false,
                        started_at: Instant::now(),
                        restarts: 0,
                    };
                    self.wards.insert(ward, guarded);
                    let result = self.launch(ward, worker).map_err(|(error, _)| error);
                    match &result {
                        Ok(()) => self.place(ward, place),
                        Err(_) => drop(self.wards.remove(&ward)),
                    }
                    // Whoever asked has gone: the worker runs, and will be told to stop or live on.
                    let _gone = started.send(result);
                }
                Ok(Message::Bury(ward)) => self.bury(ward, Watch::drain),
                Ok(Message::LetGo(ward)) => self.bury(ward, drop),
                Ok(Message::GiveUp(ward)) => {
                    let ended = self.abandon(ward);
                    self.bury(ward, Watch::drain);
                    if let Some(ended) = ended {
                        ended();
                    }
                }
                Ok(Message::Ended { ward, worker, how }) => self.ended(ward, worker, how),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            self.wake_rested();
        }
        self.wards.len()
    }

    fn place(&mut self, ward: Ward, place: Place) {
        let ended = match place {
            Place::First(ended) => Some(ended),
            Place::InsteadOf(lost) => self.abandon(lost),
            Place::After(other) => self.dismiss(other),
        };
        if let Some(guarded) = self.wards.get_mut(&ward) {
            guarded.ended = ended;
        }
    }

    /// [`Post::dismiss`] of one that is stuck.
    fn abandon(&mut self, ward: Ward) -> Option<Ended> {
        let guarded = self.wards.get(&ward)?;
        tracing::error!(guard = guarded.name, "a worker is stuck, and is left behind");
        self.dismiss(ward)
    }

    /// From now on nobody waits for this worker. Gives what is to be called when its guard ends.
    fn dismiss(&mut self, ward: Ward) -> Option<Ended> {
        let guarded = self.wards.get_mut(&ward)?;
        guarded.abandoned = true;
        guarded.ended.take()
    }

    fn bury(&mut self, ward: Ward, leave: impl FnOnce(Watch)) {
        let Some(guarded) = self.wards.get_mut(&ward) else { return };
        guarded.groups = None;
        if let Some(watch) = guarded.watch.take() {
            leave(watch);
        }
        if guarded.thread.is_none() {
            self.wards.remove(&ward);
        }
    }

    fn launch(&mut self, ward: Ward, worker: Box<Worker>) -> Result<(), (std::io::Error, Option<Box<Worker>>)> {
        let Some(guarded) = self.wards.get_mut(&ward) else { return Ok(()) };
        let report = self.report.clone();
        // The worker goes through a channel, so that it is not lost when no thread can be had.
        let (hand, take) = bounded::<Box<Worker>>(1);
        let thread = std::thread::Builder::new().name(guarded.name.clone()).stack_size(super::STACK).spawn(move || {
            let Ok(mut worker) = take.recv() else { return };
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| worker.run()));
            let how = match outcome {
                Ok(end) => How::End(end),
                Err(panic) => How::Panicked(panic_text(&*panic)),
            };
            // Fails only if the supervisor is gone, and then the inbox answers as it drops.
            let _gone = report.send(Message::Ended { ward, worker, how });
        });
        match thread {
            Ok(thread) => {
                guarded.thread = Some(thread);
                guarded.started_at = Instant::now();
                hand.send(worker).map_err(|lost| (std::io::Error::other("worker thread ended at once"), Some(lost.0)))
            }
            Err(error) => Err((error, Some(worker))),
        }
    }

    fn ended(&mut self, ward: Ward, mut worker: Box<Worker>, how: How) {
        let Some(guarded) = self.wards.get_mut(&ward) else { return };
        if let Some(thread) = guarded.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(guard = guarded.name, "a worker panicked outside of its own handling");
        }
        if guarded.abandoned {
            tracing::info!(guard = guarded.name, "a worker that was left behind has come back, and ended");
            drop(worker);
            if guarded.groups.is_none() {
                self.wards.remove(&ward);
            }
            return;
        }
        match how {
            // Told to the supervisor first, and seen above.
            How::End(End::Abandoned) => {}
            How::End(End::Stopped) => {
                // Inbox first (answers what is left), then the group's last descriptor.
                drop(worker);
                if let Some(guarded) = self.wards.remove(&ward) {
                    drop(guarded.groups);
                    if let Some(watch) = guarded.watch {
                        watch.end();
                    }
                    if let Some(ended) = guarded.ended {
                        ended();
                    }
                }
                return;
            }
            How::End(End::GroupLost(errno)) => {
                tracing::error!(guard = guarded.name, %errno, "the group could not be read; its worker starts again");
            }
            How::End(End::Misread(error)) => {
                tracing::error!(guard = guarded.name, %error, "the group was misread; its worker starts again");
            }
            How::Panicked(message) => {
                tracing::error!(guard = guarded.name, message, "a worker panicked; its successor takes over");
            }
        }
        worker.inbox.settle_after_panic();
        worker.inbox.desk.metrics.worker_restarted();
        if guarded.started_at.elapsed() > FORGIVEN_AFTER {
            guarded.restarts = 0;
        }
        guarded.restarts += 1;
        let pause = match guarded.restarts.checked_sub(FREE_RESTARTS + 1) {
            None => Duration::ZERO,
            Some(beyond) => FIRST_PAUSE.saturating_mul(1 << beyond.min(8)).min(LONGEST_PAUSE),
        };
        self.resting.push((Instant::now() + pause, ward, worker));
    }

    fn wake_rested(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.resting.extract_if(.., |(due, ..)| *due <= now).collect();
        for (_, ward, worker) in due {
            if self.wards.get(&ward).is_none_or(|guarded| guarded.abandoned) {
                drop(worker);
                continue;
            }
            let successor = match self.successor(ward, worker) {
                Ok(worker) => worker,
                Err((error, worker)) => {
                    self.postpone(ward, worker, &error);
                    continue;
                }
            };
            if let Err((error, Some(worker))) = self.launch(ward, successor) {
                self.postpone(ward, worker, &error);
            }
        }
    }

    /// A fresh worker with the old one's obligations: nothing else of the old one is trusted.
    fn successor(&self, ward: Ward, old: Box<Worker>) -> Result<Box<Worker>, (std::io::Error, Box<Worker>)> {
        let Some(groups) = self.wards.get(&ward).and_then(|guarded| guarded.groups.as_ref()) else { return Ok(old) };
        let groups = match groups.try_clone() {
            Ok(groups) => groups,
            Err(error) => return Err((error, old)),
        };
        let mut inbox = Inbox::new(groups, old.inbox.desk.clone(), old.orders.judge.clone());
        let (mailbox, orders) = (old.mailbox.clone(), old.orders.clone());
        let mut old = old;
        inbox.take_over(&mut old.inbox);
        match Worker::new(inbox, mailbox, orders) {
            Ok(worker) => Ok(Box::new(worker)),
            Err((error, inbox)) => {
                old.inbox = *inbox;
                Err((error, old))
            }
        }
    }

    /// No thread or descriptor can be had: nobody may wait for that, so failure policy answers meanwhile.
    fn postpone(&mut self, ward: Ward, mut worker: Box<Worker>, error: &std::io::Error) {
        tracing::error!(%error, "a worker could not be started again; events are answered by failure policy");
        let parked = worker.inbox.board.station.is_parked();
        for queue in [Queue::Wide, Queue::Near].into_iter().filter(|_| !parked) {
            loop {
                let read = worker.inbox.read(queue);
                worker.inbox.settle_fresh(Failure::WorkerPanicked);
                if read.is_err() {
                    break;
                }
            }
        }
        self.resting.push((Instant::now() + LONGEST_PAUSE, ward, worker));
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

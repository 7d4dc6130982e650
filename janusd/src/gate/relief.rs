//! Answers for a gate that is stuck: the node's runtimes must not wait for a thread of ours.
//!
//! A second thread, `janus-relief`, sleeps until the gate has been at one turn for longer than it may. Then it takes the
//! gate's marks away, lets go of what the gate has read and not answered, and of what is queued. The gate, once it goes on,
//! finds that nobody waits for its answers, and lays its marks again.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::fanotify::answer::{Answer, Outcome, answer_all};
use crate::fanotify::group::ReadBuffer;
use crate::fanotify::{Group, PermissionEvent};
use crate::policy::Response;

/// What the gate is at, for whoever relieves it.
#[derive(Debug)]
pub(super) struct Board {
    began: Instant,
    /// Milliseconds after `began` at which the present turn began, and one more; 0: it waits.
    turn: AtomicU64,
    /// Numbers of events that were read and not answered. Held for a moment only, and never while anything is waited for.
    unanswered: Mutex<Vec<RawFd>>,
    ended: Mutex<bool>,
    wake: Condvar,
    /// It was relieved, and its marks are gone.
    relieved: AtomicBool,
}

impl Board {
    pub(super) fn new() -> Arc<Board> {
        Arc::new(Board {
            began: Instant::now(),
            turn: AtomicU64::new(0),
            unanswered: Mutex::default(),
            ended: Mutex::new(false),
            wake: Condvar::new(),
            relieved: AtomicBool::new(false),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// The gate begins a turn: from here on it is watched.
    pub(super) fn begin(&self) {
        self.turn.store(self.now() + 1, Ordering::Release);
    }

    /// It waits for what comes. True: it was relieved meanwhile, and has no marks.
    pub(super) fn rest(&self) -> bool {
        self.turn.store(0, Ordering::Release);
        self.relieved.swap(false, Ordering::AcqRel)
    }

    /// Events that are to be answered, by number.
    pub(super) fn note(&self, numbers: impl IntoIterator<Item = RawFd>) {
        self.unanswered.lock().extend(numbers);
    }

    /// They were answered, and their descriptors are still open.
    pub(super) fn strike(&self, numbers: &[RawFd]) {
        self.unanswered.lock().retain(|number| !numbers.contains(number));
    }

    /// All that are not struck out; they are now.
    pub(super) fn take(&self) -> Vec<RawFd> {
        std::mem::take(&mut *self.unanswered.lock())
    }

    /// How long the present turn takes.
    fn lasts(&self) -> Duration {
        match self.turn.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            since => Duration::from_millis((self.now() + 1).saturating_sub(since)),
        }
    }
}

/// The thread, to be joined.
#[derive(Debug)]
pub(super) struct Relief {
    board: Arc<Board>,
    thread: JoinHandle<()>,
}

impl Relief {
    /// Watches a gate: a turn takes no longer than `patience`.
    ///
    /// # Errors
    /// The kernel's, when no thread can be had.
    pub(super) fn start(board: Arc<Board>, group: Group, patience: Duration) -> std::io::Result<Relief> {
        let watched = board.clone();
        let thread =
            std::thread::Builder::new().name("janus-relief".into()).spawn(move || watch(&watched, &group, patience))?;
        Ok(Relief { board, thread })
    }

    /// Ends it.
    pub(super) fn end(self) {
        *self.board.ended.lock() = true;
        self.board.wake.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the gate's relief panicked");
        }
    }
}

fn watch(board: &Board, group: &Group, patience: Duration) {
    let mut ended = board.ended.lock();
    while !*ended {
        let pause = if board.lasts() >= patience {
            relieve(board, group);
            // Until it goes on, whatever comes is let go: marks are gone, but something may have been on its way.
            Duration::from_millis(50)
        } else {
            patience / 2
        };
        board.wake.wait_for(&mut ended, pause);
    }
}

fn relieve(board: &Board, group: &Group) {
    let first = !board.relieved.swap(true, Ordering::AcqRel);
    let flushed = group.flush_inodes();
    let mut numbers = board.unanswered.lock().clone();
    let mut events: Vec<PermissionEvent> = Vec::new();
    // What is queued goes as well.
    let mut buffer = ReadBuffer::default();
    while group.read(&mut buffer, &mut events).is_ok() {
        buffer.clear();
    }
    numbers.extend(events.iter().map(|event| event.file.as_raw_fd()));
    let answers: Vec<Answer> = numbers.iter().map(|number| Answer::new(*number, Response::Allow, false)).collect();
    let mut let_go = 0;
    answer_all(&mut &*group, &answers, |_, outcome| {
        let_go += usize::from(outcome == Outcome::Answered);
    });
    drop(events);
    if first {
        tracing::error!(let_go, ?flushed, "the gate of starts is stuck: starts are not held until it goes on");
    }
}

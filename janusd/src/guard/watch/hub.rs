//! The process's one inotify instance (`fs.inotify.max_user_instances` is 128), and the thread that reads it.
//!
//! Flow: the thread reads what the kernel queued, the [`Book`] says whose it is, a bell rings at each guard that it
//! concerns. Guards add and remove watches themselves, from their own threads.
//!
//! Guarantees: no watch is removed while anybody holds it or may just have been given it; the book is never locked across
//! a call that looks at a file (adding a watch asks the file system for permission, and file systems hang). The thread's
//! end is never unseen: should it panic, everybody is told to survey and it goes on.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::book::{Book, Noise, Party};
use super::{Change, For, Watcher};

/// Room for one read: some 2,000 events with short names. The kernel queues 16,384 (`fs.inotify.max_queued_events`).
const READ: usize = 64 * 1024;
/// An event that finds less room than this waits for the next read: a header, and the longest name.
const LARGEST_EVENT: usize = 16 + 256;
/// Watches that are removed before others get their turn with the book.
const REMOVED_AT_ONCE: usize = 256;
/// After an error that should not be.
const REST: Duration = Duration::from_secs(1);
/// It keeps no more on its stack than the event that it looks at.
const STACK: usize = 256 * 1024;

const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR);

/// The way to the process's inotify instance.
#[derive(Debug, Clone)]
pub struct Watches(Arc<Presence>);

/// The thread that reads it, to be joined.
#[derive(Debug)]
pub struct WatchThread(JoinHandle<()>);

#[derive(Debug)]
struct Hub {
    inotify: OwnedFd,
    /// Rings when all is over.
    bell: OwnedFd,
    over: AtomicBool,
    desk: Mutex<Desk>,
}

#[derive(Debug, Default)]
struct Desk {
    book: Book,
    bells: HashMap<Party, Arc<OwnedFd>>,
}

/// Somebody may still want to watch; the thread ends after the last of these.
#[derive(Debug)]
pub(super) struct Presence(Arc<Hub>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
        ring(&self.0.bell);
    }
}

impl Watches {
    /// Makes the instance and starts its thread, which ends when every `Watches` and every guard is gone.
    ///
    /// # Errors
    /// The kernel's: EMFILE at `fs.inotify.max_user_instances` or RLIMIT_NOFILE, or no thread.
    pub fn start() -> std::io::Result<(Watches, WatchThread)> {
        let hub = Arc::new(Hub {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            bell: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            over: AtomicBool::new(false),
            desk: Mutex::default(),
        });
        let reader = hub.clone();
        let thread = std::thread::Builder::new().name("janus-inotify".into()).stack_size(STACK);
        let thread = thread.spawn(move || reader.keep())?;
        Ok((Watches(Arc::new(Presence(hub))), WatchThread(thread)))
    }

    /// A watcher of its own.
    ///
    /// # Errors
    /// EMFILE.
    pub(in crate::guard) fn watcher(&self) -> std::io::Result<Watcher> {
        let bell = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut desk = self.0.0.desk.lock();
        let party = desk.book.join();
        desk.bells.insert(party, bell.clone());
        Ok(Watcher { hub: self.0.clone(), party, bell, full: false })
    }
}

impl WatchThread {
    /// Waits for its end; drop every [`Watches`] and every guard first.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the inotify thread panicked");
        }
    }
}

impl Presence {
    #[cfg(test)]
    pub(super) fn inotify(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.inotify.as_fd()
    }

    pub(super) fn begin(&self, party: Party) {
        self.0.desk.lock().book.begin(party);
    }

    /// Adds a watch. False when the kernel has no room for it.
    pub(super) fn want(&self, party: Party, directory: BorrowedFd<'_>, path: &[u8], what: For<'_>) -> bool {
        let by_number = format!("/proc/self/fd/{}", directory.as_raw_fd());
        self.0.desk.lock().book.adding();
        let added = inotify::add_watch(&self.0.inotify, by_number.as_str(), EVENTS);
        let mut desk = self.0.desk.lock();
        desk.book.added(party, added.ok(), path, what);
        desk.ring();
        drop(desk);
        self.0.remove_orphans();
        // Anything else: not a directory any more, and the survey that follows the change will see.
        !matches!(added, Err(Errno::NOSPC | Errno::NOMEM | Errno::MFILE))
    }

    pub(super) fn sweep(&self, party: Party) {
        self.0.desk.lock().book.sweep(party);
        self.0.remove_orphans();
    }

    pub(super) fn take(&self, party: Party) -> Vec<Change> {
        self.0.desk.lock().book.take(party)
    }

    pub(super) fn leave(&self, party: Party) {
        let mut desk = self.0.desk.lock();
        desk.book.leave(party);
        desk.bells.remove(&party);
        drop(desk);
        self.0.remove_orphans();
    }
}

impl Desk {
    fn ring(&mut self) {
        for party in self.book.rings() {
            if let Some(bell) = self.bells.get(&party) {
                ring(bell);
            }
        }
    }
}

impl Hub {
    /// Removes what nobody watches any more, some at a time: who wants the book meanwhile gets it.
    fn remove_orphans(&self) {
        loop {
            let mut desk = self.desk.lock();
            let orphans = desk.book.orphans(REMOVED_AT_ONCE);
            if orphans.is_empty() {
                return;
            }
            for watch in orphans {
                // EINVAL: it went with its directory.
                let _already_gone = inotify::remove_watch(&self.inotify, watch);
            }
        }
    }

    fn keep(&self) {
        while let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| self.run())) {
            let message = crate::guard::supervisor::panic_text(&*panic);
            tracing::error!(message, "the inotify thread panicked; every guard surveys, and it goes on");
            self.nobody_knows();
        }
    }

    fn run(&self) {
        let mut buffer = vec![MaybeUninit::uninit(); READ];
        while !self.over.load(Ordering::Acquire) {
            if let Err(errno) = self.wait().and_then(|()| self.read(&mut buffer)) {
                tracing::error!(%errno, "inotify cannot be read; every guard surveys");
                self.nobody_knows();
            }
        }
    }

    /// Everybody surveys, and nothing more for a while.
    fn nobody_knows(&self) {
        let mut desk = self.desk.lock();
        desk.book.everybody();
        desk.ring();
        drop(desk);
        let bell = &mut [PollFd::new(&self.bell, PollFlags::IN)];
        // Interrupted or refused: then it rests less.
        let _rested = poll(bell, Some(&timespec(REST)));
    }

    fn wait(&self) -> Result<(), Errno> {
        let due = self.desk.lock().book.due();
        let left = due.map(|due| timespec(due.saturating_duration_since(Instant::now())));
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&self.bell, PollFlags::IN)];
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Reads once, tells the book, rings.
    fn read(&self, buffer: &mut [MaybeUninit<u8>]) -> Result<(), Errno> {
        let mut reader = Reader::new(&self.inotify, buffer);
        let mut noise = Vec::new();
        let mut bytes = 0;
        let mut desk = self.desk.lock();
        let now = Instant::now();
        let result = loop {
            // Only the first call reads, and never waits.
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(std::ffi::CStr::to_bytes).unwrap_or_default();
                    bytes += event_size(name);
                    if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                        noise.extend(desk.book.overflow(now));
                    } else {
                        desk.book.event(event.wd(), event.events(), name);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => break Ok(()),
                Err(errno) => break Err(errno),
            }
            if reader.is_buffer_empty() {
                break Ok(());
            }
        };
        noise.extend(desk.book.end_of_read(bytes + LARGEST_EVENT > READ, now));
        desk.book.tick(now);
        desk.ring();
        drop(desk);
        self.remove_orphans();
        noise.into_iter().for_each(tell);
        result
    }
}

/// Bytes of an event in the buffer: a header, and the name with its NUL, padded.
fn event_size(name: &[u8]) -> usize {
    if name.is_empty() { 16 } else { 16 + (name.len() + 1).next_multiple_of(16) }
}

fn tell(noise: Noise) {
    match noise {
        Noise::Muted(guards) => tracing::warn!(
            guards,
            "directories change faster than they can be told of; the busiest guards' are surveyed every second instead"
        ),
        Noise::Overflow => {
            tracing::warn!(
                "fs.inotify.max_queued_events is reached: changes were missed, every guard surveys its root"
            );
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Rounded up: a poll that returns early is made again.
    let duration = duration + Duration::from_millis(1);
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

fn ring(bell: &OwnedFd) {
    // Fails only when the count is at its maximum, and then the bell is ringing already.
    let _ringing = rustix::io::write(bell, &1u64.to_ne_bytes());
}

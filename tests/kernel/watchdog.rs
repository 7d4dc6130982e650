//! Time: no test hangs, and none sleeps for longer than its condition takes.
//!
//! Owns: the list of processes that a test has started, as pidfds (a pid may be reused, a pidfd never is). When the
//! deadline passes they are killed, which frees whatever waits for them, also a process that waits for an answer of
//! fanotify. Should the test hang even then, the whole run ends.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What is left to a test after its processes were killed.
const GRACE: Duration = Duration::from_secs(10);

/// Ends one test.
pub(crate) struct Watchdog {
    watch: Watch,
    thread: JoinHandle<bool>,
}

/// Where a test tells its watchdog what it starts.
#[derive(Clone)]
pub(crate) struct Watch(Arc<Watched>);

#[derive(Default)]
struct Watched {
    processes: Mutex<Vec<OwnedFd>>,
    done: Mutex<bool>,
    changed: Condvar,
}

impl Watchdog {
    pub(crate) fn start(deadline: Duration) -> Watchdog {
        let watch = Watch(Arc::default());
        let watched = watch.clone();
        let thread = std::thread::spawn(move || watched.guard(deadline));
        Watchdog { watch, thread }
    }

    pub(crate) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// The test has ended: whether the watchdog had to end it.
    pub(crate) fn stop(self) -> bool {
        *self.watch.0.done.lock().unwrap() = true;
        self.watch.0.changed.notify_all();
        self.thread.join().unwrap()
    }
}

impl Watch {
    /// Adds a process. One that has already ended is nobody's concern.
    pub(crate) fn process(&self, pid: u32) {
        if let Ok(process) = pidfd_open(kernel_pid(pid), PidfdFlags::empty()) {
            self.0.processes.lock().unwrap().push(process);
        }
    }

    fn guard(&self, deadline: Duration) -> bool {
        if self.done_within(deadline) {
            return false;
        }
        for process in self.0.processes.lock().unwrap().iter() {
            let _gone_already = pidfd_send_signal(process, Signal::KILL);
        }
        if !self.done_within(GRACE) {
            let _lost = writeln!(std::io::stderr(), "a test hangs although all that it started was killed");
            std::process::exit(101);
        }
        true
    }

    fn done_within(&self, limit: Duration) -> bool {
        let done = self.0.done.lock().unwrap();
        *self.0.changed.wait_timeout_while(done, limit, |done| !*done).unwrap().0
    }
}

/// A pid as the kernel's calls want it.
pub(crate) fn kernel_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).expect("no process has pid 0")
}

/// Asks for a level until it holds; false when `limit` passes first.
pub(crate) fn wait_until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if holds() {
            return true;
        }
        let Some(left) = limit.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
            return false;
        };
        std::thread::sleep(left.min(Duration::from_millis(5)));
    }
}

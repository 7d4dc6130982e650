//! Whether a janusd goes on, as far as its holder can tell, and which numbers its events may have.
//!
//! It beats five times a second, from the thread that answers wherever any other of its threads is stuck. Silence is told in
//! looks of the holder's own, so that time in which the holder did not run either (a pod that is frozen, a machine that is
//! suspended) is no silence. A janusd that has been silent for the deadline and uses no CPU time is *stopped*; one that does
//! use some is slow, and has four deadlines.
//!
//! Law: while the holder stands in for a janusd that lives, no event that it reads has a number that an event of that
//! janusd can have. So the two may read the same groups at any time, and whatever answer the janusd was about to write when
//! it was stopped, or writes as soon as it goes on, hits its own event or none (ENOENT: it has been answered). The other way
//! round the holder answers that janusd's events by their numbers, all alike, and while it is silent only: what it has read
//! and not answered is still open there. An event that it reads within the moment in which it goes on may be answered so.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::occupy::Occupied;
use crate::fanotify::sys;
use crate::guard::watchdog::BEAT;

/// Between two looks.
pub(super) const LOOK: Duration = BEAT;
/// Deadlines that one has which uses CPU time.
const OF_A_SLOW_ONE: u32 = 4;
/// By so much may numbers rise between two looks.
const HEADROOM: i32 = 1024;

/// What is told of a janusd by its beats.
#[derive(Debug)]
pub(super) struct Life {
    pid: i32,
    beats: OwnedFd,
    /// Looks without a beat.
    silent: u32,
    /// Of these, the last ones in a row in which it used no CPU time.
    still: u32,
    /// CPU time that it had used at the last look, while it was silent.
    used: Option<Duration>,
    /// The holder stands in for it.
    stands: Option<Stand>,
}

/// The numbers of a janusd that does not go on.
#[derive(Debug)]
struct Stand {
    occupied: Occupied,
    up_to: i32,
}

impl Life {
    /// Of a process, and the eventfd on which it beats.
    pub(super) fn new(pid: i32, beats: OwnedFd) -> Life {
        Life { pid, beats, silent: 0, still: 0, used: None, stands: None }
    }

    /// Says so when it beats.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.beats.as_fd()
    }

    /// Whether it has beaten since this was asked last.
    pub(super) fn has_beaten(&mut self) -> bool {
        let mut count = [0; 8];
        // EAGAIN: it has not. It does not block: whoever made it saw to that.
        let beaten = rustix::io::read(&self.beats, &mut count).is_ok();
        if beaten {
            (self.silent, self.still, self.used) = (0, 0, None);
        }
        beaten
    }

    /// Looks once; whether it has stopped. To be asked once every [`LOOK`].
    pub(super) fn has_stopped(&mut self, deadline: Duration) -> bool {
        if self.has_beaten() {
            return false;
        }
        self.silent = self.silent.saturating_add(1);
        let used = sys::cpu_time(self.pid);
        let moves = self.used.is_some() && used.is_some() && used != self.used;
        self.used = used.or(Some(Duration::ZERO));
        self.still = if moves { 0 } else { self.still.saturating_add(1) };
        let [silent, still] = [self.silent, self.still].map(|looks| LOOK.saturating_mul(looks));
        still >= deadline || silent >= deadline.saturating_mul(OF_A_SLOW_ONE)
    }

    /// Whether the holder stands in for it.
    pub(super) fn is_stood_for(&self) -> bool {
        self.stands.is_some()
    }

    /// Keeps the numbers that its events have, or come to have, from being given to any that are read here. `highest`: as
    /// it has told. Gives those that they may have now.
    ///
    /// # Errors
    /// The kernel's, when no descriptor can be had: nothing may be read then.
    pub(super) fn stand(&mut self, highest: i32) -> std::io::Result<BTreeSet<i32>> {
        let open = numbers(self.pid);
        let top = open.as_ref().and_then(|open| open.last().copied()).unwrap_or(0);
        let up_to = highest.max(top.saturating_add(HEADROOM));
        match &mut self.stands {
            Some(stand) if stand.up_to >= top.saturating_add(HEADROOM / 2).max(highest) => stand.occupied.again(),
            stands => *stands = Some(Stand { occupied: Occupied::take(0..=up_to)?, up_to }),
        }
        Ok(open.unwrap_or_else(|| (0..=highest).collect()))
    }

    /// Before each read: something that had one of those numbers may have been closed.
    pub(super) fn keep_numbers(&mut self) {
        if let Some(stand) = &mut self.stands {
            stand.occupied.again();
        }
    }

    /// It goes on, and everything that was read here is answered.
    pub(super) fn step_back(&mut self) {
        self.stands = None;
    }
}

/// The numbers that events of a process can have now; `None`: they cannot be told. An event's descriptor is that of a file,
/// so what is none is left out: hundreds of guards have thousands of those.
fn numbers(pid: i32) -> Option<BTreeSet<i32>> {
    let at = std::path::PathBuf::from(format!("/proc/{pid}/fd"));
    let mut numbers = BTreeSet::new();
    for entry in std::fs::read_dir(&at).ok()? {
        let name = entry.ok()?.file_name();
        let number = name.to_str()?.parse().ok()?;
        let other = std::fs::read_link(at.join(&name)).is_ok_and(|link| {
            let link = link.as_os_str().as_encoded_bytes();
            [b"anon_inode:".as_slice(), b"socket:[", b"pipe:["].iter().any(|kind| link.starts_with(kind))
        });
        if !other {
            numbers.insert(number);
        }
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::AsRawFd;

    fn life() -> (Life, OwnedFd) {
        let here = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        // No process has this number (PID_MAX_LIMIT, 2^22): it uses no CPU time.
        (Life::new(1 << 23, here.try_clone().unwrap()), here)
    }

    #[test]
    fn silence_is_told_by_looks() {
        let (mut life, here) = life();
        let beat = || rustix::io::write(&here, &1_u64.to_ne_bytes()).unwrap();
        beat();
        assert_eq!([(); 4].map(|()| life.has_stopped(3 * LOOK)), [false, false, false, true]);
        beat();
        assert_eq!([(); 4].map(|()| life.has_stopped(3 * LOOK)), [false, false, false, true]);
        assert!(!life.has_beaten());
    }

    #[test]
    fn one_that_uses_time_has_four_deadlines() {
        let (mut life, _here) = life();
        life.pid = std::process::id().cast_signed();
        let mut looks = 0;
        loop {
            // So that it does.
            let from = sys::cpu_time(life.pid);
            while sys::cpu_time(life.pid) == from {
                std::hint::spin_loop();
            }
            looks += 1;
            if life.has_stopped(2 * LOOK) {
                break;
            }
        }
        assert_eq!(looks, 2 * OF_A_SLOW_ONE);
    }

    #[test]
    fn none_of_its_numbers_is_given_here() {
        let (mut life, here) = life();
        life.pid = std::process::id().cast_signed();
        let file = tempfile::tempfile().unwrap();
        let open = life.stand(0).unwrap();
        assert!(open.contains(&file.as_raw_fd()) && !open.contains(&here.as_raw_fd()), "{open:?}");
        let bound = open.last().unwrap() + HEADROOM / 2;
        // Other tests of this process close descriptors meanwhile, whose numbers are free until they are kept again.
        let mut is_kept = || {
            life.keep_numbers();
            tempfile::tempfile().unwrap().as_raw_fd() > bound
        };
        assert!((0..1000).any(|_| is_kept()), "numbers below {bound} are given");
        life.step_back();
        assert!((0..1000).any(|_| tempfile::tempfile().unwrap().as_raw_fd() < bound));
    }
}

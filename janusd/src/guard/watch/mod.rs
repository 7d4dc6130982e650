//! The directories on which a survey's findings depend, watched with `inotify(7)`.
//!
//! Asynchronous by nature: it tells that the survey has to be made again, and nothing that is decided about an event may
//! rest on it having spoken. An inotify watch holds an inode, not a mount: a volume can be unmounted under it.
//!
//! One inotify instance serves every guard of the process ([`hub`]); who watches what is in a [`book`]. A [`Watcher`] is one
//! guard's part in both, with a bell of its own.

mod book;
mod hub;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use self::book::Party;
use self::hub::Presence;
pub use self::hub::{WatchThread, Watches};

/// What a watch is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum For<'a> {
    /// One entry may appear, vanish or be replaced.
    Entry(&'a [u8]),
    /// Any entry may.
    Entries,
    /// What appears in it is denied, or holds what is.
    Guarded,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// Something that a survey would see.
    Survey,
    /// This has appeared in a guarded directory.
    Appeared(Vec<u8>),
}

/// One guard's watches. Its descriptor is readable when there is something to take.
#[derive(Debug)]
pub(super) struct Watcher {
    hub: Arc<Presence>,
    party: Party,
    bell: Arc<OwnedFd>,
    full: bool,
}

impl Watcher {
    /// Begins a survey: nothing is wanted yet.
    pub(super) fn begin(&mut self) {
        self.full = false;
        self.hub.begin(self.party);
    }

    /// Wants `directory` (O_PATH), found at `path`, to be watched.
    pub(super) fn want(&mut self, directory: BorrowedFd<'_>, path: &[u8], what: For<'_>) {
        self.full |= !self.hub.want(self.party, directory, path, what);
    }

    /// Ends a survey: what it did not want is watched no longer. True when `fs.inotify.max_user_watches` was reached.
    pub(super) fn sweep(&mut self) -> bool {
        self.hub.sweep(self.party);
        self.full
    }

    /// Takes what has happened since the last call.
    pub(super) fn take(&mut self) -> Vec<Change> {
        // First the bell: what is told afterwards rings again. EAGAIN: it was not ringing.
        let _silent = rustix::io::read(&*self.bell, &mut [0u8; 8]);
        self.hub.take(self.party)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.leave(self.party);
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn want(watcher: &mut Watcher, directory: &Path, what: For<'_>) {
        watcher.want(File::open(directory).unwrap().as_fd(), b"/d", what);
    }

    /// What it is told until `enough`, by its bell.
    fn hears(watcher: &mut Watcher, enough: impl Fn(&[Change]) -> bool) -> Vec<Change> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut heard = Vec::new();
        while !enough(&heard) && Instant::now() < deadline {
            let a_while = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let rung = poll(&mut [PollFd::new(&*watcher, PollFlags::IN)], Some(&a_while)).unwrap() > 0;
            if rung {
                heard.extend(watcher.take());
            }
        }
        assert!(enough(&heard), "{heard:?}");
        heard
    }

    /// The watches of an inotify instance, as the kernel has them.
    fn kernel_watches(watches: &Watcher) -> usize {
        use std::os::fd::AsRawFd;
        let number = watches.hub.inotify().as_raw_fd();
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        text.lines().filter(|line| line.starts_with("inotify wd:")).count()
    }

    #[test]
    fn guards_share_one_watch_and_none_takes_it_from_another() {
        let scratch = tempfile::tempdir().unwrap();
        let (watches, thread) = Watches::start().unwrap();
        let (mut one, mut two) = (watches.watcher().unwrap(), watches.watcher().unwrap());
        want(&mut one, scratch.path(), For::Entry(b"x"));
        want(&mut two, scratch.path(), For::Guarded);
        assert_eq!(kernel_watches(&one), 1);
        fs::write(scratch.path().join("x"), "").unwrap();
        assert_eq!(hears(&mut one, |heard| !heard.is_empty()), [Change::Survey]);
        assert_eq!(hears(&mut two, |heard| !heard.is_empty()), [Change::Appeared(b"/d/x".to_vec())]);
        // One surveys, and does not want it any more.
        one.begin();
        one.sweep();
        fs::write(scratch.path().join("y"), "").unwrap();
        assert_eq!(hears(&mut two, |heard| !heard.is_empty()), [Change::Appeared(b"/d/y".to_vec())]);
        assert_eq!(kernel_watches(&one), 1);
        drop(two);
        assert_eq!(kernel_watches(&one), 0);
        assert_eq!(one.take(), []);
        drop((one, watches));
        thread.join();
    }

    /// A guard whose directory is written to like mad: the others hear of theirs all the same, and it hears again later.
    #[test]
    fn noise_of_one_guard_does_not_deafen_another() {
        let (loud, still) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (watches, thread) = Watches::start().unwrap();
        let (mut noisy, mut quiet) = (watches.watcher().unwrap(), watches.watcher().unwrap());
        want(&mut noisy, loud.path(), For::Guarded);
        want(&mut quiet, still.path(), For::Guarded);
        let until = Instant::now() + Duration::from_secs(2);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = loud.path().join(format!("f{writer}"));
                scope.spawn(move || {
                    while Instant::now() < until {
                        fs::write(&path, "").unwrap();
                        fs::remove_file(&path).unwrap();
                    }
                });
            }
            for number in 0..20 {
                let name = format!("n{number}");
                fs::write(still.path().join(&name), "").unwrap();
                let appeared = Change::Appeared(format!("/d/{name}").into_bytes());
                hears(&mut quiet, |heard| heard.contains(&appeared) || heard.contains(&Change::Survey));
            }
        });
        let heard = hears(&mut noisy, |heard| !heard.is_empty());
        assert!(heard.len() <= 8, "{heard:?}");
        // As its survey would.
        want(&mut noisy, loud.path(), For::Guarded);
        fs::write(loud.path().join("last"), "").unwrap();
        let last = Change::Appeared(b"/d/last".to_vec());
        hears(&mut noisy, |heard| heard.contains(&last) || heard.contains(&Change::Survey));
        drop((noisy, quiet, watches));
        thread.join();
    }
}

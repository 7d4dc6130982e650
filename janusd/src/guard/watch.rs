//! The directories on which a survey's findings depend, watched with `inotify(7)`.
//!
//! Asynchronous by nature: it tells that the survey has to be made again, and nothing that is decided about an event may
//! rest on it having spoken. An inotify watch holds an inode, not a mount: a volume can be unmounted under it.

use std::collections::{BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// What matters about a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Interest {
    /// Entries by name.
    entries: BTreeSet<Vec<u8>>,
    /// Every entry.
    all: bool,
    /// Every entry that appears.
    guarded: bool,
    /// Asked for by this survey.
    wanted: bool,
}

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

/// Changes that are taken at once, at most.
const MOST_CHANGES: usize = 4096;

/// An inotify instance.
#[derive(Debug)]
pub(super) struct Watcher {
    inotify: OwnedFd,
    directories: HashMap<i32, (Vec<u8>, Interest)>,
    full: bool,
}

const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR);

impl Watcher {
    pub(super) fn new() -> std::io::Result<Watcher> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Watcher { inotify, directories: HashMap::new(), full: false })
    }

    /// Begins a survey: nothing is wanted yet.
    pub(super) fn begin(&mut self) {
        self.full = false;
        for (_, interest) in self.directories.values_mut() {
            *interest = Interest::default();
        }
    }

    /// Wants `directory` (O_PATH), found at `path`, to be watched.
    pub(super) fn want(&mut self, directory: BorrowedFd<'_>, path: &[u8], what: For<'_>) {
        let by_number = format!("/proc/self/fd/{}", directory.as_raw_fd());
        match inotify::add_watch(&self.inotify, by_number.as_str(), EVENTS) {
            Ok(watch) => {
                let (known, interest) = self.directories.entry(watch).or_default();
                if known != path {
                    *known = path.to_vec();
                }
                interest.wanted = true;
                match what {
                    For::Entry(name) => {
                        if !interest.entries.contains(name) {
                            interest.entries.insert(name.to_vec());
                        }
                    }
                    For::Entries => interest.all = true,
                    For::Guarded => interest.guarded = true,
                }
            }
            Err(Errno::NOSPC | Errno::NOMEM | Errno::MFILE) => self.full = true,
            // Not a directory any more: the survey that follows the change will see.
            Err(_) => {}
        }
    }

    /// Ends a survey: what it did not want is watched no longer. True when `fs.inotify.max_user_watches` was reached.
    pub(super) fn sweep(&mut self) -> bool {
        let inotify = &self.inotify;
        self.directories.retain(|watch, (_, interest)| {
            if !interest.wanted {
                // EINVAL: it went with its directory.
                let _already_gone = inotify::remove_watch(inotify, *watch);
            }
            interest.wanted
        });
        self.full
    }

    /// Takes what has happened since the last call.
    pub(super) fn take(&mut self) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        let mut buffer = [const { MaybeUninit::uninit() }; 8192];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        // Whoever writes faster than we read must not keep us here: the rest is taken at the next call.
        while changes.len() < MOST_CHANGES {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    changes.push(Change::Survey);
                    break;
                }
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                changes.push(Change::Survey);
                continue;
            }
            let Some((path, interest)) = self.directories.get(&event.wd()) else { continue };
            let gone = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT;
            if flags.intersects(gone) {
                // A guarded directory that is deleted takes its marks along, and nothing else changes. One that moves may
                // have come to lie elsewhere.
                if interest.all || !interest.entries.is_empty() || flags.contains(ReadFlags::MOVE_SELF) {
                    changes.push(Change::Survey);
                }
                if flags.contains(ReadFlags::IGNORED) {
                    self.directories.remove(&event.wd());
                }
                continue;
            }
            let name = event.file_name().map(|name| name.to_bytes()).unwrap_or_default();
            if interest.all || interest.entries.contains(name) {
                changes.push(Change::Survey);
            }
            let appeared = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
            if interest.guarded && appeared {
                let below = [b"/", name].concat();
                changes.push(Change::Appeared(super::view::join(path, &below)));
            }
        }
        changes.sort();
        changes.dedup();
        changes
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

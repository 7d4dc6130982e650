//! The ledger of a guard's marks: what is laid, and the difference to what is wanted.
//!
//! Marks are added while a survey goes on, before what they cover is listed, so that nothing comes to be in between;
//! what is no longer wanted is taken away only when the new rules are in force ([`Ledger::sweep`]).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::groups::Groups;
use crate::fanotify::look::{self, Inode};
use crate::fanotify::{Features, MarkTarget};
use crate::metrics::MarkCounts;
use crate::policy::{Event, Events};
use crate::root::resolve::open_in;

/// What a mark lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Object {
    Filesystem { major: u32, minor: u32 },
    Mount(u64),
    Inode(Inode),
}

impl Object {
    fn of(target: MarkTarget, stat: &look::Stat) -> Object {
        match target {
            MarkTarget::Filesystem => Object::Filesystem { major: stat.inode.major, minor: stat.inode.minor },
            MarkTarget::Mount => Object::Mount(stat.mount),
            MarkTarget::Inode | MarkTarget::Directory => Object::Inode(stat.inode),
        }
    }
}

#[derive(Debug)]
struct Laid {
    target: MarkTarget,
    events: Events,
    /// What this survey wants of it.
    wanted: Events,
    /// A near mark on something that wide marks reach too.
    shared: bool,
    /// Where to find the object again, inside the root.
    path: Box<[u8]>,
}

/// A mark that a survey wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want<'a> {
    pub(super) target: MarkTarget,
    pub(super) events: Events,
    /// O_PATH.
    pub(super) object: BorrowedFd<'a>,
    pub(super) stat: &'a look::Stat,
    /// Where it was found, inside the root.
    pub(super) path: &'a [u8],
    /// Whether wide marks reach it too; see [`super::groups`].
    pub(super) shared: bool,
}

/// What of a mark's events no other ledger holds.
fn without(events: Events, object: &Object, others: &[&Ledger]) -> Events {
    let held = |event: Event| others.iter().any(|other| other.holds(object, event));
    Event::ALL.into_iter().filter(|event| events.contains(*event) && !held(*event)).collect()
}

/// All marks of a root.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    laid: HashMap<Object, Laid>,
    /// How many of them are on files.
    files: usize,
}

impl Ledger {
    /// Begins a survey: nothing is wanted yet.
    pub(super) fn begin(&mut self) {
        for laid in self.laid.values_mut() {
            laid.wanted = Events::NONE;
        }
    }

    /// Wants a mark, and lays it.
    pub(super) fn want(&mut self, groups: &Groups, want: &Want<'_>) -> std::io::Result<()> {
        let Want { target, events, object, stat, path, shared } = *want;
        let files = &mut self.files;
        let laid = self.laid.entry(Object::of(target, stat)).or_insert_with(|| {
            *files += usize::from(target == MarkTarget::Inode);
            Laid { target, events: Events::NONE, wanted: Events::NONE, shared, path: path.into() }
        });
        if *laid.path != *path {
            laid.path = path.into();
        }
        laid.wanted = laid.wanted.union(events);
        laid.shared |= shared;
        // Again, even if it is in the ledger: an inode may have gone, with its mark, and its number come back.
        match groups.mark(target, events, object, shared) {
            Ok(()) => {
                laid.events = laid.events.union(events);
                Ok(())
            }
            Err(error) => {
                if laid.events.is_empty() {
                    self.files -= usize::from(target == MarkTarget::Inode);
                    self.laid.remove(&Object::of(target, stat));
                }
                Err(error)
            }
        }
    }

    /// Takes away what the last survey did not want. Call it once the new rules are in force.
    ///
    /// `rules_changed`: without it no mark is taken away, for the files are the same. What a rule looked for may have been
    /// moved, and be back the next moment.
    ///
    /// A mark whose object is not where it was goes with its object, or stays
    /// and is answered by rules that no longer name it: harmless, and forgotten here.
    ///
    /// What another ledger of the same groups holds stays.
    pub(super) fn sweep(
        &mut self,
        groups: &Groups,
        root: BorrowedFd<'_>,
        features: &Features,
        rules_changed: bool,
        others: &[&Ledger],
    ) {
        self.laid.retain(|object, laid| {
            let unwanted = |e: &Event| laid.events.contains(*e) && !laid.wanted.contains(*e);
            let all: Events = Event::ALL.into_iter().filter(unwanted).collect();
            let surplus = without(all, object, others);
            if surplus.is_empty() && !all.is_empty() && rules_changed {
                // Another root's now.
                laid.events = laid.wanted;
                return !laid.wanted.is_empty();
            }
            if surplus.is_empty() || (!rules_changed && laid.target == MarkTarget::Mount) {
                return true;
            }
            let found = open_in(root, &laid.path).ok().filter(|file| {
                look::stat(file.as_fd(), features).is_ok_and(|stat| Object::of(laid.target, &stat) == *object)
            });
            match found {
                // Where it was when we looked for it a moment ago, it was not: somebody moves it back and forth. The files
                // are the same, and so are the rules.
                Some(_) if !rules_changed => true,
                Some(file) => {
                    // ENOENT: the kernel has dropped the mark already.
                    let _already_gone = groups.unmark(laid.target, surplus, laid.wanted, file.as_fd(), laid.shared);
                    laid.events = laid.wanted;
                    !laid.wanted.is_empty()
                }
                None => !laid.wanted.is_empty(),
            }
        });
        self.files = self.laid.values().filter(|laid| laid.target == MarkTarget::Inode).count();
    }

    /// Takes away the marks of a root that has gone and that no other ledger holds. `find` opens what lies at a path of
    /// that root by another way; what it does not find went with its mount, or stays and is judged by no rule.
    pub(super) fn retire(
        self,
        groups: &Groups,
        features: &Features,
        others: &[&Ledger],
        find: impl Fn(&[u8]) -> Vec<OwnedFd>,
    ) {
        for (object, laid) in self.laid {
            let surplus = without(laid.events, &object, others);
            // A mark on a mount of the container's own goes with its mount namespace.
            if surplus.is_empty() || laid.target == MarkTarget::Mount {
                continue;
            }
            let found = find(&laid.path).into_iter().find(|file| {
                look::stat(file.as_fd(), features).is_ok_and(|stat| Object::of(laid.target, &stat) == object)
            });
            if let Some(file) = found {
                // ENOENT: the kernel has dropped the mark already.
                let _already_gone = groups.unmark(laid.target, surplus, Events::NONE, file.as_fd(), laid.shared);
            }
        }
    }

    fn holds(&self, object: &Object, event: Event) -> bool {
        self.laid.get(object).is_some_and(|laid| laid.events.contains(event) || laid.wanted.contains(event))
    }

    /// How many files bear a mark of their own.
    pub(super) fn files(&self) -> usize {
        self.files
    }

    /// How many of each kind.
    pub(super) fn counts(&self) -> MarkCounts {
        let mut counts = MarkCounts::default();
        for object in self.laid.keys() {
            match object {
                Object::Filesystem { .. } => counts.filesystem += 1,
                Object::Mount(_) => counts.mount += 1,
                Object::Inode(_) => counts.inode += 1,
            }
        }
        counts
    }
}

//! The two fanotify groups of a guard.
//!
//! *Wide* holds the marks on file systems and mounts. It would be asked about every file of a container, so the kernel is
//! told to answer by itself for files that no rule denies (ignore marks). An ignore mark lies on an inode and goes where
//! it goes: renamed or linked into a guarded directory, the file would be waved through there as well. Notifications of
//! that come too late (measured: thousands of opens slip).
//!
//! *Near* closes that: it holds marks on the guarded directories themselves, looks at a file's parent at the moment of the
//! open, and has no ignore marks. So that an open is asked about once, wide leaves those directories to near
//! ([`Group::leave_to_another`]).
//!
//! Since a flush of ignore marks takes all inode marks of its group along, wide never holds any that guard.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::fanotify::{Features, Group, GroupError, MarkTarget};
use crate::policy::Events;

/// Which group asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// File systems and mounts.
    Wide,
    /// Guarded directories and files.
    Near,
}

/// The groups of a guard, as they come from another process.
#[derive(Debug)]
pub struct Legacy {
    /// File systems and mounts.
    pub wide: OwnedFd,
    /// Guarded directories and files.
    pub near: OwnedFd,
    /// Responses may carry `FAN_AUDIT`.
    pub audit: bool,
}

/// Both.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) wide: Group,
    pub(super) near: Group,
}

impl Groups {
    /// Makes both.
    pub(super) fn new(features: &Features, audit: bool) -> Result<Groups, GroupError> {
        Ok(Groups { wide: Group::new(features, audit)?, near: Group::new(features, audit)? })
    }

    /// Those that another process has made.
    pub(super) fn adopt(Legacy { wide, near, audit }: Legacy) -> Groups {
        Groups { wide: Group::adopt(wide, audit), near: Group::adopt(near, audit) }
    }

    /// More descriptors of the same groups.
    pub(super) fn try_clone(&self) -> std::io::Result<Groups> {
        Ok(Groups { wide: self.wide.try_clone()?, near: self.near.try_clone()? })
    }

    pub(super) fn of(&self, queue: Queue) -> &Group {
        match queue {
            Queue::Wide => &self.wide,
            Queue::Near => &self.near,
        }
    }

    /// The group that holds marks of a kind.
    fn holding(&self, target: MarkTarget) -> &Group {
        match target {
            MarkTarget::Filesystem | MarkTarget::Mount => &self.wide,
            MarkTarget::Inode | MarkTarget::Directory => &self.near,
        }
    }

    /// Lays a mark. A near one on something that wide reaches too (`shared`) keeps wide out of it afterwards: in this
    /// order, so that at every moment somebody is asked.
    pub(super) fn mark(
        &self,
        target: MarkTarget,
        events: Events,
        object: BorrowedFd<'_>,
        shared: bool,
    ) -> std::io::Result<()> {
        self.holding(target).mark(target, events, object)?;
        if shared { self.wide.leave_to_another(target, events, object) } else { Ok(()) }
    }

    /// Undoes [`Groups::mark`] for `surplus`, in the opposite order; `rest` stays.
    pub(super) fn unmark(
        &self,
        target: MarkTarget,
        surplus: Events,
        rest: Events,
        object: BorrowedFd<'_>,
        shared: bool,
    ) -> std::io::Result<()> {
        if shared {
            // ENOENT: a flush has taken it away since.
            let _flushed = self.wide.take_back(target, surplus, rest, object);
        }
        self.holding(target).unmark(target, surplus, rest, object)
    }

    /// Whether responses may carry `FAN_AUDIT`.
    pub(super) fn audits(&self) -> bool {
        self.wide.audits() && self.near.audits()
    }

    /// Removes every mark of both.
    pub(super) fn flush(&self) -> std::io::Result<()> {
        // Near last: wide leaves things to it.
        self.wide.flush_inodes()?;
        self.near.flush()?;
        self.wide.flush()
    }
}

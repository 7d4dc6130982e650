//! Who executes a runtime, and which containers that may be about.
//!
//! At the event the program has not been executed: the process is still what its parent was, and its arguments are not
//! there yet. So what it will do is not known, only on whose behalf: a shim of containerd keeps the containers of one pod
//! (or, with docker, one container) as its children, and executes the runtime for those alone.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};

use crate::fanotify::Features;
use crate::fanotify::look::{self, Inode};
use crate::process::facts::Stat;

/// What the names of containerd's shims begin with.
const SHIM: &str = "containerd-shim";

/// Who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// Of no pid namespace that we see: it starts nothing on this node. Or it is gone.
    Nobody,
    /// The runtime itself, which executes itself while it makes a container: it starts none.
    Runtime,
    /// A child of a shim: this one.
    OfShim(i32),
    /// Anybody else, and its parent: containers of any pod may be meant.
    Other(i32),
}

impl Caller {
    /// Looks. `file`: the program that is to be executed.
    pub(super) fn of(pid: i32, file: BorrowedFd<'_>) -> Caller {
        if pid <= 0 {
            return Caller::Nobody;
        }
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok().and_then(|bytes| Stat::parse(&bytes));
        let Some(Stat { parent, .. }) = stat else { return Caller::Nobody };
        let program = inode(file);
        if program.is_some() && executable(pid) == program {
            return Caller::Runtime;
        }
        if is_shim(parent) { Caller::OfShim(parent) } else { Caller::Other(parent) }
    }

    /// Whether a container that is ready to begin, kept by `parent`, may be what it is about.
    pub(super) fn may_start(self, parent: i32) -> bool {
        match self {
            Caller::Nobody | Caller::Runtime => false,
            Caller::OfShim(shim) => shim == parent,
            Caller::Other(_) => true,
        }
    }

    /// Whether whatever it is about is of the pod whose containers it waits for.
    pub(super) fn acts_for_one_pod(self) -> bool {
        matches!(self, Caller::OfShim(_))
    }

    /// Who executes runtimes by this process.
    pub(super) fn keeper(self) -> Option<i32> {
        match self {
            Caller::Nobody | Caller::Runtime => None,
            Caller::OfShim(parent) | Caller::Other(parent) => Some(parent),
        }
    }
}

fn executable(pid: i32) -> Option<Inode> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    inode(rustix::fs::open(format!("/proc/{pid}/exe"), flags, Mode::empty()).ok()?.as_fd())
}

fn inode(file: BorrowedFd<'_>) -> Option<Inode> {
    look::stat(file, &Features::default()).ok().map(|stat| stat.inode)
}

fn is_shim(pid: i32) -> bool {
    program_of(pid).is_some_and(|name| name.starts_with(SHIM))
}

/// The name of a process's executable.
pub(super) fn program_of(pid: i32) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_starts_its_own_containers_and_nobody_elses() {
        assert!(Caller::OfShim(7).may_start(7) && !Caller::OfShim(7).may_start(8));
        assert!(Caller::Other(7).may_start(8));
        assert!(!Caller::Runtime.may_start(7) && !Caller::Nobody.may_start(7));
        assert!(Caller::OfShim(7).acts_for_one_pod() && !Caller::Other(7).acts_for_one_pod());
    }

    #[test]
    fn who_executes_itself_is_told() {
        let own = i32::try_from(std::process::id()).unwrap();
        let itself = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(Caller::of(own, itself.as_fd()), Caller::Runtime);
        let other = std::fs::File::open("/proc/self/stat").unwrap();
        assert!(matches!(Caller::of(own, other.as_fd()), Caller::Other(_)));
        assert_eq!(Caller::of(0, other.as_fd()), Caller::Nobody);
    }
}

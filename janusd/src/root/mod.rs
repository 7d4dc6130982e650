//! The tree that a guard's paths are relative to: a container's root, or a directory of this machine.
//!
//! Owns: getting at the root ([`Root`]), what is mounted in it ([`mountinfo`]), and following a path inside it
//! ([`resolve`]). Must never: resolve anything on the node that the container named, or keep a descriptor into the root
//! (one O_PATH descriptor is enough to keep a volume from being unmounted).

pub mod fstype;
pub mod mountinfo;
pub mod resolve;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};

/// Where a guard's root is.
#[derive(Debug)]
pub enum Root {
    /// A directory of this machine.
    Directory(PathBuf),
    /// The root of a process, as the process sees it.
    Process {
        /// Its number.
        pid: Pid,
        /// Holds on to the process itself: a number is given out again.
        pidfd: OwnedFd,
    },
}

/// A root could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// No such process.
    #[error("no process {0}")]
    NoProcess(i32),
    /// It was there and has ended.
    #[error("process {0} has ended")]
    Ended(i32),
    /// Not allowed to look.
    #[error("{path}: {source} (needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)")]
    Denied {
        /// What was opened.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Anything else.
    #[error("{path}: {source}")]
    Unreachable {
        /// What was opened.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl Root {
    /// The root of a running process.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn of_process(pid: i32) -> Result<Root, RootError> {
        let number = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(RootError::NoProcess(pid))?;
        let pidfd = rustix::process::pidfd_open(number, PidfdFlags::empty()).map_err(|_| RootError::NoProcess(pid))?;
        let root = Root::Process { pid: number, pidfd };
        root.open()?;
        Ok(root)
    }

    /// A directory.
    ///
    /// # Errors
    /// [`RootError`]: it does not exist, or is no directory.
    pub fn of_directory(path: &Path) -> Result<Root, RootError> {
        let unreachable = |source| RootError::Unreachable { path: path.to_owned(), source };
        let root = Root::Directory(std::fs::canonicalize(path).map_err(unreachable)?);
        root.open()?;
        Ok(root)
    }

    /// Another hold on the same root.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone(&self) -> std::io::Result<Root> {
        Ok(match self {
            Root::Directory(path) => Root::Directory(path.clone()),
            Root::Process { pid, pidfd } => Root::Process { pid: *pid, pidfd: pidfd.try_clone()? },
        })
    }

    /// Opens the root itself (O_PATH). Close it soon.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn open(&self) -> Result<OwnedFd, RootError> {
        let path = match self {
            Root::Directory(path) => path.clone(),
            Root::Process { pid, .. } => PathBuf::from(format!("/proc/{}/root", pid.as_raw_nonzero())),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, Mode::empty());
        // Only now: were the process gone before the open, the number could already be another's.
        if let Root::Process { pid, .. } = self
            && !self.alive()
        {
            return Err(RootError::Ended(pid.as_raw_nonzero().get()));
        }
        opened.map_err(|errno| match errno {
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => RootError::Denied { path, source: errno.into() },
            _ => RootError::Unreachable { path, source: errno.into() },
        })
    }

    /// The mounts of the root's mount namespace, as its own process sees them.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn mountinfo(&self) -> Result<Vec<mountinfo::Mount>, RootError> {
        let path = self.mountinfo_path();
        let bytes = std::fs::read(&path).map_err(|source| RootError::Unreachable { path, source })?;
        Ok(mountinfo::parse(&bytes))
    }

    /// The file that tells of mounts, and, polled for `POLLPRI`, of changes to them.
    pub fn mountinfo_path(&self) -> PathBuf {
        match self {
            Root::Directory(_) => PathBuf::from("/proc/self/mountinfo"),
            Root::Process { pid, .. } => PathBuf::from(format!("/proc/{}/mountinfo", pid.as_raw_nonzero())),
        }
    }

    /// Whether the root's process still runs; always true for a directory.
    pub fn alive(&self) -> bool {
        match self {
            Root::Directory(_) => true,
            Root::Process { pidfd, .. } => {
                let mut poll = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
                let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                // A pidfd is readable once its process has ended.
                matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(0))
            }
        }
    }
}

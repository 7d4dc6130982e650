//! One run of one test: with janusd, or as the control without it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use tempfile::TempDir;

use crate::container::{Agent, Container, Directory, host};
use crate::daemon::{Janusd, Target};
use crate::protocol::Outcome;
use crate::watchdog::{Watch, wait_until};

/// Whether janusd takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Janus {
    /// It does: denials are denials.
    Guards,
    /// The control: nobody denies, and what must be denied must be seen to succeed.
    Absent,
}

/// A test's own scratch directory, and its judgement.
pub(crate) struct Case {
    pub(crate) janus: Janus,
    pub(crate) watch: Watch,
    scratch: TempDir,
}

impl Case {
    pub(crate) fn new(janus: Janus, watch: Watch) -> Case {
        let scratch = TempDir::with_prefix("janus-kernel-").unwrap();
        Case { janus, watch, scratch }
    }

    /// A path in the scratch directory.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn container(&self) -> Container {
        Container::start(&self.watch, self.scratch("container"))
    }

    pub(crate) fn container_named(&self, name: &str) -> Container {
        Container::start(&self.watch, self.scratch(name))
    }

    /// Another container of the same pod: it has its emptyDir in common with `other`.
    pub(crate) fn container_beside(&self, name: &str, other: &Container) -> Container {
        Container::start_beside(&self.watch, self.scratch(name), other)
    }

    /// A container with an empty root that shares the node's pid namespace.
    pub(crate) fn bare_container(&self, name: &str) -> Agent {
        Container::start_bare(&self.watch, "bare", &self.scratch(name))
    }

    /// The same before it has let go of its old root.
    pub(crate) fn half_a_container(&self, name: &str) -> Agent {
        Container::start_bare(&self.watch, "half", &self.scratch(name))
    }

    pub(crate) fn directory(&self) -> Directory {
        self.directory_named("directory")
    }

    pub(crate) fn directory_named(&self, name: &str) -> Directory {
        Directory::start(&self.watch, self.scratch(name))
    }

    pub(crate) fn host(&self) -> Agent {
        host(&self.watch)
    }

    /// Starts `janusd guard` and waits until it says that enforcement is in force. In the control there is none.
    pub(crate) fn guard<'a>(&self, target: impl Into<Target<'a>>, manifest: &str) -> Janusd {
        self.guard_with(target, manifest, &[])
    }

    /// The same, with more arguments.
    pub(crate) fn guard_with<'a>(&self, target: impl Into<Target<'a>>, manifest: &str, arguments: &[&str]) -> Janusd {
        match self.janus {
            Janus::Guards => Janusd::start(self, target.into(), manifest, arguments),
            Janus::Absent => Janusd::absent(),
        }
    }

    /// The kernel refused, with EPERM.
    #[track_caller]
    pub(crate) fn denied(&self, outcome: Outcome) {
        match self.janus {
            Janus::Guards => assert_eq!(outcome, Err(Errno::PERM), "not denied"),
            Janus::Absent => assert!(outcome.is_ok(), "the control fails without janusd: {outcome:?}"),
        }
    }

    /// Nobody refused: with janusd and without.
    #[track_caller]
    pub(crate) fn allowed(&self, outcome: Outcome) {
        assert!(outcome.is_ok(), "not allowed: {outcome:?}");
    }

    /// Something that is true because janusd is there.
    #[track_caller]
    pub(crate) fn holds(&self, condition: bool, what: &str) {
        match self.janus {
            Janus::Guards => assert!(condition, "{what}"),
            Janus::Absent => assert!(!condition, "holds without janusd: {what}"),
        }
    }

    /// Denied from some moment within `limit` on, and from then on at every try.
    #[track_caller]
    pub(crate) fn becomes_denied(&self, limit: Duration, mut attempt: impl FnMut() -> Outcome) {
        if self.janus == Janus::Guards {
            assert!(wait_until(limit, || attempt() == Err(Errno::PERM)), "not denied within {limit:?}");
        }
        for _ in 0..20 {
            self.denied(attempt());
        }
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap()
}

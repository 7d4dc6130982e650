//! What a test asks of an agent, and what comes back: one JSON value a line.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::matrix::races::Raced;
use crate::matrix::room::Room;
use crate::matrix::stage::{Cue, Played};

/// One thing that a process can do to a file. Names are `OsString`s: not every file's name is UTF-8.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Act {
    /// Opens for reading.
    Open(OsString),
    /// Opens for writing, creating the file when absent.
    Create(OsString),
    /// Opens for writing with `O_TRUNC`.
    Truncate(OsString),
    /// Opens with `O_PATH`, which nothing gates, then for reading through `/proc/self/fd`.
    Reopen(OsString),
    /// Opens and reads: the answer is the content.
    Read(OsString),
    /// Lists a directory: the answer is the names, one a line.
    List(OsString),
    /// Executes, waits for success: the answer is its stdout.
    Execute(OsString, Vec<OsString>),
    /// Opens with `O_PATH`, then executes `/proc/self/fd/N`.
    ExecuteReopened(OsString),
    /// Creates or overwrites with a content.
    Write(OsString, String),
    /// Writes a sibling, renames it over the file: an atomic write.
    Replace(OsString, String),
    /// `mkdir -p`.
    MakeDirectories(OsString),
    /// `mv from to`.
    Rename(OsString, OsString),
    /// `ln -s target name`.
    Symlink(OsString, OsString),
    /// `ln file name`.
    HardLink(OsString, OsString),
    /// `rm`.
    Unlink(OsString),
    /// `chmod 755`: copies a lower file up without opening it.
    MakeExecutable(OsString),
    /// The size by stat, which nothing gates.
    Size(OsString),
    /// The next version of an AtomicWriter volume.
    Rotate(OsString),
    /// Bind-mounts the first over the second.
    Bind(OsString, OsString),
    /// Unmounts, not lazily: fails when busy.
    Unmount(OsString),
}

/// Constructors, so that tests read as sentences.
macro_rules! one_path {
    ($($function:ident => $act:ident),*) => {$(
        pub(crate) fn $function(path: impl AsRef<OsStr>) -> Act {
            Act::$act(path.as_ref().to_owned())
        }
    )*};
}
macro_rules! two_paths {
    ($($function:ident => $act:ident),*) => {$(
        pub(crate) fn $function(from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Act {
            Act::$act(from.as_ref().to_owned(), to.as_ref().to_owned())
        }
    )*};
}
one_path!(open => Open, create => Create, truncate => Truncate, reopen => Reopen, read => Read, list => List,
    execute_reopened => ExecuteReopened, make_directories => MakeDirectories, unlink => Unlink,
    make_executable => MakeExecutable, size => Size, rotate => Rotate, unmount => Unmount);
two_paths!(rename => Rename, symlink => Symlink, hard_link => HardLink, bind => Bind);

pub(crate) fn write(path: impl AsRef<OsStr>, content: &str) -> Act {
    Act::Write(path.as_ref().to_owned(), content.to_owned())
}

pub(crate) fn replace(path: impl AsRef<OsStr>, content: &str) -> Act {
    Act::Replace(path.as_ref().to_owned(), content.to_owned())
}

pub(crate) fn execute<const N: usize>(program: &str, arguments: [&str; N]) -> Act {
    Act::Execute(program.into(), arguments.iter().map(OsString::from).collect())
}

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// All of these, one straight after the other, stopping at the first that fails.
    Perform(Vec<Act>),
    /// The same, in a thread that has first entered a mount namespace of its own.
    PerformInNewMountNamespace(Vec<Act>),
    /// Starts threads that open files.
    StartOpeners(Openers),
    /// How many opens have been answered so far.
    Opened,
    /// Tells the openers to stop, waits for every one of them.
    StopOpeners,
    /// Waits for openers that open once to end.
    AwaitOpeners,
    /// A route of the matrix.
    Play(Cue),
    /// A race in a room.
    Race(Room),
    /// How long an act takes, so many times.
    Time(Act, usize),
}

/// How long an act took, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Timing {
    pub(crate) median: u64,
    pub(crate) percentile_99: u64,
}

/// A load: opener `i` opens `paths[i % n]`, then `paths[(i + 1) % n]`, and so on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Openers {
    pub(crate) threads: usize,
    pub(crate) paths: Vec<OsString>,
    /// One open a thread, instead of as many as fit until told to stop.
    pub(crate) once: bool,
}

/// What the openers met, by path, in the order of [`Openers::paths`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) paths: Vec<Answers>,
    pub(crate) slowest: Duration,
}

/// How often one path was opened, and with what result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answers {
    pub(crate) allowed: u64,
    /// EPERM.
    pub(crate) denied: u64,
    /// Any other error.
    pub(crate) failed: u64,
}

impl Tally {
    pub(crate) fn total(&self) -> Answers {
        self.paths.iter().fold(Answers::default(), |sum, path| Answers {
            allowed: sum.allowed + path.allowed,
            denied: sum.denied + path.denied,
            failed: sum.failed + path.failed,
        })
    }
}

/// A reply.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The agent serves; its pid as the host counts.
    Serving(u32),
    /// The index of the last act that was tried, and its outcome.
    Performed(usize, Result<Vec<u8>, i32>),
    /// The openers run.
    Started,
    /// Opens so far.
    Opened(u64),
    /// The openers have ended.
    Stopped(Tally),
    /// What came of a cue.
    Played(Played),
    /// What came of a race, or why it could not be run.
    Raced(Result<Raced, String>),
    /// How long it took.
    Timed(Timing),
}

/// What an act gave: its content (empty for most), or the error that the process saw.
pub(crate) type Outcome = Result<Vec<u8>, Errno>;

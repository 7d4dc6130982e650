//! Inside an agent: routes are prepared before the guard is laid, and attempted when it is in force.
//!
//! Guarantees: an attempt runs in a thread of its own, whose root, current directory and namespaces are nobody else's;
//! an attempt that cannot be made is no answer: only the last step's EPERM counts as a denial.

use std::any::Any;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::room::{Room, SECRET};
use super::table;
use crate::agent::enter_new;

/// What the kernel answered to the last step of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It went through.
    Passed,
    /// EPERM.
    Denied,
}

/// What can be tried, again and again.
pub(crate) type Attempt = Box<dyn FnMut() -> io::Result<Answer> + Send>;

/// What is held for another agent's route for as long as this agent lives.
pub(crate) type Held = Box<dyn Any + Send>;

/// A request to an agent's stage.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Cue {
    /// Has what the route wants held by the guarded container's process.
    Hold(Room),
    Prepare(Room),
    /// Tries the route of the room with this name.
    Attempt(String),
}

/// What came of it; an error is told in words.
pub(crate) type Played = Result<Option<Answer>, String>;

#[derive(Default)]
pub(crate) struct Stage {
    attempts: HashMap<String, Attempt>,
    held: Vec<Held>,
}

impl Stage {
    pub(crate) fn play(&mut self, cue: Cue) -> Played {
        let outcome = match cue {
            Cue::Hold(room) => on_own_thread(|| route(&room)?.hold.map(|hold| hold(&room)).transpose()).map(|held| {
                self.held.extend(held);
                None
            }),
            Cue::Prepare(room) => on_own_thread(|| (route(&room)?.prepare)(&room)).map(|attempt| {
                self.attempts.insert(Room::name(&room.route, room.guard), attempt);
                None
            }),
            Cue::Attempt(name) => match self.attempts.get_mut(&name) {
                Some(attempt) => on_own_thread(attempt).map(Some),
                None => Err(io::Error::other("not prepared")),
            },
        };
        outcome.map_err(|error| error.to_string())
    }
}

fn route(room: &Room) -> io::Result<&'static table::Route> {
    table::route(&room.route).ok_or_else(|| io::Error::other("no such route"))
}

fn on_own_thread<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter_new(UnshareFlags::FS)?;
            act()
        });
        thread.join().unwrap_or_else(|_panic| Err(io::Error::other("panicked")))
    })
}

/// For routes: an attempt from a closure.
pub(crate) fn attempt(attempt: impl FnMut() -> io::Result<Answer> + Send + 'static) -> io::Result<Attempt> {
    Ok(Box::new(attempt))
}

/// An attempt that takes steps once, and whose last step can be tried again.
pub(crate) fn once_then(
    mut steps: impl FnMut() -> io::Result<()> + Send + 'static,
    mut last: impl FnMut() -> io::Result<Answer> + Send + 'static,
) -> io::Result<Attempt> {
    let mut taken = false;
    attempt(move || {
        if !std::mem::replace(&mut taken, true) {
            steps()?;
        }
        last()
    })
}

/// The last step's outcome as an answer.
pub(crate) fn answer<T, E: Into<io::Error>>(outcome: Result<T, E>) -> io::Result<Answer> {
    match outcome.map_err(Into::into) {
        Ok(_) => Ok(Answer::Passed),
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(Answer::Denied),
        Err(error) => Err(error),
    }
}

/// The answer, where an error other than EPERM tells that the kernel had got at the file.
pub(crate) fn answer_beyond<T>(outcome: io::Result<T>, beyond: &[Errno]) -> io::Result<Answer> {
    match outcome {
        Err(error) if beyond.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) => {
            Ok(Answer::Passed)
        }
        outcome => answer(outcome),
    }
}

/// One answer for ways that must all get the same.
pub(crate) fn all_alike(answers: impl IntoIterator<Item = (String, io::Result<Answer>)>) -> io::Result<Answer> {
    let mut first: Option<(String, Answer)> = None;
    for (way, outcome) in answers {
        let answer = outcome.map_err(|error| io::Error::other(format!("{way}: {error}")))?;
        match &first {
            Some((other, before)) if *before != answer => {
                return Err(io::Error::other(format!("{other} gave {before:?}, {way} gave {answer:?}")));
            }
            _ => first = Some((way, answer)),
        }
    }
    first.map(|(_, answer)| answer).ok_or_else(|| io::Error::other("no way was tried"))
}

/// Opens for reading, and sees to it that it is the secret that was opened.
pub(crate) fn reach(path: &Path) -> io::Result<Answer> {
    reached(File::open(path))
}

pub(crate) fn reach_at(dir: &OwnedFd, name: &Path) -> io::Result<Answer> {
    reached(rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
}

/// What an open gave.
pub(crate) fn reached<E: Into<io::Error>>(opened: Result<impl Into<File>, E>) -> io::Result<Answer> {
    match opened.map_err(Into::into) {
        Ok(file) => {
            let mut content = Vec::new();
            file.into().read_to_end(&mut content)?;
            is_secret(&content)
        }
        Err(error) => answer(Err::<(), _>(error)),
    }
}

/// The bytes that came out: the secret, or something is wrong with the route.
pub(crate) fn is_secret(content: &[u8]) -> io::Result<Answer> {
    if content.starts_with(SECRET.as_bytes()) || content.starts_with(b"token ") {
        return Ok(Answer::Passed);
    }
    Err(io::Error::other(format!("other bytes: {:?}", String::from_utf8_lossy(content))))
}

pub(crate) fn path_fd(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

pub(crate) fn directory_fd(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Evicts what the kernel caches of names and inodes. Not everyone may, and nothing depends on it.
pub(crate) fn drop_caches() {
    let _not_allowed_here = fs::write("/proc/sys/vm/drop_caches", "2");
}

/// The argument of the child that [`in_child`] starts.
const CHILD: &str = "child";
/// Exit statuses of such a child.
const PASSED: i32 = 10;
const DENIED: i32 = 11;

/// Runs one of [`table::CHILDREN`] in a process of its own, for what a thread cannot do.
pub(crate) fn in_child(what: &str, arguments: &[&Path]) -> io::Result<Answer> {
    let output = Command::new("/proc/self/exe")
        .args([crate::agent::WORD, CHILD, what])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()?;
    match output.status.code() {
        // 0: it has become the program.
        Some(0 | PASSED) => Ok(Answer::Passed),
        Some(DENIED) => Ok(Answer::Denied),
        _ => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

/// The child's side.
pub(crate) fn be_child(arguments: &[OsString]) -> io::Result<()> {
    let [what, paths @ ..] = arguments else { return Err(io::Error::other("a child of what?")) };
    let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
    let child = table::CHILDREN.iter().find(|(name, _)| what == name);
    let (_, act) = child.ok_or_else(|| io::Error::other("no such child"))?;
    let status = match act(&paths)? {
        Answer::Passed => PASSED,
        Answer::Denied => DENIED,
    };
    std::process::exit(status);
}

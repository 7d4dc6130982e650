//! Looks at the process that waits for an answer.
//!
//! Runs on a lookup thread, never on one that answers events. Reads procfs; opens, with O_PATH only, the executable of the
//! process and what a matcher's paths lead to inside the guarded root; reads from the event's own descriptor when asked
//! for the file's interpreter. None of these raises an event.
//!
//! Guarantees: what is said was true of the process that the event names. Its opener is blocked in the kernel, so it
//! cannot exec or exit meanwhile; it can be killed, and its number given to another: a pidfd, opened first, tells at the
//! end that it lived throughout.
//!
//! Caveat: an event names a process, not a thread. Threads that have changed their own user by system calls that libc
//! does not offer are judged as the process's first thread.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::facts::{self, Cgroups, IdMap, Stat};
use super::interpreter::{self, Header};
use super::origin::{self, Container, Home, Identity, Processes, Seen};
use crate::fanotify::Features;
use crate::fanotify::look::{self, FileHandle, Inode, Names};
use crate::policy::{Depends, Exceptions, Failure, Origin, PathPattern, Process, Who};
use crate::root::Root;
use crate::root::fstype;
use crate::root::mountinfo;
use crate::root::resolve::{Gate, resolve};

/// How often changing ancestors are read again before that is a failure.
const TRIES: usize = 8;
/// Mounts that are remembered as safe to enter.
const MOST_MOUNTS: usize = 256;
/// Threads of a process that are tried for its executable, once its first one has ended.
const MOST_THREADS: usize = 64;

/// What a guard guards, as far as processes are told apart by it. Holds pidfds, and no descriptor into the root.
#[derive(Debug)]
pub struct Anchor {
    root: Root,
    container: Option<Container>,
    /// Keeps the number of the container's init its own.
    init: Option<OwnedFd>,
    users: IdMap,
    seen: Mutex<Seen>,
    /// Mounts that were found safe to step into. Kept where mount ids are never reused, so that a list of mounts is not
    /// read for each executable.
    entered: Mutex<HashSet<u64>>,
}

/// A container's first process could not be told.
#[derive(Debug, thiserror::Error)]
#[error("process {pid}: {what}")]
pub struct AnchorError {
    pid: i32,
    what: &'static str,
}

impl Anchor {
    /// For a root: around a process its container; around a directory none, and every process is the node's.
    ///
    /// The container of a process begins with PID 1 of its pid namespace. Where that is our own (a host pid namespace), or
    /// where PID 1 is of another container of the kubelet's (a pod that shares its pid namespace), it begins with the
    /// farthest ancestor in the same container by cgroup, or else with the process itself.
    ///
    /// # Errors
    /// [`AnchorError`]; and what keeps a pidfd from being duplicated.
    pub fn new(root: &Root) -> Result<Anchor, std::io::Error> {
        let root = root.try_clone()?;
        let Root::Process { pid, .. } = &root else {
            let users = IdMap::identity();
            let (seen, entered) = (Mutex::default(), Mutex::default());
            return Ok(Anchor { root, container: None, init: None, users, seen, entered });
        };
        let pid = pid.as_raw_nonzero().get();
        let init = first_process(pid).ok_or_else(|| ended(pid))?;
        Anchor::of_container(root, init)
    }

    /// For a container whose first process is known: `init`, as our pid namespace numbers it.
    ///
    /// # Errors
    /// [`AnchorError`]: it has ended.
    pub fn of_container(root: Root, init: i32) -> Result<Anchor, std::io::Error> {
        let pidfd = Pid::from_raw(init).filter(|_| init > 0).ok_or_else(|| ended(init))?;
        let pidfd = pidfd_open(pidfd, PidfdFlags::empty()).map_err(|_| ended(init))?;
        let mut proc = Procfs::default();
        let stat = proc.stat(init).ok_or_else(|| ended(init))?;
        let pid_namespace = proc.pid_namespace(init).ok_or_else(|| ended(init))?;
        let innermost = proc.read(init, "status").and_then(facts::innermost_pid);
        let home = proc.cgroups(init).as_ref().and_then(Home::of);
        // Read once: a process can give itself another user namespace, with a map of its own making.
        let users = proc.read(init, "uid_map").map(IdMap::parse).ok_or_else(|| ended(init))?;
        let private = innermost == Some(1) && init != 1;
        let container = Container { init: Identity { pid: init, start: stat.start }, pid_namespace, private, home };
        if !alive(&pidfd) {
            return Err(ended(init).into());
        }
        let (seen, entered) = (Mutex::default(), Mutex::default());
        Ok(Anchor { root, container: Some(container), init: Some(pidfd), users, seen, entered })
    }

    /// What the container calls one of our users.
    pub fn user(&self, ours: u32) -> Option<u32> {
        self.users.inside(ours)
    }

    /// Whether the container's init lives.
    pub fn alive(&self) -> bool {
        self.init.as_ref().is_none_or(alive)
    }
}

impl From<AnchorError> for std::io::Error {
    fn from(error: AnchorError) -> Self {
        std::io::Error::other(error)
    }
}

fn ended(pid: i32) -> AnchorError {
    AnchorError { pid, what: "its container cannot be told: it has ended" }
}

/// The first process of the container of `pid`.
fn first_process(pid: i32) -> Option<i32> {
    let mut proc = Procfs::default();
    let namespace = proc.pid_namespace(pid)?;
    let home = proc.cgroups(pid).as_ref().and_then(Home::of);
    let in_home = |proc: &mut Procfs, pid| match &home {
        Some(home) => proc.cgroups(pid).is_some_and(|cgroups| home.holds(&cgroups)),
        None => true,
    };
    let ours = std::process::id().try_into().ok().and_then(|own| proc.pid_namespace(own));
    if ours != Some(namespace) {
        let first = processes().find(|other| {
            proc.pid_namespace(*other) == Some(namespace)
                && proc.read(*other, "status").and_then(facts::innermost_pid) == Some(1)
        });
        if let Some(first) = first.filter(|first| in_home(&mut proc, *first)) {
            return Some(first);
        }
    }
    let mut init = pid;
    if home.is_some() {
        // Bounded as any walk upwards: start times fall.
        while let Some(parent) = proc.stat(init).map(|stat| stat.parent).filter(|parent| *parent != 0)
            && in_home(&mut proc, parent)
        {
            init = parent;
        }
    }
    Some(init)
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// What is asked about an opener.
#[derive(Debug)]
pub struct Inquiry<'a> {
    /// The process, as the event names it: 0 when it is in no pid namespace that we see.
    pub pid: i32,
    /// What the answer depends on.
    pub depends: Depends,
    /// The guard's exceptions.
    pub exceptions: &'a Exceptions,
    /// The event's file, where the answer depends on its interpreter.
    pub file: Option<BorrowedFd<'a>>,
    /// What the kernel can do.
    pub features: &'a Features,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub process: Process,
    /// What that means for the exceptions in question.
    pub who: Who,
    /// It is one of the node's own agents. False when that was not asked.
    pub agent: bool,
}

/// The node's own agents (kubelet, container runtime), which no guard denies.
pub trait NodeAgents: Send + Sync + std::fmt::Debug {
    /// Whether a process is one: by the identity of its executable, in the node's mount namespace, in no pod's cgroup.
    ///
    /// # Errors
    /// [`Failure::ProcessLookup`].
    fn holds(&self, pid: i32, features: &Features) -> Result<bool, Failure>;
}

impl Anchor {
    /// Looks.
    ///
    /// # Errors
    /// [`Failure::ProcessLookup`].
    pub fn look(&self, inquiry: &Inquiry<'_>) -> Result<Found, Failure> {
        let mut executable = Executable { anchor: self, inquiry, opened: None };
        if inquiry.pid <= 0 {
            // Our pid namespace holds the container's, so what it does not hold is not in there.
            let process = Process { origin: Some(Origin::Node), maybe: Some(Origin::Pod), user: None };
            let process = if self.container.is_some() { process } else { Process { maybe: None, ..process } };
            let mut who = inquiry.exceptions.weigh(inquiry.depends.exceptions, &process, |_| false);
            who.interpreter = inquiry.depends.interpreter.then_some(false);
            return Ok(Found { process, who, agent: false });
        }
        let number = Pid::from_raw(inquiry.pid).ok_or(Failure::ProcessLookup)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|_| Failure::ProcessLookup)?;
        let process = self.process(inquiry.pid)?;
        let interpreter = match inquiry.depends.interpreter {
            false => None,
            true => Some(executable.interprets().map_err(|_| Failure::ProcessLookup)?),
        };
        let mut who = inquiry.exceptions.weigh(inquiry.depends.exceptions, &process, |path| executable.is(path));
        who.interpreter = interpreter;
        if alive(&pidfd) { Ok(Found { process, who, agent: false }) } else { Err(Failure::ProcessLookup) }
    }

    fn process(&self, pid: i32) -> Result<Process, Failure> {
        let mut proc = Procfs::default();
        let mut seen = self.seen.lock();
        let found = (0..TRIES).find_map(|_| origin::classify(pid, self.container.as_ref(), &mut seen, &mut proc).ok());
        drop(seen);
        let found = found.ok_or(Failure::ProcessLookup)?;
        let status = proc.read(pid, "status").ok_or(Failure::ProcessLookup)?;
        let user = facts::effective_uid(status).and_then(|ours| self.user(ours));
        Ok(Process { origin: Some(found.origin), maybe: found.maybe, user })
    }
}

pub(super) fn alive(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A pidfd is readable once its process has ended.
    matches!(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)), Ok(0))
}

/// Reads procfs, into one buffer.
#[derive(Debug, Default)]
struct Procfs {
    buffer: Vec<u8>,
}

impl Procfs {
    fn read(&mut self, pid: i32, name: &str) -> Option<&[u8]> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(format!("/proc/{pid}/{name}"), flags, Mode::empty()).ok()?;
        self.buffer.resize(self.buffer.len().max(4096), 0);
        let mut filled = 0;
        loop {
            match rustix::io::read(&file, &mut self.buffer[filled..]) {
                Ok(0) => return Some(&self.buffer[..filled]),
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
            if filled == self.buffer.len() {
                self.buffer.resize(filled * 2, 0);
            }
        }
    }
}

impl Processes for Procfs {
    fn stat(&mut self, pid: i32) -> Option<Stat> {
        self.read(pid, "stat").and_then(Stat::parse)
    }

    fn pid_namespace(&mut self, pid: i32) -> Option<u64> {
        let link = rustix::fs::readlink(format!("/proc/{pid}/ns/pid"), Vec::new()).ok()?;
        facts::namespace(link.as_bytes())
    }

    fn cgroups(&mut self, pid: i32) -> Option<Cgroups> {
        self.read(pid, "cgroup").map(Cgroups::parse)
    }
}

/// A file, by identity: whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct File {
    inode: Inode,
    handle: Option<FileHandle>,
}

impl File {
    pub(super) fn of(file: BorrowedFd<'_>, features: &Features) -> Option<File> {
        let stat = look::stat(file, features).ok()?;
        Some(File { inode: stat.inode, handle: look::handle(file, features) })
    }

    fn is(&self, other: &File) -> bool {
        // A number can have been given to another file; a handle never.
        self == other
    }
}

/// The executable of an opener; opened when it is first asked for.
struct Executable<'a> {
    anchor: &'a Anchor,
    inquiry: &'a Inquiry<'a>,
    opened: Option<Option<(OwnedFd, File)>>,
}

impl Executable<'_> {
    /// `None`: a kernel thread, or out of reach.
    fn opened(&mut self) -> Option<&(OwnedFd, File)> {
        let &Inquiry { pid, features, .. } = self.inquiry;
        let open = || {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let open = |process: &Path| rustix::fs::open(process.join("exe"), flags, Mode::empty()).ok();
            let process = Path::new("/proc").join(pid.to_string());
            let file = open(&process).or_else(|| {
                // The first thread has ended before the others, and let go of it.
                let threads = std::fs::read_dir(process.join("task")).ok()?;
                threads.take(MOST_THREADS).filter_map(Result::ok).find_map(|thread| open(&thread.path()))
            })?;
            let identity = File::of(file.as_fd(), features)?;
            Some((file, identity))
        };
        self.opened.get_or_insert_with(open).as_ref()
    }

    /// Whether it is what a path leads to inside the guarded root; of a glob: whether the glob matches the path by which
    /// it was executed, and that path still leads to it.
    fn is(&mut self, pattern: &PathPattern) -> bool {
        let (anchor, features) = (self.anchor, self.inquiry.features);
        let Some((file, identity)) = self.opened() else { return false };
        let Ok(root) = anchor.root.open() else { return false };
        let gate = anchor.entered(&root, features);
        if !pattern.is_glob() {
            return gate.leads_to(pattern.base(), identity);
        }
        let name = |file: BorrowedFd<'_>| Some(Names::new().ok()?.of(file).ok()?.to_vec());
        let (Some(path), Some(prefix)) = (name(file.as_fd()), name(root.as_fd())) else { return false };
        let inside = match path.strip_prefix(prefix.as_slice()) {
            _ if prefix == b"/" => path.as_slice(),
            Some(inside) if inside.starts_with(b"/") => inside,
            _ => return false,
        };
        pattern.matches(inside) && gate.leads_to(inside, identity)
    }

    /// Whether it is the program interpreter of the event's file: as the container's root names it, or as the process's
    /// own root does.
    fn interprets(&mut self) -> std::io::Result<bool> {
        let (anchor, &Inquiry { pid, file, features, .. }) = (self.anchor, self.inquiry);
        let file = file.ok_or(Errno::BADF)?;
        if look::stat(file, features)?.file_type != FileType::RegularFile {
            return Ok(false);
        }
        let Some(path) = interpreter::interpreter(&mut EventFile(file))? else { return Ok(false) };
        let Some((_, identity)) = self.opened() else { return Ok(false) };
        if let Ok(root) = anchor.root.open()
            && anchor.entered(&root, features).leads_to(&path, identity)
        {
            return Ok(true);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(root) = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty()) else { return Ok(false) };
        let mounts = || {
            std::fs::read(format!("/proc/{pid}/mountinfo")).map(|bytes| mountinfo::parse(&bytes)).unwrap_or_default()
        };
        let entered = Mutex::default();
        Ok(Entered { root: &root, mounts, entered: &entered, features }.leads_to(&path, identity))
    }
}

/// A root, and the way through it: file systems whose server could keep us waiting are not entered.
struct Entered<'a, M> {
    root: &'a OwnedFd,
    mounts: M,
    entered: &'a Mutex<HashSet<u64>>,
    features: &'a Features,
}

impl Anchor {
    fn entered<'a>(
        &'a self,
        root: &'a OwnedFd,
        features: &'a Features,
    ) -> Entered<'a, impl Fn() -> Vec<mountinfo::Mount> + 'a> {
        let mounts = || self.root.mountinfo().unwrap_or_default();
        Entered { root, mounts, entered: &self.entered, features }
    }
}

impl<M: Fn() -> Vec<mountinfo::Mount>> Entered<'_, M> {
    fn leads_to(&self, path: &[u8], identity: &File) -> bool {
        let found = resolve(self.root.as_fd(), path, self.features, self).ok().and_then(|resolved| resolved.found);
        found.is_some_and(|found| {
            found.stat.inode == identity.inode
                && File::of(found.file.as_fd(), self.features).is_some_and(|file| file.is(identity))
        })
    }
}

impl<M: Fn() -> Vec<mountinfo::Mount>> Gate for Entered<'_, M> {
    fn enter(&self, file: BorrowedFd<'_>, stat: &look::Stat) -> bool {
        let mut entered = self.entered.lock();
        if self.features.unique_mount_ids && entered.contains(&stat.mount) {
            return true;
        }
        let safe = look::mountinfo_id(file).is_ok_and(|id| {
            (self.mounts)().iter().any(|mount| mount.id == id && fstype::refused(&mount.fstype).is_none())
        });
        if safe {
            if entered.len() >= MOST_MOUNTS {
                entered.clear();
            }
            entered.insert(stat.mount);
        }
        safe
    }
}

/// The event's descriptor: reading from it raises no event.
struct EventFile<'a>(BorrowedFd<'a>);

impl Header for EventFile<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match rustix::io::pread(self.0, &mut buffer[filled..], offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                // Beyond what an offset can be: there is nothing.
                Err(Errno::INVAL | Errno::OVERFLOW) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(filled)
    }
}

//! Lookups that a worker must not make itself: which part of which file system a foreign mount shows, and who asks.
//!
//! Two threads for the process, one for each kind: a search for a mount may go through all of procfs. They open files of
//! procfs, and others with O_PATH only, never one that a guard could hold. The event waits meanwhile, bounded by
//! [`DEADLINE`]; its opener is blocked in the kernel, so it and its mount namespace are still there to be read.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::view::Tree;
use super::worker::Command;
use crate::doorbell::Speaker;
use crate::fanotify::{Features, look};
use crate::policy::{Depends, Exceptions, Failure};
use crate::process::look::{Anchor, Found, Inquiry, NodeAgents};
use crate::root::mountinfo;

/// How long an event may wait for a lookup.
pub const DEADLINE: Duration = Duration::from_millis(250);
/// Requests of each kind that may wait. Each is an event that waits, so this also bounds how far behind a thread can be.
const QUEUE: usize = 1024;
/// Looks at one process's mounts: it may change its root between two steps.
const TRIES: usize = 8;
/// Mount namespaces that are searched for one mount.
const NAMESPACES: usize = 256;

/// A mount that a worker does not know.
#[derive(Debug)]
pub struct MountRequest {
    /// As the worker names it.
    pub mount: u64,
    /// As mountinfo names it. The event's open file keeps the mount, and so the number, from being reused.
    pub mountinfo_id: u64,
    /// The opener.
    pub pid: i32,
    /// When its event was read: who waits no longer than [`DEADLINE`] need not be looked up after it.
    pub since: Instant,
    /// Who wants to know.
    pub(super) reply: Speaker<Command>,
}

/// A process on which an answer depends.
#[derive(Debug)]
pub struct ProcessRequest {
    /// Names the request.
    pub(super) ticket: u64,
    pub(super) pid: i32,
    pub(super) depends: Depends,
    pub(super) exceptions: Arc<Exceptions>,
    /// To whom it is to be told what the process is.
    pub(super) anchor: Option<Arc<Anchor>>,
    /// Whether it is one of these is asked as well.
    pub(super) agents: Option<Arc<dyn NodeAgents>>,
    pub(super) features: Features,
    /// Another descriptor of the event's file, if it has to be read from: the event's own closes when it is answered, and its number is given out
    /// again.
    pub(super) file: Option<OwnedFd>,
    /// When the event was read: who waits no longer than [`DEADLINE`] need not be looked up after it.
    pub(super) since: Instant,
    pub(super) reply: Speaker<Command>,
}

/// The way to the lookup threads.
#[derive(Debug, Clone)]
pub struct Lookups {
    mounts: Sender<MountRequest>,
    processes: Sender<ProcessRequest>,
}

/// Lookups that are never made.
#[derive(Debug)]
pub struct Unattended {
    _mounts: Receiver<MountRequest>,
    _processes: Receiver<ProcessRequest>,
}

/// The threads, to be joined.
#[derive(Debug)]
pub struct LookupThread([std::thread::JoinHandle<()>; 2]);

impl Lookups {
    /// Starts the threads. They end when every `Lookups` is gone.
    ///
    /// # Errors
    /// The kernel's, when no thread can be had.
    pub fn start() -> std::io::Result<(Lookups, LookupThread)> {
        let (mounts, mount_requests) = bounded(QUEUE);
        let (processes, process_requests) = bounded(QUEUE);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = [
            thread("janus-lookup").spawn(move || serve_mounts(&mount_requests))?,
            thread("janus-who").spawn(move || serve_processes(&process_requests))?,
        ];
        Ok((Lookups { mounts, processes }, LookupThread(threads)))
    }

    /// For tests: nobody answers, for as long as what comes with it is kept.
    pub fn unattended() -> (Lookups, Unattended) {
        let (mounts, mount_requests) = bounded(QUEUE);
        let (processes, process_requests) = bounded(QUEUE);
        (Lookups { mounts, processes }, Unattended { _mounts: mount_requests, _processes: process_requests })
    }

    /// Asks for a mount. The answer comes as [`Command::Mount`].
    ///
    /// # Errors
    /// [`Failure::LookupBusy`], at once.
    pub fn ask_mount(&self, request: MountRequest) -> Result<(), Failure> {
        self.mounts.try_send(request).map_err(|_: TrySendError<MountRequest>| Failure::LookupBusy)
    }

    /// Asks for a process. The answer comes as [`Command::Process`].
    ///
    /// # Errors
    /// [`Failure::LookupBusy`], at once.
    pub fn ask_process(&self, request: ProcessRequest) -> Result<(), Failure> {
        self.processes.try_send(request).map_err(|_: TrySendError<ProcessRequest>| Failure::LookupBusy)
    }
}

impl LookupThread {
    /// Waits for its end; drop every [`Lookups`] first.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a lookup thread panicked");
            }
        }
    }
}

fn serve_processes(requests: &Receiver<ProcessRequest>) {
    for request in requests {
        if request.since.elapsed() >= DEADLINE {
            continue;
        }
        let inquiry = Inquiry {
            pid: request.pid,
            depends: request.depends,
            exceptions: &request.exceptions,
            file: request.file.as_ref().map(AsFd::as_fd),
            features: &request.features,
        };
        let look = std::panic::AssertUnwindSafe(|| look(&request, &inquiry));
        let found = std::panic::catch_unwind(look).unwrap_or(Err(Failure::ProcessLookup));
        // Closed before the event is answered: whoever may unmount then finds nothing of ours in the way.
        drop(request.file);
        let (ticket, exceptions) = (request.ticket, request.exceptions);
        // A worker that is gone wants no answer.
        let _gone = request.reply.send(Command::Process { ticket, exceptions, found });
    }
}

fn look(request: &ProcessRequest, inquiry: &Inquiry<'_>) -> Result<Found, Failure> {
    // A container that has gone since: nothing can be told to it.
    let anchor = request.anchor.as_ref().ok_or(Failure::ProcessLookup)?;
    let found = anchor.look(inquiry)?;
    match &request.agents {
        Some(agents) => Ok(Found { agent: agents.holds(request.pid, inquiry.features)?, ..found }),
        None => Ok(found),
    }
}

fn serve_mounts(requests: &Receiver<MountRequest>) {
    for request in requests {
        // Also what nobody waits for any more is told: others may have come to wait for the same mount.
        let until = request.since + DEADLINE;
        let found = std::panic::catch_unwind(|| find(request.mountinfo_id, request.pid, until));
        let tree = found.unwrap_or(Err(Failure::UnknownMount)).map(Arc::new);
        // A worker that is gone wants no answer.
        let _gone = request.reply.send(Command::Mount { mount: request.mount, tree });
    }
}

/// Looks where it most likely is: in the namespaces of the opener's threads, ours, the node's; then in every other. A
/// thread can have a namespace of its own, and an event names only the process. No longer than `until`: a container may have
/// as many namespaces as it likes, with as many mounts as the kernel lets it, and others wait.
fn find(mountinfo_id: u64, pid: i32, until: Instant) -> Result<Tree, Failure> {
    let likely = [pid.to_string(), "self".to_owned(), "1".to_owned()];
    let mut searched = HashSet::new();
    for task in likely.into_iter().chain(processes()).flat_map(tasks) {
        if Instant::now() >= until {
            return Err(Failure::LookupTimeout);
        }
        if searched.len() >= NAMESPACES {
            break;
        }
        let Ok(namespace) = std::fs::read_link(task.join("ns/mnt")) else { continue };
        // A chroot shows a part of its namespace's mounts only, so the same namespace through another root is another
        // search.
        let Ok(root) = std::fs::read_link(task.join("root")) else { continue };
        if !searched.insert((namespace, root)) {
            continue;
        }
        for _ in 0..TRIES {
            let Ok(bytes) = std::fs::read(task.join("mountinfo")) else { break };
            let Some(mount) = mountinfo::parse(&bytes).into_iter().find(|mount| mount.id == mountinfo_id) else {
                break;
            };
            if let Some(at) = standing_at(&task, &mount) {
                return Ok(Tree { device: mount.device(), root: mount.root, at });
            }
        }
    }
    Err(Failure::UnknownMount)
}

/// Where a mount is, seen from the root of its mount tree. mountinfo tells it relative to the root that the process had
/// when the file was opened, and a hostile process changes its root back and forth: so the mountpoint is gone to, and has
/// to be that mount's root. Only through what the kernel has at hand (`RESOLVE_CACHED`): mountpoints always are, and a
/// FUSE server on the way is asked nothing.
fn standing_at(task: &Path, mount: &mountinfo::Mount) -> Option<Vec<u8>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(task.join("root"), flags, Mode::empty()).ok()?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::CACHED;
    let relative = mount.mountpoint.strip_prefix(b"/").filter(|rest| !rest.is_empty()).unwrap_or(b".");
    let file = rustix::fs::openat2(&root, OsStr::from_bytes(relative), flags, Mode::empty(), inside).ok()?;
    let is_its_root = look::stat(file.as_fd(), &Features::default()).ok()?.mount_root;
    if !is_its_root || look::mountinfo_id(file.as_fd()).ok()? != mount.id {
        return None;
    }
    Some(look::Names::new().ok()?.of(&file).ok()?.to_vec())
}

fn processes() -> impl Iterator<Item = String> {
    names("/proc".into())
}

fn tasks(process: String) -> impl Iterator<Item = PathBuf> {
    let tasks = PathBuf::from(format!("/proc/{process}/task"));
    names(tasks.clone()).map(move |task| tasks.join(task))
}

/// The entries of a directory that are numbers.
fn names(directory: PathBuf) -> impl Iterator<Item = String> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_our_own_proc() {
        let mounts = mountinfo::parse(&std::fs::read("/proc/self/mountinfo").unwrap());
        let proc = mounts.iter().rfind(|m| m.mountpoint == b"/proc").unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let soon = Instant::now() + Duration::from_secs(60);
        let tree = find(proc.id, pid, soon).unwrap();
        assert_eq!((tree.device, tree.at.as_slice()), (proc.device(), &b"/proc"[..]));
        assert_eq!(find(u64::MAX, 1, soon), Err(Failure::UnknownMount));
    }

    /// Else whoever can make searches long has everybody's late, long after they are of use to anybody.
    #[test]
    fn what_nobody_waits_for_is_not_searched_for() {
        let mounts = mountinfo::parse(&std::fs::read("/proc/self/mountinfo").unwrap());
        let there = mounts.iter().rfind(|m| m.mountpoint == b"/proc").unwrap().id;
        let (lookups, threads) = Lookups::start().unwrap();
        let (reply, mailbox) = crate::doorbell::channel().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let now = Instant::now();
        for (mount, since) in [(1, now.checked_sub(DEADLINE).unwrap()), (2, now + Duration::from_secs(60))] {
            lookups.ask_mount(MountRequest { mount, mountinfo_id: there, pid, since, reply: reply.clone() }).unwrap();
        }
        drop(lookups);
        threads.join();
        let mut told = Vec::new();
        while let Ok(Some(Command::Mount { mount, tree })) = mailbox.take() {
            told.push((mount, tree.err()));
        }
        assert_eq!(told, [(1, Some(Failure::LookupTimeout)), (2, None)]);
    }
}

//! Whether what is in a container's cgroup has begun: finds its first process, and the root of that.
//!
//! A container counts once its root is its own: while a runtime prepares it, its first process still has the node's. Where
//! it does not count, there is a reason with a name ([`NotReached`]).
//!
//! A pid is held by a pidfd before anything that is told rests on it, so that one that is given out again is harmless.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};

use super::bundle::{self, Bundle};
use super::cgroup::{self, Part, PodUid, Runtime, Told};
use super::first::{Member, heads};
use crate::fanotify::Features;
use crate::fanotify::look::{self, Inode};
use crate::process::facts::{self, Cgroups, Stat};
use crate::process::origin::Home;
use crate::root::mountinfo::Mount;
use crate::root::{Root, RootError};

/// Another mount over a container's root is taken for the node's, on its way out, for as long.
pub const PIVOT: Duration = Duration::from_secs(1);
/// Containers of one pod that are told of. No pod has as many; more are left out, and that is said.
pub const MOST_CONTAINERS: usize = 256;
/// Processes among which a container's first one is looked for.
const MOST_MEMBERS: usize = 16_384;
/// Processes that are tried for a container's first one.
const MOST_HEADS: usize = 16;

/// Why something in a pod's cgroup is no container that can be guarded.
#[derive(Debug, thiserror::Error)]
pub enum NotReached {
    /// Sandboxes in a virtual machine, and whatever else a runtime keeps there.
    #[error("the name of its cgroup is of no runtime that is known")]
    UnknownRuntime,
    /// [`MOST_CONTAINERS`].
    #[error("the pod has more than {MOST_CONTAINERS} containers")]
    TooManyContainers,
    /// janusd is not in the node's pid namespace.
    #[error("its processes are in no pid namespace that janusd sees")]
    Hidden,
    /// So that its first cannot be told.
    #[error("it has more than {MOST_MEMBERS} processes")]
    TooManyProcesses,
    /// The first process has ended, and others are left.
    #[error("its first process cannot be told from sessions in it")]
    NoFirst,
    /// It is being prepared.
    #[error("it has no root of its own")]
    NoOwnRoot,
    /// The root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What tells of its end.
    #[error("its end cannot be waited for: {0}")]
    Unpolled(std::io::Error),
}

impl NotReached {
    /// It may be over in a moment, and is told of only if it lasts.
    pub fn may_pass(&self) -> bool {
        matches!(self, NotReached::UnknownRuntime | NotReached::NoFirst | NotReached::NoOwnRoot)
    }
}

/// What a container turned out to be.
#[derive(Debug)]
pub(super) enum Examined {
    /// It has begun: its first process, and its root.
    Is(Member, Root),
    /// It has not, or cannot be entered.
    Not(NotReached),
    /// It has no process.
    Gone,
}

/// The processes of a container, or of something else in a pod's cgroup.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// `None`: what it is is not known.
    pub(super) runtime: Option<Runtime>,
    members: Vec<Member>,
    /// It has processes that our pid namespace does not hold.
    pub(super) hidden: bool,
    too_many: bool,
}

impl Gathered {
    /// One more process.
    pub(super) fn add(&mut self, pid: i32) {
        if self.members.len() >= MOST_MEMBERS {
            self.too_many = true;
            return;
        }
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
        let Some(stat) = read("stat").and_then(|bytes| Stat::parse(&bytes)) else { return };
        let innermost = read("status").and_then(|bytes| facts::innermost_pid(&bytes));
        self.members.push(Member { pid, stat, innermost });
    }
}

/// The node, as its own processes see it.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// The home of its first process, if it is a container itself.
    home: Option<Home>,
}

impl Node {
    /// As the calling thread sees its first process.
    pub(super) fn here() -> Node {
        Node { home: cgroups_of(1).as_ref().and_then(Home::of) }
    }

    /// Where a process is, if it is in a pod.
    pub(super) fn home_of(&self, pid: i32) -> Option<Home> {
        cgroups_of(pid).and_then(|cgroups| Home::outermost(&cgroups, self.home.as_ref()))
    }

    /// Finds a container's first process among its processes, and its root. `ended`: [`heads`]. `waited`: for how long it
    /// has been looked at already.
    pub(super) fn examine(
        &self,
        pod: &PodUid,
        id: &str,
        gathered: &Gathered,
        ended: Option<u64>,
        waited: Duration,
    ) -> Examined {
        if gathered.runtime.is_none() {
            return Examined::Not(NotReached::UnknownRuntime);
        }
        if gathered.hidden {
            return Examined::Not(NotReached::Hidden);
        }
        if gathered.too_many {
            return Examined::Not(NotReached::TooManyProcesses);
        }
        let heads = heads(&gathered.members, ended);
        if heads.is_empty() && !gathered.members.is_empty() {
            return Examined::Not(NotReached::NoFirst);
        }
        let mut outcome = Examined::Gone;
        for head in heads.into_iter().take(MOST_HEADS) {
            match self.enter(pod, id, &head, waited >= PIVOT) {
                Ok(Some(root)) => return Examined::Is(head, root),
                Ok(None) => outcome = Examined::Not(NotReached::NoOwnRoot),
                // It has ended meanwhile.
                Err(RootError::NoProcess(_) | RootError::Ended(_)) => {}
                Err(error) => outcome = Examined::Not(error.into()),
            }
        }
        outcome
    }

    /// The root of a container's first process. `None`: it is the node's, or on its way from there.
    fn enter(&self, pod: &PodUid, id: &str, first: &Member, settled: bool) -> Result<Option<Root>, RootError> {
        let pid = first.pid;
        let root = Root::of_process(pid)?;
        let its = inode(root.open()?.as_fd());
        let nodes = self.views(first.stat.parent);
        let is_nodes =
            |its| nodes.iter().any(|view| open_root(view).ok().and_then(|it| inode(it.as_fd())) == Some(its));
        let own = its.is_some_and(|its| !is_nodes(its)) && (settled || is_alone(&root.mountinfo()?));
        // The pidfd is of whoever has the number now: the same who was gathered, and still there.
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok().and_then(|bytes| Stat::parse(&bytes));
        let told = self.home_of(pid).and_then(|home| cgroup::tell_home(&home));
        let here = told.is_some_and(|Told { pod: its, part }| {
            its == *pod && matches!(part, Part::Container { id: its, .. } if *its == *id)
        });
        if stat.is_none_or(|stat| stat.start != first.stat.start) || !here || !root.alive() {
            return Err(RootError::Ended(pid));
        }
        Ok(Some(root).filter(|_| own))
    }

    /// Processes that see the node as it is: a container's parent (a shim of the runtime's, or who adopted it) if it is in
    /// no pod itself, the node's first process, and this one.
    pub(super) fn views(&self, parent: i32) -> Vec<String> {
        let on_node = |pid: i32| {
            pid > 0 && cgroups_of(pid).is_some_and(|cgroups| Home::outermost(&cgroups, self.home.as_ref()).is_none())
        };
        let parent = Some(parent).filter(|parent| on_node(*parent)).map(|parent| parent.to_string());
        parent.into_iter().chain(["1".to_owned(), "self".to_owned()]).collect()
    }

    /// The container's bundle, as the node shows it. `parent`: its first process's.
    pub(super) fn describe(&self, id: &str, parent: i32) -> Option<Bundle> {
        let views = self.views(parent);
        views.iter().find_map(|view| bundle::read(open_root(view).ok()?.as_fd(), id))
    }
}

/// What a part of a pod is called, if it may be a container, and of which runtime.
pub(super) fn named(part: Part) -> Option<(Arc<str>, Option<Runtime>)> {
    match part {
        Part::Container { id, runtime } => Some((id, Some(runtime))),
        Part::Unknown(name) => Some((name, None)),
        Part::Helper => None,
    }
}

/// The tick of the clock by which processes' start times are told.
pub fn tick() -> Option<u64> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let (seconds, hundredths) = uptime.split(' ').next()?.split_once('.')?;
    // USER_HZ is 100 wherever Linux runs containers.
    Some(seconds.parse::<u64>().ok()? * 100 + hundredths.parse::<u64>().ok()?)
}

fn cgroups_of(pid: i32) -> Option<Cgroups> {
    let file = rustix::fs::open(format!("/proc/{pid}/cgroup"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::with_capacity(4096);
    // Not std's read: asking for the length of a file that has none costs as much as reading it.
    while rustix::io::read(&file, spare_capacity(&mut bytes)).ok()? > 0 {
        bytes.reserve(4096);
    }
    Some(Cgroups::parse(&bytes))
}

pub(super) fn open_root(process: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{process}/root"), flags, Mode::empty())
}

pub(super) fn inode(file: BorrowedFd<'_>) -> Option<Inode> {
    look::stat(file, &Features::default()).ok().map(|stat| stat.inode)
}

/// Whether one mount only is at the root. While a runtime changes a container's root, the node's lies over it, with
/// everything that is mounted there.
fn is_alone(mounts: &[Mount]) -> bool {
    mounts.iter().filter(|mount| mount.mountpoint == b"/").count() == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::mountinfo;

    #[test]
    fn a_root_under_another() {
        let own = "30 29 0:40 / / rw - overlay overlay rw\n31 30 0:41 / /proc rw - proc proc rw\n";
        let nodes = "32 30 254:0 / / rw - ext4 /dev/vda rw\n33 32 0:5 / /proc rw - proc proc rw\n";
        assert!(is_alone(&mountinfo::parse(own.as_bytes())));
        assert!(!is_alone(&mountinfo::parse(format!("{own}{nodes}").as_bytes())));
        assert!(!is_alone(&mountinfo::parse(format!("{nodes}{own}").as_bytes())));
        assert!(!is_alone(&[]));
    }

    #[test]
    fn ticks_are_those_of_start_times() {
        let stat = |pid: u32| Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).unwrap()).unwrap();
        let before = tick().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = stat(child.id()).start;
        let after = tick().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!((before..=after).contains(&start), "{before} {start} {after}");
    }

    /// A number that was gathered in a container's cgroup, and is another's by now: we are in no pod.
    #[test]
    fn a_pid_that_was_given_out_again() {
        let pod = PodUid::new("1").unwrap();
        let id = "c0ffee00".repeat(4);
        let ourselves = i32::try_from(std::process::id()).unwrap();
        let mut gathered = Gathered { runtime: Some(Runtime::Unsaid), ..Gathered::default() };
        gathered.add(ourselves);
        assert_eq!(gathered.members.len(), 1);
        let examined = Node::default().examine(&pod, &id, &gathered, None, PIVOT);
        assert!(matches!(examined, Examined::Gone), "{examined:?}");
        gathered.members[0].stat.start += 1;
        let examined = Node::default().examine(&pod, &id, &gathered, None, PIVOT);
        assert!(matches!(examined, Examined::Gone), "{examined:?}");
    }

    #[test]
    fn what_passes_and_what_does_not() {
        for passing in [NotReached::UnknownRuntime, NotReached::NoFirst, NotReached::NoOwnRoot] {
            assert!(passing.may_pass(), "{passing}");
        }
        for lasting in [NotReached::Hidden, NotReached::TooManyProcesses, RootError::Ended(1).into()] {
            assert!(!lasting.may_pass(), "{lasting}");
        }
    }
}

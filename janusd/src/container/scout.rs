//! What is about to begin in the pods that somebody waits for, as of this moment: for whoever holds the start of a runtime.
//!
//! The finder ([`super::find`]) says what has begun, soon. This says what has not: containers whose first process is there,
//! with a root of its own and everything mounted, and still runs the runtime's program. It looks once, when it is asked, and
//! owns no thread.
//!
//! Guarantees: a container that was ready to begin before the call is in the answer, unless it is settled. Directories that
//! have appeared in pods' cgroups are told by the kernel before whoever made them can go on ([`Tree`]); where cgroups cannot
//! be watched, all of procfs is gone through, each time.
//!
//! Must never: open anything but procfs and cgroups, which no guard gates and no server of a file system can delay.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::cgroup::{self, Part, PodUid};
use super::examine::{Node, inode, open_root};
use super::tree::{Below, Parts, Tree};
use crate::fanotify::look;
use crate::process::facts::Stat;
use crate::root::Root;

/// Processes of one container that are looked at for its first. While it is being made it has one or two.
const MOST_LOOKED_AT: usize = 64;

/// A container that is ready to begin.
#[derive(Debug)]
pub struct Unbegun {
    /// Its pod.
    pub pod: PodUid,
    /// The runtime's id for it.
    pub id: Arc<str>,
    /// Its first process's parent: who keeps it for the runtime.
    pub parent: i32,
    /// Its root: that of its first process.
    pub root: Root,
}

/// A process of a container, by whom it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The container.
    pub id: Arc<str>,
    /// The parent of its oldest process.
    pub parent: i32,
    /// When that process began, in ticks since the node did.
    pub start: u64,
}

/// How far a process of a container is.
enum Stage {
    /// It has the node's root, or none that can be seen.
    Made,
    /// It has its root, and runs what the runtime has brought along.
    Ready(Unbegun),
    /// It runs what is in the container.
    Begun,
}

/// Looks.
#[derive(Debug)]
pub struct Scout {
    tree: Tree,
    node: Node,
    wanted: HashSet<PodUid>,
    /// Those with a part that is not settled.
    unsettled: HashSet<PodUid>,
    /// Those whose cgroup was seen: once it is gone, nothing comes elsewhere.
    seen: HashSet<PodUid>,
}

impl Scout {
    /// One that sees the node as the calling thread does.
    pub fn new() -> Scout {
        let mut tree = Tree::new();
        tree.find_hierarchies();
        Scout { tree, node: Node::here(), wanted: HashSet::new(), unsettled: HashSet::new(), seen: HashSet::new() }
    }

    /// Somebody waits for what begins in exactly these pods.
    pub fn want(&mut self, pods: &HashSet<PodUid>) {
        let gone: Vec<PodUid> = self.wanted.difference(pods).cloned().collect();
        for pod in gone {
            self.tree.forget(&pod);
            self.wanted.remove(&pod);
            self.unsettled.remove(&pod);
            self.seen.remove(&pod);
        }
        for pod in pods {
            if self.wanted.insert(pod.clone()) {
                self.tree.want(pod.clone());
                self.unsettled.insert(pod.clone());
            }
        }
    }

    /// What is settled has changed in a pod.
    pub fn unsettle(&mut self, pod: &PodUid) {
        if self.wanted.contains(pod) {
            self.unsettled.insert(pod.clone());
        }
    }

    /// Whether nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Whether there is no other way than through all of procfs.
    pub fn is_blind(&self) -> bool {
        self.tree.lacks().is_some()
    }

    /// The containers that are ready to begin and not `settled`.
    pub fn look(&mut self, mut settled: impl FnMut(&PodUid, &str) -> bool) -> Vec<Unbegun> {
        let stirred = self.tree.take();
        self.unsettled.extend(stirred);
        let mut found = Vec::new();
        if self.is_blind() {
            self.look_everywhere(&mut settled, &mut found);
            if !self.is_blind() {
                // From here on it is told what appears; what is there already was just seen, and is looked at again.
                self.unsettled.extend(self.wanted.iter().cloned());
            }
            return found;
        }
        let mut elsewhere = false;
        for pod in self.unsettled.clone() {
            let id_of = |name: &[u8]| match cgroup::told_part(name) {
                Part::Container { id, .. } => Some(id),
                Part::Helper | Part::Unknown(_) => None,
            };
            let mut is_open = |name: &[u8]| id_of(name).is_some_and(|id| !settled(&pod, &id));
            let open: Vec<_> = match self.tree.parts(&pod, |_| true) {
                Parts::Nowhere if self.seen.contains(&pod) => Vec::new(),
                // Not made yet, or where nobody looks for it: beside the pod's, or in a place that is not known.
                Parts::Nowhere | Parts::Scattered => {
                    elsewhere = true;
                    continue;
                }
                Parts::Here(below) => below.into_iter().filter(|part| is_open(&part.name)).collect(),
            };
            self.seen.insert(pod.clone());
            if open.is_empty() {
                self.unsettled.remove(&pod);
            }
            for part in open {
                let Some(id) = id_of(&part.name) else { continue };
                found.extend(self.ready(&pod, &id, &part.processes));
            }
        }
        if elsewhere {
            self.look_everywhere(&mut settled, &mut found);
        }
        found
    }

    fn look_everywhere(&mut self, settled: &mut impl FnMut(&PodUid, &str) -> bool, found: &mut Vec<Unbegun>) {
        for ((pod, id), processes) in self.gather() {
            if !settled(&pod, &id) && !found.iter().any(|one| one.pod == pod && one.id == id) {
                found.extend(self.ready(&pod, &id, &processes));
            }
        }
    }

    /// The processes of containers in wanted pods, by going through all of procfs.
    fn gather(&mut self) -> HashMap<(PodUid, Arc<str>), Vec<i32>> {
        self.tree.read_again();
        let mut gathered: HashMap<(PodUid, Arc<str>), Vec<i32>> = HashMap::new();
        let entries = std::fs::read_dir("/proc").into_iter().flatten();
        for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
            let Some(home) = self.node.home_of(pid) else { continue };
            self.tree.learn(&home);
            let Some(told) = cgroup::tell_home(&home).filter(|told| self.wanted.contains(&told.pod)) else { continue };
            let Part::Container { id, .. } = told.part else { continue };
            gathered.entry((told.pod, id)).or_default().push(pid);
        }
        gathered
    }

    /// The container of these processes, if it is ready to begin and has not begun.
    fn ready(&self, pod: &PodUid, id: &Arc<str>, processes: &[i32]) -> Option<Unbegun> {
        let mut ready = None;
        for pid in processes.iter().filter(|pid| **pid != 0).take(MOST_LOOKED_AT) {
            match self.stage(pod, id, *pid) {
                Stage::Made => {}
                // The others are sessions in it.
                Stage::Begun => return None,
                Stage::Ready(unbegun) => ready = ready.or(Some(unbegun)),
            }
        }
        ready
    }

    fn stage(&self, pod: &PodUid, id: &Arc<str>, pid: i32) -> Stage {
        let Ok(root) = Root::of_process(pid) else { return Stage::Made };
        let its = root.open().ok().and_then(|it| inode(it.as_fd()));
        let Some(stat) = std::fs::read(format!("/proc/{pid}/stat")).ok().and_then(|bytes| Stat::parse(&bytes)) else {
            return Stage::Made;
        };
        let is_nodes = |its| {
            let views = self.node.views(stat.parent);
            views.iter().any(|view| open_root(view).ok().and_then(|it| inode(it.as_fd())) == Some(its))
        };
        if its.is_none_or(is_nodes) {
            return Stage::Made;
        }
        // The runtime's program is on none of the container's mounts, be it the node's file, a copy in memory, or behind a
        // mount of its own; what is executed in the container is.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let executable = rustix::fs::open(format!("/proc/{pid}/exe"), flags, Mode::empty());
        let mount = executable.ok().and_then(|it| look::mountinfo_id(it.as_fd()).ok());
        let mounts = root.mountinfo().unwrap_or_default();
        if !root.alive() {
            return Stage::Made;
        }
        if mount.is_some_and(|mount| mounts.iter().any(|it| it.id == mount)) {
            return Stage::Begun;
        }
        Stage::Ready(Unbegun { pod: pod.clone(), id: id.clone(), parent: stat.parent, root })
    }

    /// Who keeps the containers of a pod: of each, by its oldest process.
    pub fn kept(&mut self, pod: &PodUid) -> Vec<Kept> {
        let stirred = self.tree.take();
        self.unsettled.extend(stirred);
        let parts = if self.is_blind() { Parts::Scattered } else { self.tree.parts(pod, |_| true) };
        let containers: Vec<(Arc<str>, Vec<i32>)> = match parts {
            Parts::Nowhere => Vec::new(),
            Parts::Scattered => {
                let of_pod = self.gather().into_iter().filter(|((its, _), _)| its == pod);
                let of_pod = of_pod.map(|((_, id), processes)| (id, processes)).collect();
                self.unsettled.extend(self.wanted.iter().cloned());
                of_pod
            }
            Parts::Here(below) => {
                let container = |part: Below| match cgroup::told_part(&part.name) {
                    Part::Container { id, .. } => Some((id, part.processes)),
                    Part::Helper | Part::Unknown(_) => None,
                };
                below.into_iter().filter_map(container).collect()
            }
        };
        let oldest = |(id, processes): (Arc<str>, Vec<i32>)| {
            let stats = processes.into_iter().take(MOST_LOOKED_AT).filter_map(|pid| {
                let bytes = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
                Stat::parse(&bytes)
            });
            let Stat { parent, start, .. } = stats.min_by_key(|stat| stat.start)?;
            Some(Kept { id, parent, start })
        };
        containers.into_iter().filter_map(oldest).collect()
    }
}

impl Default for Scout {
    fn default() -> Scout {
        Scout::new()
    }
}

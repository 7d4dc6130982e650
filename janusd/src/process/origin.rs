//! What a process is to a container. Pure over a view of the processes.
//!
//! What the classification rests on, all of it enforced by the kernel:
//!
//! - A process belongs to the session in which it was forked, or begins one of its own. None can be joined. So whoever
//!   is in a session descends from the process that began it.
//! - An orphan gets the nearest living "child subreaper" above it, else its pid namespace's PID 1, for a parent. A process
//!   that was brought into a pid namespace from outside (setns, then fork) keeps its parent outside for as long as that
//!   lives; once orphaned *inside*, it is adopted by PID 1 like any other.
//! - A pid with its start time names one process; exec changes neither.
//!
//! Not told apart: an application's own daemon that orphaned itself and began a session, and an orphan that did the same
//! after it was brought in from outside. It counts as the latter, unless it was seen before ([`Seen`]).
//!
//! No boundary: whoever may ptrace a process, or write to its memory, acts as that process.

use std::collections::HashMap;

use super::facts::{Cgroups, Stat};
use crate::policy::Origin;

/// More generations than this nobody has: what is deeper counts as not descended from the container's init.
const MOST_GENERATIONS: usize = 4096;
/// Owners that are remembered for each guard, at most; beyond it the one that was not met for longest is forgotten, and
/// is told by its ancestors again, while it has them.
pub const MOST_SEEN: usize = 1024;

/// The processes of the machine, as procfs shows them now.
pub trait Processes {
    /// Where it stands. `None`: no such process.
    fn stat(&mut self, pid: i32) -> Option<Stat>;
    /// The number of its pid namespace.
    fn pid_namespace(&mut self, pid: i32) -> Option<u64>;
    /// Its cgroups.
    fn cgroups(&mut self, pid: i32) -> Option<Cgroups>;
}

/// A process, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its pid, in our pid namespace.
    pub pid: i32,
    /// Its start time.
    pub start: u64,
}

/// A container, by its first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its first process: at first `runc init`, then the entrypoint.
    pub init: Identity,
    /// The number of its pid namespace.
    pub pid_namespace: u64,
    /// The pid namespace is the container's alone: its init is PID 1 there. Else it shares the pod's, or the node's.
    pub private: bool,
    /// Where the kubelet has put it.
    pub home: Option<Home>,
}

/// A container's place in a hierarchy of cgroups, as the kubelet lays them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    hierarchy: Vec<u8>,
    pod: Vec<u8>,
    container: Vec<u8>,
}

/// Where another process is, seen from a container's home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Container,
    Pod,
    Elsewhere,
}

impl Home {
    /// Finds it in a process's cgroups: `.../pod<uid>/<container>` below `kubepods` (driver cgroupfs), or
    /// `.../kubepods-...-pod<uid>.slice/<runtime>-<container>.scope` (driver systemd). `None`: the kubelet has not made
    /// this container.
    ///
    /// The deepest such place counts: a kubelet may itself run in a container. What a container's own processes make
    /// below their cgroup may look like one; it is only ever below their own.
    pub fn of(cgroups: &Cgroups) -> Option<Home> {
        Home::places(cgroups).find_map(Iterator::last)
    }

    /// As [`Home::of`], but of such places the first one below `node`'s, the home of the node's own first process (a node
    /// that is itself a container has one). What a container makes below its own cgroup does not count: none poses as
    /// another pod's.
    pub fn outermost(cgroups: &Cgroups, node: Option<&Home>) -> Option<Home> {
        let above = |place: &Home| {
            let of_node = node.filter(|node| node.hierarchy == place.hierarchy);
            of_node
                .is_some_and(|node| within(&place.container, &node.container) && place.pod.len() < node.container.len())
        };
        Home::places(cgroups).find_map(|mut places| places.find(|place| !above(place)))
    }

    /// For each hierarchy the places on the way down to the process, outermost first.
    fn places(cgroups: &Cgroups) -> impl Iterator<Item = impl Iterator<Item = Home>> {
        cgroups.iter().map(|(hierarchy, path)| {
            let ends: Vec<usize> = (1..path.len()).filter(|at| path[*at] == b'/').chain([path.len()]).collect();
            let mut below_kubepods = false;
            let mut from = 1;
            (0..ends.len()).filter_map(move |index| {
                let end = ends[index];
                let segment = path.get(from..end).unwrap_or_default();
                let begin = std::mem::replace(&mut from, end + 1);
                below_kubepods |= segment.windows(8).any(|word| word == b"kubepods");
                let place = |pod, container| {
                    let (pod, container) = (path[..pod].to_vec(), path[..container].to_vec());
                    Some(Home { hierarchy: hierarchy.to_vec(), pod, container })
                };
                // A runtime that was told systemd's names and does not use systemd makes one cgroup of both.
                if let Some(at) = segment.windows(7).position(|word| word == b".slice:").filter(|_| below_kubepods) {
                    return place(begin + at + 6, end);
                }
                let pod = segment.starts_with(b"pod") && segment.len() > 3
                    || segment.ends_with(b".slice") && segment.windows(4).any(|word| word == b"-pod");
                place(end, *ends.get(index + 1).filter(|_| pod && below_kubepods)?)
            })
        })
    }

    /// The hierarchy, and the pod's cgroup in it.
    pub fn pod(&self) -> (&[u8], &[u8]) {
        (&self.hierarchy, &self.pod)
    }

    /// The names of the pod's cgroup and of the container's: the kubelet's and the runtime's writing.
    pub fn names(&self) -> (&[u8], &[u8]) {
        let last = self.pod.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        (&self.pod[last..], self.container.get(self.pod.len() + 1..).unwrap_or_default())
    }

    fn place(&self, cgroups: &Cgroups) -> Place {
        let Some(path) = cgroups.path(&self.hierarchy) else { return Place::Elsewhere };
        if within(path, &self.container) {
            Place::Container
        } else if within(path, &self.pod) {
            Place::Pod
        } else {
            Place::Elsewhere
        }
    }

    /// Whether a process with these cgroups is in the same container.
    pub fn holds(&self, cgroups: &Cgroups) -> bool {
        self.place(cgroups) == Place::Container
    }
}

/// Whether a cgroup is another one, or below it.
fn within(path: &[u8], base: &[u8]) -> bool {
    path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || matches!(rest[0], b'/' | b':'))
}

/// Owners that were met while their chain of ancestors was intact: an application's daemon that orphans itself and begins
/// a session of its own *after* its first such event stays Owner. Holds [`MOST_SEEN`] at most, about 40 bytes each.
#[derive(Debug, Default)]
pub struct Seen {
    when: HashMap<Identity, u64>,
    now: u64,
}

impl Seen {
    /// Whether this one was met.
    pub fn knows(&self, process: Identity) -> bool {
        self.when.contains_key(&process)
    }

    /// Remembers it.
    pub fn remember(&mut self, process: Identity) {
        self.now += 1;
        if self.when.len() >= MOST_SEEN && !self.when.contains_key(&process) {
            let oldest = self.when.iter().min_by_key(|(_, when)| **when).map(|(process, _)| *process);
            if let Some(oldest) = oldest {
                self.when.remove(&oldest);
            }
        }
        self.when.insert(process, self.now);
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.when.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.when.is_empty()
    }
}

/// What was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What the process is.
    pub origin: Origin,
    /// What it could be as well: nothing tells the two apart.
    pub maybe: Option<Origin>,
}

impl Found {
    const fn sure(origin: Origin) -> Found {
        Found { origin, maybe: None }
    }

    const UNDECIDED: Found = Found { origin: Origin::Session, maybe: Some(Origin::Owner) };
}

/// The processes changed while they were read. Look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process's ancestors changed while they were read")]
pub struct Unsettled;

/// How a process descends from a container's init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Descent {
    /// It does.
    Own,
    /// Its ancestors end at PID 1 with a child of it (this one, in this session) that may have been adopted.
    Adopted { child: i32, session: i32 },
    /// Its ancestors pass the init by. `inside`: through the container's pid namespace.
    Past { inside: bool },
}

/// Tells what process `pid` is to a container; none: every process is the node's. Remembers the owners that it meets.
///
/// # Errors
/// [`Unsettled`].
pub fn classify(
    pid: i32,
    container: Option<&Container>,
    seen: &mut Seen,
    processes: &mut dyn Processes,
) -> Result<Found, Unsettled> {
    let Some(container) = container else { return Ok(Found::sure(Origin::Node)) };
    let opener = processes.stat(pid).ok_or(Unsettled)?;
    let init = processes.stat(container.init.pid).filter(|init| init.start == container.init.start);
    let mut family = Family { container, init, seen, processes };
    let descent = family.trace(pid)?;
    if descent == Descent::Own {
        return Ok(Found::sure(Origin::Owner));
    }
    // Whoever began a session is an ancestor of all in it, and may have a past where theirs is lost.
    let mut leaders = vec![(pid, opener.session)];
    if let Descent::Adopted { child, session } = descent {
        leaders.push((child, session));
    }
    let mut entered = false;
    for (member, leader) in leaders {
        if leader == member || leader == 0 || family.processes.stat(leader).is_none() {
            continue;
        }
        match family.trace(leader)? {
            Descent::Own => {
                family.remember(pid);
                return Ok(Found::sure(Origin::Owner));
            }
            // Between the leader and this one nobody left the session. So the init is not among them if it has another;
            // nor if the leader is inside, for the init's ancestors are not.
            Descent::Past { inside } => entered |= inside || family.init_leads(),
            Descent::Adopted { .. } => {}
        }
    }
    let cgroups = match &container.home {
        Some(home) => home.place(&family.processes.cgroups(pid).ok_or(Unsettled)?),
        None => Place::Elsewhere,
    };
    Ok(match (descent, cgroups) {
        (Descent::Adopted { .. }, _) if entered => Found::sure(Origin::Session),
        (Descent::Adopted { .. }, _) => Found::UNDECIDED,
        (Descent::Past { inside: true }, _) if container.private => Found::sure(Origin::Session),
        // Inside by its cgroup only: on its way in, or an orphan in a pid namespace that others share.
        (_, Place::Container) if container.private => Found::sure(Origin::Session),
        (_, Place::Container) => Found::UNDECIDED,
        (_, Place::Pod) => Found::sure(Origin::Pod),
        (_, Place::Elsewhere) => Found::sure(Origin::Node),
    })
}

/// A container and the processes around it.
struct Family<'a> {
    container: &'a Container,
    /// `None`: it has ended.
    init: Option<Stat>,
    seen: &'a mut Seen,
    processes: &'a mut dyn Processes,
}

impl Family<'_> {
    /// Whether the container's init began its session: only then does being in it prove descent.
    fn init_leads(&self) -> bool {
        self.init.is_some_and(|init| init.session == self.container.init.pid)
    }

    /// Walks up the living ancestors.
    fn trace(&mut self, from: i32) -> Result<Descent, Unsettled> {
        let leads = self.init_leads();
        let mut way = Vec::new();
        let mut inside = false;
        let mut pid = from;
        let mut here = self.processes.stat(pid).ok_or(Unsettled)?;
        for _ in 0..MOST_GENERATIONS {
            let identity = Identity { pid, start: here.start };
            way.push(identity);
            let in_session = leads && self.init.is_some_and(|init| init.session == here.session);
            if self.is_init(identity) || in_session || self.seen.knows(identity) {
                return Ok(self.own(&way));
            }
            inside = inside || self.processes.pid_namespace(pid) == Some(self.container.pid_namespace);
            if here.parent == 0 {
                break;
            }
            // Gone, or another process by now: then ours has another parent by now.
            let parent = self.processes.stat(here.parent).filter(|parent| parent.start <= here.start);
            let parent = parent.ok_or(Unsettled)?;
            if self.is_init(Identity { pid: here.parent, start: parent.start }) {
                // Only the PID 1 of a namespace adopts what does not descend from it. An orphan that came from outside
                // brought its session along; where the init has none of its own, one and the same is taken for descent.
                let adopts = self.container.private;
                return Ok(if !adopts || !leads && parent.session == here.session {
                    self.own(&way)
                } else {
                    Descent::Adopted { child: pid, session: here.session }
                });
            }
            (pid, here) = (here.parent, parent);
        }
        Ok(Descent::Past { inside })
    }

    fn is_init(&self, process: Identity) -> bool {
        self.init.is_some() && process == self.container.init
    }

    fn own(&mut self, way: &[Identity]) -> Descent {
        // The farthest first: should there be too many, those nearest to the opener are kept.
        way.iter().rev().for_each(|process| self.seen.remember(*process));
        Descent::Own
    }

    fn remember(&mut self, pid: i32) {
        if let Some(stat) = self.processes.stat(pid) {
            self.seen.remember(Identity { pid, start: stat.start });
        }
    }
}

//! What this node lets one janusd have, found at start: how many guards fit, and which limit says so.
//!
//! Owns: reading limits, and raising the one that janusd may raise (`fs.fanotify.max_user_groups`, never lowered). Whoever
//! admits guards asks [`Capacity::admit`] first, so that a guard is refused by name instead of half-way through its start.
//!
//! Caveat: groups are counted by the kernel for each user. What others have of them is not known here: a start that the
//! kernel refuses all the same is a [`crate::fanotify::GroupError::GroupLimit`].

use std::path::Path;

use rustix::fs::Access;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Groups that a guard takes: see `guard/groups.rs`.
pub const GROUPS_EACH: u64 = 2;
/// Threads that a guard takes: one that answers, one that surveys.
pub const THREADS_EACH: u64 = 2;
/// Descriptors that a guard of one root takes while nobody waits for an answer, at most: two groups, three bells,
/// `/proc/self/fd`; of a process its pidfd three times, and its mountinfo. Of a pod, the latter for each container.
pub const DESCRIPTORS_EACH: u64 = 10;
/// Guards that `janusd serve` makes room for: more than the pods that a node is made for.
pub const GUARDS_MEANT: u64 = 1024;

/// Groups that others of our user may have: the kernel's own default for all of them.
const GROUPS_OF_OTHERS: u64 = 128;
/// Descriptors that are left for events that wait, for streams, and for files of procfs.
pub const DESCRIPTORS_LEFT: u64 = 4096;
/// Threads that serve the whole process, and those of others in its pids cgroup that may still come.
const THREADS_LEFT: u64 = 64;

const GROUPS: &str = "fs.fanotify.max_user_groups";

/// What was found. `None`: it could not be read, or there is no such limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// `fs.fanotify.max_user_groups`.
    pub groups: Option<u64>,
    /// Whether we may write it.
    pub groups_writable: bool,
    /// `fs.fanotify.max_user_marks`. Does not bind who has CAP_SYS_ADMIN, as janusd must.
    pub marks: Option<u64>,
    /// `fs.inotify.max_user_instances`; janusd takes one.
    pub inotify_instances: Option<u64>,
    /// `fs.inotify.max_user_watches`.
    pub inotify_watches: Option<u64>,
    /// `fs.inotify.max_queued_events`.
    pub inotify_queue: Option<u64>,
    /// RLIMIT_NOFILE, as it can be raised.
    pub open_files: Option<u64>,
    /// `kernel.threads-max`.
    pub threads: Option<u64>,
    /// What is left of `pids.max` of our cgroup.
    pub pids_left: Option<u64>,
}

/// The limit that binds first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// `fs.fanotify.max_user_groups`.
    Groups(u64),
    /// RLIMIT_NOFILE.
    OpenFiles(u64),
    /// `kernel.threads-max`.
    Threads(u64),
    /// `pids.max`: what is left of it.
    Pids(u64),
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::Groups(value) => write!(f, "{GROUPS} is {value}, and a guard takes {GROUPS_EACH}"),
            Bound::OpenFiles(value) => {
                write!(f, "RLIMIT_NOFILE is {value}, and a guard takes up to {DESCRIPTORS_EACH}")
            }
            Bound::Threads(value) => write!(f, "kernel.threads-max is {value}, and a guard takes {THREADS_EACH}"),
            Bound::Pids(value) => write!(f, "the cgroup's pids.max leaves {value}, and a guard takes {THREADS_EACH}"),
        }
    }
}

/// How many guards fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// So many; `u64::MAX` when nothing binds.
    pub guards: u64,
    /// Because of this.
    pub bound: Option<Bound>,
}

/// One guard too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no more than {guards} guards fit: {bound}")]
pub struct Exhausted {
    /// So many fit.
    pub guards: u64,
    /// Because of this.
    pub bound: Bound,
}

impl Capacity {
    /// Whether one more fits beside `running`.
    ///
    /// # Errors
    /// [`Exhausted`], naming the limit.
    pub fn admit(&self, running: usize) -> Result<(), Exhausted> {
        match self.bound {
            Some(bound) if running as u64 >= self.guards => Err(Exhausted { guards: self.guards, bound }),
            _ => Ok(()),
        }
    }
}

/// Where procfs and cgroups are looked for: elsewhere in tests.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// `/proc`.
    pub proc: &'a Path,
    /// `/sys/fs/cgroup`.
    pub cgroups: &'a Path,
    /// `/proc/sys`, where it may be written to: a container's own is read-only, and another mount of the node's is not.
    pub sysctl: &'a Path,
}

/// Where limits are, unless told otherwise.
pub const SYSCTL: &str = "/proc/sys";

impl Node<'static> {
    /// This one.
    pub fn here() -> Node<'static> {
        Node { proc: Path::new("/proc"), cgroups: Path::new("/sys/fs/cgroup"), sysctl: Path::new(SYSCTL) }
    }
}

impl Node<'_> {
    fn sysctl(&self, name: &str) -> Option<u64> {
        number(&self.proc.join("sys").join(name))
    }

    /// Reads what there is.
    pub fn limits(&self) -> Limits {
        Limits {
            groups: self.sysctl(GROUPS_FILE),
            groups_writable: rustix::fs::access(self.sysctl.join(GROUPS_FILE), Access::WRITE_OK).is_ok(),
            marks: self.sysctl("fs/fanotify/max_user_marks"),
            inotify_instances: self.sysctl("fs/inotify/max_user_instances"),
            inotify_watches: self.sysctl("fs/inotify/max_user_watches"),
            inotify_queue: self.sysctl("fs/inotify/max_queued_events"),
            open_files: getrlimit(Resource::Nofile).maximum,
            threads: self.sysctl("kernel/threads-max"),
            pids_left: self.pids_left(),
        }
    }

    /// The closest of the limits that our cgroup and those above it set.
    fn pids_left(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.proc.join("self/cgroup")).ok()?;
        // `0::/path` is the unified hierarchy, `N:pids:/path` that of cgroup v1.
        let (hierarchy, path) = text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let v1 = controllers.split(',').any(|controller| controller == "pids");
            let v2 = number == "0" && controllers.is_empty() && self.cgroups.join("cgroup.controllers").exists();
            (v1 || v2).then(|| (if v1 { "pids" } else { "" }, path.trim_start_matches('/')))
        })?;
        // Seen from inside a container, the path may be the node's while only our own part is mounted.
        let mount = self.cgroups.join(hierarchy);
        let own = mount.join(path);
        let from = if own.is_dir() { own } else { mount.clone() };
        let left = |at: &Path| Some(number(&at.join("pids.max"))?.saturating_sub(number(&at.join("pids.current"))?));
        from.ancestors().take_while(|at| at.starts_with(&mount)).filter_map(left).min()
    }

    /// Raises `fs.fanotify.max_user_groups` to what `guards` guards take beside others' groups, if it is lower. Gives the
    /// value before and after.
    ///
    /// # Errors
    /// Why it could not be written; the old value stays.
    pub fn raise_groups(&self, guards: u64) -> std::io::Result<Option<(u64, u64)>> {
        let path = self.sysctl.join(GROUPS_FILE);
        let Some(before) = self.sysctl(GROUPS_FILE) else { return Ok(None) };
        let needed = groups_for(guards);
        if before >= needed {
            return Ok(None);
        }
        std::fs::write(&path, needed.to_string())?;
        Ok(Some((before, self.sysctl(GROUPS_FILE).unwrap_or(before))))
    }
}

const GROUPS_FILE: &str = "fs/fanotify/max_user_groups";

fn groups_for(guards: u64) -> u64 {
    GROUPS_OF_OTHERS.saturating_add(guards.saturating_mul(GROUPS_EACH))
}

/// The number in a file; `None` for anything else, such as `max`.
fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Limits {
    /// How many guards fit.
    pub fn capacity(&self) -> Capacity {
        self.capacity_beside(0)
    }

    /// The same beside so many groups of janusd's own that are no guard's.
    pub fn capacity_beside(&self, groups: u64) -> Capacity {
        let room = |limit: u64, left: u64, each: u64| limit.saturating_sub(left) / each;
        let bounds = [
            self.groups.map(|value| (room(value, groups, GROUPS_EACH), Bound::Groups(value))),
            self.open_files.map(|value| {
                // A limit as low as a shell's still lets some guards run: half of it is theirs.
                let left = DESCRIPTORS_LEFT.min(value / 2);
                (room(value, left, DESCRIPTORS_EACH), Bound::OpenFiles(value))
            }),
            self.threads.map(|value| (room(value, THREADS_LEFT, THREADS_EACH), Bound::Threads(value))),
            self.pids_left.map(|value| (room(value, THREADS_LEFT.min(value / 2), THREADS_EACH), Bound::Pids(value))),
        ];
        let closest = bounds.into_iter().flatten().min_by_key(|(guards, _)| *guards);
        closest.map_or(Capacity { guards: u64::MAX, bound: None }, |(guards, bound)| Capacity {
            guards,
            bound: Some(bound),
        })
    }
}

/// Raises the limit of open files as far as it goes: each waiting event takes one, and a reader that has none left denies
/// the opener. Gives the limit in force.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    // Lowering is never meant, and a refusal leaves what there was.
    let _as_before = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current
}

/// Raises what may be raised for `guards` guards, and says in the log how many fit beside so many groups that are no guard's.
pub fn prepare(node: &Node<'_>, guards: u64, groups: u64) -> Capacity {
    raise_open_files();
    match node.raise_groups(guards) {
        Ok(None) => {}
        Ok(Some((before, after))) => tracing::info!(before, after, "{GROUPS} raised"),
        Err(error) => tracing::debug!(%error, "{GROUPS} cannot be raised"),
    }
    let capacity = node.limits().capacity_beside(groups);
    if let Some(bound) = capacity.bound
        && capacity.guards < guards
    {
        tracing::warn!(guards = capacity.guards, "no more than {} guards fit: {bound}", capacity.guards);
    }
    capacity
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn node(files: &[(&str, &str)]) -> tempfile::TempDir {
        let scratch = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        scratch
    }

    fn with<T>(scratch: &tempfile::TempDir, run: impl FnOnce(Node<'_>) -> T) -> T {
        let proc = scratch.path().join("proc");
        run(Node { proc: &proc, cgroups: &scratch.path().join("cgroup"), sysctl: &proc.join("sys") })
    }

    #[test]
    fn the_closest_limit_binds_and_is_named() {
        let limits =
            Limits { groups: Some(128), open_files: Some(1 << 20), threads: Some(100_000), ..Limits::default() };
        let capacity = limits.capacity();
        assert_eq!(capacity, Capacity { guards: 64, bound: Some(Bound::Groups(128)) });
        assert_eq!(capacity.admit(63), Ok(()));
        let refused = capacity.admit(64).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no more than 64 guards fit: fs.fanotify.max_user_groups is 128, and a guard takes 2"
        );
        let pids = Limits { groups: Some(4096), pids_left: Some(100), ..limits }.capacity();
        assert_eq!(pids, Capacity { guards: 25, bound: Some(Bound::Pids(100)) });
        let files = Limits { groups: Some(4096), open_files: Some(1024), ..limits }.capacity();
        assert_eq!(files, Capacity { guards: 51, bound: Some(Bound::OpenFiles(1024)) });
        assert_eq!(limits.capacity_beside(1).guards, 63);
        assert_eq!(Limits::default().capacity().admit(usize::MAX), Ok(()));
    }

    #[test]
    fn groups_are_raised_to_what_is_needed_and_never_lowered() {
        let scratch = node(&[("proc/sys/fs/fanotify/max_user_groups", "128\n")]);
        with(&scratch, |node| {
            assert_eq!(node.raise_groups(500).unwrap(), Some((128, 1128)));
            assert_eq!(node.raise_groups(10).unwrap(), None);
            assert_eq!(node.limits().groups, Some(1128));
            assert!(node.limits().groups_writable);
        });
        // A kernel without it, or no procfs: nothing to raise.
        with(&node(&[]), |node| assert_eq!(node.raise_groups(500).unwrap(), None));
    }

    #[test]
    fn groups_are_raised_by_another_mount_where_our_own_is_read_only() {
        let scratch = node(&[("node/fs/fanotify/max_user_groups", "128")]);
        let proc = scratch.path().join("proc");
        fs::create_dir_all(proc.join("sys/fs/fanotify")).unwrap();
        let seen = proc.join("sys/fs/fanotify/max_user_groups");
        // One file under two names, as two mounts of procfs show it.
        fs::hard_link(scratch.path().join("node/fs/fanotify/max_user_groups"), &seen).unwrap();
        let sysctl = scratch.path().join("node");
        let raised = Node { proc: &proc, cgroups: scratch.path(), sysctl: &sysctl }.raise_groups(500);
        assert_eq!(raised.unwrap(), Some((128, 1128)));
        let nowhere = Node { proc: &proc, cgroups: scratch.path(), sysctl: &scratch.path().join("none") };
        assert!(nowhere.raise_groups(1000).is_err() && !nowhere.limits().groups_writable);
        assert_eq!(nowhere.limits().groups, Some(1128), "what is in force is read where it always is");
    }

    #[test]
    fn pids_of_both_cgroup_versions_and_of_what_is_above() {
        let v2 = node(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("cgroup/cgroup.controllers", "pids\n"),
            ("cgroup/a/pids.max", "100\n"),
            ("cgroup/a/pids.current", "40\n"),
            ("cgroup/a/b/pids.max", "max\n"),
            ("cgroup/a/b/pids.current", "1\n"),
        ]);
        assert_eq!(with(&v2, |node| node.limits().pids_left), Some(60));
        let v1 = node(&[
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:pids:/a\n0::/\n"),
            ("cgroup/pids/a/pids.max", "10\n"),
            ("cgroup/pids/a/pids.current", "12\n"),
        ]);
        assert_eq!(with(&v1, |node| node.limits().pids_left), Some(0));
        // The path is the node's, the mount our own part of it.
        let inside = node(&[
            ("proc/self/cgroup", "0::/kubepods/x\n"),
            ("cgroup/cgroup.controllers", ""),
            ("cgroup/pids.max", "50\n"),
            ("cgroup/pids.current", "8\n"),
        ]);
        assert_eq!(with(&inside, |node| node.limits().pids_left), Some(42));
        assert_eq!(with(&node(&[("proc/self/cgroup", "0::/\n")]), |node| node.limits().pids_left), None);
    }
}

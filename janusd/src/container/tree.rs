//! The kubelet's directories of cgroups, watched with `inotify(7)`: when something appears in a pod's, and which processes
//! are below it.
//!
//! Hints only. Whose a process is is told by its own `/proc/PID/cgroup`, and what is missed here is found by the next look
//! through procfs. Where the directories are is learned from the cgroups of processes that are in pods: in whatever
//! hierarchy and below whatever prefix.
//!
//! Watched are the directories in which pods appear, and those of the pods that are wanted: the kubelet's both. A
//! container's own are not, so that whatever it makes below its cgroup wakes nobody; they are read while it is not known
//! yet, within bounds, and beyond them procfs is asked ([`Below::whole`]).
//!
//! Caveat: a cgroup's directory that is removed is told of by the one around it only. The kernel (seen on 6.18) sends its
//! own watch neither `IN_DELETE_SELF` nor `IN_IGNORED`, and keeps that watch until it is removed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::cgroup::{self, Entry, PodUid};
use crate::process::origin::Home;
use crate::root::mountinfo;

/// Directories in which pods appear, at most: three for each kubelet on this machine.
const MOST_SLICES: usize = 64;
/// Pods whose directories are remembered, watched or not.
const MOST_PODS: usize = 16_384;
/// Cgroups that are looked into for the processes of one container.
const MOST_BELOW: usize = 256;
/// Levels of them.
const DEEPEST: usize = 8;
/// Entries that are read of a directory.
const MOST_ENTRIES: usize = 32_768;
/// Bytes that are read of a list of processes.
const LONGEST_LIST: u64 = 256 * 1024;
/// Events that are taken at once; the kernel keeps the rest.
const MOST_EVENTS: usize = 4096;

/// Why cgroups are not watched, or not all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwatched {
    /// None is to be watched.
    #[error("not asked to")]
    Unasked,
    /// `inotify_init1(2)`.
    #[error("no inotify instance: {0} (fs.inotify.max_user_instances)")]
    Instance(std::io::ErrorKind),
    /// No process has been seen in a pod.
    #[error("no pod has a process yet")]
    NoPod,
    /// The hierarchy in which pods are is mounted nowhere in sight.
    #[error("the hierarchy in which pods are is mounted neither for the node's first process nor here")]
    NotMounted,
    /// `inotify_add_watch(2)`.
    #[error("{0}")]
    Refused(&'static str),
}

/// A directory that is watched.
#[derive(Debug, Clone)]
enum Watched {
    /// Pods appear in it.
    Slice(PathBuf),
    /// What a pod has appears in it.
    Pod(PodUid),
}

/// A cgroup in a pod's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Below {
    /// Its name.
    pub(super) name: Vec<u8>,
    /// The processes in it and below; 0 for one that our pid namespace does not hold.
    pub(super) processes: Vec<i32>,
    /// These are all of them. Else which is the first among them cannot be told.
    pub(super) whole: bool,
}

/// What there is of a pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// Its cgroup is not known, or is gone.
    Nowhere,
    /// Its containers have theirs beside it.
    Scattered,
    /// These.
    Here(Vec<Below>),
}

/// What is known of the directories.
#[derive(Debug)]
pub(super) struct Tree {
    inotify: Option<OwnedFd>,
    /// The hierarchies that are mounted as a whole: their options, and where.
    mounts: Vec<(Vec<u8>, PathBuf)>,
    /// The one that is looked at: they all have the same directories.
    hierarchy: Option<Vec<u8>>,
    slices: HashMap<PathBuf, i32>,
    pods: HashMap<PodUid, PathBuf>,
    scattered: HashSet<PodUid>,
    wanted: HashMap<PodUid, Option<i32>>,
    watches: HashMap<i32, Watched>,
    lacking: Option<Unwatched>,
}

const EVENTS: WatchFlags =
    WatchFlags::CREATE.union(WatchFlags::DELETE).union(WatchFlags::DELETE_SELF).union(WatchFlags::ONLYDIR);

impl Tree {
    /// One that watches, if an instance can be had.
    pub(super) fn new() -> Tree {
        match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
            Ok(inotify) => Tree::with(Some(inotify), Unwatched::NoPod),
            Err(errno) => Tree::with(None, Unwatched::Instance(errno.kind())),
        }
    }

    /// One that sees nothing.
    pub(super) fn blind() -> Tree {
        Tree::with(None, Unwatched::Unasked)
    }

    fn with(inotify: Option<OwnedFd>, lacking: Unwatched) -> Tree {
        Tree {
            inotify,
            mounts: Vec::new(),
            hierarchy: None,
            slices: HashMap::new(),
            pods: HashMap::new(),
            scattered: HashSet::new(),
            wanted: HashMap::new(),
            watches: HashMap::new(),
            lacking: Some(lacking),
        }
    }

    /// Finds where cgroups are mounted, as the calling thread sees it.
    pub(super) fn find_hierarchies(&mut self) {
        self.mounts = hierarchies();
    }

    /// Where its events are read.
    pub(super) fn events(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Whether it tells of what appears in this pod.
    pub(super) fn sees(&self, pod: &PodUid) -> bool {
        self.wanted.get(pod).is_some_and(Option::is_some)
    }

    /// Why it does not tell of every pod that appears, if it does not.
    pub(super) fn lacks(&self) -> Option<&Unwatched> {
        self.lacking.as_ref()
    }

    /// A process is in a pod there: so that is where pods appear.
    pub(super) fn learn(&mut self, home: &Home) {
        let (hierarchy, pod) = home.pod();
        if self.inotify.is_none() || self.hierarchy.as_deref().is_some_and(|known| known != hierarchy) {
            return;
        }
        let Some(parent) = cgroup::parent(pod) else { return };
        let Some((_, mount)) = self.mounts.iter().find(|(options, _)| cgroup::mounts_hierarchy(options, hierarchy))
        else {
            if self.slices.is_empty() {
                self.lacking = Some(Unwatched::NotMounted);
            }
            return;
        };
        let slice = below(mount, Path::new(OsStr::from_bytes(parent)));
        if self.slices.contains_key(&slice) {
            return;
        }
        self.hierarchy = Some(hierarchy.to_vec());
        // One of the two for a class of quality of service: the third is around them.
        let of_class = slice.file_name().is_some_and(|name| cgroup::told_entry(name.as_bytes()) == Entry::Class);
        if let Some(around) = slice.parent().filter(|_| of_class) {
            self.add_slice(around.to_owned());
        }
        self.add_slice(slice);
    }

    fn add_slice(&mut self, slice: PathBuf) {
        if self.slices.contains_key(&slice) {
            return;
        }
        if self.slices.len() >= MOST_SLICES {
            self.lacking = Some(Unwatched::Refused("more directories of pods than are watched"));
            return;
        }
        if let Some(watch) = self.watch(&slice) {
            self.watches.insert(watch, Watched::Slice(slice.clone()));
            self.slices.insert(slice.clone(), watch);
            if matches!(self.lacking, Some(Unwatched::NoPod | Unwatched::NotMounted)) {
                self.lacking = None;
            }
            // Only now: whatever comes from here on is told.
            for name in directories(&slice).0 {
                self.appeared(&slice, &name);
            }
        }
    }

    /// A directory is there, in one in which pods appear. Gives the pod, if it is wanted.
    fn appeared(&mut self, slice: &Path, name: &OsStr) -> Option<PodUid> {
        let path = slice.join(name);
        let pod = match cgroup::told_entry(name.as_bytes()) {
            Entry::Pod(pod) => {
                if self.pods.len() >= MOST_PODS && !self.pods.contains_key(&pod) {
                    self.lacking = Some(Unwatched::Refused("more pods than are remembered"));
                    return None;
                }
                self.pods.insert(pod.clone(), path);
                pod
            }
            Entry::Scattered(pod) => {
                if self.wanted.contains_key(&pod) {
                    self.scattered.insert(pod.clone());
                }
                pod
            }
            Entry::Class => {
                self.add_slice(path);
                return None;
            }
            Entry::Other => return None,
        };
        self.wanted.contains_key(&pod).then(|| {
            self.want(pod.clone());
            pod
        })
    }

    /// Tells of this pod from now on.
    pub(super) fn want(&mut self, pod: PodUid) {
        let watch = self.pods.get(&pod).cloned().and_then(|path| self.watch(&path));
        if let Some(watch) = watch {
            self.watches.insert(watch, Watched::Pod(pod.clone()));
        }
        // Another directory of the same name.
        if let Some(former) = self.wanted.insert(pod, watch).flatten().filter(|former| Some(*former) != watch) {
            self.unwatch(former);
        }
    }

    /// Tells of it no longer.
    pub(super) fn forget(&mut self, pod: &PodUid) {
        self.scattered.remove(pod);
        if let Some(watch) = self.wanted.remove(pod).flatten() {
            self.unwatch(watch);
        }
    }

    fn unwatch(&mut self, watch: i32) {
        self.watches.remove(&watch);
        if let Some(inotify) = &self.inotify {
            // EINVAL: it went with its directory.
            let _already_gone = inotify::remove_watch(inotify, watch);
        }
    }

    fn watch(&mut self, directory: &Path) -> Option<i32> {
        match inotify::add_watch(self.inotify.as_ref()?, directory, EVENTS) {
            Ok(watch) => Some(watch),
            // Gone since.
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(errno) => {
                let what = if errno == Errno::NOSPC { "fs.inotify.max_user_watches" } else { "inotify_add_watch" };
                self.lacking = Some(Unwatched::Refused(what));
                None
            }
        }
    }

    /// What has happened since the last call: the wanted pods in which something appeared or went.
    pub(super) fn take(&mut self) -> HashSet<PodUid> {
        let mut stirred = HashSet::new();
        let Some(inotify) = &self.inotify else { return stirred };
        let mut buffer = [const { MaybeUninit::uninit() }; 8192];
        let mut events = Vec::new();
        let mut lost = false;
        let mut reader = Reader::new(inotify, &mut buffer);
        while events.len() < MOST_EVENTS || !reader.is_buffer_empty() {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => lost = true,
                Ok(event) => {
                    let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
                    events.push((event.wd(), event.events(), name));
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        for (watch, flags, name) in events {
            let Some(watched) = self.watches.get(&watch).cloned() else { continue };
            match (watched, name) {
                (Watched::Slice(slice), Some(name)) if flags.contains(ReadFlags::CREATE) => {
                    stirred.extend(self.appeared(&slice, &name));
                }
                (Watched::Slice(slice), Some(name)) if flags.contains(ReadFlags::DELETE) => {
                    stirred.extend(self.went(&slice.join(name)));
                }
                (Watched::Pod(pod), Some(_)) => {
                    stirred.insert(pod);
                }
                (watched, None) if flags.contains(ReadFlags::IGNORED) => {
                    self.watches.remove(&watch);
                    stirred.extend(self.unwatched(watched, watch));
                }
                _ => {}
            }
        }
        if lost {
            // Whichever of them it was.
            let _and_all_others = self.read_again();
            stirred.extend(self.wanted.keys().cloned());
        }
        stirred
    }

    /// A directory is gone, in one in which pods appear. Gives the pod, if it is wanted.
    fn went(&mut self, path: &Path) -> Option<PodUid> {
        self.lose_slice(path);
        let Entry::Pod(pod) = cgroup::told_entry(path.file_name()?.as_bytes()) else { return None };
        if self.pods.get(&pod).is_none_or(|known| known != path) {
            return None;
        }
        self.pods.remove(&pod);
        let watch = self.wanted.get_mut(&pod)?.take();
        if let Some(watch) = watch {
            self.unwatch(watch);
        }
        Some(pod)
    }

    fn lose_slice(&mut self, path: &Path) {
        let Some(watch) = self.slices.remove(path) else { return };
        self.unwatch(watch);
        if self.slices.is_empty() {
            // Perhaps they are in another hierarchy now.
            self.hierarchy = None;
            self.lacking.get_or_insert(Unwatched::NoPod);
        }
    }

    /// A directory is no longer watched: it is gone. Gives the pod, if it was one's.
    fn unwatched(&mut self, watched: Watched, watch: i32) -> Option<PodUid> {
        match watched {
            Watched::Slice(slice) => {
                if self.slices.get(&slice) == Some(&watch) {
                    self.lose_slice(&slice);
                }
                None
            }
            Watched::Pod(pod) => {
                if let Some(of_pod) = self.wanted.get_mut(&pod).filter(|it| **it == Some(watch)) {
                    *of_pod = None;
                }
                Some(pod)
            }
        }
    }

    /// Looks for what events have not told, and tries again what was refused. Gives the wanted pods that are seen now and
    /// were not.
    pub(super) fn read_again(&mut self) -> HashSet<PodUid> {
        if self.inotify.is_none() {
            return HashSet::new();
        }
        let unseen: Vec<PodUid> = self.wanted.keys().filter(|pod| !self.sees(pod)).cloned().collect();
        if self.mounts.is_empty() {
            self.find_hierarchies();
        }
        if matches!(self.lacking, Some(Unwatched::Refused(_))) {
            self.lacking = Some(Unwatched::NoPod).filter(|_| self.slices.is_empty());
        }
        let gone: Vec<PathBuf> = self.pods.values().filter(|path| !path.exists()).cloned().collect();
        for path in gone {
            self.went(&path);
        }
        let slices: Vec<(PathBuf, i32)> = self.slices.iter().map(|(slice, watch)| (slice.clone(), *watch)).collect();
        for (slice, former) in slices {
            match self.watch(&slice) {
                Some(watch) if watch == former => {}
                // Another directory of the same name.
                Some(watch) => {
                    self.unwatch(former);
                    self.watches.insert(watch, Watched::Slice(slice.clone()));
                    self.slices.insert(slice.clone(), watch);
                }
                None if !slice.exists() => self.lose_slice(&slice),
                None => {}
            }
            for name in directories(&slice).0 {
                self.appeared(&slice, &name);
            }
        }
        unseen.into_iter().filter(|pod| self.sees(pod)).collect()
    }

    /// What there is in a pod's cgroup, as far as `matters` says so of its name.
    pub(super) fn parts(&self, pod: &PodUid, matters: impl Fn(&[u8]) -> bool) -> Parts {
        if self.scattered.contains(pod) {
            return Parts::Scattered;
        }
        let Some(pod) = self.pods.get(pod) else { return Parts::Nowhere };
        let parts = directories(pod).0.into_iter().filter(|name| matters(name.as_bytes()));
        Parts::Here(parts.map(|name| collect(&pod.join(&name), name.as_bytes())).collect())
    }
}

/// The processes of a cgroup and of those below it, as far as the bounds allow.
fn collect(top: &Path, name: &[u8]) -> Below {
    let mut below = Below { name: name.to_vec(), processes: Vec::new(), whole: true };
    let mut ahead = VecDeque::from([(top.to_owned(), 0)]);
    for _ in 0..MOST_BELOW {
        let Some((cgroup, deep)) = ahead.pop_front() else { return below };
        let mut bytes = Vec::new();
        let list = std::fs::File::open(cgroup.join("cgroup.procs"));
        match list.and_then(|list| list.take(LONGEST_LIST).read_to_end(&mut bytes)) {
            Ok(length) => below.whole &= (length as u64) < LONGEST_LIST,
            Err(error) => match Errno::from_io_error(&error) {
                // It is gone.
                Some(Errno::NOENT | Errno::NODEV) => continue,
                // A threaded cgroup's processes are listed further up.
                Some(Errno::OPNOTSUPP) if deep > 0 => {}
                _ => below.whole = false,
            },
        }
        below.processes.extend(String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.parse::<i32>().ok()));
        let (names, all) = directories(&cgroup);
        if deep == DEEPEST {
            below.whole &= names.is_empty();
            continue;
        }
        below.whole &= all;
        ahead.extend(names.into_iter().take(MOST_BELOW).map(|name| (cgroup.join(name), deep + 1)));
    }
    below.whole &= ahead.is_empty();
    below
}

/// The directories in one, and whether these are all.
fn directories(path: &Path) -> (Vec<OsString>, bool) {
    let mut entries = std::fs::read_dir(path).into_iter().flatten();
    let first = entries.by_ref().take(MOST_ENTRIES).flatten();
    let names = first.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir())).map(|entry| entry.file_name());
    (names.collect(), entries.next().is_none())
}

/// The hierarchies of cgroups that are mounted as a whole: where the node's first process has them, else where we do.
fn hierarchies() -> Vec<(Vec<u8>, PathBuf)> {
    let views = [("/proc/1/mountinfo", "/proc/1/root"), ("/proc/self/mountinfo", "/")];
    let mounts = |(list, root): (&str, &'static str)| {
        let mounts = mountinfo::parse(&std::fs::read(list).unwrap_or_default());
        mounts.into_iter().filter(|mount| mount.root == b"/").filter_map(move |mount| {
            let options = match mount.fstype.as_str() {
                "cgroup" => mount.options,
                "cgroup2" => Vec::new(),
                _ => return None,
            };
            let at = below(Path::new(root), Path::new(OsStr::from_bytes(&mount.mountpoint)));
            at.join("cgroup.procs").exists().then_some((options, at))
        })
    };
    views.into_iter().flat_map(mounts).collect()
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(line: &str) -> Home {
        Home::of(&crate::process::facts::Cgroups::parse(line.as_bytes())).unwrap()
    }

    fn here(name: &str, processes: &[i32]) -> Parts {
        Parts::Here(vec![Below { name: name.into(), processes: processes.to_vec(), whole: true }])
    }

    /// On directories as good as any: what appears is told, and what was there before is known.
    #[test]
    fn tells_of_what_appears() {
        let scratch = tempfile::tempdir().unwrap();
        let kubepods = scratch.path().join("prefix/kubepods");
        std::fs::create_dir_all(kubepods.join("burstable/pod1/c")).unwrap();
        let mut tree = Tree::new();
        tree.mounts = vec![(b"rw,pids".to_vec(), scratch.path().to_owned())];
        let [one, two, three] = ["1", "2", "3"].map(|uid| PodUid::new(uid).unwrap());
        for pod in [&one, &two, &three] {
            tree.want(pod.clone());
        }
        assert!(tree.lacks() == Some(&Unwatched::NoPod) && !tree.sees(&one));
        tree.learn(&home("4:pids:/prefix/kubepods/burstable/pod1/c\n0::/\n"));
        assert!(tree.lacks().is_none() && tree.sees(&one) && !tree.sees(&two));
        // A class that did not exist yet, a pod in it and a container in that, each made before the other was seen.
        std::fs::create_dir_all(kubepods.join("besteffort/pod2/c/deep")).unwrap();
        std::fs::create_dir_all(kubepods.join("pod3")).unwrap();
        std::fs::write(kubepods.join("besteffort/pod2/c/cgroup.procs"), "12\n0\nx\n").unwrap();
        std::fs::write(kubepods.join("besteffort/pod2/c/deep/cgroup.procs"), "13\n").unwrap();
        tree.take();
        assert!(tree.sees(&two) && tree.sees(&three));
        assert_eq!(tree.parts(&two, |_| true), here("c", &[12, 0, 13]));
        assert_eq!(tree.parts(&two, |_| false), Parts::Here(vec![]));
        assert_eq!(tree.take(), HashSet::new());
        std::fs::create_dir(kubepods.join("pod3/d")).unwrap();
        assert_eq!(tree.take(), HashSet::from([three.clone()]));
        tree.forget(&three);
        std::fs::create_dir(kubepods.join("pod3/e")).unwrap();
        std::fs::remove_dir_all(kubepods.join("besteffort/pod2")).unwrap();
        assert_eq!(tree.take(), HashSet::from([two.clone()]));
        assert!(!tree.sees(&two) && tree.parts(&two, |_| true) == Parts::Nowhere);
        // Events were lost.
        std::fs::create_dir_all(kubepods.join("besteffort/pod2")).unwrap();
        assert_eq!(tree.read_again(), HashSet::from([two.clone()]));
        assert!(tree.sees(&two));
        std::fs::remove_dir_all(&kubepods).unwrap();
        tree.take();
        assert_eq!(tree.lacks(), Some(&Unwatched::NoPod));
    }

    /// A runtime that does not use systemd, and was told its names: there is no directory for the pod.
    #[test]
    fn containers_beside_their_pod() {
        let scratch = tempfile::tempdir().unwrap();
        let mut tree = Tree::new();
        tree.mounts = vec![(Vec::new(), scratch.path().to_owned())];
        let pod = PodUid::new("1").unwrap();
        tree.want(pod.clone());
        let system = scratch.path().join("system.slice");
        std::fs::create_dir(&system).unwrap();
        tree.learn(&home("0::/system.slice/kubepods-pod9.slice:crio:cafe"));
        std::fs::create_dir(system.join("kubepods-pod1.slice:crio:c0de")).unwrap();
        assert_eq!(tree.take(), HashSet::from([pod.clone()]));
        assert_eq!(tree.parts(&pod, |_| true), Parts::Scattered);
    }

    /// Without a mount of the hierarchy, and without an instance, it says that it sees nothing.
    #[test]
    fn says_that_it_sees_nothing() {
        let mut tree = Tree::new();
        tree.learn(&home("0::/kubepods/pod1/c"));
        assert_eq!(tree.lacks(), Some(&Unwatched::NotMounted));
        let mut tree = Tree::blind();
        tree.want(PodUid::new("1").unwrap());
        tree.learn(&home("0::/kubepods/pod1/c"));
        assert!(tree.read_again().is_empty() && tree.take().is_empty());
        assert_eq!(tree.lacks(), Some(&Unwatched::Unasked));
    }

    /// However many and however deep the cgroups are that a container makes: few are read, and that is said.
    #[test]
    fn reads_so_much_and_no_more() {
        let scratch = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let made = scratch.path().join(path);
            std::fs::create_dir_all(&made).unwrap();
            for cgroup in made.ancestors().take_while(|it| *it != scratch.path()) {
                std::fs::write(cgroup.join("cgroup.procs"), "7\n").unwrap();
            }
        };
        make("deep/1/2/3/4/5/6/7/8");
        let collect = |name: &str| collect(&scratch.path().join(name), name.as_bytes());
        assert!(collect("deep").whole);
        make("deep/1/2/3/4/5/6/7/8/9");
        assert!(!collect("deep").whole);
        for at in 0..MOST_BELOW - 1 {
            make(&format!("wide/{at}"));
        }
        make("wide");
        assert!(collect("wide").whole && collect("wide").processes.len() == MOST_BELOW);
        make("wide/another");
        assert!(!collect("wide").whole && collect("wide").processes.len() == MOST_BELOW);
        make("long");
        std::fs::write(scratch.path().join("long/cgroup.procs"), "1234567\n".repeat(32_768)).unwrap();
        assert!(!collect("long").whole);
        assert_eq!(collect("none"), Below { name: b"none".to_vec(), processes: Vec::new(), whole: true });
    }
}

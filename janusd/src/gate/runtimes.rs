//! The node's container runtimes: where their programs are, and the marks on them.
//!
//! Looked for at the usual places below the root of the node's first process, symlinks followed there and not here, again
//! and again: an upgrade puts another file in a program's place, and its mark goes with the old one. Laying a mark that is
//! there costs nothing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::fanotify::look::{self, Inode};
use crate::fanotify::{Features, Group, MarkTarget};
use crate::policy::{Event, Events};
use crate::root::{fstype, mountinfo};

/// OCI runtimes that make a container first, and start it when they are executed once more.
const PROGRAMS: [&str; 3] = ["runc", "crun", "youki"];
/// Where distributions and installers put them. Nothing below what may be mounted from elsewhere when it is walked to, as
/// /home is.
const DIRECTORIES: [&str; 12] = [
    "usr/bin",
    "usr/sbin",
    "usr/local/bin",
    "usr/local/sbin",
    "usr/libexec/crio",
    "usr/lib/cri-o-runc/sbin",
    "opt/bin",
    "var/lib/rancher/k3s/data/current/bin",
    "var/lib/rancher/rke2/bin",
    "var/lib/k0s/bin",
    "snap/microk8s/current/bin",
    "run/current-system/sw/bin",
];

/// A program that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    inode: Inode,
    /// Why it bears no mark.
    unmarked: Option<String>,
}

/// What has changed since the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// Whoever executes this is asked about.
    Gated(PathBuf),
    /// It is there, and cannot be gated.
    NotGated(PathBuf, String),
    /// It is not there any more.
    Gone(PathBuf),
}

/// The programs, as last seen.
#[derive(Debug)]
pub(super) struct Runtimes {
    places: Vec<PathBuf>,
    found: BTreeMap<PathBuf, Program>,
}

impl Runtimes {
    /// Those at the usual places, and at `more`.
    pub(super) fn new(more: &[PathBuf]) -> Runtimes {
        let usual = DIRECTORIES.iter().flat_map(|at| PROGRAMS.iter().map(move |name| Path::new(at).join(name)));
        let more = more.iter().map(|path| path.strip_prefix("/").unwrap_or(path).to_owned());
        Runtimes { places: usual.chain(more).collect(), found: BTreeMap::new() }
    }

    /// How many programs bear a mark.
    pub(super) fn gated(&self) -> usize {
        let mut inodes: Vec<Inode> =
            self.found.values().filter(|it| it.unmarked.is_none()).map(|program| program.inode).collect();
        inodes.sort_unstable();
        inodes.dedup();
        inodes.len()
    }

    /// Whether this file is one of them.
    #[cfg(test)]
    fn has(&self, inode: &Inode) -> bool {
        self.found.values().any(|program| program.inode == *inode)
    }

    /// Forgets what it has found: the marks are gone.
    pub(super) fn forget(&mut self) {
        self.found.clear();
    }

    /// Looks, and marks what is there. What is new is told.
    pub(super) fn look(&mut self, group: &Group, features: &Features) -> Vec<News> {
        let mut news = Vec::new();
        let root = node_root();
        let mut found = BTreeMap::new();
        for place in &self.places {
            let Some(file) = root.as_ref().and_then(|root| open(root, place)) else { continue };
            let Ok(stat) = look::stat(file.as_fd(), features) else { continue };
            let shown = Path::new("/").join(place);
            let before = self.found.get(place).filter(|program| program.inode == stat.inode);
            let refused = match before {
                Some(program) if program.unmarked.is_some() => program.unmarked.clone(),
                Some(_) => None,
                None => refusal(&file),
            };
            let events = Events::NONE.with(Event::Execute);
            let unmarked = refused.or_else(|| {
                group.mark(MarkTarget::Inode, events, file.as_fd()).err().map(|error| format!("fanotify_mark: {error}"))
            });
            let program = Program { inode: stat.inode, unmarked };
            if before != Some(&program) {
                news.push(match &program.unmarked {
                    None => News::Gated(shown),
                    Some(why) => News::NotGated(shown, why.clone()),
                });
            }
            found.insert(place.clone(), program);
        }
        let gone = self.found.keys().filter(|place| !found.contains_key(*place));
        news.extend(gone.map(|place| News::Gone(Path::new("/").join(place))));
        self.found = found;
        news
    }
}

/// The root of the node's first process; ours, where that one cannot be looked at.
fn node_root() -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    ["/proc/1/root", "/"].iter().find_map(|root| rustix::fs::open(*root, flags, Mode::empty()).ok())
}

fn open(root: &OwnedFd, place: &Path) -> Option<OwnedFd> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside).ok()
}

/// Reading an event opens its file: not where a server may never answer that.
fn refusal(file: &OwnedFd) -> Option<String> {
    let mounts = ["1", "self"].iter().find_map(|process| std::fs::read(format!("/proc/{process}/mountinfo")).ok());
    let id = look::mountinfo_id(file.as_fd()).ok()?;
    let mounts = mountinfo::parse(&mounts?);
    let fstype = &mounts.iter().find(|mount| mount.id == id)?.fstype;
    let refusal = fstype::refused(fstype)?;
    Some(format!("it lies on {fstype}: {}", refusal.explain()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As root only: no group can be had otherwise.
    #[test]
    fn a_program_that_is_replaced_is_marked_again() {
        let features = Features::default();
        let Ok(group) = Group::new(&features, false) else { return };
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a-runtime");
        let mut runtimes = Runtimes::new(std::slice::from_ref(&path));
        let here = |news: Vec<News>| -> Vec<News> {
            let of_it = |it: &News| match it {
                News::Gated(at) | News::NotGated(at, _) | News::Gone(at) => *at == path,
            };
            news.into_iter().filter(of_it).collect()
        };
        assert_eq!(here(runtimes.look(&group, &features)), []);
        std::fs::write(&path, "one").unwrap();
        assert_eq!(here(runtimes.look(&group, &features)), [News::Gated(path.clone())]);
        let before = look::stat(std::fs::File::open(&path).unwrap().as_fd(), &features).unwrap().inode;
        assert!(runtimes.has(&before) && runtimes.gated() > 0);
        assert_eq!(here(runtimes.look(&group, &features)), []);
        let aside = scratch.path().join("aside");
        std::fs::write(&aside, "two").unwrap();
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!(here(runtimes.look(&group, &features)), [News::Gated(path.clone())]);
        assert!(!runtimes.has(&before));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(here(runtimes.look(&group, &features)), [News::Gone(path.clone())]);
    }
}

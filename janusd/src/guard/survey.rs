//! The survey: where a guard's paths lead in one root, which marks that takes, and what the rules must know of it.
//!
//! Flow: read the root's mounts and choose a [`Reach`] for each; follow each rule's path; lay the marks (through the
//! ledger, before anything that they cover is listed); watch the directories that the findings rest on; hand out the
//! [`Ruling`].
//!
//! Guarantees: runs on another thread than the worker, since what it lists may be marked by its own group. Level-
//! triggered: run again, it finds the same or the new state, whatever happened between. Keeps no descriptor.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::judge::{Known, Ruling};
use super::marks::Ledger;
use super::mounts::{Mounts, Surveyable, shares_node_namespace};
use super::problem::{Problem, ProblemReason};
use super::reach::{Reach, Refusal};
use super::view::{below, join};
use super::watch::{For, Watcher};
use crate::fanotify::look::{self, Inode, Stat};
use crate::fanotify::{Features, Group, MarkTarget};
use crate::policy::{Bindings, Events, GuardSpec, MountBinding, PathPattern, Policy, RuleId, Subject};
use crate::root::resolve::{ResolveError, Resolved, open_in, resolve};
use crate::root::{Root, RootError};

/// Directories that one rule's walk marks, and entries that one glob's expansion looks at, at most.
const MOST_ENTRIES: usize = 1_000_000;

/// A survey could not be made at all.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The root is out of reach.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The mount on which the root lies is in no mount namespace that we can read.
    #[error("the mount of the root is in no mount namespace that can be read")]
    RootMount,
    /// The kernel refused something elementary.
    #[error("{0}")]
    Io(#[from] rustix::io::Errno),
    /// The worker took no orders in time. What it had before is in force.
    #[error("the guard's worker did not take the new rules in time")]
    Unanswered,
    /// The guard is being stopped.
    #[error("stopped")]
    Stopped,
}

/// Whether a survey is to be given up: its guard ends, or the whole process does.
#[derive(Debug, Clone)]
pub(super) struct Stopping {
    pub(super) guard: Arc<AtomicBool>,
    pub(super) process: Arc<AtomicBool>,
}

impl Stopping {
    pub(super) fn now(&self) -> bool {
        self.guard.load(Ordering::Relaxed) || self.process.load(Ordering::Relaxed)
    }
}

/// What a survey needs and keeps between runs.
pub(super) struct Surveyor<'a> {
    pub(super) root: &'a Root,
    pub(super) group: &'a Group,
    pub(super) features: &'a Features,
    pub(super) ledger: &'a mut Ledger,
    pub(super) watcher: &'a mut Watcher,
    pub(super) stopping: &'a Stopping,
}

/// What it found.
#[derive(Debug)]
pub(super) struct Surveyed {
    pub(super) ruling: Ruling,
    pub(super) problems: BTreeSet<Problem>,
}

impl Surveyor<'_> {
    /// Surveys everything. Marks that are no longer wanted stay until [`Surveyor::sweep`].
    pub(super) fn survey(&mut self, spec: &GuardSpec) -> Result<Surveyed, SurveyError> {
        self.ledger.begin();
        self.watcher.begin();
        let root = self.root.open()?;
        let mounts = Mounts::read(self.root, root.as_fd(), self.features)?;
        let mut pass = Pass {
            root: root.as_fd(),
            mounts: &mounts,
            spec_events: spec.events(),
            bindings: Bindings::default(),
            known: HashMap::new(),
            problems: BTreeSet::new(),
            surveyor: self,
        };
        for (rule, pattern) in spec.rules() {
            if let Some(subject) = spec.subject(rule.subject) {
                pass.bind(rule, pattern, subject)?;
            }
        }
        let (bindings, known, problems) = (pass.bindings, pass.known, pass.problems);
        let ruling = Ruling {
            policy: Policy::new(spec, &bindings),
            view: mounts.view(),
            known,
            failure_policy: spec.failure_policy(),
            enforcement: spec.enforcement(),
        };
        Ok(Surveyed { ruling, problems })
    }

    /// Marks a directory that has just appeared, and what is below it, without surveying the rest. The rules need not
    /// change: they go by names.
    pub(super) fn extend(&mut self, spec: &GuardSpec, directory: &[u8]) -> Result<(), SurveyError> {
        let root = self.root.open()?;
        let mounts = Mounts::read(self.root, root.as_fd(), self.features)?;
        let mut pass = Pass {
            root: root.as_fd(),
            mounts: &mounts,
            spec_events: spec.events(),
            bindings: Bindings::default(),
            known: HashMap::new(),
            problems: BTreeSet::new(),
            surveyor: self,
        };
        // Depth limits are left to the next full survey: a mark too many costs an answer, one too few a file.
        pass.walk(directory, u32::MAX, &|_| true)
    }

    /// Takes away the marks and watches that the last survey did not want. Call it once the new rules are in force. True
    /// when directories could not be watched.
    pub(super) fn sweep(&mut self) -> Result<bool, SurveyError> {
        let root = self.root.open()?;
        self.ledger.sweep(self.group, root.as_fd(), self.features);
        Ok(self.watcher.sweep())
    }
}

/// The entries of a directory, each with its type.
type Entries = Vec<(Vec<u8>, FileType)>;

/// One run through the rules.
struct Pass<'a, 's> {
    root: BorrowedFd<'a>,
    mounts: &'a Mounts,
    spec_events: Events,
    bindings: Bindings,
    known: HashMap<Inode, Vec<Known>>,
    problems: BTreeSet<Problem>,
    surveyor: &'a mut Surveyor<'s>,
}

impl Pass<'_, '_> {
    fn problem(&mut self, reason: ProblemReason, rule: RuleId, path: &[u8], detail: impl Into<String>) {
        self.problems.insert(Problem { reason, rule: Some(rule), path: path.to_vec(), detail: detail.into() });
    }

    fn bind(&mut self, rule: RuleId, pattern: &PathPattern, subject: &Subject) -> Result<(), SurveyError> {
        let Some(target) = self.follow(rule, pattern.base())? else { return Ok(()) };
        let effective = if target.canonical == pattern.base() {
            pattern.clone()
        } else {
            let alias = pattern.rebase(target.canonical.clone());
            self.bindings.aliases.push((rule, alias.clone()));
            alias
        };
        if !pattern.is_glob() {
            self.learn(rule, pattern, &target, subject);
        } else if !pattern.crosses_directories() {
            self.expand(rule, &effective, subject)?;
        }
        if subject.mount() {
            self.bind_mount(rule, &target);
            return Ok(());
        }
        self.mark_all(rule, &effective, Some(&target), subject)
    }

    /// Follows a path and watches the way. `None`: it cannot be followed, and that has been said.
    fn follow(&mut self, rule: RuleId, path: &[u8]) -> Result<Option<Resolved>, SurveyError> {
        match resolve(self.root, path, self.surveyor.features, self.mounts) {
            Ok(resolved) => {
                for passed in &resolved.passed {
                    self.watch(&passed.directory, For::Entry(&passed.entry));
                }
                Ok(Some(resolved))
            }
            Err(ResolveError::Loop) => {
                self.problem(ProblemReason::SymlinkLoop, rule, path, ResolveError::Loop.to_string());
                Ok(None)
            }
            Err(ResolveError::Refused { mount }) => {
                let (reason, detail) = match self.mounts.iter().find(|m| m.mount.id == mount) {
                    Some(Surveyable { mount, reach: Reach::Refused(refusal), .. }) => {
                        (reason_of(*refusal), format!("{}: {}", mount.fstype, refusal.explain()))
                    }
                    _ => (ProblemReason::PathUnreadable, "a mount that has just come".to_owned()),
                };
                self.problem(reason, rule, path, detail);
                Ok(None)
            }
            Err(error @ ResolveError::Io(_)) => {
                self.problem(ProblemReason::PathUnreadable, rule, path, error.to_string());
                Ok(None)
            }
        }
    }

    /// Notes what a literal path leads to, by identity.
    fn learn(&mut self, rule: RuleId, pattern: &PathPattern, target: &Resolved, subject: &Subject) {
        let Some(found) = &target.found else {
            self.problem(ProblemReason::PathAbsent, rule, pattern.base(), "guarded from the moment it exists");
            return;
        };
        match found.stat.file_type {
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
                let detail = "the kernel asks nobody about devices, FIFOs and sockets";
                self.problem(ProblemReason::SpecialFileNotGated, rule, pattern.base(), detail);
                return;
            }
            FileType::Directory => {}
            _ if subject.only_dir() => {
                self.problem(ProblemReason::NotADirectory, rule, pattern.base(), "left out, as onlyDir asks");
                return;
            }
            _ => {}
        }
        let known =
            Known { handle: look::handle(found.file.as_fd(), self.surveyor.features), name: target.canonical.clone() };
        let names = self.known.entry(found.stat.inode).or_default();
        if !names.contains(&known) {
            names.push(known);
        }
    }

    /// Finds symlinks that a glob matches, and where they lead.
    fn expand(&mut self, rule: RuleId, glob: &PathPattern, subject: &Subject) -> Result<(), SurveyError> {
        let mut ahead = vec![glob.base().to_vec()];
        let mut looked = 0;
        while let Some(directory) = ahead.pop() {
            let Some(entries) = self.list(&directory)? else { continue };
            self.watch(&directory, For::Entries);
            for (name, kind) in entries {
                looked += 1;
                if looked > MOST_ENTRIES {
                    self.problem(ProblemReason::TooManyEntries, rule, &directory, "symlinks beyond are not followed");
                    return Ok(());
                }
                let path = join(&directory, &[b"/", &name[..]].concat());
                match kind {
                    FileType::Symlink if glob.matches(&path) => {
                        let Some(target) = self.follow(rule, &path)? else { continue };
                        let alias = PathPattern::literal(target.canonical.clone());
                        self.bindings.aliases.push((rule, alias.clone()));
                        self.learn(rule, &alias, &target, subject);
                        self.mark_all(rule, &alias, Some(&target), subject)?;
                    }
                    FileType::Directory if !glob.matches(&path) && glob.may_match_below(&path) => ahead.push(path),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn bind_mount(&mut self, rule: RuleId, target: &Resolved) {
        let path = if target.found.is_some() { &target.canonical } else { &target.parent };
        let Some(held) = self.mounts.holding(path) else { return };
        if let Reach::Refused(refusal) = held.reach {
            let detail = format!("{}: {}", held.mount.fstype, refusal.explain());
            self.problem(reason_of(refusal), rule, path, detail);
            return;
        }
        let Some(id) = held.id else { return };
        if held.mount.mountpoint == b"/" && held.at == b"/" && shares_node_namespace(self.surveyor.root) {
            self.problem(ProblemReason::NodeMount, rule, path, "the node's own root mount is never gated as a whole");
            return;
        }
        let (at, mountpoint) = (held.at.clone(), held.at.clone());
        self.bindings.mounts.push((rule, MountBinding { mount: id, mountpoint }));
        self.mark(rule, MarkTarget::Mount, &at);
    }

    /// Lays the marks that a pattern takes: on the mount where it begins, and on every mount below that it covers.
    fn mark_all(
        &mut self,
        rule: RuleId,
        pattern: &PathPattern,
        target: Option<&Resolved>,
        subject: &Subject,
    ) -> Result<(), SurveyError> {
        let base = pattern.base();
        let mounts = self.mounts;
        let landing = mounts.holding(base);
        let base_depth = depth(base);
        let below_base = mounts.iter().filter(|m| {
            landing.is_none_or(|landing| landing.at != m.at)
                && below(base, &m.at).is_some()
                && pattern.may_match_below(&m.at)
                && (pattern.is_glob() || u64::from(depth(&m.at) - base_depth) <= u64::from(subject.depth()))
        });
        for mount in landing.into_iter().chain(below_base) {
            match mount.reach {
                Reach::Refused(refusal) => {
                    let detail = format!("{}: {}", mount.mount.fstype, refusal.explain());
                    self.problem(reason_of(refusal), rule, &mount.at, detail);
                }
                Reach::Filesystem => self.mark(rule, MarkTarget::Filesystem, &mount.at),
                Reach::Mount { inodes } => {
                    self.mark(rule, MarkTarget::Mount, &mount.at);
                    if inodes {
                        self.mark_inodes(rule, pattern, target, mount, subject)?;
                    }
                }
                Reach::Inodes => self.mark_inodes(rule, pattern, target, mount, subject)?,
            }
        }
        Ok(())
    }

    /// Inode marks for the part of a pattern that lies on `mount`.
    fn mark_inodes(
        &mut self,
        rule: RuleId,
        pattern: &PathPattern,
        target: Option<&Resolved>,
        mount: &Surveyable,
        subject: &Subject,
    ) -> Result<(), SurveyError> {
        let base = pattern.base();
        if below(base, &mount.at).is_some_and(|rest| !rest.is_empty()) {
            // The mount lies below: everything from its root on.
            let left = subject.depth().saturating_sub(depth(&mount.at) - depth(base));
            return self.walk_rule(rule, &mount.at, left, pattern);
        }
        let Some(target) = target else { return Ok(()) };
        let Some(found) = &target.found else {
            // What is created directly in the deepest directory that exists is seen at once.
            self.mark(rule, MarkTarget::Directory, &target.parent);
            return Ok(());
        };
        match found.stat.file_type {
            FileType::Directory => self.walk_rule(rule, base, subject.depth(), pattern),
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => Ok(()),
            _ => {
                // The file itself, by whatever name; and what replaces it under this one.
                self.mark(rule, MarkTarget::Inode, base);
                self.mark(rule, MarkTarget::Directory, &target.parent);
                Ok(())
            }
        }
    }

    fn walk_rule(&mut self, rule: RuleId, from: &[u8], left: u32, pattern: &PathPattern) -> Result<(), SurveyError> {
        let before = self.surveyor.ledger.counts().inode;
        let walked = self.walk(from, if pattern.is_glob() { u32::MAX } else { left }, &|directory| {
            !pattern.is_glob() || pattern.may_match_below(directory)
        });
        let laid = self.surveyor.ledger.counts().inode.saturating_sub(before);
        if usize::try_from(laid).unwrap_or(usize::MAX) >= MOST_ENTRIES {
            self.problem(ProblemReason::TooManyEntries, rule, from, "directories beyond are not marked");
        }
        walked
    }

    /// Marks `from` and the directories below it, `left` levels deep (1: `from` alone, whose mark covers its children).
    /// Stays on one mount. Each directory is marked before it is listed.
    fn walk(&mut self, from: &[u8], left: u32, enter: &dyn Fn(&[u8]) -> bool) -> Result<(), SurveyError> {
        let mut ahead = vec![(from.to_vec(), left)];
        let mut walked = 0;
        let mut mount = None;
        while let Some((directory, left)) = ahead.pop() {
            if self.surveyor.stopping.now() {
                return Err(SurveyError::Stopped);
            }
            let Ok((file, stat)) = self.open(&directory) else { continue };
            if stat.file_type != FileType::Directory || *mount.get_or_insert(stat.mount) != stat.mount {
                continue;
            }
            if !self.mark_open(None, MarkTarget::Directory, &directory, &file, &stat) {
                continue;
            }
            walked += 1;
            if left <= 1 || walked >= MOST_ENTRIES {
                continue;
            }
            self.surveyor.watcher.want(file.as_fd(), &directory, For::Subdirectories);
            for (name, kind) in self.list(&directory)?.unwrap_or_default() {
                if kind == FileType::Directory {
                    let path = join(&directory, &[b"/", &name[..]].concat());
                    if enter(&path) {
                        ahead.push((path, left.saturating_sub(1)));
                    }
                }
            }
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> rustix::io::Result<(OwnedFd, Stat)> {
        let file = open_in(self.root, path)?;
        let stat = look::stat(file.as_fd(), self.surveyor.features)?;
        Ok((file, stat))
    }

    fn mark(&mut self, rule: RuleId, target: MarkTarget, path: &[u8]) {
        match self.open(path) {
            Ok((file, stat)) => {
                self.mark_open(Some(rule), target, path, &file, &stat);
            }
            // Gone, or replaced by a symlink, since we looked: the watch on its directory has seen it.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => {}
            Err(errno) => self.problem(ProblemReason::PathUnreadable, rule, path, errno.to_string()),
        }
    }

    fn mark_open(
        &mut self,
        rule: Option<RuleId>,
        target: MarkTarget,
        path: &[u8],
        file: &OwnedFd,
        stat: &Stat,
    ) -> bool {
        let Surveyor { ledger, group, .. } = self.surveyor;
        match ledger.want(group, target, self.spec_events, file.as_fd(), stat, path) {
            Ok(()) => true,
            Err(error) => {
                self.problems.insert(Problem {
                    reason: ProblemReason::MarkRefused,
                    rule,
                    path: path.to_vec(),
                    detail: error.to_string(),
                });
                false
            }
        }
    }

    fn watch(&mut self, directory: &[u8], what: For<'_>) {
        if let Ok(file) = open_in(self.root, directory) {
            self.surveyor.watcher.want(file.as_fd(), directory, what);
        }
    }

    /// The entries of a directory; `None` when it cannot be read, or is none. Opening and listing it may raise events for
    /// our own worker, which allows us.
    fn list(&self, directory: &[u8]) -> Result<Option<Entries>, SurveyError> {
        if self.surveyor.stopping.now() {
            return Err(SurveyError::Stopped);
        }
        let Ok(held) = open_in(self.root, directory) else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Ok(opened) = rustix::fs::openat(&held, c".", flags, Mode::empty()) else { return Ok(None) };
        let Ok(entries) = Dir::new(opened) else { return Ok(None) };
        let mut listed = Vec::new();
        for entry in entries.take(MOST_ENTRIES).map_while(Result::ok) {
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let file = rustix::fs::openat(&held, OsStr::from_bytes(name), flags, Mode::empty());
                    let stat = file.and_then(|file| look::stat(file.as_fd(), self.surveyor.features));
                    stat.map_or(FileType::Unknown, |stat| stat.file_type)
                }
                kind => kind,
            };
            listed.push((name.to_vec(), kind));
        }
        Ok(Some(listed))
    }
}

fn reason_of(refusal: Refusal) -> ProblemReason {
    match refusal {
        Refusal::Devices => ProblemReason::SpecialFileNotGated,
        Refusal::CanHang | Refusal::Virtual | Refusal::Unknown => ProblemReason::FilesystemNotGated,
    }
}

fn depth(path: &[u8]) -> u32 {
    let segments = path.split(|b| *b == b'/').filter(|s| !s.is_empty()).count();
    u32::try_from(segments).unwrap_or(u32::MAX)
}

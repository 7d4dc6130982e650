//! The survey: where a guard's paths lead in one root, which marks that takes, and what the rules must know of it.
//!
//! Flow: read the root's mounts and choose a [`Reach`] for each; follow each rule's path; lay the marks (through the
//! ledger, before anything that they cover is listed); watch the directories that the findings rest on; hand out the
//! [`SiteRules`].
//!
//! Guarantees: runs on another thread than the worker, since what it lists may be marked by its own group. Level-
//! triggered: run again, it finds the same or the new state, whatever happened between. Keeps no descriptor.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;

use super::groups::Groups;
use super::judge::SiteRules;
use super::known::Fingerprints;
use super::marks::{Ledger, Want};
use super::mounts::{Mounts, Surveyable, shares_node_namespace};
use super::problem::{Problem, ProblemReason};
use super::reach::{Reach, Refusal};
use super::site::SiteId;
use super::view::{below, join};
use super::walk::{Lessons, MOST_ENTRIES, Near, Walk};
use super::watch::{For, Watcher};
use crate::fanotify::look::{self, Stat};
use crate::fanotify::{Features, MarkTarget};
use crate::policy::{Bindings, Events, GuardSpec, List, MountBinding, PathPattern, Policy, RuleId, Subject};
use crate::root::resolve::{ResolveError, Resolved, open_in, resolve};
use crate::root::{Root, RootError};

/// Symlinks that a glob matches which are followed: each is a path to be judged by, and a container makes as many as it likes.
const MOST_SYMLINKS: usize = 1_000;
/// Problems of one root that are kept; as many again of those that degrade the guard.
const MOST_PROBLEMS: usize = 1_000;

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
    /// The kernel did not forget what it was told to answer by itself.
    #[error("ignore marks could not be flushed: {0}")]
    Flush(#[source] std::io::Error),
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
    pub(super) groups: &'a Groups,
    pub(super) fingerprints: &'a Fingerprints,
    pub(super) features: &'a Features,
    pub(super) ledger: &'a mut Ledger,
    pub(super) watcher: &'a mut Watcher,
    pub(super) stopping: &'a Stopping,
    pub(super) site: SiteId,
}

/// What it found.
#[derive(Debug)]
pub(super) struct Surveyed {
    pub(super) rules: Arc<SiteRules>,
    pub(super) problems: BTreeSet<Problem>,
    /// Whether the root shows an overlay.
    pub(super) overlay: bool,
    /// Whether no wide marks are laid.
    pub(super) near_only: bool,
    /// The file system of the root itself, if it is the root's alone.
    pub(super) own_device: Option<(u32, u32)>,
}

impl Surveyor<'_> {
    /// Surveys everything. Marks that are no longer wanted stay until [`Surveyor::sweep`].
    pub(super) fn survey(&mut self, spec: &GuardSpec, lessons: &mut Lessons<'_>) -> Result<Surveyed, SurveyError> {
        self.ledger.begin();
        self.watcher.begin();
        let root = self.root.open()?;
        let mounts = Mounts::read(self.root, root.as_fd(), self.features)?;
        let mut pass = Pass::new(self, root.as_fd(), &mounts, spec.kernel_events());
        for (rule, pattern) in spec.rules() {
            if let Some(subject) = spec.subject(rule.subject) {
                pass.bind(rule, pattern, subject)?;
            }
        }
        let bindings = std::mem::take(&mut pass.bindings);
        let rules = Arc::new(SiteRules {
            site: pass.surveyor.site,
            policy: Policy::new(spec, &bindings),
            view: mounts.view(),
            own_mounts: mounts.own(),
            by_mount: !bindings.mounts.is_empty(),
            events: spec.kernel_events(),
        });
        for walk in std::mem::take(&mut pass.walks) {
            pass.walk(&walk, &rules, lessons)?;
        }
        let overlay = mounts.iter().any(|mount| mount.mount.fstype == "overlay");
        let near_only = !mounts.iter().any(|mount| matches!(mount.reach, Reach::Filesystem | Reach::Mount { .. }));
        let stat = look::stat(root.as_fd(), pass.surveyor.features)?;
        let own = mounts.holding(b"/").is_some_and(|mount| mount.reach == Reach::Filesystem);
        let own_device = own.then_some((stat.inode.major, stat.inode.minor));
        Ok(Surveyed { rules, problems: pass.problems, overlay, near_only, own_device })
    }

    /// Marks and learns what has just appeared in a guarded directory, without surveying the rest: the rules need not
    /// change, since they go by names.
    pub(super) fn extend(
        &mut self,
        spec: &GuardSpec,
        rules: &SiteRules,
        appeared: &[Vec<u8>],
        lessons: &mut Lessons<'_>,
    ) -> Result<(), SurveyError> {
        let root = self.root.open()?;
        let mounts = Mounts::read(self.root, root.as_fd(), self.features)?;
        let mut pass = Pass::new(self, root.as_fd(), &mounts, spec.kernel_events());
        let mut files = Vec::new();
        let mut learned = Vec::new();
        for path in appeared {
            let Some(held) = mounts.holding(path) else { continue };
            // Gone again, or a symlink: there is nothing to guard.
            let Ok((file, stat)) = pass.open(path) else { continue };
            if stat.is_directory() {
                let near = pass.near(held.reach, List::Deny);
                // Depth limits are left to the next full survey: a mark too many costs an answer, one too few a file.
                pass.walk(&Walk { from: path.clone(), left: u32::MAX, pattern: None, near }, rules, lessons)?;
            } else if rules.denies(path, false) {
                let near = pass.near(held.reach, List::Deny);
                if near.files {
                    pass.mark_open(None, MarkTarget::Inode, path, &file, &stat, near.shared);
                }
                learned.push(pass.lesson(&file, &stat, path));
                files.push(file);
            }
        }
        lessons(learned);
        for file in files {
            // Only now: the worker knows them, and does not let the kernel answer for them again. ENOENT, as nearly
            // always: the kernel did not.
            let _not_ignored = pass.surveyor.groups.wide.heed_file(spec.kernel_events(), file.as_fd());
        }
        Ok(())
    }
}

/// One run through the rules.
pub(super) struct Pass<'a, 's> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) mounts: &'a Mounts,
    pub(super) events: Events,
    pub(super) bindings: Bindings,
    pub(super) walks: Vec<Walk>,
    pub(super) problems: BTreeSet<Problem>,
    pub(super) surveyor: &'a mut Surveyor<'s>,
}

impl<'a, 's> Pass<'a, 's> {
    fn new(surveyor: &'a mut Surveyor<'s>, root: BorrowedFd<'a>, mounts: &'a Mounts, events: Events) -> Self {
        let (bindings, walks, problems) = (Bindings::default(), Vec::new(), BTreeSet::new());
        Pass { root, mounts, events, bindings, walks, problems, surveyor }
    }

    fn problem(&mut self, reason: ProblemReason, rule: RuleId, path: &[u8], detail: impl Into<String>) {
        // Beyond the first bound there is room for those that matter, and so for the guard to be told of as degraded.
        if self.problems.len() >= MOST_PROBLEMS && (!reason.degrades() || self.problems.len() >= 2 * MOST_PROBLEMS) {
            return;
        }
        self.problems.insert(Problem {
            reason,
            rule: Some(rule),
            path: path.to_vec(),
            detail: detail.into(),
            container: None,
        });
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
            self.inspect(rule, pattern, &target, subject);
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

    /// Says what is odd about what a literal path leads to.
    fn inspect(&mut self, rule: RuleId, pattern: &PathPattern, target: &Resolved, subject: &Subject) {
        let Some(found) = &target.found else {
            self.problem(ProblemReason::PathAbsent, rule, pattern.base(), "guarded from the moment it exists");
            return;
        };
        match found.stat.file_type {
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
                let detail = "the kernel asks nobody about devices, FIFOs and sockets";
                self.problem(ProblemReason::SpecialFileNotGated, rule, pattern.base(), detail);
            }
            FileType::Directory => {}
            _ if subject.only_dir() => {
                self.problem(ProblemReason::NotADirectory, rule, pattern.base(), "left out, as onlyDir asks");
            }
            _ => {}
        }
    }

    /// Finds symlinks that a glob matches, and where they lead.
    fn expand(&mut self, rule: RuleId, glob: &PathPattern, subject: &Subject) -> Result<(), SurveyError> {
        let mut ahead = vec![glob.base().to_vec()];
        let (mut looked, mut followed) = (0, 0);
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
                        followed += 1;
                        if followed > MOST_SYMLINKS {
                            self.problem(
                                ProblemReason::TooManyEntries,
                                rule,
                                &directory,
                                "symlinks beyond are not followed",
                            );
                            return Ok(());
                        }
                        let Some(target) = self.follow(rule, &path)? else { continue };
                        let alias = PathPattern::literal(target.canonical.clone());
                        self.bindings.aliases.push((rule, alias.clone()));
                        self.inspect(rule, &alias, &target, subject);
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
        self.mark(rule, MarkTarget::Mount, &at, false);
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
                Reach::Filesystem => self.mark(rule, MarkTarget::Filesystem, &mount.at, false),
                Reach::Mount { .. } => {
                    // And whatever other mount of the root shows the same part of the same file system.
                    for alias in mounts.iter().filter(|other| other.overlaps(mount)) {
                        self.mark(rule, MarkTarget::Mount, &alias.at, false);
                    }
                }
                Reach::Inodes => {}
            }
            let near = self.near(mount.reach, rule.list);
            if near.lay || near.learn {
                self.plan(rule, pattern, target, mount, subject, near);
            }
        }
        Ok(())
    }

    /// Near marks for the part of a pattern that lies on `mount`, and the trees that are to be walked for it.
    fn plan(
        &mut self,
        rule: RuleId,
        pattern: &PathPattern,
        target: Option<&Resolved>,
        mount: &Surveyable,
        subject: &Subject,
        near: Near,
    ) {
        let base = pattern.base();
        let glob = pattern.is_glob().then(|| pattern.clone());
        if below(base, &mount.at).is_some_and(|rest| !rest.is_empty()) {
            // The mount lies below: everything from its root on.
            let left = subject.depth().saturating_sub(depth(&mount.at) - depth(base));
            let left = if glob.is_some() { u32::MAX } else { left };
            self.walks.push(Walk { from: mount.at.clone(), left, pattern: glob, near });
            return;
        }
        let Some(target) = target else { return };
        let Some(found) = &target.found else {
            // What is created directly in the deepest directory that exists is seen at once. Where wide marks reach,
            // that matters only if it is the last but one: else a directory has to be made first.
            let last_but_one = depth(&target.canonical) == depth(&target.parent) + 1;
            if near.lay && (last_but_one || !near.shared) {
                self.mark(rule, MarkTarget::Directory, &target.parent, near.shared);
            }
            return;
        };
        match found.stat.file_type {
            FileType::Directory => {
                let left = if glob.is_some() { u32::MAX } else { subject.depth() };
                self.walks.push(Walk { from: base.to_vec(), left, pattern: glob, near });
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {}
            _ => {
                // What replaces the file under this name; and the file itself.
                if near.lay {
                    self.mark(rule, MarkTarget::Directory, &target.parent, near.shared);
                }
                if near.files {
                    self.mark(rule, MarkTarget::Inode, base, near.shared);
                }
                // It is learned where its directory is looked at: a walk of no level.
                if near.learn {
                    self.walks.push(Walk { from: base.to_vec(), left: 0, pattern: None, near });
                }
            }
        }
    }

    pub(super) fn open(&self, path: &[u8]) -> rustix::io::Result<(OwnedFd, Stat)> {
        let file = open_in(self.root, path)?;
        let stat = look::stat(file.as_fd(), self.surveyor.features)?;
        Ok((file, stat))
    }

    pub(super) fn mark(&mut self, rule: RuleId, target: MarkTarget, path: &[u8], shared: bool) {
        match self.open(path) {
            Ok((file, stat)) => {
                self.mark_open(Some(rule), target, path, &file, &stat, shared);
            }
            // Gone, or replaced by a symlink, since we looked: the watch on its directory has seen it.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => {}
            Err(errno) => self.problem(ProblemReason::PathUnreadable, rule, path, errno.to_string()),
        }
    }

    pub(super) fn mark_open(
        &mut self,
        rule: Option<RuleId>,
        target: MarkTarget,
        path: &[u8],
        file: &OwnedFd,
        stat: &Stat,
        shared: bool,
    ) -> bool {
        let Surveyor { ledger, groups, .. } = self.surveyor;
        let want = Want { target, events: self.events, object: file.as_fd(), stat, path, shared };
        match ledger.want(groups, &want) {
            Ok(()) => true,
            Err(error) => {
                self.problems.insert(Problem {
                    reason: ProblemReason::MarkRefused,
                    rule,
                    path: path.to_vec(),
                    detail: error.to_string(),
                    container: None,
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

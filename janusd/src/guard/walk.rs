//! Walking a guarded tree: a mark on each directory, a watch, and a lesson for each file that a rule denies.
//!
//! Each directory is marked and watched before it is listed, so that nothing comes to be in between.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::judge::SiteRules;
use super::known::Learned;
use super::problem::{Problem, ProblemReason};
use super::reach::Reach;
use super::survey::{Pass, SurveyError};
use super::view::join;
use super::watch::For;
use crate::fanotify::MarkTarget;
use crate::fanotify::look::{self, Stat};
use crate::policy::{List, PathPattern};
use crate::root::resolve::open_in;

/// Directories that one rule's walk marks, and entries that one glob's expansion looks at, at most.
pub(super) const MOST_ENTRIES: usize = 1_000_000;

/// Files that bear marks of their own, at most: about 1.3 kB of kernel memory each.
const MOST_FILE_MARKS: usize = 50_000;

/// Takes what a walk has learned, some at a time.
pub(super) type Lessons<'a> = dyn FnMut(Vec<Learned>) + 'a;

/// So many at a time: the worker learns them between two batches of events.
const LESSON: usize = 1024;

/// The entries of a directory, each with its type.
type Entries = Vec<(Vec<u8>, FileType)>;

/// What is done in the directories of a rule besides wide marks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Near {
    /// Lay near marks.
    pub(super) lay: bool,
    /// Wide marks reach them too.
    pub(super) shared: bool,
    /// Literal files get marks of their own: they must hold against who comes by another mount.
    pub(super) files: bool,
    /// Learn files by identity.
    pub(super) learn: bool,
}

/// A tree to be walked once the rules are known.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) from: Vec<u8>,
    /// Levels: 1 is `from` alone, whose mark covers its children.
    pub(super) left: u32,
    /// Directories that this glob cannot match in or below are left out.
    pub(super) pattern: Option<PathPattern>,
    pub(super) near: Near,
}

impl Pass<'_, '_> {
    pub(super) fn near(&self, reach: Reach, list: List) -> Near {
        let deny = list == List::Deny;
        match reach {
            // Without ignore marks wide sees everything, and near has nothing to add.
            Reach::Filesystem => {
                Near { lay: deny && self.surveyor.features.ignore_marks, shared: true, files: false, learn: deny }
            }
            Reach::Mount { inodes } => Near { lay: deny && inodes, shared: true, files: deny && inodes, learn: deny },
            Reach::Inodes => Near { lay: true, shared: false, files: true, learn: deny },
            Reach::Refused(_) => Near { lay: false, shared: false, files: false, learn: false },
        }
    }

    /// Marks the directories of a tree and learns what a rule denies in them. Stays on one mount. Each directory is
    /// marked and watched before it is listed, so that nothing comes to be in between.
    pub(super) fn walk(
        &mut self,
        walk: &Walk,
        rules: &SiteRules,
        lessons: &mut Lessons<'_>,
    ) -> Result<(), SurveyError> {
        let Walk { near, .. } = *walk;
        let mut ahead = vec![(walk.from.clone(), walk.left)];
        let mut learned = Vec::new();
        let mut looked = 0;
        let mut mount = None;
        while let Some((directory, left)) = ahead.pop() {
            let Ok((file, stat)) = self.open(&directory) else { continue };
            if *mount.get_or_insert(stat.mount) != stat.mount {
                continue;
            }
            if looked == 0 && near.learn && rules.denies(&directory, stat.is_directory()) {
                learned.push(self.lesson(&file, &stat, &directory));
            }
            looked += 1;
            if !stat.is_directory() || left == 0 {
                continue;
            }
            if near.lay && !self.mark_open(None, MarkTarget::Directory, &directory, &file, &stat, near.shared) {
                continue;
            }
            self.surveyor.watcher.want(file.as_fd(), &directory, For::Guarded);
            for (name, kind) in self.list(&directory)?.unwrap_or_default() {
                let is_directory = kind == FileType::Directory;
                let path = join(&directory, &[b"/", &name[..]].concat());
                looked += 1;
                if looked > MOST_ENTRIES {
                    self.problems.insert(Problem {
                        reason: ProblemReason::TooManyEntries,
                        rule: None,
                        path: walk.from.clone(),
                        detail: format!("what lies beyond {MOST_ENTRIES} entries is guarded by name only"),
                        container: None,
                    });
                    lessons(learned);
                    return Ok(());
                }
                if near.learn && (is_directory || kind == FileType::RegularFile) && rules.denies(&path, is_directory) {
                    if near.files && !is_directory {
                        self.mark_file(&path, near.shared);
                    }
                    learned.extend(self.lesson_at(&file, &name, &path));
                    if learned.len() >= LESSON {
                        lessons(std::mem::take(&mut learned));
                    }
                }
                let enter = walk.pattern.as_ref().is_none_or(|glob| glob.may_match_below(&path));
                if is_directory && left > 1 && enter {
                    ahead.push((path, left.saturating_sub(1)));
                }
            }
        }
        lessons(learned);
        Ok(())
    }

    /// A mark on a file itself, so that it is known by a name in a directory that bears none. Each keeps its inode in
    /// kernel memory, hence the bound.
    pub(super) fn mark_file(&mut self, path: &[u8], shared: bool) {
        if self.surveyor.ledger.files() >= MOST_FILE_MARKS {
            self.problems.insert(Problem {
                reason: ProblemReason::TooManyEntries,
                rule: None,
                path: Vec::new(),
                detail: format!(
                    "beyond {MOST_FILE_MARKS} files, one that is moved or linked elsewhere is not followed"
                ),
                container: None,
            });
        } else if let Ok((file, stat)) = self.open(path) {
            self.mark_open(None, MarkTarget::Inode, path, &file, &stat, shared);
        }
    }

    pub(super) fn lesson(&self, file: &OwnedFd, stat: &Stat, name: &[u8]) -> Learned {
        let handle = look::handle(file.as_fd(), self.surveyor.features);
        let fingerprint = handle.map(|handle| self.surveyor.fingerprints.of(&handle));
        Learned { inode: stat.inode, fingerprint, site: self.surveyor.site, name: name.into() }
    }

    /// The same for an entry of a directory, without opening it.
    pub(super) fn lesson_at(&self, directory: &OwnedFd, entry: &[u8], name: &[u8]) -> Option<Learned> {
        // Gone since it was listed: whatever comes in its place is told by the watch.
        let inode = look::inode_at(directory.as_fd(), entry).ok()?;
        let handle = look::handle_at(directory.as_fd(), entry, self.surveyor.features);
        let fingerprint = handle.map(|handle| self.surveyor.fingerprints.of(&handle));
        Some(Learned { inode, fingerprint, site: self.surveyor.site, name: name.into() })
    }

    /// The entries of a directory; `None` when it cannot be read, or is none. Opening and listing it may raise events for
    /// our own worker, which allows us.
    pub(super) fn list(&self, directory: &[u8]) -> Result<Option<Entries>, SurveyError> {
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

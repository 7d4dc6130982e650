//! Following a path inside a root, one component at a time.
//!
//! Guarantees: never leaves the root, whatever the container renames or links meanwhile: each step opens one component
//! of a directory that is held, follows no symlink by itself, and goes up only by starting again from the root. Never
//! steps into a file system that [`Gate`] refuses (a FUSE server could keep us there for ever). Opens with O_PATH only,
//! which raises no permission event.
//!
//! Caveat: what is found can change the next moment; callers watch the directories that were passed and look again.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::fanotify::Features;
use crate::fanotify::look::{self, Stat};

/// As many symlinks as the kernel itself follows in one path (`path_resolution(7)`).
const MAX_SYMLINKS: usize = 40;

/// Whether the mount of a component may be entered.
pub trait Gate {
    /// `file` is a component that has just been opened with O_PATH, `stat` its facts.
    fn enter(&self, file: BorrowedFd<'_>, stat: &Stat) -> bool;
}

/// A directory that was passed on the way, and the entry of it on which the way depends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Passed {
    /// Path of the directory inside the root, free of symlinks.
    pub directory: Vec<u8>,
    /// The name that was looked up in it.
    pub entry: Vec<u8>,
}

/// Where a path leads.
#[derive(Debug)]
pub struct Resolved {
    /// The path inside the root, free of symlinks: of the file itself if it exists, else of what would be created.
    pub canonical: Vec<u8>,
    /// The file, if it exists.
    pub found: Option<Found>,
    /// The deepest directory that exists: the file's parent, or an ancestor of what does not exist yet.
    pub parent: Vec<u8>,
    /// Every directory that was passed.
    pub passed: Vec<Passed>,
}

/// A file that exists.
#[derive(Debug)]
pub struct Found {
    /// O_PATH.
    pub file: OwnedFd,
    /// Its facts.
    pub stat: Stat,
}

/// A path that could not be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Too many symlinks.
    #[error("more than {MAX_SYMLINKS} symlinks")]
    Loop,
    /// A component on the way lies on a file system that is not entered.
    #[error("lies on a file system that is not gated")]
    Refused {
        /// The mount's number as in mountinfo.
        mount: u64,
    },
    /// Anything else.
    #[error("{0}")]
    Io(#[from] Errno),
}

/// Follows `path` (absolute, normalised) inside `root`.
///
/// # Errors
/// [`ResolveError`]. A path that does not exist is no error.
pub fn resolve(
    root: BorrowedFd<'_>,
    path: &[u8],
    features: &Features,
    gate: &dyn Gate,
) -> Result<Resolved, ResolveError> {
    let mut way = Way { root, features, gate, canonical: Vec::new(), passed: Vec::new() };
    let mut here = way.restart()?;
    let mut ahead: Vec<Vec<u8>> = components(path).rev().collect();
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == b".." {
            way.canonical.pop();
            here = way.restart()?;
            continue;
        }
        if here.stat.file_type != FileType::Directory {
            // A file stands where a directory is expected: what is below does not exist.
            return Ok(way.missing(name, ahead));
        }
        way.pass(&name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&here.file, OsStr::from_bytes(&name), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(way.missing(name, ahead)),
            Err(errno) => return Err(errno.into()),
        };
        let stat = way.stat(&file)?;
        if stat.file_type == FileType::Symlink {
            links += 1;
            if links > MAX_SYMLINKS {
                return Err(ResolveError::Loop);
            }
            let target = rustix::fs::readlinkat(&file, c"", Vec::new())?.into_bytes();
            if target.first() == Some(&b'/') {
                way.canonical.clear();
                here = way.restart()?;
            }
            ahead.extend(components(&target).rev());
            continue;
        }
        way.canonical.push(name);
        here = Found { file, stat };
    }
    let canonical = join(&way.canonical);
    let parent = join(way.canonical.split_last().map_or(&[][..], |(_, parents)| parents));
    Ok(Resolved { canonical, parent, found: Some(here), passed: way.passed })
}

struct Way<'a> {
    root: BorrowedFd<'a>,
    features: &'a Features,
    gate: &'a dyn Gate,
    canonical: Vec<Vec<u8>>,
    passed: Vec<Passed>,
}

impl Way<'_> {
    /// Goes to `canonical` from the root; it holds no symlink unless somebody has just put one there.
    fn restart(&self) -> Result<Found, ResolveError> {
        let file = open_in(self.root, &join(&self.canonical))?;
        let stat = self.stat(&file)?;
        Ok(Found { file, stat })
    }

    fn stat(&self, file: &OwnedFd) -> Result<Stat, ResolveError> {
        let stat = look::stat(file.as_fd(), self.features)?;
        if !self.gate.enter(file.as_fd(), &stat) {
            return Err(ResolveError::Refused { mount: look::mountinfo_id(file.as_fd())? });
        }
        Ok(stat)
    }

    fn pass(&mut self, entry: &[u8]) {
        let passed = Passed { directory: join(&self.canonical), entry: entry.to_vec() };
        if !self.passed.contains(&passed) {
            self.passed.push(passed);
        }
    }

    fn missing(self, name: Vec<u8>, ahead: Vec<Vec<u8>>) -> Resolved {
        let parent = join(&self.canonical);
        let mut canonical = self.canonical;
        canonical.push(name);
        for name in ahead.into_iter().rev() {
            if name == b".." {
                canonical.pop();
            } else {
                canonical.push(name);
            }
        }
        Resolved { canonical: join(&canonical), found: None, parent, passed: self.passed }
    }
}

/// Opens (O_PATH) a path inside `root` that holds no symlink.
///
/// # Errors
/// The kernel's; ELOOP when a symlink has come up since.
pub fn open_in(root: BorrowedFd<'_>, canonical: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let relative = canonical.strip_prefix(b"/").filter(|rest| !rest.is_empty()).unwrap_or(b".");
    rustix::fs::openat2(root, OsStr::from_bytes(relative), flags, Mode::empty(), inside)
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec)
}

fn join(components: &[Vec<u8>]) -> Vec<u8> {
    if components.is_empty() {
        return b"/".to_vec();
    }
    components.iter().flat_map(|c| std::iter::once(b'/').chain(c.iter().copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Open;
    impl Gate for Open {
        fn enter(&self, _: BorrowedFd<'_>, _: &Stat) -> bool {
            true
        }
    }

    fn lead(dir: &std::path::Path, path: &str) -> Result<(String, bool, String), ResolveError> {
        let root = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let resolved = resolve(root.as_fd(), path.as_bytes(), &Features::default(), &Open)?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ok((text(resolved.canonical), resolved.found.is_some(), text(resolved.parent)))
    }

    #[test]
    fn stays_inside_and_follows() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        std::fs::create_dir_all(at("etc/real/deep")).unwrap();
        std::fs::write(at("etc/real/token"), "").unwrap();
        symlink("/etc/real", at("abs")).unwrap();
        symlink("../../../../../../etc/real", at("etc/up")).unwrap();
        symlink("real/token", at("etc/link")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("/nowhere/x", at("dangling")).unwrap();
        let ok = |a: &str, b, c: &str| Ok((a.to_owned(), b, c.to_owned()));
        assert_eq!(lead(dir.path(), "/"), ok("/", true, "/"));
        assert_eq!(lead(dir.path(), "/etc/link"), ok("/etc/real/token", true, "/etc/real"));
        assert_eq!(lead(dir.path(), "/abs/token"), ok("/etc/real/token", true, "/etc/real"));
        // The node has an /etc/real of its own no more than a way up out of the root.
        assert_eq!(lead(dir.path(), "/etc/up/token"), ok("/etc/real/token", true, "/etc/real"));
        assert_eq!(lead(dir.path(), "/abs/later/x"), ok("/etc/real/later/x", false, "/etc/real"));
        assert_eq!(lead(dir.path(), "/dangling"), ok("/nowhere/x", false, "/"));
        assert_eq!(lead(dir.path(), "/etc/real/token/x"), ok("/etc/real/token/x", false, "/etc/real/token"));
        assert_eq!(lead(dir.path(), "/loop"), Err(ResolveError::Loop));
    }

    #[test]
    fn refuses_to_enter() {
        struct Closed;
        impl Gate for Closed {
            fn enter(&self, _: BorrowedFd<'_>, stat: &Stat) -> bool {
                stat.file_type != FileType::Directory || stat.mount_root
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let refused = resolve(root.as_fd(), b"/x", &Features::default(), &Closed);
        assert!(matches!(refused, Err(ResolveError::Refused { .. })));
    }
}

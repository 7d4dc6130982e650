//! Where two janusd find each other: sockets in a directory that only root can reach.
//!
//! Each janusd listens at a name of its own, so that the next one can be there before the last one has gone. All of this
//! is done at the start, while files may be made and removed and others be called: a confined janusd may do neither.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// What the names of sockets begin and end with; between them is the process's number.
const NAME: (&str, &str) = ("serve-", ".sock");
/// The holder's.
const HOLDER: &str = "hold.sock";

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The kernel says so.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else may have been there.
    #[error("{path} must belong to root and be writable by nobody else: it has owner {owner} and mode {mode:o}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
}

/// A janusd's place among its like.
#[derive(Debug)]
pub struct Place {
    /// Where the next one comes to.
    pub listener: UnixListener,
    /// Connections to those that are there already.
    pub others: Vec<UnixStream>,
    /// And to the holder, if there is one.
    pub holder: Option<UnixStream>,
}

/// The holder's place.
#[derive(Debug)]
pub struct HoldPlace {
    /// Where janusd come to.
    pub listener: UnixListener,
    /// Connections to those that are there already.
    pub others: Vec<UnixStream>,
}

impl HoldPlace {
    /// Makes or checks the directory, takes the holder's place in it, and connects to all janusd that have one.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn take(path: &Path) -> Result<HoldPlace, PlaceError> {
        let failed = |source| PlaceError::Io { path: path.to_owned(), source };
        let (_checked, inside) = open(path)?;
        let others = connect(&inside, "").map_err(failed)?;
        let at = inside.join(HOLDER);
        // Of one that has ended. One that runs loses its name, and goes on holding what it has.
        let _absent = std::fs::remove_file(&at);
        let listener = UnixListener::bind(at).map_err(failed)?;
        Ok(HoldPlace { listener, others })
    }
}

impl Place {
    /// Makes or checks the directory, takes a place in it, and connects to all who have one.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn take(path: &Path) -> Result<Place, PlaceError> {
        let failed = |source| PlaceError::Io { path: path.to_owned(), source };
        let (_checked, inside) = open(path)?;
        let own = format!("{}{}{}", NAME.0, std::process::id(), NAME.1);
        let others = connect(&inside, &own).map_err(failed)?;
        let holder = UnixStream::connect(inside.join(HOLDER)).ok();
        let listener = UnixListener::bind(inside.join(own)).map_err(failed)?;
        Ok(Place { listener, others, holder })
    }
}

/// Makes or checks the directory; gives its descriptor, and a path by it: what was checked, and short enough for the name
/// of a socket.
fn open(path: &Path) -> Result<(File, PathBuf), PlaceError> {
    let failed = |source| PlaceError::Io { path: path.to_owned(), source };
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let directory = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let found = directory.metadata().map_err(failed)?;
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if owner != 0 || mode & 0o022 != 0 {
        return Err(PlaceError::Open { path: path.to_owned(), owner, mode });
    }
    if mode & 0o077 != 0 {
        // As a kubelet makes it: nobody else has written there, and now nobody else gets in.
        directory.set_permissions(Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let inside = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    Ok((directory, inside))
}

/// Connects to every janusd but `own`, and tidies up after those that have ended.
fn connect(inside: &Path, own: &str) -> io::Result<Vec<UnixStream>> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(inside)? {
        let name = entry?.file_name();
        if !name.to_str().is_some_and(|name| name.starts_with(NAME.0) && name.ends_with(NAME.1)) {
            continue;
        }
        let at = inside.join(&name);
        match UnixStream::connect(&at) {
            Ok(stream) if name.to_str() != Some(own) => others.push(stream),
            // Nobody listens, or not any more; ENOENT: another one has tidied up.
            _ => {
                let _gone = std::fs::remove_file(&at);
            }
        }
    }
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_may_write_to_is_refused_and_one_that_they_may_read_is_closed() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("state");
        std::fs::create_dir(&at).unwrap();
        std::fs::set_permissions(&at, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Place::take(&at), Err(PlaceError::Open { mode: 0o777, .. })));
        std::fs::set_permissions(&at, Permissions::from_mode(0o755)).unwrap();
        let place = Place::take(&at).unwrap();
        assert!(place.others.is_empty());
        assert_eq!(std::fs::metadata(&at).unwrap().mode() & 0o777, 0o700);
        std::os::unix::fs::symlink(&at, directory.path().join("link")).unwrap();
        assert!(matches!(Place::take(&directory.path().join("link")), Err(PlaceError::Io { .. })));
        // One that has ended, and one that listens.
        drop(UnixListener::bind(at.join("serve-1.sock")).unwrap());
        let _listens = UnixListener::bind(at.join("serve-2.sock")).unwrap();
        drop(place);
        let place = Place::take(&at).unwrap();
        assert_eq!(place.others.len(), 1);
        assert!(!at.join("serve-1.sock").exists() && at.join("serve-2.sock").exists());
    }
}

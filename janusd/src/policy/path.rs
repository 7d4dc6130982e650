//! Paths and globs as a guard writes them.

/// Why a path was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(pub String);

/// An absolute path in the container, or a glob over such paths; checked and normalised.
///
/// A pattern is a literal base directory (bytes, so that a base which the file system gave us need not be UTF-8) and an
/// optional glob tail below it.
#[derive(Debug, Clone)]
pub struct PathPattern {
    base: Vec<u8>,
    tail: Option<()>,
}

impl PathPattern {
    /// Parses a path as the contract defines it (section 1, bounds).
    ///
    /// # Errors
    /// [`PathError`] says which bound is broken.
    pub fn parse(_written: &str) -> Result<PathPattern, PathError> {
        todo!()
    }

    /// A literal pattern for a path that the file system gave us: absolute, normalised bytes.
    pub fn literal(_path: Vec<u8>) -> PathPattern {
        todo!()
    }

    /// The longest leading directory path (or whole path, for a literal) that holds no glob character: for `/etc/*.d/x`
    /// it is `/etc`, for `/etc/passwd` it is `/etc/passwd`, for `/*` it is `/`.
    pub fn base(&self) -> &[u8] {
        &self.base
    }

    /// Whether this is a glob.
    pub fn is_glob(&self) -> bool {
        self.tail.is_some()
    }

    /// Whether the glob contains a `**` segment.
    pub fn crosses_directories(&self) -> bool {
        todo!()
    }

    /// The same tail under another base: what `/var/run/*.sock` becomes once `/var/run` is known to lead to `/run`. For a
    /// literal it is the new base itself.
    #[must_use]
    pub fn rebase(&self, _base: Vec<u8>) -> PathPattern {
        todo!()
    }

    /// Whether the pattern itself (not what is below it) matches `path`, an absolute normalised path.
    pub fn matches(&self, _path: &[u8]) -> bool {
        todo!()
    }

    /// Whether a path below the directory `dir` could match, or lie below a match: used to decide which directories and
    /// mounts need a mark. True when in doubt.
    pub fn may_match_below(&self, _dir: &[u8]) -> bool {
        todo!()
    }
}

//! Paths and globs as a guard writes them.

use std::fmt;
use std::sync::Arc;

use super::glob::{Glob, Outcome, Segment};
use super::name::{self, Form};

/// Most code points of a path as written.
const MAX_CODE_POINTS: usize = 1024;
/// Most bytes of a path as written: what the kernel takes (`PATH_MAX` less the NUL).
const MAX_BYTES: usize = 4095;
/// Most bytes of a segment as written (`NAME_MAX`).
const MAX_SEGMENT_BYTES: usize = 255;

/// Why a path was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(pub String);

/// An absolute path in the container, or a glob over such paths; checked and normalised.
///
/// A pattern is a literal base directory (bytes, so that a base which the file system gave us need not be UTF-8) and an
/// optional glob tail below it. It displays as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    written: String,
    base: Vec<u8>,
    tail: Option<Arc<Glob>>,
    /// The tail without the segments of the kubelet's AtomicWriter, where it has such.
    stable_tail: Option<Arc<Glob>>,
}

impl PathPattern {
    /// Parses a path as the contract defines it (section 1, bounds). `//` and a trailing `/` are normalised.
    ///
    /// # Errors
    /// [`PathError`] says which bound is broken.
    pub fn parse(written: &str) -> Result<PathPattern, PathError> {
        let refuse = |why: &str| Err(PathError(why.to_owned()));
        if !written.starts_with('/') {
            return refuse("must be an absolute path");
        }
        if written.len() > MAX_BYTES {
            return refuse("must be at most 4095 bytes long");
        }
        if written.chars().count() > MAX_CODE_POINTS {
            return refuse("must be at most 1024 characters long");
        }
        if written.chars().any(char::is_control) {
            return refuse("may not contain control characters");
        }
        let glob = is_written_as_glob(written);
        let mut base = Vec::new();
        let mut tail: Vec<(&str, Segment)> = Vec::new();
        for text in written.split('/').filter(|text| !text.is_empty()) {
            if text.len() > MAX_SEGMENT_BYTES {
                return refuse("a segment must be at most 255 bytes long");
            }
            let segment = Segment::parse(text, glob)?;
            match segment.literal() {
                Some(literal) if tail.is_empty() => {
                    base.push(b'/');
                    base.extend_from_slice(literal.as_bytes());
                }
                _ => tail.push((text, segment)),
            }
        }
        if base.is_empty() {
            base.push(b'/');
        }
        let mut pattern = PathPattern { written: written.to_owned(), base, tail: None, stable_tail: None };
        if !tail.is_empty() {
            let whole = tail.len();
            pattern.tail = Some(Arc::new(Glob::compile(&tail)?));
            tail.retain(|(_, segment)| !segment.literal().is_some_and(|text| name::is_volatile(text.as_bytes())));
            if tail.len() < whole {
                pattern.stable_tail = Some(Arc::new(Glob::compile(&tail)?));
            }
        }
        Ok(pattern)
    }

    /// A literal pattern for a path that the file system gave us: absolute, normalised bytes.
    pub fn literal(path: Vec<u8>) -> PathPattern {
        PathPattern { written: String::from_utf8_lossy(&path).into_owned(), base: path, tail: None, stable_tail: None }
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
        self.tail.as_ref().is_some_and(|tail| tail.crosses_directories())
    }

    /// How specific the pattern is: the bytes of literal text before its first glob character, escapes undone. For
    /// `/etc/pass*` it is 9, for `/etc` it is 4.
    pub fn specificity(&self) -> usize {
        match &self.tail {
            None => self.base.len(),
            Some(tail) if self.base == b"/" => tail.literal_length(),
            Some(tail) => self.base.len() + tail.literal_length(),
        }
    }

    /// The same tail under another base: what `/var/run/*.sock` becomes once `/var/run` is known to lead to `/run`. For a
    /// literal it is the new base itself.
    #[must_use]
    pub fn rebase(&self, base: Vec<u8>) -> PathPattern {
        let mut written = String::from_utf8_lossy(&base).into_owned();
        if let Some(tail) = &self.tail {
            written.truncate(written.trim_end_matches('/').len());
            written.push_str(tail.source());
        }
        PathPattern { written, base, tail: self.tail.clone(), stable_tail: self.stable_tail.clone() }
    }

    /// Whether both match the same names, however they are written.
    pub fn means_the_same(&self, other: &PathPattern) -> bool {
        self.base == other.base && self.tail == other.tail
    }

    /// The pattern over stable names: without the segments of the kubelet's AtomicWriter.
    pub(super) fn stable(&self) -> PathPattern {
        let mut stable = self.rebase(name::stable(&self.base));
        if let Some(tail) = stable.stable_tail.take() {
            stable.tail = Some(tail);
        }
        stable
    }

    /// Whether it holds such a segment.
    pub(super) fn is_volatile(&self) -> bool {
        let (raw, stable) = name::count(&self.base);
        raw != stable || self.stable_tail.is_some()
    }

    pub(super) fn tail(&self) -> Option<&Glob> {
        self.tail.as_deref()
    }

    /// Whether the pattern itself (not what is below it) matches `path`, an absolute normalised path, as it is or in the
    /// form that outlives the next rotation of a Secret.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.forms(path, |pattern, form| {
            let Some(segments) = name::below(&pattern.base, path, form) else {
                return false;
            };
            let left = segments.clone().count();
            match &pattern.tail {
                None => left == 0,
                Some(tail) => {
                    let mut whole = false;
                    tail.run(segments, |consumed| {
                        whole = consumed as usize == left;
                        whole
                    });
                    whole
                }
            }
        })
    }

    /// Whether a path below the directory `dir` could match, or lie below a match: used to decide which directories and
    /// mounts need a mark. True when in doubt.
    pub fn may_match_below(&self, dir: &[u8]) -> bool {
        self.forms(dir, |pattern, form| {
            // `dir` leads to the base: it is the base itself or above it.
            let mut toward = name::Segments::new(&pattern.base, Form::Raw);
            if name::Segments::new(dir, form).all(|segment| toward.next() == Some(segment)) {
                return true;
            }
            let Some(segments) = name::below(&pattern.base, dir, form) else {
                return false;
            };
            match &pattern.tail {
                None => true,
                // The empty segment is the slash that a name below `dir` goes on with.
                Some(tail) => tail.run(segments.chain([&b""[..]]), |_| true) != Outcome::Dead,
            }
        })
    }

    /// Asks about the raw form of `path`, and about its stable form where either side has one of its own.
    fn forms(&self, path: &[u8], ask: impl Fn(&PathPattern, Form) -> bool) -> bool {
        if ask(self, Form::Raw) {
            return true;
        }
        let (raw, stable) = name::count(path);
        if self.is_volatile() { ask(&self.stable(), Form::Stable) } else { raw != stable && ask(self, Form::Stable) }
    }
}

/// Whether a path holds any of the characters that make it a glob. A backslash is one, though a path with escapes only
/// matches one name.
pub(super) fn is_written_as_glob(written: &str) -> bool {
    written.contains(['*', '?', '[', '{', '\\'])
}

impl fmt::Display for PathPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}

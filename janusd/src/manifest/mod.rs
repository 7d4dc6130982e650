//! Manifests: YAML to [`GuardSpec`]s.
//!
//! Flow: bytes → documents (`node`, which keeps every value's line) → raw guards (`shape`, which knows the field
//! names and types) → checked guards ([`GuardSpec::new`]). Everything that is wrong with any document is reported, and
//! nothing is returned unless all of them are right.
//!
//! What is read comes from a tenant: its size, depth, aliases and keys are bounded before anything is built from it.

use std::collections::HashMap;
use std::fmt;

use crate::line::Printable;
use crate::policy::{GuardName, GuardSpec};

mod node;
mod shape;

/// Most bytes of one source.
pub const MAX_BYTES: usize = 1 << 20;

/// Most errors that are told one by one.
const MAX_ERRORS: usize = 100;

/// What is wrong with a manifest. Displays as one line: file, line, document, field, reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// The source as the user named it.
    pub file: String,
    /// The line, from 1, where it is known.
    pub line: Option<u64>,
    /// Which document of the source, from 1, not counting empty ones; 0 for the source as a whole.
    pub document: usize,
    /// The field, as kubectl writes it: `spec.subjects[0].deny[1]`. Empty for the document as a whole.
    pub field: String,
    /// Why it was refused.
    pub reason: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", Printable(&self.file))?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        if self.document > 1 {
            write!(formatter, ": document {}", self.document)?;
        }
        if !self.field.is_empty() {
            write!(formatter, ": {}", Printable(&self.field))?;
        }
        write!(formatter, ": {}", Printable(&self.reason))
    }
}

impl std::error::Error for ManifestError {}

/// A guard, and where it was read.
struct Found {
    spec: GuardSpec,
    line: Option<u64>,
    document: usize,
}

/// Parses every guard of one source: JanusGuard documents, or Lists of them as `kubectl get -o yaml` prints.
///
/// # Errors
/// All that is wrong with any of its documents. A source without a guard is an error too.
pub fn parse(source_name: &str, bytes: &[u8]) -> Result<Vec<GuardSpec>, Vec<ManifestError>> {
    parse_all([(source_name, bytes)])
}

/// Parses several sources that are to be in force together: as [`parse`], and no two may hold the same guard.
///
/// # Errors
/// All that is wrong with any document of any source.
pub fn parse_all<'a>(
    sources: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Vec<GuardSpec>, Vec<ManifestError>> {
    let mut guards = Vec::new();
    let mut errors = Vec::new();
    let mut seen: HashMap<GuardName, String> = HashMap::new();
    for (file, bytes) in sources {
        for found in parse_source(file, bytes, &mut errors) {
            let name = found.spec.name().clone();
            let place = found.line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}"));
            if let Some(first) = seen.get(&name) {
                errors.push(ManifestError {
                    file: file.to_owned(),
                    line: found.line,
                    document: found.document,
                    field: "metadata.name".to_owned(),
                    reason: format!("the guard {name} is there twice, first at {first}"),
                });
                continue;
            }
            seen.insert(name, place);
            guards.push(found.spec);
        }
    }
    if errors.is_empty() { Ok(guards) } else { Err(bounded(errors)) }
}

/// Keeps a broken (or hostile) megabyte from becoming many megabytes of errors.
fn bounded(mut errors: Vec<ManifestError>) -> Vec<ManifestError> {
    let more = errors.len().saturating_sub(MAX_ERRORS);
    if more > 0 {
        errors.truncate(MAX_ERRORS);
        if let Some(last) = errors.last() {
            errors.push(ManifestError {
                file: last.file.clone(),
                line: None,
                document: 0,
                field: String::new(),
                reason: format!("and {more} more errors"),
            });
        }
    }
    errors
}

fn parse_source(file: &str, bytes: &[u8], errors: &mut Vec<ManifestError>) -> Vec<Found> {
    let whole = |line: Option<u64>, reason: String| ManifestError {
        file: file.to_owned(),
        line,
        document: 0,
        field: String::new(),
        reason,
    };
    let text = match text(bytes) {
        Ok(text) => text,
        Err((line, reason)) => {
            errors.push(whole(line, reason));
            return Vec::new();
        }
    };
    let documents = match node::read(text) {
        Ok(documents) => documents,
        Err((line, reason)) => {
            errors.push(whole(line, reason));
            return Vec::new();
        }
    };
    if documents.is_empty() {
        errors.push(whole(None, "holds no document".to_owned()));
        return Vec::new();
    }
    let mut found = Vec::new();
    for (number, document) in (1..).zip(&documents) {
        let shaped = shape::document(document);
        errors.extend(shaped.problems.into_iter().map(|problem| ManifestError {
            file: file.to_owned(),
            line: problem.line,
            document: number,
            field: problem.field,
            reason: problem.reason,
        }));
        for guard in shaped.guards {
            match GuardSpec::new(guard.raw) {
                Ok(spec) => found.push(Found { spec, line: guard.line, document: number }),
                Err(refused) => errors.extend(refused.into_iter().filter_map(|error| {
                    // A field that could not even be read has had its say.
                    if guard.lines.was_refused(&error.field) {
                        return None;
                    }
                    Some(ManifestError {
                        file: file.to_owned(),
                        line: guard.lines.of(&error.field),
                        document: number,
                        field: format!("{}{}", guard.prefix, error.field),
                        reason: error.reason,
                    })
                })),
            }
        }
    }
    found
}

fn text(bytes: &[u8]) -> Result<&str, (Option<u64>, String)> {
    if bytes.len() > MAX_BYTES {
        return Err((None, format!("is larger than {MAX_BYTES} bytes")));
    }
    str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count() as u64;
        (Some(line), format!("is not UTF-8 (at byte {})", error.valid_up_to()))
    })
}

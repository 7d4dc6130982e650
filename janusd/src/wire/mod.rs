//! Off the wire, into checked types.
//!
//! Flow: a message of `janus.v1` is taken apart field by field (a new field breaks the build here, where it has to be
//! thought about), its spec becomes a raw guard, and [`crate::policy::GuardSpec::new`] checks that as it checks a
//! manifest's. All that is wrong is found at once: [`Invalid`].
//!
//! What comes is as hostile as a manifest, and what goes back fits a header: lists are cut before anything is built from
//! them, errors are few, short and printable.

use crate::line::Printable;
use crate::policy::SpecError;

mod names;
mod request;
mod spec;

pub use names::{Caller, ContainerName, PodName, Uid, UnitId, WrongNode};
pub use request::{Create, Destroy};

/// Most fields that are told of one message.
const MAX_FIELDS: usize = 20;
/// Most characters of a field or a reason, before they are made printable.
const MAX_TEXT: usize = 256;
/// Once that many bytes are told, no other field is: a client takes some 16 KiB of trailers, and these are sent in base64.
const ENOUGH: usize = 4096;

/// What is wrong with a message: INVALID_ARGUMENT. Displays as its first field and reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{first}")]
pub struct Invalid {
    first: SpecError,
    others: Vec<SpecError>,
}

impl Invalid {
    /// The fields, 1 to 20 of them: as kubectl writes them below `spec`, as the message names them elsewhere. Printable,
    /// and bounded in length.
    pub fn fields(&self) -> impl Iterator<Item = &SpecError> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// What is wrong with a message, so far.
#[derive(Debug, Default)]
struct Faults(Vec<SpecError>);

impl Faults {
    fn add(&mut self, field: &str, reason: impl Into<String>) {
        self.0.push(SpecError { field: field.to_owned(), reason: reason.into() });
    }

    /// The value, or nothing and a fault.
    fn take<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|reason| self.add(field, reason)).ok()
    }

    /// The part of a message that has to be there.
    fn required<T>(&mut self, field: &str, part: Option<T>) -> Option<T> {
        if part.is_none() {
            self.add(field, "is required");
        }
        part
    }

    /// `whole`, unless there were faults.
    fn unless_any<T>(self, whole: Option<T>) -> Result<T, Invalid> {
        let mut told = 0;
        let mut faults = self.0.into_iter().take(MAX_FIELDS).map_while(|fault| {
            let fault = SpecError { field: printable(&fault.field), reason: printable(&fault.reason) };
            let enough = told >= ENOUGH;
            told += fault.field.len() + fault.reason.len();
            (!enough).then_some(fault)
        });
        match (faults.next(), whole) {
            (None, Some(whole)) => Ok(whole),
            (Some(first), _) => Err(Invalid { first, others: faults.collect() }),
            // Each part that is missing has left a fault. If one ever does not, that is a refusal too.
            (None, None) => Err(Invalid {
                first: SpecError { field: String::new(), reason: "is incomplete".to_owned() },
                others: Vec::new(),
            }),
        }
    }
}

fn printable(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_TEXT).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    Printable(&short).to_string()
}

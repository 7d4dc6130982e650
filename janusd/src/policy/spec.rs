//! What a guard asks for: parsed once, private fields, one constructor.

use super::{Events, PathPattern};

/// A field that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// The field, as `kubectl explain` would write it: `spec.subjects[0].deny[1]`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The names of a guard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuardName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Whether a guard's denials are real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforcement {
    /// They are.
    #[default]
    Enforce,
    /// Everything is allowed; what would have been denied is counted and logged as such.
    Audit,
}

/// The answer to an event that cannot be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// Fail open.
    #[default]
    Allow,
    /// Fail closed.
    Deny,
}

/// Which events of a subject make a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Log {
    /// Every event that one of its rules matches.
    #[default]
    All,
    /// Denied ones (in Audit: would-be-denied ones) only.
    Denied,
    /// None.
    None,
}

/// Which of a subject's two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum List {
    /// `allow`
    Allow,
    /// `deny`
    Deny,
}

/// One path of one subject: `spec.subjects[subject].<list>[index]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    /// Index of the subject.
    pub subject: u16,
    /// Which list.
    pub list: List,
    /// Index in that list.
    pub index: u16,
}

/// A whole guard, checked.
#[derive(Debug, Clone)]
pub struct GuardSpec {
    name: GuardName,
    subjects: Vec<Subject>,
    enforcement: Enforcement,
    failure_policy: FailurePolicy,
}

/// One subject, checked.
#[derive(Debug, Clone)]
pub struct Subject {
    name: String,
    allow: Vec<PathPattern>,
    deny: Vec<PathPattern>,
    events: Events,
}

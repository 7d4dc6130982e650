//! A guard as its manifest (or the wire) has it: the right shape, nothing checked.
//!
//! A field that is absent is `None` or empty; defaults are filled in by [`super::GuardSpec::new`] only.

use std::collections::BTreeMap;

/// A whole guard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawGuard {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `spec.selector`
    pub selector: Option<RawSelector>,
    /// `spec.containers`
    pub containers: Vec<String>,
    /// `spec.subjects`
    pub subjects: Vec<RawSubject>,
    /// `spec.logFormat`
    pub log_format: Option<String>,
    /// `spec.enforcement`
    pub enforcement: Option<String>,
    /// `spec.failurePolicy`
    pub failure_policy: Option<String>,
}

/// `spec.selector`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawSelector {
    /// `matchLabels`
    pub match_labels: BTreeMap<String, String>,
    /// `matchExpressions`
    pub match_expressions: Vec<RawRequirement>,
}

/// One of `spec.selector.matchExpressions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawRequirement {
    /// `key`
    pub key: String,
    /// `operator`
    pub operator: String,
    /// `values`
    pub values: Vec<String>,
}

/// One of `spec.subjects`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawSubject {
    /// `name`
    pub name: Option<String>,
    /// `allow`
    pub allow: Vec<String>,
    /// `deny`
    pub deny: Vec<String>,
    /// `events`
    pub events: Vec<String>,
    /// `recursive`
    pub recursive: Option<bool>,
    /// `maxDepth`
    pub max_depth: Option<i64>,
    /// `onlyDir`
    pub only_dir: Option<bool>,
    /// `mount`
    pub mount: Option<bool>,
    /// `autoAllowOwner`
    pub auto_allow_owner: Option<bool>,
    /// `except`
    pub except: Vec<RawMatcher>,
    /// `audit`
    pub audit: Option<bool>,
    /// `tags`
    pub tags: BTreeMap<String, String>,
    /// `log`
    pub log: Option<String>,
}

/// One of a subject's `except`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawMatcher {
    /// `executables`
    pub executables: Option<Vec<String>>,
    /// `users`
    pub users: Option<Vec<i64>>,
    /// `origins`
    pub origins: Option<Vec<String>>,
}

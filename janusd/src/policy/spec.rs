//! What a guard asks for: parsed once, private fields, one constructor.

use std::collections::BTreeMap;

use super::raw::RawGuard;
use super::{Event, Events, LogFormat, PathPattern, Selector, validate};

/// Most subjects of a guard.
pub(super) const MAX_SUBJECTS: usize = 32;

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

impl std::fmt::Display for GuardName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
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

impl List {
    /// The field's name: `allow`, `deny`.
    pub const fn word(self) -> &'static str {
        match self {
            List::Allow => "allow",
            List::Deny => "deny",
        }
    }
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

impl std::fmt::Display for RuleId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "spec.subjects[{}].{}[{}]", self.subject, self.list.word(), self.index)
    }
}

/// What a process is to the guarded container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// Belongs to the container's own tree, from its entrypoint down.
    Owner,
    /// Runs inside the container but was brought in from outside: `kubectl exec`.
    Session,
    /// Runs in another container of the same pod.
    Pod,
    /// Anything else: the host, other pods.
    Node,
}

impl Origin {
    /// All of them.
    pub const ALL: [Origin; 4] = [Origin::Owner, Origin::Session, Origin::Pod, Origin::Node];

    /// The word that manifests and lines use.
    pub const fn word(self) -> &'static str {
        match self {
            Origin::Owner => "Owner",
            Origin::Session => "Session",
            Origin::Pod => "Pod",
            Origin::Node => "Node",
        }
    }
}

/// Processes that a subject's deny does not reach: those for which every set field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessMatcher {
    pub(super) executables: Option<Vec<PathPattern>>,
    pub(super) users: Option<Vec<u32>>,
    pub(super) origins: Option<Vec<Origin>>,
}

impl ProcessMatcher {
    /// The executables, by their path in the container; `None` matches any.
    pub fn executables(&self) -> Option<&[PathPattern]> {
        self.executables.as_deref()
    }

    /// The uids, as the container sees them; `None` matches any.
    pub fn users(&self) -> Option<&[u32]> {
        self.users.as_deref()
    }

    /// The origins; `None` matches any.
    pub fn origins(&self) -> Option<&[Origin]> {
        self.origins.as_deref()
    }
}

/// A whole guard, checked.
#[derive(Debug, Clone)]
pub struct GuardSpec {
    pub(super) name: GuardName,
    pub(super) selector: Selector,
    pub(super) containers: Vec<String>,
    pub(super) subjects: Vec<Subject>,
    pub(super) log_format: LogFormat,
    pub(super) enforcement: Enforcement,
    pub(super) failure_policy: FailurePolicy,
}

impl GuardSpec {
    /// Checks a guard against every bound of the contract (section 1) and fills in its defaults.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its field.
    pub fn new(raw: RawGuard) -> Result<GuardSpec, Vec<SpecError>> {
        validate::guard(raw)
    }

    /// Its namespace and name.
    pub fn name(&self) -> &GuardName {
        &self.name
    }

    /// The pods it is for.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The containers of a pod it is for; empty means all.
    pub fn containers(&self) -> &[String] {
        &self.containers
    }

    /// Its subjects: 1 to 32.
    pub fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    /// The subject at `index`.
    pub fn subject(&self, index: u16) -> Option<&Subject> {
        self.subjects.get(usize::from(index))
    }

    /// The template of its event lines.
    pub fn log_format(&self) -> &LogFormat {
        &self.log_format
    }

    /// Whether its denials are real.
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// What is answered when an event cannot be judged.
    pub fn failure_policy(&self) -> FailurePolicy {
        self.failure_policy
    }

    /// Every path of every subject.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &PathPattern)> {
        (0..).zip(&self.subjects).flat_map(|(subject, it)| {
            let list = move |list: List, paths: &'_ [PathPattern]| {
                (0..).zip(0..paths.len()).map(move |(index, at)| (RuleId { subject, list, index }, at))
            };
            list(List::Allow, &it.allow)
                .map(|(id, at)| (id, &it.allow[at]))
                .chain(list(List::Deny, &it.deny).map(|(id, at)| (id, &it.deny[at])))
        })
    }

    /// The path that `id` stands for.
    pub fn rule(&self, id: RuleId) -> Option<&PathPattern> {
        let subject = self.subject(id.subject)?;
        match id.list {
            List::Allow => subject.allow.get(usize::from(id.index)),
            List::Deny => subject.deny.get(usize::from(id.index)),
        }
    }

    /// The events that any of its subjects speaks of.
    pub fn events(&self) -> Events {
        self.subjects.iter().fold(Events::NONE, |events, subject| events.union(subject.events))
    }

    /// The events that the kernel must raise for that: whoever denies execution also has to see opens, since an open by
    /// the file's program interpreter is one (`ld.so program`, `sh script`).
    pub fn kernel_events(&self) -> Events {
        let opens = self.subjects.iter().any(Subject::opens_may_execute);
        if opens { self.events().with(Event::Open) } else { self.events() }
    }
}

/// One subject, checked.
#[derive(Debug, Clone)]
pub struct Subject {
    pub(super) name: String,
    pub(super) allow: Vec<PathPattern>,
    pub(super) deny: Vec<PathPattern>,
    pub(super) events: Events,
    pub(super) recursive: bool,
    pub(super) max_depth: Option<u32>,
    pub(super) only_dir: bool,
    pub(super) mount: bool,
    pub(super) auto_allow_owner: bool,
    pub(super) except: Vec<ProcessMatcher>,
    pub(super) audit: bool,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) log: Log,
}

impl Subject {
    /// Its name, or its index.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The paths that it allows.
    pub fn allow(&self) -> &[PathPattern] {
        &self.allow
    }

    /// The paths that it denies.
    pub fn deny(&self) -> &[PathPattern] {
        &self.deny
    }

    /// The events that it speaks of: at least one.
    pub fn events(&self) -> Events {
        self.events
    }

    /// Whether it denies execution and says nothing of opens, so that an open may have to be judged as an execution.
    pub(super) fn opens_may_execute(&self) -> bool {
        self.events.contains(Event::Execute) && !self.events.contains(Event::Open) && !self.deny.is_empty()
    }

    /// How many directory levels below a path it still stands for: 1 with `recursive: false`, else `maxDepth`, else
    /// no bound (`u32::MAX`).
    pub fn depth(&self) -> u32 {
        if self.recursive { self.max_depth.unwrap_or(u32::MAX) } else { 1 }
    }

    /// Whether a path that is no directory is left out.
    pub fn only_dir(&self) -> bool {
        self.only_dir
    }

    /// Whether each path stands for the mount on which it lies.
    pub fn mount(&self) -> bool {
        self.mount
    }

    /// Short for an exception for origin Owner.
    pub fn auto_allow_owner(&self) -> bool {
        self.auto_allow_owner
    }

    /// Processes that its deny does not reach.
    pub fn except(&self) -> &[ProcessMatcher] {
        &self.except
    }

    /// Whether the kernel's audit log gets the response.
    pub fn audit(&self) -> bool {
        self.audit
    }

    /// What every line of this subject carries.
    pub fn tags(&self) -> &BTreeMap<String, String> {
        &self.tags
    }

    /// Which of its events make a line.
    pub fn log(&self) -> Log {
        self.log
    }
}

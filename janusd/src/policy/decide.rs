//! What is asked of a policy, and what it answers.

use super::{Event, Failure, PathPattern, RuleId};

/// What is written back to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Response {
    /// `FAN_ALLOW`
    Allow,
    /// `FAN_DENY`: the process gets EPERM.
    Deny,
}

/// A rule with `mount: true`, once the root has been surveyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountBinding {
    /// The mount on which the rule's path lies.
    pub mount: u64,
    /// Where that mount is, as the container sees it.
    pub mountpoint: Vec<u8>,
}

/// What a survey of a root learnt about a guard's rules.
#[derive(Debug, Clone, Default)]
pub struct Bindings {
    /// Other patterns for a rule: where its path leads once symlinks are resolved inside the root.
    pub aliases: Vec<(RuleId, PathPattern)>,
    /// The mount that each path of a `mount: true` subject stands for. Such a rule matches by mount only.
    pub mounts: Vec<(RuleId, MountBinding)>,
}

/// One event, as far as rules are concerned.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What is asked for.
    pub event: Event,
    /// Whether the file is a directory.
    pub directory: bool,
    /// Every name by which the container may know the file: absolute, normalised. The first is the one to show.
    pub names: &'a [&'a [u8]],
    /// The mount through which it is opened, when known.
    pub mount: Option<u64>,
}

/// Why a decision fell as it did: the `{reason}` of an event line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A `deny` path matched best.
    RuleDeny,
    /// An `allow` path matched best.
    RuleAllow,
    /// No rule matched.
    NoRule,
    /// It could not be judged.
    Failure(Failure),
}

impl Reason {
    /// The word for lines: `rule-deny`, `rule-allow`, `no-rule`, or the failure's.
    pub const fn word(self) -> &'static str {
        match self {
            Reason::RuleDeny => "rule-deny",
            Reason::RuleAllow => "rule-allow",
            Reason::NoRule => "no-rule",
            Reason::Failure(failure) => failure.word(),
        }
    }
}

/// What became of an event, as lines and counters tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Allowed.
    Allow,
    /// Denied.
    Deny,
    /// Allowed by a guard in Audit; Enforce would have denied it.
    Audit,
}

impl Outcome {
    /// All of them, in the order in which metrics list them.
    pub const ALL: [Outcome; 3] = [Outcome::Allow, Outcome::Deny, Outcome::Audit];

    /// The word of metric labels: `allow`, `deny`, `audit`.
    pub const fn label(self) -> &'static str {
        match self {
            Outcome::Allow => "allow",
            Outcome::Deny => "deny",
            Outcome::Audit => "audit",
        }
    }

    /// The word of event lines: `ALLOW`, `DENY`, `AUDIT`.
    pub const fn word(self) -> &'static str {
        match self {
            Outcome::Allow => "ALLOW",
            Outcome::Deny => "DENY",
            Outcome::Audit => "AUDIT",
        }
    }
}

/// What is done about one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What the kernel is told.
    pub response: Response,
    /// The guard is in Audit and Enforce would have denied: `response` is Allow, the label is `audit`.
    pub would_deny: bool,
    /// The rule that decided, or would have.
    pub rule: Option<RuleId>,
    /// Why.
    pub reason: Reason,
    /// Whether the event makes a line.
    pub line: bool,
    /// Whether the kernel's audit log is to get the response.
    pub audit: bool,
}

impl Decision {
    /// What became of the event.
    pub const fn outcome(&self) -> Outcome {
        match (self.response, self.would_deny) {
            (Response::Deny, _) => Outcome::Deny,
            (Response::Allow, true) => Outcome::Audit,
            (Response::Allow, false) => Outcome::Allow,
        }
    }
}

//! What is asked of a policy, and what it answers.

use super::{Event, Failure, PathPattern, RuleId, Subjects, Who};

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
    /// What is known about who asks.
    pub who: Option<Who>,
}

/// Why a decision fell as it did: the `{reason}` of an event line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A `deny` path matched best.
    RuleDeny,
    /// An `allow` path matched best.
    RuleAllow,
    /// A `deny` path matched best, and an exception of its subject holds for the process.
    Except,
    /// A `deny` path matched best; an exception would hold if the process were what it cannot be told apart from.
    OriginUndecided,
    /// An open that amounts to an execution: the process runs the file's program interpreter.
    Interpreter,
    /// A rule denies it, and the process is one of the node's own agents, which are never denied.
    NodeAgent,
    /// No rule matched.
    NoRule,
    /// It could not be judged.
    Failure(Failure),
}

impl Reason {
    /// The word for lines: `rule-deny`, `rule-allow`, `except`, `origin-undecided`, `interpreter`, `node-agent`,
    /// `no-rule`, or the
    /// failure's.
    pub const fn word(self) -> &'static str {
        match self {
            Reason::RuleDeny => "rule-deny",
            Reason::RuleAllow => "rule-allow",
            Reason::Except => "except",
            Reason::OriginUndecided => "origin-undecided",
            Reason::Interpreter => "interpreter",
            Reason::NodeAgent => "node-agent",
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

/// What of a process has to be known before an event can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depends {
    /// The exceptions of these subjects.
    pub exceptions: Subjects,
    /// Whether it runs the file's program interpreter.
    pub interpreter: bool,
}

impl Depends {
    /// On nothing.
    pub const NOTHING: Depends = Depends { exceptions: Subjects::NONE, interpreter: false };

    /// On what either depends.
    #[must_use]
    pub const fn union(self, other: Depends) -> Depends {
        Depends {
            exceptions: self.exceptions.union(other.exceptions),
            interpreter: self.interpreter || other.interpreter,
        }
    }

    /// Whether the process makes no difference.
    pub const fn is_nothing(self) -> bool {
        self.exceptions.is_empty() && !self.interpreter
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
    /// What has to be known about the process first: not [`Depends::NOTHING`], this is no answer yet. What is said about
    /// the response is then what holds without any exception.
    pub depends: Depends,
}

impl Decision {
    /// Allows, without a line, for no reason in the rules.
    pub const ALLOW: Decision = Decision {
        response: Response::Allow,
        would_deny: false,
        rule: None,
        reason: Reason::NoRule,
        line: false,
        audit: false,
        depends: Depends::NOTHING,
    };

    /// What became of the event.
    pub const fn outcome(&self) -> Outcome {
        match (self.response, self.would_deny) {
            (Response::Deny, _) => Outcome::Deny,
            (Response::Allow, true) => Outcome::Audit,
            (Response::Allow, false) => Outcome::Allow,
        }
    }
}

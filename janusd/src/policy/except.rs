//! Which processes a subject's deny does not reach.
//!
//! The rules say *whether* it matters who asks ([`super::Decision::depends`]); whoever knows the process weighs the
//! exceptions of the subjects in question ([`Exceptions::weigh`]); the rules are asked again with the outcome ([`Who`]).

use super::PathPattern;
use super::spec::{GuardSpec, Origin, ProcessMatcher};

/// A set of a guard's subjects, by index: there are at most 32.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Subjects(u32);

impl Subjects {
    /// None of them.
    pub const NONE: Subjects = Subjects(0);

    /// This set and the subject at `index`.
    #[must_use]
    pub const fn with(self, index: u16) -> Subjects {
        if index < u32::BITS as u16 { Subjects(self.0 | 1 << index) } else { self }
    }

    /// Everything in either set.
    #[must_use]
    pub const fn union(self, other: Subjects) -> Subjects {
        Subjects(self.0 | other.0)
    }

    /// Whether the subject at `index` is in the set.
    pub const fn contains(self, index: u16) -> bool {
        index < u32::BITS as u16 && self.0 & (1 << index) != 0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// From the first to the last.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (0..u32::BITS as u16).filter(move |index| self.contains(*index))
    }
}

impl std::fmt::Debug for Subjects {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.iter()).finish()
    }
}

/// What is known of a process, as far as matchers ask and no file is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// What it is to the container. `None`: not known, and then no matcher that asks for it holds.
    pub origin: Option<Origin>,
    /// It could as well be this: nothing tells the two apart.
    pub maybe: Option<Origin>,
    /// Its user, as the container sees it; `None` when the container has no number for it.
    pub user: Option<u32>,
}

/// What came of weighing a guard's exceptions for one process at one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Who {
    /// The subjects whose exceptions were weighed.
    pub weighed: Subjects,
    /// Those of them with an exception that holds.
    pub lifted: Subjects,
    /// Those of them for which it would have fallen the other way with [`Process::maybe`] as the origin.
    pub undecided: Subjects,
    /// Whether the process runs the program interpreter of the file; `None`: not looked at.
    pub interpreter: Option<bool>,
}

impl Who {
    /// Whether the deny of the subject at `index` is lifted; `None`: not weighed.
    pub(super) fn lifts(&self, index: u16) -> Option<bool> {
        self.weighed.contains(index).then(|| self.lifted.contains(index))
    }
}

impl ProcessMatcher {
    /// `autoAllowOwner`.
    fn owner() -> ProcessMatcher {
        ProcessMatcher { executables: None, users: None, origins: Some(vec![Origin::Owner]) }
    }

    /// Whether every field that is set holds. `executable`: whether the process's executable is what a path leads to; it
    /// is asked last, and only if the other fields hold.
    fn holds(
        &self,
        origin: Option<Origin>,
        user: Option<u32>,
        executable: &mut dyn FnMut(&PathPattern) -> bool,
    ) -> bool {
        let origin = self.origins.as_ref().is_none_or(|those| origin.is_some_and(|it| those.contains(&it)));
        let user = self.users.as_ref().is_none_or(|those| user.is_some_and(|it| those.contains(&it)));
        origin && user && self.executables.as_ref().is_none_or(|those| those.iter().any(executable))
    }
}

/// The exceptions of all subjects of a guard.
#[derive(Debug, Clone, Default)]
pub struct Exceptions(Vec<Vec<ProcessMatcher>>);

impl Exceptions {
    /// Takes them out of a guard.
    pub fn new(spec: &GuardSpec) -> Exceptions {
        let of = |subject: &super::Subject| {
            let owner = subject.auto_allow_owner().then(ProcessMatcher::owner);
            owner.into_iter().chain(subject.except().iter().cloned()).collect()
        };
        Exceptions(spec.subjects().iter().map(of).collect())
    }

    /// The subjects that have any.
    pub fn subjects(&self) -> Subjects {
        (0..).zip(&self.0).filter(|(_, those)| !those.is_empty()).fold(Subjects::NONE, |all, (at, _)| all.with(at))
    }

    /// Weighs those of `subjects` for a process. `executable`: whether its executable is, by identity, what this path or
    /// glob leads to.
    pub fn weigh(
        &self,
        subjects: Subjects,
        process: &Process,
        mut executable: impl FnMut(&PathPattern) -> bool,
    ) -> Who {
        let mut who = Who { weighed: subjects, ..Who::default() };
        for index in subjects.iter() {
            let matchers = self.0.get(usize::from(index)).map(Vec::as_slice).unwrap_or_default();
            let mut any = |origin| matchers.iter().any(|it| it.holds(origin, process.user, &mut executable));
            let lifted = any(process.origin);
            if lifted {
                who.lifted = who.lifted.with(index);
            }
            if process.maybe.is_some() && any(process.maybe) != lifted {
                who.undecided = who.undecided.with(index);
            }
        }
        who
    }
}

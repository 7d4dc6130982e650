//! The seam between the worker, which knows the kernel, and the rules, which know nothing: what was seen of an event goes
//! in, a verdict comes out. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::view::{Names, Tree, View};
use crate::fanotify::look::{FileHandle, Inode, Stat};
use crate::policy::{Decision, Enforcement, Event, Failure, FailurePolicy, Policy, Question, Reason, Response};

/// What the kernel said about one event.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// What is asked.
    pub event: Event,
    /// The file's facts.
    pub stat: Stat,
    /// Its path, seen from the root of the mount tree it was opened in; `None` when the kernel cannot write it.
    pub path: Option<&'a [u8]>,
    /// Its handle; looked up only for a [`Judge::suspect`].
    pub handle: Option<FileHandle>,
}

/// What is known about a mount that the view does not hold.
#[derive(Debug, Clone, Copy)]
pub enum Mount<'a> {
    /// Nothing yet.
    Unasked,
    /// It was looked for, and this is it.
    Tree(&'a Tree),
    /// It could not be told.
    Failed(Failure),
}

/// What comes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answer this.
    Decided(Decision),
    /// The mount has to be looked up first.
    AskMount,
}

/// Judges events. A trait, so that a test can put a judge that panics or stalls into a real worker.
pub trait Judge: Send + Sync + std::fmt::Debug {
    /// Whether the file is one whose handle is worth getting.
    fn suspect(&self, inode: Inode) -> bool;
    /// Judges; leaves the file's names in `names`, the one to show first.
    fn judge(&self, seen: &Seen<'_>, mount: Mount<'_>, names: &mut Names) -> Verdict;
    /// What is answered to an event that could not be judged.
    fn failed(&self, failure: Failure) -> Decision;
}

/// Puts another judge around a guard's own.
pub type Wrap = dyn Fn(Arc<dyn Judge>) -> Arc<dyn Judge> + Send + Sync;

/// One file that a rule's path is known to lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its handle: where it differs, the inode number was given to another file since.
    pub handle: Option<FileHandle>,
    /// Its name inside the root.
    pub name: Vec<u8>,
}

/// A guard's rules, bound to one root: everything that is needed to judge.
#[derive(Debug)]
pub struct Ruling {
    /// The rules.
    pub policy: Policy,
    /// The root's mounts.
    pub view: View,
    /// Files by identity.
    pub known: HashMap<Inode, Vec<Known>>,
    /// What to answer when judging fails.
    pub failure_policy: FailurePolicy,
    /// Whether a failure's denial is real.
    pub enforcement: Enforcement,
}

/// More names than this are judged through a heap allocation: nothing is left out.
const USUAL_NAMES: usize = 8;

impl Ruling {
    fn decide(&self, seen: &Seen<'_>, names: &Names) -> Decision {
        let ask = |names: &[&[u8]]| {
            self.policy.decide(&Question {
                event: seen.event,
                directory: seen.stat.is_directory(),
                names,
                mount: Some(seen.stat.mount),
            })
        };
        if names.len() <= USUAL_NAMES {
            let mut room: [&[u8]; USUAL_NAMES] = [&[]; USUAL_NAMES];
            let mut count = 0;
            for (slot, name) in room.iter_mut().zip(names.iter()) {
                *slot = name;
                count += 1;
            }
            ask(&room[..count])
        } else {
            ask(&names.iter().collect::<Vec<_>>())
        }
    }
}

impl Judge for Ruling {
    fn suspect(&self, inode: Inode) -> bool {
        self.known.contains_key(&inode)
    }

    fn judge(&self, seen: &Seen<'_>, mount: Mount<'_>, names: &mut Names) -> Verdict {
        names.clear();
        let tree = match mount {
            Mount::Tree(tree) => Some(tree),
            Mount::Unasked | Mount::Failed(_) => self.view.trees.get(&seen.stat.mount),
        };
        let placed = match (seen.path, tree) {
            (Some(path), Some(tree)) => self.view.names(tree, path, names),
            _ => false,
        };
        for known in self.known.get(&seen.stat.inode).into_iter().flatten() {
            if known.handle.is_none() || seen.handle.is_none() || known.handle == seen.handle {
                names.push(&known.name);
            }
        }
        let decision = self.decide(seen, names);
        let denied = decision.response == Response::Deny || decision.would_deny;
        let complete = match (seen.path, mount) {
            (None, _) => Err(Failure::PathUnreadable),
            (Some(_), _) if placed => Ok(()),
            // No further name could undo a denial.
            (Some(_), Mount::Unasked) if denied => Ok(()),
            (Some(_), Mount::Unasked) => return Verdict::AskMount,
            (Some(_), Mount::Tree(_)) => Err(Failure::UnknownMount),
            (Some(_), Mount::Failed(failure)) => Err(failure),
        };
        Verdict::Decided(match complete {
            Err(failure) if !denied => self.failed(failure),
            _ => decision,
        })
    }

    fn failed(&self, failure: Failure) -> Decision {
        let wanted = failure.response(self.failure_policy);
        let audit_only = self.enforcement == Enforcement::Audit && wanted == Response::Deny;
        Decision {
            response: if audit_only { Response::Allow } else { wanted },
            would_deny: audit_only,
            rule: None,
            reason: Reason::Failure(failure),
            line: wanted == Response::Deny,
            audit: false,
        }
    }
}

/// Judges nothing: allows. What a worker has before its guard is armed.
#[derive(Debug)]
pub struct Unarmed;

impl Judge for Unarmed {
    fn suspect(&self, _: Inode) -> bool {
        false
    }

    fn judge(&self, _: &Seen<'_>, _: Mount<'_>, _: &mut Names) -> Verdict {
        Verdict::Decided(Decision {
            response: Response::Allow,
            would_deny: false,
            rule: None,
            reason: Reason::NoRule,
            line: false,
            audit: false,
        })
    }

    fn failed(&self, failure: Failure) -> Decision {
        Decision {
            response: failure.response(FailurePolicy::Allow),
            would_deny: false,
            rule: None,
            reason: Reason::Failure(failure),
            line: false,
            audit: false,
        }
    }
}

//! The seam between the worker, which knows the kernel, and the rules, which know nothing: what was seen of an event goes
//! in, a verdict comes out. Pure.

use std::sync::Arc;

use super::known::{Fingerprint, KnownFiles};
use super::view::{Names, Tree, View};
use crate::fanotify::look::Stat;
use crate::policy::{
    Decision, Depends, Enforcement, Event, Events, Failure, FailurePolicy, Policy, Question, Reason, Response, Who,
};

/// What the kernel said about one event.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// What is asked.
    pub event: Event,
    /// The file's facts.
    pub stat: Stat,
    /// Its path, seen from the root of the mount tree it was opened in; `None` when the kernel cannot write it.
    pub path: Option<&'a [u8]>,
    /// Of its handle; looked up only if [`KnownFiles::suspects`] it.
    pub fingerprint: Option<Fingerprint>,
    /// The file, or the directory that it lies in, bears a mark of its own: the near group asks.
    pub near: bool,
    /// Who asks.
    pub asker: Asker,
}

/// What is known about the process that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Asker {
    /// Nothing yet.
    #[default]
    Unasked,
    /// It was looked at.
    Known(Who),
    /// It could not be told.
    Failed(Failure),
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
    /// The process has to be looked up first.
    AskProcess(Depends),
}

/// Judges events. A trait, so that a test can put a judge that panics or stalls into a real worker.
pub trait Judge: Send + Sync + std::fmt::Debug {
    /// Judges; leaves the file's names in `names`, the one to show first.
    fn judge(&self, seen: &Seen<'_>, mount: Mount<'_>, known: &KnownFiles, names: &mut Names) -> Verdict;
    /// Whether nobody needs to be asked again about a file that bears `names` and no others, and lies where near marks
    /// watch over guarded directories: each event is allowed, whoever causes it, and makes no line.
    fn indifferent(&self, stat: &Stat, names: &Names) -> bool;
    /// Whether some event on a file of this name is denied (in Audit: would be).
    fn denies(&self, name: &[u8], directory: bool) -> bool;
    /// What is answered to an event that could not be judged.
    fn failed(&self, failure: Failure) -> Decision;
}

/// Puts another judge around a guard's own.
pub type Wrap = dyn Fn(Arc<dyn Judge>) -> Arc<dyn Judge> + Send + Sync;

/// A guard's rules, bound to one root: everything that is needed to judge.
#[derive(Debug)]
pub struct Ruling {
    /// The rules.
    pub policy: Policy,
    /// The root's mounts.
    pub view: View,
    /// The events that the guard speaks of.
    pub events: Events,
    /// Whether a rule goes by the mount that a file is opened through.
    pub by_mount: bool,
    /// Whether any rule denies.
    pub denies_something: bool,
    /// What to answer when judging fails.
    pub failure_policy: FailurePolicy,
    /// Whether a failure's denial is real.
    pub enforcement: Enforcement,
}

/// More names than this are judged through a heap allocation: nothing is left out.
const USUAL_NAMES: usize = 8;

impl Ruling {
    fn decide(&self, event: Event, directory: bool, mount: Option<u64>, asker: Asker, names: &Names) -> Decision {
        let who = match asker {
            Asker::Known(who) => Some(who),
            Asker::Unasked | Asker::Failed(_) => None,
        };
        let ask = |names: &[&[u8]]| self.policy.decide(&Question { event, directory, names, mount, who });
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

    /// The names of a file whose path may say that it is deleted. With no name left it is; with others, either the name
    /// is gone or the file is called so, and both readings count: the links were counted a moment before.
    fn names(&self, tree: &Tree, path: &[u8], links: u32, names: &mut Names) -> bool {
        match path.strip_suffix(b" (deleted)") {
            None => self.view.names(tree, path, names),
            Some(gone) => {
                let placed = self.view.names(tree, gone, names);
                (links == 0 || self.view.names(tree, path, names)) && placed
            }
        }
    }

    fn events(&self) -> impl Iterator<Item = Event> {
        Event::ALL.into_iter().filter(|event| self.events.contains(*event))
    }
}

impl Judge for Ruling {
    fn judge(&self, seen: &Seen<'_>, mount: Mount<'_>, known: &KnownFiles, names: &mut Names) -> Verdict {
        names.clear();
        let tree = match mount {
            Mount::Tree(tree) => Some(tree),
            Mount::Unasked | Mount::Failed(_) => self.view.trees.get(&seen.stat.mount),
        };
        let placed = match (seen.path, tree) {
            (Some(path), Some(tree)) => self.names(tree, path, seen.stat.links, names),
            _ => false,
        };
        for name in known.names(seen.stat.inode, seen.fingerprint) {
            names.push(name);
        }
        let mount_id = Some(seen.stat.mount);
        let decision = self.decide(seen.event, seen.stat.is_directory(), mount_id, seen.asker, names);
        let denied = decision.response == Response::Deny || decision.would_deny;
        let complete = match (seen.path, mount) {
            (None, _) => Err(Failure::PathUnreadable),
            (Some(_), _) if placed => Ok(()),
            // No further name could undo a denial; an exception could, and then the other names matter.
            (Some(_), Mount::Unasked) if denied && decision.depends.is_nothing() => Ok(()),
            (Some(_), Mount::Unasked) => return Verdict::AskMount,
            (Some(_), Mount::Tree(_) | Mount::Failed(Failure::UnknownMount)) if seen.near && self.denies_something => {
                Err(Failure::UnnamedInGuarded)
            }
            (Some(_), Mount::Tree(_)) => Err(Failure::UnknownMount),
            (Some(_), Mount::Failed(failure)) => Err(failure),
        };
        match (complete, seen.asker) {
            (Err(failure), _) if !denied => Verdict::Decided(self.failed(failure)),
            _ if decision.depends.is_nothing() => Verdict::Decided(decision),
            (_, Asker::Failed(failure)) => Verdict::Decided(self.failed(failure)),
            (_, Asker::Unasked | Asker::Known(_)) => Verdict::AskProcess(decision.depends),
        }
    }

    fn indifferent(&self, stat: &Stat, names: &Names) -> bool {
        !self.by_mount
            && self.view.watched.contains(&stat.mount)
            && self.events().all(|event| {
                let decision = self.decide(event, false, None, Asker::Unasked, names);
                decision.depends.is_nothing()
                    && decision.response == Response::Allow
                    && !decision.would_deny
                    && !decision.line
                    && !decision.audit
            })
    }

    fn denies(&self, name: &[u8], directory: bool) -> bool {
        self.events().any(|event| {
            let decision = self.policy.decide(&Question { event, directory, names: &[name], mount: None, who: None });
            // Where it depends on who asks, somebody is denied.
            !decision.depends.is_nothing() || decision.response == Response::Deny || decision.would_deny
        })
    }

    fn failed(&self, failure: Failure) -> Decision {
        let wanted = failure.response(self.failure_policy);
        let audit_only = self.enforcement == Enforcement::Audit && wanted == Response::Deny;
        Decision {
            response: if audit_only { Response::Allow } else { wanted },
            would_deny: audit_only,
            reason: Reason::Failure(failure),
            line: wanted == Response::Deny,
            ..Decision::ALLOW
        }
    }
}

/// Judges nothing: allows. What a worker has before its guard is armed.
#[derive(Debug)]
pub struct Unarmed;

impl Judge for Unarmed {
    fn indifferent(&self, _: &Stat, _: &Names) -> bool {
        false
    }

    fn denies(&self, _: &[u8], _: bool) -> bool {
        false
    }

    fn judge(&self, _: &Seen<'_>, _: Mount<'_>, _: &KnownFiles, _: &mut Names) -> Verdict {
        Verdict::Decided(Decision::ALLOW)
    }

    fn failed(&self, failure: Failure) -> Decision {
        Decision {
            response: failure.response(FailurePolicy::Allow),
            reason: Reason::Failure(failure),
            ..Decision::ALLOW
        }
    }
}

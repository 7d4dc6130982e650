//! The seam between the worker, which knows the kernel, and the rules, which know nothing: what was seen of an event goes
//! in, a verdict comes out. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::known::{Fingerprint, KnownFiles};
use super::site::SiteId;
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
    Known(Known),
    /// It could not be told.
    Failed(Failure),
}

/// What was found when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Which exceptions hold for it.
    pub who: Who,
    /// It is one of the node's agents.
    pub agent: bool,
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
    AskProcess(Ask),
}

/// What has to be known of the process that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// To which root it is to be told what the process is.
    pub site: Option<SiteId>,
    /// What the rules depend on.
    pub depends: Depends,
    /// Whether it is one of the node's agents.
    pub agent: bool,
    /// What is answered when it cannot be looked up.
    pub otherwise: Decision,
}

/// Judges events. A trait, so that a test can put a judge that panics or stalls into a real worker.
pub trait Judge: Send + Sync + std::fmt::Debug {
    /// Judges; leaves in `names` those of the file that decided, the one to show first, and whose they are.
    fn judge(&self, seen: &Seen<'_>, mount: Mount<'_>, known: &KnownFiles, names: &mut Names) -> Verdict;
    /// Whether nobody needs to be asked again about a file of one name that nothing is known of, and that lies where
    /// near marks watch over guarded directories: each event is allowed, whoever causes it, and makes no line. `names` is
    /// room to work in.
    fn indifferent(&self, stat: &Stat, path: &[u8], names: &mut Names) -> bool;
    /// Whether some event on a file of this name is denied (in Audit: would be).
    fn denies(&self, site: SiteId, name: &[u8], directory: bool) -> bool;
    /// What is answered to an event that could not be judged.
    fn failed(&self, failure: Failure) -> Decision;
}

/// Puts another judge around a guard's own.
pub type Wrap = dyn Fn(Arc<dyn Judge>) -> Arc<dyn Judge> + Send + Sync;

/// A guard's rules, bound to one root.
#[derive(Debug)]
pub struct SiteRules {
    /// Whose root.
    pub site: SiteId,
    /// The rules.
    pub policy: Policy,
    /// The root's mounts.
    pub view: View,
    /// The mounts are the container's own: the node's processes have theirs.
    pub own_mounts: bool,
    /// Whether a rule goes by the mount that a file is opened through.
    pub by_mount: bool,
    /// The events that the guard speaks of.
    pub events: Events,
}

/// What the kernel puts behind the path of a file that has lost the name it was opened by.
pub const DELETED: &[u8] = b" (deleted)";

/// More names than this are judged through a heap allocation: nothing is left out.
const USUAL_NAMES: usize = 8;

impl SiteRules {
    fn decide(&self, event: Event, directory: bool, mount: Option<u64>, asker: Asker, names: &Names) -> Decision {
        let who = match asker {
            Asker::Known(known) => Some(known.who),
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
        match path.strip_suffix(DELETED) {
            None => self.view.names(tree, path, names),
            Some(gone) => {
                let placed = self.view.names(tree, gone, names);
                (links == 0 || self.view.names(tree, path, names)) && placed
            }
        }
    }

    /// Whether some event on a file of this name is denied (in Audit: would be).
    pub fn denies(&self, name: &[u8], directory: bool) -> bool {
        self.events().any(|event| {
            let decision = self.policy.decide(&Question { event, directory, names: &[name], mount: None, who: None });
            // Where it depends on who asks, somebody is denied.
            !decision.depends.is_nothing() || denied(&decision)
        })
    }

    fn indifferent(&self, names: &Names) -> bool {
        self.events().all(|event| {
            let decision = self.decide(event, false, None, Asker::Unasked, names);
            decision.depends.is_nothing() && !denied(&decision) && !decision.line && !decision.audit
        })
    }

    fn events(&self) -> impl Iterator<Item = Event> {
        Event::ALL.into_iter().filter(|event| self.events.contains(*event))
    }
}

fn denied(decision: &Decision) -> bool {
    decision.response == Response::Deny || decision.would_deny
}

/// A mount that one of the guard's roots shows.
#[derive(Debug)]
struct Home {
    tree: Tree,
    site: SiteId,
    /// It is in the container's own mount namespace.
    own: bool,
    /// Near marks watch over guarded directories on it, and on every other mount of its file system that a root shows.
    watched: bool,
}

/// What a guard says of all its roots, and of what cannot be judged.
#[derive(Debug, Clone, Copy)]
pub struct Stance {
    /// Whether any rule denies.
    pub denies_something: bool,
    /// What to answer when judging fails.
    pub failure_policy: FailurePolicy,
    /// Whether denials are real.
    pub enforcement: Enforcement,
    /// The node has agents that are never denied.
    pub agents: bool,
}

/// A guard's rules, bound to all its roots: everything that is needed to judge.
#[derive(Debug)]
pub struct Ruling {
    sites: Vec<Arc<SiteRules>>,
    /// Keyed by the mount id of `statx`.
    homes: HashMap<u64, Home>,
    by_mount: bool,
    stance: Stance,
}

/// What the sites said: the strictest of it.
struct Strictest {
    site: usize,
    decision: Decision,
}

/// A denial goes before one that an exception may lift, that before a rule that allows, that before none.
fn strictness(decision: &Decision) -> u8 {
    match decision {
        it if !it.depends.is_nothing() => 2,
        it if denied(it) => 3,
        it => u8::from(it.rule.is_some()),
    }
}

impl Ruling {
    /// Puts together what was found in each root.
    pub fn new(sites: Vec<Arc<SiteRules>>, stance: Stance) -> Ruling {
        let shown = || sites.iter().flat_map(|site| site.view.mounts.iter().map(move |mount| (site, mount)));
        let unwatched: HashSet<(u32, u32)> =
            shown().filter(|(_, mount)| !mount.watched).map(|(_, mount)| mount.tree.device).collect();
        let homes = shown().map(|(site, mount)| {
            let watched = !unwatched.contains(&mount.tree.device);
            (mount.mount, Home { tree: mount.tree.clone(), site: site.site, own: site.own_mounts, watched })
        });
        Ruling { homes: homes.collect(), by_mount: sites.iter().any(|site| site.by_mount), sites, stance }
    }

    /// Fills `names` with what one root calls the file. False when the path does not fit the tree.
    fn call(&self, at: usize, seen: &Seen<'_>, tree: Option<&Tree>, known: &KnownFiles, names: &mut Names) -> bool {
        let Some(site) = self.sites.get(at) else { return true };
        names.begin(site.site);
        let placed = match (seen.path, tree) {
            (Some(path), Some(tree)) => site.names(tree, path, seen.stat.links, names),
            _ => false,
        };
        for (_, name) in known.names(seen.stat.inode, seen.fingerprint).filter(|(whose, _)| *whose == site.site) {
            names.push(name);
        }
        placed
    }

    fn decide(
        &self,
        seen: &Seen<'_>,
        tree: Option<&Tree>,
        known: &KnownFiles,
        names: &mut Names,
    ) -> (Option<Strictest>, bool) {
        let mut placed = tree.is_some() && seen.path.is_some();
        let mut strictest: Option<Strictest> = None;
        let mut depends = Depends::NOTHING;
        for (at, site) in self.sites.iter().enumerate() {
            placed &= self.call(at, seen, tree, known, names);
            let directory = seen.stat.is_directory();
            let decision = site.decide(seen.event, directory, Some(seen.stat.mount), seen.asker, names);
            depends = depends.union(decision.depends);
            if strictest.as_ref().is_none_or(|other| strictness(&decision) > strictness(&other.decision)) {
                strictest = Some(Strictest { site: at, decision });
            }
        }
        if let Some(strictest) = &mut strictest {
            if strictest.site + 1 != self.sites.len() {
                self.call(strictest.site, seen, tree, known, names);
            }
            if !strictest.decision.depends.is_nothing() {
                strictest.decision.depends = depends;
            }
        }
        (strictest, placed)
    }

    /// Before a denial of a process that came by a mount of the node: it may be one of the node's agents.
    fn spare_agents(&self, decision: Decision, seen: &Seen<'_>, own: bool, site: Option<SiteId>) -> Verdict {
        if !self.stance.agents || own || !denied(&decision) {
            return Verdict::Decided(decision);
        }
        match seen.asker {
            Asker::Unasked => {
                Verdict::AskProcess(Ask { site, depends: Depends::NOTHING, agent: true, otherwise: decision })
            }
            Asker::Known(Known { agent: true, .. }) => Verdict::Decided(Decision {
                response: Response::Allow,
                would_deny: false,
                reason: Reason::NodeAgent,
                ..decision
            }),
            // Not one that we know of: it keeps its answer.
            Asker::Known(_) | Asker::Failed(_) => Verdict::Decided(decision),
        }
    }
}

impl Judge for Ruling {
    fn judge(&self, seen: &Seen<'_>, mount: Mount<'_>, known: &KnownFiles, names: &mut Names) -> Verdict {
        names.clear();
        let home = self.homes.get(&seen.stat.mount);
        let tree = match mount {
            Mount::Tree(tree) => Some(tree),
            Mount::Unasked | Mount::Failed(_) => home.map(|home| &home.tree),
        };
        let (strictest, placed) = self.decide(seen, tree, known, names);
        // A pod none of whose containers is there: nothing is guarded.
        let Some(Strictest { site, decision }) = strictest else { return Verdict::Decided(Decision::ALLOW) };
        let denied = denied(&decision);
        let complete = match (seen.path, mount) {
            (None, _) => Err(Failure::PathUnreadable),
            (Some(_), _) if placed => Ok(()),
            // No further name could undo a denial; an exception could, and then the other names matter.
            (Some(_), Mount::Unasked) if denied && decision.depends.is_nothing() => Ok(()),
            (Some(_), Mount::Unasked) => return Verdict::AskMount,
            (Some(_), Mount::Tree(_) | Mount::Failed(Failure::UnknownMount))
                if seen.near && self.stance.denies_something =>
            {
                Err(Failure::UnnamedInGuarded)
            }
            (Some(_), Mount::Tree(_)) => Err(Failure::UnknownMount),
            (Some(_), Mount::Failed(failure)) => Err(failure),
        };
        let own = home.is_some_and(|home| home.own);
        let decided = match (complete, seen.asker) {
            (Err(failure), _) if !denied => self.failed(failure),
            _ if decision.depends.is_nothing() => decision,
            (_, Asker::Failed(failure)) => self.failed(failure),
            (_, Asker::Unasked | Asker::Known(_)) => {
                // Whoever comes by a container's own mount is told apart by that container, though another one of the
                // pod may be the one whose rule denies: a volume that two share is each one's own.
                let whose = home.filter(|home| home.own).map(|home| home.site);
                let site = whose.or_else(|| self.sites.get(site).map(|site| site.site));
                let (depends, agent) = (decision.depends, self.stance.agents && !own);
                let otherwise = self.failed(Failure::LookupBusy);
                return Verdict::AskProcess(Ask { site, depends, agent, otherwise });
            }
        };
        self.spare_agents(decided, seen, own, names.site())
    }

    fn indifferent(&self, stat: &Stat, path: &[u8], names: &mut Names) -> bool {
        let Some(home) = self.homes.get(&stat.mount).filter(|home| home.watched && !self.by_mount) else {
            return false;
        };
        self.sites.iter().all(|site| {
            names.begin(site.site);
            site.names(&home.tree, path, stat.links, names) && site.indifferent(names)
        })
    }

    fn denies(&self, site: SiteId, name: &[u8], directory: bool) -> bool {
        self.sites.iter().filter(|rules| rules.site == site).any(|rules| rules.denies(name, directory))
    }

    fn failed(&self, failure: Failure) -> Decision {
        let wanted = failure.response(self.stance.failure_policy);
        let audit_only = self.stance.enforcement == Enforcement::Audit && wanted == Response::Deny;
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
    fn indifferent(&self, _: &Stat, _: &[u8], _: &mut Names) -> bool {
        false
    }

    fn denies(&self, _: SiteId, _: &[u8], _: bool) -> bool {
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

//! The roots of one guard: the containers of its pod, or the one root of a guard without a cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::root::Root;

/// Names a root among a guard's. A container that starts again under its name keeps its number, so that what was learned
/// of its files holds on; otherwise numbers are never given out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub u32);

/// The numbers that a guard has given to its roots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// To containers, by name.
    pub named: HashMap<Arc<str>, SiteId>,
    /// To those without one, by id.
    pub nameless: HashMap<Arc<str>, SiteId>,
    /// How many were given.
    pub given: u32,
}

impl Numbers {
    /// The number of a container: the one that it had, or a fresh one.
    pub(super) fn of(&mut self, site: &Site) -> SiteId {
        let given = &mut self.given;
        let fresh = || {
            *given = given.wrapping_add(1);
            SiteId(*given)
        };
        match &site.name {
            Some(name) => *self.named.entry(name.clone()).or_insert_with(fresh),
            None => *self.nameless.entry(site.id.clone()).or_insert_with(fresh),
        }
    }
}

/// A container that has started.
#[derive(Debug)]
pub struct Site {
    /// The runtime's id for it: another one after a restart.
    pub id: Arc<str>,
    /// Its name in the pod; `None`: not known yet.
    pub name: Option<Arc<str>>,
    /// Its root.
    pub root: Root,
    /// Its first process, as our pid namespace numbers it.
    pub init: i32,
}

/// The containers that a pod has, selected by the guard or not.
#[derive(Debug, Default)]
pub struct Offer {
    /// Those that can be entered.
    pub sites: Vec<Site>,
    /// What no guard is for: the pod's sandboxes, by id.
    pub passed_over: BTreeSet<Arc<str>>,
    /// Those that cannot, by id, and why.
    pub unreachable: BTreeMap<Arc<str>, String>,
}

/// What a guard guards.
#[derive(Debug)]
pub enum Roots {
    /// One root, for as long as the guard lives.
    One(Root),
    /// The containers of a pod, as they come and go: these for now.
    Pod(Offer),
}

/// One root of a guard, as reports tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteReport {
    /// [`Site::id`].
    pub id: Arc<str>,
    /// [`Site::name`].
    pub name: Option<Arc<str>>,
    /// Every path that can be guarded is, by the rules that the guard has now.
    pub in_force: bool,
}

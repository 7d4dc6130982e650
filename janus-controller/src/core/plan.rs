//! What one daemon has to be told: the difference between what should be on its node and what it says is.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::observation::{Observation, Phase};
use super::spec::Features;
use super::unit::{Uid, UnitId, Wanted};

/// What should be in force on one node.
#[derive(Debug, Default, PartialEq)]
pub struct Desired {
    /// The units.
    pub units: HashMap<UnitId, Wanted>,
    /// Guards that exist and whose spec is not known: cannot be decoded now, and was not before either. What daemons
    /// have of them stays in force, in the pods that are still there.
    pub unknown: HashSet<Uid>,
    /// The pods of the node that are in a namespace with such a guard.
    pub pods: HashSet<Uid>,
}

/// What is known of a unit on the daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The daemon's last word.
    pub observation: Arc<Observation>,
    /// What was sent last, by [`fingerprint`]; `None` since the last periodic look at the daemon's whole state.
    pub sent: Option<u64>,
}

/// One thing to tell the daemon.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// CreateGuard.
    Create(UnitId, Cause),
    /// DestroyGuard, at a generation that the daemon does not take for a stale one.
    Destroy(UnitId, i64),
}

/// Why a unit is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The daemon has none.
    Missing,
    /// It has an older generation.
    Outdated,
    /// Containers run that it has not named, or not found.
    Containers,
}

/// Names what CreateGuard would carry, but for the caller.
pub fn fingerprint(wanted: &Wanted) -> u64 {
    let mut hasher = DefaultHasher::new();
    wanted.order.generation.hash(&mut hasher);
    for container in wanted.containers() {
        container.id.hash(&mut hasher);
    }
    hasher.finish()
}

/// What has to be told, in no order. A unit that needs what the daemon does not know is left out. Each is found when it is
/// asked for: whoever may tell a few things only does not look for all of them.
pub fn plan<'a>(
    desired: &'a Desired,
    known: &'a HashMap<UnitId, Known>,
    features: Features,
) -> impl Iterator<Item = Step> + 'a {
    let creates = desired.units.iter().filter_map(move |(unit, wanted)| {
        if features.lack(wanted.order.needs).is_some() {
            return None;
        }
        cause(wanted, known.get(unit)).map(|cause| Step::Create(unit.clone(), cause))
    });
    let destroys = known.iter().filter_map(|(unit, Known { observation, .. })| {
        let leaving = observation.phase == Phase::Draining;
        if leaving || desired.units.contains_key(unit) {
            return None;
        }
        let kept = desired.unknown.contains(&unit.guard) && desired.pods.contains(&unit.pod);
        (!kept).then(|| Step::Destroy(unit.clone(), observation.accepted.max(observation.generation).max(1)))
    });
    creates.chain(destroys)
}

fn cause(wanted: &Wanted, known: Option<&Known>) -> Option<Cause> {
    let Some(Known { observation, sent }) = known else { return Some(Cause::Missing) };
    if observation.phase == Phase::Draining {
        return Some(Cause::Missing);
    }
    if observation.accepted < wanted.order.generation {
        return Some(Cause::Outdated);
    }
    let unnamed = |id: &str| observation.container(id).is_none_or(|found| !found.named || !found.in_force);
    let news = wanted.containers().any(|container| unnamed(&container.id));
    // Told once a resync: a container may have ended without our being told yet.
    (news && *sent != Some(fingerprint(wanted))).then_some(Cause::Containers)
}

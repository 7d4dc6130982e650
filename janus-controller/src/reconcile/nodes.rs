//! What is known of each node's daemon as a whole: whether it answers, what it knows, which guards it was told of.
//!
//! Nothing here is looked for among all nodes at each turn of the hub: a cluster has thousands.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::driver::Orders;
use crate::core::plan::Desired;
use crate::core::spec::Features;
use crate::core::unit::Uid;
use crate::index::Target;
use crate::metrics::DaemonState;

/// A node that has a daemon.
struct Node {
    orders: watch::Sender<Arc<Orders>>,
    features: Option<Features>,
    /// The last answer for the whole state; until there is one, since when there should be.
    heard: Instant,
    state: DaemonState,
    /// Guards that may be on their way to the daemon: by the last orders that named them.
    told: HashMap<Uid, u64>,
}

/// How things stand with a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Whether it has answered within three resyncs.
    pub(super) reached: bool,
    /// What its daemon knows; `None` until it has said.
    pub(super) features: Option<Features>,
}

/// All nodes that have a daemon.
pub(super) struct Nodes {
    nodes: HashMap<Arc<str>, Node>,
    stale: Duration,
    /// None is late before this.
    look_at: Option<Instant>,
    states: [i64; 3],
    /// Orders that were given.
    sequence: u64,
}

const STATES: [DaemonState; 3] = [DaemonState::Answering, DaemonState::Lost, DaemonState::Stale];

impl Nodes {
    /// None yet. `stale`: the age at which an answer is too old.
    pub(super) fn new(stale: Duration) -> Nodes {
        Nodes { nodes: HashMap::new(), stale, look_at: None, states: [0; 3], sequence: 0 }
    }

    /// Gives a node's driver its orders. `Some`: it has none, and one has to be started that takes these.
    pub(super) fn order(
        &mut self,
        name: &Arc<str>,
        target: Option<Target>,
        desired: Desired,
        now: Instant,
    ) -> Option<watch::Receiver<Arc<Orders>>> {
        self.sequence += 1;
        let sequence = self.sequence;
        let guards = desired.units.keys().map(|unit| (unit.guard.clone(), sequence));
        if let Some(node) = self.nodes.get_mut(name) {
            node.told.extend(guards);
            let receipt = node.told.values().any(|last| *last < sequence).then_some(sequence);
            node.orders.send_replace(Arc::new(Orders { target, desired, receipt }));
            return None;
        }
        target.as_ref()?;
        let told = guards.collect();
        let (orders, receiver) = watch::channel(Arc::new(Orders { target, desired, receipt: None }));
        let node = Node { orders, features: None, heard: now, state: DaemonState::Lost, told };
        self.nodes.insert(name.clone(), node);
        self.count(None, Some(DaemonState::Lost));
        self.look_by(now + self.stale);
        Some(receiver)
    }

    /// A node has no driver any more.
    pub(super) fn remove(&mut self, name: &str) {
        if let Some(node) = self.nodes.remove(name) {
            self.count(Some(node.state), None);
        }
    }

    /// Nodes whose driver is gone though nobody said so.
    pub(super) fn dead(&self) -> Vec<Arc<str>> {
        let dead = self.nodes.iter().filter(|(_, node)| node.orders.is_closed());
        dead.map(|(name, _)| name.clone()).collect()
    }

    /// A daemon has answered for its whole state; gives whether that is news.
    pub(super) fn answered(&mut self, name: &str, features: Features, at: Instant) -> bool {
        let Some(node) = self.nodes.get_mut(name) else { return false };
        let told = node.features.replace(features);
        let was = std::mem::replace(&mut node.state, DaemonState::Answering);
        node.heard = at;
        self.count(Some(was), Some(DaemonState::Answering));
        self.look_by(at + self.stale);
        was != DaemonState::Answering || told != Some(features)
    }

    /// A daemon cannot be reached; gives whether it answered before.
    pub(super) fn lost(&mut self, name: &str) -> bool {
        let Some(node) = self.nodes.get_mut(name) else { return false };
        if node.state != DaemonState::Answering {
            return false;
        }
        node.state = DaemonState::Lost;
        self.count(Some(DaemonState::Answering), Some(DaemonState::Lost));
        true
    }

    /// A driver has obeyed its orders up to these.
    pub(super) fn obeyed(&mut self, name: &str, receipt: u64) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.told.retain(|_, last| *last >= receipt);
        }
    }

    /// When one may be late.
    pub(super) fn next(&self) -> Option<Instant> {
        self.look_at
    }

    /// Those that are late from now on: what they said does not count any more.
    pub(super) fn late(&mut self, now: Instant) -> Vec<Arc<str>> {
        if self.look_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let (mut late, mut next) = (Vec::new(), None::<Instant>);
        for (name, node) in self.nodes.iter_mut().filter(|(_, node)| node.state != DaemonState::Stale) {
            let at = node.heard + self.stale;
            if at <= now {
                late.push((name.clone(), std::mem::replace(&mut node.state, DaemonState::Stale)));
            } else {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        self.look_at = next;
        late.iter().for_each(|(_, was)| self.count(Some(*was), Some(DaemonState::Stale)));
        late.into_iter().map(|(name, _)| name).collect()
    }

    /// A node; `None`: it has no daemon.
    pub(super) fn standing(&self, name: &str) -> Option<Standing> {
        let node = self.nodes.get(name)?;
        Some(Standing { reached: node.state != DaemonState::Stale, features: node.features })
    }

    /// The nodes that may hold something of a guard though they have not said so: they have said nothing yet, or it may
    /// be on its way to them.
    pub(super) fn may_hold(&self, guard: &Uid) -> impl Iterator<Item = (&Arc<str>, bool)> {
        let may = self.nodes.iter().filter(|(_, node)| node.features.is_none() || node.told.contains_key(guard));
        may.map(|(name, node)| (name, node.state != DaemonState::Stale))
    }

    /// How many there are in each state.
    pub(super) fn states(&self) -> impl Iterator<Item = (DaemonState, i64)> {
        STATES.into_iter().zip(self.states)
    }

    fn look_by(&mut self, at: Instant) {
        self.look_at = Some(self.look_at.map_or(at, |look_at| look_at.min(at)));
    }

    fn count(&mut self, was: Option<DaemonState>, is: Option<DaemonState>) {
        for ((_, count), state) in self.states.iter_mut().enumerate().zip(STATES) {
            *count += i64::from(is == Some(state)) - i64::from(was == Some(state));
        }
    }
}

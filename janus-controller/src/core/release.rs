//! When a deleted guard may go: its finalizer is what keeps it until daemons have lifted it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long a daemon that can be reached has to confirm.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A node that may hold units of the guard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its name.
    pub node: Arc<str>,
    /// Whether its daemon has answered lately.
    pub reached: bool,
}

/// What becomes of the finalizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// It stays.
    Wait,
    /// It goes: nobody holds a unit of the guard.
    Confirmed,
    /// It goes though these nodes have not confirmed. What they hold is lifted once they are back.
    Unconfirmed(BTreeSet<Arc<str>>),
}

/// Decides. `holders`: nodes that hold units of the guard, or have not said yet whether they do. `waited`: since the guard
/// was seen to be deleted.
pub fn release(holders: &BTreeSet<Holder>, waited: Duration) -> Release {
    if holders.is_empty() {
        Release::Confirmed
    } else if waited >= PATIENCE || holders.iter().all(|holder| !holder.reached) {
        Release::Unconfirmed(holders.iter().map(|holder| holder.node.clone()).collect())
    } else {
        Release::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(nodes: &[(&str, bool)]) -> BTreeSet<Holder> {
        nodes.iter().map(|(node, reached)| Holder { node: Arc::from(*node), reached: *reached }).collect()
    }

    #[test]
    fn a_daemon_that_answers_is_waited_for() {
        let both = holders(&[("a", true), ("b", false)]);
        assert_eq!(release(&both, Duration::ZERO), Release::Wait);
        assert_eq!(release(&both, PATIENCE), Release::Unconfirmed(["a", "b"].map(Arc::from).into()));
        assert_eq!(release(&holders(&[]), Duration::ZERO), Release::Confirmed);
    }

    #[test]
    fn one_that_does_not_answer_is_not() {
        let lost = holders(&[("b", false)]);
        assert_eq!(release(&lost, Duration::ZERO), Release::Unconfirmed(["b"].map(Arc::from).into()));
    }
}

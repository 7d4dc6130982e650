//! The opt-in annotation that names a pod's guards: one write at a time, a few a second, and nothing depends on it.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::core::unit::Uid;

/// Between two writes: five a second, whatever the cluster's size.
const PACE: Duration = Duration::from_millis(200);

/// Pods whose annotation may have to change, in the order in which that was found.
pub(super) struct Annotator {
    queue: VecDeque<Uid>,
    queued: HashSet<Uid>,
    next: Instant,
    writing: bool,
}

impl Annotator {
    pub(super) fn new(now: Instant) -> Annotator {
        Annotator { queue: VecDeque::new(), queued: HashSet::new(), next: now, writing: false }
    }

    /// A pod is to be looked at.
    pub(super) fn add(&mut self, pod: Uid) {
        if self.queued.insert(pod.clone()) {
            self.queue.push_back(pod);
        }
    }

    /// When the next may be written.
    pub(super) fn next(&self) -> Option<Instant> {
        (!self.writing && !self.queue.is_empty()).then_some(self.next)
    }

    /// The next pod to look at, if one may be written now.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Uid> {
        self.next().filter(|next| *next <= now)?;
        let pod = self.queue.pop_front()?;
        self.queued.remove(&pod);
        Some(pod)
    }

    /// A write begins.
    pub(super) fn begins(&mut self, now: Instant) {
        self.writing = true;
        self.next = now + PACE;
    }

    /// It has ended; one that came to nothing is tried again, after all others.
    pub(super) fn ended(&mut self) {
        self.writing = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_fails_again_and_again_holds_up_no_other() {
        let now = Instant::now();
        let mut annotator = Annotator::new(now);
        ["a", "b", "c", "a"].into_iter().for_each(|pod| annotator.add(pod.into()));
        let mut order = Vec::new();
        for turn in 1..6 {
            let Some(pod) = annotator.pop(now + PACE * turn) else { break };
            annotator.begins(now + PACE * turn);
            assert_eq!(annotator.pop(now + PACE * (turn + 1)), None, "one at a time");
            annotator.ended();
            if &*pod == "a" {
                annotator.add(pod.clone());
            }
            order.push(pod);
        }
        assert_eq!(order.iter().map(|pod| &**pod).collect::<Vec<_>>(), ["a", "b", "c", "a", "a"]);
    }
}

//! Which starts wait, for what, and for how long. Pure: it knows no descriptor, no clock and no log.
//!
//! An event (somebody executes the runtime) waits for containers that are ready to begin, each until it is *open*: every
//! guard of its pod is in force there, or it is gone. A container is waited for no longer than the limit, counted from the
//! first event that asked about it, whoever asks after that; once given up it is waited for no more, so that whatever the
//! runtime does about it next (kill, delete) goes at once.
//!
//! Guarantees: an event is answered once; at once if it has nothing to wait for; never later than the limit after it was
//! asked; never because of a container that it does not wait for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::policy::{FailurePolicy, Response};

/// Containers that were given up and are remembered as such. They end soon, or begin.
const MOST_GIVEN_UP: usize = 4096;

/// How it is with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Whatever guards it is in force there, or it is gone.
    Open,
    /// Some guard is not. The answer if it stays so: deny, if one of these guards says so.
    Waiting(FailurePolicy),
}

/// How an event was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict<K> {
    /// All that it waited for came about.
    Opened {
        /// After so long.
        waited: Duration,
    },
    /// These containers were given up while it waited.
    Late {
        /// What their guards say.
        response: Response,
        /// Which.
        containers: Vec<K>,
        /// After so long.
        waited: Duration,
    },
}

#[derive(Debug)]
struct Held<K, E> {
    event: E,
    since: Duration,
    waits: BTreeSet<K>,
    late: Vec<K>,
    response: Response,
}

/// The starts that wait.
#[derive(Debug)]
pub(super) struct Holds<K, E> {
    limit: Duration,
    held: Vec<Held<K, E>>,
    /// Since when each container is waited for.
    asked: BTreeMap<K, Duration>,
    given_up: VecDeque<K>,
}

impl<K: Ord + Clone, E> Holds<K, E> {
    /// None yet; none will wait for longer than this.
    pub(super) fn new(limit: Duration) -> Holds<K, E> {
        Holds { limit, held: Vec::new(), asked: BTreeMap::new(), given_up: VecDeque::new() }
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether a container was given up.
    #[cfg(test)]
    fn has_given_up(&self, container: &K) -> bool {
        self.given_up.contains(container)
    }

    /// The containers that are waited for.
    pub(super) fn waited_for(&self) -> BTreeSet<K> {
        self.held.iter().flat_map(|held| held.waits.iter().cloned()).collect()
    }

    /// An event at `now`, which has to wait for these. Given back if it has not.
    ///
    /// # Errors
    /// The event: it is to be answered at once.
    pub(super) fn ask(&mut self, event: E, containers: impl IntoIterator<Item = K>, now: Duration) -> Result<(), E> {
        let waits: BTreeSet<K> = containers.into_iter().filter(|it| !self.given_up.contains(it)).collect();
        if waits.is_empty() {
            return Err(event);
        }
        for container in &waits {
            self.asked.entry(container.clone()).or_insert(now);
        }
        self.held.push(Held { event, since: now, waits, late: Vec::new(), response: Response::Allow });
        Ok(())
    }

    /// Looks how it is with each container at `now`, and gives the events that are to be answered.
    pub(super) fn review(&mut self, now: Duration, mut standing: impl FnMut(&K) -> Standing) -> Vec<(E, Verdict<K>)> {
        let mut open = BTreeSet::new();
        let mut late = BTreeMap::new();
        for container in self.waited_for() {
            let asked = self.asked.get(&container).copied().unwrap_or(now);
            match standing(&container) {
                Standing::Open => drop(open.insert(container)),
                Standing::Waiting(policy) if now.saturating_sub(asked) >= self.limit => {
                    late.insert(container, policy);
                }
                Standing::Waiting(_) => {}
            }
        }
        for container in late.keys() {
            self.give_up(container.clone());
        }
        for held in &mut self.held {
            held.waits.retain(|container| !open.contains(container));
            for (container, policy) in &late {
                if held.waits.remove(container) {
                    held.late.push(container.clone());
                    if *policy == FailurePolicy::Deny {
                        held.response = Response::Deny;
                    }
                }
            }
        }
        let answered: Vec<Held<K, E>> = self.held.extract_if(.., |held| held.waits.is_empty()).collect();
        let waited_for = self.waited_for();
        self.asked.retain(|container, _| waited_for.contains(container));
        let verdict = |held: Held<K, E>| {
            let waited = now.saturating_sub(held.since);
            let verdict = if held.late.is_empty() {
                Verdict::Opened { waited }
            } else {
                Verdict::Late { response: held.response, containers: held.late, waited }
            };
            (held.event, verdict)
        };
        answered.into_iter().map(verdict).collect()
    }

    fn give_up(&mut self, container: K) {
        if self.given_up.len() >= MOST_GIVEN_UP {
            self.given_up.pop_front();
        }
        self.given_up.push_back(container);
    }

    /// When a container is given up next, if any is waited for.
    pub(super) fn due(&self) -> Option<Duration> {
        self.asked.values().min().map(|asked| *asked + self.limit)
    }

    /// Takes all events that wait.
    pub(super) fn take_all(&mut self) -> Vec<E> {
        self.asked.clear();
        std::mem::take(&mut self.held).into_iter().map(|held| held.event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn what_waits_for_nothing_is_given_back() {
        let mut holds: Holds<u8, &str> = Holds::new(LIMIT);
        assert_eq!(holds.ask("kill", [], at(0)), Err("kill"));
        assert!(holds.is_empty() && holds.due().is_none());
    }

    #[test]
    fn one_start_is_not_held_because_of_another() {
        let mut holds = Holds::new(LIMIT);
        holds.ask("one", [1u8], at(0)).unwrap();
        holds.ask("other", [2], at(10)).unwrap();
        let of_other = |it: &u8| if *it == 2 { Standing::Open } else { Standing::Waiting(FailurePolicy::Allow) };
        assert_eq!(holds.review(at(20), of_other), [("other", Verdict::Opened { waited: at(10) })]);
        assert_eq!(holds.due(), Some(LIMIT));
        assert_eq!(holds.review(at(50), |_| Standing::Open), [("one", Verdict::Opened { waited: at(50) })]);
    }

    #[test]
    fn a_container_that_was_given_up_is_waited_for_no_more() {
        let mut holds = Holds::new(LIMIT);
        holds.ask("start", [1u8], at(0)).unwrap();
        holds.ask("state", [1], at(90)).unwrap();
        assert_eq!(holds.review(at(99), |_| Standing::Waiting(FailurePolicy::Deny)), []);
        let answered = holds.review(at(100), |_| Standing::Waiting(FailurePolicy::Deny));
        let late = |waited| Verdict::Late { response: Response::Deny, containers: vec![1], waited };
        assert_eq!(answered, [("start", late(at(100))), ("state", late(at(10)))]);
        assert_eq!(holds.ask("delete", [1], at(101)), Err("delete"));
        assert!(holds.has_given_up(&1) && !holds.has_given_up(&2));
    }

    #[test]
    fn one_guard_of_several_denies() {
        let mut holds = Holds::new(LIMIT);
        holds.ask("exec", [1u8, 2], at(0)).unwrap();
        let policy = |it: &u8| if *it == 1 { FailurePolicy::Allow } else { FailurePolicy::Deny };
        let answered = holds.review(at(100), |it| Standing::Waiting(policy(it)));
        let late = Verdict::Late { response: Response::Deny, containers: vec![1, 2], waited: at(100) };
        assert_eq!(answered, [("exec", late)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask(BTreeSet<u8>),
        Open(u8),
        Review,
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let step = prop_oneof![
            prop::collection::btree_set(0u8..6, 0..4).prop_map(Step::Ask),
            (0u8..6).prop_map(Step::Open),
            Just(Step::Review),
        ];
        prop::collection::vec((0u64..40, step), 0..80)
    }

    proptest! {
        /// However events, containers and time go: each event is answered once, within the limit, allowed as long as none
        /// was given up, and none with a container that it did not wait for.
        #[test]
        fn every_event_is_answered_once_and_in_time(steps in steps()) {
            let mut holds = Holds::new(LIMIT);
            let mut open = BTreeSet::new();
            let mut asked: Vec<(BTreeSet<u8>, u64)> = Vec::new();
            let mut answers = BTreeMap::new();
            let mut now = 0;
            // The shell is woken no later than when something is due.
            let mut moments = Vec::new();
            for (pause, step) in steps {
                now += pause;
                moments.push((now, step));
            }
            moments.push((now + 1000, Step::Review));
            let mut now = 0;
            for (then, step) in moments {
                while let Some(due) = holds.due().filter(|due| *due <= at(then)) {
                    now = now.max(u64::try_from(due.as_millis()).unwrap());
                    for (event, verdict) in holds.review(at(now), |it| standing(&open, it)) {
                        prop_assert!(answers.insert(event, (now, verdict)).is_none());
                    }
                }
                now = then;
                match step {
                    Step::Ask(waits) => {
                        let event = asked.len();
                        asked.push((waits.clone(), now));
                        let wanted: Vec<u8> = waits.iter().copied().filter(|it| !open.contains(it)).collect();
                        let nothing = wanted.iter().all(|it| holds.has_given_up(it));
                        match holds.ask(event, wanted, at(now)) {
                            Ok(()) => prop_assert!(!nothing),
                            Err(event) => {
                                prop_assert!(nothing);
                                answers.insert(event, (now, Verdict::Opened { waited: Duration::ZERO }));
                            }
                        }
                    }
                    Step::Open(container) => drop(open.insert(container)),
                    Step::Review => {
                        for (event, verdict) in holds.review(at(now), |it| standing(&open, it)) {
                            prop_assert!(answers.insert(event, (now, verdict)).is_none());
                        }
                    }
                }
            }
            prop_assert!(holds.is_empty() && answers.len() == asked.len());
            for (event, (waits, since)) in asked.iter().enumerate() {
                let (answered, verdict) = &answers[&event];
                prop_assert!(*answered - since <= u64::try_from(LIMIT.as_millis()).unwrap());
                if let Verdict::Late { containers, response, .. } = verdict {
                    prop_assert!(!containers.is_empty() && containers.iter().all(|it| waits.contains(it)));
                    prop_assert_eq!(*response == Response::Deny, containers.iter().any(|it| it % 2 == 1));
                }
            }
        }
    }

    fn standing(open: &BTreeSet<u8>, container: &u8) -> Standing {
        let policy = if container % 2 == 1 { FailurePolicy::Deny } else { FailurePolicy::Allow };
        if open.contains(container) { Standing::Open } else { Standing::Waiting(policy) }
    }
}

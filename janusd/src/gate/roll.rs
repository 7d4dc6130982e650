//! The guards of this node's pods, as the gate knows them: whom a container has to wait for.
//!
//! Written by whoever runs guards, read by the gate's thread. Nothing here waits for a guard: a report that its keeper is at
//! counts as one that says nothing yet.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::held::Standing;
use crate::container::PodUid;
use crate::doorbell::{self, Mailbox, Speaker};
use crate::guard::{Door, LateStart, Report};
use crate::policy::{FailurePolicy, GuardName};

/// A guard that another process is to take is waited for here for as long. That takes some 45 ms, but all guards are frozen
/// before the first one is shared, and one whose thread is stuck holds up the others: as long as that may take.
const CHANGING_HANDS: Duration = Duration::from_secs(2);

/// What the gate's thread is told.
#[derive(Debug)]
pub(super) enum Message {
    /// A guard has come or gone.
    Enrolled,
    /// A guard has seen to what its pod has.
    Told(PodUid),
    /// End.
    End,
}

/// One guard in one pod. Not to be cloned: each door that is dropped wakes a keeper.
#[derive(Debug)]
struct Entry {
    pod: PodUid,
    guard: GuardName,
    policy: FailurePolicy,
    report: Arc<Mutex<Report>>,
    door: Door,
}

/// The guards that a start may have to wait for.
#[derive(Debug, Clone)]
pub struct Roll {
    entries: Arc<Mutex<Entries>>,
    door: Speaker<Message>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    of: BTreeMap<u64, Entry>,
}

/// A guard is on the roll for as long as this is kept, or until it is withdrawn.
#[derive(Debug)]
pub struct Enrolment {
    number: u64,
    roll: Roll,
}

impl Roll {
    /// An empty one, and where the gate hears of it.
    ///
    /// # Errors
    /// The kernel's: EMFILE.
    pub(super) fn new() -> std::io::Result<(Roll, Mailbox<Message>)> {
        let (door, mailbox) = doorbell::channel()?;
        Ok((Roll { entries: Arc::default(), door }, mailbox))
    }

    /// Puts a guard on it. `report` is where the guard says what it has seen to.
    pub fn enrol(
        &self,
        pod: PodUid,
        guard: GuardName,
        policy: FailurePolicy,
        report: Arc<Mutex<Report>>,
        door: Door,
    ) -> Enrolment {
        let mut entries = self.entries.lock();
        let number = entries.next;
        entries.next += 1;
        entries.of.insert(number, Entry { pod, guard, policy, report, door });
        drop(entries);
        self.send(Message::Enrolled);
        Enrolment { number, roll: self.clone() }
    }

    pub(super) fn send(&self, message: Message) {
        // Gone: nothing is held any more.
        let _gone = self.door.send(message);
    }

    /// The pods that have a guard.
    pub(super) fn pods(&self) -> HashSet<PodUid> {
        self.entries.lock().of.values().map(|entry| entry.pod.clone()).collect()
    }

    /// How it is with a container of a pod.
    pub(super) fn standing(&self, pod: &PodUid, container: &str) -> Standing {
        let entries = self.entries.lock();
        let policies: Vec<FailurePolicy> = entries.waited_for(pod, container).map(|entry| entry.policy).collect();
        match policies.as_slice() {
            [] => Standing::Open,
            some if some.contains(&FailurePolicy::Deny) => Standing::Waiting(FailurePolicy::Deny),
            _ => Standing::Waiting(FailurePolicy::Allow),
        }
    }

    /// Tells every guard that has not seen to a container that its start was let go. Gives their names.
    pub(super) fn tell_late(&self, pod: &PodUid, container: &Arc<str>, detail: &str) -> Vec<GuardName> {
        let entries = self.entries.lock();
        let tell = |entry: &Entry| {
            entry.door.late(LateStart { container: container.clone(), detail: detail.to_owned() });
            entry.guard.clone()
        };
        entries.waited_for(pod, container).map(tell).collect()
    }
}

impl Entries {
    fn waited_for(&self, pod: &PodUid, container: &str) -> impl Iterator<Item = &Entry> {
        self.of.values().filter(move |entry| entry.pod == *pod && !entry.has_seen_to(container))
    }
}

impl Entry {
    /// Whether the guard is in force in a container, or has nothing to do there.
    fn has_seen_to(&self, container: &str) -> bool {
        // Whoever holds it is about to say something new.
        let Some(report) = self.report.try_lock() else { return false };
        // By then the guard is on that one's roll, whose gate is asked as well.
        if report.frozen.is_some_and(|since| since.elapsed() >= CHANGING_HANDS) {
            return true;
        }
        let in_force = report.sites.iter().all(|site| *site.id != *container || site.in_force);
        report.seen_to.contains(container) && in_force
    }
}

impl Enrolment {
    /// The guard has other rules.
    pub fn change(&self, policy: FailurePolicy) {
        self.amend(|entry| entry.policy = policy);
    }

    /// The pod's cgroups go by another name than was thought.
    pub fn rename(&self, pod: &PodUid) {
        self.amend(|entry| entry.pod = pod.clone());
    }

    fn amend(&self, change: impl FnOnce(&mut Entry)) {
        self.roll.entries.lock().of.get_mut(&self.number).map(change);
        self.roll.send(Message::Enrolled);
    }

    /// Nothing waits for this guard any more.
    pub fn withdraw(&self) {
        self.roll.entries.lock().of.remove(&self.number);
        self.roll.send(Message::Enrolled);
    }

    /// What to call once the guard has seen to what this pod has.
    pub fn teller(&self, pod: PodUid) -> impl Fn() + Send + Sync + 'static {
        let roll = self.roll.clone();
        move || roll.send(Message::Told(pod.clone()))
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        self.withdraw();
    }
}

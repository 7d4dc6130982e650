//! When a guard is written about: at most one status a second, events gathered before they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use janus_crd::JanusGuardStatus;
use tokio::time::Instant;

use super::cluster::Happening;
use crate::index::guard::Guard;

/// Between two writes of one guard's status.
const STATUS: Duration = Duration::from_secs(1);
/// Between two looks at a guard that found nothing to write: one that selects a hundred thousand pods takes milliseconds.
const LOOK: Duration = Duration::from_millis(200);
/// The longest wait before a write that failed is tried again.
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Between two events of one guard about pods.
const EVENTS: Duration = Duration::from_secs(5);
/// Nodes that an event names.
const NAMED: usize = 3;

/// What is to be written about one guard.
pub(super) struct Pen {
    /// A write is under way.
    pub(super) writing: bool,
    /// The status that was written last, and the object's version then. It stands in for what the watch has not brought
    /// yet, and for what cannot be read back.
    written: Option<(Box<str>, JanusGuardStatus)>,
    finalizing: Option<Box<str>>,
    /// The version over which finalizers were written well: the watch brings another one.
    pub(super) finalized: Option<Box<str>>,
    /// Pods that can be guarded and those that are, as they were counted.
    pub(super) counted: (i32, i32),
    /// When it was seen to be deleted.
    pub(super) deleted: Option<Instant>,
    next: Instant,
    failures: Option<ExponentialBackoff>,
    added: BTreeMap<Arc<str>, u32>,
    removed: BTreeMap<Arc<str>, u32>,
    tell: Instant,
}

impl Pen {
    pub(super) fn new(now: Instant) -> Pen {
        Pen {
            writing: false,
            written: None,
            finalizing: None,
            finalized: None,
            counted: (0, 0),
            deleted: None,
            next: now,
            failures: None,
            added: BTreeMap::new(),
            removed: BTreeMap::new(),
            tell: now,
        }
    }

    /// The earliest time of the next write.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// The status that the API server has, as far as we know.
    pub(super) fn before<'a>(&'a self, guard: &'a Guard) -> Option<&'a JanusGuardStatus> {
        let unreadable = guard.invalid.is_some() && guard.status.is_none();
        match &self.written {
            Some((version, status)) if unreadable || *version == guard.resource_version => Some(status),
            _ => guard.status.as_ref(),
        }
    }

    /// A look found nothing to write.
    pub(super) fn looked(&mut self, now: Instant) {
        self.next = self.next.max(now + LOOK);
    }

    /// A write of a status begins, over this version of the object.
    pub(super) fn begins(&mut self, now: Instant, version: Box<str>, status: JanusGuardStatus) {
        self.writing = true;
        self.next = now + STATUS;
        self.written = Some((version, status));
    }

    /// A write of finalizers begins, over this version of the object.
    pub(super) fn begins_finalizers(&mut self, version: Box<str>) {
        self.writing = true;
        self.finalizing = Some(version);
    }

    /// It has ended.
    pub(super) fn ended(&mut self, well: bool, now: Instant) {
        self.writing = false;
        let finalizing = self.finalizing.take();
        if well {
            self.finalized = finalizing.or(self.finalized.take());
            self.failures = None;
            return;
        }
        if finalizing.is_none() {
            self.written = None;
        }
        let failures = self.failures.get_or_insert_with(|| {
            let delays = ExponentialBuilder::new().with_min_delay(STATUS).with_max_delay(LONGEST_DELAY);
            delays.without_max_times().with_jitter().build()
        });
        self.next = now + failures.next().unwrap_or(LONGEST_DELAY);
    }

    pub(super) fn added(&mut self, node: Arc<str>) {
        *self.added.entry(node).or_default() += 1;
    }

    pub(super) fn removed(&mut self, node: Arc<str>) {
        *self.removed.entry(node).or_default() += 1;
    }

    /// When what was gathered may be told; `None` if there is nothing.
    pub(super) fn tells(&self) -> Option<Instant> {
        (!self.added.is_empty() || !self.removed.is_empty()).then_some(self.tell)
    }

    /// What was gathered.
    pub(super) fn happenings(&mut self, now: Instant) -> Vec<Happening> {
        self.tell = now + EVENTS;
        let (added, removed) = (std::mem::take(&mut self.added), std::mem::take(&mut self.removed));
        let happening = |reason, what: &str, nodes: BTreeMap<Arc<str>, u32>| {
            let pods: u32 = nodes.values().sum();
            let note = format!("{what} {pods} pod{} on {}", if pods == 1 { "" } else { "s" }, names(nodes.keys()));
            (pods > 0).then_some(Happening { reason, warning: false, note })
        };
        let added = happening("Added", "in force in", added);
        added.into_iter().chain(happening("Removed", "lifted from", removed)).collect()
    }
}

/// Some nodes by name, and how many others.
pub(super) fn names<'a>(nodes: impl ExactSizeIterator<Item = &'a Arc<str>>) -> String {
    let others = nodes.len().saturating_sub(NAMED);
    let mut text = nodes.take(NAMED).map(|node| &**node).collect::<Vec<_>>().join(", ");
    if others > 0 {
        text.push_str(&format!(" and {others} more"));
    }
    text
}

/// The guards that are due, soonest first.
#[derive(Default)]
pub(super) struct Due(BTreeSet<(Instant, Arc<str>)>, BTreeMap<Arc<str>, Instant>);

impl Due {
    /// A guard is due at `at`, or earlier if it was already.
    pub(super) fn add(&mut self, guard: &Arc<str>, at: Instant) {
        match self.1.get(guard) {
            Some(already) if *already <= at => return,
            Some(already) => {
                self.0.remove(&(*already, guard.clone()));
            }
            None => {}
        }
        self.0.insert((at, guard.clone()));
        self.1.insert(guard.clone(), at);
    }

    /// The next one that is due by now.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Arc<str>> {
        let (at, _) = self.0.first()?;
        if *at > now {
            return None;
        }
        let (_, guard) = self.0.pop_first()?;
        self.1.remove(&guard);
        Some(guard)
    }

    /// When the next one is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }
}

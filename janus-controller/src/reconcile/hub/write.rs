//! What the hub writes to the API server about guards, and when: statuses, finalizers, events, annotations.
//!
//! A guard has at most one write of its status or finalizers under way; its end marks the guard again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use janus_crd::JanusGuardStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{Hub, in_force};
use crate::core::release::{Holder, Release, release};
use crate::core::status::{Placed, Reach, Subject, status};
use crate::core::unit::{Order, Uid};
use crate::index::guard::{FINALIZER, Guard};
use crate::metrics::{PodState, Written};
use crate::reconcile::cluster::{Annotation, Cluster, GuardName, Happening, WriteError};
use crate::reconcile::nodes::Standing;
use crate::reconcile::pen::{Pen, names};
use crate::reconcile::port::{Daemons, Lead};

/// How soon a guard that is not in force everywhere is looked at again though nothing was heard.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long after the listing a status stands that daemons have not spoken of yet. They all speak within seconds.
const HEARING: Duration = Duration::from_secs(15);
/// Writes to the API server at once.
pub(super) const WRITES: usize = 32;

/// Writes under way.
pub(super) type Writes = FuturesUnordered<BoxFuture<'static, Done>>;

/// A write that has ended.
pub(super) struct Done {
    /// The guard's UID, or the pod's.
    uid: Uid,
    wrote: Wrote,
    result: Result<(), WriteError>,
    /// What is told if it went well.
    then: Option<(GuardName, Happening)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrote {
    Status,
    Finalizers,
    Event,
    /// Of a pod: the UID beside it is the pod's.
    Annotation,
}

impl<D: Daemons, L: Lead, C: Cluster> Hub<D, L, C> {
    /// Something about a guard may have to be written.
    pub(super) fn mark(&mut self, guard: &Uid) {
        let now = Instant::now();
        let pen = self.pens.entry(guard.clone()).or_insert_with(|| Pen::new(now));
        self.due.add(guard, pen.next().max(now));
    }

    pub(super) fn write(&mut self) {
        let now = Instant::now();
        while self.writes.len() < WRITES
            && let Some(guard) = self.due.pop(now)
        {
            self.write_about(&guard, now);
        }
        self.annotate(now);
        self.count();
    }

    fn annotate(&mut self, now: Instant) {
        let Some(annotator) = &mut self.annotator else { return };
        while let Some(uid) = annotator.pop(now) {
            let Some(pod) = self.index.pod(&uid) else { continue };
            let holds = |guard: &Guard| {
                let held = self.held.get(&guard.uid).and_then(|holdings| holdings.get(&uid));
                held.is_some_and(|(_, held)| in_force(held))
            };
            let names: BTreeSet<&str> =
                self.index.guards_of(&uid).filter(|guard| holds(guard)).map(|guard| &*guard.name).collect();
            let guards = (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(","));
            if guards.as_deref() == pod.annotated.as_deref() {
                continue;
            }
            annotator.begins(now);
            let annotation =
                Annotation { namespace: pod.namespace.clone(), pod: pod.name.clone(), uid: uid.clone(), guards };
            let cluster = self.cluster.clone();
            self.writes.push(Box::pin(async move {
                Done { uid, wrote: Wrote::Annotation, result: cluster.annotate(annotation).await, then: None }
            }));
        }
    }

    fn write_about(&mut self, uid: &Uid, now: Instant) {
        let Some(guard) = self.index.guard(uid) else {
            self.count_pods(uid, (0, 0));
            self.pens.remove(uid);
            self.held.remove(uid);
            return;
        };
        let (deleted, held) = (guard.deleted, guard.is_held());
        let Some(pen) = self.pens.get_mut(uid) else { return };
        if pen.writing || pen.finalized.as_deref() == Some(&*guard.resource_version) {
            // The end of the write marks the guard again, and so does what the watch brings of it.
            return;
        }
        let name = GuardName { uid: uid.clone(), namespace: guard.namespace.clone(), name: guard.name.clone() };
        if let Some(at) = pen.tells() {
            if at <= now {
                for happening in pen.happenings(now) {
                    self.publish(uid, name.clone(), happening);
                }
            } else {
                self.due.add(uid, at);
            }
        }
        // Events may be due earlier than the rest.
        if let Some(next) = self.pens.get(uid).map(Pen::next).filter(|next| *next > now) {
            self.due.add(uid, next);
            return;
        }
        if deleted {
            self.count_pods(uid, (0, 0));
            self.release(uid, name, now);
        } else if held {
            self.write_status(uid, name, now);
        } else {
            self.write_finalizers(uid, name, true, None);
        }
    }

    /// Adds our finalizer, or takes it away; `then` is told once that is done.
    fn write_finalizers(&mut self, uid: &Uid, name: GuardName, ours: bool, then: Option<Happening>) {
        let (Some(guard), Some(pen)) = (self.index.guard(uid), self.pens.get_mut(uid)) else { return };
        let others = guard.finalizers.iter().filter(|it| *it != FINALIZER).cloned();
        let finalizers = others.chain(ours.then(|| FINALIZER.to_owned())).collect();
        let (cluster, version, uid) = (self.cluster.clone(), guard.resource_version.clone(), uid.clone());
        pen.begins_finalizers(version.clone());
        self.writes.push(Box::pin(async move {
            let result = cluster.finalizers(name.clone(), version, finalizers).await;
            Done { uid, wrote: Wrote::Finalizers, result, then: then.map(|happening| (name, happening)) }
        }));
    }

    fn publish(&mut self, uid: &Uid, name: GuardName, happening: Happening) {
        let (cluster, uid) = (self.cluster.clone(), uid.clone());
        self.writes.push(Box::pin(async move {
            Done { uid, wrote: Wrote::Event, result: cluster.publish(name, happening).await, then: None }
        }));
    }

    fn write_status(&mut self, uid: &Uid, name: GuardName, now: Instant) {
        let Some(guard) = self.index.guard(uid) else { return };
        let order = guard.order().map(Arc::as_ref);
        let subject = Subject { generation: guard.generation, order, invalid: guard.invalid.as_deref() };
        let holdings = self.held.get(uid);
        let placed = self.index.selected(uid).map(|(pod, protected)| Placed {
            pod,
            protected,
            reach: self.reach(&pod.node, order),
            held: holdings.and_then(|it| it.get(&pod.uid)).filter(|(node, _)| *node == pod.node).map(|(_, held)| held),
        });
        let Some(pen) = self.pens.get(uid) else { return };
        let before = pen.before(guard);
        // What we have not heard is no change: a leader before us has, and its word stands until then.
        if before.is_some_and(|before| before.observed_generation == Some(guard.generation))
            && let Some(until) = self.listed_at.map(|at| at + HEARING).filter(|until| *until > now)
            && self.is_unheard(uid)
        {
            self.due.add(uid, until);
            return;
        }
        // Whole seconds: what is read back must be what was written.
        let wall = Timestamp::now();
        let wall = Time(Timestamp::from_second(wall.as_second()).unwrap_or(wall));
        let next = status(subject, placed, before, &wall);
        let (same, happening) = (before == Some(&next), turned(before, &next));
        let version = guard.resource_version.clone();
        self.count_pods(uid, (next.observable_pods.unwrap_or(0), next.guarded_pods.unwrap_or(0)));
        if next.observable_pods != next.guarded_pods {
            // What is merely on its way is, after a while, amiss.
            self.due.add(uid, now + LOOK_AGAIN);
        }
        let Some(pen) = self.pens.get_mut(uid) else { return };
        if same {
            pen.looked(now);
            return;
        }
        pen.begins(now, version, next.clone());
        let (cluster, uid) = (self.cluster.clone(), uid.clone());
        self.writes.push(Box::pin(async move {
            let result = cluster.status(name.clone(), next).await;
            Done { uid, wrote: Wrote::Status, result, then: happening.map(|happening| (name, happening)) }
        }));
    }

    /// Whether a daemon that may be reached has yet to say what it has of a guard's pods.
    fn is_unheard(&self, guard: &Uid) -> bool {
        let counts = self.index.selected(guard).filter(|(pod, protected)| pod.started && !protected);
        counts.filter_map(|(pod, _)| self.nodes.standing(&pod.node)).any(|it| it.reached && it.features.is_none())
    }

    fn reach(&self, node: &str, order: Option<&Order>) -> Reach {
        match (self.nodes.standing(node), order) {
            (None, _) => Reach::Missing,
            (Some(Standing { reached: false, .. }), _) => Reach::Stale,
            (Some(Standing { features: Some(features), .. }), Some(order)) => {
                features.lack(order.needs).map_or(Reach::Answers, Reach::Lacks)
            }
            (Some(_), _) => Reach::Answers,
        }
    }

    /// Lets a deleted guard go, once daemons have lifted it.
    fn release(&mut self, uid: &Uid, name: GuardName, now: Instant) {
        let (Some(guard), Some(pen)) = (self.index.guard(uid), self.pens.get_mut(uid)) else { return };
        if !guard.is_held() {
            return;
        }
        let since = *pen.deleted.get_or_insert(now);
        let mut holders: BTreeSet<Holder> = BTreeSet::new();
        for (node, held) in self.held.get(uid).into_iter().flat_map(HashMap::values) {
            if let (Some(_), Some(Standing { reached, .. })) = (&held.observation, self.nodes.standing(node)) {
                holders.insert(Holder { node: node.clone(), reached });
            }
        }
        holders.extend(self.nodes.may_hold(uid).map(|(node, reached)| Holder { node: node.clone(), reached }));
        let unconfirmed = match release(&holders, now.saturating_duration_since(since)) {
            Release::Wait => {
                // Thousands of daemons may confirm one by one.
                pen.looked(now);
                self.due.add(uid, now + Duration::from_secs(1));
                return;
            }
            Release::Confirmed => None,
            Release::Unconfirmed(nodes) => Some(Happening {
                reason: "ReleasedUnconfirmed",
                warning: true,
                note: format!("deleted without a word from {}: lifted there once it is back", names(nodes.iter())),
            }),
        };
        self.write_finalizers(uid, name, false, unconfirmed);
    }

    pub(super) fn written(&mut self, done: Done) {
        let Done { uid, wrote, result, then } = done;
        let kind = match wrote {
            Wrote::Status => Written::Status,
            Wrote::Finalizers => Written::Finalizers,
            Wrote::Event => Written::Event,
            Wrote::Annotation => Written::Annotation,
        };
        let well = result.is_ok();
        self.metrics.written(kind, well);
        match &result {
            // A conflict's other side is on its way through the watch.
            Ok(()) | Err(WriteError::Gone | WriteError::Conflict) => {}
            Err(error) => tracing::warn!(%uid, ?wrote, %error, "a write to the API server failed"),
        }
        match wrote {
            Wrote::Event => return,
            Wrote::Annotation => {
                if let Some(annotator) = &mut self.annotator {
                    annotator.ended();
                    if matches!(result, Err(WriteError::Failed(_))) {
                        annotator.add(uid);
                    }
                }
                return;
            }
            Wrote::Status | Wrote::Finalizers => {}
        }
        if let Some((name, happening)) = then.filter(|_| well) {
            self.publish(&uid, name, happening);
        }
        let Some(pen) = self.pens.get_mut(&uid) else { return };
        pen.ended(well, Instant::now());
        self.mark(&uid);
    }

    fn count_pods(&mut self, uid: &Uid, (observable, guarded): (i32, i32)) {
        let Some(pen) = self.pens.get_mut(uid) else { return };
        let (was_observable, was_guarded) = std::mem::replace(&mut pen.counted, (observable, guarded));
        self.pods.0 += i64::from(observable) - i64::from(was_observable);
        self.pods.1 += i64::from(guarded) - i64::from(was_guarded);
    }

    fn count(&self) {
        self.metrics.pods(PodState::Observable, self.pods.0);
        self.metrics.pods(PodState::Guarded, self.pods.1);
        for (state, count) in self.nodes.states() {
            self.metrics.daemons(state, count);
        }
    }
}

/// What people should see of a change of status.
fn turned(before: Option<&JanusGuardStatus>, next: &JanusGuardStatus) -> Option<Happening> {
    let degraded = |status: &JanusGuardStatus| {
        let condition = status.conditions.iter().find(|it| it.type_ == "Degraded")?;
        Some((condition.status == "True", format!("{}: {}", condition.reason, condition.message)))
    };
    let was = before.and_then(degraded).is_some_and(|(degraded, _)| degraded);
    match degraded(next)? {
        (true, why) if !was => Some(Happening { reason: "Degraded", warning: true, note: why }),
        (false, _) if was => {
            let note = "nothing is unguarded any more".to_owned();
            Some(Happening { reason: "Recovered", warning: false, note })
        }
        _ => None,
    }
}

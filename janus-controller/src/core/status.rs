//! What the status of a guard says, from what daemons say and nothing else.
//!
//! `Ready` means what `kubectl wait` should wait for: every selected pod with a started container is guarded, in all of
//! its running selected containers, at this generation, by an answer that is not stale.

use std::collections::BTreeSet;
use std::sync::Arc;

use janus_crd::{JanusGuardStatus, Problem};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::observation::{Observation, Phase};
use super::reason::Reason;
use super::spec::Lack;
use super::unit::{Order, Pod};

/// Problems in a status.
const MOST_PROBLEMS: usize = 20;
/// Seconds within which janusd finds a container that has started, all clocks and watches included. It takes
/// milliseconds where the runtime is known.
const FOUND_WITHIN: i64 = 30;

/// The guard that the status is of.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// `metadata.generation`.
    pub generation: i64,
    /// What is sent to daemons: this generation, or the last good one where this one cannot be decoded.
    pub order: Option<&'a Order>,
    /// Why this generation cannot be used, if it cannot.
    pub invalid: Option<&'a str>,
}

/// How things stand between us and a node's daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// There is none.
    Missing,
    /// It has not answered for three resyncs.
    Stale,
    /// It answers.
    Answers,
    /// It answers, and lacks what the guard needs.
    Lacks(Lack),
}

/// A unit, as last heard of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// The daemon's last word; `None`: it has no such unit.
    pub observation: Option<Arc<Observation>>,
    /// Why it refused the last call, until one is answered.
    pub refusal: Option<Arc<Refusal>>,
}

/// A call that a daemon refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The generation that was refused.
    pub generation: i64,
    /// Why.
    pub reason: Reason,
    /// In the daemon's words, made plain.
    pub message: Box<str>,
}

/// A selected pod and its unit.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Whether it is one of Janus's own, which are never guarded.
    pub protected: bool,
    /// Its node's daemon.
    pub reach: Reach,
    /// What is known of the unit.
    pub held: Option<&'a Held>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Guarded,
    Unguarded,
    Unknown,
}

/// A problem, in the order in which problems are shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    /// Whether it does not keep the pod from counting as guarded: such come last.
    harmless: bool,
    reason: Reason,
    word: Box<str>,
    pod: Box<str>,
    node: Arc<str>,
    message: Box<str>,
}

impl Found {
    /// Whether it degrades the guard.
    fn is_amiss(&self) -> bool {
        match self.reason {
            // Not wrong, or not wrong yet.
            Reason::Arming | Reason::NotADirectory | Reason::NameUnknown | Reason::ProtectedPod => false,
            Reason::DaemonUnreachable => false,
            // Absent paths are told of, though Ready does not mind.
            Reason::PathAbsent => true,
            _ => !self.harmless,
        }
    }
}

/// The worst of many problems, without keeping them all.
#[derive(Default)]
struct Worst {
    shown: BTreeSet<Found>,
    /// The worst that is amiss, apart: many that merely are on their way would push out the only one that is.
    amiss: Option<Found>,
}

impl Worst {
    fn add(&mut self, found: Found) {
        if found.is_amiss() && self.amiss.as_ref().is_none_or(|amiss| found < *amiss) {
            self.amiss = Some(found.clone());
        }
        self.shown.insert(found);
        if self.shown.len() > MOST_PROBLEMS {
            self.shown.pop_last();
        }
    }
}

/// The status. `previous`: the one that the API server has, whose transition times stay where nothing has changed.
pub fn status<'a>(
    subject: Subject<'_>,
    pods: impl IntoIterator<Item = Placed<'a>>,
    previous: Option<&JanusGuardStatus>,
    now: &Time,
) -> JanusGuardStatus {
    let mut tally = Tally::default();
    for placed in pods {
        tally.count(subject, placed, now.0.as_second());
    }
    let stalled = subject.invalid.map(|why| (Reason::InvalidSpec, why.to_owned())).or_else(|| tally.refused.take());
    let conditions = Conditions { generation: subject.generation, previous, now };
    JanusGuardStatus {
        observed_generation: Some(subject.generation),
        observable_pods: Some(tally.observable),
        guarded_pods: Some(tally.guarded),
        conditions: vec![
            conditions.make("Ready", tally.ready(stalled.as_ref())),
            conditions.make("Degraded", tally.degraded(stalled.as_ref())),
            conditions.make(
                "Stalled",
                match stalled {
                    Some((reason, why)) => ("True", reason, why),
                    None => ("False", Reason::Accepted, String::new()),
                },
            ),
        ],
        problems: tally.worst.shown.into_iter().map(Problem::from).collect(),
    }
}

#[derive(Default)]
struct Tally {
    observable: i32,
    guarded: i32,
    /// Observable pods of which nothing recent is known.
    unknown: i32,
    worst: Worst,
    refused: Option<(Reason, String)>,
}

impl Tally {
    fn count(&mut self, subject: Subject<'_>, placed: Placed<'_>, now: i64) {
        let Placed { pod, protected, reach, held } = placed;
        let mut tell = |reason: Reason, word: &str, message: &str, harmless: bool| {
            self.worst.add(Found {
                harmless,
                reason,
                word: word.into(),
                pod: pod.name.clone(),
                node: pod.node.clone(),
                message: message.into(),
            });
        };
        if protected {
            tell(Reason::ProtectedPod, Reason::ProtectedPod.word(), "a pod of Janus itself is never guarded", true);
            return;
        }
        if let Some(refusal) = held.and_then(|held| held.refusal.as_deref())
            && refusal.reason == Reason::RefusedByDaemon
            && refusal.generation == subject.generation
        {
            self.refused.get_or_insert_with(|| (refusal.reason, format!("{}: {}", pod.node, refusal.message)));
        }
        // Nothing is unguarded in a pod where nothing has started, whatever its node lacks so far.
        if !pod.started {
            return;
        }
        let verdict = judge(subject, pod, reach, held, now, &mut tell);
        self.observable += 1;
        match verdict {
            Verdict::Guarded => self.guarded += 1,
            Verdict::Unknown => self.unknown += 1,
            Verdict::Unguarded => {}
        }
    }

    fn ready(&self, stalled: Option<&(Reason, String)>) -> (&'static str, Reason, String) {
        let count = format!("{} of {} pods guarded", self.guarded, self.observable);
        if let Some((reason, _)) = stalled {
            return ("False", *reason, count);
        }
        match (self.observable, self.guarded) {
            (0, _) => ("True", Reason::NoPods, "no selected pod has a started container".to_owned()),
            (all, guarded) if all == guarded => ("True", Reason::Guarded, count),
            // What is wrong somewhere is certain, whatever is not heard of elsewhere: then Degraded is True.
            _ if let Some(amiss) = self.worst.amiss.as_ref().filter(|amiss| !amiss.harmless) => {
                ("False", amiss.reason, count)
            }
            _ if self.unknown > 0 => {
                ("Unknown", Reason::DaemonUnreachable, format!("{count}, {} not heard of", self.unknown))
            }
            _ => {
                let worst = self.worst.shown.iter().find(|found| !found.harmless);
                ("False", worst.map_or(Reason::Arming, |found| found.reason), count)
            }
        }
    }

    fn degraded(&self, stalled: Option<&(Reason, String)>) -> (&'static str, Reason, String) {
        match &self.worst.amiss {
            _ if stalled.is_some_and(|(reason, _)| *reason == Reason::InvalidSpec) => {
                ("True", Reason::InvalidSpec, "this generation is in force nowhere".to_owned())
            }
            // What is wrong somewhere is certain, unless all of it is a path that does not exist.
            Some(found) if !found.harmless || self.unknown == 0 => {
                let place = match (&*found.pod, &*found.node) {
                    ("", node) => node.to_owned(),
                    (pod, node) => format!("{pod} on {node}"),
                };
                ("True", found.reason, format!("{place}: {}", found.message))
            }
            _ if self.unknown > 0 => {
                ("Unknown", Reason::DaemonUnreachable, format!("{} pods not heard of", self.unknown))
            }
            _ => ("False", Reason::AsSpecified, String::new()),
        }
    }
}

fn judge(
    subject: Subject<'_>,
    pod: &Pod,
    reach: Reach,
    held: Option<&Held>,
    now: i64,
    tell: &mut impl FnMut(Reason, &str, &str, bool),
) -> Verdict {
    let mut blocked = |reason: Reason, message: &str| tell(reason, reason.word(), message, false);
    match reach {
        Reach::Missing => {
            blocked(Reason::DaemonMissing, "there is no janusd on the node");
            return Verdict::Unguarded;
        }
        Reach::Stale => {
            blocked(Reason::DaemonUnreachable, "janusd has not answered for three resyncs");
            return Verdict::Unknown;
        }
        Reach::Lacks(Lack::Daemon(feature)) => {
            blocked(Reason::DaemonTooOld, &format!("janusd does not know {feature}"));
            return Verdict::Unguarded;
        }
        Reach::Lacks(Lack::Kernel(feature)) => {
            blocked(Reason::KernelLacksFeature, &format!("the node does not have {feature}"));
            return Verdict::Unguarded;
        }
        Reach::Answers => {}
    }
    let observation = held.and_then(|held| held.observation.as_deref());
    let refusal = held.and_then(|held| held.refusal.as_deref());
    if let Some(refusal) = refusal
        && observation.is_none_or(|observation| observation.accepted < refusal.generation)
    {
        blocked(refusal.reason, &refusal.message);
        return Verdict::Unguarded;
    }
    let Some(observation) = observation else {
        blocked(Reason::Arming, "not in force yet");
        return Verdict::Unguarded;
    };
    for trouble in &observation.problems {
        tell(Reason::of_daemon(&trouble.reason), &trouble.reason, &trouble.message, !trouble.blocking);
    }
    let blocking = observation.problems.iter().any(|trouble| trouble.blocking);
    let Some(order) = subject.order else { return Verdict::Unguarded };
    if subject.invalid.is_some() {
        return Verdict::Unguarded;
    }
    let mut blocked = |reason: Reason, message: &str| tell(reason, reason.word(), message, false);
    match observation.phase {
        Phase::InForce if observation.generation == subject.generation && !blocking => {}
        Phase::InForce | Phase::Degraded | Phase::Failed if blocking => return Verdict::Unguarded,
        Phase::InForce | Phase::Pending | Phase::Draining => {
            blocked(Reason::Arming, "not in force yet at this generation");
            return Verdict::Unguarded;
        }
        Phase::Degraded | Phase::Failed => {
            blocked(Reason::NotInForce, "janusd says so, and not why");
            return Verdict::Unguarded;
        }
    }
    let mut verdict = Verdict::Guarded;
    for container in pod.running.iter().filter(|container| order.selects(&container.name)) {
        match observation.container(&container.id) {
            Some(found) if found.in_force => {}
            Some(_) => {
                blocked(Reason::Arming, &format!("container {} is being looked at", container.name));
                verdict = Verdict::Unguarded;
            }
            None => {
                let late = now.saturating_sub(container.started) > FOUND_WITHIN;
                let reason = if late { Reason::ContainerNotFound } else { Reason::Arming };
                blocked(reason, &format!("janusd has not found container {}", container.name));
                verdict = Verdict::Unguarded;
            }
        }
    }
    verdict
}

struct Conditions<'a> {
    generation: i64,
    previous: Option<&'a JanusGuardStatus>,
    now: &'a Time,
}

impl Conditions<'_> {
    fn make(&self, kind: &str, (status, reason, message): (&str, Reason, String)) -> Condition {
        let before = self.previous.and_then(|status| status.conditions.iter().find(|it| it.type_ == kind));
        let since = before.filter(|before| before.status == status).map(|before| &before.last_transition_time);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.word().to_owned(),
            message,
            observed_generation: Some(self.generation),
            last_transition_time: since.unwrap_or(self.now).clone(),
        }
    }
}

impl From<Found> for Problem {
    fn from(found: Found) -> Problem {
        Problem {
            pod: found.pod.into(),
            node: found.node.as_ref().to_owned(),
            // A daemon of the next release has words that we do not know and people do.
            reason: found.word.into(),
            message: found.message.into(),
        }
    }
}

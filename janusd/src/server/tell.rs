//! What the daemon tells, in the wire's words.

use std::hash::BuildHasher;
use std::time::{SystemTime, UNIX_EPOCH};

use janus_proto::v1;
use prost::Message;

use crate::events::Line;
use crate::guard::{Problem, SiteReport};
use crate::line::escaped;
use crate::metrics::{MarkCounts, Tally};
use crate::policy::{Event, GuardSpec, Origin, Outcome};
use crate::registry::port::Failure;
use crate::registry::{Standing, UnitState};

/// Problems that are told of one unit.
const MOST_PROBLEMS: usize = 20;
/// Bytes of a problem's message or path.
const LONGEST: usize = 1024;

/// A unit.
pub(super) fn unit(unit: &UnitState) -> v1::GuardState {
    let mut problems: Vec<(bool, v1::Problem)> = Vec::new();
    if let Some(failure) = &unit.failure {
        problems.push((true, failed(failure, unit.standing)));
    }
    let run = unit.run.as_ref();
    let found = run.iter().flat_map(|(report, _)| &report.problems);
    problems.extend(found.map(|found| (found.reason.degrades(), problem(found, &unit.spec))));
    // Worst first: what keeps the pod from counting as guarded.
    problems.sort_by_key(|(blocking, _)| !blocking);
    let unguarded = run.is_some_and(|(report, _)| report.sites.iter().any(|site| !site.in_force));
    let degraded = unguarded || problems.iter().any(|(blocking, _)| *blocking);
    let phase = match unit.standing {
        Standing::Pending => v1::GuardPhase::Pending,
        Standing::InForce if !degraded => v1::GuardPhase::InForce,
        Standing::InForce | Standing::Degraded => v1::GuardPhase::Degraded,
        Standing::Draining | Standing::Absent => v1::GuardPhase::Draining,
        Standing::Failed => v1::GuardPhase::Failed,
    };
    v1::GuardState {
        guard: Some(v1::GuardRef {
            uid: unit.unit.guard.to_string(),
            namespace: unit.guard.namespace.clone(),
            name: unit.guard.name.clone(),
            generation: unit.generation,
        }),
        pod: Some(v1::PodRef {
            uid: unit.unit.pod.to_string(),
            cgroup_uid: unit.pod.cgroup_uid().to_string(),
            namespace: unit.pod.namespace().to_owned(),
            name: unit.pod.name().to_owned(),
        }),
        phase: phase.into(),
        containers: run.iter().flat_map(|(report, _)| report.sites.iter().map(container)).collect(),
        problem_count: problems.len().try_into().unwrap_or(u32::MAX),
        problems: problems.into_iter().take(MOST_PROBLEMS).map(|(_, problem)| problem).collect(),
        marks: Some(marks(run.map(|(report, _)| report.marks).unwrap_or_default())),
        accepted_generation: unit.accepted,
        counters: run.map(|(_, tally)| counters(tally)),
        failures: unit.failures,
        restarts: unit.restarts,
    }
}

fn failed(failure: &Failure, standing: Standing) -> v1::Problem {
    let reason = match failure {
        _ if standing == Standing::Degraded => "UpdateFailed",
        Failure::Limit { .. } => "LimitReached",
        Failure::Kernel(_) => "KernelLacksFeature",
        Failure::Internal(_) => "NotInForce",
    };
    v1::Problem {
        reason: reason.to_owned(),
        message: short(&failure.to_string()),
        blocking: true,
        ..Default::default()
    }
}

fn problem(found: &Problem, spec: &GuardSpec) -> v1::Problem {
    let rule = found.rule.and_then(|rule| spec.rule(rule));
    let subject = found.rule.and_then(|rule| spec.subject(rule.subject));
    let mut message = found.detail.clone();
    if !found.path.is_empty() {
        message = format!("{}: {message}", escaped(&found.path));
    }
    v1::Problem {
        reason: found.reason.word().to_owned(),
        message: short(&message),
        container: found.container.as_deref().unwrap_or_default().to_owned(),
        subject: subject.map(|subject| subject.name().to_owned()).unwrap_or_default(),
        path: rule.map(|rule| short(&rule.to_string())).unwrap_or_default(),
        blocking: found.reason.degrades(),
    }
}

fn short(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST)].to_owned()
}

fn container(site: &SiteReport) -> v1::ContainerState {
    v1::ContainerState {
        name: site.name.as_deref().unwrap_or_default().to_owned(),
        id: site.id.to_string(),
        in_force: site.in_force,
    }
}

fn marks(counts: MarkCounts) -> v1::Marks {
    v1::Marks { inode: counts.inode, mount: counts.mount, filesystem: counts.filesystem }
}

fn counters(tally: &Tally) -> v1::GuardCounters {
    let events = tally.events().filter(|(.., count)| *count > 0).map(|(kind, outcome, count)| v1::EventCount {
        event: event(kind).into(),
        response: response(outcome).into(),
        count,
    });
    let fallbacks = tally
        .fallbacks()
        .filter(|(_, count)| *count > 0)
        .map(|(failure, count)| v1::FallbackCount { reason: failure.word().to_owned(), count });
    v1::GuardCounters {
        since_unix_nanos: nanoseconds(tally.since()),
        events: events.collect(),
        fallbacks: fallbacks.collect(),
        lines_dropped: tally.lines_dropped(),
    }
}

/// Since 1970.
pub(super) fn nanoseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().try_into().unwrap_or(i64::MAX)
}

/// Names a state: the same bytes while nothing but counters differs. Keyed anew in each run of the daemon, so that no
/// tenant can make two states look alike.
pub(super) fn digest(keys: &impl BuildHasher, header: &v1::StateHeader, guards: &[v1::GuardState]) -> Vec<u8> {
    let mut bytes = header.encode_to_vec();
    for guard in guards {
        let still = v1::GuardState { counters: None, ..guard.clone() };
        still.encode_length_delimited(&mut bytes).unwrap_or_default();
    }
    keys.hash_one(&bytes).to_be_bytes().to_vec()
}

fn event(event: Event) -> v1::Event {
    match event {
        Event::Open => v1::Event::Open,
        Event::Access => v1::Event::Access,
        Event::Execute => v1::Event::Execute,
    }
}

fn response(outcome: Outcome) -> v1::Response {
    match outcome {
        Outcome::Allow => v1::Response::Allow,
        Outcome::Deny => v1::Response::Deny,
        Outcome::Audit => v1::Response::Audit,
    }
}

fn origin(origin: Origin) -> v1::Origin {
    match origin {
        Origin::Owner => v1::Origin::Owner,
        Origin::Session => v1::Origin::Session,
        Origin::Pod => v1::Origin::Pod,
        Origin::Node => v1::Origin::Node,
    }
}

/// A decision.
pub(super) fn decision(line: &Line) -> v1::Decision {
    let text = &line.text;
    let whose = text.whose();
    let decided = text.decided(&line.decision);
    let opener = line.opener.as_ref();
    v1::Decision {
        time_unix_nanos: nanoseconds(line.at),
        guard: Some(v1::GuardRef {
            uid: whose.map(|whose| whose.guard_uid.clone()).unwrap_or_default(),
            namespace: text.namespace().to_owned(),
            name: text.guard().to_owned(),
            generation: whose.map_or(0, |whose| whose.generation.load(std::sync::atomic::Ordering::Relaxed)),
        }),
        pod: Some(v1::PodRef {
            uid: whose.map(|whose| whose.pod_uid.clone()).unwrap_or_default(),
            cgroup_uid: String::new(),
            namespace: text.namespace().to_owned(),
            name: whose.map(|whose| whose.pod.clone()).unwrap_or_default(),
        }),
        container: line.container.as_deref().unwrap_or_default().to_owned(),
        event: event(line.event).into(),
        response: response(line.decision.outcome()).into(),
        path: line.path.to_vec(),
        directory: line.directory,
        subject: decided.map(|(subject, ..)| subject.to_owned()).unwrap_or_default(),
        rule: decided.and_then(|(.., rule)| rule).unwrap_or_default().to_owned(),
        reason: line.decision.reason.word().to_owned(),
        tags: decided.map(|(_, tags, _)| tags.clone()).unwrap_or_default(),
        origin: opener.and_then(|opener| opener.origin).map_or(v1::Origin::Unspecified, origin).into(),
        pid: u32::try_from(line.pid).unwrap_or_default(),
        comm: opener.and_then(|opener| opener.comm.clone()).unwrap_or_default(),
        exe: opener.and_then(|opener| opener.exe.clone()).unwrap_or_default(),
        uid: opener.and_then(|opener| opener.uid),
    }
}

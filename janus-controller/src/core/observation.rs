//! What a daemon says of a unit, taken apart. A daemon may be anybody's who has stolen a node's key: what it says is
//! bounded, and escaped before people see it.

use std::fmt::Write;
use std::sync::Arc;

use janus_proto::v1;

use super::unit::{Container, Uid, UnitId};

/// Containers and problems of one unit that are looked at; a daemon sends no more.
const MOST_CONTAINERS: usize = 256;
const MOST_PROBLEMS: usize = 20;
/// Characters of a message that are kept: a status holds twenty of them.
const LONGEST: usize = 256;

/// A unit as its daemon sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// In force; 0 while none is.
    pub generation: i64,
    /// Last accepted.
    pub accepted: i64,
    /// How far it is.
    pub phase: Phase,
    /// The selected containers that the daemon has found.
    pub containers: Box<[Found]>,
    /// What is not guarded, worst first.
    pub problems: Box<[Trouble]>,
}

/// How far a unit is: `GuardPhase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accepted, not wholly in force.
    Pending,
    /// In force at the accepted generation, in every container found.
    InForce,
    /// Something that should be guarded is not.
    Degraded,
    /// On its way out.
    Draining,
    /// Nothing is in force; the daemon tries again by itself.
    Failed,
}

/// A container that the daemon has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its ID, without the runtime's name.
    pub id: Arc<str>,
    /// Whether the daemon knows its name.
    pub named: bool,
    /// Whether it is guarded.
    pub in_force: bool,
}

/// Something that is not guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One word.
    pub reason: Box<str>,
    /// For people: no control characters.
    pub message: Box<str>,
    /// Whether it keeps the pod from counting as guarded.
    pub blocking: bool,
}

/// An answer that cannot be one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A unit without its guard or pod.
    #[error("a unit without {0}")]
    Without(&'static str),
    /// A phase that this release does not know.
    #[error("a unit of unknown phase {0}")]
    Phase(i32),
}

impl Observation {
    /// Takes a unit's state apart.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn of(state: v1::GuardState) -> Result<(UnitId, Observation), Malformed> {
        let guard = state.guard.ok_or(Malformed::Without("guard"))?;
        let pod = state.pod.ok_or(Malformed::Without("pod"))?;
        let phase = match v1::GuardPhase::try_from(state.phase) {
            Ok(v1::GuardPhase::Pending) => Phase::Pending,
            Ok(v1::GuardPhase::InForce) => Phase::InForce,
            Ok(v1::GuardPhase::Degraded) => Phase::Degraded,
            Ok(v1::GuardPhase::Draining) => Phase::Draining,
            Ok(v1::GuardPhase::Failed) => Phase::Failed,
            Ok(v1::GuardPhase::Unspecified) | Err(_) => return Err(Malformed::Phase(state.phase)),
        };
        let containers = state.containers.into_iter().take(MOST_CONTAINERS).map(|it| Found {
            named: !it.name.is_empty(),
            id: it.id.into(),
            in_force: it.in_force,
        });
        let problems = state.problems.into_iter().take(MOST_PROBLEMS).map(Trouble::of);
        let unit = UnitId { guard: Uid::from(guard.uid), pod: Uid::from(pod.uid) };
        let observation = Observation {
            generation: guard.generation,
            accepted: state.accepted_generation,
            phase,
            containers: containers.collect(),
            problems: problems.collect(),
        };
        Ok((unit, observation))
    }

    /// Keeps no ID that a pod's containers have already.
    pub fn share(&mut self, running: &[Container]) {
        for found in &mut self.containers {
            if let Some(container) = running.iter().find(|container| container.id == found.id) {
                found.id = container.id.clone();
            }
        }
    }

    /// A container, by its ID.
    pub fn container(&self, id: &str) -> Option<&Found> {
        self.containers.iter().find(|found| *found.id == *id)
    }

    /// Whether it may change without being told to.
    pub fn settles(&self) -> bool {
        matches!(self.phase, Phase::Pending | Phase::Draining | Phase::Failed)
            || self.containers.iter().any(|found| !found.in_force)
    }
}

impl Trouble {
    fn of(problem: v1::Problem) -> Trouble {
        let v1::Problem { reason, message, container, subject, path, blocking } = problem;
        let mut text = message;
        // Where: only what the message does not say by itself.
        for (what, value) in [("container", container), ("subject", subject), ("rule", path)] {
            if !value.is_empty() && !text.contains(value.as_str()) {
                // A String takes whatever is written to it.
                let _infallible = write!(text, " ({what} {value})");
            }
        }
        Trouble { reason: word(&reason), message: plain(&text), blocking }
    }
}

/// A reason as the API server takes one: anything else is not repeated.
fn word(reason: &str) -> Box<str> {
    let fits = (1..=64).contains(&reason.len())
        && reason.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && reason.starts_with(|first: char| first.is_ascii_uppercase());
    if fits { reason.into() } else { "Unknown".into() }
}

/// Escapes control characters, and cuts.
pub fn plain(text: &str) -> Box<str> {
    let mut plain = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == LONGEST {
            plain.push('…');
            break;
        }
        if character.is_control() {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> v1::GuardState {
        v1::GuardState {
            guard: Some(v1::GuardRef { uid: "g".into(), generation: 2, ..Default::default() }),
            pod: Some(v1::PodRef { uid: "p".into(), ..Default::default() }),
            phase: v1::GuardPhase::InForce.into(),
            accepted_generation: 2,
            ..Default::default()
        }
    }

    #[test]
    fn what_a_hostile_daemon_says_is_bounded_and_plain() {
        let problem = v1::Problem { reason: "a\nb".into(), message: "x\n\u{1b}[31m".repeat(500), ..Default::default() };
        let told = v1::GuardState { problems: vec![problem; 100], ..state() };
        let (_, observation) = Observation::of(told).unwrap();
        assert_eq!(observation.problems.len(), MOST_PROBLEMS);
        let trouble = &observation.problems[0];
        assert_eq!(&*trouble.reason, "Unknown");
        assert!(trouble.message.chars().all(|character| !character.is_control()));
        assert!(trouble.message.len() < 4 * LONGEST);
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        let without = v1::GuardState { guard: None, ..state() };
        assert_eq!(Observation::of(without), Err(Malformed::Without("guard")));
        let without = v1::GuardState { pod: None, ..state() };
        assert_eq!(Observation::of(without), Err(Malformed::Without("pod")));
        assert_eq!(Observation::of(v1::GuardState { phase: 77, ..state() }), Err(Malformed::Phase(77)));
    }

    #[test]
    fn a_problem_says_where() {
        let problem = v1::Problem {
            reason: "PathAbsent".into(),
            message: "/a: no such file".into(),
            container: "app".into(),
            path: "/a".into(),
            ..Default::default()
        };
        let (_, observation) = Observation::of(v1::GuardState { problems: vec![problem], ..state() }).unwrap();
        assert_eq!(&*observation.problems[0].message, "/a: no such file (container app)");
    }
}

//! Laws of the plan, against a model daemon that does what it is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use janus_controller::core::observation::{Found, Observation, Phase};
use janus_controller::core::plan::{Cause, Desired, Known, Step, fingerprint, plan};
use janus_controller::core::spec::Features;
use janus_controller::core::unit::{Container, Order, Pod, Uid, UnitId, Wanted};
use proptest::prelude::*;

const GUARDS: usize = 5;
const PODS: usize = 4;

fn uid(kind: char, index: usize) -> Uid {
    format!("{kind}{index}").into()
}

fn unit(guard: usize, pod: usize) -> UnitId {
    UnitId { guard: uid('g', guard), pod: uid('p', pod) }
}

/// A guard: generation, audited, the containers it selects.
type GuardSketch = (i64, bool, Option<usize>);

#[derive(Clone, Debug)]
struct Sketch {
    guards: Vec<GuardSketch>,
    /// By pod: how many containers run.
    pods: Vec<usize>,
    /// What is wanted; of guards that are unknown nothing is.
    wanted: BTreeSet<(usize, usize)>,
    unknown: BTreeSet<usize>,
    unknown_in: BTreeSet<usize>,
    known: BTreeMap<(usize, usize), (Observation, Sent)>,
    features: Features,
}

#[derive(Clone, Copy, Debug)]
enum Sent {
    Nothing,
    This,
    Other,
}

fn observation() -> impl Strategy<Value = (Observation, Sent)> {
    let phase = prop_oneof![
        Just(Phase::Pending),
        Just(Phase::InForce),
        Just(Phase::Degraded),
        Just(Phase::Draining),
        Just(Phase::Failed)
    ];
    let found = (0..3_usize, any::<(bool, bool)>()).prop_map(|(id, (named, in_force))| Found {
        id: id.to_string().into(),
        named,
        in_force,
    });
    let sent = prop_oneof![Just(Sent::Nothing), Just(Sent::This), Just(Sent::Other)];
    (0..4_i64, 0..4_i64, phase, prop::collection::vec(found, 0..3), sent).prop_map(
        |(generation, more, phase, containers, sent)| {
            let (accepted, containers) = (generation + more, containers.into());
            (Observation { generation, accepted, phase, containers, problems: Box::default() }, sent)
        },
    )
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let units = || (0..GUARDS, 0..PODS);
    (
        prop::collection::vec((1..5_i64, any::<bool>(), prop::option::of(0..3_usize)), GUARDS),
        prop::collection::vec(0..3_usize, PODS),
        prop::collection::btree_set(units(), 0..12),
        prop::collection::btree_set(0..GUARDS, 0..2),
        prop::collection::btree_set(0..PODS, 0..PODS),
        prop::collection::btree_map(units(), observation(), 0..12),
        any::<(bool, bool)>(),
    )
        .prop_map(|(guards, pods, mut wanted, unknown, unknown_in, known, (guard_v1, audit_log))| {
            wanted.retain(|(guard, _)| !unknown.contains(guard));
            let features = Features { guard_v1, audit_log };
            Sketch { guards, pods, wanted, unknown, unknown_in, known, features }
        })
}

impl Sketch {
    fn wanted(&self, guard: usize, pod: usize) -> Wanted {
        let (generation, audit_log, only) = self.guards[guard];
        let spec = janus_proto::v1::GuardSpec {
            containers: only.map(|it| format!("c{it}")).into_iter().collect(),
            ..Default::default()
        };
        let order = Order {
            uid: uid('g', guard),
            namespace: "default".into(),
            name: "g".into(),
            generation,
            spec,
            needs: Features { guard_v1: true, audit_log },
        };
        let running = (0..self.pods[pod]).map(|it| Container {
            name: format!("c{it}").into(),
            id: it.to_string().into(),
            started: 0,
        });
        let pod = Pod {
            uid: uid('p', pod),
            cgroup_uid: None,
            namespace: "default".into(),
            name: "p".into(),
            node: "n".into(),
            labels: Arc::default(),
            annotated: None,
            started: true,
            running: running.collect(),
        };
        Wanted { order: Arc::new(order), pod: Arc::new(pod) }
    }

    /// Maps are filled in this order, or in the other one.
    fn desired(&self, backwards: bool) -> Desired {
        let mut units: Vec<_> = self.wanted.iter().map(|it| (unit(it.0, it.1), self.wanted(it.0, it.1))).collect();
        if backwards {
            units.reverse();
        }
        Desired {
            units: units.into_iter().collect(),
            unknown: self.unknown.iter().map(|guard| uid('g', *guard)).collect(),
            pods: self.unknown_in.iter().map(|pod| uid('p', *pod)).collect(),
        }
    }

    fn known(&self, backwards: bool) -> HashMap<UnitId, Known> {
        let known = self.known.iter().map(|((guard, pod), (observation, sent))| {
            let this = fingerprint(&self.wanted(*guard, *pod));
            let sent = match sent {
                Sent::Nothing => None,
                Sent::This => Some(this),
                Sent::Other => Some(this.wrapping_add(1)),
            };
            (unit(*guard, *pod), Known { observation: Arc::new(observation.clone()), sent })
        });
        let mut known: Vec<_> = known.collect();
        if backwards {
            known.reverse();
        }
        known.into_iter().collect()
    }

    fn is_kept(&self, guard: usize, pod: usize) -> bool {
        self.unknown.contains(&guard) && self.unknown_in.contains(&pod)
    }
}

/// What the daemon makes of it: all it is told comes into force, or goes, at once.
fn carry_out(steps: &[Step], desired: &Desired, known: &mut HashMap<UnitId, Known>) {
    known.retain(|_, known| known.observation.phase != Phase::Draining);
    for step in steps {
        match step {
            Step::Create(unit, _) => {
                let wanted = &desired.units[unit];
                let before = known.get(unit).map(|known| known.observation.clone());
                let accepted = wanted.order.generation.max(before.map_or(0, |before| before.accepted));
                let found = wanted.containers().map(|it| Found { id: it.id.clone(), named: true, in_force: true });
                let observation = Observation {
                    generation: accepted,
                    accepted,
                    phase: Phase::InForce,
                    containers: found.collect(),
                    problems: Box::default(),
                };
                let sent = Some(fingerprint(wanted));
                known.insert(unit.clone(), Known { observation: Arc::new(observation), sent });
            }
            Step::Destroy(unit, _) => drop(known.remove(unit)),
        }
    }
}

fn sorted(mut steps: Vec<Step>) -> Vec<Step> {
    steps.sort();
    steps
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_rounds_are_enough(sketch in sketch()) {
        let (desired, mut known) = (sketch.desired(false), sketch.known(false));
        for _ in 0..2 {
            let steps = plan(&desired, &known, sketch.features).collect::<Vec<_>>();
            carry_out(&steps, &desired, &mut known);
        }
        prop_assert_eq!(plan(&desired, &known, sketch.features).next(), None);
        // And what is there then is what is wanted, and what is kept.
        for (guard, pod) in &sketch.wanted {
            let wanted = sketch.wanted(*guard, *pod);
            if sketch.features.lack(wanted.order.needs).is_none() {
                let known = &known[&unit(*guard, *pod)].observation;
                prop_assert!(known.accepted >= wanted.order.generation);
            }
        }
        for guard in 0..GUARDS {
            for pod in 0..PODS {
                let there = known.contains_key(&unit(guard, pod));
                prop_assert!(!there || sketch.wanted.contains(&(guard, pod)) || sketch.is_kept(guard, pod));
            }
        }
    }

    #[test]
    fn no_step_that_harms_and_none_left_out(sketch in sketch()) {
        let (desired, known) = (sketch.desired(false), sketch.known(false));
        let steps: Vec<_> = plan(&desired, &known, sketch.features).collect();
        let mut told = BTreeMap::new();
        for step in &steps {
            let (Step::Create(unit, _) | Step::Destroy(unit, _)) = step;
            prop_assert!(told.insert(unit.clone(), step.clone()).is_none(), "{unit:?} twice");
        }
        for guard in 0..GUARDS {
            for pod in 0..PODS {
                let unit = unit(guard, pod);
                let there = sketch.known.get(&(guard, pod)).map(|(observation, _)| observation);
                let leaving = there.is_some_and(|it| it.phase == Phase::Draining);
                let wanted = sketch.wanted.contains(&(guard, pod)).then(|| sketch.wanted(guard, pod));
                let sendable = wanted.as_ref().filter(|it| sketch.features.lack(it.order.needs).is_none());
                match (told.get(&unit), there, sendable) {
                    (Some(Step::Destroy(_, generation)), Some(there), _) => {
                        prop_assert!(wanted.is_none() && !sketch.is_kept(guard, pod));
                        prop_assert!(*generation >= there.accepted && *generation >= 1, "refused as stale");
                    }
                    (Some(Step::Create(_, cause)), None, Some(_)) => prop_assert_eq!(*cause, Cause::Missing),
                    (Some(Step::Create(_, cause)), Some(there), Some(wanted)) => match cause {
                        Cause::Missing => prop_assert!(leaving),
                        Cause::Outdated => prop_assert!(there.accepted < wanted.order.generation),
                        Cause::Containers => {
                            let right = |id: &str| there.containers.iter().find(|it| *it.id == *id);
                            let news = |id: &str| !right(id).is_some_and(|it| it.named && it.in_force);
                            prop_assert!(wanted.containers().any(|it| news(&it.id)));
                        }
                    },
                    (Some(step), ..) => prop_assert!(false, "{step:?} of {there:?}"),
                    (None, None, Some(_)) => prop_assert!(false, "{unit:?} is missing"),
                    (None, Some(there), Some(wanted)) => {
                        prop_assert!(!leaving && there.accepted >= wanted.order.generation, "{unit:?} is old");
                    }
                    (None, Some(_), None) => {
                        let may_stay = wanted.is_some() || leaving || sketch.is_kept(guard, pod);
                        prop_assert!(may_stay, "{unit:?} is left over");
                    }
                    (None, None, None) => {}
                }
            }
        }
    }

    #[test]
    fn the_order_of_maps_is_nothing(sketch in sketch()) {
        let there = plan(&sketch.desired(false), &sketch.known(false), sketch.features).collect::<Vec<_>>();
        let back = plan(&sketch.desired(true), &sketch.known(true), sketch.features).collect::<Vec<_>>();
        prop_assert_eq!(sorted(there), sorted(back));
    }
}

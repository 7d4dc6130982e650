//! Laws of the index. Whatever came, in whatever order, however often, by events or by listings, it says what a naive
//! model says of the objects that are left; and whatever changed of what it says was marked.

use std::collections::{BTreeMap, BTreeSet};

use janus_controller::core::plan::Desired;
use janus_controller::index::{Index, Target, Touched, Watched};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::objects::{self, HOME, JANUSD};

const GUARDS: u8 = 6;
const PODS: u8 = 12;
const NODES: [&str; 2] = ["n0", "n1"];
const SPACES: [&str; 3] = ["a", "b", HOME];

// A UID stays where it is, whatever else it comes back as.

fn space(index: u8) -> usize {
    usize::from(index) % SPACES.len()
}

fn node(index: u8) -> usize {
    usize::from(index) / SPACES.len() % NODES.len()
}

// -- what there is

/// Labels that pods bear.
const LABELS: [&[(&str, &str)]; 6] = [
    &[],
    &[("app", "a")],
    &[("app", "a"), ("tier", "x")],
    &[("app", "b")],
    &[("app.kubernetes.io/part-of", "janus"), ("app", "a")],
    &[JANUSD],
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Spec {
    All,
    AppIsA,
    AppIsAOrB,
    NoTier,
    AppIsNotA,
    AnyTier,
    /// A selector that means nothing.
    Meaningless,
    /// Nothing that could be decoded.
    Garbage,
}

impl Spec {
    fn json(self) -> Value {
        let one = |key: &str, operator: &str, values: &[&str]| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        let selector = match self {
            Spec::All => json!({}),
            Spec::AppIsA => json!({ "matchLabels": { "app": "a" } }),
            Spec::AppIsAOrB => one("app", "In", &["a", "b"]),
            Spec::NoTier => one("tier", "DoesNotExist", &[]),
            Spec::AppIsNotA => one("app", "NotIn", &["a"]),
            Spec::AnyTier => one("tier", "Exists", &[]),
            Spec::Meaningless => one("app", "In", &[]),
            Spec::Garbage => return json!({ "selector": 5 }),
        };
        json!({ "selector": selector, "subjects": [{ "deny": ["/x"], "events": ["open"] }] })
    }

    fn is_good(self) -> bool {
        !matches!(self, Spec::Meaningless | Spec::Garbage)
    }

    fn selects(self, labels: &BTreeMap<&str, &str>) -> bool {
        let (app, tier) = (labels.get("app").copied(), labels.get("tier").copied());
        match self {
            Spec::All => true,
            Spec::AppIsA => app == Some("a"),
            Spec::AppIsAOrB => app == Some("a") || app == Some("b"),
            Spec::NoTier => tier.is_none(),
            Spec::AppIsNotA => app != Some("a"),
            Spec::AnyTier => tier.is_some(),
            Spec::Meaningless | Spec::Garbage => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Guard {
    generation: i64,
    spec: Spec,
    deleted: bool,
    /// What was last seen of it that was good.
    good: Option<(i64, Spec)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Pod {
    labels: usize,
    containers: u8,
    address: Option<u8>,
    ready: bool,
    leaving: bool,
    created: u8,
}

fn guard_json(index: u8, guard: &Guard) -> Value {
    let mut object = objects::guard(&guard_uid(index), SPACES[space(index)], guard.generation);
    object["spec"] = guard.spec.json();
    if guard.deleted {
        object["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
    }
    object
}

fn pod_json(index: u8, pod: &Pod) -> Value {
    let mut object = objects::pod(&pod_uid(index), SPACES[space(index)], NODES[node(index)]);
    object["metadata"]["labels"] =
        LABELS[pod.labels].iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    object["metadata"]["creationTimestamp"] = format!("2026-01-02T03:04:{:02}Z", pod.created).into();
    if pod.leaving {
        object["metadata"]["deletionTimestamp"] = "2026-01-02T03:05:00Z".into();
    }
    let containers = (0..pod.containers).map(|it| objects::running(&format!("c{it}"), &format!("{index}-{it}")));
    object["status"]["containerStatuses"] = containers.collect();
    if let Some(address) = pod.address {
        object["status"]["podIP"] = format!("10.0.0.{address}").into();
    }
    let ready = if pod.ready { "True" } else { "False" };
    object["status"]["conditions"] = json!([{ "type": "Ready", "status": ready }]);
    object
}

fn guard_uid(index: u8) -> String {
    format!("g{index}")
}

fn pod_uid(index: u8) -> String {
    format!("p{index:02}")
}

// -- what becomes of it

#[derive(Clone, Debug)]
enum Change {
    /// A guard is made, or its spec changes.
    Guard(u8, Spec),
    /// A guard is deleted, and waits.
    Delete(u8),
    /// A guard is gone.
    GuardGone(u8),
    /// A pod is made, or what may change of it does.
    Pod(u8, Pod),
    /// A pod is gone, or finished.
    PodGone(u8),
}

#[derive(Clone, Debug)]
enum Happening {
    /// The watch tells it.
    Told(Change),
    /// The watch breaks before it does.
    Missed(Change),
    /// The last version of an object comes once more.
    Again(bool, u8),
    /// A listing, in an order of its own; it may break off first, after so many objects.
    Listing { pods: bool, seed: u64, broken: Option<usize> },
    /// Somebody takes the marks.
    Taken,
}

fn change() -> impl Strategy<Value = Change> {
    let spec = prop_oneof![
        Just(Spec::All),
        Just(Spec::AppIsA),
        Just(Spec::AppIsAOrB),
        Just(Spec::NoTier),
        Just(Spec::AppIsNotA),
        Just(Spec::AnyTier),
        Just(Spec::Meaningless),
        Just(Spec::Garbage),
    ];
    let daemon = (prop::option::of(1..3_u8), any::<(bool, bool)>(), 0..3_u8);
    let pod =
        (0..LABELS.len(), 0..3_u8, daemon).prop_map(|(labels, containers, (address, (ready, leaving), created))| Pod {
            labels,
            containers,
            address,
            ready,
            leaving,
            created,
        });
    prop_oneof![
        4 => (0..GUARDS, spec).prop_map(|(index, spec)| Change::Guard(index, spec)),
        1 => (0..GUARDS).prop_map(Change::Delete),
        1 => (0..GUARDS).prop_map(Change::GuardGone),
        8 => (0..PODS, pod).prop_map(|(index, pod)| Change::Pod(index, pod)),
        2 => (0..PODS).prop_map(Change::PodGone),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        12 => change().prop_map(Happening::Told),
        3 => change().prop_map(Happening::Missed),
        2 => (any::<bool>(), 0..PODS).prop_map(|(pod, index)| Happening::Again(pod, index)),
        2 => (any::<bool>(), any::<u64>(), prop::option::of(0..PODS as usize))
            .prop_map(|(pods, seed, broken)| Happening::Listing { pods, seed, broken }),
        4 => Just(Happening::Taken),
    ]
}

/// What the API server has, or what of it has been told.
#[derive(Clone, Debug, Default, PartialEq)]
struct World {
    guards: BTreeMap<u8, Guard>,
    pods: BTreeMap<u8, Pod>,
}

impl World {
    /// The API server's rules: a UID stays where it is, a generation grows with the spec, what is deleted stays so.
    fn change(&mut self, change: &Change) {
        match change {
            Change::Guard(index, spec) => {
                let new = Guard { generation: 0, spec: *spec, deleted: false, good: None };
                let guard = self.guards.entry(*index).or_insert(new);
                if guard.generation == 0 || guard.spec != *spec {
                    guard.generation += 1;
                    guard.spec = *spec;
                }
            }
            Change::Delete(index) => {
                if let Some(guard) = self.guards.get_mut(index) {
                    guard.deleted = true;
                }
            }
            Change::GuardGone(index) => drop(self.guards.remove(index)),
            Change::Pod(index, pod) => drop(self.pods.insert(*index, *pod)),
            Change::PodGone(index) => drop(self.pods.remove(index)),
        }
    }

    fn labels(pod: &Pod) -> BTreeMap<&'static str, &'static str> {
        LABELS[pod.labels].iter().copied().collect()
    }

    fn is_protected(index: u8, pod: &Pod) -> bool {
        let labels = World::labels(pod);
        let ours = labels.get(JANUSD.0) == Some(&JANUSD.1);
        SPACES[space(index)] == HOME && (ours || labels.get("app.kubernetes.io/part-of") == Some(&"janus"))
    }

    fn pairs(&self) -> impl Iterator<Item = (u8, &Guard, u8, &Pod)> {
        let pairs = self.guards.iter().flat_map(|guard| self.pods.iter().map(move |pod| (guard, pod)));
        pairs
            .filter(|((guard_index, guard), (pod_index, _))| {
                space(**guard_index) == space(**pod_index) && !guard.deleted
            })
            .map(|((guard_index, guard), (pod_index, pod))| (*guard_index, guard, *pod_index, pod))
    }

    /// Which guards select which pods.
    fn selections(&self) -> impl Iterator<Item = (u8, i64, u8, &Pod)> {
        self.pairs().filter_map(|(guard_index, guard, pod_index, pod)| {
            let (generation, spec) = guard.good?;
            spec.selects(&World::labels(pod)).then_some((guard_index, generation, pod_index, pod))
        })
    }

    fn target(&self, node: usize) -> Option<(String, u8)> {
        let daemons = self.pods.iter().filter(|(index, pod)| {
            let place = (self::node(**index), SPACES[space(**index)]);
            place == (node, HOME) && World::labels(pod).get(JANUSD.0) == Some(&JANUSD.1)
        });
        let mut daemons: Vec<(u8, Pod)> =
            daemons.filter(|(_, pod)| pod.address.is_some()).map(|(index, pod)| (*index, *pod)).collect();
        for better in [|pod: &Pod| !pod.leaving, |pod: &Pod| pod.ready] {
            if daemons.iter().any(|(_, pod)| better(pod)) {
                daemons.retain(|(_, pod)| better(pod));
            }
        }
        let newest = daemons.iter().map(|(_, pod)| pod.created).max()?;
        let (index, pod) = daemons.into_iter().rfind(|(_, pod)| pod.created == newest)?;
        Some((pod_uid(index), pod.address?))
    }
}

// -- the law

/// A unit: guard, pod, generation, labels, containers.
type SeenUnit = (String, String, i64, usize, usize);

/// Everything that the index says, in an order.
#[derive(Debug, PartialEq)]
struct Said {
    /// By node.
    units: Vec<BTreeSet<SeenUnit>>,
    unknown: Vec<(BTreeSet<String>, BTreeSet<String>)>,
    targets: Vec<Option<(String, String)>>,
    on: Vec<BTreeSet<String>>,
    selected: BTreeMap<String, BTreeSet<(String, bool)>>,
    of: BTreeMap<String, BTreeSet<String>>,
    guards: BTreeMap<String, (i64, bool, bool)>,
}

fn said_by_index(index: &Index) -> Said {
    let text = |uid: &std::sync::Arc<str>| uid.to_string();
    let desired: Vec<Desired> = NODES.iter().map(|node| index.desired(node)).collect();
    Said {
        units: desired
            .iter()
            .map(|desired| {
                let units = desired.units.iter().map(|(id, wanted)| {
                    assert_eq!(*id, wanted.id());
                    let (labels, containers) = (wanted.pod.labels.len(), wanted.pod.running.len());
                    (text(&id.guard), text(&id.pod), wanted.order.generation, labels, containers)
                });
                units.collect()
            })
            .collect(),
        unknown: desired
            .iter()
            .map(|desired| (desired.unknown.iter().map(text).collect(), desired.pods.iter().map(text).collect()))
            .collect(),
        targets: NODES
            .iter()
            .map(|node| index.target(node).map(|Target { pod, address }| (text(&pod), address.to_string())))
            .collect(),
        on: NODES.iter().map(|node| index.guards_on(node).iter().map(text).collect()).collect(),
        selected: index
            .guards()
            .map(|guard| {
                let pods = index.selected(&guard.uid).map(|(pod, protected)| (text(&pod.uid), protected));
                (text(&guard.uid), pods.collect())
            })
            .collect(),
        of: (0..PODS)
            .map(|pod| (pod_uid(pod), index.guards_of(&pod_uid(pod).into()).map(|guard| text(&guard.uid)).collect()))
            .collect(),
        guards: index
            .guards()
            .map(|guard| (text(&guard.uid), (guard.generation, guard.deleted, guard.invalid.is_none())))
            .collect(),
    }
}

fn said_by_model(world: &World) -> Said {
    let mut said = Said {
        units: vec![BTreeSet::new(); NODES.len()],
        unknown: vec![(BTreeSet::new(), BTreeSet::new()); NODES.len()],
        targets: (0..NODES.len())
            .map(|node| world.target(node).map(|(pod, address)| (pod, format!("10.0.0.{address}"))))
            .collect(),
        on: vec![BTreeSet::new(); NODES.len()],
        selected: world.guards.keys().map(|guard| (guard_uid(*guard), BTreeSet::new())).collect(),
        of: (0..PODS).map(|pod| (pod_uid(pod), BTreeSet::new())).collect(),
        guards: world
            .guards
            .iter()
            .map(|(index, guard)| (guard_uid(*index), (guard.generation, guard.deleted, guard.spec.is_good())))
            .collect(),
    };
    for (guard, generation, index, pod) in world.selections() {
        let protected = World::is_protected(index, pod);
        if !protected {
            let unit =
                (guard_uid(guard), pod_uid(index), generation, LABELS[pod.labels].len(), usize::from(pod.containers));
            said.units[node(index)].insert(unit);
        }
        said.on[node(index)].insert(guard_uid(guard));
        said.selected.entry(guard_uid(guard)).or_default().insert((pod_uid(index), protected));
        said.of.entry(pod_uid(index)).or_default().insert(guard_uid(guard));
    }
    for (guard_index, guard, index, pod) in world.pairs() {
        if guard.good.is_none() && !World::is_protected(index, pod) {
            let (guards, pods) = &mut said.unknown[node(index)];
            guards.insert(guard_uid(guard_index));
            pods.insert(pod_uid(index));
        }
    }
    said
}

/// What marks are about, as it was when they were last taken.
struct Before {
    desired: Vec<(Desired, Option<Target>)>,
    guards: BTreeMap<String, String>,
}

impl Before {
    fn of(index: &Index) -> Before {
        let guards = index.guards().map(|guard| {
            let selected: Vec<_> = index.selected(&guard.uid).collect();
            let inputs = format!("{} {:?} {:?} {selected:?}", guard.generation, guard.invalid, guard.order());
            (guard.uid.to_string(), inputs)
        });
        Before {
            desired: NODES.iter().map(|node| (index.desired(node), index.target(node))).collect(),
            guards: guards.collect(),
        }
    }

    fn check(&self, now: &Before, touched: &Touched) {
        for (node, (before, now)) in NODES.iter().zip(self.desired.iter().zip(&now.desired)) {
            assert!(before == now || touched.nodes.contains(*node), "{node} has changed: {before:?} {now:?}");
        }
        for uid in self.guards.keys().chain(now.guards.keys()) {
            let (before, now) = (self.guards.get(uid), now.guards.get(uid));
            assert!(before == now || touched.guards.contains(uid.as_str()), "{uid} has changed: {before:?} {now:?}");
        }
    }
}

struct Run {
    index: Index,
    /// What the API server has.
    there: World,
    /// What of it has been told.
    told: World,
    before: Before,
}

impl Run {
    fn new() -> Run {
        let index = Index::new(objects::home());
        Run { before: Before::of(&index), index, there: World::default(), told: World::default() }
    }

    fn guard(&mut self, index: u8) {
        let good = self.told.guards.get(&index).and_then(|guard| guard.good);
        match self.there.guards.get(&index) {
            Some(guard) => {
                self.index.apply_guard(objects::seen_guard(&guard_json(index, guard)));
                let good = if guard.spec.is_good() { Some((guard.generation, guard.spec)) } else { good };
                self.told.guards.insert(index, Guard { good, ..guard.clone() });
            }
            None => {
                self.index.delete_guard(&guard_uid(index).into());
                self.told.guards.remove(&index);
            }
        }
    }

    fn pod(&mut self, index: u8) {
        match self.there.pods.get(&index) {
            Some(pod) => {
                self.index.apply_pod(objects::seen_pod(&pod_json(index, pod)));
                self.told.pods.insert(index, *pod);
            }
            None => {
                self.index.delete_pod(&pod_uid(index).into());
                self.told.pods.remove(&index);
            }
        }
    }

    fn list(&mut self, pods: bool, seed: u64, broken: Option<usize>) {
        let watched = if pods { Watched::Pods } else { Watched::Guards };
        let there = if pods { self.there.pods.keys() } else { return self.list_guards(seed, broken) };
        let order = shuffled(there.copied().collect(), seed);
        if let Some(many) = broken {
            self.index.listing(watched);
            order.iter().take(many).for_each(|index| self.pod(*index));
        }
        self.index.listing(watched);
        order.iter().for_each(|index| self.pod(*index));
        self.index.listed(watched);
        self.told.pods.retain(|index, _| order.contains(index));
    }

    fn list_guards(&mut self, seed: u64, broken: Option<usize>) {
        let order = shuffled(self.there.guards.keys().copied().collect(), seed);
        if let Some(many) = broken {
            self.index.listing(Watched::Guards);
            order.iter().take(many).for_each(|index| self.guard(*index));
        }
        self.index.listing(Watched::Guards);
        order.iter().for_each(|index| self.guard(*index));
        self.index.listed(Watched::Guards);
        self.told.guards.retain(|index, _| order.contains(index));
    }

    fn tell(&mut self, change: &Change) {
        self.there.change(change);
        match change {
            Change::Guard(index, ..) | Change::Delete(index) | Change::GuardGone(index) => self.guard(*index),
            Change::Pod(index, _) | Change::PodGone(index) => self.pod(*index),
        }
    }

    fn take(&mut self) {
        let touched = self.index.take_touched();
        let now = Before::of(&self.index);
        self.before.check(&now, &touched);
        self.before = now;
    }

    fn carry_out(&mut self, happening: &Happening) {
        match happening {
            Happening::Told(change) => self.tell(change),
            Happening::Missed(change) => self.there.change(change),
            Happening::Again(true, index) => self.pod(*index),
            Happening::Again(false, index) => self.guard(*index),
            Happening::Listing { pods, seed, broken } => self.list(*pods, *seed, *broken),
            Happening::Taken => self.take(),
        }
    }
}

fn shuffled(mut items: Vec<u8>, mut seed: u64) -> Vec<u8> {
    items.sort_by_cached_key(|_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 32
    });
    items
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_says_what_the_objects_say(happenings in prop::collection::vec(happening(), 1..48), seed: u64) {
        let mut run = Run::new();
        for happening in &happenings {
            run.carry_out(happening);
            prop_assert_eq!(said_by_index(&run.index), said_by_model(&run.told), "after {:?}", happening);
        }
        // Whatever was missed comes with the next listing, and then nothing of the past is left.
        run.list(true, seed, None);
        run.list(false, seed, None);
        run.take();
        let said = said_by_index(&run.index);
        prop_assert_eq!(&said, &said_by_model(&run.told));
        prop_assert_eq!(&run.told.pods, &run.there.pods);

        // One that begins now, in another order. Of a guard that cannot be used it needs the last version that could be.
        let mut fresh = Index::new(objects::home());
        let guards: Vec<u8> = shuffled(run.told.guards.keys().copied().collect(), seed.rotate_left(7));
        let (early, late) = guards.split_at(guards.len() / 2);
        let apply = |fresh: &mut Index, guards: &[u8]| {
            for index in guards {
                let guard = &run.told.guards[index];
                if let Some((generation, spec)) = guard.good {
                    fresh.apply_guard(objects::seen_guard(&guard_json(*index, &Guard { generation, spec, ..guard.clone() })));
                }
                fresh.apply_guard(objects::seen_guard(&guard_json(*index, guard)));
            }
        };
        apply(&mut fresh, early);
        for index in shuffled(run.told.pods.keys().copied().collect(), seed.rotate_left(23)) {
            fresh.apply_pod(objects::seen_pod(&pod_json(index, &run.told.pods[&index])));
        }
        apply(&mut fresh, late);
        prop_assert_eq!(&said_by_index(&fresh), &said);
    }
}

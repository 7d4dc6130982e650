//! What one daemon holds, and what it was told.
//!
//! The checks of the wire and the life of a unit are janusd's own (`janusd::wire`, `janusd::registry`); what stands in for
//! the kernel here is that a step is done when the [`Temper`] says so. Knows no socket and no clock: `now` is given, and
//! whatever was due by then has happened.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use janus_proto::v1;
use janusd::registry::port::{Failure, Limit};
use janusd::registry::{Denied, Effect, Health, Input, Leader, Phase, Refusal, Standing, Ticket, Unit};
use janusd::wire::{ContainerName, Create, Destroy, PodName, Uid, UnitId};
use prost::Message;

use super::calls::Calls;
use super::temper::{Temper, Trouble, Which};

/// Problems that are told of one unit.
const MOST_PROBLEMS: usize = 20;

/// Guard and pod, by their UIDs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) guard: String,
    pub(crate) pod: String,
}

impl Key {
    pub(crate) fn new(guard: impl Into<String>, pod: impl Into<String>) -> Key {
        Key { guard: guard.into(), pod: pod.into() }
    }
}

/// One unit, as a test sees it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// `namespace/name`.
    pub(crate) guard: String,
    /// The pod's name.
    pub(crate) pod: String,
    pub(crate) cgroup_uid: String,
    /// In force; 0 for none.
    pub(crate) generation: i64,
    /// Last accepted.
    pub(crate) accepted: i64,
    /// Last accepted.
    pub(crate) spec: Option<Arc<v1::GuardSpec>>,
    /// The highest that it has seen.
    pub(crate) epoch: u64,
    pub(crate) phase: v1::GuardPhase,
    /// What keeps the pod from counting as guarded.
    pub(crate) blocked: bool,
    /// Names of containers that calls have brought, by their IDs.
    pub(crate) names: BTreeMap<String, String>,
}

/// A container that has started, as the daemon has found it.
#[derive(Debug, Clone)]
struct Container {
    id: String,
    /// None: it is known only if a call brings it.
    name: Option<String>,
    in_force: bool,
}

/// Two that were sent alike mean the same.
#[derive(Debug, Clone, PartialEq)]
struct Spec(Arc<v1::GuardSpec>);

impl Eq for Spec {}

struct Entry {
    unit: Unit<Spec>,
    guard: (String, String),
    pod: PodName,
    run: Option<Ticket>,
    /// What happens next, if nothing comes in between.
    due: Option<(Instant, Input<Spec>)>,
    names: Vec<ContainerName>,
    failure: Option<Failure>,
}

/// What became of a unit that somebody waits for.
#[derive(Debug)]
pub(super) enum Look<T> {
    Settled(T),
    /// Until then nothing happens by itself.
    Waits(Option<Instant>),
}

/// One daemon's.
pub(crate) struct Books {
    node: String,
    pub(super) temper: Temper,
    leader: Leader,
    units: BTreeMap<UnitId, Entry>,
    /// By the pod's UID.
    containers: BTreeMap<String, Vec<Container>>,
    troubles: Vec<(Which, Trouble)>,
    /// What no controller should have done.
    breaches: Vec<String>,
    pub(super) calls: Calls,
    series: u32,
    began: Instant,
    started: SystemTime,
    keys: RandomState,
    digest: Option<Vec<u8>>,
}

impl Books {
    pub(super) fn new(node: &str, log: usize) -> Books {
        Books {
            node: node.to_owned(),
            temper: Temper::default(),
            leader: Leader::default(),
            units: BTreeMap::new(),
            containers: BTreeMap::new(),
            troubles: Vec::new(),
            breaches: Vec::new(),
            calls: Calls::new(log),
            series: 0,
            began: Instant::now(),
            started: SystemTime::now(),
            keys: RandomState::new(),
            digest: None,
        }
    }

    /// The node that it says it is.
    pub(super) fn node(&self) -> &str {
        self.temper.node.as_deref().unwrap_or(&self.node)
    }

    /// Another run of the daemon: it has nothing, and has seen nobody. Containers go on.
    pub(super) fn restart(&mut self) {
        self.leader = Leader::default();
        self.units.clear();
        self.started = SystemTime::now();
        self.keys = RandomState::new();
        self.changed();
    }

    /// What is told may differ from what was told.
    pub(super) fn changed(&mut self) {
        self.digest = None;
    }

    // What a controller asks.

    pub(super) fn create(&mut self, create: &Create, now: Instant) -> Result<(), Denied> {
        self.catch_up(now);
        if self.temper.draining {
            return Err(Refusal::Draining.into());
        }
        self.hear(create.caller.epoch())?;
        let namespace = create.spec.name().namespace.clone();
        if !self.units.contains_key(&create.unit) {
            self.admit(&namespace)?;
        }
        self.check_features(create);
        self.series = self.series.wrapping_add(1);
        let series = self.series;
        let entry = self.units.entry(create.unit.clone()).or_insert_with(|| Entry {
            unit: Unit::series(series),
            guard: (namespace, create.spec.name().name.clone()),
            pod: create.pod.clone(),
            run: None,
            due: None,
            names: Vec::new(),
            failure: None,
        });
        let spec = Spec(create.sent.clone());
        let (epoch, generation) = (create.caller.epoch(), create.generation);
        let effect = entry.unit.apply(Input::Create { epoch, generation, spec }, now - self.began);
        if let Effect::Refuse(refusal) = effect {
            self.forget_absent(&create.unit);
            return Err(refusal.into());
        }
        entry.pod = create.pod.clone();
        entry.names.retain(|known| !create.containers.iter().any(|new| new.id() == known.id()));
        entry.names.extend_from_slice(&create.containers);
        self.carry_out(&create.unit, effect, now);
        self.changed();
        Ok(())
    }

    pub(super) fn destroy(&mut self, destroy: &Destroy, now: Instant) -> Result<(), Denied> {
        self.catch_up(now);
        self.hear(destroy.caller.epoch())?;
        let Some(entry) = self.units.get_mut(&destroy.unit) else { return Ok(()) };
        let input = Input::Destroy { epoch: destroy.caller.epoch(), generation: destroy.generation };
        let effect = entry.unit.apply(input, now - self.began);
        if let Effect::Refuse(refusal) = effect {
            return Err(refusal.into());
        }
        self.carry_out(&destroy.unit, effect, now);
        self.forget_absent(&destroy.unit);
        self.changed();
        Ok(())
    }

    /// What became of a CreateGuard that was accepted.
    pub(super) fn created(&mut self, id: &UnitId, now: Instant) -> Look<Result<v1::GuardState, Denied>> {
        self.catch_up(now);
        let Some(entry) = self.units.get(id) else { return Look::Settled(Err(Denied::Lifted)) };
        match entry.unit.standing() {
            Standing::Absent | Standing::Draining => Look::Settled(Err(Denied::Lifted)),
            Standing::Failed => {
                let failure = entry.failure.clone();
                Look::Settled(Err(failure.unwrap_or(Failure::Internal("it failed".to_owned())).into()))
            }
            Standing::Pending => Look::Waits(entry.due.as_ref().map(|(at, _)| *at)),
            Standing::InForce | Standing::Degraded => Look::Settled(Ok(self.tell(id, entry))),
        }
    }

    /// What became of a DestroyGuard that was accepted.
    pub(super) fn destroyed(&mut self, id: &UnitId, now: Instant) -> Look<()> {
        self.catch_up(now);
        match self.units.get(id) {
            Some(entry) if entry.unit.phase() == Phase::Draining => Look::Waits(entry.due.as_ref().map(|(at, _)| *at)),
            Some(_) | None => Look::Settled(()),
        }
    }

    /// How a unit stands by now.
    pub(super) fn look(&self, id: &UnitId) -> Option<v1::GuardState> {
        self.units.get(id).map(|entry| self.tell(id, entry))
    }

    /// What there is; without the guards if `known` names it.
    pub(super) fn state(&mut self, known: &[u8], now: Instant) -> (v1::StateHeader, Vec<v1::GuardState>) {
        self.catch_up(now);
        let mut header = self.header();
        if let Some(digest) = &self.digest
            && digest == known
        {
            (header.unchanged, header.guards, header.digest) = (true, 0, digest.clone());
            return (header, Vec::new());
        }
        let guards: Vec<v1::GuardState> = self.units.iter().map(|(id, entry)| self.tell(id, entry)).collect();
        let mut bytes = header.encode_to_vec();
        guards.iter().for_each(|guard| guard.encode_length_delimited(&mut bytes).unwrap());
        let digest = self.keys.hash_one(&bytes).to_be_bytes().to_vec();
        self.digest = Some(digest.clone());
        header.unchanged = digest == known;
        header.digest = digest;
        if header.unchanged {
            header.guards = 0;
            return (header, Vec::new());
        }
        (header, guards)
    }

    // What a test asks.

    /// What it holds by now.
    pub(super) fn held(&mut self, now: Instant) -> BTreeMap<Key, Held> {
        self.catch_up(now);
        let held = |(id, entry): (&UnitId, &Entry)| {
            let state = self.tell(id, entry);
            let held = Held {
                guard: format!("{}/{}", entry.guard.0, entry.guard.1),
                pod: entry.pod.name().to_owned(),
                cgroup_uid: entry.pod.cgroup_uid().to_string(),
                generation: entry.unit.in_force().map_or(0, |target| target.generation),
                accepted: entry.unit.accepted().map_or(0, |target| target.generation),
                spec: entry.unit.accepted().map(|target| target.spec.0.clone()),
                epoch: entry.unit.seen().0,
                phase: state.phase(),
                blocked: state.problems.iter().any(|problem| problem.blocking),
                names: entry.names.iter().map(|it| (it.id().to_owned(), it.name().to_owned())).collect(),
            };
            (Key::new(id.guard.as_str(), id.pod.as_str()), held)
        };
        self.units.iter().map(held).collect()
    }

    /// How many units are in force by now.
    pub(super) fn in_force(&mut self, now: Instant) -> usize {
        self.catch_up(now);
        self.units.values().filter(|entry| entry.unit.in_force().is_some()).count()
    }

    /// The generation of a unit that is in force by now.
    pub(super) fn generation(&mut self, unit: &Key, now: Instant) -> Option<i64> {
        self.catch_up(now);
        let (guard, pod) = (Uid::parse(unit.guard.clone()), Uid::parse(unit.pod.clone()));
        let id = UnitId { guard: guard.ok()?, pod: pod.ok()? };
        self.units.get(&id)?.unit.in_force().map(|target| target.generation)
    }

    /// The highest epoch that it has seen.
    pub(super) fn epoch(&self) -> u64 {
        self.leader.epoch()
    }

    pub(super) fn breaches(&self) -> &[String] {
        &self.breaches
    }

    /// A container has started; with `named` the daemon finds its name by itself.
    pub(super) fn start_container(&mut self, pod: &str, name: &str, id: &str, named: bool) {
        let name = named.then(|| name.to_owned());
        let containers = self.containers.entry(pod.to_owned()).or_default();
        containers.retain(|it| it.id != id);
        containers.push(Container { id: id.to_owned(), name, in_force: true });
        self.changed();
    }

    /// A container has ended.
    pub(super) fn end_container(&mut self, pod: &str, id: &str) {
        if let Some(containers) = self.containers.get_mut(pod) {
            containers.retain(|it| it.id != id);
            if containers.is_empty() {
                self.containers.remove(pod);
            }
        }
        self.changed();
    }

    /// All of a pod's containers have ended.
    pub(super) fn end_pod(&mut self, pod: &str) {
        self.containers.remove(pod);
        self.changed();
    }

    /// Guards stand in a container, or do not.
    pub(super) fn stands_in(&mut self, pod: &str, id: &str, in_force: bool) {
        let containers = self.containers.get_mut(pod).into_iter().flatten();
        containers.filter(|it| it.id == id).for_each(|it| it.in_force = in_force);
        self.changed();
    }

    /// From now on something is wrong with some units. One that is to fail, and is in force, stays so until it is sent anew.
    pub(super) fn trouble(&mut self, which: Which, trouble: Trouble) {
        self.troubles.push((which, trouble));
        self.changed();
    }

    /// Nothing is wrong any more.
    pub(super) fn no_trouble(&mut self) {
        self.troubles.clear();
        self.changed();
    }

    // How it goes on.

    fn hear(&mut self, epoch: u64) -> Result<(), Refusal> {
        if epoch > self.leader.epoch() {
            self.changed();
        }
        self.leader.hear(epoch)
    }

    fn admit(&self, namespace: &str) -> Result<(), Failure> {
        let limit = |limit, at: u32, whose: &str| {
            let text = format!("{whose} {at} guards in pods of this node, and there may be no more");
            Err(Failure::Limit { limit, at: Some(at.into()), text })
        };
        let Temper { guards, of_namespace, .. } = self.temper;
        if self.units.len() >= guards as usize {
            return limit(Limit::Guards, guards, "there are");
        }
        if self.units.values().filter(|entry| entry.guard.0 == namespace).count() >= of_namespace as usize {
            return limit(Limit::Namespace, of_namespace, "the namespace has");
        }
        Ok(())
    }

    fn check_features(&mut self, create: &Create) {
        let has = |feature: &str| self.temper.features.iter().any(|it| it == feature);
        let guard = create.spec.name();
        let audits = create.sent.subjects.iter().any(|subject| subject.audit);
        if !has("guard-v1") {
            self.breaches.push(format!("{guard}: sent without guard-v1"));
        } else if audits && !has("audit-log") {
            self.breaches.push(format!("{guard}: sent without audit-log"));
        }
    }

    /// What was due by `now` has happened, each at its own time.
    fn catch_up(&mut self, now: Instant) {
        let due = |(id, entry): (&UnitId, &Entry)| entry.due.as_ref().map(|(at, _)| (*at, id.clone()));
        while let Some((at, id)) = self.units.iter().filter_map(due).filter(|(at, _)| *at <= now).min() {
            let Some(entry) = self.units.get_mut(&id) else { return };
            let Some((_, input)) = entry.due.take() else { return };
            if matches!(input, Input::Gone { .. }) {
                entry.run = None;
            }
            if let Input::Done { .. } = input {
                entry.failure = None;
            }
            let effect = entry.unit.apply(input, at - self.began);
            self.carry_out(&id, effect, at);
            self.forget_absent(&id);
            self.changed();
        }
    }

    /// Stands in for whatever enforces guards.
    fn carry_out(&mut self, id: &UnitId, effect: Effect<Spec>, now: Instant) {
        let (settle, lift) = (self.temper.settle, self.temper.lift);
        let mut ahead = effect;
        while let Some(entry) = self.units.get_mut(id) {
            let failure = self.troubles.iter().find_map(|(which, trouble)| match trouble {
                Trouble::Fails(failure) if which.holds(id.guard.as_str(), id.pod.as_str()) => Some(failure.clone()),
                Trouble::Fails(_) | Trouble::Problem(_) => None,
            });
            let input = match ahead {
                Effect::Nothing | Effect::Refuse(_) => return,
                Effect::Start { ticket, .. } | Effect::Update { ticket, .. } => {
                    let starts = matches!(ahead, Effect::Start { .. });
                    match failure {
                        Some(failure) => {
                            entry.failure = Some(failure);
                            Input::Failed { ticket }
                        }
                        None => {
                            if starts {
                                entry.run = Some(ticket);
                            }
                            entry.due = Some((now + settle, Input::Done { ticket, health: Health::InForce }));
                            return self.at_once(id, now);
                        }
                    }
                }
                Effect::Stop { run } => {
                    entry.due = Some((now + lift, Input::Gone { run }));
                    return self.at_once(id, now);
                }
                Effect::Retry { ticket, after } => {
                    entry.due = Some((now + after, Input::RetryDue { ticket }));
                    return;
                }
            };
            ahead = entry.unit.apply(input, now - self.began);
        }
    }

    /// What takes no time has happened.
    fn at_once(&mut self, id: &UnitId, now: Instant) {
        if self.units.get(id).is_some_and(|entry| entry.due.as_ref().is_some_and(|(at, _)| *at <= now)) {
            self.catch_up(now);
        }
    }

    fn forget_absent(&mut self, id: &UnitId) {
        if self.units.get(id).is_some_and(|entry| entry.unit.standing() == Standing::Absent) {
            self.units.remove(id);
        }
    }

    // What it says.

    fn header(&self) -> v1::StateHeader {
        let taken = u32::try_from(self.units.len()).unwrap();
        let since = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        v1::StateHeader {
            node: self.node().to_owned(),
            digest: Vec::new(),
            unchanged: false,
            guards: taken,
            version: self.temper.version.clone(),
            features: self.temper.features.clone(),
            draining: self.temper.draining,
            epoch: self.leader.epoch(),
            limits: Some(v1::Limits {
                guards: self.temper.guards,
                guards_free: self.temper.guards.saturating_sub(taken),
                guards_of_namespace: self.temper.of_namespace,
            }),
            started_unix_nanos: since.as_nanos().try_into().unwrap_or(i64::MAX),
        }
    }

    fn tell(&self, id: &UnitId, entry: &Entry) -> v1::GuardState {
        let target = entry.unit.in_force().or(entry.unit.accepted());
        let wanted = target.map(|target| &target.spec.0.containers[..]).unwrap_or_default();
        let in_force = entry.unit.in_force().is_some();
        let mut problems = Vec::new();
        let standing = entry.unit.standing();
        if let Some(failure) = &entry.failure {
            problems.push(failed(failure, standing));
        }
        for (which, trouble) in &self.troubles {
            if let Trouble::Problem(problem) = trouble
                && entry.run.is_some()
                && which.holds(id.guard.as_str(), id.pod.as_str())
            {
                problems.push(problem.clone());
            }
        }
        let mut containers = Vec::new();
        let started = self.containers.get(id.pod.as_str()).into_iter().flatten();
        for container in started.filter(|_| entry.run.is_some()) {
            let learned = || entry.names.iter().find(|it| it.id() == container.id).map(|it| it.name().to_owned());
            let name = container.name.clone().or_else(learned);
            if name.as_ref().is_some_and(|name| !wanted.is_empty() && !wanted.contains(name)) {
                continue;
            }
            if name.is_none() && !wanted.is_empty() {
                problems.push(v1::Problem {
                    reason: "NameUnknown".to_owned(),
                    message: "its name is not known yet".to_owned(),
                    container: container.id.clone(),
                    ..Default::default()
                });
            }
            containers.push(v1::ContainerState {
                name: name.unwrap_or_default(),
                id: container.id.clone(),
                in_force: in_force && container.in_force,
            });
        }
        problems.sort_by_key(|problem| !problem.blocking);
        let unguarded = containers.iter().any(|it| !it.in_force) || problems.iter().any(|it| it.blocking);
        let phase = match standing {
            Standing::Pending => v1::GuardPhase::Pending,
            Standing::InForce if !unguarded => v1::GuardPhase::InForce,
            Standing::InForce | Standing::Degraded => v1::GuardPhase::Degraded,
            Standing::Draining | Standing::Absent => v1::GuardPhase::Draining,
            Standing::Failed => v1::GuardPhase::Failed,
        };
        v1::GuardState {
            guard: Some(v1::GuardRef {
                uid: id.guard.to_string(),
                namespace: entry.guard.0.clone(),
                name: entry.guard.1.clone(),
                generation: entry.unit.in_force().map_or(0, |target| target.generation),
            }),
            pod: Some(v1::PodRef {
                uid: id.pod.to_string(),
                cgroup_uid: entry.pod.cgroup_uid().to_string(),
                namespace: entry.pod.namespace().to_owned(),
                name: entry.pod.name().to_owned(),
            }),
            phase: phase.into(),
            marks: Some(v1::Marks { filesystem: containers.len() as u64, ..Default::default() }),
            containers,
            problem_count: u32::try_from(problems.len()).unwrap(),
            problems: problems.into_iter().take(MOST_PROBLEMS).collect(),
            accepted_generation: entry.unit.accepted().map_or(0, |target| target.generation),
            counters: entry.run.map(|_| v1::GuardCounters::default()),
            failures: entry.unit.failures(),
            restarts: entry.unit.restarts(),
        }
    }
}

fn failed(failure: &Failure, standing: Standing) -> v1::Problem {
    let reason = match failure {
        _ if standing == Standing::Degraded => "UpdateFailed",
        Failure::Limit { .. } => "LimitReached",
        Failure::Kernel(_) => "KernelLacksFeature",
        Failure::Internal(_) => "NotInForce",
    };
    let (reason, message) = (reason.to_owned(), failure.to_string());
    v1::Problem { reason, message, blocking: true, ..Default::default() }
}

//! The thread that owns every unit, `janus-registry`.
//!
//! Flow: calls come over a channel, each with the way to its answer; what the engine has to say comes over the same one. Each
//! message goes through its unit's state machine, the effect is carried out through the port, and whoever waits for what
//! has come about is answered. Nothing here blocks but the channel, so a guard that hangs holds up no other.
//!
//! Must never: wait for a guard, or judge what is on the wire.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::port::{Enforcer, Failure, Job, Limit, Looked, Run, Teller};
use super::state::{Effect, Health, Input, Phase, Refusal, Standing, Ticket, Unit};
use super::{Bounds, Leader};
use crate::doorbell::Bell;
use crate::guard::Report;
use crate::guard::transfer::{Estate, Transfer};
use crate::metrics::{GuardState, MarkCounts, Tally};
use crate::policy::{GuardName, GuardSpec};
use crate::wire::{ContainerName, Create, Destroy, PodName, UnitId};

/// Guards that are in no pod any more whose series are kept a while longer: one that moves between pods keeps its counts.
const REMEMBERED: usize = 64;
/// Names of containers that are kept of a pod: more than it can have at once. The oldest go first.
const MOST_NAMES: usize = 512;

/// A spec as the state machine compares it: two that were sent alike mean the same. Not the pod: what is learned of it is
/// news, and no other spec.
#[derive(Debug, Clone)]
pub struct Brief {
    create: Arc<Create>,
    spec: Arc<GuardSpec>,
}

impl PartialEq for Brief {
    fn eq(&self, other: &Brief) -> bool {
        self.create.sent == other.create.sent
    }
}

impl Eq for Brief {}

pub(super) enum Message {
    Create(Box<Create>, Reply<UnitState>),
    Destroy(Destroy, Reply<()>),
    Look(UnitId, oneshot::Sender<Option<Box<UnitState>>>),
    All(oneshot::Sender<Everything>),
    Done { unit: UnitId, run: Ticket, step: Ticket },
    Looked { unit: UnitId, look: u64 },
    Failed { unit: UnitId, run: Ticket, step: Ticket, failure: Failure },
    Gone { unit: UnitId, run: Ticket },
    Drain(oneshot::Sender<()>),
    Bequeath(oneshot::Sender<(Vec<Bequest>, u64)>),
    Bequeathed,
    Units(oneshot::Sender<Vec<Bequest>>),
    Resume,
    Tell(Bell),
    Inherit(Box<Create>, Option<Box<Estate>>, u64, Reply<UnitState>),
    End,
}

type Reply<T> = oneshot::Sender<Result<Box<T>, Denied>>;

/// Why a call was not carried out, or came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It does not count.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be put in force; it is tried again, unless a limit of the daemon's own stands against it.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// It was lifted again before it was in force.
    #[error("the guard was lifted again before it was in force")]
    Lifted,
    /// The registry has ended.
    #[error("the daemon is ending")]
    Ended,
}

/// A unit that is to be brought to another process, or was brought from one.
#[derive(Debug)]
pub struct Bequest {
    /// Guard and pod.
    pub unit: UnitId,
    /// The guard's names.
    pub guard: GuardName,
    /// What is to be in force.
    pub create: Arc<Create>,
    /// The highest epoch that it has seen.
    pub epoch: u64,
    /// Names of its containers, as far as any caller has known them.
    pub containers: Vec<ContainerName>,
    /// Its run, if it has one that could be handed over, and what it has answered.
    pub run: Option<(Transfer, Arc<Tally>)>,
}

/// All there is.
#[derive(Debug)]
pub struct Everything {
    /// The units.
    pub units: Vec<UnitState>,
    /// The highest epoch that was heard.
    pub epoch: u64,
    /// No more guards are taken.
    pub draining: bool,
}

/// One unit, as it stands.
#[derive(Debug)]
pub struct UnitState {
    /// Guard and pod.
    pub unit: UnitId,
    /// The guard's names.
    pub guard: GuardName,
    /// The pod.
    pub pod: PodName,
    /// How it stands.
    pub standing: Standing,
    /// The generation in force; 0 while none is.
    pub generation: i64,
    /// The generation that was last accepted.
    pub accepted: i64,
    /// Tries that failed one after the other.
    pub failures: u32,
    /// Times that it was put in force anew because it had died.
    pub restarts: u64,
    /// Why the last try failed, until one succeeds.
    pub failure: Option<Failure>,
    /// The rules in force, or those that are to be.
    pub spec: Arc<GuardSpec>,
    /// How its run is, and what it has answered, if there is one.
    pub run: Option<(Report, Arc<Tally>)>,
}

/// The way to the registry.
#[derive(Debug, Clone)]
pub struct Registry {
    messages: Sender<Message>,
    census: Census,
    draining: Arc<AtomicBool>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

/// The thread, to be joined.
#[derive(Debug)]
pub struct RegistryThread {
    thread: JoinHandle<()>,
    messages: Sender<Message>,
}

impl Registry {
    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel's, when no thread can be had.
    pub fn start<E: Enforcer>(enforcer: E, bounds: Bounds) -> std::io::Result<(Registry, RegistryThread)> {
        let (sender, messages) = unbounded();
        let census = Census::default();
        let draining = Arc::new(AtomicBool::new(false));
        let clerk = Clerk {
            enforcer,
            bounds,
            messages,
            post: sender.clone(),
            leader: Leader::default(),
            units: BTreeMap::new(),
            retries: BinaryHeap::new(),
            series: 0,
            looks: 0,
            empty: Vec::new(),
            census: census.clone(),
            draining: draining.clone(),
            drained: Vec::new(),
            bequeathing: false,
            ending: false,
            bell: None,
            began: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("janus-registry".into()).spawn(move || clerk.serve())?;
        Ok((Registry { messages: sender.clone(), census, draining }, RegistryThread { thread, messages: sender }))
    }

    /// Puts a guard in force in a pod; answers once it is, or is not to be. Dropped, it goes on all the same.
    ///
    /// # Errors
    /// [`Denied`].
    pub async fn create(&self, create: Create) -> Result<Box<UnitState>, Denied> {
        self.ask(|reply| Message::Create(Box::new(create), reply)).await.unwrap_or(Err(Denied::Ended))
    }

    /// Lifts a guard from a pod; answers once it is lifted. Dropped, it goes on all the same.
    ///
    /// # Errors
    /// [`Denied`].
    pub async fn destroy(&self, destroy: Destroy) -> Result<(), Denied> {
        let answer = self.ask(|reply| Message::Destroy(destroy, reply)).await;
        answer.unwrap_or(Err(Denied::Ended)).map(|_| ())
    }

    /// How a unit stands; `None`: it is not there.
    pub async fn look(&self, unit: UnitId) -> Option<Box<UnitState>> {
        self.ask(|reply| Message::Look(unit, reply)).await.flatten()
    }

    /// How all units stand; `None`: the registry has ended.
    pub async fn all(&self) -> Option<Everything> {
        self.ask(Message::All).await
    }

    /// Takes no more guards, and lifts those that there are; answers once they are lifted. While another process is about to
    /// take them, that is decided first.
    pub async fn drain(&self) {
        // Ended: then they are.
        let _ended = self.ask(Message::Drain).await;
    }

    /// Takes no more calls, and gives what there is and the highest epoch heard: all of it is to be in another process's
    /// hands soon. [`Registry::resume`] goes on, [`Registry::bequeathed`] ends it. `None`: the registry has ended.
    ///
    /// Blocks, so not for async code.
    pub fn bequeath(&self) -> Option<(Vec<Bequest>, u64)> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Bequeath(reply)).ok()?;
        answer.blocking_recv().ok()
    }

    /// What there is, as it would be handed over; it goes on. `None`: the registry has ended.
    ///
    /// Blocks, so not for async code.
    pub fn units(&self) -> Option<Vec<Bequest>> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Units(reply)).ok()?;
        answer.blocking_recv().ok()
    }

    /// All that was given is in another process's hands: lifts what is left of it here.
    pub fn bequeathed(&self) {
        // Ended: then nothing is left.
        let _ended = self.messages.send(Message::Bequeathed);
    }

    /// Rings whenever something has changed.
    pub(crate) fn ring(&self, bell: Bell) {
        // Ended: then nothing changes.
        let _ended = self.messages.send(Message::Tell(bell));
    }

    /// Takes calls again.
    pub fn resume(&self) {
        // Ended: then nobody calls.
        let _ended = self.messages.send(Message::Resume);
    }

    /// Takes a unit from another process, as [`Registry::create`] does from a call; with an estate, its groups. `epoch` is
    /// the highest that one had heard. The answer comes once it is ready.
    pub fn inherit(
        &self,
        create: Create,
        estate: Option<Estate>,
        epoch: u64,
    ) -> oneshot::Receiver<Result<Box<UnitState>, Denied>> {
        let (reply, answer) = oneshot::channel();
        // Ended: whoever waits for the answer learns that.
        let _ended = self.messages.send(Message::Inherit(Box::new(create), estate.map(Box::new), epoch, reply));
        answer
    }

    /// Whether no more guards are taken.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// How many guards are how.
    pub fn census(&self) -> Census {
        self.census.clone()
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).ok()?;
        answer.await.ok()
    }
}

impl RegistryThread {
    /// Ends the thread; drain first, or guards are lifted without anybody waiting for that.
    pub fn end(self) {
        // It has ended by itself: never.
        let _ended = self.messages.send(Message::End);
        if self.thread.join().is_err() {
            tracing::error!("the registry panicked");
        }
    }
}

/// How many guards are how, for metrics and readiness; kept up to date by the registry, read without asking it.
#[derive(Debug, Clone, Default)]
pub struct Census(Arc<Mutex<BTreeMap<UnitId, Counted>>>);

#[derive(Debug)]
struct Counted {
    standing: Standing,
    phase: Phase,
    /// Was in force, died, and is not back yet.
    died: bool,
    /// The last update has failed.
    behind: bool,
    report: Option<Arc<Mutex<Report>>>,
}

fn health(report: &Mutex<Report>) -> Health {
    let report = report.lock();
    let unguarded = report.problems.iter().any(|problem| problem.reason.degrades());
    if unguarded || report.sites.iter().any(|site| !site.in_force) { Health::Degraded } else { Health::InForce }
}

impl Census {
    /// The state of each.
    pub fn states(&self) -> Vec<GuardState> {
        let state = |counted: &Counted| match (counted.standing, counted.phase) {
            (Standing::Failed, _) => GuardState::Failed,
            (_, Phase::Draining | Phase::Stopped) => GuardState::Draining,
            (_, Phase::Starting | Phase::Failed) => GuardState::Starting,
            (_, Phase::Updating) => GuardState::Updating,
            (_, Phase::Guarding) if counted.behind => GuardState::Degraded,
            // As it is now, which the machine is told only when somebody asks.
            (_, Phase::Guarding) => match counted.report.as_deref().map(health) {
                Some(Health::InForce) => GuardState::Guarding,
                Some(Health::Degraded) | None => GuardState::Degraded,
            },
        };
        self.0.lock().values().map(state).collect()
    }

    /// All marks of all of them.
    pub fn marks(&self) -> MarkCounts {
        let census = self.0.lock();
        let reports = census.values().filter_map(|counted| counted.report.as_ref());
        reports.map(|report| report.lock().marks).fold(MarkCounts::default(), MarkCounts::plus)
    }

    /// How many were in force, died, and are not back yet.
    pub fn dead(&self) -> usize {
        self.0.lock().values().filter(|counted| counted.died).count()
    }
}

struct Entry<R> {
    unit: Unit<Brief>,
    guard: GuardName,
    pod: PodName,
    spec: Arc<GuardSpec>,
    run: Option<(Ticket, R)>,
    /// The step whose outcome is in force.
    step: Option<Ticket>,
    /// Names of its containers, as far as any caller has known them.
    names: Vec<ContainerName>,
    /// The look at its containers that those wait for who created again what is in force.
    looking: Option<u64>,
    /// Worker threads that were begun anew in runs that have ended.
    worker_restarts: u64,
    /// The run that was told to end because its start came to nothing.
    ending: Option<Ticket>,
    failure: Option<Failure>,
    created: Vec<Reply<UnitState>>,
    destroyed: Vec<Reply<()>>,
    /// From another process, for its first run.
    estate: Option<Box<Estate>>,
}

struct Clerk<E: Enforcer> {
    enforcer: E,
    bounds: Bounds,
    messages: Receiver<Message>,
    post: Sender<Message>,
    leader: Leader,
    units: BTreeMap<UnitId, Entry<E::Run>>,
    retries: BinaryHeap<Reverse<(Instant, UnitId, Ticket)>>,
    /// Of the next unit.
    series: u32,
    /// Looks that were asked for.
    looks: u64,
    /// Guards that are in no pod, the last one last.
    empty: Vec<GuardName>,
    census: Census,
    draining: Arc<AtomicBool>,
    drained: Vec<oneshot::Sender<()>>,
    /// Another process is about to take all of it.
    bequeathing: bool,
    /// All of it is to be lifted, then if not now.
    ending: bool,
    /// Rung when a unit has changed.
    bell: Option<Bell>,
    began: Instant,
}

impl<E: Enforcer> Clerk<E> {
    fn serve(mut self) {
        while let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| self.run())) {
            // Whoever waited for the message that did it is told that the daemon is ending. Guards go on.
            let message = crate::guard::supervisor::panic_text(&*panic);
            tracing::error!(message, "the registry panicked; it goes on with the next call");
        }
    }

    fn run(&mut self) {
        loop {
            // What has failed here may do better there.
            let due = self.retries.peek().map(|Reverse((due, ..))| *due).filter(|_| !self.bequeathing);
            let message = match due {
                Some(due) => self.messages.recv_deadline(due),
                None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            while !self.bequeathing
                && let Some(Reverse((due, ..))) = self.retries.peek()
                && *due <= Instant::now()
                && let Some(Reverse((_, unit, ticket))) = self.retries.pop()
            {
                self.feed(&unit, Input::RetryDue { ticket });
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Create(create, reply) => self.create(*create, None, false, reply),
            Message::Destroy(destroy, reply) => self.destroy(destroy, reply),
            Message::Look(unit, reply) => {
                self.refresh(&unit);
                // Whoever asked has gone; so below.
                let _gone = reply.send(self.units.get(&unit).map(|entry| Box::new(entry.state(&unit))));
            }
            Message::All(reply) => {
                let ids: Vec<UnitId> = self.units.keys().cloned().collect();
                ids.iter().for_each(|unit| self.refresh(unit));
                let units = self.units.iter().map(|(unit, entry)| entry.state(unit)).collect();
                let draining = self.draining.load(Ordering::Relaxed);
                let _gone = reply.send(Everything { units, epoch: self.leader.epoch(), draining });
            }
            Message::Done { unit, run, step } => {
                let Some(entry) = self.units.get_mut(&unit).filter(|entry| entry.runs(run)) else { return };
                if entry.ending.is_none() {
                    let health = entry.health();
                    entry.step = Some(step);
                    self.feed(&unit, Input::Done { ticket: step, health });
                    if let Some(entry) = self.units.get_mut(&unit)
                        && entry.unit.failures() == 0
                    {
                        entry.failure = None;
                    }
                }
            }
            Message::Looked { unit, look } => {
                let Some(entry) = self.units.get_mut(&unit).filter(|entry| entry.looking == Some(look)) else { return };
                entry.looking = None;
                self.settle(&unit);
            }
            Message::Failed { unit, run, step, failure } => {
                let Some(entry) = self.units.get_mut(&unit).filter(|entry| entry.runs(run)) else { return };
                // It has been told to end, and whatever it was about with it.
                if entry.unit.phase() == Phase::Draining || entry.ending.is_some() {
                    return;
                }
                tracing::warn!(guard = %entry.guard, pod = entry.pod.name(), %failure, "not put in force; it is tried again");
                entry.failure = Some(failure);
                if run == step && entry.unit.phase() == Phase::Starting {
                    // There must not be two of them: the next one starts once this one has ended.
                    entry.ending = Some(run);
                    if let Some((_, run)) = &entry.run {
                        run.stop();
                    }
                } else {
                    self.feed(&unit, Input::Failed { ticket: step });
                }
            }
            Message::Gone { unit, run } => {
                let Some(entry) = self.units.get_mut(&unit).filter(|entry| entry.runs(run)) else { return };
                if entry.ending.take().is_none() && matches!(entry.unit.phase(), Phase::Guarding | Phase::Updating) {
                    entry.failure = Some(Failure::Internal("the guard has ended by itself".to_owned()));
                }
                if let Some((_, run)) = entry.run.take() {
                    entry.worker_restarts += run.tally().restarts();
                    run.finish();
                }
                (entry.step, entry.looking) = (None, None);
                self.feed(&unit, Input::Gone { run });
            }
            Message::Drain(reply) => {
                self.draining.store(true, Ordering::Relaxed);
                self.drained.push(reply);
                self.ending = true;
                // What is lifted takes its marks along, and the other process may be about to rest on those.
                if !self.bequeathing {
                    self.drain();
                }
            }
            Message::Bequeathed => {
                self.bequeathing = false;
                self.drain();
            }
            Message::Bequeath(reply) => {
                self.bequeathing = true;
                self.draining.store(true, Ordering::Relaxed);
                let bequests = self.units.iter().filter_map(|(id, entry)| entry.bequest(id)).collect();
                let _gone = reply.send((bequests, self.leader.epoch()));
            }
            Message::Units(reply) => {
                let _gone = reply.send(self.units.iter().filter_map(|(id, entry)| entry.bequest(id)).collect());
            }
            Message::Tell(bell) => self.bell = Some(bell),
            Message::Resume => {
                self.bequeathing = false;
                if self.ending {
                    self.drain();
                } else {
                    self.draining.store(false, Ordering::Relaxed);
                }
            }
            Message::Inherit(create, estate, epoch, reply) => {
                // Heard by that one; later leaders may have called here since.
                let _stale = self.leader.hear(epoch);
                self.create(*create, estate, true, reply);
            }
            Message::End => {}
        }
    }

    fn drain(&mut self) {
        let ids: Vec<UnitId> = self.units.keys().cloned().collect();
        ids.iter().for_each(|unit| self.feed(unit, Input::Drain));
        self.tell_drained();
    }

    /// `inherited`: of another process, with an estate or without.
    fn create(&mut self, create: Create, estate: Option<Box<Estate>>, inherited: bool, reply: Reply<UnitState>) {
        let denied = |reply: Reply<UnitState>, denied: Denied| {
            let _gone = reply.send(Err(denied));
        };
        if self.draining.load(Ordering::Relaxed) {
            return denied(reply, Refusal::Draining.into());
        }
        // What was inherited may have come by an earlier leader than the last one that was heard.
        if !inherited && let Err(refusal) = self.leader.hear(create.caller.epoch()) {
            return denied(reply, refusal.into());
        }
        let id = create.unit.clone();
        let guard = create.spec.name().clone();
        if !self.units.contains_key(&id)
            && let Err(failure) = self.admit(&guard)
        {
            return denied(reply, failure.into());
        }
        let (epoch, generation) = (create.caller.epoch(), create.generation);
        let create = Arc::new(create);
        let spec = Arc::new(create.spec.clone());
        let brief = Brief { create: create.clone(), spec: spec.clone() };
        let now = self.now();
        if !self.units.contains_key(&id) {
            self.series = self.series.wrapping_add(1);
        }
        let series = self.series;
        let entry = self.units.entry(id.clone()).or_insert_with(|| Entry {
            unit: Unit::series(series),
            guard: guard.clone(),
            pod: create.pod.clone(),
            spec,
            run: None,
            step: None,
            names: Vec::new(),
            looking: None,
            worker_restarts: 0,
            ending: None,
            failure: None,
            created: Vec::new(),
            destroyed: Vec::new(),
            estate: None,
        });
        entry.estate = estate;
        let effect = entry.unit.apply(Input::Create { epoch, generation, spec: brief }, now);
        if !matches!(effect, Effect::Start { .. }) {
            // It is for no later run: by then nobody may have those groups any more.
            entry.estate = None;
        }
        if let Effect::Refuse(refusal) = effect {
            denied(reply, refusal.into());
            return self.settle(&id);
        }
        entry.pod = create.pod.clone();
        entry.learn(&create.containers);
        // Whoever calls again and again, and does not wait for the answer.
        entry.created.retain(|reply| !reply.is_closed());
        entry.created.push(reply);
        // In force it was; is it in force in the containers that there are by now?
        let look = effect == Effect::Nothing && entry.unit.phase() == Phase::Guarding;
        self.empty.retain(|empty| *empty != guard);
        self.carry_out(&id, effect);
        if look {
            self.look(&id);
        }
        self.settle(&id);
    }

    /// Has a unit's containers looked at; whoever waits is answered afterwards.
    fn look(&mut self, id: &UnitId) {
        self.looks += 1;
        let looked = Looked { messages: self.post.clone(), unit: id.clone(), look: self.looks };
        let Some(entry) = self.units.get_mut(id) else { return };
        let Some(job) = entry.unit.in_force().cloned().map(|target| entry.job(id, &target)) else { return };
        if let Some((_, run)) = &mut entry.run {
            entry.looking = Some(self.looks);
            run.look(&job, looked);
        }
    }

    /// Whether one more guard is taken.
    fn admit(&self, guard: &GuardName) -> Result<(), Failure> {
        let Bounds { guards, of_namespace } = self.bounds;
        let limit = |limit, at: u32, whose: &str| {
            let text = format!("{whose} {at} guards in pods of this node, and there may be no more");
            Err(Failure::Limit { limit, at: Some(at.into()), text })
        };
        // First, for it knows why no more fit.
        self.enforcer.admit(self.units.len())?;
        if self.units.len() >= guards as usize {
            return limit(Limit::Guards, guards, "there are");
        }
        let of_this = self.units.values().filter(|entry| entry.guard.namespace == guard.namespace).count();
        if of_this >= of_namespace as usize {
            return limit(Limit::Namespace, of_namespace, "the namespace has");
        }
        Ok(())
    }

    fn destroy(&mut self, destroy: Destroy, reply: Reply<()>) {
        if self.bequeathing {
            let _gone = reply.send(Err(Refusal::Draining.into()));
            return;
        }
        if let Err(refusal) = self.leader.hear(destroy.caller.epoch()) {
            let _gone = reply.send(Err(refusal.into()));
            return;
        }
        let now = self.now();
        let Some(entry) = self.units.get_mut(&destroy.unit) else {
            let _gone = reply.send(Ok(Box::new(())));
            return;
        };
        let input = Input::Destroy { epoch: destroy.caller.epoch(), generation: destroy.generation };
        let effect = entry.unit.apply(input, now);
        if let Effect::Refuse(refusal) = effect {
            let _gone = reply.send(Err(refusal.into()));
            return;
        }
        entry.destroyed.retain(|reply| !reply.is_closed());
        entry.destroyed.push(reply);
        self.carry_out(&destroy.unit, effect);
        self.settle(&destroy.unit);
    }

    /// Tells a unit's machine something, and carries out what comes of it.
    fn feed(&mut self, id: &UnitId, input: Input<Brief>) {
        let now = self.now();
        let Some(entry) = self.units.get_mut(id) else { return };
        let effect = entry.unit.apply(input, now);
        self.carry_out(id, effect);
        self.settle(id);
    }

    fn carry_out(&mut self, id: &UnitId, first: Effect<Brief>) {
        let mut effect = first;
        loop {
            let now = self.now();
            let running = self.units.values().filter(|entry| entry.run.is_some()).count();
            let Some(entry) = self.units.get_mut(id) else { return };
            let teller = |run, step| Teller { messages: self.post.clone(), unit: id.clone(), run, step };
            effect = match effect {
                // A refusal is told to whoever called.
                Effect::Nothing | Effect::Refuse(_) => return,
                Effect::Start { ticket, target } => {
                    let (job, teller) = (entry.job(id, &target), teller(ticket, ticket));
                    let started = match entry.estate.take() {
                        None => self.enforcer.start(&job, running, teller),
                        Some(estate) => self.enforcer.inherit(&job, running, teller, *estate),
                    };
                    match started {
                        Ok(run) => {
                            entry.run = Some((ticket, run));
                            return;
                        }
                        Err(failure) => {
                            tracing::warn!(guard = %entry.guard, pod = entry.pod.name(), %failure, "not started; it is tried again");
                            entry.failure = Some(failure);
                            entry.unit.apply(Input::Failed { ticket }, now)
                        }
                    }
                }
                Effect::Update { run, ticket, target } => {
                    // It looks at the containers too.
                    entry.looking = None;
                    let job = entry.job(id, &target);
                    if let Some((_, running)) = &mut entry.run {
                        running.update(&job, teller(run, ticket));
                    }
                    return;
                }
                Effect::Stop { .. } => {
                    if let Some((_, run)) = &entry.run {
                        run.stop();
                    }
                    return;
                }
                Effect::Retry { ticket, after } => {
                    self.retries.push(Reverse((Instant::now() + after, id.clone(), ticket)));
                    return;
                }
            };
        }
    }

    /// Tells a unit's machine how its run is by now.
    fn refresh(&mut self, id: &UnitId) {
        let now = self.now();
        if let Some(entry) = self.units.get_mut(id)
            && let Some(ticket) = entry.step
        {
            let health = entry.health();
            // No step is due: it was done long ago.
            let _nothing = entry.unit.apply(Input::Done { ticket, health }, now);
        }
    }

    /// Answers whoever waits for what has come about, and forgets a unit that is no more.
    fn settle(&mut self, id: &UnitId) {
        self.refresh(id);
        // Before anybody is answered, who may look at once.
        self.count(id);
        let Some(entry) = self.units.get_mut(id) else { return };
        let standing = entry.unit.standing();
        if standing != Standing::Pending && entry.looking.is_none() {
            for reply in std::mem::take(&mut entry.created) {
                let answer = match standing {
                    Standing::Absent | Standing::Draining => Err(Denied::Lifted),
                    Standing::Failed => Err(entry.why_failed().into()),
                    Standing::Pending | Standing::InForce | Standing::Degraded => Ok(Box::new(entry.state(id))),
                };
                let _gone = reply.send(answer);
            }
        }
        if entry.unit.phase() != Phase::Draining {
            // Lifted, and perhaps on its way again by a later call.
            for reply in std::mem::take(&mut entry.destroyed) {
                let _gone = reply.send(Ok(Box::new(())));
            }
        }
        if standing == Standing::Absent {
            let guard = entry.guard.clone();
            self.units.remove(id);
            if !self.units.values().any(|entry| entry.guard == guard) {
                self.empty.push(guard);
                if self.empty.len() > REMEMBERED {
                    self.enforcer.forget(&self.empty.remove(0));
                }
            }
            self.count(id);
        }
        self.tell_drained();
    }

    fn count(&self, id: &UnitId) {
        if let Some(bell) = &self.bell {
            bell.ring();
        }
        let mut census = self.census.0.lock();
        match self.units.get(id) {
            None => drop(census.remove(id)),
            Some(entry) => {
                let counted = Counted {
                    standing: entry.unit.standing(),
                    phase: entry.unit.phase(),
                    died: entry.unit.died(),
                    behind: entry.unit.failures() > 0,
                    report: entry.run.as_ref().map(|(_, run)| run.reports()),
                };
                census.insert(id.clone(), counted);
            }
        }
    }

    fn tell_drained(&mut self) {
        if self.units.is_empty() {
            for reply in std::mem::take(&mut self.drained) {
                let _gone = reply.send(());
            }
        }
    }
}

impl<R: Run> Entry<R> {
    /// Whether this is the run that there is: what another one has left to say is of no account.
    fn runs(&self, run: Ticket) -> bool {
        self.run.as_ref().is_some_and(|(ticket, _)| *ticket == run)
    }

    fn health(&self) -> Health {
        self.run.as_ref().map_or(Health::Degraded, |(_, run)| health(&run.reports()))
    }

    fn learn(&mut self, containers: &[ContainerName]) {
        self.names.retain(|known| !containers.iter().any(|container| container.id() == known.id()));
        self.names.extend_from_slice(containers);
        let too_many = self.names.len().saturating_sub(MOST_NAMES);
        self.names.drain(..too_many);
    }

    fn job(&self, id: &UnitId, target: &super::Target<Brief>) -> Job {
        Job {
            unit: id.clone(),
            pod: self.pod.clone(),
            generation: target.generation,
            spec: target.spec.spec.clone(),
            containers: self.names.clone(),
        }
    }

    fn bequest(&self, id: &UnitId) -> Option<Bequest> {
        let target = self.unit.accepted()?;
        let (create, containers) = (target.spec.create.clone(), self.names.clone());
        let (epoch, _) = self.unit.seen();
        let run = self.run.as_ref().filter(|_| self.ending.is_none() && self.unit.phase() != Phase::Draining);
        let run = run.and_then(|(_, run)| Some((run.transfer()?, run.tally())));
        Some(Bequest { unit: id.clone(), guard: self.guard.clone(), create, epoch, containers, run })
    }

    fn why_failed(&self) -> Failure {
        self.failure.clone().unwrap_or_else(|| Failure::Internal("the guard could not be put in force".to_owned()))
    }

    fn state(&self, id: &UnitId) -> UnitState {
        let run = self.run.as_ref().map(|(_, run)| (run.reports().lock().clone(), run.tally()));
        let target = self.unit.in_force().or(self.unit.accepted());
        let worker_restarts = run.as_ref().map_or(0, |(_, tally)| tally.restarts());
        UnitState {
            unit: id.clone(),
            guard: self.guard.clone(),
            pod: self.pod.clone(),
            standing: self.unit.standing(),
            generation: self.unit.in_force().map_or(0, |target| target.generation),
            accepted: self.unit.accepted().map_or(0, |target| target.generation),
            failures: self.unit.failures(),
            restarts: self.unit.restarts() + self.worker_restarts + worker_restarts,
            failure: self.failure.clone(),
            spec: target.map_or(&self.spec, |target| &target.spec.spec).clone(),
            run,
        }
    }
}

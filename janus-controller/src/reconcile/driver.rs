//! One node: keeps what its janusd enforces equal to what the hub says should be.
//!
//! Level-triggered: whatever wakes the driver, it compares all that is desired with all that is known, and tells the
//! daemon the difference. What is known comes from the daemon alone: from GetGuardState, first on every connection and
//! then every resync, and from the answers of calls in between.
//!
//! Calls that change something begin by turns ([`super::turns`]): a request is made when it is its turn, by what is desired
//! then.
//!
//! A unit has at most one call under way. An answer of GetGuardState that was asked for before a unit's call ended says
//! nothing about that unit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use janus_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::port::{CallError, Daemon, Daemons, Lead, Lost, Refused, State};
use super::session::{Answer, Doing, Session, comes, create_request};
use super::turns::{Turn, Turns};
use crate::core::observation::{Observation, Phase, plain};
use crate::core::plan::{Cause, Desired, Known, Step, fingerprint, plan};
use crate::core::spec::Features;
use crate::core::status::{Held, Refusal};
use crate::core::unit::UnitId;
use crate::index::Target;
use crate::metrics::{Difference, Metrics, Outcome};

/// Calls to one daemon at once: it arms three guards at a time.
const CALLS: usize = 8;
/// A connection that has lasted so long was not in vain: the next one is not waited for longer than the first.
const STEADY: Duration = Duration::from_secs(30);

/// What should be on a node.
#[derive(Debug, Default)]
pub struct Orders {
    /// Its daemon; none: there is none any more, and the driver ends.
    pub target: Option<Target>,
    /// What should be in force.
    pub desired: Desired,
    /// The driver says so, once nothing is on its way to the daemon any more that is not in these orders or later ones.
    pub receipt: Option<u64>,
}

/// What a driver has to tell.
#[derive(Debug)]
pub struct Report {
    /// The node.
    pub node: Arc<str>,
    /// What of it.
    pub news: News,
}

/// What is new on a node.
#[derive(Debug)]
pub enum News {
    /// Units as the daemon sees them now; without observation and refusal: it has no such unit.
    Units(Vec<(UnitId, Held, By)>),
    /// The daemon has answered for its whole state.
    Answered {
        /// When.
        at: Instant,
        /// What it knows.
        features: Features,
    },
    /// Orders of this receipt, and all before them, have been obeyed: nothing that was only in earlier ones is on its way
    /// to the daemon any more.
    Obeyed(u64),
    /// It cannot be reached.
    Lost(Lost),
}

/// How a unit came to be as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// It was found so.
    Look,
    /// We told the daemon.
    Create,
    /// We told the daemon.
    Destroy,
}

/// How long to wait, for what.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two looks at a daemon's whole state.
    pub resync: Duration,
}

impl Pace {
    /// Age at which an answer is too old to count.
    pub fn stale(self) -> Duration {
        self.resync * 3
    }
}

/// The driver of one node.
pub struct Driver<D: Daemons, L: Lead> {
    node: Arc<str>,
    daemons: D,
    lead: L,
    orders: watch::Receiver<Arc<Orders>>,
    reports: mpsc::Sender<Report>,
    pace: Pace,
    metrics: Arc<Metrics>,
    turns: Turns,
    known: HashMap<UnitId, Known>,
    refused: HashMap<UnitId, Arc<Refusal>>,
    /// The last receipt that was given.
    obeyed: u64,
}

/// Why a session with a daemon is over.
enum Ended {
    /// Nobody needs us any more, or we may not act.
    Closed,
    /// The node's daemon is another one, or none.
    Moved,
    /// It cannot be reached.
    Lost(Lost),
}

/// The hub is gone.
struct Gone;

impl<D: Daemons, L: Lead> Driver<D, L> {
    /// A driver, which [`Driver::run`] starts.
    pub fn new(
        node: Arc<str>,
        daemons: D,
        lead: L,
        orders: watch::Receiver<Arc<Orders>>,
        reports: mpsc::Sender<Report>,
        pace: Pace,
        metrics: Arc<Metrics>,
    ) -> Driver<D, L> {
        let (known, refused, turns) = (HashMap::new(), HashMap::new(), Turns::default());
        Driver { node, daemons, lead, orders, reports, pace, metrics, turns, known, refused, obeyed: 0 }
    }

    /// With turns that it shares with others.
    pub fn taking(self, turns: Turns) -> Driver<D, L> {
        Driver { turns, ..self }
    }

    /// Drives the node until it has no daemon, we do not lead, or the hub is gone. Gives the node's name.
    pub async fn run(mut self) -> Arc<str> {
        let node = self.node.clone();
        let mut delays = self.pace.reconnects();
        let mut current = None;
        loop {
            let target = self.orders.borrow_and_update().target.clone();
            let Some(target) = target else {
                // The hub may be gone as well.
                let _gone = self.forget_all().await;
                return node;
            };
            if current.as_ref() != Some(&target) {
                delays = self.pace.reconnects();
                current = Some(target.clone());
            }
            let began = Instant::now();
            match self.session(&target).await {
                Err(Gone) | Ok(Ended::Closed) => return node,
                Ok(Ended::Moved) => {}
                Ok(Ended::Lost(lost)) => {
                    tracing::debug!(%node, daemon = %target.address, %lost, "janusd cannot be reached");
                    if self.report(News::Lost(lost)).await.is_err() {
                        return node;
                    }
                    if began.elapsed() >= STEADY {
                        delays = self.pace.reconnects();
                    }
                    let delay = delays.next().unwrap_or(self.pace.resync);
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        moved = self.moved(&target) => if moved.is_err() { return node },
                    }
                }
            }
        }
    }

    /// Until the node's daemon is not this one.
    async fn moved(&mut self, target: &Target) -> Result<(), Gone> {
        let other = self.orders.wait_for(|orders| orders.target.as_ref() != Some(target)).await;
        other.map(drop).map_err(|_closed| Gone)
    }

    async fn report(&self, news: News) -> Result<(), Gone> {
        self.reports.send(Report { node: self.node.clone(), news }).await.map_err(|_closed| Gone)
    }

    async fn forget_all(&mut self) -> Result<(), Gone> {
        let units: HashSet<UnitId> = self.known.drain().map(|(unit, _)| unit).collect();
        let units = units.into_iter().chain(self.refused.drain().map(|(unit, _)| unit));
        let news = units.map(|unit| (unit, Held::default(), By::Look)).collect();
        self.report(News::Units(news)).await
    }

    /// What was refused is of no account once nobody wants it.
    async fn forget_refusals(&mut self, desired: &Desired) -> Result<(), Gone> {
        let over = self.refused.keys().filter(|unit| !desired.units.contains_key(*unit));
        let over: Vec<UnitId> = over.cloned().collect();
        if over.is_empty() {
            return Ok(());
        }
        over.iter().for_each(|unit| drop(self.refused.remove(unit)));
        let news = over.into_iter().map(|unit| (unit.clone(), self.held(&unit), By::Look));
        self.report(News::Units(news.collect())).await
    }

    /// One connection, from its beginning to its end.
    async fn session(&mut self, target: &Target) -> Result<Ended, Gone> {
        let daemons = self.daemons.clone();
        // Kept apart: what a greeting takes is not to be a part of each driver for ever.
        let mut connecting = Box::pin(daemons.connect(target.address));
        let daemon = tokio::select! {
            connected = &mut connecting => match connected {
                Ok(daemon) => daemon,
                Err(lost) => return Ok(Ended::Lost(lost)),
            },
            moved = self.moved(target) => return moved.map(|()| Ended::Moved),
        };
        drop(connecting);
        let connection = daemon.clone();
        let mut closed = std::pin::pin!(connection.closed());
        let mut session = Session::new(daemon);
        loop {
            let orders = self.orders.borrow_and_update().clone();
            if orders.target.as_ref() != Some(target) {
                return Ok(Ended::Moved);
            }
            if !self.lead.may_act() {
                return Ok(Ended::Closed);
            }
            self.forget_refusals(&orders.desired).await?;
            if let Some(receipt) = orders.receipt.filter(|it| *it > self.obeyed)
                && session.obeys(&orders.desired)
            {
                self.obeyed = receipt;
                self.report(News::Obeyed(receipt)).await?;
            }
            session.look_if_due(Instant::now());
            let wake = self.tell(&mut session, &orders.desired);
            tokio::select! {
                Some(answer) = session.calls.next(), if !session.calls.is_empty() => {
                    if let Some(lost) = Box::pin(self.take(&mut session, answer, &orders.desired)).await? {
                        return Ok(Ended::Lost(lost));
                    }
                }
                turn = comes(&mut session.waiting) => {
                    session.waiting = None;
                    session.turn = Some(turn);
                }
                changed = self.orders.changed() => {
                    if changed.is_err() {
                        return Err(Gone);
                    }
                }
                () = &mut closed => {
                    return Ok(Ended::Lost(Lost { word: "closed", text: "the connection has ended".to_owned() }));
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Starts what calls there is room for, and whose turn it is. Gives the time at which there may be more to do.
    fn tell(&mut self, session: &mut Session<D::Daemon>, desired: &Desired) -> Instant {
        let mut wake = session.look_at;
        // Who has nothing to tell neither keeps a turn from others, nor waits for one.
        let (mut turn, waiting) = (session.turn.take(), session.waiting.take());
        let Some(features) = session.features else { return wake };
        if session.busy.len() >= CALLS {
            // One that ends wakes us.
            return wake;
        }
        let now = Instant::now();
        session.retries.retain(|unit, _| desired.units.contains_key(unit) || self.known.contains_key(unit));
        for step in plan(desired, &self.known, features) {
            if session.busy.len() >= CALLS {
                break;
            }
            let (Step::Create(unit, _) | Step::Destroy(unit, _)) = &step;
            if session.busy.contains_key(unit) {
                continue;
            }
            let sent = desired.units.get(unit).map_or(0, fingerprint);
            match session.retries.get(unit) {
                Some(retry) if retry.sent == sent && retry.at > now => {
                    wake = wake.min(retry.at);
                    continue;
                }
                _ => {}
            }
            let Some(turn) = turn.take().or_else(|| self.turns.take()) else {
                // So the request is not made yet, and the plan may change until then.
                session.waiting = Some(waiting.unwrap_or_else(|| self.turns.wait()));
                break;
            };
            let doing = if matches!(step, Step::Create(..)) { Doing::Create } else { Doing::Destroy };
            session.busy.insert(unit.clone(), doing);
            session.touched.insert(unit.clone());
            let call = self.call(session.daemon.clone(), turn, step, desired, sent);
            session.calls.push(call);
        }
        wake
    }

    fn call(
        &self,
        daemon: D::Daemon,
        turn: Turn,
        step: Step,
        desired: &Desired,
        sent: u64,
    ) -> BoxFuture<'static, Answer> {
        let caller = v1::Caller { epoch: self.lead.epoch(), node: self.node.to_string() };
        match step {
            Step::Create(unit, _) => {
                let wanted = desired.units.get(&unit).cloned();
                Box::pin(async move {
                    let Some(wanted) = wanted else {
                        // A plan names no unit to create that is not desired.
                        let result =
                            Err(CallError::Lost(Lost { word: "plan", text: "a unit nobody wants".to_owned() }));
                        return Answer::Created { unit, sent, generation: 0, result, took: Duration::ZERO };
                    };
                    let (generation, began) = (wanted.order.generation, Instant::now());
                    let result = turn.during(daemon.create(create_request(caller, &wanted))).await.map(Box::new);
                    Answer::Created { unit, sent, generation, result, took: began.elapsed() }
                })
            }
            Step::Destroy(unit, generation) => Box::pin(async move {
                let guard = v1::GuardRef { uid: unit.guard.to_string(), generation, ..Default::default() };
                let pod = v1::PodRef { uid: unit.pod.to_string(), ..Default::default() };
                let request = v1::DestroyGuardRequest { caller: Some(caller), guard: Some(guard), pod: Some(pod) };
                let began = Instant::now();
                let result = turn.during(daemon.destroy(request)).await;
                Answer::Destroyed { unit, result, took: began.elapsed() }
            }),
        }
    }

    /// Takes an answer. `Some`: the connection is of no use any more.
    async fn take(
        &mut self,
        session: &mut Session<D::Daemon>,
        answer: Answer,
        desired: &Desired,
    ) -> Result<Option<Lost>, Gone> {
        match answer {
            Answer::Looked { result } => match result {
                Ok(state) => self.looked(session, state, desired).await,
                Err(CallError::Lost(lost)) => Ok(Some(lost)),
                Err(error @ CallError::Refused { .. }) => Ok(Some(Lost { word: "refused", text: error.to_string() })),
            },
            Answer::Created { unit, sent, generation, result, took } => {
                session.ended(&unit);
                let told = match result {
                    Ok(state) => match Observation::of(*state) {
                        Ok((told, mut observation)) if told == unit => {
                            if let Some(wanted) = desired.units.get(&unit) {
                                observation.share(&wanted.pod.running);
                            }
                            Ok(observation)
                        }
                        Ok(_) => return Ok(Some(malformed("an answer for another unit"))),
                        Err(error) => return Ok(Some(malformed(&error.to_string()))),
                    },
                    Err(CallError::Lost(lost)) => return Ok(Some(lost)),
                    Err(CallError::Refused { cause, message }) => Err((cause, message)),
                };
                match told {
                    Ok(observation) => {
                        self.metrics.reconciled(Outcome::Ok, took);
                        // It says yes, and has not taken it: what it says would have it told again at once.
                        if observation.phase == Phase::Draining || observation.accepted < generation {
                            session.put_off(&unit, sent, self.pace);
                        } else {
                            session.retries.remove(&unit);
                        }
                        self.refused.remove(&unit);
                        let known = Known { observation: Arc::new(observation), sent: Some(sent) };
                        self.known.insert(unit.clone(), known);
                    }
                    Err((cause, message)) => {
                        self.metrics.reconciled(Outcome::Refused, took);
                        self.put_off(session, &unit, sent, cause, &message);
                        let refusal = Refusal { generation, reason: cause.reason(), message: plain(&message) };
                        self.refused.insert(unit.clone(), Arc::new(refusal));
                    }
                }
                self.report(News::Units(vec![(unit.clone(), self.held(&unit), By::Create)])).await?;
                Ok(None)
            }
            Answer::Destroyed { unit, result, took } => {
                session.ended(&unit);
                match result {
                    Ok(lifted) => {
                        self.metrics.reconciled(Outcome::Ok, took);
                        session.retries.remove(&unit);
                        if lifted {
                            self.known.remove(&unit);
                            self.refused.remove(&unit);
                        } else if let Some(known) = self.known.get_mut(&unit) {
                            // It says that it is on its way out; the next look tells more.
                            let leaving = Observation { phase: Phase::Draining, ..(*known.observation).clone() };
                            known.observation = Arc::new(leaving);
                        }
                    }
                    Err(CallError::Lost(lost)) => return Ok(Some(lost)),
                    Err(CallError::Refused { cause, message }) => {
                        self.metrics.reconciled(Outcome::Refused, took);
                        self.put_off(session, &unit, 0, cause, &message);
                    }
                }
                self.report(News::Units(vec![(unit.clone(), self.held(&unit), By::Destroy)])).await?;
                Ok(None)
            }
        }
    }

    fn put_off(&self, session: &mut Session<D::Daemon>, unit: &UnitId, sent: u64, cause: Refused, message: &str) {
        let message = plain(message);
        match cause {
            Refused::StaleEpoch | Refused::WrongNode => {
                tracing::warn!(node = %self.node, guard = %unit.guard, pod = %unit.pod, %message, "janusd refused a call");
            }
            _ => {
                tracing::debug!(node = %self.node, guard = %unit.guard, pod = %unit.pod, %message, "janusd refused a call");
            }
        }
        session.put_off(unit, sent, self.pace);
    }

    fn held(&self, unit: &UnitId) -> Held {
        Held {
            observation: self.known.get(unit).map(|known| known.observation.clone()),
            refusal: self.refused.get(unit).cloned(),
        }
    }

    /// Takes the daemon's whole state.
    async fn looked(
        &mut self,
        session: &mut Session<D::Daemon>,
        state: State,
        desired: &Desired,
    ) -> Result<Option<Lost>, Gone> {
        let State { header, guards } = state;
        if *header.node != *self.node {
            let text = format!("it says that it is the daemon of {}", plain(&header.node));
            return Ok(Some(Lost { word: "wrong-node", text }));
        }
        let mut news = Vec::new();
        if header.unchanged && !session.named {
            return Ok(Some(malformed("it says `unchanged` of a state that was not named")));
        }
        let features = Features::told(&header.features);
        // What was missing already, or waits its turn, is not what this look has found.
        let checks = session.periodic && session.features.is_some();
        let amiss = |known: &HashMap<UnitId, Known>| -> HashSet<Step> { plan(desired, known, features).collect() };
        let before = if checks { amiss(&self.known) } else { HashSet::new() };
        if !header.unchanged {
            let mut found = HashMap::with_capacity(guards.len());
            for state in guards {
                match Observation::of(state) {
                    Ok((unit, mut observation)) => match desired.units.get_key_value(&unit) {
                        // The same words as those of the hub: there are hundreds of thousands.
                        Some((unit, wanted)) => {
                            observation.share(&wanted.pod.running);
                            found.insert(unit.clone(), observation)
                        }
                        None => found.insert(unit, observation),
                    },
                    Err(error) => return Ok(Some(malformed(&error.to_string()))),
                };
            }
            let stays = |unit: &UnitId| found.contains_key(unit) || session.touched.contains(unit);
            let gone: Vec<UnitId> = self.known.keys().filter(|unit| !stays(unit)).cloned().collect();
            for unit in gone {
                self.known.remove(&unit);
                news.push((unit.clone(), self.held(&unit), By::Look));
            }
            for (unit, observation) in found {
                if session.touched.contains(&unit) {
                    continue;
                }
                match self.known.get_mut(&unit) {
                    Some(known) if *known.observation == observation => {}
                    _ => {
                        self.known.insert(unit.clone(), Known { observation: Arc::new(observation), sent: None });
                        news.push((unit.clone(), self.held(&unit), By::Look));
                    }
                }
            }
        }
        if session.periodic {
            for known in self.known.values_mut() {
                known.sent = None;
            }
        }
        session.keep_digest(header.digest);
        session.features = Some(features);
        if checks {
            for step in amiss(&self.known).difference(&before) {
                self.metrics.differs(match step {
                    Step::Create(_, Cause::Missing) => Difference::Missing,
                    Step::Create(_, Cause::Outdated) => Difference::Outdated,
                    Step::Create(_, Cause::Containers) => Difference::Containers,
                    Step::Destroy(..) => Difference::Leftover,
                });
            }
        }
        let unsettled = self.known.values().any(|known| known.observation.settles());
        session.next_look(unsettled, self.pace);
        if !news.is_empty() {
            self.report(News::Units(news)).await?;
        }
        self.report(News::Answered { at: Instant::now(), features }).await?;
        Ok(None)
    }
}

fn malformed(text: &str) -> Lost {
    Lost { word: "malformed", text: text.to_owned() }
}

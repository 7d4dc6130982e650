//! The one task that owns what is known: the index, what daemons hold, and when to write about it.
//!
//! Flow: watch events and drivers' reports come in; nodes that they touch get new orders, guards that they touch are
//! marked; marked guards are written about when they are due. It waits for nobody: calls to daemons are the drivers',
//! writes to the API server run beside it.
//!
//! Guarantees: until guards and pods have been listed once no driver is started, so that nothing is taken for a leftover
//! that merely has not been seen yet.

mod write;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use janus_crd::JanusGuard;
use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::write::{WRITES, Writes};
use super::annotate::Annotator;
use super::cluster::Cluster;
use super::driver::{By, Driver, News, Pace, Report};
use super::nodes::Nodes;
use super::pen::{Due, Pen};
use super::port::{Daemons, Lead};
use super::turns::Turns;
use crate::core::observation::Phase;
use crate::core::status::Held;
use crate::core::unit::{Order, Uid, UnitId};
use crate::index::guard::{Guard, Seen};
use crate::index::pod::{SeenPod, WatchedPod};
use crate::index::{Home, Index, Watched};
use crate::metrics::{Metrics, Resource};

/// Reports that wait for the hub; beyond that drivers wait.
const REPORTS: usize = 4096;
/// Inputs that are taken before what they touch is seen to.
const AT_ONCE: usize = 1024;
/// Between two looks at whether it may act, while it may not: then it is about to be dropped.
const DEPOSED: Duration = Duration::from_secs(1);

/// What a watch brings.
#[derive(Debug)]
pub enum Input {
    /// Of JanusGuards.
    Guards(watcher::Event<DeserializeGuard<JanusGuard>>),
    /// Of pods.
    Pods(watcher::Event<WatchedPod>),
}

/// What one guard has on daemons: by pod, on which node, what.
type Holdings = HashMap<Uid, (Arc<str>, Held)>;

/// See the module.
pub struct Hub<D: Daemons, L: Lead, C: Cluster> {
    daemons: D,
    lead: L,
    cluster: C,
    pace: Pace,
    metrics: Arc<Metrics>,
    index: Index,
    listed: HashSet<Watched>,
    /// When both had been, for the first time.
    listed_at: Option<Instant>,
    synced: watch::Sender<bool>,
    nodes: Nodes,
    held: HashMap<Uid, Holdings>,
    pens: HashMap<Uid, Pen>,
    due: Due,
    /// Pods, summed over guards: those that can be guarded, and those that are.
    pods: (i64, i64),
    drivers: JoinSet<Arc<str>>,
    turns: Turns,
    writes: Writes,
    reporter: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
    annotator: Option<Annotator>,
}

impl<D: Daemons, L: Lead, C: Cluster> Hub<D, L, C> {
    /// A hub that has seen nothing yet. The receiver: whether all watches have been listed.
    pub fn new(
        home: Home,
        daemons: D,
        lead: L,
        cluster: C,
        pace: Pace,
        metrics: Arc<Metrics>,
    ) -> (Hub<D, L, C>, watch::Receiver<bool>) {
        let (reporter, reports) = mpsc::channel(REPORTS);
        let (synced, is_synced) = watch::channel(false);
        let hub = Hub {
            daemons,
            lead,
            cluster,
            pace,
            metrics,
            index: Index::new(home),
            listed: HashSet::new(),
            listed_at: None,
            synced,
            nodes: Nodes::new(pace.stale()),
            held: HashMap::new(),
            pens: HashMap::new(),
            due: Due::default(),
            pods: (0, 0),
            drivers: JoinSet::new(),
            turns: Turns::default(),
            writes: Writes::new(),
            reporter,
            reports,
            annotator: None,
        };
        (hub, is_synced)
    }

    /// With annotations on guarded pods.
    pub fn annotating(self) -> Hub<D, L, C> {
        Hub { annotator: Some(Annotator::new(Instant::now())), ..self }
    }

    /// Runs until the inputs end. Dropped, it ends all drivers and writes with it.
    pub async fn run(mut self, inputs: impl Stream<Item = Input>) {
        let mut inputs = std::pin::pin!(inputs.ready_chunks(AT_ONCE));
        let mut reports = Vec::with_capacity(AT_ONCE);
        loop {
            let wake = self.wake();
            tokio::select! {
                chunk = inputs.next() => {
                    let Some(chunk) = chunk else { return };
                    for input in chunk {
                        self.see(input);
                    }
                }
                count = self.reports.recv_many(&mut reports, AT_ONCE) => {
                    debug_assert!(count > 0, "we hold a sender");
                    for report in reports.drain(..) {
                        self.hear(report);
                    }
                }
                Some(ended) = self.drivers.join_next() => self.driver_ended(ended),
                Some(done) = self.writes.next() => self.written(done),
                () = tokio::time::sleep_until(wake) => {}
            }
            self.settle();
        }
    }

    fn wake(&self) -> Instant {
        if !self.lead.may_act() {
            // What is due is not done now.
            return Instant::now() + DEPOSED;
        }
        let stale = self.nodes.next();
        let due = self.due.next().filter(|_| self.writes.len() < WRITES);
        let annotation = self.annotator.as_ref().and_then(Annotator::next);
        let never = Instant::now() + self.pace.stale();
        due.into_iter().chain(stale).chain(annotation).min().unwrap_or(never)
    }

    // -- what comes in

    fn see(&mut self, input: Input) {
        match input {
            Input::Guards(event) => self.see_guard(event),
            Input::Pods(event) => self.see_pod(event),
        }
    }

    fn see_guard(&mut self, event: watcher::Event<DeserializeGuard<JanusGuard>>) {
        let object = match event {
            watcher::Event::Init => return self.index.listing(Watched::Guards),
            watcher::Event::InitDone => return self.have_listed(Watched::Guards),
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => Ok(object),
            watcher::Event::Delete(object) => Err(object),
        };
        let applied = object.is_ok();
        match Seen::of(object.unwrap_or_else(|object| object)) {
            Ok(seen) if applied => self.index.apply_guard(seen),
            Ok(seen) => self.index.delete_guard(&seen.uid),
            Err(error) => {
                self.metrics.watch_failed(Resource::Guards);
                tracing::warn!(%error, "a guard that cannot be named");
            }
        }
    }

    fn see_pod(&mut self, event: watcher::Event<WatchedPod>) {
        let object = match event {
            watcher::Event::Init => return self.index.listing(Watched::Pods),
            watcher::Event::InitDone => return self.have_listed(Watched::Pods),
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => Ok(object),
            watcher::Event::Delete(object) => Err(object),
        };
        let applied = object.is_ok();
        match SeenPod::of(object.unwrap_or_else(|object| object)) {
            Ok(Some(seen)) if applied => self.index.apply_pod(seen),
            Ok(Some(seen)) => self.index.delete_pod(&seen.uid),
            Ok(None) => {}
            Err(error) => {
                self.metrics.watch_failed(Resource::Pods);
                tracing::warn!(%error, "a pod that cannot be named");
            }
        }
    }

    fn have_listed(&mut self, watched: Watched) {
        self.index.listed(watched);
        self.listed.insert(watched);
        if self.listed.len() == 2 && !self.synced.send_replace(true) {
            self.listed_at = Some(Instant::now());
            tracing::info!(guards = self.index.guards().count(), pods = self.index.pods(), "watches are listed");
        }
    }

    fn hear(&mut self, report: Report) {
        let Report { node, news } = report;
        match news {
            News::Units(units) => {
                for (unit, held, by) in units {
                    self.hear_of_unit(&node, unit, held, by);
                }
            }
            News::Answered { at, features } => {
                if self.nodes.answered(&node, features, at) {
                    self.mark_guards_on(&node);
                    if let Some(annotator) = &mut self.annotator {
                        self.index.concerned_on(&node).cloned().for_each(|pod| annotator.add(pod));
                    }
                }
            }
            News::Obeyed(receipt) => {
                self.nodes.obeyed(&node, receipt);
                self.mark_deleted();
            }
            News::Lost(lost) => {
                if self.nodes.lost(&node) {
                    tracing::warn!(%node, %lost, "janusd cannot be reached");
                }
                self.metrics.daemon_lost(lost.word);
            }
        }
    }

    fn hear_of_unit(&mut self, node: &Arc<str>, unit: UnitId, held: Held, by: By) {
        let UnitId { guard, pod } = unit;
        if let Some(annotator) = &mut self.annotator {
            annotator.add(pod.clone());
        }
        let Some(order) = self.index.guard(&guard).map(Guard::order) else {
            // A leftover of a guard that is gone: nobody's status is about it.
            return;
        };
        let order = order.cloned();
        // A pod is on one node only: another one's word about it is of no account, whoever has that node's key.
        let its_node = self.index.pod(&pod).map(|pod| pod.node == *node);
        let before = match (self.held.get(&guard).and_then(|holdings| holdings.get(&pod)), its_node) {
            (_, Some(false)) => return,
            (Some((on, before)), _) if on == node => before.clone(),
            (Some(_), None) => return,
            (Some(_), Some(true)) | (None, _) => Held::default(),
        };
        let was = in_force(&before);
        let is = in_force(&held);
        let pen = self.pens.entry(guard.clone()).or_insert_with(|| Pen::new(Instant::now()));
        // What a first look finds was there before we were; what goes without our doing comes back.
        let ours = by != By::Look;
        match (&before.observation, &held.observation) {
            (before, Some(_)) if is && !was && (ours || before.is_some()) => pen.added(node.clone()),
            (Some(before), None) if ours || before.phase == Phase::Draining => pen.removed(node.clone()),
            _ => {}
        }
        if let Some(order) = &order {
            self.measure(order, &pod, &before, &held);
        }
        let holdings = self.held.entry(guard.clone()).or_default();
        if held == Held::default() {
            holdings.remove(&pod);
        } else {
            holdings.insert(pod, (node.clone(), held));
        }
        self.mark(&guard);
    }

    /// How long containers ran before they were guarded, of those that are from now on.
    fn measure(&self, order: &Order, pod: &Uid, before: &Held, now: &Held) {
        let (Some(now), Some(pod)) = (now.observation.as_deref(), self.index.pod(pod)) else { return };
        let was = |id: &str| {
            let before = before.observation.as_deref();
            before.is_some_and(|it| it.container(id).is_some_and(|found| found.in_force))
        };
        let wall = Timestamp::now().as_second();
        for container in pod.running.iter().filter(|it| order.selects(&it.name)) {
            let is = now.container(&container.id).is_some_and(|found| found.in_force);
            if is && before.observation.is_some() && !was(&container.id) && container.started > 0 {
                self.metrics.guarded_after(wall.saturating_sub(container.started).max(0));
            }
        }
    }

    fn driver_ended(&mut self, ended: Result<Arc<str>, tokio::task::JoinError>) {
        match ended {
            Ok(node) => {
                self.nodes.remove(&node);
                // It may have got a daemon again while its driver was ending.
                if self.index.target(&node).is_some() && self.lead.may_act() {
                    self.steer(&node);
                }
                self.mark_guards_on(&node);
            }
            Err(error) => {
                // Which one is not said: all whose driver is gone get a new one, which finds out what is there.
                tracing::error!(%error, "a node's driver panicked");
                for node in self.nodes.dead() {
                    self.nodes.remove(&node);
                    self.held.values_mut().for_each(|holdings| holdings.retain(|_, (on, _)| *on != node));
                    self.steer(&node);
                    self.mark_guards_on(&node);
                }
            }
        }
    }

    // -- what follows

    fn settle(&mut self) {
        // One that was stopped, and goes on, has a successor by now, of which its statuses know nothing.
        if !self.lead.may_act() {
            return;
        }
        if !*self.synced.borrow() {
            return;
        }
        let touched = self.index.take_touched();
        for node in &touched.nodes {
            self.steer(node);
        }
        for guard in &touched.guards {
            self.mark(guard);
        }
        self.find_stale();
        self.write();
    }

    /// Gives a node's driver its orders; starts one where there is a daemon and no driver.
    fn steer(&mut self, name: &Arc<str>) {
        let (target, desired) = (self.index.target(name), self.index.desired(name));
        let Some(receiver) = self.nodes.order(name, target, desired, Instant::now()) else { return };
        let driver = Driver::new(
            name.clone(),
            self.daemons.clone(),
            self.lead.clone(),
            receiver,
            self.reporter.clone(),
            self.pace,
            self.metrics.clone(),
        );
        self.drivers.spawn(driver.taking(self.turns.clone()).run());
    }

    /// Nodes that have not answered for too long: what they said does not count any more.
    fn find_stale(&mut self) {
        for node in self.nodes.late(Instant::now()) {
            tracing::warn!(%node, "janusd has not answered for three resyncs");
            self.mark_guards_on(&node);
        }
    }

    fn mark_guards_on(&mut self, node: &str) {
        for guard in self.index.guards_on(node) {
            self.mark(&guard);
        }
        // Also deleted ones that wait for this node.
        self.mark_deleted();
    }

    fn mark_deleted(&mut self) {
        let waiting: Vec<Uid> =
            self.index.guards().filter(|guard| guard.deleted).map(|guard| guard.uid.clone()).collect();
        for guard in waiting {
            self.mark(&guard);
        }
    }
}

fn in_force(held: &Held) -> bool {
    held.observation.as_deref().is_some_and(|it| it.generation > 0 && it.phase != Phase::Draining)
}

//! One controller, an API server of paper, and a handful of nodes: where one thing at a time goes otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use janus_crd::JanusGuardStatus;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::certificates::Authority;
use crate::expected::Expected;
use crate::fake::{Daemon, Fleet};
use crate::paper::{Kind, Paper};
use crate::process::{Controller, Setting};
use crate::world::World;

pub(crate) const RESYNC: Duration = Duration::from_secs(1);
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Stage {
    authority: Authority,
    pub(crate) paper: Paper,
    scratch: TempDir,
    pub(crate) world: World,
    pub(crate) controller: Option<Controller>,
}

/// Runs a test with a stage of so many nodes, `node-0` and on, each with its daemon.
pub(crate) fn on_stage(nodes: usize, test: impl AsyncFnOnce(&mut Stage)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut stage = runtime.block_on(async {
        let authority = Authority::new();
        let fleet = Fleet::start(Some(&authority));
        let paper = Paper::start();
        let scratch = tempfile::tempdir().unwrap();
        let world = World::new(paper.client(scratch.path()).await, fleet);
        let mut stage = Stage { authority, paper, scratch, world, controller: None };
        for node in 0..nodes {
            stage.world.add_daemon(&format!("node-{node}")).await.unwrap();
        }
        stage
    });
    stage.start_controller();
    runtime.block_on(test(&mut stage));
    let breaches = stage.world.fleet.breaches();
    assert!(breaches.is_empty(), "{breaches:#?}");
    // Its servers have runtimes of their own, which do not end inside of another.
    drop(stage);
}

impl Stage {
    pub(crate) fn start_controller(&mut self) {
        self.controller = Some(Controller::start(&Setting {
            kubeconfig: &self.paper.kubeconfig(self.scratch.path()),
            port: self.world.fleet.port(),
            authority: &self.authority,
            resync: RESYNC,
            elect: false,
            name: "janus-controller-0",
        }));
    }

    /// The daemon of a node.
    pub(crate) fn daemon(&self, node: usize) -> Arc<Daemon> {
        self.world.daemons[&format!("node-{node}")].last().unwrap().1.clone()
    }

    /// A pod with one container, `app`, which runs; its index.
    pub(crate) async fn pod(&mut self, name: &str, node: usize, labels: &Value) -> usize {
        let node = format!("node-{node}");
        let index = self.world.add_pod("default", name, &node, labels, &["app"]).await.unwrap();
        self.world.start(index, &["app"]).await.unwrap();
        index
    }

    /// A guard of all pods of the namespace, with more or other fields.
    pub(crate) async fn guard(&self, name: &str, more: Value) {
        let mut spec = json!({ "selector": {}, "subjects": [{ "deny": ["/etc/shadow"], "events": ["open"] }] });
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.world.add_guard("default", name, spec).await.unwrap();
    }

    /// A guard's status; none yet: an empty one.
    pub(crate) async fn status(&self, name: &str) -> JanusGuardStatus {
        self.world.guard_api("default").get(name).await.unwrap().status.unwrap_or_default()
    }

    /// Waits until a guard's status is so.
    pub(crate) async fn until(&self, name: &str, so: impl Fn(&JanusGuardStatus) -> bool) -> JanusGuardStatus {
        let began = Instant::now();
        loop {
            let status = self.status(name).await;
            if so(&status) {
                return status;
            }
            assert!(began.elapsed() < SOON, "{status:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a condition has this status and reason: `Ready=True/Guarded`.
    pub(crate) async fn until_condition(&self, name: &str, condition: &str) -> JanusGuardStatus {
        self.until(name, |status| {
            status.conditions.iter().any(|it| format!("{}={}/{}", it.type_, it.status, it.reason) == condition)
        })
        .await
    }

    /// Waits until a guard that is deleted has gone.
    pub(crate) async fn until_released(&self, name: &str, deadline: Duration) {
        let began = Instant::now();
        while let Some(guard) = self.paper.get(Kind::Guard, "default", name) {
            assert!(began.elapsed() < deadline, "its finalizer stays: {guard:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until there is an event for this reason.
    pub(crate) async fn until_told(&self, reason: &str) {
        let began = Instant::now();
        while !self.paper.all(Kind::Event).iter().any(|event| event["reason"] == reason) {
            assert!(began.elapsed() < SOON, "{:#?}", self.paper.all(Kind::Event));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the books are as the objects want them.
    pub(crate) async fn until_as_expected(&self) {
        let began = Instant::now();
        loop {
            let differences = Expected::of(&self.world.objects().await.unwrap()).differences(&self.world.fleet);
            if differences.is_empty() {
                return;
            }
            assert!(began.elapsed() < SOON, "{differences:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether a status has a problem for this reason, of a pod on a node.
pub(crate) fn has_problem(status: &JanusGuardStatus, reason: &str, pod: &str, node: &str) -> bool {
    status.problems.iter().any(|it| it.reason == reason && it.pod == pod && it.node == node)
}

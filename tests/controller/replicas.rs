//! Two controllers, of which one acts: whoever of them is stopped, continued, killed or cut off.
//!
//! Who acts is read off the daemons' books: every call that changes something bears its leader's epoch. A `pulse` sees to it
//! that there is always something to do: it gives a pod another label again and again.

use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;

use crate::certificates::Authority;
use crate::expected::Expected;
use crate::fake::{Daemon, Fleet, Reign};
use crate::paper::Paper;
use crate::process::{Controller, Setting};
use crate::world::World;
use crate::{controller_tests, say};

controller_tests! {
    a_leader_that_is_stopped_and_continued,
    a_leader_that_is_killed,
    a_leader_that_ends_hands_over_at_once,
    a_leader_without_an_api_server_stops_acting,
    a_stopped_leaders_call_in_flight,
}

const RESYNC: Duration = Duration::from_secs(2);
const NODES: usize = 5;
/// How long a new leader may take.
const TAKEOVER: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(30);
/// Between two changes.
const PULSE: Duration = Duration::from_millis(100);

struct Pair {
    authority: Authority,
    paper: Paper,
    scratch: TempDir,
    world: World,
    controllers: [Option<Controller>; 2],
    beat: usize,
}

impl Pair {
    async fn start() -> Pair {
        let authority = Authority::new();
        let fleet = Fleet::start(Some(&authority));
        let paper = Paper::start();
        let scratch = tempfile::tempdir().unwrap();
        let world = World::new(paper.client(scratch.path()).await, fleet);
        let mut pair = Pair { authority, paper, scratch, world, controllers: [None, None], beat: 0 };
        for node in 0..NODES {
            pair.world.add_daemon(&format!("node-{node}")).await.unwrap();
        }
        let spec = json!({ "selector": { "matchLabels": { "on": "yes" } },
            "subjects": [{ "deny": ["/etc/shadow"], "events": ["open"] }] });
        pair.world.add_guard("default", "guard", spec).await.unwrap();
        for number in 0..2 * NODES {
            let node = format!("node-{}", number % NODES);
            let name = format!("pod-{number}");
            let index = pair.world.add_pod("default", &name, &node, &json!({ "on": "yes" }), &["app"]).await.unwrap();
            pair.world.start(index, &["app"]).await.unwrap();
        }
        pair.controllers = [Some(pair.controller(0)), Some(pair.controller(1))];
        pair.pulse_until(SOON, "the first leader acts", |pair| !pair.world.fleet.reigns().is_empty()).await;
        pair
    }

    fn controller(&self, number: usize) -> Controller {
        Controller::start(&Setting {
            kubeconfig: &self.paper.kubeconfig(self.scratch.path()),
            port: self.world.fleet.port(),
            authority: &self.authority,
            resync: RESYNC,
            elect: true,
            name: &format!("janus-controller-{number}"),
        })
    }

    fn leads(&self, number: usize) -> bool {
        let leads = |it: &Controller| it.metric("janus_controller_leader", "") == Some(1.0);
        self.controllers[number].as_ref().is_some_and(leads)
    }

    /// The one that leads.
    fn leader(&self) -> usize {
        (0..2).find(|number| self.leads(*number)).expect("a leader")
    }

    fn last(&self) -> Reign {
        self.world.fleet.reigns().pop().expect("somebody has led")
    }

    /// One change.
    async fn beat(&mut self) {
        self.beat += 1;
        let index = self.beat % self.world.pods.len();
        let on = if (self.beat / self.world.pods.len()).is_multiple_of(2) { "no" } else { "yes" };
        self.world.label(index, &json!({ "on": on })).await.unwrap();
    }

    /// Beats until something is so.
    async fn pulse_until(&mut self, deadline: Duration, what: &str, so: impl Fn(&Pair) -> bool) -> Duration {
        let began = Instant::now();
        while !so(self) {
            assert!(began.elapsed() < deadline, "not within {deadline:?}: {what}");
            self.beat().await;
            tokio::time::sleep(PULSE).await;
        }
        began.elapsed()
    }

    async fn pulse_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.pulse_until(2 * time, "time passes", |_| Instant::now() >= end).await;
    }

    /// Nobody has acted against a later leader, and what is in force is right.
    async fn check(&self) {
        let usurped = self.world.fleet.usurped();
        assert!(usurped.is_empty(), "{usurped:#?}");
        let began = Instant::now();
        loop {
            let expected = Expected::of(&self.world.objects().await.unwrap());
            let differences = expected.differences(&self.world.fleet);
            if differences.is_empty() {
                break;
            }
            assert!(began.elapsed() < SOON, "{differences:#?}");
            tokio::time::sleep(PULSE).await;
        }
        for reign in self.world.fleet.reigns() {
            let Reign { epoch, accepted, late, first, last } = reign;
            say(&format!(
                "replicas: epoch {epoch}: {accepted} calls in {:?}, {late} refused as too late",
                last - first
            ));
        }
    }
}

fn run(test: impl AsyncFnOnce(Pair) -> Pair) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pair = runtime.block_on(Pair::start());
    let pair = runtime.block_on(async { test(pair).await });
    // Servers have runtimes of their own, which do not end inside of another.
    drop(pair);
}

fn a_leader_that_is_stopped_and_continued() {
    run(async |mut pair| {
        for _ in 0..2 {
            let old = pair.leader();
            pair.pulse_for(Duration::from_secs(1)).await;
            let before = pair.last();
            pair.controllers[old].as_ref().unwrap().signal(Signal::STOP);
            let took = pair.pulse_until(TAKEOVER, "the other one acts", |pair| pair.last().epoch > before.epoch).await;
            say(&format!("replicas: stopped, the other one acts after {:.1} s", took.as_secs_f32()));
            pair.pulse_for(Duration::from_secs(1)).await;
            pair.controllers[old].as_ref().unwrap().signal(Signal::CONT);
            // What it had on its way goes out now, and is of no account.
            pair.pulse_for(Duration::from_secs(4)).await;
            assert_eq!(pair.leader(), 1 - old);
        }
        pair.check().await;
        pair
    });
}

fn a_leader_that_is_killed() {
    run(async |mut pair| {
        let old = pair.leader();
        let before = pair.last();
        pair.controllers[old].as_mut().unwrap().kill();
        let took = pair.pulse_until(TAKEOVER, "the other one acts", |pair| pair.last().epoch > before.epoch).await;
        say(&format!("replicas: killed, the other one acts after {:.1} s", took.as_secs_f32()));
        pair.controllers[old] = Some(pair.controller(old));
        pair.pulse_for(Duration::from_secs(2)).await;
        assert_eq!(pair.leader(), 1 - old);
        pair.check().await;
        pair
    });
}

fn a_leader_that_ends_hands_over_at_once() {
    run(async |mut pair| {
        let old = pair.leader();
        let before = pair.last();
        let began = Instant::now();
        let code = pair.controllers[old].as_mut().unwrap().end(Duration::from_secs(10));
        assert_eq!(code, Some(0));
        pair.pulse_until(TAKEOVER, "the other one acts", |pair| pair.last().epoch > before.epoch).await;
        say(&format!("replicas: ended, the other one acts after {:.1} s", began.elapsed().as_secs_f32()));
        assert!(began.elapsed() < Duration::from_secs(8), "the Lease was released: {:?}", began.elapsed());
        pair.check().await;
        pair
    });
}

fn a_leader_without_an_api_server_stops_acting() {
    run(async |mut pair| {
        pair.pulse_for(Duration::from_secs(1)).await;
        pair.paper.stop();
        // It may act for as long as its Lease cannot be another's: 15 s, less what clocks may differ.
        let daemons = pair.world.fleet.daemons();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(15) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let before = pair.world.fleet.counts();
        // There would be a lot to do.
        daemons.iter().for_each(|daemon| daemon.restart());
        tokio::time::sleep(3 * RESYNC).await;
        let after = pair.world.fleet.counts();
        assert_eq!(before.accepted, after.accepted, "it acts without a Lease");
        pair.paper.start_again();
        pair.check().await;
        pair
    });
}

/// What a leader had on its way when it was stopped reaches the daemon after its successor's calls.
fn a_stopped_leaders_call_in_flight() {
    run(async |mut pair| {
        let old = pair.leader();
        let before = pair.last();
        let slow = pair.world.daemons["node-0"][0].1.clone();
        slow.temper(|temper| temper.before = Duration::from_secs(6));
        // A call to each node, of which that one arrives and is not looked at yet.
        let labelled = pair.world.pods.len();
        for _ in 0..labelled {
            pair.beat().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        pair.controllers[old].as_ref().unwrap().signal(Signal::STOP);
        slow.temper(|temper| temper.before = Duration::ZERO);
        // The other one need not wait for the Lease.
        let free = json!({ "spec": { "holderIdentity": "" } });
        let leases = pair.world.lease_api();
        leases.patch("janus-controller", &PatchParams::default(), &Patch::Merge(free)).await.unwrap();
        let epoch = before.epoch;
        pair.pulse_until(TAKEOVER, "the other one acts there", |_| slow.epoch() > epoch).await;
        let refused = |slow: &Daemon| slow.calls().iter().any(|it| it.epoch == epoch && it.code != Code::Ok);
        pair.pulse_until(TAKEOVER, "the old one's call is refused", |_| refused(&slow)).await;
        pair.controllers[old].as_ref().unwrap().signal(Signal::CONT);
        pair.pulse_for(Duration::from_secs(2)).await;
        pair.check().await;
        pair
    });
}

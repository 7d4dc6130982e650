//! Whatever happens, in whatever order: in the end every daemon holds what it should, and every guard's status says so.
//!
//! A run is rounds. In each one a handful of things happen at random, good and bad; then what was broken is mended, and the
//! controller has two resyncs to bring everything in order. The seed is printed: `JANUS_CHAOS_SEED` repeats a run's choices,
//! `JANUS_CHAOS_ROUNDS` sets their number.

mod changes;
mod disasters;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::certificates::Authority;
use crate::chance::{Chance, seed};
use crate::controller_tests;
use crate::expected::{Expected, Objects};
use crate::fake::Fleet;
use crate::host::Host;
use crate::process::{Controller, Setting};
use crate::say;
use crate::world::{World, persist};

controller_tests! {
    on_paper,
    on_a_real_api_server.real(),
}

const RESYNC: Duration = Duration::from_secs(2);
/// What a Lease may cost beside: its holder has to be given up first.
const TAKEOVER: Duration = Duration::from_secs(20);
/// What an API server that was away may cost beside: whoever watches it waits longer each time before asking again.
const AWAY: Duration = Duration::from_secs(15);
/// What a machine with other things to do may cost.
const BUSY: Duration = Duration::from_secs(2);

const THIEF: &str = "thief";

const NODES: usize = 12;
const PODS: usize = 60;
const GUARDS: usize = 14;
const NAMESPACES: usize = 4;

fn on_paper() {
    run(Host::paper());
}

fn on_a_real_api_server() {
    run(Host::real(&(0..NAMESPACES).map(namespace).collect::<Vec<_>>()));
}

fn run(host: Host) {
    let rounds = std::env::var("JANUS_CHAOS_ROUNDS").map_or(15, |text| text.parse().expect("a number"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut chaos = runtime.block_on(Chaos::start(host, seed("JANUS_CHAOS_SEED")));
    for round in 1..=rounds {
        runtime.block_on(chaos.round(round));
    }
    chaos.finish(rounds);
}

/// Who plays with the controller.
struct Chaos {
    seed: u64,
    chance: Chance,
    authority: Authority,
    host: Host,
    world: World,
    /// None while it is dead.
    controller: Option<Controller>,
    guards: BTreeSet<(String, String)>,
    /// Daemons that are gone for good, and how many calls they had had when the controller knew.
    deposed: HashMap<Ipv4Addr, u64>,
    /// What has happened in this round.
    story: Vec<String>,
    /// The Lease may have to be waited for.
    leaderless: bool,
    /// Watches may have to be waited for, in so many rounds: one that breaks is not taken up again at once.
    unwatched: u8,
    differences: usize,
    /// Convergences: as such, after watches were lost, after the leader was.
    slowest: [Duration; 3],
    disasters: usize,
}

impl Chaos {
    async fn start(host: Host, seed: u64) -> Chaos {
        let authority = Authority::new();
        let fleet = Fleet::start(Some(&authority));
        let client = host.client().await;
        let mut chaos = Chaos {
            seed,
            chance: Chance::new(seed),
            authority,
            host,
            world: World::new(client, fleet),
            controller: None,
            guards: BTreeSet::new(),
            deposed: HashMap::new(),
            story: Vec::new(),
            leaderless: false,
            unwatched: 0,
            differences: 0,
            slowest: [Duration::ZERO; 3],
            disasters: 0,
        };
        say(&format!("chaos: JANUS_CHAOS_SEED={seed}"));
        for node in 0..NODES {
            chaos.world.add_daemon(&node_name(node)).await.unwrap();
        }
        for _ in 0..PODS / 2 {
            chaos.add_pod().await;
        }
        for _ in 0..GUARDS / 2 {
            chaos.add_guard().await;
        }
        chaos.start_controller(false);
        chaos
    }

    fn start_controller(&mut self, elect: bool) {
        self.leaderless |= elect;
        self.controller = Some(Controller::start(&Setting {
            kubeconfig: &self.host.kubeconfig(),
            port: self.world.fleet.port(),
            authority: &self.authority,
            resync: RESYNC,
            elect,
            name: "janus-controller-0",
        }));
    }

    async fn round(&mut self, round: usize) {
        self.story.clear();
        for _ in 0..self.chance.among(4..16) {
            if self.chance.percent(35) {
                self.disasters += 1;
                self.disaster().await;
            } else {
                self.change().await;
            }
            // Sometimes everything happens at once, sometimes one after the other.
            if self.chance.percent(30) {
                tokio::time::sleep(Duration::from_millis(self.chance.among(1..400) as u64)).await;
            }
        }
        self.mend().await;
        self.converge(round).await;
    }

    async fn converge(&mut self, round: usize) {
        let began = Instant::now();
        let lost = [(self.unwatched > 0, AWAY), (self.leaderless, TAKEOVER)];
        let more: Duration = lost.iter().filter(|(lost, _)| *lost).map(|(_, more)| *more).sum();
        let allowed = 2 * RESYNC + BUSY + more;
        let mut first = None;
        loop {
            let objects = persist(Duration::from_secs(10), async || self.world.objects().await).await;
            let expected = Expected::of(&objects);
            let mut lines = expected.differences(&self.world.fleet);
            lines.extend(status_differences(&objects, &expected));
            lines.extend(self.lease_difference().await);
            // Otherwise the next round would pay for what happened in this one.
            let leads = self.controller.as_ref().and_then(|it| it.metric("janus_controller_leader", ""));
            lines.extend((leads != Some(1.0)).then(|| "nobody leads".to_owned()));
            first.get_or_insert(lines.len());
            if lines.is_empty() {
                self.check_invariants(&expected);
                break;
            }
            if let Some(controller) = &mut self.controller {
                assert!(!controller.has_ended(), "the controller has ended: {}", controller.log());
            }
            if began.elapsed() > allowed {
                lines.truncate(20);
                panic!(
                    "JANUS_CHAOS_SEED={}: round {round} has not converged within {allowed:?}:\n{}\nafter:\n{}",
                    self.seed,
                    lines.join("\n"),
                    self.story.join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let took = began.elapsed();
        self.differences += first.unwrap_or_default();
        let class = if self.leaderless { 2 } else { usize::from(self.unwatched > 0) };
        self.slowest[class] = took.max(self.slowest[class]);
        (self.leaderless, self.unwatched) = (false, self.unwatched.saturating_sub(1));
        say(&format!(
            "chaos: round {round}: {} things happened, {} differences, converged in {:.1} s",
            self.story.len(),
            first.unwrap_or_default(),
            took.as_secs_f32()
        ));
    }

    /// The thief has not been found out yet.
    async fn lease_difference(&self) -> Option<String> {
        let leases = self.world.lease_api();
        let lease = persist(Duration::from_secs(10), async || leases.get_opt("janus-controller").await).await?;
        (lease.spec?.holder_identity? == THIEF).then(|| "the Lease is the thief's".to_owned())
    }

    fn check_invariants(&mut self, expected: &Expected) {
        let usurped = self.world.fleet.usurped();
        assert!(usurped.is_empty(), "{usurped:#?}");
        let breaches = self.world.fleet.breaches();
        assert!(breaches.is_empty(), "{breaches:#?}");
        for (ip, calls) in &mut self.deposed {
            if expected.books.contains_key(&IpAddr::from(*ip)) {
                continue;
            }
            let Some(daemon) = self.world.fleet.at((*ip).into()) else { continue };
            let counts = daemon.counts();
            let had = counts.accepted + counts.refused;
            assert!(*calls == u64::MAX || *calls == had, "{} ({ip}) was called after it had gone", daemon.node);
            *calls = had;
        }
    }

    fn finish(mut self, rounds: usize) {
        let counts = self.world.fleet.counts();
        say(&format!(
            "chaos: seed {}: {rounds} rounds, {} disasters, {} calls accepted, {} refused, {} states ({} unchanged), \
             {} differences made and repaired, 0 left; slowest convergence {:.1} s, with watches lost {:.1} s, with the \
             leader lost {:.1} s",
            self.seed,
            self.disasters,
            counts.accepted,
            counts.refused,
            counts.states,
            counts.unchanged,
            self.differences,
            self.slowest[0].as_secs_f32(),
            self.slowest[1].as_secs_f32(),
            self.slowest[2].as_secs_f32(),
        ));
        if let Some(controller) = &mut self.controller {
            assert_eq!(controller.end(Duration::from_secs(10)), Some(0), "{}", controller.log());
        }
    }
}

/// Where statuses say something else than the books, one line each.
fn status_differences(objects: &Objects, expected: &Expected) -> Vec<String> {
    let mut lines = Vec::new();
    for guard in &objects.guards {
        let metadata = &guard.metadata;
        let name =
            format!("{}/{}", metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap());
        if metadata.deletion_timestamp.is_some() {
            lines.push(format!("guard {name}: deleted, and still there: {:?}", metadata.finalizers));
            continue;
        }
        let Some(pods) = expected.observable.get(metadata.uid.as_deref().unwrap()) else { continue };
        let reached = |uid: &&String| expected.books.values().any(|units| units.keys().any(|key| key.pod == **uid));
        let want = (metadata.generation, Some(pods.len()), Some(pods.iter().filter(reached).count()));
        let count = |count: Option<i32>| count.and_then(|count| usize::try_from(count).ok());
        let status = guard.status.clone().unwrap_or_default();
        let have = (status.observed_generation, count(status.observable_pods), count(status.guarded_pods));
        if have != want {
            lines.push(format!("guard {name}: status (generation, observable, guarded) {have:?}, should be {want:?}"));
            continue;
        }
        let ready = status.conditions.iter().find(|it| it.type_ == "Ready").map(|it| it.status.as_str());
        if (ready == Some("True")) != (want.1 == want.2) {
            lines.push(format!("guard {name}: Ready is {ready:?} with {have:?}"));
        }
    }
    lines
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

fn namespace(number: usize) -> String {
    format!("team-{number}")
}

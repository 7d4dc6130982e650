//! All of it: the hub with its drivers, with scripted watches, daemons and API server, by a clock that tests wind.

use std::sync::Arc;
use std::time::Duration;

use janus_controller::metrics::Metrics;
use janus_controller::reconcile::driver::Pace;
use janus_controller::reconcile::hub::Hub;
use janus_controller::reconcile::port::Refused;
use janus_proto::v1;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::cluster::{Api, Behaviour};
use crate::objects::{self, daemon, guard, pod};
use crate::script::{Mandate, Reply, Script, Told, wind};

const RESYNC: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const FINALIZER: &str = "januscontroller.clustergarage.io/release";

/// A controller that leads, and its world: nodes `n1` and so on with a daemon each, at 10.0.0.1 and so on.
struct Bench {
    api: Api,
    script: Script,
    metrics: Arc<Metrics>,
    controller: JoinSet<()>,
    mandate: Mandate,
    annotating: bool,
    nodes: usize,
}

fn address(node: usize) -> String {
    format!("10.0.0.{node}")
}

fn unit(guard: &str, pod: &str) -> (String, String) {
    (guard.to_owned(), pod.to_owned())
}

impl Bench {
    /// One with nodes, which has seen nothing yet.
    fn unlisted(nodes: usize, annotating: bool) -> Bench {
        let script = Script::new();
        let (api, inputs) = Api::new();
        let (metrics, controller, mandate) = (Metrics::new(), JoinSet::new(), Mandate::new(3));
        let mut bench = Bench { api, script, metrics, controller, mandate, annotating, nodes };
        for node in 1..=nodes {
            bench.script.add(&address(node), &format!("n{node}"));
            bench.api.pod(daemon(&format!("janusd-{node}"), &format!("n{node}"), &address(node)));
        }
        bench.start(inputs);
        bench
    }

    fn start(&mut self, inputs: tokio::sync::mpsc::UnboundedReceiver<janus_controller::reconcile::hub::Input>) {
        let pace = Pace { resync: RESYNC };
        let (home, mandate) = (objects::home(), self.mandate.clone());
        let (hub, _) = Hub::new(home, self.script.clone(), mandate, self.api.clone(), pace, self.metrics.clone());
        let hub = if self.annotating { hub.annotating() } else { hub };
        self.controller.spawn(hub.run(UnboundedReceiverStream::new(inputs)));
    }

    /// One that knows all there is: nodes.
    fn new(nodes: usize) -> Bench {
        let bench = Bench::unlisted(nodes, false);
        bench.list();
        bench
    }

    fn list(&self) {
        self.api.list_pods();
        self.api.list_guards();
    }

    /// Another controller in the place of this one, over the same daemons and objects.
    async fn restart(&mut self) {
        self.controller.abort_all();
        while self.controller.join_next().await.is_some() {}
        let (api, inputs) = self.api.clone().rewatched();
        self.api = api;
        self.start(inputs);
        self.list();
    }

    /// What daemons hold.
    fn units(&self) -> Vec<(String, String)> {
        let mut units: Vec<_> = (1..=self.nodes)
            .flat_map(|node| self.script.at(&address(node), |fake| fake.units.keys().cloned().collect::<Vec<_>>()))
            .collect();
        units.sort();
        units
    }

    fn counts(&self, guard: &str) -> (i32, i32) {
        let status = self.api.status(guard);
        (status.guarded_pods.unwrap(), status.observable_pods.unwrap())
    }

    fn metric(&self, line: &str) -> i64 {
        let text = self.metrics.open_metrics().unwrap();
        let value = text.lines().find_map(|it| it.strip_prefix(line)).unwrap_or_else(|| panic!("{line} in\n{text}"));
        value.trim().parse().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_comes_into_force_and_says_so() {
    let bench = Bench::new(2);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p1", "default", "n1"));
    bench.api.pod(pod("p2", "default", "n2"));
    bench.api.pod(pod("other", "elsewhere", "n2"));
    wind(SECOND * 2).await;
    assert_eq!(bench.units(), [unit("g", "p1"), unit("g", "p2")]);
    assert_eq!(bench.counts("g"), (2, 2));
    assert_eq!(bench.api.condition("g", "Ready"), "True Guarded");
    assert_eq!(bench.metric("janus_controller_pods{state=\"observable\"}"), 2);
    assert_eq!(bench.metric("janus_controller_pods{state=\"guarded\"}"), 2);
    assert_eq!(bench.metric("janus_controller_daemons{state=\"answering\"}"), 2);
    assert_eq!(bench.api.written().finalizers.len(), 1);
    assert_eq!(bench.api.written().finalizers[0].2, [FINALIZER]);
    assert_eq!(bench.api.written().refused, 0, "nothing is written over what it has not seen");
    bench.api.delete_pod("p1");
    wind(SECOND * 3).await;
    assert_eq!((bench.units(), bench.counts("g")), (vec![unit("g", "p2")], (1, 1)));
    assert_eq!(bench.metric("janus_controller_pods{state=\"guarded\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_done_before_both_watches_are_listed() {
    let bench = Bench::unlisted(1, false);
    bench.script.at(&address(1), |fake| {
        let guard = Some(v1::GuardRef { uid: "g".into(), generation: 1, ..Default::default() });
        let pod = Some(v1::PodRef { uid: "p".into(), ..Default::default() });
        let phase = v1::GuardPhase::InForce.into();
        let state = v1::GuardState { guard, pod, phase, accepted_generation: 1, ..Default::default() };
        fake.units.insert(unit("g", "p"), state);
    });
    bench.api.pod(pod("p", "default", "n1"));
    bench.api.list_pods();
    wind(RESYNC * 5).await;
    assert_eq!(bench.script.at(&address(1), |fake| fake.told.len()), 0);
    // The guard is there after all: what the daemon holds is no leftover.
    bench.api.guard(guard("g", "default", 1));
    wind(SECOND).await;
    assert_eq!(bench.script.at(&address(1), |fake| fake.told.len()), 0);
    bench.api.list_guards();
    wind(RESYNC).await;
    let destroyed = bench.script.at(&address(1), |fake| fake.count(|told| matches!(told, Told::Destroy(_))));
    assert_eq!((bench.units(), destroyed), (vec![unit("g", "p")], 0));
}

#[tokio::test(start_paused = true)]
async fn one_status_a_second_and_the_last_one_is_right() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    wind(SECOND * 3).await;
    let first = bench.api.written().statuses.len();
    for index in 0..100 {
        bench.api.pod(pod(&format!("p{index}"), "default", "n1"));
        wind(Duration::from_millis(50)).await;
    }
    wind(SECOND * 3).await;
    assert_eq!(bench.counts("g"), (100, 100));
    let written = bench.api.written();
    let times: Vec<_> = written.statuses.iter().map(|(at, ..)| *at).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= SECOND), "{times:?}");
    assert!((4..=9).contains(&(times.len() - first)), "{} in five seconds", times.len() - first);
}

#[tokio::test(start_paused = true)]
async fn events_that_are_due_bring_no_status_before_its_time() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    wind(SECOND * 3).await;
    let mut pods = 0;
    for gap in [4300, 4500, 4700, 4900] {
        // The first is told after a second, the others five seconds later: before the status of the third is due.
        for pause in [gap, 1060, 12_000] {
            bench.api.pod(pod(&format!("p{pods}"), "default", "n1"));
            pods += 1;
            wind(Duration::from_millis(pause)).await;
        }
    }
    assert_eq!(bench.counts("g"), (pods, pods));
    assert!(bench.api.events("g", "Added").len() >= 8);
    let written = bench.api.written();
    let times: Vec<_> = written.statuses.iter().map(|(at, ..)| *at).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= SECOND), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn at_rest_nothing_is_written() {
    let bench = Bench::new(2);
    bench.api.guard(guard("g", "default", 1));
    (0..10).for_each(|index| bench.api.pod(pod(&format!("p{index}"), "default", "n1")));
    wind(RESYNC).await;
    let before = format!("{:?}", bench.api.written());
    wind(RESYNC * 20).await;
    // A listing that brings what is known already is no news either.
    bench.list();
    wind(RESYNC).await;
    assert_eq!(format!("{:?}", bench.api.written()), before);
    assert_eq!(bench.script.at(&address(1), |fake| fake.creates()), 10);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_late_makes_nothing_be_written_twice() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    wind(SECOND * 3).await;
    bench.api.behave(Behaviour { mute: true, ..Behaviour::default() });
    bench.script.at(&address(1), |fake| fake.answers("g", Reply::Refused(Refused::Limit)));
    let before = bench.api.written().statuses.len();
    bench.api.pod(pod("p", "default", "n1"));
    wind(RESYNC * 5).await;
    assert_eq!(bench.api.condition("g", "Degraded"), "True LimitReached");
    // On its way, and then refused.
    let written = bench.api.written().statuses.len() - before;
    assert!(written <= 2, "{written} writes");
    assert_eq!(bench.api.events("g", "Degraded").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_guard_goes_when_its_daemons_have_confirmed() {
    let bench = Bench::new(2);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p1", "default", "n1"));
    bench.api.pod(pod("p2", "default", "n2"));
    wind(SECOND * 3).await;
    bench.script.at(&address(2), |fake| fake.destroy = Reply::Not);
    bench.api.delete_guard("g");
    wind(SECOND * 20).await;
    assert_eq!(bench.units(), [unit("g", "p2")]);
    assert!(bench.api.has_guard("g"), "let go before a daemon has confirmed");
    bench.script.at(&address(2), |fake| fake.destroy = Reply::Well);
    wind(SECOND * 2).await;
    assert!(!bench.api.has_guard("g") && bench.units().is_empty());
    assert!(bench.api.events("g", "ReleasedUnconfirmed").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_on_its_way_to_a_daemon_is_not_let_go_meanwhile() {
    let bench = Bench::new(1);
    bench.script.at(&address(1), |fake| fake.answers("g", Reply::Not));
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    bench.api.delete_guard("g");
    wind(SECOND * 5).await;
    assert!(bench.api.has_guard("g"), "let go while it comes into force");
    bench.script.at(&address(1), |fake| fake.answers("g", Reply::Well));
    wind(SECOND * 3).await;
    assert!(!bench.api.has_guard("g") && bench.units().is_empty());
    assert_eq!(bench.script.at(&address(1), |fake| fake.count(|told| *told == Told::Destroy(unit("g", "p")))), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_minute_a_deleted_guard_goes_unconfirmed() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    bench.script.at(&address(1), |fake| fake.destroy = Reply::Not);
    bench.api.delete_guard("g");
    wind(SECOND * 58).await;
    assert!(bench.api.has_guard("g"));
    wind(SECOND * 4).await;
    assert!(!bench.api.has_guard("g"));
    let events = bench.api.events("g", "ReleasedUnconfirmed");
    assert!(events.len() == 1 && events[0].contains("n1"), "{events:?}");
    // And the leftover is lifted once the daemon can.
    bench.script.at(&address(1), |fake| fake.destroy = Reply::Well);
    wind(RESYNC * 2).await;
    assert!(bench.units().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_has_long_been_silent_is_not_waited_for() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    bench.script.at(&address(1), |fake| fake.up = false);
    wind(RESYNC * 2).await;
    assert_eq!(bench.api.condition("g", "Ready"), "True Guarded", "an answer counts for three resyncs");
    wind(RESYNC * 2).await;
    assert_eq!(bench.api.condition("g", "Ready"), "Unknown DaemonUnreachable");
    assert_eq!(bench.metric("janus_controller_daemons{state=\"stale\"}"), 1);
    bench.api.delete_guard("g");
    wind(SECOND * 2).await;
    assert!(!bench.api.has_guard("g"));
    assert_eq!(bench.api.events("g", "ReleasedUnconfirmed").len(), 1);
    bench.script.at(&address(1), |fake| fake.up = true);
    wind(RESYNC * 2).await;
    assert!(bench.units().is_empty(), "a leftover of a guard that is gone");
    assert_eq!(bench.metric("janus_controller_daemons{state=\"answering\"}"), 1);
    assert_eq!(bench.metric("janus_controller_daemons{state=\"stale\"}"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_back_counts_again() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    // It is there, and its answers take for ever.
    bench.script.at(&address(1), |fake| fake.look = Reply::Not);
    wind(RESYNC * 5).await;
    assert_eq!(bench.api.condition("g", "Ready"), "Unknown DaemonUnreachable");
    bench.script.at(&address(1), |fake| fake.look = Reply::Well);
    wind(RESYNC).await;
    assert_eq!(bench.api.condition("g", "Ready"), "True Guarded");
}

#[tokio::test(start_paused = true)]
async fn an_invalid_guard_keeps_its_last_good_enforcement_and_says_why() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    bench.api.guard(guard("h", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    let mut bad = guard("g", "default", 1);
    bad["spec"] = json!({ "selector": {}, "subjects": "none" });
    bench.api.guard(bad);
    wind(RESYNC * 3).await;
    assert_eq!(bench.api.condition("g", "Stalled"), "True InvalidSpec");
    assert_eq!(bench.api.condition("g", "Ready"), "False InvalidSpec");
    assert_eq!(bench.api.status("g").observed_generation, Some(2));
    assert_eq!(bench.api.condition("h", "Ready"), "True Guarded", "all others go on");
    assert_eq!(bench.units(), [unit("g", "p"), unit("h", "p")]);
    // A pod that comes meanwhile gets what was good last.
    bench.api.pod(pod("q", "default", "n1"));
    wind(SECOND * 3).await;
    assert_eq!(bench.units().len(), 4);
    let statuses = bench.api.written().statuses.iter().filter(|(_, uid, _)| uid == "g").count();
    assert!(statuses < 8, "{statuses} statuses of one that cannot be read back");
    let mut good = guard("g", "default", 1);
    good["spec"]["subjects"][0]["deny"] = json!(["/root"]);
    bench.api.guard(good);
    wind(SECOND * 4).await;
    assert_eq!(bench.api.condition("g", "Ready"), "True Guarded");
    assert_eq!(bench.api.status("g").observed_generation, Some(3));
}

#[tokio::test(start_paused = true)]
async fn what_daemons_hold_of_a_guard_that_nobody_can_read_stays_until_it_is_deleted() {
    let mut bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    let mut bad = guard("g", "default", 1);
    bad["spec"] = json!({ "selector": 7 });
    bench.api.guard(bad);
    bench.restart().await;
    wind(RESYNC * 2).await;
    assert_eq!(bench.units(), [unit("g", "p")], "nobody knows what it means, and it is in force");
    assert_eq!(bench.api.condition("g", "Stalled"), "True InvalidSpec");
    bench.api.delete_guard("g");
    wind(SECOND * 3).await;
    assert!(bench.units().is_empty() && !bench.api.has_guard("g"));
    assert!(bench.api.events("g", "ReleasedUnconfirmed").is_empty());
}

/// Problems of all units of the first node, and how far they are.
fn troubled(bench: &Bench, problems: &[v1::Problem], phase: v1::GuardPhase) {
    bench.script.at(&address(1), |fake| {
        for state in fake.units.values_mut() {
            state.problems = problems.to_vec();
            state.set_phase(phase);
        }
        fake.changed();
    });
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_says_nothing_before_daemons_have_answered() {
    let mut bench = Bench::new(2);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p1", "default", "n1"));
    bench.api.pod(pod("p2", "default", "n2"));
    wind(SECOND * 3).await;
    let refused = v1::Problem { reason: "MarkRefused".into(), blocking: true, ..Default::default() };
    troubled(&bench, &[refused], v1::GuardPhase::Degraded);
    wind(RESYNC * 2).await;
    assert_eq!(bench.api.condition("g", "Degraded"), "True MarkRefused");
    let before = bench.api.written().statuses.len();
    // They answer, one of them late.
    bench.script.at(&address(1), |fake| fake.look = Reply::Not);
    bench.restart().await;
    wind(SECOND * 9).await;
    assert_eq!(bench.api.written().statuses.len(), before);
    bench.script.at(&address(1), |fake| fake.look = Reply::Well);
    wind(RESYNC * 2).await;
    assert_eq!(bench.api.written().statuses.len(), before);
    assert_eq!((bench.api.events("g", "Degraded").len(), bench.api.events("g", "Recovered").len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_does_not_wait_for_ever_nor_with_what_is_new() {
    let mut bench = Bench::new(2);
    bench.api.guard(guard("g", "default", 1));
    bench.api.guard(guard("edited", "default", 1));
    bench.api.pod(pod("p1", "default", "n1"));
    wind(SECOND * 3).await;
    bench.script.at(&address(1), |fake| fake.look = Reply::Not);
    let mut edited = guard("edited", "default", 1);
    edited["spec"]["enforcement"] = "Audit".into();
    bench.api.guard(edited);
    bench.restart().await;
    bench.api.guard(guard("made", "default", 1));
    wind(SECOND * 10).await;
    assert_eq!(bench.api.condition("edited", "Ready"), "False Arming");
    assert_eq!(bench.api.status("edited").observed_generation, Some(2));
    assert_eq!(bench.api.condition("made", "Ready"), "False Arming");
    assert_eq!(bench.api.condition("g", "Ready"), "True Guarded");
    wind(SECOND * 10).await;
    assert_eq!(bench.api.condition("g", "Ready"), "False Arming");
}

/// The sum of the pods that events name.
fn pods_of(events: &[String]) -> usize {
    events.iter().map(|note| note.split(' ').find_map(|word| word.parse::<usize>().ok()).unwrap()).sum()
}

#[tokio::test(start_paused = true)]
async fn pods_are_told_of_together() {
    let mut bench = Bench::new(5);
    bench.api.guard(guard("g", "default", 1));
    wind(SECOND * 3).await;
    for index in 0..50 {
        bench.api.pod(pod(&format!("p{index}"), "default", &format!("n{}", index % 5 + 1)));
        wind(Duration::from_millis(100)).await;
    }
    wind(SECOND * 10).await;
    let added = bench.api.events("g", "Added");
    assert!(pods_of(&added) == 50 && added.len() <= 4, "{added:?}");
    assert!(added.iter().any(|note| note.contains("and 2 more")), "{added:?}");
    (0..50).for_each(|index| bench.api.delete_pod(&format!("p{index}")));
    wind(SECOND * 10).await;
    let removed = bench.api.events("g", "Removed");
    assert!(pods_of(&removed) == 50 && removed.len() <= 2, "{removed:?}");
    // What was there before the controller was is no news.
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 10).await;
    assert_eq!(pods_of(&bench.api.events("g", "Added")), 51);
    bench.restart().await;
    wind(RESYNC * 2).await;
    assert_eq!(pods_of(&bench.api.events("g", "Added")), 51);
}

#[tokio::test(start_paused = true)]
async fn what_comes_into_force_or_goes_later_is_told_too() {
    let bench = Bench::new(1);
    bench.script.at(&address(1), |fake| {
        fake.answers("g", Reply::Pending);
        fake.destroy = Reply::Pending;
    });
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 10).await;
    assert!(bench.api.events("g", "Added").is_empty());
    bench.script.at(&address(1), |fake| {
        for state in fake.units.values_mut() {
            state.set_phase(v1::GuardPhase::InForce);
            state.guard.as_mut().unwrap().generation = 1;
            state.containers.iter_mut().for_each(|container| container.in_force = true);
        }
        fake.changed();
    });
    wind(RESYNC * 2).await;
    assert_eq!(pods_of(&bench.api.events("g", "Added")), 1);
    bench.api.delete_pod("p");
    wind(SECOND * 10).await;
    assert!(bench.api.events("g", "Removed").is_empty());
    bench.script.at(&address(1), |fake| {
        fake.units.clear();
        fake.changed();
    });
    wind(RESYNC * 2).await;
    assert_eq!(pods_of(&bench.api.events("g", "Removed")), 1);
}

#[tokio::test(start_paused = true)]
async fn degraded_and_recovered_are_told_once_each() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    let say = |problems: Vec<v1::Problem>, phase: v1::GuardPhase| {
        bench.script.at(&address(1), |fake| {
            for state in fake.units.values_mut() {
                state.problems.clone_from(&problems);
                state.set_phase(phase);
            }
            fake.changed();
        });
    };
    let problem = v1::Problem {
        reason: "MarkRefused".into(),
        message: "/etc/shadow".into(),
        blocking: true,
        ..Default::default()
    };
    bench.api.behave(Behaviour { down: true, ..Behaviour::default() });
    say(vec![problem.clone()], v1::GuardPhase::Degraded);
    wind(RESYNC * 3).await;
    bench.api.behave(Behaviour::default());
    wind(RESYNC * 3).await;
    assert_eq!(bench.api.events("g", "Degraded"), ["MarkRefused: p on n1: /etc/shadow"]);
    assert!(bench.api.events("g", "Recovered").is_empty());
    say(Vec::new(), v1::GuardPhase::InForce);
    wind(RESYNC * 5).await;
    assert_eq!((bench.api.events("g", "Degraded").len(), bench.api.events("g", "Recovered").len()), (1, 1));
    assert_eq!(bench.api.condition("g", "Degraded"), "False AsSpecified");
}

#[tokio::test(start_paused = true)]
async fn a_status_follows_an_api_server_that_was_away() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    wind(SECOND * 3).await;
    bench.api.behave(Behaviour { down: true, ..Behaviour::default() });
    bench.api.pod(pod("p", "default", "n1"));
    wind(RESYNC * 20).await;
    let refused = bench.api.written().refused;
    assert!((30..=130).contains(&refused), "{refused} tries in ten minutes");
    bench.api.behave(Behaviour::default());
    wind(RESYNC).await;
    assert_eq!(bench.counts("g"), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn another_nodes_word_about_a_pod_is_of_no_account() {
    let bench = Bench::new(2);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    let before = bench.api.written().statuses.len();
    // Whoever has the key of n2 claims the pod for it, and cannot be talked out of it.
    bench.script.at(&address(2), |fake| {
        fake.destroy = Reply::Refused(Refused::Other);
        let guard = Some(v1::GuardRef { uid: "g".into(), generation: 1, ..Default::default() });
        let pod = Some(v1::PodRef { uid: "p".into(), ..Default::default() });
        let phase = v1::GuardPhase::Failed.into();
        let state = v1::GuardState { guard, pod, phase, accepted_generation: 1, ..Default::default() };
        fake.units.insert(unit("g", "p"), state);
        fake.changed();
    });
    wind(RESYNC * 3).await;
    assert_eq!(bench.api.condition("g", "Ready"), "True Guarded");
    assert_eq!(bench.api.written().statuses.len(), before);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_and_goes() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    bench.api.delete_pod("janusd-1");
    wind(SECOND * 3).await;
    assert_eq!(bench.api.condition("g", "Ready"), "False DaemonMissing");
    assert_eq!(bench.metric("janus_controller_daemons{state=\"answering\"}"), 0);
    bench.script.at(&address(1), |fake| fake.restart());
    bench.api.pod(daemon("janusd-new", "n1", &address(1)));
    wind(SECOND * 3).await;
    assert_eq!(bench.api.condition("g", "Ready"), "True Guarded");
    assert_eq!(bench.units(), [unit("g", "p")]);
}

#[tokio::test(start_paused = true)]
async fn without_the_lead_nothing_is_written() {
    let bench = Bench::new(1);
    bench.api.guard(guard("g", "default", 1));
    bench.api.guard(guard("going", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 10).await;
    let before = format!("{:?}", bench.api.written());
    // It was stopped, and goes on with all that has come meanwhile.
    bench.mandate.take_away();
    bench.api.guard(guard("new", "default", 1));
    bench.api.delete_guard("going");
    bench.api.delete_pod("p");
    bench.api.pod(pod("q", "default", "n1"));
    wind(RESYNC * 5).await;
    assert_eq!(format!("{:?}", bench.api.written()), before);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_panics_gets_a_successor() {
    let bench = Bench::new(2);
    bench.api.guard(guard("g", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    bench.script.at(&address(1), |fake| {
        fake.restart();
        fake.panics = true;
    });
    wind(SECOND * 3).await;
    assert_eq!(bench.units(), [unit("g", "p")]);
    assert_eq!(bench.api.condition("g", "Ready"), "True Guarded");
    assert_eq!(bench.metric("janus_controller_daemons{state=\"answering\"}"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_lacks_what_a_guard_needs_is_not_sent_it() {
    let bench = Bench::new(1);
    bench.script.at(&address(1), |fake| fake.features = vec!["guard-v1".to_owned()]);
    let mut audited = guard("audited", "default", 1);
    audited["spec"]["subjects"][0]["audit"] = true.into();
    bench.api.guard(audited);
    bench.api.guard(guard("plain", "default", 1));
    bench.api.pod(pod("p", "default", "n1"));
    wind(SECOND * 3).await;
    assert_eq!(bench.units(), [unit("plain", "p")]);
    assert_eq!(bench.api.condition("audited", "Ready"), "False KernelLacksFeature");
    bench.script.at(&address(1), |fake| {
        fake.features.push("audit-log".to_owned());
        fake.restart();
    });
    wind(SECOND * 4).await;
    assert_eq!(bench.units().len(), 2);
    assert_eq!(bench.api.condition("audited", "Ready"), "True Guarded");
}

#[tokio::test(start_paused = true)]
async fn guarded_pods_bear_their_guards_names_where_that_is_asked_for() {
    let bench = Bench::unlisted(1, true);
    bench.api.behave(Behaviour { stubborn: Some("a"), ..Behaviour::default() });
    bench.list();
    bench.api.guard(guard("g", "default", 1));
    bench.api.guard(guard("h", "default", 1));
    ["a", "b", "c"].into_iter().for_each(|name| bench.api.pod(pod(name, "default", "n1")));
    wind(RESYNC).await;
    let last = |name: &str| {
        let written = bench.api.written();
        let annotation = written.annotations.iter().rfind(|(_, annotation)| &*annotation.pod == name);
        annotation.and_then(|(_, annotation)| annotation.guards.clone())
    };
    assert_eq!([last("a"), last("b"), last("c")], [None, Some("g,h".to_owned()), Some("g,h".to_owned())]);
    bench.api.delete_guard("h");
    wind(RESYNC).await;
    assert_eq!([last("b"), last("c")], [Some("g".to_owned()), Some("g".to_owned())]);
    let written = bench.api.written();
    let times: Vec<_> = written.annotations.iter().map(|(at, _)| *at).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_millis(200)), "{times:?}");
    assert!(times.len() <= 10, "{:?}", written.annotations);
}

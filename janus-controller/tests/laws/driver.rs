//! One node: its driver, with a scripted daemon, by a clock that tests wind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use janus_controller::core::plan::Desired;
use janus_controller::core::reason::Reason;
use janus_controller::core::status::Held;
use janus_controller::core::unit::{Container, Order, Pod, UnitId, Wanted};
use janus_controller::index::Target;
use janus_controller::metrics::Metrics;
use janus_controller::reconcile::driver::{By, Driver, News, Orders, Pace, Report};
use janus_controller::reconcile::port::Refused;
use janus_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::script::{Mandate, Reply, Script, Told, wind};

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const RESYNC: Duration = Duration::from_secs(30);

fn wanted(guard: &str, generation: i64, pod: &str, containers: &[&str]) -> (UnitId, Wanted) {
    let order = Order {
        uid: guard.into(),
        namespace: "default".into(),
        name: guard.into(),
        generation,
        spec: v1::GuardSpec::default(),
        needs: janus_controller::core::spec::Features { guard_v1: true, audit_log: false },
    };
    let running = containers.iter().map(|id| Container { name: "app".into(), id: (*id).into(), started: 0 });
    let pod = Pod {
        uid: pod.into(),
        cgroup_uid: None,
        namespace: "default".into(),
        name: pod.into(),
        node: "n".into(),
        labels: Arc::default(),
        annotated: None,
        started: !containers.is_empty(),
        running: running.collect(),
    };
    let wanted = Wanted { order: Arc::new(order), pod: Arc::new(pod) };
    (wanted.id(), wanted)
}

fn orders(address: &str, units: impl IntoIterator<Item = (UnitId, Wanted)>) -> Arc<Orders> {
    let target = Some(Target { pod: format!("daemon-{address}").into(), address: address.parse().unwrap() });
    Arc::new(Orders {
        target,
        desired: Desired { units: units.into_iter().collect(), ..Desired::default() },
        ..Orders::default()
    })
}

/// A driver, what it is told by, and what it has told.
struct Bench {
    script: Script,
    mandate: Mandate,
    orders: watch::Sender<Arc<Orders>>,
    reports: mpsc::Receiver<Report>,
    held: HashMap<UnitId, (Held, By)>,
    answers: Vec<Instant>,
    losses: Vec<(Instant, &'static str)>,
    metrics: Arc<Metrics>,
    driver: JoinSet<Arc<str>>,
}

impl Bench {
    fn new(first: Arc<Orders>) -> Bench {
        let script = Script::new();
        script.add(A, "n");
        script.add(B, "n");
        Bench::with(script, first)
    }

    fn with(script: Script, first: Arc<Orders>) -> Bench {
        let (orders, receiver) = watch::channel(first);
        let (reporter, reports) = mpsc::channel(4096);
        let (mandate, metrics) = (Mandate::new(7), Metrics::new());
        let pace = Pace { resync: RESYNC };
        let driver =
            Driver::new("n".into(), script.clone(), mandate.clone(), receiver, reporter, pace, metrics.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run());
        Bench {
            script,
            mandate,
            orders,
            reports,
            held: HashMap::new(),
            answers: Vec::new(),
            losses: Vec::new(),
            metrics,
            driver: tasks,
        }
    }

    /// Takes what it has told so far.
    fn hear(&mut self) {
        while let Ok(Report { node, news }) = self.reports.try_recv() {
            assert_eq!(&*node, "n");
            match news {
                News::Units(units) => {
                    for (unit, held, by) in units {
                        if held == Held::default() {
                            self.held.remove(&unit);
                        } else {
                            self.held.insert(unit, (held, by));
                        }
                    }
                }
                News::Answered { at, .. } => self.answers.push(at),
                News::Lost(lost) => self.losses.push((Instant::now(), lost.word)),
                News::Obeyed(_) => {}
            }
        }
    }

    async fn wind(&mut self, by: Duration) {
        wind(by).await;
        self.hear();
    }

    fn metric(&self, line: &str) -> u64 {
        let text = self.metrics.open_metrics().unwrap();
        let value = text.lines().find_map(|it| it.strip_prefix(line)).unwrap_or_else(|| panic!("{line} in\n{text}"));
        value.trim().parse().unwrap()
    }

    fn differences(&self) -> u64 {
        let kinds = ["missing", "outdated", "containers", "leftover"];
        kinds
            .map(|kind| self.metric(&format!("janus_controller_state_differences_total{{kind=\"{kind}\"}}")))
            .iter()
            .sum()
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_is_sent_once_and_what_is_not_is_lifted() {
    let script = Script::new();
    script.add(A, "n");
    script.at(A, |fake| {
        let guard = Some(v1::GuardRef { uid: "old".into(), generation: 3, ..Default::default() });
        let pod = Some(v1::PodRef { uid: "p".into(), ..Default::default() });
        let phase = v1::GuardPhase::InForce.into();
        let state = v1::GuardState { guard, pod, phase, accepted_generation: 3, ..Default::default() };
        fake.units.insert(("old".into(), "p".into()), state);
    });
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::with(script, orders(A, [(unit.clone(), it)]));
    bench.wind(RESYNC * 10).await;
    bench.script.at(A, |fake| {
        assert_eq!(fake.creates(), 1, "{:?}", fake.told);
        assert_eq!(fake.count(|told| *told == Told::Destroy(("old".into(), "p".into()))), 1);
        assert_eq!(fake.units.len(), 1);
        // The state is asked for first, and afterwards by digest.
        assert_eq!(fake.told[1].1, Told::Look(false));
        let looks = fake.count(|told| matches!(told, Told::Look(_)));
        assert!((11..=16).contains(&looks), "{looks} looks in ten resyncs");
        assert!(fake.count(|told| *told == Told::Look(true)) >= 9, "{:?}", fake.told);
    });
    assert_eq!(bench.held[&unit].0.observation.as_ref().unwrap().generation, 1);
    assert_eq!(bench.held.len(), 1);
    assert!(bench.answers.len() >= 11, "an unchanged state is an answer");
    assert_eq!(bench.differences(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_look_from_before_a_call_ended_says_nothing_of_its_unit() {
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::new(orders(A, []));
    bench.wind(Duration::from_secs(1)).await;
    // The next look is asked for and comes late; it does not know of the unit that is made meanwhile.
    bench.script.at(A, |fake| fake.look = Reply::Not);
    bench.wind(RESYNC * 2).await;
    bench.orders.send_replace(orders(A, [(unit.clone(), it)]));
    bench.script.until(A, "the unit", |fake| fake.creates() == 1).await;
    bench.script.at(A, |fake| fake.look = Reply::Well);
    bench.wind(Duration::from_millis(100)).await;
    assert!(bench.held.contains_key(&unit), "taken for gone");
    bench.wind(RESYNC * 3).await;
    assert_eq!(bench.script.at(A, |fake| fake.creates()), 1, "sent again");
    assert!(bench.held.contains_key(&unit));
    assert_eq!(bench.differences(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_look_from_before_a_lift_does_not_bring_the_unit_back() {
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::new(orders(A, [(unit.clone(), it)]));
    bench.wind(RESYNC).await;
    bench.script.at(A, |fake| fake.look = Reply::Not);
    bench.wind(RESYNC * 2).await;
    bench.orders.send_replace(orders(A, []));
    bench.script.until(A, "lifted", |fake| fake.units.is_empty()).await;
    bench.script.at(A, |fake| fake.look = Reply::Well);
    bench.wind(RESYNC * 3).await;
    assert!(bench.held.is_empty(), "{:?}", bench.held);
    assert_eq!(bench.script.at(A, |fake| fake.count(|told| matches!(told, Told::Destroy(_)))), 1);
}

#[tokio::test(start_paused = true)]
async fn lost_connections_back_off_and_one_that_is_back_is_reached_within_a_resync() {
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::new(orders(A, [(unit, it)]));
    bench.wind(RESYNC).await;
    bench.script.at(A, |fake| fake.up = false);
    let from = bench.script.at(A, |fake| fake.told.len());
    bench.wind(RESYNC * 20).await;
    let tries = bench.script.at(A, |fake| fake.told.len()) - from;
    assert!((15..=60).contains(&tries), "{tries} tries in ten minutes");
    assert_eq!(bench.losses.len(), tries + 1, "each is told, and the end of the connection");
    bench.script.at(A, |fake| {
        fake.restart();
        fake.up = true;
    });
    bench.wind(RESYNC).await;
    assert_eq!(bench.script.at(A, |fake| fake.units.len()), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_breaks_over_each_call_backs_off_too() {
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let script = Script::new();
    script.add(A, "n");
    script.at(A, |fake| fake.answers("g", Reply::Broken));
    let mut bench = Bench::with(script, orders(A, [(unit, it)]));
    bench.wind(RESYNC * 20).await;
    let tries = bench.script.at(A, |fake| fake.creates());
    assert!((15..=60).contains(&tries), "{tries} tries in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_holds_up_no_other() {
    let script = Script::new();
    script.add(A, "n");
    script.at(A, |fake| fake.answers("slow", Reply::Not));
    let units = (0..50).map(|it| wanted(&format!("g{it}"), 1, "p", &["c"])).chain([wanted("slow", 1, "p", &["c"])]);
    let mut bench = Bench::with(script, orders(A, units));
    bench.wind(Duration::from_secs(1)).await;
    assert_eq!(bench.script.at(A, |fake| fake.units.len()), 50);
    assert_eq!(bench.held.len(), 50);
    bench.script.at(A, |fake| fake.create.clear());
    bench.wind(Duration::from_secs(1)).await;
    assert_eq!(bench.held.len(), 51);
}

#[tokio::test(start_paused = true)]
async fn calls_under_way_at_once_are_bounded() {
    let script = Script::new();
    script.add(A, "n");
    script.at(A, |fake| fake.answers("slow", Reply::Not));
    let units = (0..50).map(|it| wanted("slow", 1, &format!("p{it}"), &["c"]));
    let mut bench = Bench::with(script, orders(A, units));
    bench.wind(Duration::from_secs(1)).await;
    assert_eq!(bench.script.at(A, |fake| fake.creates()), 8);
    bench.script.at(A, |fake| fake.create.clear());
    bench.wind(Duration::from_secs(1)).await;
    assert_eq!(bench.script.at(A, |fake| (fake.creates(), fake.units.len())), (50, 50));
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_tried_later_and_at_once_when_it_changes() {
    let script = Script::new();
    script.add(A, "n");
    script.at(A, |fake| fake.answers("g", Reply::Refused(Refused::Invalid)));
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::with(script, orders(A, [(unit.clone(), it)]));
    bench.wind(Duration::from_millis(500)).await;
    let refusal = bench.held[&unit].0.refusal.clone().unwrap();
    assert_eq!((refusal.reason, refusal.generation), (Reason::RefusedByDaemon, 1));
    assert_eq!(bench.script.at(A, |fake| fake.creates()), 1);
    bench.wind(RESYNC * 10).await;
    let tries = bench.script.at(A, |fake| fake.creates());
    assert!((8..=16).contains(&tries), "{tries} tries in five minutes");
    assert_eq!(bench.differences(), 0, "what was refused is no difference");
    let (_, it) = wanted("g", 2, "p", &["c"]);
    bench.orders.send_replace(orders(A, [(unit.clone(), it)]));
    bench.wind(Duration::from_millis(10)).await;
    assert_eq!(bench.script.at(A, |fake| fake.creates()), tries + 1, "a new generation waits for nothing");
    bench.script.at(A, |fake| fake.create.clear());
    bench.wind(RESYNC * 2).await;
    let held = &bench.held[&unit].0;
    assert!(held.refusal.is_none() && held.observation.as_ref().unwrap().generation == 2, "{held:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_says_yes_and_does_nothing_is_not_told_again_and_again() {
    for reply in [Reply::Leaving, Reply::Ignored] {
        let (unit, it) = wanted("g", 1, "p", &["c"]);
        let mut bench = Bench::new(orders(A, [(unit.clone(), it)]));
        bench.wind(RESYNC).await;
        bench.script.at(A, |fake| fake.answers("g", reply));
        let before = bench.script.at(A, |fake| fake.creates());
        bench.orders.send_replace(orders(A, [wanted("g", 2, "p", &["c"])]));
        bench.wind(RESYNC * 10).await;
        let tries = bench.script.at(A, |fake| fake.creates()) - before;
        assert!((8..=20).contains(&tries), "{reply:?}: {tries} tries in five minutes");
        // Once it does, all is well, no later than a resync.
        bench.script.at(A, |fake| fake.create.clear());
        bench.wind(RESYNC * 2).await;
        assert_eq!(bench.held[&unit].0.observation.as_ref().unwrap().generation, 2, "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_goes_with_its_pod() {
    let script = Script::new();
    script.add(A, "n");
    script.at(A, |fake| fake.answers("g", Reply::Refused(Refused::Limit)));
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::with(script, orders(A, [(unit.clone(), it)]));
    bench.wind(RESYNC).await;
    assert!(bench.held.contains_key(&unit));
    bench.orders.send_replace(orders(A, []));
    bench.wind(RESYNC * 2).await;
    assert!(bench.held.is_empty(), "kept for ever: {:?}", bench.held);
}

#[tokio::test(start_paused = true)]
async fn without_the_lead_nothing_is_changed_any_more() {
    let mut bench = Bench::new(orders(A, []));
    bench.wind(RESYNC).await;
    bench.mandate.take_away();
    bench.orders.send_replace(orders(A, [wanted("g", 1, "p", &["c"])]));
    bench.wind(RESYNC * 3).await;
    assert_eq!(bench.script.at(A, |fake| fake.creates()), 0);
    assert!(bench.driver.try_join_next().is_some(), "it ends");
}

#[tokio::test(start_paused = true)]
async fn calls_bear_the_epoch_and_one_that_is_deposed_changes_nothing() {
    let mut bench = Bench::new(orders(A, [wanted("g", 1, "p", &["c"])]));
    bench.wind(Duration::from_secs(5)).await;
    assert_eq!(bench.script.at(A, |fake| std::mem::replace(&mut fake.epoch, 8)), 7);
    bench.orders.send_replace(orders(A, [wanted("g", 2, "p", &["c"])]));
    bench.wind(RESYNC * 3).await;
    bench.script.at(A, |fake| {
        let state = &fake.units[&("g".into(), "p".into())];
        assert_eq!(state.accepted_generation, 1);
        assert!(fake.creates() < 10, "{}", fake.creates());
    });
}

#[tokio::test(start_paused = true)]
async fn the_daemon_of_another_node_is_told_nothing() {
    let script = Script::new();
    script.add(A, "elsewhere");
    let mut bench = Bench::with(script, orders(A, [wanted("g", 1, "p", &["c"])]));
    bench.wind(RESYNC * 20).await;
    bench.script.at(A, |fake| {
        assert_eq!(fake.creates(), 0);
        let tries = fake.count(|told| *told == Told::Connect);
        assert!((15..=60).contains(&tries), "{tries} tries in ten minutes");
    });
    assert!(bench.answers.is_empty());
    assert!(bench.losses.iter().all(|(_, word)| *word == "wrong-node"), "{:?}", bench.losses);
}

#[tokio::test(start_paused = true)]
async fn unchanged_of_a_state_that_was_not_named_is_not_believed() {
    let script = Script::new();
    script.add(A, "n");
    script.at(A, |fake| fake.lies = true);
    let mut bench = Bench::with(script, orders(A, [wanted("g", 1, "p", &["c"])]));
    bench.wind(RESYNC * 2).await;
    assert_eq!(bench.script.at(A, |fake| fake.creates()), 0);
    assert!(
        !bench.losses.is_empty() && bench.losses.iter().all(|(_, word)| *word == "malformed"),
        "{:?}",
        bench.losses
    );
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_names_no_state_tells_all_of_it() {
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::new(orders(A, [(unit.clone(), it)]));
    bench.wind(RESYNC).await;
    // The daemon starts anew, and gives no digest: each look brings its whole state.
    bench.script.at(A, |fake| {
        fake.digests = false;
        fake.restart();
    });
    bench.wind(RESYNC * 2).await;
    bench.script.at(A, |fake| {
        assert_eq!(fake.units.len(), 1);
        assert_eq!(fake.creates(), 2);
        assert!(fake.told.iter().rev().take(2).all(|(_, told)| *told != Told::Look(true)), "{:?}", fake.told);
    });
}

#[tokio::test(start_paused = true)]
async fn a_state_that_breaks_off_changes_nothing_of_what_is_known() {
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::new(orders(A, [(unit.clone(), it)]));
    bench.wind(RESYNC).await;
    bench.script.at(A, |fake| fake.look = Reply::Broken);
    bench.wind(RESYNC * 3).await;
    assert!(bench.held.contains_key(&unit), "what it said last stands until it says otherwise");
    bench.script.at(A, |fake| fake.look = Reply::Well);
    bench.wind(RESYNC * 2).await;
    assert_eq!(bench.script.at(A, |fake| fake.creates()), 1, "there all the time");
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_daemon_is_another_one_is_looked_at_anew() {
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::new(orders(A, [(unit.clone(), it.clone())]));
    bench.wind(RESYNC).await;
    bench.orders.send_replace(orders(B, [(unit.clone(), it)]));
    bench.wind(Duration::from_secs(2)).await;
    bench.script.at(B, |fake| {
        assert_eq!(fake.told[1].1, Told::Look(false));
        assert_eq!(fake.units.len(), 1);
    });
    let told = bench.script.at(A, |fake| fake.told.len());
    bench.wind(RESYNC * 3).await;
    assert_eq!(bench.script.at(A, |fake| fake.told.len()), told, "the old one is left alone");
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_daemon_has_nothing_and_its_driver_ends() {
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::new(orders(A, [(unit.clone(), it)]));
    bench.wind(RESYNC).await;
    bench.orders.send_replace(Arc::default());
    bench.wind(Duration::from_secs(1)).await;
    assert!(bench.held.is_empty());
    assert_eq!(&*bench.driver.try_join_next().unwrap().unwrap(), "n");
}

#[tokio::test(start_paused = true)]
async fn what_a_daemon_forgot_is_made_again() {
    let units: Vec<_> = (0..20).map(|it| wanted("g", 1, &format!("p{it}"), &["c"])).collect();
    let mut bench = Bench::new(orders(A, units));
    bench.wind(RESYNC).await;
    bench.script.at(A, |fake| fake.restart());
    bench.wind(Duration::from_secs(3)).await;
    assert_eq!(bench.script.at(A, |fake| (fake.units.len(), fake.creates())), (20, 40));
    assert_eq!(bench.differences(), 0, "a daemon that starts anew has told us so");
}

#[tokio::test(start_paused = true)]
async fn what_the_periodic_look_finds_amiss_is_counted_and_repaired() {
    let units: Vec<_> = (0..3).map(|it| wanted("g", 1, &format!("p{it}"), &["c"])).collect();
    let mut bench = Bench::new(orders(A, units.clone()));
    bench.wind(RESYNC * 2).await;
    bench.script.at(A, |fake| {
        fake.units.remove(&("g".into(), "p0".into()));
        let mut other = fake.units[&("g".into(), "p1".into())].clone();
        other.pod.as_mut().unwrap().uid = "gone".into();
        fake.units.insert(("g".into(), "gone".into()), other);
        fake.changed();
    });
    bench.wind(RESYNC * 2).await;
    assert_eq!(bench.metric("janus_controller_state_differences_total{kind=\"missing\"}"), 1);
    assert_eq!(bench.metric("janus_controller_state_differences_total{kind=\"leftover\"}"), 1);
    assert_eq!(bench.differences(), 2);
    bench.script.at(A, |fake| {
        assert_eq!(fake.units.len(), 3);
        // What is merely new is no difference, however long it takes.
        fake.answers("h", Reply::Not);
    });
    let new = (0..20).map(|it| wanted("h", 1, &format!("p{it}"), &["c"]));
    bench.orders.send_replace(orders(A, units.into_iter().chain(new)));
    bench.wind(RESYNC * 3).await;
    assert_eq!(bench.differences(), 2, "calls under way, and those that wait for them");
}

#[tokio::test(start_paused = true)]
async fn containers_are_named_when_they_come_and_once_a_resync_while_they_are_not_found() {
    let mut bench = Bench::new(orders(A, [wanted("g", 1, "p", &[])]));
    bench.wind(Duration::from_secs(1)).await;
    bench.orders.send_replace(orders(A, [wanted("g", 1, "p", &["c"])]));
    bench.wind(RESYNC * 2).await;
    let named =
        |fake: &mut crate::script::Fake| fake.count(|told| matches!(told, Told::Create(_, _, ids) if ids == &["c"]));
    assert_eq!(bench.script.at(A, named), 1);
    // The daemon takes the name, and finds no such container.
    bench.script.at(A, |fake| {
        fake.answers("g", Reply::Pending);
        fake.units.values_mut().for_each(|state| state.containers.clear());
        fake.changed();
    });
    bench.wind(RESYNC * 10).await;
    let told = bench.script.at(A, named);
    assert!((6..=13).contains(&told), "told {told} times in ten resyncs");
}

#[tokio::test(start_paused = true)]
async fn a_lift_that_takes_long_is_not_asked_for_again_meanwhile() {
    let (unit, it) = wanted("g", 1, "p", &["c"]);
    let mut bench = Bench::new(orders(A, [(unit.clone(), it)]));
    bench.wind(RESYNC).await;
    bench.script.at(A, |fake| fake.destroy = Reply::Pending);
    bench.orders.send_replace(orders(A, []));
    bench.wind(RESYNC).await;
    assert!(bench.held.contains_key(&unit), "not lifted yet");
    assert_eq!(bench.script.at(A, |fake| fake.count(|told| matches!(told, Told::Destroy(_)))), 1);
    bench.script.at(A, |fake| {
        fake.units.clear();
        fake.changed();
    });
    bench.wind(RESYNC * 2).await;
    assert!(bench.held.is_empty());
}

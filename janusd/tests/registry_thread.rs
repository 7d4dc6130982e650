//! The registry's thread, with a scripted engine behind its port: who is answered when, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use janus_proto::v1;
use janusd::guard::known::Fingerprints;
use janusd::guard::transfer::{Estate, Legacy};
use janusd::guard::{Numbers, Report, SiteReport};
use janusd::metrics::{GuardState, MarkCounts, Tally};
use janusd::policy::GuardName;
use janusd::registry::port::{Enforcer, Failure, Job, Limit, Looked, Run, Teller};
use janusd::registry::{Bounds, Denied, Refusal, Registry, RegistryThread, Standing, UnitState};
use janusd::wire::{Create, Destroy};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What the engine was asked for, and how to answer.
#[derive(Clone, Default)]
struct Stage(Arc<Mutex<Played>>);

#[derive(Default)]
struct Played {
    starts: usize,
    updates: usize,
    running: usize,
    most_running: usize,
    forgotten: Vec<String>,
    /// Of each run, by pod, the last to be told.
    tellers: BTreeMap<String, Teller>,
    /// Looks at a pod's containers: when they are over is said by the test.
    looks: Vec<Looked>,
    /// Of the last thing that was asked for.
    containers: Vec<String>,
    cgroups: String,
    /// All runs are begun with this.
    report: Option<Arc<Mutex<Report>>>,
    /// Starts that fail at once.
    failing: usize,
    /// Answers are given by the test.
    silent: bool,
}

impl Played {
    fn heard(&mut self, job: &Job) {
        self.containers = job.containers.iter().map(|it| it.id().to_owned()).collect();
        self.cgroups = job.pod.cgroup_uid().as_str().to_owned();
    }
}

impl Stage {
    fn steps(&self) -> (usize, usize) {
        let played = self.0.lock();
        (played.starts, played.updates)
    }
}

struct Actor {
    stage: Stage,
    teller: Teller,
    report: Arc<Mutex<Report>>,
}

impl Enforcer for Stage {
    type Run = Actor;

    fn start(&mut self, job: &Job, _: usize, teller: Teller) -> Result<Actor, Failure> {
        let mut played = self.0.lock();
        played.starts += 1;
        played.heard(job);
        if played.failing > 0 {
            played.failing -= 1;
            return Err(Failure::Internal("scripted".to_owned()));
        }
        played.running += 1;
        played.most_running = played.most_running.max(played.running);
        played.tellers.insert(job.unit.pod.to_string(), teller.clone());
        if !played.silent {
            teller.done();
        }
        let report = Report {
            state: GuardState::Guarding,
            marks: MarkCounts::default(),
            problems: Default::default(),
            sites: Vec::new(),
            seen_to: Default::default(),
            frozen: None,
        };
        let report = Arc::new(Mutex::new(report));
        played.report = Some(report.clone());
        Ok(Actor { stage: self.clone(), teller, report })
    }

    fn forget(&mut self, guard: &GuardName) {
        self.0.lock().forgotten.push(guard.name.clone());
    }
}

impl Run for Actor {
    fn update(&mut self, job: &Job, teller: Teller) {
        let mut played = self.stage.0.lock();
        played.updates += 1;
        played.heard(job);
        played.tellers.insert(job.unit.pod.to_string(), teller.clone());
        if !played.silent {
            teller.done();
        }
    }

    fn look(&mut self, job: &Job, looked: Looked) {
        let mut played = self.stage.0.lock();
        played.heard(job);
        if played.silent {
            played.looks.push(looked);
        }
    }

    fn stop(&self) {
        if !self.stage.0.lock().silent {
            self.teller.gone();
        }
    }

    fn finish(self) {
        self.stage.0.lock().running -= 1;
    }

    fn reports(&self) -> Arc<Mutex<Report>> {
        self.report.clone()
    }

    fn tally(&self) -> Arc<Tally> {
        Arc::default()
    }
}

fn begin(bounds: Bounds) -> (Stage, Registry, RegistryThread) {
    let stage = Stage::default();
    let (registry, thread) = Registry::start(stage.clone(), bounds).unwrap();
    (stage, registry, thread)
}

const ROOMY: Bounds = Bounds { guards: 100, of_namespace: 100 };

fn create(namespace: &str, pod: &str, epoch: u64, generation: i64, path: &str) -> Create {
    Create::try_from(request(namespace, pod, epoch, generation, path, "")).unwrap()
}

fn request(
    namespace: &str,
    pod: &str,
    epoch: u64,
    generation: i64,
    path: &str,
    cgroups: &str,
) -> v1::CreateGuardRequest {
    let subject = v1::Subject {
        deny: vec![path.to_owned()],
        events: vec![v1::Event::Open.into()],
        log: v1::LogPolicy::All.into(),
        ..Default::default()
    };
    v1::CreateGuardRequest {
        caller: Some(v1::Caller { epoch, node: "n".into() }),
        guard: Some(v1::GuardRef { uid: "g".into(), namespace: namespace.into(), name: "g".into(), generation }),
        pod: Some(v1::PodRef {
            uid: pod.into(),
            cgroup_uid: cgroups.into(),
            namespace: namespace.into(),
            name: pod.into(),
        }),
        spec: Some(v1::GuardSpec {
            subjects: vec![subject],
            enforcement: v1::Enforcement::Enforce.into(),
            failure_policy: v1::FailurePolicy::Allow.into(),
            ..Default::default()
        }),
        container_ids: Vec::new(),
    }
}

fn with_container(mut create: Create, id: &str) -> Create {
    create.containers = containers(&[id]);
    create
}

fn containers(ids: &[&str]) -> Vec<janusd::wire::ContainerName> {
    let request = v1::CreateGuardRequest {
        container_ids: ids.iter().map(|id| v1::ContainerId { name: "c".into(), id: (*id).into() }).collect(),
        ..request("ns", "p", 1, 1, "/a", "")
    };
    Create::try_from(request).unwrap().containers
}

fn destroy(pod: &str, epoch: u64, generation: i64) -> Destroy {
    let request = v1::DestroyGuardRequest {
        caller: Some(v1::Caller { epoch, node: "n".into() }),
        guard: Some(v1::GuardRef { uid: "g".into(), generation, ..Default::default() }),
        pod: Some(v1::PodRef { uid: pod.into(), ..Default::default() }),
    };
    Destroy::try_from(request).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await.unwrap() });
}

async fn eventually(mut so: impl AsyncFnMut() -> bool) {
    while !so().await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn standing(state: Result<Box<UnitState>, Denied>) -> (Standing, i64) {
    let state = state.unwrap();
    (state.standing, state.generation)
}

#[test]
fn created_once_updated_in_place_lifted() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        assert_eq!(standing(registry.create(create("ns", "p", 1, 1, "/a")).await), (Standing::InForce, 1));
        assert_eq!(standing(registry.create(create("ns", "p", 1, 1, "/a")).await), (Standing::InForce, 1));
        assert_eq!(stage.steps(), (1, 0), "the same again is no step");
        assert_eq!(standing(registry.create(create("ns", "p", 1, 2, "/b")).await), (Standing::InForce, 2));
        assert_eq!(stage.steps(), (1, 1));
        assert_eq!(registry.census().states(), [GuardState::Guarding]);
        registry.destroy(destroy("p", 1, 2)).await.unwrap();
        registry.destroy(destroy("p", 1, 2)).await.unwrap();
        assert!(registry.all().await.unwrap().units.is_empty());
        assert_eq!(stage.0.lock().running, 0);
        // A leader that was deposed cannot bring it back, though nothing is left of the guard.
        registry.destroy(destroy("p", 2, 2)).await.unwrap();
        let late = registry.create(create("ns", "p", 1, 3, "/a")).await.unwrap_err();
        assert_eq!(late, Denied::Refused(Refusal::StaleEpoch { have: 2 }));
    });
    thread.end();
}

#[test]
fn a_guard_that_hangs_holds_up_no_other() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        stage.0.lock().silent = true;
        let hanging =
            tokio::time::timeout(Duration::from_millis(50), registry.create(create("ns", "a", 1, 1, "/a"))).await;
        assert!(hanging.is_err(), "answered before it was in force");
        stage.0.lock().silent = false;
        assert_eq!(standing(registry.create(create("ns", "b", 1, 1, "/a")).await), (Standing::InForce, 1));
        let unit = create("ns", "a", 1, 1, "/a").unit;
        assert_eq!(registry.look(unit.clone()).await.unwrap().standing, Standing::Pending);
        // It comes round: whoever asks again is answered.
        stage.0.lock().tellers["a"].done();
        assert_eq!(standing(registry.create(create("ns", "a", 1, 1, "/a")).await), (Standing::InForce, 1));
    });
    thread.end();
}

#[test]
fn what_could_not_start_is_told_kept_and_tried_again() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        stage.0.lock().failing = 1;
        let failed = registry.create(create("ns", "p", 1, 1, "/a")).await.unwrap_err();
        assert_eq!(failed, Denied::Failed(Failure::Internal("scripted".to_owned())));
        assert_eq!(registry.census().states(), [GuardState::Failed]);
        let unit = create("ns", "p", 1, 1, "/a").unit;
        eventually(async || registry.look(unit.clone()).await.unwrap().standing == Standing::InForce).await;
        assert_eq!(stage.0.lock().starts, 2);
        assert!(registry.look(unit).await.unwrap().failure.is_none());
    });
    thread.end();
}

#[test]
fn one_that_dies_is_seen_and_comes_back() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        registry.create(create("ns", "p", 1, 1, "/a")).await.unwrap();
        let teller = stage.0.lock().tellers["p"].clone();
        teller.gone();
        let unit = create("ns", "p", 1, 1, "/a").unit;
        eventually(async || registry.census().dead() == 1).await;
        eventually(async || registry.census().dead() == 0).await;
        let back = registry.look(unit).await.unwrap();
        assert_eq!((back.standing, back.restarts), (Standing::InForce, 1));
        assert_eq!(stage.0.lock().most_running, 1, "never two of them");
    });
    thread.end();
}

#[test]
fn an_update_that_failed_leaves_the_old_one_in_force_and_says_so() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        registry.create(create("ns", "p", 1, 1, "/a")).await.unwrap();
        stage.0.lock().silent = true;
        let teller = async {
            eventually(async || stage.0.lock().updates == 1).await;
            let teller = stage.0.lock().tellers["p"].clone();
            teller.failed(Failure::Internal("no".to_owned()));
        };
        let (answer, ()) = tokio::join!(registry.create(create("ns", "p", 1, 2, "/b")), teller);
        let state = answer.unwrap();
        assert_eq!((state.standing, state.generation, state.accepted), (Standing::Degraded, 1, 2));
        assert_eq!(state.failure, Some(Failure::Internal("no".to_owned())));
    });
    thread.end();
}

#[test]
fn no_more_than_there_is_room_for() {
    let (_, registry, thread) = begin(Bounds { guards: 3, of_namespace: 2 });
    run(async {
        registry.create(create("one", "a", 1, 1, "/a")).await.unwrap();
        registry.create(create("one", "b", 1, 1, "/a")).await.unwrap();
        let limit = |denied| match denied {
            Err(Denied::Failed(Failure::Limit { limit, at, .. })) => (limit, at),
            other => panic!("{other:?}"),
        };
        let third = registry.create(create("one", "c", 1, 1, "/a")).await;
        assert_eq!(limit(third), (Limit::Namespace, Some(2)), "one namespace does not take all");
        registry.create(create("two", "d", 1, 1, "/a")).await.unwrap();
        assert_eq!(limit(registry.create(create("two", "e", 1, 1, "/a")).await), (Limit::Guards, Some(3)));
        assert_eq!(registry.all().await.unwrap().units.len(), 3, "what was refused is not kept");
        registry.create(create("one", "a", 1, 2, "/b")).await.unwrap();
    });
    thread.end();
}

#[test]
fn draining_lifts_all_and_takes_no_more() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        for pod in ["a", "b", "c"] {
            registry.create(create("ns", pod, 1, 1, "/a")).await.unwrap();
        }
        registry.drain().await;
        assert_eq!(stage.0.lock().running, 0);
        let refused = registry.create(create("ns", "d", 1, 1, "/a")).await.unwrap_err();
        assert_eq!(refused, Denied::Refused(Refusal::Draining));
        assert!(registry.draining());
    });
    thread.end();
    run(async { assert_eq!(registry.create(create("ns", "d", 1, 1, "/a")).await.unwrap_err(), Denied::Ended) });
}

#[test]
fn draining_waits_until_a_hand_over_is_decided() {
    for given in [true, false] {
        let (stage, registry, thread) = begin(ROOMY);
        run(async { drop(registry.create(create("ns", "p", 1, 1, "/a")).await.unwrap()) });
        registry.bequeath().unwrap();
        run(async {
            let mut drained = Box::pin(registry.drain());
            assert!(waits(&mut drained).await, "lifted under the other process");
            assert_eq!(stage.0.lock().running, 1);
            if given {
                registry.bequeathed();
            } else {
                registry.resume();
            }
            drained.await;
            assert_eq!(stage.0.lock().running, 0);
            let refused = registry.create(create("ns", "p", 1, 1, "/a")).await.unwrap_err();
            assert_eq!(refused, Denied::Refused(Refusal::Draining));
        });
        thread.end();
    }
}

#[test]
fn more_names_than_a_call_may_bear_are_handed_over_as_far_as_they_fit() {
    let (_, registry, thread) = begin(ROOMY);
    run(async {
        for turn in ["a", "b"] {
            let ids: Vec<String> = (0..200).map(|number| format!("{turn}{number}")).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let create = Create { containers: containers(&ids), ..create("ns", "p", 1, 1, "/a") };
            registry.create(create).await.unwrap();
        }
    });
    let (bequests, _) = registry.bequeath().unwrap();
    assert_eq!(bequests[0].containers.len(), 400);
    let request = bequests[0].create.request(1, &bequests[0].containers);
    let again = Create::try_from(request).unwrap();
    assert_eq!(again.containers.last().unwrap().id(), "b199", "the latest");
    thread.end();
}

/// Groups that came for a guard that runs, or is on its way out, are let go, and not kept for its next run.
#[test]
fn an_estate_is_for_a_run_that_starts_now() {
    let (stage, registry, thread) = begin(ROOMY);
    let estate = || {
        let (reader, writer) = std::io::pipe().unwrap();
        let near = std::fs::File::open("/dev/null").unwrap().into();
        let legacy = Legacy { wide: writer.into(), near, audit: false };
        (reader, Estate::new(legacy, Numbers::default(), Vec::new(), Fingerprints::default()))
    };
    // Its other end is closed: before anybody is answered.
    let is_let_go = |reader: &std::io::PipeReader| {
        let mut fds = [PollFd::new(reader, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        fds[0].revents().contains(PollFlags::HUP)
    };
    run(async {
        registry.create(create("ns", "p", 1, 1, "/a")).await.unwrap();
        let (reader, estate) = estate();
        let state = registry.inherit(create("ns", "p", 1, 1, "/a"), Some(estate), 1).await.unwrap().unwrap();
        assert_eq!((state.standing, stage.steps()), (Standing::InForce, (1, 0)));
        assert!(is_let_go(&reader), "kept for the next run");
    });
    thread.end();
}

/// Whether this is answered soon, and not before that.
async fn waits<T>(answer: &mut (impl Future<Output = T> + Unpin)) -> bool {
    tokio::time::timeout(Duration::from_millis(50), answer).await.is_err()
}

#[test]
fn created_again_it_is_looked_at_again() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        registry.create(create("ns", "p", 1, 1, "/a")).await.unwrap();
        stage.0.lock().silent = true;
        let mut again = Box::pin(registry.create(create("ns", "p", 1, 1, "/a")));
        assert!(waits(&mut again).await, "answered by what was known before");
        let report = stage.0.lock().report.clone().unwrap();
        report.lock().sites.push(SiteReport { id: "new".into(), name: None, in_force: false });
        stage.0.lock().looks.clear();
        assert_eq!(standing(again.await), (Standing::Degraded, 1), "as it is by then");
        assert_eq!(registry.census().states(), [GuardState::Degraded]);
        report.lock().sites.clear();
        assert_eq!(registry.census().states(), [GuardState::Guarding], "nobody has asked since");

        // Two that wait, and the guard dies: both hear of it.
        let both = async {
            tokio::join!(registry.create(create("ns", "p", 1, 1, "/a")), registry.create(create("ns", "p", 1, 1, "/a")))
        };
        let dies = async {
            eventually(async || stage.0.lock().looks.len() == 2).await;
            stage.0.lock().tellers["p"].gone();
        };
        let ((one, other), ()) = tokio::join!(both, dies);
        assert!(matches!(one, Err(Denied::Failed(_))), "{one:?}");
        assert!(matches!(other, Err(Denied::Failed(_))), "{other:?}");
    });
    thread.end();
}

#[test]
fn what_a_run_says_that_is_over_is_of_no_account() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        let create = |generation| create("ns", "p", 1, generation, "/a");
        registry.create(create(1)).await.unwrap();
        let first = stage.0.lock().tellers["p"].clone();
        registry.destroy(destroy("p", 1, 1)).await.unwrap();
        // Its unit has been forgotten, and this is another one.
        registry.create(create(2)).await.unwrap();
        first.gone();
        first.failed(Failure::Internal("late".to_owned()));
        let state = registry.look(create(2).unit).await.unwrap();
        assert_eq!((state.standing, state.restarts, state.failure), (Standing::InForce, 0, None));
        assert_eq!(stage.0.lock().running, 1);
    });
    thread.end();
}

#[test]
fn a_start_that_fails_while_it_is_lifted_is_waited_for() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        stage.0.lock().silent = true;
        let lifted = async {
            eventually(async || stage.0.lock().starts == 1).await;
            let teller = stage.0.lock().tellers["p"].clone();
            let mut lifted = Box::pin(registry.destroy(destroy("p", 1, 1)));
            assert!(waits(&mut lifted).await);
            teller.failed(Failure::Internal("it was told to end".to_owned()));
            assert!(waits(&mut lifted).await, "lifted while its run was there");
            // Created meanwhile, it is another run, and the old one is gone before that begins.
            let mut again = Box::pin(registry.create(create("ns", "p", 1, 2, "/a")));
            assert!(waits(&mut again).await);
            assert!(waits(&mut lifted).await, "lifted while its run was there");
            assert_eq!(stage.0.lock().starts, 1);
            stage.0.lock().silent = false;
            teller.gone();
            lifted.await.unwrap();
            assert_eq!(standing(again.await), (Standing::InForce, 2));
        };
        let (first, ()) = tokio::join!(registry.create(create("ns", "p", 1, 1, "/a")), lifted);
        assert!(first.is_err(), "{first:?}");
        assert_eq!(stage.0.lock().most_running, 1);
    });
    thread.end();
}

#[test]
fn one_that_died_and_is_wanted_otherwise_is_waited_for() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        registry.create(create("ns", "p", 1, 1, "/a")).await.unwrap();
        stage.0.lock().tellers["p"].gone();
        eventually(async || registry.census().dead() == 1).await;
        stage.0.lock().silent = true;
        let mut other = Box::pin(registry.create(create("ns", "p", 1, 2, "/b")));
        assert!(waits(&mut other).await, "told of the old one's death");
        stage.0.lock().tellers["p"].done();
        assert_eq!(standing(other.await), (Standing::InForce, 2));
    });
    thread.end();
}

#[test]
fn what_is_learned_of_a_pod_is_no_other_spec_and_is_kept() {
    let (stage, registry, thread) = begin(ROOMY);
    run(async {
        let learned = |cgroups| Create::try_from(request("ns", "p", 1, 1, "/a", cgroups)).unwrap();
        registry.create(with_container(learned(""), "one")).await.unwrap();
        registry.create(with_container(learned("hash"), "two")).await.unwrap();
        assert_eq!(stage.steps(), (1, 0));
        assert_eq!(stage.0.lock().cgroups, "hash");
        // It dies, and is begun anew with all that was ever known.
        stage.0.lock().tellers["p"].gone();
        eventually(async || stage.0.lock().starts == 2).await;
        let played = stage.0.lock();
        assert_eq!(
            (played.cgroups.as_str(), played.containers.as_slice()),
            ("hash", &["one".to_owned(), "two".to_owned()][..])
        );
    });
    thread.end();
}

//! The contract's lines about the status, one by one.

use std::sync::Arc;

use janus_controller::core::observation::{Found, Observation, Phase, Trouble};
use janus_controller::core::reason::Reason;
use janus_controller::core::spec::{Features, Lack};
use janus_controller::core::status::{Held, Placed, Reach, Refusal, Subject, status};
use janus_controller::core::unit::{Container, Order, Pod};
use janus_crd::JanusGuardStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

const NOW: i64 = 1_800_000_000;

fn time(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).unwrap())
}

fn order(generation: i64, containers: &[&str]) -> Order {
    let containers = containers.iter().map(|it| (*it).to_owned()).collect();
    Order {
        uid: "g".into(),
        namespace: "default".into(),
        name: "g".into(),
        generation,
        spec: janus_proto::v1::GuardSpec { containers, ..Default::default() },
        needs: Features { guard_v1: true, audit_log: false },
    }
}

/// A selected pod, and what its daemon says.
struct Case {
    pod: Pod,
    protected: bool,
    reach: Reach,
    held: Option<Held>,
}

impl Case {
    /// With containers that run since long, of which the daemon says nothing yet.
    fn new(name: &str, containers: &[&str]) -> Case {
        let running = containers.iter().map(|it| Container {
            name: (*it).into(),
            id: format!("{name}-{it}").into(),
            started: NOW - 1000,
        });
        let pod = Pod {
            uid: name.into(),
            cgroup_uid: None,
            namespace: "default".into(),
            name: name.into(),
            node: format!("on-{name}").into(),
            labels: Arc::default(),
            annotated: None,
            started: true,
            running: running.collect(),
        };
        Case { pod, protected: false, reach: Reach::Answers, held: None }
    }

    /// The daemon says that it has this generation in force, in all containers.
    fn guarded(name: &str, generation: i64) -> Case {
        let case = Case::new(name, &["app"]);
        case.in_force(generation, &["app"])
    }

    fn in_force(self, generation: i64, containers: &[&str]) -> Case {
        let id = |it: &&str| format!("{}-{it}", self.pod.name).into();
        let containers = containers.iter().map(|it| Found { id: id(it), named: true, in_force: true }).collect();
        self.says(Phase::InForce, generation, containers, &[])
    }

    fn says(self, phase: Phase, generation: i64, containers: Box<[Found]>, troubles: &[(&str, bool)]) -> Case {
        let trouble = |(reason, blocking): &(&str, bool)| Trouble {
            reason: (*reason).into(),
            message: format!("{reason} it is").into(),
            blocking: *blocking,
        };
        let problems = troubles.iter().map(trouble).collect();
        let observation = Observation { generation, accepted: generation, phase, containers, problems };
        let refusal = self.held.and_then(|held| held.refusal);
        Case { held: Some(Held { observation: Some(Arc::new(observation)), refusal }), ..self }
    }

    /// Of the containers that it said to be in force, with problems.
    fn troubled(self, phase: Phase, troubles: &[(&str, bool)]) -> Case {
        let observation = self.held.clone().unwrap().observation.unwrap();
        self.says(phase, observation.generation, observation.containers.clone(), troubles)
    }

    fn refused(self, generation: i64, reason: Reason) -> Case {
        let observation = self.held.and_then(|held| held.observation);
        let refusal = Some(Arc::new(Refusal { generation, reason, message: "because".into() }));
        Case { held: Some(Held { observation, refusal }), ..self }
    }

    fn reached(self, reach: Reach) -> Case {
        Case { reach, ..self }
    }

    fn not_started(mut self) -> Case {
        self.pod.started = false;
        self.pod.running = Box::default();
        self
    }
}

fn at(generation: i64, cases: &[Case]) -> JanusGuardStatus {
    of(&order(generation, &[]), cases)
}

fn of(order: &Order, cases: &[Case]) -> JanusGuardStatus {
    let subject = Subject { generation: order.generation, order: Some(order), invalid: None };
    said(subject, cases, None, NOW)
}

fn said(subject: Subject<'_>, cases: &[Case], previous: Option<&JanusGuardStatus>, now: i64) -> JanusGuardStatus {
    let placed = cases.iter().map(|case| Placed {
        pod: &case.pod,
        protected: case.protected,
        reach: case.reach,
        held: case.held.as_ref(),
    });
    status(subject, placed, previous, &time(now))
}

fn condition<'a>(status: &'a JanusGuardStatus, kind: &str) -> &'a Condition {
    status.conditions.iter().find(|it| it.type_ == kind).unwrap()
}

/// Counts, and each condition's status and reason.
fn summary(status: &JanusGuardStatus) -> String {
    let of = |kind| {
        let condition = condition(status, kind);
        format!("{} {}", condition.status, condition.reason)
    };
    let (guarded, observable) = (status.guarded_pods.unwrap(), status.observable_pods.unwrap());
    format!("{guarded}/{observable}, ready {}, degraded {}, stalled {}", of("Ready"), of("Degraded"), of("Stalled"))
}

fn reasons(status: &JanusGuardStatus) -> Vec<&str> {
    status.problems.iter().map(|problem| problem.reason.as_str()).collect()
}

#[test]
fn all_guarded_is_ready() {
    let status = at(2, &[Case::guarded("a", 2), Case::guarded("b", 2)]);
    assert_eq!(summary(&status), "2/2, ready True Guarded, degraded False AsSpecified, stalled False Accepted");
    assert!(status.problems.is_empty());
}

#[test]
fn no_pods_is_ready_for_that_reason() {
    let no_pods = "0/0, ready True NoPods, degraded False AsSpecified, stalled False Accepted";
    assert_eq!(summary(&at(1, &[])), no_pods);
    assert_eq!(summary(&at(1, &[Case::new("a", &[]).not_started()])), no_pods);
}

#[test]
fn ready_is_true_exactly_when_the_counts_are_equal() {
    let kinds: [fn(&str) -> Case; 8] = [
        |name| Case::guarded(name, 3),
        |name| Case::guarded(name, 2),
        |name| Case::new(name, &["app"]),
        |name| Case::guarded(name, 3).reached(Reach::Stale),
        |name| Case::guarded(name, 3).reached(Reach::Missing),
        |name| Case::guarded(name, 3).troubled(Phase::InForce, &[("PathAbsent", false)]),
        |name| Case::guarded(name, 3).troubled(Phase::Degraded, &[("MarkRefused", true)]),
        |name| Case::new(name, &[]).not_started(),
    ];
    for first in kinds {
        for second in kinds {
            let status = at(3, &[first("a"), second("b")]);
            let equal = status.guarded_pods == status.observable_pods;
            assert_eq!(condition(&status, "Ready").status == "True", equal, "{}", summary(&status));
            let degraded = condition(&status, "Degraded");
            let merely = degraded.reason == "PathAbsent";
            let certain = degraded.status == "True" && !merely;
            assert!(!certain || condition(&status, "Ready").status == "False", "{}", summary(&status));
            let back = at(3, &[second("b"), first("a")]);
            assert_eq!(status, back, "the order of pods is nothing");
        }
    }
}

#[test]
fn answers_that_are_stale_make_it_unknown() {
    let status = at(1, &[Case::guarded("a", 1), Case::guarded("b", 1).reached(Reach::Stale)]);
    assert_eq!(
        summary(&status),
        "1/2, ready Unknown DaemonUnreachable, degraded Unknown DaemonUnreachable, stalled False Accepted"
    );
    assert_eq!(reasons(&status), ["DaemonUnreachable"]);
    assert_eq!(status.problems[0].node, "on-b");
}

#[test]
fn what_is_certainly_wrong_is_degraded_and_not_ready_whatever_else_is_stale() {
    let wrong = Case::guarded("a", 1).troubled(Phase::Degraded, &[("FilesystemNotGated", true)]);
    let status = at(1, &[wrong, Case::guarded("b", 1).reached(Reach::Stale)]);
    assert_eq!(
        summary(&status),
        "0/2, ready False FilesystemNotGated, degraded True FilesystemNotGated, stalled False Accepted"
    );
}

#[test]
fn a_path_that_is_merely_absent_does_not_say_what_is_not_heard() {
    let absent = Case::guarded("a", 1).troubled(Phase::InForce, &[("PathAbsent", false)]);
    let status = at(1, &[absent, Case::guarded("b", 1).reached(Reach::Stale)]);
    assert_eq!(
        summary(&status),
        "1/2, ready Unknown DaemonUnreachable, degraded Unknown DaemonUnreachable, stalled False Accepted"
    );
}

#[test]
fn a_path_that_is_merely_absent_is_told_and_does_not_hinder() {
    let status = at(1, &[Case::guarded("a", 1).troubled(Phase::InForce, &[("PathAbsent", false)])]);
    assert_eq!(summary(&status), "1/1, ready True Guarded, degraded True PathAbsent, stalled False Accepted");
    assert_eq!(reasons(&status), ["PathAbsent"]);
}

#[test]
fn a_path_that_cannot_be_guarded_hinders() {
    let status =
        at(1, &[Case::guarded("a", 1).troubled(Phase::Degraded, &[("MarkRefused", true), ("PathAbsent", false)])]);
    assert_eq!(summary(&status), "0/1, ready False MarkRefused, degraded True MarkRefused, stalled False Accepted");
    assert_eq!(condition(&status, "Degraded").message, "a on on-a: MarkRefused it is");
    assert_eq!(reasons(&status), ["MarkRefused", "PathAbsent"]);
}

#[test]
fn one_that_is_in_force_with_a_blocking_problem_is_not_guarded() {
    let status = at(1, &[Case::guarded("a", 1).troubled(Phase::InForce, &[("MarkRefused", true)])]);
    assert_eq!(status.guarded_pods, Some(0));
}

#[test]
fn an_invalid_spec_stalls() {
    let last = order(1, &[]);
    let subject = Subject { generation: 2, order: Some(&last), invalid: Some("spec.subjects: nothing") };
    let status = said(subject, &[Case::guarded("a", 1)], None, NOW);
    assert_eq!(summary(&status), "0/1, ready False InvalidSpec, degraded True InvalidSpec, stalled True InvalidSpec");
    assert_eq!(condition(&status, "Stalled").message, "spec.subjects: nothing");
    let unknown = Subject { order: None, ..subject };
    let status = said(unknown, &[], None, NOW);
    assert_eq!(condition(&status, "Stalled").status, "True");
    assert_eq!(condition(&status, "Ready").status, "False", "nobody knows which pods it means");
}

#[test]
fn what_a_daemon_refuses_as_invalid_stalls_this_generation_alone() {
    let refused = |generation| Case::new("a", &["app"]).refused(generation, Reason::RefusedByDaemon);
    let status = at(2, &[refused(2), Case::guarded("b", 2)]);
    assert_eq!(
        summary(&status),
        "1/2, ready False RefusedByDaemon, degraded True RefusedByDaemon, stalled True RefusedByDaemon"
    );
    assert_eq!(condition(&status, "Stalled").message, "on-a: because");
    assert_eq!(condition(&at(3, &[refused(2)]), "Stalled").status, "False");
    let early = at(2, &[refused(2).not_started()]);
    assert_eq!(condition(&early, "Stalled").status, "True", "known before any container starts");
}

#[test]
fn a_limit_does_not_stall() {
    let status = at(1, &[Case::new("a", &["app"]).refused(1, Reason::LimitReached)]);
    assert_eq!(summary(&status), "0/1, ready False LimitReached, degraded True LimitReached, stalled False Accepted");
}

#[test]
fn a_refusal_is_over_once_the_daemon_has_accepted() {
    let status = at(2, &[Case::guarded("a", 2).refused(2, Reason::LimitReached)]);
    assert_eq!(status.guarded_pods, Some(1));
    let status = at(2, &[Case::guarded("a", 1).refused(2, Reason::LimitReached)]);
    assert_eq!(reasons(&status), ["LimitReached"]);
}

#[test]
fn another_generation_is_not_guarded() {
    for generation in [1, 3] {
        let status = at(2, &[Case::guarded("a", generation)]);
        assert_eq!(summary(&status), "0/1, ready False Arming, degraded False AsSpecified, stalled False Accepted");
    }
}

#[test]
fn the_generation_stands_in_the_status_and_in_each_condition() {
    let status = at(7, &[Case::guarded("a", 7)]);
    assert_eq!(status.observed_generation, Some(7));
    assert_eq!(status.conditions.len(), 3);
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(7)));
}

#[test]
fn a_pod_where_nothing_has_started_does_not_count() {
    for reach in [Reach::Missing, Reach::Stale, Reach::Lacks(Lack::Daemon("x")), Reach::Answers] {
        let status = at(1, &[Case::new("a", &[]).not_started().reached(reach)]);
        assert_eq!((status.observable_pods, status.problems.len()), (Some(0), 0), "{reach:?}");
    }
}

#[test]
fn a_pod_between_restarts_counts_by_its_unit() {
    assert_eq!(at(1, &[Case::new("a", &[]).in_force(1, &[])]).guarded_pods, Some(1));
    assert_eq!(at(1, &[Case::new("a", &[])]).guarded_pods, Some(0));
}

#[test]
fn counts_come_from_daemons_answers() {
    let status = at(1, &[Case::new("a", &["app"])]);
    assert_eq!(summary(&status), "0/1, ready False Arming, degraded False AsSpecified, stalled False Accepted");
    let status = at(1, &[Case::guarded("a", 1).reached(Reach::Missing)]);
    assert_eq!(summary(&status), "0/1, ready False DaemonMissing, degraded True DaemonMissing, stalled False Accepted");
}

#[test]
fn every_selected_container_is_asked_for() {
    let half = || Case::new("a", &["app", "sidecar"]).in_force(1, &["app"]);
    assert_eq!(of(&order(1, &[]), &[half()]).guarded_pods, Some(0));
    assert_eq!(of(&order(1, &["app"]), &[half()]).guarded_pods, Some(1));
    assert_eq!(of(&order(1, &["sidecar"]), &[half()]).guarded_pods, Some(0));
    assert_eq!(of(&order(1, &["none"]), &[half()]).guarded_pods, Some(1));
}

#[test]
fn a_container_that_is_found_and_not_in_force_is_on_its_way() {
    let found = Box::new([Found { id: "a-app".into(), named: true, in_force: false }]);
    let status = at(1, &[Case::new("a", &["app"]).says(Phase::InForce, 1, found, &[])]);
    assert_eq!(summary(&status), "0/1, ready False Arming, degraded False AsSpecified, stalled False Accepted");
}

#[test]
fn a_container_that_is_not_found_is_missing_after_a_while() {
    let started = |ago: i64| {
        let mut case = Case::new("a", &["app"]).in_force(1, &[]);
        case.pod.running[0].started = NOW - ago;
        at(1, &[case])
    };
    assert_eq!(reasons(&started(5)), ["Arming"]);
    assert_eq!(reasons(&started(31)), ["ContainerNotFound"]);
    assert_eq!(condition(&started(31), "Degraded").status, "True");
}

#[test]
fn a_daemon_that_lacks_what_is_needed_is_said_to() {
    let lacks = |lack| reasons_of(&at(1, &[Case::new("a", &["app"]).reached(Reach::Lacks(lack))]));
    assert_eq!(lacks(Lack::Daemon("guard-v2")), ["DaemonTooOld"]);
    assert_eq!(lacks(Lack::Kernel("audit-log")), ["KernelLacksFeature"]);
}

fn reasons_of(status: &JanusGuardStatus) -> Vec<String> {
    reasons(status).into_iter().map(str::to_owned).collect()
}

#[test]
fn one_of_our_own_is_told_and_not_counted() {
    let status = at(1, &[Case { protected: true, ..Case::new("a", &["app"]) }, Case::guarded("b", 1)]);
    assert_eq!(summary(&status), "1/1, ready True Guarded, degraded False AsSpecified, stalled False Accepted");
    assert_eq!(reasons(&status), ["ProtectedPod"]);
}

#[test]
fn words_of_a_later_daemon_are_passed_on() {
    let status = at(1, &[Case::guarded("a", 1).troubled(Phase::Degraded, &[("FromTheFuture", true)])]);
    assert_eq!(reasons(&status), ["FromTheFuture"]);
    assert_eq!(condition(&status, "Degraded").reason, "Unknown");
    assert_eq!(condition(&status, "Ready").status, "False");
}

#[test]
fn problems_are_twenty_at_most_and_worst_first() {
    let mut cases: Vec<Case> = (0..40).map(|it| Case::new(&format!("late{it}"), &["app"])).collect();
    cases.extend(
        (0..15).map(|it| Case::guarded(&format!("absent{it}"), 1).troubled(Phase::InForce, &[("PathAbsent", false)])),
    );
    cases.extend((0..5).map(|it| Case::new(&format!("lost{it}"), &["app"]).reached(Reach::Missing)));
    cases.push(Case::new("refused", &["app"]).refused(1, Reason::RefusedByDaemon));
    let status = at(1, &cases);
    let mut expected = vec!["RefusedByDaemon"];
    expected.extend(["DaemonMissing"; 5]);
    expected.extend(["Arming"; 14]);
    assert_eq!(reasons(&status), expected);
    cases.reverse();
    assert_eq!(at(1, &cases).problems, status.problems);
    // What is harmless comes after all that is not.
    let few: Vec<Case> = cases.into_iter().filter(|it| !it.pod.name.starts_with("late")).collect();
    assert_eq!(reasons(&at(1, &few)).last(), Some(&"PathAbsent"));
}

#[test]
fn what_is_amiss_is_not_lost_among_many_that_are_on_their_way() {
    let absent = Case::guarded("absent", 1).troubled(Phase::InForce, &[("PathAbsent", false)]);
    let mut cases = vec![absent];
    for pods in [0, 19, 20, 100] {
        cases.extend((cases.len()..=pods).map(|it| Case::new(&format!("late{it}"), &["app"])));
        let status = at(1, &cases);
        assert_eq!(condition(&status, "Degraded").reason, "PathAbsent", "{pods} others: {}", summary(&status));
        assert_eq!(condition(&status, "Degraded").status, "True");
        cases.reverse();
        assert_eq!(at(1, &cases), status, "the order of pods is nothing");
    }
    assert_eq!(reasons(&at(1, &cases)), ["Arming"; 20], "shown are the worst");
}

#[test]
fn a_condition_keeps_its_time_while_its_status_stays() {
    let order = order(1, &[]);
    let subject = Subject { generation: 1, order: Some(&order), invalid: None };
    let first = said(subject, &[Case::new("a", &["app"])], None, NOW);
    assert!(first.conditions.iter().all(|it| it.last_transition_time == time(NOW)));
    // Another reason, and another message, are no transition.
    let second = said(subject, &[Case::new("a", &["app"]).reached(Reach::Missing)], Some(&first), NOW + 5);
    assert_eq!(condition(&second, "Ready").last_transition_time, time(NOW));
    assert_eq!(condition(&second, "Degraded").last_transition_time, time(NOW + 5));
    let third = said(subject, &[Case::guarded("a", 1)], Some(&second), NOW + 9);
    assert_eq!(condition(&third, "Ready").last_transition_time, time(NOW + 9));
    assert_eq!(condition(&third, "Stalled").last_transition_time, time(NOW));
    assert_eq!(said(subject, &[Case::guarded("a", 1)], Some(&third), NOW + 20), third, "nothing new, nothing changed");
}

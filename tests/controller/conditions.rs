//! What a guard's status says when one thing is otherwise, and what then is not sent.

use std::time::Duration;

use janusd::registry::port::{Failure, Limit};
use serde_json::json;

use crate::controller_tests;
use crate::fake::{Break, Certificate, Garbage, Hang, Key, Trouble, Which, absent, not_gated};
use crate::paper::{Faults, Kind};
use crate::stage::{RESYNC, SOON, Stage, has_problem, on_stage};

controller_tests! {
    problems_that_block_and_one_that_does_not,
    daemons_that_know_too_little,
    a_daemon_that_does_not_answer_delays_nobody,
    a_node_without_a_daemon,
    limits_of_a_node,
    containers_whose_names_only_the_api_server_knows,
    static_pods_and_pods_of_janus,
    a_guard_that_cannot_be_decoded_stops_nothing,
    daemons_that_are_not_what_they_should_be,
    daemons_that_talk_nonsense,
    events_say_what_is_so_each,
    an_api_server_that_is_busy_is_said_to_be,
    an_api_server_that_is_silent_is_given_up.long(),
    a_guard_that_is_deleted_while_a_daemon_is_silent,
    a_guard_that_is_deleted_and_never_lifted.long(),
}

fn problems_that_block_and_one_that_does_not() {
    on_stage(2, async |stage| {
        stage.guard("g", json!({})).await;
        let pod = stage.pod("p", 0, &json!({})).await;
        let uid = stage.world.pods[pod].uid.clone();
        let status = stage.until_condition("g", "Ready=True/Guarded").await;
        assert_eq!((status.observable_pods, status.guarded_pods), (Some(1), Some(1)));
        assert!(status.problems.is_empty());

        stage.daemon(0).trouble(Which::pod(&uid), absent("/etc/shadow"));
        let status = stage.until("g", |status| has_problem(status, "PathAbsent", "p", "node-0")).await;
        assert_eq!(status.guarded_pods, Some(1));

        stage.daemon(0).trouble(Which::pod(&uid), not_gated("/etc/shadow"));
        let status = stage.until_condition("g", "Degraded=True/FilesystemNotGated").await;
        assert_eq!((status.observable_pods, status.guarded_pods), (Some(1), Some(0)));
        assert!(has_problem(&status, "FilesystemNotGated", "p", "node-0"));
        // Worst first.
        assert_eq!(status.problems[0].reason, "FilesystemNotGated");
        assert!(status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "False"));

        stage.daemon(0).no_trouble();
        stage.until_condition("g", "Ready=True/Guarded").await;
        stage.until("g", |status| status.problems.is_empty()).await;
    });
}

fn daemons_that_know_too_little() {
    on_stage(3, async |stage| {
        stage.daemon(0).temper(|temper| temper.features = Vec::new());
        stage.daemon(1).temper(|temper| temper.features = vec!["guard-v1".to_owned()]);
        for node in 0..3 {
            stage.pod(&format!("p{node}"), node, &json!({})).await;
        }
        let subject = json!({ "deny": ["/etc/shadow"], "events": ["open"], "audit": true });
        stage.guard("g", json!({ "subjects": [subject] })).await;
        let status = stage.until("g", |status| status.guarded_pods == Some(1)).await;
        assert!(has_problem(&status, "DaemonTooOld", "p0", "node-0"), "{status:#?}");
        assert!(has_problem(&status, "KernelLacksFeature", "p1", "node-1"), "{status:#?}");
        // That nothing was sent all the same is what the stage checks.
        assert!(stage.daemon(0).calls().is_empty() && stage.daemon(1).calls().is_empty());

        for node in 0..2 {
            // As another release of the daemon would.
            stage.daemon(node).temper(|temper| *temper = Default::default());
            stage.daemon(node).restart();
        }
        stage.until_condition("g", "Ready=True/Guarded").await;
        stage.until_as_expected().await;
    });
}

fn a_daemon_that_does_not_answer_delays_nobody() {
    on_stage(4, async |stage| {
        stage.guard("g", json!({ "selector": { "matchLabels": { "on": "yes" } } })).await;
        for node in 0..4 {
            stage.pod(&format!("p{node}"), node, &json!({ "on": "yes" })).await;
        }
        stage.until_condition("g", "Ready=True/Guarded").await;
        let guard = stage.world.guard_api("default").get("g").await.unwrap().metadata.uid.unwrap();

        stage.daemon(0).temper(|temper| temper.hang = Hang::Calls);
        stage.daemon(1).temper(|temper| temper.hang = Hang::Handshakes);
        stage.daemon(1).cut();
        stage.daemon(2).temper(|temper| temper.down = true);
        let status = stage.until_condition("g", "Ready=Unknown/DaemonUnreachable").await;
        for node in 0..3 {
            stage
                .until("g", |it| has_problem(it, "DaemonUnreachable", &format!("p{node}"), &format!("node-{node}")))
                .await;
        }
        assert_eq!(status.observable_pods, Some(4));
        stage.until("g", |status| status.guarded_pods == Some(1)).await;

        // The last one is served as ever.
        for round in 0..10 {
            let index = stage.pod(&format!("late-{round}"), 3, &json!({ "on": "yes" })).await;
            let unit = Key::new(&guard, &stage.world.pods[index].uid);
            let daemon = stage.daemon(3);
            let began = std::time::Instant::now();
            while daemon.generation(&unit).is_none() {
                assert!(began.elapsed() < Duration::from_secs(2), "held up by others");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        for node in 0..3 {
            stage.daemon(node).temper(|temper| *temper = Default::default());
        }
        stage.until_condition("g", "Ready=True/Guarded").await;
        stage.until_as_expected().await;
    });
}

fn a_node_without_a_daemon() {
    on_stage(1, async |stage| {
        stage.guard("g", json!({})).await;
        stage.pod("p", 7, &json!({})).await;
        let status = stage.until("g", |status| has_problem(status, "DaemonMissing", "p", "node-7")).await;
        assert_eq!((status.observable_pods, status.guarded_pods), (Some(1), Some(0)));
        assert!(status.conditions.iter().any(|it| it.type_ == "Ready" && it.status == "False"));
        stage.world.add_daemon("node-7").await.unwrap();
        stage.until_condition("g", "Ready=True/Guarded").await;
    });
}

fn limits_of_a_node() {
    on_stage(1, async |stage| {
        stage.daemon(0).temper(|temper| temper.guards = 1);
        stage.guard("g", json!({})).await;
        stage.pod("p0", 0, &json!({})).await;
        stage.pod("p1", 0, &json!({})).await;
        let status = stage.until("g", |status| status.problems.iter().any(|it| it.reason == "LimitReached")).await;
        assert_eq!((status.observable_pods, status.guarded_pods), (Some(2), Some(1)));
        stage.daemon(0).temper(|temper| temper.guards = 2);
        stage.until_condition("g", "Ready=True/Guarded").await;

        // One that the daemon keeps, and tries again by itself.
        let groups = Failure::Limit { limit: Limit::Groups, at: Some(128), text: "no more groups".to_owned() };
        stage.daemon(0).temper(|temper| temper.guards = 100);
        stage.daemon(0).trouble(Which::default(), Trouble::Fails(groups));
        stage.pod("p2", 0, &json!({})).await;
        let status = stage.until("g", |status| has_problem(status, "LimitReached", "p2", "node-0")).await;
        assert_eq!((status.observable_pods, status.guarded_pods), (Some(3), Some(2)));
        stage.daemon(0).no_trouble();
        stage.until_condition("g", "Ready=True/Guarded").await;
    });
}

fn containers_whose_names_only_the_api_server_knows() {
    on_stage(1, async |stage| {
        stage.guard("g", json!({ "containers": ["app"] })).await;
        let index = stage.world.add_pod("default", "p", "node-0", &json!({}), &["app", "sidecar"]).await.unwrap();
        // Sent before any of them exists.
        stage.until_as_expected().await;
        stage.world.unnamed = true;
        stage.world.start(index, &["app", "sidecar"]).await.unwrap();
        let status = stage.until_condition("g", "Ready=True/Guarded").await;
        assert_eq!(status.guarded_pods, Some(1));
        let named = || stage.daemon(0).held().pop_first().unwrap().1.names;
        let began = std::time::Instant::now();
        while named().values().all(|name| name != "app") {
            assert!(began.elapsed() < SOON, "{:?}", named());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

fn static_pods_and_pods_of_janus() {
    on_stage(1, async |stage| {
        let hash = "0123456789abcdef0123456789abcdef";
        let annotations = json!({ "kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash });
        stage.world.annotations = annotations;
        stage.pod("static", 0, &json!({})).await;
        stage.guard("g", json!({})).await;
        stage.until_condition("g", "Ready=True/Guarded").await;
        stage.until_as_expected().await;
        let held = stage.daemon(0).held().pop_first().unwrap().1;
        assert_eq!(held.cgroup_uid, hash);

        // Where Janus runs, a guard selects what is not Janus's.
        let spec = json!({ "selector": {}, "subjects": [{ "deny": ["/etc/shadow"], "events": ["open"] }] });
        stage.world.add_guard(crate::certificates::NAMESPACE, "here", spec).await.unwrap();
        let api = stage.world.guard_api(crate::certificates::NAMESPACE);
        let began = std::time::Instant::now();
        loop {
            let status = api.get("here").await.unwrap().status.unwrap_or_default();
            if status.problems.iter().any(|it| it.reason == "ProtectedPod") {
                assert_eq!((status.observable_pods, status.guarded_pods), (Some(0), Some(0)));
                break;
            }
            assert!(began.elapsed() < SOON, "{status:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(stage.daemon(0).held().len(), 1);
    });
}

fn a_guard_that_cannot_be_decoded_stops_nothing() {
    on_stage(1, async |stage| {
        stage.guard("good", json!({})).await;
        stage.guard("turning", json!({})).await;
        stage.pod("p", 0, &json!({})).await;
        stage.until_condition("turning", "Ready=True/Guarded").await;
        let before = stage.daemon(0).held();

        // As an older or schemaless definition would have let through.
        let broken = |name: &str| {
            let mut guard = stage.paper.get(Kind::Guard, "default", name).unwrap_or_default();
            guard["metadata"]["name"] = name.into();
            guard["metadata"]["namespace"] = "default".into();
            guard["spec"] = json!({ "selector": "everything", "subjects": 7 });
            stage.paper.put(Kind::Guard, guard);
        };
        broken("turning");
        broken("born-so");
        let condition = |name: &str| {
            let guard = stage.paper.get(Kind::Guard, "default", name).unwrap();
            let conditions = guard["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|it| it["type"] == "Stalled" && it["status"] == "True" && it["reason"] == "InvalidSpec")
        };
        let began = std::time::Instant::now();
        while !(condition("turning") && condition("born-so")) {
            assert!(began.elapsed() < SOON, "{:#?}", stage.paper.get(Kind::Guard, "default", "turning"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What was in force stays so, also over a restart of the daemon's and the controller's.
        tokio::time::sleep(3 * RESYNC).await;
        let keys = |held: std::collections::BTreeMap<Key, crate::fake::Held>| held.into_keys().collect::<Vec<_>>();
        assert_eq!(keys(stage.daemon(0).held()), keys(before.clone()));
        stage.controller = None;
        stage.start_controller();
        stage.pod("late", 0, &json!({})).await;
        stage.until("good", |status| status.guarded_pods == Some(2)).await;
        let after = keys(stage.daemon(0).held());
        assert!(keys(before).iter().all(|key| after.contains(key)), "a guard was lifted: {after:#?}");
    });
}

fn daemons_that_are_not_what_they_should_be() {
    on_stage(5, async |stage| {
        stage.daemon(0).temper(|temper| temper.node = Some("node-9".to_owned()));
        stage.daemon(1).temper(|temper| temper.certificate = Certificate::Misnamed);
        stage.daemon(2).temper(|temper| temper.certificate = Certificate::Expired);
        stage.daemon(3).temper(|temper| temper.certificate = Certificate::Forged);
        for node in 0..4 {
            // Whatever the controller has connected to by now.
            stage.daemon(node).restart();
        }
        stage.guard("g", json!({})).await;
        for node in 0..5 {
            stage.pod(&format!("p{node}"), node, &json!({})).await;
        }
        let status = stage.until_condition("g", "Ready=Unknown/DaemonUnreachable").await;
        assert_eq!(status.guarded_pods, Some(1));
        for node in 0..4 {
            assert!(stage.daemon(node).calls().is_empty(), "{:#?}", stage.daemon(node).calls());
            stage.daemon(node).temper(|temper| *temper = Default::default());
        }
        stage.daemon(0).cut();
        stage.until_condition("g", "Ready=True/Guarded").await;
    });
}

fn daemons_that_talk_nonsense() {
    let nonsense = [
        Garbage::Bytes,
        Garbage::NoHeader,
        Garbage::TwoHeaders,
        Garbage::Empty,
        Garbage::Nameless,
        Garbage::Twice,
        Garbage::Numbers,
        Garbage::Texts,
        Garbage::Digest,
        Garbage::Flood(100_000),
        Garbage::Unchanged,
        Garbage::NoState,
    ];
    let breaks = [Break::Fails(0), Break::Fails(1), Break::Ends(0), Break::Ends(1), Break::Resets(1), Break::Stalls(0)];
    on_stage(nonsense.len() + breaks.len() + 1, async |stage| {
        for (node, garbage) in nonsense.iter().enumerate() {
            stage.daemon(node).temper(|temper| temper.garbage = Some(*garbage));
        }
        for (index, how) in breaks.iter().enumerate() {
            stage.daemon(nonsense.len() + index).temper(|temper| temper.breaks = Some(*how));
        }
        let nodes = nonsense.len() + breaks.len() + 1;
        (0..nodes - 1).for_each(|node| stage.daemon(node).restart());
        stage.guard("g", json!({})).await;
        for node in 0..nodes {
            stage.pod(&format!("p{node}"), node, &json!({})).await;
        }
        // The last one is an honest one.
        stage.until("g", |status| status.guarded_pods >= Some(1)).await;
        tokio::time::sleep(5 * RESYNC).await;
        let controller = stage.controller.as_mut().unwrap();
        assert!(!controller.has_ended(), "{}", controller.log());
        let (_, most) = controller.memory();
        assert!(most < 300 * 1024, "{most} KiB");
        let log = controller.log();
        assert!(!log.contains("\u{1b}[2J") && !log.contains('\u{202e}'), "a daemon writes to the log as it likes");
        let status = stage.status("g").await;
        assert!(status.problems.len() <= 20 && serde_json::to_string(&status).unwrap().len() < 64 * 1024);

        for node in 0..nodes - 1 {
            stage.daemon(node).temper(|temper| *temper = Default::default());
            stage.daemon(node).restart();
        }
        stage.until_condition("g", "Ready=True/Guarded").await;
        stage.until_as_expected().await;
    });
}

/// Two of one reason are two, each with what it says.
fn events_say_what_is_so_each() {
    on_stage(2, async |stage| {
        stage.guard("g", json!({})).await;
        stage.pod("p", 0, &json!({})).await;
        stage.until_told("Added").await;
        for number in 0..3 {
            stage.pod(&format!("more-{number}"), 1, &json!({})).await;
        }
        let notes = || {
            let events = stage.paper.all(Kind::Event).into_iter().filter(|event| event["reason"] == "Added");
            events.map(|event| event["note"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let pods = |note: &String| note.split(' ').find_map(|word| word.parse::<usize>().ok()).unwrap();
        let began = std::time::Instant::now();
        while notes().iter().map(pods).sum::<usize>() < 4 {
            assert!(began.elapsed() < SOON, "{:?}", notes());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(notes().iter().any(|note| note.ends_with("on node-1")), "{:?}", notes());
    });
}

/// Waits until both watches have failed, and then until they are there again.
async fn until_watched_again(stage: &mut Stage, deadline: Duration) {
    let failed = |stage: &Stage, resource: &str| {
        let controller = stage.controller.as_ref().unwrap();
        controller.metric("janus_controller_watch_errors_total", resource).unwrap_or_default() > 0.0
    };
    let began = std::time::Instant::now();
    while !["janusguards", "pods"].iter().all(|resource| failed(stage, resource)) {
        assert!(began.elapsed() < deadline, "nobody says that watches do not come about");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stage.paper.faults(Faults::default());
    stage.pod("late", 0, &json!({})).await;
    stage.until("g", |status| status.guarded_pods == Some(2)).await;
}

/// 429 is no secret of the client's.
fn an_api_server_that_is_busy_is_said_to_be() {
    on_stage(1, async |stage| {
        stage.guard("g", json!({})).await;
        stage.pod("p", 0, &json!({})).await;
        stage.until_condition("g", "Ready=True/Guarded").await;
        stage.paper.faults(Faults { busy: true, ..Faults::default() });
        stage.paper.end_watches(false);
        until_watched_again(stage, Duration::from_secs(10)).await;
    });
}

fn an_api_server_that_is_silent_is_given_up() {
    on_stage(1, async |stage| {
        stage.guard("g", json!({})).await;
        stage.pod("p", 0, &json!({})).await;
        stage.until_condition("g", "Ready=True/Guarded").await;
        stage.paper.faults(Faults { silent: true, ..Faults::default() });
        stage.paper.end_watches(false);
        until_watched_again(stage, Duration::from_secs(60)).await;
    });
}

/// Nobody waits for whom cannot be reached; what it has left is lifted once it can.
fn a_guard_that_is_deleted_while_a_daemon_is_silent() {
    on_stage(2, async |stage| {
        stage.guard("g", json!({})).await;
        stage.pod("p0", 0, &json!({})).await;
        stage.pod("p1", 1, &json!({})).await;
        stage.until_condition("g", "Ready=True/Guarded").await;
        stage.daemon(0).temper(|temper| temper.hang = Hang::Calls);
        stage.world.remove_guard("default", "g").await.unwrap();
        stage.until_released("g", SOON).await;
        assert!(stage.daemon(1).held().is_empty());
        assert_eq!(stage.daemon(0).held().len(), 1);
        stage.until_told("ReleasedUnconfirmed").await;
        stage.daemon(0).temper(|temper| temper.hang = Hang::Nothing);
        stage.until_as_expected().await;
    });
}

/// Who answers is waited for, and not for ever.
fn a_guard_that_is_deleted_and_never_lifted() {
    on_stage(1, async |stage| {
        stage.guard("g", json!({})).await;
        stage.pod("p", 0, &json!({})).await;
        stage.until_condition("g", "Ready=True/Guarded").await;
        stage.daemon(0).temper(|temper| temper.lift = Duration::from_secs(1000));
        let began = std::time::Instant::now();
        stage.world.remove_guard("default", "g").await.unwrap();
        stage.until_released("g", Duration::from_secs(100)).await;
        assert!(began.elapsed() > Duration::from_secs(55), "released after {:?}", began.elapsed());
        stage.until_told("ReleasedUnconfirmed").await;
    });
}

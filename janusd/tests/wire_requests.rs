//! Requests off the wire: what is refused, with which field, and how little a hostile one gets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use janus_proto::v1;
use janusd::wire::{Create, Destroy, Invalid, Uid};
use proptest::prelude::*;

fn good() -> v1::CreateGuardRequest {
    v1::CreateGuardRequest {
        caller: Some(v1::Caller { epoch: 7, node: "node-a.example".into() }),
        guard: Some(v1::GuardRef { uid: "g-1".into(), namespace: "shop".into(), name: "web".into(), generation: 3 }),
        pod: Some(v1::PodRef {
            uid: "p-1".into(),
            cgroup_uid: String::new(),
            namespace: "shop".into(),
            name: "web-0".into(),
        }),
        spec: Some(v1::GuardSpec {
            containers: vec!["app".into()],
            subjects: vec![v1::Subject {
                deny: vec!["/etc/shadow".into()],
                events: vec![v1::Event::Open.into()],
                log: v1::LogPolicy::All.into(),
                ..Default::default()
            }],
            log_format: String::new(),
            enforcement: v1::Enforcement::Enforce.into(),
            failure_policy: v1::FailurePolicy::Deny.into(),
        }),
        container_ids: vec![v1::ContainerId { name: "app".into(), id: "containerd://0123abcd".into() }],
    }
}

fn fields(invalid: &Invalid) -> Vec<&str> {
    invalid.fields().map(|fault| fault.field.as_str()).collect()
}

/// The fields that are refused after `change`.
fn after(change: impl FnOnce(&mut v1::CreateGuardRequest)) -> Vec<String> {
    let mut request = good();
    change(&mut request);
    match Create::try_from(request) {
        Ok(_) => Vec::new(),
        Err(invalid) => fields(&invalid).into_iter().map(str::to_owned).collect(),
    }
}

#[test]
fn a_good_one() {
    let create = Create::try_from(good()).unwrap();
    assert_eq!((create.caller.epoch(), create.generation), (7, 3));
    assert_eq!((create.unit.guard.as_str(), create.unit.pod.as_str()), ("g-1", "p-1"));
    assert_eq!((create.pod.cgroup_uid().as_str(), create.pod.name(), create.pod.namespace()), ("p-1", "web-0", "shop"));
    assert_eq!((create.containers[0].name(), create.containers[0].id()), ("app", "0123abcd"));
    assert_eq!(create.spec.name().to_string(), "shop/web");
    assert_eq!(Some((*create.sent).clone()), good().spec);
    assert_eq!(create.caller.check_node("node-a.example"), Ok(()));
    assert_eq!(create.caller.check_node("node-b").unwrap_err().have, "node-b");

    let mut of_a_static_pod = good();
    of_a_static_pod.pod.as_mut().unwrap().cgroup_uid = "9f".into();
    let create = Create::try_from(of_a_static_pod).unwrap();
    assert_eq!((create.pod.uid().as_str(), create.pod.cgroup_uid().as_str()), ("p-1", "9f"));
    assert_eq!(create.unit.pod.as_str(), "p-1");
}

#[test]
fn each_part_is_required() {
    assert_eq!(after(|it| it.caller = None), ["caller"]);
    assert_eq!(after(|it| it.guard = None), ["guard"]);
    assert_eq!(after(|it| it.pod = None), ["pod"]);
    assert_eq!(after(|it| it.spec = None), ["spec"]);
    assert_eq!(after(|it| it.caller.as_mut().unwrap().epoch = 0), ["caller.epoch"]);
    for node in ["", "Node", "a/b", "a..b"] {
        assert_eq!(after(|it| it.caller.as_mut().unwrap().node = node.into()), ["caller.node"]);
    }
    for generation in [0, -1, i64::MIN] {
        assert_eq!(after(|it| it.guard.as_mut().unwrap().generation = generation), ["guard.generation"]);
    }
    assert_eq!(after(|it| it.guard.as_mut().unwrap().uid = String::new()), ["guard.uid"]);
    assert_eq!(after(|it| it.guard.as_mut().unwrap().name = "a b".into()), ["guard.name"]);
    assert_eq!(after(|it| it.pod.as_mut().unwrap().uid = "../..".into()), ["pod.uid"]);
    assert_eq!(after(|it| it.pod.as_mut().unwrap().cgroup_uid = "a_b".into()), ["pod.cgroup_uid"]);
    assert_eq!(after(|it| it.pod.as_mut().unwrap().name = String::new()), ["pod.name"]);
    // All that is wrong is told at once.
    let many = after(|it| {
        it.caller = None;
        it.guard.as_mut().unwrap().uid = "-".into();
        it.pod.as_mut().unwrap().uid = "-".into();
        it.spec.as_mut().unwrap().subjects[0].deny = vec!["etc".into()];
    });
    assert_eq!(many, ["caller", "guard.uid", "pod.uid", "spec.subjects[0].deny[0]"]);
}

#[test]
fn a_guard_stays_in_its_namespace() {
    assert_eq!(after(|it| it.pod.as_mut().unwrap().namespace = "bank".into()), ["pod.namespace"]);
    assert_eq!(after(|it| it.pod.as_mut().unwrap().namespace = String::new()), ["pod.namespace"]);
}

/// Every default is filled in by the sender, so that a number which is not known is never taken for one.
#[test]
fn numbers_that_are_not_known() {
    for number in [0, 99, -1, i32::MAX] {
        let spec = |change: fn(&mut v1::GuardSpec, i32)| after(|it| change(it.spec.as_mut().unwrap(), number));
        assert_eq!(spec(|it, number| it.enforcement = number), ["spec.enforcement"]);
        assert_eq!(spec(|it, number| it.failure_policy = number), ["spec.failurePolicy"]);
        assert_eq!(spec(|it, number| it.subjects[0].log = number), ["spec.subjects[0].log"]);
        assert_eq!(spec(|it, number| it.subjects[0].events.push(number)), ["spec.subjects[0].events[1]"]);
        let origins = spec(|it, number| {
            let except = v1::ProcessMatcher { origins: vec![1, number], ..Default::default() };
            it.subjects[0].except = vec![except];
        });
        assert_eq!(origins, ["spec.subjects[0].except[0].origins[1]"]);
    }
    let depth =
        |max_depth| after(|it| it.spec.as_mut().unwrap().subjects[0].recursion = Some(v1::Recursion { max_depth }));
    assert_eq!(
        (depth(0), depth(u32::MAX)),
        (vec!["spec.subjects[0].maxDepth".to_owned()], vec!["spec.subjects[0].maxDepth".to_owned()])
    );
    assert!(depth(1).is_empty());
}

#[test]
fn ids_of_containers() {
    let id = |id: &str| after(|it| it.container_ids[0].id = id.to_owned());
    for good in ["0123abcd", "cri-o://0123abcd", "docker://a", "app_1.x"] {
        assert!(id(good).is_empty(), "{good}");
    }
    let long = "a".repeat(129);
    for bad in ["", "containerd://", "../x", "containerd://../x", "a/b", "x://y://z", ".x", "a\n", &long] {
        assert_eq!(id(bad), ["container_ids[0].id"], "{bad}");
    }
    assert_eq!(after(|it| it.container_ids[0].name = "App".into()), ["container_ids[0].name"]);
    let one = good().container_ids[0].clone();
    assert!(after(|it| it.container_ids = vec![one.clone(); 256]).is_empty());
    assert_eq!(after(|it| it.container_ids = vec![one.clone(); 257]), ["container_ids"]);
}

#[test]
fn to_destroy_takes_two_uids() {
    let request = v1::DestroyGuardRequest {
        caller: good().caller,
        guard: Some(v1::GuardRef { uid: "g-1".into(), generation: 3, ..Default::default() }),
        pod: Some(v1::PodRef { uid: "p-1".into(), name: "\n".into(), ..Default::default() }),
    };
    let destroy = Destroy::try_from(request.clone()).unwrap();
    assert_eq!((destroy.unit.guard.as_str(), destroy.unit.pod.as_str(), destroy.generation), ("g-1", "p-1", 3));
    let refused = |change: fn(&mut v1::DestroyGuardRequest)| {
        let mut request = request.clone();
        change(&mut request);
        fields(&Destroy::try_from(request).unwrap_err()).join(" ")
    };
    assert_eq!(refused(|it| *it = Default::default()), "caller guard pod");
    assert_eq!(refused(|it| it.guard.as_mut().unwrap().generation = 0), "guard.generation");
    assert_eq!(refused(|it| it.guard.as_mut().unwrap().name = "A".into()), "guard.name");
    assert_eq!(refused(|it| it.guard.as_mut().unwrap().namespace = "a.b".into()), "guard.namespace");
    assert_eq!(refused(|it| it.pod.as_mut().unwrap().uid = "p 1".into()), "pod.uid");
}

/// What goes back has to fit a trailer.
#[test]
fn a_hostile_request_gets_a_short_answer() {
    let spec = |change: fn(&mut v1::GuardSpec)| {
        let mut request = good();
        change(request.spec.as_mut().unwrap());
        Create::try_from(request).unwrap_err()
    };
    for invalid in [
        spec(|it| it.subjects[0].deny = vec![String::new(); 1_000_000]),
        spec(|it| it.subjects[0].events = vec![99; 1_000_000]),
        spec(|it| it.subjects[0].tags = (0..100_000).map(|tag| (format!("{tag:0100}"), String::new())).collect()),
        spec(|it| it.subjects[0].tags = [("\u{1b}[2J\n\u{202e}".repeat(100_000), String::new())].into()),
        spec(|it| it.subjects = vec![v1::Subject::default(); 100_000]),
        spec(|it| it.subjects[0].except = vec![v1::ProcessMatcher::default(); 100_000]),
        spec(|it| it.containers = vec!["\0".repeat(1_000); 1_000]),
        spec(|it| it.log_format = "{x".repeat(1_000_000)),
        spec(|it| {
            it.subjects[0].only_dir = true;
            it.subjects[0].deny = vec![format!("/{}", "*".repeat(1_000_000))];
        }),
    ] {
        let size: usize = invalid.fields().map(|fault| fault.field.len() + fault.reason.len()).sum();
        assert!((1..=20).contains(&invalid.fields().count()));
        assert!(size < 9 * 1024, "{size}");
        let shown = invalid.to_string();
        assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{shown:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn uids(text in prop_oneof!["[A-Za-z0-9-]{0,66}", "[a-z0-9./_ -]{0,8}", any::<String>()]) {
        let right = (1..=64).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        prop_assert_eq!(Uid::parse(text).is_ok(), right);
    }
}

//! What Janus may ask of the API server: exactly what it asks.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::case::Case;
use crate::e2e_tests;
use crate::janus::{Janus, NAMESPACE, level};
use crate::tenant::{Opened, PATIENCE, denies, pod};

e2e_tests![every_right_is_used_and_none_is_missing, pods_hold_no_more_than_they_need];

/// A verb on a resource (or subresource) of a group.
type Right = (String, String, String);

fn every_right_is_used_and_none_is_missing(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("rights");
    // What a guard's life takes.
    tenant.start(&[pod("web")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    tenant.delete_pod("web");
    tenant.wait_until_guarded("web", 0);
    tenant.start(&[pod("web")]);
    tenant.wait_until_guarded("web", 1);
    tenant.kubectl(&["delete", "jg", "web"]).success();
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Read);
    for account in ["janus-controller", "janus-certificates"] {
        let granted = granted(&janus, account);
        let mut unused = granted.clone();
        let used = level(PATIENCE, || {
            let asked = asked(&janus, account);
            // Also those may be refused that it has: by an API server that starts and has not read its roles yet, and in a
            // namespace that is on its way out.
            let never =
                |codes: &BTreeSet<u64>| codes.contains(&403) && !codes.iter().any(|code| (200..300).contains(code));
            let refused: Vec<_> = asked.iter().filter(|(_, codes)| never(codes)).collect();
            assert!(refused.is_empty(), "{account} was refused: {refused:?}");
            unused.retain(|right| !asked.contains_key(right));
            unused.is_empty()
        });
        assert!(used, "{account} never uses: {unused:?}");
        eprintln!("{account}: {} rights, all used", granted.len());
    }
}

/// Every right that a service account of Janus has by itself. That of everybody (discovery) is not counted.
fn granted(janus: &Janus, account: &str) -> BTreeSet<Right> {
    let list = |kind: &str| -> Vec<Value> {
        let all = janus.kubectl(&["-n", NAMESPACE, "get", kind, "-o", "json"]).success();
        serde_json::from_str::<Value>(&all).unwrap()["items"].as_array().unwrap().clone()
    };
    let subject = json!({"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE});
    let mut rights = BTreeSet::new();
    for (kind, bindings) in [("clusterroles", "clusterrolebindings"), ("roles", "rolebindings")] {
        let bindings = list(bindings);
        let bound = bindings.iter().filter(|it| it["subjects"].as_array().is_some_and(|all| all.contains(&subject)));
        let bound: Vec<&Value> = bound.map(|it| &it["roleRef"]["name"]).collect();
        for role in list(kind).iter().filter(|role| bound.contains(&&role["metadata"]["name"])) {
            role["rules"].as_array().unwrap().iter().for_each(|rule| rights.extend(of_rule(rule)));
        }
    }
    assert!(!rights.is_empty(), "{account} has no rights");
    rights
}

fn of_rule(rule: &Value) -> Vec<Right> {
    let words = |field: &str| -> Vec<String> {
        let all = rule[field].as_array().unwrap();
        all.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = Vec::new();
    for group in words("apiGroups") {
        for resource in words("resources") {
            rights.extend(words("verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
        }
    }
    rights
}

/// What an account has asked for so far, and how it was answered.
fn asked(janus: &Janus, account: &str) -> BTreeMap<Right, BTreeSet<u64>> {
    let mut asked: BTreeMap<Right, BTreeSet<u64>> = BTreeMap::new();
    let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
    // The last line may not be whole yet.
    for event in janus.cluster.api.audit().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let word = |at: &str| event.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        if word("/user/username") != user || event["objectRef"].is_null() {
            continue;
        }
        let resource = match word("/objectRef/subresource").as_str() {
            "" => word("/objectRef/resource"),
            sub => format!("{}/{sub}", word("/objectRef/resource")),
        };
        let code = event.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or(0);
        asked.entry((word("/objectRef/apiGroup"), resource, word("/verb"))).or_default().insert(code);
    }
    asked
}

/// As the nodes have it, whatever the manifests say.
fn pods_hold_no_more_than_they_need(case: &Case) {
    let janus = case.janus();
    let node = &janus.cluster.nodes[0];
    let pids = node.run("pidof", &["janusd"]).success();
    // janusd and its holder.
    assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
    for pid in pids.split_whitespace() {
        let status = node.run("cat", &[&format!("/proc/{pid}/status")]).success();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{status}"));
            line.trim_start_matches(':').trim().to_owned()
        };
        // DAC_READ_SEARCH 2, SYS_PTRACE 19, SYS_ADMIN 21, AUDIT_WRITE 29.
        let four: u64 = (1 << 2) | (1 << 19) | (1 << 21) | (1 << 29);
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let held = u64::from_str_radix(&field(set), 16).unwrap();
            assert_eq!(held & !four, 0, "{set}: {held:x}");
        }
        assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
        // No way to the API server, and nothing to write to but where guards change hands.
        let mounts = node.run("cat", &[&format!("/proc/{pid}/mountinfo")]).success();
        assert!(!mounts.contains("serviceaccount"), "{mounts}");
        let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
    }
}

//! The CRD as users meet it: the API server has taken it, with all its rules; `kubectl` shows and explains guards.

use serde_json::{Value, json};

use crate::case::Case;
use crate::cluster_tests;

cluster_tests![taken_without_a_complaint, shown_in_columns, every_field_explained, defaults_are_filled_in];

const GUARD: &str = "
apiVersion: januscontroller.clustergarage.io/v1alpha1
kind: JanusGuard
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  subjects: [{events: [open], deny: [/etc/shadow]}]
";

fn taken_without_a_complaint(case: &Case) {
    let api = case.api();
    let crd = api.admin().kubectl(&["get", "crd", "janusguards.januscontroller.clustergarage.io", "-o", "json"]);
    let crd: Value = serde_json::from_str(&crd.success()).unwrap();
    let conditions = crd["status"]["conditions"].as_array().unwrap();
    let is = |kind: &str| {
        conditions.iter().find(|condition| condition["type"] == kind).map(|condition| condition["status"].clone())
    };
    assert_eq!(is("Established"), Some(json!("True")), "{conditions:#?}");
    assert_eq!(is("NamesAccepted"), Some(json!("True")), "{conditions:#?}");
    // Only there when the schema is not structural.
    assert_ne!(is("NonStructuralSchema"), Some(json!("True")), "{conditions:#?}");
}

fn shown_in_columns(case: &Case) {
    let api = case.api();
    let namespace = case.namespace(&api);
    let admin = api.admin();
    admin.kubectl_reads(&["apply", "-n", &namespace, "-f", "-"], GUARD).success();
    let status = json!({"status": {
        "observablePods": 3, "guardedPods": 2,
        "conditions": [{
            "type": "Ready", "status": "False", "reason": "Waiting", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    }});
    let patch =
        ["patch", "jg", "web", "-n", &namespace, "--subresource=status", "--type=merge", "-p", &status.to_string()];
    admin.kubectl(&patch).success();
    let shown = admin.kubectl(&["get", "jg", "-n", &namespace]).success();
    let words: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NAME", "OBSERVABLE", "GUARDED", "ENFORCEMENT", "READY", "AGE"]);
    assert_eq!(words[1][..5], ["web", "3", "2", "Enforce", "False"]);
    // By its other names.
    for name in ["janusguard", "janusguards", "janus"] {
        assert!(admin.kubectl(&["get", name, "-n", &namespace]).success().contains("web"), "{name}");
    }
}

fn every_field_explained(case: &Case) {
    let api = case.api();
    let explained = api.admin().kubectl(&["explain", "janusguard.spec", "--recursive"]).success();
    for field in ["selector", "subjects", "failurePolicy", "enforcement", "logFormat", "maxDepth", "executables"] {
        assert!(explained.contains(field), "{field}: {explained}");
    }
    let deny = api.admin().kubectl(&["explain", "jg.spec.subjects.deny"]).success();
    assert!(deny.contains("DESCRIPTION:") && !deny.contains("<empty>"), "{deny}");
}

fn defaults_are_filled_in(case: &Case) {
    let api = case.api();
    let namespace = case.namespace(&api);
    let stored = api.admin().kubectl_reads(&["create", "-n", &namespace, "-o", "json", "-f", "-"], GUARD).success();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["spec"]["enforcement"], "Enforce");
    assert!(stored["spec"]["failurePolicy"].is_string(), "{stored:#}");
    assert!(stored.get("status").is_none(), "{stored:#}");
}

//! The component annotate-pods: guarded pods say so, and the controller may write nothing else.

use std::fs;

use serde_json::{Value, json};

use crate::case::Case;
use crate::e2e_tests;
use crate::janus::{Janus, Kind, NAMESPACE, deploy, level};
use crate::tenant::{PATIENCE, denies, pod};

e2e_tests![guarded_pods_say_so];

fn guarded_pods_say_so(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("annotated");
    let component = Component::add(&janus);
    tenant.start(&[pod("web")]);
    let names = || {
        let pod = tenant.read(Kind::Pod, "web").unwrap_or_default();
        let annotation = pod.pointer("/metadata/annotations/clustergarage.io~1janus-guard").and_then(Value::as_str);
        annotation.map(str::to_owned)
    };
    assert_eq!(names(), None);
    for name in ["one", "two"] {
        tenant.guard(name, &denies("web", &["/etc/secret"], false), 1);
    }
    assert!(level(PATIENCE, || names().as_deref() == Some("one,two")), "{:?}\n{}", names(), janus.describe());
    tenant.kubectl(&["delete", "jg", "one"]).success();
    assert!(level(PATIENCE, || names().as_deref() == Some("two")), "{:?}", names());
    // With the right that this takes, nothing else can be written.
    let controller = janus.cluster.api.service_account(NAMESPACE, "janus-controller");
    for change in [
        json!({"metadata": {"annotations": {"mine": "too"}}}),
        json!({"metadata": {"labels": {"app": "other"}}}),
        json!({"metadata": {"finalizers": ["test/stays"]}}),
        json!({"status": {"phase": "Failed"}}),
    ] {
        let refused = janus.patch_pod_status(&controller, &tenant.name, "web", &change).unwrap_err();
        assert!(refused.contains("janus-controller changes no"), "{refused}");
    }
    tenant.kubectl(&["delete", "jg", "two"]).success();
    assert!(level(PATIENCE, || names().is_none()), "{:?}", names());
    drop(component);
    janus.wait_until_ready();
}

/// The overlay with the component, for as long as it lives.
struct Component<'a>(&'a Janus);

impl<'a> Component<'a> {
    fn add(janus: &'a Janus) -> Component<'a> {
        let folder = janus.cluster.api.deputy.scratch().join("annotated");
        fs::create_dir_all(&folder).unwrap();
        // kustomize takes no absolute paths.
        let folder = folder.canonicalize().unwrap();
        let up = "../".repeat(folder.components().count() - 1);
        let deploy = format!("{up}{}", deploy().display().to_string().trim_start_matches('/'));
        let kustomization = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [format!("{deploy}/overlays/default")],
            "components": [format!("{deploy}/components/annotate-pods")],
        });
        fs::write(folder.join("kustomization.yaml"), kustomization.to_string()).unwrap();
        let component = Component(janus);
        janus.kubectl(&["apply", "-k", folder.to_str().unwrap()]).success();
        janus.wait_until_ready();
        component
    }
}

impl Drop for Component<'_> {
    fn drop(&mut self) {
        let part = |file: &str| deploy().join("components/annotate-pods").join(file).display().to_string();
        let outputs = [
            self.0.apply(&|_, _| ()),
            self.0.kubectl(&["delete", "--ignore-not-found", "-f", &part("rbac.yaml"), "-f", &part("admission.yaml")]),
        ];
        for output in outputs.iter().filter(|output| output.code != Some(0)) {
            eprintln!("annotate-pods stays: {output:?}");
        }
    }
}

//! Volumes that the kubelet writes to, under a guard that denies everybody.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::case::Case;
use crate::e2e_tests;
use crate::janus::level;
use crate::tenant::{Opened, denies, pod};

e2e_tests![the_kubelet_rotates_what_nobody_may_open];

/// The kubelet looks at volumes once a minute or so, unless something of the pod changes.
const ROTATED: Duration = Duration::from_secs(150);

fn the_kubelet_rotates_what_nobody_may_open(case: &Case) {
    let tenant = case.janus().tenant("rotation");
    let put = |text: &str| {
        for (kind, name) in [(&["secret", "generic"][..], "secret"), (&["configmap"], "config")] {
            let literal = format!("--from-literal=key={text}");
            let made =
                tenant.kubectl(&[&["create"], kind, &[name, &literal, "--dry-run=client", "-o", "json"]].concat());
            tenant.apply(&serde_json::from_str(&made.success()).unwrap());
        }
    };
    put("one");
    let mut web = pod("web");
    web["spec"]["volumes"] = json!([
        {"name": "secret", "secret": {"secretName": "secret"}}, {"name": "config", "configMap": {"name": "config"}},
    ]);
    let mounts = ["secret", "config"].map(|name| json!({"name": name, "mountPath": format!("/volumes/{name}")}));
    web["spec"]["containers"][0]["volumeMounts"] = json!(mounts);
    tenant.start(&[web]);
    let files = ["/volumes/secret/key", "/volumes/config/key"];
    assert_eq!(files.map(|file| tenant.exec("web", file)), [Opened::Read; 2]);
    let mut spec = denies("web", &["/volumes/secret", "/volumes/config"], false);
    spec["subjects"][0]["events"] = json!(["all"]);
    spec["failurePolicy"] = json!("Deny");
    tenant.guard("web", &spec, 1);
    assert_eq!(files.map(|file| tenant.exec("web", file)), [Opened::Denied; 2]);
    // A link's target is no open: nobody is asked.
    let links = "readlink /volumes/secret/..data; readlink /volumes/config/..data";
    let versions = || tenant.kubectl(&["exec", "web", "--", "sh", "-c", links]);
    let before = versions().success();
    put("two");
    let started = Instant::now();
    let mut looks = 0;
    let rotated = level(ROTATED, || {
        // Any change of the pod has the kubelet look at once, perhaps before it has heard of what is new.
        looks += 1;
        tenant.kubectl(&["annotate", "--overwrite", "pod", "web", &format!("test/look={looks}")]).success();
        let now = versions().success();
        now.lines().zip(before.lines()).all(|(now, before)| now != before)
    });
    assert!(rotated, "not rotated within {ROTATED:?}: {}", tenant.kubectl(&["describe", "pod", "web"]).stdout);
    eprintln!("rotated under a guard after {:.1} s", started.elapsed().as_secs_f32());
    // What is new is denied as well.
    assert_eq!(files.map(|file| tenant.exec("web", file)), [Opened::Denied; 2]);
    tenant.kubectl(&["delete", "jg", "web"]).success();
    for file in files {
        assert_eq!(tenant.kubectl(&["exec", "web", "--", "cat", file]).success(), "two");
    }
}

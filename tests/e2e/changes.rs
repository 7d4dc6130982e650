//! Guards that change, and labels by which pods come under them.

use std::time::Instant;

use crate::case::Case;
use crate::e2e_tests;
use crate::janus::{Kind, level};
use crate::tenant::{Opened, PATIENCE, denies, guard, pod};

e2e_tests![
    an_edited_guard_denies_what_it_says_now,
    a_deleted_guard_denies_nothing_once_it_has_gone,
    a_label_brings_a_pod_under_a_guard_and_out,
    a_namespace_goes_with_its_guards,
];

fn an_edited_guard_denies_what_it_says_now(case: &Case) {
    let tenant = case.janus().tenant("edited");
    tenant.start(&[pod("web")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    let opened = || ["/etc/secret", "/etc/public"].map(|file| tenant.exec("web", file));
    assert_eq!(opened(), [Opened::Denied, Opened::Read]);
    tenant.guard("web", &denies("web", &["/etc/public"], false), 1);
    assert_eq!(opened(), [Opened::Read, Opened::Denied]);
    // To Audit: nothing is denied, and the same status says that it is in force.
    let audit = r#"{"spec": {"enforcement": "Audit"}}"#;
    tenant.kubectl(&["patch", "jg", "web", "--type=merge", "-p", audit]).success();
    tenant.wait_until_guarded("web", 1);
    assert_eq!(opened(), [Opened::Read, Opened::Read]);
}

fn a_deleted_guard_denies_nothing_once_it_has_gone(case: &Case) {
    let tenant = case.janus().tenant("deleted");
    tenant.start(&[pod("web")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    tenant.guard("other", &denies("web", &["/etc/public"], false), 1);
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Denied);
    // kubectl waits until it has gone, and it goes once no daemon has it any more.
    tenant.kubectl(&["delete", "jg", "web"]).success();
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Read);
    assert_eq!(tenant.exec("web", "/etc/public"), Opened::Denied, "the other guard stays");
}

fn a_label_brings_a_pod_under_a_guard_and_out(case: &Case) {
    let tenant = case.janus().tenant("label");
    tenant.start(&[pod("web")]);
    tenant.guard("guarded", &denies("guarded", &["/etc/secret"], false), 0);
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Read);
    tenant.kubectl(&["label", "--overwrite", "pod", "web", "app=guarded"]).success();
    tenant.wait_until_guarded("guarded", 1);
    assert_eq!(tenant.exec("web", "/etc/secret"), Opened::Denied);
    tenant.kubectl(&["label", "pod", "web", "app-"]).success();
    let allowed = level(PATIENCE, || tenant.exec("web", "/etc/secret") == Opened::Read);
    assert!(allowed, "still denied after {PATIENCE:?}");
    tenant.wait_until_guarded("guarded", 0);
}

fn a_namespace_goes_with_its_guards(case: &Case) {
    let janus = case.janus();
    let tenant = janus.tenant("namespace");
    tenant.start(&[pod("web")]);
    tenant.guard("web", &denies("web", &["/etc/secret"], false), 1);
    // Selects nothing, and must not stay for that reason.
    tenant.apply(&guard("idle", &denies("nobody", &["/etc/secret"], false)));
    let started = Instant::now();
    tenant.kubectl(&["delete", "namespace", &tenant.name, "--wait=false"]).success();
    let gone = level(PATIENCE, || janus.is_absent(Kind::Namespace, None, &tenant.name));
    assert!(gone, "{}", tenant.kubectl(&["get", "namespace", &tenant.name, "-o", "yaml"]).stdout);
    eprintln!("a namespace with a guarded pod: gone after {:.1} s", started.elapsed().as_secs_f32());
}

//! `janusd check`: what it says, where, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use janusd::check::{self, Inquiry, OK, REFUSED, Report};
use janusd::policy::{Event, Origin};

const GUARD: &str = "\
apiVersion: januscontroller.clustergarage.io/v1alpha1
kind: JanusGuard
metadata: {name: web, namespace: shop}
spec:
  selector: {}
  subjects:
    - name: secrets
      deny: [/s, '/s/*.key']
      allow: [/s/token]
      events: [open]
    - deny: [/bin/sh]
      events: [execute]
      autoAllowOwner: true
";

fn report(text: &str, inquiry: Option<&Inquiry>) -> Report {
    check::check(&[("g.yaml".to_owned(), text.as_bytes().to_vec())], inquiry)
}

#[test]
fn a_good_guard() {
    let report = report(GUARD, None);
    assert_eq!(report.status, OK);
    assert_eq!(report.text, "ok: shop/web: 2 subjects, 4 paths\n");
    assert_eq!(
        report.complaints,
        "warning: shop/web: spec.subjects[1].events: execute without open: a copy of the file, or its loader or \
         interpreter, dodges this; also deny open\n\
         warning: shop/web: spec.subjects[1].autoAllowOwner: is checked but not honoured in this release: owners are \
         denied too\n"
    );
}

#[test]
fn a_bad_guard() {
    let report = report(&GUARD.replace("[open]", "[shut]"), None);
    assert_eq!(report.status, REFUSED);
    assert_eq!(report.text, "");
    assert_eq!(
        report.complaints,
        "error: g.yaml:10: spec.subjects[0].events[0]: unknown event `shut`: must be open, access, execute or all\n"
    );
}

#[test]
fn an_explanation() {
    let inquiry = Inquiry {
        path: b"/s/..2026_11_23_07_33_24.2418249251/token".to_vec(),
        event: Some(Event::Open),
        ..Inquiry::default()
    };
    assert_eq!(
        report(GUARD, Some(&inquiry)).text,
        "open of file /s/..2026_11_23_07_33_24.2418249251/token
  guard shop/web: ALLOW (rule-allow)
    subject secrets: allow
      decided by spec.subjects[0].allow[0] `/s/token`: literal, 8 literal bytes, without the kubelet's versioned directory
      outranked: spec.subjects[0].deny[0] `/s`: literal, 2 literal bytes
    subject 1: does not speak of open
  answer: ALLOW
note: symlinks, other names of the file and mounts are known only where a root is guarded
note: who asks makes no difference in this release: except and autoAllowOwner are checked, not honoured
"
    );
}

#[test]
fn every_event_is_explained_unless_one_is_asked_for() {
    let inquiry =
        Inquiry { path: b"//bin/sh".to_vec(), origin: Some(Origin::Owner), user: Some(0), ..Inquiry::default() };
    let text = report(GUARD, Some(&inquiry)).text;
    assert!(text.contains("open of file /bin/sh\n"), "{text}");
    assert!(text.contains("access of file /bin/sh\n"), "{text}");
    assert!(text.contains("execute of file /bin/sh\n"), "{text}");
    assert!(text.contains("  answer: DENY, by shop/web\n"), "{text}");
}

#[test]
fn audit_is_told_apart() {
    let audit = GUARD.replace("spec:\n", "spec:\n  enforcement: Audit\n");
    let inquiry = Inquiry { path: b"/s/x".to_vec(), event: Some(Event::Open), ..Inquiry::default() };
    let text = report(&audit, Some(&inquiry)).text;
    assert!(text.contains("  answer: ALLOW (AUDIT: shop/web would deny)\n"), "{text}");
}

#[test]
fn an_odd_path() {
    let relative = Inquiry { path: b"s".to_vec(), ..Inquiry::default() };
    assert_eq!(report(GUARD, Some(&relative)).status, REFUSED);
    let hostile = Inquiry { path: b"/s/\n\x1b\xff".to_vec(), ..Inquiry::default() };
    let text = report(GUARD, Some(&hostile)).text;
    assert!(text.starts_with("open of file /s/\\n\\x1b"), "{text}");
}

#[test]
fn a_path_in_both_lists_is_warned_about() {
    let both = GUARD.replace("allow: [/s/token]", "allow: [//s/]");
    assert!(
        report(&both, None).complaints.contains("spec.subjects[0].allow[0]: `//s/` is in deny as well, and deny wins"),
    );
}

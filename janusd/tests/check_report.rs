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
        "warning: shop/web: spec.subjects[1].events: execute without open: a copy of the file, of its loader or of its \
         interpreter dodges this; also deny open\n"
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
note: what is not told of who asks (--as, --exe, --uid) holds for no exception
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
    assert!(text.contains("  answer: ALLOW\n") && !text.contains("  answer: DENY"), "{text}");
}

#[test]
fn who_asks_decides() {
    let ask = |origin, executable: Option<&str>, user| {
        let guard =
            GUARD.replace("autoAllowOwner: true", "except: [{origins: [Pod]}, {executables: ['/opt/*'], users: [7]}]");
        let executable = executable.map(str::to_owned);
        let inquiry = Inquiry { path: b"/bin/sh".to_vec(), event: Some(Event::Execute), origin, executable, user };
        report(&guard, Some(&inquiry)).text
    };
    let text = ask(None, None, None);
    for line in [
        "  guard shop/web: DENY (rule-deny)\n",
        "      except[0] would lift it, depending on origins\n",
        "      except[1] would lift it, depending on executables, users\n",
        "note: what is not told of who asks",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let text = ask(Some(Origin::Session), Some("/opt/tool"), Some(8));
    assert!(text.contains("      except[0] does not hold: origins\n"), "{text}");
    assert!(text.contains("      except[1] does not hold: users\n"), "{text}");
    assert!(
        text.contains("DENY, by shop/web") && text.contains("note: executables are compared by name here"),
        "{text}"
    );
    let text = ask(None, Some("/opt/tool"), Some(7));
    assert!(text.contains("      lifted by except[1]\n") && text.contains("ALLOW (except)"), "{text}");
    let text = ask(Some(Origin::Pod), None, None);
    assert!(text.contains("      lifted by except[0]\n") && text.contains("answer: ALLOW\n"), "{text}");
}

#[test]
fn an_open_that_executes_is_told() {
    let inquiry = Inquiry { path: b"/bin/sh".to_vec(), event: Some(Event::Open), ..Inquiry::default() };
    let told = "    an open by the file's own program interpreter: DENY, by spec.subjects[1].deny[0]\n";
    assert!(report(GUARD, Some(&inquiry)).text.contains(told));
    let owner = Inquiry { origin: Some(Origin::Owner), ..inquiry };
    assert!(!report(GUARD, Some(&owner)).text.contains(told));
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

#[test]
fn the_examples_pass_without_a_complaint() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 9, "{files:?}");
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let report = check::check(&[(name.clone(), std::fs::read(&file).unwrap())], None);
        assert_eq!((report.status, report.complaints.as_str()), (OK, ""), "{name}");
    }
}

//! What a survey of a root adds to a guard's rules: where symlinks lead, and which mount a path lies on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use janusd::policy::raw::{RawGuard, RawSelector, RawSubject};
use janusd::policy::{Bindings, Event, GuardSpec, List, MountBinding, Outcome, PathPattern, Policy, Question, RuleId};

fn guard(subjects: Vec<RawSubject>) -> GuardSpec {
    GuardSpec::new(RawGuard {
        namespace: "default".to_owned(),
        name: "guard".to_owned(),
        selector: Some(RawSelector::default()),
        subjects,
        ..RawGuard::default()
    })
    .unwrap()
}

fn deny(paths: &[&str]) -> RawSubject {
    RawSubject {
        deny: paths.iter().map(|path| (*path).to_owned()).collect(),
        events: vec!["open".to_owned()],
        ..RawSubject::default()
    }
}

const FIRST: RuleId = RuleId { subject: 0, list: List::Deny, index: 0 };

fn answer(policy: &Policy, name: &str, mount: Option<u64>) -> Outcome {
    let names = [name.as_bytes()];
    policy.decide(&Question { event: Event::Open, directory: false, names: &names, mount, who: None }).outcome()
}

#[test]
fn an_alias_is_another_way_to_match() {
    let spec = guard(vec![deny(&["/var/run/*.sock"])]);
    let (_, pattern) = spec.rules().next().unwrap();
    let alias = pattern.rebase(b"/run".to_vec());
    assert_eq!(alias.to_string(), "/run/*.sock");
    let bindings = Bindings { aliases: vec![(FIRST, alias)], mounts: Vec::new() };
    let policy = Policy::new(&spec, &bindings);
    assert_eq!(answer(&policy, "/run/a.sock", None), Outcome::Deny);
    assert_eq!(answer(&policy, "/var/run/a.sock", None), Outcome::Deny);
    assert_eq!(answer(&policy, "/run/a.pid", None), Outcome::Allow);
}

#[test]
fn an_alias_into_a_version_of_a_secret_outlives_it() {
    let spec = guard(vec![deny(&["/etc/tls.key"])]);
    let resolved = b"/s/..2026_11_23_07_33_24.2418249251/tls.key".to_vec();
    let bindings = Bindings { aliases: vec![(FIRST, PathPattern::literal(resolved))], mounts: Vec::new() };
    let policy = Policy::new(&spec, &bindings);
    assert_eq!(answer(&policy, "/s/..2026_11_24_00_00_00.7/tls.key", None), Outcome::Deny);
    assert_eq!(answer(&policy, "/s/..2026_11_24_00_00_00.7/tls.crt", None), Outcome::Allow);
}

#[test]
fn a_path_with_mount_stands_for_its_mount_only() {
    let subject = RawSubject { mount: Some(true), max_depth: Some(2), ..deny(&["/data/inner"]) };
    let spec = guard(vec![subject]);
    let unbound = Policy::new(&spec, &Bindings::default());
    assert_eq!(answer(&unbound, "/data/inner", Some(7)), Outcome::Allow);
    let binding = MountBinding { mount: 7, mountpoint: b"/data".to_vec() };
    let policy = Policy::new(&spec, &Bindings { aliases: Vec::new(), mounts: vec![(FIRST, binding)] });
    assert_eq!(answer(&policy, "/data/other", Some(7)), Outcome::Deny);
    assert_eq!(answer(&policy, "/data/a/b", Some(7)), Outcome::Deny);
    assert_eq!(answer(&policy, "/data/a/b/c", Some(7)), Outcome::Allow, "depth counts from the mountpoint");
    assert_eq!(answer(&policy, "/data/other", Some(8)), Outcome::Allow, "another mount over the same place");
    assert_eq!(answer(&policy, "/data/inner", None), Outcome::Allow, "an unknown mount");
    assert_eq!(answer(&policy, "/elsewhere", Some(7)), Outcome::Allow);
}

#[test]
fn the_audit_flag_is_any_matching_subjects() {
    let spec = guard(vec![
        RawSubject { audit: Some(true), ..deny(&["/a"]) },
        RawSubject { allow: vec!["/a/b".to_owned()], ..deny(&["/b"]) },
    ]);
    let policy = Policy::new(&spec, &Bindings::default());
    let audit = |name: &str| {
        let names = [name.as_bytes()];
        let question = Question { event: Event::Open, directory: false, names: &names, mount: None, who: None };
        policy.decide(&question).audit
    };
    assert!(audit("/a/b"));
    assert!(!audit("/b"));
    assert!(!audit("/c"));
}

#[test]
fn marks_are_wanted_where_a_rule_can_reach() {
    let wanted = |written: &str, dir: &str| PathPattern::parse(written).unwrap().may_match_below(dir.as_bytes());
    for (written, dir) in [
        ("/s/token", "/"),
        ("/s/token", "/s"),
        ("/s/token", "/s/..2026_11_23_07_33_24.2418249251"),
        ("/s/..data/token", "/s/..2026_11_23_07_33_24.2418249251"),
        ("/d", "/d/deep/er"),
        ("/etc/*.d", "/etc/x.d"),
        ("/etc/*.d/x", "/etc/x.d"),
        ("/etc/**/x", "/etc/a/b/c"),
        ("/*", "/anything"),
    ] {
        assert!(wanted(written, dir), "{written} {dir}");
    }
    for (written, dir) in [
        ("/s/token", "/t"),
        ("/s/token", "/s/tok"),
        ("/etc/*.d/x", "/etc/x.c"),
        ("/etc/*/x", "/etc/a/b"),
        ("/etc/[ab]", "/usr"),
    ] {
        assert!(!wanted(written, dir), "{written} {dir}");
    }
}

#[test]
fn the_parts_of_a_pattern() {
    for (written, base, specificity, glob, deep) in [
        ("/etc/*.d/x", "/etc", 5, true, false),
        ("/etc/passwd", "/etc/passwd", 11, false, false),
        ("/etc/pass*", "/etc", 9, true, false),
        ("/*", "/", 1, true, false),
        ("/", "/", 1, false, false),
        ("//a///b/", "/a/b", 4, false, false),
        ("/a/**", "/a", 3, true, true),
        ("/**/x", "/", 1, true, true),
        ("/a\\*b/c?", "/a*b", 6, true, false),
        ("/a\\*b", "/a*b", 4, false, false),
        ("/a]}b", "/a]}b", 5, false, false),
        ("/é/?", "/é", 4, true, false),
    ] {
        let pattern = PathPattern::parse(written).unwrap();
        assert_eq!(pattern.base(), base.as_bytes(), "{written}");
        assert_eq!(pattern.specificity(), specificity, "{written}");
        assert_eq!(pattern.is_glob(), glob, "{written}");
        assert_eq!(pattern.crosses_directories(), deep, "{written}");
    }
}

//! Limits of the node: how many guards fit, and what the next one is told.
//!
//! Guarantee shown: a limit is named before it is met, and when it is met all the same; what a guard is said to take is
//! what it takes.
//!
//! janusd runs as a user of its own here, with the capabilities that it needs: the kernel counts groups for each user, so
//! that nobody else on this machine runs out of any, and such a user may not write the sysctl.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use janusd::limits::{DESCRIPTORS_EACH, Node, THREADS_EACH};

use crate::case::Case;
use crate::crowd::{self, Kind};
use crate::daemon::{Ended, Poor, run_poorly};
use crate::manifest::{guard_with, together};

const fn limit(name: &'static str, run: fn(&Case)) -> crate::Test {
    crate::Test::kernel(name, run).without_control()
}

pub(crate) const TESTS: &[crate::Test] = &[
    limit("limits::groups_that_do_not_fit_are_refused_by_name", groups_that_do_not_fit_are_refused_by_name),
    limit(
        "limits::groups_that_others_hold_are_told_from_descriptors",
        groups_that_others_hold_are_told_from_descriptors,
    ),
    limit("limits::descriptors_that_do_not_fit_are_refused_by_name", descriptors_that_do_not_fit_are_refused_by_name),
    limit("limits::a_guard_takes_what_is_said", a_guard_takes_what_is_said).lasting(60),
    limit("limits::preflight_says_how_many_fit", preflight_says_how_many_fit),
];

fn groups_of_a_user() -> u64 {
    Node::here().limits().groups.expect("fs.fanotify.max_user_groups")
}

fn manifest_of(numbers: &[u64]) -> String {
    let one = |number| guard_with(&format!("g{number}"), &[], &["{deny: [/secret], events: [open]}"]);
    together(&numbers.iter().map(one).collect::<Vec<_>>())
}

/// So many guards, as a user whose groups nobody else counts.
fn guards(case: &Case, guards: u64, poor: &Poor, until: impl FnMut(&str) -> bool) -> Ended {
    let place = case.scratch(&format!("place-{guards}-{}", poor.user));
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("secret"), "").unwrap();
    let mut arguments: Vec<OsString> = ["guard", "--root"].map(OsString::from).into();
    arguments.push(place.clone().into());
    // A file holds 1,024 documents.
    let numbers: Vec<u64> = (0..guards).collect();
    for (count, numbers) in numbers.chunks(1000).enumerate() {
        let file = place.join(format!("guards-{count}.yaml"));
        fs::write(&file, manifest_of(numbers)).unwrap();
        arguments.extend(["-f".into(), file.into()]);
    }
    run_poorly(&case.watch, poor, &arguments, until)
}

fn groups_that_do_not_fit_are_refused_by_name(case: &Case) {
    let groups = groups_of_a_user();
    let too_many = groups / 2 + 1;
    let ended = guards(case, too_many, &Poor { user: 61_234, open_files: None }, |_| false);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let fits =
        format!("no more than {} guards fit: fs.fanotify.max_user_groups is {groups}, and a guard takes 2", groups / 2);
    // In the log as it starts, and as why it ends.
    assert_eq!(ended.stderr.matches(&fits).count(), 2, "{fits}: {ended:#?}");
    assert!(!ended.stderr.contains("ready:"), "{ended:#?}");
}

/// Two of the same user: what the second may have is not what the first has left. The kernel says EMFILE.
fn groups_that_others_hold_are_told_from_descriptors(case: &Case) {
    let half = groups_of_a_user() / 4 + 4;
    let poor = Poor { user: 61_235, open_files: None };
    let mut second = None;
    let first = guards(case, half, &poor, |said| {
        if said.contains("ready:") && second.is_none() {
            second = Some(guards(case, half + 1, &poor, |_| false));
        }
        second.is_some()
    });
    assert_eq!(first.code, Some(0), "{first:#?}");
    let second = second.expect("the first was ready");
    assert_eq!(second.code, Some(1), "{second:#?}");
    assert!(second.stderr.contains("fs.fanotify.max_user_groups is reached"), "{second:#?}");
    assert!(!second.stderr.contains("RLIMIT_NOFILE"), "{second:#?}");
}

fn descriptors_that_do_not_fit_are_refused_by_name(case: &Case) {
    let ended = guards(case, 10, &Poor { user: 61_236, open_files: Some(64) }, |_| false);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    let fits = "no more than 3 guards fit: RLIMIT_NOFILE is 64, and a guard takes up to 10";
    assert!(ended.stderr.contains(fits), "{ended:#?}");
    let ended = guards(case, 3, &Poor { user: 61_236, open_files: Some(64) }, |said| said.contains("ready: 3 guards"));
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

/// Thirty on directories, thirty on processes: descriptors, threads; nothing while they idle, and nothing afterwards.
fn a_guard_takes_what_is_said(case: &Case) {
    for (kind, descriptors) in [(Kind::Directories, DESCRIPTORS_EACH - 3), (Kind::Containers, DESCRIPTORS_EACH)] {
        let scratch = case.scratch(kind.word());
        fs::create_dir(&scratch).unwrap();
        let seen = crowd::run(&case.watch, Path::new(&scratch), kind, 30, Duration::from_secs(1));
        assert_eq!((seen.guards, seen.all_stopped), (30, true), "{seen:#?}");
        assert_eq!(seen.after.descriptors - seen.before.descriptors, 30 * descriptors, "{seen:#?}");
        assert_eq!(seen.after.threads - seen.before.threads, 30 * THREADS_EACH, "{seen:#?}");
        assert_eq!((seen.left.descriptors, seen.left.threads), (seen.before.descriptors, seen.before.threads));
        // A keeper that polled would show: this is less than a hundredth of one CPU, neighbours' noise included.
        assert!(seen.idle_cpu < 0.01 * seen.idle_seconds, "{seen:#?}");
    }
}

fn preflight_says_how_many_fit(case: &Case) {
    let groups = groups_of_a_user();
    let ended = run_poorly(&case.watch, &Poor { user: 61_237, open_files: None }, &["preflight"], |_| false);
    assert!(
        ended.stdout.contains(&format!("{} fit: fs.fanotify.max_user_groups is {groups}", groups / 2)),
        "{ended:#?}"
    );
    assert!(ended.stdout.contains("cannot be raised from here"), "{ended:#?}");
    let ended = crate::daemon::run(&case.watch, &["preflight", "-o", "json"], b"");
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let features = report["features"].as_array().unwrap();
    for name in ["guards", "fanotify groups", "inotify instances", "inotify watches", "threads", "open files"] {
        assert!(features.iter().any(|feature| feature["feature"] == name), "{name}: {ended:#?}");
    }
}

//! A log that somebody else can fill.
//!
//! Guarantee shown: what a container provokes is told at first, then counted, and the count is told; no count is lost.

use std::fs;
use std::time::Duration;

use crate::case::Case;
use crate::manifest::guard;
use crate::watchdog::wait_until;

pub(crate) const TESTS: &[crate::Test] = &[
    crate::Test::kernel("floods::a_path_that_comes_and_goes", a_path_that_comes_and_goes).without_control().lasting(90),
    crate::Test::kernel("floods::more_symlinks_than_are_followed", more_symlinks_than_are_followed),
];

fn a_path_that_comes_and_goes(case: &Case) {
    const TIMES: u64 = 140;
    let place = case.directory();
    let janusd = case.guard(&place, &guard(&["{deny: [/coming], events: [open], log: None}"]));
    let janusd = janusd.running().unwrap();
    let coming = place.at("/coming");
    let absent = || janusd.metrics().sum("janus_guard_problems_total", &[("reason", "PathAbsent")]);
    let gone_often = wait_until(Duration::from_secs(60), || {
        fs::create_dir(&coming).unwrap();
        wait_until(Duration::from_millis(15), || false);
        fs::remove_dir(&coming).unwrap();
        wait_until(Duration::from_millis(15), || false);
        absent() >= TIMES
    });
    assert!(gone_often, "absent {} times only", absent());
    let told = || janusd.said().lines().filter(|line| line.contains("PathAbsent")).count() as u64;
    let held_back = janusd.metrics().sum("janus_log_held_back_total", &[]);
    // A hundred at once, and one in ten seconds.
    assert!(held_back >= TIMES - 110, "{held_back} held back, {} told", told());
    // The flood has ended: the count is told, by whose it is and of what.
    let summary = || {
        let said = janusd.said();
        said.lines().find(|line| line.contains("log lines were held back")).map(str::to_owned)
    };
    assert!(wait_until(Duration::from_secs(15), || summary().is_some()), "{}", janusd.said());
    let (summary, all) = (summary().unwrap(), absent());
    let held_back = janusd.metrics().sum("janus_log_held_back_total", &[]);
    assert!(summary.contains("guard=default/g") && summary.contains("guarded from the moment it exists"), "{summary}");
    assert!(summary.contains(&format!("count={held_back}")), "{held_back}: {summary}");
    assert_eq!(told() + held_back, all);
}

/// A glob matches whatever a container makes: it makes no more work than is bounded, and that is said.
fn more_symlinks_than_are_followed(case: &Case) {
    const LINKS: u64 = 1_200;
    let place = case.directory();
    let links = place.at("/links");
    fs::create_dir(&links).unwrap();
    for number in 0..LINKS {
        std::os::unix::fs::symlink(format!("/nowhere/{number}"), links.join(format!("{number}.key"))).unwrap();
    }
    fs::write(links.join("real.key"), "key").unwrap();
    let janusd = case.guard(&place, &guard(&["{deny: ['/links/*.key'], events: [open]}"]));
    case.denied(place.open(place.at("/links/real.key")));
    let Some(janusd) = janusd.running() else { return };
    let problems = |reason| janusd.metrics().sum("janus_guard_problems_total", &[("reason", reason)]);
    assert_eq!((problems("TooManyEntries"), problems("PathAbsent")), (1, 1_000));
    assert_eq!(janusd.metrics().sum("janus_guards", &[("state", "degraded")]), 1);
}

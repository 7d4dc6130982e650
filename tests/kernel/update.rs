//! Updates in place: SIGHUP, under readers that must not notice.
//!
//! Guarantee shown: between two versions of a guard that both deny a file, no open of it slips through; what `ready:`
//! says is in force.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::case::{Case, Janus};
use crate::container::Agent;
use crate::daemon::Janusd;
use crate::load::duration;
use crate::manifest::{guard, guard_with, together};
use crate::watchdog::wait_until;

crate::kernel_tests![
    rule_added_and_removed,
    guard_added_and_removed,
    bad_manifest_changes_nothing,
    file_rule_under_readers.lasting(60),
    directory_rule_under_readers.lasting(60),
    volume_rules_under_readers.lasting(60),
    directory_of_the_disk_under_readers.lasting(60),
    enforcement_is_switched,
];

/// Each version is in force when it says so.
fn rule_added_and_removed(case: &Case) {
    let container = case.container();
    let one = guard(&["{deny: [/secret], events: [open]}"]);
    let both = guard(&["{deny: [/public, /secret], events: [open]}"]);
    let access = guard(&["{deny: [/public], events: [access]}"]);
    let janusd = case.guard(&container, &one);
    case.allowed(container.open("/public"));
    janusd.update(&both);
    case.denied(container.open("/public"));
    case.denied(container.open("/secret"));
    janusd.update(&access);
    case.allowed(container.open("/public"));
    case.allowed(container.open("/secret"));
    case.denied(container.act(crate::protocol::read("/public")));
    janusd.update(&one);
    case.denied(container.open("/secret"));
    case.allowed(container.act(crate::protocol::read("/public")));
}

/// A document that comes and goes.
fn guard_added_and_removed(case: &Case) {
    let container = case.container();
    let one = guard_with("one", &[], &["{deny: [/secret], events: [open]}"]);
    let two = guard_with("two", &[], &["{deny: [/public], events: [open]}"]);
    let janusd = case.guard(&container, &one);
    janusd.update(&together(&[one.clone(), two.clone()]));
    case.denied(container.open("/secret"));
    case.denied(container.open("/public"));
    if let Some(janusd) = janusd.running() {
        assert_eq!(janusd.ready().last().unwrap().0, 2);
    }
    janusd.update(&two);
    case.allowed(container.open("/secret"));
    case.denied(container.open("/public"));
    if let Some(janusd) = janusd.running() {
        assert_eq!(janusd.ready().last().unwrap().0, 1);
    }
}

/// A manifest that is refused is said to be, and what was in force stays.
fn bad_manifest_changes_nothing(case: &Case) {
    let container = case.container();
    let good = guard(&["{deny: [/secret], events: [open]}"]);
    let janusd = case.guard(&container, &good);
    let bad = [
        guard(&["{deny: [relative], events: [open]}"]),
        together(&[guard(&["{deny: [/public], events: [open]}"]), guard(&["{deny: [/public], events: [modify]}"])]),
        "}{".to_owned(),
        String::new(),
    ];
    for manifest in &bad {
        if let Some(janusd) = janusd.running() {
            let (said, ready) = (janusd.said().len(), janusd.times_ready());
            janusd.rewrite(manifest);
            janusd.signal(rustix::process::Signal::HUP);
            let heard = wait_until(Duration::from_secs(5), || janusd.said()[said..].contains("guard.yaml"));
            assert!(heard, "{manifest:?} is not refused on stderr");
            assert_eq!(janusd.times_ready(), ready, "{manifest:?} was taken");
        }
        case.denied(container.open("/secret"));
        case.allowed(container.open("/public"));
    }
    janusd.update(&guard(&["{deny: [/public], events: [open]}"]));
    case.denied(container.open("/public"));
    case.allowed(container.open("/secret"));
}

/// From Audit to Enforce and back.
fn enforcement_is_switched(case: &Case) {
    let container = case.container();
    let subject = ["{deny: [/secret], events: [open]}"];
    let audit = guard_with("g", &["enforcement: Audit"], &subject);
    let janusd = case.guard(&container, &audit);
    case.allowed(container.open("/secret"));
    janusd.update(&guard(&subject));
    case.denied(container.open("/secret"));
    janusd.update(&audit);
    case.allowed(container.open("/secret"));
}

/// A literal rule stays while others come and go around it.
fn file_rule_under_readers(case: &Case) {
    let container = case.container();
    let versions = [
        guard(&["{deny: [/secret], events: [open]}"]),
        guard(&["{deny: [/public, /secret], allow: [/etc], events: [open]}"]),
    ];
    let janusd = case.guard(&container, &versions[0]);
    ten_a_second(case, &container, &janusd, &versions, &["/secret".into()], "/public".into());
}

/// The file is denied by the directory above it; in one version by a glob and another subject.
fn directory_rule_under_readers(case: &Case) {
    let container = case.container();
    let versions = [
        guard(&["{deny: [/denied], events: [open]}"]),
        guard(&["{deny: [/public], events: [all]}", "{deny: ['/denied/**'], events: [open, access]}"]),
    ];
    let janusd = case.guard(&container, &versions[0]);
    ten_a_second(
        case,
        &container,
        &janusd,
        &versions,
        &["/denied/file".into(), "/denied/sub/deep/file".into()],
        "/public".into(),
    );
}

/// Volumes: a filesystem mark and a mount mark that stay, while those of the root come and go.
fn volume_rules_under_readers(case: &Case) {
    let container = case.container();
    let versions = [
        guard(&["{deny: [/s/token, /vol/file], events: [open]}"]),
        guard(&["{deny: [/s, /vol, /public], events: [open]}"]),
    ];
    let janusd = case.guard(&container, &versions[0]);
    ten_a_second(case, &container, &janusd, &versions, &["/s/token".into(), "/vol/file".into()], "/public".into());
}

/// Inode and directory marks, changed by difference.
fn directory_of_the_disk_under_readers(case: &Case) {
    let place = case.directory();
    let versions = [
        guard(&["{deny: [/secret, /denied], events: [open]}"]),
        guard(&["{deny: ['/denied/**', /secret, /denied, /public], events: [open]}"]),
    ];
    let janusd = case.guard(&place, &versions[0]);
    let denied = ["/secret", "/denied/file", "/denied/sub/deep/file"].map(|path| place.at(path));
    ten_a_second(case, &place, &janusd, &versions, &denied, place.at("/public"));
}

/// Turns between two versions ten times a second, under 8 readers of files that both deny. `toggled` is denied by the
/// second version only.
fn ten_a_second(
    case: &Case,
    agent: &Agent,
    janusd: &Janusd,
    versions: &[String; 2],
    denied: &[PathBuf],
    toggled: PathBuf,
) {
    let lasting = match case.janus {
        Janus::Guards => duration(5),
        Janus::Absent => Duration::from_millis(200),
    };
    let readers = agent.start_openers(8, denied);
    let start = Instant::now();
    let mut updates = 0;
    while start.elapsed() < lasting {
        for version in [1, 0] {
            janusd.update(&versions[version]);
            updates += 1;
            match version {
                1 => case.denied(agent.open(&toggled)),
                _ => case.allowed(agent.open(&toggled)),
            }
            // The pace, unless janusd is slower than that.
            wait_until(Duration::from_millis(100 * updates).saturating_sub(start.elapsed()), || false);
        }
    }
    let slowest_turn = start.elapsed() / u32::try_from(updates).unwrap();
    let opened = readers.stop();
    let total = opened.total();
    case.holds(total.allowed == 0, &format!("no open slips through {updates} updates: {opened:?}"));
    assert_eq!(total.failed, 0, "{opened:?}");
    assert!(total.allowed + total.denied > updates, "the readers hardly read: {opened:?}");
    assert!(slowest_turn < Duration::from_millis(200), "{slowest_turn:?} an update: janusd cannot keep the pace");
}

//! What breaks inside of janusd: a judge that panics.
//!
//! The engine runs in this process, since only so can a judge of the test's own be put into a real worker; openers are
//! agents, as everywhere.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use janusd::fanotify::look::Stat;
use janusd::guard::judge::{Judge, Mount, Seen, Verdict};
use janusd::guard::known::KnownFiles;
use janusd::guard::view::Names;
use janusd::guard::{Roots, SiteId};
use janusd::policy::{Decision, Failure};
use janusd::root::Root;

use crate::case::Case;
use crate::container::Directory;
use crate::in_process::InProcess;
use crate::{kernel_tests, manifest};

kernel_tests! {
    a_worker_that_panics,
    a_worker_that_panics_fails_closed_if_asked,
    a_worker_that_keeps_panicking,
}

const SUBJECT: &str = "{deny: [/secret, /denied], events: [open], log: None}";

/// Judges as the guard does, but panics at files named `trigger`.
#[derive(Debug)]
struct Panics(Arc<dyn Judge>);

impl Judge for Panics {
    fn judge(&self, seen: &Seen<'_>, mount: Mount<'_>, known: &KnownFiles, names: &mut Names) -> Verdict {
        assert!(!seen.path.is_some_and(|path| path.ends_with(b"/trigger")), "as the test asks");
        self.0.judge(seen, mount, known, names)
    }

    fn indifferent(&self, stat: &Stat, path: &[u8], names: &mut Names) -> bool {
        self.0.indifferent(stat, path, names)
    }

    fn denies(&self, site: SiteId, name: &[u8], directory: bool) -> bool {
        self.0.denies(site, name, directory)
    }

    fn failed(&self, failure: Failure) -> Decision {
        self.0.failed(failure)
    }
}

/// A guard on a directory whose judge panics on demand.
fn panicking(case: &Case, place: &Directory, manifest: &str) -> Option<InProcess> {
    let root = || Roots::One(Root::of_directory(&place.at("/")).unwrap());
    InProcess::start(case, root, manifest, |shared| {
        shared.wrap.0 = Some(Arc::new(|judge| Arc::new(Panics(judge))));
    })
}

fn fallbacks(janusd: &InProcess) -> u64 {
    janusd.sample(r#"janus_guard_fallbacks_total{namespace="default",guard="g",reason="worker-panicked"}"#)
}

fn restarts(janusd: &InProcess) -> u64 {
    janusd.sample(r#"janus_guard_worker_restarts_total{namespace="default",guard="g"}"#)
}

/// Eight readers of denied files, and an event now and then that kills the worker: nothing is allowed that should not
/// be, everybody gets an answer, and the guard is back.
fn panics_under_readers(case: &Case, manifest: &str, panics: u64, trigger_is_allowed: bool) {
    let place = case.directory();
    fs::write(place.at("/trigger"), "").unwrap();
    let janusd = panicking(case, &place, manifest);
    let readers = case.host();
    let paths = ["/secret", "/denied/file"].map(|path| place.at(path));
    let load = readers.start_openers(8, &paths);
    for _ in 0..panics {
        let outcome = place.open(place.at("/trigger"));
        if trigger_is_allowed { case.allowed(outcome) } else { case.denied(outcome) }
    }
    let opened = load.stop();
    case.holds(opened.total().allowed == 0, &format!("no denied file was opened: {opened:?}"));
    assert_eq!(opened.total().failed, 0, "{opened:?}");
    // What one restart may cost, several times over; the second that nobody may exceed is for the load tests.
    assert!(opened.slowest < Duration::from_secs(5), "an open took {:?}", opened.slowest);
    case.denied(place.open(place.at("/secret")));
    case.allowed(place.open(place.at("/public")));
    if let Some(janusd) = janusd {
        assert_eq!((fallbacks(&janusd), restarts(&janusd)), (panics, panics));
    }
}

fn a_worker_that_panics(case: &Case) {
    panics_under_readers(case, &manifest::guard(&[SUBJECT]), 3, true);
}

fn a_worker_that_panics_fails_closed_if_asked(case: &Case) {
    let manifest = manifest::guard_with("g", &["failurePolicy: Deny"], &[SUBJECT]);
    panics_under_readers(case, &manifest, 3, false);
}

/// Beyond a few panics in a row each restart waits; still everybody gets an answer.
fn a_worker_that_keeps_panicking(case: &Case) {
    panics_under_readers(case, &manifest::guard(&[SUBJECT]), 12, true);
}

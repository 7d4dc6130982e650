//! What breaks inside of janusd: a judge that panics.
//!
//! The engine runs in this process, since only so can a judge of the test's own be put into a real worker; openers are
//! agents, as everywhere.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use janusd::commands::engine::Engine;
use janusd::events::EventFormat;
use janusd::fanotify::look::Stat;
use janusd::guard::Guard;
use janusd::guard::judge::{Judge, Mount, Seen, Verdict};
use janusd::guard::known::KnownFiles;
use janusd::guard::view::Names;
use janusd::metrics::Metrics;
use janusd::policy::{Decision, Failure};
use janusd::root::Root;

use crate::case::{Case, Janus};
use crate::container::Directory;
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

    fn indifferent(&self, stat: &Stat, names: &Names) -> bool {
        self.0.indifferent(stat, names)
    }

    fn denies(&self, name: &[u8], directory: bool) -> bool {
        self.0.denies(name, directory)
    }

    fn failed(&self, failure: Failure) -> Decision {
        self.0.failed(failure)
    }
}

/// A guard in this process.
struct InProcess {
    engine: Option<Engine>,
    guard: Option<Guard>,
    metrics: Metrics,
}

impl InProcess {
    fn start(case: &Case, place: &Directory, manifest: &str) -> Option<InProcess> {
        if case.janus == Janus::Absent {
            return None;
        }
        let mut engine = Engine::start(EventFormat::Guard).unwrap_or_else(|failed| panic!("{:?}", failed.lines));
        engine.shared.wrap.0 = Some(Arc::new(|judge| Arc::new(Panics(judge))));
        let spec = janusd::manifest::parse("test", manifest.as_bytes()).unwrap().remove(0);
        let metrics = Metrics::default();
        let handles = metrics.guard(spec.name());
        let root = Root::of_directory(&place.at("/")).unwrap();
        let guard = Guard::start(Arc::new(spec), root, handles, &engine.shared).unwrap();
        Some(InProcess { engine: Some(engine), guard: Some(guard), metrics })
    }

    fn sample(&self, line: &str) -> u64 {
        let text = self.metrics.open_metrics().unwrap();
        text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok()).unwrap_or_default()
    }

    fn fallbacks(&self) -> u64 {
        self.sample(r#"janus_guard_fallbacks_total{namespace="default",guard="g",reason="worker-panicked"}"#)
    }

    fn restarts(&self) -> u64 {
        self.sample(r#"janus_guard_worker_restarts_total{namespace="default",guard="g"}"#)
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let clean = self.guard.take().is_some_and(|guard| guard.stop(Duration::from_secs(5)));
        if let Some(engine) = self.engine.take() {
            engine.finish(clean, Duration::from_secs(5));
        }
    }
}

/// Eight readers of denied files, and an event now and then that kills the worker: nothing is allowed that should not
/// be, everybody gets an answer, and the guard is back.
fn panics_under_readers(case: &Case, manifest: &str, panics: u64, trigger_is_allowed: bool) {
    let place = case.directory();
    fs::write(place.at("/trigger"), "").unwrap();
    let janusd = InProcess::start(case, &place, manifest);
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
        assert_eq!((janusd.fallbacks(), janusd.restarts()), (panics, panics));
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

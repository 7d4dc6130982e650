//! A guard in this process: what a command line cannot ask for, a test can.

use std::sync::Arc;
use std::time::Duration;

use janusd::commands::engine::Engine;
use janusd::events::EventFormat;
use janusd::guard::{Guard, Roots, Shared};
use janusd::metrics::Metrics;

use crate::case::{Case, Janus};

pub(crate) struct InProcess {
    engine: Option<Engine>,
    guard: Option<Guard>,
    metrics: Metrics,
}

impl InProcess {
    /// Starts it, with `adjust` made to what guards share. `None`: the control.
    pub(crate) fn start(
        case: &Case,
        roots: impl FnOnce() -> Roots,
        manifest: &str,
        adjust: impl FnOnce(&mut Shared),
    ) -> Option<InProcess> {
        if case.janus == Janus::Absent {
            return None;
        }
        let mut engine = Engine::start(EventFormat::Guard, 1).unwrap_or_else(|failed| panic!("{:?}", failed.lines));
        adjust(&mut engine.shared);
        let spec = janusd::manifest::parse("test", manifest.as_bytes()).unwrap().remove(0);
        let metrics = Metrics::default();
        let handles = metrics.guard(spec.name());
        let guard = Guard::start(Arc::new(spec), roots(), None, handles, &engine.shared).unwrap();
        Some(InProcess { engine: Some(engine), guard: Some(guard), metrics })
    }

    pub(crate) fn guard(&self) -> &Guard {
        self.guard.as_ref().unwrap()
    }

    /// The value of a sample, zero if there is none.
    pub(crate) fn sample(&self, name_and_labels: &str) -> u64 {
        let text = self.metrics.open_metrics().unwrap();
        text.lines().find_map(|found| found.strip_prefix(name_and_labels)?.trim().parse().ok()).unwrap_or_default()
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

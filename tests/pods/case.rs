//! One run of one test: with the daemon, or as the control without it.

use std::sync::Arc;
use std::time::Duration;

use crate::daemon::Janusd;
use crate::node::Node;
use crate::pod::{Outcome, PLAIN, Plan, Pod, is_denied};
use crate::watchdog::wait_until;

/// Whether the daemon takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Janus {
    Guards,
    /// The control: nobody denies, and what must be denied must be seen to succeed.
    Absent,
}

pub(crate) struct Case {
    pub(crate) janus: Janus,
    pub(crate) node: Arc<Node>,
}

impl Case {
    pub(crate) fn janusd(&self) -> Janusd {
        match self.janus {
            Janus::Guards => Janusd::start(&self.node),
            Janus::Absent => Janusd::absent(),
        }
    }

    /// With more arguments.
    pub(crate) fn janusd_with(&self, arguments: &[&str]) -> Janusd {
        match self.janus {
            Janus::Guards => Janusd::start_with(&self.node, arguments),
            Janus::Absent => Janusd::absent(),
        }
    }

    pub(crate) fn pod(&self) -> Pod {
        Pod::start(&self.node, &PLAIN)
    }

    pub(crate) fn pod_of(&self, plan: &Plan) -> Pod {
        Pod::start(&self.node, plan)
    }

    /// The kernel refused, with EPERM.
    #[track_caller]
    pub(crate) fn denied(&self, outcome: Outcome) {
        match self.janus {
            Janus::Guards => assert!(is_denied(&outcome), "not denied: {outcome:?}"),
            Janus::Absent => assert!(outcome.is_ok(), "the control fails without janusd: {outcome:?}"),
        }
    }

    /// Nobody refused: with the daemon and without.
    #[track_caller]
    pub(crate) fn allowed(&self, outcome: Outcome) {
        assert!(outcome.is_ok(), "not allowed: {outcome:?}");
    }

    /// Denied from some moment within `limit` on.
    #[track_caller]
    pub(crate) fn becomes_denied(&self, limit: Duration, mut attempt: impl FnMut() -> Outcome) {
        if self.janus == Janus::Guards {
            assert!(wait_until(limit, || is_denied(&attempt())), "not denied within {limit:?}");
        }
        self.denied(attempt());
    }
}

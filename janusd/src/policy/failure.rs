//! Every way in which an event may fail to be judged, and the one place that says what is then done about it.

use super::{FailurePolicy, Response};

/// Why an event could not be judged. The word is the `reason` label of `janus_guard_fallbacks_total` and the
/// `{reason}` of an event line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The file lies on a mount that is in no mount namespace we can read (a detached mount), so the name by which the
    /// container knows it cannot be told, and no identity or name that we do know denies it.
    UnknownMount,
    /// The same, but the kernel says that the file, or its directory, is one that was marked for a deny: rather denied
    /// than let through under a name that nobody can tell.
    UnnamedInGuarded,
    /// The lookup (of a mount, or of who asks) did not come back in time.
    LookupTimeout,
    /// The lookup queue was full.
    LookupBusy,
    /// Who asks could not be told, and a deny could have been lifted.
    ProcessLookup,
    /// `readlink` of the event's file gave no path (longer than `PATH_MAX`, or unreachable).
    PathUnreadable,
    /// `statx` of the event's file failed.
    StatFailed,
    /// The kernel could not make a file descriptor for the event and denied it by itself (`FAN_REPORT_FD_ERROR`).
    EventFd,
    /// `read` on the group failed: the kernel denied the event at its head by itself (EMFILE, ENFILE, ENOMEM).
    ReadFailed,
    /// The worker panicked while it judged this event.
    WorkerPanicked,
    /// The kernel refused our answer even in its plain form: the opener is still blocked.
    AnswerRefused,
    /// The worker had read it, and did not answer in time.
    Deadline,
    /// The worker was stuck, and did not read it.
    WorkerStuck,
}

impl Failure {
    /// All of them, for metrics that must exist before the first failure.
    pub const ALL: [Failure; 13] = [
        Failure::UnknownMount,
        Failure::UnnamedInGuarded,
        Failure::LookupTimeout,
        Failure::LookupBusy,
        Failure::ProcessLookup,
        Failure::PathUnreadable,
        Failure::StatFailed,
        Failure::EventFd,
        Failure::ReadFailed,
        Failure::WorkerPanicked,
        Failure::AnswerRefused,
        Failure::Deadline,
        Failure::WorkerStuck,
    ];

    /// The word for labels and lines.
    pub const fn word(self) -> &'static str {
        match self {
            Failure::UnknownMount => "unknown-mount",
            Failure::UnnamedInGuarded => "unnamed-in-guarded",
            Failure::LookupTimeout => "lookup-timeout",
            Failure::LookupBusy => "lookup-busy",
            Failure::ProcessLookup => "process-lookup",
            Failure::PathUnreadable => "path-unreadable",
            Failure::StatFailed => "stat-failed",
            Failure::EventFd => "event-fd",
            Failure::ReadFailed => "read-failed",
            Failure::WorkerPanicked => "worker-panicked",
            Failure::AnswerRefused => "answer-refused",
            Failure::Deadline => "deadline",
            Failure::WorkerStuck => "worker-stuck",
        }
    }

    /// What is answered. The kernel has already denied what it could not hand to us, and what lies in a guarded directory
    /// without a name is denied; all else is the guard's choice.
    pub const fn response(self, policy: FailurePolicy) -> Response {
        match (self, policy) {
            (Failure::EventFd | Failure::ReadFailed | Failure::UnnamedInGuarded, _) | (_, FailurePolicy::Deny) => {
                Response::Deny
            }
            (_, FailurePolicy::Allow) => Response::Allow,
        }
    }
}

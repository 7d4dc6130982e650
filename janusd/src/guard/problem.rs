//! What a guard cannot guard as written: never silent.

use crate::policy::RuleId;

/// Why. The word is the `reason` of a status problem and the label of `janus_guard_problems_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemReason {
    /// The root cannot be reached, or its process has ended.
    RootUnreachable,
    /// A path lies on a file system that is not gated.
    FilesystemNotGated,
    /// A path is a device, a FIFO or a socket, or lies on `/dev`. Linux 6.18 raises no permission event for them.
    SpecialFileNotGated,
    /// The kernel refused a mark.
    MarkRefused,
    /// `mount: true` on the node's own root mount.
    NodeMount,
    /// `onlyDir` and the path is no directory: it is left out.
    NotADirectory,
    /// A path runs through too many symlinks.
    SymlinkLoop,
    /// A path cannot be followed.
    PathUnreadable,
    /// A tree or a directory is larger than a survey looks at.
    TooManyEntries,
    /// `fs.inotify.max_user_watches` was reached: changes are noticed late or never.
    WatchLimit,
    /// `audit: true` and the kernel or our capabilities lack it.
    AuditUnavailable,
    /// The thread that surveys the root panicked. What was in force stays; it starts again.
    KeeperPanicked,
    /// The thread that answers is stuck: others answer by failure policy until it is back, or replaced.
    WorkerStuck,
    /// A container's start was held for the guard, and let go by failure policy before the guard was in force there.
    StartLate,
    /// The container's name is not known yet. It counts as one that the guard selects.
    NameUnknown,
    /// A path does not exist yet. It is guarded from the moment it does.
    PathAbsent,
}

impl ProblemReason {
    /// All of them.
    pub const ALL: [ProblemReason; 16] = [
        ProblemReason::RootUnreachable,
        ProblemReason::FilesystemNotGated,
        ProblemReason::SpecialFileNotGated,
        ProblemReason::MarkRefused,
        ProblemReason::NodeMount,
        ProblemReason::NotADirectory,
        ProblemReason::SymlinkLoop,
        ProblemReason::PathUnreadable,
        ProblemReason::TooManyEntries,
        ProblemReason::WatchLimit,
        ProblemReason::AuditUnavailable,
        ProblemReason::KeeperPanicked,
        ProblemReason::WorkerStuck,
        ProblemReason::StartLate,
        ProblemReason::NameUnknown,
        ProblemReason::PathAbsent,
    ];

    /// The word.
    pub const fn word(self) -> &'static str {
        match self {
            ProblemReason::RootUnreachable => "RootUnreachable",
            ProblemReason::FilesystemNotGated => "FilesystemNotGated",
            ProblemReason::SpecialFileNotGated => "SpecialFileNotGated",
            ProblemReason::MarkRefused => "MarkRefused",
            ProblemReason::NodeMount => "NodeMount",
            ProblemReason::NotADirectory => "NotADirectory",
            ProblemReason::SymlinkLoop => "SymlinkLoop",
            ProblemReason::PathUnreadable => "PathUnreadable",
            ProblemReason::TooManyEntries => "TooManyEntries",
            ProblemReason::WatchLimit => "WatchLimit",
            ProblemReason::AuditUnavailable => "AuditUnavailable",
            ProblemReason::KeeperPanicked => "KeeperPanicked",
            ProblemReason::WorkerStuck => "WorkerStuck",
            ProblemReason::StartLate => "StartLate",
            ProblemReason::NameUnknown => "NameUnknown",
            ProblemReason::PathAbsent => "PathAbsent",
        }
    }

    /// Whether something that should be guarded is not. A path that is merely absent, or left out as `onlyDir` asks, is
    /// no such thing; nor is a container that is guarded under no name.
    pub const fn degrades(self) -> bool {
        !matches!(self, ProblemReason::PathAbsent | ProblemReason::NotADirectory | ProblemReason::NameUnknown)
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Why.
    pub reason: ProblemReason,
    /// The rule that it concerns, if one.
    pub rule: Option<RuleId>,
    /// The path inside the root. A container's bytes: escape before showing.
    pub path: Vec<u8>,
    /// What else there is to say.
    pub detail: String,
    /// The container that it is about: its name, or its id while that is not known. Filled in when a survey ends.
    pub container: Option<std::sync::Arc<str>>,
}

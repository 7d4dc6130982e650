//! The words of conditions and problems: one list.

use std::fmt;

/// Why a condition is as it is, or a pod is not guarded. Worst first: that is the order of `problems[]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The spec cannot be decoded, or means nothing.
    InvalidSpec,
    /// A daemon found in the spec what schema and CEL cannot: nothing of this generation is in force there.
    RefusedByDaemon,
    /// The node has no janusd.
    DaemonMissing,
    /// janusd lacks a feature that the guard needs: it was not sent.
    DaemonTooOld,
    /// The node's kernel, or janusd's rights there, lack a feature that the guard needs.
    KernelLacksFeature,
    /// A limit of guards, groups, marks or descriptors.
    LimitReached,
    /// janusd tried, failed, and tries again.
    NotInForce,
    /// An update failed: the generation before it is in force.
    UpdateFailed,
    /// The root of a container cannot be reached.
    RootUnreachable,
    /// janusd does not find a container that runs.
    ContainerNotFound,
    /// The thread that answers is stuck: others answer by failure policy.
    WorkerStuck,
    /// A container began before the guard was in force there, or was kept from beginning because it was not.
    StartLate,
    /// The thread that surveys the root panicked.
    KeeperPanicked,
    /// On a file system that is not gated.
    FilesystemNotGated,
    /// A device, a FIFO or a socket.
    SpecialFileNotGated,
    /// The kernel refused a mark.
    MarkRefused,
    /// `mount: true` on the node's own root.
    NodeMount,
    /// Too many symlinks.
    SymlinkLoop,
    /// A path cannot be followed.
    PathUnreadable,
    /// A tree that is too large.
    TooManyEntries,
    /// Changes are noticed late or never.
    WatchLimit,
    /// `audit: true` and there is no audit log.
    AuditUnavailable,
    /// A word of a daemon that this release does not know.
    Unknown,
    /// janusd has not answered for three resyncs.
    DaemonUnreachable,
    /// On its way into force.
    Arming,
    /// A path that does not exist yet.
    PathAbsent,
    /// `onlyDir`, and the path is no directory.
    NotADirectory,
    /// A container without a known name: it counts as selected.
    NameUnknown,
    /// A pod of Janus itself: never guarded.
    ProtectedPod,
    /// Every pod that can be guarded is.
    Guarded,
    /// There is no pod to guard.
    NoPods,
    /// Nothing is unguarded.
    AsSpecified,
    /// The spec is in use.
    Accepted,
}

/// Those that a daemon may give a problem.
const OF_DAEMONS: [Reason; 20] = [
    Reason::KernelLacksFeature,
    Reason::LimitReached,
    Reason::NotInForce,
    Reason::UpdateFailed,
    Reason::RootUnreachable,
    Reason::WorkerStuck,
    Reason::StartLate,
    Reason::KeeperPanicked,
    Reason::FilesystemNotGated,
    Reason::SpecialFileNotGated,
    Reason::MarkRefused,
    Reason::NodeMount,
    Reason::SymlinkLoop,
    Reason::PathUnreadable,
    Reason::TooManyEntries,
    Reason::WatchLimit,
    Reason::AuditUnavailable,
    Reason::PathAbsent,
    Reason::NotADirectory,
    Reason::NameUnknown,
];

impl Reason {
    /// The word.
    pub const fn word(self) -> &'static str {
        match self {
            Reason::InvalidSpec => "InvalidSpec",
            Reason::RefusedByDaemon => "RefusedByDaemon",
            Reason::DaemonMissing => "DaemonMissing",
            Reason::DaemonTooOld => "DaemonTooOld",
            Reason::KernelLacksFeature => "KernelLacksFeature",
            Reason::LimitReached => "LimitReached",
            Reason::NotInForce => "NotInForce",
            Reason::UpdateFailed => "UpdateFailed",
            Reason::RootUnreachable => "RootUnreachable",
            Reason::ContainerNotFound => "ContainerNotFound",
            Reason::WorkerStuck => "WorkerStuck",
            Reason::StartLate => "StartLate",
            Reason::KeeperPanicked => "KeeperPanicked",
            Reason::FilesystemNotGated => "FilesystemNotGated",
            Reason::SpecialFileNotGated => "SpecialFileNotGated",
            Reason::MarkRefused => "MarkRefused",
            Reason::NodeMount => "NodeMount",
            Reason::SymlinkLoop => "SymlinkLoop",
            Reason::PathUnreadable => "PathUnreadable",
            Reason::TooManyEntries => "TooManyEntries",
            Reason::WatchLimit => "WatchLimit",
            Reason::AuditUnavailable => "AuditUnavailable",
            Reason::Unknown => "Unknown",
            Reason::DaemonUnreachable => "DaemonUnreachable",
            Reason::Arming => "Arming",
            Reason::PathAbsent => "PathAbsent",
            Reason::NotADirectory => "NotADirectory",
            Reason::NameUnknown => "NameUnknown",
            Reason::ProtectedPod => "ProtectedPod",
            Reason::Guarded => "Guarded",
            Reason::NoPods => "NoPods",
            Reason::AsSpecified => "AsSpecified",
            Reason::Accepted => "Accepted",
        }
    }

    /// What a daemon's word stands for.
    pub fn of_daemon(word: &str) -> Reason {
        OF_DAEMONS.into_iter().find(|reason| reason.word() == word).unwrap_or(Reason::Unknown)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

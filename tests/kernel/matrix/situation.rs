//! The columns of the matrix: where the guarded file lies, and who holds that place.

use serde::{Deserialize, Serialize};

/// One column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Situation {
    /// A container's overlay root, `index=off` as containerd mounts it.
    Overlay,
    /// The same with `index=on`.
    OverlayIndex,
    /// An overlay root whose container runs in a user namespace.
    UserNamespace,
    /// A tmpfs that the kubelet mounts for one pod: Secret, projected volume, in-memory emptyDir.
    Tmpfs,
    /// A directory of the node's disk in the kubelet's directory for one pod: emptyDir, ConfigMap.
    PodVolume,
    /// A directory of the node's disk that others hold too: hostPath.
    HostPath,
    /// A volume on a file system of its own that the node mounts, and others may hold: PVC.
    Ext4,
    /// The same.
    Btrfs,
    /// The same.
    Xfs,
    /// One file, bind-mounted into the container: /etc/hosts, a subPath.
    OneFile,
    /// `--root DIR` on the node's own disk.
    Directory,
    /// `--root DIR` on another file system of the node.
    DirectoryExt4,
    /// The same.
    DirectoryBtrfs,
    /// The same.
    DirectoryXfs,
}

use Situation::*;

pub(crate) const SITUATIONS: [Situation; 14] = [
    Overlay,
    OverlayIndex,
    UserNamespace,
    Tmpfs,
    PodVolume,
    HostPath,
    Ext4,
    Btrfs,
    Xfs,
    OneFile,
    Directory,
    DirectoryExt4,
    DirectoryBtrfs,
    DirectoryXfs,
];

impl Situation {
    /// The column's head in the README.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Overlay => "root",
            OverlayIndex => "root, index=on",
            UserNamespace => "root, user namespace",
            Tmpfs => "Secret",
            PodVolume => "emptyDir, ConfigMap",
            HostPath => "hostPath",
            Ext4 => "PVC ext4",
            Btrfs => "PVC btrfs",
            Xfs => "PVC xfs",
            OneFile => "one file",
            Directory => "DIR",
            DirectoryExt4 => "DIR ext4",
            DirectoryBtrfs => "DIR btrfs",
            DirectoryXfs => "DIR xfs",
        }
    }

    /// The file system that is made for it, if any.
    pub(crate) const fn made(self) -> Option<&'static str> {
        match self {
            Ext4 | DirectoryExt4 => Some("ext4"),
            Btrfs | DirectoryBtrfs => Some("btrfs"),
            Xfs | DirectoryXfs => Some("xfs"),
            _ => None,
        }
    }

    pub(crate) fn is(self, group: &[Situation]) -> bool {
        group.contains(&self)
    }
}

/// Groups, for the table.
pub(crate) const OVERLAYS: &[Situation] = &[Overlay, OverlayIndex, UserNamespace];
/// Volumes that others may hold: a rule reaches opens through the selected containers' mounts only.
pub(crate) const SHARED: &[Situation] = &[HostPath, Ext4, Btrfs, Xfs];
/// `--root DIR`.
pub(crate) const DIRECTORIES: &[Situation] = &[Directory, DirectoryExt4, DirectoryBtrfs, DirectoryXfs];
/// Without the rights of the initial user namespace.
pub(crate) const USER: &[Situation] = &[UserNamespace];
pub(crate) const ONE_FILE: &[Situation] = &[OneFile];

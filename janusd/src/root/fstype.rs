//! File system types: which are never stepped into, never asked about, and why. Pure.

/// Why a mount is not gated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// FUSE, a network file system, or an overlay with a layer on one: reading an event of it can hang the reader.
    CanHang,
    /// procfs, sysfs, cgroups and their like: no files to guard.
    Virtual,
    /// Device nodes: our own event descriptor would open the device.
    Devices,
    /// Not known to be safe.
    Unknown,
}

impl Refusal {
    /// For messages.
    pub const fn explain(self) -> &'static str {
        match self {
            Refusal::CanHang => "FUSE and network file systems are not gated: reading their events can hang the guard",
            Refusal::Virtual => "a kernel interface, not a store of files, is not gated",
            Refusal::Devices => "device nodes are not gated: the guard itself would open the device",
            Refusal::Unknown => "this file system is not known to be safe to gate",
        }
    }
}

/// Whether a file system is refused whatever its mount. What is not on a list is refused: a new network file system must
/// not be gated because nobody had heard of it.
pub fn refused(fstype: &str) -> Option<Refusal> {
    match fstype {
        "overlay" | "tmpfs" | "ramfs" | "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "f2fs" | "bcachefs" | "zfs"
        | "erofs" | "squashfs" | "iso9660" | "udf" | "vfat" | "exfat" | "ntfs3" | "jfs" | "reiserfs" => None,
        "fuse" | "fuseblk" | "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "virtiofs" | "ceph" | "afs" | "coda"
        | "ncpfs" | "lustre" | "gfs2" | "ocfs2" | "glusterfs" | "beegfs" | "orangefs" | "pvfs2" | "gpfs" | "autofs" => {
            Some(Refusal::CanHang)
        }
        "proc" | "sysfs" | "cgroup" | "cgroup2" | "mqueue" | "debugfs" | "tracefs" | "securityfs" | "bpf"
        | "pstore" | "configfs" | "efivarfs" | "binfmt_misc" | "rpc_pipefs" | "nsfs" | "selinuxfs" | "hugetlbfs" => {
            Some(Refusal::Virtual)
        }
        "devtmpfs" | "devpts" => Some(Refusal::Devices),
        _ => Some(Refusal::Unknown),
    }
}

//! What the kernel says about the file of an event, without opening anything: two calls on a descriptor that is open.
//!
//! `statx` is asked not to synchronise (`AT_STATX_DONT_SYNC`): a GETATTR to a server that never answers would put the
//! guard to sleep.

use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};

pub use super::sys::FileHandle;
use super::{Features, sys};

/// (major, minor, inode number): quick to get, but a number is given out again once its file is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode {
    /// Device, major number.
    pub major: u32,
    /// Device, minor number.
    pub minor: u32,
    /// Inode number.
    pub ino: u64,
}

/// What `statx(2)` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Which file.
    pub inode: Inode,
    /// The mount it was opened through: unique for ever where [`Features::unique_mount_ids`], else reused.
    pub mount: u64,
    /// Number of names. 0: it was unlinked.
    pub links: u32,
    /// When its inode last changed in any way: content, names, owner.
    pub changed: SystemTime,
    /// Its type.
    pub file_type: FileType,
    /// Whether it is the root of its mount (`STATX_ATTR_MOUNT_ROOT`, Linux 5.8).
    pub mount_root: bool,
}

impl Stat {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.file_type == FileType::Directory
    }
}

/// `statx(2)` of an open file (`O_PATH` will do).
///
/// # Errors
/// The kernel's.
pub fn stat(file: BorrowedFd<'_>, features: &Features) -> rustix::io::Result<Stat> {
    stat_with(file, if features.unique_mount_ids { MountId::Unique } else { MountId::Reused })
}

/// The mount id of an open file as `/proc/PID/mountinfo` writes it.
///
/// # Errors
/// The kernel's.
pub fn mountinfo_id(file: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    Ok(stat_with(file, MountId::Reused)?.mount)
}

enum MountId {
    Unique,
    Reused,
}

fn stat_with(file: BorrowedFd<'_>, mount: MountId) -> rustix::io::Result<Stat> {
    let mount = match mount {
        MountId::Unique => StatxFlags::from_bits_retain(sys::STATX_MNT_ID_UNIQUE),
        MountId::Reused => StatxFlags::MNT_ID,
    };
    let mask = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::NLINK | StatxFlags::CTIME | mount;
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, mask)?;
    Ok(Stat {
        inode: Inode { major: found.stx_dev_major, minor: found.stx_dev_minor, ino: found.stx_ino },
        mount: found.stx_mnt_id,
        links: found.stx_nlink,
        changed: u64::try_from(found.stx_ctime.tv_sec)
            .map_or(UNIX_EPOCH, |seconds| UNIX_EPOCH + Duration::new(seconds, found.stx_ctime.tv_nsec)),
        file_type: FileType::from_raw_mode(found.stx_mode.into()),
        mount_root: found.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT),
    })
}

/// The file's handle, where its file system gives one (`name_to_handle_at(2)`, `AT_HANDLE_FID`).
pub fn handle(file: BorrowedFd<'_>, features: &Features) -> Option<FileHandle> {
    if !features.handles {
        return None;
    }
    sys::file_handle(file).ok()
}

/// The file's handle and the mount it was opened through, as [`Stat::mount`] tells it, in one call: `name_to_handle_at(2)`
/// with `AT_HANDLE_MNT_ID_UNIQUE`, where the kernel has that.
pub fn handle_and_mount(file: BorrowedFd<'_>, features: &Features) -> Option<(FileHandle, u64)> {
    if !features.handles_with_mounts {
        return None;
    }
    sys::file_handle_and_mount(file).ok()
}

/// The number of a directory's entry, itself if it is a symlink.
///
/// # Errors
/// The kernel's.
pub fn inode_at(directory: BorrowedFd<'_>, entry: &[u8]) -> rustix::io::Result<Inode> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(directory, OsStr::from_bytes(entry), flags, StatxFlags::INO)?;
    Ok(Inode { major: found.stx_dev_major, minor: found.stx_dev_minor, ino: found.stx_ino })
}

/// The handle of a directory's entry, itself if it is a symlink.
pub fn handle_at(directory: BorrowedFd<'_>, entry: &[u8], features: &Features) -> Option<FileHandle> {
    if !features.handles {
        return None;
    }
    sys::file_handle_at(directory, entry).ok()
}

/// Reads the names of open files from `/proc/self/fd`.
#[derive(Debug)]
pub struct Names {
    proc_fd: OwnedFd,
    buffer: Box<[MaybeUninit<u8>]>,
}

/// One page: `d_path` fails with ENAMETOOLONG beyond it.
const LONGEST: usize = 4096;

impl Names {
    /// Opens `/proc/self/fd`.
    ///
    /// # Errors
    /// The kernel's, when no procfs is mounted at /proc.
    pub fn new() -> rustix::io::Result<Names> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc_fd = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
        Ok(Names { proc_fd, buffer: vec![MaybeUninit::uninit(); LONGEST].into_boxed_slice() })
    }

    /// The path of an open file, seen from the root of the mount tree it was opened in. Where that name is gone, the kernel
    /// adds ` (deleted)`; a file may be called so.
    ///
    /// # Errors
    /// ENAMETOOLONG beyond a page.
    pub fn of(&mut self, file: impl AsFd) -> rustix::io::Result<&[u8]> {
        let number = rustix::path::DecInt::from_fd(file);
        let number: &CStr = number.as_c_str();
        let (path, _) = rustix::fs::readlinkat_raw(&self.proc_fd, number, &mut self.buffer[..])?;
        Ok(path)
    }
}

//! What this kernel can do, found by trying: versions lie, since kernels are patched and sandboxes filter.

use std::os::fd::{AsFd, OwnedFd};

use fanotify::low_level as fan;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::{Class, Group, MarkTarget, sys};
use crate::policy::{Event, Events};

/// What the kernel offers, as far as a guard's work depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// `FAN_ENABLE_AUDIT`: responses may go to the kernel's audit log (CONFIG_AUDIT and CAP_AUDIT_WRITE).
    pub audit: bool,
    /// `FAN_REPORT_FD_ERROR`: an event that gets no descriptor is reported, not lost.
    pub fd_error: bool,
    /// `FAN_REPORT_PIDFD` with permission events.
    pub pidfd: bool,
    /// `STATX_MNT_ID_UNIQUE`.
    pub unique_mount_ids: bool,
    /// `AT_HANDLE_FID`.
    pub handles: bool,
    /// `AT_HANDLE_MNT_ID_UNIQUE` beside it (Linux 6.12), and mount ids that are unique.
    pub handles_with_mounts: bool,
    /// `FAN_MARK_IGNORE` and `FAN_MARK_EVICTABLE`: the kernel can be told to answer for files that no rule denies.
    pub ignore_marks: bool,
}

impl Features {
    /// Tries each. Needs CAP_SYS_ADMIN; without it all fanotify features read as absent.
    pub fn probe() -> Features {
        Features::probe_leaving(&mut Vec::new())
    }

    /// The same, leaving the groups that were tried: to close one takes the kernel as long as it takes all marks of the
    /// machine that have just been removed to be forgotten (`synchronize_srcu`). That is 20 ms, or, among many who open
    /// guarded files, more than ten seconds.
    pub fn probe_leaving(left: &mut Vec<OwnedFd>) -> Features {
        let mut init = |extra| {
            let group = Group::init(Group::base_flags(Class::Content) | extra);
            group.map(|group| left.push(group)).is_ok()
        };
        let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
        let unique = StatxFlags::from_bits_retain(sys::STATX_MNT_ID_UNIQUE);
        let mount = |root: &OwnedFd| {
            rustix::fs::statx(root, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, unique)
                .ok()
                .filter(|found| found.stx_mask & sys::STATX_MNT_ID_UNIQUE != 0)
                .map(|found| found.stx_mnt_id)
        };
        let tmpfs = detached_tmpfs().ok();
        let (audit, fd_error) = (init(fan::FAN_ENABLE_AUDIT), init(sys::FAN_REPORT_FD_ERROR));
        let pidfd = init(libc::FAN_REPORT_PIDFD);
        Features {
            audit,
            fd_error,
            pidfd,
            unique_mount_ids: root.as_ref().and_then(mount).is_some(),
            ignore_marks: ignore_marks(left).is_ok(),
            // Asked of a tmpfs of our own: the root's file system may be one that has no handles.
            handles: tmpfs.as_ref().is_some_and(|tmpfs| sys::file_handle(tmpfs.as_fd()).is_ok()),
            handles_with_mounts: tmpfs.as_ref().is_some_and(|tmpfs| {
                let told = sys::file_handle_and_mount(tmpfs.as_fd()).map(|(_, mount)| mount).ok();
                told.is_some() && told == mount(tmpfs)
            }),
        }
    }
}

/// Whether marks of each kind are taken for each event, tried on a tmpfs that nobody else can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// Permission events on one inode.
    pub inode: bool,
    /// On a directory and its children.
    pub directory: bool,
    /// On a mount.
    pub mount: bool,
    /// On a file system.
    pub filesystem: bool,
    /// `FAN_OPEN_EXEC_PERM`.
    pub execute: bool,
    /// `FAN_PRE_ACCESS` in a pre-content group, on tmpfs.
    pub pre_content: bool,
}

impl Marks {
    /// Tries each on a detached tmpfs.
    ///
    /// # Errors
    /// Why no group or no tmpfs could be had.
    pub fn probe() -> std::io::Result<Marks> {
        let group = Group::from_fd(Group::init(Group::base_flags(Class::Content))?);
        let tmpfs = detached_tmpfs()?;
        let open = Events::NONE.with(Event::Open).with(Event::Access);
        let taken = |target, events| group.mark(target, events, tmpfs.as_fd()).is_ok();
        let pre = Group::init(Group::base_flags(Class::PreContent));
        Ok(Marks {
            inode: taken(MarkTarget::Inode, open),
            directory: taken(MarkTarget::Directory, open),
            mount: taken(MarkTarget::Mount, open),
            filesystem: taken(MarkTarget::Filesystem, open),
            execute: taken(MarkTarget::Filesystem, Events::NONE.with(Event::Execute)),
            pre_content: pre.is_ok_and(|pre| {
                sys::fanotify_mark(pre.as_fd(), fan::FAN_MARK_ADD, sys::FAN_PRE_ACCESS, tmpfs.as_fd()).is_ok()
            }),
        })
    }
}

/// Tries both kinds of ignore mark.
fn ignore_marks(left: &mut Vec<OwnedFd>) -> std::io::Result<()> {
    let group = Group::init(Group::base_flags(Class::Content))?;
    left.push(group.try_clone()?);
    let (group, tmpfs) = (Group::from_fd(group), detached_tmpfs()?);
    let open = Events::NONE.with(Event::Open);
    group.leave_to_another(MarkTarget::Directory, open, tmpfs.as_fd())?;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&tmpfs, c"probe", flags, Mode::RUSR)?;
    // Reopened: a file that is open for writing takes no ignore mark that does not survive modification.
    drop(file);
    let file = rustix::fs::openat(&tmpfs, c"probe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    group.ignore_file(open, file.as_fd())
}

/// A tmpfs that is mounted nowhere: marks on it can reach nobody.
pub(super) fn detached_tmpfs() -> std::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

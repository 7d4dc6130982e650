//! The unsafe room: what neither rustix nor fanotify-rs offers safely.
//!
//! Every function here is safe to call. Each block states what it assumes. Constants carry the kernel version that
//! brought them; whether the running kernel knows them is probed ([`super::probe`]), never inferred from a version.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_uint, c_ushort};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use fanotify::low_level;
use rustix::io::Errno;
use seccompiler::BpfProgramRef;

/// Report why no file descriptor could be made for an event instead of losing the event (Linux 6.13). Not in libc.
pub(crate) const FAN_REPORT_FD_ERROR: u32 = 0x2000;
/// The mark's mask is an ignore mask, with its own rules for directories and children (Linux 6.0).
pub(crate) const FAN_MARK_IGNORE: u32 = 0x400;
/// The mark does not keep its inode in memory (Linux 5.19).
pub(crate) const FAN_MARK_EVICTABLE: u32 = 0x200;
/// Ask before content is accessed (Linux 6.14). Not in libc.
pub(crate) const FAN_PRE_ACCESS: u64 = 0x0010_0000;
/// `statx` mask bit: `stx_mnt_id` is an identifier that is never reused (Linux 6.8). Not in rustix.
pub(crate) const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
/// `name_to_handle_at` flag: the mount id is the one of [`STATX_MNT_ID_UNIQUE`] (Linux 6.12). Not in libc.
const AT_HANDLE_MNT_ID_UNIQUE: c_int = 1;
/// The largest file handle (`MAX_HANDLE_SZ` of `name_to_handle_at(2)`), bytes.
const MAX_HANDLE: usize = 128;

/// A new fanotify group, `fanotify_init(2)`.
///
/// # Errors
/// The kernel's: EPERM without CAP_SYS_ADMIN, EMFILE at `fs.fanotify.max_user_groups`, EINVAL for an unknown flag.
pub(crate) fn fanotify_init(flags: u32, event_flags: u32) -> io::Result<OwnedFd> {
    let raw = low_level::fanotify_init(flags, event_flags)?;
    // SAFETY: the call succeeded, so `raw` is an open descriptor that nothing else in this process knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes ownership of the descriptor that an event record carries.
///
/// The one caller is the group's reader, which hands in each number once, straight from a record that the kernel has
/// just written.
pub(crate) fn adopt_event_fd(raw: RawFd) -> Option<OwnedFd> {
    if raw < 0 {
        return None;
    }
    // SAFETY: the kernel installed `raw` for this event before it wrote the record, the record was read once (the
    // queue hands out each event once), and the caller converts each record once: nothing else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// `read(2)` into words that other threads may look at meanwhile.
///
/// # Errors
/// The kernel's.
pub(crate) fn read_shared(file: BorrowedFd<'_>, words: &[AtomicU64]) -> io::Result<usize> {
    let room = size_of_val(words);
    // SAFETY: `words` is `room` writable bytes for the duration of the call: atomics may be written to behind a shared
    // reference. Others load them as whole words; whatever they find there is a valid u64.
    let read = unsafe { libc::read(file.as_raw_fd(), words.as_ptr().cast_mut().cast(), room) };
    usize::try_from(read).map_err(|_negative| io::Error::last_os_error())
}

/// The CPU time that a process has used; `None`: there is none of that number, or it cannot be told.
pub(crate) fn cpu_time(pid: i32) -> Option<Duration> {
    /// `CPUCLOCK_SCHED` of the kernel, whose macro for such clocks no library has.
    const SCHED: libc::clockid_t = 2;
    let clock = (!pid << 3) | SCHED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable for the duration of the call; a clock that is none is refused.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
}

/// Closes many descriptors, runs of neighbours with one `close_range(2)` each.
///
/// The kernel numbers the events of a batch upwards, so a whole batch is usually one or two runs.
pub(crate) fn close_all(files: &mut Vec<OwnedFd>) {
    files.sort_unstable_by_key(AsRawFd::as_raw_fd);
    let mut files = files.drain(..).map(IntoRawFd::into_raw_fd).peekable();
    while let Some(first) = files.next() {
        let mut last = first;
        while files.next_if_eq(&(last + 1)).is_some() {
            last += 1;
        }
        // SAFETY: every number in first..=last came out of an OwnedFd that was consumed above, so each is open, ours,
        // and dropped nowhere else. close_range(2) reads no memory.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first as c_uint, last as c_uint, 0 as c_uint) };
        if closed != 0 {
            for raw in first..=last {
                // SAFETY: as above; close_range refused the whole range (ENOSYS under a seccomp filter) and closed none.
                drop(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
    }
}

/// The identity of a file as its file system gives it: `name_to_handle_at(2)` with `AT_HANDLE_FID`.
///
/// Stable over rename and overlay copy-up, and new after a re-create, which (device, inode number) is not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileHandle {
    kind: c_int,
    len: u8,
    bytes: [u8; MAX_HANDLE],
}

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileHandle({}, {:02x?})", self.kind, &self.bytes[..usize::from(self.len)])
    }
}

#[repr(C)]
struct RawHandle {
    handle_bytes: c_uint,
    handle_type: c_int,
    f_handle: [u8; MAX_HANDLE],
}

/// The handle of an open file.
///
/// # Errors
/// EOPNOTSUPP where the file system gives none, EINVAL on kernels before 6.5 (no `AT_HANDLE_FID`).
pub(crate) fn file_handle(file: BorrowedFd<'_>) -> io::Result<FileHandle> {
    name_to_handle(file, c"", libc::AT_EMPTY_PATH).map(|(handle, _)| handle)
}

/// The handle of an open file, and the unique id of the mount it was opened through.
///
/// # Errors
/// As [`file_handle`]; EINVAL on kernels before 6.12.
pub(crate) fn file_handle_and_mount(file: BorrowedFd<'_>) -> io::Result<(FileHandle, u64)> {
    name_to_handle(file, c"", libc::AT_EMPTY_PATH | AT_HANDLE_MNT_ID_UNIQUE)
}

/// The handle of a directory's entry; symlinks are not followed.
///
/// # Errors
/// As [`file_handle`]; EINVAL for a name with a NUL in it.
pub(crate) fn file_handle_at(directory: BorrowedFd<'_>, entry: &[u8]) -> io::Result<FileHandle> {
    name_to_handle(directory, &CString::new(entry)?, 0).map(|(handle, _)| handle)
}

/// Beside the handle: the mount's id, of whichever kind `flags` asks for.
fn name_to_handle(at: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<(FileHandle, u64)> {
    let mut raw = RawHandle { handle_bytes: MAX_HANDLE as c_uint, handle_type: 0, f_handle: [0; MAX_HANDLE] };
    // An int, or with AT_HANDLE_MNT_ID_UNIQUE a u64.
    let mut mount: u64 = 0;
    // SAFETY: `raw` has the layout of struct file_handle with MAX_HANDLE bytes behind its header and says so in
    // handle_bytes, so the kernel writes at most that much; `mount` has room for either kind of id; `path` is
    // NUL-terminated; all of them outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            at.as_raw_fd(),
            path.as_ptr(),
            &raw mut raw,
            &raw mut mount,
            flags | libc::AT_HANDLE_FID,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let len = u8::try_from(raw.handle_bytes).unwrap_or(MAX_HANDLE as u8).min(MAX_HANDLE as u8);
    let mut bytes = [0; MAX_HANDLE];
    bytes[..usize::from(len)].copy_from_slice(&raw.f_handle[..usize::from(len)]);
    Ok((FileHandle { kind: raw.handle_type, len, bytes }, mount))
}

/// `fanotify_mark(2)` on the object behind `target`, named through `/proc/self/fd`, so that no path of a container is
/// resolved here.
///
/// # Errors
/// The kernel's.
pub(crate) fn fanotify_mark(group: BorrowedFd<'_>, flags: u32, mask: u64, target: BorrowedFd<'_>) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", target.as_raw_fd());
    low_level::fanotify_mark(group.as_raw_fd(), flags, mask, low_level::AT_FDCWD, path.as_str())
}

/// `fanotify_mark(2)` on an open file itself: a null path and the file as `dirfd` (`fanotify_mark(2)`). fanotify-rs always
/// passes a path.
///
/// # Errors
/// The kernel's.
pub(crate) fn fanotify_mark_file(group: BorrowedFd<'_>, flags: u32, mask: u64, file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open for the duration of the call, and a null path is what the call documents for
    // naming the object by dirfd; no memory of ours is read or written.
    let done = unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, file.as_raw_fd(), std::ptr::null()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this process might execute a file, `execveat(2)` with `AT_EXECVE_CHECK` (Linux 6.14): asks as an exec does, and
/// executes nothing. On the inside of a filter it is refused as any other exec.
///
/// # Errors
/// The kernel's: EINVAL where it does not know the flag.
pub(crate) fn may_execute(directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    const AT_EXECVE_CHECK: c_int = 0x1_0000;
    let (arguments, environment) = ([name.as_ptr(), std::ptr::null()], [std::ptr::null::<std::ffi::c_char>()]);
    // SAFETY: the name ends with a zero, both arrays with a null pointer. A kernel that does not know the flag refuses the
    // call, so this process is never replaced.
    let done = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            directory.as_raw_fd(),
            name.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            AT_EXECVE_CHECK,
        )
    };
    if done == 0 { Ok(()) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)) }
}

/// Removes all marks of one kind (`flags` is `FAN_MARK_FLUSH` and at most one kind).
///
/// # Errors
/// The kernel's.
pub(crate) fn fanotify_flush(group: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    low_level::fanotify_mark(group.as_raw_fd(), flags, 0, low_level::AT_FDCWD, "/")
}

/// Whether the kernel's log tells of calls that a filter refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusals {
    /// It does.
    Told,
    /// It does not.
    Untold,
}

/// Filters the system calls of every thread of this process, `seccomp(2)`, for good. seccompiler makes filters and can
/// install them, but never asks the kernel to tell of what they refuse.
///
/// # Errors
/// The kernel's: EACCES without `no_new_privs` and CAP_SYS_ADMIN, EINVAL for a kernel without filters or a filter that it
/// cannot read, ESRCH when a thread has filters of its own.
pub(crate) fn filter_calls(program: BpfProgramRef<'_>, refusals: Refusals) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|&seccompiler::sock_filter { code, jt, jf, k }| libc::sock_filter { code, jt, jf, k })
        .collect();
    let len = c_ushort::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let flags = match refusals {
        Refusals::Told => libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG,
        Refusals::Untold => libc::SECCOMP_FILTER_FLAG_TSYNC,
    };
    // SAFETY: `program` points to `len` instructions in `filter`; both outlive the call, which copies them and writes
    // nothing of ours.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match done {
        0 => Ok(()),
        // The number of the thread that could not follow.
        1.. => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn close_all_closes_each_and_nothing_else() {
        let keep = File::open("/dev/null").unwrap();
        let mut files: Vec<OwnedFd> = (0..40).map(|_| File::open("/dev/null").unwrap().into()).collect();
        // A hole in the run, owned by somebody else.
        let hole = files.swap_remove(20);
        let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        close_all(&mut files);
        assert!(files.is_empty());
        for raw in numbers {
            let target = std::fs::read_link(format!("/proc/self/fd/{raw}"));
            // Another test's thread may have taken the number since; /dev/null it is not.
            assert!(target.map_or(true, |t| t != std::path::Path::new("/dev/null")), "fd {raw} is still open");
        }
        assert!(keep.metadata().is_ok());
        assert!(File::from(hole).metadata().is_ok());
    }

    #[test]
    fn handle_follows_the_file_not_the_name() {
        use std::os::fd::AsFd;
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "x").unwrap();
        let before = file_handle(File::open(&a).unwrap().as_fd()).unwrap();
        std::fs::rename(&a, &b).unwrap();
        assert_eq!(before, file_handle(File::open(&b).unwrap().as_fd()).unwrap());
        std::fs::remove_file(&b).unwrap();
        std::fs::write(&a, "x").unwrap();
        assert_ne!(before, file_handle(File::open(&a).unwrap().as_fd()).unwrap());
    }
}

//! Kernel calls for which there is no safe wrapper: file handles, io_uring, execveat, mmap, swapon, ptrace;
//! and a fanotify group without any code of janusd.
//!
//! Guarantee: each function is safe to call with any argument; what it makes, it unmaps and closes.
#![allow(unsafe_code, reason = "the only module of the tests that makes such calls; each states why it is sound")]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

/// A file's handle, as `name_to_handle_at(2)` gives it, decodable.
pub(crate) struct Handle(Box<FileHandle>);

#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

fn c_path(path: &OsStr) -> io::Result<CString> {
    Ok(CString::new(path.as_bytes())?)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = i32::try_from(result).map_err(io::Error::other)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn done(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_negative| io::Error::last_os_error())
}

/// The handle of what `path` names.
pub(crate) fn handle_of(path: &OsStr) -> io::Result<Handle> {
    let path = c_path(path)?;
    let mut handle = Box::new(FileHandle { bytes: 128, kind: 0, handle: [0; 128] });
    let mut mount = 0_i32;
    // SAFETY: `path` ends with a zero; `handle` has room for the `bytes` that it announces; `mount` is an int.
    done(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut *handle,
            &raw mut mount,
            libc::AT_SYMLINK_FOLLOW,
        )
    })?;
    Ok(Handle(handle))
}

/// Opens a handle for reading, on the mount that `mount` lies on.
pub(crate) fn open_handle(mount: BorrowedFd<'_>, handle: &Handle) -> io::Result<OwnedFd> {
    // SAFETY: the handle is one that the kernel has filled, of the length that it says.
    owned(unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const *handle.0, libc::O_RDONLY)
    })
}

/// Executes what `file` refers to in place of this process. Returns only when refused.
pub(crate) fn execute_descriptor(file: BorrowedFd<'_>) -> io::Error {
    let (name, arguments) = (c"program".as_ptr(), [c"program".as_ptr(), ptr::null()]);
    let environment = [ptr::null::<libc::c_char>()];
    debug_assert!(!name.is_null());
    // SAFETY: the path is the empty string; both arrays end with a null pointer and hold strings that end with a zero.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// The first `length` bytes of a file, read through a private mapping of it.
pub(crate) fn read_mapped(file: BorrowedFd<'_>, length: usize, executable: bool) -> io::Result<Vec<u8>> {
    let mapping = Mapping::new(file, 0, length, libc::PROT_READ | if executable { libc::PROT_EXEC } else { 0 }, true)?;
    // SAFETY: the mapping is at least `length` long and readable; the tests' files are not truncated meanwhile.
    Ok(unsafe { std::slice::from_raw_parts(mapping.start.cast::<u8>(), length) }.to_vec())
}

/// A mapping that is held until it is dropped: where it begins and its length rounded up to pages.
pub(crate) struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only read or unmapped through this.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(crate) fn of(file: BorrowedFd<'_>) -> io::Result<Mapping> {
        Mapping::new(file, 0, 4096, libc::PROT_READ, true)
    }

    fn new(file: BorrowedFd<'_>, offset: i64, length: usize, rights: i32, private: bool) -> io::Result<Mapping> {
        let sharing = if private { libc::MAP_PRIVATE } else { libc::MAP_SHARED | libc::MAP_POPULATE };
        // SAFETY: a new mapping, at a place that the kernel chooses: it overlaps nothing of ours.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, rights, sharing, file.as_raw_fd(), offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start, length })
    }

    fn at<T>(&self, offset: u32) -> *mut T {
        assert!(offset as usize + size_of::<T>() <= self.length, "outside of the mapping");
        self.start.wrapping_byte_add(offset as usize).cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and no reference into it is left.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// Makes the kernel open a file as swap space. A file that is none is refused, after it was opened, with EINVAL.
pub(crate) fn swap_on(path: &OsStr) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: `path` ends with a zero.
    done(unsafe { libc::syscall(libc::SYS_swapon, path.as_ptr(), 0) }).map(drop)
}

/// `struct io_uring_params`, up to what is used of it.
#[repr(C)]
#[derive(Default)]
struct RingParameters {
    submission_entries: u32,
    completion_entries: u32,
    flags: u32,
    thread_cpu: u32,
    thread_idle: u32,
    features: u32,
    workers: u32,
    reserved: [u32; 3],
    submission: RingOffsets,
    completion: RingOffsets,
}

#[repr(C)]
#[derive(Default)]
struct RingOffsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    /// Submission: flags. Completion: overflow.
    fifth: u32,
    /// Submission: dropped. Completion: the entries.
    sixth: u32,
    /// Submission: the index array. Completion: flags.
    seventh: u32,
    reserved: u32,
    user: u64,
}

/// `struct io_uring_sqe`.
#[repr(C)]
#[derive(Default)]
struct Submission {
    operation: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    operation_flags: u32,
    user: u64,
    rest: [u64; 3],
}

/// `struct io_uring_cqe`.
#[repr(C)]
struct Completion {
    user: u64,
    result: i32,
    flags: u32,
}

const OPERATION_OPENAT: u8 = 18;
const OPERATION_READ: u8 = 22;

/// `openat` by an io_uring.
pub(crate) fn ring_open(path: &OsStr) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let number = ring(&Submission {
        operation: OPERATION_OPENAT,
        fd: libc::AT_FDCWD,
        address: path.as_ptr().expose_provenance() as u64,
        operation_flags: libc::O_RDONLY.cast_unsigned(),
        ..Submission::default()
    })?;
    owned(number.into())
}

/// `read` by an io_uring, from the beginning of the file.
pub(crate) fn ring_read(file: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; 4096];
    let read = ring(&Submission {
        operation: OPERATION_READ,
        fd: file.as_raw_fd(),
        address: buffer.as_mut_ptr().expose_provenance() as u64,
        length: 4096,
        ..Submission::default()
    })?;
    buffer.truncate(usize::try_from(read).map_err(io::Error::other)?);
    Ok(buffer)
}

/// One operation by an io_uring of its own, to its end.
fn ring(submission: &Submission) -> io::Result<i32> {
    let mut parameters = RingParameters::default();
    // SAFETY: the kernel fills a structure that has the layout of `struct io_uring_params`.
    let ring = owned(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut parameters) })?;
    let map = |offset| {
        use std::os::fd::AsFd;
        Mapping::new(ring.as_fd(), offset, 4096, libc::PROT_READ | libc::PROT_WRITE, false)
    };
    // With one entry each fits into a page. Both rings, then the entries that are submitted.
    let (rings, completions, entries) = (map(0)?, map(0x800_0000)?, map(0x1000_0000)?);
    let load = |mapping: &Mapping, at| {
        // SAFETY: `at` is within the mapping, aligned, and shared with the kernel as an atomic.
        unsafe { AtomicU32::from_ptr(mapping.at::<u32>(at)) }.load(Ordering::Acquire)
    };
    let tail = load(&rings, parameters.submission.tail);
    // SAFETY: entry 0 and slot 0 of the index array exist, and the kernel looks at neither before the tail moves.
    unsafe {
        ptr::copy_nonoverlapping(ptr::from_ref(submission), entries.at::<Submission>(0), 1);
        rings.at::<u32>(parameters.submission.seventh).write(0);
        AtomicU32::from_ptr(rings.at::<u32>(parameters.submission.tail)).store(tail + 1, Ordering::Release);
    }
    const GET_EVENTS: u32 = 1;
    // SAFETY: one entry was submitted, one completion is awaited, no signal mask is given. What the entry points to
    // outlives this call, which returns when the operation has ended.
    done(unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1_u32,
            1_u32,
            GET_EVENTS,
            ptr::null::<libc::c_void>(),
            0_usize,
        )
    })?;
    let head = load(&completions, parameters.completion.head);
    if head == load(&completions, parameters.completion.tail) {
        return Err(io::Error::other("no completion"));
    }
    // SAFETY: the completion at the head, entry 0, is there: the tail says so.
    let result = unsafe { completions.at::<Completion>(parameters.completion.sixth).read() }.result;
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// `truncate(2)` to nothing, by path.
pub(crate) fn truncate(path: &OsStr) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: `path` ends with a zero.
    done(unsafe { libc::syscall(libc::SYS_truncate, path.as_ptr(), 0_i64) }).map(drop)
}

/// A thread of another process that stands still until this is dropped, wherever it was. To be dropped by the thread that
/// made it.
pub(crate) struct Stopped {
    thread: libc::pid_t,
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Stopped {
    pub(crate) fn stop(thread: u32) -> io::Result<Stopped> {
        let thread = thread.cast_signed();
        trace(libc::PTRACE_SEIZE, thread)?;
        let stopped = Stopped { thread, _not_send: std::marker::PhantomData };
        trace(libc::PTRACE_INTERRUPT, thread)?;
        let mut status = 0;
        // SAFETY: `status` is an int; the thread is traced by this one.
        if unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } == thread && libc::WIFSTOPPED(status) {
            Ok(stopped)
        } else {
            Err(io::Error::other(format!("not stopped: status {status:#x}")))
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Gone with its process: nothing to be let go.
        let _gone = trace(libc::PTRACE_DETACH, self.thread);
    }
}

fn trace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    // SAFETY: none of the requests that are made here reads or writes memory of ours.
    let result =
        unsafe { libc::ptrace(request, thread, ptr::null_mut::<libc::c_void>(), ptr::null_mut::<libc::c_void>()) };
    done(result).map(|_zero| ())
}

/// What a bare group asks about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Opens of this file.
    Inode,
    /// Execs of it.
    Execute,
    /// Both: an exec asks twice.
    Both,
}

/// A fanotify group that allows whatever it is asked, for comparison: no code of janusd is in it.
pub(crate) struct BareGroup(OwnedFd);

/// Events that were read, and their answers.
#[derive(Default)]
pub(crate) struct BareEvents {
    buffer: Vec<u64>,
    answers: Vec<libc::fanotify_response>,
}

/// Records in one read.
const BARE_BATCH: usize = 256;

impl BareGroup {
    pub(crate) fn new() -> io::Result<BareGroup> {
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_UNLIMITED_QUEUE;
        let files = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
        // SAFETY: takes no pointer.
        let number = unsafe { libc::fanotify_init(flags, files.cast_unsigned()) };
        owned(number.into()).map(BareGroup)
    }

    pub(crate) fn mark(&self, path: &Path, mark: Mark) -> io::Result<()> {
        let path = c_path(path.as_os_str())?;
        let mask = match mark {
            Mark::Inode => libc::FAN_OPEN_PERM,
            Mark::Execute => libc::FAN_OPEN_EXEC_PERM,
            Mark::Both => libc::FAN_OPEN_PERM | libc::FAN_OPEN_EXEC_PERM,
        };
        // SAFETY: the path ends with a zero and outlives the call.
        let result =
            unsafe { libc::fanotify_mark(self.0.as_raw_fd(), libc::FAN_MARK_ADD, mask, libc::AT_FDCWD, path.as_ptr()) };
        done(result.into()).map(drop)
    }

    /// What is queued; nothing, if nothing is.
    pub(crate) fn read(&self, events: &mut BareEvents) -> io::Result<()> {
        const RECORD: usize = size_of::<libc::fanotify_event_metadata>();
        events.buffer.resize(BARE_BATCH * RECORD / 8, 0);
        events.answers.clear();
        // SAFETY: the buffer is that long, and any bytes make u64s.
        let read =
            unsafe { libc::read(self.0.as_raw_fd(), events.buffer.as_mut_ptr().cast(), events.buffer.len() * 8) };
        let read = match done(read as libc::c_long) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        for record in events.buffer[..read / 8].chunks_exact(RECORD / 8) {
            // event_len, vers and metadata_len; mask; fd and pid.
            let fd = (record[2] & 0xffff_ffff) as u32;
            let answer = libc::fanotify_response { fd: fd.cast_signed(), response: libc::FAN_ALLOW };
            events.answers.push(answer);
        }
        Ok(())
    }

    pub(crate) fn allow_one_by_one(&self, events: &BareEvents) -> io::Result<()> {
        for answer in &events.answers {
            // SAFETY: one response, read by the kernel.
            let written = unsafe {
                libc::write(self.0.as_raw_fd(), ptr::from_ref(answer).cast(), size_of::<libc::fanotify_response>())
            };
            done(written as libc::c_long)?;
            // SAFETY: the kernel made this descriptor for the event, which nobody else knows of.
            unsafe { libc::close(answer.fd) };
        }
        Ok(())
    }

    pub(crate) fn allow_all(&self, events: &BareEvents) -> io::Result<()> {
        for answers in events.answers.chunks(BARE_BATCH) {
            let segments: Vec<libc::iovec> = answers
                .iter()
                .map(|answer| libc::iovec {
                    iov_base: ptr::from_ref(answer).cast_mut().cast(),
                    iov_len: size_of::<libc::fanotify_response>(),
                })
                .collect();
            // SAFETY: each segment is one response, which the kernel reads.
            let written = unsafe { libc::writev(self.0.as_raw_fd(), segments.as_ptr(), segments.len() as i32) };
            done(written as libc::c_long)?;
        }
        // Numbers that the kernel gives one after the other are neighbours, but for what this process opened between.
        let mut numbers = events.answers.iter().map(|answer| answer.fd).peekable();
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| *next == last + 1) {
                last = next;
            }
            // SAFETY: the kernel made these descriptors for the events, which nobody else knows of.
            unsafe { libc::close_range(first.cast_unsigned(), last.cast_unsigned(), 0) };
        }
        Ok(())
    }
}

impl std::os::fd::AsFd for BareGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

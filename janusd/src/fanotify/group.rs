//! One fanotify group: the kernel's queue of questions that one guard answers.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use fanotify::low_level as fan;
use rustix::io::Errno;

use super::answer::{BATCH, Sink};
use super::record::{METADATA, Record, RecordError, Records};
use super::{Features, sys};
use crate::policy::{Event, Events};

/// The notification class of a group (`fanotify_init(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `FAN_CLASS_CONTENT`: permission events.
    Content,
    /// `FAN_CLASS_PRE_CONTENT`: permission and pre-content events. Probed, not used.
    PreContent,
}

/// What a mark is laid on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MarkTarget {
    /// One file or directory.
    Inode,
    /// One directory and its direct children (`FAN_EVENT_ON_CHILD`).
    Directory,
    /// A mount (`FAN_MARK_MOUNT`).
    Mount,
    /// A whole file system (`FAN_MARK_FILESYSTEM`).
    Filesystem,
}

impl MarkTarget {
    pub(super) const fn flags(self) -> u32 {
        match self {
            MarkTarget::Inode | MarkTarget::Directory => fan::FAN_MARK_INODE,
            MarkTarget::Mount => fan::FAN_MARK_MOUNT,
            MarkTarget::Filesystem => fan::FAN_MARK_FILESYSTEM,
        }
    }

    /// The mask of a mark that is laid or taken away as a whole.
    pub(super) fn mask(self, events: Events) -> u64 {
        bits(events)
            | match self {
                MarkTarget::Inode => 0,
                MarkTarget::Directory => fan::FAN_ONDIR | fan::FAN_EVENT_ON_CHILD,
                MarkTarget::Mount | MarkTarget::Filesystem => fan::FAN_ONDIR,
            }
    }

    /// The mask to take `surplus` away from a mark of which `rest` stays. The flags about directories and children are the
    /// mark's, not an event's: named beside a surplus event they would go for the rest as well.
    fn surplus(self, surplus: Events, rest: Events) -> u64 {
        if rest.is_empty() { self.mask(surplus) } else { bits(surplus) }
    }
}

fn bits(events: Events) -> u64 {
    let bit = |event| match event {
        Event::Open => fan::FAN_OPEN_PERM,
        Event::Access => fan::FAN_ACCESS_PERM,
        Event::Execute => fan::FAN_OPEN_EXEC_PERM,
    };
    Event::ALL.into_iter().filter(|e| events.contains(*e)).map(bit).fold(0, |a, b| a | b)
}

/// A group could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// EMFILE of `fanotify_init(2)` while descriptors are left: our user's limit of groups.
    #[error("no more fanotify groups: fs.fanotify.max_user_groups is reached (a guard needs two)")]
    GroupLimit,
    /// EMFILE of `fanotify_init(2)` and of anything else, or ENFILE.
    #[error("no descriptor for a fanotify group: RLIMIT_NOFILE or fs.file-max is reached")]
    DescriptorLimit,
    /// EPERM.
    #[error("fanotify permission events need CAP_SYS_ADMIN")]
    Permission,
    /// ENOSYS or EINVAL: the kernel was built without `CONFIG_FANOTIFY_ACCESS_PERMISSIONS`.
    #[error("this kernel has no fanotify permission events (CONFIG_FANOTIFY_ACCESS_PERMISSIONS)")]
    Unsupported,
    /// Anything else.
    #[error("fanotify_init: {0}")]
    Other(#[source] std::io::Error),
}

/// See [`highest_number`].
static HIGHEST: AtomicI32 = AtomicI32::new(-1);

/// The highest number that an event of any group has had in this process; negative: there was none.
pub fn highest_number() -> i32 {
    HIGHEST.load(Ordering::Relaxed)
}

/// Reading the queue failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nothing is queued.
    #[error("the queue is empty")]
    Empty,
    /// `read(2)` failed; the kernel denied the event at the head of the queue by itself.
    #[error("read of the fanotify group: {0}")]
    Read(Errno),
    /// What was read is not what we were built for.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A process that waits for an answer.
///
/// The obligation to answer lies with whoever holds this: dropping it closes the descriptor and leaves the opener
/// blocked. Only [`crate::guard`]'s inbox holds events, and its own drop answers them.
#[derive(Debug)]
pub struct PermissionEvent {
    /// The file, opened for us by the kernel; its number names the event.
    pub file: OwnedFd,
    /// The process (see [`super::record::Record::pid`]).
    pub pid: i32,
    /// What it asks.
    pub event: Event,
}

/// What one read brought besides events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Permission events for which the kernel could make no descriptor; it denied them by itself.
    pub denied_by_kernel: u32,
}

/// One fanotify group, or a share of it: the group lives until the last one is dropped, which closes the descriptor and
/// so *allows* everything that is still pending.
#[derive(Debug)]
pub struct Group {
    /// One descriptor for all shares: with hundreds of guards they are scarce.
    fd: Arc<OwnedFd>,
    audit: bool,
}

impl Group {
    /// Makes a group that answers permission events, never blocks on read, and loses no event to a full queue
    /// (`FAN_UNLIMITED_QUEUE`: an overflow would *allow* silently). `audit`: with `FAN_ENABLE_AUDIT` if the kernel lets us.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn new(features: &Features, audit: bool) -> Result<Group, GroupError> {
        let audit = audit && features.audit;
        let mut flags = Group::base_flags(Class::Content);
        if audit {
            flags |= fan::FAN_ENABLE_AUDIT;
        }
        if features.fd_error {
            flags |= sys::FAN_REPORT_FD_ERROR;
        }
        let fd = Group::init(flags).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::MFILE) if descriptors_are_left() => GroupError::GroupLimit,
            Some(Errno::MFILE | Errno::NFILE) => GroupError::DescriptorLimit,
            Some(Errno::PERM) => GroupError::Permission,
            Some(Errno::INVAL | Errno::NOSYS) => GroupError::Unsupported,
            _ => GroupError::Other(error),
        })?;
        Ok(Group { fd: Arc::new(fd), audit })
    }

    pub(super) fn base_flags(class: Class) -> u32 {
        let class = match class {
            Class::Content => fan::FAN_CLASS_CONTENT,
            Class::PreContent => fan::FAN_CLASS_PRE_CONTENT,
        };
        class | fan::FAN_CLOEXEC | fan::FAN_NONBLOCK | fan::FAN_UNLIMITED_QUEUE | fan::FAN_UNLIMITED_MARKS
    }

    /// Event descriptors: O_RDONLY (with O_RDWR an exec of the file fails with ETXTBSY) and O_NONBLOCK (a FIFO's event
    /// descriptor would wait for a writer inside our read).
    pub(super) fn init(flags: u32) -> std::io::Result<OwnedFd> {
        let event_flags = fan::O_RDONLY | fan::O_LARGEFILE | fan::O_CLOEXEC | fan::O_NONBLOCK;
        sys::fanotify_init(flags, event_flags.cast_unsigned())
    }

    /// A share of a group that another process has made, as [`Group::new`] makes them.
    pub(crate) fn adopt(fd: OwnedFd, audit: bool) -> Group {
        Group { fd: Arc::new(fd), audit }
    }

    pub(super) fn from_fd(fd: OwnedFd) -> Group {
        Group { fd: Arc::new(fd), audit: false }
    }

    /// Whether responses may carry `FAN_AUDIT`.
    pub fn audits(&self) -> bool {
        self.audit
    }

    /// Another share of the same group.
    ///
    /// # Errors
    /// None; whoever holds on to a group is ready for what a duplicate would cost.
    pub fn try_clone(&self) -> std::io::Result<Group> {
        Ok(Group { fd: self.fd.clone(), audit: self.audit })
    }

    /// Reads what is queued, up to [`BATCH`] events, into `events`. Takes one file descriptor an event. `buffer` keeps what
    /// was read until [`ReadBuffer::clear`].
    ///
    /// # Errors
    /// [`ReadError`]; events read before a bad record are in `events` and must be answered.
    pub fn read(&self, buffer: &mut ReadBuffer, events: &mut Vec<PermissionEvent>) -> Result<ReadReport, ReadError> {
        let read = loop {
            match sys::read_shared(self.fd.as_fd(), &buffer.shared.0) {
                Ok(0) => return Err(ReadError::Empty),
                Ok(read) => break read,
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    Some(Errno::AGAIN) => return Err(ReadError::Empty),
                    errno => return Err(ReadError::Read(errno.unwrap_or(Errno::IO))),
                },
            }
        };
        let mut report = ReadReport::default();
        buffer.filled = read;
        for record in buffer.shared.parts(read) {
            let record = record?;
            if record.fd > highest_number() {
                HIGHEST.fetch_max(record.fd, Ordering::Relaxed);
            }
            match (record.question(), sys::adopt_event_fd(record.fd)) {
                (Some(event), Some(file)) => events.push(PermissionEvent { file, pid: record.pid, event }),
                (Some(_), None) => report.denied_by_kernel += 1,
                // No question: a queue overflow, which FAN_UNLIMITED_QUEUE rules out. A descriptor closes here.
                (None, _) => {}
            }
        }
        Ok(report)
    }

    /// Adds `events` to the mark on the object behind `object`, or makes one.
    ///
    /// # Errors
    /// The kernel's: EOPNOTSUPP or EXDEV where the file system cannot, ENOSPC at `fs.fanotify.max_user_marks`.
    pub fn mark(&self, target: MarkTarget, events: Events, object: BorrowedFd<'_>) -> std::io::Result<()> {
        sys::fanotify_mark(self.fd.as_fd(), fan::FAN_MARK_ADD | target.flags(), target.mask(events), object)
    }

    /// Takes `surplus` away from a mark of which `rest` stays; the whole mark, if that is nothing.
    ///
    /// # Errors
    /// The kernel's: ENOENT when there is no such mark.
    pub fn unmark(
        &self,
        target: MarkTarget,
        surplus: Events,
        rest: Events,
        object: BorrowedFd<'_>,
    ) -> std::io::Result<()> {
        let flags = fan::FAN_MARK_REMOVE | target.flags();
        sys::fanotify_mark(self.fd.as_fd(), flags, target.surplus(surplus, rest), object)
    }

    /// Lets the kernel answer (allow) for this file by itself, until its content is modified, it is evicted from memory, or
    /// the mark is taken away. Blind to who opens it, and by which name.
    ///
    /// # Errors
    /// The kernel's; none of them matters but to speed.
    pub fn ignore_file(&self, events: Events, file: BorrowedFd<'_>) -> std::io::Result<()> {
        let flags = fan::FAN_MARK_ADD | sys::FAN_MARK_IGNORE | sys::FAN_MARK_EVICTABLE;
        sys::fanotify_mark_file(self.fd.as_fd(), flags, MarkTarget::Inode.mask(events), file)
    }

    /// Undoes [`Group::ignore_file`].
    ///
    /// # Errors
    /// The kernel's: ENOENT when there is no such mark.
    pub fn heed_file(&self, events: Events, file: BorrowedFd<'_>) -> std::io::Result<()> {
        let flags = fan::FAN_MARK_REMOVE | sys::FAN_MARK_IGNORE;
        sys::fanotify_mark(self.fd.as_fd(), flags, MarkTarget::Inode.mask(events), file)
    }

    /// Keeps this group out of what happens to a directory or file, and to a directory's direct children: another group
    /// is asked. Survives whatever happens to it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn leave_to_another(&self, target: MarkTarget, events: Events, object: BorrowedFd<'_>) -> std::io::Result<()> {
        let flags = fan::FAN_MARK_ADD | sys::FAN_MARK_IGNORE | fan::FAN_MARK_IGNORED_SURV_MODIFY;
        sys::fanotify_mark(self.fd.as_fd(), flags, target.mask(events), object)
    }

    /// Undoes [`Group::leave_to_another`] for `surplus`; `rest` stays.
    ///
    /// # Errors
    /// The kernel's: ENOENT when there is no such mark.
    pub fn take_back(
        &self,
        target: MarkTarget,
        surplus: Events,
        rest: Events,
        object: BorrowedFd<'_>,
    ) -> std::io::Result<()> {
        let flags = fan::FAN_MARK_REMOVE | sys::FAN_MARK_IGNORE | fan::FAN_MARK_IGNORED_SURV_MODIFY;
        sys::fanotify_mark(self.fd.as_fd(), flags, target.surplus(surplus, rest), object)
    }

    /// Removes every mark on files and directories, ignore marks included.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flush_inodes(&self) -> std::io::Result<()> {
        sys::fanotify_flush(self.fd.as_fd(), fan::FAN_MARK_FLUSH)
    }

    /// Removes every mark. What is queued stays queued and must still be answered.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flush(&self) -> std::io::Result<()> {
        for kind in [fan::FAN_MARK_FILESYSTEM, fan::FAN_MARK_MOUNT, 0] {
            sys::fanotify_flush(self.fd.as_fd(), fan::FAN_MARK_FLUSH | kind)?;
        }
        Ok(())
    }
}

/// The kernel says EMFILE for both limits.
fn descriptors_are_left() -> bool {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).is_ok()
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Sink for &Group {
    fn writev(&mut self, segments: &[IoSlice<'_>]) -> Result<usize, Errno> {
        rustix::io::writev(&*self.fd, segments)
    }
}

/// Words of one record.
const WORDS: usize = METADATA / size_of::<u64>();

/// Room for one read, of [`BATCH`] records unless said otherwise.
#[derive(Debug)]
pub struct ReadBuffer {
    shared: Glimpse,
    /// How many bytes of it a read has filled.
    filled: usize,
}

impl Default for ReadBuffer {
    fn default() -> Self {
        ReadBuffer::with_room(BATCH)
    }
}

impl ReadBuffer {
    fn with_room(records: usize) -> Self {
        let words = (0..records * WORDS).map(|_| AtomicU64::new(0)).collect();
        ReadBuffer { shared: Glimpse(words), filled: 0 }
    }

    /// Room for a single record.
    pub fn for_one() -> Self {
        ReadBuffer::with_room(1)
    }

    /// A look at what a read brings while it is under way.
    pub fn glimpse(&self) -> Glimpse {
        self.shared.clone()
    }

    /// Empties it, so that a glimpse shows what the next read brings and nothing else.
    pub fn clear(&mut self) {
        for word in self.shared.0.iter().take(self.filled.div_ceil(size_of::<u64>())) {
            word.store(0, Ordering::Relaxed);
        }
        self.filled = 0;
    }
}

/// What a read has brought so far, for a thread that is not reading. The kernel writes an event's record before the event
/// can be answered. A record that is being written may be seen in part: its number then names no event yet.
#[derive(Debug, Clone)]
pub struct Glimpse(Arc<[AtomicU64]>);

impl Glimpse {
    /// The records so far.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        self.parts(size_of_val(&*self.0)).map_while(Result::ok)
    }

    /// What is in the first `length` bytes. Records of ours are all of one size: no group asks for more.
    fn parts(&self, length: usize) -> impl Iterator<Item = Result<Record, RecordError>> {
        let lengths = (0..length).step_by(METADATA).map(move |at| METADATA.min(length - at));
        self.0.chunks_exact(WORDS).zip(lengths).filter_map(|(words, length)| {
            let mut bytes = [0; METADATA];
            for (bytes, word) in bytes.chunks_exact_mut(size_of::<u64>()).zip(words) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
            Records::new(&bytes[..length]).next()
        })
    }
}

/// Closes the files of a batch, neighbours in one call.
pub fn close(files: &mut Vec<OwnedFd>) {
    sys::close_all(files);
}

//! How permission events behave on this kernel, found by trying: our own small equivalents of what the Linux Test Project
//! asks in fanotify03, 07, 10, 14 and 24, as far as it concerns permission events.
//!
//! All of it happens on a tmpfs that is mounted nowhere, to threads of our own. Each question is answered within three
//! seconds, or left. No process is started: an exec is asked about by `AT_EXECVE_CHECK`, which executes nothing (Linux 6.14).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use fanotify::low_level as fan;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::group::ReadBuffer;
use super::probe::detached_tmpfs;
use super::{Class, Group, MarkTarget, sys};
use crate::policy::{Event, Events};

/// For whatever a question waits for.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// For each question.
const WHOLE: Duration = Duration::from_secs(3);
/// `FAN_DENY_ERRNO`: where in a response the error stands.
const ERRNO: u32 = 24;
/// Who waits at once when a group is closed.
const WAITING: usize = 8;

/// A question, and what came of it.
#[derive(Debug)]
pub struct Behaviour {
    /// A short name.
    pub name: &'static str,
    /// What is asked.
    pub about: &'static str,
    /// Without it nothing is enforced.
    pub required: bool,
    /// Whether the kernel does so; else what it does.
    pub outcome: Result<(), String>,
}

/// Asks all of them.
pub fn all() -> Vec<Behaviour> {
    let behaviour = |name, about, required, ask: fn(&mut Room) -> Result<(), String>| {
        let outcome = asked(ask, WHOLE);
        Behaviour { name, about, required, outcome }
    };
    vec![
        behaviour(
            "answers, every mark",
            "open, read and exec denied by EPERM, by marks of each kind (as fanotify03)",
            true,
            answers,
        ),
        behaviour("close lets go", "closing a group lets go of whoever waits for it (as fanotify07)", true, closing),
        behaviour(
            "ignore marks, every kind",
            "an ignore mark of any kind silences a mark of any kind (as fanotify10)",
            false,
            ignoring,
        ),
        behaviour("senseless is refused", "flags that do not go together are refused (as fanotify14)", false, refusing),
        behaviour(
            "deny by errno",
            "FAN_DENY_ERRNO in a pre-content group, refused in others; not used (as fanotify24)",
            false,
            errors,
        ),
    ]
}

/// Asks in a thread of its own, since one that hangs (or a kernel that tidies up for long) must not hold up the others. It
/// ends with the process then.
fn asked(ask: fn(&mut Room) -> Result<(), String>, patience: Duration) -> Result<(), String> {
    let (tell, answer) = channel();
    let asking = std::thread::Builder::new().name("janus-ask".into()).spawn(move || {
        let mut room = Room::default();
        // Gone: it took too long.
        let _late = tell.send(ask(&mut room));
        // Closed together, and after it is told: the kernel takes its time for each.
        drop(room);
    });
    let asking = asking.map_err(told("thread"))?;
    let outcome = answer.recv_timeout(patience).unwrap_or_else(|_| Err(format!("no answer within {patience:?}")));
    if asking.is_finished() && asking.join().is_err() {
        return Err("it panicked".to_owned());
    }
    outcome
}

/// Groups that have been tried.
#[derive(Debug, Default)]
struct Room(Vec<Group>);

impl Room {
    fn group(&mut self, class: Class) -> Result<Group, String> {
        let group = Group::init(Group::base_flags(class)).map_err(told("fanotify_init"))?;
        let group = Group::from_fd(group);
        self.0.push(group.try_clone().map_err(told("another share"))?);
        Ok(group)
    }
}

fn told<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// A tmpfs with one file, which an exec would take for a program.
fn scratch() -> Result<Arc<OwnedFd>, String> {
    let tmpfs = detached_tmpfs().map_err(told("tmpfs"))?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&tmpfs, c"file", flags, Mode::from_raw_mode(0o500)).map_err(told("file"))?;
    rustix::io::write(&file, b"#!/nowhere\n").map_err(told("file"))?;
    Ok(Arc::new(tmpfs))
}

fn open(tmpfs: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(tmpfs, c"file", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Somebody who is asked about.
struct Opener(Receiver<Result<(), Errno>>, std::thread::JoinHandle<()>);

impl Opener {
    fn start(act: impl FnOnce() -> Result<(), Errno> + Send + 'static) -> Result<Opener, String> {
        let (tell, told_of) = channel();
        let thread = std::thread::Builder::new().name("janus-try".into());
        let thread = thread.spawn(move || {
            // Whoever asked has given up.
            let _gone = tell.send(act());
        });
        Ok(Opener(told_of, thread.map_err(told("thread"))?))
    }

    /// What came of it, within so long. One that hangs for ever ends with the process.
    fn end(self, until: Instant) -> Option<Result<(), Errno>> {
        let outcome = self.0.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
        // It has told: it ends.
        self.1.join().ok()?;
        Some(outcome)
    }
}

/// Has somebody act, and answers what is asked by these words, one after the other; then by allowing. What came of it, and
/// what was asked.
fn answered(
    group: &Group,
    words: &[u32],
    act: impl FnOnce() -> Result<(), Errno> + Send + 'static,
) -> Result<(Result<(), Errno>, Vec<Event>), String> {
    let (mut buffer, mut events, mut asked) = (ReadBuffer::for_one(), Vec::new(), Vec::new());
    let (opener, until) = (Opener::start(act)?, Instant::now() + PATIENCE);
    let mut words = words.iter();
    let outcome = loop {
        match opener.0.recv_timeout(Duration::from_millis(1)) {
            Ok(outcome) => break outcome,
            Err(RecvTimeoutError::Disconnected) => return Err("a thread panicked".to_owned()),
            Err(RecvTimeoutError::Timeout) if Instant::now() > until => return Err("nobody was let go".to_owned()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // Empty as a rule, and an error is one: somebody waits until the group is closed, which is told above.
        let _empty = group.read(&mut buffer, &mut events);
        for event in events.drain(..) {
            use std::os::fd::AsRawFd;
            let word = words.next().copied().unwrap_or(fan::FAN_ALLOW);
            respond(group, event.file.as_raw_fd(), word).map_err(told("answer"))?;
            asked.push(event.event);
        }
    };
    opener.1.join().map_err(|_panic| "a thread panicked".to_owned())?;
    Ok((outcome, asked))
}

fn respond(group: &Group, number: i32, word: u32) -> Result<(), Errno> {
    let mut response = [0; 8];
    response[..4].copy_from_slice(&number.to_ne_bytes());
    response[4..].copy_from_slice(&word.to_ne_bytes());
    rustix::io::write(group, &response).map(drop)
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, seen: T, expected: T) -> Result<(), String> {
    if seen == expected { Ok(()) } else { Err(format!("{what}: {seen:?}, not {expected:?}")) }
}

const KINDS: [(MarkTarget, &str); 4] = [
    (MarkTarget::Inode, "inode"),
    (MarkTarget::Directory, "directory"),
    (MarkTarget::Mount, "mount"),
    (MarkTarget::Filesystem, "filesystem"),
];

fn mark(group: &Group, target: MarkTarget, tmpfs: &OwnedFd, events: Events) -> Result<(), String> {
    on(target, tmpfs, |object| group.mark(target, events, object))
}

/// An inode mark lies on the file, any other is named by the directory.
fn on(
    target: MarkTarget,
    tmpfs: &OwnedFd,
    lay: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> std::io::Result<()>,
) -> Result<(), String> {
    let laid = match target {
        MarkTarget::Inode => {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let file = rustix::fs::openat(tmpfs, c"file", flags, Mode::empty()).map_err(told("file"))?;
            lay(file.as_fd())
        }
        _ => lay(tmpfs.as_fd()),
    };
    laid.map_err(told("mark"))
}

fn answers(room: &mut Room) -> Result<(), String> {
    for (target, kind) in KINDS {
        let (group, tmpfs) = (room.group(Class::Content)?, scratch()?);
        mark(&group, target, &tmpfs, Events::NONE.with(Event::Open).with(Event::Access))?;
        let opens = |tmpfs: &Arc<OwnedFd>| {
            let tmpfs = tmpfs.clone();
            move || open(&tmpfs).map(drop)
        };
        let reads = |tmpfs: &Arc<OwnedFd>| {
            let tmpfs = tmpfs.clone();
            move || open(&tmpfs).and_then(|file| rustix::io::read(&file, &mut [0; 8]).map(drop))
        };
        let (allow, deny) = (fan::FAN_ALLOW, fan::FAN_DENY);
        let seen = answered(&group, &[deny], opens(&tmpfs)).map_err(told(kind))?;
        expect(kind, seen, (Err(Errno::PERM), vec![Event::Open]))?;
        let seen = answered(&group, &[allow, deny], reads(&tmpfs)).map_err(told(kind))?;
        expect(kind, seen, (Err(Errno::PERM), vec![Event::Open, Event::Access]))?;
        let seen = answered(&group, &[allow, allow], reads(&tmpfs)).map_err(told(kind))?;
        expect(kind, seen, (Ok(()), vec![Event::Open, Event::Access]))?;
        // Another one: nobody answers for the group above any more.
        let (group, tmpfs) = (room.group(Class::Content)?, scratch()?);
        // Otherwise it can only be asked by executing something.
        if sys::may_execute(&tmpfs, c"file") == Err(Errno::INVAL) {
            continue;
        }
        mark(&group, target, &tmpfs, Events::NONE.with(Event::Execute))?;
        let executed = tmpfs.clone();
        let seen = answered(&group, &[deny], move || sys::may_execute(&executed, c"file")).map_err(told(kind))?;
        expect(kind, seen, (Err(Errno::PERM), vec![Event::Execute]))?;
    }
    Ok(())
}

/// Some of it read and not answered, some not read.
fn closing(_room: &mut Room) -> Result<(), String> {
    let tmpfs = scratch()?;
    let group = Group::from_fd(Group::init(Group::base_flags(Class::Content)).map_err(told("fanotify_init"))?);
    mark(&group, MarkTarget::Filesystem, &tmpfs, Events::NONE.with(Event::Open))?;
    let opener = || {
        let tmpfs = tmpfs.clone();
        Opener::start(move || open(&tmpfs).map(drop))
    };
    let openers = (0..WAITING).map(|_| opener()).collect::<Result<Vec<_>, _>>()?;
    let until = Instant::now() + PATIENCE;
    let (mut buffer, mut events) = (ReadBuffer::for_one(), Vec::new());
    while events.len() < WAITING / 2 && Instant::now() < until {
        let mut fds = [PollFd::new(&group, PollFlags::IN)];
        // A failure (EINTR) is as good as nothing there.
        let _asked_again = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 }));
        let _empty = group.read(&mut buffer, &mut events);
    }
    expect("read", events.len(), WAITING / 2)?;
    // Aside: what is asked is whether the openers wait, not for how long the kernel tidies up.
    let closing = Opener::start(move || {
        drop(group);
        Ok(())
    })?;
    let until = Instant::now() + PATIENCE;
    let ended: Vec<_> = openers.into_iter().map(|opener| opener.end(until)).collect();
    drop(events);
    expect("let go", ended, vec![Some(Ok(())); WAITING])?;
    // Among many who open guarded files it takes long: no fault of anybody's who waits.
    let _late = closing.end(Instant::now() + PATIENCE / 4);
    Ok(())
}

fn ignoring(room: &mut Room) -> Result<(), String> {
    let open_events = Events::NONE.with(Event::Open);
    let mut heard = Vec::new();
    for (marked, kind) in KINDS {
        for (ignored, other) in KINDS {
            let (group, tmpfs) = (room.group(Class::Content)?, scratch()?);
            mark(&group, marked, &tmpfs, open_events)?;
            let opened = tmpfs.clone();
            let (_, asked) = answered(&group, &[], move || open(&opened).map(drop))?;
            expect(kind, asked, vec![Event::Open])?;
            let ignore = sys::FAN_MARK_IGNORE | fan::FAN_MARK_IGNORED_SURV_MODIFY | ignored.flags();
            on(ignored, &tmpfs, |object| {
                sys::fanotify_mark(group.as_fd(), fan::FAN_MARK_ADD | ignore, ignored.mask(open_events), object)
            })?;
            let opened = tmpfs.clone();
            let (_, asked) = answered(&group, &[], move || open(&opened).map(drop))?;
            if !asked.is_empty() {
                heard.push(format!("{kind} by {other}"));
            }
        }
    }
    if heard.is_empty() { Ok(()) } else { Err(format!("not {}", heard.join(", "))) }
}

fn refusing(room: &mut Room) -> Result<(), String> {
    let refused = |what: &str, outcome: std::io::Result<()>, expected: Errno| {
        expect(what, outcome.err().and_then(|error| Errno::from_io_error(&error)), Some(expected))
    };
    let base = Group::base_flags(Class::Content);
    for (what, flags) in [
        ("FAN_REPORT_FID with permission events", base | libc::FAN_REPORT_FID),
        ("FAN_REPORT_NAME without directories", libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_NAME),
        ("FAN_REPORT_TID and FAN_REPORT_PIDFD", base | libc::FAN_REPORT_TID | libc::FAN_REPORT_PIDFD),
        ("a flag of fanotify_init that does not exist", base | 1 << 31),
    ] {
        refused(what, Group::init(flags).map(drop), Errno::INVAL)?;
    }
    let (group, tmpfs) = (room.group(Class::Content)?, scratch()?);
    let lay = |flags: u32, mask| sys::fanotify_mark(group.as_fd(), flags, mask, tmpfs.as_fd());
    let (add, ignore) = (fan::FAN_MARK_ADD, sys::FAN_MARK_IGNORE);
    for (what, flags, mask) in [
        ("two kinds of mark", add | fan::FAN_MARK_MOUNT | fan::FAN_MARK_FILESYSTEM, fan::FAN_OPEN_PERM),
        ("no event", add, 0),
        ("an event that does not exist", add, 1 << 63),
        ("both kinds of ignoring", add | ignore | fan::FAN_MARK_IGNORED_MASK, fan::FAN_OPEN_PERM),
        ("ignoring a mount until it is modified", add | ignore | fan::FAN_MARK_MOUNT, fan::FAN_OPEN_PERM),
        ("an event of directories by descriptors", add, fan::FAN_CREATE),
    ] {
        refused(what, lay(flags, mask), Errno::INVAL)?;
    }
    let notified = Group::init(libc::FAN_CLASS_NOTIF | fan::FAN_CLOEXEC).map(Group::from_fd);
    let notified = notified.map_err(told("fanotify_init"))?;
    let marked = sys::fanotify_mark(notified.as_fd(), add, fan::FAN_OPEN_PERM, tmpfs.as_fd());
    room.0.push(notified);
    refused("permission events where none are answered", marked, Errno::INVAL)?;
    let file = open(&tmpfs).map_err(told("file"))?;
    let marked = sys::fanotify_mark(group.as_fd(), add | fan::FAN_MARK_ONLYDIR, fan::FAN_OPEN_PERM, file.as_fd());
    refused("a file as a directory", marked, Errno::NOTDIR)?;
    expect("an answer to nobody", respond(&group, 1 << 20, fan::FAN_ALLOW), Err(Errno::NOENT))?;
    expect("an answer that does not exist", respond(&group, 1 << 20, 0x7f), Err(Errno::INVAL))
}

fn errors(room: &mut Room) -> Result<(), String> {
    let tmpfs = scratch()?;
    let group = room.group(Class::PreContent)?;
    mark(&group, MarkTarget::Filesystem, &tmpfs, Events::NONE.with(Event::Open))?;
    for errno in [Errno::BUSY, Errno::IO, Errno::NOSPC] {
        let word = fan::FAN_DENY | errno.raw_os_error().unsigned_abs() << ERRNO;
        let opened = tmpfs.clone();
        let seen = answered(&group, &[word], move || open(&opened).map(drop))?;
        expect("FAN_DENY_ERRNO", seen, (Err(errno), vec![Event::Open]))?;
    }
    let other = room.group(Class::Content)?;
    let word = |errno: Errno| fan::FAN_DENY | errno.raw_os_error().unsigned_abs() << ERRNO;
    // Whatever the event.
    expect("EACCES", respond(&group, 1 << 20, word(Errno::ACCESS)), Err(Errno::INVAL))?;
    expect("in another class", respond(&other, 1 << 20, word(Errno::BUSY)), Err(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_behaves() {
        // Only root may.
        if Group::init(Group::base_flags(Class::Content)).is_err() {
            return;
        }
        for Behaviour { name, required, outcome, .. } in all() {
            assert!(outcome.is_ok() || !required, "{name}: {outcome:?}");
            eprintln!("{name}: {outcome:?}");
        }
    }

    #[test]
    fn one_who_is_not_answered_is_told_of() {
        let (Ok(group), Ok(tmpfs)) = (Room::default().group(Class::Content), scratch()) else { return };
        mark(&group, MarkTarget::Filesystem, &tmpfs, Events::NONE.with(Event::Open)).unwrap();
        let opened = tmpfs.clone();
        let opener = Opener::start(move || open(&opened).map(drop)).unwrap();
        assert_eq!(opener.end(Instant::now() + Duration::from_millis(50)), None);
        let seen = answered(&group, &[fan::FAN_DENY], move || open(&tmpfs).map(drop));
        // The one above is asked about first, and takes the denial.
        assert_eq!(seen, Ok((Ok(()), vec![Event::Open, Event::Open])));
    }
}

//! One connection between two janusd: frames, with descriptors, each within a deadline.
//!
//! A frame is `JNUS`, its length (4 bytes, big end first), and a [`Frame`]. Descriptors travel with the head.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::message::{Frame, Part};

const MAGIC: [u8; 4] = *b"JNUS";
const HEAD: usize = 8;
/// More than any guard takes.
const LARGEST: usize = 8 * 1024 * 1024;
/// Descriptors that travel with one frame.
const MOST_DESCRIPTORS: usize = 2;
/// How often whoever waits looks whether it is to end.
const PULSE: Duration = Duration::from_millis(50);

/// A connection cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel says so.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other end is not root's.
    #[error("the other end belongs to user {0}")]
    Stranger(u32),
    /// The other end has closed it, or ended.
    #[error("the other end has gone")]
    Gone,
    /// Nothing came, or nothing could be sent, in time.
    #[error("nothing came in time")]
    Late,
    /// This process is to end.
    #[error("this process is ending")]
    Stopped,
    /// What came is no frame.
    #[error("what came is no frame: {0}")]
    Garbled(String),
    /// The other end will not.
    #[error("the other end refuses: {0}")]
    Refused(String),
    /// What came is not what was to come.
    #[error("the other end said something else")]
    Unexpected,
}

/// A connection to another janusd of root's.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    /// The process at the other end, as our pid namespace numbers it.
    pub peer: i32,
    process: Option<OwnedFd>,
    stop: Arc<AtomicBool>,
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> LinkError {
        match errno {
            Errno::PIPE | Errno::CONNRESET => LinkError::Gone,
            errno => LinkError::Io(errno.into()),
        }
    }
}

impl Link {
    /// Checks who is at the other end. Set `stop` to have whoever waits give up.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn new(stream: UnixStream, stop: Arc<AtomicBool>) -> Result<Link, LinkError> {
        stream.set_nonblocking(true)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        if !peer.uid.is_root() {
            return Err(LinkError::Stranger(peer.uid.as_raw()));
        }
        // None: it has ended, or lives in another pid namespace.
        let process = pidfd_open(peer.pid, PidfdFlags::empty()).ok();
        Ok(Link { stream, peer: Pid::as_raw(Some(peer.pid)), process, stop })
    }

    /// Says so of what has come, or of its end.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// The process at the other end: can be polled for its end.
    pub fn process(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(AsFd::as_fd)
    }

    /// Whether the process at the other end has ended.
    pub fn has_ended(&self) -> bool {
        let Some(process) = &self.process else { return true };
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Waits for the process at the other end to have ended; true once it has.
    pub fn ends_within(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            if self.has_ended() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            let (false, Some(process)) = (left.is_zero(), &self.process) else { return false };
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            // A failure (EINTR) is as good as nothing there.
            let _asked_again = poll(&mut fds, Some(&timespec(left)));
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// [`LinkError`]; the connection cannot be used any more then.
    pub fn say(&self, part: Part, descriptors: &[BorrowedFd<'_>], until: Instant) -> Result<(), LinkError> {
        let body = Frame { part: Some(part) }.encode_to_vec();
        let length = u32::try_from(body.len()).ok().filter(|length| *length as usize <= LARGEST);
        let length = length.ok_or_else(|| LinkError::Garbled(format!("{} bytes are too many", body.len())))?;
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&MAGIC);
        head[4..].copy_from_slice(&length.to_be_bytes());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(LinkError::Garbled("too many descriptors".to_owned()));
        }
        let mut nothing = SendAncillaryBuffer::default();
        let mut sent = 0;
        let whole = [head.as_slice(), &body].concat();
        while sent < whole.len() {
            // Descriptors go with the first bytes.
            let rights = if sent == 0 { &mut rights } else { &mut nothing };
            match rustix::net::sendmsg(&self.stream, &[IoSlice::new(&whole[sent..])], rights, SendFlags::NOSIGNAL) {
                Ok(bytes) => sent += bytes,
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, until)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Hears what is said next that this version knows, and takes what comes with it.
    ///
    /// # Errors
    /// [`LinkError`]; the connection cannot be used any more then.
    pub fn hear(&self, until: Instant) -> Result<(Part, Vec<OwnedFd>), LinkError> {
        loop {
            if let Some(heard) = self.hear_any(until)? {
                return Ok(heard);
            }
        }
    }

    /// Hears what is said next; `None`: something that a newer one says, and an older one may skip. For whoever does not
    /// know that more is to come.
    ///
    /// # Errors
    /// [`LinkError`]; the connection cannot be used any more then.
    pub fn hear_any(&self, until: Instant) -> Result<Option<(Part, Vec<OwnedFd>)>, LinkError> {
        let mut descriptors = Vec::new();
        let mut head = [0; HEAD];
        self.fill(&mut head, &mut descriptors, until)?;
        let [a, b, c, d, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        if [a, b, c, d] != MAGIC || length > LARGEST {
            return Err(LinkError::Garbled(format!("{head:02x?}")));
        }
        let mut body = vec![0; length];
        self.fill(&mut body, &mut descriptors, until)?;
        match Frame::decode(&*body).map_err(|error| LinkError::Garbled(error.to_string()))?.part {
            Some(Part::Refuse(refuse)) => Err(LinkError::Refused(refuse.reason)),
            part => Ok(part.map(|part| (part, descriptors))),
        }
    }

    /// Hears no more: gives what had come, if anything had. Whatever the other end says from now on fails there
    /// ([`LinkError::Gone`]); the kernel does the two one after the other, so both know which of them it was.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Gone`]: nothing had come.
    pub fn hear_last(&self) -> Result<(Part, Vec<OwnedFd>), LinkError> {
        self.stream.shutdown(Shutdown::Read)?;
        self.hear(Instant::now())
    }

    fn fill(&self, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>, until: Instant) -> Result<(), LinkError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut rights = RecvAncillaryBuffer::new(&mut space);
            let mut room = [IoSliceMut::new(&mut bytes[filled..])];
            match rustix::net::recvmsg(&self.stream, &mut room, &mut rights, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes == 0 => return Err(LinkError::Gone),
                Ok(received) => {
                    filled += received.bytes;
                    for message in rights.drain() {
                        if let RecvAncillaryMessage::ScmRights(received) = message {
                            descriptors.extend(received);
                        }
                    }
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, until)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags, until: Instant) -> Result<(), LinkError> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(LinkError::Stopped);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LinkError::Late);
            }
            let mut fds = [PollFd::new(&self.stream, what)];
            match poll(&mut fds, Some(&timespec(left.min(PULSE)))) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::message::{Ask, Known, Refuse, Taken, Unit};
    use std::io::Write;

    fn pair() -> Option<(Link, Link, UnixStream)> {
        let (one, other) = UnixStream::pair().unwrap();
        let raw = one.try_clone().unwrap();
        let link = |stream| Link::new(stream, Arc::default());
        // Only root may.
        Some((link(one).ok()?, link(other).ok()?, raw))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn frames_and_descriptors_arrive_together_and_in_order() {
        let Some((one, other, _)) = pair() else { return };
        let file = tempfile::tempfile().unwrap();
        let large = Part::Known(Known {
            index: 3,
            files: vec![super::super::message::File { name: vec![7; 1_000_000], ..Default::default() }],
        });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                one.say(Part::Ask(Ask::ours()), &[], soon()).unwrap();
                one.say(Part::Unit(Unit { index: 3, ..Unit::default() }), &[file.as_fd(), file.as_fd()], soon())
                    .unwrap();
                one.say(large.clone(), &[], soon()).unwrap();
                one.say(Part::Refuse(Refuse { reason: "no".into() }), &[], soon()).unwrap();
            });
            assert_eq!(other.hear(soon()).unwrap().0, Part::Ask(Ask::ours()));
            let (part, descriptors) = other.hear(soon()).unwrap();
            assert!(matches!(part, Part::Unit(Unit { index: 3, .. })));
            assert_eq!(descriptors.len(), 2);
            let (part, descriptors) = other.hear(soon()).unwrap();
            assert!(part == large && descriptors.is_empty());
            assert!(matches!(other.hear(soon()), Err(LinkError::Refused(reason)) if reason == "no"));
        });
    }

    #[test]
    fn what_is_not_known_is_skipped_without_waiting_for_more() {
        let Some((one, other, mut raw)) = pair() else { return };
        // Of a tag that no version has yet.
        raw.write_all(&[b"JNUS".as_slice(), &4_u32.to_be_bytes(), &[0xea, 0x04, 1, 0]].concat()).unwrap();
        one.say(Part::Ask(Ask::ours()), &[], soon()).unwrap();
        assert!(matches!(other.hear_any(Instant::now()), Ok(None)));
        assert!(matches!(other.hear_any(Instant::now()), Ok(Some((Part::Ask(_), _)))));
        raw.write_all(&[b"JNUS".as_slice(), &4_u32.to_be_bytes(), &[0xea, 0x04, 1, 0]].concat()).unwrap();
        one.say(Part::Ask(Ask::ours()), &[], soon()).unwrap();
        assert!(matches!(other.hear(Instant::now()), Ok((Part::Ask(_), _))));
    }

    #[test]
    fn either_it_was_said_in_time_or_it_cannot_be_said() {
        let Some((one, other, _)) = pair() else { return };
        one.say(Part::Taken(Taken::default()), &[], soon()).unwrap();
        assert!(matches!(other.hear_last(), Ok((Part::Taken(_), _))));
        let Some((one, other, _)) = pair() else { return };
        assert!(matches!(other.hear_last(), Err(LinkError::Gone)));
        assert!(matches!(one.say(Part::Taken(Taken::default()), &[], soon()), Err(LinkError::Gone)));
        // The other way it still goes.
        other.say(Part::Ask(Ask::ours()), &[], soon()).unwrap();
        assert!(matches!(one.hear(soon()), Ok((Part::Ask(_), _))));
    }

    #[test]
    fn what_is_no_frame_is_told_and_silence_has_an_end() {
        let Some((one, other, mut raw)) = pair() else { return };
        assert!(matches!(other.hear(Instant::now()), Err(LinkError::Late)));
        raw.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert!(matches!(other.hear(soon()), Err(LinkError::Garbled(_))));
        drop((one, raw));
        let Some((one, other, _)) = pair() else { return };
        drop(one);
        let (one, other) = (UnixStream::pair().unwrap(), other);
        drop(one);
        assert!(matches!(
            other.hear(Instant::now() + Duration::from_millis(1)),
            Err(LinkError::Gone | LinkError::Late)
        ));
    }
}

//! Answers: one `writev(2)` for a batch, resumed behind a segment that fails.
//!
//! What the kernel does (measured on 6.18): `[stale, ok, ok]` fails with ENOENT and answers nobody; `[ok, stale, ok]`
//! returns 8 of 24 bytes and leaves the third opener blocked; a response value that it does not know fails with EINVAL
//! and leaves that opener blocked. So each failing segment is met at the head of a write, dealt with, and stepped over.

use crate::policy::Response;
use fanotify::low_level as fan;
use rustix::io::Errno;
use std::io::IoSlice;
use std::os::fd::RawFd;

/// The most answers that go into one `writev(2)`. Also the largest batch: below `IOV_MAX` (1024), and small enough for a
/// stack array.
pub const BATCH: usize = 256;

/// Bytes of one `struct fanotify_response`.
const SEGMENT: usize = size_of::<fan::FanotifyResponse>();

/// One answer, as the kernel wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    bytes: [u8; SEGMENT],
}

impl Answer {
    /// Answers the event whose descriptor is `fd`; with `audit`, into the kernel's audit log too.
    pub fn new(fd: RawFd, response: Response, audit: bool) -> Answer {
        let word = match response {
            Response::Allow => fan::FAN_ALLOW,
            Response::Deny => fan::FAN_DENY,
        } | if audit { fan::FAN_AUDIT } else { 0 };
        let mut bytes = [0; SEGMENT];
        bytes[..4].copy_from_slice(&fd.to_ne_bytes());
        bytes[4..].copy_from_slice(&word.to_ne_bytes());
        Answer { bytes }
    }

    /// The same without `FAN_AUDIT`; `None` when it is plain already.
    fn plain(self) -> Option<Answer> {
        let [.., a, b, c, d] = self.bytes;
        let word = u32::from_ne_bytes([a, b, c, d]);
        let plain = word & !fan::FAN_AUDIT;
        (plain != word).then(|| {
            let mut bytes = self.bytes;
            bytes[4..].copy_from_slice(&plain.to_ne_bytes());
            Answer { bytes }
        })
    }
}

/// What became of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel took it.
    Answered,
    /// Nobody waits for it any more (ENOENT: the opener was killed, or somebody else answered).
    Gone,
    /// The kernel refused it even in its plain form. The opener is still blocked.
    Refused(Errno),
}

/// Where answers go: the group's file descriptor, or a script in tests.
pub trait Sink {
    /// One `writev(2)`.
    ///
    /// # Errors
    /// The kernel's, for the first segment only; after that a short count is returned.
    fn writev(&mut self, segments: &[IoSlice<'_>]) -> Result<usize, Errno>;
}

/// Writes every answer, and tells `outcome` (index, what became of it) for each exactly once, in order.
pub fn answer_all(sink: &mut impl Sink, answers: &[Answer], mut outcome: impl FnMut(usize, Outcome)) {
    let mut next = 0;
    while next < answers.len() {
        let chunk = &answers[next..answers.len().min(next + BATCH)];
        let mut segments = [IoSlice::new(&[]); BATCH];
        for (segment, answer) in segments.iter_mut().zip(chunk) {
            *segment = IoSlice::new(&answer.bytes);
        }
        match sink.writev(&segments[..chunk.len()]) {
            Ok(written) => {
                // A count below one segment would be a kernel that takes part of an answer; treating it as a refusal
                // keeps the loop finite.
                let taken = (written / SEGMENT).min(chunk.len());
                for index in next..next + taken {
                    outcome(index, Outcome::Answered);
                }
                next += taken;
                if taken == 0 {
                    outcome(next, Outcome::Refused(Errno::INVAL));
                    next += 1;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::NOENT) => {
                outcome(next, Outcome::Gone);
                next += 1;
            }
            Err(errno) => {
                outcome(next, retry_plain(sink, answers[next], errno));
                next += 1;
            }
        }
    }
}

/// The kernel refused this answer: an audit flag that the group cannot have, say. A blocked opener is worse than an
/// unaudited one.
fn retry_plain(sink: &mut impl Sink, answer: Answer, refused: Errno) -> Outcome {
    let Some(plain) = answer.plain() else { return Outcome::Refused(refused) };
    loop {
        return match sink.writev(&[IoSlice::new(&plain.bytes)]) {
            Ok(_) => Outcome::Answered,
            Err(Errno::INTR) => continue,
            Err(Errno::NOENT) => Outcome::Gone,
            Err(errno) => Outcome::Refused(errno),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A group as the kernel behaves: knows which numbers wait, refuses audit when it has none, interrupts now and then.
    struct Kernel {
        waiting: BTreeMap<i32, Option<u32>>,
        audit: bool,
        interrupts: u32,
    }

    impl Sink for Kernel {
        fn writev(&mut self, segments: &[IoSlice<'_>]) -> Result<usize, Errno> {
            if self.interrupts > 0 {
                self.interrupts -= 1;
                return Err(Errno::INTR);
            }
            let mut written = 0;
            for segment in segments {
                let fd = i32::from_ne_bytes(segment[..4].try_into().unwrap());
                let word = u32::from_ne_bytes(segment[4..].try_into().unwrap());
                let result = match self.waiting.get_mut(&fd) {
                    _ if word & fan::FAN_AUDIT != 0 && !self.audit => Err(Errno::INVAL),
                    Some(slot @ None) => {
                        *slot = Some(word);
                        Ok(())
                    }
                    _ => Err(Errno::NOENT),
                };
                match result {
                    Ok(()) => written += segment.len(),
                    Err(errno) if written == 0 => return Err(errno),
                    Err(_) => break,
                }
            }
            Ok(written)
        }
    }

    proptest! {
        /// Whoever waits is answered, with the word meant for it; who does not wait is Gone; each is told once, in order.
        #[test]
        fn nobody_is_left_blocked(
            events in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..600),
            audit in any::<bool>(),
            interrupts in 0u32..4,
        ) {
            let waiting = events.iter().enumerate().filter(|(_, e)| e.0).map(|(fd, _)| (fd as i32, None)).collect();
            let mut kernel = Kernel { waiting, audit, interrupts };
            let answers: Vec<Answer> = events.iter().enumerate().map(|(fd, (_, deny, audited))| {
                Answer::new(fd as i32, if *deny { Response::Deny } else { Response::Allow }, *audited)
            }).collect();
            let mut told = Vec::new();
            answer_all(&mut kernel, &answers, |index, outcome| told.push((index, outcome)));
            prop_assert_eq!(told.iter().map(|t| t.0).collect::<Vec<_>>(), (0..events.len()).collect::<Vec<_>>());
            for ((waits, deny, audited), (index, outcome)) in events.iter().zip(&told) {
                if *waits {
                    let word = if *deny { fan::FAN_DENY } else { fan::FAN_ALLOW } | if *audited && audit { fan::FAN_AUDIT } else { 0 };
                    prop_assert_eq!(kernel.waiting[&(*index as i32)], Some(word));
                    prop_assert_eq!(*outcome, Outcome::Answered);
                } else {
                    prop_assert_eq!(*outcome, Outcome::Gone);
                }
            }
        }
    }

    #[test]
    fn a_refusal_is_told_and_stepped_over() {
        struct Refuse(Vec<Result<usize, Errno>>);
        impl Sink for Refuse {
            fn writev(&mut self, _: &[IoSlice<'_>]) -> Result<usize, Errno> {
                self.0.remove(0)
            }
        }
        let answers = [Answer::new(1, Response::Allow, false), Answer::new(2, Response::Deny, false)];
        let mut told = Vec::new();
        answer_all(&mut Refuse(vec![Err(Errno::BADF), Ok(SEGMENT)]), &answers, |_, o| told.push(o));
        assert_eq!(told, [Outcome::Refused(Errno::BADF), Outcome::Answered]);
    }
}

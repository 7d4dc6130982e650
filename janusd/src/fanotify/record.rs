//! The bytes that `read(2)` on a group returns, taken apart: pure, and fuzzed.

use crate::policy::Event;
use fanotify::low_level as fan;

/// Size of `struct fanotify_event_metadata`, bytes.
pub const METADATA: usize = size_of::<fan::FanotifyEventMetadata>();

/// One event record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The event mask.
    pub mask: u64,
    /// The event's file descriptor; negative: none. With `FAN_REPORT_FD_ERROR` it is then the negated errno.
    pub fd: i32,
    /// The process that is waiting (thread group id in our pid namespace; 0 = in none that we can see).
    pub pid: i32,
}

impl Record {
    /// What is asked, or `None` for a record that wants no answer (a queue overflow).
    ///
    /// Whether the file is a directory is not in the mask: `FAN_ONDIR` is reported to groups with file identifiers only.
    pub fn question(&self) -> Option<Event> {
        if self.mask & fan::FAN_OPEN_EXEC_PERM != 0 {
            Some(Event::Execute)
        } else if self.mask & fan::FAN_OPEN_PERM != 0 {
            Some(Event::Open)
        } else if self.mask & fan::FAN_ACCESS_PERM != 0 {
            Some(Event::Access)
        } else {
            None
        }
    }
}

/// A record that cannot be taken apart. The kernel never writes one; meeting one means that we misread the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than a record's header, or than the record says it has.
    #[error("truncated fanotify record: {have} bytes of {need}")]
    Truncated {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Another metadata version than the one we were built for.
    #[error("fanotify metadata version {0}, built for {expected}", expected = fan::FANOTIFY_METADATA_VERSION)]
    Version(u8),
}

/// The records of one read.
#[derive(Debug, Clone)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// `bytes`: what one `read(2)` returned.
    pub fn new(bytes: &'a [u8]) -> Self {
        Records(bytes)
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        field.copy_from_slice(found);
    }
    field
}

impl Iterator for Records<'_> {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.0;
        if bytes.is_empty() {
            return None;
        }
        // Whatever goes wrong, the rest of the buffer cannot be trusted: report once and end.
        self.0 = &[];
        if bytes.len() < METADATA {
            return Some(Err(RecordError::Truncated { have: bytes.len(), need: METADATA }));
        }
        // struct fanotify_event_metadata (fanotify(7)): u32 event_len, u8 vers, u8 reserved, u16 metadata_len,
        // u64 mask, s32 fd, s32 pid.
        let event_len = u32::from_ne_bytes(field(bytes, 0)) as usize;
        let version = bytes[4];
        if version != fan::FANOTIFY_METADATA_VERSION {
            return Some(Err(RecordError::Version(version)));
        }
        if event_len < METADATA || event_len > bytes.len() {
            return Some(Err(RecordError::Truncated { have: bytes.len(), need: event_len.max(METADATA) }));
        }
        self.0 = &bytes[event_len..];
        Some(Ok(Record {
            mask: u64::from_ne_bytes(field(bytes, 8)),
            fd: i32::from_ne_bytes(field(bytes, 16)),
            pid: i32::from_ne_bytes(field(bytes, 20)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(event_len: u32, version: u8, record: &Record) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(event_len.to_ne_bytes());
        out.extend([version, 0]);
        out.extend((METADATA as u16).to_ne_bytes());
        out.extend(record.mask.to_ne_bytes());
        out.extend(record.fd.to_ne_bytes());
        out.extend(record.pid.to_ne_bytes());
        out.resize(out.len() + (event_len as usize).saturating_sub(METADATA), 0xAA);
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in prop::collection::vec((any::<u64>(), any::<i32>(), any::<i32>(), 0u32..40), 0..20)) {
            let records: Vec<_> = records.into_iter().map(|(mask, fd, pid, extra)| (Record { mask, fd, pid }, extra)).collect();
            let buffer: Vec<u8> = records.iter().flat_map(|(r, extra)| bytes(METADATA as u32 + extra, 3, r)).collect();
            let read: Result<Vec<Record>, _> = Records::new(&buffer).collect();
            prop_assert_eq!(read.unwrap(), records.into_iter().map(|(r, _)| r).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_end(buffer in prop::collection::vec(any::<u8>(), 0..300)) {
            let read = Records::new(&buffer).count();
            prop_assert!(read <= buffer.len() / METADATA + 1);
        }
    }

    #[test]
    fn wrong_version_and_lengths_are_named() {
        let record = Record { mask: fan::FAN_OPEN_PERM, fd: 5, pid: 6 };
        let first = |b: &[u8]| Records::new(b).next().unwrap();
        assert_eq!(first(&bytes(24, 4, &record)), Err(RecordError::Version(4)));
        assert_eq!(first(&bytes(24, 3, &record)[..23]), Err(RecordError::Truncated { have: 23, need: 24 }));
        let mut short = bytes(24, 3, &record);
        short[0] = 3;
        assert!(matches!(first(&short), Err(RecordError::Truncated { .. })));
    }

    #[test]
    fn questions() {
        let ask = |mask| Record { mask, fd: 1, pid: 1 }.question();
        assert_eq!(ask(fan::FAN_OPEN_PERM), Some(Event::Open));
        assert_eq!(ask(fan::FAN_ACCESS_PERM | fan::FAN_ONDIR), Some(Event::Access));
        assert_eq!(ask(fan::FAN_OPEN_EXEC_PERM), Some(Event::Execute));
        assert_eq!(ask(fan::FAN_Q_OVERFLOW), None);
    }
}

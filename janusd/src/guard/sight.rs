//! How a worker sees the file of an event: which it is, what it is called, and what the judge says of that.
//!
//! Two calls an event, on the descriptor that the kernel opened: what identifies the file, and its path. Nothing here
//! outlives an event but what cannot change while a file lives.

use std::os::fd::AsFd;

use super::inbox::Inbox;
use super::judge::{Asker, DELETED, Judge, Mount, Seen, Verdict};
use super::known::Fingerprint;
use super::view::Names;
use super::worker::Orders;
use crate::fanotify::PermissionEvent;
use crate::fanotify::look::{self, Stat};
use crate::policy::Failure;

/// Refilled, never reallocated.
pub(super) struct Sight {
    paths: look::Names,
    names: Names,
    /// Of the file that was looked at last, if its number was suspect.
    fingerprint: Option<Fingerprint>,
    /// The path that was read last is the file's for certain: not the one that it had when it was unlinked.
    path_holds: bool,
    /// What was looked at last is remembered, not found.
    recalled: bool,
    memory: Memory,
}

/// Files whose number and type are remembered.
const MEMORY: usize = 64;

/// The number and the type of files, by handle and mount: these stay what they are for as long as the file lives, and
/// its successor has another handle. Each file has one place, which it shares with others; made when it is first needed.
#[derive(Default)]
struct Memory(Vec<Option<(Fingerprint, Stat)>>);

impl Memory {
    fn place(fingerprint: Fingerprint) -> usize {
        // The fingerprint is a keyed hash: its low bits are as good as any.
        fingerprint.number() as usize % MEMORY
    }

    fn recall(&self, fingerprint: Fingerprint, mount: u64) -> Option<Stat> {
        let (whose, stat) = self.0.get(Memory::place(fingerprint))?.as_ref()?;
        (*whose == fingerprint && stat.mount == mount).then_some(*stat)
    }

    fn keep(&mut self, fingerprint: Fingerprint, stat: Stat) {
        if self.0.is_empty() {
            self.0.resize_with(MEMORY, || None);
        }
        if let Some(place) = self.0.get_mut(Memory::place(fingerprint)) {
            *place = Some((fingerprint, stat));
        }
    }
}

impl Sight {
    /// # Errors
    /// Why `/proc/self/fd` cannot be opened.
    pub(super) fn new() -> rustix::io::Result<Sight> {
        Ok(Sight {
            paths: look::Names::new()?,
            names: Names::default(),
            fingerprint: None,
            path_holds: false,
            recalled: false,
            memory: Memory::default(),
        })
    }

    /// The names by which the file was judged last.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// See [`Seen::fingerprint`].
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// Whether the file that was judged last still had the name by which it was opened.
    pub(super) fn path_holds(&self) -> bool {
        self.path_holds
    }

    /// The file's path, if it has one that can be told.
    pub(super) fn path(&mut self, event: &PermissionEvent) -> Option<&[u8]> {
        self.paths.of(&event.file).ok()
    }

    /// Which file it is. Where its handle has to be known anyway, and nothing else waits that could be the same file, the
    /// handle alone may do; then its links and times are those of an earlier event: [`Sight::current`].
    pub(super) fn look(&mut self, inbox: &Inbox, event: &PermissionEvent, orders: &Orders) -> Result<Stat, Failure> {
        let features = &inbox.desk.features;
        self.fingerprint = None;
        self.recalled = false;
        let by_handle = orders.by_handle && !inbox.known.is_empty() && inbox.fresh.len() == 1;
        let found = if by_handle { look::handle_and_mount(event.file.as_fd(), features) } else { None };
        if let Some((handle, mount)) = found {
            let fingerprint = inbox.desk.fingerprints.of(&handle);
            self.fingerprint = Some(fingerprint);
            if let Some(stat) = self.memory.recall(fingerprint, mount) {
                self.recalled = true;
                return Ok(stat);
            }
        }
        let stat = look::stat(event.file.as_fd(), features).map_err(|_| Failure::StatFailed)?;
        if let Some(fingerprint) = self.fingerprint {
            self.memory.keep(fingerprint, stat);
        }
        Ok(stat)
    }

    /// `stat` with the links and times of now.
    pub(super) fn current(&self, inbox: &Inbox, event: &PermissionEvent, stat: &Stat) -> Option<Stat> {
        if !self.recalled {
            return Some(*stat);
        }
        look::stat(event.file.as_fd(), &inbox.desk.features).ok()
    }

    /// Judges the file that was looked at last.
    pub(super) fn judge(
        &mut self,
        inbox: &Inbox,
        event: &PermissionEvent,
        stat: &Stat,
        orders: &Orders,
        mount: Mount<'_>,
        asker: Asker,
    ) -> Verdict {
        let Orders { judge, by_handle, .. } = orders;
        // On an overlay a number may change with a copy-up, so there the handle is asked for whenever anything is known.
        let suspect = inbox.known.suspects(stat.inode) || (*by_handle && !inbox.known.is_empty());
        if suspect && self.fingerprint.is_none() {
            self.fingerprint = inbox.desk.fingerprint(event.file.as_fd());
        }
        let path = self.paths.of(&event.file).ok();
        self.path_holds = path.is_some_and(|path| !path.ends_with(DELETED));
        let mut stat = *stat;
        if !self.path_holds && self.recalled {
            // How many names it has left decides what the path means.
            match look::stat(event.file.as_fd(), &inbox.desk.features) {
                Ok(current) => stat = current,
                Err(_) => return Verdict::Decided(judge.failed(Failure::StatFailed)),
            }
        }
        let near = inbox.queue == super::groups::Queue::Near;
        let seen = Seen { event: event.event, stat, path, fingerprint: self.fingerprint, near, asker };
        judge.judge(&seen, mount, &inbox.known, &mut self.names)
    }

    /// Whether nobody needs to be asked again about this file.
    pub(super) fn indifferent(&mut self, event: &PermissionEvent, stat: &Stat, judge: &dyn Judge) -> bool {
        match self.paths.of(&event.file) {
            Ok(path) => judge.indifferent(stat, path, &mut self.names),
            Err(_) => false,
        }
    }
}

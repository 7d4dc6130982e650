//! Numbers that no event of ours may get, because another process has given them to events of the same groups.
//!
//! The kernel finds the event that an answer is meant for by its number alone. While the other process lives, one of its
//! threads may still answer an event that it has read; were the number given to another event here, that one would get the
//! answer. A number that is in use cannot be given to an event, so each is put in use.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// Numbers in use, until dropped.
#[derive(Debug)]
pub struct Occupied {
    plug: OwnedFd,
    held: Vec<OwnedFd>,
    /// In use by something else, and so not to be given to an event for now.
    lent: BTreeSet<i32>,
}

impl Occupied {
    /// Puts these numbers in use. Returns once no event can get one of them that is free now.
    ///
    /// # Errors
    /// The kernel's, when no descriptor can be had.
    pub fn take(numbers: impl IntoIterator<Item = i32>) -> std::io::Result<Occupied> {
        let plug = eventfd(0, EventfdFlags::CLOEXEC)?;
        let mut occupied = Occupied { plug, held: Vec::new(), lent: numbers.into_iter().collect() };
        occupied.again();
        Ok(occupied)
    }

    /// Whether some are still in use by something else.
    pub fn lacks_some(&self) -> bool {
        !self.lent.is_empty()
    }

    /// Tries those again that something else had in use: it may have been closed.
    pub fn again(&mut self) {
        let own = self.plug.as_raw_fd();
        for number in std::mem::take(&mut self.lent) {
            // No event has a negative one.
            if number == own || number < 0 {
                continue;
            }
            // The lowest free number from there on. EINVAL: beyond what we may have, and so may any event.
            match rustix::io::fcntl_dupfd_cloexec(&self.plug, number) {
                Ok(duplicate) if duplicate.as_raw_fd() == number => self.held.push(duplicate),
                Ok(_another) => drop(self.lent.insert(number)),
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_number_is_taken_and_one_in_use_is_taken_once_it_is_free() {
        let used = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        // Far above what other tests' threads use meanwhile.
        let far = rustix::io::fcntl_dupfd_cloexec(&used, 700).unwrap();
        let number = far.as_raw_fd();
        let mut occupied = Occupied::take([number, number + 50, number + 50, -1]).unwrap();
        assert_eq!(occupied.held.len(), 1);
        assert_eq!(rustix::io::fcntl_dupfd_cloexec(&used, number + 50).unwrap().as_raw_fd(), number + 51);
        drop(far);
        occupied.again();
        assert_eq!(occupied.held.len(), 2);
        assert_eq!(rustix::io::fcntl_dupfd_cloexec(&used, number).unwrap().as_raw_fd(), number + 1);
        drop(occupied);
        assert_eq!(rustix::io::fcntl_dupfd_cloexec(&used, number).unwrap().as_raw_fd(), number);
    }
}

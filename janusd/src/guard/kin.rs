//! Who is Janus itself: this process, and while guards change hands, the other one.
//!
//! What either opens while it surveys or ends is asked about in the same groups. It is allowed, by whichever of the two
//! answers; otherwise the one could be denied what it has to look at, or wait for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// The processes that no guard denies because they are Janus.
#[derive(Debug, Clone)]
pub struct Kin {
    own: i32,
    /// 0: there is none.
    other: Arc<AtomicI32>,
}

impl Default for Kin {
    fn default() -> Kin {
        Kin { own: rustix::process::getpid().as_raw_pid(), other: Arc::default() }
    }
}

impl Kin {
    /// Whether a process, as an event names it, is one of them.
    pub fn has(&self, pid: i32) -> bool {
        pid == self.own || pid != 0 && pid == self.other.load(Ordering::Relaxed)
    }

    /// From now on this process is one of them too; it stands for any before it.
    pub fn adopt(&self, pid: i32) {
        self.other.store(pid, Ordering::Relaxed);
    }

    /// The other one has ended: its number may be another's next.
    pub fn part(&self) {
        self.other.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_no_namespace_of_ours_is_nobody() {
        let kin = Kin::default();
        assert!(kin.has(rustix::process::getpid().as_raw_pid()));
        assert!(!kin.has(0) && !kin.has(7));
        kin.adopt(7);
        assert!(kin.has(7) && !kin.has(0));
        kin.part();
        assert!(!kin.has(7) && !kin.has(0));
    }
}

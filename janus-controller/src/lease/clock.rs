//! The clock of the election.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment of one machine's clock that nobody sets, counted from its start. Moments of two machines cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Before all others.
    pub const FIRST: Moment = Moment(Duration::ZERO);

    /// So long after [`Moment::FIRST`].
    pub const fn at(after: Duration) -> Moment {
        Moment(after)
    }

    /// Now. CLOCK_BOOTTIME goes on while this process is stopped, as CLOCK_MONOTONIC does, and also while the machine sleeps.
    pub fn now() -> Moment {
        let now = clock_gettime(ClockId::Boottime);
        Moment(Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default()))
    }

    /// Later by so much.
    #[must_use]
    pub const fn plus(self, by: Duration) -> Moment {
        Moment(self.0.saturating_add(by))
    }

    /// How long since then; nothing, if that is yet to come.
    #[must_use]
    pub const fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Since [`Moment::FIRST`], in nanoseconds: 584 years of them.
    pub(super) fn nanoseconds(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let earlier = Moment::now();
        assert!(earlier > Moment::FIRST);
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while Moment::now() == earlier {
            assert!(std::time::Instant::now() < deadline, "the clock stands still");
        }
        assert_eq!(earlier.since(Moment::now()), Duration::ZERO);
        assert!(Moment::now().nanoseconds() > earlier.nanoseconds());
    }
}

//! Whose turn it is to begin a call: a controller that starts has something to tell thousands of daemons, and each call
//! takes some 13 KiB while it is under way.
//!
//! Guarantees: a turn lasts for [`LONGEST`] at most, whatever becomes of its call, and nodes take turns in the order in which
//! they asked, each with one question at a time. So a daemon that hangs keeps all others together waiting for no longer than
//! its calls times [`LONGEST`] by [`TURNS`], which is 4 ms.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls that begin at once, over all daemons.
const TURNS: usize = 512;
/// A call that has taken so long has begun. Usual ones take milliseconds.
const LONGEST: Duration = Duration::from_millis(250);

/// The turns there are. Clones share them.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Turns {
        Turns(Arc::new(Semaphore::new(TURNS)))
    }
}

impl Turns {
    /// One that can be had now.
    pub(super) fn take(&self) -> Option<Turn> {
        self.0.clone().try_acquire_owned().ok().map(|place| Turn { _place: Some(place) })
    }

    /// One, once those who asked before have had theirs.
    pub(super) fn wait(&self) -> BoxFuture<'static, Turn> {
        let turns = self.0.clone();
        // It is never closed; were it, there would be no bound and all else the same.
        Box::pin(async move { Turn { _place: turns.acquire_owned().await.ok() } })
    }
}

/// The right to begin a call.
#[derive(Debug)]
pub(super) struct Turn {
    _place: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// Makes a call; the turn is over when it has ended, or has taken long enough.
    pub(super) async fn during<T>(self, call: impl Future<Output = T>) -> T {
        let mut call = std::pin::pin!(call);
        match tokio::time::timeout(LONGEST, &mut call).await {
            Ok(done) => done,
            Err(_elapsed) => {
                drop(self);
                call.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_that_hang_hold_up_nobody_for_long() {
        let turns = Turns::default();
        let hang = || turns.take().map(|turn| tokio::spawn(turn.during(std::future::pending::<()>())));
        let hanging: Vec<_> = std::iter::from_fn(hang).collect();
        assert_eq!(hanging.len(), TURNS);
        let began = tokio::time::Instant::now();
        let _turn = turns.wait().await;
        assert!(began.elapsed() <= 2 * LONGEST, "{:?}", began.elapsed());
        hanging.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn who_asked_first_has_the_next_one() {
        let turns = Turns::default();
        let mut all: Vec<_> = std::iter::from_fn(|| turns.take()).collect();
        let (first, second) = (turns.wait(), turns.wait());
        let mut second = std::pin::pin!(second);
        let mut first = std::pin::pin!(first);
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
        all.pop();
        assert!(futures::poll!(&mut second).is_pending(), "it is the first one's");
        assert!(turns.take().is_none(), "nor may anybody come between");
        first.await;
        second.await;
    }
}

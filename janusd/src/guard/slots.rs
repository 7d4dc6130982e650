//! Who may close an event's descriptor, and what a reader is at: the words that a worker shares with the watchdog.
//!
//! An event is named by the number of its descriptor, and a number is given out again once it is closed. The kernel takes
//! one answer for each event and refuses every other (ENOENT), so anybody may answer, and the kernel says who did. But an
//! answer that is under way while the descriptor closes may hit the next event of that number. So:
//!
//! - Whoever owns the descriptor may write at any time, and alone may close it.
//! - Anybody else writes only while the number is *pinned*, which keeps the owner from closing it. An event that has been
//!   published is pinned by its slot ([`Slots::rescue`]); events of a read that has not been published are pinned by the
//!   reader's phase ([`Phase::scan`]).
//!
//! ```text
//!  slot:   free ──publish──► pending ──release──► free, and the owner closes
//!                               └──rescue──► rescuing ──► rescued ──release──► free, and the owner closes
//!                                               └──release──► not yet: the owner keeps the descriptor, and comes back
//!
//!  phase:  idle ──► working ──► reading ──► working ...       (the reader)
//!                                 ▲ └────► scanning           (the watchdog; the reader does not leave meanwhile)
//!                                 └───────────┘
//! ```
//!
//! The words hold the time at which an event was read, or a phase began. That is their generation: a word that is old
//! enough to be overdue cannot be made anew, so a compare-exchange on it hits what was looked at, or nothing.
//!
//! Pure: no descriptor, no clock, no kernel. Modelled in `janusd/loom`, which compiles this very file.

use std::sync::OnceLock;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds since some moment that all who share a table agree on.
pub(crate) type Millis = u64;
/// Nanoseconds since that moment: two phases never begin at the same one.
pub(crate) type Nanos = u64;

/// What a slot tells of an event: what is needed to answer it, and to count that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Post {
    /// The number of its descriptor; not negative.
    pub(crate) number: i32,
    /// Which of two groups asked.
    pub(crate) near: bool,
    /// What is asked: below 4.
    pub(crate) kind: u8,
    /// Asked by our own process.
    pub(crate) own: bool,
}

/// What the owner of a descriptor may do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Release {
    /// Close it. The slot is free.
    Close,
    /// Somebody is writing an answer to its number: keep it open, ask again.
    NotYet,
}

const STATE: u64 = 0b11;
const FREE: u64 = 0;
const PENDING: u64 = 1;
const RESCUING: u64 = 2;
const RESCUED: u64 = 3;

const NEAR: u32 = 2;
const KIND: u32 = 3;
const OWN: u32 = 5;
const NUMBER: u32 = 6;
const SINCE: u32 = 37;
/// 27 bits of milliseconds: 37 hours.
const TIMES: u64 = (1 << (64 - SINCE)) - 1;

impl Post {
    fn word(self, since: Millis) -> u64 {
        PENDING
            | u64::from(self.near) << NEAR
            | u64::from(self.kind & 3) << KIND
            | u64::from(self.own) << OWN
            | u64::from(self.number.cast_unsigned() & 0x7FFF_FFFF) << NUMBER
            | (since & TIMES) << SINCE
    }

    fn of(word: u64) -> Post {
        Post {
            number: (word >> NUMBER & 0x7FFF_FFFF) as i32,
            near: word >> NEAR & 1 == 1,
            kind: (word >> KIND & 3) as u8,
            own: word >> OWN & 1 == 1,
        }
    }
}

/// How long before `now` an event was read.
fn age(word: u64, now: Millis) -> Millis {
    let age = (now & TIMES).wrapping_sub(word >> SINCE) & TIMES;
    // The upper half is the future: read after `now` was told.
    if age > TIMES / 2 { 0 } else { age }
}

/// The events that a worker has read and not closed.
#[derive(Debug)]
pub(crate) struct Slots(Box<[OnceLock<Box<[AtomicU64]>>]>);

/// Slots are made so many at a time, when they are first needed: most guards never need more than the first of them.
const CHUNK: usize = if cfg!(loom) { 2 } else { 64 };

impl Slots {
    pub(crate) fn new(count: usize) -> Slots {
        let slots = Slots((0..count.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect());
        if cfg!(loom) {
            // It does not know that a OnceLock synchronises.
            for at in 0..count {
                slots.get_or_make(at);
            }
        }
        slots
    }

    fn get_or_make(&self, at: usize) -> Option<&AtomicU64> {
        let chunk = self.0.get(at / CHUNK)?;
        chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU64::new(FREE)).collect()).get(at % CHUNK)
    }

    fn get(&self, at: usize) -> Option<&AtomicU64> {
        self.0.get(at / CHUNK)?.get()?.get(at % CHUNK)
    }

    fn all(&self) -> impl Iterator<Item = &AtomicU64> {
        self.0.iter().filter_map(OnceLock::get).flat_map(|chunk| chunk.iter())
    }

    /// Owner: from now on others may answer the event. The slot must be free.
    pub(crate) fn publish(&self, at: usize, post: Post, since: Millis) {
        if let Some(slot) = self.get_or_make(at) {
            slot.store(post.word(since), Ordering::Release);
        }
    }

    /// Owner: whether nobody else has answered the event, or is about to.
    pub(crate) fn is_pending(&self, at: usize) -> bool {
        self.get(at).is_some_and(|slot| slot.load(Ordering::Acquire) & STATE == PENDING)
    }

    /// Owner: done with the event. Only after [`Release::Close`] may its descriptor be closed.
    pub(crate) fn release(&self, at: usize) -> Release {
        let Some(slot) = self.get(at) else { return Release::Close };
        let word = slot.load(Ordering::Acquire);
        match word & STATE {
            PENDING => match slot.compare_exchange(word, FREE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => Release::Close,
                Err(_) => Release::NotYet,
            },
            RESCUING => Release::NotYet,
            // Rescued: nobody but the owner touches the slot again.
            _ => {
                slot.store(FREE, Ordering::Release);
                Release::Close
            }
        }
    }

    /// Watchdog (one thread at a time): has `answer` answer each event that was read at least `deadline` before `now`.
    /// Its number is pinned meanwhile.
    pub(crate) fn rescue(&self, now: Millis, deadline: Millis, mut answer: impl FnMut(Post, Millis)) {
        for slot in self.all() {
            let word = slot.load(Ordering::Acquire);
            let age = age(word, now);
            if word & STATE != PENDING || age < deadline {
                continue;
            }
            let pinned = word & !STATE | RESCUING;
            if slot.compare_exchange(word, pinned, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                let _done = Unpin { slot, word: word & !STATE | RESCUED };
                answer(Post::of(word), age);
            }
        }
    }

    /// Anybody: what is published, and not known to be answered.
    pub(crate) fn outstanding(&self) -> Vec<Post> {
        let words = self.all().map(|slot| slot.load(Ordering::Acquire));
        words.filter(|word| matches!(word & STATE, PENDING | RESCUING)).map(Post::of).collect()
    }

    /// Watchdog: how long ago the oldest event was read that is published and not answered by us.
    pub(crate) fn oldest(&self, now: Millis) -> Option<Millis> {
        let words = self.all().map(|slot| slot.load(Ordering::Relaxed));
        let ages = words.filter(|word| word & STATE == PENDING).map(|word| age(word, now));
        ages.max()
    }
}

/// Lets go of what was pinned, also when answering panics: an owner waits for it.
struct Unpin<'a> {
    slot: &'a AtomicU64,
    word: u64,
}

impl Drop for Unpin<'_> {
    fn drop(&mut self) {
        self.slot.store(self.word, Ordering::Release);
    }
}

/// What a reader is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Waiting for events.
    Idle,
    /// Inside of a read, or not yet through with publishing what it brought.
    Reading {
        /// Of which group.
        near: bool,
    },
    /// All else.
    Working,
}

const IDLE: u64 = 0;
const WORKING: u64 = 1;
const READING: u64 = 2;
const SCANNING: u64 = 3;
const READS_NEAR: u64 = 4;
const BEGAN: u32 = 3;

/// What a reader is at, and since when, as one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn step(self) -> Step {
        match self.0 & STATE {
            IDLE => Step::Idle,
            WORKING => Step::Working,
            _ => Step::Reading { near: self.0 & READS_NEAR != 0 },
        }
    }

    pub(crate) fn since(self) -> Nanos {
        self.0 >> BEGAN
    }
}

/// A reader's phase.
#[derive(Debug)]
pub(crate) struct Phase(AtomicU64);

impl Phase {
    pub(crate) fn new() -> Phase {
        Phase(AtomicU64::new(IDLE))
    }

    /// Reader: waits for events from now on. Not while reading.
    pub(crate) fn idle(&self, now: Nanos) {
        self.0.store(now << BEGAN | IDLE, Ordering::Release);
    }

    /// Reader: does something from now on. Not while reading.
    pub(crate) fn working(&self, now: Nanos) {
        self.0.store(now << BEGAN | WORKING, Ordering::Release);
    }

    /// Reader: is about to read. What the last read brought must be gone from the buffer that others can see.
    pub(crate) fn begin_read(&self, near: bool, now: Nanos) {
        let queue = if near { READS_NEAR } else { 0 };
        self.0.store(now << BEGAN | queue | READING, Ordering::Release);
    }

    /// Reader: what the read brought is published, or closed next. Returns once nobody writes to its numbers unpinned.
    pub(crate) fn end_read(&self, now: Nanos) {
        loop {
            let word = self.0.load(Ordering::Relaxed);
            let ended = now << BEGAN | WORKING;
            if word & STATE != SCANNING
                && self.0.compare_exchange(word, ended, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                return;
            }
            pause();
        }
    }

    pub(crate) fn now(&self) -> Moment {
        let word = self.0.load(Ordering::Acquire);
        // To others a scan is a part of the read.
        Moment(if word & STATE == SCANNING { word & !STATE | READING } else { word })
    }

    /// Watchdog (one thread at a time): if the reader is still at that read, has `answer` answer what the read may have
    /// brought. The reader does not get past [`Phase::end_read`] meanwhile, so it closes none of it.
    pub(crate) fn scan(&self, moment: Moment, answer: impl FnOnce()) -> bool {
        if moment.0 & STATE != READING {
            return false;
        }
        let scanning = moment.0 & !STATE | SCANNING;
        if self.0.compare_exchange(moment.0, scanning, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        let _done = Unpin { slot: &self.0, word: moment.0 };
        answer();
        true
    }
}

/// A scan is some hundred writes, so this is short.
fn pause() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::sleep(std::time::Duration::from_micros(20));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const POST: Post = Post { number: 0x7FFF_FFFE, near: true, kind: 2, own: true };

    fn rescued(slots: &Slots, now: Millis) -> Vec<(Post, Millis)> {
        let mut answered = Vec::new();
        slots.rescue(now, 500, |post, age| answered.push((post, age)));
        answered
    }

    #[test]
    fn an_event_is_overdue_at_its_deadline_also_when_the_clock_wraps() {
        for since in [0, 12_345, TIMES - 100, TIMES, TIMES + 7] {
            let slots = Slots::new(3);
            slots.publish(1, POST, since);
            assert!(slots.is_pending(1));
            assert_eq!(slots.oldest(since + 499), Some(499));
            // Read after the watchdog had looked at its clock.
            assert_eq!(rescued(&slots, since.saturating_sub(3)), []);
            assert_eq!(rescued(&slots, since + 499), []);
            assert_eq!(rescued(&slots, since + 500), [(POST, 500)]);
            assert_eq!(rescued(&slots, since + 501), [], "once");
            assert!(!slots.is_pending(1));
            assert_eq!(slots.oldest(since + 501), None);
            assert_eq!(slots.release(1), Release::Close);
        }
    }

    #[test]
    fn what_is_released_is_left_alone() {
        let slots = Slots::new(1);
        slots.publish(0, POST, 1);
        assert_eq!(slots.release(0), Release::Close);
        assert_eq!(rescued(&slots, 1_000), []);
    }

    #[test]
    fn a_pinned_number_is_not_closed() {
        let slots = Slots::new(1);
        slots.publish(0, POST, 1);
        slots.rescue(1_000, 500, |_, _| assert_eq!(slots.release(0), Release::NotYet));
        assert_eq!(slots.release(0), Release::Close);
    }

    #[test]
    fn a_scan_is_of_one_read() {
        let phase = Phase::new();
        phase.begin_read(true, 7);
        let first = phase.now();
        assert_eq!((first.step(), first.since()), (Step::Reading { near: true }, 7));
        assert!(phase.scan(first, || assert_eq!(phase.now(), first)));
        phase.end_read(8);
        assert_eq!(phase.now().step(), Step::Working);
        phase.begin_read(true, 9);
        assert!(!phase.scan(first, || unreachable!()));
    }
}

//! Log lines that somebody else can provoke: told at first, then counted.
//!
//! A container that makes and removes a guarded path all day would fill the node's log. Each kind of message of each guard
//! has a token bucket; what finds it empty is held back and counted (`janus_log_held_back_total`), and the count is told
//! when the flood has ended, or once a minute while it goes on. A kind is a place in the code; a guard is the event's field
//! `guard`.
//!
//! [`Floods`] is pure; [`Dam`] is the layer for `tracing`, with a thread that sleeps for as long as nothing is held back.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one kind that are told at once. A guard has rules in the hundreds, and may have as many problems when it
/// starts.
const BURST: u32 = 100;
/// Then one line in this time.
const EACH: Duration = Duration::from_secs(10);
/// A flood has ended when nothing was held back for this long.
const QUIET: Duration = Duration::from_secs(5);
/// While it goes on, it is told of this often.
const OFTEN: Duration = Duration::from_secs(60);
/// Kinds of lines that are told apart. Beyond, all new ones share one bucket.
const MOST_KINDS: usize = 8192;
/// Of the message, bytes.
const LONGEST: usize = 256;

/// Lines held back since the process started.
pub static HELD_BACK: LazyLock<Counter> = LazyLock::new(Counter::default);

/// So many at once, then one in [`EACH`].
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u32,
    /// When the last token was counted in.
    filled: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Bucket {
        Bucket { tokens: BURST, filled: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let due = u32::try_from(passed.as_millis() / EACH.as_millis()).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(due).min(BURST);
        // Full: time that passes then is nobody's credit.
        self.filled = if self.tokens == BURST { now } else { self.filled + EACH * due };
    }

    fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        has
    }
}

#[derive(Debug)]
struct Flow {
    bucket: Bucket,
    held_back: u64,
    /// When the first and the last of these were.
    since: Instant,
    last: Instant,
}

impl Flow {
    fn due(&self) -> Option<Instant> {
        (self.held_back > 0).then(|| (self.last + QUIET).min(self.since + OFTEN))
    }
}

/// Which lines pass.
#[derive(Debug)]
pub struct Floods<K>(HashMap<K, Flow>);

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is told.
    Told,
    /// It is counted; `first`: it is the first since the count was told last.
    HeldBack {
        /// See above.
        first: bool,
    },
}

impl<K> Default for Floods<K> {
    fn default() -> Self {
        Floods(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone> Floods<K> {
    /// Whether a line may pass now.
    pub fn line(&mut self, kind: &K, now: Instant) -> Fate {
        let flow = match self.0.get_mut(kind) {
            Some(flow) => flow,
            None => self.0.entry(kind.clone()).or_insert(Flow {
                bucket: Bucket::new(now),
                held_back: 0,
                since: now,
                last: now,
            }),
        };
        if flow.bucket.take(now) {
            return Fate::Told;
        }
        let first = flow.held_back == 0;
        if first {
            flow.since = now;
        }
        flow.held_back += 1;
        flow.last = now;
        Fate::HeldBack { first }
    }

    /// Takes the counts that are to be told by now.
    pub fn due(&mut self, now: Instant) -> Vec<(K, u64)> {
        let mut told = Vec::new();
        for (kind, flow) in &mut self.0 {
            if flow.due().is_some_and(|due| due <= now) {
                told.push((kind.clone(), std::mem::take(&mut flow.held_back)));
            }
        }
        told
    }

    /// When the next count is to be told.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(Flow::due).min()
    }

    /// Takes all counts.
    pub fn rest(&mut self) -> Vec<(K, u64)> {
        let held = self.0.iter_mut().filter(|(_, flow)| flow.held_back > 0);
        held.map(|(kind, flow)| (kind.clone(), std::mem::take(&mut flow.held_back))).collect()
    }

    /// Whether this kind is told apart, or there is room for it. Forgets those whose bucket is full again.
    fn room_for(&mut self, kind: &K, now: Instant) -> bool {
        if self.0.len() >= MOST_KINDS && !self.0.contains_key(kind) {
            self.0.retain(|_, flow| {
                flow.bucket.fill(now);
                flow.held_back > 0 || flow.bucket.tokens < BURST
            });
        }
        self.0.len() < MOST_KINDS || self.0.contains_key(kind)
    }
}

/// A place in the code and a guard; without them, all that found no room.
type Kind = Option<(Identifier, Box<str>)>;

#[derive(Debug, Default)]
struct Basin {
    floods: Floods<Kind>,
    /// The first message that was held back of each kind.
    messages: HashMap<Kind, String>,
    over: bool,
}

/// The layer.
#[derive(Debug)]
pub struct Dam(Arc<(Mutex<Basin>, Condvar)>);

/// The thread that tells what was held back. Dropped, it tells the rest and ends.
#[derive(Debug)]
pub struct DamKeeper {
    basin: Arc<(Mutex<Basin>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Dam {
    /// Makes the layer and starts the thread.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn new() -> std::io::Result<(Dam, DamKeeper)> {
        let basin = Arc::<(Mutex<Basin>, Condvar)>::default();
        let kept = basin.clone();
        let thread = std::thread::Builder::new().name("janus-floods".into()).stack_size(512 * 1024);
        let thread = thread.spawn(move || keep(&kept))?;
        Ok((Dam(basin.clone()), DamKeeper { basin, thread: Some(thread) }))
    }

    fn passes(&self, event: &Event<'_>, now: Instant) -> bool {
        if event.metadata().target() == module_path!() {
            return true;
        }
        let mut guard = GuardField(String::new());
        event.record(&mut guard);
        let (basin, bell) = &*self.0;
        let mut basin = basin.lock();
        let mut kind = Some((event.metadata().callsite(), guard.0.into_boxed_str()));
        if !basin.floods.room_for(&kind, now) {
            kind = None;
        }
        match basin.floods.line(&kind, now) {
            Fate::Told => true,
            Fate::HeldBack { first } => {
                HELD_BACK.inc();
                if first {
                    let mut message = Message(String::new());
                    event.record(&mut message);
                    basin.messages.insert(kind, message.0);
                    bell.notify_one();
                }
                false
            }
        }
    }
}

impl<S: Subscriber> Layer<S> for Dam {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.passes(event, Instant::now())
    }
}

fn keep((basin, bell): &(Mutex<Basin>, Condvar)) {
    let mut basin = basin.lock();
    loop {
        let over = basin.over;
        let told = if over { basin.floods.rest() } else { basin.floods.due(Instant::now()) };
        let told: Vec<_> = told
            .into_iter()
            .map(|(kind, count)| {
                let message = basin.messages.remove(&kind).unwrap_or_default();
                (kind, count, message)
            })
            .collect();
        // The log is not ours to wait for while others have lines to bring.
        parking_lot::MutexGuard::unlocked(&mut basin, || {
            for (kind, count, message) in told {
                let guard = kind.map(|(_, guard)| guard).unwrap_or_default();
                tracing::warn!(%guard, count, like = message, "log lines were held back");
            }
        });
        if over {
            return;
        }
        match basin.floods.next() {
            _ if basin.over => {}
            // Spurious or early: it looks again.
            Some(due) => drop(bell.wait_until(&mut basin, due)),
            None => bell.wait(&mut basin),
        }
    }
}

impl Drop for DamKeeper {
    fn drop(&mut self) {
        self.basin.0.lock().over = true;
        self.basin.1.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that tells of floods panicked");
        }
    }
}

/// The field `guard` of an event.
struct GuardField(String);

impl Visit for GuardField {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "guard" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "guard" {
            self.0 = format!("{value:?}");
        }
    }
}

/// The message of an event, shortened.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = crate::line::escaped(format!("{value:?}").as_bytes());
            let end = (0..=LONGEST.min(self.0.len())).rev().find(|at| self.0.is_char_boundary(*at));
            self.0.truncate(end.unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In whatever time, no more pass than a full bucket and what has dripped in since; and a line that comes after a
        /// pause passes.
        #[test]
        fn a_bucket_bounds_every_window(gaps in prop::collection::vec(0u64..30_000, 1..600)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(start);
            let mut now = start;
            let mut passed: Vec<Instant> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                let took = bucket.take(now);
                prop_assert!(took || gap < 10_000, "refused after a pause of {gap} ms");
                if took {
                    passed.push(now);
                }
            }
            for (at, from) in passed.iter().enumerate() {
                for (behind, to) in passed[at..].iter().enumerate() {
                    let window = to.duration_since(*from).as_millis() / EACH.as_millis();
                    prop_assert!(behind as u128 <= u128::from(BURST) + window);
                }
            }
        }

        /// Every line is told or counted, and every count is told, once.
        #[test]
        fn nothing_is_lost(steps in prop::collection::vec((0u8..3, 0u64..3000, any::<bool>()), 0..2000)) {
            let mut floods = Floods::default();
            let mut now = Instant::now();
            let (mut lines, mut told, mut counted) = (0u64, 0u64, BTreeMap::<u8, u64>::new());
            let mut held = BTreeMap::<u8, u64>::new();
            for (kind, gap, look) in steps {
                now += Duration::from_millis(gap);
                lines += 1;
                match floods.line(&kind, now) {
                    Fate::Told => told += 1,
                    Fate::HeldBack { first } => {
                        let before = held.entry(kind).or_default();
                        prop_assert_eq!(first, *before == 0);
                        *before += 1;
                    }
                }
                if look {
                    for (kind, count) in floods.due(now) {
                        prop_assert_eq!(held.remove(&kind), Some(count));
                        *counted.entry(kind).or_default() += count;
                    }
                    prop_assert!(floods.next().is_none_or(|next| next > now && next <= now + OFTEN));
                }
            }
            for (kind, count) in floods.due(now + QUIET) {
                *counted.entry(kind).or_default() += count;
            }
            prop_assert_eq!(floods.next(), None);
            prop_assert_eq!(told + counted.values().sum::<u64>(), lines);
        }
    }

    #[test]
    fn one_guards_flood_leaves_another_its_lines() {
        let mut floods = Floods::default();
        let now = Instant::now();
        let told = (0..1000).filter(|_| floods.line(&"noisy", now) == Fate::Told).count();
        assert_eq!(told, BURST as usize);
        assert_eq!(floods.line(&"quiet", now), Fate::Told);
        assert_eq!(floods.next(), Some(now + QUIET));
        assert_eq!(floods.due(now), []);
        assert_eq!(floods.due(now + QUIET), [("noisy", 1000 - u64::from(BURST))]);
    }

    #[test]
    fn a_flood_that_goes_on_is_told_of_once_a_minute() {
        let mut floods = Floods::default();
        let start = Instant::now();
        (0..BURST).for_each(|_| assert_eq!(floods.line(&1, start), Fate::Told));
        let mut told = Vec::new();
        for second in 0..300 {
            let now = start + Duration::from_secs(second);
            for _ in 0..10 {
                floods.line(&1, now);
            }
            told.extend(floods.due(now).into_iter().map(|(_, count)| (second, count)));
        }
        assert!((4..=5).contains(&told.len()), "{told:?}");
    }

    #[test]
    fn kinds_are_bounded() {
        let mut floods = Floods::default();
        let now = Instant::now();
        for kind in 0..2 * MOST_KINDS {
            if floods.room_for(&kind, now) {
                floods.line(&kind, now);
            }
        }
        assert_eq!(floods.0.len(), MOST_KINDS);
        // Once their buckets are full again they make room.
        assert!(floods.room_for(&usize::MAX, now + EACH));
        assert_eq!(floods.0.len(), 0);
    }
}

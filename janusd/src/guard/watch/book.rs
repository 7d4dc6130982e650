//! Who watches which directory, and what of the noise is whose. Pure: no descriptor, no clock of its own.
//!
//! inotify gives one watch descriptor for an inode and an instance, so what several guards watch is one watch with several
//! holders, and goes with the last of them. Every watch asks for the same events: there are no masks to unite.
//!
//! What is bounded: what is kept for a guard that does not look ([`MOST_RECORDS`], [`MOST_BYTES`]: beyond, it surveys again),
//! and what one guard's directories may take of the kernel's queue, which all share. While reads keep coming back full,
//! the busiest guard is *muted*: each of its directories that speaks up is no longer watched, and after [`MUTED`] it surveys
//! again, which brings its watches back. A queue that overflows all the same has lost we know not what: everybody surveys,
//! at most every [`BETWEEN_OVERFLOWS`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::fs::inotify::ReadFlags;

use super::{Change, For};

/// Records that are kept for one guard.
pub(super) const MOST_RECORDS: usize = 4096;
/// And the bytes of their names.
const MOST_BYTES: usize = 128 * 1024;
/// Full reads in a row that mean that the kernel's queue grows faster than it is read.
pub(super) const PRESSING: u32 = 3;
/// For how long the busiest guard is not listened to then.
pub(super) const MUTED: Duration = Duration::from_secs(1);
/// How often an overflow may make everybody survey.
pub(super) const BETWEEN_OVERFLOWS: Duration = Duration::from_secs(2);
/// Watches that spoke before their holder was known, at most; beyond, every one counts as having spoken.
const MOST_STRAYS: usize = 1024;

/// Names a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Party(u64);

/// What matters to one watcher about a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Interest {
    /// Entries by name.
    entries: BTreeSet<Vec<u8>>,
    /// Every entry.
    all: bool,
    /// Every entry that appears.
    guarded: bool,
    /// Asked for by this survey.
    wanted: bool,
}

/// An event that is still to be weighed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    watch: i32,
    flags: u32,
    name: Vec<u8>,
}

#[derive(Debug, Default)]
struct Subscription {
    /// Where each watched directory was found, and why it is watched.
    directories: HashMap<i32, (Vec<u8>, Interest)>,
    /// Between the begin of a survey and its end nobody knows what matters: everything is kept, and weighed afterwards.
    surveying: bool,
    records: BTreeSet<Record>,
    bytes: usize,
    /// Something that only a survey can see to.
    survey: bool,
    /// Its bell rings already.
    rung: bool,
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct Book {
    parties: BTreeMap<Party, Subscription>,
    next: u64,
    holders: HashMap<i32, Vec<Party>>,
    /// Watches that nobody holds, to be removed from the kernel.
    orphans: BTreeSet<i32>,
    /// Calls of `inotify_add_watch(2)` under way, each of which may bring a watch that we think is nobody's.
    adding: usize,
    strays: HashSet<i32>,
    all_strayed: bool,
    rings: Vec<Party>,
    /// Events of this read, by whose they are.
    batch: HashMap<Party, u32>,
    full_reads: u32,
    muted: BTreeMap<Party, Instant>,
    overflowed: Option<Instant>,
    overflow_due: Option<Instant>,
}

/// What noise has led to, for whoever tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noise {
    /// So many more guards are not listened to for a while.
    Muted(usize),
    /// The queue overflowed, and everybody surveys.
    Overflow,
}

impl Book {
    pub(super) fn join(&mut self) -> Party {
        let party = Party(self.next);
        self.next += 1;
        self.parties.insert(party, Subscription::default());
        party
    }

    pub(super) fn leave(&mut self, party: Party) {
        self.muted.remove(&party);
        let Some(left) = self.parties.remove(&party) else { return };
        for watch in left.directories.into_keys() {
            self.let_go(party, watch);
        }
    }

    fn let_go(&mut self, party: Party, watch: i32) {
        let Some(holders) = self.holders.get_mut(&watch) else { return };
        holders.retain(|holder| *holder != party);
        if holders.is_empty() {
            self.holders.remove(&watch);
            self.orphans.insert(watch);
        }
    }

    /// A survey begins: nothing is wanted yet.
    pub(super) fn begin(&mut self, party: Party) {
        let Some(subscription) = self.parties.get_mut(&party) else { return };
        // What came before is weighed by what mattered before.
        subscription.weigh();
        subscription.surveying = true;
        for (_, interest) in subscription.directories.values_mut() {
            *interest = Interest::default();
        }
    }

    /// A survey has ended: what it did not want is let go.
    pub(super) fn sweep(&mut self, party: Party) {
        let Some(subscription) = self.parties.get_mut(&party) else { return };
        subscription.weigh();
        subscription.surveying = false;
        let unwanted = subscription.directories.extract_if(|_, (_, interest)| !interest.wanted);
        let unwanted: Vec<i32> = unwanted.map(|(watch, _)| watch).collect();
        for watch in unwanted {
            self.let_go(party, watch);
        }
    }

    /// A watch is about to be added. Until [`Book::added`] none is removed: it may be this one.
    pub(super) fn adding(&mut self) {
        self.adding += 1;
    }

    /// The watch was added (or not) for `party`, which wants it for `what` at `path`.
    pub(super) fn added(&mut self, party: Party, watch: Option<i32>, path: &[u8], what: For<'_>) {
        if let (Some(watch), Some(subscription)) = (watch, self.parties.get_mut(&party)) {
            let (known, interest) = subscription.directories.entry(watch).or_default();
            if known != path {
                *known = path.to_vec();
            }
            interest.wanted = true;
            match what {
                For::Entry(name) => {
                    if !interest.entries.contains(name) {
                        interest.entries.insert(name.to_vec());
                    }
                }
                For::Entries => interest.all = true,
                For::Guarded => interest.guarded = true,
            }
            // Held again before it could be removed.
            self.orphans.remove(&watch);
            let holders = self.holders.entry(watch).or_default();
            if !holders.contains(&party) {
                holders.push(party);
            }
            if self.all_strayed || self.strays.contains(&watch) {
                self.tell_to_survey(party);
            }
        }
        self.adding = self.adding.saturating_sub(1);
        if self.adding == 0 {
            self.strays.clear();
            self.all_strayed = false;
        }
    }

    /// Takes some of the watches that nobody holds; the caller removes them before it lets go of the book. None while a
    /// watch is being added.
    pub(super) fn orphans(&mut self, most: usize) -> Vec<i32> {
        if self.adding > 0 {
            return Vec::new();
        }
        let some: Vec<i32> = self.orphans.iter().take(most).copied().collect();
        for watch in &some {
            self.orphans.remove(watch);
        }
        some
    }

    /// Something has happened to a watched directory, or in it.
    pub(super) fn event(&mut self, watch: i32, flags: ReadFlags, name: &[u8]) {
        let Some(holders) = self.holders.get(&watch) else {
            if self.adding > 0 {
                if self.strays.len() < MOST_STRAYS {
                    self.strays.insert(watch);
                } else {
                    self.all_strayed = true;
                }
            }
            return;
        };
        let mut heard = false;
        for party in holders {
            *self.batch.entry(*party).or_default() += 1;
            if self.muted.contains_key(party) {
                continue;
            }
            heard = true;
            if let Some(subscription) = self.parties.get_mut(party)
                && subscription.hear(watch, flags, name)
            {
                self.rings.push(*party);
            }
        }
        if flags.contains(ReadFlags::IGNORED) {
            // It went with its directory. A survey that is under way still weighs what came from there.
            for party in self.holders.remove(&watch).unwrap_or_default() {
                if let Some(subscription) = self.parties.get_mut(&party)
                    && !subscription.surveying
                {
                    subscription.directories.remove(&watch);
                }
            }
        } else if !heard {
            for party in self.holders.remove(&watch).unwrap_or_default() {
                if let Some(subscription) = self.parties.get_mut(&party) {
                    subscription.directories.remove(&watch);
                }
            }
            self.orphans.insert(watch);
        }
    }

    /// The events of one read have been told. `full`: more were waiting than it had room for.
    pub(super) fn end_of_read(&mut self, full: bool, now: Instant) -> Option<Noise> {
        self.full_reads = if full { self.full_reads.saturating_add(1) } else { 0 };
        let mut muted = 0;
        if self.full_reads >= PRESSING {
            let listened = self.batch.iter().filter(|(party, _)| !self.muted.contains_key(party));
            let most = listened.clone().map(|(_, count)| *count).max();
            // All that are as busy: guards that watch the same directory are.
            let busiest: Vec<Party> =
                listened.filter(|(_, count)| Some(**count) == most).map(|(party, _)| *party).collect();
            muted = busiest.len();
            self.muted.extend(busiest.into_iter().map(|party| (party, now + MUTED)));
        }
        self.batch.clear();
        (muted > 0).then_some(Noise::Muted(muted))
    }

    /// The kernel's queue overflowed.
    pub(super) fn overflow(&mut self, now: Instant) -> Option<Noise> {
        match self.overflowed {
            Some(last) if now < last + BETWEEN_OVERFLOWS => {
                self.overflow_due.get_or_insert(last + BETWEEN_OVERFLOWS);
                None
            }
            _ => {
                self.overflowed = Some(now);
                self.everybody();
                Some(Noise::Overflow)
            }
        }
    }

    /// Everybody surveys: nobody knows what was missed.
    pub(super) fn everybody(&mut self) {
        let parties: Vec<Party> = self.parties.keys().copied().collect();
        for party in parties {
            self.tell_to_survey(party);
        }
    }

    /// Does what has come due.
    pub(super) fn tick(&mut self, now: Instant) {
        let over: Vec<Party> = self.muted.iter().filter(|(_, until)| **until <= now).map(|(party, _)| *party).collect();
        for party in over {
            self.muted.remove(&party);
            self.tell_to_survey(party);
        }
        if self.overflow_due.is_some_and(|due| due <= now) {
            self.overflow_due = None;
            self.overflowed = Some(now);
            self.everybody();
        }
    }

    /// When something comes due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.muted.values().copied().chain(self.overflow_due).min()
    }

    /// Whose bells are to be rung.
    pub(super) fn rings(&mut self) -> Vec<Party> {
        std::mem::take(&mut self.rings)
    }

    fn tell_to_survey(&mut self, party: Party) {
        if let Some(subscription) = self.parties.get_mut(&party) {
            subscription.survey = true;
            if subscription.ring() {
                self.rings.push(party);
            }
        }
    }

    /// Takes what has happened since the last call.
    pub(super) fn take(&mut self, party: Party) -> Vec<Change> {
        let Some(subscription) = self.parties.get_mut(&party) else { return Vec::new() };
        // Who asks has no survey under way, even if the last one broke off.
        subscription.surveying = false;
        subscription.rung = false;
        let mut changes = subscription.appeared();
        if std::mem::take(&mut subscription.survey) {
            changes.insert(Change::Survey);
        }
        changes.into_iter().collect()
    }

    /// How many directories are watched.
    #[cfg(test)]
    fn watched(&self) -> usize {
        self.holders.len()
    }
}

impl Subscription {
    /// Whether the bell is to be rung, which this then counts as done.
    fn ring(&mut self) -> bool {
        !std::mem::replace(&mut self.rung, true)
    }

    /// Notes an event, if it matters. Whether the bell is to be rung.
    fn hear(&mut self, watch: i32, flags: ReadFlags, name: &[u8]) -> bool {
        if !self.surveying {
            let Some((_, interest)) = self.directories.get(&watch) else { return false };
            let weight = interest.weigh(flags, name);
            self.survey |= weight.survey;
            if !weight.appeared {
                return weight.survey && self.ring();
            }
        }
        if self.records.len() >= MOST_RECORDS || self.bytes + name.len() > MOST_BYTES {
            // It writes faster than we look: all that was noted is for the survey to find.
            self.records.clear();
            self.bytes = 0;
            self.survey = true;
        } else if self.records.insert(Record { watch, flags: flags.bits(), name: name.to_vec() }) {
            self.bytes += name.len();
        }
        self.ring()
    }

    /// Weighs what was kept unweighed, by what matters now. What has appeared stays.
    fn weigh(&mut self) {
        if !self.surveying {
            return;
        }
        let (mut survey, mut gone) = (false, Vec::new());
        let directories = &self.directories;
        self.records.retain(|record| {
            let flags = ReadFlags::from_bits_retain(record.flags);
            if flags.contains(ReadFlags::IGNORED) {
                gone.push(record.watch);
            }
            let Some((_, interest)) = directories.get(&record.watch) else { return false };
            let weight = interest.weigh(flags, &record.name);
            survey |= weight.survey;
            weight.appeared
        });
        self.bytes = self.records.iter().map(|record| record.name.len()).sum();
        self.survey |= survey;
        for watch in gone {
            self.directories.remove(&watch);
        }
    }

    /// Takes what has appeared in guarded directories, and whatever else was kept.
    fn appeared(&mut self) -> BTreeSet<Change> {
        let mut changes = BTreeSet::new();
        let mut gone = Vec::new();
        self.bytes = 0;
        for record in std::mem::take(&mut self.records) {
            let flags = ReadFlags::from_bits_retain(record.flags);
            if flags.contains(ReadFlags::IGNORED) {
                gone.push(record.watch);
            }
            let Some((path, interest)) = self.directories.get(&record.watch) else { continue };
            let weight = interest.weigh(flags, &record.name);
            self.survey |= weight.survey;
            if weight.appeared {
                let below = [b"/", &record.name[..]].concat();
                changes.insert(Change::Appeared(crate::guard::view::join(path, &below)));
            }
        }
        for watch in gone {
            self.directories.remove(&watch);
        }
        changes
    }
}

/// What an event means to a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Weight {
    survey: bool,
    appeared: bool,
}

impl Interest {
    fn weigh(&self, flags: ReadFlags, name: &[u8]) -> Weight {
        let gone = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT;
        if flags.intersects(gone) {
            // A guarded directory that is deleted takes its marks along, and nothing else changes. One that moves may
            // have come to lie elsewhere.
            let survey = self.all || !self.entries.is_empty() || flags.contains(ReadFlags::MOVE_SELF);
            return Weight { survey, appeared: false };
        }
        Weight {
            survey: self.all || self.entries.contains(name),
            appeared: self.guarded && flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENTRY: For<'static> = For::Entry(b"token");

    fn add(book: &mut Book, party: Party, watch: i32, what: For<'_>) {
        book.adding();
        book.added(party, Some(watch), format!("/d{watch}").as_bytes(), what);
    }

    fn removed(book: &mut Book) -> BTreeSet<i32> {
        book.orphans(usize::MAX).into_iter().collect()
    }

    #[test]
    fn an_event_reaches_each_holder_by_its_own_interest() {
        let mut book = Book::default();
        let [one, two, three] = [(); 3].map(|()| book.join());
        add(&mut book, one, 1, ENTRY);
        add(&mut book, two, 1, For::Guarded);
        add(&mut book, three, 1, For::Entry(b"other"));
        book.event(1, ReadFlags::CREATE, b"token");
        assert_eq!(book.rings(), [one, two]);
        assert_eq!(book.take(one), [Change::Survey]);
        assert_eq!(book.take(two), [Change::Appeared(b"/d1/token".to_vec())]);
        assert_eq!(book.take(three), []);
        book.event(1, ReadFlags::DELETE, b"token");
        assert_eq!(book.rings(), [one]);
    }

    #[test]
    fn a_bell_rings_once_until_somebody_looks() {
        let mut book = Book::default();
        let one = book.join();
        add(&mut book, one, 1, For::Entries);
        for _ in 0..10 {
            book.event(1, ReadFlags::CREATE, b"x");
        }
        assert_eq!(book.rings(), [one]);
        assert_eq!(book.take(one), [Change::Survey]);
        book.event(1, ReadFlags::CREATE, b"x");
        assert_eq!(book.rings(), [one]);
    }

    /// A survey that has not come to a directory yet must not miss what happens there meanwhile.
    #[test]
    fn during_a_survey_what_is_wanted_later_counts() {
        let mut book = Book::default();
        let one = book.join();
        add(&mut book, one, 1, For::Guarded);
        add(&mut book, one, 2, ENTRY);
        book.begin(one);
        book.event(1, ReadFlags::CREATE, b"late");
        book.event(2, ReadFlags::CREATE, b"noise");
        add(&mut book, one, 1, For::Guarded);
        add(&mut book, one, 2, ENTRY);
        book.sweep(one);
        assert_eq!(book.take(one), [Change::Appeared(b"/d1/late".to_vec())]);
        book.begin(one);
        book.event(2, ReadFlags::MOVED_TO, b"other");
        add(&mut book, one, 2, For::Entry(b"other"));
        book.sweep(one);
        assert_eq!(book.take(one), [Change::Survey]);
        assert_eq!(removed(&mut book), BTreeSet::from([1]));
    }

    /// Between the kernel's watch and our note of it an event is nobody's.
    #[test]
    fn what_happens_while_a_watch_is_added_is_not_lost() {
        let mut book = Book::default();
        let one = book.join();
        book.adding();
        book.event(7, ReadFlags::CREATE, b"token");
        book.added(one, Some(7), b"/d7", For::Guarded);
        assert_eq!(book.take(one), [Change::Survey]);
        book.event(8, ReadFlags::CREATE, b"token");
        add(&mut book, one, 8, For::Guarded);
        assert_eq!(book.take(one), [], "nobody was adding when it came");
    }

    /// The kernel gives a directory's one watch to whoever asks: one that is being given may not be removed.
    #[test]
    fn no_watch_goes_while_one_is_being_added() {
        let mut book = Book::default();
        let [one, two] = [(); 2].map(|()| book.join());
        add(&mut book, one, 1, ENTRY);
        book.adding();
        book.leave(one);
        assert_eq!(removed(&mut book), BTreeSet::new());
        book.added(two, Some(1), b"/d1", ENTRY);
        assert_eq!(removed(&mut book), BTreeSet::new());
        book.leave(two);
        assert_eq!(removed(&mut book), BTreeSet::from([1]));
    }

    #[test]
    fn a_directory_that_goes_is_told_once_and_forgotten() {
        let mut book = Book::default();
        let [one, two] = [(); 2].map(|()| book.join());
        add(&mut book, one, 1, ENTRY);
        add(&mut book, two, 1, For::Guarded);
        book.event(1, ReadFlags::DELETE_SELF, b"");
        book.event(1, ReadFlags::IGNORED, b"");
        assert_eq!((book.take(one), book.take(two)), (vec![Change::Survey], vec![]));
        assert_eq!(book.watched(), 0);
        assert_eq!(removed(&mut book), BTreeSet::new(), "the kernel has removed it");
    }

    #[test]
    fn a_flood_of_names_becomes_a_survey() {
        let mut book = Book::default();
        let one = book.join();
        add(&mut book, one, 1, For::Guarded);
        for number in 0..=MOST_RECORDS {
            book.event(1, ReadFlags::CREATE, number.to_string().as_bytes());
        }
        assert_eq!(book.take(one), [Change::Survey]);
        let long = |number: usize| [number.to_string().into_bytes(), vec![b'x'; 240]].concat();
        for number in 0..1000 {
            book.event(1, ReadFlags::CREATE, &long(number));
            assert!(book.parties[&one].bytes <= MOST_BYTES);
        }
        assert!(book.take(one).contains(&Change::Survey));
    }

    #[test]
    fn the_busiest_is_muted_and_the_others_are_heard() {
        let mut book = Book::default();
        let [noisy, quiet] = [(); 2].map(|()| book.join());
        add(&mut book, noisy, 1, For::Guarded);
        add(&mut book, noisy, 2, For::Guarded);
        add(&mut book, quiet, 3, For::Guarded);
        let now = Instant::now();
        let mut told = None;
        for _ in 0..PRESSING {
            assert_eq!(told, None);
            (0..50).for_each(|_| book.event(1, ReadFlags::CREATE, b"x"));
            book.event(3, ReadFlags::CREATE, b"y");
            told = book.end_of_read(true, now);
        }
        assert_eq!(told, Some(Noise::Muted(1)));
        assert_eq!(book.due(), Some(now + MUTED));
        book.take(noisy);
        book.take(quiet);
        // What speaks up is let go; what does not stays.
        book.event(1, ReadFlags::CREATE, b"x");
        book.event(3, ReadFlags::CREATE, b"z");
        assert_eq!(removed(&mut book), BTreeSet::from([1]));
        assert_eq!((book.take(noisy), book.take(quiet)), (vec![], vec![Change::Appeared(b"/d3/z".to_vec())]));
        book.rings();
        book.tick(now + MUTED);
        assert_eq!((book.rings(), book.take(noisy)), (vec![noisy], vec![Change::Survey]));
        assert_eq!(book.due(), None);
        book.event(2, ReadFlags::CREATE, b"x");
        assert_eq!(book.take(noisy), [Change::Appeared(b"/d2/x".to_vec())]);
    }

    /// A guard whose only fault is a directory that it shares with a noisy one keeps hearing of it through others' noise
    /// for as long as one of them is heard.
    #[test]
    fn a_shared_directory_is_watched_while_one_holder_listens() {
        let mut book = Book::default();
        let [noisy, quiet] = [(); 2].map(|()| book.join());
        add(&mut book, noisy, 1, For::Guarded);
        add(&mut book, noisy, 2, For::Guarded);
        add(&mut book, quiet, 2, For::Guarded);
        for _ in 0..PRESSING {
            (0..50).for_each(|_| book.event(1, ReadFlags::CREATE, b"x"));
            book.event(2, ReadFlags::CREATE, b"x");
            book.end_of_read(true, Instant::now());
        }
        book.take(quiet);
        book.event(2, ReadFlags::CREATE, b"y");
        assert_eq!(book.take(quiet), [Change::Appeared(b"/d2/y".to_vec())]);
        assert_eq!(removed(&mut book), BTreeSet::new());
    }

    #[test]
    fn overflows_make_everybody_survey_but_not_all_the_time() {
        let mut book = Book::default();
        let [one, two] = [(); 2].map(|()| book.join());
        let now = Instant::now();
        assert_eq!(book.overflow(now), Some(Noise::Overflow));
        assert_eq!(book.rings(), [one, two]);
        assert_eq!((book.take(one), book.take(two)), (vec![Change::Survey], vec![Change::Survey]));
        assert_eq!(book.overflow(now + BETWEEN_OVERFLOWS / 2), None);
        assert_eq!(book.take(one), []);
        // The last one is not forgotten.
        assert_eq!(book.due(), Some(now + BETWEEN_OVERFLOWS));
        book.tick(now + BETWEEN_OVERFLOWS);
        assert_eq!((book.take(one), book.take(two)), (vec![Change::Survey], vec![Change::Survey]));
        assert_eq!(book.due(), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Want(usize, i32),
        Begin(usize),
        Sweep(usize),
        Leave(usize),
        Remove,
    }

    proptest! {
        /// The kernel holds a watch exactly as long as somebody wants it.
        #[test]
        fn a_watch_lives_as_long_as_somebody_wants_it(steps in prop::collection::vec(prop_oneof![
            4 => (0usize..4, 0i32..6).prop_map(|(party, watch)| Step::Want(party, watch)),
            1 => (0usize..4).prop_map(Step::Begin),
            1 => (0usize..4).prop_map(Step::Sweep),
            1 => (0usize..4).prop_map(Step::Leave),
            2 => Just(Step::Remove),
        ], 0..200)) {
            let mut book = Book::default();
            let mut parties: Vec<Party> = (0..4).map(|_| book.join()).collect();
            // By party: what it holds, and whether the survey under way wanted it.
            let mut model: Vec<BTreeMap<i32, bool>> = vec![BTreeMap::new(); 4];
            let mut kernel: BTreeSet<i32> = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Want(party, watch) => {
                        kernel.insert(watch);
                        add(&mut book, parties[party], watch, ENTRY);
                        model[party].insert(watch, true);
                    }
                    Step::Begin(party) => {
                        book.begin(parties[party]);
                        model[party].values_mut().for_each(|wanted| *wanted = false);
                    }
                    Step::Sweep(party) => {
                        book.sweep(parties[party]);
                        model[party].retain(|_, wanted| *wanted);
                    }
                    Step::Leave(party) => {
                        book.leave(parties[party]);
                        model[party].clear();
                        parties[party] = book.join();
                    }
                    Step::Remove => {
                        for watch in book.orphans(2) {
                            prop_assert!(kernel.remove(&watch), "{watch} removed twice");
                        }
                    }
                }
                let held: BTreeSet<i32> = model.iter().flat_map(|held| held.keys().copied()).collect();
                prop_assert!(held.is_subset(&kernel));
            }
            for watch in book.orphans(usize::MAX) {
                prop_assert!(kernel.remove(&watch), "{watch} removed twice");
            }
            let held: BTreeSet<i32> = model.iter().flat_map(|held| held.keys().copied()).collect();
            prop_assert_eq!(held, kernel);
        }
    }
}

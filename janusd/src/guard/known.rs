//! Files that a deny is known to reach, by identity: so that another name for one of them gets the same answer. Pure.
//!
//! A file is learned when its directory is walked, when it is denied by name, and when it appears in a guarded
//! directory. What is kept is the name that was denied then; whether a rule still denies that name is asked anew at every
//! event. A file that is gone leaves its entry behind; another file that gets its inode number has another handle. Of
//! those that had one number a few are kept, for a program that makes and removes files all day makes as many.
//!
//! Bounded: [`KnownFiles::LIMIT`] entries, each about 90 bytes and its path, for a guard and for all of them together
//! ([`Pool`]). Beyond it nothing new is learned and nothing is forgotten: names still hold, other names of files learned
//! too late do not, and that is counted and said.

use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::site::SiteId;
use crate::fanotify::look::{FileHandle, Inode};

/// A file handle, hashed with a key of our own: nobody can make two files look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// As a number, for another process.
    pub fn number(self) -> u64 {
        self.0
    }

    /// What [`Fingerprint::number`] gave where the same key is used ([`Fingerprints::check`]).
    pub fn of_number(number: u64) -> Fingerprint {
        Fingerprint(number)
    }
}

/// The key of [`Fingerprints`].
pub type Key = [u64; 2];

/// Makes [`Fingerprint`]s. All that are compared must come from the same key, by the same way of hashing.
#[derive(Debug, Clone)]
pub struct Fingerprints(Key);

impl Default for Fingerprints {
    fn default() -> Fingerprints {
        // Each has a key that nobody can guess.
        Fingerprints([(); 2].map(|()| RandomState::new().hash_one(0)))
    }
}

impl Fingerprints {
    /// By a key of another process.
    pub fn with(key: Key) -> Fingerprints {
        Fingerprints(key)
    }

    /// The key, for another process.
    pub fn key(&self) -> Key {
        self.0
    }

    /// Equal in two processes that hash in the same way: std may come to hash otherwise.
    pub fn check(&self) -> u64 {
        self.hash("janus")
    }

    /// The fingerprint of a handle.
    pub fn of(&self, handle: &FileHandle) -> Fingerprint {
        Fingerprint(self.hash(handle))
    }

    fn hash(&self, what: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        what.hash(&mut hasher);
        hasher.finish()
    }
}

/// One file to be learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// Its number.
    pub inode: Inode,
    /// `None` where its file system gives no handles; then the number alone has to do.
    pub fingerprint: Option<Fingerprint>,
    /// Whose name that is: another container may call the file something else.
    pub site: SiteId,
    /// The name that is denied.
    pub name: Box<[u8]>,
}

/// Files that have had one inode number which are remembered.
const FORMER: usize = 16;
/// Bytes of names that may be nobody's, whatever there is.
const LOST: usize = 64 * 1024;

/// What came of learning one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lesson {
    /// It is known now.
    New,
    /// It was.
    Known,
    /// There is no room.
    Full,
}

#[derive(Debug)]
struct Entry {
    fingerprint: Option<Fingerprint>,
    site: SiteId,
    name_at: usize,
    name_len: u16,
    /// What its place among the names could hold.
    room: u16,
    /// Another entry of the same inode number.
    next: Option<u32>,
    /// Another entry of the same fingerprint.
    next_alike: Option<u32>,
}

/// How many entries all guards of the process have: whoever may write in guarded directories, and have them guarded as
/// often as they like, must not make janusd grow until it is killed, for then nothing is guarded.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<AtomicUsize>);

/// One guard's part of it, given back when dropped.
#[derive(Debug, Default)]
struct Share {
    pool: Pool,
    taken: usize,
}

impl Share {
    fn is_full(&self, limit: usize) -> bool {
        self.taken >= KnownFiles::OWN.min(limit) && self.pool.0.load(Ordering::Relaxed) >= limit
    }

    fn set(&mut self, taken: usize) {
        // One after the other: nobody takes what is counted twice, and a few too many for a moment harm nobody.
        self.pool.0.fetch_add(taken, Ordering::Relaxed);
        self.pool.0.fetch_sub(self.taken, Ordering::Relaxed);
        self.taken = taken;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The files that are known.
#[derive(Debug)]
pub struct KnownFiles {
    first: HashMap<Inode, u32>,
    alike: HashMap<Fingerprint, u32>,
    entries: Vec<Entry>,
    /// Entries that are nobody's.
    free: Vec<u32>,
    names: Vec<u8>,
    /// Bytes of names that are nobody's.
    lost: usize,
    limit: usize,
    share: Share,
}

impl Default for KnownFiles {
    fn default() -> Self {
        KnownFiles::of(Pool::default())
    }
}

impl KnownFiles {
    /// The most entries that a guard keeps, and that all of them keep, but for those that each has to itself.
    pub const LIMIT: usize = 1_000_000;
    /// Entries that a guard may keep whatever the others have.
    pub const OWN: usize = 2_000;

    /// None, in common with others.
    pub fn of(pool: Pool) -> KnownFiles {
        KnownFiles::with_limit(KnownFiles::LIMIT, pool)
    }

    fn with_limit(limit: usize, pool: Pool) -> KnownFiles {
        KnownFiles {
            first: HashMap::new(),
            alike: HashMap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            names: Vec::new(),
            lost: 0,
            limit,
            share: Share { pool, taken: 0 },
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they take, bytes.
    pub fn bytes(&self) -> usize {
        // One control byte a slot, as hashbrown has it.
        self.first.capacity() * (size_of::<(Inode, u32)>() + 1)
            + self.alike.capacity() * (size_of::<(Fingerprint, u32)>() + 1)
            + self.entries.capacity() * size_of::<Entry>()
            + self.free.capacity() * size_of::<u32>()
            + self.names.capacity()
    }

    /// Whether anything is known of an inode number; cheap, and the reason to get a file's handle.
    pub fn suspects(&self, inode: Inode) -> bool {
        self.first.contains_key(&inode)
    }

    /// The names that a file is known by, each with the site that calls it so. Its handle finds it also where its number has changed: an overlay gives a lower
    /// file with several names another number when it copies it up, and the same handle.
    pub fn names(&self, inode: Inode, fingerprint: Option<Fingerprint>) -> impl Iterator<Item = (SiteId, &[u8])> {
        self.chain(inode)
            .filter(move |entry| {
                entry.fingerprint.is_none() || fingerprint.is_none() || entry.fingerprint == fingerprint
            })
            .chain(fingerprint.into_iter().flat_map(|fingerprint| self.alike(fingerprint)))
            .map(|entry| (entry.site, self.name(entry)))
    }

    fn alike(&self, fingerprint: Fingerprint) -> impl Iterator<Item = &Entry> {
        let first = self.alike.get(&fingerprint).and_then(|at| self.entries.get(*at as usize));
        std::iter::successors(first, |entry| self.entries.get(entry.next_alike? as usize))
    }

    fn chain(&self, inode: Inode) -> impl Iterator<Item = &Entry> {
        let first = self.first.get(&inode).and_then(|at| self.entries.get(*at as usize));
        std::iter::successors(first, |entry| self.entries.get(entry.next? as usize))
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        &self.names[entry.name_at..entry.name_at + entry.name_len as usize]
    }

    /// Learns that a file bears a denied name.
    pub fn learn(&mut self, inode: Inode, fingerprint: Option<Fingerprint>, site: SiteId, name: &[u8]) -> Lesson {
        let same = |entry: &Entry| entry.fingerprint == fingerprint && entry.site == site && self.name(entry) == name;
        if self.chain(inode).any(same) {
            return Lesson::Known;
        }
        let (Ok(end), Ok(name_len)) = (u32::try_from(self.entries.len()), u16::try_from(name.len())) else {
            return Lesson::Full;
        };
        if let Some(fingerprint) = fingerprint {
            self.forget_former(inode, fingerprint);
            self.share.set(self.len());
        }
        if self.len() >= self.limit || self.share.is_full(self.limit) {
            return Lesson::Full;
        }
        let at = self.free.pop().unwrap_or(end);
        let (name_at, room) = self.keep_name(at, name, name_len);
        let next = self.first.insert(inode, at);
        let next_alike = fingerprint.and_then(|fingerprint| self.alike.insert(fingerprint, at));
        let entry = Entry { fingerprint, site, name_at, name_len, room, next, next_alike };
        match self.entries.get_mut(at as usize) {
            Some(free) => *free = entry,
            None => self.entries.push(entry),
        }
        self.share.set(self.len());
        Lesson::New
    }

    /// A place for a name, that of the free entry if it is large enough.
    fn keep_name(&mut self, free: u32, name: &[u8], name_len: u16) -> (usize, u16) {
        let former = self.entries.get(free as usize).map_or((0, 0), |entry| (entry.name_at, entry.room));
        if former.1 >= name_len {
            self.names[former.0..former.0 + name.len()].copy_from_slice(name);
            return former;
        }
        self.lost += usize::from(former.1);
        if self.lost > LOST && self.lost > self.names.len() / 2 {
            self.gather_names(free);
        }
        let name_at = self.names.len();
        self.names.extend_from_slice(name);
        (name_at, name_len)
    }

    /// Leaves out what is nobody's, and the name of an entry that is to have another.
    fn gather_names(&mut self, but: u32) {
        let mut names = Vec::with_capacity(self.names.len() - self.lost);
        // Those that are free have none either.
        self.free.iter().chain([&but]).for_each(|at| {
            if let Some(entry) = self.entries.get_mut(*at as usize) {
                (entry.name_len, entry.room) = (0, 0);
            }
        });
        for entry in &mut self.entries {
            let name = entry.name_at..entry.name_at + usize::from(entry.name_len);
            (entry.name_at, entry.room) = (names.len(), entry.name_len);
            names.extend_from_slice(&self.names[name]);
        }
        (self.names, self.lost) = (names, 0);
    }

    /// Of the files that have had an inode number before the one that has it now: forgets the first, if there are many. A
    /// few are kept, for a survey may tell of one that has just been replaced after the one that has replaced it.
    fn forget_former(&mut self, inode: Inode, present: Fingerprint) {
        let mut former = 0;
        let (mut before, mut last) = (None, None);
        let mut at = self.first.get(&inode).copied();
        while let Some(entry) = at.and_then(|at| self.entries.get(at as usize)) {
            if entry.fingerprint.is_some_and(|its| its != present) {
                former += 1;
                last = Some((before, at));
            }
            (before, at) = (at, entry.next);
        }
        let Some((before, Some(at))) = last.filter(|_| former > FORMER) else { return };
        let Entry { fingerprint, next, next_alike, .. } = self.entries[at as usize];
        match (before, next) {
            (Some(before), _) => self.entries[before as usize].next = next,
            (None, Some(next)) => drop(self.first.insert(inode, next)),
            (None, None) => drop(self.first.remove(&inode)),
        }
        if let Some(fingerprint) = fingerprint {
            self.forget_alike(fingerprint, at, next_alike);
        }
        self.free.push(at);
    }

    fn forget_alike(&mut self, fingerprint: Fingerprint, gone: u32, next: Option<u32>) {
        let Some(first) = self.alike.get(&fingerprint).copied() else { return };
        if first == gone {
            match next {
                Some(next) => drop(self.alike.insert(fingerprint, next)),
                None => drop(self.alike.remove(&fingerprint)),
            }
            return;
        }
        let mut at = Some(first);
        while let Some(entry) = at.and_then(|at| self.entries.get_mut(at as usize)) {
            if entry.next_alike == Some(gone) {
                entry.next_alike = next;
                return;
            }
            at = entry.next_alike;
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Learned> {
        self.first.keys().flat_map(|inode| {
            self.chain(*inode).map(|entry| Learned {
                inode: *inode,
                fingerprint: entry.fingerprint,
                site: entry.site,
                name: self.name(entry).into(),
            })
        })
    }

    /// Forgets every name for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(Inode, SiteId, &[u8]) -> bool) {
        // They have their places already.
        let mut kept = KnownFiles::with_limit(self.limit, Pool::default());
        for inode in self.first.keys() {
            for entry in self.chain(*inode) {
                let name = self.name(entry);
                if keep(*inode, entry.site, name) {
                    kept.learn(*inode, entry.fingerprint, entry.site, name);
                }
            }
        }
        if kept.len() != self.len() {
            std::mem::swap(&mut kept.share, &mut self.share);
            kept.share.set(kept.len());
            *self = kept;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const HERE: SiteId = SiteId(1);

    fn inode(ino: u64) -> Inode {
        Inode { major: 0, minor: 1, ino }
    }

    #[test]
    fn a_number_that_is_given_out_again_is_another_file() {
        let mut known = KnownFiles::default();
        known.learn(inode(7), Some(Fingerprint(1)), HERE, b"/denied/old");
        assert_eq!(known.names(inode(7), Some(Fingerprint(2))).count(), 0);
        assert!(known.names(inode(7), Some(Fingerprint(1))).all(|(site, name)| site == HERE && name == b"/denied/old"));
        // A copy-up changes the number, not the handle.
        assert_eq!(known.names(inode(8), Some(Fingerprint(1))).count(), 1);
        // Without handles the number has to do: rather a denial too many.
        assert_eq!(known.names(inode(7), None).count(), 1);
    }

    #[test]
    fn at_the_bound_nothing_is_forgotten() {
        let mut known = KnownFiles::with_limit(2, Pool::default());
        assert_eq!(known.learn(inode(1), None, HERE, b"/a"), Lesson::New);
        assert_eq!(known.learn(inode(1), None, HERE, b"/a"), Lesson::Known);
        assert_eq!(known.learn(inode(1), None, HERE, b"/b"), Lesson::New);
        assert_eq!(known.learn(inode(2), None, HERE, b"/c"), Lesson::Full);
        assert_eq!(known.names(inode(1), None).count(), 2);
        known.retain(|_, _, name| name == b"/b");
        assert_eq!(known.learn(inode(2), None, HERE, b"/c"), Lesson::New);
    }

    /// A database's temporary files, one after the other: some file systems give each the number of the last one.
    #[test]
    fn files_that_come_and_go_under_one_number_take_no_more_and_more() {
        let mut known = KnownFiles::default();
        known.learn(inode(7), None, HERE, b"/by/number");
        for generation in 0..20_000_u64 {
            // Longer and longer, and others beside it.
            let name = format!("/data/{:0width$}", generation, width = 1 + generation as usize % 2_000);
            let last = Some(Fingerprint(generation));
            assert_eq!(known.learn(inode(7), last, HERE, name.as_bytes()), Lesson::New);
            let names: Vec<_> = known.names(inode(7), last).map(|(_, name)| name.to_vec()).collect();
            // By its number as well as by its handle.
            assert!(names.iter().all(|its| *its == name.as_bytes() || *its == b"/by/number"), "{names:?}");
            assert!(names.len() >= 2);
        }
        assert_eq!(known.len(), FORMER + 2);
        assert_eq!(known.names(inode(0), Some(Fingerprint(19_999 - FORMER as u64))).count(), 1);
        assert_eq!(known.names(inode(0), Some(Fingerprint(19_998 - FORMER as u64))).count(), 0);
        assert!(known.bytes() < 512 * 1024, "{} bytes", known.bytes());
        known.retain(|_, _, name| name == b"/by/number");
        assert_eq!(known.len(), 1);
    }

    #[test]
    fn all_guards_together_have_a_bound() {
        let learn = |known: &mut KnownFiles, count: u64| {
            (0..count).filter(|ino| known.learn(inode(*ino), None, HERE, b"/a") == Lesson::New).count()
        };
        let (limit, own) = (5 * KnownFiles::OWN, KnownFiles::OWN);
        let pool = Pool::default();
        let mut greedy = KnownFiles::with_limit(limit, pool.clone());
        let mut late = KnownFiles::with_limit(limit, pool.clone());
        assert_eq!(learn(&mut late, 10), 10);
        assert_eq!(learn(&mut greedy, 2 * limit as u64), limit - 10);
        // What it has to itself, and no more.
        assert_eq!(learn(&mut late, limit as u64), own - 10);
        assert_eq!(pool.0.load(Ordering::Relaxed), limit + own - 10);
        greedy.retain(|inode, _, _| inode.ino < 100);
        assert_eq!(pool.0.load(Ordering::Relaxed), 100 + own);
        assert_eq!(learn(&mut late, limit as u64), limit - own - 100);
        // As a worker's successor takes it over.
        let heir = std::mem::take(&mut late);
        drop(late);
        assert_eq!(pool.0.load(Ordering::Relaxed), limit);
        drop((greedy, heir));
        assert_eq!(pool.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_hundred_thousand_files_take_few_bytes() {
        let mut known = KnownFiles::default();
        for ino in 0..100_000 {
            known.learn(
                inode(ino),
                Some(Fingerprint(ino)),
                HERE,
                format!("/srv/tree/directory/{ino:06}.json").as_bytes(),
            );
        }
        assert!(known.bytes() / known.len() < 200, "{} bytes a file", known.bytes() / known.len());
    }

    proptest! {
        /// The same as a set of (number, fingerprint, site, name), whatever the order.
        #[test]
        fn a_set(
            lessons in prop::collection::vec((0u64..5, prop::option::of(0u64..3), 0u32..2, "/[ab]{0,2}"), 0..60),
            kept in "/[ab]{0,2}",
        ) {
            let mut known = KnownFiles::default();
            let mut model = BTreeSet::new();
            for (ino, fingerprint, site, name) in &lessons {
                let lesson = known.learn(inode(*ino), fingerprint.map(Fingerprint), SiteId(*site), name.as_bytes());
                let new = model.insert((*ino, *fingerprint, *site, name.clone()));
                prop_assert_eq!(lesson, if new { Lesson::New } else { Lesson::Known });
            }
            for round in 0..2 {
                prop_assert_eq!(known.len(), model.len());
                for ino in 0..5 {
                    for fingerprint in 0..3 {
                        let found: BTreeSet<_> = known
                            .names(inode(ino), Some(Fingerprint(fingerprint)))
                            .map(|(site, name)| (site, name.to_vec()))
                            .collect();
                        let expected: BTreeSet<_> = model
                            .iter()
                            .filter(|(i, f, ..)| *f == Some(fingerprint) || (*i == ino && f.is_none()))
                            .map(|(_, _, site, name)| (SiteId(*site), name.as_bytes().to_vec()))
                            .collect();
                        prop_assert_eq!(found, expected);
                    }
                }
                if round == 0 {
                    known.retain(|_, _, name| name == kept.as_bytes());
                    model.retain(|(.., name)| *name == kept);
                }
            }
        }
    }
}

//! Files that a deny is known to reach, by identity: so that another name for one of them gets the same answer. Pure.
//!
//! A file is learned when its directory is walked, when it is denied by name, and when it appears in a guarded
//! directory. What is kept is the name that was denied then; whether a rule still denies that name is asked anew at every
//! event. A file that is gone leaves its entry behind; another file that gets its inode number has another handle.
//!
//! Bounded: [`KnownFiles::LIMIT`] entries, each about 90 bytes and its path. Beyond it nothing new is learned and nothing
//! is forgotten: names still hold, other names of files learned too late do not, and that is counted and said.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::site::SiteId;
use crate::fanotify::look::{FileHandle, Inode};

/// A file handle, hashed with a key of our own: nobody can make two files look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64);

/// Makes [`Fingerprint`]s. All that are compared must come from clones of one.
#[derive(Debug, Clone, Default)]
pub struct Fingerprints(RandomState);

impl Fingerprints {
    /// The fingerprint of a handle.
    pub fn of(&self, handle: &FileHandle) -> Fingerprint {
        Fingerprint(self.0.hash_one(handle))
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
    /// Another entry of the same inode number.
    next: Option<u32>,
    /// Another entry of the same fingerprint.
    next_alike: Option<u32>,
}

/// The files that are known.
#[derive(Debug)]
pub struct KnownFiles {
    first: HashMap<Inode, u32>,
    alike: HashMap<Fingerprint, u32>,
    entries: Vec<Entry>,
    names: Vec<u8>,
    limit: usize,
}

impl Default for KnownFiles {
    fn default() -> Self {
        KnownFiles::with_limit(KnownFiles::LIMIT)
    }
}

impl KnownFiles {
    /// The most entries that a guard keeps.
    pub const LIMIT: usize = 1_000_000;

    fn with_limit(limit: usize) -> KnownFiles {
        KnownFiles { first: HashMap::new(), alike: HashMap::new(), entries: Vec::new(), names: Vec::new(), limit }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What they take, bytes.
    pub fn bytes(&self) -> usize {
        // One control byte a slot, as hashbrown has it.
        self.first.capacity() * (size_of::<(Inode, u32)>() + 1)
            + self.alike.capacity() * (size_of::<(Fingerprint, u32)>() + 1)
            + self.entries.capacity() * size_of::<Entry>()
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
        let (Ok(at), Ok(name_len)) = (u32::try_from(self.entries.len()), u16::try_from(name.len())) else {
            return Lesson::Full;
        };
        if self.entries.len() >= self.limit {
            return Lesson::Full;
        }
        let name_at = self.names.len();
        self.names.extend_from_slice(name);
        let next = self.first.insert(inode, at);
        let next_alike = fingerprint.and_then(|fingerprint| self.alike.insert(fingerprint, at));
        self.entries.push(Entry { fingerprint, site, name_at, name_len, next, next_alike });
        Lesson::New
    }

    /// Forgets every name for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(Inode, SiteId, &[u8]) -> bool) {
        let mut kept = KnownFiles::with_limit(self.limit);
        for inode in self.first.keys() {
            for entry in self.chain(*inode) {
                let name = self.name(entry);
                if keep(*inode, entry.site, name) {
                    kept.learn(*inode, entry.fingerprint, entry.site, name);
                }
            }
        }
        if kept.len() != self.len() {
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
        let mut known = KnownFiles::with_limit(2);
        assert_eq!(known.learn(inode(1), None, HERE, b"/a"), Lesson::New);
        assert_eq!(known.learn(inode(1), None, HERE, b"/a"), Lesson::Known);
        assert_eq!(known.learn(inode(1), None, HERE, b"/b"), Lesson::New);
        assert_eq!(known.learn(inode(2), None, HERE, b"/c"), Lesson::Full);
        assert_eq!(known.names(inode(1), None).count(), 2);
        known.retain(|_, _, name| name == b"/b");
        assert_eq!(known.learn(inode(2), None, HERE, b"/c"), Lesson::New);
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

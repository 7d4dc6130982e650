//! Chance that can be repeated: the same seed, the same choices.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of a range, which is not empty.
    pub(crate) fn among(&mut self, range: Range<usize>) -> usize {
        range.start + usize::try_from(self.next() % (range.len() as u64)).unwrap()
    }

    /// One of these.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { Some(&of[self.among(0..of.len())]) }
    }

    /// So many times of a hundred.
    pub(crate) fn percent(&mut self, of_hundred: usize) -> bool {
        self.among(0..100) < of_hundred
    }
}

/// The seed that the environment names, or a new one.
pub(crate) fn seed(variable: &str) -> u64 {
    let given = std::env::var(variable).ok().map(|text| text.parse().expect("a number"));
    given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos().into())
}

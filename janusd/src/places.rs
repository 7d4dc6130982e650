//! Who may be connected at once, where anybody may knock.
//!
//! There is always room for whoever comes: the one who has been there longest goes, of those from the address that has the
//! most. So a flood from one address pushes out its own, and never keeps others out.
//!
//! Pure: knows addresses and an order, no socket and no clock.

use std::net::{IpAddr, Ipv6Addr};

/// Names one who is there. Never given out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest(u64);

/// A bounded number of places. `T` is what is given back when one has to go.
#[derive(Debug)]
pub struct Places<T> {
    most: usize,
    /// Whoever has been there longest comes first.
    taken: Vec<Place<T>>,
    last: u64,
}

#[derive(Debug)]
struct Place<T> {
    guest: Guest,
    from: IpAddr,
    held: T,
}

impl<T> Places<T> {
    /// So many.
    pub fn new(most: usize) -> Places<T> {
        Places { most: most.max(1), taken: Vec::new(), last: 0 }
    }

    /// Takes one in. Gives what was held for the one who had to go, if one had to.
    pub fn enter(&mut self, from: IpAddr, held: T) -> (Guest, Option<T>) {
        self.last += 1;
        let guest = Guest(self.last);
        self.taken.push(Place { guest, from: network(from), held });
        (guest, (self.taken.len() > self.most).then(|| self.taken.remove(self.crowded()).held))
    }

    /// One goes by itself. `None`: it had to go before.
    pub fn leave(&mut self, guest: Guest) -> Option<T> {
        let at = self.taken.iter().position(|place| place.guest == guest)?;
        Some(self.taken.remove(at).held)
    }

    /// One counts as the last that came.
    pub fn renew(&mut self, guest: Guest) {
        if let Some(at) = self.taken.iter().position(|place| place.guest == guest) {
            self.taken[at..].rotate_left(1);
        }
    }

    /// The first place of those that have the most in common.
    fn crowded(&self) -> usize {
        let with = |from| self.taken.iter().filter(|place| place.from == from).count();
        let most = self.taken.iter().map(|place| with(place.from)).max();
        self.taken.iter().position(|place| Some(with(place.from)) == most).unwrap_or_default()
    }
}

/// What one party has to itself: of IPv6, 64 bits of the address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn whoever_has_the_most_loses_the_first() {
        let mut places = Places::new(4);
        assert_eq!(places.enter(from(1), "controller").1, None);
        for held in ["a", "b", "c"] {
            assert_eq!(places.enter(from(2), held).1, None);
        }
        assert_eq!(places.enter(from(2), "d").1, Some("a"));
        assert_eq!(places.enter(from(1), "another").1, Some("b"));
        // As many of the one as of the other: then the first of all.
        assert_eq!(places.enter(from(3), "third").1, Some("controller"));
    }

    #[test]
    fn a_flood_from_one_address_pushes_out_its_own() {
        let mut places = Places::new(8);
        let (guest, _) = places.enter(from(1), 0);
        for number in 1..1_000 {
            assert_ne!(places.enter(from(2), number).1, Some(0));
        }
        assert_eq!(places.leave(guest), Some(0));
        assert_eq!(places.leave(guest), None);
        assert_eq!(places.taken.len(), 7);
    }

    #[test]
    fn the_last_to_stir_goes_last() {
        let mut places = Places::new(2);
        let (first, _) = places.enter(from(1), 1);
        let _second = places.enter(from(1), 2);
        places.renew(first);
        assert_eq!(places.enter(from(1), 3).1, Some(2));
        assert_eq!(places.enter(from(1), 4).1, Some(1));
        // One who is not there any more changes nothing.
        places.renew(first);
        assert_eq!(places.taken.len(), 2);
    }

    #[test]
    fn one_party_has_many_addresses() {
        let mut places = Places::new(2);
        let ours = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        assert_eq!(places.enter(from(1), "old").1, None);
        assert_eq!(places.enter(ours(1), "a").1, None);
        assert_eq!(places.enter(ours(2), "b").1, Some("a"));
        // The same by another way to write it.
        let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 1]);
        assert_eq!(places.enter(mapped, "new").1, Some("old"));
    }
}

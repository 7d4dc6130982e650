//! What is due: pure, over what the Secrets hold and the time.
//!
//! A CA takes turns: it is *next* (trusted, and signs nothing), then *current* (signs), then *previous* (trusted, until what
//! it signed is gone). Both sides trust all three.
//!
//! Guarantees, held by tests over simulated years: as long as plans are carried out at least once in [`RENEW_LEAF`] less a
//! day, no two states of the Secrets that are less than [`DELIVERY`] apart refuse each other, so that it does not matter
//! which side's kubelet brings a Secret first; and nothing that is used has ended. [`Turn::Begin`] is the exception: there
//! was nothing to go on from.

use std::collections::BTreeSet;

/// Seconds since 1970.
pub type Time = i64;

const HOUR: Time = 3600;
const DAY: Time = 24 * HOUR;

/// How long a CA lives.
pub const LIFE_OF_CA: Time = 365 * DAY;
/// How long a certificate of a side lives.
pub const LIFE_OF_LEAF: Time = 90 * DAY;
/// How long before its end a certificate is signed anew.
pub const RENEW_LEAF: Time = 30 * DAY;
/// How long before the end of a CA the next one is made: what it still signs must not outlive it.
pub const RENEW_CA: Time = LIFE_OF_LEAF + RENEW_LEAF;
/// How long a change of a Secret may take to reach every pod that mounts it. Kubelets need a minute or two; a node that was
/// away needs longer.
pub const DELIVERY: Time = 24 * HOUR;

/// The bytes of a CA's certificate, which is all that it is known by.
pub type CaId = Vec<u8>;

/// A CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate.
    pub id: CaId,
    /// When it ends.
    pub ends: Time,
}

/// Whose certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Every janusd's: for servers.
    Daemon,
    /// janus-controller's: for clients.
    Controller,
}

impl Side {
    /// Both.
    pub const ALL: [Side; 2] = [Side::Daemon, Side::Controller];
}

/// A certificate that its peer would accept, were the CA trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The CA that signed it.
    pub by: CaId,
    /// When it was signed.
    pub at: Time,
    /// When it ends.
    pub ends: Time,
}

/// What the Secret of one side holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// The CAs that this side trusts.
    pub trusts: BTreeSet<CaId>,
    /// Since when they have been these; `None`: not known.
    pub trusts_since: Option<Time>,
    /// Its certificate. `None`: there is none, or none of any use.
    pub signed: Option<Signed>,
}

/// What all Secrets hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The CA that signs.
    pub current: Option<Authority>,
    /// The CA that will.
    pub next: Option<Authority>,
    /// The CA that did.
    pub previous: Option<Authority>,
    /// janusd's side.
    pub daemon: Leaf,
    /// The controller's side.
    pub controller: Leaf,
}

impl Found {
    /// One side.
    pub fn leaf(&self, side: Side) -> &Leaf {
        match side {
            Side::Daemon => &self.daemon,
            Side::Controller => &self.controller,
        }
    }
}

/// What happens to the CAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A new one signs at once; all others are forgotten.
    Begin,
    /// A new one is next.
    Prepare,
    /// The next one signs from now on.
    Promote,
    /// The previous one is trusted no longer.
    Forget,
}

/// Why a certificate is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is none, or none of any use.
    Absent,
    /// Another CA signs now.
    OtherAuthority,
    /// It ends soon.
    Ends,
}

/// What is due on one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The CAs that it trusts are to be written.
    pub trust: bool,
    /// It gets a new certificate.
    pub sign: Option<Why>,
}

/// What is due. Carried out in this order: the CAs are written before anything that depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// At most one turn at a time.
    pub turn: Option<Turn>,
    /// janusd's side.
    pub daemon: Due,
    /// The controller's side.
    pub controller: Due,
}

impl Plan {
    /// One side.
    pub fn due(&self, side: Side) -> Due {
        match side {
            Side::Daemon => self.daemon,
            Side::Controller => self.controller,
        }
    }
}

/// What is due now.
pub fn plan(now: Time, found: &Found) -> Plan {
    let turn = turn(now, found);
    Plan { turn, daemon: due(now, found, turn, Side::Daemon), controller: due(now, found, turn, Side::Controller) }
}

fn turn(now: Time, found: &Found) -> Option<Turn> {
    let current = found.current.as_ref().filter(|current| current.ends > now);
    let Some(current) = current else { return Some(Turn::Begin) };
    if let Some(next) = &found.next {
        // One that was never promoted, for want of runs.
        if next.ends - now < RENEW_CA {
            return Some(Turn::Prepare);
        }
        return Side::ALL
            .iter()
            .all(|side| {
                let leaf = found.leaf(*side);
                leaf.trusts.contains(&next.id) && leaf.trusts_since.is_some_and(|since| now - since >= DELIVERY)
            })
            .then_some(Turn::Promote);
    }
    if found.previous.is_some() {
        let gone = |side: &Side| {
            let signed = found.leaf(*side).signed.as_ref();
            signed.is_some_and(|signed| signed.by == current.id && now - signed.at >= DELIVERY)
        };
        return Side::ALL.iter().all(gone).then_some(Turn::Forget);
    }
    (current.ends - now < RENEW_CA).then_some(Turn::Prepare)
}

fn due(now: Time, found: &Found, turn: Option<Turn>, side: Side) -> Due {
    let leaf = found.leaf(side);
    let ids = |authorities: &[&Option<Authority>]| -> BTreeSet<CaId> {
        authorities.iter().filter_map(|authority| authority.as_ref().map(|it| it.id.clone())).collect()
    };
    let (signer, trust) = match turn {
        // A CA that is yet to be made is trusted by nobody.
        Some(Turn::Begin) => return Due { trust: true, sign: Some(Why::Absent) },
        Some(Turn::Prepare) => (&found.current, true),
        Some(Turn::Promote) => (&found.next, leaf.trusts != ids(&[&found.current, &found.next])),
        Some(Turn::Forget) => (&found.current, leaf.trusts != ids(&[&found.current])),
        None => (&found.current, leaf.trusts != ids(&[&found.current, &found.next, &found.previous])),
    };
    let sign = match &leaf.signed {
        None => Some(Why::Absent),
        Some(signed) if signer.as_ref().is_some_and(|signer| signer.id != signed.by) => Some(Why::OtherAuthority),
        Some(signed) if signed.ends - now < RENEW_LEAF => Some(Why::Ends),
        Some(_) => None,
    };
    Due { trust, sign }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The shell, without keys.
    #[derive(Clone, Debug, Default)]
    struct Cluster {
        found: Found,
        made: u8,
    }

    impl Cluster {
        fn run(&mut self, now: Time) -> Plan {
            let plan = plan(now, &self.found);
            self.turn(now, plan.turn);
            for side in Side::ALL {
                self.side(now, side, plan.due(side));
            }
            plan
        }

        fn turn(&mut self, now: Time, turn: Option<Turn>) {
            let mut make = || {
                self.made += 1;
                Some(Authority { id: vec![self.made], ends: now + LIFE_OF_CA })
            };
            let found = &mut self.found;
            match turn {
                Some(Turn::Begin) => (found.current, found.next, found.previous) = (make(), None, None),
                Some(Turn::Prepare) => found.next = make(),
                Some(Turn::Promote) => {
                    found.previous = found.current.take();
                    found.current = found.next.take();
                }
                Some(Turn::Forget) => found.previous = None,
                None => {}
            }
        }

        fn side(&mut self, now: Time, side: Side, due: Due) {
            let trusted = [&self.found.current, &self.found.next, &self.found.previous];
            let trusted = trusted.into_iter().flatten().map(|authority| authority.id.clone()).collect();
            let Authority { id: by, ends } = self.found.current.clone().unwrap();
            let leaf = match side {
                Side::Daemon => &mut self.found.daemon,
                Side::Controller => &mut self.found.controller,
            };
            if due.trust {
                leaf.trusts = trusted;
                leaf.trusts_since = Some(now);
            }
            if due.sign.is_some() {
                leaf.signed = Some(Signed { by, at: now, ends: ends.min(now + LIFE_OF_LEAF) });
            }
        }
    }

    fn accepts(now: Time, one: &Leaf, other: &Leaf) -> bool {
        other.signed.as_ref().is_some_and(|signed| one.trusts.contains(&signed.by) && now < signed.ends)
    }

    fn agree(now: Time, daemon: &Leaf, controller: &Leaf) -> bool {
        accepts(now, daemon, controller) && accepts(now, controller, daemon)
    }

    #[test]
    fn an_empty_cluster_gets_everything_and_then_nothing_is_due() {
        let mut cluster = Cluster::default();
        let first = cluster.run(0);
        let all = Due { trust: true, sign: Some(Why::Absent) };
        assert_eq!(first, Plan { turn: Some(Turn::Begin), daemon: all, controller: all });
        let nothing = Plan { turn: None, daemon: Due::default(), controller: Due::default() };
        assert_eq!(cluster.run(HOUR), nothing);
        assert_eq!(cluster.run(DAY), nothing);
        assert!(agree(DAY, &cluster.found.daemon, &cluster.found.controller));
    }

    #[test]
    fn a_new_ca_is_trusted_for_a_day_before_it_signs_and_the_old_one_for_a_day_after() {
        let mut cluster = Cluster::default();
        cluster.run(0);
        let mut turns = Vec::new();
        for hour in 1..=365 * 24 {
            if let Some(turn) = cluster.run(hour * HOUR).turn {
                turns.push((turn, hour * HOUR));
            }
        }
        let begun = LIFE_OF_CA - RENEW_CA + HOUR;
        assert_eq!(turns, [(Turn::Prepare, begun), (Turn::Promote, begun + DAY), (Turn::Forget, begun + 2 * DAY)]);
    }

    #[test]
    fn a_secret_that_was_not_written_holds_the_turn_up() {
        let mut cluster = Cluster::default();
        cluster.run(0);
        let now = LIFE_OF_CA - RENEW_CA + HOUR;
        // The CA's Secret was written, then one side's; the other failed.
        let plan = plan(now, &cluster.found);
        cluster.turn(now, plan.turn);
        cluster.side(now, Side::Daemon, plan.daemon);
        let later = cluster.run(now + 20 * HOUR);
        assert_eq!((later.turn, later.controller.trust), (None, true));
        assert_eq!(cluster.run(now + 25 * HOUR).turn, None, "the controller has trusted it for five hours");
        assert_eq!(cluster.run(now + 44 * HOUR).turn, Some(Turn::Promote));
    }

    #[test]
    fn what_is_of_no_use_is_replaced() {
        let mut cluster = Cluster::default();
        cluster.run(0);
        cluster.found.daemon.signed = None;
        cluster.found.controller.trusts.clear();
        let plan = cluster.run(HOUR);
        assert_eq!((plan.turn, plan.daemon.sign, plan.daemon.trust), (None, Some(Why::Absent), false));
        assert_eq!(plan.controller, Due { trust: true, sign: None });
        cluster.found.current.as_mut().unwrap().ends = 2 * HOUR;
        assert_eq!(cluster.run(2 * HOUR).turn, Some(Turn::Begin), "a CA that has ended");
    }

    #[test]
    fn a_clock_that_went_back_makes_nobody_hurry() {
        let mut cluster = Cluster::default();
        cluster.run(400 * DAY);
        assert_eq!(cluster.run(0).turn, None);
    }

    proptest! {
        /// Pods hold any of the states of the last day, each its own; runs come as they come, and may stop between writes.
        #[test]
        fn no_two_states_less_than_a_day_apart_refuse_each_other(
            runs in prop::collection::vec((1..=27 * 24i64, 0..=3u8), 100..200)
        ) {
            let mut cluster = Cluster::default();
            cluster.run(0);
            let mut now = 0;
            let mut states = vec![(now, cluster.found.clone())];
            for (hours, writes) in runs {
                // What is about to change was in use until now.
                now += hours * HOUR;
                let whole = writes == 3;
                let plan = plan(now, &cluster.found);
                prop_assert_ne!(plan.turn, Some(Turn::Begin));
                let mut attempt = |writes: u8| {
                    cluster.turn(now, plan.turn.filter(|_| writes > 0));
                    if writes > 1 { cluster.side(now, Side::Daemon, plan.daemon); }
                    if writes > 2 { cluster.side(now, Side::Controller, plan.controller); }
                };
                attempt(writes);
                states.push((now, cluster.found.clone()));
                if !whole {
                    // It is tried again within the hour.
                    now += HOUR;
                    cluster.run(now);
                    states.push((now, cluster.found.clone()));
                }
                let recent: Vec<_> = states.iter().enumerate()
                    // Until it was replaced.
                    .filter(|(at, _)| states.get(at + 1).is_none_or(|(replaced, _)| now - replaced < DELIVERY))
                    .map(|(_, (_, found))| found)
                    .collect();
                for one in &recent {
                    for other in &recent {
                        prop_assert!(agree(now, &one.daemon, &other.controller), "{one:?} {other:?}");
                    }
                }
                states.drain(..states.len().saturating_sub(60));
            }
        }
    }
}

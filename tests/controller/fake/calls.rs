//! Who was called when, and what was said: of one daemon, and the law that holds for all of them together.

use std::collections::VecDeque;
use std::time::Instant;

use tonic::Code;

/// What was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Create,
    Destroy,
}

/// A call that changes what is guarded, as it was judged when it came.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Among all calls of all daemons of a fleet.
    pub(crate) number: u64,
    pub(crate) at: Instant,
    /// The daemon's node.
    pub(crate) node: String,
    pub(crate) verb: Verb,
    /// UIDs.
    pub(crate) guard: String,
    pub(crate) pod: String,
    pub(crate) epoch: u64,
    pub(crate) generation: i64,
    /// Ok: accepted.
    pub(crate) code: Code,
    pub(crate) message: String,
}

/// How many calls there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) states: u64,
    /// Of those, answered with `unchanged`.
    pub(crate) unchanged: u64,
}

impl Counts {
    pub(crate) fn plus(self, other: Counts) -> Counts {
        Counts {
            accepted: self.accepted + other.accepted,
            refused: self.refused + other.refused,
            states: self.states + other.states,
            unchanged: self.unchanged + other.unchanged,
        }
    }
}

/// Of one daemon: the last ones in their order, and how many there were.
#[derive(Debug)]
pub(super) struct Calls {
    most: usize,
    last: VecDeque<Call>,
    pub(super) counts: Counts,
}

impl Calls {
    pub(super) fn new(most: usize) -> Calls {
        Calls { most, last: VecDeque::new(), counts: Counts::default() }
    }

    pub(super) fn note(&mut self, call: Call) {
        if call.code == Code::Ok {
            self.counts.accepted += 1;
        } else {
            self.counts.refused += 1;
        }
        if self.last.len() == self.most {
            self.last.pop_front();
        }
        if self.most > 0 {
            self.last.push_back(call);
        }
    }

    pub(super) fn last(&self) -> Vec<Call> {
        self.last.iter().cloned().collect()
    }
}

/// Of all daemons: who led when.
///
/// The law: once any daemon has accepted a call of an epoch, none accepts one of a lower epoch. It is more than each daemon
/// can see to by itself.
#[derive(Debug, Default)]
pub(super) struct Reigns {
    pub(super) calls: u64,
    reigns: Vec<Reign>,
    /// Calls that were accepted against the law.
    pub(super) usurped: Vec<Call>,
}

/// One epoch, by the calls that were made in it.
#[derive(Debug, Clone)]
pub(crate) struct Reign {
    pub(crate) epoch: u64,
    /// The first and the last that any daemon accepted.
    pub(crate) first: Instant,
    pub(crate) last: Instant,
    pub(crate) accepted: u64,
    /// Calls of this epoch that came after a later one had been accepted somewhere.
    pub(crate) late: u64,
}

impl Reigns {
    /// Numbers a call.
    pub(super) fn number(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }

    pub(super) fn note(&mut self, call: &Call) {
        let deposed = self.reigns.last().is_some_and(|reign| reign.epoch > call.epoch);
        if deposed {
            if let Some(reign) = self.reigns.iter_mut().find(|reign| reign.epoch == call.epoch) {
                reign.late += 1;
            }
            if call.code == Code::Ok {
                self.usurped.push(call.clone());
            }
            return;
        }
        if call.code != Code::Ok {
            return;
        }
        match self.reigns.last_mut().filter(|reign| reign.epoch == call.epoch) {
            Some(reign) => {
                reign.last = call.at;
                reign.accepted += 1;
            }
            None => {
                let (epoch, at) = (call.epoch, call.at);
                self.reigns.push(Reign { epoch, first: at, last: at, accepted: 1, late: 0 });
            }
        }
    }

    pub(super) fn reigns(&self) -> &[Reign] {
        &self.reigns
    }
}

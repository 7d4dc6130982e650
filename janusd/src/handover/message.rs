//! What two janusd say to each other. Private to Janus, and versioned: N speaks with N-1 and N+1.
//!
//! Fields that are not known are skipped, frames that are not known too. A change that an older one must not skip raises
//! [`VERSION`]; the two agree on the highest that both know. Counters go by their words, not by number.

use janus_proto::v1;

use crate::fanotify::look::Inode;
use crate::guard::known::{Fingerprint, Fingerprints, Learned};
use crate::guard::transfer::Outstanding;
use crate::guard::{Numbers, SiteId};
use crate::metrics::Counts;
use crate::policy::{Event, Failure, Outcome};

/// The version that this janusd speaks.
pub const VERSION: u32 = 1;
/// The oldest that it understands.
pub const OLDEST: u32 = 1;

/// One frame.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Frame {
    /// What it says; `None`: something that this version does not know.
    #[prost(oneof = "Part", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17")]
    pub part: Option<Part>,
}

/// What a frame says.
#[expect(clippy::large_enum_variant, reason = "one at a time, and the largest is the most frequent")]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Part {
    /// New: hand over.
    #[prost(message, tag = "1")]
    Ask(Ask),
    /// Old: no.
    #[prost(message, tag = "2")]
    Refuse(Refuse),
    /// Old: a guard in a pod.
    #[prost(message, tag = "3")]
    Unit(Unit),
    /// Old: files that one knows.
    #[prost(message, tag = "4")]
    Known(Known),
    /// Old: that was all.
    #[prost(message, tag = "5")]
    End(End),
    /// New: ready to read.
    #[prost(message, tag = "6")]
    Ready(Ready),
    /// Old: reads no more.
    #[prost(message, tag = "7")]
    Parked(Parked),
    /// New: reads.
    #[prost(message, tag = "8")]
    Taken(Taken),
    /// Holder: deposit your guards with me.
    #[prost(message, tag = "9")]
    Hold(Hold),
    /// To the holder, and from it: a guard.
    #[prost(message, tag = "10")]
    Deposit(Deposit),
    /// Likewise: files that it knows.
    #[prost(message, tag = "11")]
    DepositKnown(DepositKnown),
    /// To the holder: it is not to be held any more.
    #[prost(message, tag = "12")]
    Withdraw(Withdraw),
    /// To the holder: numbers have risen.
    #[prost(message, tag = "13")]
    Highest(Highest),
    /// New: guards all of it by itself.
    #[prost(message, tag = "14")]
    Done(Done),
    /// To the holder: whether it may tell by beats that its janusd goes on. The eventfd that they come by travels along.
    #[prost(message, tag = "15")]
    Pulse(Pulse),
    /// From the holder: what it has answered in place of a janusd that lives.
    #[prost(message, tag = "16")]
    Stood(Stood),
    /// To the holder: what holds starts of containers.
    #[prost(message, tag = "17")]
    Gate(Gate),
}

/// Hand over.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ask {
    /// The oldest version that it understands.
    #[prost(uint32, tag = "1")]
    pub oldest: u32,
    /// The newest.
    #[prost(uint32, tag = "2")]
    pub newest: u32,
    /// To the holder: no event that the new one will read of what it is given has a higher number.
    #[prost(int32, tag = "3")]
    pub highest: i32,
}

/// No.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refuse {
    /// Why.
    #[prost(string, tag = "1")]
    pub reason: String,
}

/// A guard in a pod. Its groups, wide and near, travel with the frame.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Unit {
    /// Names it in the frames that follow.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// What puts it in force.
    #[prost(message, optional, tag = "2")]
    pub request: Option<v1::CreateGuardRequest>,
    /// What it had in force; not set: it is armed anew.
    #[prost(message, optional, tag = "3")]
    pub estate: Option<Estate>,
}

/// What goes with a unit's groups.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Estate {
    /// Responses may carry FAN_AUDIT.
    #[prost(bool, tag = "1")]
    pub audit: bool,
    /// The key of fingerprints.
    #[prost(fixed64, repeated, tag = "2")]
    pub key: Vec<u64>,
    /// What [`Fingerprints::check`] gives.
    #[prost(fixed64, tag = "3")]
    pub check: u64,
    /// Numbers of containers that have names.
    #[prost(message, repeated, tag = "4")]
    pub named: Vec<Number>,
    /// Of those that have none, by their ids.
    #[prost(message, repeated, tag = "5")]
    pub nameless: Vec<Number>,
    /// How many were given.
    #[prost(uint32, tag = "6")]
    pub given: u32,
}

/// The number of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Number {
    /// Its name, or its id.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The number.
    #[prost(uint32, tag = "2")]
    pub site: u32,
}

/// Files that a unit knows by identity.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Known {
    /// Whose.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// The files.
    #[prost(message, repeated, tag = "2")]
    pub files: Vec<File>,
}

/// A file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    /// Its device, major number.
    #[prost(uint32, tag = "1")]
    pub major: u32,
    /// Its device, minor number.
    #[prost(uint32, tag = "2")]
    pub minor: u32,
    /// Its inode number.
    #[prost(uint64, tag = "3")]
    pub ino: u64,
    /// Its fingerprint, where it has one.
    #[prost(fixed64, optional, tag = "4")]
    pub fingerprint: Option<u64>,
    /// In which container.
    #[prost(uint32, tag = "5")]
    pub site: u32,
    /// By which name.
    #[prost(bytes = "vec", tag = "6")]
    pub name: Vec<u8>,
}

/// That was all.
#[derive(Clone, PartialEq, prost::Message)]
pub struct End {
    /// The highest epoch that was heard.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// No event has a higher number, nor will.
    #[prost(int32, tag = "2")]
    pub highest: i32,
}

/// Ready to read.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ready {
    /// But not these: they could not be put in force.
    #[prost(uint32, repeated, tag = "1")]
    pub without: Vec<u32>,
}

/// Reads no more.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Parked {
    /// Those whose groups the new one may read.
    #[prost(message, repeated, tag = "1")]
    pub units: Vec<Rest>,
    /// What guards have counted.
    #[prost(message, repeated, tag = "2")]
    pub guards: Vec<GuardCounts>,
}

/// How a unit rests.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rest {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Read and not answered.
    #[prost(message, repeated, tag = "2")]
    pub outstanding: Vec<Awaiting>,
}

/// An event that was read and not answered.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Awaiting {
    /// Its number.
    #[prost(int32, tag = "1")]
    pub number: i32,
    /// Which group asked.
    #[prost(bool, tag = "2")]
    pub near: bool,
    /// What: the word of metrics.
    #[prost(string, tag = "3")]
    pub event: String,
    /// By Janus itself.
    #[prost(bool, tag = "4")]
    pub own: bool,
}

/// What a unit has counted, and its guard in all pods.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GuardCounts {
    /// The unit.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// What it has counted itself.
    #[prost(message, optional, tag = "2")]
    pub own: Option<Counted>,
    /// What its guard has counted in all pods; set at one of its units.
    #[prost(message, optional, tag = "3")]
    pub all: Option<Counted>,
}

/// See [`Counts`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Counted {
    /// Answers.
    #[prost(message, repeated, tag = "1")]
    pub answers: Vec<Answers>,
    /// What could not be judged: `event` is empty, `response` the reason.
    #[prost(message, repeated, tag = "2")]
    pub fallbacks: Vec<Answers>,
    /// Of the histogram.
    #[prost(uint64, repeated, tag = "3")]
    pub buckets: Vec<u64>,
    /// Its sum.
    #[prost(uint64, tag = "4")]
    pub nanoseconds: u64,
    /// Event lines that were dropped.
    #[prost(uint64, tag = "5")]
    pub lines_dropped: u64,
    /// Workers that died.
    #[prost(uint64, tag = "6")]
    pub worker_restarts: u64,
    /// Workers that were left behind.
    #[prost(uint64, tag = "7")]
    pub workers_abandoned: u64,
    /// Files that could not be learned.
    #[prost(uint64, tag = "8")]
    pub identities_dropped: u64,
}

/// So many answers of one kind.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answers {
    /// Of which event.
    #[prost(string, tag = "1")]
    pub event: String,
    /// How.
    #[prost(string, tag = "2")]
    pub response: String,
    /// How many.
    #[prost(uint64, tag = "3")]
    pub count: u64,
}

/// Deposit your guards with me.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hold {}

/// A guard with the holder. Its groups, wide and near, travel with the frame.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Deposit {
    /// Names it; takes the place of any other of that name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A [`Unit`], encoded: no business of the holder's.
    #[prost(bytes = "vec", tag = "2")]
    pub unit: Vec<u8>,
    /// What is answered if nobody comes: deny, or else allow.
    #[prost(bool, tag = "3")]
    pub deny: bool,
    /// No event that its janusd has read, or will, has a higher number, of this guard or of those that it deposited before.
    /// From the holder, negative: all of them are answered.
    #[prost(int32, tag = "4")]
    pub highest: i32,
    /// From the holder: what it has answered.
    #[prost(message, optional, tag = "5")]
    pub answered: Option<Counted>,
}

/// The gate of starts. Its group travels with the frame. A holder that does not know it does without.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Gate {
    /// No event of it has a higher number, or will have.
    #[prost(int32, tag = "1")]
    pub highest: i32,
}

/// Files that a deposited guard knows.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DepositKnown {
    /// Whose.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A [`Known`], encoded.
    #[prost(bytes = "vec", tag = "2")]
    pub known: Vec<u8>,
}

/// A guard that is not to be held any more.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Withdraw {
    /// Which.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// What was armed anew is in force, and the holder, if there is one, has all of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Done {}

/// Of all that its janusd has deposited.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Highest {
    /// No event that it has read, or will, has a higher number.
    #[prost(int32, tag = "1")]
    pub highest: i32,
}

/// Whether a janusd beats. Where it has not said so, or has taken it back, its silence means nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Pulse {
    /// It does from now on.
    #[prost(bool, tag = "1")]
    pub beats: bool,
}

/// What the holder has answered of a guard whose janusd was silent, and beats again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stood {
    /// Which guard.
    #[prost(string, tag = "1")]
    pub name: String,
    /// To be counted.
    #[prost(message, optional, tag = "2")]
    pub answered: Option<Counted>,
}

/// Reads.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Taken {
    /// To the holder: but not these, by their names.
    #[prost(string, repeated, tag = "1")]
    pub without: Vec<String>,
}

impl Ask {
    /// What this version asks.
    pub fn ours() -> Ask {
        Ask { oldest: OLDEST, newest: VERSION, highest: -1 }
    }

    /// The version that both speak, if there is one.
    pub fn agreed(&self) -> Option<u32> {
        let version = self.newest.min(VERSION);
        (version >= self.oldest.max(OLDEST)).then_some(version)
    }
}

impl Estate {
    /// Of numbers and fingerprints.
    pub fn new(audit: bool, numbers: &Numbers, fingerprints: &Fingerprints) -> Estate {
        let told = |(name, site): (&std::sync::Arc<str>, &SiteId)| Number { name: name.to_string(), site: site.0 };
        Estate {
            audit,
            key: fingerprints.key().to_vec(),
            check: fingerprints.check(),
            named: numbers.named.iter().map(told).collect(),
            nameless: numbers.nameless.iter().map(told).collect(),
            given: numbers.given,
        }
    }

    /// The numbers of containers.
    pub fn numbers(&self) -> Numbers {
        let take = |number: &Number| (number.name.as_str().into(), SiteId(number.site));
        Numbers {
            named: self.named.iter().map(take).collect(),
            nameless: self.nameless.iter().map(take).collect(),
            given: self.given,
        }
    }

    /// How files are told apart; the second: as the sender does.
    pub fn fingerprints(&self) -> (Fingerprints, bool) {
        match <[u64; 2]>::try_from(self.key.as_slice()).map(Fingerprints::with) {
            Ok(fingerprints) if fingerprints.check() == self.check => (fingerprints, true),
            _ => (Fingerprints::default(), false),
        }
    }
}

impl From<Learned> for File {
    fn from(learned: Learned) -> File {
        let Learned { inode, fingerprint, site, name } = learned;
        File {
            major: inode.major,
            minor: inode.minor,
            ino: inode.ino,
            fingerprint: fingerprint.map(Fingerprint::number),
            site: site.0,
            name: name.into(),
        }
    }
}

impl File {
    /// `alike`: fingerprints are made as the sender makes them. Otherwise the number alone has to do: rather a denial too
    /// many.
    pub fn learned(self, alike: bool) -> Learned {
        Learned {
            inode: Inode { major: self.major, minor: self.minor, ino: self.ino },
            fingerprint: self.fingerprint.filter(|_| alike).map(Fingerprint::of_number),
            site: SiteId(self.site),
            name: self.name.into(),
        }
    }
}

impl From<Outstanding> for Awaiting {
    fn from(outstanding: Outstanding) -> Awaiting {
        let Outstanding { number, near, event, own } = outstanding;
        Awaiting { number, near, event: event.word().to_owned(), own }
    }
}

impl Awaiting {
    /// An event that this version does not know is counted as an open: it has to be answered all the same.
    pub fn outstanding(&self) -> Outstanding {
        let event = Event::ALL.into_iter().find(|event| event.word() == self.event).unwrap_or(Event::Open);
        Outstanding { number: self.number, near: self.near, event, own: self.own }
    }
}

impl From<Counts> for Counted {
    fn from(counts: Counts) -> Counted {
        let answers = |(event, outcome, count): (Event, Outcome, u64)| Answers {
            event: event.word().to_owned(),
            response: outcome.label().to_owned(),
            count,
        };
        let fallbacks = |(failure, count): (Failure, u64)| Answers {
            event: String::new(),
            response: failure.word().to_owned(),
            count,
        };
        Counted {
            answers: counts.events.into_iter().filter(|(.., count)| *count > 0).map(answers).collect(),
            fallbacks: counts.fallbacks.into_iter().filter(|(_, count)| *count > 0).map(fallbacks).collect(),
            buckets: counts.buckets,
            nanoseconds: counts.nanoseconds,
            lines_dropped: counts.lines_dropped,
            worker_restarts: counts.worker_restarts,
            workers_abandoned: counts.workers_abandoned,
            identities_dropped: counts.identities_dropped,
        }
    }
}

impl From<Counted> for Counts {
    /// Words that this version does not know are left out.
    fn from(counted: Counted) -> Counts {
        let answers = |answers: &Answers| {
            let event = Event::ALL.into_iter().find(|it| it.word() == answers.event)?;
            let outcome = Outcome::ALL.into_iter().find(|it| it.label() == answers.response)?;
            Some((event, outcome, answers.count))
        };
        let fallbacks = |answers: &Answers| {
            let failure = Failure::ALL.into_iter().find(|it| it.word() == answers.response)?;
            Some((failure, answers.count))
        };
        Counts {
            events: counted.answers.iter().filter_map(answers).collect(),
            fallbacks: counted.fallbacks.iter().filter_map(fallbacks).collect(),
            buckets: counted.buckets,
            nanoseconds: counted.nanoseconds,
            lines_dropped: counted.lines_dropped,
            worker_restarts: counted.worker_restarts,
            workers_abandoned: counted.workers_abandoned,
            identities_dropped: counted.identities_dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// What release N+1 may say: a frame with fields that N does not know, and one that it does not know at all.
    #[derive(Clone, PartialEq, prost::Message)]
    struct NextUnit {
        #[prost(uint32, tag = "1")]
        index: u32,
        #[prost(string, tag = "90")]
        news: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct NextFrame {
        #[prost(message, optional, tag = "3")]
        unit: Option<NextUnit>,
        #[prost(message, optional, tag = "77")]
        more: Option<NextUnit>,
    }

    #[test]
    fn the_next_release_is_understood() {
        let unit = NextUnit { index: 7, news: "?".into() };
        let known = NextFrame { unit: Some(unit.clone()), more: None }.encode_to_vec();
        let Some(Part::Unit(told)) = Frame::decode(&*known).unwrap().part else { panic!("another frame") };
        assert_eq!((told.index, told.estate), (7, None));
        let unknown = NextFrame { unit: None, more: Some(unit) }.encode_to_vec();
        assert_eq!(Frame::decode(&*unknown).unwrap().part, None);
    }

    #[test]
    fn the_highest_version_that_both_speak() {
        assert_eq!(Ask::ours().agreed(), Some(VERSION));
        assert_eq!(Ask { oldest: VERSION, newest: VERSION + 1, ..Ask::ours() }.agreed(), Some(VERSION));
        assert_eq!(Ask { oldest: VERSION + 1, newest: VERSION + 2, ..Ask::ours() }.agreed(), None);
        assert_eq!(Ask { oldest: 0, newest: 0, ..Ask::ours() }.agreed(), None);
    }

    #[test]
    fn what_is_told_is_what_is_understood() {
        let learned = Learned {
            inode: Inode { major: 8, minor: 1, ino: 4_000_000_000_000 },
            fingerprint: Some(Fingerprint::of_number(u64::MAX)),
            site: SiteId(3),
            name: (*b"/a\xff").into(),
        };
        assert_eq!(File::from(learned.clone()).learned(true), learned);
        assert_eq!(File::from(learned.clone()).learned(false), Learned { fingerprint: None, ..learned });
        let outstanding = Outstanding { number: 41, near: true, event: Event::Execute, own: false };
        assert_eq!(Awaiting::from(outstanding).outstanding(), outstanding);
        let counts = Counts {
            events: vec![(Event::Access, Outcome::Audit, 5)],
            fallbacks: vec![(Failure::Deadline, 2)],
            buckets: vec![1, 2, 3],
            nanoseconds: 9,
            lines_dropped: 1,
            worker_restarts: 2,
            workers_abandoned: 3,
            identities_dropped: 4,
        };
        assert_eq!(Counts::from(Counted::from(counts.clone())), counts);
        let fingerprints = Fingerprints::default();
        let mut numbers = Numbers { given: 4, ..Numbers::default() };
        numbers.named.insert("app".into(), SiteId(2));
        numbers.nameless.insert("0abc".into(), SiteId(4));
        let mut estate = Estate::new(true, &numbers, &fingerprints);
        assert_eq!(estate.numbers(), numbers);
        assert!(estate.fingerprints().1);
        estate.check ^= 1;
        assert!(!estate.fingerprints().1, "hashed otherwise");
    }
}

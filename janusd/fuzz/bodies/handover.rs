//! Any bytes as what the other janusd says: taking them apart ends, and what is understood is understood the same when it
//! is said again.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use janusd::handover::link::{Link, LinkError};
use janusd::handover::message::{
    Ask, Awaiting, Counted, Estate, File, Frame, Known, OLDEST, Parked, Part, Unit, VERSION,
};
use janusd::metrics::Counts;
use prost::Message;

/// # Panics
/// When the parser breaks a promise.
pub(crate) fn run(data: &[u8]) {
    // As a stream of frames; what does not begin as one is the inside of one.
    if data.starts_with(b"JNU") {
        let parts = heard(data);
        assert!(parts.len() <= data.len() / 8, "a head is eight bytes");
        parts.into_iter().for_each(part);
        return;
    }
    let frame = Frame::decode(data);
    let length = u32::try_from(data.len()).expect("inputs are small");
    let parts = heard(&[b"JNUS", length.to_be_bytes().as_slice(), data].concat());
    let Ok(Frame { part: Some(told) }) = frame else {
        assert!(parts.is_empty(), "no frame was heard as one");
        return;
    };
    if root() && !matches!(told, Part::Refuse(_)) {
        assert_eq!(parts, std::slice::from_ref(&told));
    }
    part(told);
}

/// Only root is heard.
fn root() -> bool {
    pair().is_some()
}

fn pair() -> Option<(Link, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    match Link::new(ours, Arc::new(AtomicBool::new(false))) {
        Ok(link) => Some((link, theirs)),
        Err(LinkError::Stranger(_)) => None,
        Err(other) => panic!("{other}"),
    }
}

/// What a link hears of the other end before that is gone.
fn heard(bytes: &[u8]) -> Vec<Part> {
    let Some((link, mut theirs)) = pair() else { return Vec::new() };
    // What does not fit into the socket is cut off.
    theirs.set_nonblocking(true).expect("a flag");
    let _cut = theirs.write_all(bytes);
    drop(theirs);
    let mut parts = Vec::new();
    loop {
        match link.hear_any(Instant::now() + Duration::from_secs(5)) {
            Ok(Some((part, descriptors))) => {
                assert!(descriptors.is_empty(), "nobody sent any");
                parts.push(part);
            }
            Ok(None) => {}
            Err(LinkError::Gone | LinkError::Garbled(_) | LinkError::Refused(_)) => return parts,
            Err(other) => panic!("{other}"),
        }
    }
}

fn part(told: Part) {
    let again = Frame { part: Some(told.clone()) }.encode_to_vec();
    assert_eq!(Frame::decode(&*again).expect("what was encoded").part.as_ref(), Some(&told));
    match told {
        Part::Ask(ask) => asked(&ask),
        Part::Unit(told) => unit(told),
        Part::Known(told) => known(told),
        Part::Parked(told) => parked(told),
        Part::Deposit(told) => {
            if let Ok(inner) = Unit::decode(&*told.unit) {
                unit(inner);
            }
            told.answered.into_iter().for_each(counted);
        }
        Part::DepositKnown(told) => {
            if let Ok(inner) = Known::decode(&*told.known) {
                known(inner);
            }
        }
        _ => {}
    }
}

fn asked(ask: &Ask) {
    if let Some(version) = ask.agreed() {
        assert!((OLDEST..=VERSION).contains(&version) && (ask.oldest..=ask.newest).contains(&version));
    }
}

fn unit(unit: Unit) {
    let Some(estate) = unit.estate else { return };
    let numbers = estate.numbers();
    assert!(numbers.named.len() <= estate.named.len() && numbers.nameless.len() <= estate.nameless.len());
    let (fingerprints, alike) = estate.fingerprints();
    assert!(!alike || estate.key == fingerprints.key());
    let again = Estate::new(estate.audit, &numbers, &fingerprints);
    assert_eq!(again.numbers(), numbers);
    assert!(again.fingerprints().1, "the same process hashes alike");
}

fn known(known: Known) {
    for file in known.files {
        let alike = file.clone().learned(true);
        assert_eq!(File::from(alike.clone()), file);
        let unlike = file.learned(false);
        assert!(unlike.fingerprint.is_none() && unlike.inode == alike.inode && unlike.name == alike.name);
    }
}

fn parked(parked: Parked) {
    for awaiting in parked.units.into_iter().flat_map(|unit| unit.outstanding) {
        let outstanding = awaiting.outstanding();
        assert_eq!((outstanding.number, outstanding.near), (awaiting.number, awaiting.near));
        assert_eq!(Awaiting::from(outstanding).outstanding(), outstanding);
    }
    for counts in parked.guards {
        counts.own.into_iter().chain(counts.all).for_each(counted);
    }
}

/// Words that are not known are left out; the rest is kept, however often it is told.
fn counted(told: Counted) {
    let most = told.answers.len() + told.fallbacks.len();
    let once = Counted::from(Counts::from(told));
    assert!(once.answers.len() + once.fallbacks.len() <= most);
    assert_eq!(Counted::from(Counts::from(once.clone())), once);
}

//! How a daemon behaves, where a test wants it to differ from a good one.

use std::time::Duration;

use janus_proto::v1;
use janusd::registry::port::Failure;

/// What a test may change at any time.
#[derive(Debug, Clone)]
pub(crate) struct Temper {
    /// Nobody is there: connections are reset.
    pub(crate) down: bool,
    /// What never comes.
    pub(crate) hang: Hang,
    /// From the arrival of a call to when it is looked at.
    pub(crate) before: Duration,
    /// From what a call does to its answer.
    pub(crate) after: Duration,
    /// From accepting a guard to its being in force; until then it is pending.
    pub(crate) settle: Duration,
    /// From being told to lift a guard to its being lifted.
    pub(crate) lift: Duration,
    /// The node that it says it is, instead of its own.
    pub(crate) node: Option<String>,
    /// What it shows to whoever connects.
    pub(crate) certificate: Certificate,
    /// StateHeader.features.
    pub(crate) features: Vec<String>,
    /// StateHeader.version.
    pub(crate) version: String,
    /// It takes no new guards.
    pub(crate) draining: bool,
    /// Limits.guards.
    pub(crate) guards: u32,
    /// Limits.guards_of_namespace.
    pub(crate) of_namespace: u32,
    /// GetGuardState does not reach its end.
    pub(crate) breaks: Option<Break>,
    /// It talks nonsense.
    pub(crate) garbage: Option<Garbage>,
}

impl Default for Temper {
    fn default() -> Temper {
        Temper {
            down: false,
            hang: Hang::Nothing,
            before: Duration::ZERO,
            after: Duration::ZERO,
            settle: Duration::ZERO,
            lift: Duration::ZERO,
            node: None,
            certificate: Certificate::Good,
            features: vec!["guard-v1".to_owned(), "audit-log".to_owned()],
            version: env!("CARGO_PKG_VERSION").to_owned(),
            draining: false,
            guards: 1024,
            of_namespace: 512,
            breaks: None,
            garbage: None,
        }
    }
}

/// What never comes, until the test thinks better of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hang {
    /// All comes.
    Nothing,
    /// Answers to calls. A call whose caller has not gone by then is carried out afterwards.
    Calls,
    /// The TLS handshake, and whatever would be said in plain text.
    Handshakes,
}

/// A certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certificate {
    Good,
    /// For another name.
    Misnamed,
    /// Of the right name, and expired.
    Expired,
    /// Of the right name, of a CA that nobody knows.
    Forged,
}

/// How GetGuardState ends too early, after so many guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// With a status.
    Fails(usize),
    /// Well, but for what the header said.
    Ends(usize),
    /// The connection is reset.
    Resets(usize),
    /// Nothing more comes.
    Stalls(usize),
}

/// Nonsense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Garbage {
    /// No HTTP/2 at all.
    Bytes,
    /// GetGuardState without a header.
    NoHeader,
    /// A header after the guards.
    TwoHeaders,
    /// Messages with nothing in them.
    Empty,
    /// Guards without names.
    Nameless,
    /// The same guard twice.
    Twice,
    /// Numbers of phases that nobody knows, and negative generations.
    Numbers,
    /// Long texts with control characters.
    Texts,
    /// A digest of a megabyte.
    Digest,
    /// So many guards that nobody has asked for.
    Flood(usize),
    /// `unchanged`, whatever the digest.
    Unchanged,
    /// An answer to CreateGuard with no state in it.
    NoState,
}

/// Which units something is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Which {
    /// The guard's UID; none: any.
    pub(crate) guard: Option<String>,
    /// The pod's UID; none: any.
    pub(crate) pod: Option<String>,
}

impl Which {
    pub(crate) fn guard(uid: &str) -> Which {
        Which { guard: Some(uid.to_owned()), pod: None }
    }

    pub(crate) fn pod(uid: &str) -> Which {
        Which { guard: None, pod: Some(uid.to_owned()) }
    }

    pub(crate) fn holds(&self, guard: &str, pod: &str) -> bool {
        self.guard.as_deref().is_none_or(|it| it == guard) && self.pod.as_deref().is_none_or(|it| it == pod)
    }
}

/// What is wrong with some units.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// It is said, and the guard is in force but for it.
    Problem(v1::Problem),
    /// It cannot be put in force; tried again with the real daemon's patience.
    Fails(Failure),
}

/// A path on a file system that is not gated: blocking.
pub(crate) fn not_gated(path: &str) -> Trouble {
    problem("FilesystemNotGated", path, true)
}

/// A path that does not exist yet: not blocking.
pub(crate) fn absent(path: &str) -> Trouble {
    problem("PathAbsent", path, false)
}

fn problem(reason: &str, path: &str, blocking: bool) -> Trouble {
    Trouble::Problem(v1::Problem {
        reason: reason.to_owned(),
        message: format!("{path}: as the test has it"),
        path: path.to_owned(),
        blocking,
        ..Default::default()
    })
}

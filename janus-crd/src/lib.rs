//! What a guard is, for the API server: the JanusGuard resource, its schema and its rules.
//!
//! Types only: nothing here talks to a cluster. `janus-controller crd` prints the definition, and `deploy/base/crd.yaml`
//! holds what it printed. janusd does not use this crate: it parses a guard itself, by the same rules, and
//! `tests/vectors/manifests` holds what both must accept and refuse.
//!
//! # Where a rule is checked
//!
//! A bound or a form of one value is a schema keyword (`maxItems`, `pattern`, ...), which costs the API server nothing
//! that it counts. A rule between fields is CEL, of which there is little: each rule's worst case is multiplied by the
//! lists that it lies in, and refused by the API server above 10 million units (100 million for the whole definition).
//! The dearest two are `onlyDir` against each list's globs: 32 subjects x 128 paths x (4096 bytes x 0.1) x (10 bytes of
//! pattern x 0.25, rounded up) is 5.1 million each, 10.2 million in all. Everything else together is below 0.1 million.
//!
//! # What only janusd refuses
//!
//! Neither schema nor CEL can say these within their budget. The first the API server prunes, or refuses under strict
//! field validation, which is `kubectl`'s default; for the rest the daemon's refusal shows as the guard's `Stalled`.
//!
//! - Unknown fields.
//! - A path segment of more than 255 bytes whose characters have mixed lengths: a pattern counts characters. Segments of
//!   more than 255 characters, and those that begin with 128 two-byte, 86 three-byte or 64 four-byte characters, are
//!   refused here. (A path of 1024 characters cannot reach 4096 bytes, since its first is a slash.)
//! - A class with a range that runs backwards, `[z-a]`.
//! - `metadata`, `apiVersion` and `kind`: the API server checks them by itself; `janusd guard` must do the same.
//!
//! What a schema says with `not` (dots by expansion, wide segments) is refused with a message that names the field, but
//! without its value or the reason: the API server has no more to say there.
//!
//! One rule is coarser here than it need be: a segment made of nothing but dots and braces, where each brace offers
//! nothing, `.` or `..`, is refused even when every expansion has three dots or more, as in `..{.,a}`.

#![expect(unreachable_pub, reason = "KubeSchema repeats a type inside a function body, `pub` and all")]

mod path;
mod selector;
mod spec;
mod status;
mod text;

pub use selector::{LabelSelector, Operator, Requirement};
pub use spec::{Enforcement, Event, FailurePolicy, JanusGuard, JanusGuardSpec, Log, Origin, ProcessMatcher, Subject};
pub use status::{JanusGuardStatus, Problem};

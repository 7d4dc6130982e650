//! The decision core: what a guard says, and what that means for one event.
//!
//! Flow: a manifest (later the wire) is parsed into a [`GuardSpec`], whose fields are private and whose only
//! constructor checks every bound of the contract. A survey of the root binds it ([`Bindings`]): where its paths lead.
//! The two compile into a [`Policy`], and [`Policy::decide`] answers a [`Question`] about one event.
//!
//! Owns: what a rule means. Must never touch: a file descriptor, the file system, a clock, a log, a thread.

mod decide;
mod event;
mod failure;
mod path;
mod spec;

pub use decide::{Bindings, Decision, MountBinding, Policy, Question, Reason, Response};
pub use event::{Event, Events};
pub use failure::Failure;
pub use path::{PathError, PathPattern};
pub use spec::{Enforcement, FailurePolicy, GuardName, GuardSpec, List, Log, RuleId, SpecError, Subject};

//! The decision core: what a guard says, and what that means for one event.
//!
//! Flow: a manifest (later the wire) is parsed into a [`GuardSpec`], whose fields are private and whose only
//! constructor checks every bound of the contract. A survey of the root binds it ([`Bindings`]): where its paths lead.
//! The two compile into a [`Policy`], and [`Policy::decide`] answers a [`Question`] about one event.
//!
//! Owns: what a rule means. Must never touch: a file descriptor, the file system, a clock, a log, a thread.

mod decide;
mod event;
mod except;
mod failure;
mod glob;
mod judge;
mod name;
mod path;
pub mod raw;
mod rules;
mod selector;
mod spec;
mod template;
mod validate;

pub use decide::{Bindings, Decision, Depends, MountBinding, Outcome, Question, Reason, Response};
pub use event::{Event, Events};
pub use except::{Exceptions, Process, Subjects, Who};
pub use failure::Failure;
pub use judge::{Match, Policy};
pub use path::{PathError, PathPattern};
pub use selector::{Operator, Requirement, Selector, check_dns_label, check_dns_subdomain};
pub use spec::{
    Enforcement, FailurePolicy, GuardName, GuardSpec, List, Log, Origin, ProcessMatcher, RuleId, SpecError, Subject,
};
pub use template::{DEFAULT_LOG_FORMAT, LogFormat, LogFormatError, Piece, Specifier};

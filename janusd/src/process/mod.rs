//! Who asks: what the process that waits for an answer is to the guarded container.
//!
//! Flow: [`look::look`] reads procfs for one opener and weighs the guard's exceptions; [`facts`] takes procfs's text
//! apart; [`origin`] makes an origin of it; [`interpreter`] tells by which program a file is run. [`own`] is about janusd
//! itself.
//!
//! Owns: the meaning of origins. Must never: keep a descriptor other than a pidfd, open a file of a container for
//! reading, or run on a thread that answers events (the kernel takes locks for some of what is read here).

pub mod agents;
pub mod facts;
pub mod interpreter;
pub mod look;
pub mod origin;
pub mod own;

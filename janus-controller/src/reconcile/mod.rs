//! The shell: tells daemons what the plan says, and the API server what daemons say.
//!
//! Flow: [`hub`] owns the index and all that is known of daemons, in one task. It gives each node's [`driver`] what should
//! be in force there; the driver, one task a node with one connection, makes the node's janusd agree and reports what it
//! answers. One daemon that is slow or dead holds up nobody but its own driver.
//!
//! Guarantees: every call that changes something is preceded by a look at whether we still lead, and carries the epoch.
//! Nothing is destroyed before all watches have been listed once.

mod annotate;
pub mod api;
pub mod cluster;
pub mod driver;
pub mod hub;
mod nodes;
mod pen;
pub mod port;
mod session;
pub mod turns;

//! janusd, the Janus node daemon, as a library: `main.rs` only parses arguments and calls in here.

pub mod check;
pub mod line;
pub mod manifest;
pub mod policy;

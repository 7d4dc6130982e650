//! janusd, the Janus node daemon, as a library: `main.rs` only parses arguments and calls in here.

pub mod admin;
pub mod check;
pub mod commands;
pub mod container;
mod doorbell;
pub mod events;
pub mod fanotify;
pub mod flood;
pub mod gate;
pub mod guard;
pub mod handover;
pub mod limits;
pub mod line;
pub mod manifest;
pub mod metrics;
pub mod node;
pub mod places;
pub mod policy;
pub mod process;
pub mod registry;
pub mod rights;
pub mod root;
pub mod server;
pub mod wire;

//! The Kubernetes side of Janus: keeps each node's janusd in agreement with the cluster's JanusGuards.
//!
//! Flow: watches fold into an [`index`]; for each node it says what should be in force there; one driver a node
//! ([`reconcile`]) compares that with what the node's janusd says ([`daemon`]) and tells it the difference, as
//! [`core::plan`] finds it; what daemons answer becomes the guards' status ([`core::status`]).
//!
//! Arrows: `run -> reconcile -> {index, metrics} -> core`; `daemon` and the API server are behind ports of `reconcile`.
//! `core` and `index` are pure. [`certificates`] is a command of its own, and knows none of these.

pub mod admin;
pub mod args;
pub mod certificates;
pub mod core;
pub mod daemon;
pub mod index;
pub mod lease;
pub mod metrics;
pub mod reconcile;
pub mod run;
pub mod uninstall;

//! The kernel edge: groups, marks, records and responses of `fanotify(7)`.
//!
//! Flow: [`Group::read`] fills a buffer, [`record::Records`] takes it apart, each permission event becomes a
//! [`PermissionEvent`] that owns its file descriptor, [`look`] gathers what the kernel can say about the file, and
//! [`answer::answer_all`] writes a whole batch back with one `writev`.
//!
//! Owns: the group's file descriptor, the bytes that cross it, and the only unsafe code of the project ([`sys`]). Must
//! never: decide anything, log, or open a file.

pub mod answer;
pub mod behaviour;
pub mod group;
pub mod look;
pub mod probe;
pub mod record;
pub(crate) mod sys;

pub use group::{Class, Group, GroupError, MarkTarget, PermissionEvent, ReadError, close};
pub use probe::Features;

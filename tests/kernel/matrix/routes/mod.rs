//! The routes: each prepares what it needs before the guard is laid, and gives what is to be tried under it.

pub(super) mod access;
pub(super) mod changes;
pub(super) mod children;
pub(super) mod descriptors;
pub(super) mod elsewhere;
pub(super) mod execute;
pub(super) mod links;
pub(super) mod mounts;
pub(super) mod names;
pub(super) mod silent;

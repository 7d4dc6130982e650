//! The containers of this node's pods: which there are, and what they are called.
//!
//! Told by `/proc/PID/cgroup` alone, so that no runtime has to be spoken to: containerd, CRI-O and docker, cgroup v1 and
//! v2, both cgroup drivers ([`cgroup`]). Their names are in what the runtime left for them on the disk ([`bundle`]).
//! [`find`] looks, and goes on looking.
//!
//! Must never: read through a path that a container controls, or know of guards.

pub mod bundle;
pub mod cgroup;
pub mod find;

pub use cgroup::{PodUid, Runtime};
pub use find::{Container, Finder, FinderThread, Sighting, Watch};

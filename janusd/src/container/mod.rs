//! The containers of this node's pods: which there are, and what they are called.
//!
//! Told by `/proc/PID/cgroup` alone, so that no runtime has to be spoken to: containerd, CRI-O and docker, cgroup v1 and
//! v2, both cgroup drivers ([`cgroup`]). Their names are in what the runtime left for them on the disk ([`bundle`]).
//! [`find`] looks, and goes on looking: it is woken by what appears in the cgroups of pods, tells a container's first
//! process from the others ([`first`]), and whether it has a root of its own ([`examine`]). [`scout`] looks once, and now:
//! for whoever holds a runtime's start.
//!
//! Must never: read through a path that a container controls, or know of guards.

pub mod bundle;
pub mod cgroup;
pub mod examine;
pub mod find;
pub mod first;
pub mod scout;
pub mod tree;

pub use cgroup::{PodUid, Runtime};
pub use examine::tick;
pub use find::{Container, Counts, Finder, FinderThread, Sighting, Tally, Watch, join_node_cgroups};

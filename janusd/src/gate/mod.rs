//! A guard is in force before the first instruction of a container's entrypoint: the runtime's own start is held for it.
//!
//! ```text
//!  shim executes runc ──OPEN_EXEC_PERM──► gate ──► is a container of a guarded pod ready to begin, which some guard has
//!                                          │       not seen to? (`container::scout`; procfs and cgroups only)
//!                  no: allowed at once ◄───┤
//!                                          │ yes: held; the finder is told to look at that pod now
//!     all guards of the pod are in force ◄─┤ (`roll`: their reports, and a bell)
//!     limit: failurePolicy, counted, told ◄┘ (`held`, pure)
//! ```
//!
//! What makes it possible: when a runtime is executed to start a container, that container's first process is there already,
//! has its root and its volumes, and waits for the runtime's word.
//!
//! Owns: one thread, `janus-gate`, and one fanotify group with marks on the programs of the node's runtimes and on nothing
//! else ([`runtimes`]). It opens procfs, cgroups, and those programs' paths (O_PATH), nothing that anybody gates; it waits for
//! no other thread; it executes nothing. A panic lets go of all that is held, and a gate that cannot read takes its marks
//! away. However it ends, the kernel lets go of what is still held as the group closes.
//!
//! The thread cannot be waited for by the node for longer than the limit, unless it is itself stopped: then a *relief*
//! ([`relief`]) answers in its place.
//!
//! While guards change hands two gates are asked, one after the other: each holds for the guards on its own roll, and the
//! old one's roll empties as its guards go.

mod caller;
mod held;
mod relief;
mod roll;
mod runtimes;
mod thread;

pub use roll::{Enrolment, Roll};
pub use thread::{Gate, GateThread, Settings};

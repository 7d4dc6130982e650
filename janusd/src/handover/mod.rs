//! Guards change hands: from one janusd to the next, so that at no moment nobody answers.
//!
//! ```text
//!  new                                     old
//!   │ connects, before it gives up `connect`│
//!   ├─ Ask: versions ──────────────────────►│ takes no more calls; keepers change nothing more
//!   │◄───────── Unit, with group fds; Known ┤ (it still answers)
//!   │◄────────────────────────────────── End┤
//!   │ lays marks, puts rules in force,      │
//!   │ reads nothing                         │
//!   ├─ Ready ──────────────────────────────►│ workers park: they read no more, and answer all that they had read
//!   │◄─ Known (since), Parked: numbers, counters
//!   │ occupies numbers that are outstanding │
//!   ├─ Taken ──────────────────────────────►│
//!   │ answers those, then reads on          │
//!   │ arms anew what was not handed over    │ (which it still answers)
//!   ├─ Done ───────────────────────────────►│ lets go of everything, and waits to be ended
//! ```
//!
//! Guarantees: at every moment one of the two holds each group, and at most one reads it. Before `Parked` has been sent,
//! whatever fails leaves the old one as it was. Afterwards it goes on by itself if the new one ends before it has said
//! `Taken`, or does not say so in time: then it stops hearing first, so that the new one, which reads only once `Taken` has
//! been said, finds that it cannot say it any more.
//!
//! What is not handed over (a guard whose thread is stuck, or was only being started) is armed by the new one with groups
//! and marks of its own, before the old one stops its own: that is counted, and takes two groups more for that long. The old
//! one waits for that, and for the new one's deposits with the holder, at most 30 seconds.
//!
//! The socket lies in a directory that only root can reach ([`place`]); who connects, or is connected to, must be root
//! ([`link`]). What comes is checked as a call off the wire is.
//!
//! A janusd that is killed hands nothing over. Beside it a holder ([`hold`]) keeps a share of every group, deposited while
//! all is well, and whoever comes next takes the guards from there: nobody reads them then, so they are read at once, and
//! what is read waits for the rules.
//!
//! A janusd that is *stopped* answers nobody, and is not dead. While it has guards with the holder it beats ([`life`]); when
//! it does not any more, the holder answers in its place until it does. During a hand-over it does not beat: then another
//! may be reading.
//!
//! The old one does not end by itself: a kubelet would start it again beside its successor. It answers calls with
//! UNAVAILABLE, is not ready, and waits for SIGTERM.

mod deposit;
pub mod give;
pub mod hold;
mod life;
pub mod link;
pub mod message;
pub mod occupy;
pub mod place;
pub mod take;

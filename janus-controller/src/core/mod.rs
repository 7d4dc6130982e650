//! Pure: which guards belong into which pods, what a daemon has to be told, what the status says.
//!
//! Nothing here knows a client, a clock, a channel or a log. Time comes in as an argument.

pub mod observation;
pub mod plan;
pub mod reason;
pub mod release;
pub mod selector;
pub mod spec;
pub mod status;
pub mod unit;

//! `janusd hold`: keeps what guards are made of while janusd is away.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{DONE, Failed};
use crate::handover::hold::Holder;
use crate::handover::place::HoldPlace;
use crate::rights;

/// Where to hold, and for how long nobody is answered.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that janusd is given too.
    pub state_dir: PathBuf,
    /// From a janusd's death to failure policy.
    pub deadline: Duration,
}

/// Holds until it is killed; gives the exit status.
pub fn run(options: &Options) -> u8 {
    match hold(options) {
        Ok(()) => DONE,
        Err(failed) => {
            failed.report();
            failed.status
        }
    }
}

fn hold(options: &Options) -> Result<(), Failed> {
    let place = HoldPlace::take(&options.state_dir);
    let place = place.map_err(|error| Failed::refused(format!("--state-dir: {error}")))?;
    let limit = getrlimit(Resource::Nofile);
    // Refused: then as many guards fit as there are descriptors.
    let _as_it_was = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Err(error) = rights::confine() {
        tracing::warn!("janusd keeps rights that it does not need: {error}");
    }
    let running = |error: std::io::Error| Failed::running(error);
    let holder = Holder::new(place, options.deadline).map_err(running)?;
    tracing::info!(directory = %options.state_dir.display(), deadline = ?options.deadline, "holding");
    holder.hold().map_err(running)
}

//! `janusd check`.

use std::io::Write;
use std::path::PathBuf;

use super::{FAILED, read_manifests};
use crate::check::{self, Inquiry};

/// Validates, and explains if asked.
pub fn run(files: &[PathBuf], inquiry: Option<&Inquiry>) -> u8 {
    let sources = match read_manifests(files) {
        Ok(sources) => sources,
        Err(failed) => {
            failed.report();
            return failed.status;
        }
    };
    let report = check::check(&sources, inquiry);
    eprint!("{}", report.complaints);
    match std::io::stdout().write_all(report.text.as_bytes()) {
        Ok(()) => report.status,
        Err(_) => FAILED,
    }
}

//! The commands: what `main` calls once arguments are parsed.
//!
//! Each gives the process's exit status: 0 done, 1 failed while running, 2 bad arguments or a bad manifest.

pub mod check;
pub mod demo;
pub mod engine;
pub mod guard;
pub mod hold;
pub mod preflight;
pub mod serve;

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::line::Printable;

/// Done.
pub const DONE: u8 = 0;
/// Failed while running.
pub const FAILED: u8 = 1;
/// Bad arguments, or a bad manifest.
pub const REFUSED: u8 = 2;

/// Why a command ended badly: its exit status, and what to say on stderr.
#[derive(Debug)]
pub struct Failed {
    /// The exit status.
    pub status: u8,
    /// One line or more, each without `error: `.
    pub lines: Vec<String>,
}

impl Failed {
    /// Failed while running.
    pub fn running(line: impl ToString) -> Failed {
        Failed { status: FAILED, lines: vec![line.to_string()] }
    }

    /// Bad arguments or a bad manifest.
    pub fn refused(line: impl ToString) -> Failed {
        Failed { status: REFUSED, lines: vec![line.to_string()] }
    }

    /// Says it.
    pub fn report(&self) {
        for line in &self.lines {
            eprintln!("error: {line}");
        }
    }
}

/// Manifests larger than this are refused, bytes. A guard at every bound of the contract needs a tenth of it.
const LARGEST_MANIFEST: u64 = 1024 * 1024;

/// Reads manifest files; `-` is stdin.
///
/// # Errors
/// A file that cannot be read, or is too large: status 2, with its name.
pub fn read_manifests(files: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>, Failed> {
    let mut sources = Vec::new();
    let mut failed = Vec::new();
    for file in files {
        let name = if file == Path::new("-") { "stdin".to_owned() } else { file.to_string_lossy().into_owned() };
        match read(file) {
            Ok(bytes) => sources.push((name, bytes)),
            Err(error) => failed.push(format!("{}: {error}", Printable(&name))),
        }
    }
    if failed.is_empty() { Ok(sources) } else { Err(Failed { status: REFUSED, lines: failed }) }
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells that there is more.
    let limit = LARGEST_MANIFEST + 1;
    if file == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(file)?.take(limit).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > LARGEST_MANIFEST {
        return Err(std::io::Error::other(format!("larger than {LARGEST_MANIFEST} bytes")));
    }
    Ok(bytes)
}

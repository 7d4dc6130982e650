//! `janusd demo`: a real denial and a real allow on a scratch directory.
//!
//! The only command that starts a process: `cat`, since Janus never denies itself.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use super::{DONE, Failed};
use crate::events::EventFormat;
use crate::guard::{Guard, Roots};
use crate::manifest;
use crate::metrics::Metrics;
use crate::root::Root;

const MANIFEST: &str = "\
apiVersion: januscontroller.clustergarage.io/v1alpha1
kind: JanusGuard
metadata:
  name: demo
spec:
  selector: {}
  subjects:
  - allow: [/public.txt]
    deny: [/secret.txt]
    events: [open]
";

const PATIENCE: Duration = Duration::from_secs(5);

/// Runs it; gives the exit status.
pub fn run() -> u8 {
    match try_run() {
        Ok(()) => DONE,
        Err(failed) => {
            failed.report();
            failed.status
        }
    }
}

fn try_run() -> Result<(), Failed> {
    let failed = |what: &str, error: std::io::Error| Failed::running(format!("{what}: {error}"));
    let scratch =
        tempfile::Builder::new().prefix("janus-demo-").tempdir().map_err(|error| failed("scratch directory", error))?;
    let (public, secret) = (scratch.path().join("public.txt"), scratch.path().join("secret.txt"));
    std::fs::write(&public, "anybody may read this\n").map_err(|error| failed("scratch file", error))?;
    std::fs::write(&secret, "nobody may read this\n").map_err(|error| failed("scratch file", error))?;

    let specs = manifest::parse("demo", MANIFEST.as_bytes())
        .map_err(|errors| Failed::running(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
    let engine = Engine::start(EventFormat::Guard, 1)?;
    let metrics = Metrics::default();
    let mut guards = Vec::new();
    for spec in specs {
        let root = Root::of_directory(scratch.path()).map_err(Failed::running)?;
        let handles = metrics.guard(spec.name());
        guards.push(
            Guard::start(Arc::new(spec), Roots::One(root), None, handles, &engine.shared).map_err(Failed::running)?,
        );
    }
    eprintln!("guarding {}: /public.txt is allowed, /secret.txt is denied", scratch.path().display());

    let outcome = cat(&secret, false).and_then(|()| cat(&public, true));
    let mut clean = true;
    for guard in guards {
        clean &= guard.stop(PATIENCE);
    }
    engine.finish(clean, PATIENCE);
    scratch.close().map_err(|error| failed("scratch directory", error))?;
    outcome
}

fn cat(file: &Path, allowed: bool) -> Result<(), Failed> {
    let output = Command::new("cat")
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failed::running(format!("cat: {error}")))?;
    eprint!(
        "$ cat {}\n{}{}",
        file.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() == allowed {
        Ok(())
    } else if allowed {
        Err(Failed::running("a file that the guard allows could not be read"))
    } else {
        Err(Failed::running("a file that the guard denies was read"))
    }
}

//! The programs of Kubernetes, and our own: where they are, and their making where they are not yet.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What a test needs of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// etcd, the API server and kubectl.
    Api,
    /// These, and what schedules and runs pods.
    Full,
}

/// Their folder, or what is lacking. The first call may take minutes: it builds, and says so on stderr.
pub(crate) fn kubernetes(set: Set) -> Result<&'static Path, &'static str> {
    static FOUND: [OnceLock<Result<PathBuf, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let (place, word) = match set {
        Set::Api => (&FOUND[0], "api"),
        Set::Full => (&FOUND[1], "full"),
    };
    place.get_or_init(|| build(word)).as_deref().map_err(String::as_str)
}

fn build(word: &str) -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cluster/kubernetes/build");
    // Its stderr is ours: whoever waits for it should see why.
    let output = Command::new(&script).arg(word).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("{}: {error}", script.display()))?;
    if !output.status.success() {
        return Err(format!("Kubernetes' programs (tests/cluster/kubernetes/build {word}: {})", output.status));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

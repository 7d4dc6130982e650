//! Programs of ours, as cargo builds them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CONTROLLER: &str = env!("CARGO_BIN_EXE_janus-controller");

/// A program of this workspace, beside janus-controller.
pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(CONTROLLER).with_file_name(name)
}

/// Builds janusd as it is now. Cargo builds a test's own package only, and tells where that is. With the whole workspace's
/// features, so that after `cargo test --workspace` there is nothing left to do.
pub(crate) fn build_janusd() -> Result<(), &'static str> {
    let place = Path::new(CONTROLLER).parent().ok_or("a place for janusd")?;
    let (Some(profile), Some(target)) = (place.file_name(), place.parent()) else { return Err("a place for janusd") };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--workspace", "--bin", "janusd", "--test", "e2e"]);
    // What cargo tells a test of its package would be news to build scripts that ask for it: all would be built anew.
    let told = |name: &str| {
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|it| name.starts_with(it))
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    match profile.to_str() {
        Some("debug") => &mut command,
        Some("release") => command.arg("--release"),
        _ => command.arg("--profile").arg(profile),
    };
    // Its stderr is ours: whoever waits for it should see why.
    let built =
        command.env("CARGO_TARGET_DIR", target).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).status();
    match built {
        Ok(status) if status.success() && program("janusd").exists() => Ok(()),
        _ => Err("janusd, which cargo does not build"),
    }
}

//! A room: namespaces in which a whole run takes place, so that nothing of it touches the machine or outlives it.
//!
//! Flow: the runner that cargo starts ([`run_in_one`]) starts `__room outside`, and that the room's PID 1, `__room init`,
//! and that the tests. The room has a network of its own, with no way out, and pids and mounts of its own; its scratch
//! directory is where temporary files go.
//!
//! Guarantee: when the runner ends, even because it was killed, `outside` kills PID 1, and so everything in the room;
//! then it removes the scratch directory and the cgroups of the room's nodes. When `outside` itself is killed, all
//! processes end as well, and these stay behind.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{
    PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

use crate::watchdog::{kernel_pid, wait_until};

/// The argument that makes the test binary a part of a room.
pub(crate) const WORD: &str = "__room";

/// The argument by which the tests know that they are in a room.
pub(crate) const TESTS: &str = "__tests";

/// Names the cgroups of a room's nodes, and its scratch directory.
const PREFIX: &str = "janus-e2e-";

/// Runs the tests with these arguments in a room.
pub(crate) fn run_in_one(arguments: &[OsString], programs: &Path) -> io::Result<ExitCode> {
    // From here on it is the room's to remove.
    let scratch = TempDir::with_prefix(PREFIX)?.keep();
    let mut outside = Command::new(std::env::current_exe()?)
        .args([WORD, "outside"])
        .arg(&scratch)
        .args(arguments)
        .env("TMPDIR", &scratch)
        .env("KUBE_BIN_DIR", programs)
        .stdin(Stdio::piped())
        // Whoever interrupts the runner does not interrupt the one that cleans up after it.
        .process_group(0)
        .spawn()?;
    // Closes the pipe only when this process ends: waiting would close it at once.
    let _lives = outside.stdin.take();
    let status = outside.wait()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

pub(crate) fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(2);
    let (mode, scratch) = (words.next().unwrap_or_default(), PathBuf::from(words.next().unwrap_or_default()));
    let arguments: Vec<OsString> = words.collect();
    let outcome = match mode.to_str() {
        Some("outside") => stand_outside(&scratch, &arguments),
        Some("init") => be_init(&arguments),
        _ => Err(io::Error::other("neither outside nor init")),
    };
    outcome.unwrap_or_else(|error| {
        let _lost = writeln!(io::stderr(), "room, {}: {error}", mode.display());
        ExitCode::FAILURE
    })
}

/// Deprecated because CLONE_FILES could pull file descriptors from under other threads: it is never given here.
#[expect(deprecated, reason = "its replacement is unsafe, for the sake of CLONE_FILES alone")]
pub(crate) fn enter_new(namespaces: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(namespaces)?)
}

fn stand_outside(scratch: &Path, arguments: &[OsString]) -> io::Result<ExitCode> {
    enter_new(UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
    let mut init = Command::new(std::env::current_exe()?);
    init.args([WORD, "init"]).arg(scratch).args(arguments).stdin(Stdio::null());
    let ended = wait_or_kill(init.spawn()?);
    let cleaned = remove_cgroups(&file_name(scratch));
    fs::remove_dir_all(scratch)?;
    cleaned?;
    let status = ended?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Waits until it ends, or kills it when the other end of our stdin closes.
fn wait_or_kill(mut process: Child) -> io::Result<std::process::ExitStatus> {
    let pidfd = pidfd_open(kernel_pid(process.id()), PidfdFlags::empty())?;
    let stdin = io::stdin();
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
    while let Err(Errno::INTR) = poll(&mut polled, None) {}
    // One that has ended meanwhile is not there to be killed.
    let _ended_since = pidfd_send_signal(&pidfd, Signal::KILL);
    process.wait()
}

fn be_init(arguments: &[OsString]) -> io::Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    enter_new(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    let mut tests = Command::new(std::env::current_exe()?);
    let tests = tests.arg(TESTS).args(arguments).stdin(Stdio::null()).spawn()?.id();
    reap_until_end_of(tests)
}

/// As PID 1: adopts and reaps, until the one process ends.
pub(crate) fn reap_until_end_of(process: u32) -> io::Result<ExitCode> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == kernel_pid(process) => {
                let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
                return Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The cgroup of a node's pods, in every hierarchy. What is left of it goes with the room.
pub(crate) fn cgroup(node: &Path) -> String {
    format!("{}-{}", file_name(&std::env::temp_dir()), file_name(node))
}

/// The hierarchies of cgroups: several (v1), or one (v2).
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    if top.join("cgroup.procs").exists() {
        return vec![top];
    }
    let below = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

/// Removes the cgroups whose names begin so.
pub(crate) fn remove_cgroups(prefix: &str) -> io::Result<()> {
    for hierarchy in hierarchies() {
        for entry in fs::read_dir(hierarchy)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(prefix) {
                continue;
            }
            let mut outcome = Ok(());
            // Its last processes are dead, but may take a moment to go.
            wait_until(Duration::from_secs(5), || {
                outcome = remove_tree(&entry.path());
                outcome.is_ok()
            });
            outcome?;
        }
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

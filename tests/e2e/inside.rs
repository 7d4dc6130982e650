//! Inside a node: the processes that make it.
//!
//! A node is a pid, mount, network, IPC and UTS namespace. `__node launch SCRATCH NAME` waits outside; its child is the
//! node's PID 1, which mounts what a node has (`/proc`, `/run`, `/var/lib` and `/var/log` of its own, everything
//! shared, as systemd leaves it) and reaps what daemons leave behind; and *its* child is the deputy that serves the
//! tests there.
//!
//! Guarantee: when the deputy ends so does PID 1, so does everything on the node, and with it all mounts; then the
//! process outside removes the cgroups and the scratch directory.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::statfs;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::system::sethostname;
use rustix::thread::UnshareFlags;

use crate::deputy;
use crate::room::{self, enter_new};

/// The argument that makes the test binary a part of a node.
pub(crate) const WORD: &str = "__node";

const OVERLAYFS: u32 = 0x794c_7630;

/// What a kubelet wants of the kernel, and would set for the whole machine. Here it reads that all is well.
const TUNED: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Starts a node, as [`deputy::Deputy::launch`] does.
pub(crate) fn launcher(scratch: &Path, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([WORD, "launch"]).arg(scratch).arg(name);
    command
}

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    let words: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    let outcome = match words.as_slice() {
        [mode, scratch, name] if *mode == "launch" => launch(Path::new(scratch), name),
        [mode, scratch, name] if *mode == "init" => be_init(Path::new(scratch), name),
        [mode, pid] if *mode == "serve" => serve(pid),
        _ => Err(io::Error::other("unknown words")),
    };
    outcome.unwrap_or_else(|error| {
        let _lost = writeln!(io::stderr(), "node, {words:?}: {error}");
        ExitCode::FAILURE
    })
}

fn ourselves(mode: &str, arguments: &[&OsStr]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([WORD, mode]).args(arguments);
    Ok(command)
}

/// What is asked of the deputy comes through our stdin: nothing of it is read here.
fn launch(scratch: &Path, name: &OsStr) -> io::Result<ExitCode> {
    let cgroup = make_cgroup(scratch)?;
    enter_new(UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
    let ended = ourselves("init", &[scratch.as_os_str(), name])?.spawn()?.wait();
    let cleaned = room::remove_cgroups(&cgroup);
    fs::remove_dir_all(scratch)?;
    cleaned?;
    ended.map(|_killed_or_not| ExitCode::SUCCESS)
}

/// The cgroup of all the node's pods, in every hierarchy.
fn make_cgroup(node: &Path) -> io::Result<String> {
    let cgroup = room::cgroup(node);
    for hierarchy in room::hierarchies() {
        let own = hierarchy.join(&cgroup);
        fs::create_dir(&own)?;
        // v1: a new cpuset is empty, and so are all below it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if hierarchy.join(file).exists() {
                fs::write(own.join(file), fs::read(hierarchy.join(file))?)?;
            }
        }
    }
    Ok(cgroup)
}

fn be_init(scratch: &Path, name: &OsStr) -> io::Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The room's /proc is still there, and tells pids as the room counts.
    let pid = fs::read_link("/proc/self")?;
    sethostname(name.as_bytes())?;
    enter_new(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    for (file, value) in TUNED {
        let own = scratch.join("tuned").join(file.replace('/', "."));
        fs::create_dir_all(scratch.join("tuned"))?;
        fs::write(&own, format!("{value}\n"))?;
        mount_bind(&own, Path::new("/proc/sys").join(file))?;
    }
    for (name, point) in [("run", "/run"), ("lib", "/var/lib"), ("log", "/var/log")] {
        mount_bind(own_directory(scratch, name)?, point)?;
    }
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    let deputy = ourselves("serve", &[pid.as_os_str()])?.spawn()?.id();
    room::reap_until_end_of(deputy)
}

fn own_directory(scratch: &Path, name: &str) -> io::Result<PathBuf> {
    let own = scratch.join(name);
    fs::create_dir_all(&own)?;
    // Where the disk is itself an overlay it cannot hold a container's layers.
    if u32::try_from(statfs(&own)?.f_type).is_ok_and(|magic| magic == OVERLAYFS) {
        mount("tmpfs", &own, "tmpfs", MountFlags::empty(), None)?;
    }
    Ok(own)
}

fn serve(first: &OsStr) -> io::Result<ExitCode> {
    deputy::serve(first.to_string_lossy().parse().map_err(io::Error::other)?)?;
    Ok(ExitCode::SUCCESS)
}

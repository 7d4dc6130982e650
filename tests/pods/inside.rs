//! Inside the node: the processes that make it, and the one that acts in it for the tests.
//!
//! A node is a pid and a mount namespace. `__pods node SCRATCH` waits outside; its child is the node's PID 1, which
//! mounts what a node has (`/proc`, `/run` and `/var/lib` of its own, everything shared, as systemd leaves it) and
//! adopts and reaps what daemons leave behind; and *its* child serves the tests: one JSON value a line. Whoever starts
//! a process on the node has this one start it.
//!
//! Guarantee: when the tests' end of the pipe closes, even because the tests were killed, the server ends, so does PID
//! 1, so does everything on the node, and with it all mounts; then the process outside removes the cgroups and the
//! scratch directory.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Signal, WaitOptions, getpid, kill_process, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::kubelet;
use crate::watchdog::{kernel_pid, wait_until};

/// The argument that makes the test binary something else.
pub(crate) const WORD: &str = "__pods";

/// Where the node's own runtimes are, on the node.
pub(crate) const RUNTIMES: &str = "/usr/local/sbin";

const OVERLAYFS: u32 = 0x794c_7630;

/// What the tests ask of the node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Runs a program to its end, or kills it at the limit.
    Run(OsString, Vec<OsString>, Duration),
    /// Starts a program and leaves it running; its output goes to two files.
    Start { program: OsString, arguments: Vec<OsString>, stdout: PathBuf, stderr: PathBuf },
    /// Starts a program that sleeps under this pid; the pid must be free.
    StartAs(u32),
    /// Sends a signal to what was started.
    Signal(u32, i32),
    /// Whether what was started has ended.
    Ended(u32),
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The server is there; its pid as the machine counts.
    Serving(u32),
    Ran(Output),
    Started(u32),
    Done,
    Ended(bool),
    Failed(String),
}

/// How a program ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Output {
    /// None: killed by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    let words: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    let outcome = match words.as_slice() {
        [mode, scratch] if *mode == "node" => stand_outside(Path::new(scratch)),
        [mode, scratch] if *mode == "init" => be_init(Path::new(scratch)),
        [mode, pid] if *mode == "server" => serve(pid),
        [mode, rest @ ..] if *mode == "kubelet" => kubelet::act(rest),
        _ => Err(io::Error::other(format!("unknown words {words:?}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _lost = writeln!(io::stderr(), "{words:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Deprecated because CLONE_FILES could pull file descriptors from under other threads: it is never given here.
#[expect(deprecated, reason = "its replacement is unsafe, for the sake of CLONE_FILES alone")]
fn enter_new(namespaces: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(namespaces)?)
}

fn ourselves(mode: &str, argument: impl AsRef<OsStr>) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(WORD).arg(mode).arg(argument);
    Ok(command)
}

/// Outlives the node, to clean up after it. What it is asked through its stdin is for the server: it reads none of it.
fn stand_outside(scratch: &Path) -> io::Result<()> {
    enter_new(UnshareFlags::NEWPID)?;
    let ended = ourselves("init", scratch)?.spawn()?.wait();
    let cleaned = remove_cgroups(&cgroup_name(scratch));
    fs::remove_dir_all(scratch)?;
    cleaned?;
    ended.map(drop)
}

/// The cgroup that holds the node's pods, in every hierarchy.
pub(crate) fn cgroup_name(scratch: &Path) -> String {
    scratch.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The places where a cgroup of this name may be: one in each hierarchy.
pub(crate) fn cgroup_directories(name: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir() && !path.is_symlink()).chain([top.to_owned()]).map(|at| at.join(name)).collect()
}

fn remove_cgroups(name: &str) -> io::Result<()> {
    for directory in cgroup_directories(name) {
        let mut outcome = Ok(());
        // Its last processes are dead, but may take a moment to go.
        wait_until(Duration::from_secs(5), || {
            outcome = remove_tree_of_cgroups(&directory);
            outcome.is_ok()
        });
        outcome?;
    }
    Ok(())
}

fn remove_tree_of_cgroups(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree_of_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

fn be_init(scratch: &Path) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The machine's /proc is still there, and tells pids as the machine counts.
    let pid = fs::read_link("/proc/self")?;
    mount_node(scratch)?;
    let server = ourselves("server", pid)?.spawn()?.id();
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, _status))) if pid == kernel_pid(server) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn mount_node(scratch: &Path) -> io::Result<()> {
    enter_new(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    for (name, point) in [("run", "/run"), ("lib", "/var/lib")] {
        let own = scratch.join(name);
        // Where the disk is itself an overlay it cannot hold a container's layers.
        if u32::try_from(statfs(&own)?.f_type).is_ok_and(|magic| magic == OVERLAYFS) {
            mount("tmpfs", &own, "tmpfs", MountFlags::empty(), None)?;
        }
        mount_bind(&own, point)?;
    }
    // Its own runtimes, whose files no other node executes.
    mount_bind(scratch.join("sbin"), RUNTIMES)?;
    for theirs in ["/usr/bin/runc", "/usr/sbin/runc", "/usr/bin/crun", "/usr/sbin/crun"] {
        // The machine's, which others may be using.
        if Path::new(theirs).is_file() && !Path::new(theirs).is_symlink() {
            mount_bind(scratch.join("sbin/runc"), theirs)?;
        }
    }
    fs::DirBuilder::new().recursive(true).mode(0o750).create("/var/lib/kubelet/pods")?;
    Ok(mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?)
}

fn serve(init: &OsStr) -> io::Result<()> {
    let mut replies = io::stdout();
    let mut reply = |reply: &Reply| -> io::Result<()> {
        writeln!(replies, "{}", serde_json::to_string(reply)?)?;
        replies.flush()
    };
    reply(&Reply::Serving(init.to_string_lossy().parse().map_err(io::Error::other)?))?;
    let mut started = HashMap::new();
    for line in io::stdin().lock().lines() {
        let answer = perform(serde_json::from_str(&line?)?, &mut started);
        reply(&answer.unwrap_or_else(|error| Reply::Failed(error.to_string())))?;
    }
    Ok(())
}

fn perform(request: Request, started: &mut HashMap<u32, Child>) -> io::Result<Reply> {
    match request {
        Request::Run(program, arguments, limit) => run(Command::new(program).args(arguments), limit).map(Reply::Ran),
        Request::Start { program, arguments, stdout, stderr } => {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(File::create(stdout)?).stderr(File::create(stderr)?);
            let process = command.spawn()?;
            let pid = process.id();
            started.insert(pid, process);
            Ok(Reply::Started(pid))
        }
        Request::StartAs(pid) => {
            let process = start_as(pid)?;
            started.insert(pid, process);
            Ok(Reply::Started(pid))
        }
        Request::Signal(pid, signal) => {
            let signal = Signal::from_named_raw(signal).ok_or_else(|| io::Error::other("no such signal"))?;
            kill_process(kernel_pid(pid), signal)?;
            Ok(Reply::Done)
        }
        Request::Ended(pid) => {
            let ended = match started.get_mut(&pid) {
                Some(process) => process.try_wait()?.is_some(),
                None => true,
            };
            Ok(Reply::Ended(ended))
        }
    }
}

fn run(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (collect(process.stdout.take()), collect(process.stderr.take()));
    let mut status: io::Result<Option<ExitStatus>> = Ok(None);
    wait_until(limit, || {
        status = process.try_wait();
        !matches!(status, Ok(None))
    });
    let status = match status? {
        Some(status) => status,
        None => {
            process.kill()?;
            process.wait()?
        }
    };
    let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    Ok(Output { code: status.code(), stdout: text(stdout), stderr: text(stderr) })
}

fn collect(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What was read before an error is all there is.
            let _cut_short = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// The node's pids are the node's alone, so that any of them can be had, unless somebody forks at the same moment.
fn start_as(pid: u32) -> io::Result<Child> {
    for _ in 0..50 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
        let mut process = Command::new("/bin/sleep").arg("600").stdin(Stdio::null()).spawn()?;
        if process.id() == pid {
            return Ok(process);
        }
        process.kill()?;
        process.wait()?;
    }
    Err(io::Error::other(format!("pid {pid} is taken; this is {:?}", getpid())))
}

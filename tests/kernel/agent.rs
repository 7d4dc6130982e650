//! A process that opens files on behalf of a test, started from this same binary.
//!
//! `__agent host` serves as it is. `__agent container SCRATCH` enters a pid namespace, starts `__agent entrypoint
//! SCRATCH` as its PID 1, and that one enters a mount namespace, builds the root, moves into it and serves. `__agent bare
//! SCRATCH` has an empty root and stays in our pid namespace; `__agent half SCRATCH` is the same before it has let go of
//! the old root. `__agent
//! unprivileged PROGRAM ...` becomes that program without CAP_SYS_ADMIN, `poor UID FILES PROGRAM ...` as a user with few
//! descriptors, `groups N` holds so many fanotify groups, `connect SOCKET` a connection. All of this happens in a fresh process with
//! one thread.
//!
//! Guarantee: an agent ends with the process that started it (parent death signal, and end of its stdin), and its
//! mounts with it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
use rustix::process::{Resource, Rlimit, Uid, setrlimit};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capability_is_in_bounding_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_thread_res_uid,
};

use crate::atomic_writer;
use crate::hammer::Hammer;
use crate::matrix::stage::{Stage, be_child};
use crate::matrix::{races, world};
use crate::protocol::{Act, Outcome, Reply, Request, Timing};
use crate::root;

/// The argument that makes the test binary an agent.
pub(crate) const WORD: &str = "__agent";

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    let words: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    let outcome =
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from).and_then(|()| {
            match words.as_slice() {
                [mode] if *mode == "host" => serve(std::process::id()),
                [mode, scratch] if *mode == "container" => start_entrypoint("entrypoint", scratch),
                [mode, scratch] if *mode == "entrypoint" => be_container(Path::new(scratch)),
                [mode, scratch] if *mode == "bare" => be_bare_container(Path::new(scratch), root::enter),
                [mode, scratch] if *mode == "half" => be_bare_container(Path::new(scratch), root::enter_half),
                [mode, scratch] if *mode == "node" => be_node(Path::new(scratch)),
                [mode, scratch] if *mode == "matrix-container" => start_entrypoint("matrix-entrypoint", scratch),
                [mode, scratch] if *mode == "matrix-entrypoint" => be_matrix_container(Path::new(scratch)),
                [mode, pid, program, arguments @ ..] if *mode == "enter" => world::enter(pid, program, arguments),
                [mode, ..] if *mode == "child" => be_child(&arguments[1..]),
                [mode, user, files, program, arguments @ ..] if *mode == "poor" => {
                    become_poor(user, files, program, arguments)
                }
                [mode, count] if *mode == "groups" => hold_groups(count),
                [mode, socket] if *mode == "connect" => keep_connected(socket),
                [mode, program, arguments @ ..] if *mode == "unprivileged" => become_unprivileged(program, arguments),
                _ => Err(io::Error::other(format!("unknown agent {words:?}"))),
            }
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _lost = writeln!(io::stderr(), "agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes another program, without CAP_SYS_ADMIN: not even root gets back what the bounding set lacks.
fn become_unprivileged(program: &OsStr, arguments: &[&OsStr]) -> io::Result<()> {
    if capability_is_in_bounding_set(CapabilitySet::SYS_ADMIN)? {
        match remove_capability_from_bounding_set(CapabilitySet::SYS_ADMIN) {
            // Not allowed to give rights away: then there are none.
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Command::new(program).args(arguments).exec())
}

/// Becomes another program, as a user that is not root and has the capabilities that janusd needs; with a limit of open
/// files, unless that is 0.
fn become_poor(user: &OsStr, files: &OsStr, program: &OsStr, arguments: &[&OsStr]) -> io::Result<()> {
    let number = |word: &OsStr| word.to_string_lossy().parse::<u32>().map_err(io::Error::other);
    let files = u64::from(number(files)?);
    if files > 0 {
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: Some(files) })?;
    }
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
    set_keep_capabilities(true)?;
    // This process has one thread.
    let user = Uid::from_raw(number(user)?);
    set_thread_res_uid(user, user, user)?;
    set_capabilities(None, CapabilitySets { effective: needed, permitted: needed, inheritable: needed })?;
    for capability in needed.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Err(Command::new(program).args(arguments).exec())
}

/// Holds fanotify groups for as long as it serves: so many, or as many as its user may have.
fn hold_groups(count: &OsStr) -> io::Result<()> {
    use fanotify::low_level::{FAN_CLASS_CONTENT, FAN_CLOEXEC, fanotify_init};
    let count: usize = count.to_string_lossy().parse().map_err(io::Error::other)?;
    let _held: Vec<_> = (0..count).map_while(|_| fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, 0).ok()).collect();
    serve(std::process::id())
}

/// Connects to a socket, says by which number, and keeps the connection: whoever is asked for who is at its end names this
/// process.
fn keep_connected(socket: &OsStr) -> io::Result<()> {
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    writeln!(io::stdout(), "{}", stream.as_raw_fd())?;
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

/// Deprecated because CLONE_FILES could pull file descriptors from under other threads: it is never given here.
#[expect(deprecated, reason = "its replacement is unsafe, for the sake of CLONE_FILES alone")]
pub(crate) fn enter_new(namespaces: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(namespaces)?)
}

pub(crate) fn enter_new_mount_namespace() -> io::Result<()> {
    enter_new(UnshareFlags::NEWNS)?;
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

fn start_entrypoint(mode: &str, scratch: &OsStr) -> io::Result<()> {
    enter_new(UnshareFlags::NEWPID)?;
    let mut entrypoint = Command::new(std::env::current_exe()?).arg(WORD).arg(mode).arg(scratch).spawn()?;
    // It tells its troubles itself, and being killed at the end of a test is none.
    entrypoint.wait().map(drop)
}

fn be_node(scratch: &Path) -> io::Result<()> {
    world::build_node(scratch)?;
    serve(std::process::id())
}

fn be_matrix_container(scratch: &Path) -> io::Result<()> {
    let pid = fs::read_link("/proc/self")?.to_string_lossy().parse().map_err(io::Error::other)?;
    enter_new_mount_namespace()?;
    let user_namespace = world::build_container(scratch)?;
    root::enter(scratch)?;
    if user_namespace {
        world::enter_new_user_namespace()?;
        // Forgotten with the change of rights.
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    serve(pid)
}

fn be_container(scratch: &Path) -> io::Result<()> {
    // The host's /proc is still there, and tells this pid as the host counts.
    let pid = fs::read_link("/proc/self")?.to_string_lossy().parse().map_err(io::Error::other)?;
    enter_new_mount_namespace()?;
    root::build(scratch)?;
    root::enter(scratch)?;
    serve(pid)
}

/// An empty root, and the pid namespace of whoever starts it.
fn be_bare_container(scratch: &Path, enter: fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let pid = fs::read_link("/proc/self")?.to_string_lossy().parse().map_err(io::Error::other)?;
    enter_new_mount_namespace()?;
    let root = scratch.join("root");
    fs::create_dir(&root)?;
    mount("tmpfs", &root, "tmpfs", MountFlags::empty(), None)?;
    enter(scratch)?;
    serve(pid)
}

fn serve(pid: u32) -> io::Result<()> {
    let mut replies = io::stdout();
    let mut reply = |reply: &Reply| -> io::Result<()> {
        writeln!(replies, "{}", serde_json::to_string(reply)?)?;
        replies.flush()
    };
    reply(&Reply::Serving(pid))?;
    let mut hammer: Option<Hammer> = None;
    let mut stage = Stage::default();
    for line in io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?)? {
            Request::Perform(acts) => perform_all(&acts),
            Request::PerformInNewMountNamespace(acts) => perform_in_new_mount_namespace(acts),
            Request::StartOpeners(openers) => {
                hammer = Some(Hammer::start(&openers));
                Reply::Started
            }
            Request::Opened => Reply::Opened(hammer.as_ref().map_or(0, Hammer::opened)),
            Request::StopOpeners => Reply::Stopped(taken(&mut hammer)?.stop()),
            Request::AwaitOpeners => Reply::Stopped(taken(&mut hammer)?.join()),
            Request::Play(cue) => Reply::Played(stage.play(cue)),
            Request::Time(act, times) => Reply::Timed(time(&act, times)),
            Request::Race(room) => Reply::Raced(races::run(&room).map_err(|error| error.to_string())),
        };
        reply(&answer)?;
    }
    Ok(())
}

fn time(act: &Act, times: usize) -> Timing {
    let mut took: Vec<u64> = (0..times)
        .map(|_| {
            let before = Instant::now();
            let _outcome = perform(act);
            before.elapsed().as_nanos() as u64
        })
        .collect();
    took.sort_unstable();
    Timing { median: took[times / 2], percentile_99: took[times * 99 / 100] }
}

fn taken(hammer: &mut Option<Hammer>) -> io::Result<Hammer> {
    hammer.take().ok_or_else(|| io::Error::other("no openers run"))
}

fn perform_all(acts: &[Act]) -> Reply {
    let mut last = (0, Ok(Vec::new()));
    for (index, act) in acts.iter().enumerate() {
        last = (index, perform(act));
        if last.1.is_err() {
            break;
        }
    }
    Reply::Performed(last.0, last.1.map_err(Errno::raw_os_error))
}

/// In a thread of its own, for a thread can leave the mount namespace and never come back.
fn perform_in_new_mount_namespace(acts: Vec<Act>) -> Reply {
    let thread = std::thread::spawn(move || match enter_new_mount_namespace() {
        Ok(()) => perform_all(&acts),
        Err(error) => Reply::Performed(usize::MAX, Err(errno(&error).raw_os_error())),
    });
    thread.join().unwrap()
}

fn perform(act: &Act) -> Outcome {
    let done = |result: io::Result<()>| result.map(|()| Vec::new()).map_err(|error| errno(&error));
    let opened = |path: &OsStr, flags| open_with(path, flags).map(|_closed| Vec::new());
    match act {
        Act::Open(path) => opened(path, OFlags::RDONLY),
        Act::Create(path) => opened(path, OFlags::WRONLY | OFlags::CREATE),
        Act::Truncate(path) => opened(path, OFlags::WRONLY | OFlags::TRUNC),
        Act::Reopen(path) => reopenable(path).and_then(|(_held, name)| opened(name.as_os_str(), OFlags::RDONLY)),
        Act::Read(path) => fs::read(path).map_err(|error| errno(&error)),
        Act::List(path) => list(path).map_err(|error| errno(&error)),
        Act::Execute(program, arguments) => execute(program, arguments).map_err(|error| errno(&error)),
        Act::ExecuteReopened(path) => {
            reopenable(path).and_then(|(_held, name)| execute(name.as_os_str(), &[]).map_err(|error| errno(&error)))
        }
        Act::Write(path, content) => done(fs::write(path, content)),
        Act::Replace(path, content) => done(replace(Path::new(path), content)),
        Act::MakeDirectories(path) => done(fs::create_dir_all(path)),
        Act::Rename(from, to) => done(fs::rename(from, to)),
        Act::Symlink(target, name) => done(symlink(target, name)),
        Act::HardLink(file, name) => done(fs::hard_link(file, name)),
        Act::Unlink(path) => done(fs::remove_file(path)),
        Act::MakeExecutable(path) => done(fs::set_permissions(path, Permissions::from_mode(0o755))),
        Act::Size(path) => {
            fs::metadata(path).map(|found| found.len().to_string().into_bytes()).map_err(|error| errno(&error))
        }
        Act::Rotate(volume) => done(atomic_writer::rotate(Path::new(volume))),
        Act::Bind(from, to) => mount_bind(from, to).map(|()| Vec::new()),
        Act::Unmount(path) => unmount(path, UnmountFlags::empty()).map(|()| Vec::new()),
    }
}

fn open_with(path: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

/// An `O_PATH` file descriptor, and the name by which it is opened again.
fn reopenable(path: &OsStr) -> rustix::io::Result<(OwnedFd, PathBuf)> {
    let held = open_with(path, OFlags::PATH)?;
    let name = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    Ok((held, name))
}

fn list(path: &OsStr) -> io::Result<Vec<u8>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.extend(entry?.file_name().as_encoded_bytes());
        names.push(b'\n');
    }
    Ok(names)
}

/// Pipes only: `Stdio::null` would open `/dev/null`, one more event for whoever counts.
fn execute(program: &OsStr, arguments: &[OsString]) -> io::Result<Vec<u8>> {
    let mut process = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    drop(process.stdin.take());
    let mut output = Vec::new();
    if let Some(mut stdout) = process.stdout.take() {
        stdout.read_to_end(&mut output)?;
    }
    if process.wait()?.success() { Ok(output) } else { Err(Errno::IO.into()) }
}

fn replace(path: &Path, content: &str) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    fs::write(&aside, content)?;
    fs::rename(&aside, path)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

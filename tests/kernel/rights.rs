//! The rights that janusd keeps, as the kernel tells of every thread of it.
//!
//! That it still does its work with them is shown by every other test here: each runs the same binary.

use std::fs;
use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use janusd::rights;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, UnshareFlags};

use crate::agent;
use crate::case::Case;
use crate::manifest::guard;
use crate::watchdog::wait_until;

pub(crate) const TESTS: &[crate::Test] = &[
    crate::Test::kernel("rights::every_thread_keeps_what_it_needs_only", every_thread_keeps_what_it_needs_only)
        .without_control(),
    crate::Test::kernel("rights::what_a_confined_process_cannot_do", what_a_confined_process_cannot_do)
        .without_control(),
];

/// The argument that makes the test binary a process that gives its rights up, and tries what it may no longer do.
pub(crate) const WORD: &str = "__rights";

/// The fields of `/proc/PID/task/TID/status` of every thread.
fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may have ended since.
    tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok()).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
}

fn every_thread_keeps_what_it_needs_only(case: &Case) {
    let log = kernel_log();
    let container = case.container();
    let janusd = case.guard(&container, &guard(&["{deny: [/secret], events: [open], except: [{origins: [Owner]}]}"]));
    let running = janusd.running().unwrap();
    // Threads that come later: a reload, and a look at who asks.
    janusd.update(&guard(&["{deny: [/secret, /denied], events: [open], except: [{users: [12]}]}"]));
    case.denied(container.open("/secret"));
    let kept = rights::KEPT.bits();
    let check = |status: &String| {
        let name = field(status, "Name");
        let mask = |name| u64::from_str_radix(field(status, name), 16).unwrap();
        assert_eq!(field(status, "NoNewPrivs"), "1", "{name}");
        assert_eq!((field(status, "Seccomp"), field(status, "Seccomp_filters")), ("2", "3"), "{name}");
        assert_eq!(mask("CapEff") & !kept, 0, "{name}: {status}");
        assert_eq!(mask("CapEff") & CapabilitySet::SYS_ADMIN.bits(), CapabilitySet::SYS_ADMIN.bits(), "{name}");
        assert_eq!(mask("CapPrm"), mask("CapEff"), "{name}");
        assert_eq!((mask("CapInh"), mask("CapAmb")), (0, 0), "{name}");
        assert_eq!(mask("CapBnd") & !kept, 0, "{name}");
    };
    let statuses = threads(running.pid());
    assert!(statuses.len() > 6, "{statuses:#?}");
    for name in ["janus-super", "janus-inotify", "janus-lookup", "janus-lines", "jg-g", "jk-g", "tracing-appende"] {
        assert!(statuses.iter().any(|status| field(status, "Name") == name), "no thread {name}: {statuses:#?}");
    }
    statuses.iter().for_each(check);
    // A scrape reads procfs and clocks.
    assert!(janusd.running().unwrap().metrics().has("process_start_time_seconds"));
    if let Some(log) = log {
        let whose = of_executable(Path::new(env!("CARGO_BIN_EXE_janusd")));
        let refused: Vec<_> = records(&log).into_iter().filter(|line| line.contains(&whose)).collect();
        assert!(refused.is_empty(), "calls that are on no list: {refused:#?}");
    }
}

/// What records of a program bear. Their pid is that of the outermost pid namespace, which may not be ours; and tests run
/// one after the other.
fn of_executable(path: &Path) -> String {
    format!(" exe=\"{}\" ", path.display())
}

/// The kernel's log from now on. `None`: it cannot be read here, or an audit daemon takes such records instead.
fn kernel_log() -> Option<OwnedFd> {
    if fs::exists("/run/auditd.pid").unwrap() {
        return None;
    }
    let log = rustix::fs::open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()?;
    rustix::fs::seek(&log, SeekFrom::End(0)).ok()?;
    Some(log)
}

/// What has come since. Each read gives one record.
fn records(log: &OwnedFd) -> Vec<String> {
    let mut buffer = [0; 8192];
    let mut found = Vec::new();
    loop {
        match rustix::io::read(log, &mut buffer) {
            Ok(length) => found.push(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            // Some were overwritten.
            Err(Errno::PIPE) => {}
            Err(_) => return found,
        }
    }
}

fn what_a_confined_process_cannot_do(case: &Case) {
    let log = kernel_log();
    let mut process = Command::new(std::env::current_exe().unwrap()).arg(WORD).spawn().unwrap();
    case.watch.process(process.id());
    assert!(process.wait().unwrap().success(), "see above");
    let Some(log) = log else {
        eprintln!("the kernel's log cannot be read here: not looked at");
        return;
    };
    let whose = of_executable(&std::env::current_exe().unwrap());
    let mut told = Vec::new();
    // The kernel writes it a moment later.
    wait_until(Duration::from_secs(5), || {
        told.extend(records(&log).into_iter().filter(|line| line.contains("type=1326") && line.contains(&whose)));
        !told.is_empty()
    });
    assert!(!told.is_empty(), "no refusal is in the kernel's log");
    // Which libc tries for every thread.
    let clone3 = format!(" syscall={} ", libc::SYS_clone3);
    assert!(!told.iter().any(|line| line.contains(&clone3)), "{told:#?}");
}

pub(crate) fn main() -> ExitCode {
    // Before: there are threads that have been there all the time.
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    rights::give_up_capabilities().unwrap();
    let early = std::thread::spawn(move || {
        receiver.recv().unwrap();
        Command::new("/bin/true").status().map(drop)
    });
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let loopback = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rights::confine().unwrap();

    let mut failed = Vec::new();
    let mut refused = |what: &str, outcome: io::Result<()>, errno: Errno| {
        if outcome.as_ref().err().and_then(Errno::from_io_error) != Some(errno) {
            failed.push(format!("{what}: {outcome:?}, not {errno:?}"));
        }
    };
    refused("a process", Command::new("/bin/true").status().map(drop), Errno::PERM);
    sender.send(()).unwrap();
    refused("a process, from an older thread", early.join().unwrap(), Errno::PERM);
    refused("a mount namespace", agent::enter_new(UnshareFlags::NEWNS), Errno::PERM);
    refused("a user namespace", agent::enter_new(UnshareFlags::NEWUSER), Errno::PERM);
    let mounted = rustix::mount::mount("tmpfs", "/nowhere", "tmpfs", MountFlags::empty(), None);
    refused("a mount", mounted.map_err(Into::into), Errno::PERM);
    let unmounted = rustix::mount::unmount("/nowhere", UnmountFlags::DETACH);
    refused("an unmount", unmounted.map_err(Into::into), Errno::PERM);
    let node = rustix::fs::mknodat(rustix::fs::CWD, "/nowhere", FileType::Fifo, Mode::empty(), 0);
    refused("a node", node.map_err(Into::into), Errno::PERM);
    let killed = rustix::process::kill_process(rustix::process::getpid(), Signal::CONT);
    refused("a signal", killed.map_err(Into::into), Errno::PERM);
    let netlink = rustix::net::socket(rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW, None);
    refused("a netlink socket", netlink.map(drop).map_err(Into::into), Errno::PERM);
    refused("a connection", TcpStream::connect(loopback.local_addr().unwrap()).map(drop), Errno::NOSYS);
    refused("removing a file", fs::remove_file("/nowhere"), Errno::NOSYS);
    // As it is: should it not be refused, nothing has happened.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limited = rustix::process::prlimit(rustix::process::getppid(), rustix::process::Resource::Nofile, limit);
    refused("another's limits", limited.map(drop).map_err(Into::into), Errno::NOSYS);

    // What must still work: threads, files, waiting.
    let thread =
        std::thread::Builder::new().name("late".into()).spawn(|| fs::read_to_string("/proc/self/status").unwrap());
    let status = thread.unwrap().join().unwrap();
    if field(&status, "Seccomp") != "2" {
        failed.push(format!("a late thread is not filtered: {status}"));
    }
    socket.set_nonblocking(true).unwrap();
    wait_until(Duration::from_millis(10), || false);
    failed.iter().for_each(|what| eprintln!("not refused: {what}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! Who asks: origins, executables and users of `except`, and opens that amount to executions.
//!
//! Guarantee shown: contract 1, process matchers and origins, and meaning, point 5.
//!
//! Processes here are made by *scripts*: words that a process of this binary (`__who`) works off, such as `fork setsid
//! open:/secret`. Each open prints a line, whoever's child makes it, and the test reads as many as it expects. The
//! container differs from that of the other modules in what origins rest on: its PID 1 begins a session, as a runtime's
//! does, and holds the node's programs, so that they can be copied, linked and run by their loaders.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use janusd::commands::engine::Engine;
use janusd::events::EventFormat;
use janusd::guard::lookup::Lookups;
use janusd::guard::{Guard, Roots};
use janusd::metrics::Metrics;
use janusd::process::interpreter::interpreter;
use janusd::root::Root;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::{
    PidfdFlags, Signal, pidfd_open, pidfd_send_signal, pivot_root, set_parent_process_death_signal, setsid,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_thread_res_uid};

use crate::case::Case;
use crate::daemon::Target;
use crate::manifest::{guard, guard_with};
use crate::protocol::Outcome;
use crate::watchdog::{kernel_pid, wait_until};

crate::kernel_tests![
    the_containers_own,
    brought_in_from_outside,
    a_double_forked_exec,
    a_daemon_of_the_application,
    an_orphan_whose_session_began_outside,
    the_host,
    a_directory_has_no_owners,
    the_harness_without_a_session,
    by_executable,
    by_executable_glob,
    no_verdict_survives_an_exec,
    by_user,
    by_user_in_a_user_namespace,
    an_exception_is_its_own_subjects,
    the_lines_tell_who,
    many_at_once,
    a_lookup_that_never_comes.without_control(),
    by_the_loader,
    by_the_interpreter,
    an_excepted_interpreter,
];

/// The argument that makes the test binary such a process.
pub(crate) const WORD: &str = "__who";
/// Where a container has this binary.
const INSIDE: &str = "/who";

const OWNERS: &str = "{deny: [/secret], events: [open], autoAllowOwner: true}";

// The processes' side.

pub(crate) fn main() -> ExitCode {
    let words: VecDeque<String> = std::env::args().skip(2).collect();
    let outcome = match words.front().map(String::as_str) {
        Some("container") => start_container(&words),
        Some("init") => be_init(&words),
        _ => work(words),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _lost = writeln!(io::stderr(), "{WORD}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ourselves() -> PathBuf {
    if Path::new(INSIDE).exists() { INSIDE.into() } else { std::env::current_exe().unwrap() }
}

#[expect(deprecated, reason = "its replacement is unsafe, for the sake of CLONE_FILES alone")]
fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(namespaces)?)
}

fn start_container(words: &VecDeque<String>) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    unshare(UnshareFlags::NEWPID)?;
    let mut init = Command::new(std::env::current_exe()?).arg(WORD).arg("init").args(words.iter().skip(1)).spawn()?;
    init.wait().map(drop)
}

fn be_init(words: &VecDeque<String>) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    setsid()?;
    let pid = fs::read_link("/proc/self")?;
    let scratch = Path::new(words.get(1).ok_or(Errno::INVAL)?);
    unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    build(scratch)?;
    std::env::set_current_dir(scratch)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    if words.get(2).is_some() {
        unshare(UnshareFlags::NEWUSER)?;
    }
    say(&pid.to_string_lossy())?;
    for line in io::stdin().lock().lines() {
        work(line?.split('\t').map(str::to_owned).collect())?;
    }
    Ok(())
}

/// A root with the node's programs, some of our own making, and files to guard.
fn build(scratch: &Path) -> io::Result<()> {
    mount_bind_recursive(scratch, scratch)?;
    let at = |path: &str| scratch.join(path.trim_start_matches('/'));
    for directory in ["/proc", "/dev", "/opt/sub", "/sync", "/scripts"] {
        fs::create_dir_all(at(directory))?;
    }
    mount("proc", at("/proc"), "proc", MountFlags::empty(), None)?;
    for directory in ["/usr", "/bin", "/lib", "/lib32", "/lib64"] {
        match fs::symlink_metadata(directory) {
            Ok(found) if found.is_symlink() => symlink(fs::read_link(directory)?, at(directory))?,
            Ok(_) => {
                fs::create_dir(at(directory))?;
                mount_bind_recursive(directory, at(directory))?;
            }
            Err(_) => {}
        }
    }
    for copy in [INSIDE, "/opt/app", "/opt/copy", "/opt/moved", "/opt/sub/tool"] {
        fs::copy(std::env::current_exe()?, at(copy))?;
    }
    fs::hard_link(at("/opt/app"), at("/opt/link"))?;
    fs::copy("/bin/true", at("/opt/prog"))?;
    fs::copy(loader(), at("/opt/loader"))?;
    fs::write(at("/scripts/script"), "#!/bin/sh\ntrue\n")?;
    fs::copy("/bin/true", at("/scripts/other"))?;
    fs::copy("/bin/sh", at("/opt/sh"))?;
    make_executable(&at("/scripts/script"))?;
    for file in ["/secret", "/public", "/other"] {
        fs::write(at(file), file)?;
    }
    Ok(())
}

fn make_executable(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
}

/// The dynamic loader: the interpreter of a program of the host.
fn loader() -> PathBuf {
    let program = fs::read("/bin/true").unwrap();
    let path = interpreter(&mut program.as_slice()).unwrap().expect("a program with a loader");
    PathBuf::from(String::from_utf8(path).unwrap())
}

/// Works off a script: each word in its turn; `fork`, `leave` and `exec` leave the rest to another.
fn work(mut words: VecDeque<String>) -> io::Result<()> {
    while let Some(word) = words.pop_front() {
        let (word, argument) = word.split_once(':').unwrap_or((&word, ""));
        let rest = || Command::new(ourselves()).arg(WORD).args(&words).stdin(Stdio::piped()).spawn();
        match word {
            // A child, which is waited for, and then for a file to come to be.
            "fork" => {
                rest()?.wait()?;
                wait_until(Duration::MAX, || argument.is_empty() || Path::new(argument).exists());
                return Ok(());
            }
            // A child, which is left behind once a file has come to be.
            "leave" => {
                let _orphan: Child = rest()?;
                wait_until(Duration::MAX, || argument.is_empty() || Path::new(argument).exists());
                return Ok(());
            }
            // Goes on as another program: a copy of this one.
            "exec" => return Err(Command::new(argument).arg(WORD).args(&words).exec()),
            "setsid" => drop(setsid()?),
            // Waits until PID 1 has adopted this process.
            "orphan" => {
                wait_until(Duration::MAX, || rustix::process::getppid().is_some_and(|parent| parent.is_init()));
            }
            "touch" => fs::write(argument, "")?,
            // The container's namespaces: its pid namespace is its children's only.
            "enter" => {
                let namespaces = [("pid", LinkNameSpaceType::ProcessID), ("mnt", LinkNameSpaceType::Mount)];
                let open = |name| {
                    let path = format!("/proc/{argument}/ns/{name}");
                    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                };
                let [pid, mnt] = namespaces.map(|(name, _)| open(name));
                move_into_link_name_space(rustix::fd::AsFd::as_fd(&pid?), Some(LinkNameSpaceType::ProcessID))?;
                move_into_link_name_space(rustix::fd::AsFd::as_fd(&mnt?), Some(LinkNameSpaceType::Mount))?;
            }
            "user" => {
                let user = rustix::process::Uid::from_raw(argument.parse().map_err(io::Error::other)?);
                set_thread_res_uid(user, user, user)?;
            }
            "open" => say(&told(fs::File::open(argument).map(drop)))?,
            "opens" => {
                for _ in 0..1000 {
                    fs::File::open(argument)?;
                }
                say("ok")?;
            }
            // Runs `program,argument`: whether it succeeds.
            "run" => say(&told(run(argument)))?,
            other => return Err(io::Error::other(format!("unknown word {other}"))),
        }
    }
    Ok(())
}

fn run(line: &str) -> io::Result<()> {
    let mut words = line.split(',');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).env("LC_ALL", "C").stdin(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => Ok(()),
        false if said.contains("Operation not permitted") => Err(Errno::PERM.into()),
        false => Err(io::Error::other(said)),
    }
}

fn told(outcome: io::Result<()>) -> String {
    match outcome {
        Ok(()) => "ok".to_owned(),
        Err(error) => {
            Errno::from_io_error(&error).map_or_else(|| error.to_string(), |it| it.raw_os_error().to_string())
        }
    }
}

/// One write a line: several processes share the pipe.
fn say(line: &str) -> io::Result<()> {
    let mut line = line.replace('\n', " ");
    line.push('\n');
    rustix::io::write(io::stdout(), line.as_bytes())?;
    Ok(())
}

// The test's side.

fn outcome(line: &str) -> Outcome {
    match line.parse() {
        _ if line == "ok" => Ok(Vec::new()),
        Ok(errno) => Err(Errno::from_raw_os_error(errno)),
        Err(_) => panic!("a process said: {line}"),
    }
}

/// A container whose PID 1 works off scripts.
struct House {
    process: Child,
    said: BufReader<ChildStdout>,
    pid: u32,
}

impl House {
    fn start(case: &Case) -> House {
        House::start_with(case, &[])
    }

    fn start_with(case: &Case, words: &[&str]) -> House {
        House::start_in(case, "house", words)
    }

    fn start_in(case: &Case, name: &str, words: &[&str]) -> House {
        let scratch = case.scratch(name);
        fs::create_dir(&scratch).unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([WORD, "container"])
            .arg(&scratch)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        case.watch.process(process.id());
        let said = BufReader::new(process.stdout.take().unwrap());
        let mut house = House { process, said, pid: 0 };
        house.pid = house.line().parse().unwrap();
        case.watch.process(house.pid);
        house
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Has PID 1 work off a script, which opens `N` times in all.
    fn all<const N: usize>(&mut self, script: &str) -> [Outcome; N] {
        let words: Vec<&str> = script.split(' ').collect();
        writeln!(self.process.stdin.as_mut().unwrap(), "{}", words.join("\t")).unwrap();
        std::array::from_fn(|_| outcome(&self.line()))
    }

    fn does(&mut self, script: &str) -> Outcome {
        let [outcome] = self.all(script);
        outcome
    }

    /// The same by a process of the host, which may enter the container.
    fn host<const N: usize>(&self, script: &str) -> [Outcome; N] {
        let script = script.replace("PID", &self.pid.to_string());
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(WORD)
            .args(script.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let outcomes = std::array::from_fn(|_| outcome(&lines.next().expect("a line").unwrap()));
        process.wait().unwrap();
        outcomes
    }

    fn target(&self) -> Target<'static> {
        Target::Pid(self.pid)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if let Ok(init) = pidfd_open(kernel_pid(self.pid), PidfdFlags::empty()) {
            let _ended_before = pidfd_send_signal(init, Signal::KILL);
        }
        let _ended_since = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// From the entrypoint down.
fn the_containers_own(case: &Case) {
    let mut house = House::start(case);
    let _janusd = case.guard(house.target(), &guard(&[OWNERS]));
    case.allowed(house.does("open:/secret"));
    case.allowed(house.does("fork open:/secret"));
    case.allowed(house.does("fork fork fork open:/secret"));
    // A session of its own under a living parent.
    case.allowed(house.does("fork fork setsid open:/secret"));
    case.allowed(house.does("fork fork setsid fork fork open:/secret"));
    // An orphan in the entrypoint's session.
    case.allowed(house.does("fork fork leave orphan open:/secret"));
    // The control of all of these.
    let [outsider] = house.host("open:/proc/PID/root/secret");
    case.denied(outsider);
}

/// As `runc exec` and nsenter do.
fn brought_in_from_outside(case: &Case) {
    let house = House::start(case);
    let janusd = case.guard(house.target(), &guard_with("g", &[WHO], &[OWNERS]));
    for script in ["fork open:/secret", "setsid fork open:/secret", "fork fork setsid fork open:/secret"] {
        let [entered] = house.host(&format!("enter:PID {script}"));
        case.denied(entered);
    }
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["Session rule-deny DENY /secret"]);
        janusd.counts(&[("response", "deny")], 3);
    }
}

/// PID 1 adopts it. Nothing in the tree tells it from the application's own.
fn a_double_forked_exec(case: &Case) {
    let house = House::start(case);
    let janusd = case.guard(house.target(), &guard_with("g", &[WHO], &[OWNERS]));
    let [orphan] = house.host("setsid enter:PID fork leave orphan open:/secret");
    case.denied(orphan);
    let [orphan] = house.host("setsid enter:PID fork leave orphan setsid open:/secret");
    case.denied(orphan);
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["Session origin-undecided DENY /secret"]);
    }
}

/// With the leader of its session alive, an orphan is told for certain: nobody joins a session.
fn an_orphan_whose_session_began_outside(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/secret], events: [open], except: [{origins: [Session]}]}";
    let janusd = case.guard(house.target(), &guard_with("g", &[WHO], &[subject]));
    // The leader lives until the orphan has opened.
    let [orphan] = house.host("setsid enter:PID fork:/sync/one leave orphan open:/secret touch:/sync/one");
    case.allowed(orphan);
    // And of the application's: in a session whose leader has a living parent.
    case.denied(house.does("fork fork setsid fork:/sync/two leave orphan open:/secret touch:/sync/two"));
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["Session except ALLOW /secret"]);
        janusd.line_with(&["Owner rule-deny DENY /secret"]);
    }
}

/// It orphans itself and begins a session: undecided, unless it was seen before.
fn a_daemon_of_the_application(case: &Case) {
    let mut house = House::start(case);
    let janusd = case.guard(house.target(), &guard_with("g", &[WHO], &[OWNERS]));
    case.denied(house.does("fork leave orphan setsid open:/secret"));
    let [before, after, child] =
        house.all("fork leave:/sync/seen open:/secret touch:/sync/seen orphan setsid open:/secret fork open:/secret");
    for seen in [before, after, child] {
        case.allowed(seen);
    }
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["Session origin-undecided DENY /secret"]);
        janusd.line_with(&["Owner except ALLOW /secret"]);
    }
}

fn the_host(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/secret], events: [open], except: [{origins: [Node]}]}";
    let janusd = case.guard(house.target(), &guard_with("g", &[WHO], &[subject]));
    let [outsider] = house.host("open:/proc/PID/root/secret");
    case.allowed(outsider);
    // In the container's mount namespace, but not yet in its pid namespace.
    let [outsider] = house.host("enter:PID open:/secret");
    case.allowed(outsider);
    case.denied(house.does("open:/secret"));
    let [entered] = house.host("enter:PID fork open:/secret");
    case.denied(entered);
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["Node except ALLOW /secret"]);
        janusd.line_with(&["Owner rule-deny DENY /secret"]);
    }
}

/// `--root` guards no container.
fn a_directory_has_no_owners(case: &Case) {
    let directory = case.directory();
    let subjects = [OWNERS, "{deny: [/public], events: [open], except: [{origins: [Node]}]}"];
    let _janusd = case.guard(&directory, &guard(&subjects));
    case.denied(directory.open(directory.at("/secret")));
    case.allowed(directory.open(directory.at("/public")));
}

/// A PID 1 that begins no session, as `unshare --pid --fork` leaves it: its session is the test's own, and no proof.
fn the_harness_without_a_session(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &guard(&[OWNERS]));
    case.allowed(container.open("/secret"));
    case.denied(case.host().open(container.seen_from_host("/secret")));
}

/// By identity: a hard link is the same file, a copy is not, whatever it is called; and a path means what it leads to now.
fn by_executable(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/secret], events: [open], except: [{executables: [/opt/app, /opt/moved]}]}";
    let _janusd = case.guard(house.target(), &guard(&[subject]));
    case.allowed(house.does("fork exec:/opt/app open:/secret"));
    case.allowed(house.does("fork exec:/opt/link open:/secret"));
    case.allowed(house.does("fork exec:/opt/moved open:/secret"));
    case.denied(house.does("fork exec:/opt/copy open:/secret"));
    case.denied(house.does("open:/secret"));
    let root = PathBuf::from(format!("/proc/{}/root", house.pid));
    fs::rename(root.join("opt/moved"), root.join("opt/elsewhere")).unwrap();
    case.denied(house.does("fork exec:/opt/elsewhere open:/secret"));
    fs::rename(root.join("opt/copy"), root.join("opt/app")).unwrap();
    case.allowed(house.does("fork exec:/opt/app open:/secret"));
    case.denied(house.does("fork exec:/opt/link open:/secret"));
}

fn by_executable_glob(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/secret], events: [open], except: [{executables: ['/opt/**/t?ol', '/nothing/*']}]}";
    let _janusd = case.guard(house.target(), &guard(&[subject]));
    case.allowed(house.does("fork exec:/opt/sub/tool open:/secret"));
    case.denied(house.does("fork exec:/opt/app open:/secret"));
    case.denied(house.does("open:/secret"));
    // The container's file by the host's name of it.
    let [outsider] = house.host("exec:/proc/PID/root/opt/app open:/proc/PID/root/secret");
    case.denied(outsider);
}

/// pid and start time stay; the program does not.
fn no_verdict_survives_an_exec(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/secret], events: [open], except: [{executables: [/opt/app]}]}";
    let _janusd = case.guard(house.target(), &guard(&[subject]));
    let [app, copy, again] =
        house.all("fork exec:/opt/app open:/secret exec:/opt/copy open:/secret exec:/opt/app open:/secret");
    case.allowed(app);
    case.denied(copy);
    case.allowed(again);
}

fn by_user(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/secret], events: [open], except: [{users: [7, 9], origins: [Owner]}]}";
    let _janusd = case.guard(house.target(), &guard(&[subject]));
    case.allowed(house.does("fork user:7 open:/secret"));
    case.denied(house.does("fork user:8 open:/secret"));
    case.denied(house.does("fork open:/secret"));
    // Both fields have to hold.
    let [entered] = house.host("enter:PID fork user:7 open:/secret");
    case.denied(entered);
}

/// Numbers are the container's: its root is nobody's root outside, and the node's root has no number inside.
fn by_user_in_a_user_namespace(case: &Case) {
    let mut house = House::start_with(case, &["users"]);
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", house.pid), "0 100000 1000").unwrap();
    }
    // Before it executes anything: until then its user has no number inside.
    let [] = house.all("user:0");
    let subject = "{deny: [/secret], events: [open], except: [{users: [0, 7]}]}";
    let janusd = case.guard(house.target(), &guard_with("g", &[WHO], &[subject]));
    case.allowed(house.does("fork user:0 open:/secret"));
    case.allowed(house.does("fork user:7 open:/secret"));
    case.denied(house.does("fork user:8 open:/secret"));
    let [outsider] = house.host("open:/proc/PID/root/secret");
    case.denied(outsider);
    let [numbered] = house.host("user:100007 open:/proc/PID/root/public");
    // Nobody asked about that one; a user of the host may not even get there.
    assert!(numbered.is_err());
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["Owner rule-deny DENY /secret 8"]);
        janusd.line_with(&["Node rule-deny DENY /secret -"]);
    }
}

fn an_exception_is_its_own_subjects(case: &Case) {
    let mut house = House::start(case);
    let subjects = [
        "{deny: [/secret, /other], events: [open], autoAllowOwner: true}",
        "{deny: [/other], events: [open], except: [{origins: [Node]}]}",
    ];
    let _janusd = case.guard(house.target(), &guard(&subjects));
    case.allowed(house.does("open:/secret"));
    case.denied(house.does("open:/other"));
    let [outsider] = house.host("open:/proc/PID/root/other");
    case.denied(outsider);
    case.allowed(house.does("open:/public"));
}

const WHO: &str = "logFormat: '{origin} {reason} {response} {path} {uid} {comm} {exe}'";

/// `{origin}` is looked up for a line even where no exception asks.
fn the_lines_tell_who(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/secret], allow: [/public], events: [open]}";
    let janusd = case.guard(house.target(), &guard_with("g", &[WHO], &[subject]));
    case.denied(house.does("open:/secret"));
    case.allowed(house.does("fork user:7 open:/public"));
    let [outsider] = house.host("open:/proc/PID/root/secret");
    case.denied(outsider);
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["Owner rule-deny DENY /secret 0 "]);
        janusd.line_with(&["Owner rule-allow ALLOW /public 7 who /who"]);
        janusd.line_with(&["Node rule-deny DENY /secret 0 "]);
        assert_eq!(janusd.metrics().sum("janus_guard_fallbacks_total", &[]), 0);
    }
}

/// Events that wait for a lookup are each answered, for what they are, and counted.
fn many_at_once(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/secret], events: [open], autoAllowOwner: true, log: None}";
    let janusd = case.guard(house.target(), &guard(&[subject]));
    for _ in 0..8 {
        writeln!(house.process.stdin.as_mut().unwrap(), "leave\topens:/secret").unwrap();
    }
    for _ in 0..20 {
        let [outsider] = house.host("open:/proc/PID/root/secret");
        case.denied(outsider);
    }
    for _ in 0..8 {
        case.allowed(outcome(&house.line()));
    }
    if let Some(janusd) = janusd.running() {
        // And each of the eight was executed from the guarded root.
        janusd.counts(&[("response", "allow")], 8 * 1000 + 8);
        janusd.counts(&[("response", "deny")], 20);
        assert_eq!(janusd.metrics().sum("janus_guard_fallbacks_total", &[]), 0);
    }
}

/// Nobody waits longer than the deadline: then the guard's failure policy answers, and that is counted.
fn a_lookup_that_never_comes(case: &Case) {
    for (policy, allowed) in [("Allow", true), ("Deny", false)] {
        let house = House::start_in(case, policy, &[]);
        let mut engine = Engine::start(EventFormat::Guard, 1).unwrap_or_else(|failed| panic!("{:?}", failed.lines));
        let (lookups, _nobody) = Lookups::unattended();
        engine.shared.lookups = lookups;
        let subject = "{deny: [/secret], events: [open], log: None, except: [{origins: [Node]}]}";
        let text = guard_with("g", &[&format!("failurePolicy: {policy}")], &[subject]);
        let spec = janusd::manifest::parse("test", text.as_bytes()).unwrap().remove(0);
        let metrics = Metrics::default();
        let root = Root::of_process(house.pid.try_into().unwrap()).unwrap();
        let guard =
            Guard::start(Arc::new(spec.clone()), Roots::One(root), None, metrics.guard(spec.name()), &engine.shared)
                .unwrap();
        let asked = Instant::now();
        let [outsider] = house.host("open:/proc/PID/root/secret");
        assert_eq!(outsider, if allowed { Ok(Vec::new()) } else { Err(Errno::PERM) });
        assert!(asked.elapsed() >= janusd::guard::lookup::DEADLINE, "{:?}", asked.elapsed());
        // Others are answered meanwhile, and at once.
        let [outsider] = house.host("open:/proc/PID/root/public");
        case.allowed(outsider);
        let fallbacks = || {
            let text = metrics.open_metrics().unwrap();
            text.lines().any(|line| line.contains("reason=\"lookup-timeout\"") && line.ends_with(" 1"))
        };
        assert!(wait_until(Duration::from_secs(5), fallbacks), "not counted");
        assert!(guard.stop(Duration::from_secs(5)));
        engine.finish(true, Duration::from_secs(1));
    }
}

/// `ld.so program`. A copy of either dodges it: only denying `open` helps, as `check` warns.
fn by_the_loader(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/opt/prog], events: [execute]}";
    let janusd = case.guard(house.target(), &guard_with("g", &["logFormat: '{reason} {event} {path}'"], &[subject]));
    let loader = loader();
    let loader = loader.display();
    case.denied(house.does("run:/opt/prog"));
    case.denied(house.does(&format!("run:{loader},/opt/prog")));
    case.allowed(house.does(&format!("run:{loader},/bin/true")));
    case.allowed(house.does("open:/opt/prog"));
    case.allowed(house.does("run:/opt/loader,/opt/prog"));
    // The host's loader is the same file here; it is the file's interpreter in the host's own root.
    let [outsider] = house.host(&format!("run:{loader},/proc/PID/root/opt/prog"));
    case.denied(outsider);
    if let Some(janusd) = janusd.running() {
        janusd.line_with(&["interpreter OPEN_PERM /opt/prog"]);
        janusd.counts(&[("event", "open"), ("response", "deny")], 2);
        janusd.counts(&[("event", "execute"), ("response", "deny")], 1);
        assert_eq!(janusd.metrics().sum("janus_guard_fallbacks_total", &[]), 0);
    }
}

/// `sh script`.
fn by_the_interpreter(case: &Case) {
    let mut house = House::start(case);
    let _janusd = case.guard(house.target(), &guard(&["{deny: [/scripts], events: [execute]}"]));
    case.denied(house.does("run:/scripts/script"));
    case.denied(house.does("run:/bin/sh,/scripts/script"));
    case.allowed(house.does("open:/scripts/script"));
    case.allowed(house.does("run:/bin/cat,/scripts/script"));
    case.denied(house.does("run:/scripts/other"));
    // A copy of the shell.
    case.allowed(house.does("run:/opt/sh,/scripts/script"));
}

fn an_excepted_interpreter(case: &Case) {
    let mut house = House::start(case);
    let subject = "{deny: [/scripts], events: [execute], autoAllowOwner: true}";
    let _janusd = case.guard(house.target(), &guard(&[subject]));
    case.allowed(house.does("run:/scripts/script"));
    case.allowed(house.does("run:/bin/sh,/scripts/script"));
    let [entered] = house.host("enter:PID fork run:/bin/sh,/scripts/script");
    case.denied(entered);
    let [entered] = house.host("enter:PID fork run:/scripts/script");
    case.denied(entered);
}

//! `janusd hold`: what becomes of guards whose janusd is killed.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use janus_proto::v1;
use janusd::guard::Numbers;
use janusd::guard::known::Fingerprints;
use janusd::handover::link::{Link, LinkError};
use janusd::handover::message::{self, Ask, Deposit, Done, Estate, Highest, Parked, Part, Rest, Taken, Unit};
use prost::Message;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::certificates::Authority;
use super::client::{Client, create, spec};
use super::handover::{
    READERS, among, ask, be_another, connect, give, group, guarding, hand_overs, mark, queued, read_until_ready, ready,
};
use super::{SOON, Serve, wait};
use crate::agent;
use crate::case::{Case, Janus};
use crate::found::PodCgroup;
use crate::kernel_tests;
use crate::metrics::Metrics;
use crate::raw::{BareEvents, BareGroup, Mark, Stopped};
use crate::watchdog::{kernel_pid, wait_until};

kernel_tests! {
    a_killed_janusd_is_waited_for.lasting(900),
    for_one_that_does_not_come_back_failure_policy_answers,
    whole_pods_roll_out.lasting(300),
    the_end_of_a_connection_is_no_death.without_control(),
    what_is_not_known_is_no_end.without_control(),
    a_holder_that_hangs_up_is_noticed.without_control(),
    whoever_was_given_a_guard_reads_alone.lasting(60).without_control(),
    what_is_not_taken_is_held.without_control(),
    a_deposit_that_nobody_understands_is_held.without_control(),
    numbers_that_have_risen_are_answered.without_control(),
    the_old_one_guards_until_all_is_done.without_control(),
    a_worker_that_was_replaced_is_deposited_anew.lasting(120).without_control(),
    what_runs_already_is_taken_and_not_inherited.lasting(60).without_control(),
}

pub(super) const DEADLINE: Duration = Duration::from_secs(2);

pub(super) struct Hold(Child);

impl Hold {
    pub(super) fn start(case: &Case) -> Hold {
        Hold::start_as(case, 0)
    }

    /// One of several, by its number.
    fn start_as(case: &Case, number: usize) -> Hold {
        Hold::start_with(case, std::fs::File::create(case.scratch(&format!("hold-{number}.log"))).unwrap().into())
    }

    pub(super) fn start_with(case: &Case, log: Stdio) -> Hold {
        let mut command = Command::new(env!("CARGO_BIN_EXE_janusd"));
        command.arg("hold").arg("--state-dir").arg(case.scratch("state")).args(["--deadline", "2s"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        case.watch.process(child.id());
        let hold = Hold(child);
        assert!(wait_until(SOON, || case.scratch("state/hold.sock").exists()), "it does not hold");
        hold
    }

    /// Groups that it has.
    pub(super) fn groups(&self) -> usize {
        let Ok(files) = std::fs::read_dir(format!("/proc/{}/fd", self.0.id())) else { return 0 };
        let links = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("fanotify")).count()
    }

    pub(super) fn log(case: &Case) -> String {
        std::fs::read_to_string(case.scratch("hold-0.log")).unwrap()
    }
}

/// How many marks each group of a process bears.
fn marks(process: u32) -> Vec<usize> {
    let told = crate::stuck::groups(&process.to_string()).into_iter().filter_map(|number| {
        let told = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).ok()?;
        let mark = |line: &&str| line.starts_with("fanotify ") && !line.starts_with("fanotify flags");
        Some(told.lines().filter(mark).count())
    });
    told.collect()
}

/// A janusd's connection to the holder, that of a process which can be killed: it is spoken for by the test.
struct Somebody {
    process: Child,
    link: Link,
}

impl Somebody {
    fn connect(case: &Case) -> Somebody {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([agent::WORD, "connect"]).arg(case.scratch("state/hold.sock"));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        case.watch.process(process.id());
        let mut number = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut number).unwrap();
        let pidfd = pidfd_open(kernel_pid(process.id()), PidfdFlags::empty()).unwrap();
        let stream = pidfd_getfd(pidfd, number.trim().parse().unwrap(), PidfdGetfdFlags::empty()).unwrap();
        Somebody { process, link: Link::new(stream.into(), Arc::default()).unwrap() }
    }

    fn say(&self, part: Part, groups: &[BareGroup]) {
        let groups: Vec<_> = groups.iter().map(AsFd::as_fd).collect();
        self.link.say(part, &groups, Instant::now() + SOON).unwrap();
    }

    /// The guards that the holder gives.
    fn ask(&self) -> Vec<Deposit> {
        self.say(Part::Ask(Ask::ours()), &[]);
        let mut deposits = Vec::new();
        loop {
            match self.link.hear(Instant::now() + SOON).unwrap().0 {
                Part::Deposit(deposit) => deposits.push(deposit),
                Part::DepositKnown(_) => {}
                Part::End(_) => return deposits,
                other => panic!("{other:?}"),
            }
        }
    }

    fn die(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Groups that ask who opens a file, and that file.
pub(super) fn asking(case: &Case, file: &str) -> ([BareGroup; 2], PathBuf) {
    let groups = [BareGroup::new().unwrap(), BareGroup::new().unwrap()];
    let file = case.scratch(file);
    std::fs::write(&file, "").unwrap();
    groups[1].mark(&file, Mark::Inode).unwrap();
    (groups, file)
}

pub(super) fn deposit(name: &str, highest: i32) -> Part {
    Part::Deposit(Deposit { name: name.into(), unit: vec![0xff], deny: true, highest, answered: None })
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Ended meanwhile.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

fn kill(mut serve: Serve) {
    serve.process.kill().unwrap();
    serve.process.wait().unwrap();
}

fn guard(serve: &Serve, authority: &Authority, policy: v1::FailurePolicy) {
    wait(async {
        let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        let spec = v1::GuardSpec { failure_policy: policy.into(), ..spec(&["/secret"]) };
        client.create(create(1, 1, spec)).await.unwrap();
    });
}

/// Killed again and again under readers, and started again: none gets in, and none waits for longer than that takes.
fn a_killed_janusd_is_waited_for(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let authority = Authority::new();
    let hold = Hold::start(case);
    let mut serve = Serve::start_with(case, &authority, among(0));
    guard(&serve, &authority, v1::FailurePolicy::Deny);
    case.denied(container.open("/secret"));
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    let load = container.start_openers(READERS, &["/secret"]);
    let count = hand_overs();
    for turn in 1..=count {
        let opened = load.opened();
        kill(serve);
        serve = Serve::start_with(case, &authority, among(turn));
        let taken = Metrics::read(serve.admin);
        assert_eq!(taken.sum("janus_handover_total", &[("result", "taken")]), 1, "turn {turn}");
        assert_eq!(taken.sum("janus_handover_guards_total", &[("result", "whole")]), 1, "turn {turn}");
        assert!(wait_until(SOON, || load.opened() > opened + 100), "turn {turn}: nobody answers");
    }
    let tally = load.stop();
    eprintln!("{count} times killed, {tally:?}");
    assert_eq!((tally.total().allowed, tally.total().failed), (0, 0), "{tally:?}");
    assert!(tally.slowest < DEADLINE + Duration::from_secs(1), "{tally:?}");
    drop(serve);
}

/// At the deadline, what the guard says; and a janusd that comes late has the guards all the same.
fn for_one_that_does_not_come_back_failure_policy_answers(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let authority = Authority::new();
    let hold = Hold::start(case);
    for policy in [v1::FailurePolicy::Deny, v1::FailurePolicy::Allow] {
        let serve = Serve::start_with(case, &authority, among(0));
        wait(async {
            let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
            // Of the turn before, taken up late.
            client.destroy(super::client::destroy(1, 1)).await.unwrap();
        });
        assert!(wait_until(SOON, || hold.groups() == 0), "not withdrawn");
        guard(&serve, &authority, policy);
        case.denied(container.open("/secret"));
        assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
        let readers = container.start_openers(READERS, &["/secret"]);
        kill(serve);
        let killed = Instant::now();
        let opened = readers.opened();
        assert!(wait_until(SOON, || readers.opened() > opened + 1_000), "nobody answers");
        eprintln!("{policy:?}: answered {:?} after the death", killed.elapsed());
        let late = Serve::start_with(case, &authority, among(1));
        let tally = readers.stop();
        eprintln!("{policy:?}: {tally:?}");
        let total = tally.total();
        match policy {
            v1::FailurePolicy::Deny => assert_eq!((total.allowed, total.failed), (0, 0), "{tally:?}"),
            _ => assert!(total.allowed > 0 && total.denied > 0, "{tally:?}"),
        }
        let (least, most) = (DEADLINE - Duration::from_millis(100), DEADLINE + Duration::from_secs(1));
        assert!((least..most).contains(&tally.slowest), "{tally:?}");
        case.denied(container.open("/secret"));
        kill(late);
    }
}

/// A holder and a janusd each, as a DaemonSet replaces them: the new holder comes while the old one still holds, and neither
/// takes the end of a connection for a death.
fn whole_pods_roll_out(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let authority = Authority::new();
    let mut hold = Hold::start_as(case, 0);
    let mut serve = Serve::start_with(case, &authority, among(0));
    // What a holder answered, it would allow.
    guard(&serve, &authority, v1::FailurePolicy::Allow);
    case.denied(container.open("/secret"));
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    let load = container.start_openers(READERS, &["/secret"]);
    for turn in 1..=5 {
        let next_hold = Hold::start_as(case, turn);
        assert!(wait_until(SOON, || next_hold.groups() == 2), "turn {turn}: nothing was deposited");
        assert!(wait_until(SOON, || hold.groups() == 0), "turn {turn}: not withdrawn");
        // Longer than the deadline: whoever took the other for dead would answer now.
        let opened = load.opened();
        assert!(!wait_until(DEADLINE + Duration::from_millis(200), || false));
        assert!(load.opened() > opened + 100, "turn {turn}: nobody answers");
        let next = Serve::start_with(case, &authority, among(turn));
        assert_eq!(serve.end().0, Some(0), "turn {turn}");
        (hold, serve) = (next_hold, next);
        assert!(wait_until(SOON, || hold.groups() == 2), "turn {turn}: nothing was deposited");
    }
    let tally = load.stop();
    eprintln!("{tally:?}");
    assert_eq!((tally.total().allowed, tally.total().failed), (0, 0), "{tally:?}");
    assert!(tally.slowest < Duration::from_secs(1), "{tally:?}");
    // And a death is still seen.
    kill(serve);
    serve = Serve::start_with(case, &authority, among(6));
    case.denied(container.open("/secret"));
    drop(serve);
}

/// Somebody who lives answers by itself: what it had deposited is let go, and nothing of it answered.
fn the_end_of_a_connection_is_no_death(case: &Case) {
    let hold = Hold::start(case);
    let stream = UnixStream::connect(case.scratch("state/hold.sock")).unwrap();
    let link = Link::new(stream, Arc::default()).unwrap();
    let (groups, _) = asking(case, "file");
    link.say(deposit("guard/pod", 100), &groups.each_ref().map(AsFd::as_fd), Instant::now() + SOON).unwrap();
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    drop(link);
    assert!(wait_until(SOON, || hold.groups() == 0), "held against one who lives");
    let log = Hold::log(case);
    assert!(!log.contains("failurePolicy answers"), "{log}");
}

/// A frame of a later version, and silence behind it.
fn what_is_not_known_is_no_end(case: &Case) {
    let hold = Hold::start(case);
    let mut stream = UnixStream::connect(case.scratch("state/hold.sock")).unwrap();
    let link = Link::new(stream.try_clone().unwrap(), Arc::default()).unwrap();
    stream.write_all(&[b"JNUS".as_slice(), &4_u32.to_be_bytes(), &[0xea, 0x04, 1, 0]].concat()).unwrap();
    // Longer than a frame may take to come.
    let ended = link.hear(Instant::now() + Duration::from_millis(1500));
    assert!(matches!(ended, Err(LinkError::Late)), "{ended:?}");
    let (groups, _) = asking(case, "file");
    link.say(deposit("guard/pod", 100), &groups.each_ref().map(AsFd::as_fd), Instant::now() + SOON).unwrap();
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
}

/// This process is the holder, and lives on.
fn a_holder_that_hangs_up_is_noticed(case: &Case) {
    let serve = Serve::start_with(case, &Authority::new(), among(0));
    let link = connect(case, &serve);
    link.say(Part::Hold(message::Hold {}), &[], Instant::now() + SOON).unwrap();
    let log = || std::fs::read_to_string(case.scratch("janusd-0.log")).unwrap();
    assert!(wait_until(SOON, || log().contains("a holder has come")), "{}", log());
    drop(link);
    assert!(wait_until(SOON, || log().contains("the holder has gone")), "{}", log());
}

/// However long it takes it to say that it reads. It is dead, or it is not: only then the holder reads.
fn whoever_was_given_a_guard_reads_alone(case: &Case) {
    let hold = Hold::start(case);
    let (groups, file) = asking(case, "file");
    let first = Somebody::connect(case);
    first.say(deposit("guard/pod", 100), &groups);
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    first.die();
    let taker = Somebody::connect(case);
    assert_eq!(taker.ask().len(), 1);
    let other = case.host();
    let waiting = other.start_openers_once(1, &[file]);
    assert!(wait_until(SOON, || queued(&groups[1]) == 1), "nobody waits");
    assert!(!wait_until(Duration::from_secs(7), || queued(&groups[1]) == 0), "the holder has read");
    taker.say(Part::Taken(Taken::default()), &[]);
    taker.die();
    assert_eq!(waiting.join().total().denied, 1, "{}", Hold::log(case));
}

/// Of two guards one is not taken: its openers get failurePolicy at the deadline, those of the other nothing from here.
fn what_is_not_taken_is_held(case: &Case) {
    let hold = Hold::start(case);
    let guards = ["a", "b"].map(|name| (name, asking(case, name)));
    let first = Somebody::connect(case);
    for (name, (groups, _)) in &guards {
        first.say(deposit(name, 100), groups);
    }
    assert!(wait_until(SOON, || hold.groups() == 4), "nothing was deposited");
    first.die();
    let taker = Somebody::connect(case);
    assert_eq!(taker.ask().len(), 2);
    taker.say(Part::Taken(Taken { without: vec!["a".into()] }), &[]);
    let (one, other) = (case.host(), case.host());
    let [(_, (_, a)), (_, (taken, b))] = &guards;
    let (a, b) = (one.start_openers_once(1, &[a]), other.start_openers_once(1, &[b]));
    assert!(wait_until(SOON, || queued(&taken[1]) == 1), "nobody waits");
    assert_eq!(a.join().total().denied, 1, "{}", Hold::log(case));
    assert_eq!(queued(&taken[1]), 1, "the holder has read");
    taker.die();
    assert_eq!(b.join().total().denied, 1, "{}", Hold::log(case));
}

/// By a janusd, which takes what else there is.
fn a_deposit_that_nobody_understands_is_held(case: &Case) {
    let hold = Hold::start(case);
    let (groups, file) = asking(case, "file");
    let first = Somebody::connect(case);
    first.say(deposit("guard/pod", 100), &groups);
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    first.die();
    let serve = Serve::start_with(case, &Authority::new(), among(0));
    let other = case.host();
    let waiting = other.start_openers_once(1, &[file]);
    assert_eq!(waiting.join().total().denied, 1, "{}", Hold::log(case));
    let missed = Metrics::read(serve.admin).sum("janus_handover_total", &[("result", "missed")]);
    assert_eq!(missed, 0, "it is not held any more itself");
}

/// It has read an event of a higher number than it had said that there are, and said so before it died.
fn numbers_that_have_risen_are_answered(case: &Case) {
    let hold = Hold::start(case);
    let (groups, file) = asking(case, "file");
    let first = Somebody::connect(case);
    first.say(deposit("guard/pod", 0), &groups);
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    let other = case.host();
    let waiting = other.start_openers_once(1, &[file]);
    assert!(wait_until(SOON, || queued(&groups[1]) == 1), "nobody waits");
    groups[1].read(&mut BareEvents::default()).unwrap();
    first.say(Part::Highest(Highest { highest: 1000 }), &[]);
    first.die();
    assert_eq!(waiting.join().total().denied, 1, "{}", Hold::log(case));
}

/// This process is the new janusd: it arms the guard anew, and takes its time.
fn the_old_one_guards_until_all_is_done(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    let authority = Authority::new();
    let hold = Hold::start(case);
    let serve = guarding(case, &authority, &container);
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    let link = connect(case, &serve);
    let _groups = ask(&link);
    assert!(ready(&link, vec![0]).units.is_empty());
    link.say(Part::Taken(Taken::default()), &[], Instant::now() + SOON).unwrap();
    let given = || Metrics::read(serve.admin).sum("janus_handover_total", &[("result", "given")]);
    assert!(wait_until(SOON, || given() == 1), "not given");
    let lets_go = || container.open("/secret").is_ok() || hold.groups() != 2;
    assert!(!wait_until(Duration::from_secs(1), lets_go), "not guarded, or not held");
    link.say(Part::Done(Done {}), &[], Instant::now() + SOON).unwrap();
    assert!(wait_until(SOON, || container.open("/secret").is_ok() && hold.groups() == 0), "it does not let go");
}

/// The worker is stopped until it is given up: the holder gets the groups of the one that takes its place.
fn a_worker_that_was_replaced_is_deposited_anew(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    let authority = Authority::new();
    let hold = Hold::start(case);
    let serve = guarding(case, &authority, &container);
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    let pid = serve.process.id();
    let workers = crate::stuck::threads(&pid.to_string(), "jg-g");
    let _stopped = Stopped::stop(workers[0]).unwrap();
    let abandoned = || Metrics::read(serve.admin).sum("janus_guard_workers_abandoned_total", &[]);
    // Each gets failurePolicy, until it is given up.
    assert!(wait_until(4 * SOON, || container.open("/secret").is_err() && abandoned() == 1), "it is not given up");
    assert!(wait_until(SOON, || marks(pid).contains(&0)), "the old groups' marks stay");
    assert!(wait_until(SOON, || marks(hold.0.id()).iter().sum::<usize>() > 0), "the holder has the old ones");
    assert_eq!(hold.groups(), 2);
}

/// This process is the old janusd, and hands over; but of the same guard the holder thinks that its janusd is dead. The new
/// one has it once, counts nothing twice, and reads alone.
fn what_runs_already_is_taken_and_not_inherited(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    let authority = Authority::new();
    let hold = Hold::start(case);
    let groups = [group(), group()];
    let public = [container.seen_from_host("/public")];
    mark(&groups[1], &public[0]);
    let first = Somebody::connect(case);
    let told = Estate::new(false, &Numbers::default(), &Fingerprints::default());
    let unit = Unit { index: 0, request: Some(create(1, 1, spec(&["/secret"]))), estate: Some(told) };
    let deposit =
        Deposit { name: "guard/pod".into(), unit: unit.encode_to_vec(), deny: true, highest: 100, answered: None };
    let descriptors = groups.each_ref().map(AsFd::as_fd);
    first.link.say(Part::Deposit(deposit), &descriptors, Instant::now() + SOON).unwrap();
    assert!(wait_until(SOON, || hold.groups() == 2), "nothing was deposited");
    first.die();
    let other = case.host();
    assert_eq!(other.start_openers_once(1, &public).join().total().denied, 1, "by the holder");
    let listener = be_another(case);
    let serve = std::thread::scope(|scope| {
        let starting = scope.spawn(|| Serve::start_with(case, &authority, among(0)));
        let link = Link::new(listener.accept().unwrap().0, Arc::default()).unwrap();
        give(&link, &groups);
        let (_ready, events) = read_until_ready(&groups, &link);
        assert!(events.is_empty());
        let parked = Parked { units: vec![Rest { index: 0, outstanding: Vec::new() }], guards: Vec::new() };
        link.say(Part::Parked(parked), &[], Instant::now() + SOON).unwrap();
        assert!(matches!(link.hear(Instant::now() + SOON), Ok((Part::Taken(_), _))));
        let serve = starting.join().unwrap();
        assert!(matches!(link.hear(Instant::now() + SOON), Ok((Part::Done(_), _))));
        serve
    });
    let counted = || Metrics::read(serve.admin).sum("janus_guard_events_total", &[("response", "deny")]);
    assert_eq!(counted(), 0, "what the holder has answered is no business of a guard that ran meanwhile");
    assert_eq!(crate::stuck::groups(&serve.process.id().to_string()).len(), 2);
    assert_eq!(other.start_openers_once(1, &public).join().total().allowed, 1, "by the holder");
    case.denied(container.open("/secret"));
}

//! One `janusd serve` takes over from another: no file is open in between, and nobody waits.

use std::collections::BTreeSet;
use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fanotify::low_level as fan;
use janusd::guard::known::Fingerprints;
use janusd::guard::transfer::Resting;
use janusd::guard::{Numbers, Roots};
use janusd::handover::link::{Link, LinkError};
use janusd::handover::message::{Ask, Awaiting, Done, End, Estate, Parked, Part, Ready, Rest, Taken, Unit};
use janusd::root::Root;
use tonic::Code;

use super::certificates::Authority;
use super::client::{Client, create, destroy, spec};
use super::{SOON, Serve, Setting, wait};
use crate::case::{Case, Janus};
use crate::container::{Container, Load};
use crate::found::PodCgroup;
use crate::in_process::InProcess;
use crate::metrics::Metrics;
use crate::protocol::{Tally, rename};
use crate::watchdog::{kernel_pid, wait_until};
use crate::{kernel_tests, manifest};

kernel_tests! {
    guards_change_hands_again_and_again.lasting(600),
    whoever_comes_and_goes_away_again_takes_nothing.lasting(120),
    an_answer_to_an_event_of_the_old_one_hits_none_of_the_new_one.lasting(120),
    whoever_says_too_late_that_it_reads_cannot.without_control(),
    whoever_cannot_say_that_it_reads_does_not.without_control(),
    sigterm_in_the_middle_leaves_marks.without_control(),
    what_is_learned_is_told_once.without_control(),
}

/// Who reads a denied file all the time.
pub(super) const READERS: usize = 16;

pub(super) fn hand_overs() -> usize {
    std::env::var("JANUS_HANDOVERS").ok().and_then(|count| count.parse().ok()).unwrap_or(20)
}

/// The two programs that take turns.
fn programs(case: &Case) -> [PathBuf; 2] {
    ["janusd-a", "janusd-b"].map(|name| {
        let at = case.scratch(name);
        fs::copy(env!("CARGO_BIN_EXE_janusd"), &at).unwrap();
        at
    })
}

pub(super) fn among(number: usize) -> Setting {
    Setting { among: Some(number), ..Setting::default() }
}

fn denials(serve: &Serve) -> u64 {
    Metrics::read(serve.admin).sum("janus_guard_events_total", &[("response", "deny")])
}

/// A daemon that guards `/secret` in the container.
pub(super) fn guarding(case: &Case, authority: &Authority, container: &Container) -> Serve {
    let serve = Serve::start_with(case, authority, among(0));
    wait(async {
        let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        client.create(create(1, 1, spec(&["/secret"]))).await.unwrap();
    });
    case.denied(container.open("/secret"));
    serve
}

/// A connection to a daemon, as its successor makes one.
pub(super) fn connect(case: &Case, serve: &Serve) -> Link {
    let socket = case.scratch("state").join(format!("serve-{}.sock", serve.process.id()));
    Link::new(UnixStream::connect(socket).unwrap(), Arc::default()).unwrap()
}

/// As a successor: asks, and hears all that there is. The groups of the one guard.
pub(super) fn ask(link: &Link) -> Vec<OwnedFd> {
    link.say(Part::Ask(Ask::ours()), &[], Instant::now() + SOON).unwrap();
    let mut groups = Vec::new();
    loop {
        match link.hear(Instant::now() + SOON).unwrap() {
            (Part::Unit(_), descriptors) => groups = descriptors,
            (Part::End(_), _) => return groups,
            (Part::Known(_), _) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// As a successor: is ready, and hears what it may read.
pub(super) fn ready(link: &Link, without: Vec<u32>) -> Parked {
    link.say(Part::Ready(Ready { without }), &[], Instant::now() + SOON).unwrap();
    loop {
        match link.hear(Instant::now() + SOON).unwrap().0 {
            Part::Parked(parked) => return parked,
            Part::Known(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Events that wait to be read.
pub(super) fn queued(group: impl AsFd) -> u64 {
    rustix::io::ioctl_fionread(group).unwrap() / 24
}

/// Two programs in turn, under readers: none gets in, none waits; counters, generations and what is known of files move
/// along.
fn guards_change_hands_again_and_again(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let authority = Authority::new();
    let mut serve = guarding(case, &authority, &container);
    // Known by its identity alone from here on.
    container.prepare([rename("/secret", "/moved")]);
    case.denied(container.open("/moved"));
    container.prepare([crate::protocol::write("/late", "x"), rename("/late", "/secret")]);
    case.denied(container.open("/secret"));
    let programs = programs(case);
    let before = denials(&serve);
    let load = container.start_openers(READERS, &["/secret", "/moved"]);
    let count = hand_overs();
    for turn in 1..=count {
        let binary = Some(programs[turn % 2].clone());
        let next = Serve::start_with(case, &authority, Setting { binary, ..among(turn) });
        let taken = Metrics::read(next.admin);
        assert_eq!(taken.sum("janus_handover_total", &[("result", "taken")]), 1, "turn {turn}");
        assert_eq!(taken.sum("janus_handover_guards_total", &[("result", "whole")]), 1, "turn {turn}");
        // Which it counts once it has heard.
        let given = || Metrics::read(serve.admin).sum("janus_handover_total", &[("result", "given")]);
        assert!(wait_until(SOON, || given() == 1), "turn {turn}");
        let (all, inherited) = (denials(&serve), denials(&next));
        assert!(inherited >= all, "turn {turn}: {all} were counted, and {inherited} are");
        let (status, took) = serve.end();
        assert_eq!(status, Some(0), "turn {turn}");
        assert!(took < Duration::from_secs(5), "turn {turn}: SIGTERM took {took:?}");
        serve = next;
    }
    let tally = load.stop();
    eprintln!("{count} hand-overs, {tally:?}");
    let total = tally.total();
    assert_eq!((total.allowed, total.failed), (0, 0), "{tally:?}");
    assert!(tally.slowest < Duration::from_secs(1), "{tally:?}");
    assert_eq!(denials(&serve), before + total.denied, "counters move along");
    let fallbacks = Metrics::read(serve.admin).sum("janus_guard_fallbacks_total", &[]);
    assert_eq!(fallbacks, 0, "each was judged");
    wait(async {
        let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        let stale = client.create(create(1, 1, spec(&["/public"]))).await.unwrap_err();
        assert_eq!(stale.code(), Code::FailedPrecondition, "{stale:?}");
        assert!(client.destroy(destroy(1, 1)).await.unwrap());
    });
    case.allowed(container.open("/secret"));
    case.allowed(container.open("/moved"));
}

/// A janusd that does not come to the end: what it came for stays where it is, at every step.
fn whoever_comes_and_goes_away_again_takes_nothing(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let authority = Authority::new();
    let serve = guarding(case, &authority, &container);
    let load = container.start_openers(READERS, &["/secret"]);
    let kept = || Metrics::read(serve.admin).sum("janus_handover_total", &[("result", "kept")]);
    let until = || Instant::now() + SOON;
    for step in 0..4 {
        let link = connect(case, &serve);
        let newest = if step == 0 { 0 } else { Ask::ours().newest };
        link.say(Part::Ask(Ask { newest, oldest: newest, ..Ask::ours() }), &[], until()).unwrap();
        if step == 0 {
            assert!(matches!(link.hear(until()), Err(LinkError::Refused(_))));
        }
        if step >= 1 {
            let (part, groups) = link.hear(until()).unwrap();
            assert!(matches!(part, Part::Unit(_)), "{part:?}");
            assert_eq!(groups.len(), 2);
            wait(async {
                let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
                for refused in [
                    client.create(create(1, 1, spec(&["/secret"]))).await.map(drop),
                    client.destroy(destroy(1, 1)).await.map(drop),
                ] {
                    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
                }
            });
            while !matches!(link.hear(until()).unwrap().0, Part::End(_)) {}
        }
        if step >= 2 {
            link.say(Part::Ready(Ready::default()), &[], until()).unwrap();
        }
        if step >= 3 {
            while !matches!(link.hear(until()).unwrap().0, Part::Parked(_)) {}
        }
        drop(link);
        assert!(wait_until(SOON, || kept() == step + 1), "step {step}");
        let opened = load.opened();
        assert!(wait_until(SOON, || load.opened() > opened + 50), "step {step}: nobody answers");
        wait(async {
            let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
            client.create(create(1, 1, spec(&["/secret"]))).await.unwrap();
        });
    }
    let tally = load.stop();
    assert_eq!((tally.total().allowed, tally.total().failed), (0, 0), "{tally:?}");
    assert!(tally.slowest < Duration::from_secs(1), "{tally:?}");
}

/// This process is the old janusd: it has read events and not answered them, and answers them while the new one reads. That
/// must never be an answer to an event of the new one's. To see that it would be, the numbers are kept from it once.
fn an_answer_to_an_event_of_the_old_one_hits_none_of_the_new_one(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let authority = Authority::new();
    for named in [true, false] {
        let (allowed, denied) = collide(case, &authority, &container, named);
        eprintln!("numbers named: {named}: {allowed} allowed, {denied} denied");
        assert!(denied > 0);
        if named {
            assert_eq!(allowed, 0);
        } else {
            assert!(allowed > 0, "no collision came about: the test shows nothing");
        }
    }
}

/// The old one has waited for it in vain, and reads: from then on nobody can say that he does.
fn whoever_says_too_late_that_it_reads_cannot(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    let authority = Authority::new();
    let serve = guarding(case, &authority, &container);
    let link = connect(case, &serve);
    let _groups = ask(&link);
    assert_eq!(ready(&link, Vec::new()).units.len(), 1);
    let kept = || Metrics::read(serve.admin).sum("janus_handover_total", &[("result", "kept")]);
    assert!(wait_until(SOON, || kept() == 1), "it waits for ever");
    let said = link.say(Part::Taken(Taken::default()), &[], Instant::now() + SOON);
    assert!(matches!(said, Err(LinkError::Gone)), "{said:?}");
    case.denied(container.open("/secret"));
}

/// This process is the old janusd, which reads on by itself by the time that the new one would say that it does. That one
/// reads nothing, leaves the marks as they are, and guards with groups of its own.
fn whoever_cannot_say_that_it_reads_does_not(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    let authority = Authority::new();
    let groups = [group(), group()];
    mark(&groups[1], &container.seen_from_host("/public"));
    let (listener, other) = (be_another(case), case.host());
    let public = [container.seen_from_host("/public")];
    // The new one lays marks in both; which is asked first is the kernel's choice.
    let asks = || {
        allow_all(&groups[0]);
        queued(&groups[1]) == 1
    };
    let serve = std::thread::scope(|scope| {
        let starting = scope.spawn(|| Serve::start_with(case, &authority, among(0)));
        let stream = listener.accept().unwrap().0;
        let heard = stream.try_clone().unwrap();
        let link = Link::new(stream, Arc::default()).unwrap();
        give(&link, &groups);
        let (_ready, events) = read_until_ready(&groups, &link);
        assert!(events.is_empty());
        let waiting = other.start_openers_once(1, &public);
        assert!(wait_until(SOON, asks), "nobody waits");
        heard.shutdown(std::net::Shutdown::Read).unwrap();
        let parked = Parked { units: vec![Rest { index: 0, outstanding: Vec::new() }], guards: Vec::new() };
        link.say(Part::Parked(parked), &[], Instant::now() + SOON).unwrap();
        let serve = starting.join().unwrap();
        assert_eq!(queued(&groups[1]), 1, "it has read");
        assert_eq!(answered(waiting, &groups).total().allowed, 1);
        serve
    });
    let counted = |result| Metrics::read(serve.admin).sum("janus_handover_total", &[("result", result)]);
    assert_eq!((counted("taken"), counted("missed")), (0, 1));
    // Marks of the new one's are in these groups too.
    let denied = || answered(container.start_openers_once(1, &["/secret"]), &groups).total().denied == 1;
    assert!(wait_until(SOON, denied), "not armed anew");
    let pid = serve.process.id().to_string();
    assert!(wait_until(SOON, || crate::stuck::groups(&pid).len() == 2), "it holds groups that are not its own");
    let waiting = other.start_openers_once(1, &public);
    assert!(wait_until(SOON, asks), "the marks have gone");
    assert_eq!(answered(waiting, &groups).total().allowed, 1);
}

/// Lets one open happen, as far as these groups are asked.
fn answered(load: Load<'_>, groups: &[OwnedFd]) -> Tally {
    let answered = || {
        groups.iter().for_each(allow_all);
        load.opened() == 1
    };
    assert!(wait_until(SOON, answered), "nobody answers");
    load.join()
}

/// It ends as soon as the guards are another's, and takes nothing of them along.
fn sigterm_in_the_middle_leaves_marks(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    let authority = Authority::new();
    let mut serve = guarding(case, &authority, &container);
    let link = connect(case, &serve);
    let groups = ask(&link);
    let marks = || groups.iter().map(marks).sum::<usize>();
    let laid = marks();
    assert!(laid > 0);
    rustix::process::kill_process(kernel_pid(serve.process.id()), rustix::process::Signal::TERM).unwrap();
    let log = || fs::read_to_string(case.scratch("janusd-0.log")).unwrap();
    assert!(wait_until(SOON, || log().contains("draining")), "{}", log());
    // Longer than lifting takes.
    assert!(!wait_until(Duration::from_millis(500), || marks() != laid), "lifted");
    assert_eq!(ready(&link, Vec::new()).units.len(), 1);
    link.say(Part::Taken(Taken::default()), &[], Instant::now() + SOON).unwrap();
    link.say(Part::Done(Done {}), &[], Instant::now() + SOON).unwrap();
    let mut status = None;
    assert!(wait_until(SOON, || {
        status = serve.process.try_wait().unwrap();
        status.is_some()
    }));
    assert_eq!(status.unwrap().code(), Some(0));
    assert_eq!(marks(), laid);
}

/// What a group guards, as the kernel tells it of a descriptor of ours.
fn marks(group: &OwnedFd) -> usize {
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", group.as_raw_fd())).unwrap();
    told.lines().filter(|line| line.starts_with("fanotify ") && !line.starts_with("fanotify flags")).count()
}

/// A deposit has nothing told; a hand-over has what is learned from then on told once, and nothing once it is off.
fn what_is_learned_is_told_once(case: &Case) {
    let place = case.directory();
    let root = || Roots::One(Root::of_directory(&place.at("/")).unwrap());
    let manifest = manifest::guard_with("g", &[], &["{deny: [/secret], events: [open], log: None}"]);
    let janusd = InProcess::start(case, root, &manifest, |_| {}).unwrap();
    let transfer = janusd.guard().transfer();
    let until = || Instant::now() + SOON;
    let learn = || {
        place.prepare([crate::protocol::write(place.at("/late"), "x"), rename(place.at("/late"), place.at("/secret"))]);
        case.denied(place.open(place.at("/secret")));
    };
    let told = || match transfer.parked(&transfer.park(), until()) {
        Resting::Settled(learned) => learned.len(),
        other => panic!("{other:?}"),
    };
    assert!(transfer.deposit(until()).is_some());
    learn();
    assert_eq!(told(), 0, "of a deposit");
    transfer.take_up();
    let begun = transfer.begin();
    assert!(transfer.share(&begun, until()).is_some());
    learn();
    assert_eq!(told(), 1);
    transfer.take_up();
    let begun = transfer.begin();
    assert!(transfer.share(&begun, until()).is_some());
    transfer.take_up();
    learn();
    assert_eq!(told(), 0, "of one that came to nothing");
    transfer.take_up();
}

/// Where a new janusd finds this process.
pub(super) fn be_another(case: &Case) -> UnixListener {
    let state = case.scratch("state");
    fs::create_dir_all(&state).unwrap();
    let socket = state.join("serve-1.sock");
    // Of the time before.
    let _absent = fs::remove_file(&socket);
    UnixListener::bind(socket).unwrap()
}

/// As the old one: is asked, and gives a guard on `/secret` with these groups.
pub(super) fn give(link: &Link, groups: &[OwnedFd; 2]) {
    let until = Instant::now() + SOON;
    let (Part::Ask(_), _) = link.hear(until).unwrap() else { panic!("asks") };
    let estate = Estate::new(false, &Numbers::default(), &Fingerprints::default());
    let request = Some(create(1, 1, spec(&["/secret"])));
    let unit = Part::Unit(Unit { index: 0, request, estate: Some(estate) });
    link.say(unit, &[groups[0].as_fd(), groups[1].as_fd()], until).unwrap();
    link.say(Part::End(End { epoch: 1, highest: 1024 }), &[], until).unwrap();
}

/// How many opens of a denied file were allowed and denied.
fn collide(case: &Case, authority: &Authority, container: &Container, named: bool) -> (u64, u64) {
    const EVENTS: usize = 48;
    let groups = [group(), group()];
    for path in ["/public", "/secret"] {
        mark(&groups[1], &container.seen_from_host(path));
    }
    let listener = be_another(case);
    let waiting = container.start_openers_once(EVENTS, &["/public"]);
    let (stop, answered) = (AtomicBool::new(false), AtomicBool::new(false));
    let tally = std::thread::scope(|scope| {
        let old = scope.spawn(|| {
            let link = Link::new(listener.accept().unwrap().0, Arc::default()).unwrap();
            let until = Instant::now() + SOON;
            give(&link, &groups);
            let (ready, events) = read_until_ready(&groups, &link);
            assert_eq!(events.len(), EVENTS);
            assert!(ready.without.is_empty());
            let awaiting =
                |file: &OwnedFd| Awaiting { number: file.as_raw_fd(), near: true, event: "open".into(), own: false };
            let outstanding = if named { events.iter().map(awaiting).collect() } else { Vec::new() };
            let parked = Parked { units: vec![Rest { index: 0, outstanding }], guards: Vec::new() };
            link.say(Part::Parked(parked), &[], until).unwrap();
            let (Part::Taken(_), _) = link.hear(until).unwrap() else { panic!("took") };
            // The new one answers those that were named to it.
            assert!(wait_until(SOON, || !named || answered.load(Ordering::Relaxed)), "not answered");
            // Late answers, for as long as the new one reads.
            while !stop.load(Ordering::Relaxed) {
                for event in &events {
                    allow(groups[1].as_fd(), event.as_raw_fd());
                }
            }
        });
        let serve = Serve::start_with(case, authority, among(usize::from(named)));
        if named {
            // Answered by the new one.
            assert_eq!(waiting.join().total().denied, EVENTS as u64, "failurePolicy: Deny");
            answered.store(true, Ordering::Relaxed);
        } else {
            waiting.join();
        }
        let load = container.start_openers(READERS, &["/secret"]);
        assert!(wait_until(SOON, || load.opened() > 5_000), "nobody answers");
        let tally = load.stop().total();
        stop.store(true, Ordering::Relaxed);
        old.join().unwrap();
        drop(serve);
        tally
    });
    (tally.allowed, tally.denied)
}

pub(super) fn group() -> OwnedFd {
    let flags = fan::FAN_CLASS_CONTENT | fan::FAN_CLOEXEC | fan::FAN_NONBLOCK | fan::FAN_UNLIMITED_QUEUE;
    let raw = fan::fanotify_init(flags, fan::O_RDONLY.cast_unsigned()).unwrap();
    adopt(raw)
}

#[allow(unsafe_code, reason = "the number of a descriptor that the kernel has just made for us")]
fn adopt(raw: RawFd) -> OwnedFd {
    // SAFETY: fanotify_init or a read of a group has just made it; nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

pub(super) fn mark(group: &OwnedFd, path: &std::path::Path) {
    let path = path.to_str().unwrap();
    fan::fanotify_mark(group.as_raw_fd(), fan::FAN_MARK_ADD, fan::FAN_OPEN_PERM, fan::AT_FDCWD, path).unwrap();
}

/// Whatever the new process opens while it surveys is allowed, until it is ready; events of others are kept. They get the
/// numbers from the lowest one on that the new process has free.
pub(super) fn read_until_ready(groups: &[OwnedFd; 2], link: &Link) -> (Ready, Vec<OwnedFd>) {
    let used: BTreeSet<i32> = fs::read_dir(format!("/proc/{}/fd", link.peer))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    let lowest = (0..).find(|number| !used.contains(number)).unwrap();
    let plug = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    // What is below is in use here too.
    let below = || rustix::io::fcntl_dupfd_cloexec(&plug, 0).ok().filter(|it| it.as_raw_fd() < lowest);
    let _plugs: Vec<OwnedFd> = std::iter::from_fn(below).collect();
    let mut events = Vec::new();
    let deadline = Instant::now() + SOON;
    loop {
        assert!(Instant::now() < deadline, "it is not ready");
        for group in groups {
            let mut bytes = [0_u8; 24 * 64];
            let read = rustix::io::read(group, &mut bytes).unwrap_or(0);
            for record in bytes[..read].chunks_exact(24) {
                let field = |at: usize| i32::from_ne_bytes(record[at..at + 4].try_into().unwrap());
                let file = adopt(field(16));
                if field(20) == link.peer {
                    allow(group.as_fd(), file.as_raw_fd());
                } else {
                    events.push(file);
                }
            }
        }
        match link.hear(Instant::now() + Duration::from_millis(2)) {
            Ok((Part::Ready(ready), _)) => {
                let numbers: Vec<_> = events.iter().map(AsRawFd::as_raw_fd).collect();
                eprintln!("the new one's lowest free number was {lowest}; events have {numbers:?}");
                return (ready, events);
            }
            Err(LinkError::Late) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Allows what waits.
pub(super) fn allow_all(group: &OwnedFd) {
    let mut bytes = [0_u8; 24 * 64];
    let read = rustix::io::read(group, &mut bytes).unwrap_or(0);
    for record in bytes[..read].chunks_exact(24) {
        let file = adopt(i32::from_ne_bytes(record[16..20].try_into().unwrap()));
        allow(group.as_fd(), file.as_raw_fd());
    }
}

fn allow(group: BorrowedFd<'_>, number: i32) {
    let answer = [number.to_ne_bytes(), fan::FAN_ALLOW.to_ne_bytes()].concat();
    // ENOENT: answered.
    let _answered = rustix::io::writev(group, &[IoSlice::new(&answer)]);
}

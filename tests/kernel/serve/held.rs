//! `janusd hold`: what becomes of guards whose janusd is killed.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use janus_proto::v1;

use super::certificates::Authority;
use super::client::{Client, create, spec};
use super::handover::{READERS, among, hand_overs};
use super::{SOON, Serve, wait};
use crate::case::{Case, Janus};
use crate::found::PodCgroup;
use crate::kernel_tests;
use crate::metrics::Metrics;
use crate::watchdog::wait_until;

kernel_tests! {
    a_killed_janusd_is_waited_for.lasting(900),
    for_one_that_does_not_come_back_failure_policy_answers,
}

const DEADLINE: Duration = Duration::from_secs(2);

struct Hold(Child);

impl Hold {
    fn start(case: &Case) -> Hold {
        let log = std::fs::File::create(case.scratch("hold.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_janusd"));
        command.arg("hold").arg("--state-dir").arg(case.scratch("state")).args(["--deadline", "2s"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        case.watch.process(child.id());
        let hold = Hold(child);
        assert!(wait_until(SOON, || case.scratch("state/hold.sock").exists()), "it does not hold");
        hold
    }

    /// Groups that it has.
    fn groups(&self) -> usize {
        let Ok(files) = std::fs::read_dir(format!("/proc/{}/fd", self.0.id())) else { return 0 };
        let links = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("fanotify")).count()
    }
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

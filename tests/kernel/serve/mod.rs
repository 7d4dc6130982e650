//! `janusd serve`: what a controller says over real TLS, and what of it then holds on the real kernel.

mod certificates;
mod client;
pub(crate) mod crowd;
pub(crate) mod faults;
pub(crate) mod handover;
pub(crate) mod hangs;
pub(crate) mod held;
pub(crate) mod strangers;

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use janus_proto::v1;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, EmailProtection, ServerAuth};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use self::certificates::{Authority, CONTROLLER, EXPIRED, VALID};
use self::client::{Client, NODE, create, destroy, spec};
use crate::agent;
use crate::case::{Case, Janus, free_address};
use crate::daemon::{Poor, program};
use crate::found::{PodCgroup, UID};
use crate::kernel_tests;
use crate::metrics::{Metrics, get};
use crate::watchdog::wait_until;

kernel_tests! {
    a_guards_life_over_the_wire,
    a_guard_made_again_at_once,
    who_may_not_connect.without_control(),
    certificates_replaced_under_an_open_stream,
    whoever_watches_is_told_who_it_was,
    sigterm_lifts_what_is_guarded_and_ends,
    calls_that_do_not_count.without_control(),
}

const SOON: Duration = Duration::from_secs(15);

/// A daemon, in the control nothing.
struct Serve {
    process: Child,
    grpc: std::net::SocketAddr,
    admin: std::net::SocketAddr,
}

/// How a daemon is started, where that matters.
#[derive(Default)]
struct Setting {
    /// As such a user, with the capabilities that janusd needs.
    poor: Option<Poor>,
    /// In plain text.
    insecure: bool,
    /// Event lines ask for no more than each guard's format does.
    lines_by_format: bool,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    /// Guards change hands in the case's `state`; which of several daemons it is.
    among: Option<usize>,
    /// Another copy of the program.
    binary: Option<std::path::PathBuf>,
    /// Its certificates, and what it and the holder meet in, are elsewhere than in the case's scratch directory.
    home: Option<std::path::PathBuf>,
    /// Begins its life in this cgroup of the memory hierarchy.
    cgroup: Option<std::path::PathBuf>,
    /// A library that is loaded first, and the clock that it reads.
    preload: Option<std::path::PathBuf>,
    clock: Option<std::path::PathBuf>,
}

impl Serve {
    fn start(case: &Case, authority: &Authority) -> Serve {
        Serve::start_with(case, authority, Setting::default())
    }

    fn start_with(case: &Case, authority: &Authority, setting: Setting) -> Serve {
        let binary = setting.binary.unwrap_or_else(program);
        let (grpc, admin) = (free_address(), free_address());
        let home = setting.home.unwrap_or_else(|| case.scratch(""));
        authority.write(&home);
        let mut command = match setting.poor {
            None => Command::new(binary),
            Some(Poor { user, open_files }) => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                let files = open_files.unwrap_or_default();
                command.args([agent::WORD, "poor", &user.to_string(), &files.to_string()]).arg(binary);
                command
            }
        };
        command.args(["serve", "--node-name", NODE, "--namespace", "janus-test"]);
        // The runtimes that it would find are the machine's, whose containers are no business of these tests.
        command.args(["--start-limit", "0s"]);
        command.args(["--event-format", if setting.lines_by_format { "guard" } else { "json" }]);
        command.arg("--listen").arg(grpc.to_string()).arg("--admin-listen").arg(admin.to_string());
        let files = [("--tls-cert", "tls.crt"), ("--tls-key", "tls.key"), ("--tls-client-ca", "ca.crt")];
        if setting.insecure {
            command.arg("--insecure");
        } else {
            for (flag, file) in files {
                command.arg(flag).arg(home.join(file));
            }
        }
        if setting.among.is_some() {
            command.arg("--state-dir").arg(home.join("state"));
        }
        if let Some(library) = setting.preload {
            command.env("LD_PRELOAD", library);
            command.envs(setting.clock.map(|clock| ("JANUS_TEST_CLOCK", clock)));
        }
        let log_name = setting.among.map_or_else(|| "janusd.log".to_owned(), |number| format!("janusd-{number}.log"));
        let log = std::fs::File::create(case.scratch(&log_name)).unwrap();
        command.stdin(Stdio::null()).stdout(setting.stdout.unwrap_or_else(Stdio::null));
        command.stderr(setting.stderr.unwrap_or_else(|| log.into()));
        let inside = setting.cgroup.as_deref().map(hangs::Inside::enter);
        let process = command.spawn().unwrap();
        drop(inside);
        case.watch.process(process.id());
        let serve = Serve { process, grpc, admin };
        let log = || std::fs::read_to_string(case.scratch(&log_name)).unwrap();
        let ready = || TcpStream::connect(admin).is_ok() && get(admin, "/readyz").0 == 200;
        assert!(wait_until(SOON, ready), "janusd does not serve: {}", log());
        serve
    }

    /// SIGTERM: its exit status, and how long it took.
    fn end(&mut self) -> (Option<i32>, Duration) {
        let asked = Instant::now();
        kill_process(Pid::from_raw(self.process.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
        let mut status = None;
        wait_until(SOON, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        (status.and_then(|status| status.code()), asked.elapsed())
    }

    fn refused(&self, reason: &str) -> u64 {
        Metrics::read(self.admin).sum("janus_connections_refused_total", &[("reason", reason)])
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            // Ended meanwhile.
            let _ended = self.process.kill();
            let _status = self.process.wait();
        }
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    wait_for(SOON, future)
}

fn wait_for<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(limit, future).await.expect("an answer in time") })
}

fn phase(state: &v1::GuardState) -> v1::GuardPhase {
    v1::GuardPhase::try_from(state.phase).unwrap()
}

/// Created before the pod has a container; guarded once it has one; brought up to date in place; lifted.
fn a_guards_life_over_the_wire(case: &Case) {
    let pod = PodCgroup::new(case);
    let authority = Authority::new();
    let container = case.container();
    let serve = (case.janus == Janus::Guards).then(|| Serve::start(case, &authority));
    let client = serve.as_ref().map(|serve| (serve, authority.controller()));
    case.allowed(container.open("/secret"));
    if let Some((serve, identity)) = &client {
        wait(async {
            let mut client = Client::connect(serve.grpc, identity).await.unwrap();
            let state = client.create(create(1, 1, spec(&["/secret"]))).await.unwrap();
            assert_eq!(phase(&state), v1::GuardPhase::InForce, "{state:?}");
            assert!(state.containers.is_empty());
        });
    }
    let id = pod.container('a', container.pid);
    case.becomes_denied(SOON, || container.open("/secret"));
    case.allowed(container.open("/public"));
    if let Some((serve, identity)) = &client {
        wait(async {
            let mut client = Client::connect(serve.grpc, identity).await.unwrap();
            // The same again is no change, and says how things stand; names come with it.
            let mut again = create(1, 1, spec(&["/secret"]));
            again.container_ids = vec![v1::ContainerId { name: "app".into(), id: format!("containerd://{id}") }];
            let state = client.create(again).await.unwrap();
            assert_eq!((phase(&state), state.accepted_generation), (v1::GuardPhase::InForce, 1), "{state:?}");
            let state = client.until(|state| state.containers.iter().any(|it| it.name == "app" && it.in_force)).await;
            assert_eq!(state.containers[0].id, id);
            assert!(state.marks.is_some_and(|marks| marks.filesystem + marks.mount + marks.inode > 0));
            let denied = |state: &v1::GuardState| {
                let events = state.counters.iter().flat_map(|counters| &counters.events);
                events.filter(|it| it.response == v1::Response::Deny as i32).map(|it| it.count).sum::<u64>()
            };
            assert!(denied(&state) >= 20, "{state:?}");
            // Unchanged while nothing but counters differs.
            let (header, guards) = client.state(Vec::new()).await;
            assert_eq!((header.node.as_str(), header.guards, guards.len(), header.epoch), (NODE, 1, 1, 1));
            assert!(header.features.contains(&"guard-v1".to_owned()));
            let (same, none) = client.state(header.digest.clone()).await;
            assert!(same.unchanged && none.is_empty(), "{same:?}");
            let mut decisions = client.watch(v1::WatchEventsRequest::default()).await;
            case.denied(container.open("/secret"));
            let decision = match decisions.message().await.unwrap().unwrap().part.unwrap() {
                v1::watch_events_response::Part::Decision(decision) => decision,
                v1::watch_events_response::Part::Missed(missed) => panic!("{missed:?}"),
            };
            assert_eq!((decision.path.as_slice(), decision.response), (&b"/secret"[..], v1::Response::Deny as i32));
            assert_eq!(decision.pod.unwrap().uid, UID);
            assert_eq!(decision.container, "app");
            let state = client.create(create(1, 2, spec(&["/public"]))).await.unwrap();
            assert_eq!((phase(&state), state.guard.unwrap().generation), (v1::GuardPhase::InForce, 2));
            assert!(!client.state(header.digest).await.0.unchanged, "another generation is another state");
        });
    }
    case.denied(container.open("/public"));
    case.allowed(container.open("/secret"));
    if let Some((serve, identity)) = &client {
        wait(async {
            let mut client = Client::connect(serve.grpc, identity).await.unwrap();
            assert!(client.destroy(destroy(1, 2)).await.unwrap());
            assert!(client.destroy(destroy(1, 2)).await.unwrap(), "what is absent is lifted");
            assert!(client.state(Vec::new()).await.1.is_empty());
        });
        case.allowed(container.open("/public"));
        case.allowed(container.open("/secret"));
    }
}

/// Lifted and created in one breath: in force is in force, from the first open on, also where failures would allow.
fn a_guard_made_again_at_once(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let authority = Authority::new();
    let serve = Serve::start(case, &authority);
    wait(async {
        let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        for generation in 1..=30 {
            let spec = v1::GuardSpec { failure_policy: v1::FailurePolicy::Allow.into(), ..spec(&["/secret"]) };
            let state = client.create(create(1, generation, spec)).await.unwrap();
            let first = container.open("/secret");
            let fallbacks = Metrics::read(serve.admin).sum("janus_guard_fallbacks_total", &[]);
            assert!(first.is_err(), "{generation}: {fallbacks} fallbacks, {state:?}");
            case.denied(first);
            assert!(client.destroy(destroy(1, generation)).await.unwrap());
            case.allowed(container.open("/secret"));
        }
    });
}

/// Without the controller's certificate nobody gets as far as a call, and each is counted.
fn who_may_not_connect(case: &Case) {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let serve = Serve::start(case, &authority);
    let identities = [
        ("certificate-absent", authority.nobody()),
        ("certificate-untrusted", stranger.controller().trusting(&authority)),
        ("certificate-name", authority.client("janus-controller.elsewhere.svc", VALID, &[ClientAuth])),
        ("certificate-purpose", authority.client(CONTROLLER, VALID, &[ServerAuth])),
        // Made for nothing in particular, and so for everything.
        ("certificate-purpose", authority.client(CONTROLLER, VALID, &[])),
        ("certificate-purpose", authority.client(CONTROLLER, VALID, &[EmailProtection])),
        ("certificate-expired", authority.client(CONTROLLER, EXPIRED, &[ClientAuth])),
    ];
    for (reason, identity) in identities {
        let before = serve.refused(reason);
        let reached = wait(async {
            match Client::connect(serve.grpc, &identity).await {
                // With TLS 1.3 a client may learn of it only when it first hears from the server.
                Ok(mut client) => client.create(create(1, 1, spec(&["/x"]))).await.is_ok(),
                Err(_) => false,
            }
        });
        assert!(!reached, "let in: {reason}");
        assert!(wait_until(SOON, || serve.refused(reason) > before), "{reason}: {before}");
    }
    wait(async {
        let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        assert!(client.state(Vec::new()).await.1.is_empty(), "the controller itself is let in");
    });
}

/// The stream lives on; new connections use the new certificates; the old CA's clients are refused.
fn certificates_replaced_under_an_open_stream(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let (old, new) = (Authority::new(), Authority::new());
    let serve = Serve::start(case, &old);
    wait(async {
        let mut before = Client::connect(serve.grpc, &old.controller()).await.unwrap();
        before.create(create(1, 1, spec(&["/secret"]))).await.unwrap();
        let mut stream = before.watch(v1::WatchEventsRequest::default()).await;
        // Half of a pair is no pair: what was in use stays.
        std::fs::write(case.scratch("tls.key"), new.daemon_key()).unwrap();
        let reloads = |result| Metrics::read(serve.admin).sum("janus_certificate_reloads_total", &[("result", result)]);
        assert!(wait_until(SOON, || reloads("failed") > 0), "a half-written pair went unnoticed");
        assert!(Client::connect(serve.grpc, &old.controller()).await.is_ok());
        new.write(&case.scratch(""));
        assert!(wait_until(SOON, || reloads("ok") > 0), "not read again");
        let mut after = Client::connect(serve.grpc, &new.controller()).await.unwrap();
        assert_eq!(after.state(Vec::new()).await.1.len(), 1);
        assert!(Client::connect(serve.grpc, &old.controller()).await.is_err(), "the old CA still serves");
        let refused = match Client::connect(serve.grpc, &old.controller().trusting(&new)).await {
            Ok(mut client) => client.create(create(1, 1, spec(&["/secret"]))).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "a client of the old CA is let in");
        case.denied(container.open("/secret"));
        let told = stream.message().await.unwrap();
        assert!(told.is_some(), "the stream has ended");
        // And the old connection still takes calls.
        assert!(before.destroy(destroy(1, 1)).await.unwrap());
    });
}

/// Also what no log format asks for.
fn whoever_watches_is_told_who_it_was(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let authority = Authority::new();
    let serve = Serve::start_with(case, &authority, Setting { lines_by_format: true, ..Setting::default() });
    wait(async {
        let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        client.create(create(1, 1, spec(&["/secret"]))).await.unwrap();
        let mut decisions = client.watch(v1::WatchEventsRequest::default()).await;
        case.denied(container.open("/secret"));
        let decision = match decisions.message().await.unwrap().unwrap().part.unwrap() {
            v1::watch_events_response::Part::Decision(decision) => decision,
            v1::watch_events_response::Part::Missed(missed) => panic!("{missed:?}"),
        };
        assert_eq!(decision.origin, v1::Origin::Owner as i32, "{decision:?}");
        assert!(decision.pid > 0 && !decision.comm.is_empty() && !decision.exe.is_empty(), "{decision:?}");
        assert_eq!(decision.uid, Some(0), "{decision:?}");
        assert_eq!(Metrics::read(serve.admin).sum("janus_guard_fallbacks_total", &[]), 0);
    });
}

/// Not ready at once; streams end; what was guarded is lifted; within five seconds.
fn sigterm_lifts_what_is_guarded_and_ends(case: &Case) {
    let pod = PodCgroup::new(case);
    let container = case.container();
    pod.container('a', container.pid);
    if case.janus == Janus::Absent {
        return case.denied(container.open("/secret"));
    }
    let authority = Authority::new();
    let mut serve = Serve::start(case, &authority);
    wait(async {
        let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        let state = client.create(create(1, 1, spec(&["/secret"]))).await.unwrap();
        assert_eq!(phase(&state), v1::GuardPhase::InForce);
        // A decision, so that the stream stands.
        let mut stream = client.watch(v1::WatchEventsRequest::default()).await;
        case.denied(container.open("/secret"));
        assert!(stream.message().await.unwrap().is_some());
        let pid = Pid::from_raw(serve.process.id().cast_signed()).unwrap();
        let asked = Instant::now();
        kill_process(pid, Signal::TERM).unwrap();
        while let Ok(Some(_)) = stream.message().await {}
        let mut status = None;
        assert!(wait_until(SOON, || {
            status = serve.process.try_wait().unwrap();
            status.is_some()
        }));
        assert_eq!(status.unwrap().code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(5), "took {:?}", asked.elapsed());
        eprintln!("ended {:?} after SIGTERM", asked.elapsed());
    });
    case.allowed(container.open("/secret"));
}

/// Stale epochs and generations, other nodes, bad specs: refused by name, with details.
fn calls_that_do_not_count(case: &Case) {
    let authority = Authority::new();
    let serve = Serve::start(case, &authority);
    wait(async {
        let mut client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        client.create(create(5, 3, spec(&["/a"]))).await.unwrap();
        for (request, code, words) in [
            (create(4, 3, spec(&["/a"])), Code::FailedPrecondition, "epoch 5"),
            (create(5, 2, spec(&["/a"])), Code::FailedPrecondition, "generation 3"),
            (create(5, 3, spec(&["/b"])), Code::FailedPrecondition, "another spec"),
            (create(5, 4, spec(&["relative"])), Code::InvalidArgument, "spec.subjects[0].deny[0]"),
        ] {
            let status = client.create(request).await.unwrap_err();
            assert_eq!(status.code(), code, "{status:?}");
            assert!(status.message().contains(words), "{status:?}");
            assert!(!status.details().is_empty(), "{status:?}");
        }
        let mut elsewhere = create(5, 4, spec(&["/a"]));
        elsewhere.caller.as_mut().unwrap().node = "other".into();
        assert_eq!(client.create(elsewhere).await.unwrap_err().code(), Code::FailedPrecondition);
        let stale = client.destroy(destroy(4, 3)).await.unwrap_err();
        assert_eq!(stale.code(), Code::FailedPrecondition, "{stale:?}");
        assert_eq!(client.state(Vec::new()).await.1.len(), 1, "none of them changed anything");
        let nameless = v1::WatchEventsRequest { guard: "g".into(), ..Default::default() };
        assert_eq!(client.watch_refused(nameless).await.code(), Code::InvalidArgument);
        let guarded = v1::WatchEventsRequest { namespace: "default".into(), pod: "pod".into(), ..Default::default() };
        drop(client.watch(guarded.clone()).await);
        for absent in [
            v1::WatchEventsRequest { pod: "elsewhere".into(), ..guarded.clone() },
            v1::WatchEventsRequest { guard: "another".into(), ..guarded },
        ] {
            assert_eq!(client.watch_refused(absent).await.code(), Code::NotFound);
        }
        // Guards come and go: whoever watches one waits for it.
        let awaited = v1::WatchEventsRequest { namespace: "n".into(), guard: "g".into(), ..Default::default() };
        drop(client.watch(awaited).await);
        let mut streams = Vec::new();
        for _ in 0..16 {
            streams.push(client.watch(v1::WatchEventsRequest::default()).await);
        }
        let one_more = client.watch_refused(v1::WatchEventsRequest::default()).await;
        assert_eq!(one_more.code(), Code::ResourceExhausted);
    });
}

//! One guard on the containers of a pod, which come and go.

use std::sync::Arc;
use std::time::Duration;

use janusd::fanotify::Features;
use janusd::guard::{Offer, ProblemReason, Roots, Site};
use janusd::policy::Failure;
use janusd::process::look::NodeAgents;
use janusd::root::Root;
use rustix::io::Errno;

use crate::case::Case;
use crate::container::Container;
use crate::in_process::InProcess;
use crate::kernel_tests;
use crate::manifest::{guard, guard_with};
use crate::root::EMPTY_DIR;
use crate::watchdog::wait_until;

kernel_tests! {
    containers_come_and_go,
    only_those_that_the_guard_names,
    a_volume_that_two_share,
    each_is_the_owner_of_what_it_holds,
    a_container_that_starts_again,
    what_the_nodes_agents_do,
}

const SOON: Duration = Duration::from_secs(5);

fn site(container: &Container, id: &str, name: Option<&str>) -> Site {
    let pid = i32::try_from(container.pid).unwrap();
    Site { id: id.into(), name: name.map(Into::into), root: Root::of_process(pid).unwrap(), init: pid }
}

fn pod(case: &Case, manifest: &str) -> Option<InProcess> {
    InProcess::start(case, || Roots::Pod(Offer::default()), manifest, |_| {})
}

fn holds<const N: usize>(janusd: Option<&InProcess>, sites: impl FnOnce() -> [Site; N]) {
    if let Some(janusd) = janusd {
        janusd.guard().containers(Offer { sites: sites().into(), ..Offer::default() }).unwrap();
    }
}

/// A guard is there before any container is; each is guarded from the moment it is known, and the others go on.
fn containers_come_and_go(case: &Case) {
    let janusd = pod(case, &guard(&["{deny: [/secret, /denied], events: [open], log: None}"]));
    let janusd = janusd.as_ref();
    let app = case.container();
    let sidecar = case.container_beside("sidecar", &app);
    case.allowed(app.open("/secret"));
    holds(janusd, || [site(&app, "a", Some("app"))]);
    case.denied(app.open("/secret"));
    case.allowed(app.open("/public"));
    case.allowed(sidecar.open("/secret"));
    holds(janusd, || [site(&app, "a", Some("app")), site(&sidecar, "b", Some("sidecar"))]);
    for container in [&app, &sidecar] {
        case.denied(container.open("/secret"));
        case.denied(container.open("/denied/sub/file"));
        case.allowed(container.open("/public"));
    }
    if let Some(janusd) = janusd {
        let report = janusd.guard().report();
        assert_eq!(report.sites.iter().filter(|site| site.in_force).count(), 2, "{report:?}");
        assert_eq!(report.problems.iter().filter(|it| it.reason.degrades()).count(), 0, "{report:?}");
    }
    // Nobody says that it has ended.
    let identities = |janusd: &InProcess| janusd.sample(r#"janus_guard_identities{namespace="default",guard="g"}"#);
    let before = janusd.map(|janusd| (janusd.guard().report().marks.total(), identities(janusd)));
    drop(app);
    if let Some(janusd) = janusd {
        assert!(wait_until(SOON, || janusd.guard().report().sites.len() == 1), "{:?}", janusd.guard().report());
        let (marks, known) = before.unwrap_or_default();
        assert!(wait_until(SOON, || janusd.guard().report().marks.total() < marks), "its marks stay");
        // What is known of the files of its root is forgotten with it.
        assert!(wait_until(SOON, || (1..known).contains(&identities(janusd))), "{known}");
    }
    case.denied(sidecar.open("/secret"));
    case.allowed(sidecar.open("/public"));
    holds(janusd, || []);
    case.allowed(sidecar.open("/secret"));
    if let Some(janusd) = janusd {
        assert_eq!(janusd.guard().report().marks.total(), 0);
        assert_eq!(
            janusd.sample(r#"janus_guard_fallbacks_total{namespace="default",guard="g",reason="unknown-mount"}"#),
            0
        );
    }
}

/// `containers`. One whose name is not known counts as named.
fn only_those_that_the_guard_names(case: &Case) {
    let manifest = guard_with("g", &["containers: [app]"], &["{deny: [/secret], events: [open]}"]);
    let janusd = pod(case, &manifest);
    let janusd = janusd.as_ref();
    let app = case.container();
    let sidecar = case.container_beside("sidecar", &app);
    holds(janusd, || [site(&app, "a", Some("app")), site(&sidecar, "b", None)]);
    case.denied(app.open("/secret"));
    case.denied(sidecar.open("/secret"));
    if let Some(janusd) = janusd {
        let report = janusd.guard().report();
        assert!(report.problems.iter().any(|it| it.reason == ProblemReason::NameUnknown), "{report:?}");
    }
    holds(janusd, || [site(&app, "a", Some("app")), site(&sidecar, "b", Some("sidecar"))]);
    case.denied(app.open("/secret"));
    case.allowed(sidecar.open("/secret"));
}

/// An emptyDir of the pod: its marks stay for as long as one of them has it, and go with the last.
fn a_volume_that_two_share(case: &Case) {
    let janusd = pod(case, &guard(&["{deny: [/e/file], events: [open]}"]));
    let janusd = janusd.as_ref();
    let app = case.container();
    let sidecar = case.container_beside("sidecar", &app);
    let host = case.host();
    let on_node = app.on_disk(EMPTY_DIR).join("file");
    holds(janusd, || [site(&app, "a", Some("app")), site(&sidecar, "b", Some("sidecar"))]);
    case.denied(app.open("/e/file"));
    case.denied(sidecar.open("/e/file"));
    case.denied(host.open(&on_node));
    holds(janusd, || [site(&sidecar, "b", Some("sidecar"))]);
    case.denied(sidecar.open("/e/file"));
    case.denied(host.open(&on_node));
    // The first has no guard any more; the file is the second's all the same.
    case.denied(app.open("/e/file"));
    case.allowed(app.open("/e/other"));
    drop(sidecar);
    if let Some(janusd) = janusd {
        assert!(wait_until(SOON, || janusd.guard().report().marks.total() == 0), "{:?}", janusd.guard().report());
    }
    case.allowed(host.open(&on_node));
    case.allowed(app.open("/e/file"));
}

fn each_is_the_owner_of_what_it_holds(case: &Case) {
    let janusd = pod(case, &guard(&["{deny: [/e/file, /secret], events: [open], autoAllowOwner: true}"]));
    let janusd = janusd.as_ref();
    let app = case.container();
    let sidecar = case.container_beside("sidecar", &app);
    holds(janusd, || [site(&app, "a", Some("app")), site(&sidecar, "b", Some("sidecar"))]);
    for container in [&app, &sidecar] {
        case.allowed(container.open("/secret"));
        case.allowed(container.open("/e/file"));
        case.denied(case.host().open(container.seen_from_host("/secret")));
        case.denied(case.host().open(container.seen_from_host("/e/file")));
    }
}

/// What is known of a volume's files outlives the container that had it: a denied file stays denied under its new name.
fn a_container_that_starts_again(case: &Case) {
    let janusd = pod(case, &guard(&["{deny: [/e/file], events: [open]}"]));
    let janusd = janusd.as_ref();
    let holder = case.container();
    let app = case.container_beside("first", &holder);
    holds(janusd, || [site(&app, "a", Some("app"))]);
    case.denied(app.open("/e/file"));
    app.prepare([crate::protocol::Act::Rename("/e/file".into(), "/e/renamed".into())]);
    case.denied(app.open("/e/renamed"));
    drop(app);
    if let Some(janusd) = janusd {
        assert!(wait_until(SOON, || janusd.guard().report().sites.is_empty()));
    }
    let again = case.container_beside("second", &holder);
    holds(janusd, || [site(&again, "b", Some("app"))]);
    case.denied(again.open("/e/file"));
    case.denied(again.open("/e/renamed"));
    case.denied(again.open("/e/renamed"));
}

/// One process counts as an agent.
#[derive(Debug)]
struct Only(i32);

impl NodeAgents for Only {
    fn holds(&self, pid: i32, _: &Features) -> Result<bool, Failure> {
        Ok(pid == self.0)
    }
}

fn what_the_nodes_agents_do(case: &Case) {
    let (kubelet, shell) = (case.host(), case.host());
    let manifest = guard_with("g", &["failurePolicy: Deny"], &["{deny: [/e, /secret], events: [all]}"]);
    let agents = Arc::new(Only(i32::try_from(kubelet.pid).unwrap()));
    let janusd =
        InProcess::start(case, || Roots::Pod(Offer::default()), &manifest, |shared| shared.agents = Some(agents));
    let janusd = janusd.as_ref();
    let app = case.container();
    holds(janusd, || [site(&app, "a", Some("app"))]);
    let file = app.on_disk(EMPTY_DIR).join("file");
    for _ in 0..3 {
        case.allowed(kubelet.open(&file));
        case.denied(shell.open(&file));
        case.denied(app.open("/e/file"));
    }
    if janusd.is_some() {
        assert_eq!(app.open("/secret"), Err(Errno::PERM));
    }
}

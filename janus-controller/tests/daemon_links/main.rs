//! Connections to daemons: who is trusted, what becomes of changed files, what an idle one takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod daemon;
mod memory;

use std::net::SocketAddr;
use std::time::Duration;

use janus_controller::daemon::calls::Janusd;
use janus_controller::daemon::connect::{ConnectError, Dialer, Link, Patience};
use janus_controller::daemon::tls::{Files, FilesError, Looked, Tls};
use janus_controller::reconcile::port::{CallError, Daemon as _, State};
use janus_proto::v1::{self, GetGuardStateRequest, get_guard_state_response::Part};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::daemon::{Ca, Daemon, NAME, NAMESPACE, Pair, files, server_config, write};

/// What nothing here takes, and no test waits for in vain.
const LONG: Duration = Duration::from_secs(30);

struct Controller {
    _directory: tempfile::TempDir,
    files: Files,
    tls: Tls,
    reload: janus_controller::daemon::tls::Reload,
}

impl Controller {
    fn new(trusts: &Ca, pair: &Pair) -> Controller {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        write(&files, trusts, pair);
        let (tls, reload) = Tls::open(files.clone(), NAMESPACE).unwrap();
        Controller { _directory: directory, files, tls, reload }
    }

    async fn connect(&self, address: SocketAddr) -> Result<Link, ConnectError> {
        let patience = Patience { connect: LONG, handshake: LONG };
        Dialer::new(NAMESPACE, Some(self.tls.clone()), patience).unwrap().connect(address).await
    }
}

async fn node(link: &Link) -> String {
    let mut client = link.client.clone();
    let mut answer = client.get_guard_state(GetGuardStateRequest::default()).await.unwrap().into_inner();
    match answer.message().await.unwrap().unwrap().part.unwrap() {
        Part::Header(header) => header.node,
        Part::Guard(_) => panic!("no header"),
    }
}

/// What a controller that trusts `ca` says to a daemon with that certificate.
async fn word(ca: &Ca, pair: &Pair) -> &'static str {
    let daemon = Daemon::start(Some(server_config(pair, ca))).await;
    Controller::new(ca, &ca.controller()).connect(daemon.address).await.unwrap_err().word()
}

#[tokio::test]
async fn a_daemon_of_our_ca_and_name_is_spoken_with() {
    let ca = Ca::new();
    let daemon = Daemon::start(Some(server_config(&ca.daemon(), &ca))).await;
    let link = Controller::new(&ca, &ca.controller()).connect(daemon.address).await.unwrap();
    assert_eq!(node(&link).await, "node-1");
    assert!(!link.is_closed());
}

#[tokio::test]
async fn or_in_plain_text_if_that_is_asked_for() {
    let daemon = Daemon::start(None).await;
    let dialer = Dialer::new(NAMESPACE, None, Patience::default()).unwrap();
    assert_eq!(node(&dialer.connect(daemon.address).await.unwrap()).await, "node-1");
}

/// All that a daemon with this one unit says.
async fn said(unit: v1::GuardState) -> Result<State, CallError> {
    let daemon = Daemon::guarding(None, vec![unit]).await;
    let link = Dialer::new(NAMESPACE, None, Patience::default()).unwrap().connect(daemon.address).await.unwrap();
    Janusd::new(link).state(Vec::new()).await
}

#[tokio::test]
async fn the_longest_honest_answer_is_taken_and_no_longer_one() {
    let text = |length: usize| "x".repeat(length);
    let problem = v1::Problem {
        reason: text(64),
        message: text(1024),
        container: text(253),
        subject: text(252),
        path: text(1024),
        blocking: true,
    };
    let container = v1::ContainerState { name: text(63), id: text(64), in_force: true };
    let honest = v1::GuardState {
        guard: Some(v1::GuardRef { uid: text(64), namespace: text(63), name: text(253), generation: i64::MAX }),
        pod: Some(v1::PodRef { uid: text(64), cgroup_uid: text(64), namespace: text(63), name: text(253) }),
        containers: vec![container; 256],
        problems: vec![problem; 20],
        ..Default::default()
    };
    assert_eq!(said(honest.clone()).await.unwrap().guards, [honest]);
    // Two bytes each on the wire, and a hundred in memory.
    let hollow = v1::GuardState { problems: vec![v1::Problem::default(); 1 << 18], ..Default::default() };
    let error = said(hollow).await.unwrap_err();
    assert!(matches!(&error, CallError::Lost(lost) if lost.word == "malformed"), "{error}");
}

#[tokio::test]
async fn every_other_certificate_is_refused_with_its_reason() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = ExtendedKeyUsagePurpose::ServerAuth;
    let years = (2020, 2100);
    let elsewhere = ca.issue("janusd.elsewhere.svc", server.clone(), years);
    assert_eq!(word(&ca, &elsewhere).await, "tls-name");
    assert_eq!(word(&ca, &ca.issue(NAME, server.clone(), (2020, 2021))).await, "tls-expired");
    assert_eq!(word(&ca, &ca.issue(NAME, server, (2099, 2100))).await, "tls-expired");
    assert_eq!(word(&ca, &ca.issue(NAME, ExtendedKeyUsagePurpose::ClientAuth, years)).await, "tls-purpose");
    assert_eq!(word(&ca, &other.daemon()).await, "tls-untrusted");
}

#[tokio::test]
async fn a_daemon_that_refuses_us_is_no_connection() {
    let (ca, other) = (Ca::new(), Ca::new());
    let daemon = Daemon::start(Some(server_config(&ca.daemon(), &other))).await;
    let error = Controller::new(&ca, &ca.controller()).connect(daemon.address).await.unwrap_err();
    assert_eq!(error.word(), "tls-refused", "{error}");
}

#[tokio::test]
async fn nobody_silence_and_nonsense_have_words_too() {
    let ca = Ca::new();
    let controller = Controller::new(&ca, &ca.controller());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // The kernel accepts; nobody reads.
    let patience = Patience { connect: LONG, handshake: Duration::from_millis(100) };
    let dialer = Dialer::new(NAMESPACE, Some(controller.tls.clone()), patience).unwrap();
    assert_eq!(dialer.connect(address).await.unwrap_err().word(), "timeout");
    drop(listener.accept().await.unwrap());
    let answer = async |bytes: &[u8]| {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    };
    let (nonsense, _stream) = tokio::join!(controller.connect(address), answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    assert_eq!(nonsense.unwrap_err().word(), "protocol");
    let (closed, _stream) = tokio::join!(controller.connect(address), answer(b""));
    assert_eq!(closed.unwrap_err().word(), "closed");
    drop(listener);
    assert_eq!(controller.connect(address).await.unwrap_err().word(), "unreachable");
}

#[tokio::test]
async fn a_connection_that_ends_says_so_and_is_not_made_anew() {
    let ca = Ca::new();
    let daemon = Daemon::start(Some(server_config(&ca.daemon(), &ca))).await;
    let link = Controller::new(&ca, &ca.controller()).connect(daemon.address).await.unwrap();
    node(&link).await;
    let address = daemon.address;
    drop(daemon);
    tokio::time::timeout(LONG, link.closed()).await.expect("the connection is still there");
    let _another = TcpListener::bind(address).await.unwrap();
    let status = link.client.clone().get_guard_state(GetGuardStateRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
}

#[tokio::test]
async fn changed_files_are_for_new_connections_and_leave_open_ones_alone() {
    let (old, new) = (Ca::new(), Ca::new());
    let before = Daemon::start(Some(server_config(&old.daemon(), &old))).await;
    let after = Daemon::start(Some(server_config(&new.daemon(), &new))).await;
    let mut controller = Controller::new(&old, &old.controller());
    let open = controller.connect(before.address).await.unwrap();
    assert_eq!(controller.connect(after.address).await.unwrap_err().word(), "tls-untrusted");
    assert_eq!(controller.reload.look(), Looked::Same);

    write(&controller.files, &new, &new.controller());
    assert_eq!(controller.reload.look(), Looked::Used);
    assert_eq!(controller.reload.look(), Looked::Same);
    let link = controller.connect(after.address).await.unwrap();
    assert_eq!((node(&open).await, node(&link).await), ("node-1".to_owned(), "node-1".to_owned()));
    assert_eq!(controller.connect(before.address).await.unwrap_err().word(), "tls-untrusted");
}

#[tokio::test]
async fn files_that_are_no_good_change_nothing_and_are_told_of_once() {
    let ca = Ca::new();
    let daemon = Daemon::start(Some(server_config(&ca.daemon(), &ca))).await;
    let mut controller = Controller::new(&ca, &ca.controller());
    // Half of what belongs together.
    let next = ca.controller();
    std::fs::write(&controller.files.certificate, next.certificate.pem()).unwrap();
    assert_eq!((controller.reload.look(), controller.reload.look()), (Looked::Refused, Looked::Same));
    assert_eq!(node(&controller.connect(daemon.address).await.unwrap()).await, "node-1");
    std::fs::remove_file(&controller.files.key).unwrap();
    assert_eq!((controller.reload.look(), controller.reload.look()), (Looked::Refused, Looked::Same));
    assert_eq!(node(&controller.connect(daemon.address).await.unwrap()).await, "node-1");
    std::fs::write(&controller.files.key, next.key.serialize_pem()).unwrap();
    assert_eq!(controller.reload.look(), Looked::Used);
    assert_eq!(node(&controller.connect(daemon.address).await.unwrap()).await, "node-1");
}

#[test]
fn a_controller_does_not_start_with_files_that_are_no_good() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
    let files = files(directory.path());
    let open = || Tls::open(files.clone(), NAMESPACE).map(|_| ()).unwrap_err();
    assert!(matches!(open(), FilesError::Read { path, .. } if path == files.ca));
    write(&files, &ca, &ca.controller());
    std::fs::write(&files.ca, "").unwrap();
    assert!(matches!(open(), FilesError::Pem { path, .. } if path == files.ca));
    write(&files, &ca, &ca.controller());
    std::fs::write(&files.key, ca.controller().key.serialize_pem()).unwrap();
    assert!(matches!(open(), FilesError::Content { path, .. } if path == files.certificate));
    std::fs::write(&files.key, vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(matches!(open(), FilesError::Read { path, .. } if path == files.key));
    write(&files, &ca, &ca.controller());
    assert!(matches!(Tls::open(files, "no name").map(|_| ()).unwrap_err(), FilesError::Name(_)));
}

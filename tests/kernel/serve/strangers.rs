//! Connections that are not the controller's, or say nothing: they cost nobody else a place.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use janus_proto::v1;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;

use super::certificates::{Authority, Identity};
use super::client::{Client, create, spec};
use super::{SOON, Serve, Setting, phase, wait, wait_for};
use crate::case::Case;
use crate::kernel_tests;
use crate::metrics::{Metrics, get};
use crate::watchdog::wait_until;

kernel_tests! {
    idle_connections_keep_nobody_out.without_control(),
    idle_connections_keep_nobody_out_in_plain_text.without_control(),
    the_last_of_the_controllers_connections_has_room.without_control().lasting(90),
    whoever_makes_no_call_has_to_go.without_control(),
    probes_are_answered_whoever_else_asks.without_control(),
}

/// Several times as many as there is room for.
const MANY: usize = 300;

fn idle(address: SocketAddr) -> Vec<TcpStream> {
    (0..MANY).map(|_| TcpStream::connect(address).unwrap()).collect()
}

fn idle_connections_keep_nobody_out(case: &Case) {
    let authority = Authority::new();
    let serve = Serve::start(case, &authority);
    let mut strangers = Vec::new();
    wait(async {
        let mut before = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        let state = before.create(create(1, 1, spec(&["/secret"]))).await.unwrap();
        assert_eq!(phase(&state), v1::GuardPhase::InForce);
        strangers.extend(idle(serve.grpc));
        let mut after = Client::connect(serve.grpc, &authority.controller()).await.expect("room for the controller");
        assert_eq!(after.state(Vec::new()).await.1.len(), 1);
        assert_eq!(before.state(Vec::new()).await.1.len(), 1, "its other connection stands");
    });
    // Each is told of, once.
    assert!(wait_until(SOON, || serve.refused("too-many") + serve.refused("timeout") == MANY as u64));
}

fn idle_connections_keep_nobody_out_in_plain_text(case: &Case) {
    let setting = Setting { insecure: true, ..Setting::default() };
    let serve = Serve::start_with(case, &Authority::new(), setting);
    let mut strangers = Vec::new();
    wait(async {
        let mut before = Client::connect_plain(serve.grpc).await.unwrap();
        before.create(create(1, 1, spec(&["/secret"]))).await.unwrap();
        strangers.extend(idle(serve.grpc));
        let mut after = Client::connect_plain(serve.grpc).await.expect("room for the controller");
        assert_eq!(after.state(Vec::new()).await.1.len(), 1);
        assert_eq!(before.state(Vec::new()).await.1.len(), 1, "its other connection stands");
    });
    assert!(wait_until(SOON, || serve.refused("too-many") + serve.refused("timeout") == MANY as u64));
}

fn the_last_of_the_controllers_connections_has_room(case: &Case) {
    let authority = Authority::new();
    let serve = Serve::start(case, &authority);
    let controller = authority.controller();
    // So many handshakes take a while where others have the CPUs.
    wait_for(4 * SOON, async {
        let mut first = Client::connect(serve.grpc, &controller).await.unwrap();
        first.state(Vec::new()).await;
        let mut second = Client::connect(serve.grpc, &controller).await.unwrap();
        let mut decisions = second.watch(v1::WatchEventsRequest::default()).await;
        let mut clients = Vec::new();
        for _ in 0..63 {
            first.state(Vec::new()).await;
            let mut client = Client::connect(serve.grpc, &controller).await.expect("room for the last one");
            client.state(Vec::new()).await;
            clients.push(client);
        }
        // 65 in all: the second one's call is the one that was longest ago.
        assert!(decisions.message().await.is_err(), "the one that has called least lately is closed");
        first.state(Vec::new()).await;
        for mut client in clients {
            client.state(Vec::new()).await;
        }
        assert_eq!(serve.refused("too-many"), 1);
    });
}

/// How long until the other side closes.
async fn until_closed(address: SocketAddr, identity: Option<&Identity>) -> Duration {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    // An end or a reset: closed either way.
    let _closed = match identity {
        None => tokio::io::BufReader::new(stream).read_to_end(&mut rest).await,
        Some(identity) => {
            let name = rustls::pki_types::ServerName::try_from("janusd.janus-test.svc").unwrap();
            let mut stream = TlsConnector::from(identity.config.clone()).connect(name, stream).await.unwrap();
            stream.read_to_end(&mut rest).await
        }
    };
    begun.elapsed()
}

/// A handshake that is never begun, and one after which nothing comes.
fn whoever_makes_no_call_has_to_go(case: &Case) {
    let authority = Authority::new();
    let serve = Serve::start(case, &authority);
    let controller = authority.controller();
    wait(async {
        let (shaken, unshaken) =
            tokio::join!(until_closed(serve.grpc, Some(&controller)), until_closed(serve.grpc, None));
        let not_at_once = Duration::from_secs(3);
        assert!(shaken > not_at_once && unshaken > not_at_once, "{shaken:?} {unshaken:?}");
    });
    assert!(wait_until(SOON, || serve.refused("timeout") == 2), "{}", serve.refused("timeout"));
}

/// Those that say nothing, and one that never comes to an end.
fn probes_are_answered_whoever_else_asks(case: &Case) {
    let serve = Serve::start(case, &Authority::new());
    let _idle = idle(serve.admin);
    assert_eq!(get(serve.admin, "/readyz").0, 200);
    let mut slow = TcpStream::connect(serve.admin).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ").unwrap();
    slow.set_read_timeout(Some(SOON)).unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    let ended = loop {
        match slow.read(&mut [0; 64]) {
            Ok(0) => break true,
            Ok(_) => rest.push(0),
            Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    };
    assert!(ended && begun.elapsed() < SOON, "still there after {:?}", begun.elapsed());
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", serve.process.id())).unwrap().count();
    assert!(wait_until(SOON, || descriptors() < MANY / 2), "{} descriptors", descriptors());
    assert!(Metrics::read(serve.admin).has("janus_build_info"));
}

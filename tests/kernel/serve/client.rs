//! A controller's side of the wire.

use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use janus_proto::v1;
use janus_proto::v1::get_guard_state_response::Part;
use janus_proto::v1::janusd_client::JanusdClient;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

use super::certificates::Identity;
use crate::found::UID;

pub(super) const NODE: &str = "node-a";
const GUARD: &str = "0b8f3f5e-1111-4222-8333-944455556666";

#[derive(Clone)]
pub(super) struct Client(JanusdClient<Channel>);

impl Client {
    pub(super) async fn connect(address: SocketAddr, identity: &Identity) -> Result<Client, tonic::transport::Error> {
        let connector = TlsConnector::from(identity.config.clone());
        let connect = tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = rustls::pki_types::ServerName::try_from("janusd.janus-test.svc").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://janusd.janus-test.svc").timeout(Duration::from_secs(20));
        Ok(Client(JanusdClient::new(endpoint.connect_with_connector(connect).await?)))
    }

    pub(super) async fn connect_plain(address: SocketAddr) -> Result<Client, tonic::transport::Error> {
        let connect = tower::service_fn(move |_: Uri| async move {
            Ok::<_, std::io::Error>(TokioIo::new(TcpStream::connect(address).await?))
        });
        let endpoint = Endpoint::from_static("http://janusd.janus-test.svc").timeout(Duration::from_secs(20));
        Ok(Client(JanusdClient::new(endpoint.connect_with_connector(connect).await?)))
    }

    pub(super) async fn create(&mut self, request: v1::CreateGuardRequest) -> Result<v1::GuardState, Status> {
        Ok(self.0.create_guard(request).await?.into_inner().state.unwrap())
    }

    pub(super) async fn destroy(&mut self, request: v1::DestroyGuardRequest) -> Result<bool, Status> {
        Ok(self.0.destroy_guard(request).await?.into_inner().lifted)
    }

    pub(super) async fn state(&mut self, digest: Vec<u8>) -> (v1::StateHeader, Vec<v1::GuardState>) {
        let mut stream = self.0.get_guard_state(v1::GetGuardStateRequest { digest }).await.unwrap().into_inner();
        let Some(Part::Header(header)) = stream.message().await.unwrap().unwrap().part else { panic!("no header") };
        let mut guards = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            let Some(Part::Guard(guard)) = message.part else { panic!("no guard") };
            guards.push(guard);
        }
        assert_eq!(header.guards as usize, guards.len());
        (header, guards)
    }

    /// The one guard, once it is so.
    pub(super) async fn until(&mut self, so: impl Fn(&v1::GuardState) -> bool) -> v1::GuardState {
        loop {
            let state = self.state(Vec::new()).await.1.remove(0);
            if so(&state) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn watch(&mut self, request: v1::WatchEventsRequest) -> Streaming<v1::WatchEventsResponse> {
        self.0.watch_events(request).await.unwrap().into_inner()
    }

    pub(super) async fn watch_refused(&mut self, request: v1::WatchEventsRequest) -> Status {
        self.0.watch_events(request).await.expect_err("a refusal")
    }
}

fn caller(epoch: u64) -> Option<v1::Caller> {
    Some(v1::Caller { epoch, node: NODE.into() })
}

fn guard(generation: i64) -> Option<v1::GuardRef> {
    Some(v1::GuardRef { uid: GUARD.into(), namespace: "default".into(), name: "g".into(), generation })
}

fn pod() -> Option<v1::PodRef> {
    Some(v1::PodRef { uid: UID.into(), cgroup_uid: String::new(), namespace: "default".into(), name: "pod".into() })
}

pub(super) fn create(epoch: u64, generation: i64, spec: v1::GuardSpec) -> v1::CreateGuardRequest {
    v1::CreateGuardRequest {
        caller: caller(epoch),
        guard: guard(generation),
        pod: pod(),
        spec: Some(spec),
        container_ids: Vec::new(),
    }
}

pub(super) fn destroy(epoch: u64, generation: i64) -> v1::DestroyGuardRequest {
    v1::DestroyGuardRequest { caller: caller(epoch), guard: guard(generation), pod: pod() }
}

/// One of many guards, on one of many pods, by their numbers; four namespaces, since none may take all of what there is.
pub(super) fn create_one(number: usize, pod: usize, spec: v1::GuardSpec) -> v1::CreateGuardRequest {
    let namespace = format!("ns-{}", pod % 4);
    let name = format!("g{number}");
    let guard = v1::GuardRef { uid: uid(0xa, number), namespace: namespace.clone(), name, generation: 1 };
    let (uid, name) = (uid(0xb, pod), format!("pod-{pod}"));
    let pod = v1::PodRef { uid, cgroup_uid: String::new(), namespace, name };
    v1::CreateGuardRequest { guard: Some(guard), pod: Some(pod), ..create(1, 1, spec) }
}

/// Lifts what such a request asked for.
pub(super) fn lift(created: &v1::CreateGuardRequest) -> v1::DestroyGuardRequest {
    v1::DestroyGuardRequest { caller: caller(1), guard: created.guard.clone(), pod: created.pod.clone() }
}

/// The UID of one of many.
pub(super) fn uid(kind: u8, number: usize) -> String {
    format!("0b8f3f5e-1111-4222-{:04x}-{number:012x}", 0x8330 | u16::from(kind))
}

/// Opens of these are denied.
pub(super) fn spec(deny: &[&str]) -> v1::GuardSpec {
    v1::GuardSpec {
        containers: Vec::new(),
        subjects: vec![v1::Subject {
            deny: deny.iter().map(ToString::to_string).collect(),
            events: vec![v1::Event::Open.into()],
            log: v1::LogPolicy::All.into(),
            ..Default::default()
        }],
        log_format: String::new(),
        enforcement: v1::Enforcement::Enforce.into(),
        failure_policy: v1::FailurePolicy::Deny.into(),
    }
}

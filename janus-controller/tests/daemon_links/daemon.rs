//! A daemon on loopback that knows one call, and the certificates of both sides.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use janus_controller::daemon::tls::Files;
use janus_proto::v1::janusd_server::{Janusd, JanusdServer};
use janus_proto::v1::{
    CreateGuardRequest, CreateGuardResponse, DestroyGuardRequest, DestroyGuardResponse, GetGuardStateRequest,
    GetGuardStateResponse, GuardState, StateHeader, WatchEventsRequest, WatchEventsResponse, get_guard_state_response,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

pub(crate) const NAMESPACE: &str = "janus-system";
pub(crate) const NAME: &str = "janusd.janus-system.svc";

/// A CA.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate, its key.
pub(crate) struct Pair {
    pub(crate) certificate: rcgen::Certificate,
    pub(crate) key: KeyPair,
}

impl Ca {
    pub(crate) fn new() -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose, years: (i32, i32)) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
        let key = KeyPair::generate().unwrap();
        Pair { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }

    pub(crate) fn daemon(&self) -> Pair {
        self.issue(NAME, ExtendedKeyUsagePurpose::ServerAuth, (2020, 2100))
    }

    pub(crate) fn controller(&self) -> Pair {
        self.issue("janus-controller.janus-system.svc", ExtendedKeyUsagePurpose::ClientAuth, (2020, 2100))
    }
}

/// The controller's files, below `directory`.
pub(crate) fn files(directory: &Path) -> Files {
    let path = |name: &str| -> PathBuf { directory.join(name) };
    Files { ca: path("ca.crt"), certificate: path("tls.crt"), key: path("tls.key") }
}

pub(crate) fn write(files: &Files, ca: &Ca, pair: &Pair) {
    std::fs::write(&files.ca, ca.pem()).unwrap();
    std::fs::write(&files.certificate, pair.certificate.pem()).unwrap();
    std::fs::write(&files.key, pair.key.serialize_pem()).unwrap();
}

/// Lets in whoever `clients` has signed.
pub(crate) fn server_config(pair: &Pair, clients: &Ca) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(clients.0.der().clone()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let key = PrivateKeyDer::try_from(pair.key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![pair.certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// With what it guards.
struct Service(Vec<GuardState>);

#[tonic::async_trait]
impl Janusd for Service {
    type GetGuardStateStream = ReceiverStream<Result<GetGuardStateResponse, Status>>;
    type WatchEventsStream = ReceiverStream<Result<WatchEventsResponse, Status>>;

    async fn create_guard(&self, _: Request<CreateGuardRequest>) -> Result<Response<CreateGuardResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn destroy_guard(&self, _: Request<DestroyGuardRequest>) -> Result<Response<DestroyGuardResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_guard_state(
        &self,
        _: Request<GetGuardStateRequest>,
    ) -> Result<Response<Self::GetGuardStateStream>, Status> {
        use get_guard_state_response::Part;
        let (sender, receiver) = mpsc::channel(1 + self.0.len());
        let guards = self.0.len().try_into().unwrap();
        let header = StateHeader { node: "node-1".to_owned(), guards, ..StateHeader::default() };
        for part in std::iter::once(Part::Header(header)).chain(self.0.iter().cloned().map(Part::Guard)) {
            sender.try_send(Ok(GetGuardStateResponse { part: Some(part) })).unwrap();
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn watch_events(&self, _: Request<WatchEventsRequest>) -> Result<Response<Self::WatchEventsStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Serves for as long as it is held.
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Daemon {
    /// `tls`: none for plain text.
    pub(crate) async fn start(tls: Option<Arc<ServerConfig>>) -> Daemon {
        Daemon::guarding(tls, Vec::new()).await
    }

    /// One that says it guards so.
    pub(crate) async fn guarding(tls: Option<Arc<ServerConfig>>, guards: Vec<GuardState>) -> Daemon {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = mpsc::channel::<Result<DuplexStream, std::io::Error>>(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(JanusdServer::new(Service(guards)));
            server.serve_with_incoming(ReceiverStream::new(receiver)).await.unwrap();
        });
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, sender) = (tls.clone(), sender.clone());
                connections.spawn(async move {
                    let (near, mut far) = tokio::io::duplex(16 << 10);
                    // Whoever is refused, or goes: the other side tells.
                    let _ended = match tls {
                        None => {
                            let mut stream = stream;
                            sender.send(Ok(near)).await.unwrap();
                            tokio::io::copy_bidirectional(&mut stream, &mut far).await
                        }
                        Some(tls) => match TlsAcceptor::from(tls).accept(stream).await {
                            Err(error) => Err(error),
                            Ok(mut stream) => {
                                sender.send(Ok(near)).await.unwrap();
                                tokio::io::copy_bidirectional(&mut stream, &mut far).await
                            }
                        },
                    };
                });
            }
        });
        Daemon { address, _tasks: tasks }
    }
}

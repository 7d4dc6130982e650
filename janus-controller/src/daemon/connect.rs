//! One connection to one daemon.
//!
//! A [`Link`] is one connection and never another: when it has gone, its calls fail and [`Link::closed`] resolves, and whoever
//! drives the daemon dials again, to the address that its pod has by then. There may be thousands of them in a process, so
//! windows are small.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use janus_proto::v1::janusd_client::JanusdClient;
use rustls::{AlertDescription, CertificateError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};

use super::tls::Tls;

/// While calls are under way, a daemon that does not answer a ping within [`PONG`] has gone. Between them nobody pings: the
/// next look at its state comes soon enough, has a deadline, and costs as much as a ping.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);
/// Bytes that a daemon may send before we have read them: the least that HTTP/2 allows for a connection.
const WINDOW: u32 = 65_535;
/// Calls that wait for the connection.
const WAITING: usize = 32;
/// The largest message that is sent, bytes. A spec is bounded to less.
const LARGEST: usize = 4 << 20;
/// The largest one that is taken. What a daemon says of a unit (256 containers, 20 problems, each with texts of 1024 bytes)
/// is about a third of it; decoded, one may take 64 times as much.
const LARGEST_ANSWER: usize = 256 << 10;

/// How long a connection may take to come about.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// TCP.
    pub connect: Duration,
    /// TLS, until the daemon has let us in. Thousands begin at once when a controller starts.
    pub handshake: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { connect: Duration::from_secs(3), handshake: Duration::from_secs(10) }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody is there, or no way leads there.
    #[error("cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    /// This process has too many open files.
    #[error("no descriptor is left: {0}")]
    NoDescriptor(#[source] io::Error),
    /// It took too long.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The daemon ended it: it has too many connections, or is about to go.
    #[error("the daemon closed the connection")]
    Closed,
    /// The daemon's certificate is of no CA that we know, or broken.
    #[error("the daemon's certificate is not to be trusted: {0}")]
    TlsUntrusted(CertificateError),
    /// It is for another name.
    #[error("the daemon's certificate is for another name: {0}")]
    TlsName(CertificateError),
    /// It has expired, or is not valid yet.
    #[error("the daemon's certificate is not valid at this time: {0}")]
    TlsExpired(CertificateError),
    /// It is not made for servers.
    #[error("the daemon's certificate is not made for servers: {0}")]
    TlsPurpose(CertificateError),
    /// The daemon does not take ours.
    #[error("the daemon refuses the controller's certificate: {0:?}")]
    TlsRefused(AlertDescription),
    /// It does not speak what we speak: no TLS 1.3, no HTTP/2.
    #[error("the daemon does not speak TLS 1.3 and HTTP/2: {0}")]
    Protocol(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ConnectError {
    /// All words, in the order of the variants.
    pub const WORDS: [&'static str; 10] = [
        "unreachable",
        "no-descriptor",
        "timeout",
        "closed",
        "tls-untrusted",
        "tls-name",
        "tls-expired",
        "tls-purpose",
        "tls-refused",
        "protocol",
    ];

    /// For metrics.
    pub const fn word(&self) -> &'static str {
        let at = match self {
            ConnectError::Unreachable(_) => 0,
            ConnectError::NoDescriptor(_) => 1,
            ConnectError::Timeout(_) => 2,
            ConnectError::Closed => 3,
            ConnectError::TlsUntrusted(_) => 4,
            ConnectError::TlsName(_) => 5,
            ConnectError::TlsExpired(_) => 6,
            ConnectError::TlsPurpose(_) => 7,
            ConnectError::TlsRefused(_) => 8,
            ConnectError::Protocol(_) => 9,
        };
        ConnectError::WORDS[at]
    }

    fn of_tcp(error: io::Error) -> ConnectError {
        let descriptors = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
        match error.raw_os_error() {
            Some(errno) if descriptors.contains(&errno) => ConnectError::NoDescriptor(error),
            _ => ConnectError::Unreachable(error),
        }
    }

    fn of_tls(error: io::Error) -> ConnectError {
        use CertificateError as Bad;
        match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(bad)) => match bad.clone() {
                bad @ (Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => ConnectError::TlsName(bad),
                bad @ (Bad::Expired
                | Bad::ExpiredContext { .. }
                | Bad::NotValidYet
                | Bad::NotValidYetContext { .. }) => ConnectError::TlsExpired(bad),
                bad @ (Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. }) => ConnectError::TlsPurpose(bad),
                bad => ConnectError::TlsUntrusted(bad),
            },
            Some(rustls::Error::AlertReceived(alert)) if is_about_us(*alert) => ConnectError::TlsRefused(*alert),
            Some(_) => ConnectError::Protocol(Box::new(error)),
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => ConnectError::Closed,
                _ => ConnectError::Protocol(Box::new(error)),
            },
        }
    }
}

fn is_about_us(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::NoCertificate
            // A signature that does not hold: a CA that was made anew under its old name.
            | AlertDescription::DecryptError
    )
}

/// Connects to daemons.
#[derive(Debug, Clone)]
pub struct Dialer {
    tls: Option<Tls>,
    endpoint: Endpoint,
    patience: Patience,
}

/// The namespace makes no name of a server.
#[derive(Debug, thiserror::Error)]
#[error("{namespace} is no name of a namespace: {source}")]
pub struct NamespaceError {
    namespace: String,
    source: tonic::transport::Error,
}

impl Dialer {
    /// To daemons in `namespace`. `tls`: none for plain text.
    ///
    /// # Errors
    /// The namespace is none.
    pub fn new(namespace: &str, tls: Option<Tls>, patience: Patience) -> Result<Dialer, NamespaceError> {
        // TLS is ours, so that it can be read again: to tonic all is plain.
        let endpoint = Endpoint::from_shared(format!("http://janusd.{namespace}.svc"))
            .and_then(|endpoint| endpoint.user_agent(concat!("janus-controller/", env!("CARGO_PKG_VERSION"))))
            .map_err(|source| NamespaceError { namespace: namespace.to_owned(), source })?
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .buffer_size(WAITING)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        Ok(Dialer { tls, endpoint, patience })
    }

    /// Connects. With TLS the daemon has let us in by then.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self, address: SocketAddr) -> Result<Link, ConnectError> {
        let stream =
            in_time(self.patience.connect, TcpStream::connect(address)).await?.map_err(ConnectError::of_tcp)?;
        stream.set_nodelay(true).map_err(ConnectError::of_tcp)?;
        let wire = match &self.tls {
            None => Wire::Plain(stream),
            Some(tls) => in_time(self.patience.handshake, greet(tls, stream)).await?.map_err(ConnectError::of_tls)?,
        };
        let closed = CancellationToken::new();
        let only = Arc::new(Mutex::new(Some(TokioIo::new(Held { wire, _closed: closed.clone().drop_guard() }))));
        let connector = tower::service_fn(move |_| {
            let taken = only.lock().map_or(None, |mut only| only.take());
            std::future::ready(taken.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
        });
        let channel = in_time(self.patience.handshake, self.endpoint.connect_with_connector(connector))
            .await?
            .map_err(|error| ConnectError::Protocol(Box::new(error)))?;
        let client =
            JanusdClient::new(channel).max_decoding_message_size(LARGEST_ANSWER).max_encoding_message_size(LARGEST);
        Ok(Link { client, closed })
    }
}

async fn in_time<T>(patience: Duration, future: impl Future<Output = T>) -> Result<T, ConnectError> {
    tokio::time::timeout(patience, future).await.map_err(|_| ConnectError::Timeout(patience))
}

/// In TLS 1.3 a client has done before its certificate is looked at. HTTP/2 servers speak first (SETTINGS), and one that
/// refuses us does not: so we wait for its first bytes.
async fn greet(tls: &Tls, stream: TcpStream) -> io::Result<Wire> {
    let (config, name) = tls.now();
    let mut stream = TlsConnector::from(config).connect(name, stream).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "HTTP/2 was not agreed upon"));
    }
    let mut first = [0; 64];
    match stream.read(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => Ok(Wire::Tls { first: first[..length].into(), stream: Box::new(stream) }),
    }
}

/// A connection to a daemon.
#[derive(Debug, Clone)]
pub struct Link {
    /// Clones share the connection.
    pub client: JanusdClient<Channel>,
    closed: CancellationToken,
}

impl Link {
    /// Resolves once the connection is no more: the daemon ended it, or did not answer a ping within 30 s of a call.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Whether it is no more.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

enum Wire {
    Plain(TcpStream),
    Tls {
        /// What was read before anybody asked.
        first: Box<[u8]>,
        stream: Box<TlsStream<TcpStream>>,
    },
}

/// Tells when it is dropped, which is when the connection is no more.
struct Held {
    wire: Wire,
    _closed: DropGuard,
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Wire::Tls { first, stream } if first.is_empty() => Pin::new(stream).poll_read(cx, buffer),
            Wire::Tls { first, .. } => {
                let (now, later) = first.split_at(first.len().min(buffer.remaining()));
                buffer.put_slice(now);
                *first = later.into();
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Tls { stream, .. } => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

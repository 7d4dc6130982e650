//! Connections: which daemon they came to, and what becomes of them.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::temper::{Certificate, Garbage, Hang};
use super::{Daemon, Shared};
use crate::certificates::{Authority, controller_name};

/// As janusd has it.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What daemons show.
pub(super) struct Locks {
    good: Arc<ServerConfig>,
    misnamed: Arc<ServerConfig>,
    expired: Arc<ServerConfig>,
    forged: Arc<ServerConfig>,
    client: ServerName<'static>,
}

impl Locks {
    pub(super) fn new(authority: &Authority) -> Locks {
        Locks {
            good: authority.daemon(),
            misnamed: authority.misnamed(),
            expired: authority.expired(),
            forged: authority.forged(),
            client: ServerName::try_from(controller_name()).unwrap(),
        }
    }

    fn of(&self, certificate: Certificate) -> Arc<ServerConfig> {
        match certificate {
            Certificate::Good => &self.good,
            Certificate::Misnamed => &self.misnamed,
            Certificate::Expired => &self.expired,
            Certificate::Forged => &self.forged,
        }
        .clone()
    }
}

/// Takes connections to their daemons, for as long as there is a server for them.
pub(super) async fn accept(
    listener: TcpListener,
    locks: Option<Locks>,
    shared: Arc<Shared>,
    connections: mpsc::Sender<std::io::Result<Connection>>,
) {
    let locks = locks.map(Arc::new);
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = tasks.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let daemon = match stream.local_addr() {
            Ok(SocketAddr::V4(local)) => shared.daemons.read().get(&(*local.ip()).into()).cloned(),
            _ => None,
        };
        let Some(daemon) = daemon else {
            reset(&stream);
            continue;
        };
        let (locks, connections) = (locks.clone(), connections.clone());
        tasks.spawn(async move {
            let cut = daemon.cut.lock().clone();
            // Nobody waits for it any more, whichever it is.
            let _ended = cut.run_until_cancelled(let_in(stream, daemon, locks, &connections)).await;
        });
    }
}

async fn let_in(
    stream: TcpStream,
    daemon: Arc<Daemon>,
    locks: Option<Arc<Locks>>,
    connections: &mpsc::Sender<std::io::Result<Connection>>,
) {
    let temper = daemon.current();
    if temper.down {
        return reset(&stream);
    }
    if temper.hang == Hang::Handshakes {
        let mut turned = std::pin::pin!(daemon.turned.notified());
        while daemon.current().hang == Hang::Handshakes {
            turned.as_mut().await;
            turned.set(daemon.turned.notified());
        }
    }
    let cut = daemon.cut.lock().clone();
    stream.set_nodelay(true).unwrap();
    // So that a cut is one.
    reset(&stream);
    let mut stream: Pin<Box<dyn Duplex>> = match locks {
        None => Box::pin(stream),
        Some(locks) => {
            let acceptor = TlsAcceptor::from(locks.of(temper.certificate));
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
            if !may_enter(&stream, &locks.client) {
                return;
            }
            Box::pin(stream)
        }
    };
    if temper.garbage == Some(Garbage::Bytes) {
        // It may have gone.
        let _gone = stream.write_all(b"\x00\x00\x04\xff\xff\xff\xff\xff\xffSSH-2.0-janusd\r\n").await;
        let _gone = stream.flush().await;
        cut.cancelled().await;
        return;
    }
    daemon.open.fetch_add(1, Ordering::Relaxed);
    daemon.accepted.fetch_add(1, Ordering::Relaxed);
    let ended = Box::pin(cut.clone().cancelled_owned());
    let connection = Connection { stream, daemon, cut, ended };
    // The fleet is being dropped.
    let _ended = connections.send(Ok(connection)).await;
}

/// Whether the client is the controller, as janusd asks.
fn may_enter(stream: &tokio_rustls::server::TlsStream<TcpStream>, name: &ServerName<'static>) -> bool {
    let certificates = stream.get_ref().1.peer_certificates();
    certificates.and_then(|chain| chain.first()).is_some_and(|own| {
        webpki::EndEntityCert::try_from(own).is_ok_and(|own| own.verify_is_valid_for_subject_name(name).is_ok())
    })
}

/// It ends with a reset once it is dropped.
fn reset(stream: &TcpStream) {
    stream.set_zero_linger().unwrap();
}

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A connection to a daemon.
pub(super) struct Connection {
    stream: Pin<Box<dyn Duplex>>,
    daemon: Arc<Daemon>,
    cut: CancellationToken,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.daemon.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which daemon a call is for.
#[derive(Clone)]
pub(super) struct At(pub(super) Arc<Daemon>);

impl Connected for Connection {
    type ConnectInfo = At;

    fn connect_info(&self) -> At {
        At(self.daemon.clone())
    }
}

fn was_reset() -> std::io::Error {
    std::io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(was_reset()));
        }
        self.stream.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.cut.is_cancelled() {
            return Poll::Ready(Err(was_reset()));
        }
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.cut.is_cancelled() {
            return Poll::Ready(Err(was_reset()));
        }
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.cut.is_cancelled() {
            return Poll::Ready(Ok(()));
        }
        self.stream.as_mut().poll_shutdown(context)
    }
}

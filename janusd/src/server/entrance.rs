//! Lets connections in. Anybody may knock, and nobody may keep the controller out.
//!
//! A connection knocks until it has shown whose it is: by its handshake ([`super::tls`]), or in plain text, where nobody can
//! show that, by its first call. Then it is inside, where it has to make a call soon if it has made none. For those who
//! knock and for those inside there is so much room each, and always some for the next one ([`Places`]): of those who
//! knock whoever has waited longest goes, of those inside whoever has asked for nothing the longest.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{CertificateError, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use super::tls::Door;
use crate::metrics::{Metrics, Turned};
use crate::places::{Guest, Places};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a connection may go without a first call, from when it is let in.
const FIRST_CALL: Duration = Duration::from_secs(5);
/// Connections at once that have not shown whose they are.
const KNOCKING: usize = 64;
/// Connections at once that have. A cluster has two controllers.
const INSIDE: usize = 64;

/// Dropped when a connection has to go.
type Held = oneshot::Sender<()>;

#[derive(Debug)]
struct Rooms {
    knocking: Places<Held>,
    inside: Places<Held>,
}

/// In which room a connection is.
#[derive(Debug, Clone, Copy)]
enum Stand {
    Knocking(Guest),
    Inside(Guest),
    Gone,
}

/// One connection, as its calls know it.
#[derive(Debug, Clone)]
pub struct Visit(Arc<Visitor>);

#[derive(Debug)]
struct Visitor {
    rooms: Arc<Mutex<Rooms>>,
    metrics: Arc<Metrics>,
    from: IpAddr,
    stand: Mutex<Stand>,
    /// Has made a call.
    called: AtomicBool,
}

impl Visit {
    /// Makes a call.
    pub fn calls(&self) {
        self.0.called.store(true, Ordering::Relaxed);
        self.show();
    }

    /// Has shown whose it is, or shows it again. False: it had to go before that.
    fn show(&self) -> bool {
        let Visitor { rooms, metrics, from, stand, called: _ } = &*self.0;
        let mut rooms = rooms.lock();
        let mut stand = stand.lock();
        match *stand {
            Stand::Inside(guest) => rooms.inside.renew(guest),
            Stand::Knocking(guest) => {
                let Some(held) = rooms.knocking.leave(guest) else { return false };
                let (guest, pushed_out) = rooms.inside.enter(*from, held);
                *stand = Stand::Inside(guest);
                if pushed_out.is_some() {
                    metrics.tls_refused(Turned::TooMany);
                    tracing::warn!("more than {INSIDE} connections: the one that has called least lately is closed");
                }
            }
            Stand::Gone => return false,
        }
        true
    }

    fn leave(&self) {
        let mut rooms = self.0.rooms.lock();
        // It may have had to.
        let _held = match std::mem::replace(&mut *self.0.stand.lock(), Stand::Gone) {
            Stand::Knocking(guest) => rooms.knocking.leave(guest),
            Stand::Inside(guest) => rooms.inside.leave(guest),
            Stand::Gone => None,
        };
    }
}

/// A connection that was let in.
pub struct Connection {
    stream: Pin<Box<dyn Duplex>>,
    visit: Visit,
    /// Resolves when it has to go.
    pushed_out: oneshot::Receiver<()>,
    /// Until its first call.
    silent: Option<Pin<Box<Sleep>>>,
    over: bool,
}

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.visit.0.from).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.visit.leave();
    }
}

impl Connection {
    /// An error once it has to go; until then `context` is woken when it has to.
    fn stays(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        self.over = self.over || Pin::new(&mut self.pushed_out).poll(context).is_ready();
        if let Some(silent) = &mut self.silent {
            if self.visit.0.called.load(Ordering::Relaxed) {
                self.silent = None;
            } else if !self.over && silent.as_mut().poll(context).is_ready() {
                self.over = true;
                self.visit.0.metrics.tls_refused(Turned::Timeout);
            }
        }
        if self.over { Err(std::io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = Visit;

    fn connect_info(&self) -> Visit {
        self.visit.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.stays(context)?;
        self.stream.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.stays(context)?;
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stays(context)?;
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stays(context)?;
        self.stream.as_mut().poll_shutdown(context)
    }
}

/// Lets connections in, until `connections` has no reader. `door`: none for plain text.
pub async fn accept(
    listener: TcpListener,
    door: Option<Door>,
    metrics: Arc<Metrics>,
    connections: mpsc::Sender<std::io::Result<Connection>>,
) {
    let rooms = Rooms { knocking: Places::new(KNOCKING), inside: Places::new(INSIDE) };
    let rooms = Arc::new(Mutex::new(rooms));
    let config = door.as_ref().map(Door::config);
    // Ended with this future, all of them.
    let mut tasks = JoinSet::new();
    if let Some(door) = door {
        tasks.spawn(door.keep(metrics.clone()));
    }
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a task of the listener panicked");
                }
                continue;
            }
        };
        let (stream, from) = match accepted {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                // No descriptor, or a connection that has gone again. Not at full speed, if it lasts.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (held, pushed_out) = oneshot::channel();
        let (guest, another) = rooms.lock().knocking.enter(from, held);
        if another.is_some() {
            metrics.tls_refused(Turned::TooMany);
        }
        let stand = Mutex::new(Stand::Knocking(guest));
        let visitor = Visitor { rooms: rooms.clone(), metrics: metrics.clone(), from, stand, called: false.into() };
        let (visit, config, connections) = (Visit(Arc::new(visitor)), config.clone(), connections.clone());
        tasks.spawn(async move {
            if let Some(connection) = let_in(stream, config.as_deref(), visit, pushed_out).await {
                // The server has ended.
                let _ended = connections.send(Ok(connection)).await;
            }
        });
    }
}

/// `None`: it was turned away, and that is counted.
async fn let_in(
    stream: TcpStream,
    config: Option<&ArcSwap<ServerConfig>>,
    visit: Visit,
    mut pushed_out: oneshot::Receiver<()>,
) -> Option<Connection> {
    // Answers are small and awaited.
    let _slower = stream.set_nodelay(true);
    let stream: Pin<Box<dyn Duplex>> = match config {
        None => Box::pin(stream),
        Some(config) => {
            let acceptor = TlsAcceptor::from(config.load_full());
            let shaken = tokio::select! {
                shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => shaken,
                _ = &mut pushed_out => return None,
            };
            let refused = match shaken {
                Ok(Ok(stream)) if visit.show() => Ok(stream),
                // Pushed out at this moment.
                Ok(Ok(_)) => return None,
                Ok(Err(error)) => Err(turned(&error)),
                Err(_) => Err(Turned::Timeout),
            };
            match refused {
                Ok(stream) => Box::pin(stream),
                Err(turned) => {
                    visit.0.metrics.tls_refused(turned);
                    tracing::debug!(reason = turned.word(), "a connection was refused");
                    visit.leave();
                    return None;
                }
            }
        }
    };
    let silent = Some(Box::pin(tokio::time::sleep(FIRST_CALL)));
    Some(Connection { stream, visit, pushed_out, silent, over: false })
}

fn turned(error: &std::io::Error) -> Turned {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::NoCertificatesPresented) => Turned::Absent,
        Some(rustls::Error::InvalidCertificate(error)) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Turned::Expired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Turned::WrongName,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Turned::WrongPurpose,
            _ => Turned::Untrusted,
        },
        _ => Turned::Protocol,
    }
}

//! HTTP/2 over one connection, as gRPC needs it, and nothing in front of it.
//!
//! tonic's channel would queue calls twice, by two channels whose first blocks are nine kilobytes each: there are thousands of
//! connections, and nearly all of them idle. Here a call goes straight to h2.
//!
//! Nobody pings: each call has a deadline that ends the connection, and between calls the next look at the daemon's state comes
//! soon enough, and costs as much as a ping.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::body::Body;

/// Who we say that we are.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("janus-controller/", env!("CARGO_PKG_VERSION")));
/// Bytes that a daemon may send before we have read them: the least that HTTP/2 allows for a connection.
const WINDOW: u32 = 65_535;
/// Bytes of an answer's headers. A status that says why takes some hundred.
const HEADERS: u32 = 16 << 10;
/// How long a connection that nobody needs may take to say good-bye.
const FAREWELL: Duration = Duration::from_secs(1);

/// Carries calls. Clones share the connection; it is ended when the last of them is dropped.
#[derive(Clone)]
pub struct Carrier {
    send: SendRequest<Bytes>,
    _needed: Arc<DropGuard>,
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Carrier").finish_non_exhaustive()
    }
}

impl Carrier {
    /// Begins HTTP/2 over a connection.
    ///
    /// # Errors
    /// What HTTP/2 has against it.
    pub(super) async fn begin(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Carrier, h2::Error> {
        let mut settings = h2::client::Builder::new();
        settings
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEADERS)
            // Each answer has a date: a table of headers would be filled with those, for each connection.
            .header_table_size(0)
            .enable_push(false);
        let (send, connection) = settings.handshake(io).await?;
        let needed = CancellationToken::new();
        tokio::spawn(keep(connection, needed.clone()));
        Ok(Carrier { send, _needed: Arc::new(needed.drop_guard()) })
    }
}

/// Keeps a connection going for as long as it is needed, and there.
async fn keep<T: AsyncRead + AsyncWrite + Unpin>(mut connection: Connection<T, Bytes>, unneeded: CancellationToken) {
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = unneeded.cancelled() => {
            // Nobody is left who would send anything: h2 says GOAWAY, and ends.
            tokio::time::timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to janusd broke");
    }
}

impl tower::Service<Request<Body>> for Carrier {
    type Response = Response<Answer>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Answer>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Of an error here tonic would make a status that looks like a daemon's; the call fails by it as well.
        self.send.poll_ready(cx).map(|_error| Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        head.headers.insert(USER_AGENT, AGENT);
        let sent = self.send.send_request(Request::from_parts(head, ()), body.is_end_stream());
        Box::pin(async move {
            let (answer, stream) = sent.map_err(broken)?;
            Under { answer, sending: Some(Sending { body, stream, rest: Bytes::new() }) }.await
        })
    }
}

/// A call whose answer has not begun.
struct Under {
    answer: ResponseFuture,
    /// Until all has been sent. A daemon may answer before.
    sending: Option<Sending>,
}

impl Future for Under {
    type Output = Result<Response<Answer>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(sending) = &mut self.sending
            && let Poll::Ready(sent) = sending.poll(cx)
        {
            self.sending = None;
            sent?;
        }
        let answer = ready!(Pin::new(&mut self.answer).poll(cx)).map_err(broken)?;
        Poll::Ready(Ok(answer.map(|stream| Answer { stream, data: true })))
    }
}

/// A request's body, on its way.
struct Sending {
    body: Body,
    stream: SendStream<Bytes>,
    /// Read from the body, and not sent yet.
    rest: Bytes,
}

impl Sending {
    /// Ends when there is no more to send, or nobody who takes it: why, its answer says. Fails as the body does.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        loop {
            let sent = if self.rest.is_empty() {
                match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                    Some(frame) => {
                        self.rest = frame?.into_data().unwrap_or_default();
                        continue;
                    }
                    // A client's body has no trailers.
                    None => self.stream.send_data(Bytes::new(), true).map(|()| true),
                }
            } else {
                self.stream.reserve_capacity(self.rest.len());
                match self.stream.capacity() {
                    0 => match ready!(self.stream.poll_capacity(cx)) {
                        Some(more) => more.map(|_| false),
                        None => Ok(true),
                    },
                    capacity => {
                        let now = self.rest.split_to(capacity.min(self.rest.len()));
                        self.stream.send_data(now, false).map(|()| false)
                    }
                }
            };
            if sent.unwrap_or(true) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// What a daemon answers.
#[derive(Debug)]
pub struct Answer {
    stream: RecvStream,
    /// Whether trailers are yet to come.
    data: bool,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // Of a stream that has ended meanwhile nobody asks for more.
                    let _ended = self.stream.flow_control().release_capacity(bytes.len());
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error)))),
                None => self.data = false,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(broken)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// The transport's error: it has a source, which no daemon's status has.
fn broken(error: h2::Error) -> Status {
    let mut status = Status::unavailable(error.to_string());
    status.set_source(Arc::new(error));
    status
}

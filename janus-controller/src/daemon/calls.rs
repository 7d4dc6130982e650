//! Calls to one daemon: janus.v1 as the port [`Daemon`] has it, each bounded in time.

use std::time::Duration;

use janus_proto::{rpc, v1};
use prost::Message;
use tonic::{Code, Request, Status};

use super::connect::Link;
use crate::reconcile::port::{CallError, Daemon, Lost, Refused, State};

/// A daemon answers within ten seconds, with what there is by then.
const DEADLINE: Duration = Duration::from_secs(12);
/// A whole state is told at once; so long for a slow network.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);
/// Units that a daemon may tell of: twice what one holds.
const MOST_UNITS: u32 = 2048;
/// Bytes of them all. An honest daemon tells of a unit in hundreds; one that is not should not fill our memory.
const MOST_BYTES: usize = 32 << 20;

/// A connected daemon.
#[derive(Clone, Debug)]
pub struct Janusd {
    link: Link,
}

impl Janusd {
    /// Over a connection that stands.
    pub fn new(link: Link) -> Janusd {
        Janusd { link }
    }
}

impl Daemon for Janusd {
    async fn closed(&self) {
        self.link.closed().await;
    }

    async fn state(&self, digest: Vec<u8>) -> Result<State, CallError> {
        let mut client = self.link.client.clone();
        within(LOOK_DEADLINE, async move {
            let mut stream = client.get_guard_state(v1::GetGuardStateRequest { digest }).await?.into_inner();
            let Some(first) = stream.message().await? else { return Err(broken("a state without a header")) };
            let mut gathered = Gathered::beginning_with(first)?;
            while let Some(message) = stream.message().await? {
                gathered.take(message)?;
            }
            gathered.whole()
        })
        .await
    }

    async fn create(&self, request: v1::CreateGuardRequest) -> Result<v1::GuardState, CallError> {
        let mut client = self.link.client.clone();
        within(DEADLINE, async move {
            let response = client.create_guard(with_deadline(request)).await?.into_inner();
            response.state.ok_or_else(|| broken("an answer without a state"))
        })
        .await
    }

    async fn destroy(&self, request: v1::DestroyGuardRequest) -> Result<bool, CallError> {
        let mut client = self.link.client.clone();
        within(DEADLINE, async move { Ok(client.destroy_guard(with_deadline(request)).await?.into_inner().lifted) })
            .await
    }
}

/// A state that is being told.
struct Gathered {
    header: v1::StateHeader,
    promised: usize,
    guards: Vec<v1::GuardState>,
    bytes: usize,
}

impl Gathered {
    fn beginning_with(message: v1::GetGuardStateResponse) -> Result<Gathered, Failure> {
        let Some(v1::get_guard_state_response::Part::Header(header)) = message.part else {
            return Err(broken("a state without a header"));
        };
        let promised = if header.unchanged { 0 } else { header.guards };
        if promised > MOST_UNITS {
            return Err(broken("more units than any node has"));
        }
        Ok(Gathered { promised: promised as usize, bytes: header.encoded_len(), header, guards: Vec::new() })
    }

    fn take(&mut self, message: v1::GetGuardStateResponse) -> Result<(), Failure> {
        let Some(v1::get_guard_state_response::Part::Guard(guard)) = message.part else {
            return Err(broken("a state with two headers"));
        };
        self.bytes = self.bytes.saturating_add(guard.encoded_len());
        if self.guards.len() >= self.promised {
            return Err(broken("a state with more in it than it promised"));
        }
        if self.bytes > MOST_BYTES {
            return Err(broken("a state larger than any node's"));
        }
        self.guards.push(guard);
        Ok(())
    }

    fn whole(self) -> Result<State, Failure> {
        if self.guards.len() < self.promised {
            return Err(broken("a state that broke off"));
        }
        Ok(State { header: self.header, guards: self.guards })
    }
}

/// The daemon is told how long we wait.
fn with_deadline<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.set_timeout(DEADLINE);
    request
}

async fn within<T>(deadline: Duration, call: impl Future<Output = Result<T, Failure>>) -> Result<T, CallError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failure(error))) => Err(error),
        Err(_elapsed) => {
            Err(CallError::Lost(Lost { word: "late", text: format!("no answer within {} s", deadline.as_secs()) }))
        }
    }
}

struct Failure(CallError);

fn broken(text: &str) -> Failure {
    Failure(CallError::Lost(Lost { word: "malformed", text: text.to_owned() }))
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let message = status.message().to_owned();
        let cause = match status.code() {
            // The transport's own: no daemon said it.
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled if is_transport(&status) => {
                return Failure(CallError::Lost(Lost { word: "broken", text: message }));
            }
            Code::DeadlineExceeded | Code::Cancelled => {
                return Failure(CallError::Lost(Lost { word: "late", text: message }));
            }
            Code::InvalidArgument => Refused::Invalid,
            Code::FailedPrecondition => precondition(&status),
            Code::ResourceExhausted => Refused::Limit,
            Code::Unavailable => Refused::Draining,
            Code::NotFound => Refused::NotThere,
            _ => Refused::Other,
        };
        Failure(CallError::Refused { cause, message })
    }
}

fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Which precondition, by the details.
fn precondition(status: &Status) -> Refused {
    let details = rpc::Status::decode(status.details()).ok().into_iter().flat_map(|status| status.details);
    let refusal = details
        .filter(|any| any.type_url.ends_with("/janus.v1.Refusal"))
        .find_map(|any| v1::Refusal::decode(any.value.as_slice()).ok());
    match refusal.map(|refusal| refusal.cause()) {
        Some(v1::refusal::Cause::StaleEpoch) => Refused::StaleEpoch,
        Some(v1::refusal::Cause::StaleGeneration | v1::refusal::Cause::AnotherSpec) => Refused::StaleGeneration,
        Some(v1::refusal::Cause::WrongNode) => Refused::WrongNode,
        Some(v1::refusal::Cause::KernelLacksFeature) => Refused::Kernel,
        Some(v1::refusal::Cause::Unspecified) | None => Refused::Other,
    }
}

#[cfg(test)]
mod tests {
    use v1::get_guard_state_response::Part;

    use super::*;

    fn message(part: Part) -> v1::GetGuardStateResponse {
        v1::GetGuardStateResponse { part: Some(part) }
    }

    fn header(guards: u32) -> v1::GetGuardStateResponse {
        message(Part::Header(v1::StateHeader { guards, ..Default::default() }))
    }

    fn guard(bytes: usize) -> v1::GetGuardStateResponse {
        let problems = vec![v1::Problem { message: "x".repeat(bytes), ..Default::default() }];
        message(Part::Guard(v1::GuardState { problems, ..Default::default() }))
    }

    /// How a state ends: the number of its units, or what is wrong with it.
    fn told(messages: impl IntoIterator<Item = v1::GetGuardStateResponse>) -> Result<usize, String> {
        let mut messages = messages.into_iter();
        let gathered = Gathered::beginning_with(messages.next().unwrap()).and_then(|mut gathered| {
            messages.try_for_each(|message| gathered.take(message))?;
            gathered.whole()
        });
        gathered.map(|state| state.guards.len()).map_err(|Failure(error)| error.to_string())
    }

    #[test]
    fn a_state_is_what_its_header_promised() {
        assert_eq!(told([header(2), guard(1), guard(1)]), Ok(2));
        assert!(told([header(2), guard(1)]).unwrap_err().contains("broke off"));
        assert!(told([header(1), guard(1), guard(1)]).unwrap_err().contains("promised"));
        assert!(told([header(1), header(1)]).unwrap_err().contains("two headers"));
        assert!(told([guard(1)]).unwrap_err().contains("without a header"));
        let unchanged = v1::StateHeader { unchanged: true, guards: 7, ..Default::default() };
        assert_eq!(told([message(Part::Header(unchanged))]), Ok(0));
    }

    #[test]
    fn a_daemon_does_not_fill_our_memory() {
        assert!(told([header(MOST_UNITS + 1)]).unwrap_err().contains("more units"));
        let messages = [header(MOST_UNITS)].into_iter().chain(std::iter::repeat_with(|| guard(1 << 20)).take(100));
        assert!(told(messages).unwrap_err().contains("larger"));
    }
}

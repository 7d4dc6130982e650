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
/// Bytes of them all, as we keep them. An honest daemon tells of a unit in hundreds; one that is not should not fill our
/// memory.
const MOST_BYTES: usize = 32 << 20;
/// What a daemon tells of one unit; more is not kept, for an entry that is empty takes two bytes on the wire and a hundred
/// here.
const MOST_CONTAINERS: usize = 256;
const MOST_PROBLEMS: usize = 20;
/// Words of features that are looked at.
const MOST_FEATURES: usize = 32;
/// Bytes of a container's ID, of a UID, of a name. Longer ones are nobody's.
const LONGEST_ID: usize = 128;
/// Bytes of a text for people: those that a daemon sends.
const LONGEST_TEXT: usize = 1024;

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
            kept(response.state.ok_or_else(|| broken("an answer without a state"))?)
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
        let Some(v1::get_guard_state_response::Part::Header(mut header)) = message.part else {
            return Err(broken("a state without a header"));
        };
        header.features.retain(|word| word.len() <= LONGEST_ID);
        header.features.truncate(MOST_FEATURES);
        header.features.shrink_to_fit();
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
        if self.guards.len() >= self.promised {
            return Err(broken("a state with more in it than it promised"));
        }
        let guard = kept(guard)?;
        self.bytes = self.bytes.saturating_add(weight(&guard));
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

/// A unit without what no honest daemon says, and without what takes more room than it says.
fn kept(mut state: v1::GuardState) -> Result<v1::GuardState, Failure> {
    if let Some(guard) = &mut state.guard {
        if guard.uid.len() > LONGEST_ID {
            return Err(broken("a unit whose guard has no UID of ours"));
        }
        [&mut guard.namespace, &mut guard.name].into_iter().for_each(|text| cut(text, LONGEST_TEXT));
    }
    if let Some(pod) = &mut state.pod {
        if pod.uid.len() > LONGEST_ID {
            return Err(broken("a unit whose pod has no UID of ours"));
        }
        let texts = [&mut pod.cgroup_uid, &mut pod.namespace, &mut pod.name];
        texts.into_iter().for_each(|text| cut(text, LONGEST_TEXT));
    }
    state.containers.retain(|container| container.id.len() <= LONGEST_ID);
    state.containers.truncate(MOST_CONTAINERS);
    state.containers.shrink_to_fit();
    state.containers.iter_mut().for_each(|container| cut(&mut container.name, LONGEST_TEXT));
    state.problems.truncate(MOST_PROBLEMS);
    state.problems.shrink_to_fit();
    for problem in &mut state.problems {
        let v1::Problem { reason, message, container, subject, path, blocking: _ } = problem;
        [reason, message, container, subject, path].into_iter().for_each(|text| cut(text, LONGEST_TEXT));
    }
    // People ask the daemon for them; nothing here reads them.
    state.counters = None;
    Ok(state)
}

fn cut(text: &mut String, longest: usize) {
    text.truncate(text.floor_char_boundary(longest));
    text.shrink_to_fit();
}

/// Bytes that a unit takes here: an empty entry takes room too.
fn weight(state: &v1::GuardState) -> usize {
    size_of_val(state) + size_of_val(&*state.containers) + size_of_val(&*state.problems) + state.encoded_len()
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
            // No daemon says that of a call: it is our own limit of an answer.
            Code::OutOfRange => {
                return Failure(CallError::Lost(Lost { word: "malformed", text: message }));
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
    fn entries_that_are_empty_take_room_too() {
        let state = v1::GuardState {
            problems: vec![v1::Problem::default(); 100_000],
            containers: vec![v1::ContainerState::default(); 100_000],
            ..Default::default()
        };
        let Ok(it) = kept(state.clone()) else { panic!("refused") };
        assert_eq!((it.problems.len(), it.problems.capacity()), (MOST_PROBLEMS, MOST_PROBLEMS));
        assert_eq!((it.containers.len(), it.containers.capacity()), (MOST_CONTAINERS, MOST_CONTAINERS));
        assert!(weight(&it) >= MOST_PROBLEMS * size_of::<v1::Problem>(), "{}", weight(&it));
        // A thousandth of that on the wire.
        let messages = std::iter::once(header(MOST_UNITS));
        let messages = messages.chain(std::iter::repeat_n(message(Part::Guard(it)), MOST_UNITS as usize));
        assert!(told(messages).unwrap_err().contains("larger"));
    }

    #[test]
    fn texts_are_bounded_and_ids_that_are_too_long_are_nobodys() {
        let long = "\u{e9}".repeat(1 << 16);
        let id = |length: usize| v1::ContainerState { id: "x".repeat(length), ..Default::default() };
        let problem = v1::Problem { message: long.clone(), path: long.clone(), ..Default::default() };
        let state = v1::GuardState {
            containers: vec![id(LONGEST_ID), id(LONGEST_ID + 1)],
            problems: vec![problem],
            ..Default::default()
        };
        let Ok(it) = kept(state) else { panic!("refused") };
        assert_eq!(it.containers, [id(LONGEST_ID)]);
        assert!(it.problems[0].message.capacity() <= LONGEST_TEXT && it.problems[0].path.capacity() <= LONGEST_TEXT);
        let guard = Some(v1::GuardRef { uid: long.clone(), ..Default::default() });
        assert!(kept(v1::GuardState { guard, ..Default::default() }).is_err());
        let pod = Some(v1::PodRef { uid: long.clone(), ..Default::default() });
        assert!(kept(v1::GuardState { pod, ..Default::default() }).is_err());
        let features = [vec![long], vec![String::new(); 100_000]].concat();
        let header = message(Part::Header(v1::StateHeader { features, ..Default::default() }));
        let Ok(gathered) = Gathered::beginning_with(header) else { panic!("refused") };
        assert_eq!(gathered.header.features.capacity(), MOST_FEATURES);
    }

    #[test]
    fn a_daemon_does_not_fill_our_memory() {
        assert!(told([header(MOST_UNITS + 1)]).unwrap_err().contains("more units"));
        let problems = vec![v1::Problem { message: "x".repeat(LONGEST_TEXT), ..Default::default() }; MOST_PROBLEMS];
        let guard = v1::GuardState { problems, ..Default::default() };
        let messages = std::iter::once(header(MOST_UNITS));
        let messages = messages.chain(std::iter::repeat_n(message(Part::Guard(guard)), MOST_UNITS as usize));
        assert!(told(messages).unwrap_err().contains("larger"));
    }
}

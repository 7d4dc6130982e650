//! The wire: package `janus.v1` over gRPC.
//!
//! Flow: a connection is let in ([`entrance`], [`tls`]), a message is checked by [`crate::wire`], the registry is asked, and its answer is
//! told ([`tell`], [`status`]). Knows the registry and the relay of decisions; of guards only what they report.
//!
//! Nothing here waits for a guard but as a future that can be dropped: a call that takes too long is answered with how
//! things stand.

pub mod entrance;
mod status;
mod tell;
pub mod tls;

use std::hash::RandomState;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::Stream;
use futures::stream;
use janus_proto::v1;
use janus_proto::v1::janusd_server::Janusd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Response, Status};

use crate::events::relay::{Interest, Reader, Relay, Told};
use crate::policy::{Event, Outcome};
use crate::registry::{Bounds, Denied, Registry, UnitState};
use crate::wire::{Create, Destroy};

/// How long a call waits for a guard to be in force, or to be lifted.
const PATIENCE: Duration = Duration::from_secs(10);
/// WatchEvents streams at once.
const WATCHERS: usize = 16;
/// GetGuardState streams at once: each holds the whole state.
const STATES: usize = 8;
/// The largest message that is read, bytes. The API server's own bound for an object is smaller.
pub const LARGEST_MESSAGE: usize = 2 * 1024 * 1024;
/// What this daemon knows: see the proto.
const GUARD_V1: &str = "guard-v1";
const AUDIT_LOG: &str = "audit-log";

/// What of the daemon does not change while it runs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The node's name.
    pub node: String,
    /// How many guards are taken.
    pub bounds: Bounds,
    /// The kernel's audit log can be written.
    pub audits: bool,
    /// When this run began.
    pub started: SystemTime,
}

/// `janus.v1.Janusd`.
#[derive(Debug)]
pub struct Service {
    registry: Registry,
    relay: Relay,
    facts: Facts,
    watchers: Arc<Semaphore>,
    states: Arc<Semaphore>,
    keys: RandomState,
    /// True once streams are to end.
    closing: watch::Receiver<bool>,
}

impl Service {
    /// Serves this. Streams end once `closing` is true.
    pub fn new(registry: Registry, relay: Relay, facts: Facts, closing: watch::Receiver<bool>) -> Service {
        Service {
            registry,
            relay,
            facts,
            watchers: Arc::new(Semaphore::new(WATCHERS)),
            states: Arc::new(Semaphore::new(STATES)),
            keys: RandomState::new(),
            closing,
        }
    }

    fn header(&self, epoch: u64, draining: bool, guards: usize) -> v1::StateHeader {
        let taken = u32::try_from(guards).unwrap_or(u32::MAX);
        let mut features = vec![GUARD_V1.to_owned()];
        if self.facts.audits {
            features.push(AUDIT_LOG.to_owned());
        }
        v1::StateHeader {
            node: self.facts.node.clone(),
            digest: Vec::new(),
            unchanged: false,
            guards: taken,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features,
            draining,
            epoch,
            limits: Some(v1::Limits {
                guards: self.facts.bounds.guards,
                guards_free: self.facts.bounds.guards.saturating_sub(taken),
                guards_of_namespace: self.facts.bounds.of_namespace,
            }),
            started_unix_nanos: tell::nanoseconds(self.facts.started),
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Janusd for Service {
    async fn create_guard(
        &self,
        request: Request<v1::CreateGuardRequest>,
    ) -> Result<Response<v1::CreateGuardResponse>, Status> {
        let patience = patience(&request);
        let create = Create::try_from(request.into_inner()).map_err(|error| status::invalid(&error))?;
        create.caller.check_node(&self.facts.node).map_err(|error| status::wrong_node(&error))?;
        let unit = create.unit.clone();
        let state = match tokio::time::timeout(patience, self.registry.create(create)).await {
            Ok(answer) => answer.map_err(|denied| status::denied(&denied))?,
            Err(_) => self.registry.look(unit).await.ok_or_else(|| status::denied(&Denied::Lifted))?,
        };
        Ok(Response::new(v1::CreateGuardResponse { state: Some(tell::unit(&state)) }))
    }

    async fn destroy_guard(
        &self,
        request: Request<v1::DestroyGuardRequest>,
    ) -> Result<Response<v1::DestroyGuardResponse>, Status> {
        let patience = patience(&request);
        let destroy = Destroy::try_from(request.into_inner()).map_err(|error| status::invalid(&error))?;
        destroy.caller.check_node(&self.facts.node).map_err(|error| status::wrong_node(&error))?;
        let lifted = match tokio::time::timeout(patience, self.registry.destroy(destroy)).await {
            Ok(answer) => answer.map(|()| true).map_err(|denied| status::denied(&denied))?,
            Err(_) => false,
        };
        Ok(Response::new(v1::DestroyGuardResponse { lifted }))
    }

    type GetGuardStateStream = Answers<v1::GetGuardStateResponse>;

    async fn get_guard_state(
        &self,
        request: Request<v1::GetGuardStateRequest>,
    ) -> Result<Response<Self::GetGuardStateStream>, Status> {
        let permit = admit(&self.states, "GetGuardState streams")?;
        let v1::GetGuardStateRequest { digest: known } = request.into_inner();
        let all = self.registry.all().await.ok_or_else(|| status::denied(&Denied::Ended))?;
        let guards: Vec<v1::GuardState> = all.units.iter().map(tell::unit).collect();
        let mut header = self.header(all.epoch, all.draining, guards.len());
        let digest = tell::digest(&self.keys, &header, &guards);
        header.unchanged = digest == known;
        header.digest = digest;
        let guards = if header.unchanged {
            header.guards = 0;
            Vec::new()
        } else {
            guards
        };
        let header = v1::get_guard_state_response::Part::Header(header);
        let guards = guards.into_iter().map(v1::get_guard_state_response::Part::Guard);
        let parts: Vec<_> = std::iter::once(header).chain(guards).collect();
        let answers = parts.into_iter().map(move |part| {
            let _held = &permit;
            Ok(v1::GetGuardStateResponse { part: Some(part) })
        });
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }

    type WatchEventsStream = Answers<v1::WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let permit = admit(&self.watchers, "WatchEvents streams")?;
        let interest = interest(request.into_inner())?;
        if let Some(pod) = &interest.pod {
            let all = self.registry.all().await.ok_or_else(|| status::denied(&Denied::Ended))?;
            if !all.units.iter().any(|unit| is_of_interest(&interest, unit)) {
                return Err(status::no_guard_in(pod));
            }
        }
        let reader = self.relay.watch(interest);
        let watching = Watching { reader, closing: self.closing.clone(), _permit: permit };
        let answers = stream::unfold(watching, |mut watching| async move {
            let told = tokio::select! {
                told = watching.reader.next() => told?,
                // Its sender lives as long as the server; were it gone, the end would be near as well.
                _ = watching.closing.wait_for(|closing| *closing) => return None,
            };
            let part = match told {
                Told::Line(line) => v1::watch_events_response::Part::Decision(tell::decision(&line)),
                Told::Missed(count) => v1::watch_events_response::Part::Missed(v1::Missed { count }),
            };
            Some((Ok(v1::WatchEventsResponse { part: Some(part) }), watching))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

struct Watching {
    reader: Reader,
    closing: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

/// By its names.
fn is_of_interest(interest: &Interest, unit: &UnitState) -> bool {
    let Interest { namespace, guard, pod, events: _, outcomes: _ } = interest;
    let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    is(namespace, unit.pod.namespace()) && is(pod, unit.pod.name()) && is(guard, &unit.guard.name)
}

fn admit(places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Status> {
    places.clone().try_acquire_owned().map_err(|_| status::busy(what))
}

/// How long a call may take: so that its answer still comes before the caller's own deadline.
fn patience<T>(request: &Request<T>) -> Duration {
    let asked = request.metadata().get("grpc-timeout").and_then(|it| it.to_str().ok()).and_then(grpc_timeout);
    asked.map_or(PATIENCE, |asked| (asked / 10 * 9).min(PATIENCE))
}

/// A `grpc-timeout`: at most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 =
        digits.parse().ok().filter(|_| digits.len() <= 8 && digits.bytes().all(|it| it.is_ascii_digit()))?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn interest(request: v1::WatchEventsRequest) -> Result<Interest, Status> {
    let v1::WatchEventsRequest { namespace, guard, pod, events, responses } = request;
    for (field, value) in [("guard", &guard), ("pod", &pod)] {
        if namespace.is_empty() && !value.is_empty() {
            return Err(status::invalid_field(field, "names one in a namespace, which has to be set"));
        }
    }
    let event = |number| match v1::Event::try_from(number) {
        Ok(v1::Event::Open) => Ok(Event::Open),
        Ok(v1::Event::Access) => Ok(Event::Access),
        Ok(v1::Event::Execute) => Ok(Event::Execute),
        Ok(v1::Event::Unspecified) | Err(_) => Err(status::invalid_field("events", "must be open, access or execute")),
    };
    let outcome = |number| match v1::Response::try_from(number) {
        Ok(v1::Response::Allow) => Ok(Outcome::Allow),
        Ok(v1::Response::Deny) => Ok(Outcome::Deny),
        Ok(v1::Response::Audit) => Ok(Outcome::Audit),
        Ok(v1::Response::Unspecified) | Err(_) => {
            Err(status::invalid_field("responses", "must be allow, deny or audit"))
        }
    };
    let set = |text: String| Some(text).filter(|text| !text.is_empty());
    // There are three of each: more are repetitions.
    Ok(Interest {
        namespace: set(namespace),
        guard: set(guard),
        pod: set(pod),
        events: events.into_iter().take(16).map(event).collect::<Result<_, _>>()?,
        outcomes: responses.into_iter().take(16).map(outcome).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_grpc_writes_them() {
        assert_eq!(grpc_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        for wrong in ["", "S", "5", "5s", "-5S", "+5S", "123456789S", "5Sé", "é"] {
            assert_eq!(grpc_timeout(wrong), None, "{wrong}");
        }
        let mut request = Request::new(());
        assert_eq!(patience(&request), PATIENCE);
        request.set_timeout(Duration::from_secs(1));
        assert_eq!(patience(&request), Duration::from_millis(900));
        request.set_timeout(Duration::from_secs(100));
        assert_eq!(patience(&request), PATIENCE);
    }
}

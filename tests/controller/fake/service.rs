//! `janus.v1.Janusd`, for whichever daemon the connection came to.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, stream};
use janus_proto::v1;
use janus_proto::v1::get_guard_state_response::Part;
use janus_proto::v1::janusd_server::Janusd;
use janusd::registry::Denied;
use janusd::wire::{Create, Destroy};
use tonic::{Code, Request, Response, Status};

use super::books::{Books, Look};
use super::calls::{Call, Verb};
use super::door::At;
use super::temper::{Break, Garbage, Hang, Temper};
use super::{Daemon, Shared, refuse};

/// How long a call waits for a guard to be in force, or to be lifted.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Service {
    shared: Arc<Shared>,
}

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Service {
        Service { shared }
    }

    /// Specs that are alike are one.
    fn share(&self, create: &mut Create) {
        let mut specs = self.shared.specs.lock();
        match specs.get(create.unit.guard.as_str()) {
            Some(known) if *known == create.sent => create.sent = known.clone(),
            _ => drop(specs.insert(create.unit.guard.to_string(), create.sent.clone())),
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
        let (daemon, patience) = (called(&request)?, patience(&request));
        let temper = daemon.arrival().await;
        let request = request.into_inner();
        let mut call = Named::of(Verb::Create, &request.caller, &request.guard, &request.pod);
        let mut create = match Create::try_from(request) {
            Ok(create) => create,
            Err(invalid) => return Err(daemon.refuse(call, refuse::invalid(&invalid))),
        };
        self.share(&mut create);
        call.epoch = create.caller.epoch();
        daemon.judge(call, |books, now| {
            create.caller.check_node(books.node()).map_err(|wrong| refuse::wrong_node(&wrong))?;
            books.create(&create, now).map_err(|denied| refuse::denied(&denied))
        })?;
        let answer = daemon.settled(patience, |books, now| books.created(&create.unit, now)).await;
        let answer = answer.unwrap_or_else(|| daemon.books.lock().look(&create.unit).ok_or(Denied::Lifted));
        tokio::time::sleep(temper.after).await;
        let state = answer.map_err(|denied| refuse::denied(&denied))?;
        let state = Some(state).filter(|_| temper.garbage != Some(Garbage::NoState));
        Ok(Response::new(v1::CreateGuardResponse { state }))
    }

    async fn destroy_guard(
        &self,
        request: Request<v1::DestroyGuardRequest>,
    ) -> Result<Response<v1::DestroyGuardResponse>, Status> {
        let (daemon, patience) = (called(&request)?, patience(&request));
        let temper = daemon.arrival().await;
        let request = request.into_inner();
        let call = Named::of(Verb::Destroy, &request.caller, &request.guard, &request.pod);
        let destroy = match Destroy::try_from(request) {
            Ok(destroy) => destroy,
            Err(invalid) => return Err(daemon.refuse(call, refuse::invalid(&invalid))),
        };
        daemon.judge(call, |books, now| {
            destroy.caller.check_node(books.node()).map_err(|wrong| refuse::wrong_node(&wrong))?;
            books.destroy(&destroy, now).map_err(|denied| refuse::denied(&denied))
        })?;
        let lifted = daemon.settled(patience, |books, now| books.destroyed(&destroy.unit, now)).await.is_some();
        tokio::time::sleep(temper.after).await;
        Ok(Response::new(v1::DestroyGuardResponse { lifted }))
    }

    type GetGuardStateStream = Answers<v1::GetGuardStateResponse>;

    async fn get_guard_state(
        &self,
        request: Request<v1::GetGuardStateRequest>,
    ) -> Result<Response<Self::GetGuardStateStream>, Status> {
        let daemon = called(&request)?;
        let temper = daemon.arrival().await;
        let v1::GetGuardStateRequest { digest } = request.into_inner();
        let (header, guards) = {
            let mut books = daemon.books.lock();
            let (header, guards) = books.state(&digest, Instant::now());
            books.calls.counts.states += 1;
            books.calls.counts.unchanged += u64::from(header.unchanged);
            (header, guards)
        };
        tokio::time::sleep(temper.after).await;
        let parts = match temper.garbage {
            Some(garbage) => nonsense(garbage, header, guards),
            None => {
                std::iter::once(Part::Header(header)).chain(guards.into_iter().map(Part::Guard)).map(Some).collect()
            }
        };
        let answers = stream::iter(parts).map(|part| Ok(v1::GetGuardStateResponse { part }));
        Ok(Response::new(match temper.breaks {
            None => Box::pin(answers),
            Some(how) => broken(daemon, how, answers),
        }))
    }

    type WatchEventsStream = Answers<v1::WatchEventsResponse>;

    async fn watch_events(
        &self,
        _: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Err(Status::unimplemented("a fake makes no decisions"))
    }
}

fn called<T>(request: &Request<T>) -> Result<Arc<Daemon>, Status> {
    let at = request.extensions().get::<At>().ok_or_else(|| Status::internal("a call without a connection"))?;
    Ok(at.0.clone())
}

/// As janusd has it: an answer comes before the caller's own deadline.
fn patience<T>(request: &Request<T>) -> Duration {
    let asked = request.metadata().get("grpc-timeout").and_then(|it| it.to_str().ok()).and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    asked.map_or(PATIENCE, |asked| (asked / 10 * 9).min(PATIENCE))
}

/// What a call is about, before anything of it is checked.
struct Named {
    verb: Verb,
    guard: String,
    pod: String,
    epoch: u64,
    generation: i64,
}

impl Named {
    fn of(verb: Verb, caller: &Option<v1::Caller>, guard: &Option<v1::GuardRef>, pod: &Option<v1::PodRef>) -> Named {
        Named {
            verb,
            guard: guard.as_ref().map(|it| it.uid.clone()).unwrap_or_default(),
            pod: pod.as_ref().map(|it| it.uid.clone()).unwrap_or_default(),
            epoch: caller.as_ref().map(|it| it.epoch).unwrap_or_default(),
            generation: guard.as_ref().map(|it| it.generation).unwrap_or_default(),
        }
    }
}

impl Daemon {
    /// A call has come: how the daemon is when it looks at it.
    async fn arrival(&self) -> Temper {
        let before = self.current().before;
        tokio::time::sleep(before).await;
        loop {
            let turned = self.turned.notified();
            let temper = self.current();
            if temper.hang != Hang::Calls {
                return temper;
            }
            turned.await;
        }
    }

    /// Judges a call, and notes what came of it: one after the other, of all daemons.
    fn judge(&self, call: Named, act: impl FnOnce(&mut Books, Instant) -> Result<(), Status>) -> Result<(), Status> {
        self.alter(|books| {
            let mut reigns = self.shared.reigns.lock();
            let at = Instant::now();
            let judged = act(books, at);
            let Named { verb, guard, pod, epoch, generation } = call;
            let (code, message) = match &judged {
                Ok(()) => (Code::Ok, String::new()),
                Err(status) => (status.code(), status.message().to_owned()),
            };
            let (number, node) = (reigns.number(), self.node.clone());
            let call = Call { number, at, node, verb, guard, pod, epoch, generation, code, message };
            reigns.note(&call);
            books.calls.note(call);
            judged
        })
    }

    fn refuse(&self, call: Named, status: Status) -> Status {
        // It is the one that was given.
        let _same = self.judge(call, |_, _| Err(status.clone()));
        status
    }

    /// Waits for what becomes of a call; `None`: no longer.
    async fn settled<T>(&self, patience: Duration, mut look: impl FnMut(&mut Books, Instant) -> Look<T>) -> Option<T> {
        let end = tokio::time::Instant::now() + patience;
        loop {
            let turned = self.turned.notified();
            let until = match look(&mut self.books.lock(), Instant::now()) {
                Look::Settled(it) => return Some(it),
                Look::Waits(until) => until.map_or(end, |until| end.min(until.into())),
            };
            tokio::select! {
                () = turned => {}
                () = tokio::time::sleep_until(until) => {
                    if until == end {
                        return None;
                    }
                    self.shared.changes.send_modify(|changes| *changes += 1);
                }
            }
        }
    }
}

/// The beginning of an answer, and then not the rest.
fn broken(
    daemon: Arc<Daemon>,
    how: Break,
    answers: impl Stream<Item = Result<v1::GetGuardStateResponse, Status>> + Send + 'static,
) -> Answers<v1::GetGuardStateResponse> {
    let after = match how {
        Break::Fails(after) | Break::Ends(after) | Break::Resets(after) | Break::Stalls(after) => after,
    };
    let end = stream::once(async move {
        match how {
            Break::Fails(_) => Some(Err(Status::internal("the stream breaks"))),
            Break::Ends(_) => None,
            Break::Resets(_) => {
                daemon.cut();
                std::future::pending().await
            }
            Break::Stalls(_) => std::future::pending().await,
        }
    });
    Box::pin(answers.take(after + 1).chain(end.filter_map(std::future::ready)))
}

fn nonsense(garbage: Garbage, mut header: v1::StateHeader, mut guards: Vec<v1::GuardState>) -> Vec<Option<Part>> {
    let odd = |number: usize| {
        let uid = format!("ffffffff-0000-4000-8000-{number:012x}");
        v1::GuardState {
            guard: Some(v1::GuardRef {
                uid: uid.clone(),
                namespace: "nobodys".to_owned(),
                name: "odd".to_owned(),
                generation: 1,
            }),
            pod: Some(v1::PodRef {
                uid,
                cgroup_uid: String::new(),
                namespace: "nobodys".to_owned(),
                name: "odd".to_owned(),
            }),
            phase: v1::GuardPhase::InForce.into(),
            accepted_generation: 1,
            ..Default::default()
        }
    };
    match garbage {
        Garbage::Bytes | Garbage::NoState => {}
        Garbage::NoHeader => return guards.into_iter().chain([odd(0)]).map(|it| Some(Part::Guard(it))).collect(),
        Garbage::TwoHeaders => {
            let parts = guards.into_iter().map(Part::Guard).chain([Part::Header(header.clone())]);
            return std::iter::once(Part::Header(header)).chain(parts).map(Some).collect();
        }
        Garbage::Empty => return vec![None; 10],
        Garbage::Nameless => {
            guards.push(odd(0));
            guards.iter_mut().for_each(|it| (it.guard, it.pod) = (None, None));
        }
        Garbage::Twice => {
            guards.push(odd(0));
            guards.extend_from_within(..);
        }
        Garbage::Numbers => {
            guards.push(odd(0));
            for guard in &mut guards {
                (guard.phase, guard.accepted_generation) = (77, -1);
                if let Some(names) = &mut guard.guard {
                    names.generation = i64::MIN;
                }
            }
        }
        Garbage::Texts => {
            let text = "\u{1b}[2J\n\u{202e}".repeat(10_000);
            (header.version, header.node) = (text.clone(), text.clone());
            let problem = v1::Problem { reason: text.clone(), message: text, blocking: true, ..Default::default() };
            guards.push(v1::GuardState { problems: vec![problem; 20], ..odd(0) });
        }
        Garbage::Digest => header.digest = vec![7; 1 << 20],
        Garbage::Flood(count) => guards.extend((0..count).map(odd)),
        Garbage::Unchanged => {
            (header.unchanged, header.guards) = (true, 0);
            guards.clear();
        }
    }
    if !header.unchanged {
        header.guards = u32::try_from(guards.len()).unwrap();
    }
    std::iter::once(Part::Header(header)).chain(guards.into_iter().map(Part::Guard)).map(Some).collect()
}

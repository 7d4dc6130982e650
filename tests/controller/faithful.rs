//! The fake daemons themselves: over a real connection they do what the proto says of the real one.

use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use janus_proto::v1;
use janus_proto::v1::get_guard_state_response::Part;
use janus_proto::v1::janusd_client::JanusdClient;
use janus_proto::v1::{Refusal, refusal};
use janusd::registry::port::{Failure, Limit};
use prost::Message;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use crate::certificates::{Authority, NAMESPACE, daemon_name};
use crate::controller_tests;
use crate::expected::{Expected, Objects};
use crate::fake::{
    Break, Certificate, Daemon, Fleet, Garbage, Hang, Key, Trouble, Verb, Which, absent, not_gated, wait_until,
};

controller_tests! {
    a_units_life_and_what_does_not_count,
    many_daemons_behind_one_port_do_not_know_of_each_other,
    states_with_digests_pending_problems_and_containers,
    limits_failures_and_draining,
    tempers,
    every_difference_from_what_is_expected_is_seen,
}

const SOON: Duration = Duration::from_secs(15);

/// A controller that does as it is told.
struct Client(JanusdClient<Channel>);

impl Client {
    async fn connect(fleet: &Fleet, daemon: &Daemon, authority: &Authority) -> Result<Client, String> {
        Client::connect_with(fleet, daemon, authority.controller()).await
    }

    async fn connect_with(
        fleet: &Fleet,
        daemon: &Daemon,
        config: std::sync::Arc<rustls::ClientConfig>,
    ) -> Result<Client, String> {
        let connector = TlsConnector::from(config);
        let address = (daemon.ip, fleet.port());
        let connect = tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let name = rustls::pki_types::ServerName::try_from(daemon_name()).unwrap();
                let stream = TcpStream::connect(address).await?;
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://janusd").timeout(Duration::from_secs(12));
        let channel = endpoint.connect_with_connector(connect).await.map_err(|error| format!("{error:?}"))?;
        Ok(Client(JanusdClient::new(channel)))
    }

    async fn create(&mut self, request: v1::CreateGuardRequest) -> Result<v1::GuardState, Status> {
        Ok(self.0.create_guard(request).await?.into_inner().state.unwrap())
    }

    async fn destroy(&mut self, request: v1::DestroyGuardRequest) -> Result<bool, Status> {
        Ok(self.0.destroy_guard(request).await?.into_inner().lifted)
    }

    async fn state(&mut self, digest: &[u8]) -> Result<(v1::StateHeader, Vec<v1::GuardState>), Status> {
        let request = v1::GetGuardStateRequest { digest: digest.to_vec() };
        let mut stream = self.0.get_guard_state(request).await?.into_inner();
        let first = stream.message().await?.and_then(|it| it.part);
        let Some(Part::Header(header)) = first else { return Err(Status::internal("no header")) };
        let mut guards = Vec::new();
        while let Some(message) = stream.message().await? {
            let Some(Part::Guard(guard)) = message.part else { return Err(Status::internal("no guard")) };
            guards.push(guard);
        }
        Ok((header, guards))
    }
}

fn spec(deny: &str) -> v1::GuardSpec {
    v1::GuardSpec {
        containers: Vec::new(),
        subjects: vec![v1::Subject {
            deny: vec![deny.to_owned()],
            events: vec![v1::Event::Open.into()],
            log: v1::LogPolicy::All.into(),
            ..Default::default()
        }],
        log_format: String::new(),
        enforcement: v1::Enforcement::Enforce.into(),
        failure_policy: v1::FailurePolicy::Allow.into(),
    }
}

fn guard(generation: i64) -> Option<v1::GuardRef> {
    Some(v1::GuardRef { uid: "guard-1".into(), namespace: "default".into(), name: "g".into(), generation })
}

fn pod(uid: &str) -> Option<v1::PodRef> {
    let (namespace, name) = ("default".into(), format!("name-of-{uid}"));
    Some(v1::PodRef { uid: uid.into(), cgroup_uid: String::new(), namespace, name })
}

fn caller(epoch: u64, node: &str) -> Option<v1::Caller> {
    Some(v1::Caller { epoch, node: node.into() })
}

fn create(epoch: u64, generation: i64, deny: &str) -> v1::CreateGuardRequest {
    v1::CreateGuardRequest {
        caller: caller(epoch, "node-1"),
        guard: guard(generation),
        pod: pod("pod-1"),
        spec: Some(spec(deny)),
        container_ids: Vec::new(),
    }
}

fn destroy(epoch: u64, generation: i64) -> v1::DestroyGuardRequest {
    v1::DestroyGuardRequest { caller: caller(epoch, "node-1"), guard: guard(generation), pod: pod("pod-1") }
}

/// Why a call was refused, of FAILED_PRECONDITION.
fn cause(status: &Status) -> refusal::Cause {
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let details = janus_proto::rpc::Status::decode(status.details()).unwrap().details;
    assert_eq!(details[0].type_url, "type.googleapis.com/janus.v1.Refusal");
    Refusal::decode(&details[0].value[..]).unwrap().cause()
}

fn run<T>(test: impl AsyncFnOnce(&Fleet, &Authority) -> T) -> T {
    let authority = Authority::new();
    let fleet = Fleet::start(Some(&authority));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(4 * SOON, test(&fleet, &authority)).await.expect("an end in time") })
}

fn a_units_life_and_what_does_not_count() {
    run(async |fleet, authority| {
        let daemon = fleet.add("node-1");
        let mut client = Client::connect(fleet, &daemon, authority).await.unwrap();
        let state = client.create(create(2, 3, "/a")).await.unwrap();
        assert_eq!(state.phase(), v1::GuardPhase::InForce);
        assert_eq!((state.guard.unwrap().generation, state.accepted_generation), (3, 3));

        let refused = [
            (create(1, 3, "/a"), refusal::Cause::StaleEpoch),
            (create(2, 2, "/a"), refusal::Cause::StaleGeneration),
            (create(2, 3, "/b"), refusal::Cause::AnotherSpec),
            (v1::CreateGuardRequest { caller: caller(2, "node-2"), ..create(2, 3, "/a") }, refusal::Cause::WrongNode),
        ];
        for (request, because) in refused {
            assert_eq!(cause(&client.create(request).await.unwrap_err()), because);
        }
        let nobody = v1::CreateGuardRequest { caller: None, ..create(2, 3, "/a") };
        let status = client.create(nobody).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "caller: is required"));
        // The same generation otherwise, by a new leader.
        client.create(create(3, 3, "/b")).await.unwrap();
        assert_eq!(cause(&client.destroy(destroy(2, 3)).await.unwrap_err()), refusal::Cause::StaleEpoch);

        let (key, held) = daemon.held().pop_first().unwrap();
        assert_eq!(key, Key::new("guard-1", "pod-1"));
        assert_eq!((held.generation, held.epoch, held.spec.unwrap().subjects[0].deny[0].as_str()), (3, 3, "/b"));
        assert!(client.destroy(destroy(3, 3)).await.unwrap());
        assert!(client.destroy(destroy(3, 3)).await.unwrap());
        assert!(daemon.held().is_empty());
        let calls = daemon.calls();
        assert_eq!(calls.iter().filter(|call| call.code == Code::Ok).count(), 4);
        assert_eq!(calls.len(), 10);
        assert_eq!(calls.last().map(|call| (call.verb, call.epoch)), Some((Verb::Destroy, 3)));
        assert!(fleet.usurped().is_empty());
    });
}

fn many_daemons_behind_one_port_do_not_know_of_each_other() {
    run(async |fleet, authority| {
        let daemons: Vec<_> = (0..300).map(|number| fleet.add(&format!("node-{number}"))).collect();
        for daemon in daemons.iter().step_by(50) {
            let mut client = Client::connect(fleet, daemon, authority).await.unwrap();
            let caller = caller(1, &daemon.node);
            client.create(v1::CreateGuardRequest { caller, ..create(1, 1, "/a") }).await.unwrap();
            assert_eq!(client.state(&[]).await.unwrap().0.node, daemon.node);
        }
        let holding: Vec<_> = daemons.iter().filter(|daemon| !daemon.held().is_empty()).collect();
        assert_eq!(holding.len(), 6);
    });
}

fn states_with_digests_pending_problems_and_containers() {
    run(async |fleet, authority| {
        let daemon = fleet.add("node-1");
        let mut client = Client::connect(fleet, &daemon, authority).await.unwrap();
        daemon.temper(|temper| temper.settle = Duration::from_millis(300));
        let mut request = create(1, 1, "/a");
        request.spec.as_mut().unwrap().containers = vec!["app".to_owned()];
        let asked = Instant::now();
        let waiting = {
            let mut client = Client(client.0.clone());
            let request = request.clone();
            tokio::spawn(async move { client.create(request).await })
        };
        let pending = async || {
            loop {
                if let Ok(guard) = client.0.clone().get_guard_state(v1::GetGuardStateRequest::default()).await {
                    let mut stream = guard.into_inner();
                    stream.message().await.unwrap();
                    if let Some(v1::GetGuardStateResponse { part: Some(Part::Guard(guard)) }) =
                        stream.message().await.unwrap()
                    {
                        return guard;
                    }
                }
            }
        };
        let guard = pending().await;
        assert_eq!((guard.phase(), guard.accepted_generation), (v1::GuardPhase::Pending, 1));
        assert_eq!(guard.guard.unwrap().generation, 0);
        let state = waiting.await.unwrap().unwrap();
        assert!(asked.elapsed() >= Duration::from_millis(300));
        assert_eq!(state.phase(), v1::GuardPhase::InForce);

        let (header, _) = client.state(&[]).await.unwrap();
        let (same, none) = client.state(&header.digest).await.unwrap();
        assert!(same.unchanged && none.is_empty());
        // Sent again it is no change; a container is one.
        client.create(request.clone()).await.unwrap();
        assert!(client.state(&header.digest).await.unwrap().0.unchanged);
        daemon.start_container("pod-1", "app", "c1");
        daemon.start_container("pod-1", "sidecar", "c2");
        daemon.start_unnamed_container("pod-1", "unknown", "c3");
        let (next, guards) = client.state(&header.digest).await.unwrap();
        assert!(!next.unchanged);
        let names: Vec<_> = guards[0].containers.iter().map(|it| (it.name.as_str(), it.in_force)).collect();
        assert_eq!(names, [("app", true), ("", true)]);
        assert_eq!(guards[0].problems[0].reason, "NameUnknown");
        assert_eq!(guards[0].phase(), v1::GuardPhase::InForce);
        // A call brings the name: it is not selected.
        request.container_ids = vec![v1::ContainerId { name: "unknown".into(), id: "containerd://c3".into() }];
        assert_eq!(client.create(request.clone()).await.unwrap().containers.len(), 1);

        daemon.trouble(Which::pod("pod-1"), absent("/a"));
        let (_, guards) = client.state(&[]).await.unwrap();
        assert_eq!((guards[0].phase(), guards[0].problem_count), (v1::GuardPhase::InForce, 1));
        daemon.trouble(Which::guard("guard-1"), not_gated("/a"));
        let (_, guards) = client.state(&[]).await.unwrap();
        assert_eq!((guards[0].phase(), guards[0].problem_count), (v1::GuardPhase::Degraded, 2));
        assert!(guards[0].problems[0].blocking && !guards[0].problems[1].blocking);
        daemon.no_trouble();
        daemon.stands_in("pod-1", "c1", false);
        assert_eq!(client.state(&[]).await.unwrap().1[0].phase(), v1::GuardPhase::Degraded);
        daemon.end_container("pod-1", "c1");
        assert_eq!(client.state(&[]).await.unwrap().1[0].phase(), v1::GuardPhase::InForce);
    });
}

fn limits_failures_and_draining() {
    run(async |fleet, authority| {
        let daemon = fleet.add("node-1");
        let mut client = Client::connect(fleet, &daemon, authority).await.unwrap();
        let on = |uid: &str| v1::CreateGuardRequest { pod: pod(uid), ..create(1, 1, "/a") };
        daemon.temper(|temper| temper.guards = 1);
        client.create(on("pod-1")).await.unwrap();
        let status = client.create(on("pod-2")).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        daemon.temper(|temper| (temper.guards, temper.draining) = (10, true));
        assert_eq!(client.create(on("pod-2")).await.unwrap_err().code(), Code::Unavailable);
        assert!(client.state(&[]).await.unwrap().0.draining);
        daemon.temper(|temper| temper.draining = false);

        let groups = Failure::Limit { limit: Limit::Groups, at: Some(128), text: "no more groups".to_owned() };
        daemon.trouble(Which::pod("pod-2"), Trouble::Fails(groups));
        assert_eq!(client.create(on("pod-2")).await.unwrap_err().code(), Code::ResourceExhausted);
        let failed = client.state(&[]).await.unwrap().1.remove(1);
        assert_eq!((failed.phase(), failed.problems[0].reason.as_str()), (v1::GuardPhase::Failed, "LimitReached"));
        daemon.no_trouble();
        // It tries again by itself.
        let key = Key::new("guard-1", "pod-2");
        assert!(wait_until(SOON, || daemon.held()[&key].phase == v1::GuardPhase::InForce));

        daemon.temper(|temper| temper.features = Vec::new());
        client.create(on("pod-3")).await.unwrap();
        assert_eq!(fleet.breaches().len(), 1);
    });
}

fn tempers() {
    run(async |fleet, authority| {
        let daemon = fleet.add("node-1");
        let mut client = Client::connect(fleet, &daemon, authority).await.unwrap();
        client.create(create(5, 1, "/a")).await.unwrap();

        daemon.temper(|temper| temper.breaks = Some(Break::Fails(0)));
        assert_eq!(client.state(&[]).await.unwrap_err().message(), "the stream breaks");
        daemon.temper(|temper| temper.breaks = Some(Break::Ends(0)));
        let (header, guards) = client.state(&[]).await.unwrap();
        assert_eq!((header.guards, guards.len()), (1, 0));
        daemon.temper(|temper| temper.breaks = Some(Break::Resets(0)));
        assert!(client.state(&[]).await.is_err());
        daemon.temper(|temper| temper.breaks = None);
        let mut client = Client::connect(fleet, &daemon, authority).await.unwrap();
        daemon.temper(|temper| temper.garbage = Some(Garbage::NoHeader));
        assert!(client.state(&[]).await.is_err());
        daemon.temper(|temper| (temper.garbage, temper.node) = (None, Some("node-9".to_owned())));
        assert_eq!(client.state(&[]).await.unwrap().0.node, "node-9");
        daemon.temper(|temper| (temper.node, temper.hang) = (None, Hang::Calls));
        let hanging = tokio::time::timeout(Duration::from_millis(100), client.state(&[]));
        assert!(hanging.await.is_err());

        daemon.temper(|temper| (temper.hang, temper.down) = (Hang::Nothing, true));
        assert!(client.state(&[]).await.is_err());
        assert!(Client::connect(fleet, &daemon, authority).await.is_err());
        daemon.temper(|temper| temper.down = false);
        daemon.restart();
        let mut client = Client::connect(fleet, &daemon, authority).await.unwrap();
        assert!(client.state(&[]).await.unwrap().1.is_empty());
        // It has seen nobody.
        client.create(create(1, 1, "/a")).await.unwrap();
        assert_eq!(fleet.usurped().len(), 1);

        for wrong in [Certificate::Misnamed, Certificate::Expired, Certificate::Forged] {
            daemon.temper(|temper| temper.certificate = wrong);
            assert!(Client::connect(fleet, &daemon, authority).await.is_err());
        }
        daemon.temper(|temper| temper.certificate = Certificate::Good);
        let mut stranger = Client::connect_with(fleet, &daemon, authority.client(&daemon_name())).await;
        // Of the client's certificate TLS 1.3 tells only afterwards.
        if let Ok(stranger) = &mut stranger {
            assert!(stranger.state(&[]).await.is_err());
        }
        daemon.temper(|temper| temper.garbage = Some(Garbage::Bytes));
        if let Ok(mut client) = Client::connect(fleet, &daemon, authority).await {
            assert!(client.state(&[]).await.is_err());
        }
        assert_eq!(daemon.epoch(), 1);
    });
}

fn every_difference_from_what_is_expected_is_seen() {
    let authority = Authority::new();
    let fleet = Fleet::start(Some(&authority));
    let daemon = fleet.add("node-1");
    let of_janus = json!({ "app.kubernetes.io/name": "janusd" });
    let objects = |selector: serde_json::Value, generation: i64, deny: &str| {
        let spec = json!({ "selector": selector, "subjects": [{ "deny": [deny], "events": ["open"] }] });
        let guard = json!({ "apiVersion": "januscontroller.clustergarage.io/v1alpha1", "kind": "JanusGuard", "spec": spec,
            "metadata": { "namespace": "default", "name": "g", "uid": "guard-1", "generation": generation } });
        let pod = |namespace: &str, uid: &str, labels: &serde_json::Value| {
            json!({ "metadata": { "namespace": namespace, "name": format!("name-of-{uid}"), "uid": uid, "labels": labels },
                "spec": { "nodeName": "node-1", "containers": [] },
                "status": { "phase": "Running", "podIP": daemon.ip.to_string(),
                    "conditions": [{ "type": "Ready", "status": "True" }] } })
        };
        let pods = [
            pod("default", "pod-1", &json!({ "app": "a" })),
            pod("elsewhere", "pod-2", &json!({ "app": "a" })),
            pod(NAMESPACE, "janusd-1", &of_janus),
        ];
        Objects {
            guards: vec![serde_json::from_value(guard).unwrap()],
            pods: pods.into_iter().map(|pod| serde_json::from_value(pod).unwrap()).collect(),
        }
    };
    let seen = |objects: &Objects| Expected::of(objects).differences(&fleet).join("; ");
    let all = json!({});
    assert!(seen(&objects(all.clone(), 1, "/a")).contains("missing"));
    daemon.leave(create(1, 1, "/a"));
    assert_eq!(seen(&objects(all.clone(), 1, "/a")), "");
    assert_eq!(seen(&objects(json!({ "matchLabels": { "app": "a" } }), 1, "/a")), "");
    assert!(seen(&objects(all.clone(), 2, "/a")).contains("generation 1, should be 2"));
    assert!(seen(&objects(all.clone(), 1, "/b")).contains("another spec"));
    assert!(seen(&objects(json!({ "matchLabels": { "app": "b" } }), 1, "/a")).contains("should not be there"));
    let not_in = json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["a"] }] });
    assert!(seen(&objects(not_in, 1, "/a")).contains("should not be there"));
    let unready = Objects { guards: Vec::new(), ..objects(all.clone(), 1, "/a") };
    assert!(seen(&unready).contains("should not be there"));
    daemon.temper(|temper| temper.settle = Duration::from_secs(60));
    daemon.leave(create(1, 2, "/a"));
    assert!(seen(&objects(all, 2, "/a")).contains("2 is not yet"));
}

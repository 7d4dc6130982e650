//! The election as it runs, by way of a kube client whose API server knows one Lease.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use janus_controller::lease::candidate::Timing;
use janus_controller::lease::{ApiStore, Config, Election, Leadership, Standing, Store, StoreError, identity};
use k8s_openapi::api::coordination::v1::Lease;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What nothing here takes.
const LONG: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Server {
    lease: Option<Lease>,
    versions: u64,
    away: bool,
}

type Shared = Arc<Mutex<Server>>;

fn refusal(code: StatusCode) -> Response {
    let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "Conflict" };
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "", "reason": reason,
        "code": code.as_u16(),
    });
    (code, status.to_string()).into_response()
}

fn keep(server: &mut Server, body: &Bytes) -> Response {
    let mut lease: Lease = serde_json::from_slice(body).unwrap();
    server.versions += 1;
    lease.metadata.resource_version = Some(server.versions.to_string());
    lease.metadata.uid = Some("uid".to_owned());
    server.lease = Some(lease.clone());
    serde_json::to_string(&lease).unwrap().into_response()
}

async fn read(State(server): State<Shared>) -> Response {
    if server.lock().unwrap().away {
        return std::future::pending().await;
    }
    match &server.lock().unwrap().lease {
        Some(lease) => serde_json::to_string(lease).unwrap().into_response(),
        None => refusal(StatusCode::NOT_FOUND),
    }
}

async fn create(State(server): State<Shared>, body: Bytes) -> Response {
    if server.lock().unwrap().away {
        return std::future::pending().await;
    }
    let mut server = server.lock().unwrap();
    if server.lease.is_some() { refusal(StatusCode::CONFLICT) } else { keep(&mut server, &body) }
}

async fn replace(State(server): State<Shared>, body: Bytes) -> Response {
    if server.lock().unwrap().away {
        return std::future::pending().await;
    }
    let mut server = server.lock().unwrap();
    let version = serde_json::from_slice::<Lease>(&body).unwrap().metadata.resource_version;
    match &server.lease {
        None => refusal(StatusCode::NOT_FOUND),
        Some(lease) if version.is_none() || lease.metadata.resource_version != version => refusal(StatusCode::CONFLICT),
        Some(_) => keep(&mut server, &body),
    }
}

fn client(server: &Shared) -> kube::Client {
    let leases = "/apis/coordination.k8s.io/v1/namespaces/janus/leases";
    let routes = Router::new()
        .route(leases, post(create))
        .route(&format!("{leases}/janus-controller"), get(read).put(replace))
        .with_state(server.clone());
    kube::Client::new(routes, "default")
}

/// One process.
struct Process {
    identity: String,
    standing: watch::Receiver<Standing>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Process {
    fn start(server: &Shared, elect: bool) -> Process {
        let ms = Duration::from_millis;
        let config = Config {
            namespace: "janus".to_owned(),
            name: "janus-controller".to_owned(),
            identity: identity("pod").unwrap(),
            elect,
            timing: Timing::new(ms(3000), ms(2000), ms(300)).unwrap(),
        };
        let (identity, shutdown) = (config.identity.clone(), CancellationToken::new());
        let (election, standing) = Election::new(client(server), config);
        let mut tasks = JoinSet::new();
        tasks.spawn(election.run(shutdown.clone()));
        Process { identity, standing, shutdown, tasks }
    }

    async fn leads(&mut self) -> Leadership {
        let leads = self.standing.wait_for(|standing| matches!(standing, Standing::Leading(_)));
        match &*tokio::time::timeout(LONG, leads).await.expect("it leads").unwrap() {
            Standing::Leading(leadership) => leadership.clone(),
            Standing::Standby { .. } => unreachable!(),
        }
    }

    async fn stands_by(&mut self, behind: &str) {
        let behind =
            |standing: &Standing| matches!(standing, Standing::Standby { holder } if holder.as_deref() == Some(behind));
        tokio::time::timeout(LONG, self.standing.wait_for(behind)).await.expect("it stands by").unwrap();
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
    }
}

async fn lost(leadership: &Leadership) {
    tokio::time::timeout(LONG, leadership.lost()).await.expect("it is lost");
    assert!(!leadership.may_act());
}

fn spec(server: &Shared) -> k8s_openapi::api::coordination::v1::LeaseSpec {
    server.lock().unwrap().lease.clone().unwrap().spec.unwrap()
}

#[tokio::test]
async fn one_leads_and_another_follows_when_it_has_let_go() {
    let server = Shared::default();
    let mut first = Process::start(&server, true);
    let leadership = first.leads().await;
    assert!(leadership.may_act());
    let minutes = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 60;
    assert!((minutes - 1..=minutes + 1).contains(&leadership.epoch()), "{}", leadership.epoch());
    let mut second = Process::start(&server, true);
    second.stands_by(&first.identity).await;
    first.end().await;
    lost(&leadership).await;
    let next = second.leads().await;
    assert!(next.may_act() && next.epoch() > leadership.epoch());
    assert_eq!(spec(&server).holder_identity, Some(second.identity.clone()));
    second.end().await;
    let released = spec(&server);
    assert_eq!(released.holder_identity, None);
    assert_eq!(released.lease_transitions, Some(i32::try_from(next.epoch() - 1).unwrap()));
}

#[tokio::test]
async fn while_the_api_server_is_away_nobody_leads() {
    let server = Shared::default();
    let mut process = Process::start(&server, true);
    let before = process.leads().await;
    server.lock().unwrap().away = true;
    lost(&before).await;
    let identity = process.identity.clone();
    process.stands_by(&identity).await;
    server.lock().unwrap().away = false;
    let after = process.leads().await;
    assert!(after.epoch() > before.epoch());
    assert!(!before.may_act() && after.may_act());
}

#[tokio::test]
async fn an_election_that_is_dropped_leads_no_more() {
    let server = Shared::default();
    let mut process = Process::start(&server, true);
    let leadership = process.leads().await;
    process.tasks.shutdown().await;
    lost(&leadership).await;
    // Nobody let go of it.
    assert_eq!(spec(&server).holder_identity, Some(process.identity));
}

#[tokio::test]
async fn without_election_it_is_taken_from_whoever_has_it() {
    let server = Shared::default();
    let mut first = Process::start(&server, true);
    let leadership = first.leads().await;
    let mut second = Process::start(&server, false);
    let next = second.leads().await;
    assert!(next.epoch() > leadership.epoch());
    lost(&leadership).await;
    first.stands_by(&second.identity).await;
}

#[tokio::test]
async fn another_process_of_the_same_pod_is_another_candidate() {
    let server = Shared::default();
    let mut first = Process::start(&server, true);
    let leadership = first.leads().await;
    // Killed.
    first.tasks.shutdown().await;
    let mut second = Process::start(&server, true);
    second.stands_by(&first.identity).await;
    assert!(second.leads().await.epoch() > leadership.epoch());
}

#[tokio::test]
async fn only_what_was_read_is_replaced() {
    let server = Shared::default();
    let store = ApiStore::new(client(&server), "janus", "janus-controller");
    assert!(store.get().await.unwrap().is_none());
    let mut lease = Lease::default();
    lease.metadata.name = Some("janus-controller".to_owned());
    let made = store.create(&lease).await.unwrap();
    assert!(matches!(store.create(&lease).await, Err(StoreError::Conflict)));
    let newer = store.replace(&made).await.unwrap();
    assert!(matches!(store.replace(&made).await, Err(StoreError::Conflict)));
    assert_eq!(store.get().await.unwrap(), Some(newer.clone()));
    server.lock().unwrap().lease = None;
    assert!(matches!(store.replace(&newer).await, Err(StoreError::Conflict)));
}

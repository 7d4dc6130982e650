//! `janus-controller certificates`: makes and renews the certificates of an installation that has no cert-manager.
//!
//! Run by a CronJob. Each run reads three Secrets, carries out what [`plan`](plan::plan) finds due, and ends: `janus-ca` has
//! the CA's key and is mounted by no pod; `janusd-tls` and `janus-controller-tls` have `tls.crt`, `tls.key` and `ca.crt`.
//! They have to be there already, if empty: to create Secrets is a right that cannot be bound to names.
//!
//! Guarantees: the CA's Secret is written before what depends on it. Every write names the version that was read: of two
//! runs at once the later fails, and changes nothing of the earlier's. A Secret in which nothing is due is not written.
//!
//! Assumptions: of a CA's Secret that cannot be read, nothing is made up; a person has to look. A side's certificate that
//! cannot be used is replaced.

pub mod material;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};

use self::material::{Ca, MaterialError, Signer, bundle, inspect};
use self::plan::{Due, Found, Leaf, Side, Time, Turn};

const AUTHORITY: &str = "janus-ca";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// The CAs that a side trusts, one after the other.
const CAS: &str = "ca.crt";

/// When `ca.crt` was last changed.
const TRUSTS_SINCE: &str = "clustergarage.io/trusts-since";

/// Why a run failed. The next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No way to the API server.
    #[error("finding the API server")]
    Cluster(#[source] kube::Error),
    /// A Secret was not read or written: it is not there, we may not, or another run was faster.
    #[error("Secret {name}")]
    Secret {
        /// Which.
        name: &'static str,
        /// Why.
        source: kube::Error,
    },
    /// What the CA's Secret holds is of no use.
    #[error("Secret {AUTHORITY}, {key} (empty that Secret to begin with a new CA)")]
    Authority {
        /// Where in it.
        key: &'static str,
        /// Why.
        source: MaterialError,
    },
    /// No certificate could be made.
    #[error(transparent)]
    Make(#[from] MaterialError),
    /// There is no CA to sign with. The plan does not let that happen.
    #[error("no CA to sign with")]
    NoSigner,
    /// The clock.
    #[error("the clock stands before 1970")]
    Clock,
}

/// One run, against the cluster that kubectl would find.
///
/// # Errors
/// [`Failure`]. What was written stays, and the next run goes on from there.
pub async fn run(namespace: &str) -> Result<(), Failure> {
    let client = Client::try_default().await.map_err(Failure::Cluster)?;
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(|_| Failure::Clock)?;
    once(client, namespace, Time::try_from(since_1970.as_secs()).map_err(|_| Failure::Clock)?).await
}

async fn once(client: Client, namespace: &str, now: Time) -> Result<(), Failure> {
    let secrets = Secrets(Api::namespaced(client, namespace));
    let ca = secrets.read(AUTHORITY).await?;
    let (daemon, controller) =
        (secrets.read(secret(Side::Daemon)).await?, secrets.read(secret(Side::Controller)).await?);
    let authorities = Authorities::read(&ca)?;
    let found = Found {
        current: authorities.current.as_ref().map(|signer| signer.ca.authority()),
        next: authorities.next.as_ref().map(|signer| signer.ca.authority()),
        previous: authorities.previous.as_ref().map(Ca::authority),
        daemon: leaf(&daemon, Side::Daemon, namespace, &authorities, now),
        controller: leaf(&controller, Side::Controller, namespace, &authorities, now),
    };
    let plan = plan::plan(now, &found);
    let authorities = match plan.turn {
        None => authorities,
        Some(turn) => {
            let authorities = authorities.turn(turn, now)?;
            secrets.write(AUTHORITY, Secret { data: Some(authorities.data()), ..ca }).await?;
            tracing::info!(?turn, "the CAs have changed");
            authorities
        }
    };
    for (side, held) in [(Side::Daemon, daemon), (Side::Controller, controller)] {
        let due = plan.due(side);
        if due == Due::default() {
            continue;
        }
        let renewed = renew(held, side, due, namespace, &authorities, now)?;
        secrets.write(secret(side), renewed).await?;
        tracing::info!(secret = secret(side), sign = ?due.sign, trust = due.trust, "renewed");
    }
    Ok(())
}

fn secret(side: Side) -> &'static str {
    match side {
        Side::Daemon => "janusd-tls",
        Side::Controller => "janus-controller-tls",
    }
}

struct Secrets(Api<Secret>);

impl Secrets {
    async fn read(&self, name: &'static str) -> Result<Secret, Failure> {
        self.0.get(name).await.map_err(|source| Failure::Secret { name, source })
    }

    /// The version that was read is part of it: whoever was faster makes this a conflict.
    async fn write(&self, name: &'static str, secret: Secret) -> Result<(), Failure> {
        let params = PostParams { field_manager: Some("janus-certificates".to_owned()), ..PostParams::default() };
        self.0.replace(name, &params, &secret).await.map(drop).map_err(|source| Failure::Secret { name, source })
    }
}

/// What a Secret holds under a key; `None` where that is nothing.
fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
}

#[derive(Debug, Default)]
struct Authorities {
    current: Option<Signer>,
    next: Option<Signer>,
    previous: Option<Ca>,
}

impl Authorities {
    fn read(secret: &Secret) -> Result<Authorities, Failure> {
        let signer = |certificate_at: &'static str, key_at: &str| {
            let Some(certificate) = text(secret, certificate_at) else { return Ok(None) };
            let signer = Signer::read(&certificate, &text(secret, key_at).unwrap_or_default());
            signer.map(Some).map_err(|source| Failure::Authority { key: certificate_at, source })
        };
        let previous = text(secret, "previous.crt").map(|pem| Ca::read(&pem)).transpose();
        Ok(Authorities {
            current: signer("ca.crt", "ca.key")?,
            next: signer("next.crt", "next.key")?,
            previous: previous.map_err(|source| Failure::Authority { key: "previous.crt", source })?,
        })
    }

    fn turn(self, turn: Turn, now: Time) -> Result<Authorities, MaterialError> {
        let Authorities { current, next, previous } = self;
        Ok(match turn {
            Turn::Begin => Authorities { current: Some(Signer::make(now)?), ..Authorities::default() },
            Turn::Prepare => Authorities { current, next: Some(Signer::make(now)?), previous },
            // Its key goes here: nothing is signed with it any more.
            Turn::Promote => Authorities { current: next, next: None, previous: current.map(|signer| signer.ca) },
            Turn::Forget => Authorities { current, next, previous: None },
        })
    }

    fn data(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::new();
        let mut keep = |key: &str, pem: String| data.insert(key.to_owned(), ByteString(pem.into_bytes()));
        if let Some(signer) = &self.current {
            keep("ca.crt", signer.ca.pem.clone());
            keep("ca.key", signer.key_pem());
        }
        if let Some(signer) = &self.next {
            keep("next.crt", signer.ca.pem.clone());
            keep("next.key", signer.key_pem());
        }
        if let Some(ca) = &self.previous {
            keep("previous.crt", ca.pem.clone());
        }
        data
    }

    /// Whom both sides are to trust.
    fn trusted(&self) -> Vec<&Ca> {
        let signers = [&self.current, &self.next].into_iter().flatten().map(|signer| &signer.ca);
        signers.chain(&self.previous).collect()
    }
}

fn leaf(secret: &Secret, side: Side, namespace: &str, authorities: &Authorities, now: Time) -> Leaf {
    let trusts = match bundle(&text(secret, CAS).unwrap_or_default()) {
        Ok(trusts) => trusts.into_iter().collect(),
        Err(error) => {
            tracing::warn!(?side, %error, "the CAs that it trusts cannot be read, and are written anew");
            BTreeSet::new()
        }
    };
    let since = secret.metadata.annotations.as_ref().and_then(|annotations| annotations.get(TRUSTS_SINCE));
    let since = since.and_then(|text| humantime::parse_rfc3339(text).ok());
    let since = since.and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
    let signed = text(secret, CERTIFICATE).and_then(|certificate| {
        let key = text(secret, KEY).unwrap_or_default();
        inspect(&certificate, &key, (side, namespace), &authorities.trusted(), now)
            .inspect_err(|error| tracing::warn!(?side, %error, "its certificate is of no use, and is made anew"))
            .ok()
    });
    Leaf { trusts, trusts_since: since.and_then(|since| Time::try_from(since.as_secs()).ok()), signed }
}

fn renew(
    mut secret: Secret,
    side: Side,
    due: Due,
    namespace: &str,
    authorities: &Authorities,
    now: Time,
) -> Result<Secret, Failure> {
    let data = secret.data.get_or_insert_default();
    if due.sign.is_some() {
        let signer = authorities.current.as_ref().ok_or(Failure::NoSigner)?;
        let (certificate, key) = signer.sign(side, namespace, now)?;
        data.insert(CERTIFICATE.to_owned(), ByteString(certificate.into_bytes()));
        data.insert(KEY.to_owned(), ByteString(key.into_bytes()));
    }
    if due.trust {
        let cas: String = authorities.trusted().into_iter().map(|ca| ca.pem.as_str()).collect();
        data.insert(CAS.to_owned(), ByteString(cas.into_bytes()));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.try_into().map_err(|_| Failure::Clock)?);
        let since = humantime::format_rfc3339_seconds(now).to_string();
        secret.metadata.annotations.get_or_insert_default().insert(TRUSTS_SINCE.to_owned(), since);
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use axum::http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    const NOW: Time = 1_800_000_000;
    const DAY: Time = 24 * 3600;
    const NAMESPACE: &str = "janus-system";

    /// An API server that knows Secrets, versions and conflicts.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<BTreeMap<String, Secret>>>, Arc<Mutex<Vec<String>>>);

    impl Server {
        fn with_empty_secrets() -> Server {
            let server = Server::default();
            for name in [AUTHORITY, "janusd-tls", "janus-controller-tls"] {
                let mut secret = Secret::default();
                secret.metadata.name = Some(name.to_owned());
                secret.metadata.resource_version = Some("1".to_owned());
                server.0.lock().unwrap().insert(name.to_owned(), secret);
            }
            server
        }

        fn answer(&self, method: &Method, name: &str, body: &[u8]) -> (u16, Vec<u8>) {
            let mut secrets = self.0.lock().unwrap();
            let failed = |code: u16, reason: &str| {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
                    "reason": reason, "code": code});
                (code, status.to_string().into_bytes())
            };
            let Some(held) = secrets.get_mut(name) else { return failed(404, "NotFound") };
            if method == Method::PUT {
                let mut new: Secret = serde_json::from_slice(body).unwrap();
                if new.metadata.resource_version != held.metadata.resource_version {
                    return failed(409, "Conflict");
                }
                let version: u64 = held.metadata.resource_version.as_deref().unwrap().parse().unwrap();
                new.metadata.resource_version = Some((version + 1).to_string());
                *held = new;
                self.1.lock().unwrap().push(name.to_owned());
            }
            (200, serde_json::to_vec(held).unwrap())
        }

        fn client(&self) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let name = parts.uri.path().rsplit('/').next().unwrap().to_owned();
                    let body = body.collect_bytes().await.unwrap();
                    let (code, answer) = server.answer(&parts.method, &name, &body);
                    let body = Body::from(answer);
                    Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
                }
            });
            Client::new(service, NAMESPACE)
        }

        /// Runs; gives what was written.
        fn run(&self, now: Time) -> Result<Vec<String>, Failure> {
            self.1.lock().unwrap().clear();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { once(self.client(), NAMESPACE, now).await })?;
            Ok(self.1.lock().unwrap().clone())
        }

        fn text(&self, name: &str, key: &str) -> Option<String> {
            text(self.0.lock().unwrap().get(name).unwrap(), key)
        }

        /// Whether each side takes the other's certificate.
        fn agree(&self, now: Time) -> bool {
            let sides = [(Side::Daemon, "janus-controller-tls"), (Side::Controller, "janusd-tls")];
            sides.into_iter().all(|(side, peer)| {
                let cas = bundle(&self.text(peer, CAS).unwrap()).unwrap();
                let [certificate, key] = [CERTIFICATE, KEY].map(|it| self.text(secret(side), it).unwrap());
                let known = [
                    self.text(AUTHORITY, "ca.crt"),
                    self.text(AUTHORITY, "next.crt"),
                    self.text(AUTHORITY, "previous.crt"),
                ];
                let known: Vec<Ca> = known.into_iter().flatten().map(|pem| Ca::read(&pem).unwrap()).collect();
                let trusted: Vec<&Ca> = known.iter().filter(|ca| cas.contains(&ca.authority().id)).collect();
                inspect(&certificate, &key, (side, NAMESPACE), &trusted, now).is_ok()
            })
        }
    }

    #[test]
    fn empty_secrets_are_filled_the_cas_first_and_then_left_alone() {
        let server = Server::with_empty_secrets();
        assert_eq!(server.run(NOW).unwrap(), [AUTHORITY, "janusd-tls", "janus-controller-tls"]);
        assert!(server.agree(NOW));
        assert_eq!(server.run(NOW + 3600).unwrap(), [""; 0]);
    }

    #[test]
    fn a_run_a_day_until_the_second_ca_signs() {
        let server = Server::with_empty_secrets();
        let (mut written, mut first) = (0, None);
        for day in 0..260 {
            let now = NOW + day * DAY;
            written += server.run(now).unwrap().len();
            assert!(server.agree(now), "day {day}");
            first = first.or_else(|| server.text(AUTHORITY, "ca.crt"));
        }
        assert_ne!(first, server.text(AUTHORITY, "ca.crt"), "the CA was replaced");
        assert_eq!(server.text(AUTHORITY, "previous.crt"), None);
        // Both sides at first, thrice again every 60 days; the new CA is told to both, signs for both, and is alone.
        assert_eq!(written, (1 + 2) + 4 * 2 + 3 + 3 + 3);
    }

    #[test]
    fn what_somebody_broke_is_made_anew_and_a_broken_ca_is_not() {
        let server = Server::with_empty_secrets();
        server.run(NOW).unwrap();
        let put = |name: &str, key: &str, value: &str| {
            let mut secrets = server.0.lock().unwrap();
            let data = secrets.get_mut(name).unwrap().data.as_mut().unwrap();
            data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
        };
        put("janusd-tls", KEY, "nonsense");
        put("janus-controller-tls", CAS, "");
        assert_eq!(server.run(NOW).unwrap(), ["janusd-tls", "janus-controller-tls"]);
        assert!(server.agree(NOW));
        put(AUTHORITY, "ca.key", "nonsense");
        assert!(matches!(server.run(NOW), Err(Failure::Authority { key: "ca.crt", .. })));
        assert!(server.agree(NOW), "what works is left alone");
    }

    #[test]
    fn a_secret_that_is_not_there_is_not_made() {
        let server = Server::with_empty_secrets();
        server.0.lock().unwrap().remove("janusd-tls");
        assert!(matches!(server.run(NOW), Err(Failure::Secret { name: "janusd-tls", .. })));
        assert_eq!(server.text(AUTHORITY, "ca.key"), None);
    }

    #[test]
    fn of_two_runs_at_once_the_later_changes_nothing() {
        let server = Server::with_empty_secrets();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Both read before either writes: the server answers at once, so they take turns at each call.
        let (one, other) = runtime.block_on(async {
            tokio::join!(once(server.client(), NAMESPACE, NOW), once(server.client(), NAMESPACE, NOW))
        });
        assert!(one.is_ok() || other.is_ok());
        assert!(server.agree(NOW));
        server.run(NOW).unwrap();
        assert!(server.agree(NOW));
    }
}

//! `janus-controller run`: the composition root, and the order in which things end.
//!
//! One task elects, one serves the admin port, and while this process leads one runs the hub. Losing the Lease drops the
//! hub with all its drivers and writes; the next leadership begins with an empty one, which is all that a restart is.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use kube::core::Selector;
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::args::Run;
use crate::daemon::Nodes;
use crate::daemon::connect::{Dialer, Patience};
use crate::daemon::tls::{Files, Reload, Tls};
use crate::index::Home;
use crate::lease::{self, Election, Leadership, Standing};
use crate::metrics::Metrics;
use crate::reconcile::api::{self, ApiServer, watches};
use crate::reconcile::driver::Pace;
use crate::reconcile::hub::Hub;
use crate::reconcile::port::Lead;

impl Lead for Leadership {
    fn epoch(&self) -> u64 {
        Leadership::epoch(self)
    }

    fn may_act(&self) -> bool {
        Leadership::may_act(self)
    }
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// What kept it from running: an address, a certificate, no cluster.
pub async fn run(options: Run) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let daemons: Selector = daemon_selector(&options.daemon_selector).context("--daemon-selector")?;
    let home = Home { namespace: options.namespace.clone(), daemons };
    let tls = match (&options.tls_ca, &options.tls_cert, &options.tls_key) {
        (Some(ca), Some(certificate), Some(key)) => {
            let files = Files { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() };
            Some(Tls::open(files, &options.namespace).context("--tls-ca, --tls-cert, --tls-key")?)
        }
        _ => None,
    };
    let (tls, reload) = tls.unzip();
    let dialer = Dialer::new(&options.namespace, tls.clone(), Patience::default()).context("--namespace")?;
    if tls.is_none() {
        tracing::warn!("--insecure: whoever answers for a pod's address is taken for janusd");
    }
    let config = Config::infer().await.context("no cluster: kubeconfig as kubectl finds it, or a pod's own")?;
    let client = Client::try_from(api::acting(config)).context("no client for the cluster")?;
    let listener = TcpListener::bind(options.admin_listen)
        .await
        .with_context(|| format!("--admin-listen {}", options.admin_listen))?;
    let pod = options.pod_name.clone().unwrap_or_else(host_name);
    let metrics = Metrics::new();
    let admin = Arc::new(Admin { metrics: metrics.clone(), ready: false.into() });
    let shutdown = CancellationToken::new();
    let election = lease::Config {
        namespace: options.namespace.clone(),
        name: "janus-controller".to_owned(),
        identity: lease::identity(&pod).context("an identity")?,
        elect: options.leader_elect,
        timing: lease::candidate::Timing::USUAL,
    };
    let (election, standing) = Election::new(client.clone(), election);
    let acting = Acting {
        client,
        home,
        nodes: Nodes::new(dialer, options.daemon_port),
        pace: Pace { resync: options.resync },
        pod,
        annotate: options.annotate_pods,
        admin: admin.clone(),
    };
    tracing::info!(admin = %options.admin_listen, namespace = options.namespace, "running");
    let mut election = std::pin::pin!(election.run(shutdown.clone()));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = &mut election => anyhow::bail!("the election ended by itself"),
        () = acting.whenever_leading(standing) => anyhow::bail!("the election told nothing any more"),
        never = keep_certificates(reload) => match never {},
        ended = admin::serve(listener, admin.clone()) => ended.context("--admin-listen")?,
    }
    // The hub is gone with the select: nothing acts any more when another may begin.
    tracing::info!("ending");
    admin.ready.store(false, Ordering::Release);
    shutdown.cancel();
    election.await;
    Ok(())
}

/// Reads certificates again whenever their files change.
async fn keep_certificates(reload: Option<Reload>) -> Infallible {
    match reload {
        // What came of it is in the log.
        Some(reload) => reload.run(|_| ()).await,
        None => std::future::pending().await,
    }
}

/// What acting takes.
struct Acting {
    client: Client,
    home: Home,
    nodes: Nodes,
    pace: Pace,
    pod: String,
    annotate: bool,
    admin: Arc<Admin>,
}

impl Acting {
    async fn whenever_leading(&self, mut standing: watch::Receiver<Standing>) {
        let metrics = &self.admin.metrics;
        loop {
            let now = standing.borrow_and_update().clone();
            match now {
                Standing::Leading(leadership) => {
                    metrics.leads(true);
                    self.admin.ready.store(false, Ordering::Release);
                    tokio::select! {
                        () = self.act(leadership.clone()) => tracing::error!("watches ended by themselves; once more"),
                        () = leadership.lost() => {}
                    }
                    metrics.leads(false);
                    // A hub that ended by itself is made anew only if we still lead.
                    if leadership.may_act() {
                        continue;
                    }
                }
                Standing::Standby { .. } => self.admin.ready.store(true, Ordering::Release),
            }
            if standing.changed().await.is_err() {
                return;
            }
        }
    }

    async fn act(&self, leadership: Leadership) {
        let metrics = self.admin.metrics.clone();
        tracing::info!(epoch = leadership.epoch(), "leading");
        let cluster = ApiServer::new(self.client.clone(), self.pod.clone());
        let (hub, mut synced) =
            Hub::new(self.home.clone(), self.nodes.clone(), leadership, cluster, self.pace, metrics.clone());
        let hub = if self.annotate { hub.annotating() } else { hub };
        let ready = async {
            // Its sender is the hub.
            if synced.wait_for(|synced| *synced).await.is_ok() {
                self.admin.ready.store(true, Ordering::Release);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = hub.run(watches(&self.client, metrics)) => {}
            () = ready => {}
        }
    }
}

/// `a=b,c in (d,e)`, as kubectl takes it.
fn daemon_selector(text: &str) -> anyhow::Result<Selector> {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
    // Equality alone: what a DaemonSet's own selector is made of.
    let mut labels = std::collections::BTreeMap::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').with_context(|| format!("`{part}` is not KEY=VALUE"))?;
        labels.insert(key.trim().to_owned(), value.trim_start_matches('=').trim().to_owned());
    }
    let selector = LabelSelector { match_labels: Some(labels), ..LabelSelector::default() };
    selector.try_into().context("not a selector")
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

//! An API server: of paper, or a real one.

use std::path::PathBuf;
use std::time::Duration;

use kube::Client;
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::binaries::{self, Set};
use crate::certificates::NAMESPACE;
use crate::paper::Paper;
use crate::server::{ApiServer, Kind};

/// The definition that is deployed.
const CRD: &str = include_str!("../../deploy/base/crd.yaml");

pub(crate) enum Host {
    Paper(Paper, TempDir),
    Real(Box<ApiServer>),
}

impl Host {
    pub(crate) fn paper() -> Host {
        Host::Paper(Paper::start(), tempfile::tempdir().unwrap())
    }

    /// Not inside of a runtime.
    pub(crate) fn real(namespaces: &[String]) -> Host {
        let server = ApiServer::start(binaries::kubernetes(Set::Api).unwrap(), Kind::Alone);
        server.admin().apply(CRD);
        server.admin().kubectl(&["wait", "--for=condition=Established", "--timeout=20s", "crd", "--all"]).success();
        for namespace in namespaces.iter().map(String::as_str).chain([NAMESPACE]) {
            server.admin().kubectl(&["create", "namespace", namespace]).success();
        }
        Host::Real(Box::new(server))
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        match self {
            Host::Paper(paper, scratch) => paper.kubeconfig(scratch.path()),
            Host::Real(server) => server.admin().kubeconfig().to_owned(),
        }
    }

    /// The test's own client.
    pub(crate) async fn client(&self) -> Client {
        match self {
            Host::Paper(paper, scratch) => paper.client(scratch.path()).await,
            Host::Real(server) => server.admin().client().await,
        }
    }

    /// It dies, and is back after a while.
    pub(crate) async fn restart(&self, away: Duration) {
        match self {
            Host::Paper(paper, _) => {
                paper.stop();
                tokio::time::sleep(away).await;
                paper.start_again();
            }
            Host::Real(server) => {
                block_in_place(|| server.kill());
                tokio::time::sleep(away).await;
                block_in_place(|| server.start_again());
            }
        }
    }

    /// For a while it answers nobody.
    pub(crate) async fn hang(&self, time: Duration) {
        if let Host::Real(server) = self {
            block_in_place(|| server.freeze());
            tokio::time::sleep(time).await;
            block_in_place(|| server.thaw());
        }
    }
}

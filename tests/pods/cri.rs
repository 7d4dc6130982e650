//! The container runtime, by the socket that a kubelet uses: what these tests need of CRI `runtime.v1`, and no more.
//!
//! Messages carry the published field numbers and leave out the fields that nobody here sets or reads, which protobuf
//! allows. Every call has a deadline.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::wire::{connect_unix, wait_for};

/// How long one call may take. The slowest starts a sandbox, which takes a fifth of a second on an idle machine.
const LIMIT: Duration = Duration::from_secs(20);

/// `NamespaceMode`.
pub(crate) mod namespace {
    pub(crate) const POD: i32 = 0;
    pub(crate) const CONTAINER: i32 = 1;
    pub(crate) const NODE: i32 = 2;
}

/// `MountPropagation`: what is mounted on the node later appears in the container.
pub(crate) const HOST_TO_CONTAINER: i32 = 1;

/// `ContainerState`.
pub(crate) const EXITED: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Version {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(string, tag = "2")]
    pub(crate) runtime_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxMetadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
    #[prost(uint32, tag = "4")]
    pub(crate) attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Namespaces {
    #[prost(int32, tag = "1")]
    pub(crate) network: i32,
    #[prost(int32, tag = "2")]
    pub(crate) pid: i32,
    #[prost(int32, tag = "3")]
    pub(crate) ipc: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    pub(crate) namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LinuxSandbox {
    #[prost(string, tag = "1")]
    pub(crate) cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<SandboxMetadata>,
    #[prost(string, tag = "2")]
    pub(crate) hostname: String,
    #[prost(map = "string, string", tag = "6")]
    pub(crate) labels: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
    #[prost(string, tag = "2")]
    runtime_handler: String,
}

/// Any request or answer that is one ID.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mount {
    #[prost(string, tag = "1")]
    pub(crate) container_path: String,
    #[prost(string, tag = "2")]
    pub(crate) host_path: String,
    #[prost(bool, tag = "3")]
    pub(crate) readonly: bool,
    #[prost(int32, tag = "5")]
    pub(crate) propagation: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<Image>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
    #[prost(map = "string, string", tag = "9")]
    labels: HashMap<String, String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct StopContainer {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int64, tag = "2")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status_ {
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "5")]
    pub(crate) started_at: i64,
    #[prost(int32, tag = "7")]
    pub(crate) exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<Status_>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Exec {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Executed {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub(crate) exit_code: i32,
}

/// What a container is made of.
#[derive(Debug, Clone)]
pub(crate) struct NewContainer {
    pub(crate) name: String,
    /// How often it was started before.
    pub(crate) attempt: u32,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
}

/// The runtime.
#[derive(Debug, Clone)]
pub(crate) struct Cri(Channel);

impl Cri {
    /// Connects when the first call is made.
    pub(crate) fn at(socket: &Path) -> Cri {
        Cri(connect_unix(socket))
    }

    fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut service = Grpc::new(self.0.clone());
        wait_for(LIMIT, async move {
            service.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            let answer = service.unary(Request::new(request), PathAndQuery::from_static(method), codec).await?;
            Ok(answer.into_inner())
        })
    }

    pub(crate) fn version(&self) -> Result<Version, Status> {
        self.call("/runtime.v1.RuntimeService/Version", Nothing {})
    }

    /// The sandbox's ID. `runtime`: as the node's configuration names it; empty: the default one.
    pub(crate) fn run_sandbox(&self, config: SandboxConfig, runtime: &str) -> Result<String, Status> {
        let request = RunSandbox { config: Some(config), runtime_handler: runtime.to_owned() };
        let answer: Id = self.call("/runtime.v1.RuntimeService/RunPodSandbox", request)?;
        Ok(answer.id)
    }

    pub(crate) fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        self.about("/runtime.v1.RuntimeService/StopPodSandbox", id)
    }

    pub(crate) fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        self.about("/runtime.v1.RuntimeService/RemovePodSandbox", id)
    }

    /// The container's ID.
    pub(crate) fn create_container(
        &self,
        sandbox: &str,
        sandbox_config: &SandboxConfig,
        new: &NewContainer,
    ) -> Result<String, Status> {
        let namespaces = sandbox_config.linux.as_ref().and_then(|linux| linux.security.as_ref()?.namespaces.clone());
        let labels = ["io.kubernetes.pod.uid", "io.kubernetes.pod.name", "io.kubernetes.pod.namespace"]
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), sandbox_config.labels.get(*key)?.clone())))
            .chain([("io.kubernetes.container.name".to_owned(), new.name.clone())])
            .collect();
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: new.name.clone(), attempt: new.attempt }),
            image: Some(Image { image: new.image.clone() }),
            command: new.command.clone(),
            mounts: new.mounts.clone(),
            labels,
            linux: Some(LinuxContainer { security: Some(ContainerSecurity { namespaces }) }),
        };
        let request = CreateContainer {
            sandbox: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let answer: Id = self.call("/runtime.v1.RuntimeService/CreateContainer", request)?;
        Ok(answer.id)
    }

    pub(crate) fn start_container(&self, id: &str) -> Result<(), Status> {
        self.about("/runtime.v1.RuntimeService/StartContainer", id)
    }

    /// Kills it, without a time to say goodbye.
    pub(crate) fn stop_container(&self, id: &str) -> Result<(), Status> {
        let request = StopContainer { id: id.to_owned(), timeout: 0 };
        self.call("/runtime.v1.RuntimeService/StopContainer", request).map(|_: Nothing| ())
    }

    pub(crate) fn remove_container(&self, id: &str) -> Result<(), Status> {
        self.about("/runtime.v1.RuntimeService/RemoveContainer", id)
    }

    fn about(&self, method: &'static str, id: &str) -> Result<(), Status> {
        self.call(method, Id { id: id.to_owned() }).map(|_: Nothing| ())
    }

    /// Its state, and the pid of its first process where it runs, as the node counts.
    pub(crate) fn status(&self, id: &str) -> Result<(Status_, Option<u32>), Status> {
        let request = StatusRequest { id: id.to_owned(), verbose: true };
        let answer: StatusAnswer = self.call("/runtime.v1.RuntimeService/ContainerStatus", request)?;
        let info = answer.info.get("info").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        let pid = info.and_then(|info| info["pid"].as_u64()).and_then(|pid| u32::try_from(pid).ok());
        Ok((answer.status.unwrap_or_default(), pid.filter(|pid| *pid != 0)))
    }

    pub(crate) fn exec(&self, id: &str, command: &[&str]) -> Result<Executed, Status> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        self.call("/runtime.v1.RuntimeService/ExecSync", Exec { id: id.to_owned(), command, timeout: 15 })
    }
}

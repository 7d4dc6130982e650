//! What the command line says, before anything is made of it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Janus node daemon: answers the kernel's fanotify permission events for guarded files.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub(crate) enum Command {
    /// Guard this node's pods, as janus-controller says over gRPC, until SIGINT or SIGTERM.
    ///
    /// Event lines go to stdout, everything else to stderr. Certificates are read again when their files change.
    Serve(ServeArguments),
    /// Keep guards from falling while janusd is away: openers wait for its return, and get failurePolicy if it does not
    /// return in time.
    Hold(HoldArguments),
    /// Enforce JanusGuard manifests on this machine, without a cluster, until SIGINT or SIGTERM.
    ///
    /// Event lines go to stdout, everything else to stderr. SIGHUP reads the manifests again.
    Guard(GuardArguments),
    /// Validate JanusGuard manifests, and tell what they would decide.
    Check(CheckArguments),
    /// Tell what this kernel can gate.
    Preflight(PreflightArguments),
    /// Show a real denial and a real allow on a scratch directory.
    Demo,
}

#[derive(Debug, Args)]
pub(crate) struct Manifests {
    /// Manifests; `-` is stdin.
    #[arg(
        short = 'f',
        long = "file",
        value_name = "FILE",
        required = true,
        num_args = 1..,
        env = "JANUS_FILE"
    )]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct GuardArguments {
    #[command(flatten)]
    pub(crate) manifests: Manifests,
    /// The directory that the manifests' paths are relative to.
    #[arg(long, value_name = "DIR", env = "JANUS_ROOT", conflicts_with = "pid", default_value = "/")]
    pub(crate) root: PathBuf,
    /// Guard inside the root of this process, as for a container.
    #[arg(long, value_name = "PID", env = "JANUS_PID")]
    pub(crate) pid: Option<i32>,
    /// Serve /metrics, /livez and /readyz here.
    #[arg(long, value_name = "ADDR", env = "JANUS_ADMIN_LISTEN")]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// How event lines look.
    #[arg(long, value_enum, default_value_t, env = "JANUS_EVENT_FORMAT")]
    pub(crate) event_format: EventFormat,
    /// How everything else looks, on stderr.
    #[arg(long, value_enum, default_value_t, env = "JANUS_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// Serve gRPC here.
    #[arg(long, value_name = "ADDR", env = "JANUS_LISTEN", default_value = "0.0.0.0:50051")]
    pub(crate) listen: SocketAddr,
    /// Serve /metrics, /livez and /readyz here.
    #[arg(long, value_name = "ADDR", env = "JANUS_ADMIN_LISTEN", default_value = "0.0.0.0:9101")]
    pub(crate) admin_listen: SocketAddr,
    /// This node, as the API server names it.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// The namespace of the controller: its certificate has to be for janus-controller.NAMESPACE.svc.
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "janus-system")]
    pub(crate) namespace: String,
    /// Our certificate, and those that lead to its CA (PEM).
    #[arg(long, value_name = "FILE", env = "JANUS_TLS_CERT", required_unless_present = "insecure")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", env = "JANUS_TLS_KEY", required_unless_present = "insecure")]
    pub(crate) tls_key: Option<PathBuf>,
    /// The CAs of clients (PEM).
    #[arg(long, value_name = "FILE", env = "JANUS_TLS_CLIENT_CA", required_unless_present = "insecure")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Serve gRPC without TLS: whoever reaches the port may lift every guard of the node.
    #[arg(
        long,
        env = "JANUS_INSECURE",
        value_parser = clap::builder::BoolishValueParser::new(),
        conflicts_with_all = ["tls_cert", "tls_key", "tls_client_ca"]
    )]
    pub(crate) insecure: bool,
    /// Where one janusd takes over the guards of another: a directory of the node that only root can reach. Without it
    /// guards end with their janusd.
    #[arg(long, value_name = "DIR", env = "JANUS_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// One more executable that no guard denies when it runs on the node, beside the kubelet and the container runtime.
    #[arg(long, value_name = "PATH", env = "JANUS_NODE_AGENT", value_delimiter = ':')]
    pub(crate) node_agent: Vec<PathBuf>,
    /// For how long at most the start of a container is held until its guards are in force, such as 2s; then failurePolicy
    /// is answered. 0s: starts are not held.
    #[arg(
        long,
        value_name = "TIME",
        env = "JANUS_START_LIMIT",
        default_value = "2s",
        value_parser = humantime::parse_duration
    )]
    pub(crate) start_limit: std::time::Duration,
    /// One more container runtime whose starts are held, beside those found at the usual places: the program that is
    /// executed to create and to start containers, as runc is.
    #[arg(long, value_name = "PATH", env = "JANUS_RUNTIME", value_delimiter = ':')]
    pub(crate) runtime: Vec<PathBuf>,
    /// Where fs.fanotify.max_user_groups may be raised: a mount of the node's /proc/sys, where our own is read-only.
    #[arg(long, value_name = "DIR", env = "JANUS_SYSCTL", default_value = janusd::limits::SYSCTL)]
    pub(crate) sysctl: PathBuf,
    /// How event lines look.
    #[arg(long, value_enum, default_value_t, env = "JANUS_EVENT_FORMAT")]
    pub(crate) event_format: EventFormat,
    /// How everything else looks, on stderr.
    #[arg(long, value_enum, default_value_t, env = "JANUS_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(crate) struct HoldArguments {
    /// The directory that `janusd serve` is given too.
    #[arg(long, value_name = "DIR", env = "JANUS_STATE_DIR")]
    pub(crate) state_dir: PathBuf,
    /// From the death of a janusd to failurePolicy, such as 2s.
    #[arg(
        long,
        value_name = "TIME",
        env = "JANUS_HOLD_DEADLINE",
        default_value = "2s",
        value_parser = humantime::parse_duration
    )]
    pub(crate) deadline: std::time::Duration,
    /// How the log looks, on stderr.
    #[arg(long, value_enum, default_value_t, env = "JANUS_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum EventFormat {
    /// As each guard's logFormat says.
    #[default]
    Guard,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    pub(crate) manifests: Manifests,
    /// Tell which rule would decide about this path, and how. A trailing slash makes it a directory.
    #[arg(long, value_name = "PATH", env = "JANUS_EXPLAIN")]
    pub(crate) explain: Option<PathBuf>,
    /// Only this event.
    #[arg(long, value_enum, value_name = "EVENT", requires = "explain", env = "JANUS_EXPLAIN_EVENT")]
    pub(crate) event: Option<EventWord>,
    /// The process's origin.
    #[arg(
        long = "as",
        value_enum,
        ignore_case = true,
        value_name = "ORIGIN",
        requires = "explain",
        env = "JANUS_EXPLAIN_AS"
    )]
    pub(crate) origin: Option<OriginWord>,
    /// The process's executable.
    #[arg(long, value_name = "PATH", requires = "explain", env = "JANUS_EXPLAIN_EXE")]
    pub(crate) exe: Option<String>,
    /// The process's user, as the container sees it.
    #[arg(long, value_name = "N", requires = "explain", env = "JANUS_EXPLAIN_UID")]
    pub(crate) uid: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum EventWord {
    Open,
    Access,
    Execute,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OriginWord {
    #[value(name = "Owner")]
    Owner,
    #[value(name = "Session")]
    Session,
    #[value(name = "Pod")]
    Pod,
    #[value(name = "Node")]
    Node,
}

#[derive(Debug, Args)]
pub(crate) struct PreflightArguments {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, env = "JANUS_OUTPUT")]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// One line a feature.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

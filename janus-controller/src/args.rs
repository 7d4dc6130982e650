//! The command line. Every flag has an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args as Group, Parser, Subcommand, ValueEnum};

/// The Kubernetes side of Janus: keeps each node's janusd in agreement with the cluster's JanusGuards.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// How lines of the log look.
    #[arg(long, env = "JANUS_LOG_FORMAT", value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the controller until SIGINT or SIGTERM. Kubeconfig as kubectl finds it, or the pod's own service account.
    Run(Box<Run>),
    /// Prints the JanusGuard CustomResourceDefinition as YAML, ready for `kubectl apply -f -`.
    Crd,
    /// Removes our finalizer from every JanusGuard, for a cluster without a controller. What daemons enforce stays until
    /// they are restarted.
    Uninstall,
    /// Makes and renews both sides' certificates, where there is no cert-manager: one run, which a CronJob repeats.
    Certificates {
        /// Where the Secrets janus-ca, janusd-tls and janus-controller-tls are.
        #[arg(long, env = "POD_NAMESPACE", default_value = "janus-system")]
        namespace: String,
    },
}

/// `run`.
#[derive(Debug, Clone, Group)]
pub struct Run {
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    #[arg(long, env = "JANUS_ADMIN_LISTEN", default_value = "0.0.0.0:9102")]
    pub admin_listen: SocketAddr,
    /// The namespace in which janusd and this controller run.
    #[arg(long, env = "POD_NAMESPACE", default_value = "janus-system")]
    pub namespace: String,
    /// This pod's name, for the Lease and for events. Default: the host's name.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Labels of janusd's pods, in --namespace.
    #[arg(long, env = "JANUS_DAEMON_SELECTOR", default_value = "app.kubernetes.io/name=janusd")]
    pub daemon_selector: String,
    /// janusd's gRPC port.
    #[arg(long, env = "JANUS_DAEMON_PORT", default_value_t = 50051)]
    pub daemon_port: u16,
    /// How often each daemon's state is compared with what it should be, as in `30s`.
    #[arg(long, env = "JANUS_RESYNC", default_value = "30s", value_parser = resync)]
    pub resync: Duration,
    /// CA of the daemons' certificates, PEM.
    #[arg(long, env = "JANUS_TLS_CA", required_unless_present = "insecure")]
    pub tls_ca: Option<PathBuf>,
    /// Our certificate and those that lead to its CA, PEM.
    #[arg(long, env = "JANUS_TLS_CERT", required_unless_present = "insecure")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, env = "JANUS_TLS_KEY", required_unless_present = "insecure")]
    pub tls_key: Option<PathBuf>,
    /// Speak with daemons in plain text: whoever can answer for a pod's address drives the controller.
    #[arg(long, env = "JANUS_INSECURE", conflicts_with_all = ["tls_ca", "tls_cert", "tls_key"])]
    pub insecure: bool,
    /// Name a pod's guards in its annotation clustergarage.io/janus-guard. Needs `patch pods/status`.
    #[arg(long, env = "JANUS_ANNOTATE_PODS")]
    pub annotate_pods: bool,
    /// Act only while holding the Lease `janus-controller`. `--leader-elect=false` takes it from whoever has it.
    #[arg(long, env = "JANUS_LEADER_ELECT", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", require_equals = true)]
    pub leader_elect: bool,
}

/// From a second, below which daemons do nothing but answer, to an hour.
fn resync(text: &str) -> Result<Duration, String> {
    let resync = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
    if bounds.contains(&resync) { Ok(resync) } else { Err("must be from 1s to 1h".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run(words: &[&str]) -> Result<Run, String> {
        let words = ["janus-controller", "run"].iter().chain(words);
        match Args::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Run(run) => Ok(*run),
            command => panic!("{command:?}"),
        }
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        Args::command().debug_assert();
        let mut command = Args::command();
        for command in command.get_subcommands_mut() {
            for argument in command.get_arguments().filter(|it| it.get_long().is_some() && it.get_id() != "help") {
                assert!(argument.get_env().is_some(), "--{} of {}", argument.get_id(), command.get_name());
            }
        }
    }

    #[test]
    fn tls_is_the_default_and_plain_text_is_asked_for() {
        assert!(run(&[]).unwrap_err().contains("--tls-ca"));
        assert!(run(&["--insecure"]).unwrap().insecure);
        assert!(run(&["--insecure", "--tls-ca", "x"]).is_err());
    }

    #[test]
    fn election_can_be_turned_off() {
        assert!(run(&["--insecure"]).unwrap().leader_elect);
        assert!(run(&["--insecure", "--leader-elect"]).unwrap().leader_elect);
        assert!(!run(&["--insecure", "--leader-elect=false"]).unwrap().leader_elect);
    }

    #[test]
    fn resync_has_bounds() {
        assert_eq!(run(&["--insecure", "--resync", "2s"]).unwrap().resync, Duration::from_secs(2));
        assert!(run(&["--insecure", "--resync", "1ms"]).unwrap_err().contains("from 1s to 1h"));
    }
}
